"""How a rank's share of a step is cut into micro-batches, and what is recomputed: `train.batch: auto`.

The records of a step never change, nor does what is learned from them: only how many are computed at once. (Batch norm
alone knows its micro-batch.) `vitp plan`
ranks the same choices by the memory that its formulas predict; a run takes the first that a probe of real batches fits.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from vitp.core import distributed
from vitp.core.config import CONFIG_FILE, load_config
from vitp.core.errors import ConfigError
from vitp.engine import checkpoint
from vitp.engine.loading import to_device
from vitp.engine.numerics import amp_dtype, autocast
from vitp.models.compute import configure
from vitp.tasks.base import TaskBatch

if TYPE_CHECKING:
    from vitp.objectives.base import Objective
    from vitp.runs.finetune_settings import FinetuneConfig
    from vitp.runs.pretrain import PretrainConfig

Config = TypeVar("Config", "PretrainConfig", "FinetuneConfig")

USABLE = 0.92
"""Share of a GPU's memory that a step may take: the rest is for the context, the allocator's gaps and buckets."""

_RECOMPUTE_COST = 4 / 3
"""Time of a step that computes its forward pass twice: the backward pass takes as long as two of them."""
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

    @property
    def cut(self) -> str:
        """How the share is cut, in words."""
        return f"{self.records} records a micro-batch, {self.micro_batches} a step"

    def __str__(self) -> str:
        return f"{self.cut}, recompute {self.recompute}"


def batch_choices(
    share: int, ways: Sequence[Literal["none", "full"]] = ("none", "full")
) -> list[BatchChoice]:
    """Return all ways to cut a share of so many records, the one that is expected to be fastest first."""
    found = [
        BatchChoice(parts, share // parts, recompute)
        for parts in range(1, share + 1)
        if share % parts == 0
        for recompute in ways
    ]
    return sorted(found, key=lambda choice: choice.cost)


def first_fitting(
    share: int,
    fits: Callable[[BatchChoice], bool],
    ways: Sequence[Literal["none", "full"]] = ("none", "full"),
) -> BatchChoice | None:
    """Return the fastest choice that fits on every rank. A collective call."""
    for choice in batch_choices(share, ways):
        if all(distributed.gather(fits(choice))):
            return choice
    return None


def chosen_before(config: Config, run_dir: Path) -> tuple[Config, list[str]]:
    """Return a configuration with the choice of the run that is in the folder, and what is to be said about it."""
    file = run_dir / CONFIG_FILE
    if config.train.batch == "fixed" or not file.is_file() or checkpoint.latest(run_dir) is None:
        return config, []
    before = load_config(type(config), file)
    choice = BatchChoice(before.train.micro_batches, 0, "none")
    recompute = getattr(before.compute, "recompute", None)
    return _with(config, choice, recompute), ["train.batch: as the run began"]


def chosen_batch(
    config: Config, build: Callable[[Config], tuple[Objective, Any]]
) -> tuple[Config, list[str]]:
    """Return a configuration whose `train.batch` is fixed, and what is to be said about it.

    Args:
        config: Configuration of the run.
        build: Configuration → its objective and source. The objective stays as it is, but for where it is.

    Raises:
        ConfigError: Nothing fits.
    """
    if config.train.batch == "fixed":
        return config, []
    device = distributed.resolve_device(config.train.device)
    limit = usable_bytes(device)
    if limit is None:
        fixed = config.train.model_copy(update={"batch": "fixed"})
        said = f"train.batch: no GPU whose memory could be filled; train.micro_batches stays {fixed.micro_batches}"
        return config.model_copy(update={"train": fixed}), [said]
    share, rest = divmod(config.data.global_batch, distributed.world_size())
    if rest:
        return config, []  # said by the run itself, with what to do
    objective, source = build(config)
    probe = MemoryProbe(config, objective, source, device)
    pretrains = hasattr(config.compute, "recompute")
    ways: Sequence[Literal["none", "full"]] = ("none", "full") if pretrains else ("none",)
    chosen = first_fitting(share, lambda choice: probe.bytes(choice) <= limit, ways)
    if chosen is None:
        lower = "data.sequence.max_tiles" if pretrains else "data.crop or data.resize"
        raise ConfigError(
            "not even one record at a time fits into the GPU's memory",
            where="train.batch",
            fix=f"lower {lower}, or train.parallel: fsdp on several GPUs",
        )
    said = f"train.batch: {chosen if pretrains else chosen.cut} (the fastest that a probe step fits)"
    return _with(config, chosen, chosen.recompute if pretrains else None), [said]


def usable_bytes(device: torch.device) -> float | None:
    """Return how much of a GPU's memory a step may take; None: there is no GPU that says how much it has."""
    if device.type != "cuda":
        return None
    return USABLE * torch.cuda.get_device_properties(device).total_memory


def _with(config: Config, choice: BatchChoice, recompute: str | None) -> Config:
    train = config.train.model_copy(update={"batch": "fixed", "micro_batches": choice.micro_batches})
    changed: dict[str, Any] = {"train": train}
    if recompute is not None:
        changed["compute"] = config.compute.model_copy(update={"recompute": recompute})
        model: Any = getattr(config, "model")  # noqa: B009 - a finetuning has none, and no recompute
        # `recompute` says it now; the older switch would turn a "none" into "full".
        changed["model"] = model.model_copy(update={"gradient_checkpointing": False})
    return config.model_copy(update=changed)


class MemoryProbe:
    """Measures what a step of a run takes on its device.

    Args:
        config: Configuration of the run.
        objective, source: Its model and batches.
        device: Where.
    """

    def __init__(
        self, config: PretrainConfig | FinetuneConfig, objective: Objective, source: Any, device: torch.device
    ) -> None:
        self.config, self.source, self.device = config, source, device
        self.objective: Any = objective.to(device).train()
        self.dtype = amp_dtype(config.train.precision, device)

    def bytes(self, choice: BatchChoice) -> float:
        """Return the most that a step needs with all that is kept; infinite where memory did not suffice."""
        if hasattr(self.objective, "vlm"):
            compute: Any = self.config.compute.model_copy(update={"recompute": choice.recompute})
            configure(self.objective.vlm, compute)
        self.source.micro_batches = choice.micro_batches
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        kept = 2 + (self.config.train.ema is not None)  # AdamW's moments, and the average of the weights
        # The first step makes them, which a probe doesn't take.
        moments = sum(kept * p.numel() * p.element_size() for p in trained)
        # A forward pass changes running statistics, and the model goes on to be trained.
        statistics = [(buffer, buffer.clone()) for buffer in self.objective.buffers()]
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
            for buffer, before in statistics:
                buffer.copy_(before)
            self._forget(trained)

    def _largest(self) -> Iterator[Any]:
        """Return the batches with most pixels and most tokens or objects of some steps: twice the first, to accumulate
        upon."""
        rank, world = distributed.rank(), distributed.world_size()
        batches = [self.source(step, 0, rank, world) for step in range(_PROBED_STEPS)]
        most = max(batches, key=_pixels)
        yield from (most, max(batches, key=_details), most)

    def _forget(self, trained: list[Any]) -> None:
        for parameter in trained:
            parameter.grad = None
        # The cache gives back what nobody holds, so circles of references are broken first.
        gc.collect()
        torch.cuda.empty_cache()


def _pixels(batch: Any) -> int:
    return batch.images_BCHW.numel() if isinstance(batch, TaskBatch) else len(batch.tiles_TCHW)


def _details(batch: Any) -> int:
    if not isinstance(batch, TaskBatch):
        return int(batch.tokens)
    return sum(len(target.labels_N) for target in batch.targets if target.labels_N is not None)
