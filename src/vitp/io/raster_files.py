"""Values of bands as the bytes of a GeoTIFF.

Shapes: C bands, H × W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from vitp.io.open_pixels import Geometry, Pixels
from vitp.io.rasters import need_rasterio


def geotiff(pixels: Pixels) -> bytes:
    """Return an open image, or a part of one, as a GeoTIFF: values, bands' names, nodata and place as they are."""
    return geotiff_of(pixels.read(), pixels.names, nodata=pixels.nodata, geometry=pixels.geometry)


def geotiff_of(
    values_CHW: np.ndarray,
    names: Sequence[str],
    *,
    nodata: float | None = None,
    geometry: Geometry | None = None,
) -> bytes:
    """Return values as a GeoTIFF.

    Args:
        values_CHW: Of any type that GeoTIFFs hold.
        names: Of the bands.
        nodata: Value that marks pixels that hold nothing.
        geometry: Where the pixels lie.

    Raises:
        DataError: rasterio isn't installed.
    """
    rasterio = need_rasterio("a GeoTIFF")
    place = (
        {}
        if geometry is None
        else {
            "crs": geometry.crs,
            "transform": rasterio.Affine(*geometry.transform),
        }
    )
    count, height, width = values_CHW.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values_CHW.dtype}
    with warnings.catch_warnings(), rasterio.MemoryFile() as memory:
        warnings.simplefilter("ignore")  # that a file has no place is no fault here
        with memory.open(
            **profile, nodata=nodata, compress="deflate", photometric="minisblack", **place
        ) as file:
            file.write(values_CHW)
            if list(names) != [str(number) for number in range(1, count + 1)]:
                file.descriptions = tuple(names)
        data: bytes = memory.read()
    return data
