"""`vitp study`, `vitp tune`: many runs, for an answer or for settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from vitp.cli.options import LABELLED, Override, Seed, Steps, overrides_of
from vitp.cli.output import make_console, print_table
from vitp.cli.panels import TRAIN

_Rows: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--rows",
        help="File with a row for each finished cell, kept up to date: those count as done. By default the "
        "cells.jsonl beside the page.",
    ),
]
_Arm: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--arm",
        help="Work on this arm alone (its name on the page), and on what it needs; the rest is left. Repeatable.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("study", rich_help_panel=TRAIN)(study_command)
    app.command("tune", rich_help_panel=TRAIN)(tune_command)


def study_command(
    name: Annotated[
        str,
        typer.Argument(
            help="paradigms, vrl-ratio, recipe, steps, language-size, data-efficiency, robustness, cost, cheap-labels or vrl-tokens."
        ),
    ],
    scale: Annotated[
        str,
        typer.Option("--scale", help="micro (two CPU cores), small (one GPU) or paper (as published)."),
    ] = "micro",
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder of all studies. Work that several studies need is done once."),
    ] = Path("studies"),
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder of `vitp data compile`, or of the small real sets. By default scenes are generated.",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="A first look in half an hour: one seed, no tuning. Its results prove nothing."
        ),
    ] = False,
    override: Override = None,
    label: Annotated[
        str,
        typer.Option("--label", help="Suffix of the results folder, to keep a variant beside the rest."),
    ] = "",
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0, max=1e7, help="Start no new work after so many minutes."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be run and how long it takes, and stop.")
    ] = False,
    rows: _Rows = None,
    arm: _Arm = None,
) -> None:
    """Run a study of the paper: pretraining runs × downstream tests × seeds. An interrupted study continues.

    --set changes the scale, as in seeds=5. The exit code is 1 while any work has failed or is left.
    """
    from vitp.studies.main import StudyOrder, run_study

    overrides = tuple(override or ())
    order = StudyOrder(name, scale, out, data, quick, overrides, label, minutes, plan, rows, tuple(arm or ()))
    if not run_study(order, make_console()).complete and not plan:
        raise typer.Exit(1)


def tune_command(
    what: Annotated[
        str, typer.Argument(help='YAML file of a run, or a task of `vitp finetune`, or "pretrain".')
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the search; an earlier one goes on there.")
    ] = Path("runs/tune"),
    data: Annotated[
        list[str] | None, typer.Option("--data", help=f"{LABELLED} Repeatable for pretraining.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--init", "--backbone", help="Model or backbone that each trial starts from."),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            "--probe", help="Pretraining: labelled folder of `vitp data compile` that scores the trials."
        ),
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option("--space", help="YAML file with a line for each key to tune: low and high, or choices."),
    ] = None,
    steps: Steps = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, max=1_000_000, help="Trials in all, earlier ones included.")
    ] = 20,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0, max=1e7, help="Start no new trial after so many minutes."),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="End trials early that do worse than the others.")
    ] = True,
    seed: Seed = 0,
    override: Override = None,
) -> None:
    """Search for the settings of a run: learning rate, layer decay, weight decay, VRL's ratio, shares of sets.

    Each trial is a short run, scored on validation images (or by probes of the frozen features on them); the test is
    never looked at. The same command continues an interrupted search; several at once share the trials of one folder.
    """
    from vitp.studies.space import default_space, read_space, tuned_config
    from vitp.studies.tuning import TuneOrder, tune, write_best
    from vitp.studies.tuning_page import table_of_trials, write_page

    config = tuned_config(what, data, start, probe, overrides_of({"train.steps": steps}, override))
    ranges = default_space(config) if space is None else read_space(space)
    console = make_console()
    order = TuneOrder(config, ranges, out, trials, minutes, seed, prune)
    tuned = tune(order, console)
    best = write_best(tuned, order)
    print_table(*table_of_trials(tuned), f"the best trials of {len(tuned.rows)} (score in percent)", left=2)
    console.print(f"page: {write_page(tuned, order)}")
    if best is not None:
        console.print(f"best settings: {best}")
