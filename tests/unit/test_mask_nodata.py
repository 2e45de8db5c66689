"""Nodata tags of masks: ignored, never background; 0 is refused where it has two readings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats import read_labels
from vitp.data.formats.pixel_masks import mask_from_json, mask_to_json
from vitp.records.labels import LabelledSet

SIDE = 32


def _tif(path: Path, values: np.ndarray, nodata: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values_CHW = values[None] if values.ndim == 2 else values
    count, height, width = values_CHW.shape
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(5e5, 5e6, 1, 1)}
    with rasterio.open(
        *(path, "w"), driver="GTiff", count=count, height=height, width=width, dtype=values_CHW.dtype,
        nodata=nodata, **place,
    ) as file:  # fmt: skip
        file.write(values_CHW)


def _values(values: Sequence[float], dtype: str) -> np.ndarray:
    """Return 0 with a block of 6 × 10 pixels of each value."""
    found_HW = np.zeros((SIDE, SIDE), dtype)
    for number, value in enumerate(values):
        found_HW[1 + 8 * number : 7 + 8 * number, 4:14] = value
    return found_HW


def _set(root: Path, values: Sequence[float], tags: Sequence[float | None], dtype: str = "int16") -> Path:
    rng = np.random.default_rng(0)
    for number, tag in enumerate(tags):
        photo_CHW = rng.integers(1, 256, (3, SIDE, SIDE), dtype=np.uint8)
        _tif(root / f"images/{number}.tif", photo_CHW)
        _tif(root / f"masks/{number}.tif", _values(values, dtype), tag)
    return root


def _counts(found: LabelledSet, number: int = 0) -> dict[int, int]:
    assert found.items[number].semantic is not None
    values, counts = np.unique(found.items[number].semantic(), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


REST = SIDE * SIDE - 180


@pytest.mark.parametrize(
    ("nodata", "dtype"),
    [(-9999, "int16"), (-1, "int16"), (255, "uint8"), (9, "uint8"), (-9999, "float32"), (65535, "uint16"),
     (float("nan"), "float32"), (float("nan"), "float64"), (float(np.finfo("float32").min), "float32")],
)  # fmt: skip
def test_what_the_tag_names_is_ignored(tmp_path: Path, nodata: float, dtype: str) -> None:
    found = read_labels("masks", _set(tmp_path, (1, 2, nodata), [nodata] * 3, dtype))
    assert found.semantic_classes == ("background", "class_1", "class_2")
    assert _counts(found) == {0: REST, 1: 60, 2: 60, 255: 60}
    assert any(
        "nodata by the" in line and "ignored (5.86% of the pixels)" in line for line in found.understood
    )
    # Written down and read back it is the same.
    again = mask_from_json(mask_to_json(found.items[0].semantic, tmp_path), tmp_path)
    assert np.array_equal(again(), found.items[0].semantic())


def test_strays_are_never_given_what_is_nodata(tmp_path: Path) -> None:
    root = _set(tmp_path, (1, 2, np.nan), [np.nan] * 3, "float32")
    assert _counts(read_labels("masks", root, strays="nearest"))[255] == 60


def test_a_tag_decides_where_grey_levels_have_two_readings(tmp_path: Path) -> None:
    found = read_labels("masks", _set(tmp_path / "a", (100, 200, 255), [255] * 3, "uint8"))
    assert _counts(found) == {0: REST, 1: 60, 2: 60, 255: 60}
    with pytest.raises(DataError, match="255 may be a class, or say what to ignore"):
        read_labels("masks", _set(tmp_path / "b", (100, 200, 255), [None] * 3, "uint8"))


def test_zero_beside_one_class_is_background_and_said(tmp_path: Path) -> None:
    found = read_labels("masks", _set(tmp_path, (1,), [0] * 3, "uint8"))
    assert found.semantic_classes == ("background", "foreground")
    assert _counts(found) == {0: SIDE * SIDE - 60, 1: 60}
    assert any(
        "0 is nodata by the tag of 3 of 3 masks, and read as background" in s for s in found.understood
    )


def test_zero_beside_several_classes_is_refused_until_it_is_told(tmp_path: Path) -> None:
    root = _set(tmp_path, (1, 2), [0] * 3, "uint8")
    rest = SIDE * SIDE - 120
    with pytest.raises(DataError, match="may be the background, or say that nothing is known") as caught:
        read_labels("masks", root)
    assert caught.value.fix == "-o nodata=background or -o nodata=ignore"
    with pytest.raises(DataError, match="beside 2 classes"):
        read_labels("masks", root, classes="road=1,roof=2")
    assert _counts(read_labels("masks", root, nodata="background")) == {0: rest, 1: 60, 2: 60}
    ignored = read_labels("masks", root, nodata="ignore")
    assert (ignored.semantic_classes, _counts(ignored)) == (("class_1", "class_2"), {0: 60, 1: 60, 255: rest})
    assert read_labels("masks", root, nodata="ignore", classes="a=1,b=2").semantic_classes == ("a", "b")
    named = read_labels("masks", root, classes="water=0,road=1,roof=2")
    assert (named.semantic_classes[0], _counts(named)[0]) == ("water", rest)
    assert 255 in _counts(read_labels("masks", root, classes="ignore=0,road=1,roof=2"))
    (root / "classes.txt").write_text("nothing here\nroad\nroof\n")
    assert read_labels("masks", root).semantic_classes == ("nothing here", "road", "roof")
    with pytest.raises(ConfigError, match="choose ignore or background"):
        read_labels("masks", root, nodata="class")


def test_a_value_that_somebody_names_is_a_class(tmp_path: Path) -> None:
    root = _set(tmp_path, (1, 7), [7] * 3, "uint8")
    found = read_labels("masks", root, classes="road=1,roof=7")
    assert _counts(found) == {0: SIDE * SIDE - 120, 1: 60, 2: 60}
    assert any('and named: the class "roof"' in line for line in found.understood)


def test_nodata_alone_beside_one_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name 255 as nodata, and beside it they hold only 0"):
        read_labels("masks", _set(tmp_path, (255,), [255] * 3, "uint8"))


def test_nodata_of_some_masks_is_a_class_in_others_only_on_request(tmp_path: Path) -> None:
    root = _set(tmp_path, (1, 7), [7, 7, None], "uint8")
    with pytest.raises(DataError, match='1 others hold it without saying so: there it would be "class_7"'):
        read_labels("masks", root)
    found = read_labels("masks", root, nodata="ignore")
    assert [255 in _counts(found, n) for n in range(3)] == [True, True, False]
    assert _counts(found, 2) == {0: SIDE * SIDE - 120, 1: 60, 2: 60}


def test_colours_have_a_tag_for_each_band(tmp_path: Path) -> None:
    for number in range(3):
        _tif(tmp_path / f"images/{number}.tif", np.full((3, SIDE, SIDE), 40 + number, np.uint8))
        mask_CHW = np.zeros((3, SIDE, SIDE), np.uint8)
        mask_CHW[1, :8], mask_CHW[0, 8:16], mask_CHW[:, 16:20] = 255, 255, 7
        _tif(tmp_path / f"masks/{number}.tif", mask_CHW, 7)
    found = read_labels("masks", tmp_path)
    assert found.semantic_classes == ("background", "green", "red")
    assert _counts(found) == {0: 12 * SIDE, 1: 8 * SIDE, 2: 8 * SIDE, 255: 4 * SIDE}


def test_nodata_is_no_instance(tmp_path: Path) -> None:
    found = read_labels("masks", _set(tmp_path, (1, 2, -1), [-1] * 3), mask_type="instances")
    assert [len(item.objects or ()) for item in found.items] == [2, 2, 2]
    assert [[o.box for o in item.ignored] for item in found.items] == [[(4, 17, 14, 23)]] * 3
    # Nor does it make class numbers look like numbers of instances.
    large = read_labels("masks", _set(tmp_path / "b", (1, 2, 65535), [65535] * 3, "uint16"))
    assert large.semantic_classes == ("background", "class_1", "class_2")


def test_of_masks_of_change_nothing_may_be_unknown(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        for date in "AB":
            _tif(tmp_path / f"{date}/{number}.tif", rng.integers(1, 256, (3, SIDE, SIDE), dtype=np.uint8))
        _tif(tmp_path / f"label/{number}.tif", _values((1, 255), "uint8"), 255)
    with pytest.raises(DataError, match="255 is nodata by its own tag"):
        read_labels("pairs", tmp_path)
    found = read_labels("pairs", tmp_path, unchanged="0,255")
    assert found.items[0].change is not None
    assert int(found.items[0].change().sum()) == 60


# --- virtual rasters


def _virtual(
    path: Path, parts: Sequence[tuple[Path, int]], bands: int, extra: str = "", east: float = 5e5
) -> None:
    """Write a VRT of halves of an image: files, and the columns at which they begin."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><SRS>EPSG:32633</SRS>']
    lines.append(f"<GeoTransform>{east},1,0,5000000,0,-1</GeoTransform>")
    for band in range(1, bands + 1):
        lines.append(f'<VRTRasterBand dataType="Byte" band="{band}">{extra}')
        for source, column in parts:
            size = f'xSize="{SIDE // 2}" ySize="{SIDE}"'
            lines.append(
                f'<SimpleSource><SourceFilename relativeToVRT="1">../src/{source.name}</SourceFilename>'
                f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" {size}/>'
                f'<DstRect xOff="{column}" yOff="0" {size}/></SimpleSource>'
            )
        lines.append("</VRTRasterBand>")
    path.write_text("\n".join([*lines, "</VRTDataset>"]))


def _virtual_set(root: Path, *, extra: str = "", parts: int = 2, east: float = 5e5) -> Path:
    rng = np.random.default_rng(0)
    for number in range(3):
        photo_CHW = rng.integers(1, 256, (3, SIDE, SIDE), dtype=np.uint8)
        values_HW = _values((1, 2), "uint8")
        halves: dict[str, list[tuple[Path, int]]] = {"i": [], "m": []}
        for kind, values in (("i", photo_CHW), ("m", values_HW)):
            for column in (0, SIDE // 2):
                path = root / f"src/{kind}{number}_{column}.tif"
                _tif(path, values[..., column : column + SIDE // 2])
                halves[kind].append((path, column))
        _virtual(root / f"images/{number}.vrt", halves["i"], 3)
        _virtual(root / f"masks/{number}.vrt", halves["m"][:parts], 1, extra, east)
    return root


def test_virtual_masks_and_images(tmp_path: Path) -> None:
    found = read_labels("masks", _virtual_set(tmp_path))
    assert _counts(found) == {0: SIDE * SIDE - 120, 1: 60, 2: 60}
    assert all(item.image.endswith(".vrt") for item in found.items)
    (tmp_path / "src/m1_16.tif").unlink()
    (tmp_path / "src/i2_0.tif").unlink()
    left = read_labels("masks", tmp_path)
    assert [item.id for item in left.items] == ["images/0"]
    assert any("masks/1.vrt: is a VRT that names '../src/m1_16.tif'" in line for line in left.findings)


def test_gaps_of_virtual_masks_are_nodata_or_refused(tmp_path: Path) -> None:
    tag = "<NoDataValue>255</NoDataValue>"
    found = read_labels("masks", _virtual_set(tmp_path / "a", extra=tag, parts=1))
    assert _counts(found) == {0: SIDE * SIDE // 2 - 120, 1: 60, 2: 60, 255: SIDE * SIDE // 2}
    with pytest.raises(DataError, match=r"sources leave 50.0% of it empty, which would be read as 0"):
        read_labels("masks", _virtual_set(tmp_path / "b", parts=1))


def test_virtual_masks_are_brought_onto_their_images(tmp_path: Path) -> None:
    found = read_labels("masks", _virtual_set(tmp_path, east=5e5 + 2))
    semantic_HW = found.items[0].semantic() if found.items[0].semantic else np.zeros(0)
    assert (semantic_HW[:, :2] == 255).all() and (semantic_HW[:, 2:] != 255).all()
    assert int((semantic_HW == 1).sum()) == 60 and semantic_HW[1, 6] == 1 and semantic_HW[1, 5] == 0


def test_a_mask_within_a_mask_is_refused(tmp_path: Path) -> None:
    root = _set(tmp_path, (1, 2), [None] * 3, "uint8")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(root / "masks/1.tif", "r+") as file:
        inside_HW = np.full((SIDE, SIDE), 255, np.uint8)
        inside_HW[:, SIDE // 2 :] = 0
        file.write_mask(inside_HW)
    with pytest.raises(DataError, match=r"has a mask of its own, which says that 50.0% of it hold nothing"):
        read_labels("masks", root)


def test_one_value_beside_ignored_zeros_says_that_the_option_ignored_them(tmp_path: Path) -> None:
    root = _set(tmp_path, (1,), [0] * 3, "uint8")
    with pytest.raises(
        DataError, match=r"-o nodata=ignore ignores 0, which has 94\.14% of the pixels.*only 1"
    ) as caught:
        read_labels("masks", root, nodata="ignore")
    assert "-o nodata=background" in caught.value.fix and "-o classes=NAME=1" in caught.value.fix
    assert _counts(read_labels("masks", root, nodata="background")) == {0: SIDE * SIDE - 60, 1: 60}
    assert _counts(read_labels("masks", root, nodata="ignore", classes="roof=1")) == {
        0: 60,
        255: SIDE * SIDE - 60,
    }
