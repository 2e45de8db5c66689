"""`vitp data …`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vitp.cli.console import make_console
from vitp.cli.run_options import check_format_options
from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.reading import parse_yaml

if TYPE_CHECKING:
    from vitp.data.benchmarks.prepare import PrepareSettings
    from vitp.data.leaks import LeakReport

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
            "--format",
            help="coco, voc, yolo, dota, masks, folders, pairs, captions, classes, scenes, vitp or auto.",
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of splits and questions.")] = 0,
    crop: Annotated[
        int | None, typer.Option(min=8, max=65_536, help="Cut images into crops of this many pixels.")
    ] = None,
    overlap: Annotated[
        int, typer.Option(min=0, max=65_535, help="Pixels that neighbouring crops share.")
    ] = 0,
    empty: Annotated[
        float,
        typer.Option(min=0, max=1, help="Training images without objects at most, as a share (0 to 1)."),
    ] = 1.0,
    questions: Annotated[int, typer.Option(min=1, max=10_000, help="Questions an image.")] = 6,
    grid: Annotated[int, typer.Option(min=1, max=100, help="Cells on a side of grid questions.")] = 6,
    grid_always: Annotated[bool, typer.Option("--grid-always", help="Ask each image for its grid.")] = False,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Weight of a task, as in presence=2 or caption=0. Repeatable."),
    ] = None,
    max_tiles: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Tiles an image, written into the mixture.")
    ] = None,
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
    from vitp.data.synthesis.build import QUESTION_TASKS, SynthesisConfig

    weights = {name: _number(name, value) for name, value in _pairs(tasks, "--task").items()}
    options = {name: _plain(value) for name, value in _pairs(option, "--option").items()}
    check_format_options(options)
    for name in weights:
        if name not in QUESTION_TASKS:
            raise ConfigError(
                f"unknown task {name!r}",
                where="--task",
                fix=did_you_mean(name, QUESTION_TASKS) or f"tasks are {', '.join(QUESTION_TASKS)}",
            )
    summary = compile_labels(
        source,
        fmt,
        out,
        seed=seed,
        crop=crop,
        overlap=overlap,
        empty=empty,
        synthesis=SynthesisConfig(
            questions_per_image=questions, grid=grid, grid_always=grid_always, tasks=weights
        ),
        max_tiles=max_tiles,
        force=force,
        **options,
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
        return parse_yaml(text)
    except yaml.YAMLError:
        return text


def _print_summary(summary: Any) -> None:
    console = make_console()
    console.print(f"understood as {summary.fmt}:", markup=False, highlight=False)
    for line in summary.understood:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
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
    for name, task in summary.constant.items():
        line = f'not asked: {name}, as {task.alike} of {task.of} images answer "{task.answer}"'
        console.print(f"{line} (--task {name}=1 asks all the same)", markup=False, highlight=False)
    if summary.unasked:
        console.print(f"{summary.unasked:,} images have nothing to ask", highlight=False)
    if summary.findings:
        console.print(
            f"[yellow]{len(summary.findings):,} finding{'s' * (len(summary.findings) > 1)}[/]: what was left out, ignored or mended "
            "(all in summary.json)"
        )
        for finding in summary.findings[:5]:
            console.print(f"  {finding}", markup=False, highlight=False)
    console.print(f"next: vitp data check {_shown(summary.out)}", highlight=False)


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@app.command("scenes")
def scenes_command(
    domain: Annotated[str, typer.Argument(help="general or port.")],
    out: Annotated[Path, typer.Option("--out", help="New folder.")],
    layout: Annotated[str, typer.Option(help="masks, coco, yolo, dota, voc, folders or pairs.")] = "masks",
    count: Annotated[int, typer.Option(min=1, max=100_000_000, help="Scenes.")] = 200,
    size: Annotated[int, typer.Option(min=32, max=8192, help="Side in pixels.")] = 96,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the scenes.")] = 0,
) -> None:
    """Write generated scenes with exact labels in a usual layout."""
    from vitp.scenes import scene_set, write_scenes

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


@app.command("sets")
def sets_command() -> None:
    """List the published sets that `vitp data prepare` knows."""
    from vitp.data.benchmarks.catalogue import BENCHMARKS
    from vitp.data.corpora.catalogue import CORPORA

    console = make_console()
    table = Table(title="benchmarks", title_justify="left")
    for column in ("name", "set", "task", "classes", "metric", "published by"):
        table.add_column(column)
    for facts in BENCHMARKS.values():
        table.add_row(
            facts.name, facts.title, facts.task, str(len(facts.classes)), facts.metric, facts.published_by
        )
    console.print(table)
    table = Table(title="pretraining sets", title_justify="left")
    for column in ("name", "set", "domain", "published by"):
        table.add_column(column)
    for corpus in CORPORA.values():
        table.add_row(corpus.name, corpus.title, corpus.domain, corpus.published_by)
    console.print(table)


@app.command("prepare")
def prepare_command(
    name: Annotated[str, typer.Argument(help="Published set; see `vitp data sets`.")],
    root: Annotated[Path, typer.Option("--root", help="Folder of the download, unpacked.")],
    out: Annotated[Path | None, typer.Option("--out", help="New folder; not needed with --check.")] = None,
    protocol: Annotated[
        str, typer.Option(help="official: the published splits; paper: what the paper trains and tests on.")
    ] = "official",
    crop: Annotated[
        int | None,
        typer.Option(min=0, max=65_536, help="Side of the crops; 0: none. By default the set's own."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Pixels that neighbouring crops share.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="Option of the set, as modality=MRI. Repeatable."),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Go on without files that are missing.")] = False,
    check_only: Annotated[bool, typer.Option("--check", help="Only look whether all is there.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what was prepared before.")] = False,
) -> None:
    """Check the download of a published set; make its crops, slices or instruction records. Continues when interrupted."""
    from vitp.data.benchmarks.catalogue import BENCHMARKS
    from vitp.data.corpora.catalogue import CORPORA

    options = {key: _plain(value) for key, value in _pairs(option, "--option").items()}
    if name not in BENCHMARKS and name not in CORPORA:
        known = [*BENCHMARKS, *CORPORA]
        raise ConfigError(
            f'no set "{name}"',
            where="vitp data prepare",
            fix=did_you_mean(name, known) or "see `vitp data sets`",
        )
    if out is None and not check_only:
        raise ConfigError(
            "nowhere to write", where="vitp data prepare", fix="name a folder with --out, or --check"
        )
    if name in CORPORA:
        if out is None or check_only or options or crop or overlap or protocol != "official" or partial:
            raise ConfigError(
                "is a pretraining set",
                where=name,
                fix="of the options only --root, --out and --force go with it",
            )
        _convert(name, root, out, force)
        return
    from vitp.data.benchmarks.prepare import PrepareSettings

    settings = PrepareSettings(protocol, crop, overlap, partial, options)
    _prepare(name, root, None if check_only else out, settings, force)


def _prepare(name: str, root: Path, out: Path | None, settings: PrepareSettings, force: bool) -> None:
    from vitp.data.benchmarks.prepare import check_download, prepare_benchmark

    console = make_console()
    if out is None:
        result = check_download(name, root, settings)
    else:
        with _bars() as bars:

            def progress(title: str, total: int | None) -> Callable[[], None]:
                task = bars.add_task(title, total=total)
                return lambda: bars.advance(task)

            result = prepare_benchmark(name, root, out, settings, force=force, progress=progress)
    counts = ", ".join(f"{split} {count:,}" for split, count in result.splits.items() if count)
    unit = "volumes" if result.facts.volumes and out is None else "images"
    done = "complete" if out is None else ("prepared before" if result.again else "prepared")
    console.print(f"{result.facts.title}: {done} ({counts} {unit})", highlight=False)
    for line in result.counts:
        console.print(f"[yellow]count:[/] {line}")
    _print_findings(result.findings, "labels were left out or mended")
    if out is not None:
        console.print(f"next: vitp finetune {result.facts.task} --data {_shown(out)}", highlight=False)


def _convert(name: str, root: Path, out: Path, force: bool) -> None:
    from vitp.data.corpora.convert import convert_corpus

    with _bars() as bars:
        task = bars.add_task(f"{name}: records", total=None)
        result = convert_corpus(name, root, out, force=force, progress=lambda: bars.advance(task))
    done = "converted before" if result.again else "converted"
    make_console().print(
        f"{name}: {done} ({result.records:,} records, {result.questions:,} questions, {result.images:,} images)"
    )
    _print_findings(result.findings, "rows were left out")
    make_console().print(f"next: vitp data check {_shown(out)}", highlight=False)


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=make_console(),
    )


def _print_findings(findings: Sequence[str], what: str) -> None:
    if findings:
        console = make_console()
        console.print(f"[yellow]{len(findings):,} {what}[/]:")
        for finding in findings[:5]:
            console.print(f"  {finding}", markup=False, highlight=False)


@app.command("leaks")
def leaks_command(
    mixture: Annotated[Path, typer.Argument(help="Mixture file, JSON Lines or compiled folder.")],
    test: Annotated[
        list[str],
        typer.Option(
            "--test", help="Downstream set: FOLDER, or FORMAT=FOLDER as dior=/data/DIOR. Repeatable."
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="JSON with every leak.")] = None,
    clean: Annotated[
        Path | None, typer.Option("--clean", help="New folder for the mixture without the leaking records.")
    ] = None,
    whole_only: Annotated[
        bool, typer.Option("--whole-only", help="Compare whole pictures, not crops and tiles.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Find pretraining images that show downstream test images. Exit code 1 when there are any."""
    from vitp.core.files import write_json
    from vitp.data.formats import read_labels
    from vitp.data.leaks import find_leaks, write_clean

    tests = {}
    for entry in test:
        fmt, equals, folder = entry.partition("=")
        labelled = read_labels(fmt, folder) if equals else read_labels("auto", entry)
        tests[fmt if equals else labelled.name] = labelled
    with _bars() as bars:
        task = bars.add_task("images", total=None)
        report = find_leaks(
            mixture, tests, overlaps=not whole_only, progress=None if as_json else lambda: bars.advance(task)
        )
    if out is not None:
        write_json(out, report.to_json())
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        _print_leaks(report)
    if clean is not None:
        left = write_clean(mixture, report, clean)
        if not as_json:
            listed = ", ".join(f"{name} {count:,}" for name, count in left.items())
            make_console().print(f"wrote {_shown(clean)}/mixture.json; records left: {listed}")
    raise typer.Exit(1 if report.leaks else 0)


def _print_leaks(report: LeakReport) -> None:
    console = make_console()
    table = Table(
        title=f"{report.images:,} pretraining images, {sum(report.tests.values()):,} test images",
        title_justify="left",
    )
    table.add_column("pretraining set")
    table.add_column("leaking records", justify="right")
    for name in report.tests:
        table.add_column(f"{name}: test images seen", justify="right")
    seen = report.affected()
    for source, (leaking, count) in report.records.items():
        cells = (
            f"{seen.get(source, {}).get(name, 0):,} of {total:,}" for name, total in report.tests.items()
        )
        table.add_row(source, f"{leaking:,} of {count:,}", *cells)
    console.print(table)
    for leak in report.leaks[:5]:
        part = f"{leak.share:.0%} of" if leak.kind == "overlap" else f"same {leak.kind} as"
        console.print(f"  {leak.image}: {part} {leak.test_image}", markup=False)
    _print_findings(report.unreadable, "images or rows couldn't be read")
