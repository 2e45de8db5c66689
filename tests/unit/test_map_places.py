"""Maps of rasters of any number of bands, type and place: pixels, corners and outlines where the raster has them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from rasterio import Affine, features

import vitp
from tests.map_models import PLACES, BrightestBand, write_raster
from vitp.inference.prediction_files import predict_files
from vitp.io.open_pixels import Geometry
from vitp.records.channels import Channel, Channels
from vitp.tasks.base import TestSettings

VALUES: dict[str, tuple[float, float, float]] = {
    "uint8": (40, 200, 0),
    "uint16": (300, 2500, 65535),
    "int16": (-1200, 1500, -9999),
    "float32": (-22.5, -3.25, np.nan),
}
"""Type → a low and a high value, and what stands for nothing."""

SIZES = {1: (143, 118), 3: (97, 131), 4: (64, 210), 13: (75, 75)}
"""Bands → height and width, that neither tiles of 48 nor windows of 32 divide."""

CHOSEN = [
    (1, "uint8", "utm", 0.0),
    (3, "uint16", "degrees", 25.0),
    (4, "int16", "polar", 0.0),
    (13, "float32", "utm", -70.0),
    (1, "float32", "polar", 200.0),
    (13, "uint8", "degrees", 0.0),
]
"""All pairs of two columns' values but for a few; the others are slow tests."""

ALL = [
    case for case in product(SIZES, VALUES, ("utm", "degrees", "polar"), (0.0, 33.0)) if case not in CHOSEN
]


class Bright(BrightestBand):
    """Says "bright" where the last channel is above the middle of its range."""

    def __init__(self, channels: Channels) -> None:
        super().__init__(("background", "bright"), channels)

    def maps(self, images_BCHW: torch.Tensor, later_BCHW: torch.Tensor | None) -> list[torch.Tensor]:
        more_BHW = images_BCHW[:, -1].float() / 255 - 0.5
        return torch.stack([-more_BHW, more_BHW], 1)  # type: ignore[return-value]


def squares(bands: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return values in squares of five pixels, and the class of each pixel, 255 where nothing is known."""
    low, high, nothing = VALUES[dtype]
    height, width = SIZES[bands]
    coarse = np.random.default_rng(bands).integers(0, 2, (bands, -(-height // 5), -(-width // 5)))
    bright = np.kron(coarse, np.ones((1, 5, 5), int))[:, :height, :width]
    empty = (np.add.outer(np.arange(height), np.arange(width)) < 55) | (np.arange(height) >= height - 7)[
        :, None
    ]
    values = np.where(empty, nothing, np.where(bright == 1, high, low)).astype(dtype)
    return values, np.where(empty, 255, bright[-1]).astype(np.uint8)


@pytest.mark.parametrize(
    ("bands", "dtype", "place", "degrees"),
    [*CHOSEN, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL)],
)
def test_maps_lie_where_their_rasters_do(
    tmp_path: Path, bands: int, dtype: str, place: str, degrees: float
) -> None:
    values, expected = squares(bands, dtype)
    low, high, nothing = VALUES[dtype]
    crs, own = PLACES[place]
    transform = own @ Affine.rotation(degrees)
    names = [f"B{number}" for number in range(1, bands + 1)]
    raster = write_raster(
        tmp_path / "a.tif", values, place, nodata=nothing, names=names, transform=transform, tile=48
    )
    with vitp.open_pixels(raster) as pixels, rasterio.open(raster) as file:
        np.testing.assert_array_equal(pixels.read(), file.read())
        np.testing.assert_array_equal(pixels.read((3, 5, 61, 50)), file.read(window=((5, 50), (3, 61))))
        np.testing.assert_array_equal(pixels.read_valid()[1].any(0), file.dataset_mask() > 0)
    channels = Channels(channels=tuple(Channel(band=name, low=low, high=high) for name in names))
    seen = TestSettings(window=32, overlap=0.25, batch_size=4)
    predict_files(Bright(channels), [raster], tmp_path / "out", seen)
    with rasterio.open(tmp_path / "out" / "masks" / "a.tif") as file:
        assert file.crs == rasterio.crs.CRS.from_string(crs) and file.nodata == 255
        np.testing.assert_array_equal(file.read(1), expected)
        height, width = expected.shape
        for corner in ((0, 0), (width, 0), (width, height), (0, height), (width / 3, height / 7)):
            assert np.abs(np.subtract(~transform @ (file.transform @ corner), corner)).max() < 1e-6
    meta, _, shapes, _ = pyogrio.raw.read(tmp_path / "out" / "vectors" / "a.gpkg")
    assert rasterio.crs.CRS.from_user_input(meta["crs"]) == rasterio.crs.CRS.from_string(crs)
    outlines = shapely.transform(shapely.from_wkb(shapes), Geometry(crs, tuple(transform)[:6]).to_pixels)
    points = shapely.get_coordinates(outlines)
    assert np.abs(points - points.round()).max() < 1e-6
    drawn = features.rasterize(list(shapely.transform(outlines, np.round)), expected.shape)
    # Only regions of fewer than four pixels have no outline: squares that the border of what is known cuts.
    missed = (drawn == 1) != (expected == 1)
    assert missed.mean() < 0.01 and not (drawn.astype(bool) & (expected != 1)).any()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_a_raster_whose_place_is_not_used_says_so(tmp_path: Path, kind: str) -> None:
    """8 bits are a picture then, 16 a map in pixels: neither lies where its points or its pixels say."""
    values = np.full((3, 40, 50), 200).astype(kind)
    points = [
        rasterio.control.GroundControlPoint(row, column, 13 + column / 1000, 52 - row / 1000)
        for row, column in [(0, 0), (0, 50), (40, 0), (40, 50)]
    ]
    with rasterio.open(write_raster(tmp_path / "points.tif", values, None), "r+") as file:
        file.gcps = points, rasterio.CRS.from_epsg(4326)
    no_system = write_raster(tmp_path / "no_system.tif", values, None, transform=PLACES["utm"][1])
    placed = write_raster(tmp_path / "placed.tif", values, "utm")
    channels = None if kind == "uint8" else Channels(channels=tuple(Channel(band=b) for b in "123"))
    said: list[str] = []
    files = [tmp_path / "points.tif", no_system, placed]
    predict_files(BrightestBand(channels=channels), files, tmp_path / "out", TestSettings(), say=said.append)
    assert [line for line in said if "aren't used" in line] == [
        f"{files[0]}: it is placed by control points alone, which aren't used (gdalwarp makes a map of it)",
        f"{files[1]}: its pixels have places, but in no coordinate system that it names, so they aren't used",
    ]
