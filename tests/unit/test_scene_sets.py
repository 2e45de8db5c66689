"""Sets of generated scenes, and the files in which they are written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from vitp.core.errors import ConfigError, DataError
from vitp.scenes import (
    DOMAINS,
    LAYOUT_WRITERS,
    load_pair,
    load_scene,
    parse_scene_address,
    scene_set,
    write_scenes,
)


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_sets_are_lazy_and_their_polygons_fill_the_masks(domain: str) -> None:
    labels = scene_set(domain, seed=1, count=10**6, split="val")
    assert len(labels) == 10**6 and labels.licence == "CC0 (generated)"
    assert labels.object_classes == DOMAINS[domain].object_classes
    ids = set()
    for item in labels.items[100:120]:
        ids.add(item.id)
        scene = load_scene(item.image)
        assert item.split == "val" and item.scene == scene.scene_type and item.captions == (scene.caption,)
        assert item.semantic is not None and np.array_equal(item.semantic(), scene.semantic_HW)
        assert item.second_image is None and item.change is None and item.objects is not None
        for number, label in enumerate(item.objects, 1):
            mask = scene.instance_HW == number
            area = 0.0
            for ring in label.polygons:
                points = np.asarray(ring).reshape(-1, 2)
                area += cv2.contourArea(points.astype(np.float32))
            assert area == pytest.approx(np.count_nonzero(mask), abs=2 + 0.08 * mask.sum())
    assert len(ids) == 20
    same = pickle.loads(pickle.dumps(labels)).items[3]
    assert same.image == labels.items[3].image and np.array_equal(same.semantic(), labels.items[3].semantic())
    assert labels.items[-1].id.endswith("999999")
    with pytest.raises(IndexError):
        labels.items[10**6]


def test_pair_sets_carry_both_dates_and_the_change() -> None:
    labels = scene_set("general", seed=2, count=6, pairs=True, size=64)
    for item in labels.items:
        assert item.second_image and item.change
        assert parse_scene_address(item.image).date == "before"
        assert parse_scene_address(item.second_image).date == "after"
        assert np.array_equal(item.change(), load_pair(item.image).change_HW)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("layout", sorted(LAYOUT_WRITERS))
def test_writing_is_deterministic_and_complete(layout: str, tmp_path: Path) -> None:
    pairs = layout == "pairs"
    sets = [
        scene_set("port", seed=3, count=3, split=split, size=64, pairs=pairs) for split in ("train", "val")
    ]
    write_scenes(sets, tmp_path / "a", layout=layout)
    write_scenes(sets, tmp_path / "b", layout=layout)
    first = read_tree(tmp_path / "a")
    assert first == read_tree(tmp_path / "b")
    pictures = [name for name in first if name.endswith(".png")]
    images = [name for name in pictures if not {"masks", "label", "annotations"} & {*Path(name).parts}]
    assert len(images) == (12 if pairs else 6)


def test_written_labels_say_what_the_scenes_hold(tmp_path: Path) -> None:
    from PIL import Image

    labels = scene_set("general", seed=3, count=4, size=64)
    items = list(labels.items)
    for layout in ("coco", "dota", "voc", "yolo", "masks"):
        write_scenes(labels, tmp_path / layout, layout=layout)
    coco = json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())
    names = {row["id"]: row["name"] for row in coco["categories"]}
    for number, item in enumerate(items, 1):
        assert item.objects is not None and item.semantic is not None
        rows = [row for row in coco["annotations"] if row["image_id"] == number]
        assert [names[row["category_id"]] for row in rows] == [label.category for label in item.objects]
        for row, label in zip(rows, item.objects, strict=True):
            x, y, width, height = row["bbox"]
            assert (x, y, x + width, y + height) == pytest.approx(label.box, abs=2e-3)
        lines = (tmp_path / f"dota/train/labelTxt/{item.id}.txt").read_text().splitlines()
        for line, label in zip(lines, item.objects, strict=True):
            assert [float(v) for v in line.split()[:8]] == pytest.approx(label.quad, abs=1e-3)
            assert line.split()[8:] == [label.category, "0"]
        yolo = (tmp_path / f"yolo/train/labels/{item.id}.txt").read_text().splitlines()
        assert [int(line.split()[0]) for line in yolo] == [
            labels.object_classes.index(label.category) for label in item.objects
        ]
        assert (tmp_path / f"voc/Annotations/{item.id}.xml").read_text().count("<object>") == len(
            item.objects
        )
        mask = np.asarray(Image.open(tmp_path / f"masks/train/masks/{item.id}.png"))
        assert np.array_equal(mask, item.semantic())
        image = np.asarray(Image.open(tmp_path / f"masks/train/images/{item.id}.png"))
        assert np.array_equal(image, load_scene(item.image).image_HWC)


def test_writing_what_is_not_there_says_so(tmp_path: Path) -> None:
    labels = scene_set("port", seed=0, count=1, size=32)
    with pytest.raises(DataError, match="no second date"):
        write_scenes(labels, tmp_path / "out", layout="pairs")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match='did you mean "coco"'):
        write_scenes(labels, tmp_path / "out", layout="cocoo")
    with pytest.raises(ConfigError, match="classes"):
        other = scene_set("general", seed=0, count=1, size=32)
        write_scenes([labels, other], tmp_path / "out", layout="masks")
