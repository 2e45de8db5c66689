"""Slides in TIFF: Aperio SVS, Hamamatsu NDPI, Leica SCN, Philips, OME-TIFF and plain pyramids, through tiffslide.

tiffslide and tifffile say what is where; tiles are read by their place in the file, so that no more is decoded than is
asked for, and what the file can't hold is known before it is read. Names, labels, macro images and all free text of the
header (which holds ids of patients, dates and users) stay here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.core.reading import parse_xml
from vitp.io.parts import FilePart
from vitp.io.slide_levels import SlideBlock, SlideLevel, placed_level
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
from vitp.io.tiff_tags import TiffError, first_texts, is_tiff

_DESCRIPTION, _SOFTWARE, _SUBIFDS, _NDPI = 270, 305, 330, 65420
_JPEG = frozenset({6, 7, 34892, 33007})
_SIDE_IMAGES = ("label", "macro", "overview", "thumbnail", "barcode")


def tiff_slide_kind(path: str) -> str | None:
    """Return which kind of slide a TIFF file is by the texts of its first page; None: it says that of none."""
    try:
        if not Path(path).is_file():  # opening a pipe waits for whoever writes into it
            return None
        with Path(path).open("rb") as file:
            head = file.read(16)
            if not is_tiff(head):
                return None
            if Path(path).suffix.lower() == ".ndpi":
                return "ndpi"
            texts, tags, pages = first_texts(file, (_DESCRIPTION, _SOFTWARE))
    except (OSError, TiffError, ValueError):
        return None
    told = texts.get(_DESCRIPTION, "").strip()
    if told.startswith("Aperio"):
        return "svs"
    if _NDPI in tags:
        return "ndpi"
    if told.endswith("</scn>"):
        return "scn"
    if texts.get(_SOFTWARE, "").startswith("Philips"):
        return "philips"
    # An OME-TIFF of one plain page is the picture that it always was.
    if told.endswith("OME>") and (pages > 1 or _SUBIFDS in tags or "PhysicalSizeX=" in told):
        return "ome"
    return None


_WORDS = {
    "svs": "an Aperio slide",
    "ndpi": "a Hamamatsu slide",
    "scn": "a Leica slide",
    "philips": "a Philips slide",
    "ome": "an OME-TIFF",
    "plain": "a TIFF pyramid",
}


def open_tiff_slide(path: str, kind: str, part: FilePart, where: str) -> SlideSource:
    """Open a slide.

    Args:
        path: Path of the file.
        kind: As `tiff_slide_kind` says; "plain": a pyramid that was asked for as a slide.
        part: Which image, plane of a stack and point in time are meant.
        where: Address, for messages.

    Raises:
        DataError: It can't be read, or holds several images, planes or times.
    """
    tiffslide = need("medical", "tiffslide", where)
    # Opened here: a path with "::" in it would be taken for a chain of URLs, and an OME header may name other files.
    with (
        reading_slide(where),
        Path(path).open("rb") as stream,
        tiffslide.TiffSlide(stream, tifffile_options={"_multifile": False}) as slide,
    ):
        file = slide.ts_tifffile
        read = _Bytes(path, where)
        if kind == "scn":
            return _leica(slide, read, where)
        if kind == "ome":
            told, names, number = _ome(file, part, where)
        else:
            told, names, number = _own_mpp(slide), None, 0
        mpp, notes = usable_mpp(told)
        source = _of_series(file.series[number], read, part, names, where)
        return replace(source, kind=_WORDS[kind], mpp=mpp, notes=notes)


def _own_mpp(slide: Any) -> tuple[Any, Any]:
    return slide.properties.get("tiffslide.mpp-x"), slide.properties.get("tiffslide.mpp-y")


class _Bytes:
    """Parts of a file, read by position: nothing moves, so threads and forked processes may share it."""

    def __init__(self, path: str, where: str) -> None:
        self.where = where
        self._descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size

    def __call__(self, offset: int, count: int) -> bytes:
        return os.pread(self._descriptor, count, offset)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _of_series(
    series: Any, read: _Bytes, part: FilePart, names: Sequence[str] | None, where: str
) -> SlideSource:
    """Return the levels of one image of a file."""
    pages, channels, samples = _chosen_pages(series, part, where)
    levels = tuple(_level(level, pages, read) for level in series.levels)
    keyframe = series.keyframe
    colours = keyframe.photometric.name in ("RGB", "YCBCR") and samples >= 3
    alpha = colours and samples == 4
    planes = [(page, sample) for page in range(channels) for sample in range(3 if alpha else samples)]
    sparse = any(0 in level.counts for level in levels)
    if colours and len(planes) == 3:
        bands: list[str] = ["red", "green", "blue"]
    else:
        bands = unique_bands(names, len(planes))
    slide_levels = tuple(level.as_level(alpha) for level in levels)
    return SlideSource(
        kind="",
        levels=slide_levels,
        factors=level_factors([level.size for level in slide_levels]),
        planes=tuple(planes),
        names=tuple(bands),
        dtype=np.dtype(series.dtype).newbyteorder("="),
        mpp=None,
        all_valid=not (sparse or alpha or series.dtype.kind == "f"),
    )


def _chosen_pages(series: Any, part: FilePart, where: str) -> tuple[list[int], int, int]:
    """Return the numbers of the pages that are meant, how many channels those are, and the samples of each.

    Raises:
        DataError: There are several planes or times, or axes of another kind.
    """
    own = series.keyframe.axes
    leading = series.axes[: len(series.axes) - len(own)]
    shape = tuple(int(length) for length in series.shape[: len(leading)])
    if series.axes[len(leading) :] != own or own.replace("S", "").replace("C", "") != "YX":
        what = f"has the axes {series.axes}, which aren't those of a slide"
        raise DataError(what, where=where, fix="save it as OME-TIFF with the axes CYX or YXS")
    samples = int(series.keyframe.samplesperpixel)
    index: list[Any] = []
    for axis, length in zip(leading, shape, strict=True):
        index.append(slice(None) if axis == "C" else slide_plane(axis, length, part, where))
    numbers = np.arange(math.prod(shape)).reshape(shape)[tuple(index)].reshape(-1).tolist()
    return numbers, len(numbers), samples


@dataclass(frozen=True)
class _TiffLevel:
    """Where the tiles of a level lie."""

    size: tuple[int, int]
    block: tuple[int, int]
    samples: int
    planar: bool
    dtype: np.dtype[Any]
    decode: Any
    told: tuple[dict[str, Any], ...]
    offsets: tuple[np.ndarray, ...]
    counts: np.ndarray
    bytes_at: _Bytes

    def as_level(self, alpha: bool) -> SlideLevel:
        """Return the level."""
        return SlideLevel(
            self.size, self.block, self.samples, self.dtype, lambda *place: self._read(alpha, *place)
        )

    def _read(self, alpha: bool, page: int, column: int, row: int) -> SlideBlock:
        wide, high = self.block
        across, down = (-(-length // side) for length, side in zip(self.size, self.block, strict=True))
        height, width = min(high, self.size[1] - row * high), min(wide, self.size[0] - column * wide)
        planes = range(self.samples if self.planar else 1)
        numbers = [row * across + column + plane * across * down for plane in planes]
        decoded = [self._decoded(page, number) for number in numbers]
        if any(one is None for one in decoded):
            return np.zeros((self.samples, height, width), self.dtype), np.zeros((height, width), bool)
        parts = [np.asarray(one)[0, :height, :width] for one in decoded]
        if any(one.shape[:2] != (height, width) for one in parts):
            raise DataError("holds a tile of another size", where=self.bytes_at.where, fix=COPY_IT_AGAIN)
        values_Shw = np.ascontiguousarray(np.concatenate(parts, axis=2).transpose(2, 0, 1))
        values_Shw = values_Shw.astype(self.dtype, copy=False)
        return values_Shw, values_Shw[3] > 0 if alpha else None

    def _decoded(self, page: int, number: int) -> Any:
        offset, count = int(self.offsets[page][number]), int(self.counts[page][number])
        if not count:
            return None
        across = -(-self.size[0] // self.block[0])
        down = -(-self.size[1] // self.block[1])
        row, column = divmod(number % (across * down), across)
        place = (
            f"the tile of column {column}, row {row} of its level of {self.size[0]}×{self.size[1]} px, from 0"
        )
        with reading_slide(self.bytes_at.where, place):
            data = self.bytes_at(offset, count)
            told = self.told[page]
            if told and not told["jpegheader"] and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
                # Decoders make grey of what is missing.
                raise DataError(f"ends early in {place}", where=self.bytes_at.where, fix=COPY_IT_AGAIN)
            return self.decode(data, number, **told)[0]


def _level(level: Any, numbers: Sequence[int], read: _Bytes) -> _TiffLevel:
    """Return the tiles of a level, each within the file.

    Raises:
        DataError: They aren't.
    """
    keyframe = level.keyframe
    pages = tuple(level.pages[number] for number in numbers)
    if any(page is None for page in pages):
        raise DataError("lacks an image of a channel", where=read.where, fix=COPY_IT_AGAIN)
    size = (int(keyframe.imagewidth), int(keyframe.imagelength))
    block = (int(keyframe.tilewidth), int(keyframe.tilelength)) if keyframe.is_tiled else (0, 0)
    if not all(block):
        block = (size[0], max(1, min(int(keyframe.chunks[0]), size[1])))
    samples = int(keyframe.samplesperpixel)
    bytes_ = math.prod(block) * samples * np.dtype(keyframe.dtype).itemsize
    if bytes_ > LARGEST_BLOCK_BYTES:
        what = f"is compressed in pieces of {bytes_ / 1e9:.1f} GB, too large to be decoded"
        raise DataError(what, where=read.where, fix="write it in tiles (vips tiffsave --tile --pyramid)")
    planes = samples if int(keyframe.planarconfig) == 2 and samples > 1 else 1
    expected = math.prod(-(-length // side) for length, side in zip(size, block, strict=True)) * planes
    offsets = tuple(np.asarray(page.dataoffsets, np.int64) for page in pages)
    counts = [np.asarray(page.databytecounts, np.int64) for page in pages]
    for starts, lengths in zip(offsets, counts, strict=True):
        whole = len(starts) >= expected and len(lengths) >= expected and (starts >= 0).all()
        if not (whole and (lengths >= 0).all() and (starts + lengths <= read.size).all()):
            what = f"is damaged: it has {read.size:,} bytes, and its head tells of tiles that lie beyond"
            raise DataError(what, where=read.where, fix=COPY_IT_AGAIN)
    told: list[dict[str, Any]] = [{} for _ in pages]
    if int(keyframe.compression) in _JPEG:
        told = [{"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader} for page in pages]
    dtype = np.dtype(keyframe.dtype).newbyteorder("=")
    return _TiffLevel(
        size,
        block,
        samples,
        planes > 1,
        dtype,
        keyframe.decode,
        tuple(told),
        offsets,
        np.stack([lengths[:expected] for lengths in counts]),
        read,
    )


def _ome(file: Any, part: FilePart, where: str) -> tuple[tuple[Any, Any], list[str] | None, int]:
    """Return micrometres a pixel, names of the channels and the number of the image that is meant.

    Raises:
        DataError: There are several images, or the header can't be parsed.
    """
    root = parse_xml(file.ome_metadata or "")
    images = [image for image in root.iter() if image.tag.rpartition("}")[2] == "Image"]
    series = file.series
    titles = [str(image.get("Name") or "").lower() for image in images]
    own = [
        number
        for number in range(len(series))
        if len(images) != len(series) or not any(word in titles[number] for word in _SIDE_IMAGES)
    ]
    number = chosen_image(own, part, where)
    if number >= len(images):
        return (None, None), None, number
    pixels = next((one for one in images[number] if one.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return (None, None), None, number
    channels = [one for one in pixels if one.tag.rpartition("}")[2] == "Channel"]
    names = [str(channel.get("Name") or "") for channel in channels]
    return (_micrometres(pixels, "X"), _micrometres(pixels, "Y")), names, number


def _micrometres(pixels: ElementTree.Element, axis: str) -> float | None:
    try:
        value = float(pixels.get(f"PhysicalSize{axis}") or "")
    except ValueError:
        return None
    unit = UNITS_UM.get(str(pixels.get(f"PhysicalSize{axis}Unit") or "").strip().lower())
    return None if unit is None else value * unit


def _leica(slide: Any, read: _Bytes, where: str) -> SlideSource:
    """Return a slide of scanned areas in their places."""
    facts = slide.properties
    composition = facts["tiffslide.series-composition"]
    sizes = [(int(width), int(height)) for height, width, *_ in composition["level_shapes"]]
    areas = {
        number: _of_series(slide.ts_tifffile.series[number], read, FilePart(), None, where)
        for number in composition["located_series"]
    }
    first = next(iter(areas.values()))
    levels = tuple(
        placed_level(
            size,
            [
                (int(places[place][1]), int(places[place][0]), areas[number].levels[place])
                for number, places in composition["located_series"].items()
            ],
        )
        for place, size in enumerate(sizes)
    )
    mpp, notes = usable_mpp(_own_mpp(slide))
    return replace(
        first,
        kind=_WORDS["scn"],
        levels=levels,
        factors=level_factors(sizes),
        mpp=mpp,
        all_valid=False,
        notes=notes,
    )
