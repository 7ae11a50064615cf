"""The prose of RESULTS/STUDY.md."""

PAGE = """# The paper, checked

Zhang & Jung, *Recurrent Convolution for Compact and Cost-Adjustable Neural Networks*: its claims, tables and figures beside
what was measured here. Rendered by `python -m paper report` from the result files in `study/`, each of which names its recipe,
hardware, time and commit; `python -m paper run` makes those that are missing. Errors and accuracies are those of the 10,000 test
images of CIFAR, PSNR is that of BSD68; means over seeds, "sd" is the standard deviation between them. Networks are trained in
the precision that a result names and evaluated in fp32. *Parameters* are all that is trained in the whole network: kernels,
classifier, and every batch norm's scale and shift, also of steps that a row does not take; running statistics are not trained
and not counted.
"""
VERDICTS = """A claim *holds* where each of its comparisons is decided for it, is *contradicted* where one is decided against
it, and is else *not decided*. A comparison is decided for it where its two-sided p is at most 0.05, and against it where p is
at most 0.05 over the number of the claim's comparisons, as one of them is enough. Several seeds are compared by Welch's t. With
one seed, two networks are compared on the same test images: by McNemar's exact test of their errors, or by a bootstrap of their
PSNR over the 68 images; that says which of these two networks is better, not which would be with other seeds. Runs of old kept
no outcome per image: those are *unpaired*, compared as if each network had test images of its own. The standard error of a
difference is then 0.37 to 0.7 points of error (0.41 where both err in 9.4 %) or 0.39 dB, and only large differences are
decided. What does not converge is worse than anything; where only some seeds of the worse network do not, nothing is decided.
The p beside a verdict is that on which it hangs: the largest, or that of what contradicts it. Values stand from the worst to
the best as the paper has it; "?" is not yet measured. *Competitive* has no limit in the paper; the margin here is half a point
of error, fixed when the first runs of lite were known and before all others.
"""
FAMILY = """**By chance** ({scale}): of {claims} claims, were each one comparison between equals, {chance:.1f} would be decided
at p of 0.05. The claims make {made} comparisons so far, {unpaired} of them unpaired: between equals {by_chance:.1f} would be
decided, and {decided} are. The whole family is wrong with a chance of 0.05 at most where p is below {level:.2g} (Bonferroni):
{strict} are.
"""
CHECKED = """Runs that no table of the paper has, to tell what a verdict rests on:

- **a.** R2's double norms here have rows for each number of own steps, so that no norm sees two sizes of image: nine groups in
  C1, where n groups of norms have four. The paper passes B_s to all modules (Alg. 2); read literally, its C1 has six groups,
  though no cell is before it.
- **b.** Muon's step does not depend on the size of a gradient, so that it does not test what Sec. 3.3 says of summed gradients:
  SGD does. Kernels that are used once (S, R2^1) train at twice the rate of shared ones; here they also train at the same.
- **c.** Without norms there is no shift either: here with biases, at the usual and at a quarter of the rates.
- **d.** Shared norms at the rate of the rest; and, below, by how they are evaluated.
- **e.** The aggregated loss takes 2.76 times the FLOP: here cost-adjustable R2 by Alg. 2 for as many.
"""
WAYS = """Error in % of R2^4 with shared norms, CIFAR-10: with its last weights; with their average, as all tables have it; with
the average and statistics measured again over all steps; with statistics of each step by itself. If the last were as good as
independent norms, the statistics would be at fault (Sec. 3.2), else the scales and shifts.
"""
BEFORE = """Jastrzebski et al. (*Residual connections encourage iterative inference*, ICLR 2018, arXiv 1710.04773) shared
residual blocks before the paper and kept batch norms apart for each step, statistics, scale and shift: 6.62 % on CIFAR-10 and
29.94 % on CIFAR-100 with 0.57 million parameters. What the paper adds is the choice of steps in each call and norms by the
steps upstream. Savarese & Maire (ICLR 2019, arXiv 1902.09701) share kernels softly, as mixtures of templates. DRNN (Guo et al.,
*Dynamic Recursive Neural Network*, CVPR 2019) has a gate choose how often a block is applied to an image, and a batch norm of
its own kind for the loops. DURR (arXiv 1805.07709) applies one restoration unit again and learns when to stop. Relaxed
Recursive Transformers (arXiv 2410.20672) share layers with small corrections for each depth, and Mixture-of-Recursions (arXiv
2507.10524) chooses a depth for each token. IDF (arXiv 2508.19649) denoises iteratively with 0.04 million parameters. None of
them was run here.
"""
HEADS = """The paper gives one number of parameters for both data sets: that with CIFAR-10's ten outputs. A hundred outputs
take {more:,} more ({half:,} at half the width). The depth counts 3x3 convolutions and the linear layer, one after the other.
"""
WITHHELD = """'-' in the paper is "not convergent on test set". A finite loss does not tell, so that test PSNR is recorded along
each run (the centre of {side}x{side} pixels of each test image, about {marks} times), of the average of the weights, which all
tables show, and of the last weights, since an average at the end of a schedule that falls to zero can hardly move. A run does
not converge where the last weights (in runs of old, the average) move by more than {settled:g} dB in its last third, or its
loss or weights stop being finite. All test images have the noise of one seed, as the protocol has it; "a noise per image" has
one of its own for each.
"""
BRACKETS = """The paper prints in brackets the gaps to its fixed-step networks, "for the fixed step RC networks, we use the
results in Tab. 1"; three of the six are not those that its Table 1 gives.
"""
NORM_GROUPS = """The paper's 11.250M of R4 are {groups:,} parameters more than here, {whole:,} in all: six groups of norms,
the lower triangle of three steps, for every cell and for T2 to T4. C1 has no cell before it, so that three of its six can be
reached, and T2 to T4 take one step each, so that three rows of one are all that they can use; here only those exist. One
network serves the three rows of R4.
"""
DISTANCES = """Distances between steps, |a - b| relative to the root mean square of |a| and |b|: 0 is equal, 1.41 has nothing
in common.
"""
OPEN = """What the paper does not say, or says without a number, and what was taken here:

- **Length, rates, batches, augmentation**: nothing is said but "L2 loss", "cross-entropy" and, for denoisers, "we follow
  experimental settings of [28]". Taken: the table below. CIFAR is padded by four pixels (by reflection) and cropped. The
  scale long flips at random. The scales lite and half flip each image in every second epoch, smooth labels by 0.05, start the
  first convolution as filters that whiten patches of 3x3 pixels, and warm up over the first twentieth of a run (long:
  hundredth), as `cifar_fast` says; these are of those who train CIFAR fast, not of the paper.
- **"Gradient clip is helpful"**: no limit is given. Taken: the norm of all gradients is at most the number below.
- **Initialization**: Kaiming's normal one; the last convolution of each residual block and a denoiser's last one start at
  zero, so that a block starts as the identity: without final norms, activations would otherwise grow threefold with every
  step.
- **"The first and last layers are omitted"**: a 3x3 convolution without norm, global average pooling, a linear layer; no norm
  before it.
- **"Without BN"**: no normalization and no scale and shift either: the norm is left out, the rest stays.
- **Pooling**: 2x2 average pooling after step ceil(n/2) of each cell, as said; how norms are shared between step counts that
  pool at different places is not said.
- **R4's distribution over the steps 1, 2, 3**: not given. Taken: that of Table 4, 0.2, 0.3, 0.5.
- **Steps that each cell draws for itself** (Sec. 4.2): each by 0.2, 0.3, 0.5; norms for every mixture.
- **Early exits** (Figure 7): global average pooling and a linear layer after C2, C3 and the end; the three losses weigh the
  same.
- **Relative accuracy between two costs**: by straight lines.
- **S3^1** is R3^1: one step shares nothing.
- **Noise**: not clipped, drawn once for each test image from a fixed seed; R3 reads gray images in [0, 1] and has a
  convolution with ReLU before its cells and one after them.
- **Precision**: trained in bf16 where that is faster, evaluated in fp32.
"""
