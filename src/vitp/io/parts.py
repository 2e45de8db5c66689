"""Addresses of a part of an image file: `scene.tif#window=0,0,512,512&bands=B04,B03,B02`.

| after `#` | chooses |
|---|---|
| `window=x1,y1,x2,y2` | these pixels; x2 and y2 are exclusive |
| `bands=B04,B03` | these bands, in this order |
| `page=2` | one image of a file that holds several, from 1 |
| `layer=reflectance` | one data set of an HDF or netCDF file |
| `series=4` | one series of a folder of DICOM files: its number, else `series-1`, …; or the end of its UID |
| `slice=57` | one slice of a volume, from 0, counted along its plane (see `vitp.io.volume_grid`) |
| `plane=axial` | the plane of the slices: `axial`, `coronal`, `sagittal`, or `stored`: as the file has them |
| `around=1` | so many slices on either side, too, as further bands (`1@-1`, `1`, `1@+1`) |
| `mpp=0.5` | a slide at so many micrometres a pixel |
| `own_mpp=0.25` | the micrometres of the slide's own (finest) pixels, where its file doesn't say them |
| `hole=0,0,333,333` | this part of the image, in thousandths of its sides, is blank: the middle grey |
| `mirror=1` | the image as in a mirror: left and right are exchanged |
| `turn=90` | the image turned clockwise by 90, 180 or 270 degrees, after all else |

Words in braces, `case_{0000,0001}.nii.gz`, name several volumes on one grid, whose bands are those of one image.
Names that hold `,`, `&`, `#` or `%` are written with percent signs, as in URLs. A file whose own name looks
like this is still that file: what exists under the whole address counts first.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

from vitp.core.errors import DataError

Window = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels; x2 and y2 exclusive."""

PLANES = ("axial", "coronal", "sagittal", "stored")
"""Planes of the slices of a volume."""

_KEYS = (
    "window",
    "bands",
    "page",
    "layer",
    "series",
    "slice",
    "plane",
    "around",
    "mpp",
    "own_mpp",
    "hole",
    "mirror",
    "turn",
)
_VIEWS = ("hole", "mirror", "turn")
"""Those that change what the chosen part looks like; `vitp.io.images` alone reads them."""

_PART = re.compile(rf"(?P<base>.+)#(?P<part>(?:{'|'.join(_KEYS)})=[^#]*)", re.DOTALL)
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
_FORM = "write FILE#window=x1,y1,x2,y2&bands=…&page=…&layer=…&series=…&slice=…&plane=…&around=…&mpp=…&own_mpp=…, each once at most"


@dataclass(frozen=True)
class FilePart:
    """What an address chooses of a file; None: everything there is.

    Attributes:
        window: In pixels of the upright image.
        bands: Names, in the wanted order.
        page: Number of the page, from 1.
        layer: Name of a data set in a file of several.
        series: Number, `series-1`, … or end of the UID of a DICOM series.
        slice: Slice of a volume, from 0.
        plane: One of `PLANES`.
        around: Slices on either side that are further bands.
        mpp: Micrometres a pixel.
        own_mpp: Micrometres of a slide's own pixels, as a user states them where the file doesn't.
        hole: x1, y1, x2, y2 in thousandths of the sides; blank.
        mirror: 1: left and right are exchanged.
        turn: Degrees clockwise, after all else.
    """

    window: Window | None = None
    bands: tuple[str, ...] | None = None
    page: int | None = None
    layer: str | None = None
    series: str | None = None
    slice: int | None = None
    plane: str | None = None
    around: int | None = None
    mpp: float | None = None
    own_mpp: float | None = None
    hole: Window | None = None
    mirror: int | None = None
    turn: int | None = None

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
        if self.series is not None:
            words.append(f"series={quote(self.series, safe=' ')}")
        others = (("slice", self.slice), ("plane", self.plane), ("around", self.around))
        words += [f"{key}={value}" for key, value in others if value is not None]
        words += [
            # Written in full: an exponent or a rounded number would be another resolution.
            f"{key}={value:.9f}".rstrip("0").rstrip(".")
            for key, value in (("mpp", self.mpp), ("own_mpp", self.own_mpp))
            if value is not None
        ]
        if self.hole is not None:
            words.append("hole=" + ",".join(map(str, self.hole)))
        words += [
            f"{key}={value}"
            for key, value in (("mirror", self.mirror), ("turn", self.turn))
            if value is not None
        ]
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
    # A file may itself be called so.
    if match is None or os.path.lexists(text):
        return text, WHOLE
    found: dict[str, str] = {}
    for word in match["part"].split("&"):
        key, equals, value = word.partition("=")
        if key in found or key not in _KEYS or not (equals and value):
            raise DataError(f"chooses a part by {word!r}, which can't be read", where=text, fix=_FORM)
        found[key] = value
    bands = tuple(unquote(name) for name in found["bands"].split(",")) if "bands" in found else None
    if bands is not None and not all(bands):
        raise DataError("chooses a band without a name", where=text, fix=_FORM)
    if "plane" in found and found["plane"] not in PLANES:
        what = f"chooses the plane {found['plane']!r}"
        raise DataError(what, where=text, fix=f"name one of {', '.join(PLANES)}")
    return match["base"], FilePart(
        window=_window(found["window"], text) if "window" in found else None,
        bands=bands,
        page=_whole(found, "page", 1, text),
        layer=unquote(found["layer"]) if "layer" in found else None,
        series=unquote(found["series"]) if "series" in found else None,
        slice=_whole(found, "slice", 0, text),
        plane=found.get("plane"),
        around=_whole(found, "around", 1, text),
        mpp=_micrometres(found, "mpp", text),
        own_mpp=_micrometres(found, "own_mpp", text),
        hole=_window(found["hole"], text) if "hole" in found else None,
        mirror=_one_of(found, "mirror", (1,), text),
        turn=_one_of(found, "turn", (90, 180, 270), text),
    )


def split_view(address: str | Path) -> tuple[str, FilePart]:
    """Return the address of the image that a view is one of, and the view alone (`hole`, `mirror`, `turn`).

    Raises:
        DataError: As `split_address`.
    """
    if not any(f"{key}=" in str(address) for key in _VIEWS):
        return str(address), WHOLE
    base, part = split_address(address)
    view = FilePart(hole=part.hole, mirror=part.mirror, turn=part.turn)
    rest = replace(part, **dict.fromkeys(_VIEWS))
    return f"{base}#{rest}" if rest != WHOLE else base, view


def _one_of(found: dict[str, str], key: str, known: tuple[int, ...], where: str) -> int | None:
    if key not in found:
        return None
    if found[key] not in map(str, known):
        raise DataError(
            f"chooses {key} {found[key]!r}", where=where, fix=f"write {' or '.join(map(str, known))}"
        )
    return int(found[key])


def _whole(found: dict[str, str], key: str, first: int, where: str) -> int | None:
    """Return the number of a page, a slice or of slices around one."""
    if key not in found:
        return None
    if re.fullmatch(r"\d{1,9}", found[key]) is None or int(found[key]) < first:
        counted = f"{key}s count from {first}" if key != "around" else "a whole number from 1 is needed"
        raise DataError(f"chooses {key} {found[key]!r}; {counted}", where=where, fix=_FORM)
    return int(found[key])


def _micrometres(found: dict[str, str], key: str, where: str) -> float | None:
    """Return micrometres a pixel."""
    if key not in found:
        return None
    if re.fullmatch(r"\d{1,6}(\.\d{1,9})?", found[key]) is None or not float(found[key]) > 0:
        what = f"chooses {key} {found[key]!r}; micrometres a pixel are a number above 0"
        raise DataError(what, where=where, fix=_FORM)
    return float(found[key])


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


def braced(base: str) -> list[tuple[str, str]]:
    """Return the words in braces of an address, with the path that each stands for; nothing where there are none.

    A file whose own name has the braces is that file.
    """
    match = _BRACES.search(base)
    if match is None or os.path.lexists(base):
        return []
    words = [word.strip() for word in match[1].split(",")]
    if len(set(words)) != len(words) or not all(words):
        raise DataError("names a file twice, or none, in its braces", where=base, fix="write {one,other}")
    paths = [base[: match.start()] + word + base[match.end() :] for word in words]
    numbered = all(word.isdecimal() for word in words)
    if numbered and [int(word) for word in words] in (
        list(range(len(words))),
        list(range(1, len(words) + 1)),
    ):
        words = [str(number) for number in range(1, len(words) + 1)]  # 0000, 0001: bands without a name
    return list(zip(words, paths, strict=True))


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
    chosen = {key: value for key, value in vars(part).items() if value is not None}
    new = replace(old, **{**chosen, "window": window or old.window})
    return f"{base}#{new}" if new != WHOLE else base


def window_address(address: str | Path, window: Window) -> str:
    """Return the address of a window of an image."""
    return part_address(address, FilePart(window=window))


def file_stamp(address: str | Path) -> tuple[int, int]:
    """Return size in bytes and time of change, in nanoseconds, of the file that an address names a part of.

    Of a folder with one file a band or a slice, and of files in braces, they are those of all: their sum, the latest.

    Raises:
        OSError: It isn't there.
        DataError: As `split_address`.
    """
    base = base_address(address)
    if joined := braced(base):
        stamps = [file_stamp(path) for _, path in joined]
        return sum(size for size, _ in stamps), max(changed for _, changed in stamps)
    path = Path(base)
    stat = path.stat()
    if not path.is_dir():
        return stat.st_size, stat.st_mtime_ns
    # The folder's own time tells of files that were removed.
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
