"""A part of an image, or an image of several files, as one file of its own: what goes into shards."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from vitp.io.contract import Pixels
from vitp.io.images import is_scene, load_image
from vitp.io.open_pixels import open_pixels
from vitp.io.parts import WHOLE, split_address
from vitp.io.rasters import gdal, raster_driver

_ALONE = frozenset({None, "GTiff", "JP2OpenJPEG", "HFA", "NITF", "GRIB", "netCDF"})
"""Kinds of images that are one file with everything in it."""


def part_bytes(address: str | Path) -> tuple[str, bytes] | None:
    """Return suffix and bytes of a file that holds just what an address names; None: the file as it is does.

    Pictures become PNG, other rasters GeoTIFF with their own values, bands, nodata and place on the ground.

    Raises:
        DataError: The part can't be read.
    """
    base, part = split_address(address)
    if is_scene(base):
        return None
    if part == WHOLE and not Path(base).is_dir() and raster_driver(base) in _ALONE:
        return None
    with open_pixels(address) as pixels:
        if pixels.is_picture:
            buffer = io.BytesIO()
            load_image(address).save(buffer, "PNG")
            return ".png", buffer.getvalue()
        return ".tif", _geotiff(pixels)


def _geotiff(pixels: Pixels) -> bytes:
    values_CHW, valid_CHW = pixels.read_valid()
    width, height = pixels.size
    place: dict[str, Any] = {}
    with gdal(pixels.where) as rasterio:
        if pixels.geometry is not None:
            place = {
                "crs": pixels.geometry.crs,
                "transform": rasterio.Affine(*pixels.geometry.transform),
            }
        with rasterio.MemoryFile() as memory:
            with memory.open(
                driver="GTiff",
                width=width,
                height=height,
                count=len(values_CHW),
                dtype=values_CHW.dtype,
                nodata=pixels.nodata,
                compress="deflate",
                photometric="MINISBLACK",
                ALPHA="NO",
                **place,
            ) as file:
                file.write(values_CHW)
                if pixels.nodata is None and not valid_CHW.all():
                    file.write_mask(valid_CHW.any(axis=0))
                for number, band in enumerate(pixels.bands, 1):
                    file.set_band_description(number, band.name)
            data: bytes = bytes(memory.getbuffer())
    return data
