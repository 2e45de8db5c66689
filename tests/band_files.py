"""Sets of files with bands, drawn for tests: GeoTIFFs whose classes differ in chosen bands only.

Shapes: C bands, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

BANDS = ("B2", "B3", "B4", "B8", "B11", "B12")
MASK_CLASSES = "field=0,water=1,forest=2"
"""The option `classes` of `mask_scenes`."""


def write_bands(
    path: Path,
    values_CHW: np.ndarray,
    names: Sequence[str] = (),
    *,
    nodata: float | None = None,
    place: int = 0,
) -> Path:
    """Write values as a GeoTIFF of 10 m pixels; without names its bands are called by number.

    Files of another `place` lie 20 km further east each.
    """
    count, height, width = values_CHW.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=count,
        dtype=values_CHW.dtype,
        crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 100_000 + 20_000 * place, 0, -10, 5_000_000),
        nodata=nodata,
        photometric="MINISBLACK",
        ALPHA="NO",
    ) as file:
        file.write(values_CHW)
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
    return path


def class_folders(
    root: Path, values: Sequence[np.ndarray], names: Sequence[str] = (), *, classes: int = 2
) -> Path:
    """Write a set of class folders, the files in turn."""
    for number, values_CHW in enumerate(values):
        write_bands(root / f"class{number % classes}" / f"f{number:03d}.tif", values_CHW, names, place=number)
    return root


def mask_scenes(
    root: Path,
    count: int,
    *,
    size: int = 64,
    seed: int = 0,
    splits: bool = False,
    told_by: Sequence[int] = (3, 4, 5),
) -> Path:
    """Write 6-band scenes of uint16 with masks: a field with a lake and a forest that differ in bands `told_by` only.

    All other bands hold noise and stripes that have nothing to do with the classes.

    Args:
        root: Gets `images` and `masks`.
        count: Scenes; with `splits` half of them, a quarter and a quarter are train, val and test.
        size: Side in pixels.
        seed: Of the scenes.
        splits: Put them into folders of that name.
        told_by: Bands by which the classes differ, from 0.
    """
    rng = np.random.default_rng(seed)
    levels = {0: (900, 900, 900), 1: (2300, 900, 1600), 2: (900, 2300, 1600)}
    for number in range(count):
        mask_HW = np.zeros((size, size), np.uint8)
        for label in rng.permutation((1, 2)):
            wide, high = rng.integers(size // 3, size // 2 + 1, 2)
            x, y = rng.integers(0, size - wide + 1), rng.integers(0, size - high + 1)
            mask_HW[y : y + high, x : x + wide] = label
        values_CHW = rng.normal(1000, 100, (6, size, size))
        values_CHW += 250 * np.sin(np.arange(size) / rng.uniform(3, 9) + rng.uniform(0, 6)) + rng.normal(
            0, 150
        )
        for place, band in enumerate(told_by):
            for label, means in levels.items():
                values_CHW[band][mask_HW == label] += means[place]
        part = ("train", "train", "val", "test")[number % 4] if splits else ""
        path = root / "images" / part / f"s{number:03d}.tif"
        write_bands(path, values_CHW.clip(1).astype(np.uint16), BANDS, place=number)
        (root / "masks" / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask_HW).save(root / "masks" / part / f"s{number:03d}.png")
    return root
