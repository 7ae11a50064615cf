"""The paper's tables, figures and claims as declared runs.

What they need (`tables`), how much it is trained (`scales`), the runs and their files (`runs`), what they cost (`costs`), how far
they are (`states`), doing the rest (`runner`), measuring (`measure`), and the page beside the paper's figures (`results`,
`claims`, `pictures`, `page`). `command` has the actions of `python -m paper` as functions, for where only torch, numpy, Pillow,
safetensors and this folder are at hand: `run_missing(Folders(cifar, bsd, results, runs), Chosen("lite", table=[2]))`.

The package stands beside the library, which knows nothing of it. Importing it registers the networks with exits and with biases.
"""

from paper import biased, exits  # noqa: F401 (registers them)
