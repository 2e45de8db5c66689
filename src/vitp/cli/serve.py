"""`vitp serve`: models behind a server, with a page to look at them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from vitp.cli.panels import USE


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve", rich_help_panel=USE)(serving_command)


def serving_command(
    model: Annotated[
        list[str],
        typer.Argument(
            help="Runs of `vitp finetune` and `vitp pretrain`, exports, or starter; NAME=FOLDER gives another name."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen to; 0.0.0.0: all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0: any that is free.")
    ] = 8000,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder below which clients may name files. By default they may name none."),
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="VITP_TOKEN", help="Bearer token that clients must send.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    max_upload_mb: Annotated[
        int, typer.Option(min=1, max=65_536, help="Largest size of a request in megabytes.")
    ] = 256,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=10_000_000_000, help="Most pixels of an image.")
    ] = 100_000_000,
    queue: Annotated[int, typer.Option(min=1, max=100_000, help="Most requests that wait at a time.")] = 64,
    batch: Annotated[
        int, typer.Option(min=1, max=1024, help="Most images of several requests in one batch.")
    ] = 8,
) -> None:
    """Serve models to programs and to people: predictions, answers, features, and a page to try them on images."""
    from vitp.core.errors import ConfigError
    from vitp.core.extras import need

    for module in ("fastapi", "uvicorn", "python_multipart"):
        need("serve", module, "vitp serve", ConfigError)
    from vitp.serving.gate import ServerLimits
    from vitp.serving.server import ServerOptions, serve

    limits = ServerLimits(max_upload_mb << 20, max_pixels, queue, batch)
    options = ServerOptions(host, port, root, token, device, limits)
    serve(model, options, _say)


def _say(line: str) -> None:
    # Who reads the log may go away; the server stays.
    with suppress(OSError, ValueError):
        print(line, flush=True)
