"""`vitp plan`: what a run will cost, before its first step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vitp.cli.console import make_console
from vitp.core.errors import ConfigError
from vitp.core.files import to_json
from vitp.core.reading import parse_yaml, read_text

if TYPE_CHECKING:
    from vitp.data.chat import ChatTokenizer
    from vitp.data.mixture import Mixture
    from vitp.planning.devices import Machine
    from vitp.planning.finetune import FinetunePlan
    from vitp.planning.memory import ModelShape
    from vitp.planning.plan import Plan
    from vitp.planning.samples import SampleSize
    from vitp.recipes.catalogue import PretrainRecipe, Recipe
    from vitp.runs.finetune import FinetuneConfig
    from vitp.runs.pretrain import PretrainConfig


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("plan")(plan)


def plan(
    name: Annotated[str, typer.Argument(help="One of `vitp recipes`, or the YAML of a run.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Folder of prepared sets, mixture file or labelled set: counted, not assumed."
        ),
    ] = None,
    gpu: Annotated[str, typer.Option("--gpu", help="As in H100 or A40:8.")] = "H100:8",
    init: Annotated[str | None, typer.Option("--init", help="Model or backbone to start from.")] = None,
    as_published: Annotated[
        bool,
        typer.Option("--as-published", help="Pretraining: what the authors' code does, padding included."),
    ] = False,
    images: Annotated[
        int | None,
        typer.Option(
            "--images", min=1, max=2**40, help="Finetuning: training images, for lengths in epochs."
        ),
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option("--utilisation", min=0.01, max=1, help="Share of the GPU's peak that is reached."),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", min=0, max=1e6, help="Dollars an hour of one GPU.")
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=10, max=10_000_000, help="Samples whose sizes are looked at.")
    ] = 2000,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="key.key=value over the configuration. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Estimate tiles and tokens a sample, packing, peak memory, speed, hours and cost of a run."""
    from vitp.planning.devices import machine_of
    from vitp.runs.finetune import FinetuneConfig
    from vitp.runs.pretrain import PretrainConfig

    machine = machine_of(gpu)
    config, recipe = _config(name, data, machine, init, as_published, override or ())
    planners: dict[type, Callable[..., tuple[Any, list[tuple[str, str]], list[str]]]] = {
        PretrainConfig: partial(_plan_pretraining, as_published=as_published, count=samples),
        FinetuneConfig: partial(_plan_finetune, images=images),
    }
    planner = planners[type(config)]
    found, rows, basis = planner(config, recipe, data, machine, utilisation=utilisation, price=price)
    _print(rows, found.to_json(), basis + _assumptions(machine, found.utilisation, price), as_json)


def _config(
    name: str,
    data: Path | None,
    machine: Machine,
    init: str | None,
    as_published: bool,
    overrides: Sequence[str],
) -> tuple[PretrainConfig | FinetuneConfig, Recipe | None]:
    """Return the run, and the recipe where it is one."""
    from vitp.cli.recipes import resolved
    from vitp.recipes.catalogue import recipe_of

    if Path(name).suffix in (".yaml", ".yml"):
        return _from_file(Path(name), data, init, overrides), None
    recipe = recipe_of(name)
    place = None if data is None else str(data)
    return (
        resolved(
            recipe, place, init=init, gpus=machine.count, as_published=as_published, overrides=overrides
        ),
        recipe,
    )


def _from_file(
    path: Path, data: Path | None, init: str | None, overrides: Sequence[str]
) -> PretrainConfig | FinetuneConfig:
    import yaml

    from vitp.core.config import load_config
    from vitp.runs.finetune import FinetuneConfig
    from vitp.runs.pretrain import PretrainConfig

    try:
        values: Any = parse_yaml(read_text(path))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise ConfigError(
            f"can't be read ({line}{reason})", where=str(path), fix="name the YAML of a run"
        ) from error
    more = list(overrides)
    if isinstance(values, dict) and "task" in values:
        more += [f"data.root={to_json(str(data))}"] if data is not None else []
        more += [f"backbone.init={to_json(init)}"] if init is not None else []
        return load_config(FinetuneConfig, path, more)
    more += [f"data.mixture=[{to_json(str(data))}]"] if data is not None else []
    more += [f"model.init={to_json(init)}"] if init is not None else []
    return load_config(PretrainConfig, path, more)


def _plan_pretraining(
    config: PretrainConfig,
    recipe: Recipe | None,
    data: Path | None,
    machine: Machine,
    *,
    as_published: bool,
    count: int,
    utilisation: float | None,
    price: float | None,
) -> tuple[Plan, list[tuple[str, str]], list[str]]:
    from vitp.planning.model import planned_model
    from vitp.planning.plan import plan_pretraining, run_shape
    from vitp.recipes.catalogue import PretrainRecipe

    shape = run_shape(config, pads_dropped=as_published)
    known = recipe if isinstance(recipe, PretrainRecipe) else None
    model, chat = planned_model(config.model)
    if known is not None and data is None:
        sizes, basis = _assumed(known, model, count)
    else:
        sizes, basis = _counted(config, known, model, chat, count)
    found = plan_pretraining(
        model,
        shape,
        sizes,
        machine,
        utilisation=utilisation,
        dollars_per_hour=price,
    )
    parameters = ", ".join(f"{part} {number / 1e6:.0f} M" for part, number in model.parameters.items())
    return found, _rows(found), [f"model: {config.model.init} ({parameters} parameters)", basis]


def _assumed(recipe: PretrainRecipe, model: ModelShape, count: int) -> tuple[list[SampleSize], str]:
    from vitp.planning.samples import AssumedSet, assumed_samples
    from vitp.recipes.paper.tables import PRETRAINING
    from vitp.recipes.paper.typical_sizes import TYPICAL

    sets = [
        AssumedSet(one.thousands * one.rate, TYPICAL[one.name], one.max_tiles or PRETRAINING.max_tiles)
        for one in recipe.sets
    ]
    basis = "samples: drawn from the usual image sizes of the paper's sets, texts guessed; --data counts them"
    return assumed_samples(sets, model.tile, count), basis


def _counted(
    config: PretrainConfig,
    recipe: PretrainRecipe | None,
    model: ModelShape,
    chat: ChatTokenizer | None,
    count: int,
) -> tuple[list[SampleSize], str]:
    from vitp.planning.samples import measured_samples

    sequence = config.data.sequence
    mixture = _mixture(config, recipe)
    sizes = measured_samples(
        mixture, model.tile, sequence.max_tiles, count, chat=chat, max_turns=sequence.max_turns
    )
    how = "counted by the model's tokenizer" if chat is not None else "estimated from the characters"
    return sizes, f"samples: {len(sizes):,} of {len(mixture):,} an epoch, from the data; tokens {how}"


def _mixture(config: PretrainConfig, recipe: PretrainRecipe | None) -> Mixture:
    """Return the mixture of the data; a folder of prepared sets stands for the recipe's mixture over them."""
    from vitp.data.mixture import Mixture
    from vitp.data.sources import open_entry
    from vitp.objectives.vitp import open_mixture
    from vitp.recipes.paper.pretraining import mixture_table

    folder = Path(config.data.mixture[0])
    if recipe is None or not folder.is_dir() or (folder / "mixture.json").is_file():
        return open_mixture(config.data, config.seed)
    table = mixture_table(recipe.sets, folder, available=True)
    return Mixture([open_entry(name, fields, folder / name) for name, fields in table.items()], config.seed)


def _plan_finetune(
    config: FinetuneConfig,
    recipe: Recipe | None,
    data: Path | None,
    machine: Machine,
    *,
    images: int | None,
    utilisation: float | None,
    price: float | None,
) -> tuple[FinetunePlan, list[tuple[str, str]], list[str]]:
    from vitp.planning.finetune import plan_finetune
    from vitp.recipes.catalogue import DownstreamRecipe
    from vitp.recipes.parity import full_size_model, published_images
    from vitp.runs.finetune import run_splits
    from vitp.tasks.build import task_of
    from vitp.tasks.data import classes_of, open_labelled

    basis = "FLOPs: counted on the model without weights, at its training size"
    if data is not None:
        kind = task_of(config.task).labels(config.head)
        labelled = open_labelled(config.data.root, config.data.format, **config.data.options)
        classes: Sequence[str] = classes_of(labelled, kind)
        images = images or len(run_splits(labelled, config, kind)["train"])
        counted = f"{images:,} training images, from the data"
    elif isinstance(recipe, DownstreamRecipe):
        classes = [f"class {number}" for number in range(recipe.facts.classes)]
        if images is None and config.train.epochs is not None:
            images = published_images(recipe.name)
        counted = "length in steps" if images is None else f"{images:,} training images, as published"
    else:
        raise ConfigError("no data to count", where="vitp plan", fix="name it with --data")
    found = plan_finetune(
        config,
        lambda: full_size_model(config, classes),
        machine,
        images=images,
        utilisation=utilisation,
        dollars_per_hour=price,
    )
    lines = [
        f"model: the paper's ViT-L, {found.parameters / 1e6:.0f} M parameters in all",
        basis,
        counted,
    ]
    return found, _finetune_rows(found), lines


def _assumptions(machine: Machine, utilisation: float, price: float | None) -> list[str]:
    device = machine.device
    cost = "your price" if price is not None else f"assumed ${device.dollars_per_hour:.2f} an hour; --price"
    return [
        f"speed: {utilisation:.0%} of the data sheet's {device.bf16_tflops:g} bf16 TFLOP/s, assumed; --utilisation, "
        "or measure with `vitp bench`",
        f"cost: {cost}",
        "memory: each GPU holds the whole model (train.parallel: ddp)",
        "not counted: reading data too slowly, talk between GPUs, validation, checkpoints",
    ]


def _rows(found: Plan) -> list[tuple[str, str]]:
    from vitp.planning.memory import GIB

    memory = found.memory
    flops = sum(found.forward_tflop.values())
    shares = ", ".join(f"{part} {value / flops:.0%}" for part, value in found.forward_tflop.items())
    parts = ", ".join(
        f"{name} {getattr(memory, name) / GIB:.1f}"
        for name in ("weights", "optimizer", "copies", "gradients", "vision", "language", "logits")
    )
    verdict = "fits" if found.fits else "does not fit"
    return [
        ("machine", f"{found.machine}, {found.machine.device.memory_gib:g} GiB each"),
        ("tiles a sample", f"{found.tiles:.2f}"),
        ("tokens a sample", f"{found.tokens:,.0f}, {found.kept_tokens:,.0f} of them computed"),
        ("packing efficiency", f"{found.packing:.0%}"),
        ("forward TFLOP a sample", f"{flops:.2f} ({shares})"),
        ("slowest rank", f"{found.imbalance:.2f} × the mean"),
        ("peak memory", f"{memory.total / GIB:.1f} GiB, {verdict} ({parts})"),
        ("samples a second", f"{found.samples_per_second:.1f}"),
        ("hours", f"{found.hours:.1f} for {found.run.steps:,} steps of {found.run.global_batch}"),
        ("GPU hours, cost", f"{found.gpu_hours:.0f}, ${found.dollars:,.0f}"),
    ]


def _finetune_rows(found: FinetunePlan) -> list[tuple[str, str]]:
    return [
        ("machine", str(found.machine)),
        ("input", f"{found.input_size} px"),
        ("forward TFLOP an image", f"{found.forward_tflop:.2f}"),
        ("images a second", f"{found.images_per_second:.1f}"),
        ("hours", f"{found.hours:.1f} for {found.steps:,} steps of {found.batch}"),
        ("GPU hours, cost", f"{found.hours * found.machine.count:.0f}, ${found.dollars:,.0f}"),
    ]


def _print(rows: list[tuple[str, str]], values: dict[str, Any], basis: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps({**values, "based_on": basis}, indent=2, ensure_ascii=False))
        return
    console = make_console()
    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    console.print("based on:")
    for line in basis:
        console.print(f"  {line}", markup=False)
