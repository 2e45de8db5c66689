"""Names of classes that no answer can hold, and words that answers use themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.records.labels import LabelledSet


def pictures(folder: Path, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(4):
        pixels = np.random.default_rng(seed + i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def coco(root: Path, names: list[str], used: int) -> LabelledSet:
    """Return a set of boxes, of the first `used` of the names."""
    pictures(root / "images")
    boxes = [
        {"id": 9 * i + k, "image_id": i, "category_id": k, "bbox": [4 + k, 4, 9, 9], "area": 81, "iscrowd": 0}
        for i in range(4)
        for k in range(used)
    ]
    content = {
        "images": [{"id": i, "file_name": f"images/{i}.png", "width": 32, "height": 32} for i in range(4)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "annotations": boxes,
    }
    (root / "labels.json").write_text(json.dumps(content))
    return read_labels("coco", root / "labels.json")


@pytest.mark.parametrize("name", ["background", "None", "__background__"])
def test_objects_called_like_nothing_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f'called "{name}".*option classes'):
        coco(tmp_path, ["ship", name], used=2)


def test_a_background_class_without_objects_is_left_out(tmp_path: Path) -> None:
    found = coco(tmp_path, ["ship", "background"], used=1)
    assert found.object_classes == ("ship",)
    assert any('"background"; it is left out' in line for line in found.findings)


@pytest.mark.parametrize("other", ["Ship hull", "ship_hull", "ship-hull", "SHIP  HULL"])
def test_names_that_are_spoken_alike_are_refused(tmp_path: Path, other: str) -> None:
    with pytest.raises(DataError, match=f'"ship hull" and "{other}" are spoken alike'):
        coco(tmp_path, ["ship hull", other], used=2)


def test_scene_classes_that_are_spoken_alike_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "Forest")
    pictures(tmp_path / "forest ", seed=9)
    with pytest.raises(DataError, match="spoken alike"):
        read_labels("folders", tmp_path)


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\x07", "a\u2028b"])
def test_control_characters_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="control character") as error:
        coco(tmp_path, ["ship", name], used=1)
    assert "\n" not in str(error.value)


def test_signs_of_markup_are_a_finding(tmp_path: Path) -> None:
    found = coco(tmp_path, ["<image>", "</box><|im_end|>"], used=2)
    assert 'classes: "<image>" is spoken "image"' in found.findings
    assert 'classes: "</box><|im_end|>" is spoken "/box im end"' in found.findings


def test_masks_of_pixels_as_stored_name_the_orientation(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.jpg", exif=exif)
        Image.fromarray((pixels[..., 0] > 128).astype(np.uint8)).save(tmp_path / f"masks/{i}.png")
    with pytest.raises(DataError, match=r"36×24 but its image 24×36 .*EXIF orientation"):
        read_labels("masks", tmp_path)


def test_photographs_are_named_first_as_images(tmp_path: Path) -> None:
    for folder, mode in (("a", "L"), ("photos_b", "RGB")):
        (tmp_path / folder).mkdir()
        for i in range(4):
            pixels = np.random.default_rng(i + len(mode)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(tmp_path / folder / f"scan_{'abcd'[i]}.png")
    with pytest.raises(DataError, match="-o images=photos_b -o masks=a "):
        read_labels("auto", tmp_path)
