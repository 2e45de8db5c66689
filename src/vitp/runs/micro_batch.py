"""How a rank's share of a step is cut into micro-batches, and what is recomputed: `train.batch: auto`.

The records of a step never change, nor does what is learned from them: only how many are computed at once. `vitp plan`
ranks the same choices by the memory that its formulas predict; a run takes the first that a probe of real batches fits.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from vitp.core import distributed
from vitp.core.config import CONFIG_FILE, load_config
from vitp.core.errors import ConfigError
from vitp.engine import checkpoint
from vitp.engine.loading import to_device
from vitp.engine.numerics import amp_dtype, autocast
from vitp.models.compute import configure

if TYPE_CHECKING:
    from vitp.objectives.vitp import ViTPObjective
    from vitp.runs.pretrain import PretrainConfig

USABLE = 0.92
"""Share of a GPU's memory that a step may take: the rest is for the context, the allocator's gaps and buckets."""

_RECOMPUTE_COST = 4 / 3
_FIXED_RECORDS = 2.0
"""Records whose time a micro-batch takes beside its own: launches, gaps, half-filled kernels. An assumption, which only
ranks the choices."""

_PROBED_STEPS = 8


@dataclass(frozen=True)
class BatchChoice:
    """One way to compute a rank's share of a step.

    Attributes:
        micro_batches: Parts of the share.
        records: Records of a part.
        recompute: As `compute.recompute`.
    """

    micro_batches: int
    records: int
    recompute: Literal["none", "full"]

    @property
    def cost(self) -> float:
        """Time of a record, relative to one in an endless micro-batch without recomputation."""
        return (_RECOMPUTE_COST if self.recompute == "full" else 1.0) * (1 + _FIXED_RECORDS / self.records)

    def __str__(self) -> str:
        return (
            f"{self.records} records a micro-batch, {self.micro_batches} a step, recompute {self.recompute}"
        )


def batch_choices(share: int) -> list[BatchChoice]:
    """Return all ways to cut a share of so many records, the one that is expected to be fastest first."""
    found = [
        BatchChoice(parts, share // parts, recompute)
        for parts in range(1, share + 1)
        if share % parts == 0
        for recompute in ("none", "full")
    ]
    return sorted(found, key=lambda choice: choice.cost)


def first_fitting(share: int, fits: Callable[[BatchChoice], bool]) -> BatchChoice | None:
    """Return the fastest choice that fits on every rank. A collective call."""
    for choice in batch_choices(share):
        if all(distributed.gather(fits(choice))):
            return choice
    return None


def chosen_batch(config: PretrainConfig, run_dir: Path, build: Any) -> tuple[PretrainConfig, list[str]]:
    """Return a configuration whose `train.batch` is fixed, and what is to be said about it.

    Args:
        config: Of the run.
        run_dir: A run that is there keeps its choice.
        build: Configuration → objective and source with a language model.

    Raises:
        ConfigError: Nothing fits.
    """
    if config.train.batch == "fixed":
        return config, []
    file = run_dir / CONFIG_FILE
    if file.is_file() and checkpoint.latest(run_dir) is not None:
        before = load_config(type(config), file)
        choice = BatchChoice(before.train.micro_batches, 0, "none")
        return _with(config, choice, before.compute.recompute), ["train.batch: as the run began"]
    device = distributed.resolve_device(config.train.device)
    if device.type != "cuda":
        fixed = config.train.model_copy(update={"batch": "fixed"})
        said = f"train.batch: no GPU whose memory could be filled; train.micro_batches stays {fixed.micro_batches}"
        return config.model_copy(update={"train": fixed}), [said]
    share, rest = divmod(config.data.global_batch, distributed.world_size())
    if rest:
        return config, []  # said by the run itself, with what to do
    limit = USABLE * torch.cuda.get_device_properties(device).total_memory
    objective, source = build(config)
    probe = MemoryProbe(config, objective, source, device)
    chosen = first_fitting(share, lambda choice: probe.bytes(choice) <= limit)
    if chosen is None:
        raise ConfigError(
            "not even one record at a time fits into the GPU's memory",
            where="train.batch",
            fix="lower data.sequence.max_tiles, or train.parallel: fsdp on several GPUs",
        )
    return _with(config, chosen, chosen.recompute), [
        f"train.batch: {chosen} (the fastest that a probe step fits)"
    ]


def _with(config: PretrainConfig, choice: BatchChoice, recompute: str) -> PretrainConfig:
    train = config.train.model_copy(update={"batch": "fixed", "micro_batches": choice.micro_batches})
    compute = config.compute.model_copy(update={"recompute": recompute})
    model = config.model.model_copy(update={"gradient_checkpointing": False})
    return config.model_copy(update={"train": train, "compute": compute, "model": model})


class MemoryProbe:
    """Measures what a step of a run takes on its device.

    Args:
        config: Of the run.
        objective, source: Its model and batches.
        device: Where.
    """

    def __init__(
        self, config: PretrainConfig, objective: ViTPObjective, source: Any, device: torch.device
    ) -> None:
        self.config, self.source, self.device = config, source, device
        self.objective = objective.to(device).train()
        self.dtype = amp_dtype(config.train.precision, device)

    def bytes(self, choice: BatchChoice) -> float:
        """Return the most that a step needs with all that is kept; infinite where memory did not suffice."""
        compute = self.config.compute.model_copy(update={"recompute": choice.recompute})
        configure(self.objective.vlm, compute)
        self.source.micro_batches = choice.micro_batches
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        kept = 2 + (self.config.train.ema is not None)  # AdamW's moments, and the average of the weights
        moments = sum(kept * p.numel() * p.element_size() for p in trained)
        try:
            self._forget(trained)
            torch.cuda.reset_peak_memory_stats(self.device)
            for batch in self._largest():
                with autocast(self.device, self.dtype):
                    loss = sum(self.objective(to_device(batch, self.device)).values())
                torch.autograd.backward(loss)
            return float(torch.cuda.max_memory_allocated(self.device) + moments)
        except torch.cuda.OutOfMemoryError:
            return float("inf")
        finally:
            self._forget(trained)

    def _largest(self) -> Iterator[Any]:
        """Return the batches with most tiles and most tokens of some steps: twice the first, to accumulate upon."""
        rank, world = distributed.rank(), distributed.world_size()
        batches = [self.source(step, 0, rank, world) for step in range(_PROBED_STEPS)]
        most = max(batches, key=lambda batch: len(batch.tiles_TCHW))
        yield from (most, max(batches, key=lambda batch: batch.tokens), most)

    def _forget(self, trained: list[Any]) -> None:
        for parameter in trained:
            parameter.grad = None
        gc.collect()
        torch.cuda.empty_cache()
