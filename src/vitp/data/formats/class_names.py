"""Names of classes: what they must be like, whichever file they come from, and lists of them in text files."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

from vitp.core.errors import DataError
from vitp.core.words import cell_name, spoken
from vitp.data.formats.walk import Note

_RESERVED = frozenset({"background", "none"})
"""Words of answers about objects: a cell without any, and the answer where there is nothing."""

_PASSED_OVER = frozenset(
    (
        "dontcare",
        "don'tcare",
        "ignore",
        "ignored",
        "ignorelabel",
        "ignoreregion",
        "ignoredregion",
        "ignoredregions",
    )
)
"""What sets call a place where nobody said what is there (KITTI, HIT-UAV, VisDrone)."""

_IGNORED = _PASSED_OVER | {
    *("void", "unknown", "unlabeled", "unlabelled"),
    *("nodata", "undefined", "unannotated"),
}
_RENAME = "rename it where it is defined, or with the option classes"
_MARKUP = re.compile(r"[<>\[\]{}|]")
_NUMBERED = re.compile(r"(\d+)(?:\s*[:,;\t]\s*|\s+)(\S.*)$")
_MOST_NOTED = 20


def check_names(names: Iterable[str], where: str, note: Note) -> None:
    """Refuse names that no text can hold, and two that are spoken alike; note those with signs of markup.

    Raises:
        DataError: A name holds a line break or another control character, or two names differ only in case, blanks
            or the marks between words.
    """
    first: dict[str, str] = {}
    marked = []
    for name in dict.fromkeys(names):
        if any(unicodedata.category(sign) in ("Cc", "Zl", "Zp") for sign in name):
            what = f"the class name {name!r} holds a line break or another control character"
            raise DataError(what, where=where, fix=_RENAME)
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
    names: Iterable[str], used: Collection[str], where: str
) -> tuple[tuple[str, ...], list[str]]:
    """Return the object classes that can be asked for, and those without objects that are no class by their names.

    These are "background", "none", and those of places that nobody cares about.

    Raises:
        DataError: There are objects of such a class: answers use these words for places without any object.
    """
    names = tuple(names)
    reserved = [name for name in names if cell_name(name).casefold() in _RESERVED]
    for name in reserved:
        if name in used:
            raise DataError(
                f'objects are of a class called "{name}", which says in answers that there is no object',
                where=where,
                fix=f"{_RENAME}, which can also leave it out in COCO, VOC and DOTA",
            )
    reserved += [name for name in names if is_passed_over(name) and name not in used]
    return tuple(name for name in names if name not in reserved), reserved


def doubles(names: Iterable[str]) -> list[str]:
    """Return the names that several classes have."""
    return [name for name, count in Counter(names).items() if count > 1]


def first_synonyms(names: Sequence[str]) -> list[str]:
    """Return the first of the words for each class ("building, edifice" → "building"), all where two share it.

    >>> first_synonyms(["crane, machine", "crane, bird", "sky"])
    ['crane, machine', 'crane, bird', 'sky']
    """
    firsts = [re.split(r"\s*[,;]\s*", name.strip())[0] for name in names]
    count = Counter(spoken(first).casefold() for first in firsts)
    return [
        first if count[spoken(first).casefold()] == 1 else name.strip()
        for first, name in zip(firsts, names, strict=True)
    ]


def is_ignored_name(name: str) -> bool:
    """Return whether a class of masks is called like what isn't labelled ("Void", "no-data").

    >>> is_ignored_name("No Data"), is_ignored_name("unlabelled"), is_ignored_name("avoid")
    (True, True, False)
    """
    return _letters(name) in _IGNORED


def is_passed_over(name: str) -> bool:
    """Return whether objects are called like a place where nobody said what is there ("DontCare").

    "void" and "unknown" aren't among these names: an object may be of a kind that nobody knows.

    >>> is_passed_over("DontCare"), is_passed_over("ignored regions"), is_passed_over("unknown")
    (True, True, False)
    """
    return _letters(name) in _PASSED_OVER


def _letters(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).lower()


def numbered(lines: Sequence[str], values: Collection[int] = ()) -> list[tuple[int, str]] | None:
    """Return the numbers and names of lines "0 water", "0: water", "0,water", or None where they are names alone.

    The lines are numbered when all begin with a number, and the numbers rise from 0 or 1 or are the values that
    occur. One line alone is numbered only by 0 or by an occurring value: "1 storey" may be a name.

    Args:
        lines: Without blanks around them; none is empty.
        values: Values that occur in the masks.
    """
    found = [match for line in lines if (match := _NUMBERED.match(line))]
    if not lines or len(found) < len(lines):
        return None
    pairs = [(int(match[1]), match[2].strip()) for match in found]
    numbers = [number for number, _ in pairs]
    rising = all(a < b for a, b in pairwise(numbers))
    from_start = rising and (numbers[0] == 0 or (numbers[0] == 1 and len(numbers) > 1))
    occurring = bool(values) and len(set(numbers)) == len(numbers) and set(values) - {255} <= set(numbers)
    return pairs if from_start or occurring else None
