"""What a run costs: images, tokens, floating-point operations, seconds, bytes, joules."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class StepWork:
    """What one optimizer step amounts to, as the mean of a few.

    Attributes:
        flops: Of the model's matrix products, forward and backward; a multiply-add counts two.
        images: Images seen.
        tokens: Tokens that a language model computed.
    """

    flops: float
    images: float
    tokens: float


def count_steps(objective: Any, source: Any, *, steps: int = 3) -> StepWork:
    """Return the work of a run's steps from the batches of the first few; nothing is computed.

    Args:
        objective: A `vitp.objectives.base.Objective` of pretraining.
        source: Its batches.
        steps: How many are averaged.
    """
    totals = {"flops": 0.0, "samples": 0.0, "tokens": 0.0}
    for step in range(steps):
        for part in range(getattr(source, "micro_batches", 1)):
            batch = source(step, part, 0, 1)
            work = {"flops": step_flops(objective, batch), **objective.work(batch)}
            for name in totals:
                totals[name] += work.get(name, 0.0) / steps
    return StepWork(totals["flops"], totals["samples"], totals["tokens"])


def step_flops(objective: Any, batch: Any) -> float:
    """Return the floating-point operations that training on a batch takes; 0 where nobody knows.

    Those of the model: what attention computes under a mask beyond them is not counted, for no objective.
    """
    return float(objective.step_flops(batch))


def seconds_a_step(objective: Any, source: Any, *, device: str = "auto", steps: int = 2) -> float:
    """Return how long a step of one process takes here, without the optimizer: batch, forward and backward.

    The weights stay as they are.

    Args:
        objective: A `vitp.objectives.base.Objective`.
        source: Its batches.
        device: As in `TrainConfig`.
        steps: How many are averaged; one more goes before the clock starts.
    """
    from vitp.core.distributed import resolve_device
    from vitp.engine.loading import to_device

    place = resolve_device(device)
    objective.to(place).train()
    began = time.monotonic()
    for step in range(-1, steps):
        if step == 0:
            began = time.monotonic()
        for part in range(getattr(source, "micro_batches", 1)):
            losses = objective(to_device(source(max(step, 0), part, 0, 1), place))
            # Reading the value waits for a GPU.
            float(sum(losses.values()).detach())
            sum(losses.values()).backward()
            objective.zero_grad(set_to_none=True)
    return (time.monotonic() - began) / steps


class EnergyMeter:
    """Energy since it was made, where the system lets it be read.

    Processors: RAPL (`/sys/class/powercap`), whole packages with all that runs on them, often readable by the
    administrator only. NVIDIA GPUs: the driver's counter of all GPUs of the machine.
    """

    def __init__(self) -> None:
        self._domains = _rapl_domains()
        self._start = {path: _number(path / "energy_uj") for path in self._domains}
        self._gpu_start = _gpu_joules()

    def joules(self) -> float | None:
        """Return the energy so far, or None when nothing can be read."""
        parts: list[float] = []
        for path, start in self._start.items():
            now, limit = _number(path / "energy_uj"), _number(path / "max_energy_range_uj")
            if start is not None and now is not None:
                # The counter begins anew at its limit; once in an hour or so under full load.
                parts.append((now - start if now >= start else now - start + (limit or 0.0)) / 1e6)
        gpu = _gpu_joules()
        if gpu is not None and self._gpu_start is not None:
            parts.append(gpu - self._gpu_start)
        return sum(parts) if parts else None


def _rapl_domains(root: Path = POWERCAP) -> list[Path]:
    """Return the packages; their parts (core, uncore) would be counted twice."""
    found = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
    return [path for path in found if path.name.count(":") == 1 and _number(path / "energy_uj") is not None]


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _gpu_joules() -> float | None:
    """Return the driver's energy counters of all GPUs, summed; None without a GPU or an old one."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    count, total = ctypes.c_uint(), 0.0
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return None
    for index in range(count.value):
        handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
            return None
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) != 0:
            return None
        total += millijoules.value / 1000
    return total


def total_cost(attempts: list[Mapping[str, float | None]]) -> dict[str, Any]:
    """Return the cost of a cell over all its attempts: sums, the largest memory, and how many there were."""

    def known(name: str) -> list[float]:
        return [value for attempt in attempts if (value := attempt.get(name)) is not None]

    joules = known("joules")
    return {
        "seconds": sum(known("seconds")),
        "processor_seconds": sum(known("processor_seconds")),
        "memory": max(known("memory"), default=None),
        "joules": sum(joules) if len(joules) == len(attempts) else None,
        "attempts": len(attempts),
    }


def duration(seconds: float) -> str:
    """Return a time as people say it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def operations(flops: float) -> str:
    """Return floating-point operations with a unit: `3.1 TFLOP`."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}FLOP"
    return f"{flops:.3g} FLOP"
