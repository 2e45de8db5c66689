"""What the machine can do and has used: the peak that utilisation is measured against, and memory."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vitp.core.reading import read_text
from vitp.planning.devices import DEVICES


@dataclass(frozen=True)
class Peak:
    """The most FLOPs a second that matrix products can reach.

    Attributes:
        flops: A second.
        basis: "data sheet" of the GPU, or "measured" with one large product.
    """

    flops: float
    basis: str


def hardware(device: torch.device) -> str:
    """Return a line about a device, the same for the same kind of machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = read_text(cpuinfo).splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    return f"{model}, {torch.get_num_threads()} threads"


def data_sheet(name: str) -> float | None:
    """Return the bf16 peak in FLOPs a second of a GPU by torch's name for it, or None for one we don't know."""
    words = name.replace("-", " ").replace("_", " ").upper().replace("RTX ", "RTX")
    best: tuple[int, float] | None = None
    for key, device in DEVICES.items():
        parts = key.upper().split("-")
        if all(part in words.split() or (part.isdigit() and f"{part}GB" in words) for part in parts):
            best = max(best or (0, 0.0), (len(parts), device.bf16_tflops * 1e12))
    return best[1] if best else None


def peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Return the peak of a device: of its data sheet in half precision, measured otherwise."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        known = data_sheet(torch.cuda.get_device_name(device))
        if known is not None:
            return Peak(known, "data sheet")
    return Peak(measured_peak(device, dtype), "measured")


def measured_peak(device: torch.device, dtype: torch.dtype, *, side: int | None = None) -> float:
    """Return the FLOPs a second of a square matrix product, the best of some."""
    side = side or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        synchronize(device)
        began = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2.0 * side**3 / (time.perf_counter() - began))
    return best


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Return the bytes that a call needs at most beyond what is in use before it.

    On a GPU that is what torch allocates. On Linux it is the growth of the process, with freed memory given back
    first; elsewhere the growth of the largest size that the process ever had.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _give_back()
    reset = _reset_high_water_mark()
    before = _status("VmRSS") if reset else _largest()
    run()
    return max(0, (_status("VmHWM") if reset else _largest()) - before)


def _give_back() -> None:
    """Give the memory that the C library keeps for later back to the system, where it can."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _largest() -> int:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
