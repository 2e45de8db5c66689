"""The plan of a run, from a recipe's name or a YAML file to rows of a table: `vitp plan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from vitp.core.config import load_config
from vitp.core.errors import ConfigError
from vitp.core.files import to_json
from vitp.core.reading import parse_yaml, read_text, yaml_fault
from vitp.data.chat import ChatTokenizer
from vitp.data.mixture import Mixture
from vitp.data.sources import open_entry
from vitp.objectives.vitp import open_mixture
from vitp.planning.devices import Machine, machine_of
from vitp.planning.finetune import plan_finetune
from vitp.planning.memory import GIB
from vitp.planning.model import ModelShape, planned_model
from vitp.planning.plan import best_batch, plan_pretraining, run_shape
from vitp.planning.samples import AssumedSet, SampleSize, assumed_samples, measured_samples
from vitp.recipes.catalogue import DownstreamRecipe, PretrainRecipe, Recipe, recipe_config, recipe_of
from vitp.recipes.paper.pretraining import mixture_table
from vitp.recipes.paper.tables import PRETRAINING_FACTS
from vitp.recipes.paper.typical_sizes import TYPICAL
from vitp.recipes.parity import full_size_model, placeholder_classes, published_images
from vitp.runs.finetune import FinetuneConfig, run_splits
from vitp.runs.pretrain import PretrainConfig
from vitp.tasks.base import InputSize
from vitp.tasks.build import task_of
from vitp.tasks.data import classes_of, open_labelled
from vitp.tasks.sizes import fitted_sizes


@dataclass(frozen=True)
class PlanRequest:
    """Arguments of `vitp plan`.

    Attributes:
        name: A recipe, or the YAML file of a run.
        data: Prepared data that are counted; None: sizes are assumed.
        gpu: Kind and number of GPUs, such as "H100:8".
        init: Model or backbone to start from; None: the configuration's own.
        as_published: Pretraining as the authors' code does it, padding included.
        images: Training images of a finetuning, for lengths in epochs.
        utilisation: Share of the GPU's peak; None: an assumed one.
        price: Dollars an hour of one GPU; None: an assumed one.
        samples: Number of samples whose sizes are looked at.
        overrides: `key.key=value` over the configuration.
    """

    name: str
    data: Path | None = None
    gpu: str = "H100:8"
    init: str | None = None
    as_published: bool = False
    images: int | None = None
    utilisation: float | None = None
    price: float | None = None
    samples: int = 2000
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class PlannedRun:
    """The plan of a run.

    Attributes:
        rows: (quantity, value) as people read them.
        values: The same and more as plain values.
        basis: Sentences that say what was counted and what assumed.
    """

    rows: list[tuple[str, str]]
    values: dict[str, Any]
    basis: list[str]


def plan_run(request: PlanRequest) -> PlannedRun:
    """Return what a run will cost.

    Raises:
        VitpError: There is no such recipe, file, GPU or data, or the length of the run can't be known.
    """
    machine = machine_of(request.gpu)
    recipe: Recipe | None = None
    if Path(request.name).suffix in (".yaml", ".yml"):
        config = _from_file(Path(request.name), request)
    else:
        recipe = recipe_of(request.name)
        config = recipe_config(
            recipe,
            None if request.data is None else str(request.data),
            init=request.init,
            gpus=machine.count,
            as_published=request.as_published,
            overrides=request.overrides,
        )
    planners: dict[type, Callable[..., PlannedRun]] = {
        PretrainConfig: _pretraining,
        FinetuneConfig: _finetuning,
    }
    made = planners[type(config)](config, recipe, machine, request)
    device, price = machine.device, f"assumed ${machine.device.dollars_per_hour:.2f} an hour; --price"
    kind = "bf16" if device.bf16 else "fp16"
    assumed = [
        f"speed: {made.values['utilisation']:.0%} of the data sheet's {device.bf16_tflops:g} {kind} TFLOP/s, assumed; "
        "--utilisation, or measure with `vitp bench`",
        f"cost: {price if request.price is None else 'your price'}",
        "memory: each GPU holds the whole model (train.parallel: ddp)",
        "not counted: reading data too slowly, talk between GPUs, validation, checkpoints",
    ]
    if not device.bf16:
        assumed.append(f"precision: {device.name} has no bf16; this is of a run with train.precision: fp16")
    return PlannedRun(made.rows, made.values, made.basis + assumed)


def _from_file(path: Path, request: PlanRequest) -> PretrainConfig | FinetuneConfig:
    try:
        values: Any = parse_yaml(read_text(path))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        what = f"can't be read ({yaml_fault(error)})"
        raise ConfigError(what, where=str(path), fix="name the YAML of a run") from error
    more, data, init = list(request.overrides), request.data, request.init
    if isinstance(values, dict) and "task" in values:
        more += [f"data.root={to_json(str(data))}"] if data is not None else []
        more += [f"backbone.init={to_json(init)}"] if init is not None else []
        return load_config(FinetuneConfig, path, more)
    more += [f"data.mixture=[{to_json(str(data))}]"] if data is not None else []
    more += [f"model.init={to_json(init)}"] if init is not None else []
    return load_config(PretrainConfig, path, more)


def _pretraining(
    config: PretrainConfig, recipe: Recipe | None, machine: Machine, request: PlanRequest
) -> PlannedRun:
    shape = run_shape(config, pads_dropped=request.as_published)  # says first what can't be planned
    recipe = recipe if isinstance(recipe, PretrainRecipe) else None
    model, chat = planned_model(config.model)
    if recipe is not None and request.data is None:
        most = PRETRAINING_FACTS.max_tiles
        sets = [AssumedSet(s.thousands * s.rate, TYPICAL[s.name], s.max_tiles or most) for s in recipe.sets]
        sizes = assumed_samples(sets, model.tile, request.samples)
        samples = (
            "samples: drawn from the usual image sizes of the paper's sets, texts guessed; --data counts them"
        )
    else:
        sizes, samples = _counted_sizes(config, recipe, model, chat, request.samples)
    found = plan_pretraining(
        model,
        shape,
        sizes,
        machine,
        utilisation=request.utilisation,
        dollars_per_hour=request.price,
    )
    memory, flops = found.memory, sum(found.forward_tflop.values())
    shares = ", ".join(f"{part} {value / flops:.0%}" for part, value in found.forward_tflop.items())
    parts = [*("weights", "optimizer", "copies", "gradients", "vision", "language", "logits")]
    parts += ["average"] if memory.average else []
    parts_gib = ", ".join(f"{name} {getattr(memory, name) / GIB:.1f}" for name in parts)
    verdict = "fits" if found.fits else "does not fit"
    rows = [
        ("machine", f"{found.machine}, {found.machine.device.memory_gib:g} GiB each"),
        ("tiles a sample", f"{found.tiles:.2f}"),
        ("tokens a sample", f"{found.tokens:,.0f}, {found.kept_tokens:,.0f} of them computed"),
        ("packing efficiency", f"{found.packing:.0%}"),
        ("forward TFLOP a sample", f"{flops:.2f} ({shares})"),
        ("slowest rank", f"{found.imbalance:.2f} × the mean"),
        ("peak memory", f"{memory.total / GIB:.1f} GiB, {verdict} ({parts_gib})"),
        ("samples a second", f"{found.samples_per_second:.1f}"),
        ("hours", f"{found.hours:.1f} for {found.run.steps:,} steps of {found.run.global_batch}"),
        ("GPU hours, cost", f"{found.gpu_hours:.0f}, ${found.dollars:,.0f}"),
    ]
    best = None if request.as_published else best_batch(model, shape, sizes, machine)
    if best is not None:
        choice, needed = best
        rows.append(
            (
                "train.batch: auto",
                f"{choice} ({needed.total / GIB:.1f} GiB): train.micro_batches={choice.micro_batches} "
                f"compute.recompute={choice.recompute}",
            )
        )
    parameters = ", ".join(f"{part} {number / 1e6:.0f} M" for part, number in model.parameters.items())
    basis = [f"model: {config.model.init} ({parameters} parameters)", samples]
    values = found.to_json()
    if best is not None:
        values["best_batch"] = {**asdict(best[0]), "memory_bytes": best[1].total}
    return PlannedRun(rows, values, basis)


def _counted_sizes(
    config: PretrainConfig,
    recipe: PretrainRecipe | None,
    model: ModelShape,
    chat: ChatTokenizer | None,
    count: int,
) -> tuple[list[SampleSize], str]:
    sequence, folder = config.data.sequence, Path(config.data.mixture[0])
    if recipe is None or not folder.is_dir() or (folder / "mixture.json").is_file():
        mixture = open_mixture(config.data, config.seed)
    else:
        # A folder of prepared sets stands for the recipe's mixture over them.
        table = mixture_table(recipe.sets, folder, available=True)
        entries = [open_entry(name, fields, folder / name) for name, fields in table.items()]
        mixture = Mixture(entries, config.seed)
    sizes = measured_samples(
        mixture, model.tile, sequence.max_tiles, count, chat=chat, max_turns=sequence.max_turns
    )
    how = "counted by the model's tokenizer" if chat is not None else "estimated from the characters"
    return sizes, f"samples: {len(sizes):,} of {len(mixture):,} an epoch, from the data; tokens {how}"


def _finetuning(
    config: FinetuneConfig, recipe: Recipe | None, machine: Machine, request: PlanRequest
) -> PlannedRun:
    images = request.images
    if request.data is not None:
        kind = task_of(config.task).labels(config.head)
        labelled = open_labelled(config.data.root, config.data.format, **config.data.options)
        classes: Sequence[str] = classes_of(labelled, kind)
        train = run_splits(labelled, config, kind)["train"]
        images = images or len(train)
        if (
            config.data.sizes == "fit"
            and config.data.resize is None
            and not (config.data.crop or config.augment.crop)
        ):
            side = fitted_sizes(train, kind, config.backbone.image_size or 448).side
            data = config.data.model_copy(update={"resize": InputSize(mode="fixed", size=side)})
            config = config.model_copy(update={"data": data})
        counted = f"{images:,} training images, from the data"
        backbone = config.backbone.model_copy(
            update={"channels": config.backbone.channels or labelled.channels}
        )
        config = config.model_copy(update={"backbone": backbone})
    elif isinstance(recipe, DownstreamRecipe):
        classes = placeholder_classes(recipe.facts.classes)
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
        utilisation=request.utilisation,
        dollars_per_hour=request.price,
    )
    rows = [
        ("machine", str(found.machine)),
        ("input", f"{found.input_size} px"),
        ("forward TFLOP an image", f"{found.forward_tflop:.2f}"),
        ("images a second", f"{found.images_per_second:.1f}"),
        ("hours", f"{found.hours:.1f} for {found.steps:,} steps of {found.batch}"),
        ("GPU hours, cost", f"{found.hours * found.machine.count:.0f}, ${found.dollars:,.0f}"),
    ]
    if config.train.ema is not None:
        rows.append(
            ("train.ema", f"{4 * found.parameters / GIB:.2f} GiB more for the average of the weights")
        )
    basis = [
        f"model: the paper's ViT-L, {found.parameters / 1e6:.0f} M parameters in all",
        "FLOPs: counted on the model without weights, at its training size",
        counted,
    ]
    return PlannedRun(rows, found.to_json(), basis)
