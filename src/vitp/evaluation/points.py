"""Point prompts on frozen features: how much of a class's place the features at a few of its points give away.

Nothing is trained: the cosine between the features of every patch and those at the points is a map, which is cut at one
threshold, chosen on training images.

Shapes: V views, P points, h × w patches of a view, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.evaluation.features import UNCOVERED, Features
from vitp.records.labels import IGNORE

POINTS = "points cosine"
"""Name of the probe."""

THRESHOLDS = np.linspace(-0.2, 0.99, 120)
"""Cosines that a map may be cut at."""

_MOST_PROMPTS = 2000
"""From which the threshold is chosen; more change nothing."""


def cosine_map(patches_hwD: Tensor, points_P2: Tensor) -> Tensor:
    """Return (h, w) the largest cosine between each patch's features and those at the points.

    Args:
        patches_hwD: Features of a view.
        points_P2: Row and column of each point's patch.
    """
    patches_hwD = F.normalize(patches_hwD.float(), dim=-1)
    points_PD = patches_hwD[points_P2[:, 0], points_P2[:, 1]]
    cosine_hw: Tensor = (patches_hwD @ points_PD.T).amax(-1)
    return cosine_hw


@dataclass(frozen=True)
class PointPrompt:
    """The zero-training baseline of segmentation.

    Attributes:
        points: Points of a prompt.
        threshold: Cosine from which on a patch is of the points' class.
        seed: Draws the points.
    """

    points: int
    threshold: float
    seed: int

    def overlaps(self, features: Features, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return the view of each prompt, and the overlap of its mask with the patches of its class.

        Raises:
            ConfigError: There is no prompt; see `_prompts`.
        """
        cuts = np.array([self.threshold])
        found = [
            (view, _overlaps(cosine_N, true_N, cuts)[0])
            for view, cosine_N, true_N in _prompts(features, views, self)
        ]
        _check(len(found), self.points)
        return torch.tensor([view for view, _ in found]), torch.tensor([value for _, value in found])


def fit_threshold(features: Features, views: Tensor, points: int, seed: int) -> PointPrompt:
    """Return prompts with the threshold that gives the largest mean overlap on the views.

    Raises:
        ConfigError: No class has more patches in a view than a prompt has points.
    """
    empty, found = PointPrompt(points, 0.0, seed), []
    for _, cosine_N, true_N in _prompts(features, views, empty):
        found.append(_overlaps(cosine_N, true_N, THRESHOLDS))
        if len(found) == _MOST_PROMPTS:
            break
    _check(len(found), points)
    mean_T = np.mean(found, axis=0)
    best = np.flatnonzero(mean_T >= mean_T.max() - 1e-9)  # the middle of a plateau is the safest
    return PointPrompt(points, float(THRESHOLDS[best[len(best) // 2]]), seed)


def _check(found: int, points: int) -> None:
    if not found:
        raise ConfigError(
            f"no class has more than {points} patches in an image that holds another one",
            where="point prompts",
            fix="ask for fewer points",
        )


def _prompts(
    features: Features, views: Tensor, prompt: PointPrompt
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the view of each prompt, and cosine and truth of those known patches that aren't points themselves.

    Each class of a view, but for what no box covers, is one prompt; points are drawn among its patches.
    """
    assert features.patch_labels_Vhw is not None
    for view in views.tolist():
        labels_hw = features.patch_labels_Vhw[view]
        for label in labels_hw.unique().tolist():
            if label == IGNORE or features.patch_classes[label] == UNCOVERED:
                continue
            places_M2 = torch.nonzero(labels_hw == label)
            known_hw = labels_hw != IGNORE
            if len(places_M2) <= prompt.points or bool((labels_hw == label)[known_hw].all()):
                continue
            rng = np.random.default_rng([prompt.seed, view, label])
            points_P2 = places_M2[torch.from_numpy(rng.permutation(len(places_M2))[: prompt.points])]
            known_hw = known_hw.clone()
            known_hw[points_P2[:, 0], points_P2[:, 1]] = False
            cosine_hw = cosine_map(features.patches_VhwD[view], points_P2)
            yield view, cosine_hw[known_hw].numpy(), (labels_hw == label)[known_hw].numpy()


def _overlaps(cosine_N: np.ndarray, true_N: np.ndarray, cuts_T: np.ndarray) -> np.ndarray:
    """Return (T,) intersection over union of what is above each threshold with the truth."""
    guess_TN = cosine_N[None] >= cuts_T[:, None]
    overlap_T: np.ndarray = (guess_TN & true_N).sum(1) / (guess_TN | true_N).sum(1)
    return overlap_T
