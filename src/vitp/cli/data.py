"""`vitp data …`: labels to instructions, checks, pages, generated scenes, published sets."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vitp.cli.compiled import compile_and_print, print_summary
from vitp.cli.options import (
    LAYOUT_WORDS,
    FormatOption,
    JsonFlag,
    LabelFormat,
    MaxTiles,
    Seed,
    format_options,
    pairs_of,
    values_of,
)
from vitp.cli.output import (
    make_console,
    print_findings,
    print_json,
    print_table,
    progress_bars,
    shown_path,
)
from vitp.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from vitp.data.benchmarks.prepare import PrepareSettings
    from vitp.data.leaks import LeakReport
    from vitp.data.lengths import RecordLength

app = typer.Typer(no_args_is_help=True)

_Records = Annotated[Path, typer.Argument(help="JSON Lines, mixture file or compiled folder.")]


@app.command("compile")
def compile_command(
    source: Annotated[
        str, typer.Argument(help="Folder or file with images and labels; with --format scenes a domain.")
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder for records, mixture and labels.")],
    fmt: LabelFormat = "auto",
    seed: Seed = 0,
    crop: Annotated[
        int | None, typer.Option(min=8, max=65_536, help="Cut images into crops with this side in pixels.")
    ] = None,
    overlap: Annotated[
        int, typer.Option(min=0, max=65_535, help="Pixels that neighbouring crops share.")
    ] = 0,
    empty: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of training images without objects, 0 to 1.")
    ] = 1.0,
    questions: Annotated[int, typer.Option(min=1, max=10_000, help="Questions about each image.")] = 6,
    grid: Annotated[int, typer.Option(min=1, max=100, help="Cells on each side of grid questions.")] = 6,
    grid_always: Annotated[
        bool, typer.Option("--grid-always", help="Ask the grid question about each image.")
    ] = False,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Weight of a kind of question: presence=2, caption=0. Repeatable."),
    ] = None,
    neighbours: Annotated[
        int, typer.Option(min=0, max=16, help="Slices on either side that are shown with one of a volume.")
    ] = 0,
    wordings: Annotated[
        int, typer.Option(min=0, max=100, help="Wordings of each kind of question; 1: one form. 0: all.")
    ] = 0,
    max_tiles: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Most tiles of an image; else the run decides.")
    ] = None,
    option: FormatOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier compilation.")] = False,
) -> None:
    """Turn labels into visual instructions."""
    from vitp.data.synthesis.build import SynthesisConfig

    weights = _task_weights(tasks)
    options = format_options(option)
    options |= {"seed": seed, "crop": crop, "overlap": overlap, "empty": empty}
    asked = SynthesisConfig(
        questions_per_image=questions,
        grid=grid,
        grid_always=grid_always,
        tasks=weights,
        neighbours=neighbours,
        wordings=wordings,
    )
    compile_and_print(source, fmt, out, synthesis=asked, max_tiles=max_tiles, force=force, **options)


def _task_weights(words: list[str] | None) -> dict[str, float]:
    from vitp.data.synthesis.build import TASK_NAMES

    weights = {}
    for name, text in pairs_of(words, "--task").items():
        try:
            weights[name] = float(text)
        except ValueError:
            fix = "give a weight such as 2 or 0"
            raise ConfigError(f"{name}={text!r} is no number", where="--task", fix=fix) from None
        if name not in TASK_NAMES:
            fix = did_you_mean(name, TASK_NAMES) or f"tasks are {', '.join(TASK_NAMES)}"
            raise ConfigError(f"unknown task {name!r}", where="--task", fix=fix)
    return weights


@app.command("merge")
def merge_command(
    old: Annotated[Path, typer.Argument(help="Compiled folder whose splits are kept.")],
    new: Annotated[Path, typer.Argument(help="Compiled folder with new images or corrected labels.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the compiled set of both.")],
    splits: Annotated[
        Literal["drawn", "own", "train", "val", "test"],
        typer.Option("--splits", help="Of new images: drawn at random, as in NEW, or all in one split."),
    ] = "drawn",
    val: Annotated[float | None, typer.Option(min=0, max=1, help="Drawn: share of val images.")] = None,
    test: Annotated[float | None, typer.Option(min=0, max=1, help="Drawn: share of test images.")] = None,
    seed: Seed = 0,
    complete: Annotated[
        bool,
        typer.Option("--complete", help="Both sets were labelled for the classes of both."),
    ] = False,
    other_patients: Annotated[
        bool,
        typer.Option("--other-patients", help="A patient number in both sets means two different patients."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier compilation.")] = False,
) -> None:
    """Join corrected and new labels to a compiled set; every image of OLD keeps its split."""
    from vitp.data.merge import MergeOptions, merge_sets

    options = MergeOptions(splits, val, test, seed, complete, other_patients)
    merged = merge_sets(old, new, out, options, force=force)
    assert merged.summary is not None
    print_summary(merged.summary)


@app.command("scenes")
def scenes_command(
    domain: Annotated[str, typer.Argument(help="general or port.")],
    out: Annotated[Path, typer.Option("--out", help="New folder.")],
    layout: Annotated[str, typer.Option(help=LAYOUT_WORDS)] = "masks",
    count: Annotated[int, typer.Option(min=1, max=100_000_000, help="Number of scenes.")] = 200,
    size: Annotated[int, typer.Option(min=32, max=8192, help="Side of a scene in pixels.")] = 96,
    seed: Seed = 0,
) -> None:
    """Write generated scenes with exact labels in a common layout."""
    from vitp.scenes import scene_set, write_scenes

    shares = {"train": 0.7, "val": 0.1, "test": 0.2}
    counts = {split: round(share * count) for split, share in shares.items()}
    sets = [
        scene_set(domain, seed=seed, count=number, size=size, split=split, pairs=layout == "pairs")
        for split, number in counts.items()
        if number
    ]
    write_scenes(sets, out, layout=layout)
    listed = ", ".join(f"{number} {split}" for split, number in counts.items())
    print(f"wrote {sum(counts.values())} scenes to {out}: {listed}")


@app.command("sets")
def sets_command() -> None:
    """List the published sets that `vitp data prepare` knows."""
    from vitp.data.benchmarks.catalogue import BENCHMARKS
    from vitp.data.corpora.catalogue import CORPORA

    columns = ("name", "set", "task", "classes", "metric", "published by")
    rows = (
        (one.name, one.title, one.task, str(len(one.classes)), one.metric, one.published_by)
        for one in BENCHMARKS.values()
    )
    print_table(columns, rows, "benchmarks")
    corpora = ((one.name, one.title, one.domain, one.published_by) for one in CORPORA.values())
    print_table(("name", "set", "domain", "published by"), corpora, "pretraining sets")


@app.command("prepare")
def prepare_command(
    name: Annotated[str, typer.Argument(help="Published set; see `vitp data sets`.")],
    root: Annotated[Path, typer.Option("--root", help="Folder of the unpacked download.")],
    out: Annotated[Path | None, typer.Option("--out", help="New folder; not needed with --check.")] = None,
    protocol: Annotated[
        str,
        typer.Option(help="official: the published splits; paper: those that the paper trains and tests on."),
    ] = "official",
    crop: Annotated[
        int | None,
        typer.Option(min=0, max=65_536, help="Side of the crops; 0: no crops. By default the set's own."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Pixels that neighbouring crops share.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="Option of the set: NAME=VALUE, as in modality=MRI. Repeatable."),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Go on although files are missing.")] = False,
    check_only: Annotated[bool, typer.Option("--check", help="Only check that all files are there.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what was prepared before.")] = False,
) -> None:
    """Check the download of a published set and make its crops, labels or instruction records.

    An interrupted preparation continues.
    """
    from vitp.data.benchmarks.catalogue import BENCHMARKS
    from vitp.data.benchmarks.prepare import PrepareSettings
    from vitp.data.corpora.catalogue import CORPORA

    options, known = values_of(option), [*BENCHMARKS, *CORPORA]
    if name not in known:
        fix = did_you_mean(name, known) or "see `vitp data sets`"
        raise ConfigError(f'no set "{name}"', where="vitp data prepare", fix=fix)
    if out is None and not check_only:
        fix = "name a folder with --out, or --check"
        raise ConfigError("nowhere to write", where="vitp data prepare", fix=fix)
    if name not in CORPORA:
        settings = PrepareSettings(protocol, crop, overlap, partial, options)
        _prepare(name, root, None if check_only else out, settings, force)
        return
    if out is None or check_only or options or crop or overlap or protocol != "official" or partial:
        fix = "of the options only --root, --out and --force go with it"
        raise ConfigError("is a pretraining set", where=name, fix=fix)
    _convert(name, root, out, force)


def _prepare(name: str, root: Path, out: Path | None, settings: PrepareSettings, force: bool) -> None:
    from vitp.data.benchmarks.prepare import check_download, prepare_benchmark

    if out is None:
        result = check_download(name, root, settings)
    else:
        with progress_bars() as bars:

            def progress(title: str, total: int | None) -> Callable[[], None]:
                task = bars.add_task(title, total=total)
                return lambda: bars.advance(task)

            result = prepare_benchmark(name, root, out, settings, force=force, progress=progress)
    console = make_console()
    counts = ", ".join(f"{split} {count:,}" for split, count in result.splits.items() if count)
    unit = "volumes" if result.facts.volumes and out is None else "images"
    done = "complete" if out is None else ("prepared before" if result.again else "prepared")
    console.print(f"{result.facts.title}: {done} ({counts} {unit})")
    for line in result.counts:
        console.print(f"[yellow]count:[/] {line}")
    print_findings(result.findings, "labels were left out or mended")
    if out is not None:
        console.print(f"next: vitp finetune {result.facts.task} --data {shlex.quote(shown_path(out))}")


def _convert(name: str, root: Path, out: Path, force: bool) -> None:
    from vitp.data.corpora.convert import convert_corpus

    with progress_bars() as bars:
        task = bars.add_task(f"{name}: records", total=None)
        result = convert_corpus(name, root, out, force=force, progress=lambda: bars.advance(task))
    done = "converted before" if result.again else "converted"
    make_console().print(
        f"{name}: {done} ({result.records:,} records, {result.questions:,} questions, {result.images:,} images)"
    )
    print_findings(result.findings, "rows were left out")
    make_console().print(f"next: vitp data check {shlex.quote(shown_path(out))}")


@app.command("leaks")
def leaks_command(
    mixture: Annotated[Path, typer.Argument(help="Mixture file, JSON Lines or compiled folder.")],
    test: Annotated[
        list[str],
        typer.Option(
            "--test", help="Downstream set: FOLDER, or FORMAT=FOLDER as in dior=/data/DIOR. Repeatable."
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Write every leak into this JSON file.")] = None,
    clean: Annotated[
        Path | None, typer.Option("--clean", help="New folder for the mixture without the leaking records.")
    ] = None,
    whole_only: Annotated[
        bool, typer.Option("--whole-only", help="Compare whole pictures only, no crops or tiles.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Find pretraining images that show downstream test images. The exit code is 1 when there are any."""
    from vitp.core.files import write_json
    from vitp.data.formats import read_labels
    from vitp.data.leaks import find_leaks, write_clean

    tests = {}
    for entry in test:
        fmt, equals, folder = entry.partition("=")
        labelled = read_labels(fmt, folder) if equals else read_labels("auto", entry)
        tests[fmt if equals else labelled.name] = labelled
    with progress_bars() as bars:
        task = bars.add_task("images", total=None)
        progress = None if as_json else lambda: bars.advance(task)
        report = find_leaks(mixture, tests, overlaps=not whole_only, progress=progress)
    if out is not None:
        write_json(out, report.to_json())
    if as_json:
        print_json(report.to_json())
    else:
        _print_leaks(report)
    left = write_clean(mixture, report, clean) if clean is not None else {}
    if clean is not None and not as_json:
        listed = ", ".join(f"{name} {count:,}" for name, count in left.items())
        make_console().print(f"wrote {shown_path(clean)}/mixture.json; records left: {listed}")
    raise typer.Exit(1 if report.leaks else 0)


def _print_leaks(report: LeakReport) -> None:
    seen = report.affected()
    rows = []
    for source, (leaking, count) in report.records.items():
        of = seen.get(source, {})
        cells = (f"{of.get(name, 0):,} of {total:,}" for name, total in report.tests.items())
        rows.append((source, f"{leaking:,} of {count:,}", *cells))
    columns = ("pretraining set", "leaking records", *(f"{n}: test images seen" for n in report.tests))
    title = f"{report.images:,} pretraining images, {sum(report.tests.values()):,} test images"
    print_table(columns, rows, title, left=1)
    for leak in report.leaks[:5]:
        part = f"{leak.share:.0%} of" if leak.kind == "overlap" else f"same {leak.kind} as"
        make_console().print(f"  {leak.image}: {part} {leak.test_image}", markup=False)
    print_findings(report.unreadable, "images or rows couldn't be read")


@app.command("check")
def check_data_command(
    source: _Records,
    against: Annotated[
        Path | None, typer.Option(help="Held-out data that must not share images with the source.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help='Count tokens with this model\'s tokenizer, as in "starter".')
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=16, max=4_194_304, help="Most tokens of a row. By default as in the model's run, else 4096."
        ),
    ] = None,
    max_tiles: MaxTiles = None,
    buffer: Annotated[
        float, typer.Option(min=0, max=1e7, help="Least metres between images of different splits.")
    ] = 0.0,
    as_json: JsonFlag = False,
) -> None:
    """Find what would go wrong in training. The exit code is 1 when a row is unusable."""
    from vitp.data.check import check_records

    counting: dict[str, Any] = {}
    if model is not None:
        length, longest = _length_of(model, max_tiles, max_length)
        counting = {"max_tokens": longest, "length_of": length.tokens, "control": length.chat.plain.names}
    report = check_records(source, against=against, buffer=buffer, **counting)
    if as_json:
        print_json(report.to_json())
    else:
        console = make_console()
        console.print(report.render(width=console.width))
    raise typer.Exit(report.exit_code)


def _length_of(model: str, max_tiles: int | None, max_length: int | None) -> tuple[RecordLength, int]:
    """Return what counts tokens and tiles as training with a model does, and the tokens that a row may have."""
    from vitp.checkpoints.loading import load_vlm
    from vitp.data.lengths import RecordLength
    from vitp.runs.pretrain import sequence_of

    loaded, sequence = load_vlm(model), sequence_of(model)
    tile = loaded.vlm.vision.image_size[0]
    length = RecordLength(loaded.chat, tile, max_tiles or sequence.max_tiles, sequence.max_turns)
    return length, max_length or sequence.max_length


@app.command("show")
def show_data_command(
    source: _Records,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("data.html"),
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Number of records on the page.")] = 24,
    seed: Seed = 0,
    model: Annotated[str, typer.Option(help="Model whose tokens and tiles are counted.")] = "starter",
    max_tiles: MaxTiles = None,
) -> None:
    """Write a page with images, drawn labels, questions and answers, and histograms."""
    from vitp.report.records_page import show_records

    length, _ = _length_of(model, max_tiles, None)
    measured = f"as {Path(model).name} reads them, before any are dropped"
    show_records(source, out, count=count, seed=seed, measure=length.both, measured=measured)
    print(f"wrote {out}")
