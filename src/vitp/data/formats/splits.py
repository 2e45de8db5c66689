"""Which image goes into train, val and test when the folder's layout doesn't say it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import parse_json, read_text

_ALIASES = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


_YEAR = re.compile(r"[-_ ]?(19|20)\d\d$")


def split_of(word: str) -> str | None:
    """Return the split that a folder, file or column names ("valid" → "val", "train2017" → "train"), or None."""
    return _ALIASES.get(_YEAR.sub("", word.strip().lower()))


def group_of(stem: str, pattern: re.Pattern[str] | None) -> str:
    """Return the group in a file's name: the pattern's first bracket or its whole match, "" without one."""
    if pattern is None or (match := pattern.search(stem)) is None:
        return ""
    return match.group(1) if pattern.groups and match.group(1) is not None else match.group(0)


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
        raise ConfigError(
            f'"{text}" is not a regular expression ({error})',
            where="group_regex",
            fix=r"write one like ^P\d+",
        ) from error


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
        raise ConfigError(
            f"val={val} and test={test} leave nothing for training",
            where="split",
            fix="let val + test be below 1",
        )
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[f"group {group}" if group else f"image {i}"].append(i)

    def draw(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogatepass")).digest()

    wanted = {"train": 1 - val - test, "val": val, "test": test}
    missing = {split: share * len(groups) for split, share in wanted.items() if share > 0}
    chosen: dict[str, list[str]] = {split: [] for split in missing}
    for name in sorted(members, key=lambda name: (-len(members[name]), draw(name))):
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


@dataclass(frozen=True)
class SplitEntry:
    """One image that a list puts into a split.

    Attributes:
        names: What the list may call it, the likeliest first.
        split: `train`, `val` or `test`.
        where: "file:row".
    """

    names: tuple[str, ...]
    split: str
    where: str

    @property
    def name(self) -> str:
        """The name as the list writes it."""
        return self.names[0]


def read_split_text(path: Path) -> str:
    """Return the text of a file that names splits.

    Raises:
        DataError: It can't be read.
    """
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"split file can't be read ({error})", where=str(path), fix="check the path"
        ) from error


def read_split_file(path: Path) -> list[SplitEntry]:
    """Return the entries of JSON `{"train": [names], …}` or of lines `name split`.

    Raises:
        DataError: The file is missing, or a row can't be understood.
    """
    text = read_split_text(path)
    if path.suffix.lower() == ".json":
        return _splits_from_json(text, path)
    found = []
    for row, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, word = re.sub(r"[,;\t]", " ", line).strip().rpartition(" ")
        split = split_of(word)
        if split is None or not name:
            raise DataError(
                "row doesn't name an image and its split",
                where=f"{path}:{row}",
                fix='write lines like "image_1.png train"',
            )
        found.append(SplitEntry((name.strip(),), split, f"{path.name}:{row}"))
    return found


def _splits_from_json(text: str, path: Path) -> list[SplitEntry]:
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"is not JSON ({error.msg})", where=f"{path}:{error.lineno}", fix="mend the file"
        ) from error
    fix = 'write {"train": [names], "val": [names], "test": [names]}'
    if not isinstance(content, dict):
        raise DataError("isn't an object", where=str(path), fix=fix)
    found = []
    for word, names in content.items():
        split = split_of(word)
        if split is None or not isinstance(names, list):
            raise DataError(f'"{word}" is not a split with a list of names', where=str(path), fix=fix)
        found += [SplitEntry((str(name),), split, f"{path.name}: {word}") for name in names]
    return found
