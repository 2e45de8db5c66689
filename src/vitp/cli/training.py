"""`vitp pretrain`, `vitp demo`, `vitp report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitp.cli.console import make_console
from vitp.cli.run_options import configuration_of, overrides_of
from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.targets import check_output_file

if TYPE_CHECKING:
    from vitp.runs.pretrain import PretrainConfig


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("pretrain")(pretrain)
    app.command("report")(report)
    app.command("demo")(demo)


PUBLISHED_STEPS = 8000


def pretrain(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML of the run; none: the defaults with --data, or the run's with --resume."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/pretrain"),
    objective: Annotated[
        str | None,
        typer.Option(help="What is learned: see docs/paradigms.md; the YAML's, or visual instructions."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="Compiled folder; for instructions mixture or JSON Lines, too. Repeatable."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            help='"starter", a model or run folder, or "scratch" ("random" without a language model).',
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, max=100_000_000, help="Optimizer steps.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="key.key=value over the configuration. Repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Pretrain a ViT inside a vision-language model on visual instructions (ViTP), or by another paradigm."""
    from vitp.core import distributed
    from vitp.runs.pretrain import run_pretraining

    config = configuration_of(config, data, out, resume=resume, command="vitp pretrain")
    options = {"data.mixture": data, "model.init": init, "train.steps": steps}
    settings = _pretrain_settings(config, objective, overrides_of(options, override))
    result = run_pretraining(settings, out, resume=resume)
    if distributed.rank() > 0:
        return
    console = make_console()
    console.print(f"model: {result.model}")
    if settings.objective.has_language_model:
        console.print(f"next: vitp report {out}, vitp export {out} --out BACKBONE")
    else:
        console.print(f"next: vitp probe {out} DATA, vitp finetune TASK --backbone {out}")


def _pretrain_settings(config: Path | None, objective: str | None, overrides: list[str]) -> PretrainConfig:
    """Return the settings of a run.

    Without a configuration they are those of the micro recipes where the run starts from the starter, else the paper's.

    Raises:
        ConfigError: There is no such objective, or a setting is wrong.
    """
    from vitp.core import distributed
    from vitp.core.config import load_config, make_config
    from vitp.objectives import SETTINGS
    from vitp.recipes.paradigms import STARTER_STEPS, starter_config
    from vitp.runs.pretrain import PretrainConfig

    if objective is not None:
        if objective not in SETTINGS:
            hint = did_you_mean(objective, SETTINGS) or f"objectives are: {', '.join(SETTINGS)}"
            raise ConfigError(f"unknown objective {objective!r}", where="--objective", fix=hint)
        overrides = [f"objective={objective}", *overrides]
    if config is not None:
        return load_config(PretrainConfig, config, overrides)
    words = [f"train.steps={PUBLISHED_STEPS}", *overrides]
    settings = make_config(PretrainConfig, {}, words, where="command line")
    if settings.model.init != "starter":
        return settings
    steps = settings.train.steps if settings.train.steps != PUBLISHED_STEPS else STARTER_STEPS
    settings = starter_config(
        settings.data.mixture, objective=settings.objective.name, steps=steps, overrides=overrides
    )
    if distributed.rank() == 0:
        make_console().print(
            f"[dim]no configuration: from the starter with batches of {settings.data.global_batch}, learning rate "
            f"{settings.optim.lr:g}, {settings.train.steps} steps; -s KEY=VALUE changes them[/]"
        )
    return settings


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; RUN/report.html by default.")] = None,
    samples: Annotated[
        int, typer.Option(min=0, max=10_000, help="Questions that the model answers on the page.")
    ] = 12,
) -> None:
    """Write one self-contained page about a run."""
    from vitp.report.run_report import report_run

    if out is not None:
        check_output_file(out, "page")
    print(f"wrote {report_run(run, out, samples=samples)}")


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the demo.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Pretraining seeds.")] = 1,
    ceiling: Annotated[
        int,
        typer.Option(
            min=0, max=100_000_000, help="Steps of a finetune on all labels beside the few; 0: none."
        ),
    ] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Start anew where an earlier demo left its results.")
    ] = False,
) -> None:
    """Generated port scenes: pretrain, export, probe, finetune, compare, report."""
    from vitp.recipes.demo import DemoPlan, run_demo

    run_demo(out, DemoPlan(seeds=tuple(range(seeds)), ceiling_steps=ceiling), force=force)
