"""Two dates of each place: which image is the later date of which."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vitp.core.errors import ConfigError

_PART = re.compile(r"#\w+=[^#]*$")
"""What an address chooses of its file."""


def check_pairs(task: str, files: Sequence[str], later: Sequence[str] | None) -> str:
    """Return what is to be said of which later date belongs to which image; "" where they have the same names.

    Images and later dates belong together in the order in which they are given.

    Args:
        task: Task of the model; change alone takes later dates.
        files, later: Addresses of the images of either date.

    Raises:
        ConfigError: Later dates are missing, too many, of no use, or in another order than the images of their names.
    """
    where = "--later"
    if task != "change":
        if later is not None:
            raise ConfigError(f"{task} takes no later dates", where=where, fix="leave it out")
        return ""
    if later is None or len(later) != len(files):
        given = 0 if later is None else len(later)
        what = f"{len(files)} images but {given} later dates"
        raise ConfigError(what, where=where, fix="give one later date for each image")
    names, later_names = ([Path(_PART.sub("", one)).stem for one in dates] for dates in (files, later))
    other = [place for place, name in enumerate(names) if name != later_names[place]]
    for place in other:
        if names[place] in later_names:
            same = files[place], later[later_names.index(names[place])]
        elif later_names[place] in names:
            same = files[names.index(later_names[place])], later[place]
        else:
            continue
        what = f"{files[place]} would be compared with {later[place]}, though {' and '.join(same)} have the same name"
        fix = "give the later dates in the order of the images, and none of another place"
        raise ConfigError(what, where=where, fix=fix)
    if not other:
        return ""
    more = f", and so are {len(other) - 1} others" if len(other) > 1 else ""
    return f"{files[other[0]]} is compared with {later[other[0]]}, as that is their order{more}"
