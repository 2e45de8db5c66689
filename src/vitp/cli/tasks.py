"""`vitp finetune`, `vitp eval`, `vitp predict`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vitp.cli.console import make_console
from vitp.cli.run_options import check_format_options, configuration_of, overrides_of
from vitp.core.errors import ConfigError
from vitp.core.reading import parse_yaml

if TYPE_CHECKING:
    from vitp.metrics.results import Scores
    from vitp.tasks.base import TaskModel, TestSettings


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("finetune")(finetune)
    app.command("eval")(evaluate)
    app.command("predict")(predict)


def finetune(
    task: Annotated[
        str, typer.Argument(help="classification, segmentation, change, detection, instance or oriented.")
    ],
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML of the run; none: the defaults with --data, or the run's with --resume."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Compiled folder, or a folder of labels in any known format.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help='"starter", "random", an export, run or model folder, or timm:NAME.'),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/finetune"),
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, max=100_000_000, help="Optimizer steps.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="key.key=value over the configuration. Repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Finetune a backbone on a task, and score it on the test images."""
    from vitp.core import distributed
    from vitp.core.config import load_config, make_config
    from vitp.runs.finetune import FinetuneConfig, run_finetune
    from vitp.tasks.build import task_of

    task_of(task)
    config = configuration_of(config, data, out, resume=resume, command="vitp finetune")
    options = {"data.root": data, "backbone.init": backbone, "train.steps": steps}
    overrides = [f"task={task}", *overrides_of(options, override)]
    if config is not None:
        settings = load_config(FinetuneConfig, config, overrides)
    else:
        settings = make_config(FinetuneConfig, {}, overrides, where="command line")
    result = run_finetune(settings, out, resume=resume)
    if distributed.rank() > 0:
        return
    console = make_console()
    print_scores(result.scores, f"{task} on the test images ({result.scores.images})")
    console.print(f"model: {result.model}")
    console.print(f"next: vitp predict {out} IMAGES --out PREDICTIONS")


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run of `vitp finetune`, or its model folder.")],
    data: Annotated[str, typer.Argument(help="Compiled folder, or a folder of labels in any known format.")],
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    fmt: Annotated[str, typer.Option("--format", help="Format of the labels.")] = "auto",
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="Option of the format. Repeatable.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="window=512, flip=true, scales=[0.75,1,1.25], … Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON with all values.")] = None,
) -> None:
    """Score a finetuned model on labelled images."""
    from vitp.core.files import write_json
    from vitp.core.targets import check_output_file
    from vitp.tasks.build import task_of
    from vitp.tasks.data import labelled_only, open_labelled
    from vitp.tasks.label_notes import label_notes, left_out_notes

    if out is not None:
        check_output_file(out, "JSON")
    model, settings = open_model(run, override)
    labelled = open_labelled(data, fmt, **format_options(option))
    if split not in ("train", "val", "test", "all"):
        raise ConfigError(f'no split "{split}"', where="--split", fix="choose train, val, test or all")
    if split != "all":
        labelled = labelled.split(split)
    if not len(labelled):
        raise ConfigError(f"has no {split} images", where=data, fix="choose another split with --split")
    task = task_of(model.name)
    kind, findings = task.labels(model.description["head"]), labelled.findings
    labelled = labelled_only(labelled, kind)
    parts = {split: labelled}
    for note in (*left_out_notes(parts, findings), *label_notes(parts, kind, model.classes, learned=None)):
        make_console().print(note, style="yellow", markup=False, highlight=False)
    scores = task.evaluate(model, labelled, settings)
    print_scores(scores, f"{model.name} on {labelled.name}, {split} ({scores.images} images)")
    if out is not None:
        write_json(out, {"task": model.name, "data": labelled.name, "split": split, **scores.to_json()})
        make_console().print(f"wrote {out}")


def predict(
    run: Annotated[Path, typer.Argument(help="Run of `vitp finetune`, or its model folder.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the predictions.")],
    later: Annotated[
        list[Path] | None,
        typer.Option("--later", help="For change: later dates, in the order of the images. Repeatable."),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="window=512, score_threshold=0.5, … Repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace earlier predictions in --out.")] = False,
) -> None:
    """Apply a finetuned model to images; write masks, boxes, GeoJSON and pictures.

    Images that can't be read are named first and left out; the exit code is then 1.
    """
    from vitp.core.targets import check_folder
    from vitp.inference.prediction_files import Unusable, is_predictions, predict_files

    check_folder(out, is_predictions, what="predictions", overwrite=force)
    console = make_console()

    def tell(one: Unusable) -> None:
        console.print(f"can't be used: {one.image}: {one.reason}", markup=False, soft_wrap=True)

    model, settings = open_model(run, override)
    count, unusable = predict_files(model, images, out, settings, later=later, overwrite=force, tell=tell)
    console.print(f"wrote predictions of {count} images to {out}")
    if unusable:
        console.print(f"{len(unusable)} of {count + len(unusable)} images left out")
        raise typer.Exit(1)


def open_model(run: Path, override: Sequence[str] | None) -> tuple[TaskModel, TestSettings]:
    """Return a run's model on the device, and how it is applied, with `key=value` changes."""
    from vitp.core.config import make_config
    from vitp.core.distributed import resolve_device
    from vitp.tasks.base import TestSettings
    from vitp.tasks.model_folder import load_task

    model = load_task(run)
    settings = make_config(
        TestSettings, dict(model.description.get("test", {})), override or [], where="--set"
    )
    return model.to(resolve_device("auto")), settings


def format_options(option: Sequence[str] | None) -> dict[str, Any]:
    """Return `name=value` words as options of a label format; values are read as YAML."""
    import yaml

    found = {}
    for entry in option or []:
        name, equals, text = entry.partition("=")
        if not equals:
            raise ConfigError(f"{entry!r} is no name=value", where="--option", fix="write it like name=value")
        try:
            found[name.strip().replace("-", "_")] = parse_yaml(text)
        except yaml.YAMLError:
            found[name.strip().replace("-", "_")] = text
    check_format_options(found)
    return found


def print_scores(scores: Scores, title: str) -> None:
    """Print the values of each class as a table in percent, and those of all together below it."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    columns = list(dict.fromkeys(name for row in scores.per_class.values() for name in row))
    for name in columns:
        table.add_column(name, justify="right")
    for name, row in scores.per_class.items():
        table.add_row(name, *(_shown(row, column) for column in columns))
    console = make_console()
    console.print(table)
    console.print(", ".join(f"{name} {_shown(scores.values, name)}" for name in scores.values))


def _shown(row: Mapping[str, float], name: str) -> str:
    value = row.get(name)
    if value is None or math.isnan(value):
        return "–"
    if name == "images":
        return f"{value:,.0f}"
    return f"{value:.1f}" if name.endswith("pixels") else f"{100 * value:.1f}"
