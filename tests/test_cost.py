import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rcnet.cost import macs, parameters
from rcnet.models import create_model


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_macs_of_r3_by_hand(steps):
    per_pixel = 9 * (64 + 3 * steps * 64 * 64 + 64)
    assert macs(create_model("r3"), steps, (20, 30)) == per_pixel * 20 * 30
    per_sub_pixel = 9 * (4 * 48 + 3 * steps * 2 * 48 * 48 + 48 * 4)
    assert macs(create_model("r3_fast", steps=steps), steps, (20, 30)) == per_sub_pixel * 10 * 15


def test_macs_of_a_network_that_takes_the_noise_level_by_hand():
    model = create_model("r3_fast", in_chans=3, width=16, noise_level=True)
    per_sub_pixel = 9 * (4 * (3 + 1) * 16 + 3 * 2 * 2 * 16 * 16 + 16 * 4 * 3)
    assert macs(model, 2, (20, 30), batch=2) == 2 * per_sub_pixel * 10 * 15


@pytest.mark.parametrize("name", ["r2", "r4", "s2"])
def test_macs_agree_with_the_flop_counter_on_a_real_call(name):
    model = create_model(name, steps=2).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(2, 3, 32, 32))
    assert 2 * macs(model, 2, (32, 32), batch=2) == counter.get_total_flops()


def test_sharing_kernels_saves_parameters_not_macs():
    recurrent, standard = create_model("r3", steps=4), create_model("s3", steps=4)
    assert macs(recurrent, 4, (32, 32)) == macs(standard, 4, (32, 32))
    assert parameters(standard) - parameters(recurrent) == 3 * 3 * 9 * 64 * 64


def test_counting_leaves_the_model_alone():
    model = create_model("r3")
    macs(model, 3, (8, 8))
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert model(torch.rand(1, 1, 8, 8)).shape == (1, 1, 8, 8)
