"""Folders, cards and repositories of the Hugging Face hub: a local server answers as the hub does."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image

import rcnet
from rcnet.errors import InputError
from rcnet.hub import model_card
from rcnet.models.judge import attach_judge

from .conftest import two_levels

SHA = "0123456789abcdef0123456789abcdef01234567"
PUBLISH = """
import logging, rcnet, sys, torch

ours, x = rcnet.load("r3_fast.gray"), torch.ones(1, 1, 8, 8)
print(rcnet.push_to_hub(ours, "ada/denoiser", private=True, license="apache-2.0"))
for theirs in rcnet.load("hf-hub:ada/denoiser"), rcnet.load("hf-hub:ada/denoiser@main"), rcnet.from_pretrained("ada/denoiser"):
    assert torch.equal(theirs(x, 1), ours(x, 1))
for load, name in (rcnet.load, "hf-hub:ada/nothing"), (rcnet.from_pretrained, "ada/nothing"), (rcnet.load, "hf-hub:a b"):
    try:
        load(name)
    except rcnet.InputError as error:
        assert "\\n" not in str(error)
        print(error)
assert logging.getLogger("huggingface_hub").level == logging.ERROR  # errors are one line, without the client's tries
"""


class Hub(BaseHTTPRequestHandler):
    """The five answers of the hub that an upload of small files and a download need."""

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": SHA, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = {"commitUrl": f"{self.server.address}/ada/denoiser/commit/{SHA}", "commitOid": SHA}
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            answer = {"url": f"{self.server.address}/ada/denoiser"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.answer(200, json.dumps(answer).encode(), Content_Type="application/json")

    def do_GET(self):
        if self.command == "GET":
            self.server.asked.append(self.path)
        content = self.server.files.get(self.path.rpartition("/")[2]) if "/ada/denoiser/resolve/" in self.path else None
        if content is None:
            self.answer(404, X_Error_Code="RepoNotFound")
        else:
            self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.address, server.files, server.asked = f"http://127.0.0.1:{server.server_port}", {}, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_push_and_load(server, tmp_path):
    environment = {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run([sys.executable, "-c", PUBLISH], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    address, *missing = done.stdout.splitlines()
    assert address == f"{server.address}/ada/denoiser/commit/{SHA}"
    assert server.created["name"] == "denoiser"
    assert set(server.files) == {"model.safetensors", "README.md", "dial.png"}
    assert 'rcnet.from_pretrained("ada/denoiser")' in server.files["README.md"].decode()
    assert len([path for path in server.asked if path.endswith("model.safetensors")]) == 1
    assert len(missing) == 3
    assert missing[1].startswith("there is no folder ada/nothing, and ada/nothing on the Hugging Face hub: ")


def test_a_folder(tmp_path):
    model = rcnet.load("r3_fast.bsd-gray-25")
    rcnet.save_pretrained(model, tmp_path / "mine", license="apache-2.0", limits="- Pictures of one camera.")
    again = rcnet.from_pretrained(tmp_path / "mine")
    assert again.settings == model.settings
    assert again.metadata["card"]["license"] == "apache-2.0"
    x = torch.rand(1, 1, 16, 16)
    assert torch.equal(again(x, (2, 1, 1)), model(x, (2, 1, 1)))
    assert Image.open(tmp_path / "mine" / "dial.png").width > 1000
    card = (tmp_path / "mine" / "README.md").read_text()
    header = card.split("---\n")[1].splitlines()
    assert header[:3] == ["library_name: rcnet", "pipeline_tag: image-to-image", "license: apache-2.0"]
    table = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in map(lambda line: line.split("|"), card.splitlines())
        if len(cells) > 3
    }
    assert table["BSD68 sigma 25: PSNR dB"] == [f"{row['psnr']:.3f}" for row in model.metadata["results"][0]["rows"]]
    assert table["GMAC, 481x321 pixels"][0] == "1.74"
    for part in (
        "130,804 parameters",
        "![What",
        "232 images of a folder",
        "- Pictures of one camera.",
        "sigma 25, in levels",
        "apache-2.0",
    ):
        assert part in card, part
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {"images": x}
    exec(code, names)
    assert names["clean"].shape == x.shape


def test_a_card_says_what_is_not_known(tmp_path):
    model = rcnet.load("r3_fast.gray")
    model.metadata = {key: value for key, value in model.metadata.items() if key != "card"}
    with torch.no_grad():
        model.head.bias += 0.1
    rcnet.save_pretrained(model, tmp_path / "other")
    card = (tmp_path / "other" / "README.md").read_text()
    assert "Nothing was measured" in card
    assert "28.89" not in card
    assert "None is stated" in card
    assert not (tmp_path / "other" / "dial.png").exists()
    assert "![" not in card


def test_any_task_has_a_card():
    model = rcnet.load("r2.cifar10")
    card = model_card(model, "ada/cifar")
    assert "# cifar\n" in card
    reached = " | ".join(f"{row['error']:.2f}" for row in model.metadata["results"][0]["rows"])
    assert f"| cifar10: error % | {reached} |" in card
    assert "airplane, automobile" in card
    model.about = rcnet.About("segment")
    assert "y = model(images)" in model_card(model, "x")


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    rcnet.save_pretrained(rcnet.load("r2.cifar10"), tmp_path)
    assert not (tmp_path / "dial.png").exists()
    assert "![" not in (tmp_path / "README.md").read_text()


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="contains 0 files of weights"):
        rcnet.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="did you mean 'r3_fast"):
        rcnet.from_pretrained("r3_fast.foto")
    with pytest.raises(InputError, match=r"^a b on the Hugging Face hub"):
        rcnet.from_pretrained("hf-hub:a b")
    with pytest.raises(InputError, match="no file of weights at"):
        rcnet.from_pretrained(Path("some") / "w.safetensors")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'rcnet\[hub\]'"):
        rcnet.load("hf-hub:ada/denoiser")


def test_a_card_has_known_entries_alone(tmp_path):
    model = rcnet.load("r3_fast.gray")
    with pytest.raises(InputError, match=r"licence.*did you mean 'license'"):
        rcnet.save_pretrained(model, tmp_path / "mine", licence="apache-2.0")
    with pytest.raises(InputError, match="entry of a card 'token'"):
        rcnet.push_to_hub(model, "me/x", token="hf_secret")
    assert not (tmp_path / "mine").exists()


def test_the_card_of_a_network_of_two_levels(tmp_path):
    model = two_levels()
    rcnet.save_pretrained(model, tmp_path, license="apache-2.0")
    card = (tmp_path / "README.md").read_text()
    assert "- A judge of noise, which tells it how much a picture has: " in card
    assert "rcnet.denoise(model, images)\n" in card
    attach_judge(model, None)
    rcnet.save(model, tmp_path / "untold.safetensors")
    card = model_card(rcnet.load(tmp_path / "untold.safetensors"), "untold")
    assert "judge" not in card
    assert "rcnet.denoise(model, images, sigma=25)" in card
    assert "rcnet.denoise(model, images, steps=1, sigma=25)" in card
