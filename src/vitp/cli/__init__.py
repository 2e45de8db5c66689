"""The command line. Errors that a user can mend are one line and exit code 2; see `vitp.cli.boundary`."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from vitp.cli import (
    command,
    data,
    evidence,
    models,
    plan,
    predict,
    recipes,
    runs,
    serve,
    starters,
    studies,
)
from vitp.cli.boundary import guarded, prepare_streams
from vitp.cli.panels import DATA, PanelGroup
from vitp.core.version import __version__

app = typer.Typer(
    name="vitp",
    cls=PanelGroup,
    help="Visual Instruction Pretraining: from labels to a better vision transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
# In the order of `vitp --help`: data, train, use, judge, plan.
app.add_typer(
    data.app,
    name="data",
    rich_help_panel=DATA,
    help="Turn labels into instructions, check and show them, generate scenes, prepare published sets.",
)
for noun in (runs, recipes, starters, studies, predict, models, serve, evidence, plan):
    noun.register(app)
command.complete(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vitp {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 findings, 2 wrong input, 70 our fault, 130 or 143 interrupted."""
    # By default SIGTERM ends Python without a word, and half-made folders would stay. Training has handlers of its own.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    prepare_streams()
    return guarded(lambda: app(args=arguments, prog_name="vitp", standalone_mode=False))
