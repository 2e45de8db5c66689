"""Supervised pretraining: known labels only, classes joined by name, masks renumbered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.objective_toys import OBJECTS, SCENES, SIZE, labelled_folder, supervised, tiny_tower
from vitp.core.errors import ConfigError
from vitp.data.augment import ViewSettings
from vitp.data.mixture import Sample
from vitp.objectives.dense import RenamedMask, merged_set
from vitp.objectives.image_rows import ImageRows, image_mixture, read_image_rows
from vitp.objectives.supervised import ClassBatch, ClassNames, LabelledViews, SupervisedObjective
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel


def batch() -> ClassBatch:
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (4, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    scene = torch.tensor([0, 1, -1, 1])
    presence = torch.tensor([[1, 0], [-1, -1], [0, -1], [1, 1]], dtype=torch.int8)
    return ClassBatch(tiles, scene, presence, ("a", "b", "c", "d"))


def test_losses_are_over_known_labels_only() -> None:
    objective, made = supervised().eval(), batch()
    losses, counts = objective(made), objective.loss_counts(made)
    assert counts == {"scene": 3, "presence": 5}
    features = objective.tower.forward_tokens(objective.tower.normalize(made.tiles_BCHW)).mean(1)
    known = [0, 1, 3]
    expected = F.cross_entropy(objective.scene_head(features)[known], made.scene_B[known], reduction="sum")
    assert losses["scene"].item() == pytest.approx(expected.item(), rel=1e-5)
    mask = made.presence_BK >= 0
    logits = objective.presence_head(features)[mask]
    expected = F.binary_cross_entropy_with_logits(logits, made.presence_BK[mask].float(), reduction="sum")
    assert losses["presence"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_label_smoothing_spreads_the_target() -> None:
    made = batch()
    plain, smooth = (
        SupervisedObjective(tiny_tower(), ClassNames(SCENES, ()), label_smoothing=s).eval()
        for s in (0.0, 0.2)
    )
    smooth.load_state_dict(plain.state_dict())
    logits = plain.scene_head(plain.pooled(made.tiles_BCHW)).log_softmax(-1)[[0, 1, 3]]
    own = logits.gather(1, torch.tensor([[0], [1], [1]])).sum()
    expected = -(0.8 * own + 0.2 * logits.mean(1).sum())
    assert smooth(made)["scene"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_unlabelled_images_teach_nothing() -> None:
    objective = supervised()
    made = replace(batch(), scene_B=torch.full((4,), -1), presence_BK=torch.full((4, 2), -1).to(torch.int8))
    losses = objective(made)
    assert objective.loss_counts(made) == {"scene": 0, "presence": 0}
    sum(losses.values()).backward()
    assert all(not p.grad.any() for p in objective.parameters() if p.grad is not None)


def rows(name: str, items: list[LabelledImage], objects: tuple[str, ...], **more: object) -> ImageRows:
    return ImageRows(LabelledSet(name, items, objects, **more), name, Path(name))  # type: ignore[arg-type]


def test_classes_are_joined_by_name() -> None:
    one = rows("one", [], ("ship", "plane"), scene_classes=("port",))
    two = rows("two", [], ("car", "ship"), scene_classes=("street", "port"))
    assert ClassNames.of([one, two]) == ClassNames(("port", "street"), ("ship", "plane", "car"))
    assert ClassNames.of([one, two], "scene").objects == ()
    # One scene class alone says nothing.
    assert ClassNames.of([one]).scenes == ()
    with pytest.raises(ConfigError, match="no such classes"):
        ClassNames.of([rows("none", [], ())])


def test_classes_that_a_set_does_not_label_are_unknown_in_it(tmp_path: Path) -> None:
    folder = labelled_folder(tmp_path / "toy")
    item = read_image_rows(folder).labelled.items[0]
    inside = replace(item, objects=(ObjectLabel("ship", (20, 16, 28, 24)),))
    names = ClassNames(SCENES, ("ship", "plane", "car"))
    collate = LabelledViews(SIZE, ViewSettings.neutral(), names, (("ship", "plane"),))
    made = collate([Sample(inside, None, False, 0, 0)], 0)
    assert made.presence_BK.tolist() == [[1, 0, -1]]
    assert made.scene_B.tolist() == [0]
    unlabelled = collate([Sample(replace(item, objects=None, scene=None), None, False, 0, 0)], 0)
    assert unlabelled.presence_BK.tolist() == [[-1, -1, -1]] and unlabelled.scene_B.tolist() == [-1]


def test_objects_outside_of_the_crop_are_not_there(tmp_path: Path) -> None:
    item = read_image_rows(labelled_folder(tmp_path / "toy")).labelled.items[0]
    off_centre = replace(item, objects=(ObjectLabel("ship", (11, 9, 13, 11)),))
    collate = LabelledViews(SIZE, ViewSettings.geometric((0.2, 0.2)), ClassNames((), OBJECTS), (OBJECTS,))
    seen = [
        collate([Sample(off_centre, None, False, 0, position)], 0).presence_BK[0, 0].item()
        for position in range(30)
    ]
    assert 0 < sum(seen) < 15


def test_masks_get_the_numbers_of_the_joined_classes(tmp_path: Path) -> None:
    folder = labelled_folder(tmp_path / "toy")
    toy = read_image_rows(folder)
    other = rows(
        "other",
        [replace(item, id=f"other {item.id}") for item in toy.labelled.items[:4]],
        ("car",),
        semantic_classes=("ship", "water", "road"),
    )
    merged = merged_set([toy, other], image_mixture([toy, other], [1.0, 2.0], 0))
    assert merged.semantic_classes == ("water", "land", "ship", "road")
    assert merged.object_classes == ("ship", "plane", "car")
    assert len(merged) == 12 + 8
    first = next(item for item in merged.items if item.id == "other/other image 0")
    own = toy.labelled.items[0].semantic()
    table = np.array([2, 0, 3])
    assert np.array_equal(first.semantic(), table[own])
    # Twice as often: each of the four images twice.
    assert sorted(item.id for item in merged.items)[:2] == ["other/other image 0"] * 2


def test_ignored_pixels_stay_ignored() -> None:
    mask = RenamedMask(lambda: np.array([[0, 1, 255]], np.uint8), (5, 3))
    assert mask().tolist() == [[5, 3, 255]]
