"""From an image's address to its tiles: big images read small, tiles that come again kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from vitp.core.config import SettingsModel
from vitp.core.errors import VitpError
from vitp.core.files import atomic_path
from vitp.data.seen import PICTURES, SeenBands, size_of
from vitp.data.tiling import choose_grid, cut_grid
from vitp.io.images import is_scene
from vitp.io.parts import file_stamp
from vitp.io.storage import is_member, is_remote

_GAP = 2
"""A JPEG is decoded at no less than this many times the tiles' resolution, so that resizing still has pixels to
average (Pillow's `thumbnail` keeps the same distance)."""


class InputSettings(SettingsModel):
    """How images are read. None of it changes which records are learned from."""

    draft: bool = True
    """Decode JPEGs and very large images that have four times the tiles' resolution at a fraction of it."""
    cache_gb: float = Field(0.0, ge=0, le=1_000_000)
    """Size of the cache of decoded tiles in GB; 0: no cache."""
    cache_folder: str | None = None
    """Folder of the cache, shared by all data workers; none: each worker's memory."""

    def loader(self, tile: int, seen: SeenBands | None = None) -> TileLoader:
        """Return what reads images into tiles of a size."""
        cache = None
        if self.cache_gb:
            folder = Path(self.cache_folder) if self.cache_folder else None
            cache = TileCache(int(self.cache_gb * 1e9), folder)
        return TileLoader(tile, self.draft, cache, seen or PICTURES)


@dataclass
class TileLoader:
    """Address and largest tile count → tiles.

    Attributes:
        tile: Side of a tile in pixels.
        draft: Whether JPEGs of at least four times the tiles' resolution are decoded at a fraction of their size, and
            other images of more than `vitp.io.pixels.LARGE_PIXELS` are averaged while they are read. All the rest
            comes out bit for bit as without it.
        cache: Keeps tiles; None makes them anew each time.
        seen: What of the files' bands is seen.
    """

    tile: int
    draft: bool = True
    cache: TileCache | None = None
    seen: SeenBands = PICTURES

    def __call__(self, address: str, max_tiles: int) -> np.ndarray:
        """Return (tiles, C, tile, tile) uint8; see `vitp.data.tiling.cut_tiles`.

        Raises:
            DataError: The image can't be read.
        """
        if self.cache is None:
            return self._cut(address, max_tiles)
        key = f"{address}|{_version(address)}|{self.tile}|{max_tiles}|{self.draft}"
        if self.seen.channels is not None:
            key += f"|{self.seen.channels.model_dump_json()}|{self.seen.missing_bands}"
        tiles = self.cache.get(key)
        if tiles is None:
            tiles = self._cut(address, max_tiles)
            self.cache.put(key, tiles)
        return tiles

    def _cut(self, address: str, max_tiles: int) -> np.ndarray:
        whole: list[int] = []

        def enough(width: int, height: int) -> tuple[int, int]:
            whole[:] = width, height
            columns, rows = choose_grid(width, height, self.tile, max_tiles)
            return _GAP * self.tile * columns, _GAP * self.tile * rows

        image = self.seen.load(address, enough if self.draft else None)
        # The grid follows the whole image's shape: a smaller copy's differs by rounding.
        width, height = whole or size_of(image)
        columns, rows = choose_grid(width, height, self.tile, max_tiles)
        if size_of(image) == (width, height):
            return cut_grid(image, self.tile, columns, rows)
        scale = round(width / size_of(image)[0])
        return cut_grid(image, self.tile, columns, rows, (0, 0, width / scale, height / scale))


def _version(address: str) -> str:
    """Return what changes when a file does. Members of shards and files behind URLs are taken to stay."""
    if is_scene(address) or is_member(address) or is_remote(address):
        return ""
    try:
        size, changed = file_stamp(address)
    except OSError:
        return ""
    return f"{size} {changed}"


class TileCache:
    """The tiles that were used last, up to a number of bytes.

    In memory each data worker has a cache of its own; one on disk is shared by all, and outlives the run.

    Args:
        max_bytes: Largest size; what was not used for the longest time goes first.
        folder: On disk; None: in memory.
    """

    def __init__(self, max_bytes: int, folder: Path | None = None) -> None:
        self.max_bytes, self.folder = max_bytes, folder
        self._held: OrderedDict[str, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._since_sweep = max_bytes  # what other processes have left there is looked at first

    def get(self, key: str) -> np.ndarray | None:
        """Return the tiles of a key, or None."""
        if self.folder is not None:
            return self._read(self._file(key))
        tiles = self._held.get(key)
        if tiles is not None:
            self._held.move_to_end(key)
        return tiles

    def put(self, key: str, tiles: np.ndarray) -> None:
        """Keep tiles; does nothing where they can't be written or are larger than the cache."""
        if tiles.nbytes > self.max_bytes:
            return
        if self.folder is not None:
            self._write(self._file(key), tiles)
            return
        if key in self._held:
            return
        tiles = tiles.copy()
        tiles.setflags(write=False)  # whoever gets them must not change them for the next
        self._held[key] = tiles
        self._bytes += tiles.nbytes
        while self._bytes > self.max_bytes:
            self._bytes -= self._held.popitem(last=False)[1].nbytes

    def __getstate__(self) -> dict[str, object]:
        return dict(self.__dict__, _held=OrderedDict(), _bytes=0)

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        name = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.npy"

    @staticmethod
    def _read(file: Path) -> np.ndarray | None:
        try:
            tiles: np.ndarray = np.load(file, allow_pickle=False)
            os.utime(file)
        except (OSError, ValueError, EOFError):
            return None
        return tiles

    def _write(self, file: Path, tiles: np.ndarray) -> None:
        assert self.folder is not None
        with contextlib.suppress(OSError, VitpError):  # a full disk only costs time
            with atomic_path(file) as temporary:
                np.save(temporary, tiles)
            self._since_sweep += tiles.nbytes
            if self._since_sweep * 16 > self.max_bytes:
                self._sweep(self.folder)
                self._since_sweep = 0

    def _sweep(self, folder: Path) -> None:
        """Remove the files that were not used for the longest time until the others fit in."""
        found: list[tuple[float, int, Path]] = []
        for path in folder.glob("*/*"):
            with contextlib.suppress(OSError):  # another process may have removed it
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
                if path.name.startswith(".") and stat.st_mtime < time.time() - 3600:
                    path.unlink(missing_ok=True)  # half a file, of a process that was killed
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            # A sixteenth stays free for what is written until the next look.
            if total <= self.max_bytes - self.max_bytes // 16:
                return
            path.unlink(missing_ok=True)
            total -= size
