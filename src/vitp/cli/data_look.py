"""`vitp data check` and `vitp data show`: looking at instruction data before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitp.cli.console import make_console

if TYPE_CHECKING:
    from vitp.data.lengths import RecordLength


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("check")(check_command)
    app.command("show")(show_command)


def check_command(
    source: Annotated[Path, typer.Argument(help="JSON Lines, mixture file or compiled folder.")],
    against: Annotated[
        Path | None, typer.Option(help="Held-out data that must not share images with it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help='Counts tokens with this model\'s tokenizer, as "starter".')
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=16, max=4_194_304, help="Tokens a row may have. By default those of the run, else 4096."
        ),
    ] = None,
    max_tiles: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Tiles an image where the mixture says nothing. By default those of the run, else 6.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Find what would go wrong in training. Exit code 1 when a row is unusable."""
    from vitp.data.check import check_records

    if model is None:
        report = check_records(source, against=against)
    else:
        length, longest = _length_of(model, max_tiles, max_length)
        report = check_records(
            source,
            against=against,
            max_tokens=longest,
            length_of=length.tokens,
            control=length.chat.plain.names,
        )
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        console = make_console()
        console.print(report.render(width=console.width))
    raise typer.Exit(report.exit_code)


def _length_of(model: str, max_tiles: int | None, max_length: int | None) -> tuple[RecordLength, int]:
    """Return what counts tokens and tiles as training with a model does, and the tokens that a row may have.

    What isn't given is taken from the run, where the model is the folder of one.
    """
    from vitp.checkpoints.loading import load_vlm
    from vitp.data.lengths import RecordLength
    from vitp.runs.pretrain import sequence_of

    loaded, sequence = load_vlm(model), sequence_of(model)
    tile = loaded.vlm.vision.image_size[0]
    length = RecordLength(loaded.chat, tile, max_tiles or sequence.max_tiles, sequence.max_turns)
    return length, max_length or sequence.max_length


def show_command(
    source: Annotated[Path, typer.Argument(help="JSON Lines, mixture file or compiled folder.")],
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("data.html"),
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Records on the page.")] = 24,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Chooses the records.")] = 0,
    model: Annotated[str, typer.Option(help="Whose tokenizer and tiles are counted.")] = "starter",
    max_tiles: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Tiles an image where the mixture says nothing. By default those of the run, else 6.",
        ),
    ] = None,
) -> None:
    """Write a page with images, drawn labels, questions and answers, and histograms."""
    from vitp.report.records_page import show_records

    length, _ = _length_of(model, max_tiles, None)
    measured = f"as {Path(model).name} reads them, before any are dropped"
    show_records(source, out, count=count, seed=seed, measure=length.both, measured=measured)
    print(f"wrote {out}")
