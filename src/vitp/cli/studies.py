"""`vitp study`: the studies of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp.cli.options import Override
from vitp.cli.output import make_console
from vitp.cli.panels import TRAIN


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("study", rich_help_panel=TRAIN)(study_command)


def study_command(
    name: Annotated[
        str,
        typer.Argument(
            help="paradigms, vrl-ratio, recipe, steps, language-size, data-efficiency, robustness or cost."
        ),
    ],
    scale: Annotated[
        str,
        typer.Option("--scale", help="micro (two CPU cores), small (one GPU) or paper (as published)."),
    ] = "micro",
    out: Annotated[Path, typer.Option("--out", help="Folder of all studies; they share equal work.")] = Path(
        "studies"
    ),
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder of `vitp data compile`, or of the small real sets. By default scenes are generated.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="First look in half an hour: one seed, no tuning. Proves nothing.")
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
) -> None:
    """Run a study of the paper: pretraining runs × downstream tests × seeds. An interrupted study continues.

    --set changes the scale, as in seeds=5. The exit code is 1 while any work has failed or is left.
    """
    from vitp.studies.main import StudyOrder, run_study

    overrides = tuple(override or ())
    order = StudyOrder(name, scale, out, data, quick, overrides, label=label, minutes=minutes, only_plan=plan)
    if not run_study(order, make_console()).complete and not plan:
        raise typer.Exit(1)
