"""What the values of masks mean: Cityscapes' ids, the white of 16 bits, photographs; and masks that EXIF doesn't turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.layout_toys import SIDE, mask, photo
from vitp.core.errors import DataError
from vitp.data.formats import read_labels


def _cityscapes(root: Path, *values: int) -> Path:
    for split, city in (("train", "aachen"), ("val", "ulm")):
        for number in range(2):
            name = f"{split}/{city}/{city}_{number:06d}_000019"
            photo(root / f"leftImg8bit/{name}_leftImg8bit.png")
            mask(root / f"gtFine/{name}_gtFine_labelIds.png", *values)
            mask(root / f"gtFine/{name}_gtFine_labelTrainIds.png", 0, 255)
            photo(root / f"gtFine/{name}_gtFine_color.png")
            (root / f"gtFine/{name}_gtFine_polygons.json").write_text("{}")
    return root


def test_cityscapes_ids_have_their_published_names(tmp_path: Path) -> None:
    found = read_labels("auto", _cityscapes(tmp_path, 7, 26, 9))
    assert (
        "of Cityscapes' kinds the files …_labelIds; color, labelTrainIds, polygons are not read"
        in found.understood[0]
    )
    assert len(found.semantic_classes) == 19
    assert (found.semantic_classes[0], found.semantic_classes[13], found.semantic_classes[18]) == (
        *("road", "car", "bicycle"),
    )
    assert any("ignored as in its benchmark: 0 unlabeled, 1 ego vehicle" in line for line in found.understood)
    semantic = found.items[0].semantic
    assert semantic is not None
    values, counts = np.unique(semantic(), return_counts=True)
    # Parking (9) and what isn't labelled (0) are ignored.
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {
        0: 120,
        13: 120,
        255: SIDE * SIDE - 240,
    }


def test_other_names_of_cityscapes_ids_win(tmp_path: Path) -> None:
    root = _cityscapes(tmp_path, 7, 26)
    told = read_labels("auto", root, classes="background=0,street=7,vehicle=26")
    assert told.semantic_classes == ("background", "street", "vehicle")
    (root / "classes.txt").write_text("0 nothing\n7 way\n26 auto\n")
    assert read_labels("auto", root).semantic_classes == ("nothing", "way", "auto")


def test_values_that_are_no_ids_of_cityscapes_are_read_as_they_occur(tmp_path: Path) -> None:
    found = read_labels("auto", _cityscapes(tmp_path, 7, 40))
    assert found.semantic_classes == ("background", "class_7", "class_40")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_photographs_are_no_masks(tmp_path: Path, suffix: str) -> None:
    for k in range(3):
        photo(tmp_path / f"images/{k}.png")
        photo(tmp_path / f"gt/{k}.{suffix}")
    with pytest.raises(DataError, match="look like photographs") as caught:
        read_labels("masks", tmp_path)
    assert "-o masks=FOLDER" in caught.value.fix and "--format images" in caught.value.fix
    with pytest.raises(DataError, match="look like photographs"):
        read_labels("masks", tmp_path, strays="nearest")


@pytest.mark.parametrize("white", [65535, 256, 1000])
def test_one_value_of_16_bits_beside_zero_is_the_foreground(tmp_path: Path, white: int) -> None:
    for k in range(3):
        photo(tmp_path / f"images/{k}.png")
        values_HW = np.zeros((SIDE, SIDE), np.uint16)
        values_HW[4:14, 5:15] = values_HW[20:24, 5:15] = white
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(values_HW).save(tmp_path / f"masks/{k}.png")
    found = read_labels("auto", tmp_path)
    assert found.semantic_classes == ("background", "foreground")
    assert [int((item.semantic() == 1).sum()) for item in found.items if item.semantic] == [140] * 3
    # Several large values are still two readings.
    values_HW[30:34, 5:15] = 300
    Image.fromarray(values_HW).save(tmp_path / "masks/2.png")
    with pytest.raises(DataError, match="may be numbers of instances"):
        read_labels("masks", tmp_path)


@pytest.mark.parametrize("orientation", [6, 1])
def test_masks_that_exif_does_not_turn_say_what_to_do(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    # Without a turn the masks of the second case are too narrow for another reason.
    width = 40 if orientation == 6 else 36
    for k in range(3):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{k}.jpg", exif=exif)
        values_HW = np.zeros((30, width), np.uint8)
        values_HW[3:9, 4:12] = 255
        Image.fromarray(values_HW).save(tmp_path / f"masks/{k}.png")
    with pytest.raises(DataError, match="none of the 3 labels") as caught:
        read_labels("masks", tmp_path)
    turned = "remove the images' EXIF orientation" in caught.value.fix
    assert turned == (orientation == 6) and "options" not in caught.value.fix
    assert turned or caught.value.fix == "save each mask with the width and height of its image"


def _photograph(path: Path, size: tuple[int, int], orientation: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(len(path.stem)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)


def _drawn(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values_HW = np.zeros((size[1], size[0]), np.uint8)
    values_HW[2:6, 1:9] = 255
    Image.fromarray(values_HW).save(path)


@pytest.mark.parametrize("place", ["masks/{}.png", "masks/{}/1.png"])
@pytest.mark.parametrize(("size", "orientation"), [((32, 32), 6), ((32, 32), 2), ((40, 30), 3)])
def test_masks_that_fit_a_turned_image_both_ways_have_two_readings(
    tmp_path: Path, place: str, size: tuple[int, int], orientation: int
) -> None:
    for k in range(4):
        _photograph(tmp_path / f"images/{k}.jpg", size, orientation if k < 2 else 1)
        _drawn(tmp_path / place.format(k), size)
    with pytest.raises(DataError, match="2 of 4 images are turned by their EXIF orientation") as caught:
        read_labels("masks", tmp_path)
    assert "as they are stored and as they are shown (images/0.jpg with" in caught.value.what
    assert "-o orientation=shown" in caught.value.fix and "exiftool -Orientation= FILE" in caught.value.fix
    found = read_labels("masks", tmp_path, orientation="shown")
    assert "the masks of 2 images that EXIF turns lie on them as they are shown" in found.understood
    assert [(item.width, item.height) for item in found.items] == [size] * 4
    for k in range(4):  # what is said to do otherwise works, too
        _photograph(tmp_path / f"images/{k}.jpg", size, 1)
    assert len(read_labels("masks", tmp_path).items) == 4


def test_one_turned_image_of_two_sides_tells_how_all_masks_lie(tmp_path: Path) -> None:
    for k, (stored, shown) in enumerate([((32, 32), (32, 32)), ((40, 30), (30, 40))]):
        _photograph(tmp_path / f"images/{k}.jpg", stored, 6)
        _drawn(tmp_path / f"masks/{k}.png", shown)
    found = read_labels("masks", tmp_path, splits="drawn")
    assert "the masks of 2 images that EXIF turns lie on them as they are shown" in found.understood
    assert [int((item.semantic() == 1).sum()) for item in found.items if item.semantic] == [32, 32]
