"""Published sets, for testing (`data/benchmarks`) and for pretraining (`data/corpora`): their downloads and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from vitp.core.errors import ConfigError, DataError, did_you_mean
from vitp.data.formats.walk import parse_label_json, read_label_text


@dataclass(frozen=True)
class PublishedSet:
    """A set that somebody published.

    Attributes:
        name: What the command line, recipes and mixtures call it.
        title: As its authors write it.
        published_by: Where to get it, in words.
    """

    name: str
    title: str
    published_by: str

    def check_folder(self, root: Path) -> None:
        """Refuse a download that isn't a folder.

        Raises:
            DataError: It isn't; the message says who publishes the set.
        """
        if not root.is_dir():
            fix = f"download {self.title}: it is published by {self.published_by}"
            raise DataError("is not a folder", where=str(root), fix=fix)

    def refuse(self, root: Path, what: str) -> NoReturn:
        """Raise that a download isn't complete, and say where the set is published.

        Raises:
            DataError: Always.
        """
        fix = f"the set is published by {self.published_by}; docs/datasets.md shows its layout"
        raise DataError(f"{self.title}: {what}", where=str(root), fix=fix)


Published = TypeVar("Published", bound=PublishedSet)


def published_set(sets: Mapping[str, Published], name: str, kind: str, where: str) -> Published:
    """Return the set of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in sets:
        fix = did_you_mean(name, sets) or f"known are {', '.join(sets)}"
        raise ConfigError(f'no {kind} "{name}"', where=where, fix=fix)
    return sets[name]


def any_of(places: tuple[str, ...]) -> str:
    """Return the names under which something is looked for, as messages show them."""
    return places[0] + (f" (or {', '.join(places[1:])})" if len(places) > 1 else "")


def read_record(path: Path, form: str) -> dict[str, Any] | None:
    """Return what an earlier preparation wrote about itself, or None where there is none of this format."""
    try:
        record = parse_label_json(read_label_text(path), path)
    except DataError:
        return None
    return record if isinstance(record, dict) and record.get("format") == form else None


def check_out(out: Path, root: Path, *, ours: bool, force: bool) -> None:
    """Refuse a folder that a preparation must not replace.

    Args:
        out: The folder.
        root: The download.
        ours: An earlier preparation wrote the folder.
        force: It may be replaced then.

    Raises:
        ConfigError: It is a file, holds the download, or holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError("is a file", where=str(out), fix="name a new folder with --out")
    if root.is_relative_to(out):
        raise ConfigError("holds the download itself", where=str(out), fix="name another folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (ours and force):
        raise ConfigError(
            "was prepared with other settings" if ours else "isn't empty",
            where=str(out),
            fix="replace it with --force, or name a new folder" if ours else "name a new folder with --out",
        )
