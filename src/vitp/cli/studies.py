"""`vitp study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp.cli.console import make_console


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("study")(study)


def study(
    name: Annotated[
        str,
        typer.Argument(
            help="paradigms, vrl-ratio, recipe, steps, language-size, data-efficiency, robustness or cost."
        ),
    ],
    scale: Annotated[
        str, typer.Option("--scale", help="micro (two cores), small (one GPU) or paper (as published).")
    ] = "micro",
    out: Annotated[
        Path, typer.Option("--out", help="Folder of all studies; they share what they can.")
    ] = Path("studies"),
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Folder of `vitp data compile`, or of the small real sets; none: scenes."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look in half an hour: one seed, untuned. Proves nothing.")
    ] = False,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="key.key=value over the scale, such as seeds=5. Repeatable."),
    ] = None,
    label: Annotated[
        str,
        typer.Option(
            "--label", help="Ends the name of the results' folder, to keep a variant beside the rest."
        ),
    ] = "",
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0, max=1e7, help="Begin no new cell after so many minutes."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be run and how long it takes, and stop.")
    ] = False,
) -> None:
    """Run a study of the paper: pretraining runs × downstream tests × seeds; interrupted, it continues."""
    from vitp.studies.main import Order, run_study

    order = Order(
        name, scale, out, data, quick, tuple(override or ()), label=label, minutes=minutes, only_plan=plan
    )
    summary = run_study(order, make_console())
    if not plan and not summary.complete:
        raise typer.Exit(1)
