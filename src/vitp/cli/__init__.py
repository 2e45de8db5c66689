"""The command line. Errors that a user can mend are one line and exit code 2."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from vitp.cli import data, models, training
from vitp.errors import VitpError
from vitp.version import __version__

app = typer.Typer(
    name="vitp",
    help="Visual Instruction Pretraining: from labels to a better vision transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(data.app, name="data", help="Labels to instructions, checks, pages, generated scenes.")
training.register(app)
models.register(app)


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
    """Run the command line and exit: 0 done, 1 findings, 2 wrong input, 130 or 143 interrupted."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    import click

    try:
        code = app(args=arguments, prog_name="vitp", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except VitpError as error:
        return _fail(str(error))
    except click.exceptions.Abort:
        return _fail("interrupted", code=130)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return _fail("interrupted; nothing half-written is left", code=130)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does: no reason for a stack trace.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if isinstance(code, int):
            return _fail(str(error), code=code)
        raise


def _fail(message: str, code: int = 2) -> int:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("[bold red]error:[/] ", end="")
    console.print(" ".join(message.split()), markup=False)
    return code
