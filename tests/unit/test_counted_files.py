"""Folders whose files a counter named: classes, or images of the same places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats import detect_format, read_labels


def digit(folder: int, number: int) -> np.ndarray:
    """Return a bright stroke on black, whose form is its folder's and whose place is its own, as digits have them."""
    rng = np.random.default_rng([folder, number])
    pixels_HW = np.zeros((28, 28), np.float64)
    y, x = rng.integers(2, 14, 2)
    pixels_HW[y : y + 4 + 2 * folder, x : x + 12 - 2 * folder] = rng.integers(120, 256)
    return (pixels_HW + rng.integers(0, 12, (28, 28))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("names", [("1", "2", "3"), ("00", "01", "02", "03"), ("cat", "dog")])
@pytest.mark.parametrize("file", ["{}.png", "img_{:03d}.png"])
def test_folders_of_equal_sizes_whose_files_a_counter_named_are_classes(
    tmp_path: Path, names: tuple[str, ...], file: str
) -> None:
    for folder, name in enumerate(names):
        (tmp_path / name).mkdir()
        for k in range(14):
            Image.fromarray(digit(folder, k)).save(tmp_path / name / file.format(k))
    found = read_labels("auto", tmp_path)
    assert found.scene_classes == names
    assert sorted(item.scene or "" for item in found.items) == sorted(14 * list(names))


@pytest.mark.parametrize("kind", ["dates", "bands", "masks", "years", "copies", "three"])
def test_numbered_folders_that_may_show_the_same_are_refused(tmp_path: Path, kind: str) -> None:
    """Two dates of a place, bands, images and masks, years; what is all alike; too few to tell."""
    for k in range(2 if kind == "three" else 14):
        one_HW = digit(0, 0 if kind == "copies" else k)
        other_HW = {
            "dates": np.roll(one_HW, 1, 0) // 2 + 60,
            "bands": 255 - one_HW,
            "masks": np.where(digit(1, k + 50) > 100, 255, 0).astype(
                np.uint8
            ),  # of a place that nothing shows
            "years": digit(1, k),
            "copies": one_HW,
            "three": digit(1, k),
        }[kind]
        for name, pixels_HW in zip(
            ("2019", "2020") if kind == "years" else ("1", "2"), (one_HW, other_HW), strict=True
        ):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels_HW).save(tmp_path / name / f"{k}.png")
    with pytest.raises(DataError, match="files of equal names: images and masks, two dates, or classes"):
        read_labels("auto", tmp_path)


@pytest.mark.parametrize("kept", [0, 60])
def test_damaged_files_dont_hide_that_folders_are_classes(tmp_path: Path, kept: int) -> None:
    for folder, name in enumerate(("ash", "elm", "oak")):
        (tmp_path / name).mkdir()
        for k in range(14):
            path = tmp_path / name / f"{k}.png"
            Image.fromarray(digit(folder, k)).save(path)
            if k == 3 * folder:
                path.write_bytes(path.read_bytes()[:kept])
    found = read_labels("auto", tmp_path)
    assert found.scene_classes == ("ash", "elm", "oak")
    # Heads of 60 bytes still tell the size, which is all that is read of an image here.
    lost = [place for place in ("ash/0", "elm/3", "oak/6") if any(place in line for line in found.findings)]
    assert (len(found.items), len(lost)) == ((3 * 13, 3) if kept == 0 else (3 * 14, 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "CMYK"])
def test_kinds_of_pixels_that_no_mask_has_are_no_fault_of_class_folders(tmp_path: Path, mode: str) -> None:
    for folder, name in enumerate(("ash", "elm")):
        (tmp_path / name).mkdir()
        for k in range(14):
            pixels_HW = digit(folder, k)
            image = Image.fromarray(pixels_HW).convert("RGBA" if mode == "LA" else "RGB")
            image = (
                Image.fromarray(pixels_HW.astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
            )
            image.save(tmp_path / name / f"{k}.tif")
    assert detect_format(tmp_path) == "folders"
