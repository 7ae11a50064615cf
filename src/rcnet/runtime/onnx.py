"""A session of an exported ONNX file by ONNX Runtime, without torch."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rcnet.about import About
from rcnet.errors import InputError
from rcnet.runtime import graph
from rcnet.runtime.levels import LEVELS
from rcnet.setting import Setting

KEY = "rcnet"  # the metadata property, holding JSON


class OnnxSession:
    """An exported file as `runtime.denoise` calls it; each setting is loaded when it is first asked for, alone.

    Args:
        path: a .onnx file that `rcnet export` wrote.
        threads: of the processor; what ONNX Runtime takes unless given.

    Raises:
        InputError: not such a file, or no ONNX Runtime.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self.path, self.threads = Path(path), threads
        try:
            self.model = self.path.read_bytes()
            self.metadata: Mapping[str, Any] = json.loads(graph.metadata(self.model)[KEY])
            self.about = About.from_json(self.metadata["preprocessing"])
            cells = self.metadata["cells"]
            self.outputs = {Setting.of(steps, cells): name for name, steps in self.metadata["outputs"].items()}
        except (OSError, KeyError, IndexError, ValueError, TypeError) as error:
            raise InputError(f"{path} is not a .onnx file that rcnet exported") from error
        self.settings = tuple(sorted(self.outputs, key=lambda setting: setting.order))
        self._judge = LEVELS if LEVELS in graph.outputs(self.model) else None
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def run(self, x: np.ndarray, setting: Setting, sigma: np.ndarray | None) -> np.ndarray:
        """As `runtime.denoise.Session.run`."""
        if setting not in self.outputs:
            raise InputError(f"steps {setting} is not in {self.path}: valid: {', '.join(map(str, self.settings))}")
        fed = {"image": np.ascontiguousarray(x, np.float32)}
        if self.about.takes_level:
            unknown = np.full((len(x), self.about.levels, 1, 1), -1, np.float32)
            fed["sigma"] = (
                unknown if sigma is None else np.ascontiguousarray(np.broadcast_to(sigma, (len(x), *sigma.shape[1:])), np.float32)
            )
        return self._session(self.outputs[setting]).run(None, fed)[0]

    def judge(self, x: np.ndarray) -> np.ndarray | None:
        """As `runtime.denoise.Session.judge`."""
        if self._judge is None:
            return None
        return self._session(self._judge).run(None, {"image": np.ascontiguousarray(x, np.float32)})[0]

    def _session(self, output: str) -> Any:
        with self._lock:
            if output not in self._sessions:
                try:
                    import onnxruntime
                except ImportError as error:
                    raise InputError("ONNX Runtime is not installed: pip install onnxruntime") from error
                options = onnxruntime.SessionOptions()
                if self.threads:
                    options.intra_op_num_threads = self.threads
                self._sessions[output] = onnxruntime.InferenceSession(
                    graph.cut(self.model, output), options, providers=["CPUExecutionProvider"]
                )
            return self._sessions[output]
