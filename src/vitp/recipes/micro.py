"""Parts that the recipes at micro scale share: questions, heads, and the run that continues the starter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitp.core.config import make_config
from vitp.data.synthesis.build import SynthesisConfig
from vitp.runs.finetune import FinetuneConfig
from vitp.runs.pretrain import PretrainConfig

RANDOM, STARTER, SUPERVISED, VITP = "random", "starter", "supervised", "after ViTP"
"""Initialisations that the tables of the recipes compare."""

FINETUNE = "segmentation finetune"
"""Task of the demo's finetunings in its tables."""

SYNTHESIS = SynthesisConfig(
    questions_per_image=6,
    grid=6,
    grid_always=True,
    object_share=0.25,
    tasks={"cell": 2.0, "oriented": 0.0, "boxes": 0.25, "box": 0.25, "caption": 0.25},
)
"""A grid of each image, and short questions. Without the grid images are told apart better and places worse
(`docs/log.md`); lists of coordinates are beyond a small language model and cost it most of its time."""

SMALL_DETECTOR: dict[str, Any] = {
    "width": 64,
    "proposals": {"anchor_scales": [2.0], "keep_before": [300, 200], "keep": [100, 60]},
    "box": {"kind": "faster", "hidden": 128, "samples": 48, "detections": 40},
}
"""Faster R-CNN for a small ViT and objects of 5–40 px: the published heads have more parameters than this ViT."""
SMALL_ORIENTED = SMALL_DETECTOR | {"box": {k: v for k, v in SMALL_DETECTOR["box"].items() if k != "kind"}}
"""The same sizes for Oriented R-CNN, which is of one kind."""
SMALL_INSTANCE = SMALL_DETECTOR | {"mask": {"pool_size": 7, "layers": 2, "width": 64}}
"""The same sizes with a mask head."""


@dataclass(frozen=True)
class Budget:
    """Length and rates of a run that continues the starter.

    Small batches: at a few thousand images the number of steps counts for more than the gradient's noise.

    Attributes:
        align_steps: Steps with the ViT frozen, in which the language model learns the domain's words.
        steps: Steps with everything trained.
        batch: Images a step.
        lr: Peak learning rate of the second phase.
        vrl_ratio: Share of image tokens dropped.
    """

    align_steps: int
    steps: int
    batch: int = 8
    align_lr: float = 1e-3
    lr: float = 3e-4
    vrl_ratio: float = 0.75

    def scaled(self, factor: float) -> Budget:
        """Return a budget with fewer or more steps."""
        steps = (max(2, round(factor * number)) for number in (self.align_steps, self.steps))
        return replace(self, **dict(zip(("align_steps", "steps"), steps, strict=True)))


@dataclass(frozen=True)
class DemoPlan:
    """Sizes of the demo. The three initialisations always get the same.

    Attributes:
        ceiling_steps: Steps of a finetune of the starter on all training labels, which shows how much the few labels
            leave to gain; 0 leaves it out.
    """

    seeds: tuple[int, ...] = (0,)
    images: int = 3000
    val_share: float = 0.06
    test_share: float = 0.07
    budget: Budget = Budget(align_steps=160, steps=360)
    probe_labels: int = 300
    probe_seeds: tuple[int, ...] = (0, 1, 2)
    finetune_labels: int | None = 60
    finetune_steps: int = 100
    finetune_batch: int = 4
    finetune_seeds: tuple[int, ...] = (0, 1, 2)
    ceiling_steps: int = 0


def continued_from_starter(
    mixture: Sequence[Path], budget: Budget, seed: int, *, rates: Sequence[float] | None = None
) -> PretrainConfig:
    """Return a ViTP run from the starter over compiled folders.

    Args:
        mixture: Compiled folders.
        budget: Length and rates.
        seed: Seed of the run.
        rates: Sampling rate of each folder.
    """
    return make_config(
        PretrainConfig,
        {
            "objective": {
                "name": "vitp",
                "vrl": {"ratio": budget.vrl_ratio},
                "align": {"steps": budget.align_steps, "lr": budget.align_lr},
            },
            "seed": seed,
            "model": {"init": "starter", "drop_path": 0.0},
            "data": {
                "mixture": [str(folder) for folder in mixture],
                "rates": None if rates is None else list(rates),
                "global_batch": budget.batch,
                "sequence": {"max_length": 1024, "max_tiles": 1},
            },
            "optim": {"lr": budget.lr, "warmup_ratio": 0.1, "min_lr_ratio": 0.02},
            "train": {
                "steps": budget.steps,
                "num_workers": 1,
                "seed": seed,
                "log_every": 20,
                "save_every": max(1, budget.steps // 3),
                "must_train": ["vision tower", "projector", "language model"],
            },
        },
        where="micro run",
    )


def small_finetune_config(
    task: str,
    data: dict[str, Any],
    init: str,
    seed: int,
    *,
    head: dict[str, Any],
    train: dict[str, Any],
    **more: Any,
) -> FinetuneConfig:
    """Return a short finetuning around a pyramid of 64 channels, which is scored on validation images never.

    Args:
        task: Task of `vitp finetune`.
        data: Fields of the data beside the format.
        init: The backbone.
        seed: Seed of the run.
        head: Settings of the head.
        train: Fields of the training beside what is saved and scored.
        more: Other sections of the configuration.
    """
    values = {
        "task": task,
        "seed": seed,
        "backbone": {"init": init},
        "neck": {"kind": "simple", "options": {"channels": 64}},
        "head": head,
        "data": {"format": "vitp", "sizes": "fixed", **data},
        "train": {"val_every": None, "save_every": train["steps"], "keep_last": 1, **train},
        **more,
    }
    return make_config(FinetuneConfig, values, where=f"finetuning on {data['root']}")
