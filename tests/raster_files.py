"""Rasters written by rasterio, to test what reads them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Resampling

UTM = ("EPSG:32633", (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0))
GEOGRAPHIC = ("EPSG:4326", (1e-4, 0.0, 13.25, 0.0, -1e-4, 52.5))
POLAR = ("EPSG:3413", (40.0, 0.0, -200_000.0, 0.0, -40.0, -1_900_000.0))
ROTATED = ("EPSG:32633", (8.0, 6.0, 500_000.0, 6.0, -8.0, 5_000_000.0))
PLACES = {"utm": UTM, "geographic": GEOGRAPHIC, "polar": POLAR, "rotated": ROTATED}


def values(bands: int, dtype: str, size: tuple[int, int] = (83, 61), seed: int = 0) -> np.ndarray:
    """Return (C, H, W) values that use much of the type's range."""
    rng = np.random.default_rng(seed)
    shape = (bands, size[1], size[0])
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1000, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -30_000), min(limits.max, 60_000), shape).astype(dtype)


def write_raster(
    path: Path,
    values_CHW: np.ndarray,
    place: tuple[str, tuple[float, ...]] | None = UTM,
    *,
    names: tuple[str, ...] = (),
    levels: tuple[int, ...] = (),
    mask_HW: np.ndarray | None = None,
    **options: Any,
) -> Path:
    """Write (C, H, W) values.

    Args:
        path: Of the file.
        values_CHW: What it holds.
        place: Coordinate system and transform.
        names: Of the bands.
        levels: Reductions of its pyramid, averaged.
        mask_HW: True where a pixel holds something.
        options: Of rasterio.
    """
    bands, height, width = values_CHW.shape
    placed = {} if place is None else {"crs": place[0], "transform": rasterio.Affine(*place[1])}
    options = {"driver": "GTiff", "photometric": "MINISBLACK", "ALPHA": "NO"} | placed | options
    if options["driver"] != "GTiff":
        options = {key: value for key, value in options.items() if key not in ("photometric", "ALPHA")}
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"):
        warnings.simplefilter("ignore")
        with rasterio.open(
            path, "w", width=width, height=height, count=bands, dtype=values_CHW.dtype, **options
        ) as file:
            file.write(values_CHW)
            for number, name in enumerate(names, 1):
                file.set_band_description(number, name)
            if mask_HW is not None:
                file.write_mask(mask_HW)
            if levels:
                file.build_overviews(levels, Resampling.average)
    return path
