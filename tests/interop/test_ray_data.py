"""A folder of pictures by two workers of Ray Data, one of which is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rcnet
from rcnet.deploy.denoise import denoise_pixels

from ..conftest import EXAMPLES, IMAGES

pytest.importorskip("ray.data", reason="ray[data] is not installed: make interop")
COUNT = 40


def start(folder):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, str(EXAMPLES / "ray_data.py"), "photos", "clean", "--steps", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment)


def workers(process):
    """The actors below a process."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [(int(pid), int(parent), name) for pid, parent, name in (line.split(None, 2) for line in table.splitlines())]
    family = {process.pid}
    for _ in rows:
        family |= {pid for pid, parent, _ in rows if parent in family}
    return [pid for pid, _, name in rows if pid in family and name.startswith("ray::MapWorker")]


def times(folder):
    return {str(file.relative_to(folder / "clean")): file.stat().st_mtime_ns for file in (folder / "clean").rglob("*.png")}


def test_one_worker_is_killed_and_nothing_is_lost_or_done_twice(tmp_path):
    cat = Image.open(IMAGES / "cat.png").convert("RGB")
    names = [f"{'sub/' if place % 2 else ''}{place}.png" for place in range(COUNT)]
    for place, name in enumerate(names):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        cat.resize((256 + place, 256)).convert("L" if place % 8 == 0 else "RGB").save(file)
    (tmp_path / "photos" / "broken.png").write_bytes(b"nothing")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    with start(tmp_path) as process:
        end = time.monotonic() + 500
        while len(times(tmp_path)) < 3:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        both = workers(process)
        assert len(both) == 2
        for pid in both:
            os.kill(pid, signal.SIGSTOP)
        before = times(tmp_path)
        assert len(before) < COUNT
        os.kill(both[0], signal.SIGKILL)
        os.kill(both[1], signal.SIGCONT)
        out, err = process.communicate(timeout=500)
    assert process.returncode == 1, err
    said = [line for line in out.splitlines() if "(raylet)" not in line]  # which says that a worker died
    assert said == [f"{COUNT + 1} pictures, 0 of them done", f"{COUNT} done, 1 failed: see failed.txt"]
    assert (tmp_path / "clean" / "failed.txt").read_text().startswith("broken.png\tInputError: the image is not a readable")
    after = times(tmp_path)
    assert set(after) == set(names)
    assert before.items() <= after.items()  # none of these was written again
    assert not list(Path(tmp_path / "clean").rglob(".*.png.tmp"))
    wanted, _ = denoise_pixels(rcnet.optimize(rcnet.load("r3_fast.photo")), np.asarray(cat.resize((257, 256))), 1)
    found = np.asarray(Image.open(tmp_path / "clean" / "sub" / "1.png"))
    assert np.abs(found.astype(int) - wanted).max() <= 1

    cat.save(tmp_path / "photos" / "broken.png")
    with start(tmp_path) as process:
        out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert out.splitlines() == [f"{COUNT + 1} pictures, {COUNT} of them done", "1 done, 0 failed"]
    assert after.items() <= times(tmp_path).items()
