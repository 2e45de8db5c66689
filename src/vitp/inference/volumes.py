"""Maps of volumes: slices are read, seen, decided and kept one by one, and put back into their voxels at the end.

What is finished lies in a folder of its own, so that a killed prediction goes on there and several processes share one
volume; every block of slices gives the same bits whoever computes it and when.

    FOLDER/classes.raw           (N, H, W) uint8 class of each pixel, 255 where nothing is known        (class maps)
    FOLDER/shares.raw            (N, H, W, K) uint8 probabilities, 250 for 1, 0 where nothing is known
    FOLDER/done-RANK.txt         blocks that are written, a line each
    FOLDER/slice-NUMBER.json     what was found in a slice                                              (others)

Shapes: K classes, N slices of H × W pixels, M objects.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitp.core import distributed
from vitp.core.files import write_json
from vitp.core.reading import read_json
from vitp.core.tensors import present
from vitp.inference.maps import SHARE_SCALE, share, sparse_file, write_at
from vitp.inference.unfinished import done_parts, note_done
from vitp.io.parts import split_address
from vitp.io.volumes import Volume, open_volume
from vitp.records.channels import Channels
from vitp.records.labels import IGNORE
from vitp.records.rle import encode
from vitp.tasks.base import InputSize, TaskModel, TestSettings, check_windows
from vitp.tasks.dense import DenseModel
from vitp.tasks.ground import RasterGround
from vitp.tasks.merging import MaskPart, ObjectMerger, ViewObjects
from vitp.tasks.predict import classify, unit_objects
from vitp.tasks.views import View, views_of
from vitp.tasks.windows import SUMS_BYTES, ClassSums, Strip, Unit, batches, seen_views, without_nodata

_NEIGHBOUR = re.compile(r"@([+-]\d+)$")


def slices_around(channels: Channels | None) -> int | None:
    """Return how many slices on either side a model sees beside a slice itself; None: none."""
    if channels is None:
        return None
    found = [match for band in channels.bands if (match := _NEIGHBOUR.search(band))]
    return max((abs(int(match[1])) for match in found), default=0) or None


def trained_plane(model: TaskModel) -> str | None:
    """Return the plane of the slices that a model was trained on; None: of several, or of images that are no slices."""
    plane = model.description.get("trained", {}).get("plane")
    return None if plane is None else str(plane)


def plane_seen(trained: str | None, address: str, volume: Volume) -> tuple[str, str]:
    """Return in which plane the slices of a volume are seen, and why.

    That of the address counts first, then that of the training images, then the volume's own.
    """
    named = split_address(address)[1].plane
    if named is not None:
        return named, "as named"
    if trained is not None:
        return trained, "as in training"
    return volume.grid.plane, "across its widest step" if volume.grid.affine is not None else "as stored"


class VolumePrediction:
    """What is computed of one volume, slice by slice.

    Args:
        model: Model of any task but change.
        address: Address of the volume.
        plane: Plane of its slices.
        settings: How the model is applied; see `vitp.tasks.seen.seen_settings`.
        folder: Where finished parts lie.
        factor: On the size of slices, before they are seen.
        shares: Whether probabilities are wanted.

    Raises:
        DataError: The volume can't be read, or lacks what the model sees.
    """

    def __init__(
        self,
        model: TaskModel,
        address: str,
        plane: str,
        settings: TestSettings,
        folder: Path,
        *,
        factor: float = 1.0,
        shares: bool = False,
    ) -> None:
        check_windows(model)
        self.model, self.settings, self.folder, self.plane = model, settings, folder, plane
        self.volume, self.factor = open_volume(address), factor
        self.shape = self.volume.grid.slices_shape(plane)
        self.shares = shares and isinstance(model, DenseModel)
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def views(self) -> list[View]:
        """All looks at a slice."""
        resize: InputSize = self.settings.resize or self.model.input_size
        settings = self.settings
        if self.model.name == "classification":
            settings = settings.model_copy(update={"window": None})
        return views_of(
            *self.shape[1:], settings, resize, factor=self.factor, patch=self.model.patch(settings)
        )

    @cached_property
    def blocks(self) -> list[range]:
        """Slices that are computed together: so many that their looks fill a batch."""
        count = max(1, self.settings.batch_size // len(self.views))
        if isinstance(self.model, DenseModel):
            height, width = self.shape[1:]
            count = min(count, max(1, SUMS_BYTES // (8 * len(self.model.classes) * height * width)))
        slices = self.shape[0]
        return [range(first, min(first + count, slices)) for first in range(0, slices, count)]

    def ground(self, number: int) -> RasterGround:
        """Return a slice as the model sees it."""
        channels = self.model.backbone.in_channels
        pixels = self.volume.slice(number, self.plane, slices_around(channels))
        return RasterGround(pixels, channels, missing_bands=self.settings.missing_bands)

    def compute(self) -> None:
        """Compute what isn't done yet, this process its share of it.

        Raises:
            DataError: A slice can't be read.
        """
        done = done_parts(self.folder)
        wanted = [number for number in range(len(self.blocks)) if str(number) not in done]
        if isinstance(self.model, DenseModel):
            self._make_maps()
        # All look before the first writes: each finds the same to be done.
        distributed.barrier()
        for block in share(wanted):
            with ExitStack() as opened:
                grounds = [self.ground(number) for number in self.blocks[block]]
                for ground in grounds:
                    opened.enter_context(ground.pixels)
                if isinstance(self.model, DenseModel):
                    self._write_maps(block, self._strips(self.model, grounds))
                else:
                    for number, ground in zip(self.blocks[block], grounds, strict=True):
                        write_json(self._slice_file(number), self._found(ground))
            note_done(self.folder, str(block))

    # --- class maps

    def _strips(self, model: DenseModel, grounds: Sequence[RasterGround]) -> list[Strip]:
        """Return the classes of slices; looks at several slices share batches."""
        height, width = self.shape[1:]
        window = (0, 0, width, height)
        sums = [ClassSums((height, width), (0, width), model.device, shares=self.shares) for _ in grounds]
        looks = [
            (place, view) for place, ground in enumerate(grounds) for view in seen_views([ground], self.views)
        ]
        start = 0
        for batch in batches([view for _, view in looks], self.settings.batch_size):
            own = looks[start : start + len(batch)]
            start += len(batch)
            seen = torch.stack([view.of(grounds[place]) for place, view in own])
            for (place, view), probability_Khw in zip(own, model.probabilities(seen), strict=True):
                sums[place].add(probability_Khw, view)
        strips = []
        for total, ground in zip(sums, grounds, strict=True):
            strip = total.finish(height)
            assert strip is not None and strip.window == window
            strips.append(without_nodata(strip, [ground]))
        return strips

    def _make_maps(self) -> None:
        for path, shape in self._map_files():
            os.close(sparse_file(path, math.prod(shape)))

    def _map_files(self) -> list[tuple[Path, tuple[int, ...]]]:
        maps = [(self.folder / "classes.raw", self.shape)]
        shares = (self.folder / "shares.raw", (*self.shape, len(self.model.classes)))
        return [*maps, shares] if self.shares else list(maps)

    def _write_maps(self, block: int, strips: Sequence[Strip]) -> None:
        first = self.blocks[block].start
        bytes_of_maps = [torch.stack([strip.classes_RW for strip in strips])]
        if self.shares:
            bytes_of_maps.append(torch.stack([self._share_bytes(strip) for strip in strips]))
        for (path, shape), bytes_NHW in zip(self._map_files(), bytes_of_maps, strict=True):
            file = sparse_file(path, math.prod(shape))
            try:
                write_at(file, bytes_NHW.numpy().tobytes(), first * math.prod(shape[1:]))
                # Before the block is noted as done: what is noted is never computed again.
                os.fsync(file)
            finally:
                os.close(file)

    def _share_bytes(self, strip: Strip) -> Tensor:
        """Return (H, W, K) bytes of probabilities."""
        if strip.shares_KRW is None:
            return torch.zeros((*self.shape[1:], len(self.model.classes)), dtype=torch.uint8)
        bytes_KHW = (strip.shares_KRW * SHARE_SCALE).round().to(torch.uint8)
        bytes_KHW[:, strip.classes_RW == IGNORE] = 0
        return bytes_KHW.permute(1, 2, 0).contiguous()

    def classes_IJK(self) -> np.ndarray:
        """Return the finished class map in the volume's own voxels: a view into the file."""
        classes_NHW = np.memmap(self.folder / "classes.raw", np.uint8, "r", shape=self.shape)
        return self.volume.grid.from_slices(classes_NHW, self.plane)

    def class_slice(self, number: int) -> np.ndarray:
        """Return the finished (H, W) class map of a slice."""
        classes_NHW = np.memmap(self.folder / "classes.raw", np.uint8, "r", shape=self.shape)
        return np.array(classes_NHW[number])

    def shares_IJKK(self) -> np.ndarray:
        """Return the finished probabilities in the volume's own voxels, `SHARE_SCALE` for 1: a view into the file."""
        shape = (*self.shape, len(self.model.classes))
        shares_NHWK = np.memmap(self.folder / "shares.raw", np.uint8, "r", shape=shape)
        return self.volume.grid.from_slices(shares_NHWK, self.plane)

    # --- objects and classes of slices

    def _slice_file(self, number: int) -> Path:
        return self.folder / f"slice-{number:06d}.json"

    def slice_values(self, number: int) -> Any:
        """Return what was found in a slice: objects as `object_rows` has them, or the probability of each class.

        None: a slice that holds nothing (padding, nodata), of which no class is known.
        """
        return read_json(self._slice_file(number))

    def _found(self, ground: RasterGround) -> Any:
        if self.model.name == "classification":
            if not seen_views([ground], self.views):
                return None
            found = classify(self.model, ground, self.settings)
            return [float(value) for value in present(found.probabilities_C)]
        height = self.shape[1]
        unit = Unit(0, height, tuple(self.views))
        found_in_views = unit_objects(self.model, ground, unit, self.settings.batch_size)
        merger = ObjectMerger((height, self.shape[2]), several=len(self.views) > 1)
        if found_in_views is not None:
            merger.add(found_in_views)
        objects = merger.finish()
        if objects is None:
            return []
        kept = objects.of_rows(objects.scores_N >= self.settings.score_threshold)
        return object_rows(kept, self.model.classes, (height, self.shape[2]))


def object_rows(objects: ViewObjects, classes: Sequence[str], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the objects of a slice as JSON values, surest first: class, score, box, corners, run-length mask."""
    rows = []
    for index in objects.scores_N.argsort(descending=True, stable=True).tolist():
        row: dict[str, Any] = {
            "class": classes[int(objects.labels_N[index])],
            "score": round(float(objects.scores_N[index]), 5),
            "box_px": [round(value, 3) for value in objects.hulls_N4[index].tolist()],
        }
        if objects.quads_N8 is not None:
            row["quad_px"] = [round(value, 3) for value in objects.quads_N8[index].tolist()]
        if objects.masks is not None:
            row["mask"] = encode(_whole_mask(objects.masks[index], size))
        rows.append(row)
    return rows


def _whole_mask(part: MaskPart, size: tuple[int, int]) -> np.ndarray:
    mask_HW = np.zeros(size, bool)
    (x, y), (height, width) = part.at, part.mask_hw.shape
    mask_HW[y : y + height, x : x + width] = part.mask_hw
    return mask_HW
