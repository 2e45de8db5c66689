"""A folder with one file a band as one image: Sentinel-2 (also a whole .SAFE), Landsat, OSCD, radar by polarisation.

Shapes: C bands, H × W pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitp.core.errors import DataError
from vitp.io.contract import Geometry, Pixels
from vitp.io.parts import WHOLE, Window
from vitp.io.raster_bands import polarisation_of
from vitp.io.rasters import RasterPixels, raster_driver

_SUFFIXES = frozenset({".tif", ".tiff", ".jp2", ".img"})
_BAND = re.compile(r"(?:^|[_\-.])(B\d{1,2}A?)(?=[_\-.]|$)", re.IGNORECASE)
_CELL = re.compile(r"(?:^|[_\-.])[AC-Z]\d{1,2}$", re.IGNORECASE)
"""How names of tiles end that count in letters, beside which B1 is no band."""
_MOST_HEADS = 64
"""Files of a folder that are looked at; bands of one image stand together in the order of names."""
_RESOLUTION = re.compile(r"[_\-](\d{1,3})m(?=[_\-.]|$)", re.IGNORECASE)
_WORDS = frozenset(
    [
        "red",
        "green",
        "blue",
        "nir",
        "rededge",
        "swir",
        "swir1",
        "swir2",
        "coastal",
        "cirrus",
        "pan",
        "tir",
        "thermal",
    ]
)
_ONE_FILE = "name the files themselves, or a folder with one file a band (…_B04.tif, VV.tif, red.tif)"
_SENTINEL_2 = {
    "B01": 442.7,
    "B02": 492.4,
    "B03": 559.8,
    "B04": 664.6,
    "B05": 704.1,
    "B06": 740.5,
    "B07": 782.8,
    "B08": 832.8,
    "B8A": 864.7,
    "B09": 945.1,
    "B10": 1373.5,
    "B11": 1613.7,
    "B12": 2202.4,
}
"""Band → centre in nanometres, of Sentinel-2A."""


def _band_name(path: Path) -> str | None:
    found = _BAND.search(path.stem)
    if found is not None:
        return found[1].upper()
    if path.stem.lower() in _WORDS:
        return path.stem.lower()
    return polarisation_of(path.stem)


def band_files(folder: Path) -> dict[str, Path]:
    """Return band → file of a folder with one file a band, in the order of the names; {}: it is no such folder.

    Of a .SAFE, the finest file of each band counts. Files without a band's name in theirs are left out
    where others have numbers of bands.

    Raises:
        DataError: Several files have the same band.
    """
    inner = sorted(folder.glob("GRANULE/*/IMG_DATA")) or [folder]
    if len(inner) > 1:
        raise DataError(
            f"holds {len(inner)} granules", where=str(folder), fix="name one (GRANULE/…/IMG_DATA)"
        )
    files = _rasters_in(inner[0])
    found: dict[str, list[Path]] = {}
    for path in files:
        name = _band_name(path)
        if name is not None:
            found.setdefault(name, []).append(path)
    numbered = {name for name in found if _BAND.fullmatch(name)}
    if not numbered and sum(map(len, found.values())) < len(files):
        return {}
    chosen = {}
    for name in sorted(numbered or found, key=_order):
        sharpest = _sharpest(found[name])
        if len(sharpest) > 1:
            what = f"holds {len(sharpest)} files of band {name}: {sharpest[0].name}, {sharpest[1].name}"
            raise DataError(what, where=str(folder), fix="put each image into a folder of its own")
        chosen[name] = sharpest[0]
    return chosen


def _rasters_in(folder: Path) -> list[Path]:
    places = [folder, *sorted(path for path in folder.glob("R[126]0m") if path.is_dir())]
    return [path for place in places for path in sorted(place.iterdir()) if path.suffix.lower() in _SUFFIXES]


def is_band_folder(folder: Path) -> bool:
    """Return whether a folder is one image with one file a band, and no folder of images whose names look like bands.

    It is a .SAFE, or its files of at least two bands hold one band each and lie on the same ground, as do the others
    in it. Pictures (8-bit files without a place) are images, whatever they are called.

    Raises:
        DataError: It holds the bands of an image and other images, or several granules.
    """
    if any(folder.glob("GRANULE/*/IMG_DATA")):
        return bool(band_files(folder))
    files = _rasters_in(folder)
    named = {path: name for path in files if (name := _band_name(path)) is not None}
    numbered = any(_BAND.fullmatch(name) for name in named.values())
    if len(set(named.values())) < 2 or (len(named) < len(files) and not numbered):
        return False
    if any(_CELL.search(path.stem) for path in files if path not in named):
        return False
    heads = {path: head for path in files[:_MOST_HEADS] if (head := _head(path)) is not None}
    own = [heads[path] for path in named if path in heads]
    if not own or any(head.bands != 1 or head.is_picture for head in own):
        return False
    if _is_one_ground(list(heads.values())):
        return bool(band_files(folder))
    images: dict[str, list[Path]] = {}
    for path in named.keys() & heads.keys():
        rest = _BAND.sub("", path.stem, count=1).lower()
        images.setdefault(rest.replace(named[path].lower(), "", 0 if numbered else 1), []).append(path)
    for paths in images.values():
        if len({named[path] for path in paths}) > 1 and _is_one_ground([heads[path] for path in paths]):
            first, second = sorted(paths)[:2]
            what = (
                f"{first.name} and {second.name} in it are bands of one image, but other files lie elsewhere"
            )
            raise DataError(
                what, where=str(folder), fix="put the bands of each image into a folder of its own"
            )
    return False


@dataclass(frozen=True)
class _Head:
    """What the head of a file says; `ground` is its system and extent (left, bottom, right, top)."""

    bands: int
    is_picture: bool
    ground: tuple[str, tuple[float, float, float, float]] | None


def _head(path: Path) -> _Head | None:
    """Look at a file; None: it can't be read."""
    try:
        with RasterPixels(str(path), raster_driver(str(path)) or "GTiff", WHOLE, str(path)) as file:
            count, place = len(file.bands), file.geometry
            if place is None:
                return _Head(count, file.dtype == np.uint8, None)
            width, height = file.size
            corners_N2 = place.to_map(np.array([(0, 0), (width, 0), (0, height), (width, height)], float))
    except DataError:
        return None
    (left, bottom), (right, top) = corners_N2.min(0).tolist(), corners_N2.max(0).tolist()
    return _Head(count, False, (place.crs, (left, bottom, right, top)))


def _is_one_ground(heads: list[_Head]) -> bool:
    """Return whether most of each file's ground lies in the largest one's; True also if none says where it lies."""
    grounds = [head.ground for head in heads if head.ground is not None]
    if not grounds:
        return True
    if len(grounds) < len(heads) or len({crs for crs, _ in grounds}) > 1:
        return False
    boxes_N4 = np.array([box for _, box in grounds])
    areas_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1)
    largest = boxes_N4[areas_N.argmax()]
    sides_N2 = np.minimum(boxes_N4[:, 2:], largest[2:]) - np.maximum(boxes_N4[:, :2], largest[:2])
    return bool((sides_N2.clip(0).prod(1) > 0.5 * areas_N).all())


def _order(name: str) -> tuple[int, str]:
    digits = re.sub(r"\D", "", name)
    return int(digits or 0), name


def _sharpest(paths: list[Path]) -> list[Path]:
    metres = [int(found[1]) if (found := _RESOLUTION.search(path.stem)) else 0 for path in paths]
    return [path for path, size in zip(paths, metres, strict=True) if size == min(metres)]


class FolderPixels(Pixels):
    """A folder with one file a band, open for reading; see `Pixels`.

    Bands of larger pixels come on the grid of the smallest: each pixel stands for those whose centres it
    covers, as it is.

    Raises:
        DataError: It isn't such a folder, its files have different coordinate systems or sizes that don't
            fit together, or one can't be read.
    """

    def __init__(self, folder: Path, where: str) -> None:
        self.where = where
        files = band_files(folder)
        if not files:
            what = "image is not a file, but a folder, and not one with a file a band"
            raise DataError(what, where=where, fix=_ONE_FILE)
        self._files: list[Pixels] = []
        try:
            for path in files.values():
                self._files.append(
                    RasterPixels(str(path), raster_driver(str(path)) or "GTiff", WHOLE, str(path))
                )
            self._describe(files)
        except BaseException:
            self.close()
            raise

    def _describe(self, files: dict[str, Path]) -> None:
        for name, file in zip(files, self._files, strict=True):
            if len(file.bands) != 1:
                what = f"holds {len(file.bands)} bands, where a file of band {name} must hold one"
                raise DataError(what, where=file.where, fix=_ONE_FILE)
        systems = {file.geometry.crs if file.geometry else "none" for file in self._files}
        if len(systems) > 1:
            what = f"its bands lie in different coordinate systems: {', '.join(sorted(systems))[:200]}"
            raise DataError(what, where=self.where, fix="bring them into one (gdalwarp -t_srs)")
        finest = max(self._files, key=lambda file: file.size if file.geometry is None else _fineness(file))
        self.size, self.geometry = finest.size, finest.geometry
        self._grids = [self._places(file) for file in self._files]
        self.dtype = np.result_type(*(file.dtype for file in self._files))
        # B8A is Sentinel-2's alone; a B04 others have, too, at another wavelength.
        sentinel = {"B8A"} <= set(files)
        self.bands = tuple(
            replace(
                file.bands[0],
                name=name,
                wavelength=_SENTINEL_2.get(name) if sentinel else file.bands[0].wavelength,
                polarisation=polarisation_of(name),
            )
            for name, file in zip(files, self._files, strict=True)
        )
        values = {band.nodata for band in self.bands}
        self.nodata = values.pop() if len(values) == 1 else None
        coarse = [band.name for band, grid in zip(self.bands, self._grids, strict=True) if grid is not None]
        notes = [note for file in self._files for note in file.notes]
        if coarse:
            notes.append(
                f"bands {', '.join(coarse)} have other pixels, and are repeated on the finest band's"
            )
        self.notes = tuple(dict.fromkeys(notes))

    def _places(self, file: Pixels) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the column and row of a file at each of ours, −1: none; None: they are the same."""
        if (file.size, file.geometry) == (self.size, self.geometry):
            return None
        if file.geometry is None or self.geometry is None:
            ratios = [mine / own for mine, own in zip(self.size, file.size, strict=True)]
            if ratios[0] != ratios[1] or not ratios[0].is_integer():
                what = f"has {file.size[0]}×{file.size[1]} px, which don't fit onto {self.size[0]}×{self.size[1]}"
                raise DataError(what, where=file.where, fix="give the files coordinates, or one size")
            return tuple(np.arange(length) // int(ratios[0]) for length in self.size)  # type: ignore[return-value]
        # These numbers of a transform are 0 unless rows or columns run aslant.
        if any((*file.geometry.transform[1:4:2], *self.geometry.transform[1:4:2])):
            what = "is rotated, and its pixels aren't those of the other bands"
            raise DataError(what, where=file.where, fix="bring the bands onto one grid (gdalwarp -tr)")
        width, height = self.size
        columns = self._indices(file, np.stack([np.arange(width) + 0.5, np.full(width, 0.5)], axis=1), 0)
        rows = self._indices(file, np.stack([np.full(height, 0.5), np.arange(height) + 0.5], axis=1), 1)
        if (columns < 0).all() or (rows < 0).all():
            what = "lies elsewhere than the other bands"
            raise DataError(what, where=file.where, fix="put each image into a folder of its own")
        return columns, rows

    def _indices(self, file: Pixels, centres_N2: np.ndarray, axis: int) -> np.ndarray:
        assert file.geometry is not None and self.geometry is not None
        # A centre on an edge of the file's pixels belongs to the one behind it, however sums are rounded.
        found_N = np.floor(file.geometry.to_pixels(self.geometry.to_map(centres_N2))[:, axis] + 1e-6)
        return np.where((found_N >= 0) & (found_N < file.size[axis]), found_N, -1).astype(np.int64)

    @property
    def _all_valid(self) -> bool:
        outside = any(grid is not None and min(grid[0].min(), grid[1].min()) < 0 for grid in self._grids)
        return not outside and all(file._all_valid for file in self._files)

    def _stored(self, window: Window, numbers: list[int], factor: int) -> tuple[np.ndarray, np.ndarray]:
        x1, y1, x2, y2 = window
        values_CHW = np.zeros((len(numbers), y2 - y1, x2 - x1), self.dtype)
        valid_CHW = np.zeros(values_CHW.shape, bool)
        for number, values_HW, valid_HW in zip(numbers, values_CHW, valid_CHW, strict=True):
            file, grid = self._files[number], self._grids[number]
            if grid is None:
                values_1HW, valid_1HW = file._stored(window, [0], 1)
                values_HW[:], valid_HW[:] = values_1HW[0], valid_1HW[0]
                continue
            columns, rows = grid[0][x1:x2], grid[1][y1:y2]
            inside = np.ix_(np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0))
            columns, rows = columns[columns >= 0], rows[rows >= 0]
            if columns.size and rows.size:
                left, top = int(columns.min()), int(rows.min())
                part = (left, top, int(columns.max()) + 1, int(rows.max()) + 1)
                values_1HW, valid_1HW = file._stored(part, [0], 1)
                taken = np.ix_(rows - top, columns - left)
                values_HW[inside], valid_HW[inside] = values_1HW[0][taken], valid_1HW[0][taken]
        return values_CHW, valid_CHW

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()


def _fineness(file: Pixels) -> tuple[float, float]:
    assert isinstance(file.geometry, Geometry)
    a, b, _, d, e, _ = file.geometry.transform
    return -abs(a * e - b * d), 0.0
