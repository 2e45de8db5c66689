"""What the names of classes must be like, whichever file they come from."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

from vitp.core.errors import DataError
from vitp.core.words import cell_name, spoken

_RESERVED = frozenset({"background", "none"})
"""Words of answers about objects: a cell without any, and the answer where there is nothing."""

_RENAME = "rename it where it is defined, or with the option classes"
_MARKUP = re.compile(r"[<>\[\]{}|]")
_MOST_NOTED = 20


def check_names(names: Iterable[str], where: str, note: Callable[[str, str], None]) -> None:
    """Refuse names that no text can hold, and two that are spoken alike; note those with signs of markup.

    Args:
        names: Of the classes of one kind.
        where: The set, for messages.
        note: Takes findings.

    Raises:
        DataError: A name holds a line break or another control character, or two names differ only in case, blanks
            or the marks between words.
    """
    first: dict[str, str] = {}
    marked = []
    for name in dict.fromkeys(names):
        if any(unicodedata.category(sign) in ("Cc", "Zl", "Zp") for sign in name):
            raise DataError(
                f"the class name {name!r} holds a line break or another control character",
                where=where,
                fix=_RENAME,
            )
        other = first.setdefault(cell_name(name).casefold(), name)
        if other != name:
            raise DataError(
                f'the classes "{other}" and "{name}" are spoken alike ("{spoken(name)}")',
                where=where,
                fix="rename one of them, or give both one name, where they are defined or with the option classes",
            )
        if _MARKUP.search(name):
            marked.append(f'"{name}" is spoken "{spoken(name)}"')
    for line in marked[:_MOST_NOTED]:
        note("classes", line)
    if len(marked) > _MOST_NOTED:
        note("classes", f"{len(marked) - _MOST_NOTED} more names hold signs of markup, which aren't spoken")


def without_reserved(
    names: Iterable[str], used: Iterable[str], where: str
) -> tuple[tuple[str, ...], list[str]]:
    """Return the object classes that can be asked for, and those called "background" or "none" without objects.

    Raises:
        DataError: There are objects of such a class: answers use these words for places without any object.
    """
    known = set(used)
    reserved = [name for name in names if cell_name(name).casefold() in _RESERVED]
    for name in reserved:
        if name in known:
            raise DataError(
                f'objects are of a class called "{name}", which says in answers that there is no object',
                where=where,
                fix=f"{_RENAME}, which can also leave it out in COCO, VOC and DOTA",
            )
    return tuple(name for name in names if name not in reserved), reserved
