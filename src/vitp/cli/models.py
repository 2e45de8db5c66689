"""`vitp export`, `vitp convert`, `vitp swap`, `vitp ask`, `vitp probe`, `vitp doctor`."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vitp.cli.console import make_console
from vitp.core.errors import ConfigError

if TYPE_CHECKING:
    from vitp.models.vision import VisionTower


class View(enum.Enum):
    """How an image is brought to the tower's size."""

    whole = "whole"
    tiles = "tiles"


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("export")(export)
    app.command("convert")(convert)
    app.command("swap")(swap)
    app.command("ask")(ask)
    app.command("probe")(probe)
    app.command("doctor")(doctor)


class Format(enum.Enum):
    """What an exported backbone is to be read by."""

    timm = "timm"
    hf = "hf"
    internvl = "internvl"
    onnx = "onnx"
    torch_export = "torch-export"


class To(enum.Enum):
    """Names and configuration of a converted model."""

    vitp = "vitp"
    original = "original"
    hf = "hf"
    timm = "timm"


class Positions(enum.Enum):
    """How a position table gets the grid of another image size."""

    bicubic = "bicubic"
    antialiased = "antialiased"


_POSITIONS: dict[Positions, Literal["bicubic", "antialiased"]] = {
    Positions.bicubic: "bicubic",
    Positions.antialiased: "antialiased",
}


class Numbers(enum.Enum):
    """Type of the numbers of a converted model."""

    keep = "keep"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export(
    source: Annotated[
        str,
        typer.Argument(help='Run or model folder, weights file, hub id, "starter"; with --verify an export.'),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="New folder for the backbone.")] = None,
    form: Annotated[Format, typer.Option("--format", help="Tool chain that is to read it.")] = Format.timm,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, max=65_536, help="Side of the images in pixels; not for timm, which takes any."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check an export for timm against its own test vectors.")
    ] = False,
    against: Annotated[Path | None, typer.Option(help="With --verify: the run it was made from.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write the ViT for timm, transformers, InternVL's code or another runtime, and compare its features."""
    from vitp.checkpoints.formats import LOADS, export_as
    from vitp.checkpoints.verify import verify_export

    console = make_console()
    if verify:
        console.print(verify_export(Path(source), against=against))
        return
    if out is None:
        raise ConfigError("no place to write to", where="vitp export", fix="name it with --out")
    result, checks = export_as(source, out, form.value, image_size=image_size, overwrite=force)
    console.print(f"wrote {result.folder} (sha256 {result.sha256[:12]}…)")
    console.print(checks)
    console.print(f"load it: {LOADS[form.value].format(out=out)}")


def convert(
    source: Annotated[str, typer.Argument(help="Model folder, weights file, run or hub id, in any layout.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    to: Annotated[
        To, typer.Option("--to", help="original: InternVL's; hf: transformers'; timm: the ViT alone.")
    ] = To.vitp,
    dtype: Annotated[Numbers, typer.Option(help="Type of the numbers.")] = Numbers.keep,
    architecture: Annotated[
        str | None, typer.Option(help="timm's name of a ViT whose file doesn't tell it.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Attention heads of a ViT without a configuration.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=65_536, help="Side of a tile in pixels; positions are resampled.")
    ] = None,
    positions: Annotated[
        Positions | None,
        typer.Option(help="How positions are resampled; none: as the layout's own code does."),
    ] = None,
    template: Annotated[str | None, typer.Option(help="Chat template, when the model names another.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier conversion.")] = False,
) -> None:
    """Write a model or ViT in another layout, and compare weights and outputs before it appears."""
    from vitp.checkpoints.checkpoint import Hints
    from vitp.checkpoints.convert import convert_model

    hints = Hints(
        architecture=architecture,
        heads=heads,
        image_size=image_size,
        positions=None if positions is None else _POSITIONS[positions],
        template=template,
    )
    kind = None if dtype is Numbers.keep else dtype.value
    done = convert_model(source, out, to.value, hints=hints, dtype=kind, overwrite=force)
    console = make_console()
    console.print(done.read)
    console.print(done.checks)
    console.print(f"wrote {done.folder} ({'whole model' if done.whole else 'vision tower alone'})")


def swap(
    model: Annotated[str, typer.Argument(help='Vision-language model: folder, run, hub id or "starter".')],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    vision: Annotated[str | None, typer.Option(help="Another ViT, as `vitp export` takes it.")] = None,
    language: Annotated[
        str | None, typer.Option(help="Another language model: folder or hub id in transformers' layout.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=65_536, help="With --vision: side of a tile in pixels.")
    ] = None,
    shuffle: Annotated[
        int | None, typer.Option(min=1, max=64, help="With --vision: side of the square of patches a token.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="Chat template of the new language model.")] = None,
    keep_projector: Annotated[
        bool, typer.Option("--keep-projector", help="For a ViT that was trained on from the one before.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the new projector.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier model.")] = False,
) -> None:
    """Put another ViT or language model into a vision-language model; align it afterwards."""
    from vitp.checkpoints.export import check_target
    from vitp.checkpoints.loading import load_backbone, load_vlm
    from vitp.checkpoints.swap import swap_language, swap_vision
    from vitp.checkpoints.writing import save_vlm

    if vision is None and language is None:
        raise ConfigError("nothing to swap", where="vitp swap", fix="name --vision or --language")
    check_target(out, force)
    loaded = load_vlm(model)
    if language is not None:
        loaded = swap_language(loaded, language, template=template, seed=seed)
    if vision is not None:
        tower = load_backbone(vision, image_size=image_size)
        loaded = swap_vision(loaded, tower, shuffle=shuffle, keep_projector=keep_projector, seed=seed)
    save_vlm(out, loaded.vlm, loaded.chat)
    made = "kept" if keep_projector and language is None else "new, untrained"
    make_console().print(
        f"wrote {out} (projector {made}): align it with `vitp pretrain`, align.steps above 0"
    )


def ask(
    model: Annotated[str, typer.Argument(help='Run or model folder, or "starter".')],
    arguments: Annotated[list[str], typer.Argument(help="One or more images, then the question.")],
    draw: Annotated[Path | None, typer.Option(help="Picture with the boxes of the answer.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=65_536, help="Longest answer.")] = 128,
    max_tiles: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Tiles an image. By default those of the run, else 6.")
    ] = None,
) -> None:
    """Ask a model about an image; the answer streams."""
    from vitp.checkpoints.loading import load_vlm
    from vitp.core.targets import check_output_file
    from vitp.inference.ask import Assistant, draw_answer
    from vitp.io.images import IMAGE_SUFFIXES, load_image
    from vitp.runs.pretrain import sequence_of

    if len(arguments) < 2:
        raise ConfigError(
            "an image or the question is missing",
            where="vitp ask",
            fix='write: vitp ask RUN IMAGE "question"',
        )
    *images, question = arguments
    if not question.strip():
        raise ConfigError("the question is empty", where="vitp ask", fix="ask something")
    if Path(question).suffix.lower() in IMAGE_SUFFIXES and Path(question).is_file():
        raise ConfigError(
            f"the last word, {question}, is an image, not a question",
            where="vitp ask",
            fix='write: vitp ask RUN IMAGE "question"',
        )
    if draw is not None:
        check_output_file(draw, "PNG", inputs=images)
    loaded = load_vlm(model)
    assistant = Assistant(loaded.vlm, loaded.chat, max_tiles=max_tiles or sequence_of(model).max_tiles)
    answer = assistant.answer(
        list(images), question, max_new_tokens=max_tokens, stream=lambda text: print(text, end="", flush=True)
    )
    print()
    if draw is not None:
        from vitp.core.files import atomic_path

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
        float | None,
        typer.Option(min=0, max=1e9, help="Labelled images a seed: a number, or a share below 1."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Draws of the labelled images.")] = 3,
    view: Annotated[View, typer.Option(help="whole: the image resized; tiles: cut into tiles.")] = View.whole,
    out: Annotated[Path | None, typer.Option("--out", help="JSON with all values.")] = None,
) -> None:
    """Score frozen features: kNN, linear classification, dense linear segmentation, presence.

    With --compare also the differences, and what is left of them when the test images are drawn anew.
    """
    from vitp.core.files import write_json
    from vitp.core.targets import check_output_file
    from vitp.data.formats.vitp_labels import read_compiled
    from vitp.evaluation.features import probe_data
    from vitp.evaluation.outcomes import Outcomes, difference_table, differences_json, over_images
    from vitp.evaluation.probes import probe_outcomes

    if out is not None:
        check_output_file(out, "JSON")
    amount = None if labels is None else (labels if labels < 1 else int(labels))
    labelled = read_compiled(data)
    console, results = make_console(), {}
    outcomes: list[list[Outcomes]] = []
    for name in [backbone, *(compare or [])]:
        features = probe_data(open_backbone(name), labelled, view=view.value)
        table, found = probe_outcomes(features, seeds=tuple(range(seeds)), labels_per_seed=amount)
        console.print(table.to_rich(title=f"{name}: probes of the frozen features on {labelled.name}"))
        results[name] = table.to_json()
        outcomes.append(found)
    for name, found in zip(compare or [], outcomes[1:], strict=True):
        differences = over_images([outcomes[0]], [found])
        console.print(difference_table(differences, f"{backbone} - {name}"))
        results[name]["differences"] = differences_json(differences)
    if out is not None:
        write_json(out, results)
        console.print(f"wrote {out}")


def open_backbone(name: str) -> VisionTower:
    """Return the ViT of an export, run or model folder, the starter's, or one of its shape with random weights."""
    from vitp.checkpoints.loading import load_backbone, random_backbone

    if name == "random":
        return random_backbone(load_backbone("starter"), seed=0)
    return load_backbone(name)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Say what is installed, what is missing for which extra, and which device will be used."""
    from vitp.planning.doctor import report as inspect

    found = inspect()
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        make_console().print(found)
    raise typer.Exit(found.exit_code)
