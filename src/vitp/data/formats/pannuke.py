"""PanNuke: nuclei of five kinds in NumPy arrays, `images.npy` beside `masks.npy` and `types.npy` of each fold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.drawings import masked_part
from vitp.data.formats.drawn_masks import with_drawn_masks
from vitp.data.formats.walk import comma_list, files_below, within
from vitp.records.labels import LabelledSet

_CHANNELS = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")
"""What the channels of the masks hold, as is published; the sixth is the background."""


@dataclass(frozen=True)
class _Fold:
    """The arrays of a fold; `number` is the one behind "fold" in the path."""

    number: int | None
    images: Path
    masks: Path
    types: Path | None


def pannuke_folds(root: Path) -> list[_Fold]:
    """Return the folds: each `images.npy` with the only `masks.npy` below its folder, or below one or two above it."""
    # A pipe of such a name would be waited for.
    arrays, found = [path for path in files_below(root, ".npy") if path.is_file()], []
    for images in (path for path in arrays if path.name == "images.npy"):
        for base in (base for base in images.parents[:3] if base.is_relative_to(root)):
            beside = {
                name: [path for path in arrays if path.name == name and path.is_relative_to(base)]
                for name in ("masks.npy", "types.npy")
            }
            if len(beside["masks.npy"]) == 1:
                number = re.search(r"fold\D*(\d+)", within(images, root), re.IGNORECASE)
                types = next(iter(beside["types.npy"]), None)
                found.append(_Fold(int(number[1]) if number else None, images, beside["masks.npy"][0], types))
                break
    return found


def is_pannuke(root: Path) -> bool:
    """Return whether a folder holds arrays of images with masks of six channels."""
    try:
        return any(_array(fold.masks, (None, None, None, 6)).size for fold in pannuke_folds(root))
    except DataError:
        return False


def read_pannuke(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    semantic: bool | str = False,
    images_to: str | Path | None = None,
) -> LabelledSet:
    """Read PanNuke: each nucleus is an object, the tissue is the class of the image, and folds are those of the set.

    Args:
        root: Holds the folds: images (N, H, W, 3) of 0–255, masks (N, H, W, 6) with the number of a nucleus in the
            channel of its class, and the names of tissues (N).
        options: Name, licence, splits.
        classes: The classes in order; the places of others are ignored.
        semantic: True: masks of classes instead of objects; "both": beside them.
        images_to: Folder for the images, which are written as PNG; `vitp data compile` gives its own.

    Raises:
        DataError: An array is damaged or has another shape.
    """
    if images_to is None:
        fix = "compile it first: vitp data compile FOLDER --out FOLDER"
        raise DataError("holds its images inside of arrays", where=str(root), fix=fix)
    builder = SetBuilder(Path(images_to), replace(options, name=options.name or root.name))
    known, tissues = comma_list(classes), set[str]()
    builder.understand(f"PanNuke: channels 1–5 of the masks are {', '.join(_CHANNELS)}, as is published")
    for fold in pannuke_folds(root):
        images, masks = _array(fold.images, (None, None, None, 3)), _array(fold.masks, (None, None, None, 6))
        if images.shape[:3] != masks.shape[:3]:
            what = f"has the shape {images.shape}, its masks {masks.shape}"
            raise DataError(what, where=str(fold.images), fix="unpack the set again")
        types = _array(fold.types, (len(images),)) if fold.types else np.full(len(images), "")
        folder = builder.root / within(fold.images.parent, root)
        folder.mkdir(parents=True, exist_ok=True)
        for n, (image_HW3, mask_HW6, tissue) in enumerate(zip(images, masks, types, strict=True)):
            path, tissue = folder / f"{n:05d}.png", str(tissue)
            if image_HW3.min() < 0 or image_HW3.max() > 255:
                what = f"image {n} holds values outside of 0–255"
                raise DataError(what, where=str(fold.images), fix="unpack the set again")
            Image.fromarray(np.asarray(image_HW3).astype(np.uint8)).save(path)
            size = (images.shape[2], images.shape[1])
            found = builder.labels_of(size, within(fold.masks, root))
            for name, mask_HW in zip(_CHANNELS, np.moveaxis(np.asarray(mask_HW6), -1, 0), strict=False):
                for number in np.unique(mask_HW[mask_HW > 0]):
                    where = f"{within(fold.masks, root)}: image {n}, {name} {number:g}"
                    found.add(where, name, masked_part(mask_HW == number, (0, 0), size), known=known)
            told: dict[str, Any] = {"fold": None if fold.number is None else fold.number - 1}
            builder.add_labelled(path, found, scene=tissue or None, **told)
            tissues.add(tissue)
    built = builder.build(object_classes=known or _CHANNELS, scene_classes=sorted(tissues - {""}))
    return with_drawn_masks(built, semantic)


def _array(path: Path, shape: Sequence[int | None]) -> np.ndarray:
    """Return an array that stays on disk.

    Raises:
        DataError: It can't be read, or has another shape (None: any length).
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"can't be read ({error})", where=str(path), fix="unpack the set again") from error
    sides = zip(found.shape, shape, strict=False)
    if len(found.shape) != len(shape) or any(want not in (None, side) for side, want in sides):
        told = " × ".join("N" if side is None else str(side) for side in shape)
        raise DataError(
            f"has the shape {found.shape}, not {told}", where=str(path), fix="unpack the set again"
        )
    return np.asarray(found) if found.ndim == 1 else found
