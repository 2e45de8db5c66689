"""What the recipes at micro scale share: the questions they ask and the run that continues the starter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitp.core.config import make_config
from vitp.data.synthesis.build import SynthesisConfig
from vitp.runs.pretrain import PretrainConfig

SYNTHESIS = SynthesisConfig(
    questions_per_image=6,
    grid=6,
    grid_always=True,
    object_share=0.25,
    tasks={"cell": 2.0, "oriented": 0.0, "boxes": 0.25, "box": 0.25, "caption": 0.25},
)
"""A grid of each image, and short questions. Without the grid images are told apart better and places worse (`docs/log.md`);
lists of coordinates are beyond a small language model and cost it most of its time."""


@dataclass(frozen=True)
class Budget:
    """How long the starter's pretraining is continued.

    Small batches: at a few thousand images the number of steps counts for more than the gradient's noise.

    Attributes:
        align_steps: Steps with the ViT frozen, in which the language model learns the domain's words.
        steps: Steps with everything trained.
        batch: Images a step.
        lr: Peak learning rate of the second phase.
        vrl_ratio: Image tokens dropped.
    """

    align_steps: int
    steps: int
    batch: int = 8
    align_lr: float = 1e-3
    lr: float = 3e-4
    vrl_ratio: float = 0.75


def continued_from_starter(
    mixture: Sequence[Path], budget: Budget, seed: int, *, rates: Sequence[float] | None = None
) -> PretrainConfig:
    """Return a ViTP run from the starter over compiled folders.

    Args:
        mixture: Compiled folders.
        budget: Length and rates.
        seed: Of the run.
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
