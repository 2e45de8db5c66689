"""`vitp probe`, `vitp robustness`, `vitp features`: tests and pictures of backbones and models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from vitp.cli.options import (
    LABELLED,
    FormatOption,
    LabelFormat,
    Labels,
    Seed,
    Split,
    TestOverride,
    amount_of,
    format_options,
)
from vitp.cli.output import make_console, print_table, write_result
from vitp.cli.panels import JUDGE
from vitp.core.errors import ConfigError
from vitp.core.words import decimals


class ListCommand(TyperCommand):
    """A command whose list options take several values: `--severities 1 3 5`, `--images pictures/*.png`."""

    lists = frozenset({"--severities", "--corruptions", "--images", "--compare"})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat a list option before each of its values, as the parser wants it."""
        spread: list[str] = []
        option, values = "", 0
        # The last word closes an open list and is taken away again below.
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
    app.command("probe", rich_help_panel=JUDGE)(probe_command)
    app.command("robustness", cls=ListCommand, rich_help_panel=JUDGE)(robustness_command)
    app.command("features", cls=ListCommand, rich_help_panel=JUDGE)(features_command)


_Points = Annotated[
    int,
    typer.Option(
        min=0,
        max=1000,
        help="Also point prompts: the cosine to so many points of a class, cut at one threshold.",
    ),
]


def probe_command(
    backbone: Annotated[str, typer.Argument(help='Export, run or model folder, "starter" or "random".')],
    data: Annotated[Path, typer.Argument(help="Folder made by `vitp data compile`.")],
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", help="Another backbone under the same probes. Repeatable."),
    ] = None,
    labels: Labels = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of random draws of the labelled images.")
    ] = 3,
    view: Annotated[
        Literal["whole", "tiles"], typer.Option(help="whole: images are resized; tiles: cut into tiles.")
    ] = "whole",
    points: _Points = 0,
    missing_bands: Annotated[
        Literal["error", "zero"],
        typer.Option(help="zero: bands that the data lack are 0, for models with band dropout."),
    ] = "error",
    looks: Annotated[
        bool,
        typer.Option("--looks", help="Vision-language models: do answers use the image and the place asked?"),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for all scores.")] = None,
) -> None:
    """Score frozen features: kNN, linear classification, dense linear segmentation, presence of objects.

    With --compare also the differences, with intervals over random draws of the test images.
    """
    from vitp.core.targets import check_output_file

    if out is not None:
        check_output_file(out, "JSON")
    names = [backbone, *(compare or [])]
    if looks:
        results = _looks(names, data)
    else:
        draws = {"seeds": tuple(range(seeds)), "labels_per_seed": amount_of(labels), "points": points}
        results = _probes(names, data, draws, view=view, missing_bands=missing_bands)
    write_result(out, results)


def _probes(
    names: list[str],
    data: Path,
    draws: dict[str, Any],
    *,
    view: Literal["whole", "tiles"],
    missing_bands: Literal["error", "zero"],
) -> dict[str, Any]:
    """Probe each backbone, print a table of each and their differences, and return the numbers."""
    from vitp.data.formats.vitp_labels import read_compiled
    from vitp.evaluation.features import probe_data
    from vitp.evaluation.outcomes import Outcomes, difference_table, differences_json, over_images
    from vitp.evaluation.probes import probe_outcomes
    from vitp.evaluation.robustness_comparison import tower_to_probe

    labelled, console = read_compiled(data), make_console()
    results: dict[str, Any] = {}
    outcomes: list[list[Outcomes]] = []
    for name in names:
        tower = tower_to_probe(name, labelled.channels if missing_bands == "error" else None)
        features = probe_data(tower, labelled, view=view, missing_bands=missing_bands)
        table, found = probe_outcomes(features, **draws)
        console.print(table.to_rich(title=f"{name}: probes of the frozen features on {labelled.name}"))
        results[name] = table.to_json()
        outcomes.append(found)
    for name, found in zip(names[1:], outcomes[1:], strict=True):
        differences = over_images([outcomes[0]], [found])
        console.print(difference_table(differences, f"{names[0]} - {name}"))
        results[name]["differences"] = differences_json(differences)
    return results


def _looks(names: list[str], data: Path) -> dict[str, Any]:
    """Ask each model about places of the test images, print a table, and return the numbers."""
    from vitp.checkpoints.loading import load_vlm
    from vitp.data.formats.vitp_labels import read_compiled
    from vitp.evaluation.looks import ModelReader, measure_looks
    from vitp.evaluation.robustness_comparison import split_named

    labelled, results = split_named(read_compiled(data), "test", str(data)), {}
    for name in names:
        loaded = load_vlm(name)
        found = measure_looks(ModelReader(loaded.vlm, loaded.chat), labelled)
        rows = [
            (
                one.task,
                *(decimals(100 * value, 1) for value in (one.right, one.shuffled, one.blind)),
                *(
                    "–" if value is None else decimals(value, 2)
                    for value in (one.asked, one.elsewhere, one.attention)
                ),
                str(one.questions),
                "yes" if one.looks else "no",
            )
            for one in found
        ]
        columns = ("task", "right %", "other image %", "blind %", "hidden: asked", "elsewhere", "attention ×")
        print_table(
            (*columns, "questions", "looks"), rows, f"{name}: answers about places of {labelled.name}"
        )
        results[name] = [one.to_json() for one in found]
    return results


def robustness_command(
    run: Annotated[
        str,
        typer.Argument(
            help='Run of `vitp finetune`; or a backbone ("starter", "random", an export), which is probed.'
        ),
    ],
    data: Annotated[str, typer.Argument(help=LABELLED)],
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", help="More runs or backbones of the same kind, side by side."),
    ] = None,
    severities: Annotated[
        list[int] | None,
        typer.Option("--severities", min=1, max=5, help="Severities to test, 1 to 5. By default all."),
    ] = None,
    corruptions: Annotated[
        list[str] | None,
        typer.Option(
            "--corruptions",
            help='Names of corruptions, "extras" or "all". By default the twelve of the benchmark.',
        ),
    ] = None,
    split: Split = "test",
    images: Annotated[
        int | None, typer.Option("--max-images", min=1, max=10_000_000, help="Most test images.")
    ] = None,
    seed: Seed = 0,
    labels: Labels = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Probes: number of random draws of the labelled images.")
    ] = 3,
    metric: Annotated[str | None, typer.Option(help="Score to show; the task's main one by default.")] = None,
    fmt: LabelFormat = "auto",
    option: FormatOption = None,
    override: TestOverride = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for JSON, CSV and page.")] = Path("robustness"),
    force: Annotated[bool, typer.Option("--force", help="Replace the results of another test.")] = False,
) -> None:
    """Score models on clean and on corrupted images: table, heat map, page. An interrupted test continues.

    Backbones are always probed on the test images.
    """
    from vitp.core.targets import check_folder
    from vitp.evaluation.robustness_comparison import ROBUSTNESS_FILE, RobustnessComparison
    from vitp.tasks.data import open_labelled

    check_folder(out, lambda f: (f / ROBUSTNESS_FILE).is_file(), what="results of a test", overwrite=True)
    names = list(dict.fromkeys([run, *(compare or [])]))
    labelled = open_labelled(data, fmt, **format_options(option))
    tell = make_console().print
    plan: dict[str, Any] = {"severities": severities, "corruptions": corruptions, "seed": seed}
    test = RobustnessComparison(out, names, metric=metric, force=force, tell=tell, **plan)
    if test.of_tasks:
        shown, kind = test.score_models(labelled, split, images, override or [])
    else:
        amount = amount_of(labels)
        shown, kind = test.score_backbones(labelled, images, seeds=seeds, labels_per_seed=amount)
    _show_robustness(test, shown, kind)


def _show_robustness(test: Any, shown: Any, kind: Any) -> None:
    """Write page and CSV, and print clean, each corruption's mean, average and drop of each model in percent."""
    from vitp.report.robustness_page import example_figures, write_robustness_page, write_robustness_table

    results, folder, metric = test.ordered_results(), test.path.parent, test.metric
    worst, seed = max(test.plan["severities"]), test.plan["seed"]
    examples = example_figures(shown, kind, test.corruptions, worst, seed)
    page = write_robustness_page(results, folder / "robustness.html", metric=metric, examples=examples)
    write_robustness_table(results, folder / "robustness.csv")
    means = [result.by_corruption(metric) for result in results]
    rows = [
        ("clean", [result.value(metric) for result in results]),
        *((name.replace("_", " "), [found[name] for found in means]) for name in results[0].cells),
        ("average", [result.average(metric) for result in results]),
        ("drop", [result.drop(metric) for result in results]),
    ]
    print_table(
        ["", *(result.name for result in results)],
        [
            (name, *("–" if value != value else decimals(100 * value, 1) for value in row))
            for name, row in rows
        ],
        f"{metric or results[0].clean.headline}, % ({results[0].data})",
        left=1,
    )
    make_console().print(f"wrote {test.path}, {folder / 'robustness.csv'}, {page}")


def features_command(
    backbones: Annotated[
        list[str],
        typer.Argument(
            help='"starter", "random", an export, run or model folder, or timm:NAME; LABEL=BACKBONE names one.'
        ),
    ],
    images: Annotated[
        list[str] | None, typer.Option("--images", help="Image files, folders of them, scene: addresses.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("features.html"),
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Folder for PNG files, backbones side by side.")
    ] = None,
    patch: Annotated[
        str, typer.Option("--patch", help="Patch whose attention is shown: ROW,COLUMN, both from 0 to 1.")
    ] = "0.5,0.5",
    shared: Annotated[
        bool,
        typer.Option(
            "--shared-colours", help="Use the same colours for backbones that have the same width and origin."
        ),
    ] = False,
    most: Annotated[int, typer.Option("--max-images", min=1, max=1000, help="Most images to show.")] = 8,
) -> None:
    """Show how backbones see: features as colours, attention of a patch, rollout, reach of the heads."""
    from vitp.core.distributed import resolve_device
    from vitp.core.targets import check_output_file
    from vitp.inference.inputs import load_named_images
    from vitp.models.inflation import is_numbered
    from vitp.report.features_page import write_features_page, write_pictures
    from vitp.tasks.build import BackboneSettings, open_backbone

    if not images:
        raise ConfigError("no image is named", where="vitp features", fix="name some with --images")
    check_output_file(out, "page")
    place = _place(patch)
    opened = {}
    for text in backbones:
        label, equals, source = text.partition("=")
        if not equals or Path(text).exists():
            label = source = text
        tower = open_backbone(BackboneSettings(init=source))
        opened[label] = tower.eval().to(resolve_device("auto"))
    bands = (tower.in_channels for tower in opened.values() if tower.in_channels is not None)
    console = make_console()
    for label in (label for label, tower in opened.items() if is_numbered(tower.in_channels)):
        console.print(f"note: {label} doesn't say which values its channels are trained on; 0–255 are taken")
    shown = load_named_images(images, most, next(bands, None))
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
