"""`vitp eval`, `ask`, `export`, `convert`, `swap`, `push`: models that are trained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from vitp.cli.options import (
    LABELLED,
    FormatOption,
    ImageSize,
    LabelFormat,
    MaxTiles,
    Seed,
    Split,
    TaskRun,
    TestOverride,
    format_options,
)
from vitp.cli.output import make_console, print_lines, print_scores, print_table, write_result
from vitp.cli.panels import JUDGE, USE
from vitp.core.errors import ConfigError

if TYPE_CHECKING:
    from vitp.checkpoints.graphs import GraphKind
    from vitp.deployment.export import GraphOptions


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("ask", rich_help_panel=USE)(ask_command)
    app.command("export", rich_help_panel=USE)(export_command)
    app.command("convert", rich_help_panel=USE)(convert_command)
    app.command("swap", rich_help_panel=USE)(swap_command)
    app.command("push", rich_help_panel=USE)(push_command)
    app.command("eval", rich_help_panel=JUDGE)(eval_command)


def eval_command(
    run: TaskRun,
    data: Annotated[str, typer.Argument(help=LABELLED)],
    split: Split = "test",
    fmt: LabelFormat = "auto",
    option: FormatOption = None,
    override: TestOverride = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for all scores.")] = None,
) -> None:
    """Score a finetuned model on labelled images.

    Each case of medical images is also scored, in mm and ml: RUN/cases-DATA-SPLIT.csv, and .html with a summary.
    """
    from vitp.core.targets import check_output_file
    from vitp.evaluation.robustness_comparison import open_model, split_named
    from vitp.report.cases_page import write_case_files
    from vitp.tasks.build import task_of
    from vitp.tasks.data import label_reader, labelled_only, open_labelled
    from vitp.tasks.label_notes import label_notes, left_out_notes, nodata_notes
    from vitp.tasks.seen import larger_note

    if out is not None:
        check_output_file(out, "JSON")
    model, settings = open_model(run, override or [])
    labelled = split_named(open_labelled(data, fmt, **format_options(option)), split, data)
    task = task_of(model.name)
    kind, findings = task.labels(model.description["head"]), labelled.findings
    labelled = labelled_only(labelled, kind)
    parts = {split: labelled}
    notes = (*left_out_notes(parts, findings), *label_notes(parts, kind, model.classes, learned=None))
    reader = label_reader(model, labelled, kind, settings)
    said = [*notes, *nodata_notes(reader, split), *larger_note(model, settings, labelled)]
    print_lines(said, style="yellow")
    scores = model.evaluate(labelled, settings)
    title = f"{model.name} on {labelled.name}, {split} ({scores.images} images)"
    print_scores(scores, title)
    if scores.cases:
        name = f"cases-{re.sub(r'[^0-9A-Za-z_.-]+', '-', labelled.name).strip('-.') or 'data'}-{split}"
        for file in write_case_files(Path(run), name, scores, title, settings.tolerance):
            print_lines([f"wrote {file}"])
    write_result(out, {"task": model.name, "data": labelled.name, "split": split, **scores.to_json()})


def ask_command(
    model: Annotated[str, typer.Argument(help='Run or model folder, or "starter".')],
    arguments: Annotated[list[str], typer.Argument(help="One or more images, then the question.")],
    draw: Annotated[
        Path | None, typer.Option(help="PNG file to write: the image with the boxes of the answer.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=65_536, help="Most tokens of the answer.")] = 128,
    max_tiles: MaxTiles = None,
) -> None:
    """Ask a model about an image; the answer streams."""
    from vitp.checkpoints.loading import load_vlm
    from vitp.core.files import atomic_path
    from vitp.core.targets import check_output_file
    from vitp.inference.ask import Assistant, draw_answer
    from vitp.io.images import IMAGE_SUFFIXES
    from vitp.runs.pretrain import sequence_of

    where, fix = "vitp ask", 'write: vitp ask RUN IMAGE "question"'
    if len(arguments) < 2:
        raise ConfigError("an image or the question is missing", where=where, fix=fix)
    *images, question = arguments
    if not question.strip():
        raise ConfigError("the question is empty", where=where, fix="ask something")
    if Path(question).suffix.lower() in IMAGE_SUFFIXES and Path(question).is_file():
        raise ConfigError(f"the last word, {question}, is an image, not a question", where=where, fix=fix)
    if draw is not None:
        check_output_file(draw, "PNG", inputs=images)
    loaded = load_vlm(model)
    assistant = Assistant(loaded.vlm, loaded.chat, max_tiles=max_tiles or sequence_of(model).max_tiles)
    answer = assistant.answer(
        list(images), question, max_new_tokens=max_tokens, stream=lambda text: print(text, end="", flush=True)
    )
    print()
    if draw is not None:
        picture = draw_answer(images[0], answer, loaded.vlm.vision.in_channels)
        with atomic_path(draw) as temporary:
            picture.save(temporary, format="PNG")
        print(f"wrote {draw}")


_PANEL = "Finetuned models, as onnx or torch-export"
_GraphSize: TypeAlias = Annotated[
    str | None,
    typer.Option("--size", rich_help_panel=_PANEL, help="Side of the graph's images, or HEIGHTxWIDTH."),
]
_Batch: TypeAlias = Annotated[
    str,
    typer.Option(
        "--batch", rich_help_panel=_PANEL, help="Number of images in a batch, or dynamic: any number."
    ),
]
_Proposals: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--proposals",
        min=1,
        max=10_000,
        rich_help_panel=_PANEL,
        help="Detectors: number of regions that are classified.",
    ),
]
_Int8: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--int8",
        rich_help_panel=_PANEL,
        help="Also write the graph in 8 bits, calibrated on training images.",
    ),
]
_MostLoss: TypeAlias = Annotated[
    float,
    typer.Option(
        "--most-loss",
        min=0,
        max=100,
        rich_help_panel=_PANEL,
        help="Most points of the score that 8 bits may cost.",
    ),
]
_Check: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--check", rich_help_panel=_PANEL, help="Labelled set to compare on. By default the run's own."
    ),
]
_MostImages: TypeAlias = Annotated[
    int,
    typer.Option(
        "--check-images",
        min=1,
        max=1_000_000,
        rich_help_panel=_PANEL,
        help="Most images to compare on.",
    ),
]
_GraphResolution: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--resolution", min=0.01, max=1e7, rich_help_panel=_PANEL, help="Centimetres of a pixel, for QGIS."
    ),
]


def export_command(
    source: Annotated[
        str,
        typer.Argument(help='Run or model folder, weights file, hub id, "starter"; with --verify an export.'),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="New folder for the backbone.")] = None,
    form: Annotated[
        Literal["timm", "hf", "internvl", "onnx", "torch-export"],
        typer.Option("--format", help="Software that is to read the export."),
    ] = "timm",
    image_size: ImageSize = None,
    size: _GraphSize = None,
    batch: _Batch = "1",
    proposals: _Proposals = None,
    int8: _Int8 = False,
    most_loss: _MostLoss = 1.0,
    check: _Check = None,
    most_images: _MostImages = 100,
    resolution: _GraphResolution = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check an export for timm against its own test vectors.")
    ] = False,
    against: Annotated[
        Path | None, typer.Option(help="With --verify: the run that the export was made from.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Export a ViT for other software, or a finetuned model as a graph, and check that it gives the same outputs.

    A ViT for timm takes images of any size; for the others --image-size fixes it. A finetuned model is exported
    whole as onnx or torch-export, with pre- and post-processing (docs/deployment.md); else only its ViT is.
    """
    from vitp.checkpoints.formats import LOADS, export_as
    from vitp.checkpoints.verify import verify_export
    from vitp.deployment.export import GraphOptions
    from vitp.deployment.summary import parsed_batch
    from vitp.tasks.model_folder import is_task_model

    console = make_console()
    if verify:
        console.print(verify_export(Path(source), against=against))
        return
    if out is None:
        raise ConfigError("no place to write to", where="vitp export", fix="name it with --out")
    given = {"proposals": proposals, "int8": int8, "most_loss": most_loss, "check": check}
    given |= {"most_images": most_images, "resolution": resolution}
    options = GraphOptions(size=size, batch=parsed_batch(batch), **given)  # type: ignore[arg-type]
    if is_task_model(source) and (form == "onnx" or form == "torch-export"):
        _export_graph(source, out, form, options, image_size, force)
        return
    _refuse_graph_options(source, options)
    result, checks = export_as(source, out, form, image_size=image_size, overwrite=force)
    console.print(f"wrote {result.folder} (sha256 {result.sha256[:12]}…)")
    console.print(checks)
    console.print(f"load it: {LOADS[form].format(out=out)}")


def _export_graph(
    source: str, out: Path, kind: GraphKind, options: GraphOptions, image_size: int | None, force: bool
) -> None:
    from vitp.deployment.export import export_task
    from vitp.deployment.summary import graph_summary

    chosen = replace(options, kind=kind, size=options.size if options.size is not None else image_size)
    done = export_task(source, out, chosen, overwrite=force, say=lambda note: print_lines([note]))
    make_console().print(graph_summary(done))
    print_lines([f"wrote {done.folder}"])


def _refuse_graph_options(source: str, options: GraphOptions) -> None:
    given = {
        "--size": options.size,
        "--proposals": options.proposals,
        "--check": options.check,
        "--resolution": options.resolution,
        "--int8": options.int8 or None,
    }
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{source} holds no finetuned model",
                where=name,
                fix="leave it out, or name a run of vitp finetune",
            )


def convert_command(
    source: Annotated[str, typer.Argument(help="Model folder, weights file, run or hub id, in any layout.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    to: Annotated[
        Literal["vitp", "original", "hf", "timm"],
        typer.Option("--to", help="original: InternVL's; hf: transformers'; timm: the ViT alone."),
    ] = "vitp",
    dtype: Annotated[
        Literal["keep", "float32", "bfloat16", "float16"], typer.Option(help="Type of the weights.")
    ] = "keep",
    architecture: Annotated[
        str | None, typer.Option(help="Name in timm of a ViT whose file doesn't tell it.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Attention heads of a ViT without a configuration.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=65_536, help="Side of a tile in pixels; positions are resampled.")
    ] = None,
    positions: Annotated[
        Literal["antialiased", "bicubic"] | None,
        typer.Option(help="How positions are resampled. By default as the layout's own code does it."),
    ] = None,
    template: Annotated[str | None, typer.Option(help="Chat template, if not the model's own.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier conversion.")] = False,
) -> None:
    """Write a model or ViT in another layout; weights and outputs are compared before it appears."""
    from vitp.checkpoints.checkpoint import Hints
    from vitp.checkpoints.convert import convert_model

    hints = Hints(
        architecture=architecture,
        heads=heads,
        image_size=image_size,
        positions=positions,
        template=template,
    )
    kind = None if dtype == "keep" else dtype
    done = convert_model(source, out, to, hints=hints, dtype=kind, overwrite=force)
    console = make_console()
    console.print(done.read)
    console.print(done.checks)
    console.print(f"wrote {done.folder} ({'whole model' if done.whole else 'vision tower alone'})")


def swap_command(
    model: Annotated[str, typer.Argument(help='Vision-language model: folder, run, hub id or "starter".')],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    vision: Annotated[
        str | None, typer.Option(help="Another ViT: any source that `vitp export` takes.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Another language model: folder or hub id in transformers' layout.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=65_536, help="With --vision: side of a tile in pixels.")
    ] = None,
    shuffle: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="With --vision: N; each square of N × N patches becomes one token."),
    ] = None,
    template: Annotated[str | None, typer.Option(help="Chat template of the new language model.")] = None,
    keep_projector: Annotated[
        bool,
        typer.Option("--keep-projector", help="Keep the projector, for a ViT that continues the old one."),
    ] = False,
    seed: Seed = 0,
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


def push_command(
    source: Annotated[
        str, typer.Argument(help='Run, model folder, export, or "starter": the model that is passed on.')
    ],
    repository: Annotated[
        str, typer.Argument(help="OWNER/NAME on the Hugging Face hub, or file:PATH for a folder.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent, with the card, and send nothing.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="On the hub: make the repository private.")
    ] = False,
    licence: Annotated[
        str,
        typer.Option(
            "--license", help="Licence of these weights, as in apache-2.0. By default their origin's."
        ),
    ] = "",
    also: Annotated[
        list[str] | None,
        typer.Option("--also", help="Another file of the source to send. Repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another model that is there.")] = False,
) -> None:
    """Send a model to the hub or to a folder: weights, configuration, test vectors and a card.

    Only what is listed is sent (docs/sharing.md). The hub is asked only with --allow-remote hf.
    """
    from vitp.deployment.remotes import push_model

    done = push_model(
        source,
        repository,
        private=private,
        dry_run=dry_run,
        licence=licence,
        also=also or [],
        overwrite=force,
    )
    rows = [(file.name, f"{file.size:,}", done.states[file.name]) for file in done.bundle.files]
    print_table(("File", "Bytes", "There"), rows, f"{source}: {done.bundle.said}", left=1)
    print_lines(f"{'would remove' if dry_run else 'removed'} there: {name}" for name in done.stale)
    if dry_run:
        print_lines(["", *done.bundle.card.splitlines(), ""])
    count, size = len(done.sent), sum(file.size for file in done.sent)
    if not count:
        print_lines([f"{done.title} has all of it already; nothing {'would be' if dry_run else 'was'} sent"])
        return
    verb = "would send" if dry_run else "sent"
    print_lines([f"{verb} {count} of {len(rows)} files ({size:,} bytes) to {done.title}"])
