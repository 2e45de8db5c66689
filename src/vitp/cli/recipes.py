"""`vitp recipes …`: runs of the paper and of the package. `vitp recipe` is the old spelling of `vitp recipes run`."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitp.cli.options import AsPublished, Gpus, Images, JsonFlag, Override
from vitp.cli.output import make_console, print_json, print_scores, print_table
from vitp.cli.panels import TRAIN

if TYPE_CHECKING:
    from vitp.recipes.catalogue import PretrainRecipe
    from vitp.runs.finetune import FinetuneConfig
    from vitp.runs.pretrain import PretrainConfig

app = typer.Typer()

_Name = Annotated[str, typer.Argument(help="One of `vitp recipes`.")]
_Init = Annotated[str | None, typer.Option("--init", help="Paper: model or backbone to start from.")]


def register(root: typer.Typer) -> None:
    """Add the commands of this file."""
    root.add_typer(
        app,
        name="recipes",
        rich_help_panel=TRAIN,
        help="List, show and run the recipes of paper and package.",
    )
    root.command("recipe", hidden=True)(old_run_command)


@app.command("run")
def run_command(
    name: Annotated[
        str,
        typer.Argument(
            help="One of `vitp recipes`, or starter, starter-looks, starter-card, real-images, downstream, nuclei."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs. An interrupted recipe continues.")],
    scale: Annotated[
        float,
        typer.Option(
            min=0.0001, max=1000, help="Package: factor on the number of steps, below 1 for a trial."
        ),
    ] = 1.0,
    seeds: Annotated[
        int,
        typer.Option(min=1, max=1000, help="real-images, downstream, nuclei: number of pretraining seeds."),
    ] = 1,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Paper: the set, or the folder of prepared pretraining sets."),
    ] = None,
    init: _Init = None,
    gpus: Gpus = 8,
    as_published: AsPublished = False,
    available: Annotated[
        bool, typer.Option("--available", help="Pretraining: leave out the sets that are missing.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Paper: make only two steps with a tiny model, to test the data."),
    ] = False,
    override: Override = None,
) -> None:
    """Run a recipe of the paper, or of the package at micro scale."""
    from vitp.recipes.catalogue import MICRO, run_config_of

    if name in MICRO:
        print(f"wrote {MICRO[name](out, scale, seeds)}")
        return
    options = {"init": init, "gpus": gpus, "as_published": as_published, "overrides": override or ()}
    config = run_config_of(name, data, out, available=available, **options)
    if dry_run:
        _dry_run(name, config, out)
    else:
        _run(name, config, out)


def old_run_command(**values: Any) -> None:
    """Run a recipe: the old spelling of `vitp recipes run`."""
    print("note: `vitp recipe` is called `vitp recipes run` now; both work", file=sys.stderr)
    run_command(**values)


# `functools.wraps` would do the same, and mark the function as one that has --allow-remote already.
old_run_command.__signature__ = inspect.signature(run_command)  # type: ignore[attr-defined]
old_run_command.__annotations__ = run_command.__annotations__


def _dry_run(name: str, config: PretrainConfig | FinetuneConfig, out: Path) -> None:
    from vitp.recipes.paper.dry_run import dry_run

    found = dry_run(config, out / "dry-run")
    parts = [f"{found.train:,} to learn from"]
    if found.scores is not None:
        parts.append(f"{found.test:,} test images, {found.scores.images} of them scored")
    make_console().print(f"{name}: two steps done, loss {found.loss:.3g}; {', '.join(parts)}")


def _run(name: str, config: PretrainConfig | FinetuneConfig, out: Path) -> None:
    from vitp.core import distributed
    from vitp.runs.finetune import FinetuneConfig, run_finetune
    from vitp.runs.folder import started
    from vitp.runs.pretrain import PretrainConfig, run_pretraining

    run: dict[type, Callable[..., Any]] = {PretrainConfig: run_pretraining, FinetuneConfig: run_finetune}
    result = run[type(config)](config, out, resume=started(out))
    if distributed.rank() > 0:
        return
    scores = getattr(result, "scores", None)
    if scores is not None:
        print_scores(scores, f"{getattr(config, 'task', name)} on the test images ({scores.images})")
    make_console().print(f"model: {result.model}")
    if scores is None:
        make_console().print(f"next: vitp export {shlex.quote(str(out))} --out BACKBONE")


@app.callback(invoke_without_command=True)
def list_command(context: typer.Context) -> None:
    """List the paper's runs."""
    if context.invoked_subcommand is not None:
        return
    from vitp.recipes.catalogue import FINETUNING, PRETRAINING
    from vitp.recipes.paper.tables import PRETRAINING_FACTS as FACTS

    print_table(
        ("recipe", "sets", "records", "samples an epoch", "steps", "batch", "the authors'"),
        (
            (
                name,
                str(len(run.sets)),
                f"{sum(one.thousands for one in run.sets):,.0f}k",
                f"{sum(one.thousands * one.rate for one in run.sets):,.0f}k",
                f"{FACTS.steps:,}",
                str(FACTS.global_batch),
                f"{FACTS.hours:g} h on {FACTS.gpus} × {FACTS.gpu}" if name == "remote_sensing" else "–",
            )
            for name, run in PRETRAINING.items()
        ),
        "Pretraining",
    )
    rows = []
    for name, tuned in FINETUNING.items():
        facts = tuned.facts
        length = f"{facts.epochs} epochs" if facts.epochs else f"{(facts.steps or 0) // 1000}k steps"
        score = ", ".join(f"{value:.2f} {metric}" for metric, value in facts.scores.items())
        rates = f"{facts.lr:g} / {facts.layer_decay:g}" + ("" if facts.published else " (ours)")
        row = (name, facts.title, facts.task, facts.modality, facts.head, str(facts.input_size), rates)
        rows.append((*row, length, f"{score} ± {facts.tolerance:g}"))
    columns = ("recipe", "set", "task", "modality", "head", "input", "lr / decay", "length")
    print_table((*columns, "the paper's score"), rows, "Finetuning and test")
    print("vitp recipes show NAME · vitp recipes parity NAME · vitp plan NAME --gpu H100:8")


@app.command("show")
def show_recipe_command(
    name: _Name,
    data: Annotated[
        str | None, typer.Option("--data", help="The set, or the mixture file of a pretraining.")
    ] = None,
    init: _Init = None,
    gpus: Gpus = 8,
    as_published: AsPublished = False,
    override: Override = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="YAML file for the configuration, for `vitp pretrain` or `vitp finetune`."
        ),
    ] = None,
) -> None:
    """Print a run's lab page and its whole configuration."""
    import yaml

    from vitp.core.config import save_config
    from vitp.recipes.catalogue import PretrainRecipe, recipe_config, recipe_of

    found = recipe_of(name)
    config = recipe_config(
        found, data, init=init, gpus=gpus, as_published=as_published, overrides=override or ()
    )
    make_console().print(found.page, markup=False)
    if isinstance(found, PretrainRecipe):
        _print_sets(found)
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    if out is not None:
        save_config(config, out)
        make_console().print(f"wrote {out}")


def _print_sets(found: PretrainRecipe) -> None:
    rows = (
        (
            one.title,
            f"{one.thousands:g}k",
            f"{one.rate:g}",
            f"{one.thousands * one.rate:,.1f}k",
            str(one.max_tiles or "default"),
            ", ".join(one.tasks),
            one.disagreement or "the same",
        )
        for one in found.sets
    )
    columns = ("set", "records", "rate", "samples an epoch", "most tiles", "tasks", "published file")
    print_table(columns, rows, "Mixture")


@app.command("parity")
def parity_command(name: _Name, images: Images = None, as_json: JsonFlag = False) -> None:
    """Print facts of a run from the code that trains it: learning rates, parameter groups, augmentations."""
    from vitp.recipes.catalogue import recipe_of
    from vitp.recipes.parity import parity_of

    report = parity_of(recipe_of(name), images=images)
    if as_json:
        print_json(report.to_json())
        return
    console = make_console()
    console.print(f"{name}: {report.steps:,} steps")
    rates = ((f"{step:,}", f"{rate:.3g}") for step, rate in report.schedule)
    print_table(("step", "rate"), rates, "Learning rate", left=0)
    groups = (
        (r.part, r.layer, f"{r.lr_scale:.4f}", f"{r.weight_decay:g}", str(r.tensors), f"{r.parameters:,}")
        for r in report.groups
    )
    columns = ("part", "layer", "rate ×", "weight decay", "tensors", "parameters")
    print_table(columns, groups, "Parameter groups", left=2)
    changes = " → ".join(f"{what} ({how})" for what, how in report.changes) or "none"
    console.print(f"order of changes: {changes}")
    if report.published_order:
        console.print(f"published order: {' → '.join(report.published_order)}")
