"""The paper's tables and figures as declared runs: what they need (`paper`), how it is trained (`profiles`), what is done and
what it costs (`plan`), doing the rest (`runner`), and the page beside the paper's figures (`claims`, `report`).

`python -m rcnet.study` is `rcnet study` where only torch, numpy, Pillow, safetensors and this folder are at hand.
"""
