"""Class maps and probabilities as Cloud Optimized GeoTIFFs.

Shapes: K classes, H × W pixels, R rows, C bands.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from vitp.core.errors import VitpError
from vitp.core.extras import need
from vitp.core.files import as_user_error
from vitp.inference.outputs import class_colour
from vitp.io.open_pixels import Geometry
from vitp.records.labels import IGNORE

_BLOCK = 512
"""Side of a tile."""
_ALONE = threading.Lock()
"""Held by who reads standard error instead of showing it."""
_PROBE = 1 << 20
"""Bytes that a disk still takes that isn't full."""

RowsOf = Callable[[int, int], np.ndarray]
"""First row, row after the last → (C, R, W) values."""


def write_class_cog(
    path: Path,
    rows: RowsOf,
    size: tuple[int, int],
    geometry: Geometry | None,
    classes: Sequence[str],
    tags: Mapping[str, str],
    known: Callable[[int, int], bool] = lambda top, bottom: True,
) -> None:
    """Write a class map: one band of bytes, class numbers from 0, 255 where nothing is known.

    It has a colour table and the names of the classes, in its tags and, for programs that look there, in a file
    `NAME.tif.aux.xml` beside it.

    Args:
        path: New file.
        rows: Gives the values, (1, R, W).
        size: Height and width.
        geometry: Where it lies.
        classes: Names, in the order of the numbers.
        tags: Texts that are written into the file.
        known: Whether anything is known in some rows; where it isn't they take no room.
    """
    table = {number: (*class_colour(number), 255) for number in range(len(classes))}
    named = {f"class_{number}": name for number, name in enumerate(classes)}
    with _Tiles(path, size, geometry, 1, {**tags, **named}) as tiles:
        tiles.file.write_colormap(1, table | {IGNORE: (0, 0, 0, 0)})
        tiles.file.set_band_description(1, "class")
        tiles.fill(rows, known)
        tiles.finish("NEAREST")
    names = "".join(f"<Category>{escape(name)}</Category>" for name in classes)
    path.with_name(f"{path.name}.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><CategoryNames>'
        f"{names}</CategoryNames></PAMRasterBand></PAMDataset>\n",
        encoding="utf-8",
    )


def write_share_cog(
    path: Path,
    rows: RowsOf,
    size: tuple[int, int],
    geometry: Geometry | None,
    classes: Sequence[str],
    tags: Mapping[str, str],
    scale: float,
) -> None:
    """Write probabilities: a band of bytes for each class; the scale in the file turns them into 0–1.

    Args:
        path: New file.
        rows: Gives the values, (K, R, W).
        size: Height and width.
        geometry: Where it lies.
        classes: Names of the bands.
        tags: Texts that are written into the file.
        scale: Probability of a value of 1.
    """
    with _Tiles(path, size, geometry, len(classes), tags) as tiles:
        tiles.file.scales = (scale,) * len(classes)
        tiles.file.offsets = (0.0,) * len(classes)
        for number, name in enumerate(classes, 1):
            tiles.file.set_band_description(number, name)
        tiles.fill(rows)
        tiles.finish("AVERAGE")


@contextmanager
def written_by_gdal(folder: Path) -> Iterator[None]:
    """Turn what rasterio and pyogrio raise when they can't write into an error of the user; see `VitpError`.

    GDAL's errors don't tell a full disk from other reasons. libtiff does, in lines of its own on standard error, which
    are read here instead of being shown.
    """
    said: list[str] = []
    try:
        with _without_libtiff(said):
            yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("rasterio", "pyogrio"):
            raise
        if (full := _full_disk(folder, [str(error), str(error.__cause__), *said])) is not None:
            raise as_user_error(full, folder) from error
        fix = "check the path and how much may be written there; nothing that was there is lost"
        raise VitpError(f"can't be written ({error})", where=str(folder), fix=fix) from error


@contextmanager
def _without_libtiff(said: list[str]) -> Iterator[None]:
    """Keep libtiff's lines off standard error, to which it writes past Python; all others are shown afterwards.

    Standard error is the process's: of two threads that write at once one reads these lines, or the second would put
    back what the first one had put there. Where it is closed, or nothing can be held, lines go where they went.
    """
    if not _ALONE.acquire(blocking=False):
        yield
        return
    try:
        with ExitStack() as opened:
            held = shown = None
            with suppress(OSError):
                held = opened.enter_context(tempfile.TemporaryFile())
                shown = os.dup(2)
            if held is None or shown is None:
                yield
                return
            opened.callback(os.close, shown)
            sys.stderr.flush()
            os.dup2(held.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(shown, 2)
                held.seek(0)
                for line in held.read().splitlines(keepends=True):
                    if line.startswith((b"_tiff", b"TIFF")):
                        said.append(line.decode(errors="replace"))
                    else:
                        os.write(2, line)
    finally:
        _ALONE.release()


def _full_disk(folder: Path, words: Sequence[str]) -> OSError | None:
    """Return the system's error of a full disk, or of a used-up quota, where one was the reason; None: none was.

    Args:
        folder: Where was written.
        words: What was said of it.
    """
    for number in (errno.ENOSPC, errno.EDQUOT):
        if any(os.strerror(number) in text for text in words):
            return OSError(number, os.strerror(number))
    if any("disk is full" in text for text in words):  # SQLite, of a GeoPackage
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        # Some drivers give no reason at all.
        with tempfile.TemporaryFile(dir=folder if folder.is_dir() else folder.parent) as file:
            file.write(bytes(_PROBE))
            file.flush()
    except OSError as error:
        return error if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return None


class _Tiles:
    """A tiled GeoTIFF that becomes a COG with overviews; removed when it is done with."""

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        geometry: Geometry | None,
        bands: int,
        tags: Mapping[str, str],
    ) -> None:
        self._rasterio, self._path, self._size = need("geo", "rasterio", str(path)), path, size
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.tiles.tif")
        place: dict[str, Any] = {}
        if geometry is not None:
            place = {"crs": geometry.crs, "transform": self._rasterio.Affine(*geometry.transform)}
        with warnings.catch_warnings():
            # A map of what lies nowhere on the ground lies nowhere, too.
            warnings.simplefilter("ignore", self._rasterio.errors.NotGeoreferencedWarning)
            self.file = self._opened(size, bands, place)
        self.file.update_tags(**tags)

    def _opened(self, size: tuple[int, int], bands: int, place: Mapping[str, Any]) -> Any:
        return self._rasterio.open(
            self._temporary,
            "w",
            driver="GTiff",
            width=size[1],
            height=size[0],
            count=bands,
            dtype="uint8",
            nodata=IGNORE,
            tiled=True,
            blockxsize=_BLOCK,
            blockysize=_BLOCK,
            compress="deflate",
            # Neighbouring classes are equal or unlike: differences of their numbers would compress no better.
            predictor=1,
            bigtiff="if_safer",
            sparse_ok=True,
            **place,
        )

    def __enter__(self) -> _Tiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self._temporary.unlink(missing_ok=True)

    def fill(self, rows: RowsOf, known: Callable[[int, int], bool] = lambda top, bottom: True) -> None:
        """Write all rows in which anything is known, one row of tiles after the other."""
        height, width = self._size
        for top in range(0, height, _BLOCK):
            bottom = min(top + _BLOCK, height)
            if known(top, bottom):
                self.file.write(rows(top, bottom), window=((top, bottom), (0, width)))

    def finish(self, resampling: str) -> None:
        """Close the file and copy it in the order of a COG."""
        self.file.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._rasterio.errors.NotGeoreferencedWarning)
            # GDAL makes COGs by copying only: their overviews stand before the pixels that they are made of.
            need("geo", "rasterio.shutil", str(self._path)).copy(
                str(self._temporary),
                str(self._path),
                driver="COG",
                blocksize=_BLOCK,
                compress="DEFLATE",
                overview_resampling=resampling,
                bigtiff="IF_SAFER",
                sparse_ok="YES",
                num_threads="1",
            )
