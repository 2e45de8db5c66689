"""Lists of class names in text files: `name`, or `number name`; and names that say that there is no class."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise

_NUMBERED = re.compile(r"(\d+)(?:\s*[:,;\t]\s*|\s+)(\S.*)$")
_IGNORED = frozenset(
    (
        *("ignore", "ignored", "ignorelabel", "void", "unknown", "unlabeled", "unlabelled"),
        *("nodata", "undefined", "unannotated"),
    )
)


def is_ignored_name(name: str) -> bool:
    """Return whether a class of masks is called like what isn't labelled ("Void", "no-data").

    >>> is_ignored_name("No Data"), is_ignored_name("unlabelled"), is_ignored_name("avoid")
    (True, True, False)
    """
    return re.sub(r"[\s_\-]+", "", name).lower() in _IGNORED


def numbered(lines: Sequence[str], values: Collection[int] = ()) -> list[tuple[int, str]] | None:
    """Return the numbers and names of lines "0 water", "0: water", "0,water", or None where they are names alone.

    The lines are numbered when all begin with a number, and the numbers rise from 0 or 1 or are the values that
    occur. One line alone is numbered only by 0 or by an occurring value: "1 storey" may be a name.

    Args:
        lines: Without blanks around them; none is empty.
        values: That occur in the masks.
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
