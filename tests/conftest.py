import os
import runpy
import sys
from pathlib import Path

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # before torch is imported, and for processes of tests, too
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
import torch

from rcnet.cli import main
from rcnet.models import create_model, registry
from rcnet.models.judge import Judge, attach_judge

EXAMPLES = Path(__file__).parent.parent / "examples"
IMAGES = Path(__file__).parent / "images"
# What `make fast` leaves out: files, or tests of them, and why they take their time.
SLOW = {
    "test_with_runtimes": "writes exported files and runs them in their runtimes",
    "test_executorch": "the same",
    "test_parallel": "several processes train together",
    "test_training": "trains, stops and resumes",
    "test_continuing": "trains from trained weights",
    "test_study": "does a run of each kind",
    "test_classify": "trains a classifier",
    "test_convert": "converts networks of real depth",
    "test_contributing": "applies the examples to a copy of the source and runs them",
    "test_own_networks": "goes through all commands in processes of their own",
    "test_examples": "runs whole programs",
    "test_hub": "talks to a real server",
    "test_serve": "starts the real server",
    "test_serve_engine": "starts real workers",
    "test_serve_fuzz": "sends hundreds of requests",
    "test_ray": "starts a Ray cluster",
    "test_page": "drives a real browser",
    "test_web_example": "drives a real browser",
    "test_figures": "draws every figure",
    "test_budget": "measures times until they are steady",
    "test_readme": "runs the code of all pages",
    "test_denoise_command": "denoises files of every format",
    "test_cli::test_demo": "denoises at every step of two networks",
    "test_cli::test_models_lists_exact_parameters": "builds every network",
    "test_cli::test_train_and_resume": "trains",
    "test_cell::test_compile_makes_one_graph_a_step_count": "compiles",
    "test_evaluation::test_bundled_denoisers_have_the_psnr_that_is_recorded": "denoises at every setting",
    "test_models::test_export": "exports every network",
    "test_models::test_compile_in_one_graph": "compiles every network",
}


def pytest_collection_modifyitems(items):
    for item in items:
        name = f"{item.path.stem}::{item.originalname}"
        reasons = [why for where, why in SLOW.items() if name == where or name.startswith(f"{where}::")]
        if reasons:
            item.add_marker(pytest.mark.slow(reason=reasons[0]))


@pytest.fixture(autouse=True)
def _same_draws():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_measurements(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RCNET_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs one command in an empty folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        try:
            main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def refused(run):
    """Runs a command that must fail with one line on stderr, exit status 2, nothing on stdout and no new file."""

    def call(*arguments):
        before = snapshot()
        status, out, err = run(*arguments)
        assert status == 2, err
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("rcnet: ")
        assert snapshot() == before
        return err

    return call


def names_of(example):
    """What `import examples.NAME` would define."""
    return runpy.run_path(str(EXAMPLES / f"{example}.py"))


# The training of a process that goes no further than this, so that it cannot be over before it is interrupted.
HELD = """
import time
from rcnet.training.loop import Trainer

step = Trainer.step
Trainer.step = lambda run: step(run) if run.iteration < {} else time.sleep(600)
"""


def that_wait(folder, iteration):
    """The environment of processes whose training stops for ten minutes after so many iterations."""
    (folder / "sitecustomize.py").write_text(HELD.format(iteration))
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def snapshot():
    return {
        os.path.join(folder, name): os.stat(os.path.join(folder, name)).st_mtime_ns
        for folder, _, names in os.walk(".")
        for name in names
    }


@pytest.fixture
def example(capsys, tmp_path, monkeypatch):
    """Runs `python examples/NAME.py ARGUMENTS` in an empty folder: the lines that it prints, and its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines(), names

    return call


@pytest.fixture(scope="session")
def cifar_folder(tmp_path_factory):
    """Real CIFAR-10 images by class: ten of each in train and in test."""
    from .cifar import write_folder

    return write_folder(tmp_path_factory.mktemp("cifar") / "photos", 10)


def random_model(name, **config):
    """As `create_model`, with residual branches that are not zero, as after training."""
    model = create_model(name, **config)
    for place, parameter in model.named_parameters():
        if place.endswith("conv2.weight"):
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return model


def two_levels(channels=3):
    """A small denoiser that is told white and coarse noise and changes something, with a judge that finds some of both."""
    model = create_model("r3_fast", steps=(1, 2), in_chans=channels, width=16, noise_level=True, coarse_level=True)
    torch.nn.init.normal_(model.head.weight, std=0.05)
    judge = Judge(channels)
    torch.nn.init.constant_(judge.head[-1].bias, 2.0)
    torch.nn.init.normal_(judge.head[-1].weight, std=0.05)
    attach_judge(model, judge.eval())
    return model.eval()
