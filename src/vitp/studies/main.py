"""Running a study: data, estimate of the time, cells, tables and page."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from vitp.core.errors import ConfigError
from vitp.core.files import write_json, write_text
from vitp.studies.cells import VERSIONS, WORK
from vitp.studies.cost import TIMING, Estimator, duration
from vitp.studies.definitions import make_study
from vitp.studies.grid import Store, Study, StudyCell
from vitp.studies.page import Report, page_of
from vitp.studies.plots import write_plots
from vitp.studies.results import rows_of, to_csv
from vitp.studies.rows import ROWS_FILE, FinishedRows, read_rows
from vitp.studies.runner import StudyProgress, StudyRunner, leave_torchrun
from vitp.studies.scales import Scale, scale_of


@dataclass(frozen=True)
class StudyOrder:
    """Arguments of `vitp study`.

    Attributes:
        name: Of the study.
        scale: "micro", "small" or "paper".
        out: Folder of all studies.
        data: See `vitp.studies.sources.study_sources`.
        quick: One seed, less of everything.
        overrides: `key.key=value` over the scale.
        label: Ends the name of the results' folder: letters, digits, hyphens, underscores, dots.
        minutes: No new cell is begun after so many.
        only_plan: Say what would be run and how long it takes, and stop.
        rows: File of the rows of finished cells; None: `cells.jsonl` beside the page.
        arms: Only cells of these arms, and what they need, are worked on; none: all.
    """

    name: str
    scale: str = "micro"
    out: Path = Path("studies")
    data: Path | None = None
    quick: bool = False
    overrides: Sequence[str] = ()
    label: str = ""
    minutes: float | None = None
    only_plan: bool = False
    rows: Path | None = None
    arms: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]*", self.label):
            raise ConfigError(
                f"{self.label!r} can't end the name of a folder",
                where="--label",
                fix="use letters, digits, hyphens, underscores and dots",
            )

    @property
    def folder(self) -> Path:
        """Where the results of this study go."""
        parts = [
            self.name,
            self.scale,
            *(["quick"] if self.quick else []),
            *([self.data.name] if self.data else []),
            *([self.label] if self.label else []),
        ]
        return self.out / "-".join(parts)

    @property
    def command(self) -> str:
        """The command line."""
        words = ["vitp", "study", self.name, "--scale", self.scale, "--out", str(self.out)]
        words += ["--data", str(self.data)] if self.data else []
        words += ["--quick"] if self.quick else []
        for override in self.overrides:
            words += ["--set", override]
        words += ["--label", self.label] if self.label else []
        words += ["--rows", str(self.rows)] if self.rows else []
        for arm in self.arms:
            words += ["--arm", arm]
        return shlex.join(words)


def run_study(order: StudyOrder, console: Console | None = None) -> StudyProgress:
    """Run what is missing of a study, write its tables and its page, and return what is done, failed and left.

    Raises:
        ConfigError: There is no such study or scale, or the data can't be used.
    """
    console = console or Console(highlight=False)
    worker = leave_torchrun()
    scale = scale_of(order.scale, quick=order.quick, overrides=order.overrides, study=order.name)
    study = make_study(order.name, scale, order.data)
    part = study.of_arms(order.arms)
    rows = read_rows(order.rows or order.folder / ROWS_FILE)
    runner = StudyRunner(study, order.out, WORK, VERSIONS, console, rows=rows)
    _announce(study, scale, runner)
    _say_rows(runner, rows)
    if not order.only_plan:
        runner.write_rows()
    if scale.name == "paper" and order.only_plan:
        return runner.progress()
    if scale.name == "paper" and order.data is None:
        raise ConfigError(
            "needs data of yours", where="scale paper", fix="name a compiled folder with --data"
        )
    until = None if order.minutes is None else time.time() + 60 * order.minutes
    try:
        estimator = _estimate(runner, part)
        if not order.only_plan:
            runner.run(only=part.cells, until=until, left=lambda: estimator.left(part)[0])
    finally:
        # Also after an interrupt: what is there is worth reading.
        if worker == 0 and not order.only_plan:
            write_study(order, scale, study, runner)
    progress = runner.progress()
    if order.only_plan:
        return progress
    if progress.failed:
        named = ", ".join(progress.failed[:5]) + (" …" if len(progress.failed) > 5 else "")
        console.print(f"[red]{len(progress.failed)} cells failed[/]: {named}")
    if progress.left:
        console.print(f"{len(progress.left)} cells are left; run the command again to continue")
    console.print(f"{progress.done} cells done: open [bold]{order.folder / 'index.html'}[/]")
    return progress


def _announce(study: Study, scale: Scale, runner: StudyRunner) -> None:
    console = runner.console
    runs = sum(cell.name.startswith("pretrain/") for cell in study.cells)
    console.print(f"[bold]{study.title}[/] ({study.name}, scale {scale.name}): {study.question}")
    console.print(
        f"{len(set(runner.store.keys.values()))} cells: {runs} pretraining runs with {scale.seeds} "
        f"seed{'s' if scale.seeds > 1 else ''}, {sum(cell.kind == 'finetune' for cell in study.cells)} finetunings; "
        f"{scale.images:,} images a run"
    )
    for line in study.said:
        console.print(line)
    if scale.quick:
        console.print("[yellow]--quick: one seed, untuned, short. A first look; it proves nothing.[/]")


def _say_rows(runner: StudyRunner, rows: FinishedRows) -> None:
    """Say which cells count as done by their rows, and which of them are done again."""
    store, cells = runner.store, runner.study.cells
    mine = [cell.name for cell in cells if store.keys[cell.name] in store.rows]
    if rows.by_key:
        runner.console.print(
            f"{rows.path}: {len(rows.by_key)} rows of finished cells, {len(mine)} of them of this study",
            soft_wrap=True,
        )
    if again := [name for name in mine if name in store.again]:
        named = ", ".join(again[:5]) + (" …" if len(again) > 5 else "")
        runner.console.print(f"{len(again)} of them are done again, as open cells need their files: {named}")


def _estimate(runner: StudyRunner, study: Study) -> Estimator:
    """Make the data, measure the pace of each kind of work that no earlier cell tells about, and say the time.

    Args:
        runner: Of the whole study.
        study: What of it is to be done.
    """
    console = runner.console
    data = [cell for cell in study.cells if cell.kind == "data"]
    runner.run(only=data)
    estimator = Estimator(runner.store)
    store = runner.store
    open_paces = {
        cell.pace
        for cell in study.cells
        if cell.pace and cell.pace not in estimator.paces and store.result(cell) is None
    }
    failed = {cell.name for cell in data if store.result(cell) is None}
    unknown = [
        cell
        for cell in timing_cells(study, store)
        if cell.settings["pace"] in open_paces
        # A finetuned model is needed to time these, and there is none yet.
        and cell.settings["times"] != "robustness"
        and not failed & set(cell.needs.values())
    ]
    if unknown:
        console.print(f"measuring the pace of {len(unknown)} kinds of work")
        # Those of rows alone are left out, nothing that is timed needs them.
        there = [cell for cell in data if store.at_hand(cell) is not None]
        kept = {name for cell in there for name in (cell.name, *cell.needs.values())}
        timings = Study("timing", "Timing", "", (*(cell for cell in data if cell.name in kept), *unknown))
        timed = StudyRunner(timings, runner.out, WORK, VERSIONS, Console(quiet=True))
        timed.run()
        estimator = Estimator(runner.store, timings, timed.store)
    seconds, open_cells = estimator.left(study)
    more = f", and {open_cells} cells whose time isn't known" if open_cells else ""
    done = runner.progress().done
    of = "" if len(study.cells) == len(runner.study.cells) else " for these arms"
    console.print(
        f"[bold]about {duration(seconds)}[/]{of} on this machine with one process{more}; {done} cells are there already"
    )
    return estimator


def timing_cells(study: Study, store: Store) -> list[StudyCell]:
    """Return one cell for each pace of a study's open cells, which measures a few steps of that work."""
    found: dict[str, StudyCell] = {}
    for cell in study.cells:
        if not cell.pace or cell.pace in found or store.result(cell) is not None:
            continue
        # The start is timed and not the cell's own backbone, so nothing but data must be there.
        needs = {role: name for role, name in cell.needs.items() if role.startswith("data")}
        settings = {**cell.settings, "times": cell.kind, "pace": cell.pace}
        timing = replace(cell, name=f"timing/{cell.pace}", kind=TIMING, settings=settings, needs=needs)
        found[cell.pace] = replace(timing, keep=(), pace="", units=0.0)
    return list(found.values())


def write_study(order: StudyOrder, scale: Scale, study: Study, runner: StudyRunner) -> Path:
    """Write `results.csv`, `results.md`, `plots/`, `plan.json` and `index.html`; return the page's path."""
    folder = order.folder
    rows = rows_of(study, runner.store, scale.name, runner.began)
    write_text(folder / "results.csv", to_csv(rows))
    plan = {"command": order.command, "scale": scale.model_dump(mode="json"), "cells": runner.store.keys}
    write_json(folder / "plan.json", plan)
    plots = write_plots(study, rows, folder / "plots")
    left = len(runner.progress().left)
    page = page_of(Report(study, runner.store, scale, rows, order.command, left, runner.began))
    pictures = "".join(f"![{path.stem}](plots/{path.name})\n" for path in plots)
    write_text(folder / "results.md", page.markdown() + (f"\n## Plots\n\n{pictures}" if plots else ""))
    return page.write(folder / "index.html")
