"""Masks that stay on disk until they are asked for, and that can be written down as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.data.formats.drawn_masks import DrawnMask, drawn_from_json, drawn_to_json
from vitp.data.formats.volume_masks import (
    VolumeMask,
    volume_mask_from_json,
    volume_mask_to_json,
    window_from_json,
)
from vitp.io.images import load_label_pixels
from vitp.io.slide_masks import SlideScale, scaled_labels
from vitp.io.warped import Grid, label_window, warped_labels
from vitp.records.labels import IGNORE
from vitp.scenes import load_pair, load_scene

MaskWindow = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of the whole mask, x2 and y2 exclusive."""


@lru_cache(maxsize=2)
def _pixels(path: str) -> np.ndarray:
    # The crops of one large mask are mostly read one after the other.
    pixels = load_label_pixels(path)
    pixels.setflags(write=False)
    return pixels


def pack_colours(pixels_HWC: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) colours as (H, W) integers 0xRRGGBB."""
    wide = pixels_HWC.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def mask_values(pixels: np.ndarray) -> np.ndarray:
    """Return a mask file's pixels as (H, W) integers: indices as they are, colours as 0xRRGGBB."""
    return pack_colours(pixels) if pixels.ndim == 3 else pixels


@dataclass(frozen=True, slots=True)
class MaskFile:
    """Class of each pixel, from a file of indices or colours.

    Attributes:
        path: Path of the mask.
        values: (value in the file, class index) pairs; colours are 0xRRGGBB.
        window: The part that counts; None for all.
        nearest: Other values are those of the nearest value; else they are ignored (255).
        onto: The pixels of the image, where the file has others on the ground or on the slide; each pixel has the value
            of the file's nearest one, and is ignored outside of it.
    """

    path: str
    values: tuple[tuple[int, int], ...]
    window: MaskWindow | None = None
    nearest: bool = False
    onto: Grid | SlideScale | None = None

    def __call__(self) -> np.ndarray:
        """Return the mask (H, W) uint8.

        Raises:
            DataError: The file is missing or damaged.
        """
        inside_HW = None
        if isinstance(self.onto, SlideScale):
            pixels, inside_HW = scaled_labels(self.path, self.onto, self.window)
        elif self.onto is not None:
            pixels, inside_HW = warped_labels(self.path, self.onto, self.window)
        else:
            pixels = _part(self.path, self.window)
        values_HW = mask_values(pixels)
        blank_HW = None
        if values_HW.dtype.kind == "f":  # NaN, −3.4e38: what the file's tag names as nodata
            blank_HW = ~(np.abs(values_HW) < 1 << 31)
            values_HW = np.where(blank_HW, values_HW.dtype.type(0), values_HW)
        if self.nearest:
            values_HW = nearest_values(
                values_HW, [value for value, _ in self.values], colour=pixels.ndim == 3
            )
        semantic_HW = np.full(values_HW.shape, IGNORE, np.uint8)
        for value, index in self.values:
            semantic_HW[values_HW == value] = index
        if blank_HW is not None:
            semantic_HW[blank_HW] = IGNORE
        if inside_HW is not None:
            semantic_HW[~inside_HW] = IGNORE
        return semantic_HW


def nearest_values(values_HW: np.ndarray, known: Sequence[int], *, colour: bool) -> np.ndarray:
    """Return each pixel's nearest known value; of two that are equally near the one that is named first."""
    found_V, inverse = np.unique(values_HW, return_inverse=True)

    def channels(values: np.ndarray) -> np.ndarray:
        wide = values.astype(np.int64)
        return np.stack([wide >> 16 & 255, wide >> 8 & 255, wide & 255], -1) if colour else wide[:, None]

    known_K = np.asarray(known, np.int64)
    far_VK = ((channels(found_V)[:, None] - channels(known_K)[None]) ** 2).sum(-1)
    return np.asarray(known_K[far_VK.argmin(1)][inverse].reshape(values_HW.shape))


@dataclass(frozen=True, slots=True)
class ChangeFile:
    """Change of each pixel: everything in the file that isn't 0 (or dark, in a file of 0–255).

    Attributes:
        path: Path of the mask.
        window: The part that counts; None for all.
        unchanged: The value, or the values, that say "unchanged" instead; colours are 0xRRGGBB.
        onto: The pixels of the image, where the file has others on the ground; it must cover all of them.
    """

    path: str
    window: MaskWindow | None = None
    unchanged: int | tuple[int, ...] | None = None
    onto: Grid | None = None

    def __call__(self) -> np.ndarray:
        """Return the mask (H, W) bool.

        Raises:
            DataError: The file is missing or damaged.
        """
        pixels = _pixels(self.path) if self.onto is None else warped_labels(self.path, self.onto)[0]
        if self.unchanged is not None:
            return ~np.isin(mask_values(_cut(pixels, self.window)), self.unchanged)
        brightest = pixels if pixels.ndim == 2 else pixels.max(axis=-1)
        # Files of 0 and 1, of class numbers, and of 0 and 255 softened by resizing all occur.
        threshold = 127 if brightest.size and brightest.max() >= 128 else 0
        return np.asarray(_cut(brightest, self.window) > threshold)


@dataclass(frozen=True, slots=True)
class TransitionFiles:
    """Class of each pixel at two dates.

    Attributes:
        before: Of the first date.
        after: Of the second date.
    """

    before: MaskFile | DrawnMask
    after: MaskFile | DrawnMask

    def __call__(self) -> np.ndarray:
        """Return the masks (2, H, W) uint8; where one of them isn't known (255), neither is.

        Raises:
            DataError: A file is missing or damaged, or they differ in size.
        """
        first_HW, second_HW = self.before(), self.after()
        if first_HW.shape != second_HW.shape:
            names = [
                mask.path if isinstance(mask, MaskFile) else "outlines" for mask in (self.before, self.after)
            ]
            fix = "save both masks in one size"
            raise DataError(f"has another size than {names[0]}", where=names[1], fix=fix)
        both_2HW = np.stack([first_HW, second_HW])
        both_2HW[:, (both_2HW == IGNORE).any(0)] = IGNORE
        return both_2HW


@dataclass(frozen=True, slots=True)
class SceneSemantic:
    """Class of each pixel of a generated scene."""

    address: str

    def __call__(self) -> np.ndarray:
        """Return the mask (H, W) uint8."""
        return load_scene(self.address).semantic_HW.copy()  # the generator's cache is read-only


@dataclass(frozen=True, slots=True)
class SceneChangeMask:
    """Change between the two dates of a generated pair.

    Attributes:
        before: Address of the earlier date.
    """

    before: str

    def __call__(self) -> np.ndarray:
        """Return the mask (H, W) bool."""
        return load_pair(self.before).change_HW.copy()


SceneChangeMask.__name__ = "SceneChange"  # the fingerprints of earlier runs hold this name

MaskReader = (
    MaskFile | ChangeFile | TransitionFiles | DrawnMask | VolumeMask | SceneSemantic | SceneChangeMask
)


def _part(path: str, window: MaskWindow | None) -> np.ndarray:
    """Return the pixels of a mask, or of a part of it; of a large one only the part is read."""
    found = None if window is None else label_window(path, window)
    return _cut(_pixels(path), window) if found is None else found


def _cut(pixels: np.ndarray, window: MaskWindow | None) -> np.ndarray:
    if window is None:
        return pixels
    x1, y1, x2, y2 = window
    return pixels[y1:y2, x1:x2]


def windowed(
    mask: Any, window: MaskWindow
) -> MaskFile | ChangeFile | TransitionFiles | DrawnMask | VolumeMask:
    """Return the mask reader of a part of a mask.

    Raises:
        DataError: The mask is one of a generated scene.
    """
    if isinstance(mask, TransitionFiles):
        return TransitionFiles(_dated(mask.before, window), _dated(mask.after, window))
    if isinstance(mask, DrawnMask | VolumeMask):
        return mask.windowed(window)
    if not isinstance(mask, MaskFile | ChangeFile):
        raise DataError("only masks in files can be cropped", fix="ask for smaller scenes instead of crops")
    return replace(mask, window=_inner(mask.window, window))


def remapped(mask: Any, numbers: Mapping[int, int], where: str) -> MaskFile | TransitionFiles | DrawnMask:
    """Return a mask reader whose class numbers are others; 255 stays.

    Args:
        mask: From files or outlines.
        numbers: Class number → new one.
        where: Place of the image, for the error.

    Raises:
        DataError: The mask is another one.
    """
    if isinstance(mask, TransitionFiles):
        return TransitionFiles(_renumbered(mask.before, numbers), _renumbered(mask.after, numbers))
    if not isinstance(mask, MaskFile | DrawnMask):
        fix = "compile both sets with -o classes=… in one order"
        raise DataError(
            "its mask counts the classes in another order, and can't be renumbered", where=where, fix=fix
        )
    return _renumbered(mask, numbers)


def _renumbered(mask: MaskFile | DrawnMask, numbers: Mapping[int, int]) -> MaskFile | DrawnMask:
    if isinstance(mask, DrawnMask):
        return replace(mask, shapes=tuple((numbers.get(value, value), parts) for value, parts in mask.shapes))
    return replace(mask, values=tuple((value, numbers.get(index, index)) for value, index in mask.values))


def _dated(mask: MaskFile | DrawnMask, window: MaskWindow) -> MaskFile | DrawnMask:
    if isinstance(mask, DrawnMask):
        return mask.windowed(window)
    return replace(mask, window=_inner(mask.window, window))


def _inner(outer: MaskWindow | None, window: MaskWindow) -> MaskWindow:
    """Return a window of a window in pixels of the whole mask."""
    x, y = outer[:2] if outer else (0, 0)
    return window[0] + x, window[1] + y, window[2] + x, window[3] + y


def mask_to_json(mask: MaskReader, root: Path) -> dict[str, Any]:
    """Return a mask reader as JSON, its path relative to `root` where it lies in it."""
    if isinstance(mask, SceneSemantic):
        return {"scene": mask.address}
    if isinstance(mask, SceneChangeMask):
        return {"scene_change": mask.before}
    if isinstance(mask, TransitionFiles):
        return {"before": mask_to_json(mask.before, root), "after": mask_to_json(mask.after, root)}
    if isinstance(mask, DrawnMask):
        return drawn_to_json(mask)
    if isinstance(mask, VolumeMask):
        return volume_mask_to_json(mask, root)
    path = Path(mask.path)
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    row: dict[str, Any] = {"mask" if isinstance(mask, MaskFile) else "change_mask": name}
    if isinstance(mask, MaskFile):
        row["values"] = [list(pair) for pair in mask.values]
        if mask.nearest:
            row["nearest"] = True
    elif mask.unchanged is not None:
        row["unchanged"] = mask.unchanged
    if mask.window is not None:
        row["window"] = list(mask.window)
    if mask.onto is not None:
        row["onto"] = mask.onto.to_json()
    return row


def mask_from_json(row: Mapping[str, Any], root: Path) -> MaskReader:
    """Return the mask reader that `mask_to_json` wrote down.

    Raises:
        KeyError, TypeError, ValueError: The JSON isn't of that form.
    """
    if "scene" in row:
        return SceneSemantic(str(row["scene"]))
    if "scene_change" in row:
        return SceneChangeMask(str(row["scene_change"]))
    if "volumes" in row:
        return volume_mask_from_json(row, root)
    if "drawn" in row:
        return drawn_from_json(row)
    onto: Grid | SlideScale | None = None
    if "onto" in row:
        onto = (SlideScale if "steps" in row["onto"] else Grid).from_json(row["onto"])
    window = window_from_json(row)
    if "change_mask" in row:
        if isinstance(onto, SlideScale):
            raise ValueError("a mask of change lies on the ground, not on a slide")
        told = row.get("unchanged")
        several = tuple(int(value) for value in told) if isinstance(told, list) else None
        return ChangeFile(
            str(root / row["change_mask"]), window, several or (None if told is None else int(told)), onto
        )
    if "before" in row:
        before, after = (mask_from_json(row[key], root) for key in ("before", "after"))
        if not (isinstance(before, MaskFile | DrawnMask) and isinstance(after, MaskFile | DrawnMask)):
            raise ValueError("masks of two dates are files or outlines")
        return TransitionFiles(before, after)
    pairs = tuple((int(v), int(i)) for v, i in row["values"])
    return MaskFile(str(root / row["mask"]), pairs, window, bool(row.get("nearest", False)), onto)
