"""The benchmark of cost by the content: what a choice by tile costs and reaches."""

import numpy as np
import pytest

import rcnet
from benchmarks import adaptive
from rcnet.cost import macs
from rcnet.data.images import read_image
from rcnet.data.noise import protocol_noise
from rcnet.deploy.denoise import denoise
from rcnet.evaluation.denoise import denoising_results, to_uint8_levels

from .conftest import IMAGES

FILE = IMAGES / "bsd" / "test" / "106024.png"  # 160x160
SIDE = 82


@pytest.fixture(scope="module")
def measured():
    model = rcnet.load(adaptive.DENOISER)
    return model, adaptive.run(model, [FILE])


def test_one_setting_for_all_is_the_fixed_setting(measured):
    model, images = measured
    of, pixels, place = adaptive.cut(model, images, 0), np.array([160 * 160]), np.array([2])
    found = adaptive.reached(of, of.work, place, pixels)
    assert found["psnr"] == pytest.approx(denoising_results(model, [read_image(FILE, 1)], 25, [1])[0]["psnr"], abs=1e-3)
    assert found["gmac"] == pytest.approx(macs(model, 1, (160, 160)) / 1e9, abs=1e-3)
    by_change = adaptive.reached(of, of.work, place, pixels, "change")  # the two before ran, too
    assert by_change["gmac"] == pytest.approx(of.work[0, :3].sum(), abs=1e-3)


def test_tiles_have_the_errors_and_costs_of_their_calls(measured):
    model, images = measured
    of, last = adaptive.cut(model, images, SIDE), np.s_[SIDE:, SIDE:]
    output = to_uint8_levels(denoise(model, protocol_noise(read_image(FILE, 1), 25), 2, tile=SIDE))[0, 0].numpy()
    assert of.errors[3, 5] == pytest.approx(np.square(output[last] - images[0][0][last]).sum(), rel=1e-3)
    seen = 160 - SIDE + model.about.radius(model.per_cell(2))
    assert of.work[3, 5] == pytest.approx(macs(model, 2, (seen, seen)) / 1e9)
    assert of.bare[:, 5].sum() == pytest.approx(macs(model, 2, (160, 160)) / 1e9)


def test_choices_weigh_errors_against_cost_and_the_oracle_is_best(measured):
    model, images = measured
    of = adaptive.cut(model, images, SIDE)
    places = [adaptive.chosen(of, of.work, price, "oracle", of, of.work) for price in (0, 1e-2, 1e9)]
    assert (places[0] == of.errors.argmin(1)).all()
    assert (places[2] == 0).all()
    by_texture = adaptive.chosen(of, of.work, 1e-2, "texture", of, of.work)
    loss = adaptive.weighted(of) + 1e-2 * of.work
    assert loss[np.arange(4), by_texture].sum() >= loss[np.arange(4), places[1]].sum()
    assert (by_texture == places[1]).all()  # a range of its own for each tile
    assert adaptive.texture(images[0][1]) > adaptive.texture(images[0][0]) + (25 / 255) ** 2 / 2
