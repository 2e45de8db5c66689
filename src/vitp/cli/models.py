"""`vitp export`, `vitp ask`, `vitp probe`, `vitp doctor`."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitp.cli.console import make_console
from vitp.errors import ConfigError

if TYPE_CHECKING:
    from vitp.models.vision import VisionTower


class View(enum.Enum):
    """How an image is brought to the tower's size."""

    whole = "whole"
    tiles = "tiles"


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("export")(export)
    app.command("ask")(ask)
    app.command("probe")(probe)
    app.command("doctor")(doctor)


def export(
    source: Annotated[str, typer.Argument(help='Run or model folder, "starter"; with --verify an export.')],
    out: Annotated[Path | None, typer.Option("--out", help="New folder for the backbone.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check an export against its own test vectors.")
    ] = False,
    against: Annotated[Path | None, typer.Option(help="With --verify: the run it was made from.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write the ViT with its card, in a form that timm and vitp load."""
    from vitp.export import export_backbone, verify_export

    console = make_console()
    if verify:
        console.print(verify_export(Path(source), against=against))
        return
    if out is None:
        raise ConfigError("no place to write to", where="vitp export", fix="name it with --out")
    result = export_backbone(source, out, overwrite=force)
    console.print(f"wrote {result.folder} (sha256 {result.sha256[:12]}…)")
    console.print(verify_export(out))
    console.print(
        f'load it: timm.create_model("local-dir:{out}", pretrained=True) or vitp.load_backbone("{out}")'
    )


def ask(
    model: Annotated[str, typer.Argument(help='Run or model folder, or "starter".')],
    arguments: Annotated[list[str], typer.Argument(help="One or more images, then the question.")],
    draw: Annotated[Path | None, typer.Option(help="Picture with the boxes of the answer.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 128,
    max_tiles: Annotated[int, typer.Option(help="Tiles an image.")] = 6,
) -> None:
    """Ask a model about an image; the answer streams."""
    from vitp.ask import Assistant, draw_answer
    from vitp.data.images import load_image
    from vitp.pretrained import load_vlm

    if len(arguments) < 2:
        raise ConfigError(
            "an image or the question is missing",
            where="vitp ask",
            fix='write: vitp ask RUN IMAGE "question"',
        )
    *images, question = arguments
    loaded = load_vlm(model)
    assistant = Assistant(loaded.vlm, loaded.chat, max_tiles=max_tiles)
    answer = assistant.answer(
        list(images), question, max_new_tokens=max_tokens, stream=lambda text: print(text, end="", flush=True)
    )
    print()
    if draw is not None:
        from vitp.files import atomic_path

        picture = draw_answer(load_image(images[0]), answer)
        with atomic_path(draw) as temporary:
            picture.save(temporary, format="PNG")
        print(f"wrote {draw}")


def probe(
    backbone: Annotated[str, typer.Argument(help='Export, run or model folder, "starter" or "random".')],
    data: Annotated[Path, typer.Argument(help="Folder made by `vitp data compile`.")],
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", help="Another backbone under the same probes. Repeatable."),
    ] = None,
    labels: Annotated[
        float | None, typer.Option(help="Labelled images a seed: a number, or a share below 1.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the labelled images.")] = 3,
    view: Annotated[View, typer.Option(help="whole: the image resized; tiles: cut into tiles.")] = View.whole,
    out: Annotated[Path | None, typer.Option("--out", help="JSON with all values.")] = None,
) -> None:
    """Score frozen features: kNN, linear classification, dense linear segmentation, presence."""
    from vitp.data.formats.vitp_labels import read as read_labels
    from vitp.evaluation.probes import run_probes
    from vitp.files import write_json

    amount = None if labels is None else (labels if labels < 1 else int(labels))
    labelled = read_labels(data)
    console, results = make_console(), {}
    for name in [backbone, *(compare or [])]:
        table = run_probes(
            open_backbone(name), labelled, seeds=tuple(range(seeds)), labels_per_seed=amount, view=view.value
        )
        console.print(table.to_rich(title=f"{name}: probes of the frozen features on {labelled.name}"))
        results[name] = table.to_json()
    if out is not None:
        write_json(out, results)
        console.print(f"wrote {out}")


def open_backbone(name: str) -> VisionTower:
    """Return the ViT of an export, run or model folder, the starter's, or one of its shape with random weights."""
    from vitp.export import load_backbone, random_backbone

    if name == "random":
        return random_backbone(load_backbone("starter"), seed=0)
    return load_backbone(name)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Say what is installed, what is missing for which extra, and which device will be used."""
    from vitp.doctor import report as inspect

    found = inspect()
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        make_console().print(found)
    raise typer.Exit(found.exit_code)
