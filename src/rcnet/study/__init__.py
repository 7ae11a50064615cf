"""The paper's tables, figures and claims as declared runs.

What they need (`paper`), how much it is trained (`scales`), the runs and their files (`runs`), what they cost (`costs`), how far
they are (`states`), doing the rest (`runner`), measuring (`measure`), and the page beside the paper's figures (`results`,
`claims`, `pictures`, `page`). `command` has the actions of `rcnet study` as functions, for where only torch, numpy, Pillow,
safetensors and this folder are at hand: `run_missing(Folders(cifar, bsd, results, runs), Chosen("lite", tables=[2]))`.
"""
