"""Sessions by name: of ONNX Runtime where it can run the network, of torch, which loads then, where it cannot or is slower."""

import ctypes
import os
import sys
from functools import cache, lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rcnet.device import PRECISIONS, bf16_by_processor
from rcnet.errors import InputError, needs_torch, unknown
from rcnet.runtime.latency import interleaved, measured_once, summary
from rcnet.runtime.onnx import OnnxSession, bundled_files
from rcnet.runtime.session import Session

if TYPE_CHECKING:
    from rcnet.deploy.optimize import Optimized
    from rcnet.network import RecurrentNet

    Model = str | Path | Session | RecurrentNet | Optimized

COLOUR, GRAY = "r3_fast.photo", "r3_fast.gray"  # what pictures go through unless a model is named
RUNTIMES = ("auto", "onnx", "torch")
Runtime = Literal["auto", "onnx", "torch"]
MUCH = 5e11  # multiply-accumulates per core: below, some seconds of work, importing torch costs more than bf16 gains
FASTER = 0.9  # times the milliseconds of ONNX Runtime: torch has to be below


def open_session(
    source: str | Path,
    *,
    runtime: Runtime = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    device: str | None = None,
    megapixels: float = 0.0,
) -> Session:
    """The network of bundled weights, an exported .onnx file, a file of weights or `hf-hub:user/name`, ready to run.

    Args:
        runtime: `onnx` runs bundled weights and .onnx files, `torch` bundled weights and files of weights. `auto` is the one
            that can; of both ONNX Runtime, unless `precision` asks for torch, or it is installed and there is a GPU.
        precision: `fp32`; `bf16`, which is torch's; or `auto`: bf16 where there is so much work that importing torch pays, and it
            was measured to be faster.
        threads: of the processor; what the runtime takes unless given.
        device: `cpu`, another one of `runtime.onnx.devices()`, or one of torch, e.g. `cuda:0`.
        megapixels: how many the session is for, where many are known to come.

    Raises:
        InputError: no such network, what the runtime cannot do, or torch is needed and not installed.
    """
    for what, given, valid in (("runtime", runtime, RUNTIMES), ("precision", precision, PRECISIONS)):
        if given not in valid:
            raise unknown(what, given, valid)
    file = onnx_file(source)
    own = Path(source).suffix == ".onnx"
    wanted = runtime == "torch" or precision == "bf16" or (not own and (device or "").startswith("cuda:"))
    if own and wanted:
        raise InputError(f"{source} runs in ONNX Runtime, in the precision that it was exported in: leave out torch and bf16")
    if file is None and runtime == "onnx":
        raise InputError(f"{source} is for torch: rcnet export {source} -o mine.onnx, or leave out the runtime onnx")
    on_gpu = not own and device is None and runtime == "auto" and has_torch() and has_gpu()
    if file is None or wanted or on_gpu:
        return torch_session(source, precision, threads, device)
    session = OnnxSession(file, threads, (device or "cpu").partition(":")[0])
    undecided = precision == runtime == "auto" and not own and session.device == "cpu"
    if undecided and megapixels and bf16_may_be_faster():
        work = session.macs(session.settings[-1], (1000, 1000)) * megapixels
        if work > MUCH * (threads or os.cpu_count() or 1):
            return torch_session(source, "bf16", threads, "cpu") if torch_is_faster(session, source, threads) else session
    return session


def session_of(model: "Model", precision: str = "fp32") -> Session:
    """The session of a name or a file (a few are kept), of a network or of fast sessions; a session is its own.

    Raises:
        InputError: what `open_session` raises, or none of these.
    """
    if isinstance(model, str | Path):
        return _kept(str(model), precision, Path(model).stat().st_mtime_ns if Path(model).is_file() else 0)
    if sys.modules.get("torch"):
        from rcnet.deploy.torch_session import Network, TorchSession

        if isinstance(model, Network):
            return TorchSession(model, precision)
    if not hasattr(model, "per_cell"):
        raise InputError(f"a model is a name, a file, a network or a session, not {type(model).__name__}")
    return model  # type: ignore[return-value]


@lru_cache(maxsize=4)
def _kept(source: str, precision: str, changed: int) -> Session:
    return open_session(source, precision=precision)


def onnx_file(source: str | Path) -> Path | None:
    """The exported file of this name; None for what only torch can load."""
    if Path(source).suffix == ".onnx":
        return Path(source)
    return bundled_files().get(str(source))


def check_source(source: str | Path) -> None:
    """`InputError` for what `open_session` cannot find or read; nothing is loaded."""
    if file := onnx_file(source):
        OnnxSession(file)
        return
    with needs_torch():
        from rcnet.models import read_metadata
    read_metadata(source)


def torch_session(source: str | Path, precision: str = "fp32", threads: int | None = None, device: str | None = None) -> Session:
    """Fast sessions of torch, on the GPU if there is one and no device is named."""
    with needs_torch():
        import torch

        from rcnet.deploy.optimize import optimize
        from rcnet.deploy.torch_session import TorchSession
        from rcnet.device import best_device
        from rcnet.models import load
    if device not in (None, *torch_devices()):
        raise unknown("device", device, torch_devices())
    if threads:
        torch.set_num_threads(threads)
    network = load(source).to(torch.device(device) if device else best_device())
    return TorchSession(optimize(network, precision=precision))


def torch_devices() -> list[str]:
    """The devices that torch can use here; none without it."""
    if not has_torch():
        return []
    import torch

    count = torch.cuda.device_count()
    return ["cpu", *["cuda"] * (count > 0), *(f"cuda:{index}" for index in range(count))]


def torch_is_faster(session: OnnxSession, source: str | Path, threads: int | None) -> bool:
    """Whether calls of torch in bf16 take clearly less time here than those of ONNX Runtime, measured once and kept."""

    def measure() -> dict[str, float]:
        about = session.about
        x = np.random.default_rng(0).random((1, about.channels, *(about.size or (256, 256))), np.float32)
        level = np.full((1, about.levels, 1, 1), 25, np.float32) if about.takes_level else None
        both: dict[str, Session] = {"torch": torch_session(source, "bf16", threads, "cpu"), "onnx": session}
        calls = {name: lambda s=s: s.run(x, s.settings[0], level) for name, s in both.items()}
        return {name: summary(values)["ms"] for name, values in interleaved(calls, rounds=5).items()}

    found = measured_once({**session.identity, "torch": metadata.version("torch")}, measure)
    return bool(found["torch"] < FASTER * found["onnx"])


def bf16_may_be_faster() -> bool:
    """Whether torch is installed and the processor computes in bf16."""
    return has_torch() and bf16_by_processor()


@cache
def has_torch() -> bool:
    """Whether torch is installed; it is not imported."""
    return find_spec("torch") is not None


@cache
def has_gpu() -> bool:
    """Whether NVIDIA's driver finds a GPU, without torch."""
    try:
        driver: Any = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


def default_device() -> str:
    """The first GPU where torch can use one, else the processor."""
    return "cuda:0" if has_torch() and has_gpu() else "cpu"
