"""The files under docker/, by their own validators."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCKER = Path(__file__).parent.parent / "docker"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_the_unit_of_systemd(tmp_path):
    text = (DOCKER / "rcnet.service").read_text()
    (tmp_path / "rcnet.service").write_text(text.replace("/opt/rcnet/bin/rcnet", shutil.which("true")))
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / "rcnet.service"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_their_options_are_those_of_the_command():
    command = [sys.executable, "-m", "rcnet", "serve", "--help"]
    known = set(re.findall(r"--[a-z-]+", subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    commands = [
        re.search("ExecStart=(.*)", (DOCKER / "rcnet.service").read_text())[1],
        re.search(r"args: \[(.*)\]", (DOCKER / "kubernetes.yaml").read_text())[1],
        re.search(r"command: \[(.*)\]", (DOCKER.parent / "compose.yaml").read_text())[1],
    ]
    for text in commands:
        assert {"--slo", "--threads", "--log"} <= set(re.findall(r"--[a-z-]+", text)) <= known


def test_the_manifests_of_kubernetes():
    validate = pytest.importorskip("kubernetes_validate")
    yaml = pytest.importorskip("yaml")
    for manifest in yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text()):
        validate.validate(manifest, validate.latest_version(), strict=True)
