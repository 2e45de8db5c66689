"""Lists of names that say which image goes into train, val and test: which image a name means, and what contradicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vitp.core.errors import DataError
from vitp.data.formats.splits import SplitEntry, read_split_text, split_of
from vitp.io.images import IMAGE_SUFFIXES
from vitp.records.labels import SPLITS

LIST_FOLDERS = ("", "ImageSets/Main", "ImageSets/Segmentation", "ImageSets", "splits", "lists", "list")
"""Where lists may lie, below the set's folder; the first place that has some counts."""

_FLAGS = ("-1", "0", "1")
"""Behind a name of Pascal VOC: whether the image holds a class."""

_Note = Callable[[str, str], None]


@dataclass
class Names:
    """The images of a set, found by what a list may call them.

    An image is found by its path under the set's folder, by the end of that path and by its name, each with or without
    suffix.

    Args:
        places: Paths under the set's folder, "/" between the parts.
    """

    places: Sequence[str]
    _by_name: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for index, place in enumerate(self.places):
            for name in {place, _without_suffix(place)}:
                parts = PurePosixPath(name).parts
                for begin in range(len(parts)):
                    self._by_name["/".join(parts[begin:])].append(index)

    def exact(self, name: str) -> int | None:
        """Return the image whose whole path a name is or ends with, or None: lists may come from another machine."""
        parts = PurePosixPath(plain_name(name)).parts
        for begin in range(len(parts)):
            tail = "/".join(parts[begin:])
            for index in self._by_name.get(tail, ()):
                if tail in (self.places[index], _without_suffix(self.places[index])):
                    return index
        return None

    def similar(self, name: str) -> list[int]:
        """Return the images whose path ends like a name, those that share the most parts only."""
        parts = PurePosixPath(plain_name(name)).parts
        for begin in range(len(parts)):
            if found := self._by_name.get("/".join(parts[begin:])):
                return found
        return []


def match_entries(
    entries: Sequence[SplitEntry], places: Sequence[str]
) -> tuple[list[str | None], list[SplitEntry]]:
    """Return the split of each image, and the entries that mean no image.

    Names that are whole paths are looked up first: what they mean can't be meant by the end of another path.

    Args:
        entries: Of the lists.
        places: Paths of the images under the set's folder.

    Raises:
        DataError: A name means two images, or an image is in two splits.
    """
    names = Names(places)
    meant: list[SplitEntry | None] = [None] * len(places)
    open_entries = []
    for entry in entries:
        index = next((i for text in entry.names if (i := names.exact(text)) is not None), None)
        if index is None:
            open_entries.append(entry)
        else:
            _set(meant, index, entry, places)
    exact = {index for index, entry in enumerate(meant) if entry is not None}
    missing = []
    for entry in open_entries:
        found = next((hits for text in entry.names if (hits := names.similar(text))), [])
        if "/" in plain_name(entry.name):  # its folders say that it is another image of the same name
            found = [index for index in found if index not in exact]
        if len(found) > 1:
            raise DataError(
                f'"{entry.name}" may be {places[found[0]]} or {places[found[1]]}',
                where=entry.where,
                fix="write the path under the set's folder",
            )
        if found:
            _set(meant, found[0], entry, places)
        else:
            missing.append(entry)
    return [entry.split if entry is not None else None for entry in meant], missing


def lists_or_layout(
    root: Path, places: Sequence[str], layout: Sequence[str | None], note: _Note
) -> tuple[list[str | None], str]:
    """Return the split of each image from the lists in the set's folder, else from its folders, and which it was.

    Args:
        root: The set's folder.
        places: Paths of the images under it.
        layout: Split that each image's folder or file names, if any.
        note: Takes findings: where, text.

    Raises:
        DataError: A name means two images, an image is in two lists, or a list contradicts a folder.
    """
    lists = [(path, entries) for path, entries in find_lists(root, places) if entries]
    named = [entry for path, entries in lists if path.stem.lower() != "trainval" for entry in entries]
    both = [entry for path, entries in lists if path.stem.lower() == "trainval" for entry in entries]
    listed, missing = match_entries(named, places)
    # "trainval" only says something where train and val don't.
    for index, split in enumerate(match_entries(both, places)[0]):
        if split and listed[index] == "test":
            raise DataError(
                "is in the lists trainval and test", where=places[index], fix="keep it in one of them"
            )
        listed[index] = listed[index] or split
    if not any(listed):
        if lists:
            note(_place(lists[0][0], root), "names none of the set's images; not taken as a list of a split")
        return list(layout), "the folders and files that are named after the splits"
    _note_missing(missing, note)
    for place, split, own in zip(places, listed, layout, strict=True):
        if split and own and split != own:
            raise DataError(
                f"is in the list of {split} and in the folder of {own}",
                where=place,
                fix="move the image or mend the list, or say it with the option split_file",
            )
    shown = ", ".join(path.name for path, _ in lists)
    origin = f"the {'list' if len(lists) == 1 else 'lists'} {shown}"
    if all(entry.split != "train" for entry in (*named, *both)):
        # Some publishers list only what is held out.
        return [split or own or "train" for split, own in zip(listed, layout, strict=True)], (
            f"{origin}; the others train"
        )
    return listed, origin


def find_lists(root: Path, places: Iterable[str] = ()) -> list[tuple[Path, list[SplitEntry]]]:
    """Return the lists of the splits in a set's folder with their entries.

    A text beside an image of the same name is no list.

    Raises:
        DataError: A list can't be read.
    """
    stems = {_without_suffix(place) for place in places}
    for folder in LIST_FOLDERS:
        base = root / folder
        if not base.is_dir():
            continue
        found = {
            path.stem.lower(): path
            for path in sorted(base.glob("*.txt"))
            if split_of(path.stem) and _without_suffix(_place(path, root)) not in stems
        }
        if found:
            named = [(split_of(path.stem) or "train", path) for path in found.values()]
            named.sort(key=lambda entry: SPLITS.index(entry[0]))
            return [(path, read_list(path, split, root)) for split, path in named]
    return []


def read_list(path: Path, split: str, root: Path) -> list[SplitEntry]:
    """Return the entries of a list with one image a line, each line once.

    A line may hold more behind the name, such as the flag of Pascal VOC or the other images of a pair; the name is the
    longest part that means an image. Lines with # are comments.

    Raises:
        DataError: The list can't be read.
    """
    entries: dict[str, SplitEntry] = {}
    for row, line in enumerate(read_split_text(path).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        words = text.split()
        cut = text[: -len(words[-1])].rstrip() if len(words) > 1 and words[-1] in _FLAGS else text
        names = tuple(dict.fromkeys((text, cut, words[0])))
        entries.setdefault(text, SplitEntry(names, split, f"{_place(path, root)}:{row}"))
    return list(entries.values())


def _set(meant: list[SplitEntry | None], index: int, entry: SplitEntry, places: Sequence[str]) -> None:
    before = meant[index]
    if before is not None and before.split != entry.split:
        raise DataError(
            f"is in {before.split} ({before.where}) and in {entry.split} ({entry.where})",
            where=places[index],
            fix="keep it in one of them",
        )
    meant[index] = entry


def _note_missing(missing: Sequence[SplitEntry], note: _Note) -> None:
    by_file: dict[str, list[SplitEntry]] = defaultdict(list)
    for entry in missing:
        by_file[entry.where.rpartition(":")[0]].append(entry)
    for file, entries in by_file.items():
        count = f"{len(entries):,} {'entry means' if len(entries) == 1 else 'entries mean'}"
        first = f"{entries[0].where.rpartition(':')[2]}: {entries[0].name}"
        note(file, f"{count} no labelled image of the set (the first in row {first})")


def plain_name(name: str) -> str:
    """Return a path with "/" between its parts, without leading "/", "./" and "../"."""
    text = name.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)


def _without_suffix(place: str) -> str:
    path = PurePosixPath(place)
    return path.with_suffix("").as_posix() if path.suffix.lower() in (*IMAGE_SUFFIXES, ".txt") else place


def _place(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
