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
        "precisions": precisions,
        "extras": extras,
        "cache": cache,
        "environment": environment,
        "self_test": self_test,
    }
    return {name: _attempt(part) for name, part in parts.items()}


def versions() -> dict[str, str]:
    """Of rcnet, Python, the system and what rcnet needs."""
    found = {"rcnet": __version__, "python": platform.python_version(), "system": platform.platform()}
    return found | {name: _version(name) or "not installed" for name in _needs().get("", ["torch", "numpy"])}


def machine() -> dict[str, Any]:
    """The processors, their instructions and threads, the graphics cards, and the compiler that torch.compile needs."""
    import torch

    from rcnet.device import hardware

    compiler = next((name for name in (os.environ.get("CXX"), "g++", "clang++", "cl") if name and shutil.which(name)), "none")
    return {
        "processor": hardware(torch.device("cpu")),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "graphics": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or "none",
        "cuda": torch.version.cuda or "none",
        "compiler": Path(compiler).name,
    }


def precisions() -> dict[str, str]:
    """Of the device that the commands take: whether bf16 is native, and what `auto` stands for."""
    from rcnet.device import best_device, gains_by_bf16, resolve_precision

    device = best_device()
    bf16 = "native" if gains_by_bf16(device) else "emulated, slower than fp32"
    return {"device": device.type, "fp32": "native", "bf16": bf16, "auto": resolve_precision("auto", device)}


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
    from rcnet.cost.latency import kept_measurements

    path = kept_measurements()
    there = next(folder for folder in path.parents if folder.exists())
    kilobytes = round(path.stat().st_size / 1000, 1) if path.exists() else 0
    return {"folder": _without_home(str(path.parent)), "writable": os.access(there, os.W_OK), "kilobytes": kilobytes}


def environment() -> dict[str, str]:
    """The variables that are set, of those that matter."""
    return {name: _without_home(os.environ[name]) for name in VARIABLES if name in os.environ}


def self_test() -> dict[str, Any]:
    """All bundled weights are read, and the bundled picture is denoised at each step in each native precision.

    A row each: PSNR in dB, what is expected, and the milliseconds of the first call.
    """
    from rcnet.data.images import read_image, to_tensor
    from rcnet.data.noise import protocol_noise
    from rcnet.deploy.optimize import optimize
    from rcnet.device import best_device, gains_by_bf16
    from rcnet.evaluation.denoise import psnr, to_uint8_levels
    from rcnet.models import bundled, load

    started = time.perf_counter()
    image = read_image(Path(str(resources.files("rcnet") / "assets" / "cameraman.png")), 1)
    clean, device = to_tensor(image), best_device()
    noisy = protocol_noise(image, SIGMA).to(device)
    networks = {name: load(name) for name in bundled()}
    network = networks[WEIGHTS].to(device)
    rows = []
    for precision in ("fp32", "bf16") if gains_by_bf16(device) else ("fp32",):
        session = optimize(network, precision=precision)
        for steps, expected in EXPECTED.items():
            before = time.perf_counter()
            reached = psnr(to_uint8_levels(session(noisy, steps=steps).cpu()), clean)
            ms = 1000 * (time.perf_counter() - before)
            good = abs(reached - expected) <= TOLERANCE[precision]
            rows.append(
                {"precision": precision, "steps": steps, "psnr": round(reached, 3), "expected": expected}
                | {"ms": round(ms, 1), "passed": good}
            )
    return {
        "passed": all(row["passed"] for row in rows),
        "seconds": round(time.perf_counter() - started, 1),
        "weights": WEIGHTS,
        "read": sorted(networks),
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
