"""`data compile` on folders as people have them: read as what they are, or one line with every reading, and nothing left."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import done, refused, snapshot
from vitp.tasks.data import LabelReader, open_labelled

SIDE = 48


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)


def mask(path: Path, *values: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask_HW = np.zeros((SIDE, SIDE), np.uint8)
    for number, value in enumerate(values):
        mask_HW[2 + 15 * number : 14 + 15 * number, 8:40] = value
    Image.fromarray(mask_HW).save(path)


@pytest.mark.parametrize(
    ("images", "masks"),
    [("imgs", "masks"), ("JPEGImages", "SegmentationClass"), ("train_images", "train_masks")],
)
def test_folders_of_masks_are_masks(tmp_path: Path, images: str, masks: str) -> None:
    for k in range(6):
        photo(tmp_path / "set" / images / f"im{k}.png")
        mask(tmp_path / "set" / masks / f"im{k}.png", 255)
    out = done("data", "compile", tmp_path / "set", "--out", tmp_path / "out").out
    assert out.index("values of the masks: 0 = background, 255 = foreground") < out.index("questions by task")
    head = json.loads((tmp_path / "out" / "labels" / "set.json").read_text())
    assert head["scene_classes"] == [] and head["semantic_classes"] == ["background", "foreground"]
    done("data", "check", tmp_path / "out")


def test_two_readings_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    for k in range(6):
        photo(tmp_path / "set" / "images" / f"im{k}.png")
        mask(tmp_path / "set" / "masks" / f"im{k}.png", 128, 255)
    before = snapshot(tmp_path / "set")
    line = refused("data", "compile", tmp_path / "set", "--out", tmp_path / "out")
    assert "0, 128, 255: 255 may be a class, or say what to ignore" in line and "ignore=255" in line
    assert not (tmp_path / "out").exists() and snapshot(tmp_path / "set") == before
    option = "classes=background=0,crop=128,forest=255"
    done("data", "compile", tmp_path / "set", "-o", option, "--out", tmp_path / "out")


def test_a_hole_stays_a_hole_from_the_file_to_the_truth(tmp_path: Path) -> None:
    ring = np.zeros((SIDE, SIDE), np.uint8)
    ring[10:34, 10:30], ring[16:26, 14:26] = 1, 0
    runs = np.diff([0, *(np.flatnonzero(np.diff(ring.T.reshape(-1).astype(int))) + 1), SIDE * SIDE]).tolist()
    images, annotations = [], []
    for k in range(6):
        photo(tmp_path / "set" / "images" / f"im{k}.png")
        images.append({"id": k, "file_name": f"im{k}.png", "width": SIDE, "height": SIDE})
        segmentation = {"size": [SIDE, SIDE], "counts": runs}
        annotations.append(
            {"id": k, "image_id": k, "category_id": 1, "segmentation": segmentation, "iscrowd": 0}
        )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "set" / "annotations").mkdir()
    (tmp_path / "set" / "annotations" / "instances.json").write_text(json.dumps(content))
    done("data", "compile", tmp_path / "set", "--out", tmp_path / "out")
    for folder in ("set", "out"):
        labelled = open_labelled(tmp_path / folder)
        reader = LabelReader(labelled, "instances")
        for item in labelled.items:
            masks_NHW = reader.target(reader.sample(item)).masks_NHW
            assert masks_NHW is not None and np.array_equal(masks_NHW[0].numpy(), ring) and ring.sum() == 360


def test_copies_of_images_never_make_our_own_split_leak(tmp_path: Path) -> None:
    for k in range(12):
        name = f"{'port' if k % 2 else 'farm'}/{k:02}x.png"
        photo(tmp_path / "set" / name)
        (tmp_path / "set" / name.replace("x.png", "y.png")).write_bytes(
            (tmp_path / "set" / name).read_bytes()
        )
    done("data", "compile", tmp_path / "set", "-o", "val=0.3", "-o", "test=0.3", "--out", tmp_path / "out")
    done("data", "check", tmp_path / "out")
