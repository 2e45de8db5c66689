"""`vitp data …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vitp.cli.console import make_console
from vitp.errors import ConfigError, did_you_mean

app = typer.Typer(no_args_is_help=True)


@app.command("compile")
def compile_command(
    source: Annotated[
        str, typer.Argument(help="Folder or file with images and labels; a domain for scenes.")
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder for records, mixture and labels.")],
    fmt: Annotated[
        str,
        typer.Option(
            "--format", help="coco, voc, yolo, dota, masks, folders, pairs, captions, scenes, vitp or auto."
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of splits and questions.")] = 0,
    crop: Annotated[int | None, typer.Option(help="Cut images into crops of this many pixels.")] = None,
    overlap: Annotated[int, typer.Option(help="Pixels that neighbouring crops share.")] = 0,
    questions: Annotated[int, typer.Option(help="Questions an image.")] = 6,
    grid: Annotated[int, typer.Option(help="Cells on a side of grid questions.")] = 6,
    grid_always: Annotated[bool, typer.Option("--grid-always", help="Ask each image for its grid.")] = False,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Weight of a task, as in presence=2 or caption=0. Repeatable."),
    ] = None,
    max_tiles: Annotated[int | None, typer.Option(help="Tiles an image, written into the mixture.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", help="Option of the format: classes=…, val=0.1, instances=true. Repeatable."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier compilation.")] = False,
) -> None:
    """Turn labels into visual instructions."""
    from vitp.data.compile import compile_labels
    from vitp.data.synthesis import TASKS, SynthesisConfig

    weights = {name: _number(name, value) for name, value in _pairs(tasks, "--task").items()}
    for name in weights:
        if name not in TASKS:
            raise ConfigError(
                f"unknown task {name!r}",
                where="--task",
                fix=did_you_mean(name, TASKS) or f"tasks are {', '.join(TASKS)}",
            )
    summary = compile_labels(
        source,
        fmt,
        out,
        seed=seed,
        crop=crop,
        overlap=overlap,
        synthesis=SynthesisConfig(
            questions_per_image=questions, grid=grid, grid_always=grid_always, tasks=weights
        ),
        max_tiles=max_tiles,
        force=force,
        **{name: _plain(value) for name, value in _pairs(option, "--option").items()},
    )
    _print_summary(summary)


def _pairs(values: list[str] | None, flag: str) -> dict[str, str]:
    pairs = {}
    for value in values or []:
        name, equals, text = value.partition("=")
        if not equals:
            raise ConfigError(f"{value!r} is no name=value", where=flag, fix="write it like name=value")
        pairs[name.strip().replace("-", "_")] = text
    return pairs


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"{name}={text!r} is no number", where="--task", fix="give a weight such as 2 or 0"
        ) from None


def _plain(text: str) -> Any:
    """Read an option as YAML reads a value: numbers, true and false, lists, else text."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _print_summary(summary: Any) -> None:
    console = make_console()
    table = Table(title=f"{summary.name} → {_shown(summary.out)}", title_justify="left")
    table.add_column("split")
    for name in ("images", "records", "questions", "objects"):
        table.add_column(name, justify="right")
    for name, counts in summary.splits.items():
        if counts.images:
            table.add_row(
                name,
                *(
                    f"{n:,}"
                    for n in (counts.images, counts.records, counts.turns, sum(counts.objects.values()))
                ),
            )
    console.print(table)
    tasks: dict[str, int] = {}
    for counts in summary.splits.values():
        for task, number in counts.tasks.items():
            tasks[task] = tasks.get(task, 0) + number
    listed = ", ".join(f"{task} {n:,}" for task, n in sorted(tasks.items(), key=lambda kv: -kv[1]))
    console.print(f"questions by task: {listed}", highlight=False)
    if summary.findings:
        console.print(
            f"[yellow]{len(summary.findings)} labels were left out or mended[/] (all in summary.json):"
        )
        for finding in summary.findings[:5]:
            console.print(f"  {finding}", markup=False, highlight=False)
    console.print(f"next: vitp data check {_shown(summary.out)}", highlight=False)


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@app.command("check")
def check_command(
    source: Annotated[Path, typer.Argument(help="JSON Lines, mixture file or compiled folder.")],
    against: Annotated[
        Path | None, typer.Option(help="Held-out data that must not share images with it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help='Counts tokens with this model\'s tokenizer, as "starter".')
    ] = None,
    max_length: Annotated[int, typer.Option(help="Tokens a row may have.")] = 4096,
    max_tiles: Annotated[int, typer.Option(help="Tiles an image where the mixture says nothing.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Find what would go wrong in training. Exit code 1 when a row is unusable."""
    from vitp.data.check import check_records

    length_of = None
    if model is not None:
        from vitp.data.lengths import RecordLength
        from vitp.pretrained import load_vlm

        loaded = load_vlm(model)
        length_of = RecordLength(loaded.chat, loaded.vlm.vision.image_size[0], max_tiles).tokens
    report = check_records(
        source, against=against, max_tokens=max_length if length_of else None, length_of=length_of
    )
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        console = make_console()
        console.print(report.render(width=console.width))
    raise typer.Exit(report.exit_code)


@app.command("show")
def show_command(
    source: Annotated[Path, typer.Argument(help="JSON Lines, mixture file or compiled folder.")],
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("data.html"),
    count: Annotated[int, typer.Option(help="Records on the page.")] = 24,
    seed: Annotated[int, typer.Option(help="Chooses the records.")] = 0,
    model: Annotated[str, typer.Option(help="Whose tokenizer and tiles are counted.")] = "starter",
    max_tiles: Annotated[int, typer.Option(help="Tiles an image where the mixture says nothing.")] = 6,
) -> None:
    """Write a page with images, drawn labels, questions and answers, and histograms."""
    from vitp.data.lengths import RecordLength
    from vitp.data.show import show_records
    from vitp.data.tiling import count_tiles
    from vitp.pretrained import load_vlm

    loaded = load_vlm(model)
    tile = loaded.vlm.vision.image_size[0]
    show_records(
        source,
        out,
        count=count,
        seed=seed,
        tokenizer_length=RecordLength(loaded.chat, tile, max_tiles).tokens,
        tile_count=lambda width, height: count_tiles(width, height, tile, max_tiles),
    )
    print(f"wrote {out}")


@app.command("scenes")
def scenes_command(
    domain: Annotated[str, typer.Argument(help="general or port.")],
    out: Annotated[Path, typer.Option("--out", help="New folder.")],
    layout: Annotated[str, typer.Option(help="masks, coco, yolo, dota, voc, folders or pairs.")] = "masks",
    count: Annotated[int, typer.Option(min=1, help="Scenes.")] = 200,
    size: Annotated[int, typer.Option(min=32, help="Side in pixels.")] = 96,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
) -> None:
    """Write generated scenes with exact labels in a usual layout."""
    from vitp.data.scenes import scene_set, write_scenes

    shares = {"train": 0.7, "val": 0.1, "test": 0.2}
    counts = {split: round(share * count) for split, share in shares.items()}
    sets = [
        scene_set(domain, seed=seed, count=number, size=size, split=split, pairs=layout == "pairs")
        for split, number in counts.items()
        if number
    ]
    write_scenes(sets, out, layout=layout)
    print(
        f"wrote {sum(counts.values())} scenes to {out}: " + ", ".join(f"{n} {s}" for s, n in counts.items())
    )
