"""TIFF files of several bands, wide samples and pages: read for what they are, or refused with both readings."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tiff_files import GEO, page, write_pages, write_tiff
from vitp.core.errors import DataError
from vitp.io import image_file, pixels, tiff
from vitp.io.image_file import open_image
from vitp.io.images import image_size, load_image, load_label_pixels


def _values(bands: int = 3, dtype: type = np.uint16, most: int = 4096, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, (70, 53, bands)).astype(dtype)


def _stretched(values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """The documented rule, in NumPy: 2nd–98th percentile of what is valid, all bands together."""
    values = values.reshape(*values.shape[:2], -1).astype(np.float64)
    low, high = np.percentile(values if valid is None else values[valid], (2, 98))
    eight = np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255))
    if valid is not None:
        eight[~valid] = 0
    return np.broadcast_to(eight, (*eight.shape[:2], 3)).astype(np.uint8)


def _same(image: Image.Image, expected: np.ndarray) -> bool:
    """Equal but for values that lie on the edge of two levels."""
    difference = np.abs(np.asarray(image).astype(int) - expected)
    return int(difference.max()) <= 1 and float((difference > 0).mean()) < 0.01


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"order": ">"},
    {"rows": 9, "deflate": True, "predictor": True},
    {"tile": (32, 16), "deflate": True, "predictor": True},
    {"tile": (16, 32), "planar": True, "predictor": True, "order": ">"},
    {"planar": True, "rows": 16, "deflate": True},
    {"photometric": 1},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_sixteen_bit_colours_keep_all_their_bits(tmp_path: Path, layout: dict[str, Any]) -> None:
    values = _values()
    path = write_tiff(tmp_path / "a.tif", values, **layout)
    assert _same(load_image(path), _stretched(values))
    assert image_size(path) == (53, 70)
    with pytest.raises(DataError, match="16 bits as labels"):
        load_label_pixels(path)


@pytest.mark.parametrize(
    "dtype",
    [np.uint16, np.int16, np.uint32, np.int32, np.int8, np.uint64, np.float16, np.float32, np.float64],
)
@pytest.mark.parametrize("layout", LAYOUTS[:4], ids=str)
def test_one_band_of_any_type_is_read_by_its_own_values(
    tmp_path: Path, dtype: type, layout: dict[str, Any]
) -> None:
    values = _values(1, np.int64, 120 if dtype == np.int8 else 2000).astype(np.float64)
    if np.dtype(dtype).kind != "u":
        values -= 60
    if dtype == np.uint32:
        values += 3_000_000_000
    layout = layout | {"predictor": bool(layout.get("predictor")) and np.dtype(dtype).kind != "f"}
    path = write_tiff(tmp_path / "a.tif", values.astype(dtype), **layout)
    assert _same(load_image(path), _stretched(values))
    labels = load_label_pixels(path)
    assert labels.dtype == dtype
    assert np.array_equal(labels, values[..., 0].astype(dtype))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_wide_samples_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    values = _values(1)
    path = write_tiff(tmp_path / "a.tif", values, tags={274: (3, (orientation,))})
    stored = _stretched(values)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    assert _same(load_image(path), upright)
    assert image_size(path) == (upright.shape[1], upright.shape[0])
    assert load_label_pixels(path).shape == upright.shape[:2]


def test_where_white_is_zero_wide_samples_are_turned_round(tmp_path: Path) -> None:
    values = _values(1)
    path = write_tiff(tmp_path / "a.tif", values, photometric=0)
    assert _same(load_image(path), 255 - _stretched(values))
    eight = write_tiff(tmp_path / "b.tif", (values // 16).astype(np.uint8), photometric=0)
    assert np.array_equal(np.asarray(load_image(eight))[..., 0], 255 - values[..., 0] // 16)
    assert np.array_equal(load_label_pixels(eight), values[..., 0] // 16), "labels are numbers"


def test_files_that_leave_out_what_is_usual_are_read(tmp_path: Path) -> None:
    values = _values(1)
    for tag, entry in ((339, (3, (0,))), (262, None), (284, None)):
        tags, segments = page(values)
        if entry is None:
            del tags[tag]
        else:
            tags[tag] = entry
        assert _same(load_image(write_pages(tmp_path / "a.tif", [(tags, segments)])), _stretched(values)), tag


def _with_fourth(fourth: np.ndarray | int, bits: int = 8) -> np.ndarray:
    values = _values(4, np.uint8 if bits == 8 else np.uint16, 200)
    values[..., 3] = fourth
    return values


def test_near_infrared_is_no_transparency(tmp_path: Path) -> None:
    constant = np.full((40, 40, 4), 120, np.uint8)
    constant[..., 3] = 30
    path = write_tiff(tmp_path / "naip.tif", constant, extra=(2,), tags=GEO)
    assert (np.asarray(load_image(path)) == 120).all()
    values = _values(4, np.uint8, 256)
    for name, options in {
        "chunky": {"extra": (2,), "tags": GEO},
        "planar": {"extra": (2,), "tags": GEO, "planar": True},
        "gdal": {"extra": (2,), "nodata": "none"},
        "unsaid": {"extra": (0,)},
        "untagged": {},
    }.items():
        path = write_tiff(tmp_path / f"{name}.tif", values, **options)
        assert np.array_equal(np.asarray(load_image(path)), values[..., :3]), name
        assert np.array_equal(load_label_pixels(path), values[..., :3]), name


def test_transparency_of_a_mosaic_stays_transparency(tmp_path: Path) -> None:
    values = _with_fourth(255)
    values[:20, :, 3] = 0
    expected = values[..., :3].copy()
    expected[:20] = 0
    for name, tags in (("geo", GEO), ("plain", {})):
        path = write_tiff(tmp_path / f"{name}.tif", values, extra=(2,), tags=tags)
        assert np.array_equal(np.asarray(load_image(path)), expected), name
    # What the file itself says of the band counts more than its values.
    text = b'<GDALMetadata><Item name="DESCRIPTION" sample="3" role="description">NIR</Item></GDALMetadata>\0'
    path = write_tiff(tmp_path / "named.tif", values, extra=(2,), tags={42112: (2, text)})
    assert np.array_equal(np.asarray(load_image(path)), values[..., :3])


def test_colours_that_transparency_is_multiplied_into_stay_as_stored(tmp_path: Path) -> None:
    values = _with_fourth(128)
    values[..., :3] //= 2
    path = write_tiff(tmp_path / "a.tif", values, extra=(1,))
    assert np.array_equal(np.asarray(load_image(path)), values[..., :3])


@pytest.mark.parametrize(
    ("bands", "options", "text"),
    [
        (
            4,
            {"extra": (2,)},
            r"its 4th band \(0 to 199\) is tagged as transparency, but may .* near infrared",
        ),
        (2, {"extra": (2,), "tags": GEO}, r"its 2nd band .* transparency, but may .* polarisation"),
        (2, {"extra": (0,)}, r"two bands: is it grey with transparency, or two measurements"),
        (5, {"extra": (0, 0)}, r"has 5 bands of 8-bit unsigned samples; which of them are red"),
    ],
)
def test_bands_with_two_readings_are_refused_with_both(
    tmp_path: Path, bands: int, options: dict[str, Any], text: str
) -> None:
    path = write_tiff(tmp_path / "a.tif", _values(bands, np.uint8, 200), **options)
    with pytest.raises(DataError, match=rf"a\.tif: .*{text}.*gdal_translate"):
        load_image(path)


@pytest.mark.parametrize(("dtype", "name"), [(np.int16, "int16"), (np.float32, "float32")])
def test_three_bands_of_measurements_are_shown_like_those_of_16_bits(
    tmp_path: Path, dtype: type, name: str
) -> None:
    values = _values(3, dtype)
    path = write_tiff(tmp_path / "a.tif", values)
    assert _same(load_image(path), _stretched(values))
    assert image_size(path) == (53, 70)
    with pytest.raises(DataError, match=rf"holds 3 bands of {name}, which are no labels"):
        load_label_pixels(path)


def test_two_bands_with_a_hard_mask_are_grey_with_transparency(tmp_path: Path) -> None:
    values = _values(2, np.uint8, 200)
    values[..., 1] = 255
    values[:9, :, 1] = 0
    path = write_tiff(tmp_path / "a.tif", values, extra=(2,))
    expected = values[..., 0].copy()
    expected[:9] = 0
    assert np.array_equal(np.asarray(load_image(path))[..., 1], expected)
    assert np.array_equal(load_label_pixels(path), values[..., 0])


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("extra", [1, 2])
@pytest.mark.parametrize("photometric", [0, 1])
def test_grey_with_transparency_is_read_in_every_layout(
    tmp_path: Path, planar: bool, extra: int, photometric: int
) -> None:
    values = _values(2, np.uint8, 200)
    values[..., 1] = 255
    values[:9] = 0
    path = write_tiff(tmp_path / "a.tif", values, extra=(extra,), planar=planar, photometric=photometric)
    expected = values[..., 0].copy() if photometric else 255 - values[..., 0]
    expected[:9] = 0
    for factor in (None, lambda width, height: (1, 1)):
        assert np.array_equal(np.asarray(load_image(path, enough=factor))[..., 2], expected)
    assert np.array_equal(load_label_pixels(path), values[..., 0])


@pytest.mark.parametrize(
    ("fill", "tag"),
    [
        (-9999, "-9999"),
        (-9999, None),
        (np.nan, "nan"),
        (np.inf, None),
        (-3.4028234663852886e38, "-3.4028235e+38"),
    ],
)
def test_pixels_that_hold_nothing_are_black_and_do_not_count(
    tmp_path: Path, fill: float, tag: str | None
) -> None:
    values = np.random.default_rng(0).normal(5, 1, (100, 50, 1)).astype(np.float32)
    values[:12] = fill
    valid = np.ones(values.shape, bool)
    valid[:12] = False
    path = write_tiff(tmp_path / "a.tif", values, nodata=tag)
    assert _same(load_image(path), _stretched(np.where(valid, values, 0), valid))
    assert np.asarray(load_image(path))[12:].std() > 50


def test_nodata_counts_only_where_all_bands_have_it(tmp_path: Path) -> None:
    values = _values(3)
    values[:9], values[20, 20, 0] = 65535, 65535
    valid = np.ones(values.shape, bool)
    valid[:9] = False
    path = write_tiff(tmp_path / "a.tif", values, nodata="65535")
    assert _same(load_image(path), _stretched(values, valid))
    eight = (_values(3) // 17).astype(np.uint8)
    eight[:9] = 255
    path = write_tiff(tmp_path / "b.tif", eight, nodata="255")
    assert (np.asarray(load_image(path))[:9] == 0).all()
    assert np.array_equal(np.asarray(load_image(path))[9:], eight[9:])
    assert np.array_equal(load_label_pixels(path), eight), "labels are never changed"


def test_pyramids_of_old_writers_are_no_further_images(tmp_path: Path) -> None:
    values = _values(1, np.uint8, 250)
    pages = [page(values), page(values[::2, ::2], tags={255: (3, (2,))})]
    path = write_pages(tmp_path / "a.tif", pages)
    assert np.array_equal(np.asarray(load_image(path))[..., 0], values[..., 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_and_overviews_are_no_further_images(tmp_path: Path, dtype: type) -> None:
    values = _values(3, dtype, 250)
    mask = np.full((70, 53), 255, np.uint8)
    mask[:9] = 0
    pages = [
        page(values),
        page(mask, tags={254: (4, (4,)), 262: (3, (4,))}),
        page(values[::2, ::2], tags={254: (4, (1,))}),
    ]
    path = write_pages(tmp_path / "a.tif", pages)
    valid = np.broadcast_to(mask[..., None] > 0, values.shape)
    expected = np.where(valid, values, 0) if dtype == np.uint8 else _stretched(values, valid)
    assert _same(load_image(path), expected)
    write_pages(path, [page(values), page(values), page(values)])
    for read in (load_image, image_size, load_label_pixels):
        with pytest.raises(DataError, match=r"holds 3 pages, only the first of which would be seen"):
            read(path)


@pytest.mark.parametrize(
    ("compression", "name"), [(50001, "WebP"), (34887, "LERC"), (34712, "JPEG 2000"), (50002, "JPEG XL")]
)
def test_compressions_that_cannot_be_decoded_are_named(tmp_path: Path, compression: int, name: str) -> None:
    path = write_tiff(tmp_path / "a.tif", _values(3, np.uint8, 250), tags={259: (3, (compression,))})
    with pytest.raises(DataError, match=rf"a TIFF compressed as {name}|compression {compression}"):
        load_image(path)


def test_sparse_and_cut_files_are_told_apart(tmp_path: Path) -> None:
    values = _values(1)
    tags, segments = page(values, rows=10)
    tags[279] = (4, (0, *tags[279][1][1:]))
    path = write_pages(tmp_path / "a.tif", [(tags, segments)])
    expected = values.copy()
    expected[:10] = 0
    assert _same(load_image(path), _stretched(expected))
    with (
        pytest.raises(
            DataError, match=r"is a sparse TIFF: some of its blocks were left out.*SPARSE_OK=FALSE"
        ),
        open_image(path) as file,
    ):
        file.rgb()
    # The tags come first in this one, so that they survive.
    Image.fromarray(values[..., 0]).save(tmp_path / "b.tif")
    whole = (tmp_path / "b.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"b\.tif: (image is damaged|is not an image)"):
        load_image(tmp_path / "b.tif")


def test_sizes_are_bounded_before_room_is_made_for_them(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", _values(1), tags={256: (4, (60_000,)), 257: (4, (60_000,))})
    with pytest.raises(
        DataError, match=r"too large to be decoded: 60000×60000 px take 14\.4 GB, the limit is 4"
    ):
        image_size(path)
    path = write_tiff(tmp_path / "b.tif", _values(1), tags={256: (4, (15_000,)), 257: (4, (15_000,))})
    with pytest.raises(DataError, match=r"says 15000×15000 px, which \d+ bytes can't hold"):
        load_image(path)


def test_tags_that_claim_too_many_values_are_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", _values(1))
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for row in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, row)[0] == 273:
            struct.pack_into("<II", data, row + 4, 0x7FFFFFFF, 8)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a TIFF, but its tags can't be read: tag 273 has 2147483647 values"):
        load_image(path)


LARGE: list[dict[str, Any]] = [
    {},
    {"rows": 7, "deflate": True, "predictor": True},
    {"tile": (32, 16), "deflate": True},
    {"tile": (16, 16), "planar": True},
]


@pytest.mark.parametrize("layout", LARGE, ids=str)
@pytest.mark.parametrize("kind", ["rgb", "nir", "mask", "sixteen", "grey"])
def test_large_files_come_out_as_small_ones_do(
    tmp_path: Path, layout: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bands, dtype, options = {
        "rgb": (3, np.uint8, {}),
        "nir": (4, np.uint8, {"extra": (2,), "tags": GEO}),
        "mask": (4, np.uint8, {"extra": (2,)}),
        "sixteen": (3, np.uint16, {}),
        "grey": (1, np.uint8, {"nodata": "7"}),
    }[kind]
    values = np.random.default_rng(0).integers(0, 250, (301, 203, bands)).astype(dtype)
    if kind == "mask":
        values[..., 3] = np.where(values[..., 3] < 60, 0, 255)
    path = write_tiff(tmp_path / "a.tif", values, **layout, **options)
    whole = load_image(path)
    monkeypatch.setattr(image_file, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(pixels, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(pixels, "_BAND_PIXELS", 1 << 12)
    monkeypatch.setattr(tiff, "_BAND_PIXELS", 1 << 12)
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(whole))
    small = load_image(path, enough=lambda width, height: (50, 50))
    assert np.array_equal(np.asarray(small), np.asarray(whole.reduce(4)))
