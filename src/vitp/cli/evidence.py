"""`vitp robustness`, `vitp features`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from vitp.cli.console import make_console
from vitp.cli.tasks import format_options
from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import parse_json, read_text

if TYPE_CHECKING:
    from PIL import Image

    from vitp.evaluation.robustness_result import RobustnessResult
    from vitp.models.backbone import Backbone
    from vitp.records.labels import LabelledSet
    from vitp.tasks.base import LabelKind

RESULT_FILE = "robustness.json"
PAGE_FILE = "robustness.html"
TABLE_FILE = "robustness.csv"


class ListCommand(TyperCommand):
    """A command whose list options take several values: `--severities 1 3 5`, `--images pictures/*.png`."""

    lists = frozenset({"--severities", "--corruptions", "--images", "--compare"})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat a list option before each of its values, as the parser wants it."""
        spread: list[str] = []
        option, values = "", 0
        for arg in [*args, "-"]:
            if not arg.startswith("-"):
                spread += [option, arg] if option else [arg]
                values += 1
                continue
            if option and not values:
                spread.append(option)  # the parser says that its value is missing
            option, values = (arg, 0) if arg in self.lists else ("", 0)
            if not option:
                spread.append(arg)
        return super().parse_args(ctx, spread[:-1])


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("robustness", cls=ListCommand)(robustness)
    app.command("features", cls=ListCommand)(features)


def robustness(
    run: Annotated[
        str,
        typer.Argument(
            help='Run of `vitp finetune`; or a backbone ("starter", "random", an export), for probes.'
        ),
    ],
    data: Annotated[str, typer.Argument(help="Compiled folder, or a folder of labels in any known format.")],
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", help="More runs or backbones of the same kind, side by side."),
    ] = None,
    severities: Annotated[
        list[int] | None, typer.Option("--severities", min=1, max=5, help="Some of 1 to 5; all by default.")
    ] = None,
    corruptions: Annotated[
        list[str] | None,
        typer.Option("--corruptions", help='Names; the twelve by default; also "extras" or "all".'),
    ] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all (probes: always test).")] = "test",
    images: Annotated[
        int | None, typer.Option("--max-images", min=1, max=10_000_000, help="Test images at most.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the corruptions.")] = 0,
    labels: Annotated[
        float | None,
        typer.Option(min=0, max=1e9, help="Probes: labelled images a seed: a number, or a share below 1."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Probes: draws of the labelled images.")] = 3,
    metric: Annotated[str | None, typer.Option(help="Score to show; the headline by default.")] = None,
    fmt: Annotated[str, typer.Option("--format", help="Format of the labels.")] = "auto",
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="Option of the format. Repeatable.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="How a model is applied: window=512, … Repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for JSON, CSV and page.")] = Path("robustness"),
    force: Annotated[bool, typer.Option("--force", help="Replace the results of another test.")] = False,
) -> None:
    """Score models on clean and on corrupted images: table, heat map, page. An interrupted test goes on."""
    from vitp.core.targets import check_folder
    from vitp.evaluation.corruptions.catalogue import SEVERITIES
    from vitp.tasks.data import open_labelled

    check_folder(
        out, lambda folder: (folder / RESULT_FILE).is_file(), what="results of a test", overwrite=True
    )
    names = list(dict.fromkeys([run, *(compare or [])]))
    labelled = open_labelled(data, fmt, **format_options(option))
    plan = {
        "severities": tuple(severities or SEVERITIES),
        "corruptions": tuple(corruptions) if corruptions else None,
        "seed": seed,
    }
    report = _Report(out, names, metric, force=force)
    kinds = {name: _is_task(name) for name in names}
    if len(set(kinds.values())) > 1:
        raise ConfigError(
            "finetuned models and bare backbones can't be compared",
            where="vitp robustness",
            fix="name runs of one kind",
        )
    if kinds[run]:
        shown, kind = _tasks(names, labelled, split, images, override, plan, report)
    else:
        amount = None if labels is None else (labels if labels < 1 else int(labels))
        probe_plan = {**plan, "seeds": tuple(range(seeds)), "labels_per_seed": amount}
        shown, kind = _probes(names, labelled, images, probe_plan, report)
    _finish(report, shown, kind, plan)


def _is_task(name: str) -> bool:
    """Return whether a name means a finetuned model rather than a backbone."""
    from vitp.checkpoints.description import CONFIG
    from vitp.tasks.base import TASK_FORMAT

    for folder in (Path(name) / "model", Path(name)):
        try:
            description = parse_json(read_text(folder / CONFIG))
        except (OSError, ValueError):
            continue
        return isinstance(description, dict) and description.get("format") == TASK_FORMAT
    return False


class _Report:
    """Writes results as they come, hands out earlier ones, and says how long the rest will take."""

    def __init__(self, out: Path, names: Sequence[str], metric: str | None, *, force: bool) -> None:
        self.path, self.metric, self.console = out / RESULT_FILE, metric, make_console()
        self.names = list(names)
        self.results: dict[str, RobustnessResult] = {}
        self.earlier = {} if force else self._read()
        self._started, self._cells = time.monotonic(), 0

    def _read(self) -> dict[str, RobustnessResult]:
        from vitp.evaluation.robustness_result import RobustnessResult

        if not self.path.is_file():
            return {}
        try:
            found = parse_json(read_text(self.path))
            results = [RobustnessResult.from_json(value) for value in found["runs"]]
        except (ValueError, KeyError, TypeError, DataError) as error:
            raise DataError(
                f"can't be read ({error})", where=str(self.path), fix="choose another --out, or --force"
            ) from error
        return {result.name: result for result in results}

    def begin(self, cells: int) -> None:
        """Start the clock of a model that is scored on so many corrupted sets."""
        self._started, self._cells = time.monotonic(), cells

    def on_cell(self, result: RobustnessResult) -> None:
        """Keep the result so far; the file is whole after every cell."""
        from vitp.core.files import write_json

        earlier = self.earlier.get(result.name)
        if not result.cells and earlier is not None and dict(earlier.facts) != dict(result.facts):
            raise ConfigError(
                f"holds another test of {result.name}",
                where=str(self.path),
                fix="choose another --out, or --force",
            )
        if self.metric is not None and self.metric not in result.clean.values:
            raise ConfigError(
                f'no score "{self.metric}"',
                where="--metric",
                fix=f"there are {', '.join(result.clean.values)}",
            )
        self.results[result.name] = result
        kept = (
            {**self.earlier, **self.results}
            if not self.results.keys() >= self.earlier.keys()
            else self.results
        )
        write_json(self.path, {"runs": [each.to_json() for each in kept.values()]})
        self._say(result)

    def _say(self, result: RobustnessResult) -> None:
        done = sum(len(row) for row in result.cells.values())
        score = self.metric or result.clean.headline
        if not done:
            self.console.print(f"{result.name}: clean {score} {100 * result.value(score):.1f}")
            return
        name = list(result.cells)[-1]
        severity = max(result.cells[name])
        seconds = time.monotonic() - self._started
        left = seconds / done * (self._cells - done)
        self.console.print(
            f"{result.name}: {name} {severity}: {100 * result.cell(name, severity, score):.1f}"
            f"  ({done} of {self._cells}, about {_minutes(left)} left)"
        )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _tasks(
    names: Sequence[str],
    labelled: LabelledSet,
    split: str,
    images: int | None,
    override: Sequence[str] | None,
    plan: dict[str, Any],
    report: _Report,
) -> tuple[LabelledSet, LabelKind]:
    from vitp.cli.tasks import open_model
    from vitp.evaluation.robustness import robustness_of_task
    from vitp.tasks.build import task_of

    if split not in ("train", "val", "test", "all"):
        raise ConfigError(f'no split "{split}"', where="--split", fix="choose train, val, test or all")
    part = labelled if split == "all" else labelled.split(split)
    if not len(part):
        raise ConfigError(
            f"has no {split} images", where=labelled.name, fix="choose another split with --split"
        )
    kind: LabelKind | None = None
    for name in names:
        model, settings = open_model(Path(name), override)
        own = task_of(model.name).labels(model.description["head"])
        if kind not in (None, own):
            raise ConfigError(
                f"learned another task than {names[0]}", where=name, fix="compare models of one task"
            )
        kind = own
        report.begin(_cell_count(plan))
        robustness_of_task(
            model,
            part,
            settings,
            name=name,
            max_images=images,
            known=report.earlier.get(name),
            on_cell=report.on_cell,
            **plan,
        )
    assert kind is not None
    return part, kind


def _probes(
    names: Sequence[str],
    labelled: LabelledSet,
    images: int | None,
    plan: dict[str, Any],
    report: _Report,
) -> tuple[LabelledSet, LabelKind]:
    from vitp.cli.models import open_backbone
    from vitp.core.distributed import resolve_device
    from vitp.data.splits import splits_of
    from vitp.evaluation.robustness import robustness_of_backbone

    splits = splits_of(labelled)
    for name in names:
        report.begin(_cell_count(plan))
        robustness_of_backbone(
            open_backbone(name).to(resolve_device("auto")),
            splits,
            name=name,
            max_images=images or 2000,
            known=report.earlier.get(name),
            on_cell=report.on_cell,
            **plan,
        )
    return splits["test"], "objects" if labelled.object_classes else "semantic"


def _cell_count(plan: dict[str, Any]) -> int:
    from vitp.evaluation.corruptions.catalogue import corruptions_of

    return len(corruptions_of(plan["corruptions"])) * len(set(plan["severities"]))


def _finish(report: _Report, shown: LabelledSet, kind: LabelKind, plan: dict[str, Any]) -> None:
    from vitp.evaluation.corruptions.catalogue import corruptions_of
    from vitp.report.robustness_page import (
        example_figures,
        write_robustness_page,
        write_robustness_table,
    )

    results = [report.results[name] for name in report.names]
    examples = example_figures(
        shown, kind, corruptions_of(plan["corruptions"]), max(plan["severities"]), plan["seed"]
    )
    folder, metric = report.path.parent, report.metric
    page = write_robustness_page(results, folder / PAGE_FILE, metric=metric, examples=examples)
    write_robustness_table(results, folder / TABLE_FILE)
    print_robustness(results, metric, report.console)
    report.console.print(f"wrote {report.path}, {folder / TABLE_FILE}, {page}")


def print_robustness(results: Sequence[RobustnessResult], metric: str | None, console: Console) -> None:
    """Print clean, each corruption's mean, average and drop of each model in percent."""
    first = results[0]
    table = Table(title=f"{metric or first.clean.headline}, % ({first.data})", title_justify="left")
    table.add_column("")
    for result in results:
        table.add_column(result.name, justify="right")
    means = [result.by_corruption(metric) for result in results]
    rows = [
        ("clean", [result.value(metric) for result in results]),
        *((name.replace("_", " "), [found[name] for found in means]) for name in first.cells),
        ("average", [result.average(metric) for result in results]),
        ("drop", [result.drop(metric) for result in results]),
    ]
    for name, values in rows:
        table.add_row(name, *("–" if value != value else f"{100 * value:.1f}" for value in values))
    console.print(table)


def features(
    backbones: Annotated[
        list[str],
        typer.Argument(
            help='"starter", "random", an export, run or model folder, timm:NAME; LABEL=BACKBONE names one.'
        ),
    ],
    images: Annotated[
        list[str] | None, typer.Option("--images", help="Image files, folders of them, scene: addresses.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("features.html"),
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Folder for PNG files, backbones side by side.")
    ] = None,
    patch: Annotated[
        str, typer.Option("--patch", help="Query of the attention: row,column as shares of the image.")
    ] = "0.5,0.5",
    shared: Annotated[
        bool, typer.Option("--shared-colours", help="One colour basis for backbones of one width and origin.")
    ] = False,
    most: Annotated[int, typer.Option("--max-images", min=1, max=1000, help="Images at most.")] = 8,
) -> None:
    """Show what backbones see: features as colours, attention of a patch, rollout, reach of the heads."""
    from vitp.core.targets import check_output_file
    from vitp.report.features_page import write_features_page, write_pictures

    if not images:
        raise ConfigError("no image is named", where="vitp features", fix="name some with --images")
    check_output_file(out, "page")
    place = _place(patch)
    shown = _images(images, most)
    opened = {label: _backbone(source) for label, source in map(_labelled, backbones)}
    console = make_console()
    page = write_features_page(opened, shown, out, place=place, shared=shared)
    console.print(f"wrote {page}")
    if pictures is not None:
        files = write_pictures(opened, shown, pictures, place=place, shared=shared)
        console.print(f"wrote {len(files)} pictures to {pictures}")


def _place(text: str) -> tuple[float, float]:
    try:
        row, column = (float(part) for part in text.split(","))
    except ValueError:
        row = column = -1.0
    if not (0 <= row < 1 and 0 <= column < 1):
        raise ConfigError(f'"{text}" is no place', where="--patch", fix="write row,column like 0.5,0.25")
    return row, column


def _labelled(text: str) -> tuple[str, str]:
    """Return label and source of `LABEL=BACKBONE`, or the source twice."""
    label, equals, source = text.partition("=")
    if not equals or Path(text).exists():
        return text, text
    return label, source


def _backbone(source: str) -> Backbone:
    from vitp.core.distributed import resolve_device
    from vitp.tasks.build import BackboneSettings, open_backbone

    return open_backbone(BackboneSettings(init=source)).eval().to(resolve_device("auto"))


def _images(sources: Sequence[str], most: int) -> dict[str, Image.Image]:
    from vitp.inference.outputs import unique_names
    from vitp.inference.prediction_files import image_files
    from vitp.io.images import is_scene, load_image

    addresses: list[str] = []
    for source in sources:
        addresses += [source] if is_scene(source) else [str(path) for path in image_files([Path(source)])]
    addresses = addresses[:most]
    names = unique_names(
        [address.replace("/", "-") if is_scene(address) else address for address in addresses]
    )
    return {name: load_image(address) for name, address in zip(names, addresses, strict=True)}
