"""deepinv takes rcnet's denoiser: in the model of its plug-and-play algorithm, with its own blur."""

import pytest
import torch

from rcnet.evaluation.denoise import psnr

deepinv = pytest.importorskip("deepinv", reason="deepinv is not installed: make interop")


def test_plug_and_play(example):
    names = example("deblur")[1]
    clean, kernel = names["photograph"]([]), names["motion"]()
    denoiser = names["Plugged"](names["rcnet"].load("r3_fast.color"), 2)
    physics = deepinv.physics.BlurFFT(clean.shape[1:], filter=kernel[None, None])
    physics.set_noise_model(deepinv.physics.GaussianNoise(names["NOISE"]))
    y = physics(clean)
    print(psnr(y, clean))
