"""The command line. Errors that a user can mend are one line and exit code 2."""

from __future__ import annotations

import errno
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from vitp.cli import checks, data, data_look, evidence, models, plan, recipes, studies, tasks, training
from vitp.errors import VitpError
from vitp.files import as_user_error
from vitp.version import __version__

_MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
"""What the system refuses for reasons that the user can remove; any other `OSError` is a fault of the program."""

_INTERRUPTED = 128 + signal.SIGINT
_NOTHING_LEFT = "interrupted; nothing half-written is left"

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
    # By default SIGTERM ends Python without a word, and half-made folders would stay. Training has handlers of its own.
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(arguments))


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        code = app(args=arguments, prog_name="vitp", standalone_mode=False)
        if code == _INTERRUPTED:  # typer may have caught Ctrl-C without a word
            return _fail(_NOTHING_LEFT, code)
        return code if isinstance(code, int) else 0
    except VitpError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_NOTHING_LEFT, _INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does: no reason for a stack trace.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        return _fail(str(as_user_error(error, error.filename or "output")))
    except Exception as error:
        # Of typer's exceptions only the base class is public; all of them have an exit code, as has `Interrupted`.
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            raise
        message = _usage(error)
        return _fail(message, code=code) if message else code


def _usage(error: Exception) -> str:
    """Return what typer would say about wrong arguments, in one line; empty when it has printed the help."""
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return str(error)
    message, context = format_message(), getattr(error, "ctx", None)
    if not message or context is None:
        return message
    return f"{message.rstrip('.')}; see `{context.command_path} --help`"


def _fail(message: str, code: int = 2) -> int:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    # One call is one write: the lines of several ranks don't run into each other.
    console.print(Text.assemble(("error:", "bold red"), " ", " ".join(message.split())))
    return code
