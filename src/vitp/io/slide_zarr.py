"""OME-Zarr (NGFF 0.4 and 0.5): a folder with an array a resolution, through zarr.

Shapes: C bands, h × w pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.core.reading import json_or_none
from vitp.io.parts import FilePart
from vitp.io.slide_levels import SlideBlock, SlideLevel
from vitp.io.slide_source import (
    LARGEST_BLOCK_BYTES,
    UNITS_UM,
    SlideSource,
    chosen_image,
    level_factors,
    reading_slide,
    slide_plane,
    unique_bands,
    usable_mpp,
)
from vitp.io.storage import COPY_IT_AGAIN

_HEADS = ("zarr.json", ".zattrs")
_CODECS = frozenset(
    (
        *("bytes", "transpose", "crc32c", "sharding_indexed", "blosc", "gzip", "zstd", "zlib", "bz2", "lzma"),
        *("lz4", "delta", "shuffle", "bitround", "fixedscaleoffset", "packbits", "adler32", "crc32"),
    )
)
"""What chunks may be coded in. Others are refused: one of numcodecs' runs code that the file brings."""


def zarr_attributes(folder: Path) -> dict[str, Any] | None:
    """Return the attributes of a Zarr group that holds an image, or images of one slide; None: it is none."""
    for name in _HEADS:
        path = folder / name
        if not path.is_file():
            continue
        found = json_or_none(path)
        if isinstance(found, dict) and name == "zarr.json":
            attributes = found.get("attributes")
            found = attributes.get("ome", attributes) if isinstance(attributes, dict) else None
        if isinstance(found, dict) and ("multiscales" in found or "bioformats2raw.layout" in found):
            return found
    return None


def open_zarr_slide(path: str, part: FilePart, where: str) -> SlideSource:
    """Open an image of several resolutions.

    Args:
        path: Path of the folder.
        part: Which image, plane of a stack and point in time are meant.
        where: Address, for messages.

    Raises:
        DataError: It can't be read, or holds several images, planes or times.
    """
    zarr = need("medical", "zarr", where)
    with reading_slide(where):
        folder = Path(path)
        attributes = zarr_attributes(folder) or {}
        if "multiscales" not in attributes:
            inner = sorted(
                (one for one in folder.iterdir() if one.name.isdecimal() and one.is_dir()),
                key=lambda one: int(one.name),
            )
            found = [one for one in inner if "multiscales" in (zarr_attributes(one) or {})]
            folder = found[chosen_image(range(len(found)), part, where)]
            attributes = zarr_attributes(folder) or {}
            scales = attributes["multiscales"]
        else:
            scales = attributes["multiscales"]
            scales = [scales[chosen_image(range(len(scales)), part, where)]]
        return _of_image(zarr, folder, scales[0], attributes.get("omero"), part, where)


def _of_image(
    zarr: Any, folder: Path, scale: Mapping[str, Any], omero: Any, part: FilePart, where: str
) -> SlideSource:
    axes = [axis if isinstance(axis, str) else str(axis["name"]) for axis in scale["axes"]]
    axes = [axis.lower() for axis in axes]
    if axes[-2:] != ["y", "x"] or not set(axes) <= set("tczyx") or len(set(axes)) != len(axes):
        what = f"has the axes {', '.join(axes)[:40]}, which aren't those of a slide"
        raise DataError(what, where=where, fix="save it with the axes t, c, z, y, x")
    datasets = scale["datasets"]
    arrays = [_array(zarr, folder, str(one["path"]), len(axes), where) for one in datasets]
    shape = arrays[0].shape
    chosen = {
        axis: slide_plane(axis, int(shape[place]), part, where)
        for place, axis in enumerate(axes[:-2])
        if axis != "c"
    }
    channels = int(shape[axes.index("c")]) if "c" in axes else 1
    levels = tuple(_ZarrLevel(array, tuple(axes), chosen, where).as_level() for array in arrays)
    names = None
    if isinstance(omero, Mapping):
        told = [one.get("label") for one in omero.get("channels") or () if isinstance(one, Mapping)]
        names = ["" if name is None else str(name) for name in told]
    dtype = np.dtype(arrays[0].dtype).newbyteorder("=")
    bands = unique_bands(names, channels)
    # Three channels of 8 bits are colours where they are named so, or not at all.
    begins = [name[:1].lower() for name in bands]
    if dtype == np.uint8 and channels == 3 and begins in (["r", "g", "b"], ["1", "2", "3"], ["0", "1", "2"]):
        bands = ["red", "green", "blue"]
    mpp, notes = usable_mpp(_told_mpp(scale, axes))
    return SlideSource(
        kind="an OME-Zarr",
        levels=levels,
        factors=level_factors([level.size for level in levels]),
        planes=tuple((channel, 0) for channel in range(channels)),
        names=tuple(bands),
        dtype=dtype,
        mpp=mpp,
        all_valid=dtype.kind != "f",
        notes=notes,
    )


def _array(zarr: Any, folder: Path, inner: str, axes: int, where: str) -> Any:
    """Return one array of a folder, once it is known that reading it does nothing else.

    Raises:
        DataError: It lies elsewhere, is coded in an unknown way, or holds no numbers.
    """
    if inner.startswith(("/", "\\")) or ".." in Path(inner).parts or ":" in inner:
        raise DataError("names an array outside of its folder", where=where, fix=COPY_IT_AGAIN)
    # A local store: in a text zarr would see a URL, too.
    array = zarr.open_array(zarr.storage.LocalStore(folder / inner, read_only=True), mode="r")
    for codec in _codecs(array.metadata.to_dict()):
        if codec.rpartition(".")[2].lower() not in _CODECS:
            what = f"has chunks that are coded by {codec[:40]!r}, which isn't read"
            raise DataError(what, where=where, fix="write it with zstd, blosc or gzip")
    if array.dtype.kind not in "uif" or array.ndim != axes:
        what = f"holds an array of {array.ndim} axes and the type {array.dtype}"
        raise DataError(what, where=where, fix="save it as numbers, with as many axes as it names")
    bytes_ = math.prod(array.chunks) * array.dtype.itemsize
    if bytes_ > LARGEST_BLOCK_BYTES:
        what = f"is stored in chunks of {bytes_ / 1e9:.1f} GB, too large to be decoded"
        raise DataError(what, where=where, fix="write it in smaller chunks")
    return array


def _codecs(metadata: Any) -> list[str]:
    """Return the names of all codecs of an array's metadata, of Zarr 2 and 3."""
    found: list[str] = []
    if isinstance(metadata, Mapping):
        for key, value in metadata.items():
            if key in ("codecs", "index_codecs", "compressor", "filters") and value is not None:
                for one in value if isinstance(value, list | tuple) else [value]:
                    # Of Zarr 2 they are objects, of Zarr 3 tables or objects: written as JSON all are tables.
                    told = one if isinstance(one, Mapping) else json.loads(json.dumps(one, default=_config))
                    found.append(str(told.get("name", told.get("id"))))
                    found += _codecs(told.get("configuration"))
    return found


def _config(codec: Any) -> dict[str, Any]:
    config: dict[str, Any] = codec.get_config() if hasattr(codec, "get_config") else codec.to_dict()
    return config


@dataclass(frozen=True)
class _ZarrLevel:
    """One array, of which one plane of a stack and one point in time are read."""

    array: Any
    axes: tuple[str, ...]
    chosen: Mapping[str, int]
    where: str

    def as_level(self) -> SlideLevel:
        """Return the level."""
        height, width = (int(length) for length in self.array.shape[-2:])
        high, wide = (int(length) for length in self.array.chunks[-2:])
        block, dtype = (min(wide, width), min(high, height)), np.dtype(self.array.dtype).newbyteorder("=")
        return SlideLevel((width, height), block, 1, dtype, self._read)

    def _read(self, page: int, column: int, row: int) -> SlideBlock:
        height, width = self.array.shape[-2:]
        high, wide = (min(a, b) for a, b in zip(self.array.chunks[-2:], (height, width), strict=True))
        index = [page if axis == "c" else self.chosen[axis] for axis in self.axes[:-2]]
        with reading_slide(self.where):
            part = self.array[
                (
                    *index,
                    slice(row * high, min((row + 1) * high, height)),
                    slice(column * wide, min((column + 1) * wide, width)),
                )
            ]
        values_hw = np.asarray(part).astype(self.array.dtype.newbyteorder("="), copy=True)
        return values_hw[None], None


def _told_mpp(scale: Mapping[str, Any], axes: Sequence[str]) -> tuple[float, float]:
    """Return micrometres a pixel of the finest array along x and y; NaN: they aren't told."""
    steps = [1.0] * len(axes)
    told = False
    # The array's own transformation comes first, then the one that all arrays share.
    for transforms in (
        scale["datasets"][0].get("coordinateTransformations"),
        scale.get("coordinateTransformations"),
    ):
        for one in transforms or ():
            if one.get("type") == "scale" and len(one.get("scale") or ()) == len(axes):
                steps = [own * float(factor) for own, factor in zip(steps, one["scale"], strict=True)]
                told = True
    found = []
    for place in (-1, -2):
        axis = scale["axes"][place]
        unit = axis.get("unit") if isinstance(axis, Mapping) else None
        factor = None if unit is None else UNITS_UM.get(str(unit).lower())
        found.append(math.nan if factor is None or not told else steps[place] * factor)
    return found[0], found[1]
