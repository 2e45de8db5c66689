"""Names of classes that tables call by codes: a file of two columns without a head, as OpenImages publishes one."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection
from pathlib import Path

from vitp.core.errors import DataError
from vitp.core.reading import head_of
from vitp.data.formats.walk import child, read_label_text, suffixed, words_of

_FOLDERS = ("metadata", "meta", "annotations", "labels")
_SUFFIXES = (".csv", ".tsv", ".txt")
_CODE = re.compile(r"/[a-z]/\w+|[a-z]\d{5,}|[A-Z]+[-_:]?\d{4,}")
"""Codes as WordNet, Freebase and clinical terminologies have them; names with a digit (A320) are none."""
_NAMING = frozenset(
    (
        *(
            "class",
            "classes",
            "description",
            "descriptions",
            "name",
            "names",
            "label",
            "labels",
            "categories",
        ),
        *("category", "codes", "synset", "synsets", "words", "wnids", "legend", "map", "mapping"),
    )
)
"""Words in the name of a file that names codes."""


def code_names(root: Path, codes: Collection[str]) -> tuple[Path, dict[str, str]] | None:
    """Return the file of a set that names each of the codes of its classes, and code → name; None without one.

    Each of its rows holds a code and a name (`/m/01g317,Person`), and no row is a head.

    Args:
        root: The set's folder; files lie in it, or in `metadata/` and the like.
        codes: What the labels call their classes; nothing is looked for unless all are codes of a machine.

    Raises:
        DataError: Two files name a code differently, a file names one twice, or two codes have one name.
    """
    if not codes or not all(map(_CODE.fullmatch, codes)):
        return None
    found: tuple[Path, dict[str, str]] | None = None
    for folder in (root, *(child(root, (name,)) for name in _FOLDERS)):
        for path in () if folder is None else (p for suffix in _SUFFIXES for p in suffixed(folder, suffix)):
            names = _names_in(path, codes) if _NAMING & set(words_of(path.stem)) else {}
            if names and found and found[1] != names:
                code = next(code for code in names if found[1][code] != names[code])
                raise DataError(
                    f'calls {code} "{names[code]}", and {found[0].name} "{found[1][code]}"',
                    where=str(path),
                    fix="keep one of the two files",
                )
            found = found or ((path, names) if names else None)
    return found


def _names_in(path: Path, codes: Collection[str]) -> dict[str, str]:
    """Return the names that a file gives to codes, in its order; nothing where it isn't such a file."""
    first = head_of(path, 4096).decode("utf-8-sig", errors="replace").partition("\n")[0]
    mark = next((mark for mark in "\t,;" if mark in first), None)
    if mark is None:
        return {}
    try:
        rows = list(csv.reader(read_label_text(path).splitlines(), delimiter=mark))
    except (DataError, csv.Error):
        return {}
    names: dict[str, str] = {}
    for number, cells in enumerate(rows, 1):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != 2 or not all(cell.strip() for cell in cells):
            return {}
        code, name = cells[0].strip(), " ".join(cells[1].split())
        if code in codes and names.setdefault(code, name) != name:
            what = f'calls {code} "{names[code]}" and "{name}"'
            raise DataError(what, where=f"{path}:{number}", fix="name each code once")
    if len(names) < len(codes) or all(name.replace(".", "").isdigit() for name in names.values()):
        return {}
    if len({*names.values()}) < len(names):
        double = next(name for name in names.values() if [*names.values()].count(name) > 1)
        what = f'calls several codes of the labels "{double}"'
        raise DataError(what, where=str(path), fix="give each a name of its own")
    return names
