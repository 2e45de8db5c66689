"""Scores of detections against pycocotools and slow definitions."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitp.data.formats import read_labels
from vitp.metrics import coco
from vitp.metrics.coco import FoundObjects, TrueObjects, coco_scores, encode_masks
from vitp.metrics.detection import pairwise_iou, true_objects, voc_average_precision
from vitp.tasks.data import LabelReader

CLASSES = 3


def _pycocotools() -> tuple[object, object, object]:
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval, mask


def _objects(rng: np.random.Generator, count: int, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    corner = rng.integers(0, side - 12, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(3, 12, (count, 2))], 1).astype(np.float32)
    return boxes, rng.integers(0, CLASSES, count)


def _filled(boxes: np.ndarray, side: int = 64) -> np.ndarray:
    masks = np.zeros((len(boxes), side, side), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
        mask[y1, x1] = False  # a mask isn't its box
    return masks


def _random_set(
    seed: int, images: int = 12, *, masks: bool = True
) -> tuple[list[TrueObjects], list[FoundObjects]]:
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(images):
        boxes, labels = _objects(rng, int(rng.integers(0, 6)))
        near = boxes[rng.random(len(boxes)) < 0.8]
        near_labels = labels[: len(near)]
        stray, stray_labels = _objects(rng, int(rng.integers(0, 4)))
        all_found = (
            np.concatenate([near + rng.integers(-1, 2, near.shape), stray]).clip(0, 64).astype(np.float32)
        )
        scores = rng.integers(1, 8, len(all_found)) / 8  # many ties
        difficult = rng.random(len(boxes)) < 0.2
        encode = (lambda b: encode_masks(_filled(b))) if masks else (lambda b: None)
        truths.append(TrueObjects(boxes, labels, difficult, encode(boxes)))
        found.append(
            FoundObjects(
                all_found, scores, np.concatenate([near_labels, stray_labels]).astype(int), encode(all_found)
            )
        )
    return truths, found


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("seed", range(4))
def test_coco_is_pycocotools(monkeypatch: pytest.MonkeyPatch, kind: str, seed: int) -> None:
    truths, found = _random_set(seed)
    own = coco_scores(truths, found, CLASSES, kind=kind, max_detections=3)  # type: ignore[arg-type]
    monkeypatch.setattr(coco, "_tools", _pycocotools)
    wanted = coco_scores(truths, found, CLASSES, kind=kind, max_detections=3)  # type: ignore[arg-type]
    assert 0.05 < own.values["AP"] < 0.95
    for name, value in wanted.values.items():
        assert own.values[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name
    np.testing.assert_allclose(own.class_ap, wanted.class_ap, atol=1e-12)
    np.testing.assert_allclose(own.class_ap50, wanted.class_ap50, atol=1e-12)


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("seed", range(3))
def test_coco_with_crowd_regions_is_pycocotools(
    monkeypatch: pytest.MonkeyPatch, kind: str, seed: int
) -> None:
    """Crowds are far larger than what is found in them: detections are ignored by the share that lies inside."""
    truths, found = _random_set(seed)
    rng = np.random.default_rng([seed, 1])
    crowded = []
    for truth in truths:
        corner = rng.integers(0, 30, 2)
        crowd = np.concatenate([corner, corner + rng.integers(20, 34, 2)])[None].astype(np.float32)
        boxes = np.concatenate([truth.boxes_N4, crowd])
        labels = np.append(truth.labels_N, rng.integers(CLASSES))
        hard = np.append(truth.difficult_N, True)
        crowded.append(TrueObjects(boxes, labels, hard, encode_masks(_filled(boxes))))
    own = coco_scores(crowded, found, CLASSES, kind=kind)  # type: ignore[arg-type]
    without = coco_scores(truths, found, CLASSES, kind=kind)  # type: ignore[arg-type]
    assert own.values["AP50"] > without.values["AP50"]
    monkeypatch.setattr(coco, "_tools", _pycocotools)
    wanted = coco_scores(crowded, found, CLASSES, kind=kind)  # type: ignore[arg-type]
    for name, value in wanted.values.items():
        assert own.values[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name
    # Ignored places go the same way in both.
    hidden = [
        TrueObjects(
            truth.boxes_N4,
            truth.labels_N,
            truth.difficult_N,
            truth.masks,
            crowd.boxes_N4[-1:],
            (crowd.masks or ())[-1:],
        )
        for truth, crowd in zip(truths, crowded, strict=True)
    ]
    theirs = coco_scores(hidden, found, CLASSES, kind=kind)  # type: ignore[arg-type]
    monkeypatch.undo()
    ours = coco_scores(hidden, found, CLASSES, kind=kind)  # type: ignore[arg-type]
    assert ours.values["AP50"] >= own.values["AP50"]
    for name, value in theirs.values.items():
        assert ours.values[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


def test_coco_summary_is_pycocotools_own() -> None:
    """The numbers that pycocotools itself prints, from annotations written by hand."""
    import contextlib
    import io

    truths, found = _random_set(11, images=20)
    own = coco_scores(truths, found, CLASSES)
    make, evaluator, _ = _pycocotools()
    images = [{"id": i, "height": 64, "width": 64} for i in range(len(truths))]
    categories = [{"id": c, "name": str(c)} for c in range(CLASSES)]
    annotations, results = [], []
    for image, (truth, detections) in enumerate(zip(truths, found, strict=True)):
        for box, label, hard in zip(truth.boxes_N4, truth.labels_N, truth.difficult_N, strict=True):
            x1, y1, x2, y2 = map(float, box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1) - 1,  # the corner that the mask lacks
                    "iscrowd": int(hard),
                }
            )
        for box, label, score in zip(
            detections.boxes_N4, detections.labels_N, detections.scores_N, strict=True
        ):
            x1, y1, x2, y2 = map(float, box)
            results.append(
                {
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(score),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = make()  # type: ignore[operator]
        truth_set.dataset = {"images": images, "categories": categories, "annotations": annotations}
        truth_set.createIndex()
        evaluation = evaluator(truth_set, truth_set.loadRes(results), "bbox")  # type: ignore[operator]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    for name, value in zip(names, evaluation.stats[:6], strict=True):
        if value == -1:
            assert np.isnan(own.values[name])
        else:
            assert own.values[name] == pytest.approx(value, abs=1e-12)
    assert own.values["AR"] == pytest.approx(evaluation.stats[8], abs=1e-12)


def _slow_voc(
    truths: list[TrueObjects], found: list[FoundObjects], number: int, iou: float, eleven: bool
) -> float:
    """Pascal VOC as its development kit says it, one detection after the other."""
    detections: list[tuple[float, int, np.ndarray]] = []
    for image, objects in enumerate(found):
        mine = np.flatnonzero(objects.labels_N == number)
        detections += [(float(objects.scores_N[at]), image, objects.boxes_N4[at]) for at in mine]
    detections.sort(key=lambda d: -d[0])  # stable
    to_find = sum(int(((t.labels_N == number) & ~t.difficult_N).sum()) for t in truths)
    if not to_find:
        return float("nan")
    taken: set[tuple[int, int]] = set()
    hits, misses, curve = 0, 0, []
    for _, image, box in detections:
        truth, best, best_at = truths[image], -1.0, -1
        for at in range(len(truth.labels_N)):
            if truth.labels_N[at] == number:
                overlap = float(pairwise_iou(box[None], truth.boxes_N4[at][None])[0, 0])
                if overlap > best:
                    best, best_at = overlap, at
        if best >= iou and truth.difficult_N[best_at]:
            continue
        if best >= iou and (image, best_at) not in taken:
            taken.add((image, best_at))
            hits += 1
        else:
            misses += 1
        curve.append((hits, hits / (hits + misses)))
    if eleven:
        points = [max((p for h, p in curve if 10 * h >= k * to_find), default=0.0) for k in range(11)]
        return sum(points) / 11
    return (
        sum(max((p for h, p in curve if h >= need), default=0.0) for need in range(1, to_find + 1)) / to_find
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    images=st.integers(0, 8),
    iou=st.sampled_from([0.3, 0.5, 0.75]),
    eleven=st.booleans(),
)
def test_voc_is_the_slow_definition(seed: int, images: int, iou: float, eleven: bool) -> None:
    truths, found = _random_set(seed, images, masks=False)
    own = voc_average_precision(truths, found, CLASSES, iou=iou, eleven_points=eleven)
    wanted = [_slow_voc(truths, found, number, iou, eleven) for number in range(CLASSES)]
    np.testing.assert_allclose(own, wanted, atol=1e-12)


def test_small_and_medium_are_told_apart_by_the_outlines_of_a_coco_file(tmp_path: Path) -> None:
    """Triangles of 800 px in boxes of 1600: small by COCO's tools, which take the file's areas."""
    image = Image.new("RGB", (200, 200))
    image.save(tmp_path / "a.png")
    corners = [(0, 0), (100, 0), (0, 100), (100, 100)]
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": 1,
            "bbox": [x, y, 40 + 40 * (number == 4), 40],
            "segmentation": [[x, y, x + 40 + 40 * (number == 4), y, x, y + 40]],
            "area": 800 + 800 * (number == 4),
            "iscrowd": 0,
        }
        for number, (x, y) in enumerate(corners, 1)
    ]
    value = {
        "images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 200}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "sail"}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(value))
    boxes = np.array([[0, 0, 40, 40], [104, 0, 144, 40], [100, 100, 182, 140], [0, 160, 36, 196]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.95])
    reader = LabelReader(read_labels("coco", tmp_path / "labels.json", val=0.0), "objects")
    truth = true_objects(reader.target(reader.sample(reader.labelled.items[0])))
    ours = coco_scores([truth], [FoundObjects(boxes, scores, np.zeros(4, int))], 1).values

    make, evaluator, _ = _pycocotools()
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = make(str(tmp_path / "labels.json"))  # type: ignore[operator]
        rows = [
            {"image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            for (x1, y1, x2, y2), score in zip(boxes.tolist(), scores.tolist(), strict=True)
        ]
        evaluation = evaluator(theirs, theirs.loadRes(rows), "bbox")  # type: ignore[operator]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    for name, value_of in zip(
        ("AP", "AP50", "AP75", "AP_small", "AP_medium"), evaluation.stats, strict=False
    ):
        assert ours[name] == pytest.approx(value_of, abs=1e-6), name
    # By their boxes all four would be medium.
    assert 0 < ours["AP_small"] < 1 and 0 < ours["AP_medium"] <= 1
