"""Splits of the images: lists of names beside the images, a file of the user's, or fractions.

A set's lists and folders may contradict each other, and a name may mean several images; both are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.split_lists import (
    SplitEntry,
    find_split_lists,
    other_lists,
    read_split_list,
    without_suffix,
    worded_lists,
)
from vitp.data.formats.walk import Note, images_below, within

FROM_FOLDERS = "the folders, files and columns that say the splits"
"""What named splits that no list names."""

_LOOKED_AT = 50
"""Lines that tell whether a text names images."""


# --- fractions


def compile_group_regex(text: str | None) -> re.Pattern[str] | None:
    """Compile the option `group_regex`.

    Raises:
        ConfigError: It isn't a regular expression.
    """
    if not text:
        return None
    try:
        return re.compile(text)
    except re.error as error:
        what = f'"{text}" is not a regular expression ({error})'
        raise ConfigError(what, where="group_regex", fix=r"write one like ^P\d+") from error


def group_in(stem: str, pattern: re.Pattern[str] | None) -> str:
    """Return the group in a file's name: the pattern's first bracket or its whole match, "" without one."""
    if pattern is None or (match := pattern.search(stem)) is None:
        return ""
    return match.group(1) if pattern.groups and match.group(1) is not None else match.group(0)


def assign_fractions(groups: Sequence[str], *, val: float, test: float, seed: int) -> list[str]:
    """Return the split of each image, with all images of a group on one side.

    The largest groups are placed first, each where most images are missing; so the shares are met as nearly
    as whole groups allow. With as many groups as splits no asked split stays empty.

    Args:
        groups: Group of each image. "" stands alone.
        val: Share of the images for validation, 0–1.
        test: Share of the images for the test, 0–1.
        seed: Decides which groups.

    Raises:
        ConfigError: The shares are negative or leave nothing for training.
    """
    if min(val, test) < 0 or val + test >= 1:
        what = f"val={val} and test={test} leave nothing for training"
        raise ConfigError(what, where="split", fix="let val + test be below 1")
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[f"group {group}" if group else f"image {i}"].append(i)

    def order(name: str) -> tuple[int, bytes]:
        key = f"{seed}/{name}".encode(errors="surrogatepass")
        return -len(members[name]), hashlib.sha256(key).digest()

    wanted = {"train": 1 - val - test, "val": val, "test": test}
    missing = {split: share * len(groups) for split, share in wanted.items() if share > 0}
    chosen: dict[str, list[str]] = {split: [] for split in missing}
    for name in sorted(members, key=order):
        split = max(missing, key=lambda split: missing[split])
        chosen[split].append(name)
        missing[split] -= len(members[name])
    if len(members) >= len(chosen):
        _fill_empty(chosen, members)
    where = {i: split for split, names in chosen.items() for name in names for i in members[name]}
    return [where[i] for i in range(len(groups))]


def _fill_empty(chosen: dict[str, list[str]], members: Mapping[str, list[int]]) -> None:
    """Give each empty split the smallest group of the split that has most groups."""
    for names in chosen.values():
        if not names:
            donor = max(chosen, key=lambda other: len(chosen[other]))
            smallest = min(chosen[donor], key=lambda name: len(members[name]))
            chosen[donor].remove(smallest)
            names.append(smallest)


# --- lists of names


class _Names:
    """The images of a set by what a list may call them: their paths and the ends of these, without suffix, too."""

    def __init__(self, places: Sequence[str]) -> None:
        self.places = places
        self.by_name: dict[str, list[int]] = defaultdict(list)
        for index, place in enumerate(places):
            for name in {place, without_suffix(place)}:
                for tail in _tails(name):
                    self.by_name[tail].append(index)

    def exact(self, name: str) -> int | None:
        """Return the image whose whole path a name is or ends with, or None: lists may come from another machine."""
        for tail in _tails(_plain(name)):
            for index in self.by_name.get(tail, ()):
                if tail in (self.places[index], without_suffix(self.places[index])):
                    return index
        return None

    def similar(self, name: str) -> list[int]:
        """Return the images whose path ends like a name, those that share the most parts only."""
        return next((found for tail in _tails(_plain(name)) if (found := self.by_name.get(tail))), [])


def _tails(name: str) -> list[str]:
    """Return the ends of a path, the whole one first ("a/b/c" → a/b/c, b/c, c)."""
    parts = PurePosixPath(name).parts
    return ["/".join(parts[begin:]) for begin in range(len(parts))]


def _plain(name: str) -> str:
    """Return a path with "/" between its parts, without leading "/", "./" and "../"."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def match_entries(
    entries: Sequence[SplitEntry], places: Sequence[str]
) -> tuple[list[str | None], list[SplitEntry]]:
    """Return the split of each image, and the entries that mean no image.

    Names that are whole paths are looked up first: what they mean can't be meant by the end of another path. Places are
    paths under the set's folder.

    Raises:
        DataError: A name means two images, or an image is in two splits.
    """
    names = _Names(places)
    meant: dict[int, SplitEntry] = {}

    def take(index: int, entry: SplitEntry) -> None:
        before = meant.setdefault(index, entry)
        if before.split != entry.split:
            what = f"is in {before.split} ({before.where}) and in {entry.split} ({entry.where})"
            raise DataError(what, where=places[index], fix="keep it in one of them")
        meant[index] = entry

    open_entries = []
    for entry in entries:
        index = next((i for text in entry.names if (i := names.exact(text)) is not None), None)
        if index is None:
            open_entries.append(entry)
        else:
            take(index, entry)
    exact = set(meant)
    missing = []
    for entry in open_entries:
        found = next((hits for text in entry.names if (hits := names.similar(text))), [])
        if "/" in _plain(entry.names[0]):  # its folders say that it is another image of the same name
            found = [index for index in found if index not in exact]
        if len(found) > 1:
            what = f'"{entry.names[0]}" may be {places[found[0]]} or {places[found[1]]}'
            raise DataError(what, where=entry.where, fix="write the path under the set's folder")
        if found:
            take(found[0], entry)
        else:
            missing.append(entry)
    return [meant[i].split if i in meant else None for i in range(len(places))], missing


def splits_from_lists(
    root: Path,
    places: Sequence[str],
    layout: Sequence[str | None],
    note: Note,
    *,
    partial: bool = False,
    first: bool = False,
) -> tuple[list[str | None], str]:
    """Return the split of each image from the lists in the set's folder, else from its layout, and which it was.

    Args:
        root: The set's folder.
        places: The labelled images.
        layout: Splits of their folders.
        note: Takes findings.
        partial: Images that the lists name may be missing.
        first: The lists count where folders contradict them.

    Raises:
        DataError: A name means no image or two, an image is in two lists, or a list contradicts a folder.
    """
    lists = [(path, entries) for path, entries in find_split_lists(root, places) if entries]
    if not lists and not any(layout):
        told = worded_lists(root)
        if told and {within(path, root) for path, _ in told} == {*unused_lists(root, places)}:
            guessed = [(path, read_split_list(path, split, root)) for path, split in told]
            found = match_entries([entry for _, entries in guessed for entry in entries], places)[0]
            # Lists whose names only may be those of splits count where they divide what is there.
            lists = guessed if 2 * sum(map(bool, found)) > len(places) else []
    named = [entry for path, entries in lists if path.stem.lower() != "trainval" for entry in entries]
    both = [entry for path, entries in lists if path.stem.lower() == "trainval" for entry in entries]
    listed, missing = match_entries(named, places)
    # "trainval" only says something where train and val don't.
    for index, split in enumerate(match_entries(both, places)[0]):
        if split and listed[index] == "test":
            what = "is in the lists trainval and test"
            raise DataError(what, where=places[index], fix="keep it in one of them")
        listed[index] = listed[index] or split
    check_missing(root, places, missing, note, partial=partial)
    if not any(listed):
        return list(layout), FROM_FOLDERS
    for place, split, own in zip(places, listed, layout, strict=True):
        if split and own and split != own and not first:
            fix = "move the image or mend the list, or say which counts: -o splits=lists or -o splits=folders"
            raise DataError(f"is in the list of {split} and in the folder of {own}", where=place, fix=fix)
    shown = ", ".join(path.name for path, _ in lists)
    origin = f"the {'list' if len(lists) == 1 else 'lists'} {shown}"
    if all(entry.split != "train" for entry in (*named, *both)):
        # Some publishers list only what is held out.
        filled: list[str | None] = [
            split or own or "train" for split, own in zip(listed, layout, strict=True)
        ]
        return filled, f"{origin}; the others train"
    return listed, origin


def unused_lists(root: Path, places: Sequence[str]) -> list[str]:
    """Return the texts that are called after a split among other words, and name images of the set.

    Only `train.txt` and the like are known to be lists; of `train_list.txt` one has to be told.
    """
    names = _Names(places)
    found = []
    for path in other_lists(root):
        entries = read_split_list(path, "train", root)[:_LOOKED_AT]
        hits = sum(any(names.similar(name) for name in entry.names) for entry in entries)
        if hits and 2 * hits >= len(entries):
            found.append(within(path, root))
    return found


def check_missing(
    root: Path, places: Sequence[str], missing: Sequence[SplitEntry], note: Note, *, partial: bool
) -> None:
    """Note the entries of lists that mean no labelled image.

    Args:
        root: The set's folder.
        places: The labelled images.
        missing: Entries that mean none of them.
        note: Takes findings.
        partial: They may mean images that aren't there.

    Raises:
        DataError: An entry means no image, with or without labels.
    """
    if missing and not partial:
        outside = {path.parent for path in map(Path, places) if path.is_absolute()}
        there = _Names([within(path, root) for base in (root, *outside) for path in images_below(base)])
        gone = [entry for entry in missing if not any(there.similar(name) for name in entry.names)]
        if gone:
            others = (
                f", nor {'do' if len(gone) > 2 else 'does'} {len(gone) - 1:,} more" if len(gone) > 1 else ""
            )
            raise DataError(
                f'"{gone[0].names[0]}" means no image of the set{others}',
                where=gone[0].where,
                fix="add the images or mend the list; -o partial=true goes on without them, -o splits=folders or "
                "-o splits=drawn without the lists",
            )
    by_file: dict[str, list[SplitEntry]] = defaultdict(list)
    for entry in missing:
        by_file[entry.where.rpartition(":")[0]].append(entry)
    for file, entries in by_file.items():
        count = f"{len(entries):,} {'entry means' if len(entries) == 1 else 'entries mean'}"
        first = f"{entries[0].where.rpartition(':')[2]}: {entries[0].names[0]}"
        note(file, f"{count} no labelled image of the set (the first in row {first})")
