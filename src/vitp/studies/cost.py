"""Cost of runs: operations and tokens from their batches, seconds, bytes and joules; how long a study will take."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vitp.core.distributed import resolve_device
from vitp.core.reading import json_or_none
from vitp.engine.loading import to_device
from vitp.objectives.base import BatchSource, Objective
from vitp.studies.grid import RESULT, Store, Study, StudyCell

TIMING = "timing"
"""Kind of the cells that measure the pace of other cells."""
STARTUP = 3.0
"""Seconds that any cell spends on starting and writing."""


@dataclass(frozen=True)
class StepWork:
    """Work of one optimizer step, as the mean of a few.

    Attributes:
        flops: Of the model's matrix products, forward and backward; a multiply-add counts two.
        images: Images seen.
        tokens: Tokens that a language model computed.
    """

    flops: float
    images: float
    tokens: float


def count_steps(objective: Objective, source: BatchSource, *, steps: int = 3) -> StepWork:
    """Return the work of a run's steps from the batches of the first few; nothing is computed.

    Operations are those of the model: what attention computes under a mask beyond them is not counted.
    """
    totals = {"flops": 0.0, "samples": 0.0, "tokens": 0.0}
    for step in range(steps):
        for part in range(getattr(source, "micro_batches", 1)):
            batch = source(step, part, 0, 1)
            work = {**objective.work(batch), "flops": objective.step_flops(batch)}
            for name in totals:
                totals[name] += work.get(name, 0.0) / steps
    return StepWork(totals["flops"], totals["samples"], totals["tokens"])


def seconds_a_step(
    objective: Objective, source: BatchSource, *, device: str = "auto", steps: int = 2
) -> float:
    """Return how long a step of one process takes here, without the optimizer: batch, forward and backward.

    The weights stay as they are.

    Args:
        objective: Model and losses.
        source: Its batches.
        device: As in `TrainSettings`.
        steps: How many are averaged; one more goes before the clock starts.
    """
    place = resolve_device(device)
    objective.to(place).train()
    began = time.monotonic()
    for step in range(-1, steps):
        # The first step, which also allocates memory and loads kernels, is not timed.
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

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        # Parts of a package (core, uncore: two colons in the name) would be counted twice.
        domains = [path for path in sorted(root.glob("intel-rapl:*")) if path.name.count(":") == 1]
        self._start = {
            path: value for path in domains if (value := _number_in(path / "energy_uj")) is not None
        }
        self._gpu_start = _gpu_joules()

    def joules(self) -> float | None:
        """Return the energy so far, or None when nothing can be read."""
        parts: list[float] = []
        for path, start in self._start.items():
            now, limit = _number_in(path / "energy_uj"), _number_in(path / "max_energy_range_uj")
            if now is not None:
                # The counter begins anew at its limit; once in an hour or so under full load.
                parts.append((now - start if now >= start else now - start + (limit or 0.0)) / 1e6)
        gpu = _gpu_joules()
        if gpu is not None and self._gpu_start is not None:
            parts.append(gpu - self._gpu_start)
        return sum(parts) if parts else None


def _number_in(path: Path) -> float | None:
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
    count, total = ctypes.c_uint(), 0.0
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
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
        # A sum that lacks an attempt would look cheaper than the cell was.
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


@dataclass(frozen=True)
class Pace:
    """Speed of a kind of work: seconds and operations a unit, and seconds that are spent before the first one."""

    seconds: float
    fixed: float
    flops: float


class Estimator:
    """Tells how long cells will take: from earlier cells of their pace, else from a few measured steps.

    Args:
        store: Of the study; earlier cells of all studies in its folder are looked at.
        timings: The study of the timing cells, if it was run.
        timed: Its results.
    """

    def __init__(self, store: Store, timings: Study | None = None, timed: Store | None = None) -> None:
        self.store = store
        self.paces: dict[str, Pace] = {}
        if timings is not None and timed is not None:
            for cell in timings.cells:
                result = timed.result(cell) if cell.kind == TIMING else None
                if result is not None:
                    self.paces[cell.settings["pace"]] = Pace(**result["values"])
        self.paces |= _known_paces(store.root, self.paces)

    def seconds(self, cell: StudyCell, study: Study) -> float | None:
        """Return how long a cell will take alone on this machine; None when nobody knows."""
        if not cell.pace:
            return 0.0
        pace = self.paces.get(cell.pace)
        if pace is None:
            return None
        units = cell.units
        if "equal" in cell.needs:
            other = self.paces.get(study[cell.needs["equal"]].pace)
            if other is None or not pace.flops or not other.flops:
                return None
            # A run of equal operations is longer by as much as its unit is cheaper.
            units = study[cell.needs["equal"]].units * other.flops / pace.flops
        return pace.fixed + units * pace.seconds

    def left(self, study: Study) -> tuple[float, int]:
        """Return the seconds that are left, and the number of open cells whose time isn't known."""
        total, unknown, seen = 0.0, 0, set()
        for cell in study.cells:
            key = self.store.keys[cell.name]
            # Cells of one key are one piece of work.
            if key in seen or self.store.result(cell) is not None:
                continue
            seen.add(key)
            seconds = self.seconds(cell, study)
            unknown += seconds is None
            total += seconds or 0.0
        return total, unknown


def _known_paces(root: Path, measured: Mapping[str, Pace]) -> dict[str, Pace]:
    """Return the paces of cells that were done without interruption, of any study in the folder."""
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for path in sorted(root.glob(f"*/{RESULT}")):
        result = json_or_none(path)
        if not isinstance(result, dict) or not result.get("pace") or not result["units"]:
            continue
        cost, values = result["cost"], result["values"]
        # A run of equal operations saw another number of images than its cell says.
        units = values.get("images") if result["kind"] == "pretrain" else result["units"]
        if cost["attempts"] == 1 and isinstance(units, int | float) and units > 0:
            row = (cost["seconds"], float(units), values.get("flops") or 0.0)
            rows.setdefault(result["pace"], []).append(row)
    found = {}
    for pace, known in rows.items():
        fixed = measured[pace].fixed if pace in measured else STARTUP
        seconds = fmean(max(0.0, spent - fixed) / units for spent, units, _ in known)
        found[pace] = Pace(seconds, fixed, fmean(flops / units for _, units, flops in known))
    return found
