"""Maps of rasters: windows are read, seen, blended, decided and written strip by strip, and joined at the end.

What is finished lies in a folder of its own, so that a killed prediction goes on there and several processes share
one raster; every unit of windows gives the same bits whoever computes it and when.

    FOLDER/classes.raw          (H, W) uint8, 255 − the class of each pixel; 0 where nothing is known   (class maps)
    FOLDER/shares.raw           (H, K, W) uint8, 255 − probabilities (250 for 1); 0 where nothing is known
    FOLDER/done-RANK.txt        units that are written, a line each
    FOLDER/objects-NUMBER.npz   what the windows of a unit show, not merged                         (objects)

Shapes: K classes, N objects, H × W pixels, R rows.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vitp.core import distributed
from vitp.inference.unfinished import done_parts, note_done
from vitp.records.labels import IGNORE
from vitp.tasks.base import TaskModel, TestSettings, check_windows
from vitp.tasks.dense import DenseModel
from vitp.tasks.ground import RasterGround
from vitp.tasks.merging import MaskPart, ObjectMerger, ViewObjects
from vitp.tasks.predict import unit_objects
from vitp.tasks.views import View, views_of
from vitp.tasks.windows import SUMS_BYTES, Strip, Unit, class_strips, in_lanes, units_of

Piece = TypeVar("Piece")

SHARE_SCALE = 250
"""Byte that stands for a probability of 1; 255 stands for no data."""


def seen_origin(ground: RasterGround) -> tuple[int, int]:
    """Return x and y in pixels that windows are counted from: the map's origin, which two cuts of a raster share."""
    geometry = ground.pixels.geometry
    if geometry is None:
        return 0, 0
    a, b, _, d, e, _ = geometry.transform
    # A transform without area has no way back.
    x, y = geometry.to_pixels(np.zeros((1, 2)))[0] if abs(a * e - b * d) > 0 else (0.0, 0.0)
    return round(float(x)), round(float(y))


@dataclass(frozen=True)
class Lane:
    """Columns of a class map that are decided together.

    Attributes:
        columns: First one, and the one after the last.
        units: Units of the views that see them.
    """

    columns: tuple[int, int]
    units: tuple[Unit, ...]


class RasterPrediction:
    """What is computed of one raster, and what is done of it.

    Args:
        model: Any task's but classification's.
        dates: The raster, and its later date on the same grid.
        settings: How the model is applied; see `vitp.tasks.seen`.
        folder: Where finished parts lie.
        factor: On the raster's size, before it is seen.
        shares: Whether probabilities are wanted.
    """

    def __init__(
        self,
        model: TaskModel,
        dates: Sequence[RasterGround],
        settings: TestSettings,
        folder: Path,
        *,
        factor: float = 1.0,
        shares: bool = False,
    ) -> None:
        check_windows(model)
        self.model, self.dates, self.settings, self.folder = model, dates, settings, folder
        self.size = dates[0].size
        self.factor, self.shares = factor, shares and isinstance(model, DenseModel)
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def views(self) -> list[View]:
        """All looks at the raster."""
        resize = self.settings.resize or self.model.input_size
        origin = seen_origin(self.dates[0])
        patch = self.model.patch(self.settings)
        return views_of(*self.size, self.settings, resize, origin=origin, factor=self.factor, patch=patch)

    @cached_property
    def lanes(self) -> list[Lane]:
        """The columns that are worked on together; of objects all."""
        height, width = self.size
        lanes = [((0, width), self.views)]
        if isinstance(self.model, DenseModel):
            # Most of a slide is empty: narrower lanes cost little there, and less memory.
            most = SUMS_BYTES if self.dates[0].tissue is None else SUMS_BYTES // 4
            lanes = in_lanes(self.views, width, len(self.model.classes), most)
        return [
            Lane(columns, tuple(units_of(views, height, self.settings.batch_size)))
            for columns, views in lanes
        ]

    def compute(self) -> None:
        """Compute what isn't done yet, this process its share of it.

        Raises:
            DataError: A part of the raster can't be read.
        """
        if isinstance(self.model, DenseModel):
            self._compute_classes(self.model)
        else:
            self._compute_objects()

    def _compute_classes(self, model: DenseModel) -> None:
        done = done_parts(self.folder)
        wanted = [
            (lane, unit)
            for lane, each in enumerate(self.lanes)
            for unit in range(len(each.units))
            if f"{lane} {unit}" not in done
        ]
        # All look before the first writes: each finds the same to be done.
        distributed.barrier()
        with _RawMap(self.folder, self.size, len(model.classes) if self.shares else 0) as raw:
            for number, lane in enumerate(self.lanes):
                own = [unit for each, unit in share(wanted) if each == number]
                strips = class_strips(
                    model.probabilities,
                    self.dates,
                    lane.columns,
                    lane.units,
                    own,
                    self.settings.batch_size,
                    model.device,
                    shares=self.shares,
                )
                for unit, strip in strips:
                    raw.write(strip)
                    # After the rows are on the disk: what isn't noted is computed again, what is noted never.
                    note_done(self.folder, f"{number} {unit}")

    def _compute_objects(self) -> None:
        (lane,) = self.lanes
        wanted = [unit for unit in range(len(lane.units)) if not self._objects_file(unit).exists()]
        # All have looked before anybody writes, so that all share the same list.
        distributed.barrier()
        for unit in share(wanted):
            found = unit_objects(self.model, self.dates[0], lane.units[unit], self.settings.batch_size)
            _save_objects(self._objects_file(unit), found)

    def _objects_file(self, unit: int) -> Path:
        return self.folder / f"objects-{unit:06d}.npz"

    def class_rows(self, top: int, bottom: int) -> np.ndarray:
        """Return (R, W) uint8 rows of the finished class map."""
        width = self.size[1]
        with (self.folder / "classes.raw").open("rb") as file:
            rows = np.fromfile(file, np.uint8, (bottom - top) * width, offset=top * width)
        return np.bitwise_not(rows, out=rows).reshape(-1, width)

    def is_known(self, top: int, bottom: int) -> bool:
        """Return whether anything may be known in some rows of the finished class map; quick where nothing is."""
        width = self.size[1]
        with (self.folder / "classes.raw").open("rb") as file:
            try:
                return os.lseek(file.fileno(), top * width, os.SEEK_DATA) < bottom * width
            except OSError as error:  # ENXIO: there is no data behind; others: the file system doesn't tell
                return error.errno != errno.ENXIO

    def share_rows(self, top: int, bottom: int) -> np.ndarray:
        """Return (K, R, W) uint8 rows of the finished probabilities, `SHARE_SCALE` for 1."""
        classes, width = len(self.model.classes), self.size[1]
        with (self.folder / "shares.raw").open("rb") as file:
            count = (bottom - top) * classes * width
            rows = np.fromfile(file, np.uint8, count, offset=top * classes * width)
        return np.bitwise_not(rows, out=rows).reshape(-1, classes, width).transpose(1, 0, 2)

    def objects(self) -> Iterator[ViewObjects]:
        """Yield the merged objects that are sure enough, from top to bottom, as soon as nothing below reaches them."""
        (lane,) = self.lanes
        merger = ObjectMerger(self.size, several=len(self.views) > 1)
        for number, unit in enumerate(lane.units):
            found = _load_objects(self._objects_file(number))
            if found is not None:
                merger.add(found)
            # Quads may stick out of their window; none does by a window's height.
            tallest = max(view.window[3] - view.window[1] for view in unit.views)
            bottom = unit.bottom - tallest if number + 1 < len(lane.units) else None
            done = merger.finish(bottom)
            if done is not None and len(done := done.of_rows(done.scores_N >= self.settings.score_threshold)):
                yield done


def share(wanted: Sequence[Piece]) -> Sequence[Piece]:
    """Return this process's part of the work: neighbours in a row, of which few are divided between processes."""
    rank, world = distributed.rank(), distributed.world_size()
    return wanted[rank * len(wanted) // world : (rank + 1) * len(wanted) // world]


class _RawMap:
    """The files of a class map that are written at any place, by several processes.

    Bytes are stored as 255 minus what they are: where nothing is known is 0 then, which takes no room on disk.
    """

    def __init__(self, folder: Path, size: tuple[int, int], classes: int) -> None:
        self._size, self._classes = size, classes
        height, width = size
        self._file = sparse_file(folder / "classes.raw", height * width)
        self._shares = sparse_file(folder / "shares.raw", height * width * classes) if classes else None

    def __enter__(self) -> _RawMap:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._file, self._shares):
            if file is not None:
                os.close(file)

    def write(self, strip: Strip) -> None:
        """Write the rows of a strip, from the first column in which something is known to the last."""
        x1, y1 = strip.window[:2]
        width = self._size[1]
        classes_RW = strip.classes_RW.numpy()
        known = np.flatnonzero((classes_RW != IGNORE).any(0))
        if not len(known):
            return
        left, right = int(known[0]), int(known[-1]) + 1
        _write_rows(self._file, ~classes_RW[:, left:right], y1 * width + x1 + left, width)
        if self._shares is not None:
            shares_RKW = _share_bytes(strip, self._classes)[..., left:right].reshape(-1, right - left)
            _write_rows(self._shares, ~shares_RKW, y1 * self._classes * width + x1 + left, width)
        for file in (self._file, self._shares):
            if file is not None:
                os.fsync(file)


def _share_bytes(strip: Strip, classes: int) -> np.ndarray:
    """Return (R, K, W) bytes of probabilities."""
    rows, columns = strip.classes_RW.shape
    if strip.shares_KRW is None:
        return np.full((rows, classes, columns), IGNORE, np.uint8)
    bytes_KRW = (strip.shares_KRW * SHARE_SCALE).round().to(torch.uint8)
    bytes_KRW[:, strip.classes_RW == IGNORE] = IGNORE
    return np.ascontiguousarray(bytes_KRW.numpy().transpose(1, 0, 2))


def sparse_file(path: Path, size: int) -> int:
    """Open a file of so many bytes, of which those that nobody has written are 0; return its descriptor."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    os.ftruncate(file, size)  # keeps what is there, and takes no room where nothing is written
    return file


def _write_rows(file: int, rows_RW: np.ndarray, start: int, width: int) -> None:
    """Write rows whose beginnings lie `width` bytes apart."""
    if rows_RW.shape[1] == width:
        write_at(file, np.ascontiguousarray(rows_RW).tobytes(), start)
        return
    for number, row in enumerate(rows_RW):
        write_at(file, row.tobytes(), start + number * width)


def write_at(file: int, content: bytes, start: int) -> None:
    """Write bytes at a place of an open file.

    A mapped file would do it without copying, but a disk that is full ends the process there, without a word.
    """
    rest = memoryview(content)
    while rest:
        # It may write less than it is given.
        count = os.pwrite(file, rest, start)
        rest, start = rest[count:], start + count


def _save_objects(path: Path, found: ViewObjects | None) -> None:
    """Write objects beside their place first: a file that is there is whole."""
    arrays: dict[str, np.ndarray] = {}
    if found is not None:
        fields = {"boxes": found.boxes_N4, "quads": found.quads_N8, "scores": found.scores_N}
        fields |= {"labels": found.labels_N, "windows": found.windows_N4, "nowhere": found.nowhere_N}
        arrays = {name: value.numpy() for name, value in fields.items() if value is not None}
        if found.masks is not None:
            arrays["places"] = np.array(
                [(*mask.at, *mask.mask_hw.shape) for mask in found.masks], np.int64
            ).reshape(-1, 4)
            flat = [mask.mask_hw.ravel() for mask in found.masks]
            arrays["masks"] = np.packbits(np.concatenate(flat) if flat else np.zeros(0, bool))
    temporary = path.with_suffix(".part")
    # To a path NumPy would add .npz.
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    temporary.replace(path)


def _load_objects(path: Path) -> ViewObjects | None:
    with np.load(path, allow_pickle=False) as arrays:
        if "scores" not in arrays:
            return None

        def tensor(name: str) -> Tensor | None:
            return torch.from_numpy(arrays[name]) if name in arrays else None

        scores, labels, windows = tensor("scores"), tensor("labels"), tensor("windows")
        assert scores is not None and labels is not None and windows is not None
        masks = None
        if "places" in arrays:
            masks, start = [], 0
            flat = np.unpackbits(arrays["masks"]).astype(bool)
            for x, y, height, width in arrays["places"].tolist():
                masks.append(MaskPart((x, y), flat[start : start + height * width].reshape(height, width)))
                start += height * width
        return ViewObjects(
            tensor("boxes"),
            tensor("quads"),
            scores,
            labels,
            windows,
            None if masks is None else tuple(masks),
            tensor("nowhere"),
        )
