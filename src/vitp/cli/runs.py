"""`vitp pretrain`, `vitp finetune`, `vitp demo`, `vitp report`, `vitp check`: training runs."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from vitp.cli.options import LABELLED, TASK_WORDS, Override, Resume, Steps, configuration_of, overrides_of
from vitp.cli.output import make_console, print_lines, print_scores, print_table
from vitp.cli.panels import JUDGE, TRAIN

if TYPE_CHECKING:
    from vitp.runs.check.findings import CheckFinding

_Folds: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=2,
        max=1000,
        help="Cross-validation with this many folds, split by patient or group: one run for each fold.",
    ),
]
_Fold: TypeAlias = Annotated[
    int | None, typer.Option(min=0, max=999, help="Only the run that is tested on this fold; the first is 0.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("pretrain", rich_help_panel=TRAIN)(pretrain_command)
    app.command("finetune", rich_help_panel=TRAIN)(finetune_command)
    app.command("demo", rich_help_panel=TRAIN)(demo_command)
    app.command("report", rich_help_panel=JUDGE)(report_command)
    app.command("check", rich_help_panel=JUDGE)(check_run_command)


_Config = Annotated[
    Path | None,
    typer.Argument(
        help="YAML file of the run. Without one: the defaults with --data, the run's own with --resume."
    ),
]


def pretrain_command(
    config: _Config = None,
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/pretrain"),
    objective: Annotated[
        str | None,
        typer.Option(
            help="Objective to learn, see docs/paradigms.md; vitp=1,clip=0.5: several at once. By default the YAML's, "
            "else visual instructions."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="Compiled folder, or one of bare images for mae, dino and simclr; for instructions also a mixture file or "
            "JSON Lines. Repeatable.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            help='"starter", a model or run folder, or "scratch" ("random" without a language model).',
        ),
    ] = None,
    steps: Steps = None,
    override: Override = None,
    resume: Resume = False,
) -> None:
    """Pretrain a ViT inside a vision-language model on visual instructions (ViTP), or by another paradigm."""
    from vitp.core import distributed
    from vitp.recipes.paradigms import pretrain_settings
    from vitp.runs.pretrain import run_pretraining

    config = configuration_of(config, data, out, resume=resume, command="vitp pretrain")
    options = {"data.mixture": data, "model.init": init, "train.steps": steps}
    settings = pretrain_settings(config, objective, overrides_of(options, override))
    console = make_console()
    if config is None and settings.model.init == "starter" and distributed.rank() == 0:
        console.print(
            f"[dim]no configuration: from the starter with batches of {settings.data.global_batch}, learning rate "
            f"{settings.optim.lr:g}, {settings.train.steps} steps; -s KEY=VALUE changes them[/]"
        )
    result = run_pretraining(settings, out, resume=resume)
    if distributed.rank() > 0:
        return
    console.print(f"model: {result.model}")
    run = shlex.quote(str(out))
    if settings.objective.has_language_model:
        console.print(f"next: vitp report {run}, vitp export {run} --out BACKBONE")
    else:
        console.print(f"next: vitp probe {run} DATA, vitp finetune TASK --backbone {run}")


def finetune_command(
    task: Annotated[str, typer.Argument(help=TASK_WORDS)],
    config: _Config = None,
    data: Annotated[str | None, typer.Option("--data", help=LABELLED)] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help='"starter", "random", an export, run or model folder, or timm:NAME.'),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/finetune"),
    steps: Steps = None,
    folds: _Folds = None,
    fold: _Fold = None,
    override: Override = None,
    resume: Resume = False,
) -> None:
    """Finetune a backbone on a task, and score it on the test images.

    With --folds it does so once for each fold, and the table has means and standard deviations.
    """
    from vitp.core import distributed
    from vitp.core.config import load_config, make_config
    from vitp.report.cases_page import write_case_files
    from vitp.runs.finetune import FinetuneConfig, run_finetune
    from vitp.runs.folds import run_folds
    from vitp.tasks.build import task_of

    task_of(task)  # an unknown task is named before anything else
    every = folds is not None and fold is None
    # Folds have the settings of the first one, which has been begun wherever there is something to resume.
    begun = out / "fold-0" if every and resume else out
    config = configuration_of(config, data, begun, resume=resume, command="vitp finetune")
    options = {"data.root": data, "backbone.init": backbone, "train.steps": steps}
    options |= {"data.folds": folds, "data.fold": fold}
    overrides = [f"task={task}", *overrides_of(options, override)]
    if config is not None:
        settings = load_config(FinetuneConfig, config, overrides)
    else:
        settings = make_config(FinetuneConfig, {}, overrides, where="command line")
    if every:
        found = run_folds(settings, out, resume=resume)
        if distributed.rank() == 0:
            print_table(*found.table(), f"{task}, {folds} folds", left=1)
            print_lines(
                [f"all scores: {out / 'folds.json'}", f"models: {out}/fold-0 … fold-{len(found.images) - 1}"]
            )
        return
    result = run_finetune(settings, out, resume=resume)
    if distributed.rank() > 0:
        return
    title = f"{task} on the test images ({result.scores.images})"
    print_scores(result.scores, title)
    console = make_console()
    if result.scores.cases:
        files = write_case_files(out, "cases", result.scores, title, settings.test.tolerance)
        console.print(f"cases: {' and '.join(map(str, files))}")
    console.print(f"model: {result.model}")
    later = " --later LATER_IMAGES" if task == "change" else ""
    console.print(f"next: vitp predict {shlex.quote(str(out))} IMAGES{later} --out PREDICTIONS")


def demo_command(
    out: Annotated[Path, typer.Option("--out", help="Folder of the demo.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Number of pretraining seeds.")] = 1,
    ceiling: Annotated[
        int,
        typer.Option(
            min=0,
            max=100_000_000,
            help="Steps of one more finetuning, on all labels instead of a few; 0: leave it out.",
        ),
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the results of an earlier demo.")] = False,
) -> None:
    """Go the whole way on generated port scenes: pretrain, export, probe, finetune, compare, report."""
    from vitp.recipes.demo import run_demo
    from vitp.recipes.micro import DemoPlan

    run_demo(out, DemoPlan(seeds=tuple(range(seeds)), ceiling_steps=ceiling), force=force)


def report_command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file to write; RUN/report.html by default.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, max=10_000, help="Number of questions that the model answers on the page.")
    ] = 12,
) -> None:
    """Write one self-contained page about a run."""
    from vitp.core.targets import check_output_file
    from vitp.report.run_report import report_run

    if out is not None:
        check_output_file(out, "page")
    print(f"wrote {report_run(run, out, samples=samples)}")


def check_run_command(
    run: Annotated[Path, typer.Argument(help="Pretraining run or its YAML file, or finetuned run.")],
    records: Annotated[
        int,
        typer.Option("--records", min=1, max=100_000, help="Number of records, or images, to compare on."),
    ] = 8,
    ranks: Annotated[
        int, typer.Option("--ranks", min=2, max=64, help="Number of processes of the check `ranks`.")
    ] = 2,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="Make one check alone: packed, shared, attention, bf16, recompute, compile, resume or ranks; "
            "seams of a finetuned run. Repeatable.",
        ),
    ] = None,
    skip: Annotated[list[str] | None, typer.Option("--skip", help="Leave a check out. Repeatable.")] = None,
    out: Annotated[
        Path | None, typer.Option("--json", help="Write the findings into this file as well.")
    ] = None,
    override: Override = None,
) -> None:
    """Compare the fast ways of training with the plain ones on a run's own data.

    For a finetuned run it checks that the same ground gets the same classes wherever windows begin (seams). The exit
    code is 1 when there is a difference.
    """
    from vitp.core.files import write_json
    from vitp.runs.check.run import FINETUNED_CHECKS, check_known, check_run, is_finetuned, load_run
    from vitp.runs.check.seams import check_seams

    names = (*(only or ()), *(skip or ()))
    findings: list[CheckFinding] = []
    found: Iterable[CheckFinding]
    if is_finetuned(run):
        check_known(FINETUNED_CHECKS, *names)
        folder = run if run.is_dir() else run.parent
        found = () if skip else (check_seams(folder, override or [], images=records),)
    else:
        config = load_run(run, override or [])
        found = check_run(config, records=records, ranks=ranks, only=only or (), skip=skip or ())
    for finding in found:
        findings.append(finding)
        print_lines(_lines(finding))
    if out is not None:
        write_json(out, [finding.to_json() for finding in findings])
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _lines(finding: CheckFinding) -> list[str]:
    if finding.skipped is not None:
        return [f"skipped    {finding.name}: {finding.skipped}"]
    lines = [f"{'equal' if finding.ok else 'DIFFERENT':<10} {finding.name}"]
    for one in finding.differences:
        sign, mark = "≥" if one.at_least else "≤", "" if one.ok else "  ← here"
        lines.append(f"           {one.what}: {one.value:.3g} (wanted {sign} {one.limit:g}){mark}")
    return lines
