import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rcnet.cli.text import count
from rcnet.cost import macs, parameters, profile
from rcnet.cost.counting import judge_macs
from rcnet.models import create_model, save

from .conftest import two_levels


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


def test_a_judge_is_counted_apart(run, tmp_path):
    model = two_levels()
    alone = create_model("r3_fast", steps=(1, 2), in_chans=3, width=16, noise_level=True, coarse_level=True)
    assert macs(model, 2, (24, 32)) == macs(alone, 2, (24, 32))
    halves = 18 * 24 * 9 + 24 * 24 * 9  # of each place at half, a quarter and an eighth of the resolution
    by_hand = 24 * 32 * (halves / 4 + 2 * 24 * 24 * 9 * (1 / 16 + 1 / 64) + (72 * 48 + 48 * 4) / 64)
    assert judge_macs(model, (24, 32)) == by_hand
    assert judge_macs(alone, (24, 32)) == 0
    memory = [[row["memory"] for row in profile(network.eval(), (24, 32))] for network in (model, alone)]
    assert memory[0] == memory[1]
    assert model.judge is not None
    save(model, tmp_path / "w.safetensors")
    out = run("profile", "w.safetensors", "--size", "24x32")[1]
    assert f"its judge of noise: {count(by_hand)} MACs" in out


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
