"""`vitp pretrain`, `vitp recipe`, `vitp demo`, `vitp report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vitp.cli.console import make_console
from vitp.errors import ConfigError, did_you_mean


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("pretrain")(pretrain)
    app.command("report")(report)
    app.command("demo")(demo)
    app.command("recipe")(recipe)


def pretrain(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML of the run; none: the defaults with --data, or the run's with --resume."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/pretrain"),
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Compiled folder, mixture or JSON Lines. Repeatable.")
    ] = None,
    init: Annotated[
        str | None, typer.Option("--init", help='"starter", a model or run folder, or "scratch".')
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="key.key=value over the configuration. Repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Pretrain a ViT inside a vision-language model on visual instructions (ViTP)."""
    from vitp.config import load_config, make_config
    from vitp.engine import distributed
    from vitp.pretrain import PretrainConfig, run_pretraining

    overrides = list(override or [])
    if data:
        overrides.append(f"data.mixture={json.dumps(data, ensure_ascii=False)}")
    if init:
        overrides.append(f"model.init={json.dumps(init, ensure_ascii=False)}")
    if steps is not None:
        overrides.append(f"train.steps={steps}")
    if config is None and resume:
        config = out / "config.yaml"
        if not config.is_file():
            raise ConfigError("holds no run to resume", where=str(out), fix="start it without --resume")
    if config is not None:
        settings = load_config(PretrainConfig, config, overrides)
    elif data:
        settings = make_config(PretrainConfig, {}, ["train.steps=8000", *overrides], where="command line")
    else:
        raise ConfigError(
            "nothing to learn from", where="vitp pretrain", fix="name a configuration or --data"
        )
    result = run_pretraining(settings, out, resume=resume)
    if distributed.rank() > 0:
        return
    console = make_console()
    console.print(f"model: {result.model}")
    console.print(f"next: vitp report {out}, vitp export {out} --out BACKBONE")


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; RUN/report.html by default.")] = None,
    samples: Annotated[int, typer.Option(help="Questions that the model answers on the page.")] = 12,
) -> None:
    """Write one self-contained page about a run."""
    from vitp.evaluation.run_page import report_run

    print(f"wrote {report_run(run, out, samples=samples)}")


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the demo.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Pretraining seeds.")] = 1,
    ceiling: Annotated[
        int, typer.Option(min=0, help="Steps of a finetune on all labels beside the few; 0: none.")
    ] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Start anew where an earlier demo left its results.")
    ] = False,
) -> None:
    """Generated port scenes: pretrain, export, probe, finetune, compare, report."""
    from vitp.recipes.demo import DemoPlan, run_demo

    run_demo(out, DemoPlan(seeds=tuple(range(seeds)), ceiling_steps=ceiling), force=force)


def recipe(
    name: Annotated[str, typer.Argument(help="starter, starter-card or real-images.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs; interrupted, it continues.")],
    scale: Annotated[
        float, typer.Option(min=0.0001, help="starter: factor on the steps, below 1 for a dry run.")
    ] = 1.0,
    seeds: Annotated[int, typer.Option(min=1, help="real-images: pretraining seeds.")] = 1,
) -> None:
    """Run a recipe of the package."""
    if name == "starter":
        from vitp.recipes.starter import StarterPlan, train_starter

        print(f"wrote {train_starter(out, StarterPlan().scaled(scale))}")
    elif name == "starter-card":
        from vitp.recipes.starter_card import write_card

        print(f"wrote {write_card(out)}")
    elif name == "real-images":
        from vitp.recipes.real_images import RealPlan, run_real_images

        print(f"wrote {run_real_images(out, RealPlan(seeds=tuple(range(seeds))))}")
    else:
        known = ("starter", "starter-card", "real-images")
        hint = did_you_mean(name, known) or f"recipes are: {', '.join(known)}"
        raise ConfigError(f"unknown recipe {name!r}", where="vitp recipe", fix=hint)
