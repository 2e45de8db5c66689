"""Running a study from the first line to the page."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from vitp.core.errors import ConfigError
from vitp.core.files import write_json, write_text
from vitp.studies.budget import duration
from vitp.studies.catalogue import make_study
from vitp.studies.grid import Cell, Study
from vitp.studies.page import Report, page_of
from vitp.studies.plots import write_plots
from vitp.studies.results import rows_of, to_csv
from vitp.studies.runner import Runner, Summary, leave_torchrun
from vitp.studies.scales import Scale, scale_of
from vitp.studies.timing import TIMING, Estimator, timing_cells
from vitp.studies.work import VERSIONS, WORK


@dataclass(frozen=True)
class Order:
    """What the command line asks for.

    Attributes:
        name: Of the study.
        scale: "micro", "small" or "paper".
        out: Folder of all studies.
        data: See `vitp.studies.sources.open_sources`.
        quick: One seed, less of everything.
        overrides: `key.key=value` over the scale.
        label: Ends the name of the results' folder: letters, digits, hyphens, underscores, dots.
        minutes: No new cell is begun after so many.
        only_plan: Say what would be run and how long it would take.
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
        return shlex.join(words)


@dataclass
class _Session:
    order: Order
    scale: Scale
    study: Study
    runner: Runner
    console: Console
    estimator: Estimator = field(init=False)


def run_study(order: Order, console: Console | None = None) -> Summary:
    """Run what is missing of a study, write its tables and its page, and return what is done, failed and left.

    Raises:
        ConfigError: There is no such study or scale, or the data can't be used.
    """
    console = console or Console(highlight=False)
    worker = leave_torchrun()
    scale = scale_of(order.scale, quick=order.quick, overrides=order.overrides)
    study = make_study(order.name, scale, order.data)
    runner = Runner(study, order.out, WORK, VERSIONS, console)
    session = _Session(order, scale, study, runner, console)
    _announce(session)
    if scale.name == "paper" and not order.only_plan and order.data is None:
        raise ConfigError(
            "needs data of yours", where="scale paper", fix="name a compiled folder with --data"
        )
    if order.only_plan and scale.name == "paper":
        return runner.summary()
    try:
        if _prepare(session):
            runner.run(until=_until(order), left=lambda: session.estimator.left(study)[0])
    finally:
        # Also after an interrupt: what is there is worth reading.
        if worker == 0 and not order.only_plan:
            write_results(session.order, scale, study, runner)
    summary = runner.summary()
    _conclude(session, summary)
    return summary


def _until(order: Order) -> float | None:
    return None if order.minutes is None else time.time() + 60 * order.minutes


def _announce(session: _Session) -> None:
    study, scale, console = session.study, session.scale, session.console
    runs = sum(cell.name.startswith("pretrain/") for cell in study.cells)
    console.print(f"[bold]{study.title}[/] ({study.name}, scale {scale.name}): {study.question}")
    console.print(
        f"{len(set(session.runner.store.keys.values()))} cells: {runs} pretraining runs with {scale.seeds} "
        f"seed{'s' if scale.seeds > 1 else ''}, {sum(cell.kind == 'finetune' for cell in study.cells)} finetunings; "
        f"{scale.images:,} images a run"
    )
    if scale.quick:
        console.print("[yellow]--quick: one seed, untuned, short. A first look; it proves nothing.[/]")


def _prepare(session: _Session) -> bool:
    """Make the data, measure the pace of each kind of work, say how long it will take; return whether to go on."""
    order, study, runner, console = session.order, session.study, session.runner, session.console
    data = [cell for cell in study.cells if cell.kind == "data"]
    runner.run(kinds=frozenset({"data"}))
    session.estimator = Estimator(runner.store)
    unknown = _unknown(session)
    if unknown:
        console.print(f"measuring the pace of {len(unknown)} kinds of work")
        timings = Study("timing", "Timing", "", (*data, *unknown))
        timed = Runner(timings, order.out, WORK, VERSIONS, Console(quiet=True))
        timed.run()
        session.estimator = Estimator(runner.store, timings, timed.store)
    seconds, open_cells = session.estimator.left(study)
    more = f", and {open_cells} cells whose time isn't known" if open_cells else ""
    done = runner.summary().done
    console.print(
        f"[bold]about {duration(seconds)}[/] on this machine with one process{more}; {done} cells are there already"
    )
    return not order.only_plan


def _unknown(session: _Session) -> list[Cell]:
    """Return the timing cells of kinds of work that no earlier cell tells about."""
    store = session.runner.store
    open_paces = {
        cell.pace
        for cell in session.study.cells
        if cell.pace and cell.pace not in session.estimator.paces and store.result(cell) is None
    }
    cells = timing_cells(session.study)
    failed = {c.name for c in session.study.cells if c.kind == "data" and store.result(c) is None}
    return [
        cell
        for cell in cells
        if cell.kind == TIMING
        and cell.settings["pace"] in open_paces
        and cell.settings["times"] != "robustness"
        and not failed & set(cell.needs.values())
    ]


def write_results(order: Order, scale: Scale, study: Study, runner: Runner) -> Path:
    """Write `results.csv`, `results.md`, `plots/`, `plan.json` and `index.html`; return the page's path."""
    folder = order.folder
    rows = rows_of(study, runner.store, scale.name, runner.began)
    write_text(folder / "results.csv", to_csv(rows))
    plan = {"command": order.command, "scale": scale.model_dump(mode="json"), "cells": runner.store.keys}
    write_json(folder / "plan.json", plan)
    plots = write_plots(study, rows, folder / "plots")
    report = Report(study, runner.store, scale, rows, order.command, len(runner.summary().left), runner.began)
    page = page_of(report)
    pictures = "".join(f"![{path.stem}](plots/{path.name})\n" for path in plots)
    write_text(folder / "results.md", page.markdown() + (f"\n## Plots\n\n{pictures}" if plots else ""))
    return page.write(folder / "index.html")


def _conclude(session: _Session, summary: Summary) -> None:
    console, order = session.console, session.order
    if order.only_plan:
        return
    if summary.failed:
        console.print(f"[red]{len(summary.failed)} cells failed[/]: {', '.join(summary.failed[:5])}"
                      + (" …" if len(summary.failed) > 5 else ""))  # fmt: skip
    if summary.left:
        console.print(f"{len(summary.left)} cells are left; run the command again to continue")
    console.print(f"{summary.done} cells done: open [bold]{order.folder / 'index.html'}[/]")
