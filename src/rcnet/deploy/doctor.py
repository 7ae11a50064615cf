"""What a bug report needs: versions, processor, precisions, extras, cache, and a test of a network on a bundled picture."""

import importlib
import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from rcnet.runtime.session import Session
from rcnet.version import __version__

WEIGHTS, SIGMA = "r3_fast.bsd-gray-25", 25
EXPECTED = {1: 31.47, 2: 31.62, 3: 31.67}  # dB of the bundled picture with that noise, at each step
TOLERANCE = {"fp32": 0.02, "bf16": 0.06}  # dB
NOT_FOR_USERS = ("bench", "dev")  # extras
VARIABLES = (  # of the environment, that change what is computed
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "TORCH_COMPILE_DISABLE",
)


def examine() -> dict[str, Any]:
    """The report, as JSON values: a part whose examination fails holds `failed`, the error, and the others are there.

    Nothing in it is private: the home folder is written as ~, and no host, user or file of the user is named.
    """
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "versions": versions,
        "machine": machine,
        "runtimes": runtimes,
        "extras": extras,
        "cache": cache,
        "environment": environment,
        "self_test": self_test,
    }
    return {name: _attempt(part) for name, part in parts.items()}


def versions() -> dict[str, str]:
    """Of rcnet, Python, the system, what rcnet needs, and torch."""
    found = {"rcnet": __version__, "python": platform.python_version(), "system": platform.platform()}
    needs = dict.fromkeys([*_needs().get("", ["numpy", "onnxruntime"]), "torch"])
    return found | {name: _version(name) or "not installed" for name in needs}


def machine() -> dict[str, Any]:
    """The processor and its cores, and where torch is installed the graphics cards and the compiler that torch.compile needs."""
    from rcnet.deploy.sessions import has_torch
    from rcnet.device import processor

    found = {"processor": processor(), "cores": os.cpu_count()}
    if not has_torch():
        return found
    import torch

    compiler = next((name for name in (os.environ.get("CXX"), "g++", "clang++", "cl") if name and shutil.which(name)), "none")
    return found | {
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "graphics": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or "none",
        "cuda": torch.version.cuda or "none",
        "compiler": Path(compiler).name,
    }


def runtimes() -> dict[str, Any]:
    """What computes: the devices that ONNX Runtime offers, and torch's device and whether bf16 is native there."""
    from rcnet.deploy.sessions import has_torch
    from rcnet.runtime.onnx import devices

    found: dict[str, Any] = {"onnxruntime": devices()}
    if not has_torch():
        return found | {"torch": "not installed: pip install 'rcnet[torch]' for training, converting and exporting"}
    from rcnet.device import best_device, gains_by_bf16

    device = best_device()
    return found | {"torch": [device.type, "bf16 native" if gains_by_bf16(device) else "bf16 emulated, slower than fp32"]}


def extras() -> dict[str, Any]:
    """Of each extra, the versions of its packages, None for one that is missing, and how to get them."""
    return {
        extra: {
            "installed": all(found.values()),
            "packages": found,
            **({} if all(found.values()) else {"get": f"pip install 'rcnet[{extra}]'"}),
        }
        for extra, packages in sorted(_needs().items())
        if extra and extra not in NOT_FOR_USERS
        for found in [{name: _version(name) for name in packages}]
    }


def cache() -> dict[str, Any]:
    """The folder of measured latencies, whether it can be written, and the size of what it holds."""
    from rcnet.runtime.latency import kept_measurements

    path = kept_measurements()
    there = next(folder for folder in path.parents if folder.exists())
    kilobytes = round(path.stat().st_size / 1000, 1) if path.exists() else 0
    return {"folder": _without_home(str(path.parent)), "writable": os.access(there, os.W_OK), "kilobytes": kilobytes}


def environment() -> dict[str, str]:
    """The variables that are set, of those that matter."""
    return {name: _without_home(os.environ[name]) for name in VARIABLES if name in os.environ}


def self_test() -> dict[str, Any]:
    """All bundled weights are read, and the bundled picture is denoised at each step by ONNX Runtime, and by torch in its native
    precisions where it is installed.

    A row each: PSNR in dB, what is expected, and the milliseconds of the first call.
    """
    from rcnet.data.images import read_image
    from rcnet.data.noise import protocol_pixels
    from rcnet.deploy.sessions import has_torch, torch_session
    from rcnet.runtime.onnx import OnnxSession, bundled_files
    from rcnet.runtime.results import psnr

    started = time.perf_counter()
    image = read_image(Path(str(resources.files("rcnet") / "assets" / "cameraman.png")), 1)
    noisy = protocol_pixels(image, SIGMA)
    exported = {name: OnnxSession(path) for name, path in bundled_files().items()}
    sessions: dict[str, Session] = {"onnxruntime fp32": exported[WEIGHTS]}
    if has_torch():
        from rcnet.device import best_device, gains_by_bf16

        for precision in ("fp32", "bf16") if gains_by_bf16(best_device()) else ("fp32",):
            sessions[f"torch {precision}"] = torch_session(WEIGHTS, precision)
    rows = []
    for runtime, session in sessions.items():
        for steps, expected in EXPECTED.items():
            before = time.perf_counter()
            reached = psnr(session.run(noisy, session.per_cell(steps)), image[:, :, 0])
            ms = 1000 * (time.perf_counter() - before)
            good = abs(reached - expected) <= TOLERANCE[session.precision]
            rows.append(
                {"runtime": runtime, "steps": steps, "psnr": round(reached, 3), "expected": expected}
                | {"ms": round(ms, 1), "passed": good}
            )
    return {
        "passed": all(row["passed"] for row in rows),
        "seconds": round(time.perf_counter() - started, 1),
        "weights": WEIGHTS,
        "read": sorted(exported),
        "rows": rows,
    }


def _attempt(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return part()
    except Exception as error:  # a broken torch or a damaged file is what the report is for
        return {"failed": _without_home(f"{type(error).__name__}: {' '.join(str(error).split())}")}


def _needs() -> dict[str, list[str]]:
    """The packages of each extra, and under "" those of rcnet itself, as its installed metadata names them."""
    try:
        wanted = metadata.requires("rcnet") or []
    except metadata.PackageNotFoundError:  # run from a folder of sources
        return {}
    needs: dict[str, list[str]] = {}
    for requirement in wanted:
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"]([^'\"]+)", requirement)
        if name and name[0] != "rcnet":
            needs.setdefault(extra[1] if extra else "", []).append(name[0])
    return needs


def _version(package: str) -> str | None:
    """The installed version; torch's own word for it names its build, too."""
    try:
        return str(importlib.import_module("torch").__version__) if package == "torch" else metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
    except Exception as error:  # installed, and does not import
        return f"does not import: {_without_home(str(error))}"


def _without_home(text: str) -> str:
    return text.replace(str(Path.home()), "~")
