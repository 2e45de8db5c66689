"""Masks of classes that are drawn from the outlines of objects: COCO and YOLO."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats import read_labels
from vitp.data.formats.drawn_masks import with_drawn_masks
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.records.rle import encode

SQUARE = (2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0)
HOLE = (4.0, 4.0, 6.0, 4.0, 6.0, 6.0, 4.0, 6.0)


def mask_of(*objects: ObjectLabel, **fields: object) -> np.ndarray:
    item = LabelledImage("a", "a.png", 12, 10, objects=objects, **fields)  # type: ignore[arg-type]
    labelled = with_drawn_masks(LabelledSet("set", [item], object_classes=("cell", "dust")), "both")
    assert labelled.semantic_classes == ("background", "cell", "dust")
    assert labelled.items[0].semantic is not None
    return labelled.items[0].semantic()


def test_outlines_become_classes_and_holes_background() -> None:
    ring = ObjectLabel("cell", (2, 2, 8, 8), polygons=(SQUARE, (9, 2, 11, 2, 11, 4, 9, 4)), holes=(HOLE,))
    expected = np.zeros((10, 12), np.uint8)
    expected[2:8, 2:8] = 1
    expected[4:6, 4:6] = 0
    expected[2:4, 9:11] = 1
    np.testing.assert_array_equal(mask_of(ring), expected)


def test_what_is_not_known_is_ignored() -> None:
    whole = ObjectLabel("cell", (2, 2, 8, 8), polygons=(SQUARE,))
    box = ObjectLabel("dust", (4, 4, 6, 6))
    mask = mask_of(whole, box, ignored=(ObjectLabel("?", (0, 0, 1, 1)),))
    assert mask[5, 5] == 255 and mask[0, 0] == 255 and mask[3, 3] == 1 and mask[9, 11] == 0
    assert (
        mask_of(replace(whole, difficult=True), ObjectLabel("cell", (0, 0, 1, 1), polygons=(HOLE,)))[3, 3]
        == 255
    )


def test_sets_without_outlines_are_refused() -> None:
    item = LabelledImage("a", "a.png", 12, 10, objects=(ObjectLabel("cell", (2, 2, 8, 8)),))
    labelled = LabelledSet("set", [item], object_classes=("cell",))
    with pytest.raises(DataError, match="no object with an outline"):
        with_drawn_masks(labelled, True)
    with pytest.raises(ConfigError, match="true, false or both"):
        with_drawn_masks(labelled, "yes")
    assert with_drawn_masks(labelled, False) is labelled


def test_coco_run_lengths_are_drawn_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    there = np.kron(rng.integers(0, 2, (6, 8)), np.ones((4, 4), int)).astype(np.uint8)
    Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    rle = {"size": [24, 32], "counts": encode(there)["counts"]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 32, "height": 24}],
        "categories": [{"id": 1, "name": "nucleus"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0, 0, 32, 24],
                "segmentation": rle,
                "iscrowd": 0,
            }
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    labelled = read_labels("coco", tmp_path, semantic=True)
    assert labelled.object_classes == () and labelled.items[0].objects is None
    np.testing.assert_array_equal(labelled.items[0].semantic(), there)  # type: ignore[misc]
