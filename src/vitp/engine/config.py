"""Settings of the engine, validated once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from vitp.core.config import DEVICE_PATTERN, SettingsModel, Share, Weight


class OptimSettings(SettingsModel):
    """AdamW and its schedule."""

    lr: float = Field(2e-5, gt=0, le=100)
    """Peak learning rate."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of AdamW's first and second moment."""
    eps: float = Field(1e-8, gt=0, le=1)
    """Added to AdamW's denominator."""
    weight_decay: float = Field(0.01, ge=0, le=100)
    """Decoupled weight decay; parameters with fewer than two dimensions get none."""
    clip_norm: float | None = Field(1.0, gt=0, le=1e6)
    """Largest gradient norm; none: no clipping."""
    warmup_ratio: float = Field(0.2, ge=0, le=1)
    """Share of the steps with a linearly rising rate."""
    warmup_steps: int | None = Field(None, ge=0, le=100_000_000)
    """Steps with a linearly rising rate; takes precedence over `warmup_ratio`."""
    warmup_start: float = Field(0.0, ge=0, lt=1)
    """Share of `lr` at which the warm-up starts."""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """What follows the warm-up. `step`: the rate falls to `gamma` times itself at each milestone."""
    decay_from: Literal["warmup", "start"] = "warmup"
    """Where `cosine` and `linear` begin to fall. `warmup`: after the warm-up, as transformers does.
    `start`: at the first step; the warm-up scales what has already begun to fall."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Share of `lr` at which `cosine` and `linear` end."""
    milestones: tuple[Share, ...] = (8 / 12, 11 / 12)
    """Where schedule `step` lowers the rate, as shares of all steps, rising. Detection's "12 epochs, step
    8, 11" is [8/12, 11/12]."""
    gamma: float = Field(0.1, gt=0, le=1)
    """Factor on the rate at each milestone of schedule `step`."""
    lr_scale: dict[str, Weight] = Field(default_factory=dict)
    """Part (as the table at the start of a run names it) → factor on `lr`."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Factor on the rate from one vision block to the one below it; none: the same for all."""

    @model_validator(mode="after")
    def _check(self) -> OptimSettings:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), not {self.betas}")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m <= 1 for m in self.milestones):
            raise ValueError(f"milestones must rise and lie in (0, 1], not {self.milestones}")
        for part, scale in self.lr_scale.items():
            if not scale > 0:
                raise ValueError(f"lr_scale of {part!r} is {scale}, not above 0; freeze the part instead")
        return self

    def warmup(self, steps: int) -> int:
        """Return the number of warm-up steps in a run of `steps`."""
        wanted = round(self.warmup_ratio * steps) if self.warmup_steps is None else self.warmup_steps
        return min(wanted, steps)


class LogSettings(SettingsModel):
    """Who is told of a run, beside the console and `metrics.jsonl`. None of it changes what is learned."""

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """`tensorboard`: curves in RUN/tensorboard. `wandb`: Weights & Biases, offline in RUN/wandb unless WANDB_MODE
    says otherwise. `mlflow`: MLflow, in RUN/mlflow or the store that MLFLOW_TRACKING_URI names."""
    project: str = Field("vitp", min_length=1, max_length=100)
    """Project (experiment) under which `wandb` and `mlflow` list the run."""
    name: str | None = Field(None, min_length=1, max_length=200)
    """What they call the run; none: the name of its folder."""


class TrainSettings(SettingsModel):
    """Length, precision and bookkeeping of a run."""

    steps: int = Field(gt=0, le=100_000_000)
    """Optimizer steps."""
    micro_batches: int = Field(1, gt=0, le=65_536)
    """Parts that each rank cuts its share of a step into; their gradients are summed."""
    batch: Literal["fixed", "auto"] = "fixed"
    """`auto`: a probe step chooses `micro_batches` and `compute.recompute`, the fastest that the GPU's memory
    holds; records of a step stay the same. Of a finetuning, and of a pretraining with a language model; the former has
    no `recompute`."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` is bf16 autocast on GPUs that have it, and fp32 elsewhere. `fp16` is for GPUs without bf16: with a scaled
    loss, and steps that are skipped where the gradient overflows. Weights are fp32 in all cases."""
    ema: float | None = Field(None, ge=0, lt=1)
    """Decay of a moving average of the weights, such as 0.999, which is then what is validated, probed and kept as the
    model; none: no average. It takes as much memory as the trained weights."""
    ema_warmup: float = Field(10.0, ge=1, le=1e6)
    """The decay at step t is at most (1 + t) / (`ema_warmup` + t); 1: `ema` from the first step on."""
    patience: int | None = Field(None, gt=0, le=1_000_000)
    """Validations (of a pretraining: online probes) in a row without a better score after which the run ends, with the
    weights of the best one; none: it never ends early."""
    min_gain: float = Field(0.0, ge=0, le=1)
    """By how much a score must be above the best one to count as better for `patience`."""
    save_every: int | None = Field(500, gt=0, le=100_000_000)
    """Steps between checkpoints; none: only at the end. An interrupted run saves, too."""
    keep_last: int = Field(2, gt=0, le=100_000)
    """Checkpoints that are kept. Two at least let a run go on when the newest one is damaged."""
    log_every: int = Field(10, gt=0, le=100_000_000)
    """Steps between rows of `metrics.jsonl`."""
    num_workers: int = Field(2, ge=0, le=512)
    """Processes that prepare batches; 0: the training process does."""
    seed: int = Field(0, ge=0, le=2**63 - 1)
    """Seed of dropout and drop path. The order of the data has its own seed."""
    device: str = Field("auto", pattern=DEVICE_PATTERN)
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` (Apple's GPU; untested); `auto` takes a CUDA GPU where there is one."""
    deterministic: bool = False
    """Refuse operations that may differ from run to run."""
    loss_weights: dict[str, Weight] = Field(default_factory=dict)
    """Name of a loss → weight in the total loss; overrides those of the objective."""
    threads: int | None = Field(None, gt=0, le=4096)
    """CPU threads of the training process; none: torch's choice."""
    must_train: tuple[str, ...] = ()
    """Parts that must be trainable, such as `vision tower`, checked before the first step."""
    check_at: int | None = Field(None, gt=0, le=100_000_000)
    """Step after which the vision tower must have changed; none: soon after the warm-up, at most 50."""
    parallel: Literal["ddp", "fsdp", "hybrid"] = "ddp"
    """What several processes share. `ddp`: each holds the whole model. `fsdp`: each holds its part of
    weights, gradients and moments. `hybrid`: parts within groups of `shard_size` processes, copies
    between the groups. With one process all three are the same."""
    shard_size: int | None = Field(None, gt=0, le=65_536)
    """Processes that share one copy with `parallel: hybrid`; none: those of one machine."""
    async_save: bool = False
    """Write checkpoints while training goes on, at the price of a copy of the state in memory."""

    @model_validator(mode="before")
    @classmethod
    def _without_tensorboard(cls, values: Any) -> Any:
        # A switch of earlier versions: what a configuration says with it is in `log.trackers` by now.
        if isinstance(values, Mapping) and "tensorboard" in values:
            return {name: value for name, value in values.items() if name != "tensorboard"}
        return values
