"""deepinv's plug-and-play algorithm takes rcnet's denoiser as it is, with deepinv's own blur."""

import pytest
import torch

import rcnet
from rcnet.evaluation.denoise import psnr

from ..conftest import names_of

deepinv = pytest.importorskip("deepinv", reason="deepinv is not installed: make interop")


def test_plug_and_play():
    names = names_of("deblur")
    clean, kernel, noise = names["photograph"]([]), names["motion"](), names["NOISE"]
    physics = deepinv.physics.BlurFFT(
        clean.shape[1:], filter=kernel[None, None], noise_model=deepinv.physics.GaussianNoise(noise)
    )
    y = physics(clean)
    denoiser = names["Plugged"](rcnet.load("r3_fast.color"), 1)
    with torch.no_grad():
        restored = deepinv.optim.DPIR(sigma=noise, denoiser=denoiser)(y, physics)
    assert psnr(restored, clean) > psnr(y, clean) + 8
    assert psnr(names["deblur"](y, kernel, denoiser), clean) > psnr(y, clean) + 8
