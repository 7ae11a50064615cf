"""Training by two real processes under torchrun, on real CIFAR images."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from rcnet.models import load
from rcnet.training import train
from rcnet.training.loop import Trainer

from .conftest import that_wait
from .test_classify import SMALL, small

# Four iterations of this process's share, then the network that each process holds.
WORKER = """
import sys
from pathlib import Path

import torch
from rcnet.training import read_recipe
from rcnet.training.loop import Trainer

data, out, *overrides = sys.argv[1:]
run = Trainer(read_recipe("cifar_fast", overrides), Path(data), Path(out), False)
assert run.world.size == 2
losses = [run.step() for _ in range(4)]
state = {"losses": losses, "model": run.model.state_dict(), "average": run.average.module.state_dict()}
torch.save(state, f"{out}.{run.world.rank}")
"""


def torchrun(*arguments, environment=None, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **(environment or {})}
    return subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def free_port():
    import socket

    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


@pytest.mark.parametrize("objective", ["sampled", "sandwich"])
def test_two_processes_end_equal_and_as_one_with_the_same_batch(cifar_folder, tmp_path, objective):
    # SGD is linear in the gradient, where Muon and Adam blow up the rounding of a small one.
    overrides = [*SMALL, "iterations=4", f"objective={objective}", "optimizer.name=sgd", "optimizer.lr=0.05"]
    (tmp_path / "worker.py").write_text(WORKER)
    process = torchrun(str(tmp_path / "worker.py"), str(cifar_folder), str(tmp_path / "two"), *overrides)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"two.{rank}") for rank in range(2))
    assert first["losses"] == second["losses"]
    for kind in ("model", "average"):
        assert all(torch.equal(first[kind][name], second[kind][name]) for name in first[kind])
    # One process sees the same batches, in two parts whose batch norms are their own as well.
    alone = Trainer(small(*overrides, "accumulate=2"), cifar_folder, tmp_path / "one", False)
    torch.testing.assert_close([alone.step() for _ in range(4)], first["losses"], atol=1e-5, rtol=1e-5)
    for name, parameter in alone.model.named_parameters():
        torch.testing.assert_close(parameter, first["model"][name], atol=1e-5, rtol=1e-4)


def test_killing_one_process_ends_the_run_and_another_number_goes_on(cifar_folder, tmp_path):
    out = tmp_path / "run"
    overrides = [*SMALL, "iterations=60", "checkpoint_minutes=0"]
    arguments = ["train", "cifar_fast", *overrides, "--data", str(cifar_folder), "--out", str(out)]
    process = torchrun("-m", "rcnet", *arguments, environment=that_wait(tmp_path, 40))
    log, deadline = out / "log.jsonl", time.monotonic() + 300
    while not (log.exists() and len(log.read_text().splitlines()) >= 5):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert not (out / "weights.safetensors").exists()
    reached = torch.load(out / "checkpoint.pt", weights_only=True)["iteration"]
    assert 1 <= reached < 60
    result = train(small("iterations=60"), cifar_folder, out, resume=True, progress=False)
    assert result["iterations"] == 60
    assert result["processes"] == 1
    load(out / "weights.safetensors")
    process = torchrun("-m", "rcnet", *arguments, "--resume", "--json")
    out_text, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(out_text[out_text.index("{") :])["iterations"] == 60  # once, not once a process; older Gloo talks first


def test_a_failure_begins_with_our_line_and_is_the_root_cause_of_torchrun(cifar_folder, tmp_path):
    process = torchrun(
        "-m", "rcnet", "train", "cifar_fast", "batchh=3", "--data", str(cifar_folder), "--out", str(tmp_path / "run")
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.startswith("rcnet (process ")
    assert "unknown key 'batchh'" in errors.partition("Root Cause")[2]


def test_a_batch_is_shared_evenly(cifar_folder, tmp_path, monkeypatch):
    from rcnet.training import loop, state
    from rcnet.training.parallel import World

    monkeypatch.setattr(state, "join", lambda device: World(1, 3))
    monkeypatch.setattr(state, "share", lambda value, world: value)
    monkeypatch.setattr(loop, "average", lambda model, world, values: values)
    with pytest.raises(Exception, match="batch = 20 cannot be divided evenly among 3 processes"):
        Trainer(small(), cifar_folder, tmp_path / "run", False)
    run = Trainer(small("batch=24"), cifar_folder, tmp_path / "run", False)
    whole, seen = run.task.batch(np.random.default_rng([0, 0]), 0), []
    monkeypatch.setattr(run, "backward", lambda batch, weights: seen.append(batch) or 0.0)
    run.step()
    assert torch.equal(seen[0].target, whole.target[8:16])
