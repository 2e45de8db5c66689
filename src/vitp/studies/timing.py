"""How long a study will take: from what its cells took before, or from a few steps of each kind of work."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from vitp.studies.cache import RESULT, Store, read_json
from vitp.studies.grid import Cell, Study
from vitp.studies.process import Context

TIMING = "timing"
STARTUP = 3.0
"""Seconds that any cell spends on starting and writing."""
OPTIMIZER = 1.2
"""A step with optimizer and logging over one without: rough, and better too high than too low."""


def timing_cells(study: Study) -> list[Cell]:
    """Return one cell for each kind of work of a study, which measures a few steps of it."""
    found: dict[str, Cell] = {}
    for cell in study.cells:
        if not cell.pace or cell.pace in found:
            continue
        needs = {role: name for role, name in cell.needs.items() if role.startswith("data")}
        settings = {**cell.settings, "times": cell.kind, "pace": cell.pace}
        found[cell.pace] = replace(
            cell, name=f"timing/{cell.pace}", kind=TIMING, settings=settings, needs=needs, keep=(), pace="", units=0.0
        )  # fmt: skip
    return list(found.values())


def measure_pace(context: Context) -> Mapping[str, Any]:
    """Return seconds (and floating-point operations) a unit of the work that the settings describe."""
    kind = context.cell.settings["times"]
    if kind == "pretrain":
        return _pretraining(context)
    if kind == "finetune":
        return _finetuning(context)
    return _probing(context)


def _pretraining(context: Context) -> dict[str, float]:
    from vitp.studies.pretraining import measured_phase, phases_of, run_config

    config = run_config(context, int(context.cell.settings["images"]), context.cell.settings.get("lr"))
    images = seconds = flops = 0.0
    for steps, phase in phases_of(config):
        work, of_step = measured_phase(phase)
        images += steps * config.data.global_batch
        seconds += steps * of_step
        flops += steps * work.flops
    return {"seconds": OPTIMIZER * seconds / images, "fixed": STARTUP, "flops": flops / images}


def _finetuning(context: Context) -> dict[str, float]:
    from vitp.data.splits import subset
    from vitp.runs.finetune import build_run
    from vitp.studies.budget import seconds_a_step
    from vitp.studies.evaluations import finetune_config
    from vitp.studies.sources import folder_of
    from vitp.tasks.build import task_of

    root = folder_of(context.inputs["data"])
    backbone = context.cell.places.get("start", "starter")
    config = finetune_config(context, root, backbone, 1e-4, None)
    run = build_run(config)
    of_step = seconds_a_step(run.model, run.source, device=config.train.device)
    few = subset(run.splits["val"], 16)
    began = time.monotonic()
    task_of(config.task).evaluate(run.model.eval(), few, run.test)
    an_image = (time.monotonic() - began) / len(few)
    return {
        "seconds": OPTIMIZER * of_step,
        "fixed": STARTUP + an_image * len(run.splits["test"]),
        "flops": 0.0,
    }


def _probing(context: Context) -> dict[str, float]:
    from vitp.checkpoints.loading import load_backbone
    from vitp.evaluation.probes import run_probes
    from vitp.studies.sources import folder_of
    from vitp.tasks.data import open_labelled

    settings = context.cell.settings
    labelled = open_labelled(folder_of(context.inputs["data"]), "vitp")
    tower = load_backbone(context.cell.places.get("start", "starter"))
    most = min(64, settings["images"])
    began = time.monotonic()
    run_probes(tower, labelled, seeds=(0,), max_images=most)
    # Features cost by the image, fits by the draw; the small run says little about how the two share.
    spent = time.monotonic() - began
    return {
        "seconds": spent * max(1.0, settings["images"] / most) * 0.4 * settings["draws"],
        "fixed": 1.0,
        "flops": 0.0,
    }


@dataclass(frozen=True)
class Pace:
    """Seconds and operations of a kind of work."""

    seconds: float
    fixed: float
    flops: float


class Estimator:
    """Tells how long cells will take.

    Args:
        store: Of the study; earlier cells of all studies in its folder are looked at.
        timings: The study of the timing cells, if it was run.
    """

    def __init__(self, store: Store, timings: Study | None = None, timed: Store | None = None) -> None:
        self.store = store
        self.paces: dict[str, Pace] = {}
        if timings is not None and timed is not None:
            for cell in timings.cells:
                result = timed.result(cell) if cell.kind == TIMING else None
                if result is not None:
                    self.paces[cell.settings["pace"]] = Pace(**result["values"])
        self.paces |= _known(store.root, self.paces)

    def seconds(self, cell: Cell, study: Study) -> float | None:
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
            units = study[cell.needs["equal"]].units * other.flops / pace.flops
        return pace.fixed + units * pace.seconds

    def left(self, study: Study) -> tuple[float, int]:
        """Return the seconds that are left, and the number of open cells whose time isn't known."""
        total, unknown, seen = 0.0, 0, set()
        for cell in study.cells:
            key = self.store.keys[cell.name]
            if key in seen or self.store.result(cell) is not None:
                continue
            seen.add(key)
            seconds = self.seconds(cell, study)
            unknown += seconds is None
            total += seconds or 0.0
        return total, unknown


def _known(root: Path, measured: Mapping[str, Pace]) -> dict[str, Pace]:
    """Return the paces of cells that were done without interruption, of any study in the folder."""
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for result in _results(root):
        cost, values = result["cost"], result["values"]
        if not result.get("pace") or cost["attempts"] != 1 or not result["units"]:
            continue
        units = values.get("images") if result["kind"] == "pretrain" else result["units"]
        if isinstance(units, int | float) and units > 0:
            rows.setdefault(result["pace"], []).append(
                (cost["seconds"], float(units), values.get("flops") or 0.0)
            )
    found = {}
    for pace, known in rows.items():
        fixed = measured[pace].fixed if pace in measured else STARTUP
        seconds = fmean(max(0.0, spent - fixed) / units for spent, units, _ in known)
        found[pace] = Pace(seconds, fixed, fmean(flops / units for _, units, flops in known))
    return found


def _results(root: Path) -> Iterable[dict[str, Any]]:
    for path in sorted(root.glob(f"*/{RESULT}")):
        found = read_json(path)
        if isinstance(found, dict):
            yield found
