"""Visual Robustness Learning: drop most image tokens before the language model (ViTP, eq. 3–4).

Which tokens survive is a pure function of seed, key and count, so that it is the same on any rank, in any
worker and after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field
from torch import nn

from vitp.core.config import SettingsModel


class VRLSettings(SettingsModel):
    """Ratio of image tokens dropped, and probability that a sample is treated at all."""

    ratio: float = Field(0.75, ge=0.0, lt=1.0)
    """Share of image tokens dropped (r)."""
    probability: float = Field(1.0, ge=0.0, le=1.0)
    """Share of samples that drop tokens."""
    ramp_steps: int = Field(0, ge=0, le=100_000_000)
    """Steps over which the ratio grows from 0 to its value."""
    how: Literal["drop", "pool", "merge"] = "drop"
    """Whether tokens are dropped at random, or as many are left by averaging neighbours or merging similar ones."""


def count_kept(count: int, ratio: float) -> int:
    """Return ceil((1 − r) · N), computed so that rounding noise can't add one (eq. 3)."""
    return min(count, math.ceil(round((1.0 - ratio) * count, 9)))


def surviving_tokens(count: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Return the indices of a uniformly random subset of `count_kept` of `count` tokens, ascending."""
    # They are sorted below, so they needn't be shuffled.
    kept = rng.choice(count, size=count_kept(count, ratio), replace=False, shuffle=False)
    return np.sort(kept)


class VisualRobustness(nn.Module):
    """Chooses the surviving image tokens of one sample. In eval mode all survive.

    Args:
        config: Ratio, probability and ramp.
        seed: Seed of the run.
    """

    def __init__(self, config: VRLSettings, seed: int = 0) -> None:
        super().__init__()
        self.config, self.seed = config, seed

    def ratio_at(self, step: int) -> float:
        """Return the share dropped at an optimizer step."""
        ramp = self.config.ramp_steps
        return self.config.ratio * min(1.0, (step + 1) / ramp) if ramp else self.config.ratio

    def forward(self, count: int, key: Sequence[int], step: int = 0) -> np.ndarray:
        """Return the indices that survive out of `count` image tokens, ascending, (K,) int64.

        Args:
            count: Image tokens of the sample, over all its images and tiles (N).
            key: Integers that name the sample within the run, such as its position in the order of samples.
            step: Optimizer step, for the ramp.
        """
        ratio = self.ratio_at(step)
        if not self.training or ratio == 0.0 or count == 0:
            return np.arange(count)
        # 0x56524C spells "VRL": other uses of the seed draw other numbers. numpy fills short keys up with zeros, so the
        # length tells (1,) and (1, 0) apart.
        rng = np.random.default_rng([self.seed, 0x56524C, len(key), *key])
        # Drawn whatever the probability is, so that it doesn't change which tokens of a treated sample survive.
        if rng.random() >= self.config.probability:
            return np.arange(count)
        if self.config.how != "drop":
            # Places for what is made of all tokens: evenly over the tiles.
            kept = count_kept(count, ratio)
            return (np.arange(kept) * count) // kept
        return surviving_tokens(count, ratio, rng)
