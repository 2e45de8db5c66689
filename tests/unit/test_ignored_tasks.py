"""Ignored places in training: neither objects nor background."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ignored_places import CLASSES, CROWD, at, one_image, ring, target_of
from vitp.core.errors import DataError
from vitp.core.tensors import present
from vitp.data.augment import AugmentSettings, augment
from vitp.data.ignored import presence_of, read_mask
from vitp.data.image_sample import ImageSample, crop, flip, quarter_turns, resize
from vitp.evaluation.corruptions.geometry import about_centre
from vitp.evaluation.corruptions.sets import moved_item
from vitp.evaluation.features import UNCOVERED, box_labels
from vitp.metrics.detection import largest_share_inside
from vitp.metrics.results import Target
from vitp.models.heads.cascade import BoxSettings, BoxStage, StageSettings
from vitp.models.heads.oriented_rpn import OrientedProposalNetwork, OrientedProposalSettings
from vitp.models.heads.oriented_targets import OrientedTruth, match_proposals
from vitp.models.heads.rpn import ImageTruth, ProposalNetwork, ProposalSettings, near
from vitp.models.rotated.boxes import boxes_of_hulls
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet
from vitp.tasks.base import TaskBatch
from vitp.tasks.build import build_model
from vitp.tasks.classification import multi_label_scores
from vitp.tasks.detection import image_truths
from vitp.tasks.eomt import QueryInstances
from vitp.tasks.label_notes import label_notes
from vitp.tasks.oriented import oriented_truths

# Targets


def test_targets_hold_ignored_places_as_boxes_quads_and_masks(tmp_path: Path) -> None:
    tilted = at("?", 4, 4, 12, 12, quad=(8.0, 4.0, 12.0, 8.0, 8.0, 12.0, 4.0, 8.0))
    outside = at("?", 60, 0, 70, 9)
    over = at("?", 30, 20, 90, 90, polygons=(ring(30, 20, 90, 90),))
    car = at("car", 1, 1, 5, 5, polygons=(ring(1, 1, 5, 5),))
    labelled = one_image(tmp_path, car, ignored=(tilted, outside, over))
    boxes = target_of(labelled, "objects")
    assert boxes.ignored_M4 is not None and boxes.ignored_M4.tolist() == [[4, 4, 12, 12], [30, 20, 40, 32]]
    assert boxes.labels_N is not None and boxes.labels_N.tolist() == [0]
    oriented = target_of(labelled, "oriented")
    assert oriented.ignored_M8 is not None and oriented.ignored_M8[0].tolist() == list(tilted.quad or ())
    masks = target_of(labelled, "instances")
    assert masks.ignored_MHW is not None and masks.ignored_MHW.shape == (2, 32, 40)
    assert masks.ignored_MHW.sum((1, 2)).tolist() == [
        32,
        120,
    ]  # half of 8 × 8; 10 × 12 in the image
    # A crowd may have a box alone where objects have outlines.
    crowd = target_of(one_image(tmp_path, at("car", 1, 1, 9, 9, difficult=True)), "instances")
    assert crowd.masks_NHW is not None and int(crowd.masks_NHW.sum()) == 64
    # And so may an object that nobody outlined: it is neither learned nor background.
    boxed = one_image(tmp_path, at("car", 1, 1, 9, 9), car)
    target = target_of(boxed, "instances")
    assert present(target.difficult_N).tolist() == [True, False]
    truth = image_truths([target], [(32, 40)], with_masks=True)[0]
    assert truth.boxes_N4.tolist() == [[1, 1, 5, 5]] and [1, 1, 9, 9] in truth.ignored_M4.tolist()
    known = QueryInstances.truth(None, target)  # type: ignore[arg-type]
    assert len(known.labels_N) == 1 and not known.known_HW[7, 7] and known.known_HW[2, 2]
    note = "train: objects with a box and no outline, neither learned nor counted: 1"
    assert note in label_notes({"train": boxed}, "instances", boxed.object_classes)
    assert not label_notes({"train": boxed}, "objects", ("car",))
    alone = one_image(tmp_path, at("car", 1, 1, 9, 9))
    with pytest.raises(DataError, match=r"holds an object with an outline: .*choose the task detection"):
        label_notes({"train": alone}, "instances", ("car",))


def test_detectors_look_away_from_ignored_places(tmp_path: Path) -> None:
    labelled = one_image(tmp_path, at("ship", 1, 1, 9, 9), at("ship", 1, 12, 9, 20, difficult=True))
    truth = image_truths([target_of(labelled, "objects")], [(32, 40)], with_masks=False)[0]
    assert truth.boxes_N4.tolist() == [[1, 1, 9, 9]]
    assert truth.ignored_M4.tolist() == [[1, 12, 9, 20], [20, 4, 36, 28]]
    turned = oriented_truths([target_of(labelled, "oriented")], [(32, 40)])[0]
    assert len(turned.boxes_N5) == 1 and len(turned.ignored_M5) == 2
    assert oriented_truths([target_of(labelled, "objects")], [(32, 40)])[0].ignored_M5.shape == (2, 5)


moves = [
    lambda s: flip(s, True, False),
    lambda s: flip(s, True, True),
    lambda s: quarter_turns(s, 1),
    lambda s: resize(s, (64, 80)),
    lambda s: crop(s, (8, 2, 30, 40), min_visible=0.3),
    lambda s: augment(s, AugmentSettings(scale=(0.6, 1.5), crop=24), np.random.default_rng(4)),
    lambda s: augment(s, AugmentSettings(rotate=30, crop=32), np.random.default_rng(5)),
]


@pytest.mark.parametrize("change", moves)
def test_ignored_places_move_with_the_pixels(change: Any) -> None:
    label = at("?", 20, 4, 36, 28, polygons=(ring(20, 4, 36, 28),))
    image = torch.zeros(3, 32, 40, dtype=torch.uint8)
    with_object = change(ImageSample(image, objects=(label,)))
    hidden = change(ImageSample(image, objects=(), ignored=(label,)))
    unlabelled = change(ImageSample(image, ignored=(label,)))
    assert len(hidden.ignored) == 1 and hidden.objects == ()
    assert hidden.ignored[0] == replace(with_object.objects[0], difficult=False)
    assert unlabelled.ignored == hidden.ignored and unlabelled.objects is None


def test_a_strip_of_an_ignored_place_stays_and_a_hair_goes() -> None:
    sample = ImageSample(
        torch.zeros(3, 32, 40, dtype=torch.uint8), objects=(), ignored=(at("?", 10, 0, 40, 32),)
    )
    assert [p.box for p in crop(sample, (0, 0, 12, 32), min_visible=0.9).ignored] == [(10, 0, 12, 32)]
    assert not crop(sample, (0, 0, 10, 32), min_visible=0.9).ignored
    hair = replace(sample, ignored=(at("?", 9.6, 0, 40, 32),))
    assert not crop(hair, (0, 0, 10, 32), min_visible=0.9).ignored


def test_corruptions_move_ignored_places() -> None:
    item = LabelledImage("a", "a.png", 40, 32, objects=(), ignored=(CROWD, at("?", 0, 0, 4, 4)))
    enlarged = moved_item(item, about_centre(np.eye(2) * 2, (32, 40)))
    # x → 2 x − 20, y → 2 y − 16; the small one has left the image.
    assert [place.box for place in enlarged.ignored] == [(20, 0, 40, 32)]


# Losses


def test_boxes_inside_of_a_place_are_no_background_however_small_they_are() -> None:
    crowd = torch.tensor([[100.0, 100, 300, 300]])
    boxes = torch.tensor(
        [[150.0, 150, 160, 160], [95, 95, 105, 105], [90, 140, 110, 150], [0, 0, 9, 9], [0, 0, 0, 0]]
    )
    assert near(boxes, crowd, 0.3).tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]  # inside; a quarter; half; apart
    assert near(boxes, torch.zeros(0, 4), 0.3).tolist() == [False] * 5
    assert near(torch.tensor([[100.0, 100, 300, 400]]), crowd, 0.7).tolist() == [True]  # two thirds of it
    # At the border of an image only what is in it counts: a fifth of this anchor lies in the place, and all it sees.
    anchor, corner = torch.tensor([[-40.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 50, 50]])
    assert near(anchor, corner, 0.7).tolist() == [False]
    assert near(anchor, corner, 0.7, (64, 64)).tolist() == [True]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_no_stage_samples_background_inside_of_a_place(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def boxes(count: int, low: int, high: int) -> torch.Tensor:
        corner = rng.uniform(0, 64 - high, (count, 2))
        return torch.tensor(np.concatenate([corner, corner + rng.uniform(low, high, (count, 2))], 1)).float()

    objects, place, proposals = boxes(2, 6, 14), boxes(1, 24, 40), boxes(60, 3, 20)
    truth = ImageTruth(objects, torch.tensor([1, 2]), place, (64, 64))
    stage = BoxStage(4, 2, True, StageSettings(), BoxSettings(hidden=8))
    labels = stage._match(proposals, truth)[0].numpy()
    inside = largest_share_inside(proposals.numpy(), place.numpy()) >= 0.5
    assert (labels[inside] != 0).all()
    unaware = stage._match(proposals, replace(truth, ignored_M4=torch.zeros(0, 4)))[0].numpy()
    assert (labels[labels != -1] == unaware[labels != -1]).all() and (unaware[labels == -1] == 0).all()
    turned = OrientedTruth(boxes_of_hulls(objects), torch.tensor([1, 2]), boxes_of_hulls(place), (64, 64))
    kinds = match_proposals(boxes_of_hulls(proposals), turned, 0.5)[0].numpy()
    clearly = largest_share_inside(proposals.numpy(), place.numpy()) >= 0.501
    assert (kinds[clearly] != 0).all() and (kinds[labels == 0] != -1).all()


def test_small_anchors_in_a_large_crowd_are_not_learned() -> None:
    settings_ = {"anchor_scales": (2.0,), "anchor_ratios": (1.0,)}
    network = ProposalNetwork((4, 8), 4, ProposalSettings(**settings_))  # type: ignore[arg-type]
    anchors = torch.tensor([[40.0, 40, 48, 48], [0, 0, 8, 8], [28, 28, 36, 36]])
    target = {
        "boxes": torch.zeros(0, 4),
        "ignored": torch.tensor([[32.0, 32, 96, 96]]),
        "size": torch.tensor((96, 96)),
    }
    (labels,), _ = network.assign_targets_to_anchors([anchors], [target])
    assert labels.tolist() == [-1, 0, 0]
    oriented = OrientedProposalNetwork((4, 8), 4, OrientedProposalSettings(**settings_))  # type: ignore[arg-type]
    nothing = torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)
    truth = OrientedTruth(*nothing, boxes_of_hulls(target["ignored"]), (96, 96))
    assert oriented._match(anchors, truth)[0].tolist() == [-1, 0, 0]


def test_an_ignored_place_changes_the_loss_only_where_it_hides_background() -> None:
    """A detector that takes all of an image as background learns nothing from an image that is hidden as a whole."""
    vision = VisionSettings.model_validate(
        {"arguments": {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}, "image_size": 64}
    )
    model = build_model("detection", VisionTower(vision), CLASSES, head={"width": 16}, seed=0)
    image = torch.randint(0, 255, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    empty = Target(boxes_N4=torch.zeros(0, 4), labels_N=torch.zeros(0, dtype=torch.int64))
    hidden = replace(empty, ignored_M4=torch.tensor([[0.0, 0, 64, 64]]))

    def losses(target: Target) -> dict[str, float]:
        torch.manual_seed(0)
        batch = TaskBatch(image, None, torch.tensor([[64, 64]]), (target,), ("a",))
        return {name: float(value.detach()) for name, value in model(batch).items()}

    known, unknown = losses(empty), losses(hidden)
    assert known["objectness"] > 0.1 and all(value == 0 for value in unknown.values())
    assert losses(replace(empty, ignored_M4=torch.zeros(0, 4))) == known


# Presence


def test_presence_is_unknown_beside_ignored_places_and_of_crowds(tmp_path: Path) -> None:
    ship, crowd = at("ship", 2, 2, 10, 10), at("car", 20, 4, 36, 28, difficult=True)
    cases = [
        (one_image(tmp_path, ship, ignored=()), [0, 1]),
        (one_image(tmp_path, ship), [-1, 1]),
        (one_image(tmp_path, ship, crowd, ignored=()), [-1, 1]),
        (one_image(tmp_path, ship, crowd, at("car", 1, 20, 9, 30), ignored=()), [1, 1]),
        (one_image(tmp_path), [-1, -1]),
    ]
    for labelled, wanted in cases:
        found = target_of(labelled, "presence").classes_C
        assert found is not None and found.tolist() == wanted
        item = labelled.items[0]
        assert presence_of(item.objects, CLASSES, ignored=item.ignored).tolist() == wanted
    # In a window that the place doesn't meet all is known.
    item = cases[1][0].items[0]
    assert presence_of(item.objects, CLASSES, (0, 0, 20, 32), item.ignored).tolist() == [0, 1]
    assert presence_of(item.objects, CLASSES, (12, 0, 21, 32), item.ignored).tolist() == [-1, -1]
    assert presence_of((crowd,), CLASSES, (0, 0, 21, 32)).tolist() == [-1, 0]
    assert presence_of((crowd,), CLASSES, (0, 0, 20, 32)).tolist() == [0, 0]


def test_unknown_classes_have_no_loss_and_no_score() -> None:
    vision = VisionSettings.model_validate(
        {"arguments": {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}, "image_size": 32}
    )
    model = build_model("classification", VisionTower(vision), CLASSES, head={"multi_label": True}).eval()
    image = torch.randint(0, 255, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)

    def loss(*rows: list[float]) -> tuple[float, float]:
        targets = tuple(Target(classes_C=torch.tensor(row)) for row in rows)
        batch = TaskBatch(image, None, torch.tensor([[32, 32]] * 2), targets, ("a", "b"))
        return float(model(batch)["class"].detach()), model.loss_counts(batch)["class"]

    known, unknown, other = (
        loss([1.0, 0.0], [0.0, 1.0]),
        loss([1.0, -1.0], [0.0, 1.0]),
        loss([1.0, 1.0], [0.0, 1.0]),
    )
    assert (known[1], unknown[1]) == (4, 3)
    assert 0 < unknown[0] < min(known[0], other[0])
    probability, truth = np.array([[0.9, 0.8], [0.2, 0.7], [0.6, 0.1]]), np.array([[1, 1], [0, -1], [-1, 0]])
    scores = multi_label_scores(probability, truth, CLASSES)
    assert scores.values == {"map": 1.0, "macro_f1": 1.0}
    as_absent = multi_label_scores(probability, truth.clip(0), CLASSES)
    assert as_absent.values["macro_f1"] == pytest.approx(2 / 3)


def test_patches_and_masks_are_unknown_at_ignored_places() -> None:
    car = at("car", 0, 0, 16, 16)
    labels = box_labels([car], CLASSES, (32, 32), (4, 4), ignored=[at("?", 9, 0, 24, 9)])
    other = len((*CLASSES, UNCOVERED)) - 1
    assert labels.tolist() == [[0, 0, IGNORE, other], [0, 0, IGNORE, other], [other] * 4, [other] * 4]
    item = LabelledImage(
        "a", "a", 4, 4, semantic=lambda: np.zeros((4, 4), np.uint8), ignored=(at("?", 0, 0, 2, 1),)
    )
    mask = read_mask(item, LabelledSet("set", [item], semantic_classes=("land",)), (4, 4))
    assert mask.tolist() == [[IGNORE, IGNORE, 0, 0], [0] * 4, [0] * 4, [0] * 4]
