"""Pairs of dates with a mask of what changed: A/, B/ and label/ with files of the same stem (LEVIR style)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.change_masks import ChangeMasks, ChangeMeaning, understood_changes
from vitp.data.formats.mask_names import pair_files
from vitp.data.formats.pixel_masks import ChangeFile
from vitp.data.formats.walk import Folder, as_option, image_folders, role_of, shared, split_of, within
from vitp.io.warped import Grid, grid_of_image
from vitp.records.labels import LabelledSet

_NUMBERED = ("t", "time", "im", "image", "images", "img", "imgs", "date", "phase")
_SPARE_MASKS = ("diff", "changemap")
"""Names of folders of masks that may be drawings of these beside a folder with another of the names."""

_ROLES: dict[str, tuple[str, ...]] = {
    "before": ("a", "before", "pre", "old", "imagea", "imga", "imgsa", *(f"{word}1" for word in _NUMBERED)),
    "after": ("b", "after", "post", "new", "imageb", "imgb", "imgsb", *(f"{word}2" for word in _NUMBERED)),
    "mask": (
        *("label", "labels", "mask", "masks", "out", "gt", "change", "changes", "cd", "target", "targets"),
        *(
            "changemask",
            "changemasks",
            "changelabel",
            "changelabels",
            "labelcd",
            "cdlabel",
            *_SPARE_MASKS,
        ),
    ),
    "before mask": ("label1", "labels1", "mask1", "masks1", "labela", "gt1"),
    "after mask": ("label2", "labels2", "mask2", "masks2", "labelb", "gt2"),
}
"""What a folder holds → its names, in lower case without marks between words."""

_FURTHER = re.compile(rf"(?:image|img|imgs)?[c-e]|(?:{'|'.join(_NUMBERED)})[3-9]")
"""Names of folders of a third date and of those after it."""

_MODALITIES = frozenset({"flair", "t1ce", "t1c", "t1gd", "pd", "adc", "dwi"})


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
    dates_are_told = names is not None and {"before", "after"} <= names.keys()
    found: dict[tuple[str | None, tuple[str, ...]], PairPlace] = defaultdict(lambda: PairPlace(None))
    for folder in image_folders(root):
        split, role, rest = _describe(folder.path.relative_to(root).parts, roles)
        if not role:
            continue
        place = found[split, rest]
        place.split = split
        if role == "mask" and role in place.folders and role not in (names or {}):
            both = (place.folders[role], folder)
            main = [one for one in both if _bare(one.path.name) not in _SPARE_MASKS]
            if len(main) == 1:
                place.folders[role] = main[0]
                continue
        if (other := place.folders.setdefault(role, folder)) is not folder:
            what = f"{other.path.name} and {folder.path.name} may both be the {role} folder"
            fix = "name the folders with the options before=FOLDER, after=FOLDER and masks=FOLDER"
            raise DataError(what, where=str(folder.path.parent), fix=fix)
    places = [place for place in found.values() if {"before", "after"} <= place.folders.keys()]
    for place in places:
        if place.has_mask and not dates_are_told:
            _refuse_further_dates(root, place)
        base = place.folders["before"].path
        others = {path.name.lower() for path in base.parent.iterdir() if path.is_dir()} & _MODALITIES
        if base.name.lower() == "t1" and others:
            raise DataError(
                f"T1 and T2 beside {', '.join(sorted(others))} are kinds of MRI, not two dates",
                where=str(base.parent),
                fix="put one kind into images/ and its masks into masks/, or prepare the set as its publisher's",
            )
    return places


def _refuse_further_dates(root: Path, place: PairPlace) -> None:
    """Refuse a third date beside two: which of them a mask of what changed is about isn't known."""
    before, after = (place.folders[role].path for role in ("before", "after"))
    for folder in image_folders(root):
        beside = folder.path.parent == before.parent
        own, *below = folder.path.relative_to(root).parts or ("",)
        # A/train and C/train, or train/A and train/C
        name = folder.path.name if beside else own if below == [*before.relative_to(root).parts[1:]] else ""
        if _FURTHER.fullmatch(_bare(name)) and shared(place.folders["before"], folder) > 0:
            raise DataError(
                f"{within(before, root)}, {within(after, root)} and {within(folder.path, root)} are three dates, and "
                "masks say what changed between two",
                where=str(root),
                fix=f"name the two with --format pairs {as_option('before', before.name)} {as_option('after', after.name)}, or move the "
                "others away",
            )


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
    unchanged: str | int | Sequence[str | int] | None = None,
    classes: str | Sequence[str] | Mapping[str, str | int] | None = None,
) -> LabelledSet:
    """Read image pairs.

    Two masks of classes, one a date (`label1`, `label2`), give what changed and what became what: they hold a value
    that says "unchanged" in both at the same places. One mask of several values holds levels or kinds of change, such
    as damage; then `unchanged` and `classes` must say how it is meant.

    Args:
        root: Holds `{split}/{A,B,label}`, `{A,B,label}/{split}` or `A`, `B` and `label`; also `before`, `after`,
            `mask`; `T1`, `T2`; `im1`, `im2`, `label1`, `label2`.
        options: Name, licence, splits.
        before: Name of the folder of the earlier dates, where it isn't one of these.
        after: Name of the folder of the later dates.
        masks: Name of the folder of the masks.
        unchanged: Values or colours that say "unchanged".
        classes: "name=value,…" of masks of classes, levels or kinds of change; for masks of classes by default from
            classes.txt or a table of colours, else the values are the names.

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
    meaning = understood_changes(builder, [_masks_of(builder, place) for place in places], unchanged, classes)
    for place in places:
        _read_place(builder, place, meaning)
    return builder.build(change_classes=meaning.names)


def _masks_of(builder: SetBuilder, place: PairPlace) -> ChangeMasks:
    """Return the masks of a place: of what changed, and of the classes at both dates."""
    kinds = ("mask", "before mask", "after mask")
    found = [
        pair_files(builder.root, place.folders["before"].files, place.folders[kind].files)
        if kind in place.folders
        else {}
        for kind in kinds
    ]
    return ChangeMasks(*found)


def _read_place(builder: SetBuilder, place: PairPlace, meaning: ChangeMeaning) -> None:
    before, after = place.folders["before"], place.folders["after"]
    mask_folder = place.folders.get("mask") or place.folders["before mask"]
    shown = [builder.place(folder.path) for folder in (before, after, mask_folder)]
    builder.understand(f"earlier dates: {shown[0]}; later dates: {shown[1]}; what changed: {shown[2]}")
    later = pair_files(builder.root, before.files, after.files)
    own = _masks_of(builder, place)
    masks, warped = own.change or own.first, list[Path]()
    for image in before.files:
        second, mask = later.get(image), masks.get(image)
        if second is None or mask is None:
            builder.note(builder.place(image), f"no {'later date' if second is None else 'mask'}; left out")
            continue
        classes = [path for path in (own.first.get(image), own.second.get(image)) if path is not None]
        files = tuple(dict.fromkeys((image, second, mask, *classes)))
        sizes = {path: size for path in files if (size := builder.size_of(path)) is not None}
        if len(sizes) < len(files):
            continue
        try:
            moved = _on_other_pixels(sizes, image, second)
        except DataError as error:
            wrong = Path(error.where or image)
            which = "" if wrong == image else f"{builder.place(wrong)} "
            builder.lose(builder.place(image), f"{which}{error.what}; left out")
            continue
        warped += list(moved)
        builder.add(
            image,
            sizes[image],
            split=place.split,
            second_image=str(second),
            change=ChangeFile(str(mask), unchanged=meaning.unchanged, onto=moved.get(mask)),
            transition=meaning.transition(mask, classes, moved),
        )
    if warped:
        builder.understand(
            f"{len(warped)} masks have other pixels on the ground than their images ({builder.place(warped[0])} for "
            "example): each pixel of an image has the value of the nearest one"
        )
    for path in sorted({*after.files, *mask_folder.files} - {*later.values(), *masks.values()}):
        builder.note(builder.place(path), "no earlier date; left out")


def _on_other_pixels(sizes: Mapping[Path, tuple[int, int]], image: Path, second: Path) -> dict[Path, Grid]:
    """Return the pixels of the first date for each mask that has others on the ground.

    Args:
        sizes: Width and height of each file of a pair.
        image: The first date.
        second: The second date.

    Raises:
        DataError: The second date has others, a mask doesn't cover the first, or sizes differ and no place tells why.
    """
    moved: dict[Path, Grid] = {}
    for path, size in sizes.items():
        if path == image:
            continue
        grid = grid_of_image(image, sizes[image], path, size, whole=path != second)
        if grid is not None and path == second:
            fix = "bring it onto the first date's (gdalwarp)"
            raise DataError("has other pixels on the ground than the first date", where=str(path), fix=fix)
        if grid is not None:
            moved[path] = grid
        elif size != sizes[image]:
            texts = ", ".join(f"{width}×{height}" for width, height in sizes.values())
            raise DataError(f"the dates and the mask differ in size ({texts})", where=str(image))
    return moved


def two_dates(places: Sequence[PairPlace]) -> list[PairPlace]:
    """Return the places whose two dates have files of equal names."""
    return [p for p in places if shared(p.folders["before"], p.folders["after"]) > 0]
