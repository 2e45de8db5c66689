"""The cost of a pretraining run, before its first step: tiles, tokens, memory, speed, hours.

Batches are put together as in training, from the sizes of samples: the same sharing among ranks, the same dropping,
the same packing. Floating-point operations come from `vitp.models.flops`, memory from `vitp.planning.memory`, and
speed from one assumption: the share of the GPU's peak that training reaches (`vitp.planning.devices`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vitp.core.errors import ConfigError
from vitp.data.packing import first_fit_decreasing
from vitp.models.flops import forward_flops, patch_embed_flops, training_flops
from vitp.models.vrl import VRLSettings, count_kept
from vitp.objectives.vitp import ViTPSettings
from vitp.planning.devices import Machine
from vitp.planning.memory import GIB, BatchLoad, Memory, step_memory
from vitp.planning.model import ModelShape
from vitp.planning.samples import SampleSize
from vitp.runs.micro_batch import USABLE, BatchChoice, batch_choices
from vitp.runs.pretrain import PretrainConfig

_SIMULATED_STEPS = 24
"""Steps that are put together for a plan; the largest micro-batch among them decides the memory."""


@dataclass(frozen=True)
class RunShape:
    """Settings of a run that decide its cost.

    Attributes:
        steps: Optimizer steps.
        global_batch: Records a step.
        micro_batches: Parts that a rank cuts its share of a step into.
        pack: Several records share a row.
        vrl: Which image tokens are dropped.
        checkpointing: Activations are computed a second time.
        bf16: Computed under autocast, in half the bytes.
        ema: There is a moving average of the weights.
        pads_dropped: The published code: sequences are padded back to their length before tokens were dropped, each
            batch to its longest record, and logits are made for all tokens.
    """

    steps: int
    global_batch: int
    micro_batches: int
    pack: bool
    vrl: VRLSettings
    checkpointing: bool
    bf16: bool = True
    ema: bool = False
    pads_dropped: bool = False


def run_shape(config: PretrainConfig, *, pads_dropped: bool = False) -> RunShape:
    """Return the settings of a run that decide its cost; see `RunShape`.

    Raises:
        ConfigError: It has no language model; what such a run costs isn't known.
    """
    objective = config.objective
    if not isinstance(objective, ViTPSettings):
        raise ConfigError(
            f"only runs with a language model can be planned, and {objective.name} has none"
            if not objective.has_language_model
            else f"only runs of visual instructions alone can be planned, not {objective.name}",
            where="objective",
            fix="time a few steps of the run instead",
        )
    return RunShape(
        steps=config.train.steps,
        global_batch=config.data.global_batch,
        micro_batches=config.train.micro_batches,
        pack=config.data.sequence.pack,
        vrl=objective.vrl,
        checkpointing=config.model.gradient_checkpointing or config.compute.recompute == "full",
        bf16=config.train.precision != "fp32",
        ema=config.train.ema is not None,
        pads_dropped=pads_dropped,
    )


@dataclass(frozen=True)
class PretrainPlan:
    """The predicted cost of a pretraining run.

    Attributes:
        machine: GPUs that share the run.
        run: The configuration.
        tiles: Mean tiles a sample.
        tokens, kept_tokens: Mean tokens a sample before and after image tokens are dropped.
        packing: Share of the rows' token slots that hold tokens.
        forward_tflop: Mean forward TFLOP a sample: vision tower, projector and language model.
        imbalance: Slowest rank's work in a step over the mean rank's, mean over steps.
        memory: At the worst moment on one GPU.
        utilisation: Assumed share of the GPU's peak.
        samples_per_second: Samples per second of all GPUs.
        dollars_per_hour: Dollars per hour of one GPU.
    """

    machine: Machine
    run: RunShape
    tiles: float
    tokens: float
    kept_tokens: float
    packing: float
    forward_tflop: dict[str, float]
    imbalance: float
    memory: Memory
    utilisation: float
    samples_per_second: float
    dollars_per_hour: float

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return self.run.steps * self.run.global_batch / self.samples_per_second / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return self.hours * self.machine.count

    @property
    def dollars(self) -> float:
        """Rent of all GPUs."""
        return self.gpu_hours * self.dollars_per_hour

    @property
    def fits(self) -> bool:
        """Whether the memory of a GPU suffices, with 8 % for what isn't counted."""
        return self.memory.total / GIB <= USABLE * self.machine.device.memory_gib

    def to_json(self) -> dict[str, Any]:
        """Return plain values, what follows from them included."""
        derived = {name: getattr(self, name) for name in ("hours", "gpu_hours", "dollars", "fits")}
        run = {**asdict(self.run), "vrl": self.run.vrl.model_dump()}
        return {**asdict(self), "run": run, "memory_bytes": self.memory.total, **derived}


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of one rank.

    Attributes:
        work: Sizes.
        lengths: Tokens of each record, after dropping.
        slots: Token slots of its rows, padding counted.
        flops: Forward FLOPs of the vision tower, the projector and the language model.
    """

    work: BatchLoad
    lengths: tuple[int, ...]
    slots: int
    flops: dict[str, float]


def plan_pretraining(
    model: ModelShape,
    run: RunShape,
    samples: Sequence[SampleSize],
    machine: Machine,
    *,
    utilisation: float | None = None,
    dollars_per_hour: float | None = None,
) -> PretrainPlan:
    """Return the plan of a run.

    Args:
        model: Shapes.
        run: Configuration.
        samples: Sizes of samples in random order; they are drawn from with repetition.
        machine: GPUs.
        utilisation: Share of the peak; None: the device's assumed one.
        dollars_per_hour: Dollars per hour of one GPU; None: the device's assumed one.
    """
    rng = np.random.default_rng(0)
    steps = [_step(model, run, samples, machine.count, rng) for _ in range(_SIMULATED_STEPS)]
    # Ranks wait for each other once a step: the one with most work decides.
    work_SR = np.array([[sum(sum(b.flops.values()) for b in rank) for rank in step] for step in steps])
    reached = machine.device.utilisation if utilisation is None else utilisation
    seconds = training_flops(float(work_SR.max(1).mean()), recompute=run.checkpointing) / (
        machine.device.bf16_tflops * 1e12 * reached
    )
    batches = [batch for step in steps for rank in step for batch in rank]
    count = sum(len(batch.lengths) for batch in batches)
    used = sum(sum(batch.lengths) for batch in batches)
    flops = {
        part: sum(batch.flops[part] for batch in batches) / count / 1e12
        for part in ("vision", "projector", "language")
    }
    settings = {
        "bf16": run.bf16,
        "checkpointing": run.checkpointing,
        "accumulates": run.micro_batches > 1,
        "ema": run.ema,
    }
    memory = (step_memory(model, batch.work, **settings) for batch in batches)
    return PretrainPlan(
        machine=machine,
        run=run,
        tiles=sum(batch.work.tiles for batch in batches) / count,
        tokens=float(np.mean([one.text + one.tiles * model.image_tokens for one in samples])),
        kept_tokens=used / count,
        packing=used / sum(batch.slots for batch in batches),
        forward_tflop=flops,
        imbalance=float((work_SR.max(1) / work_SR.mean(1)).mean()),
        memory=max(memory, key=lambda one: one.total),
        utilisation=reached,
        samples_per_second=run.global_batch / seconds,
        dollars_per_hour=machine.device.dollars_per_hour if dollars_per_hour is None else dollars_per_hour,
    )


def best_batch(
    model: ModelShape, run: RunShape, samples: Sequence[SampleSize], machine: Machine
) -> tuple[BatchChoice, Memory] | None:
    """Return the fastest cut of a step that is predicted to fit into a GPU, as `train.batch: auto` looks for it.

    Args:
        model, run, samples, machine: As in `plan_pretraining`.

    Returns:
        The choice and its memory at the worst moment; None: nothing fits, or the step can't be shared evenly.
    """
    share, rest = divmod(run.global_batch, machine.count)
    if rest or not share:
        return None
    limit = USABLE * machine.device.memory_gib * GIB
    for choice in batch_choices(share):
        tried = replace(run, micro_batches=choice.micro_batches, checkpointing=choice.recompute == "full")
        memory = _worst_memory(model, tried, share, samples, np.random.default_rng(0))
        if memory.total <= limit:
            return choice, memory
    return None


def _worst_memory(
    model: ModelShape, run: RunShape, share: int, samples: Sequence[SampleSize], rng: np.random.Generator
) -> Memory:
    """Return the memory of the largest of some micro-batches of a GPU's share of a step."""
    found = []
    size = max(1, share // run.micro_batches)
    for _ in range(_SIMULATED_STEPS):
        chosen = [samples[index] for index in rng.integers(len(samples), size=size).tolist()]
        work = micro_batch(model, run, chosen, rng).work
        found.append(
            step_memory(
                model,
                work,
                bf16=run.bf16,
                checkpointing=run.checkpointing,
                accumulates=run.micro_batches > 1,
                ema=run.ema,
            )
        )
    return max(found, key=lambda one: one.total)


def _step(
    model: ModelShape, run: RunShape, samples: Sequence[SampleSize], ranks: int, rng: np.random.Generator
) -> list[list[MicroBatch]]:
    """Return the micro-batches of each rank in one step."""
    size = max(1, run.global_batch // (ranks * run.micro_batches))

    def drawn() -> MicroBatch:
        chosen = [samples[index] for index in rng.integers(len(samples), size=size).tolist()]
        return micro_batch(model, run, chosen, rng)

    return [[drawn() for _ in range(run.micro_batches)] for _ in range(ranks)]


def micro_batch(
    model: ModelShape, run: RunShape, samples: Sequence[SampleSize], rng: np.random.Generator
) -> MicroBatch:
    """Return what a micro-batch of these samples costs."""
    kept = []
    for one in samples:
        image_tokens = one.tiles * model.image_tokens
        treated = rng.random() < run.vrl.probability and not run.pads_dropped
        kept.append(count_kept(image_tokens, run.vrl.ratio) if treated else image_tokens)
    lengths = [one.text + tokens for one, tokens in zip(samples, kept, strict=True)]
    rows = first_fit_decreasing(lengths, max(lengths)) if run.pack else [[i] for i in range(len(lengths))]
    slots = len(rows) * (-(-max(sum(lengths[i] for i in row) for row in rows) // 8) * 8)
    # Padding is not computed, except by the published code.
    computed = slots if run.pads_dropped else sum(lengths)
    tiles, supervised = sum(one.tiles for one in samples), sum(one.supervised for one in samples)
    work = BatchLoad(tiles, sum(kept), computed, computed, supervised)
    return MicroBatch(work, tuple(lengths), slots, _flops(model, run, work, lengths))


def _flops(model: ModelShape, run: RunShape, work: BatchLoad, lengths: Sequence[int]) -> dict[str, float]:
    """Return the forward FLOPs of each part."""
    tokens = model.patches + model.prefix
    # Tokens of a causal sequence see the first half of it on average.
    keys = sum(length * (length + 1) / 2 for length in lengths) / max(1, sum(lengths))
    folded, width = model.vision.width * model.shuffle**2, model.language.width
    return {
        "vision": forward_flops(model.vision, work.tiles * tokens, tokens)
        + patch_embed_flops(model.vision.width, model.patch_size, work.tiles * model.patches, model.channels),
        "projector": 2.0 * width * (folded + width) * work.image_tokens,
        "language": forward_flops(
            model.language,
            work.tokens,
            keys,
            logits=work.tokens if run.pads_dropped else work.supervised,
        ),
    }
