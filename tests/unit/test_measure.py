"""Ranges of bands over the files of a set: exact for small sets, a bounded sample of large ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.raster_files import values, write_raster
from vitp.core.errors import DataError
from vitp.io import measure
from vitp.io.measure import measure_channels


def _set(
    folder: Path, count: int = 4, dtype: str = "int16", **options: object
) -> tuple[list[str], np.ndarray]:
    """Write files and return their addresses and values (files, C, H, W)."""
    paths, held = [], []
    for seed in range(count):
        values_CHW = values(3, dtype, seed=seed)
        values_CHW[:, :9] = -9999
        values_CHW[1, :, :20] = -9999
        path = write_raster(
            folder / f"{seed}.tif", values_CHW, nodata=-9999, names=("B02", "B03", "B8A"), **options
        )
        paths.append(str(path))
        held.append(values_CHW)
    return paths, np.stack(held)


def _expected(values_N: np.ndarray, percentiles: tuple[float, float] = (2, 98)) -> tuple[float, float]:
    low, high = np.percentile(values_N[values_N != -9999].astype(np.float64), percentiles)
    return float(low), float(high)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_ranges_of_small_sets_are_exact(tmp_path: Path, dtype: str) -> None:
    paths, held_NCHW = _set(tmp_path, dtype=dtype)
    if dtype == "float32":
        held_NCHW[0, 0, 30] = np.nan
        held_NCHW[0, 0, 31] = np.inf
        write_raster(Path(paths[0]), held_NCHW[0], nodata=-9999, names=("B02", "B03", "B8A"))
        held_NCHW[0, 0, 30:32] = -9999
    found = measure_channels(paths)
    assert found.bands == ("B02", "B03", "B8A")
    for number, channel in enumerate(found.channels):
        assert (channel.low, channel.high) == pytest.approx(_expected(held_NCHW[:, number]), rel=1e-12)
    other = measure_channels(paths[::-1], ["b8a", "B2"], percentiles=(0, 100), seed=5)
    assert other.bands == ("B8A", "B02")
    for number, channel in zip((2, 0), other.channels, strict=True):
        expected = _expected(held_NCHW[:, number], (0, 100))
        assert (channel.low, channel.high) == pytest.approx(expected, rel=1e-12)


def test_a_fill_of_65535_that_no_file_names_does_not_count(tmp_path: Path) -> None:
    held_HW = np.random.default_rng(0).integers(200, 3000, (64, 64)).astype(np.uint16)
    expected = tuple(np.percentile(held_HW[20:].astype(np.float64), (2, 98)))
    held_HW[:20] = 65535
    fills: set[float] = set()
    (channel, *_) = measure_channels(
        [str(write_raster(tmp_path / "a.tif", held_HW[None]))], fills=fills
    ).channels
    assert (channel.low, channel.high) == pytest.approx(expected) and fills == {65535.0}
    # A saturated place has neighbours that nearly are, and two values are a picture in black and white.
    bright_HW, two_HW = held_HW.copy(), np.where(held_HW == 65535, held_HW, 0).astype(np.uint16)
    bright_HW[30] = 60000
    for name, values_HW in (("b", bright_HW), ("c", two_HW)):
        fills.clear()
        (channel, *_) = measure_channels(
            [str(write_raster(tmp_path / f"{name}.tif", values_HW[None]))], fills=fills
        ).channels
        assert channel.high == 65535 and not fills


def test_decibels_are_those_of_values_above_zero(tmp_path: Path) -> None:
    paths, held_NCHW = _set(tmp_path)
    found = measure_channels(paths, ["B02"], transform="db")
    above = held_NCHW[:, 0][held_NCHW[:, 0] > 0]
    low, high = np.percentile(10 * np.log10(above.astype(np.float64)), (2, 98))
    assert (found.channels[0].low, found.channels[0].high) == pytest.approx((low, high), rel=1e-12)
    assert found.channels[0].transform == "db"


@pytest.mark.parametrize(("low", "high"), [(-28.0, -1.0), (-20.0, 1.0)])
def test_values_in_decibels_are_not_taken_as_power(tmp_path: Path, low: float, high: float) -> None:
    radar = np.linspace(low, high, 400, dtype=np.float32).reshape(1, 20, 20)
    path = write_raster(tmp_path / "radar.tif", radar)
    with pytest.raises(DataError, match=r"look like dB already; leave transform out"):
        measure_channels([str(path)], transform="db")
    zeros = write_raster(tmp_path / "zeros.tif", np.zeros((1, 20, 20), np.float32))
    with pytest.raises(DataError, match="holds no value in any image above 0"):
        measure_channels([str(zeros)], transform="db")


def test_a_single_band_is_grey_as_rgb(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", values(1, "uint16"))
    assert measure_channels([str(path)]).bands == ("1", "1", "1")
    assert measure_channels([str(path)], ["1"]).bands == ("1",)
    windows = [f"{path}#window=0,0,40,61", f"{path}#window=40,0,83,61"]
    assert measure_channels(windows) == measure_channels([str(path)])


def test_large_sets_are_sampled_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_MOST_PIXELS", 9000)
    monkeypatch.setattr(measure, "_BLOCK", 16)
    paths, held_NCHW = _set(tmp_path, 6)
    first = measure_channels(paths, seed=1)
    assert first == measure_channels(paths, seed=1) == measure_channels(paths[::-1], seed=1)
    assert first != measure_channels(paths, seed=2)
    spread = 90_000
    for number, channel in enumerate(first.channels):
        low, high = _expected(held_NCHW[:, number])
        assert abs(channel.low - low) < 0.05 * spread
        assert abs(channel.high - high) < 0.05 * spread
    monkeypatch.setattr(measure, "_MOST_FILES", 2)
    read: list[str] = []
    plain = measure.open_pixels
    monkeypatch.setattr(
        measure, "open_pixels", lambda address: (read.append(str(address)), plain(address))[1]
    )
    measure_channels(paths, seed=3)
    assert len(set(read)) <= 3


def test_files_without_a_band_or_a_value_are_named(tmp_path: Path) -> None:
    paths, _ = _set(tmp_path, 2)
    odd = write_raster(tmp_path / "odd.tif", values(2, "int16"), names=("B02", "B03"))
    with pytest.raises(DataError, match=r"odd\.tif: lacks the bands B8A; it has B02, B03"):
        measure_channels([*paths, str(odd)])
    with pytest.raises(DataError, match="has no band 'B9'"):
        measure_channels(paths, ["B9"])
    empty = write_raster(tmp_path / "empty.tif", np.zeros((1, 9, 9), np.int16), nodata=0)
    with pytest.raises(DataError, match="band 1 holds no value in any image"):
        measure_channels([str(empty)])
    flat = write_raster(tmp_path / "flat.tif", np.full((1, 9, 9), 7, np.int16))
    assert (
        measure_channels([str(flat)]).channels[0].low,
        measure_channels([str(flat)]).channels[0].high,
    ) == (7, 8)
    with pytest.raises(DataError, match="no images to measure"):
        measure_channels([])


def test_values_that_mark_missing_pixels_by_custom_do_not_count(tmp_path: Path) -> None:
    values_CHW = np.random.default_rng(0).integers(1, 3000, (1, 40, 50)).astype(np.int16)
    values_CHW[0, :20] = -9999
    write_raster(path := tmp_path / "a.tif", values_CHW)
    fills: set[float] = set()
    channel = measure_channels([str(path)], fills=fills).channels[0]
    assert (channel.low, channel.high) == pytest.approx(_expected(values_CHW), rel=1e-12)
    assert fills == {-9999.0}
