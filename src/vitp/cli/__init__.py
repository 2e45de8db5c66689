"""The command line. Errors that a user can mend are one line and exit code 2; see `vitp.cli.boundary`."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from vitp.cli import (
    checks,
    command,
    data,
    data_look,
    evidence,
    models,
    plan,
    recipes,
    studies,
    tasks,
    training,
)
from vitp.cli.boundary import guarded, prepare_streams
from vitp.core.version import __version__

app = typer.Typer(
    name="vitp",
    help="Visual Instruction Pretraining: from labels to a better vision transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_look.register(data.app)
app.add_typer(data.app, name="data", help="Labels to instructions, checks, pages, generated scenes.")
training.register(app)
models.register(app)
tasks.register(app)
recipes.register(app)
plan.register(app)
studies.register(app)
evidence.register(app)
checks.register(app)
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
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(arguments))


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    prepare_streams()
    return guarded(lambda: app(args=arguments, prog_name="vitp", standalone_mode=False))
