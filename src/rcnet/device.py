"""The device and the precision of a call. torch is imported when a function needs it."""

from __future__ import annotations

import ctypes
import platform
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rcnet.errors import unknown

if TYPE_CHECKING:
    import torch

Module = TypeVar("Module", bound="torch.nn.Module")
PRECISIONS = ("auto", "fp32", "bf16")


def best_device() -> torch.device:
    """CUDA if available, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gains_by_bf16(device: torch.device) -> bool:
    """Whether bf16 is native and autocast thus faster: CUDA from Ampere on, CPUs with AVX512-BF16 or AMX."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def sums_8_bits() -> bool:
    """Whether the processor sums products of 8-bit numbers exactly: x86 without VNNI saturates them at 16 bits."""
    import torch

    return platform.machine().lower() not in ("x86_64", "amd64") or torch.cpu._is_vnni_supported()


def resolve_precision(precision: str, device: torch.device) -> str:
    """`fp32` or `bf16`; `auto` picks bf16 if it is native on this machine."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision == "auto":
        return "bf16" if gains_by_bf16(device) else "fp32"
    return precision


def channels_last(model: Module) -> Module:
    """The model with its kernels in channels_last, the faster memory layout for convolutions."""
    import torch

    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context for calling a network at this precision. Raises `InputError` for an unknown precision."""
    import torch

    bf16 = resolve_precision(precision, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()


def hardware(device: torch.device) -> str:
    """One line about the machine, for the record of a run."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def bf16_by_processor() -> bool:
    """As `gains_by_bf16` of the processor, without torch, where the system says it (Linux on x86)."""
    return not {"avx512_bf16", "amx_tile"}.isdisjoint(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    """What Linux says of the first core; the empty string elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks instead of returning them to the system.

    Fewer page faults: measured, training on a CPU is 10% faster. The thresholds, 1 GiB and 2 GiB, are above any tensor of a
    training batch; the second is the largest int that mallopt takes.
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    libc.mallopt(m_mmap_threshold, 1 << 30)
    libc.mallopt(m_trim_threshold, (1 << 31) - 1)
