"""Pairs of dates with a mask of what changed: A/, B/ and label/ with files of the same stem (LEVIR style)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.mask_classes import parse_value
from vitp.data.formats.mask_layouts import pair_files
from vitp.data.formats.pixel_masks import ChangeFile, mask_values
from vitp.data.formats.walk import Folder, image_folders, role_of, shared, split_of
from vitp.io.images import load_label_pixels
from vitp.records.labels import LabelledSet

_NUMBERED = ("t", "time", "im", "image", "images", "img", "imgs", "date", "phase")
_ROLES: dict[str, tuple[str, ...]] = {
    "before": ("a", "before", "pre", "imagea", *(f"{word}1" for word in _NUMBERED)),
    "after": ("b", "after", "post", "imageb", *(f"{word}2" for word in _NUMBERED)),
    "mask": (
        *("label", "labels", "mask", "masks", "out", "gt", "change", "changes", "cd", "target", "targets"),
        *("changemask", "changemasks", "changelabel", "changelabels", "labelcd", "cdlabel"),
    ),
    "before mask": ("label1", "labels1", "mask1", "masks1", "labela", "gt1"),
    "after mask": ("label2", "labels2", "mask2", "masks2", "labelb", "gt2"),
}
"""What a folder holds → its names, in lower case without marks between words."""

_MODALITIES = frozenset({"flair", "t1ce", "t1c", "t1gd", "pd", "adc", "dwi"})
_LOOKED_AT = 50


@dataclass
class PairPlace:
    """The folders of one split (or one scene) of a set of pairs, by what they hold."""

    split: str | None
    folders: dict[str, Folder] = field(default_factory=dict)

    @property
    def has_mask(self) -> bool:
        """Whether what changed is known."""
        return "mask" in self.folders or {"before mask", "after mask"} <= self.folders.keys()


def find_pair_places(root: Path, names: dict[str, str] | None = None) -> list[PairPlace]:
    """Return the places that hold both dates, whether with a mask or without.

    Args:
        root: The set's folder.
        names: What a folder holds → its name, where it isn't one of the usual.

    Raises:
        DataError: Two folders may be the same date, or T1 and T2 are kinds of MRI.
    """
    roles = {role: (_bare(names[role]),) if names and role in names else _ROLES[role] for role in _ROLES}
    found: dict[tuple[str | None, tuple[str, ...]], PairPlace] = defaultdict(lambda: PairPlace(None))
    for folder in image_folders(root):
        split, role, rest = _describe(folder.path.relative_to(root).parts, roles)
        if not role:
            continue
        place = found[split, rest]
        place.split = split
        if (other := place.folders.setdefault(role, folder)) is not folder:
            what = f"{other.path.name} and {folder.path.name} may both be the {role} folder"
            fix = "name the folders with the options before=FOLDER, after=FOLDER and masks=FOLDER"
            raise DataError(what, where=str(folder.path.parent), fix=fix)
    places = [place for place in found.values() if {"before", "after"} <= place.folders.keys()]
    for place in places:
        base = place.folders["before"].path
        others = {path.name.lower() for path in base.parent.iterdir() if path.is_dir()} & _MODALITIES
        if base.name.lower() == "t1" and others:
            raise DataError(
                f"T1 and T2 beside {', '.join(sorted(others))} are kinds of MRI, not two dates",
                where=str(base.parent),
                fix="put one kind into images/ and its masks into masks/, or prepare the set as its publisher's",
            )
    return places


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _describe(
    parts: Sequence[str], roles: dict[str, tuple[str, ...]]
) -> tuple[str | None, str, tuple[str, ...]]:
    split, role, rest = None, "", []
    for part in parts:
        pieces = re.split(r"[_\-. ]+", part)
        name = _bare("".join(piece for piece in pieces if not split_of(piece)))
        own = next((key for key, known in roles.items() if name in known), "")
        named = split_of(part) or (next(filter(None, map(split_of, pieces)), None) if own else None)
        split = split or named
        if own and not role:
            role = own
        elif not named and role_of(part) != "image":
            rest.append(part.lower())
    return split, role, tuple(rest)


def read_pairs(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    before: str | None = None,
    after: str | None = None,
    masks: str | None = None,
    unchanged: str | int | None = None,
) -> LabelledSet:
    """Read image pairs.

    Two masks of classes, one a date (`label1`, `label2`), give what changed, too: they hold a value that says
    "unchanged" in both at the same places.

    Args:
        root: Holds `{split}/{A,B,label}`, `{A,B,label}/{split}` or `A`, `B` and `label`; also `before`, `after`,
            `mask`; `T1`, `T2`; `im1`, `im2`, `label1`, `label2`.
        options: Name, licence, splits.
        before: Name of the folder of the earlier dates, where it isn't one of these.
        after: Of the later dates.
        masks: Of the masks.
        unchanged: Value or colour that says "unchanged" in masks of classes.

    Raises:
        DataError: The folders aren't there, or the masks can't be understood.
        ConfigError: `unchanged` is no value.
    """
    builder = SetBuilder(root, options)
    named = {key: name for key, name in (("before", before), ("after", after), ("mask", masks)) if name}
    places = [place for place in find_pair_places(root, named) if place.has_mask]
    if not places:
        fix = "put the files into them, or name yours with the options before, after and masks"
        raise DataError("has no A/, B/ and label/ folders", where=str(root), fix=fix)
    for place in places:
        _read_place(builder, place, unchanged)
    return builder.build()


def _read_place(builder: SetBuilder, place: PairPlace, unchanged: str | int | None) -> None:
    before, after = place.folders["before"], place.folders["after"]
    mask_folder = place.folders.get("mask") or place.folders["before mask"]
    shown = [builder.place(folder.path) for folder in (before, after, mask_folder)]
    builder.understand(f"earlier dates: {shown[0]}; later dates: {shown[1]}; what changed: {shown[2]}")
    later = pair_files(builder.root, before.files, after.files)
    masks = pair_files(builder.root, before.files, mask_folder.files)
    try:
        value = None if unchanged is None else parse_value(str(unchanged))
    except ValueError as error:
        fix = "write 0, white, #ffffff or 255:255:255"
        raise ConfigError(f'"{unchanged}" is no value', where="unchanged", fix=fix) from error
    if "mask" not in place.folders and value is None:
        value = _unchanged_value(builder, place, masks)
    for image in before.files:
        second, mask = later.get(image), masks.get(image)
        if second is None or mask is None:
            builder.note(builder.place(image), f"no {'later date' if second is None else 'mask'}; left out")
            continue
        sizes = [builder.size_of(path) for path in (image, second, mask)]
        if sizes[0] is None or None in sizes:
            continue
        if len(set(sizes)) > 1:
            texts = ", ".join(f"{s[0]}×{s[1]}" for s in sizes if s)
            builder.lose(builder.place(image), f"the dates and the mask differ in size ({texts}); left out")
            continue
        change = ChangeFile(str(mask), unchanged=value)
        builder.add(image, sizes[0], split=place.split, second_image=str(second), change=change)
    for path in sorted({*after.files, *mask_folder.files} - {*later.values(), *masks.values()}):
        builder.note(builder.place(path), "no earlier date; left out")


def _unchanged_value(builder: SetBuilder, place: PairPlace, masks: dict[Path, Path]) -> int:
    """Return the value that both masks of classes have at the same places."""
    first = place.folders["before mask"]
    second = pair_files(builder.root, first.files, place.folders["after mask"].files)
    possible: set[int] | None = None
    for mask in islice((m for m in masks.values() if m in second), _LOOKED_AT):
        one_HW, other_HW = (mask_values(load_label_pixels(path)) for path in (mask, second[mask]))
        if one_HW.shape != other_HW.shape:
            continue
        occurring = set(np.unique(one_HW).tolist()) & set(np.unique(other_HW).tolist())
        if possible is not None:
            occurring &= possible
        possible = {
            value for value in occurring if ((one_HW == value) == (other_HW == value)).all()
        } or possible
    if possible is None or len(possible) != 1:
        several = "no value" if not possible else "more than one value"
        raise DataError(
            f"{several} of label1 and label2 is at the same places in both, so what says unchanged isn't known",
            where=str(first.path.parent),
            fix="name it with the option unchanged, as 0 or white",
        )
    value = possible.pop()
    text = f"#{value:06x}" if value > 255 else str(value)
    builder.understand(f"{text} in the masks of classes says unchanged; which class became which is not read")
    return value


def two_dates(places: Sequence[PairPlace]) -> list[PairPlace]:
    """Return the places whose two dates have files of equal names."""
    return [p for p in places if shared(p.folders["before"], p.folders["after"]) > 0]
