"""What all label readers share: options, findings, checks of boxes, splits and the order of the items."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitp import reading
from vitp.data.formats.geometry import area, as_flat, as_points, bounds, clockwise, is_convex, min_area_quad
from vitp.data.formats.splits import (
    SPLITS,
    assign_fractions,
    compile_group_regex,
    group_of,
    read_split_file,
    split_of,
)
from vitp.data.images import IMAGE_SUFFIXES, image_size
from vitp.data.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.errors import DataError

ROUNDING_PIXELS = 1.0
"""A box that overshoots the image by no more than this was rounded, which is not worth a finding."""


@dataclass(frozen=True)
class ReadOptions:
    """Options of every label format.

    Attributes:
        name: Of the set; the folder's name by default.
        licence: Of the data, as its publisher states it.
        split_file: File that names the split of each image; goes before the layout's splits.
        val: Share of validation images where neither the layout nor `split_file` says it.
        test: Share of test images, likewise.
        seed: Decides which images the shares get.
        group_regex: Finds a file name's group (its first bracket, or its match); groups are never split.
    """

    name: str = ""
    licence: str = ""
    split_file: str | Path | None = None
    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    group_regex: str | None = None


@dataclass
class SetBuilder:
    """Collects the images of one set and what was wrong with their labels.

    Attributes:
        root: The set's folder.
        options: Name, licence and splits.
        findings: Lines "file:row: …" about labels that were left out or mended.
    """

    root: Path
    options: ReadOptions
    findings: list[str] = field(default_factory=list)
    _items: list[tuple[LabelledImage, str | None]] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)

    @property
    def count(self) -> int:
        """Number of images so far."""
        return len(self._items)

    def place(self, path: str | Path, row: int | str | None = None) -> str:
        """Return "file:row" with the file relative to the set's folder."""
        path = Path(path)
        name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        return name if row is None else f"{name}:{row}"

    def note(self, where: str, text: str) -> None:
        """Add a finding."""
        self.findings.append(f"{where}: {text}")

    def size_of(self, path: Path, where: str = "") -> tuple[int, int] | None:
        """Return the width and height of an image, or None with a finding when it can't be read."""
        try:
            return image_size(path)
        except DataError as error:
            named = f"{self.place(path)} " if where else ""
            self.note(where or self.place(path), f"{named}{error.what}; image left out")
            return None

    def label(
        self,
        where: str,
        category: str,
        size: tuple[int, int],
        *,
        box: Sequence[float] | None = None,
        quad: Sequence[float] | None = None,
        polygons: Sequence[Sequence[float]] = (),
        difficult: bool = False,
    ) -> ObjectLabel | None:
        """Return the checked label, or None with a finding when there is nothing to see of it.

        Boxes are clipped to the image; the box of an oriented box or of polygons follows from them where it
        isn't given. Corners of an oriented box may lie outside the image.

        Args:
            where: "file:row" for findings.
            category: Class name.
            size: Width and height of the image.
            box: x1, y1, x2, y2 in pixels.
            quad: Four corners in pixels, in order.
            polygons: Rings in pixels.
            difficult: Marked as hard to see.
        """
        numbers = [*(box or ()), *(quad or ()), *(value for ring in polygons for value in ring)]
        if not all(math.isfinite(value) for value in numbers):
            self.note(where, f"{category} has a coordinate that is not a number; left out")
            return None
        if quad is not None:
            quad = self._checked_quad(where, category, quad)
            if quad is None:
                return None
        if box is None:
            rings = [quad] if quad is not None else polygons
            box = bounds(as_points([value for ring in rings for value in ring]))
        clipped = self._clipped(where, category, box, size)
        if clipped is None:
            return None
        return ObjectLabel(
            category,
            clipped,
            tuple(float(v) for v in quad) if quad is not None else None,
            tuple(tuple(float(v) for v in ring) for ring in polygons),
            difficult,
        )

    def _checked_quad(self, where: str, category: str, quad: Sequence[float]) -> tuple[float, ...] | None:
        points = as_points(quad)
        if not is_convex(points):
            self.note(
                where,
                f"{category}'s corners are crossed or bent inwards; replaced by the rectangle around them",
            )
            points = min_area_quad(points)
        if area(points) <= 0:
            self.note(where, f"{category} has no area; left out")
            return None
        return as_flat(clockwise(points))

    def _clipped(
        self, where: str, category: str, box: Sequence[float], size: tuple[int, int]
    ) -> tuple[float, float, float, float] | None:
        x1, y1, x2, y2 = (float(value) for value in box)
        width, height = size
        if x2 <= x1 or y2 <= y1:
            self.note(where, f"{category} has no area ({x1:g}, {y1:g}, {x2:g}, {y2:g}); left out")
            return None
        inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            self.note(
                where,
                f"{category} ({x1:g}, {y1:g}, {x2:g}, {y2:g}) lies outside the image of {width}×{height}; left out",
            )
            return None
        if max(abs(a - b) for a, b in zip(inside, (x1, y1, x2, y2), strict=True)) > ROUNDING_PIXELS:
            self.note(
                where, f"{category} ({x1:g}, {y1:g}, {x2:g}, {y2:g}) reaches outside the image; clipped"
            )
        return inside

    def add(self, path: Path, size: tuple[int, int], *, split: str | None = None, **labels: Any) -> None:
        """Add an image. Its id is its path under the set's folder without suffix.

        Args:
            path: The image.
            size: Width and height.
            split: From the layout; None when the layout doesn't say.
            **labels: Further fields of `LabelledImage`.

        Raises:
            DataError: Two images would have the same id.
        """
        place = Path(self.place(path))
        name = place.with_suffix("").as_posix()
        if name in self._ids:
            name = place.as_posix()
        if name in self._ids:
            raise DataError("image is listed twice", where=self.place(path), fix="remove one of the entries")
        self._ids.add(name)
        self._items.append((LabelledImage(name, str(path), *size, **labels), split))

    def build(
        self,
        *,
        object_classes: Iterable[str] = (),
        scene_classes: Iterable[str] = (),
        semantic_classes: Iterable[str] = (),
    ) -> LabelledSet:
        """Return the set, its items sorted by id, each with group and split.

        Raises:
            DataError: There is no usable image, or the options of the splits don't fit.
        """
        if not self._items:
            seen = (
                f"; the first of {len(self.findings)} findings: {self.findings[0]}" if self.findings else ""
            )
            raise DataError(
                f"no labelled image found{seen}", where=str(self.root), fix="check the folder and its format"
            )
        self._items.sort(key=lambda entry: entry[0].id)
        return LabelledSet(
            name=self.options.name or self.root.resolve().name,
            items=self._with_splits(),
            object_classes=tuple(object_classes),
            scene_classes=tuple(scene_classes),
            semantic_classes=tuple(semantic_classes),
            licence=self.options.licence,
            findings=tuple(self.findings),
        )

    def _with_splits(self) -> list[LabelledImage]:
        pattern = compile_group_regex(self.options.group_regex)
        items = [
            replace(item, group=item.group or group_of(Path(item.image).stem, pattern))
            for item, _ in self._items
        ]
        if pattern is not None and not any(item.group for item in items):
            raise DataError(
                f'no file name matches the group expression "{pattern.pattern}"',
                where=str(self.root),
                fix=f'write one that matches names like "{Path(items[0].image).stem}"',
            )
        if self.options.split_file is not None:
            return self._splits_from_file(items, Path(self.options.split_file))
        given = [split for _, split in self._items]
        open_items = [i for i, split in enumerate(given) if split is None]
        drawn = assign_fractions(
            [items[i].group for i in open_items],
            val=self.options.val,
            test=self.options.test,
            seed=self.options.seed,
        )
        splits = dict(zip(open_items, drawn, strict=True))
        return [replace(item, split=given[i] or splits[i]) for i, item in enumerate(items)]

    def _splits_from_file(self, items: list[LabelledImage], path: Path) -> list[LabelledImage]:
        splits = read_split_file(path)
        kept = []
        for item in items:
            names = (item.id, self.place(item.image), Path(item.image).name, Path(item.image).stem)
            split = next((splits[name] for name in names if name in splits), None)
            if split is None:
                self.note(self.place(item.image), f"not in the split file {path.name}; image left out")
            else:
                kept.append(replace(item, split=split))
        if not kept:
            raise DataError(
                "names none of the set's images",
                where=str(path),
                fix=f'write names like "{Path(items[0].image).name}"',
            )
        return kept


def list_images(folder: Path) -> list[Path]:
    """Return the image files of one folder, sorted by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def split_folders(root: Path) -> list[tuple[str | None, Path]]:
    """Return the folders of the splits under `root`, or `root` itself with None when there are none."""
    found = [(split_of(p.name), p) for p in sorted(root.iterdir()) if p.is_dir() and split_of(p.name)]
    found.sort(key=lambda entry: SPLITS.index(entry[0] or "train"))
    return list(found) or [(None, root)]


def paired_folders(root: Path, names: Sequence[Sequence[str]]) -> list[tuple[str | None, list[Path]]]:
    """Return split and folders of each place where one folder of every list of names exists.

    Looks at `root/{split}/{name}`, `root/{name}/{split}` and `root/{name}`, in this order.
    """

    def pick(base: Path) -> list[Path] | None:
        picked = [next((base / n for n in options if (base / n).is_dir()), None) for options in names]
        return [p for p in picked if p is not None] if all(picked) else None

    places: list[tuple[str | None, list[Path]]] = []
    for split, folder in split_folders(root):
        if split is not None and (picked := pick(folder)) is not None:
            places.append((split, picked))
    if places or (flat := pick(root)) is None:
        return places
    for split, folder in split_folders(flat[0]):
        others = [base / folder.name for base in flat[1:]]
        if split is not None and all(other.is_dir() for other in others):
            places.append((split, [folder, *others]))
    return places or [(None, flat)]


def read_text(path: Path) -> str:
    """Return a label file's text.

    Raises:
        DataError: It can't be read or isn't UTF-8.
    """
    try:
        return reading.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"can't be read ({error})", where=str(path), fix="check the file; text must be UTF-8"
        ) from error


def comma_list(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return "a,b" or a list of words as a tuple of words; None stays None."""
    if value is None:
        return None
    words = value.split(",") if isinstance(value, str) else value
    return tuple(word.strip() for word in words if word.strip())
