"""A session of an exported ONNX file by ONNX Runtime, without torch."""

import hashlib
import importlib
import json
import math
import threading
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from rcnet.about import About
from rcnet.device import processor
from rcnet.errors import InputError, unknown
from rcnet.runtime import graph
from rcnet.runtime.levels import LEVELS
from rcnet.runtime.results import exported_quality
from rcnet.setting import Setting, Steps, listed

KEY = "rcnet"  # the metadata property, holding JSON
DEVICES = {  # what an ONNX Runtime may offer beside the processor, the most wanted first
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}


def bundled_files() -> dict[str, Path]:
    """The exported files that come with the package, of all bundled weights: name -> file. `tools/onnx_files.py` makes them."""
    folder = Path(str(resources.files("rcnet") / "weights"))
    return {path.stem: path for path in sorted(folder.glob("*.onnx"))}


def runtime() -> Any:
    """The module `onnxruntime`, or `InputError`."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise InputError(f"ONNX Runtime cannot be imported ({error}): pip install onnxruntime") from error


def devices() -> list[str]:
    """The devices that the installed ONNX Runtime offers, the processor last."""
    offered = runtime().get_available_providers()
    return [*(name for name, provider in DEVICES.items() if provider in offered), "cpu"]


def inference_session(model: bytes, output: str, threads: int | None = None, device: str = "cpu") -> Any:
    """ONNX Runtime's session of one output of a file; what the others need is not computed.

    Raises:
        InputError: no ONNX Runtime, or a device that it does not offer.
    """
    onnxruntime, providers = runtime(), ["CPUExecutionProvider"]
    if device != "cpu":
        if device not in devices():
            raise unknown("device", device, devices())
        providers.insert(0, DEVICES[device])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of what only its makers can change
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph.cut(model, output), options, providers=providers)
    if providers[0] not in session.get_providers():
        warnings.warn(f"ONNX Runtime cannot use the device {device} here: the processor computes", stacklevel=2)
    return session


class OnnxSession:
    """An exported file as `runtime.session.Session` has it; each setting is loaded when it is first asked for, alone.

    Args:
        path: a .onnx file that `rcnet export` wrote.
        threads: of the processor; what ONNX Runtime takes unless given.
        device: one of `devices()`.

    Raises:
        InputError: not such a file, no ONNX Runtime, or a device that it does not offer.
    """

    def __init__(self, path: str | Path, threads: int | None = None, device: str = "cpu") -> None:
        self.path, self.threads, self.device = Path(path), threads, device
        try:
            self.model = self.path.read_bytes()
            self.metadata: Mapping[str, Any] = json.loads(graph.metadata(self.model)[KEY])
            self.about = About.from_json(self.metadata["preprocessing"])
            self.cells = int(self.metadata["cells"])
            self.outputs = {Setting.of(steps, self.cells): name for name, steps in self.metadata["outputs"].items()}
            self.precision: str = self.metadata["precision"]
            catalogue = self.metadata["catalogue"]
            self.gives, self.parameters = str(catalogue["gives"]), int(catalogue["parameters"])
            self.size: tuple[int, int] = tuple(catalogue["size"])
            self._macs = {Setting.of(row["steps"], self.cells): row["macs"] for row in catalogue["steps"]}
            self._judge_macs = int(catalogue["judge_macs"])
        except FileNotFoundError as error:
            raise InputError(f"no exported network at {path}") from error
        except (OSError, AttributeError, LookupError, ValueError, TypeError) as error:
            raise InputError(f"{path} is not a .onnx file that this version of rcnet exported: export it again") from error
        self.settings = tuple(sorted(self.outputs, key=lambda setting: setting.order))
        self.has_judge = LEVELS in graph.outputs(self.model)
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def identity(self) -> Mapping[str, Any]:
        where = {"hardware": processor(), "runtime": f"onnxruntime {runtime().__version__}", "threads": self.threads}
        return where | {"network": hashlib.sha256(self.model).hexdigest()[:16], "device": self.device}

    def per_cell(self, steps: Steps = None) -> Setting:
        setting = self.settings[-1] if steps is None else Setting.of(steps, self.cells)
        if setting not in self.outputs:
            mixed = len(setting) == self.cells and all(n in {s[i] for s in self.settings} for i, n in enumerate(setting))
            kept = "; the network was not trained at it, so the output would be destroyed" if mixed else ""
            given = steps if isinstance(steps, Setting) else repr(steps)
            raise InputError(f"steps={given} is not supported: valid: {listed(self.settings)}{kept}")
        return setting

    def macs(self, setting: Setting, size: tuple[int, int]) -> float:
        if self._macs[setting] is None:
            raise InputError(f"the MACs of {self.path} are not known: give a time, e.g. 200ms")
        return round(self._macs[setting] * self._area(size) / self._area(self.size))

    def judge_macs(self, size: tuple[int, int]) -> float:
        """Those of the judge, for one picture of that height and width; 0 without one."""
        return round(self._judge_macs * math.prod(size) / math.prod(self.size))

    def quality(self) -> tuple[str, Mapping[Setting, float]]:
        return exported_quality(self.metadata)

    def run(self, x: np.ndarray, setting: Setting, sigma: np.ndarray | None = None) -> np.ndarray:
        fed = {"image": np.ascontiguousarray(x, np.float32)}
        if self.about.takes_level:
            unknown_level = np.full((len(x), self.about.levels, 1, 1), -1, np.float32)
            level = unknown_level if sigma is None else np.broadcast_to(sigma, (len(x), *sigma.shape[1:]))
            fed["sigma"] = np.ascontiguousarray(level, np.float32)
        return self._session(self.outputs[self.per_cell(setting)]).run(None, fed)[0]

    def judge(self, x: np.ndarray) -> np.ndarray | None:
        if not self.has_judge:
            return None
        return self._session(LEVELS).run(None, {"image": np.ascontiguousarray(x, np.float32)})[0]

    def release(self) -> None:
        with self._lock:
            self._sessions.clear()

    def _area(self, size: tuple[int, ...]) -> int:
        """Pixels that are computed for an image of this size."""
        grid = math.lcm(self.about.sub, self.about.multiple)
        return math.prod(-(-side // grid) * grid for side in size)

    def _session(self, output: str) -> Any:
        with self._lock:
            if output not in self._sessions:
                self._sessions[output] = inference_session(self.model, output, self.threads, self.device)
            return self._sessions[output]
