"""The examples in docstrings run, and the public names have one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import rcnet
from rcnet import cost, evaluation, models
from rcnet.models import registry

ROOT = Path(rcnet.__file__).parent
WITH_EXAMPLES = sorted(path.relative_to(ROOT.parent) for path in ROOT.rglob("*.py") if ">>>" in path.read_text())
# Those of rcnet.deploy and rcnet.tasks need sessions, folders or time to be shown: the guides and examples/ run them.
HERE = [name for name in rcnet.__all__ if not getattr(rcnet, name).__module__.startswith(("rcnet.deploy", "rcnet.tasks"))]
METHODS = ("choices", "offer", "per_cell", "recurrent_cells", "forward")  # of RecurrentNet, in docs/reference.md


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_the_examples_of_a_module_run(path, monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))  # what an example registers goes with it
    module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("name", HERE)
def test_every_public_name_has_an_example(name):
    assert ">>>" in (getattr(rcnet, name).__doc__ or "")


@pytest.mark.parametrize(("room", "name"), [(room, name) for room in (cost, evaluation, models) for name in room.__all__])
def test_every_name_of_a_room_has_an_example(room, name):
    assert ">>>" in (getattr(room, name).__doc__ or "")


@pytest.mark.parametrize("name", ["task", "classify", "denoise", "dial", "catalogue", "__init__"])
def test_every_function_of_the_tasks_has_an_example(name):
    module = importlib.import_module(f"rcnet.tasks.{name}".removesuffix(".__init__"))
    functions = [
        x for key, x in vars(module).items() if inspect.isfunction(x) and x.__module__ == module.__name__ and key[0] != "_"
    ]
    # Those of classifiers begin with `read_matching`, which has an example.
    without = [f.__name__ for f in functions if ">>>" not in (f.__doc__ or "")]
    assert without == (["measuring", "calibration"] if name == "classify" else [])


@pytest.mark.parametrize("name", METHODS)
def test_every_documented_method_has_an_example(name):
    assert ">>>" in (getattr(rcnet.RecurrentNet, name).__doc__ or "")
