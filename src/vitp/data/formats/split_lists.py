"""Lists that name the images of the splits: `train.txt` and the like, a file of the user's, and published ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vitp.core.errors import DataError
from vitp.core.reading import lines_of, parse_json
from vitp.data.formats.walk import (
    child,
    named_file,
    parse_label_json,
    read_label_lines,
    read_label_text,
    split_of,
    suffixed,
    within,
    words_of,
)
from vitp.io.images import IMAGE_SUFFIXES
from vitp.records.labels import SPLITS

_META = "meta"
_LIST_FOLDERS = (
    *("", "ImageSets/Main", "ImageSets/Segmentation", "ImageSets", "splits", "lists", "list", _META),
)
"""Where lists may lie, below the set's folder and in any case; the first place that has some counts, and after these
the folders of the images."""

_LIST_WORDS = frozenset(
    (
        *("list", "lists", "split", "set", "file", "files", "filename", "filenames", "name", "names"),
        *("id", "ids", "image", "images", "img", "imgs"),
    )
)
"""What a list of a split may be called besides it, so that its name says nothing else."""

_LIST_SUFFIXES = (".txt", ".lst")

_NUMBER = re.compile(r"-?\d{1,9}$")
"""Behind a name: the number of a class, or Pascal VOC's flag that says whether the image holds one."""


@dataclass(frozen=True)
class SplitEntry:
    """One image that a list puts into a split; the first of its possible names is as the list writes it."""

    names: tuple[str, ...]
    split: str
    where: str


def read_split_file(path: Path) -> list[SplitEntry]:
    """Return the entries of JSON `{"train": [names], …}` or of lines `name split`.

    Raises:
        DataError: The file is missing, or a row can't be understood.
    """
    text = read_label_text(path)
    found = []
    if path.suffix.lower() == ".json":
        content = parse_label_json(text, path)
        fix = 'write {"train": [names], "val": [names], "test": [names]}'
        if not isinstance(content, dict):
            raise DataError("isn't an object", where=str(path), fix=fix)
        for word, names in content.items():
            split = split_of(word)
            if split is None or not isinstance(names, list):
                raise DataError(f'"{word}" is not a split with a list of names', where=str(path), fix=fix)
            found += [SplitEntry((str(name),), split, f"{path.name}: {word}") for name in names]
        return found
    for row, line in enumerate(lines_of(text), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, word = re.sub(r"[,;\t]", " ", line).strip().rpartition(" ")
        split = split_of(word)
        if split is None or not name:
            what = "row doesn't name an image and its split"
            raise DataError(what, where=f"{path}:{row}", fix='write lines like "image_1.png train"')
        found.append(SplitEntry((name.strip(),), split, f"{path.name}:{row}"))
    return found


def read_split_list(path: Path, split: str, root: Path) -> list[SplitEntry]:
    """Return the entries of a list with one image a line, each line once.

    A line may hold more behind the name, such as a class, the flag of Pascal VOC or the other images of a pair; the
    name is the longest part that means an image. In a sub-folder it may be one under that folder. Lines with # are
    comments. In JSON the names stand in a list, or in one for each class.

    Raises:
        DataError: The list can't be read.
    """
    entries: dict[str, SplitEntry] = {}
    folder = within(path.parent, root)
    content = _json_names(path)
    lines = read_label_lines(path) if content is None else content
    for row, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        words = text.split()
        flagged = len(words) > 1 and _NUMBER.match(words[-1])
        cut = text[: -len(words[-1])].rstrip(" \t,;") if flagged else text
        own = (text, cut, words[0])
        names = tuple(dict.fromkeys((*own, *(f"{folder}/{name}" for name in own))))
        entries.setdefault(text, SplitEntry(names, split, f"{within(path, root)}:{row}"))
    return list(entries.values())


def without_suffix(place: str) -> str:
    """Return a path without the suffix of an image or a text."""
    path = PurePosixPath(place)
    return path.with_suffix("").as_posix() if path.suffix.lower() in (*IMAGE_SUFFIXES, ".txt") else place


def find_split_lists(root: Path, places: Iterable[str] = ()) -> list[tuple[Path, list[SplitEntry]]]:
    """Return the lists of the splits in a set's folder, or beside its images, with their entries.

    A text beside an image of the same name is no list.

    Raises:
        DataError: A list can't be read.
    """
    stems = {without_suffix(place) for place in places}
    beside = sorted({(root / place).parent for place in stems} - {root})
    usual = [[folder] for name in _LIST_FOLDERS if (folder := _below(root, name)) is not None]
    for bases in (*usual, beside):
        found = [
            path
            for base in bases
            for path in (sorted(base.iterdir()) if base.is_dir() else ())
            if path.suffix.lower() in _LIST_SUFFIXES
            and split_of(path.stem)
            and without_suffix(within(path, root)) not in stems
        ] or [path for base in bases for path in _json_lists(base)]
        if found:
            named = [(split_of(path.stem) or "train", path) for path in found]
            named.sort(key=lambda entry: SPLITS.index(entry[0]))
            return [(path, read_split_list(path, split, root)) for split, path in named]
    return _flagged_list(root)


def other_lists(root: Path) -> list[Path]:
    """Return the texts in a set's folder, or where lists usually lie, that are called after a split and other words."""
    folders = dict.fromkeys(folder for name in _LIST_FOLDERS if (folder := _below(root, name)) is not None)
    texts = [path for folder in folders for suffix in _LIST_SUFFIXES for path in suffixed(folder, suffix)]
    return [path for path in texts if not split_of(path.stem) and any(map(split_of, words_of(path.stem)))]


def worded_lists(root: Path) -> list[tuple[Path, str]]:
    """Return lists whose names say splits in other words (`train_val_list.txt`, `test_list.txt`), each with its split.

    Nothing where they aren't one list a split, of two splits at least, or say more (`train_cats.txt`).
    """
    found: dict[str, Path] = {}
    for path in other_lists(root):
        words = [split_of(word) or word for word in words_of(path.stem)]
        said = {word for word in words if word in SPLITS}
        split = "train" if said == {"train", "val"} else next(iter(said)) if len(said) == 1 else None
        if split is None or split in found or not {*words} - said <= _LIST_WORDS:
            return []
        found[split] = path
    return [(found[split], split) for split in SPLITS if split in found] if len(found) > 1 else []


def _json_names(path: Path) -> list[str] | None:
    """Return the names in a JSON list, or in those of an object {class: [names]}; None where it holds others."""
    if path.suffix.lower() != ".json":
        return None
    try:
        content = parse_json(read_label_text(path))
    except json.JSONDecodeError:
        return None
    lists = [*content.values()] if isinstance(content, dict) else [content]
    names = [name for own in lists if isinstance(own, list) for name in own if isinstance(name, str)]
    told = all(isinstance(own, list) for own in lists) and len(names) == sum(map(len, lists))
    return names if names and told else None


def _json_lists(folder: Path) -> list[Path]:
    """Return the lists of the splits in JSON; only in `meta/` are files called `train.json` no annotations."""
    if folder.name.lower() != _META:
        return []
    found = (path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".json")
    return [path for path in found if split_of(path.stem) and _json_names(path) is not None]


def _flagged_list(root: Path) -> list[tuple[Path, list[SplitEntry]]]:
    """Return CUB's lists: `images.txt` numbers the images, `train_test_split.txt` says which are for training.

    Raises:
        DataError: A row isn't a number and a name, or a number and 0 or 1.
    """
    images, flags = (named_file(root, (name,)) for name in ("images.txt", "train_test_split.txt"))
    if images is None or flags is None:
        return []
    names = {number: name for _, number, name in _pairs(images)}
    entries = []
    for row, number, flag in _pairs(flags):
        if number not in names or flag not in ("0", "1"):
            what = f'"{number} {flag}" is not the number of an image in {images.name} and 1 (training) or 0 (test)'
            raise DataError(what, where=f"{flags}:{row}", fix="mend the row, or -o splits=drawn")
        split = "train" if flag == "1" else "test"
        entries.append(SplitEntry((names[number],), split, f"{within(flags, root)}:{row}"))
    return [(flags, entries)]


def _pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the number of each row of a list, and what stands before and behind its first blank."""
    for row, line in enumerate(read_label_lines(path), 1):
        number, _, rest = line.strip().partition(" ")
        if number:
            yield row, number, rest.strip()


def _below(root: Path, name: str) -> Path | None:
    """Return the folder of a path under `root`, whose parts may be written in any case."""
    folder: Path | None = root
    for part in PurePosixPath(name).parts:
        folder = None if folder is None else child(folder, (part,))
    return folder
