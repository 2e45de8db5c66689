"""Addresses of a part of an image file: `scene.tif#window=0,0,512,512&bands=B04,B03,B02`.

| after `#` | chooses |
|---|---|
| `window=x1,y1,x2,y2` | these pixels; x2 and y2 are exclusive |
| `bands=B04,B03` | these bands, in this order |
| `page=2` | one image of a file that holds several, from 1 |
| `layer=reflectance` | one data set of an HDF or netCDF file |

Names that hold `,`, `&`, `#` or `%` are written with percent signs, as in URLs. A file whose own name looks
like this is still that file: what exists under the whole address counts first.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from vitp.core.errors import DataError

Window = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels; x2 and y2 exclusive."""

_PART = re.compile(r"(?P<base>.+)#(?P<part>(?:window|bands|page|layer)=[^#]*)", re.DOTALL)
_FORM = "write FILE#window=x1,y1,x2,y2&bands=…&page=…&layer=…, each once at most"


@dataclass(frozen=True)
class FilePart:
    """What an address chooses of a file; None: everything there is.

    Attributes:
        window: In pixels of the upright image.
        bands: Names, in the wanted order.
        page: From 1.
        layer: Name of a data set in a file of several.
    """

    window: Window | None = None
    bands: tuple[str, ...] | None = None
    page: int | None = None
    layer: str | None = None

    def __str__(self) -> str:
        words = []
        if self.window is not None:
            words.append("window=" + ",".join(map(str, self.window)))
        if self.bands is not None:
            words.append("bands=" + ",".join(quote(name, safe=" ") for name in self.bands))
        if self.page is not None:
            words.append(f"page={self.page}")
        if self.layer is not None:
            words.append(f"layer={quote(self.layer, safe=' ')}")
        return "&".join(words)


WHOLE = FilePart()
"""Of an address that chooses nothing."""


def split_address(address: str | Path) -> tuple[str, FilePart]:
    """Return the address of the file itself, and what is chosen of it.

    Raises:
        DataError: The part isn't written as it must be.
    """
    text = str(address)
    match = _PART.fullmatch(text) if "#" in text else None
    if match is None or os.path.lexists(text):
        return text, WHOLE
    found: dict[str, str] = {}
    for word in match["part"].split("&"):
        key, equals, value = word.partition("=")
        if key in found or key not in ("window", "bands", "page", "layer") or not (equals and value):
            raise DataError(f"chooses a part by {word!r}, which can't be read", where=text, fix=_FORM)
        found[key] = value
    window = _window(found["window"], text) if "window" in found else None
    bands = tuple(unquote(name) for name in found["bands"].split(",")) if "bands" in found else None
    if bands is not None and not all(bands):
        raise DataError("chooses a band without a name", where=text, fix=_FORM)
    if "page" in found and re.fullmatch(r"[1-9]\d{0,8}", found["page"]) is None:
        raise DataError(f"chooses page {found['page']!r}; pages count from 1", where=text, fix=_FORM)
    page = int(found["page"]) if "page" in found else None
    return match["base"], FilePart(window, bands, page, unquote(found["layer"]) if "layer" in found else None)


def _window(text: str, where: str) -> Window:
    numbers = [int(word) for word in text.split(",") if re.fullmatch(r"\d{1,9}", word)]
    if len(numbers) != 4 or text.count(",") != 3:
        raise DataError(
            f"chooses the window {text!r}, which isn't four whole numbers", where=where, fix=_FORM
        )
    x1, y1, x2, y2 = numbers
    if not (x1 < x2 and y1 < y2):
        raise DataError(
            f"chooses the window {text}, which is empty", where=where, fix="x1 < x2 and y1 < y2 must hold"
        )
    return x1, y1, x2, y2


def base_address(address: str | Path) -> str:
    """Return the address of the file that a part is chosen of, or the address as it is.

    Raises:
        DataError: As `split_address`.
    """
    return split_address(address)[0]


def part_address(address: str | Path, part: FilePart) -> str:
    """Return the address of a part of an image; a window is one of the image that the address names.

    Raises:
        DataError: As `split_address`.
    """
    base, old = split_address(address)
    window = part.window
    if window is not None and old.window is not None:
        x, y = old.window[:2]
        window = (window[0] + x, window[1] + y, window[2] + x, window[3] + y)
    new = FilePart(
        window or old.window, part.bands or old.bands, part.page or old.page, part.layer or old.layer
    )
    return f"{base}#{new}" if new != WHOLE else base


def window_address(address: str | Path, window: Window) -> str:
    """Return the address of a window of an image."""
    return part_address(address, FilePart(window=window))


def file_stamp(address: str | Path) -> tuple[int, int]:
    """Return size in bytes and time of change, in nanoseconds, of the file that an address names a part of.

    Of a folder with one file a band they are those of all its files: their sum, and the latest.

    Raises:
        OSError: It isn't there.
        DataError: As `split_address`.
    """
    path = Path(base_address(address))
    stat = path.stat()
    if not path.is_dir():
        return stat.st_size, stat.st_mtime_ns
    stats = [stat, *(inner.stat() for inner in path.rglob("*") if inner.is_file())]
    return sum(one.st_size for one in stats[1:]), max(one.st_mtime_ns for one in stats)


def check_window(window: Window, size: tuple[int, int], where: str) -> None:
    """Do nothing for a window that lies within an image.

    Raises:
        DataError: It doesn't, or is empty.
    """
    x1, y1, x2, y2 = window
    if not (0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]):
        text = ",".join(map(str, window))
        raise DataError(
            f"the window {text} isn't within the image of {size[0]}×{size[1]} px",
            where=where,
            fix="name a window within the image, as x1,y1,x2,y2",
        )
