"""Point prompts on frozen features: planted clusters come out whole, and nothing of the test chooses the threshold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vitp.core.errors import ConfigError
from vitp.evaluation.features import Features, ProbeData
from vitp.evaluation.points import POINTS, cosine_map, fit_threshold
from vitp.evaluation.probes import probe_features, probe_outcomes
from vitp.records.labels import IGNORE


def planted(views: int = 12, noise: float = 0.1, classes: tuple[str, ...] = ("sea", "ship")) -> Features:
    """Views of 6 × 6 patches, half of them near to one direction and half near to another."""
    rng = np.random.default_rng(0)
    labels_Vhw = rng.integers(0, 2, (views, 6, 6)).astype(np.uint8)
    centres_2D = np.eye(2, 16)
    patches_VhwD = centres_2D[labels_Vhw] * 3 + noise * rng.normal(size=(views, 6, 6, 16))
    return Features(
        patches_VhwD=torch.from_numpy(patches_VhwD).half(),
        pooled_ND=torch.from_numpy(patches_VhwD.mean((1, 2))).float(),
        view_image_V=torch.arange(views),
        patch_classes=classes,
        patch_labels_Vhw=torch.from_numpy(labels_Vhw),
        pixel_labels_VSS=None,
        scene_N=torch.full((views,), -1),
        presence_NK=torch.ones(views, 1),
        groups=tuple(map(str, range(views))),
    )


@pytest.mark.parametrize("points", [1, 3])
def test_planted_clusters_come_out_whole(points: int) -> None:
    data = ProbeData(planted(), planted(4), planted(7), torch.device("cpu"))
    table, outcomes = probe_outcomes(data, tasks=("patches linear",), seeds=(0, 1), points=points)
    assert table[POINTS, "mask IoU"].values == (1.0, 1.0)
    assert outcomes[0][POINTS, "mask IoU"].groups == 7
    assert 0.2 < fit_threshold(data.train, torch.arange(12), points, 0).threshold < 0.8
    # Without being asked for, the table is the one of before.
    assert all(row.task != POINTS for row in probe_features(data, tasks=("patches linear",)).rows)


def test_a_cosine_map_is_the_nearest_of_the_points() -> None:
    patches_hwD = torch.tensor([[[2.0, 0], [0, 3]], [[1, 1], [-1, 0]]])
    root = 0.5**0.5
    first, both = torch.tensor([[0, 0]]), torch.tensor([[0, 0], [0, 1]])
    assert torch.allclose(cosine_map(patches_hwD, first), torch.tensor([[1.0, 0], [root, -1]]))
    assert torch.allclose(cosine_map(patches_hwD, both), torch.tensor([[1.0, 1], [root, 0]]))


def test_overlap_is_of_what_is_known_and_not_pointed_at() -> None:
    features = planted(1, noise=0.0)
    labels_Vhw = torch.zeros(1, 6, 6, dtype=torch.uint8)
    labels_Vhw[0, :2], labels_Vhw[0, 5] = 1, IGNORE
    patches_VhwD = torch.zeros(1, 6, 6, 16)
    patches_VhwD[..., 0] = 1
    patches_VhwD[0, 2:4] = torch.eye(16)[1]  # of 12 patches of class 0 beside the 6 unknown ones
    patches_VhwD[0, 5] = torch.eye(16)[3]
    features = replace(features, patch_labels_Vhw=labels_Vhw, patches_VhwD=patches_VhwD)
    prompt = replace(fit_threshold(features, torch.arange(1), 1, 0), threshold=0.5)
    views, overlaps = prompt.overlaps(features, torch.arange(1))
    assert views.tolist() == [0, 0]
    # Class 1: its 11 other patches, and row 4 of class 0 looks like it. Class 0: which of its kinds the point hits.
    assert overlaps[1].item() == pytest.approx(11 / 17)
    assert min(abs(overlaps[0].item() - wanted) for wanted in (11 / 17, 5 / 29)) < 1e-6
    with pytest.raises(ConfigError, match="more than 30 patches"):
        fit_threshold(features, torch.arange(1), 30, 0)


def test_what_no_box_covers_is_no_prompt() -> None:
    features = planted(3, classes=("ship", "background"))
    views, _ = fit_threshold(features, torch.arange(3), 1, 0).overlaps(features, torch.arange(3))
    assert views.tolist() == [0, 1, 2]
    bare = replace(features, patch_labels_Vhw=None)
    with pytest.raises(ConfigError, match="needs masks or boxes"):
        probe_outcomes(ProbeData(bare, bare, bare, torch.device("cpu")), tasks=(), points=1)
