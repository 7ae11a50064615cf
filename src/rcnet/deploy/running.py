"""Exported files in their runtimes: the metadata of a file, and one of its step counts as a function of its inputs."""

import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcnet.deploy.packages import needed, quiet
from rcnet.deploy.writing import SIDE
from rcnet.errors import InputError
from rcnet.runtime.levels import LEVELS
from rcnet.runtime.onnx import KEY, inference_session

Runner = Callable[[dict[str, np.ndarray]], np.ndarray]


def openvino_text(path: Path) -> str:
    return str(needed("openvino").Core().read_model(path).get_rt_info([KEY]).astype(str))


def pt2_text(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith(f"extra/{KEY}") or name.endswith(f"/{KEY}"))
        return archive.read(name).decode()


def executorch_text(path: Path) -> str:
    return str(_executorch_method(path, KEY)[1].execute([])[0])


def onnx_session(path: Path, output: str, threads: int | None, _: str) -> Runner:
    session = inference_session(path.read_bytes(), output, threads)
    return lambda fed: session.run(None, fed)[0]


def openvino_compiled(path: Path, output: str, threads: int | None, precision: str) -> Any:
    """One output of a file, compiled. OpenVINO 2026.4 reads no precision from the file: each caller has to ask for it."""
    openvino = needed("openvino")
    core = openvino.Core()
    model = core.read_model(path)
    inputs = [one for one in model.get_parameters() if output != LEVELS or one.get_friendly_name() == "image"]
    part = openvino.Model([model.output(output)], inputs)
    config = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    return core.compile_model(part, "CPU", config)


def openvino_session(path: Path, output: str, threads: int | None, precision: str) -> Runner:
    compiled, own = openvino_compiled(path, output, threads, precision), threading.local()

    def run(fed: dict[str, np.ndarray]) -> np.ndarray:
        if not hasattr(own, "request"):  # one holds one call's images: each thread needs its own
            own.request = compiled.create_infer_request()
        return next(iter(own.request.infer(fed).values())).copy()

    return run


def _executorch_method(path: Path, name: str) -> tuple[Any, Any]:
    """The program, which has to live as long, and a method of it."""
    needed("executorch")
    with quiet():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        return program, program.load_method(name)


def executorch_session(path: Path, name: str, _: int | None, __: str) -> Runner:
    program, method = _executorch_method(path, name)
    one = threading.Lock()  # a method holds one call's images

    def run(fed: dict[str, np.ndarray], program: Any = program) -> np.ndarray:
        batch, _, *sides = fed["image"].shape
        if batch > 1 or max(sides) > SIDE:
            raise InputError(
                f"a file for ExecuTorch takes one image a call, of sides up to {SIDE} pixels, not {batch} of {sides}"
            )
        with one:
            return method.execute([torch.from_numpy(value) for value in fed.values()])[0].numpy().copy()

    return run
