"""Masks that have other pixels on the ground than their images: warped, nearest; ignored outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.ground_files import DEGREES, POLAR, UTM, moved, turned, write_raster
from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.data.formats.crops import cut
from vitp.data.formats.vitp_labels import Roots, read_compiled, write_compiled
from vitp.io import warped
from vitp.io.contract import Geometry
from vitp.io.ground import reproject
from vitp.io.images import load_label_pixels
from vitp.io.parts import split_address
from vitp.records.labels import IGNORE, LabelledImage

COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)


def classes_HW(size: tuple[int, int]) -> np.ndarray:
    """Return blobs of three classes that are much larger than a pixel."""
    y, x = np.mgrid[: size[1], : size[0]]
    return ((np.sin(x / 17) + np.cos(y / 13) > 0.4).astype(np.uint8) + (x + 2 * y > 260)).astype(np.uint8)


def nearest_by_hand(
    image: Geometry, size: tuple[int, int], mask: Geometry, values_HW: np.ndarray
) -> np.ndarray:
    """Return the mask on the pixels of an image: for the centre of each pixel, the mask's pixel that holds it."""
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    ground = image.to_map(np.column_stack([x.ravel(), y.ravel()]))
    place = np.floor(mask.to_pixels(reproject(ground, image.crs, mask.crs))).astype(int)
    height, width = values_HW.shape
    inside = (place >= 0).all(1) & (place[:, 0] < width) & (place[:, 1] < height)
    out = np.full(len(place), IGNORE, np.uint8)
    out[inside] = values_HW[place[inside, 1], place[inside, 0]]
    return out.reshape(size[1], size[0])


def finer(geometry: Geometry, factor: float) -> Geometry:
    a, b, c, d, e, f = geometry.transform
    return Geometry(geometry.crs, (a / factor, b / factor, c, d / factor, e / factor, f))


def over(image: Geometry, crs: str, size: float) -> Geometry:
    """Return a grid of another reference system whose corner lies a little inside of an image's."""
    x, y = reproject(image.to_map(np.array([[-10.0, -10.0]])), image.crs, crs)[0]
    return Geometry(crs, (size, 0.0, float(x), 0.0, -size, float(y)))


CASES = {
    "shifted by pixels": (UTM, moved(UTM, 40, -30), (200, 160)),
    "twice as fine": (UTM, finer(UTM, 2), (400, 320)),
    "coarser and turned": (UTM, finer(turned(moved(UTM, 30, -20), 30), 1 / 1.7), (120, 110)),
    "degrees under metres": (UTM, over(UTM, "EPSG:4326", 5e-6), (400, 300)),
    "metres under degrees": (DEGREES, over(DEGREES, "EPSG:32633", 0.6), (300, 330)),
    "polar, moved": (POLAR, moved(POLAR, -20, 35), (200, 160)),
}


def write_pair(root: Path, image: Geometry, mask: Geometry, values: np.ndarray) -> None:
    write_raster(root / "images" / "a.tif", image)
    values_CHW = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    write_raster(root / "masks" / "a.tif", mask, values_CHW=np.ascontiguousarray(values_CHW))
    (root / "classes.txt").write_text(
        "land=0\nwater=1\nice=2\n" if values.ndim == 2 else "land=#000000\nwater=#ff0000\nice=#0000ff\n"
    )


def read_one(root: Path) -> LabelledImage:
    (item,) = read_labels("masks", root, val=0, test=0).items
    return item


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_masks_are_brought_onto_their_images(tmp_path: Path, case: str, colour: bool) -> None:
    image, mask, size = CASES[case]
    values = classes_HW(size)
    write_pair(tmp_path, image, mask, COLOURS[values] if colour else values)
    item = read_one(tmp_path)
    assert item.semantic is not None
    got_HW, expected_HW = item.semantic(), nearest_by_hand(image, (200, 160), mask, values)
    assert got_HW.shape == expected_HW.shape
    # A centre that lies on the border of two pixels to a hundredth may go to either.
    assert (got_HW != expected_HW).mean() < (
        0 if case in ("shifted by pixels", "polar, moved") else 0.002
    ) + 1e-9
    assert (expected_HW != IGNORE).mean() > 0.1


def test_it_is_said_and_survives_windows_and_files(tmp_path: Path) -> None:
    image, mask, size = CASES["coarser and turned"]
    root = tmp_path / "set"
    write_pair(root, image, mask, classes_HW(size))
    labelled = read_labels("masks", root, val=0, test=0)
    assert any("1 masks have other pixels on the ground" in line for line in labelled.understood)
    whole = labelled.items[0].semantic
    assert whole is not None
    write_compiled(cut(labelled, 80, 10, tmp_path / "crops"), Roots(tmp_path / "out", root, root))
    for item in read_compiled(tmp_path / "out").items:
        window = split_address(item.image)[1].window
        assert window is not None and item.semantic is not None
        x1, y1, x2, y2 = window
        np.testing.assert_array_equal(item.semantic(), whole()[y1:y2, x1:x2])


def test_masks_on_the_same_pixels_stay_as_they_are(tmp_path: Path) -> None:
    values = classes_HW((200, 160))
    write_pair(tmp_path, UTM, moved(UTM, 0.2, 0), values)
    labelled = read_labels("masks", tmp_path, val=0, test=0)
    assert not any("other pixels" in line for line in labelled.understood)
    assert labelled.items[0].semantic is not None
    np.testing.assert_array_equal(labelled.items[0].semantic(), values)


@pytest.mark.parametrize("which", ["image", "mask", "both"])
def test_without_a_place_the_sizes_must_agree(tmp_path: Path, which: str) -> None:
    write_pair(tmp_path, UTM, UTM, classes_HW((100, 80)))
    if which != "mask":
        write_raster(tmp_path / "images" / "a.tif", None)
    if which != "image":
        write_raster(tmp_path / "masks" / "a.tif", None, values_CHW=classes_HW((100, 80))[None])
    with pytest.raises(DataError, match="100×80 but its image 200×160"):
        read_labels("masks", tmp_path)


def test_a_mask_of_another_place_is_left_out(tmp_path: Path) -> None:
    write_pair(tmp_path, UTM, moved(UTM, 5000, 0), classes_HW((200, 160)))
    with pytest.raises(DataError, match="doesn't lie where its image does"):
        read_labels("masks", tmp_path)


def test_numbers_of_instances_on_another_grid_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, UTM, moved(UTM, 40, -30), classes_HW((200, 160)))
    with pytest.raises(DataError, match="numbers of instances on other pixels") as caught:
        read_labels("masks", tmp_path, mask_type="instances")
    assert "gdalwarp" in str(caught.value.fix)


KINDS = {
    "bit": {"nbits": 1},
    "white is zero, a bit": {"nbits": 1, "photometric": "miniswhite"},
    "white is zero": {"photometric": "miniswhite"},
    "palette": {"photometric": "palette"},
    "tiled": {"tiled": True, "compress": "deflate"},
}


_DTYPES = ("uint8", "int16", "uint16", "int32", "float32")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, "uint8") for kind in KINDS] + [("tiled", dtype) for dtype in _DTYPES[1:]],
)
def test_a_part_of_a_large_mask_is_what_the_whole_has_there(
    tmp_path: Path, kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warped, "_LARGE", 100)
    values = np.minimum(classes_HW((200, 160)), 1) if "bit" in kind else classes_HW((200, 160))
    path = write_raster(tmp_path / "a.tif", values_CHW=values.astype(dtype)[None], **KINDS[kind])
    part = warped.label_window(path, (20, 30, 120, 90))
    assert part is not None
    np.testing.assert_array_equal(part, load_label_pixels(path)[30:90, 20:120])
    moved_HW, inside_HW = warped.warped_labels(path, warped.Grid.of(moved(UTM, 20, 30), (100, 60)))
    assert inside_HW.all()
    np.testing.assert_array_equal(moved_HW, part)


def test_colours_of_a_part_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warped, "_LARGE", 100)
    colours = np.ascontiguousarray(COLOURS[classes_HW((200, 160))].transpose(2, 0, 1))
    for count in (3, 4):
        values_CHW = np.concatenate([colours, np.full((count - 3, 160, 200), 255, np.uint8)])
        path = write_raster(tmp_path / f"{count}.tif", values_CHW=values_CHW, photometric="rgb")
        part = warped.label_window(path, (20, 30, 120, 90))
        assert part is not None
        np.testing.assert_array_equal(part, load_label_pixels(path)[30:90, 20:120])
