"""Measured cost and budgets."""

import itertools
import json

import pytest
import torch

import rcnet
from rcnet.cost import latencies, macs, parse_budget, profile, steps_for
from rcnet.cost.budget import identity
from rcnet.cost.memory import peak_memory
from rcnet.deploy.torch_session import TorchSession
from rcnet.errors import InputError
from rcnet.models import create_model
from rcnet.runtime.budget import choose_setting, denoise_setting_for
from rcnet.runtime.latency import interleaved, kept_measurements, measured_once, summary
from rcnet.runtime.onnx import OnnxSession, bundled_files
from rcnet.setting import Setting

from .conftest import IMAGES

BSD = IMAGES / "bsd"


@pytest.mark.parametrize(
    ("text", "amount", "timed"),
    [
        ("50ms", 50, True),
        ("0.2s", 200, True),
        (".5 s", 500, True),
        ("100us", 0.1, True),
        ("2GMAC", 2e9, False),
        ("300 mmacs", 3e8, False),
        ("7MAC", 7, False),
        ("200 µs", 0.2, True),
        ("1min", 60_000, True),
        ("1e3MMAC", 1e9, False),
    ],
)
def test_budgets_are_read(text, amount, timed):
    budget = parse_budget(text)
    assert budget.amount == pytest.approx(amount)
    assert budget.timed == timed


@pytest.mark.parametrize("text", ["50", "ms", "-3ms", "0ms", "nan ms", "2 gb", "1.2.3ms", "", "1e999ms", "-5ms"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(InputError, match=r"e\.g\. 50ms"):
        parse_budget(text)


def test_macs_of_a_budget_are_exact():
    model = create_model("r3_fast", steps=(1, 2, 3, 4), width=8)
    cost = {n: macs(model, n, (48, 64)) for n in model.steps}
    for n in model.steps:
        assert steps_for(model, f"{cost[n]}MAC", (48, 64)) == n
        if n > 1:
            assert steps_for(model, f"{cost[n] - 1}MAC", (48, 64)) == n - 1
    assert steps_for(model, f"{3 * cost[2]}MAC", (48, 64), batch=3) == 2
    with pytest.raises(InputError, match="the cheapest, 1, takes"):
        steps_for(model, "1kMAC", (48, 64))
    assert not kept_measurements().exists()


def test_the_most_steps_that_fit_are_chosen():
    one, two, four = (Setting.of(n, 3) for n in (1, 2, 4))
    cost = {one: 10.0, two: 20.0, four: 15.0}
    assert choose_setting(parse_budget("16ms"), cost, "") == four
    assert choose_setting(parse_budget("12ms"), cost, "") == one
    with pytest.raises(InputError, match=r"fits 9ms here: the cheapest, 1, takes 10 ms"):
        choose_setting(parse_budget("9ms"), cost, "here")
    with pytest.raises(InputError, match=r"takes 1\.39 s$"):
        choose_setting(parse_budget("9ms"), {one: 1394.0}, "here")


def test_latency_is_measured_once_and_kept(monkeypatch):
    model = create_model("r3_fast", steps=(1, 4), width=16).eval()
    times = latencies(model, (64, 64))
    few, many = model.settings
    assert 0 < times[few]["ms"] < times[many]["ms"]
    assert all(row["ms"] <= row["p95"] for row in times.values())
    kept = json.loads(kept_measurements().read_text())
    assert len(kept) == 1
    monkeypatch.setattr("rcnet.cost.budget.interleaved", None)  # no second measurement
    assert latencies(model, (64, 64)) == times
    assert steps_for(model, f"{times[many]['p95'] + 0.01}ms", (64, 64)) == 4
    assert steps_for(model, f"{times[few]['p95'] + 1e-6:.6f}ms", (64, 64)) == 1
    kept_measurements().write_text("{damaged")
    monkeypatch.undo()


def test_a_damaged_or_unwritable_cache_is_none(tmp_path, monkeypatch):
    model = create_model("r3_fast", steps=(1, 2), width=8).eval()
    monkeypatch.setenv("RCNET_CACHE", str(tmp_path))
    (tmp_path / "latency.json").write_text("{damaged")
    latencies(model, (32, 32))
    assert len(json.loads((tmp_path / "latency.json").read_text())) == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RCNET_CACHE", str(tmp_path / "file"))
    assert latencies(model, (32, 32))[2, 2, 2]["ms"] > 0


def test_calls_take_turns():
    calls = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4)
    assert calls == ["a", "b"] * 7
    assert [len(values) for values in times.values()] == [4, 4]
    assert summary([float(k) for k in range(1, 101)]) == {"ms": 50.5, "p95": 95.0}


def test_peak_memory_counts_what_is_alive_at_once():
    x = torch.zeros(1 << 18)  # 1 MiB
    assert peak_memory(lambda: ((x + 1) + 1) + 1) == 2 << 20
    assert peak_memory(lambda: [x + 1, x + 1, x + 1]) == 3 << 20
    assert peak_memory(lambda: x.view(2, -1).t()) == 0


def test_profile_says_what_each_step_costs():
    model = rcnet.load("r3_fast.bsd-gray-25")
    rows = profile(model, (64, 64))
    assert [row["steps"] for row in rows] == [(1, 0, 0), (1, 1, 0), 1, (2, 1, 1), (2, 2, 1), 2, (3, 2, 2), (3, 3, 2), 3]
    for few, more in itertools.pairwise(rows):
        assert few["macs"] < more["macs"]
        assert few["parameters"] < more["parameters"]
    assert rows[-1]["parameters"] < sum(p.numel() for p in model.parameters())  # the norms of other steps are not touched
    assert all(row["memory"] > 64 * 32 * 32 * 4 for row in rows)


def test_networks_that_take_the_noise_level_are_measured_without_one():
    model = create_model("r3_fast", in_chans=3, steps=(1, 3), width=16, noise_level=True)
    rows = profile(model, (33, 40), batch=2)
    assert [row["steps"] for row in rows] == [1, 3]
    assert [row["macs"] for row in rows] == [macs(model, n, (33, 40), 2) for n in (1, 3)]
    plane = 2 * 33 * 40 * 4
    assert all(row["memory"] > 7 * plane for row in rows)  # the image's three, those and the level's again, for the network
    assert steps_for(model, f"{rows[0]['macs']}MAC", (33, 40), batch=2) == 1
    assert latencies(model, (33, 40), 2) == {
        Setting.of(row["steps"], 3): {key: row[key] for key in ("ms", "p95")} for row in rows
    }
    assert steps_for(model, f"{rows[1]['p95'] + 0.01}ms", (33, 40), batch=2) == 3


def test_a_denoisers_budget_is_for_the_whole_image():
    model = create_model("r3_fast", steps=(1, 2), width=8, convs=1)
    session, whole = TorchSession(model), macs(model, 2, (48, 64))
    assert denoise_setting_for(session, f"{3 * whole}MAC", (1, 3, 48, 64)).to_json() == 2
    assert denoise_setting_for(session, f"{3 * whole - 1}MAC", (1, 3, 48, 64)).to_json() == 1
    assert denoise_setting_for(session, f"{whole}MAC", (1, 1, 48, 64)).to_json() == 2
    assert denoise_setting_for(session, "8MMAC", (1, 1, 48, 64)).to_json() == 2
    assert denoise_setting_for(session, "8MMAC", (1, 1, 48, 64), tile=16).to_json() == 1  # tiles see their surroundings, too
    assert denoise_setting_for(session, "1000s", (1, 3, 48, 64)).to_json() == 2
    with pytest.raises(InputError, match="for 64x48 pixels, 3 channels"):
        denoise_setting_for(session, "1us", (1, 3, 48, 64))


def test_budget_on_the_command_line(run, refused, tmp_path):
    status, out, err = run("denoise", IMAGES / "cat.png", "-o", "one.png", "--budget", "14GMAC")
    assert status == 0, err
    assert out == "one.png (steps 1)\n"
    assert run("denoise", IMAGES / "cat.png", "-o", "same.png", "--steps", "1")[1] == "same.png\n"
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    assert "the cheapest, 1, takes" in refused("denoise", IMAGES / "cat.png", "-o", "two.png", "--budget", "1GMAC")
    assert "either --steps or --budget" in refused("denoise", IMAGES / "cat.png", "--budget", "1s", "--steps", "2")
    assert "e.g. 50ms" in refused("denoise", IMAGES / "cat.png", "--budget", "soon")
    rows = json.loads(run("eval", "r3_fast.bsd-gray-25", "--data", BSD, "--budget", "1.8GMAC", "--json")[1])["rows"]
    assert [row["steps"] for row in rows] == [2]
    assert "either --steps or --budget" in refused("eval", "r3.bsd-gray-25", "--data", BSD, "--budget", "1s", "--steps", "2")


def test_profile_on_the_command_line(run, refused):
    status, out, err = run("profile", "r3_fast.bsd-gray-25", "--size", "32x48", "--json")
    assert status == 0, err
    result = json.loads(out)
    assert result["size"] == [32, 48]
    model = rcnet.load("r3_fast.bsd-gray-25")
    assert [row["macs"] for row in result["rows"]] == [macs(model, n, (32, 48)) for n in model.choices]
    table = run("profile", "r3_fast.bsd-gray-25", "--size", "32x48")[1]
    assert "32x48 pixels (height x width)" in table
    assert "\n1,0,0 " in table
    assert len(table.splitlines()) == 3 + len(model.choices)
    assert "networks: r2" in refused("profile", "nothing")
    assert "HEIGHTxWIDTH" in refused("profile", "r2", "--size", "32x")
    assert "whole numbers from 1" in refused("profile", "r2", "--batch", "0")


def test_a_file_whose_folder_has_a_colon_is_no_module(run, tmp_path, monkeypatch):
    folder = tmp_path / "12:30"
    folder.mkdir()
    rcnet.save(rcnet.load("r3_fast.gray"), folder / "weights.safetensors")
    status, out, err = run("profile", folder / "weights.safetensors", "--size", "32x32", "--json")
    assert status == 0, err
    assert len(json.loads(out)["rows"]) == 3
    monkeypatch.setattr("rcnet.models.files.fetch", lambda name: folder / "weights.safetensors")
    assert json.loads(run("profile", "hf-hub:ada/denoiser", "--size", "32x32", "--json")[1])["rows"] == json.loads(out)["rows"]


def test_times_are_those_of_a_device_and_a_runtime(monkeypatch):
    model, kept = rcnet.load("r3_fast.gray"), []
    here = identity(model, "fp32")
    monkeypatch.setattr("rcnet.cost.budget.hardware", lambda device: "a card")
    for what in (here, identity(model, "fp32"), OnnxSession(bundled_files()["r3_fast.gray"]).identity):
        measured_once(what, lambda what=what: kept.append(what) or [1])
    assert len(kept) == 3
    assert measured_once(here, lambda: 1 // 0) == [1]
