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
VERDICTS = """A comparison counts where the means differ by more than twice the standard error of their difference, by the
standard deviation over seeds; with one seed nothing is known of that, and a verdict is only *indicated* or *not indicated*.
Values stand from the worst to the best as the paper has it; "?" is not yet measured. *Competitive* has no limit in the paper:
here, the largest gap of its own tables.
"""
HEADS = """The paper gives one number of parameters for both data sets: that with CIFAR-10's ten outputs. A hundred outputs
take {more:,} more ({half:,} at half the width). The depth counts 3x3 convolutions and the linear layer, one after the other.
"""
WITHHELD = """'-' in the paper is "not convergent on test set". A finite loss does not tell, so that test PSNR is recorded
along each run (the centre of {side}x{side} pixels of each test image, about {marks} times): a run does not converge where it
moves by more than {settled:g} dB in its last third, or its loss or weights stop being finite.
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
  experimental settings of [28]". Taken: the table below; CIFAR is cropped from four pixels around and flipped.
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
