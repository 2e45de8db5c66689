"""Inputs of a prediction: which there are, which are rasters, and which can't be used, known at once."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.data.formats.walk import list_images
from vitp.data.seen import check_missing_bands, lone_image, stretch_note
from vitp.inference.slides import SeenMpp, seen_slide
from vitp.inference.volume_inputs import (
    is_whole_volume,
    looked_at_volume,
    volume_name,
    volumes_at,
    volumes_in,
)
from vitp.io.band_folders import is_band_folder
from vitp.io.ground import is_map, may_be_placed, reproject
from vitp.io.images import MissingBands, image_size, is_scene, load_image
from vitp.io.open_pixels import Geometry, Pixels, Window, open_pixels
from vitp.io.parts import split_address
from vitp.io.slides import is_slide_folder, slide_kind
from vitp.io.tissue import Tissue
from vitp.io.volume_kinds import volume_kind
from vitp.records.channels import Channels
from vitp.runtime.pairs import check_pairs
from vitp.tasks.ground import RasterGround

_READERS = 4
"""Inputs that are looked at together; pictures are in memory as a whole."""
_LOOK = 256
"""Side of the parts of a raster that are read to see whether it can be."""
_MOST_CLIPPED = 0.99
"""Of the pixels that are looked at, black or white to the model in all bands; above it the file is of another type."""
_LONGEST_NAME = 200
"""Bytes of a name; file systems take 255 for a whole one, with what is put behind it."""
_NAMED = 4
"""Bands whose ranges are named, at most."""


@dataclass(frozen=True)
class Unusable:
    """An input without predictions.

    Attributes:
        image: Path as the user gave it.
        reason: In one sentence, and what to do where that is known.
    """

    image: str
    reason: str


@dataclass(frozen=True)
class InputFile:
    """One input.

    Attributes:
        name: Name of its files, without suffix; unique.
        dates: Address of the image, and of its later date.
        raster: Whether it is read by windows and becomes a map.
        reason: Why it can't be used; None: it can.
        notes: What is to be said of it.
        placed: Whether a raster says where it lies.
        slide: Whether it is a slide.
        volume: Whether it is read slice by slice and put back into a volume.
    """

    name: str
    dates: tuple[str, ...]
    raster: bool
    reason: str | None
    notes: tuple[str, ...] = ()
    placed: bool = False
    slide: bool = False
    volume: bool = False

    @property
    def image(self) -> str:
        """Address of the first date."""
        return self.dates[0]


def image_files(paths: Sequence[str | Path], *, bands: bool = False) -> list[str]:
    """Return image files as they are and the images and volumes of folders sorted by name.

    Args:
        paths: Files, parts of them (FILE#window=…) and folders.
        bands: A folder with one file a band is one image.

    Raises:
        DataError: A path doesn't exist, or a folder holds no image.
    """
    files: list[str] = []
    for path in paths:
        volumes = volumes_at(str(path))
        if volumes is not None:
            files += volumes
            continue
        base = Path(split_address(path)[0])
        if not base.exists():
            raise DataError("doesn't exist", where=str(path), fix="check the path")
        if not base.is_dir() or is_slide_folder(base) or (bands and is_band_folder(base)):
            files.append(str(path))
            continue
        pictures = {str(path) for path in list_images(base) if volume_kind(path) is None}
        if not (inside := sorted(pictures.union(volumes_in(base)))):
            below = [one for one in sorted(base.iterdir()) if one.is_dir() and list_images(one)]
            fix = f"name its folders, as in {below[0]}" if below else "name a folder of images or volumes"
            raise DataError("holds no images", where=str(path), fix=fix)
        files += inside
    return files


def unique_names(paths: Sequence[str | Path]) -> list[str]:
    """Return a file name without suffix for each path; equal ones get numbers, and of long ones a hash is the end."""
    names: dict[str, None] = {}
    for path in paths:
        stem, number = volume_name(str(path)) or Path(split_address(path)[0]).stem, 2
        if len(whole := os.fsencode(stem)) > _LONGEST_NAME:
            stem = f"{whole[:_LONGEST_NAME].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:10]}"
        name = stem
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names[name] = None
    return list(names)


def load_named_images(
    sources: Sequence[str], most: int, channels: Channels | None = None
) -> dict[str, Image.Image]:
    """Return name → image of files, folders of them and `scene:` addresses; at most so many, names made unique.

    Args:
        sources: Files, folders, addresses.
        most: Images at most.
        channels: What is shown of the files' bands; see `lone_image`.

    Raises:
        DataError: A path doesn't exist, a folder holds no image, or one can't be read.
    """
    addresses: list[str] = []
    for source in sources:
        addresses += [source] if is_scene(source) else image_files([source])
    addresses = addresses[:most]
    names = unique_names([one.replace("/", "-") if is_scene(one) else one for one in addresses])
    return {name: lone_image(address, channels) for name, address in zip(names, addresses, strict=True)}


def sources_of(
    images: Sequence[str | Path],
    later: Sequence[str | Path] | None,
    task: str,
    channels: Channels | None,
    missing_bands: MissingBands = "error",
    mpp: SeenMpp | None = None,
    plane: str | None = None,
) -> list[InputFile]:
    """Return all inputs, each looked at: pictures are decoded, of rasters the head and a few parts, of volumes slices.

    Args:
        images: Files and folders.
        later: Those of the later date.
        task: Task of the model.
        channels: What the model sees; None: pictures.
        missing_bands: What becomes of files that lack bands.
        mpp: At how many micrometres a pixel slides are seen that don't say it in their address; None: at their own.
        plane: Plane of the slices that the model was trained on.

    Raises:
        ConfigError: Change without later dates or with others than its images', or another task with them.
        DataError: A path doesn't exist, or a folder holds no image.
    """
    check_missing_bands(channels, missing_bands)
    wide = channels is not None
    files = image_files(images, bands=wide)
    second = None if later is None else image_files(later, bands=wide)
    told = check_pairs(task, files, second)
    dates_of_all = [files] if second is None else [files, second]
    pairs: list[tuple[str, ...]] = list(zip(*dates_of_all, strict=True))

    def look(name: str, dates: tuple[str, ...]) -> InputFile:
        raster = placed = slide = volume = False
        reason: str | None = None
        notes: tuple[str, ...] = ()
        said: tuple[str, ...] = ()
        try:
            volume = is_whole_volume(dates[0], task)
            raster = not volume and is_map(dates[0], channels)
            slide = slide_kind(dates[0]) is not None
            if slide:
                address, line = seen_slide(dates[0], mpp)
                dates, said = (address, *dates[1:]), (line,)
            if volume:
                notes = _looked_at_volume(dates[0], channels, missing_bands, plane)
            elif raster:
                placed, notes = _looked_at_raster(dates, channels, missing_bands)
            else:
                reason = _picture_reason(dates)
                notes = tuple(filter(None, map(stretch_note, dates)))
            if not volume:
                notes = (*_said_by_files(dates), *notes)
        except DataError as error:
            reason = str(error) if len(dates) > 1 else error.advice
        return InputFile(name, dates, raster, reason, (*said, *notes), placed, slide, volume)

    with ThreadPoolExecutor(_READERS) as pool:
        sources = list(pool.map(look, unique_names(files), pairs))
    return _with_first_note(sources, told)


def _with_first_note(sources: list[InputFile], told: str) -> list[InputFile]:
    """Return inputs of which the first that can be used says a line, if there is one."""
    for place, source in enumerate(sources):
        if told and source.reason is None:
            return [*sources[:place], replace(source, notes=(told, *source.notes)), *sources[place + 1 :]]
    return sources


@contextmanager
def open_ground(
    address: str,
    channels: Channels | None,
    bands: tuple[str | None, ...] | None = None,
    missing_bands: MissingBands = "error",
    tissue: Tissue | None = None,
) -> Iterator[RasterGround]:
    """Yield an open raster as a model sees it; see `RasterGround`."""
    with open_pixels(address) as pixels:
        yield RasterGround(pixels, channels, bands, missing_bands, tissue)


def _said_by_files(dates: Sequence[str]) -> tuple[str, ...]:
    """Return what a user should know of how files were understood that may have a place, if only that none has one."""
    said: list[str] = []
    for date in filter(may_be_placed, dates):
        with open_pixels(date) as pixels:
            said += [f"{date}: {note}" for note in pixels.notes]
    return tuple(said)


def _picture_reason(dates: Sequence[str]) -> str | None:
    for path in dates:
        load_image(path, enough=shown_size)  # decodes the whole file: a head alone says little
    sizes = {image_size(path) for path in dates}
    if len(sizes) > 1:
        (width, height), (later_width, later_height) = (image_size(path) for path in dates)
        return f"its dates are {width}×{height} and {later_width}×{later_height} px"
    return None


def _looked_at_raster(
    dates: Sequence[str], channels: Channels | None, missing_bands: MissingBands
) -> tuple[bool, tuple[str, ...]]:
    """Return whether a raster says where it lies, and what is to be said of it; raise what is wrong with it."""
    notes = []
    for address in dates:
        with open_ground(address, channels, missing_bands=missing_bands) as ground:
            looks = (ground.values(window) for window in _looked_at(*ground.pixels.size))
            if line := clipped_note(channels, looks):
                notes.append(f"{address}: {line}")
    with open_pixels(dates[0]) as first:
        placed, share = first.geometry is not None, None
        if len(dates) > 1:
            with open_pixels(dates[1]) as second:
                share = shared_area(first, second)
    if share is not None:
        notes.append(
            f"{dates[1]} is warped onto the grid of {dates[0]} (bilinear) and covers {100 * share:.1f} % of it; the "
            "rest is nodata"
        )
    return placed, tuple(notes)


def _looked_at_volume(
    address: str, channels: Channels | None, missing_bands: MissingBands, plane: str | None
) -> tuple[str, ...]:
    """Return what is to be said of a volume; raise what is wrong with it."""
    grounds, notes = looked_at_volume(address, channels, missing_bands, plane)
    line = clipped_note(channels, (ground.values((0, 0, *ground.pixels.size)) for ground in grounds))
    return (*notes, f"{address}: {line}") if line else notes


def clipped_note(channels: Channels | None, looks: Iterable[tuple[np.ndarray, np.ndarray]]) -> str:
    """Return what to say of a file whose values lie outside of the model's ranges, nearly all of them; else "".

    Args:
        channels: What the model sees; None: pictures, whose values are 0–255 always.
        looks: (C, h, w) values of parts of the file, channel by channel, and which of them count. All are read.
    """
    pixels = clipped = 0
    low, high = math.inf, -math.inf
    for values_CHW, valid_CHW in looks:
        if channels is None or any(channel.by_file for channel in channels.channels):
            continue  # a range that each file brings fits it
        valid_CHW = valid_CHW & np.isfinite(values_CHW)
        ends_CHW = np.isin(channels.scale(values_CHW), (0, 255))
        if values_CHW.dtype == np.uint8:  # as they stand: black and white are what they are
            as_is_C = [(one.low, one.high, one.transform) == (0, 255, "linear") for one in channels.channels]
            ends_CHW[as_is_C] = False
        known_HW = valid_CHW.any(0)
        pixels += int(known_HW.sum())
        # A pixel counts where every band is black, white or without a value.
        clipped += int(((ends_CHW | ~valid_CHW).all(0) & known_HW).sum())
        if known_HW.any():
            low = min(low, float(values_CHW[valid_CHW].min()))
            high = max(high, float(values_CHW[valid_CHW].max()))
    if channels is None or clipped <= _MOST_CLIPPED * pixels:
        return ""
    ends_C2 = channels.unscale(np.array([[[0, 255]]] * len(channels)))[:, 0].tolist()
    ranges = [f"{band} {ends[0]:g}–{ends[1]:g}" for band, ends in zip(channels.bands, ends_C2, strict=True)]
    named = ", ".join([*dict.fromkeys(ranges[:_NAMED]), *(["…"] if len(ranges) > _NAMED else [])])
    return (
        "nearly all of its values lie outside of the ranges that the model knows, or at their very ends "
        f"({named}; here {low:g}–{high:g})"
    )


def _looked_at(width: int, height: int) -> list[Window]:
    """Return parts of the corners and the middle."""
    xs = {0, max(width - _LOOK, 0)}
    ys = {0, max(height - _LOOK, 0)}
    places = [(x, y) for x in xs for y in ys] + [(max(width - _LOOK, 0) // 2, max(height - _LOOK, 0) // 2)]
    return [(x, y, min(x + _LOOK, width), min(y + _LOOK, height)) for x, y in sorted(set(places))]


SHOWN_SIDE = 1024
"""Of the picture of a large image that is seen as a whole, at least."""


def shown_size(width: int, height: int) -> tuple[int, int]:
    """Return the width and height that suffice for a picture of a large image."""
    return min(width, SHOWN_SIDE), min(height, SHOWN_SIDE)


def same_grid(first: Pixels, second: Pixels) -> bool:
    """Return whether two rasters have the same pixels in the same places, to a hundredth of a pixel."""
    if first.size != second.size or (first.geometry is None) != (second.geometry is None):
        return False
    if first.geometry is None or second.geometry is None:
        return True
    points_N2 = _inner_points(first.size, 3)
    return bool((np.abs(_in_other(points_N2, first.geometry, second.geometry) - points_N2) < 0.01).all())


def _inner_points(size: tuple[int, int], count: int) -> np.ndarray:
    """Return (N, 2) points of a grid from corner to corner."""
    x, y = np.meshgrid(*(np.linspace(0, side, count) for side in size))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _in_other(points_N2: np.ndarray, first: Geometry, second: Geometry) -> np.ndarray:
    """Return points in pixels of one raster in pixels of another."""
    with np.errstate(invalid="ignore"):
        return second.to_pixels(reproject(first.to_map(points_N2), first.crs, second.crs))


def shared_area(first: Pixels, second: Pixels) -> float | None:
    """Return the share of the first raster that the second covers; None: they are on one grid.

    Raises:
        DataError: Only one of them says where it lies, or they don't overlap.
    """
    if same_grid(first, second):
        return None
    if first.geometry is None or second.geometry is None:
        raise DataError(
            f"the dates are {first.size[0]}×{first.size[1]} and {second.size[0]}×{second.size[1]} px, and not "
            "both say where they lie",
            where=second.where,
            fix="georeference both, or cut them to the same pixels",
        )
    overlap = _overlap(first, second)
    if overlap <= 0:
        raise DataError(
            f"doesn't overlap {first.where}", where=second.where, fix="name two dates of one place"
        )
    return overlap


def aligned(first: Pixels, later: str, target: Path) -> str:
    """Return the address of a later date on the grid of the first: itself, or a virtual raster that warps it.

    Args:
        first: The earlier date.
        later: Address.
        target: Where the virtual raster is written.

    Raises:
        DataError: They can't be aligned; see `shared_area`.
    """
    with open_pixels(later) as second:
        if shared_area(first, second) is None:
            return later
    _warp(first, later, target)
    return str(target)


def _overlap(first: Pixels, second: Pixels) -> float:
    """Return the share of the first raster, by a grid of points, that lies in the second."""
    assert first.geometry is not None and second.geometry is not None
    there_N2 = _in_other(_inner_points(first.size, 65), first.geometry, second.geometry)
    return float(((there_N2 > 0) & (there_N2 < np.array(second.size))).all(1).mean())


def _warp(first: Pixels, later: str, target: Path) -> None:
    rasterio, shutil = need("geo", "rasterio", later), need("geo", "rasterio.shutil", later)
    vrt = need("geo", "rasterio.vrt", later)
    assert first.geometry is not None
    target.unlink(missing_ok=True)
    base = split_address(later)[0]
    path = Path(base).absolute() if Path(base).exists() else base
    with (
        rasterio.open(path) as source,
        vrt.WarpedVRT(
            source,
            crs=first.geometry.crs,
            transform=rasterio.Affine(*first.geometry.transform),
            width=first.size[0],
            height=first.size[1],
            resampling=rasterio.enums.Resampling.bilinear,
            # Where the later date doesn't reach, there is nothing, whatever value stands there.
            add_alpha=source.nodata is None,
        ) as warped,
    ):
        # A VRT only says how to warp: pixels are read where somebody looks.
        shutil.copy(warped, str(target), driver="VRT")
