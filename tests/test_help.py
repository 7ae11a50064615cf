"""The command line explains itself: help, errors, completion and the doctor."""

import getpass
import inspect
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from rcnet.cli import COMMANDS, GUIDES, app
from rcnet.deploy import doctor
from rcnet.training.recipe import list_recipes

from .conftest import IMAGES


def examples(command):
    block = re.search(r"Examples::\n\n((?:  .*\n)+)", inspect.getdoc(COMMANDS[command]))
    return [re.split(r" {2,}|[|>]", line.strip())[0] for line in block[1].splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_three_examples_whose_options_exist(command):
    lines = examples(command)
    assert len(lines) >= 3
    calls = [shlex.split(line)[1:] for line in lines if line.startswith("rcnet ")]
    assert calls
    for call in calls:
        app.parse_args(["./-" if word == "-" else word for word in call], exit_on_error=False, print_error=False)
        assert call[0] == command


def test_help_of_train_names_every_recipe():
    named = re.search(r"A bundled recipe \(([^)]*)\)", COMMANDS["train"].__doc__)[1]
    assert sorted(re.split(r",\s+", named)) == sorted(list_recipes())


@pytest.mark.parametrize(
    ("call", "following"),
    [
        ("denoise", "rcnet denoise photo.png"),
        ("denoise nowhere.png", "rcnet denoise --help"),
        ("denoise cat.png --model r3_fats.photo", "rcnet models"),
        ("denoise cat.png --steps 9", "rcnet denoise --help"),
        ("denoise cat.png --stps 1", "rcnet denoise --help"),
        ("classify cat.png --top 0", "rcnet classify --help"),
        ("profile nothing", "rcnet models"),
        ("eval r3_fast.photo --data nowhere", "rcnet data bsds500"),
        ("eval r2.cifar10 --data nowhere", "rcnet data cifar10 --out nowhere"),
        ("train r9", "rcnet train --help"),
        ("train r3_fast --data nowhere", "rcnet data bsds500"),
        ("data cifar", "rcnet data --help"),
        ("export r3_fast.photo -o a.xyz", "rcnet export --help"),
        ("figures bn r3_fast.photo", "rcnet figures --help"),
        ("nothing", "rcnet --help"),
    ],
)
def test_errors_name_the_next_command(refused, tmp_path, call, following):
    (tmp_path / "cat.png").write_bytes((IMAGES / "cat.png").read_bytes())
    message = refused(*call.split())
    assert following in message
    assert call == "nothing" or re.search(r"docs/\w+\.md", message)[0] == GUIDES[call.split()[0]]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_a_page_that_exists(run, command):
    assert f"Guide: {GUIDES[command]}" in run(command, "--help")[1]
    assert (IMAGES.parent.parent / GUIDES[command]).is_file()


def test_help_wraps_descriptions_at_the_terminal_alone(run):
    assert "replaces the length in the recipe" in " ".join(run("train", "--help")[1].replace("│", " ").split())
    assert not re.search(r"│ {10,}is +│", run("train", "--help")[1])


def test_a_fault_of_ours_asks_for_a_report(run, monkeypatch):
    monkeypatch.setattr("rcnet.runtime.onnx.bundled_files", lambda: 1 // 0)
    status, out, err = run("models")
    assert (status, out) == (1, "")
    assert "ZeroDivisionError" in err
    assert "rcnet doctor" in err.splitlines()[-1]


def test_bash_completes_commands_options_and_files(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photo.png").touch()
    status, out, err = run("--install-completion", "--shell", "bash")
    assert status == 0, err
    assert "completions/rcnet" in out

    def complete(*words):
        script = f"source ~/.bashrc; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        done = subprocess.run(
            ["bash", "-c", script + '_rcnet; printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert complete("rcnet", "de") == ["denoise"]
    assert complete("rcnet", "train", "--re") == ["--resume"]
    assert complete("rcnet", "denoise", "ph") == ["photo.png"]


def test_doctor_finds_this_installation_well(run):
    status, out, err = run("doctor", "--json")
    report = json.loads(out)
    assert (status, err) == (0, "")
    assert report["versions"]["torch"] == torch.__version__
    assert report["extras"]["onnx"]["packages"]["onnx"] == metadata.version("onnx")
    assert {row["steps"] for row in report["self_test"]["rows"]} == {1, 2, 3}
    assert "self-test: passed" in run("doctor")[1]


def test_doctor_tells_nothing_private(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "annes-home"))
    monkeypatch.delenv("RCNET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    report = doctor.examine()
    text = json.dumps(report)
    assert report["cache"]["folder"] == "~/.cache/rcnet"
    assert "annes-home" not in text
    assert socket.gethostname() not in text
    assert getpass.getuser() not in text.split()


def test_doctor_sees_other_results_and_missing_packages(run, monkeypatch):
    monkeypatch.setitem(doctor.EXPECTED, 2, 32.0)
    monkeypatch.setattr(
        metadata, "version", lambda name: metadata.distribution("nothing-of-that-name" if name == "onnx" else name).version
    )
    status, out, err = run("doctor")
    assert status == 2
    assert "self_test" in err
    assert "WRONG" in out
    assert re.search(r"onnx +not installed \(onnx\): pip install 'rcnet\[onnx\]'", out)


def test_doctor_reports_a_torch_that_does_not_import(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "rcnet", "doctor"], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 2
    assert re.search(r"torch +does not import: libtorch_cpu.so", done.stdout)
    assert "problems found: machine, runtimes, self_test" in done.stderr
