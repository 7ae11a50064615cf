"""What holds for all sizes, settings and files: drawn by hypothesis, which looks for the case that breaks it."""

import io

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import rcnet
from rcnet.data import imagefile
from rcnet.errors import InputError
from rcnet.models import create_model
from rcnet.training.steps import offer

from .conftest import random_model

few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
NET = random_model("r3_fast", width=8)


@few
@given(height=st.integers(1, 70), width=st.integers(1, 70), tile=st.integers(16, 60), steps=st.sampled_from([1, 2, 3]))
def test_tiles_leave_no_seam(height, width, tile, steps):
    image = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(height * 71 + width))
    whole = rcnet.denoise(NET, image, steps, tile=0)
    torch.testing.assert_close(rcnet.denoise(NET, image, steps, tile=tile), whole, atol=1e-4, rtol=0)


@few
@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3).map(tuple), min_size=1, max_size=5))
def test_a_network_takes_what_it_offers_and_nothing_else(wanted):
    net = create_model("r3_fast", width=8, unified=False)
    valid = [own for own in wanted if max(own) <= 3 and net.holds(own)]
    if len(valid) < len(wanted):
        try:
            offer(net, wanted)
        except InputError:
            return
        raise AssertionError(f"{wanted} were offered")
    offer(net, wanted)
    assert set(net.settings) == set(wanted)
    for own in net.settings:
        assert net.per_cell(own) == own
    for own in {(1, 1, 1), (2, 2, 2), (3, 1, 2)} - set(wanted):
        try:
            net.per_cell(own)
        except InputError:
            continue
        raise AssertionError(f"{own} was never offered")


def lossless():
    """A format, and the modes of Pillow that it holds."""
    return st.sampled_from(
        [(kind, mode) for kind in ("PNG", "TIFF", "WEBP") for mode in ("L", "RGB", "RGBA") if (kind, mode) != ("WEBP", "L")]
        + [("PNG", "I;16"), ("PNG", "LA"), ("PPM", "L"), ("PPM", "RGB"), ("BMP", "RGB")]
    )


@few
@given(lossless(), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_picture_that_is_read_and_written_is_the_same(form, height, width, seed):
    kind, mode = form
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        before = Image.fromarray(rng.integers(0, 2**16, (height, width), np.uint16))
    else:
        channels = len(Image.new(mode, (1, 1)).getbands())
        before = Image.fromarray(
            rng.integers(0, 256, (height, width, channels), np.uint8).squeeze(2 if channels == 1 else ()), mode
        )
    file = io.BytesIO()
    before.save(file, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    image = imagefile.read(file.getvalue())
    after = Image.open(io.BytesIO(imagefile.encode(image, image.kind)))
    assert np.array_equal(np.asarray(after), np.asarray(before))
