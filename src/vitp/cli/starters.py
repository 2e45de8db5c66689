"""`vitp starter build`: starters with another language model than the packaged one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from vitp.cli.output import make_console
from vitp.cli.panels import TRAIN

app = typer.Typer(no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the commands of this file."""
    root.add_typer(
        app, name="starter", rich_help_panel=TRAIN, help="Build a starter with another language model."
    )


@app.callback()
def _group() -> None:
    """Build a starter with another language model."""


@app.command("build")
def build_command(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run. An interrupted build continues.")],
    language: Annotated[
        str, typer.Option("--language", help="Language model: smollm2 (135 million parameters, Apache-2.0).")
    ] = "smollm2",
    quick: Annotated[
        bool, typer.Option("--quick", help="A tenth of the steps: minutes instead of an hour.")
    ] = False,
) -> None:
    """Put an installed language model behind the starter's ViT, and align the two on generated scenes."""
    from vitp.recipes.language_starter import FULL_PLAN, QUICK_PLAN, build_language_starter

    build_language_starter(out, language, QUICK_PLAN if quick else FULL_PLAN)
    make_console().print(
        f'wrote {out}; next: vitp ask {shlex.quote(str(out))} IMAGE "What does the image show?"'
    )
