"""`vitp recipe`, `vitp recipes`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vitp.cli.console import make_console
from vitp.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from vitp.recipes.catalogue import Recipe
    from vitp.runs.finetune import FinetuneConfig
    from vitp.runs.pretrain import PretrainConfig

app = typer.Typer()


def register(root: typer.Typer) -> None:
    """Add the commands of this file."""
    root.command("recipe")(recipe)
    root.add_typer(app, name="recipes", help="The paper's runs: list, configuration, what they really do.")


# Recipes of the package at micro scale: name → what runs them.


@dataclass(frozen=True)
class Options:
    """What the micro recipes can be told."""

    scale: float
    seeds: int


def _starter(out: Path, options: Options) -> Path:
    from vitp.recipes.starter import StarterPlan, train_starter

    return train_starter(out, StarterPlan().scaled(options.scale))


def _starter_card(out: Path, options: Options) -> Path:
    from vitp.recipes.starter_card import write_card

    return write_card(out)


def _real_images(out: Path, options: Options) -> Path:
    from vitp.recipes.real_images import RealPlan, run_real_images

    return run_real_images(out, RealPlan(seeds=tuple(range(options.seeds))).scaled(options.scale))


def _downstream(out: Path, options: Options) -> Path:
    from vitp.recipes.downstream import DownstreamPlan, run_downstream

    return run_downstream(out, DownstreamPlan(seeds=tuple(range(options.seeds))).scaled(options.scale))


MICRO: dict[str, Callable[[Path, Options], Path]] = {
    "starter": _starter,
    "starter-card": _starter_card,
    "real-images": _real_images,
    "downstream": _downstream,
}


def recipe(
    name: Annotated[
        str, typer.Argument(help="starter, starter-card, real-images, downstream, or one of `vitp recipes`.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs; interrupted, it continues.")],
    scale: Annotated[
        float, typer.Option(min=0.0001, max=1000, help="Ours: factor on the steps, below 1 for a dry run.")
    ] = 1.0,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="real-images, downstream: pretraining seeds.")
    ] = 1,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The paper's runs: the set, or the folder of prepared pretraining sets."),
    ] = None,
    init: Annotated[
        str | None, typer.Option("--init", help="The paper's runs: model or backbone to start from.")
    ] = None,
    gpus: Annotated[
        int, typer.Option("--gpus", min=1, max=65_536, help="Pretraining: GPUs that share a batch.")
    ] = 8,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Pretraining: what the authors' code does.")
    ] = False,
    available: Annotated[
        bool, typer.Option("--available", help="Pretraining: leave out the sets that are missing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Two steps with a tiny model: does the data fit?")
    ] = False,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="key.key=value over the configuration. Repeatable."),
    ] = None,
) -> None:
    """Run a recipe of the package, or a run of the paper."""
    if name in MICRO:
        print(f"wrote {MICRO[name](out, Options(scale, seeds))}")
        return
    from vitp.recipes.catalogue import FINETUNING, PRETRAINING, recipe_of

    known = (*MICRO, *PRETRAINING, *FINETUNING)
    if name not in known:
        hint = did_you_mean(name, known) or f"recipes are: {', '.join(known)}"
        raise ConfigError(f"unknown recipe {name!r}", where="vitp recipe", fix=hint)
    if data is None:
        raise ConfigError(
            "no data to learn from", where=f"vitp recipe {name}", fix="name its folder with --data"
        )
    config = _filled(
        recipe_of(name),
        data,
        init=init,
        gpus=gpus,
        as_published=as_published,
        available=available,
        mixture=out / "sets.json",
        overrides=override or (),
    )
    if dry_run:
        _dry_run(name, config, out)
    else:
        _run(config, out)


def _filled(
    found: Recipe,
    data: Path,
    *,
    init: str | None,
    gpus: int,
    as_published: bool,
    available: bool,
    mixture: Path,
    overrides: Sequence[str],
) -> PretrainConfig | FinetuneConfig:
    """Return the configuration over the user's data; the mixture of a pretraining is written down."""
    from vitp.core.config import make_config
    from vitp.core.files import write_json
    from vitp.recipes.catalogue import PretrainRecipe
    from vitp.recipes.paper.pretraining import mixture_table
    from vitp.runs.finetune import FinetuneConfig
    from vitp.runs.pretrain import PretrainConfig

    where = f"recipe {found.name}"
    if isinstance(found, PretrainRecipe):
        table = mixture_table(found.sets, data, available=available)
        write_json(mixture, table)
        start = {} if init is None else {"init": init}
        made = found.make(str(mixture.resolve()), gpus=gpus, as_published=as_published, **start)
        return make_config(PretrainConfig, made.model_dump(), overrides, where=where)
    start = {} if init is None else {"backbone": init}
    return make_config(FinetuneConfig, found.make(str(data), **start).model_dump(), overrides, where=where)


def _run(config: PretrainConfig | FinetuneConfig, out: Path) -> None:
    from vitp.runs.finetune import FinetuneConfig
    from vitp.runs.folder import started
    from vitp.runs.pretrain import PretrainConfig

    runs: dict[type, Any] = {PretrainConfig: _pretrain, FinetuneConfig: _finetune}
    runs[type(config)](config, out, resume=started(out))


def _pretrain(config: PretrainConfig, out: Path, *, resume: bool) -> None:
    from vitp.core import distributed
    from vitp.runs.pretrain import run_pretraining

    result = run_pretraining(config, out, resume=resume)
    if distributed.rank() == 0:
        make_console().print(f"model: {result.model}\nnext: vitp export {out} --out BACKBONE")


def _finetune(config: FinetuneConfig, out: Path, *, resume: bool) -> None:
    from vitp.cli.tasks import print_scores
    from vitp.core import distributed
    from vitp.runs.finetune import run_finetune

    tuned = run_finetune(config, out, resume=resume)
    if distributed.rank() == 0:
        print_scores(tuned.scores, f"{config.task} on the test images ({tuned.scores.images})")
        make_console().print(f"model: {tuned.model}")


def _dry_run(name: str, config: PretrainConfig | FinetuneConfig, out: Path) -> None:
    from vitp.recipes.paper.dry_run import dry_run as try_it

    found = try_it(config, out / "dry-run")
    parts = [f"{found.train:,} to learn from"]
    if found.scores is not None:
        parts.append(f"{found.test:,} test images, {found.scores.images} of them scored")
    make_console().print(f"{name}: two steps done, loss {found.loss:.3g}; {', '.join(parts)}")


@app.callback(invoke_without_command=True)
def list_recipes(context: typer.Context) -> None:
    """List the paper's runs."""
    if context.invoked_subcommand is not None:
        return
    from vitp.recipes.catalogue import FINETUNING, PRETRAINING
    from vitp.recipes.paper.tables import PRETRAINING as FACTS

    console = make_console()
    table = Table(title="Pretraining", title_justify="left")
    for column in ("recipe", "sets", "records", "samples an epoch", "steps", "batch", "the authors'"):
        table.add_column(column)
    for name, run in PRETRAINING.items():
        records = sum(one.thousands for one in run.sets)
        drawn = sum(one.thousands * one.rate for one in run.sets)
        hours = f"{FACTS.hours:g} h on {FACTS.gpus} × {FACTS.gpu}" if name == "remote_sensing" else "–"
        table.add_row(
            name,
            str(len(run.sets)),
            f"{records:,.0f}k",
            f"{drawn:,.0f}k",
            f"{FACTS.steps:,}",
            str(FACTS.global_batch),
            hours,
        )
    console.print(table)
    table = Table(title="Finetuning and test", title_justify="left")
    for column in (
        "recipe",
        "set",
        "task",
        "modality",
        "head",
        "input",
        "lr / decay",
        "length",
        "the paper's score",
    ):
        table.add_column(column)
    for name, tuned in FINETUNING.items():
        facts = tuned.facts
        length = f"{facts.epochs} epochs" if facts.epochs else f"{(facts.steps or 0) // 1000}k steps"
        score = ", ".join(f"{value:.2f} {metric}" for metric, value in facts.scores.items())
        table.add_row(
            name,
            facts.title,
            facts.task,
            facts.modality,
            facts.head,
            str(facts.input_size),
            f"{facts.lr:g} / {facts.layer_decay:g}" + ("" if facts.published else " (ours)"),
            length,
            f"{score} ± {facts.tolerance:g}",
        )
    console.print(table)
    console.print("vitp recipes show NAME · vitp recipes parity NAME · vitp plan NAME --gpu H100:8")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="One of `vitp recipes`.")],
    data: Annotated[
        str | None, typer.Option("--data", help="The set, or the mixture file of a pretraining.")
    ] = None,
    init: Annotated[str | None, typer.Option("--init", help="Model or backbone to start from.")] = None,
    gpus: Annotated[
        int, typer.Option("--gpus", min=1, max=65_536, help="Pretraining: GPUs that share a batch.")
    ] = 8,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Pretraining: what the authors' code does.")
    ] = False,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="key.key=value over the configuration. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the configuration there, for `vitp pretrain` or `finetune`."),
    ] = None,
) -> None:
    """Print a run's lab page and its whole configuration."""
    import yaml

    from vitp.core.config import save_config
    from vitp.recipes.catalogue import PretrainRecipe, recipe_of

    found = recipe_of(name)
    config = resolved(found, data, init=init, gpus=gpus, as_published=as_published, overrides=override or ())
    console = make_console()
    console.print(found.page, markup=False)
    if isinstance(found, PretrainRecipe):
        console.print(_sets_table(found))
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    if out is not None:
        save_config(config, out)
        console.print(f"wrote {out}")


def resolved(
    found: Recipe,
    data: str | None,
    *,
    init: str | None = None,
    gpus: int = 8,
    as_published: bool = False,
    overrides: Sequence[str] = (),
) -> PretrainConfig | FinetuneConfig:
    """Return a recipe's configuration without looking at any data."""
    from vitp.core.config import make_config
    from vitp.recipes.catalogue import PretrainRecipe
    from vitp.runs.finetune import FinetuneConfig
    from vitp.runs.pretrain import PretrainConfig

    place = () if data is None else (data,)
    where = f"recipe {found.name}"
    if isinstance(found, PretrainRecipe):
        start = {} if init is None else {"init": init}
        made = found.make(*place, gpus=gpus, as_published=as_published, **start)
        return make_config(PretrainConfig, made.model_dump(), overrides, where=where)
    start = {} if init is None else {"backbone": init}
    return make_config(FinetuneConfig, found.make(*place, **start).model_dump(), overrides, where=where)


def _sets_table(found: Recipe) -> Table:
    from vitp.recipes.catalogue import PretrainRecipe

    assert isinstance(found, PretrainRecipe)
    table = Table(title="Mixture", title_justify="left")
    for column in ("set", "records", "rate", "samples an epoch", "tiles at most", "tasks", "published file"):
        table.add_column(column)
    for one in found.sets:
        table.add_row(
            one.title,
            f"{one.thousands:g}k",
            f"{one.rate:g}",
            f"{one.thousands * one.rate:,.1f}k",
            str(one.max_tiles or "default"),
            ", ".join(one.tasks),
            one.disagreement or "the same",
        )
    return table


@app.command("parity")
def parity(
    name: Annotated[str, typer.Argument(help="One of `vitp recipes`.")],
    images: Annotated[
        int | None, typer.Option("--images", min=1, max=2**40, help="Training images, for lengths in epochs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Print what a run will really do: learning rates, parameter groups, order of the random changes."""
    from vitp.recipes.catalogue import recipe_of
    from vitp.recipes.parity import parity_of

    report = parity_of(recipe_of(name), images=images)
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
        return
    console = make_console()
    console.print(f"{name}: {report.steps:,} steps")
    table = Table(title="Learning rate", title_justify="left")
    table.add_column("step", justify="right")
    table.add_column("rate", justify="right")
    for step, rate in report.schedule:
        table.add_row(f"{step:,}", f"{rate:.3g}")
    console.print(table)
    table = Table(title="Parameter groups", title_justify="left")
    for column in ("part", "layer"):
        table.add_column(column)
    for column in ("rate ×", "weight decay", "tensors", "parameters"):
        table.add_column(column, justify="right")
    for row in report.groups:
        table.add_row(
            row.part,
            row.layer,
            f"{row.lr_scale:.4f}",
            f"{row.weight_decay:g}",
            str(row.tensors),
            f"{row.parameters:,}",
        )
    console.print(table)
    console.print(
        "order of changes: " + (" → ".join(f"{what} ({how})" for what, how in report.changes) or "none")
    )
    if report.published_order:
        console.print(f"published order: {' → '.join(report.published_order)}")
