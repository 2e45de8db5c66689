"""Groups that must not be split: equal images, and images whose names say that they belong together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from vitp.data.formats.walk import role_of, split_of, within, words_of
from vitp.data.identical import equal_files, find_equals
from vitp.io.parts import base_address, split_address
from vitp.records.labels import LabelledImage

_LEAST_IMAGES = 2
"""Images of a group, on average, from which names are taken for those of a series."""

_FEWEST_WORDS = 3
"""Words in front of numbers from which on they are taken for names of series, such as cities."""

_NUMBER_LAST = r"^(.*[A-Za-z]\d.*?)[_\-. ]*\d+$"
_FIRST_WORD = r"^([A-Za-z]+[_\-]?\d+)[_\-. ]"
_LAST_OF_NUMBERS = r"^(.*\d)[_\-. ]+\d+(?:[_\-. ]+[A-Za-z]+)?$"
_BEFORE_NUMBER = r"^(.*[A-Za-z].*?)[_\-. ]*\d+(?:[_\-. ]+[A-Za-z]+)?$"
_TEN_FRAMES = r"^(.*\d)\d$"
_PERSON = r"(?i)((?:patient|subject|case|pat|subj|sub|slide|person)[_\-. ]?\d+)"
_SERIES_WORDS = frozenset(
    (
        *("seq", "sequence", "video", "vid", "clip", "scene", "patient", "case", "subject", "slide"),
        *("flight", "track", "frame", "frames"),
    )
)
_Place = Callable[[str], str]


@dataclass(frozen=True)
class Identity:
    """Images, equal ones with the same group; the indices of those that are equal; whether pixels were compared.

    `copies` are slices of volumes whose files are equal, one of each.
    """

    items: list[LabelledImage]
    equal: tuple[tuple[int, ...], ...]
    by_pixels: bool
    copies: tuple[tuple[int, ...], ...] = ()


def join_equal(items: Sequence[LabelledImage]) -> Identity:
    """Return the images with equal ones, and the groups that they connect, as one group each.

    Both dates of a pair count: a place whose second date is the first date of another pair belongs to it.
    """
    owners: dict[str, list[int]] = defaultdict(list)
    volumes: dict[str, list[int]] = defaultdict(list)
    sizes: list[tuple[str, tuple[int, int]]] = []
    for number, item in enumerate(items):
        if split_address(item.image)[1].slice is not None:
            volumes[base_address(item.image)].append(number)
            continue
        for path in (item.image, item.second_image):
            if path is not None:
                owners[path].append(number)
                sizes.append((path, (item.width, item.height)))
    found = find_equals(sizes)
    # Slices of air are equal in all patients: of volumes the whole files are compared.
    copies = []
    for paths in equal_files([*volumes]):
        copies.append(tuple(volumes[path][0] for path in paths))
        items = _grouped(items, [tuple(sorted(n for path in paths for n in volumes[path]))])
    shared = [[*group] for group in owners.values() if len(set(group)) > 1]
    shared += [[number for path in paths for number in owners[path]] for paths in found.groups]
    equal = [tuple(sorted(set(group))) for group in shared]
    equal = [group for group in equal if len(group) > 1]
    return Identity(_grouped(items, equal), tuple(equal), found.by_pixels, tuple(copies))


def _grouped(items: Sequence[LabelledImage], equal: Sequence[tuple[int, ...]]) -> list[LabelledImage]:
    """Join the groups of equal images."""
    if not equal:
        return list(items)
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    names = [f"group {item.group}" if item.group else f"image {number}" for number, item in enumerate(items)]
    for group in equal:
        for number in group[1:]:
            parent[top(names[number])] = top(names[group[0]])
    touched = sorted({number for group in equal for number in group})
    # A joined group has the name of the first group in it, or else of its first image.
    named: dict[str, str] = {}
    for own in ([n for n in touched if items[n].group], touched):
        for number in own:
            named.setdefault(top(names[number]), items[number].group or items[number].id)
    return [
        replace(item, group=named[top(name)]) if top(name) in named else item
        for item, name in zip(items, names, strict=True)
    ]


def within_splits(
    found: Identity, before: Sequence[LabelledImage], items: Sequence[LabelledImage]
) -> list[LabelledImage]:
    """Return images of given splits with the groups that they had `before`, equal ones joined within each split.

    What is on two sides already is told, not joined: groups are for what is still to be split.
    """
    groups = {item.id: item.group for item in before}
    plain = [replace(item, group=groups[item.id]) for item in items]
    places = {item.id: number for number, item in enumerate(plain)}
    equal: list[tuple[int, ...]] = []
    for group in found.equal:
        by_split: dict[str, list[int]] = defaultdict(list)
        for number in group:
            place = places.get(found.items[number].id)
            if place is not None:
                by_split[plain[place].split].append(place)
        equal += [tuple(own) for own in by_split.values() if len(own) > 1]
    return _grouped(plain, equal)


def equal_findings(found: Identity, items: Sequence[LabelledImage], place: _Place) -> list[str]:
    """Return lines about equal images that are on several sides, or have different labels.

    Args:
        found: Equal images.
        items: The images that are left, with their splits.
        place: Path of an image → what the user knows it by.
    """
    lines = []
    split, differing = [], []
    by_id = {item.id: item for item in items}
    for group in found.equal:
        own = [by_id[found.items[n].id] for n in group if found.items[n].id in by_id]
        if len({item.split for item in own}) > 1:
            split.append(own)
        if any(_differ(first, second) for first, second in combinations(own[:20], 2)):
            differing.append(own)
    copies = [[by_id[found.items[n].id] for n in own if found.items[n].id in by_id] for own in found.copies]
    if copies := [own for own in copies if len(own) > 1]:
        torn = next((own for own in copies if len({item.split for item in own}) > 1), copies[0])
        lines.append(f"{len(copies)} volumes are there under several names, {_pair(torn, place)} for example")
    if split:
        lines.append(f"{len(split)} images are in several splits, {_pair(split[0], place)} for example")
    if differing:
        lines.append(
            f"{len(differing)} images are there several times with different labels, {_pair(differing[0], place)} "
            "for example"
        )
    return lines


def _pair(items: Sequence[LabelledImage], place: _Place) -> str:
    first = items[0]
    other = next((item for item in items[1:] if item.split != first.split), items[1])
    return f"{place(first.image)} ({first.split}) and {place(other.image)} ({other.split})"


def _differ(first: LabelledImage, second: LabelledImage) -> bool:
    """Return whether two labels of one image contradict each other; captions may differ."""
    if first.image != second.image and (first.second_image or second.second_image):
        return False  # equal only in one date
    if first.scene is not None and second.scene is not None and first.scene != second.scene:
        return True
    if first.objects is None or second.objects is None:
        return False
    return sorted((o.category, o.box) for o in first.objects) != sorted(
        (o.category, o.box) for o in second.objects
    )


@dataclass(frozen=True)
class Series:
    """A way to group images by their names: what finds the group, and that of each image ("" without one)."""

    regex: str
    groups: tuple[str, ...]


def name_series(stems: Sequence[str], classes: Sequence[str | None]) -> Series | None:
    """Return the series that names fall into ("patient01_slice3", "seq2_0001"), or None.

    Names that only count all images, and those whose words are their classes, are no series.

    Args:
        stems: Names of the files without suffix.
        classes: Class of each whole image, where it has one.
    """
    tried = [_PERSON, _FIRST_WORD, _NUMBER_LAST, _LAST_OF_NUMBERS, _BEFORE_NUMBER]
    in_series = bool(stems) and all(_SERIES_WORDS & set(words_of(stem)) for stem in stems)
    if in_series:
        tried.append(_TEN_FRAMES)  # of one video, ten frames that follow each other
    for regex in tried:
        pattern = re.compile(regex)
        groups = tuple(match[1] if (match := pattern.search(stem)) else "" for stem in stems)
        names = set(groups) - {""}
        grouped = sum(group != "" for group in groups)
        # A patient's name says what it is, however few images there are of each. Two words may be classes.
        fewest = len(names) + 1 if regex == _PERSON else _LEAST_IMAGES * len(names)
        if (
            len(names) < (2 if regex != _BEFORE_NUMBER or in_series else _FEWEST_WORDS)
            or grouped < fewest
            or 2 * grouped < len(stems)
        ):
            continue
        pairs = {(group, name) for group, name in zip(groups, classes, strict=True) if group}
        if any(classes) and len(pairs) == len(names) == len({name for _, name in pairs}):
            continue  # one series a class: the names say the classes
        return Series(regex, groups)
    return None


def series_findings(items: Sequence[LabelledImage], root: Path, *, drawn: bool) -> list[str]:
    """Return a line when groups, names or folders of images show series, and a series is on several sides.

    Args:
        items: Items with their splits.
        root: The set's folder.
        drawn: The splits were drawn by us.
    """
    plain = [item for item in items if not item.group]
    named = name_series([Path(item.image).stem for item in plain], [item.scene for item in plain])
    option = "" if named is None else f"-o group_regex='{named.regex}'"
    tried = [
        ("the images are of", "groups", items, [item.group for item in items], ""),
        ("the names fall into", "series", plain, () if named is None else named.groups, option),
        ("the images lie in", "folders", plain, folder_series(plain, root), "-o group=folder"),
    ]
    for begin, noun, own, groups, option in tried:
        splits: dict[str, set[str]] = defaultdict(set)
        for item, group in zip(own, groups, strict=False):
            if group:
                splits[group].add(item.split)
        torn = sorted(group for group, sides in splits.items() if len(sides) > 1)
        if torn:
            what = (
                f"{begin} {len(splits)} {noun} (such as {torn[0]}), and {len(torn)} of them are in several "
                "splits: if they are frames, slices or tiles of one thing,"
            )
            if drawn:
                return [f"{what} keep them together with {option}"]
            return [
                f"{what} the splits leak; {' '.join(filter(None, ('-o splits=drawn', option)))} keeps each together"
            ]
    return []


def image_folder(item: LabelledImage, root: Path) -> str:
    """Return the folder of an image under the set's folder, as its group."""
    return within(Path(item.image).parent, root)


def folder_series(items: Sequence[LabelledImage], root: Path) -> list[str]:
    """Return the folder of each image where folders with numbers in their names show series, such as patients.

    Folders that are named after splits, contents or classes show none.
    """
    folders = [Path(image_folder(item, root)) for item in items]
    names = {folder.name for folder in folders}
    shown = (
        2 <= len(names) <= len(items) / _LEAST_IMAGES
        and all(re.search(r"\d", name) and not split_of(name) and not role_of(name) for name in names)
        and not any(item.scene == folder.name for item, folder in zip(items, folders, strict=True))
    )
    return [folder.name for folder in folders] if shown else []
