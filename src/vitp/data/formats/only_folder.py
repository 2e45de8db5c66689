"""The only folder in a folder, as unpacked archives leave it: it stands for the set."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from vitp.data.formats.look import entries_of
from vitp.data.formats.walk import IMAGE_WORDS, INSTANCE_WORDS, MASK_WORDS, split_of, words_of

SET_IS = "the set is the folder "

INNER_OPTIONS = frozenset(
    {"level", "table", "split_file", "images", "masks", "before", "after", "labels", "area", "layer"}
)
"""Options that may name something below the folder that the user gave."""

_PAPERS = (
    *(".md", ".rst", ".pdf", ".html", ".bib", ".cff"),
    *(".py", ".ipynb", ".sh", ".zip", ".tar", ".tgz", ".rar", ".7z"),
)
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xml", ".yaml", ".yml")
_READ_ME = re.compile(
    r"(read[_-]?me|licen[cs]e|copying|notice|citation|attribut|authors|change[_-]?log|requirements|check_?sums?"
    r"|md5|sha(1|256|512))|.*\.tar\.\w+$",
    re.IGNORECASE,
)
"""What may lie beside the only folder of a set: what says something of it, and what it was unpacked from."""


def only_folder(root: Path) -> Path | None:
    """Return the one folder in a folder that holds nothing else but papers and archives, or None.

    A folder whose name says what it holds, or which split, is a part of the set.
    """
    inside = [entry for entry in entries_of(root) if not entry[0].startswith("__MACOSX")]
    folders = [name for name, is_folder in inside if is_folder]
    rest = [Path(name) for name, is_folder in inside if not is_folder]
    if len(folders) != 1 or any(
        path.suffix.lower() not in _PAPERS
        and (path.suffix.lower() in _TABLES or not _READ_ME.match(path.name))
        for path in rest
    ):
        return None
    words = set(words_of(folders[0]))
    part = words <= IMAGE_WORDS | MASK_WORDS | INSTANCE_WORDS or split_of(folders[0])
    return None if part else root / folders[0]


def is_named_in(inner: Path, root: Path, options: Collection[str]) -> bool:
    """Return whether options name files or folders that lie in the only folder of a set, and not in the set's own."""
    values = (
        {name: options[name] for name in INNER_OPTIONS & set(options)} if isinstance(options, Mapping) else {}
    )
    paths = [part for value in values.values() for part in str(value).split(",")]
    return bool(paths) and all((inner / path).exists() and not (root / path).exists() for path in paths)
