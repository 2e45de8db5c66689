"""A part of an image, or an image of several files, as one file of its own: what goes into shards."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitp.io.contract import Geometry
from vitp.io.images import is_scene, load_image
from vitp.io.open_pixels import open_pixels
from vitp.io.parts import WHOLE, split_address
from vitp.io.rasters import gdal, raster_driver
from vitp.io.volumes import is_volume

_ALONE = frozenset({None, "GTiff", "JP2OpenJPEG", "HFA", "NITF", "GRIB", "netCDF"})
"""Kinds of images that are one file with everything in it."""


def part_bytes(address: str | Path) -> tuple[str, bytes] | None:
    """Return suffix and bytes of a file that holds just what an address names; None: the file as it is does.

    Pictures become PNG, other rasters GeoTIFF with their own values, bands, nodata and place on the ground, slices of
    volumes GeoTIFF with their quantity.

    Raises:
        DataError: The part can't be read.
    """
    base, part = split_address(address)
    if is_scene(base):
        return None
    volume = is_volume(base)
    if part == WHOLE and not volume and not Path(base).is_dir() and raster_driver(base) in _ALONE:
        return None
    with open_pixels(address) as pixels:
        if pixels.is_picture:
            buffer = io.BytesIO()
            load_image(address).save(buffer, "PNG")
            return ".png", buffer.getvalue()
        values_CHW, valid_CHW = pixels.read_quantity()
        return ".tif", geotiff(
            values_CHW,
            pixels.names,
            np.any(valid_CHW, axis=0),
            nodata=None if volume else pixels.nodata,
            geometry=pixels.geometry,
            where=pixels.where,
        )


def geotiff(
    values_CHW: np.ndarray,
    names: Sequence[str],
    valid_HW: np.ndarray | None = None,
    *,
    nodata: float | None = None,
    geometry: Geometry | None = None,
    where: str = "a GeoTIFF",
) -> bytes:
    """Return values as a GeoTIFF.

    Args:
        values_CHW: Of any type that GeoTIFFs hold.
        names: Names of the bands.
        valid_HW: Which pixels hold something, for a mask where there is no nodata; None: all.
        nodata: Value that marks pixels that hold nothing.
        geometry: Where the pixels lie.
        where: What the values are of, for messages.

    Raises:
        DataError: rasterio isn't installed.
    """
    height, width = values_CHW.shape[1:]
    place: dict[str, Any] = {}
    with gdal(where) as rasterio:
        if geometry is not None:
            place = {"crs": geometry.crs, "transform": rasterio.Affine(*geometry.transform)}
        with rasterio.MemoryFile() as memory:
            with memory.open(
                driver="GTiff",
                width=width,
                height=height,
                count=len(values_CHW),
                dtype=values_CHW.dtype,
                nodata=nodata,
                compress="deflate",
                # GDAL would take three bands of bytes for red, green and blue, and a fourth for transparency.
                photometric="MINISBLACK",
                ALPHA="NO",
                **place,
            ) as file:
                file.write(values_CHW)
                if nodata is None and valid_HW is not None and not valid_HW.all():
                    file.write_mask(valid_HW)
                for number, name in enumerate(names, 1):
                    file.set_band_description(number, name)
            data: bytes = bytes(memory.getbuffer())
    return data
