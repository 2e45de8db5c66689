"""Which files are volumes or medical images, told by their content."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import re
import zlib
from pathlib import Path
from typing import Literal

from vitp.core.reading import head_of
from vitp.io.storage import is_member, is_remote

_HEAD_BYTES = 544
"""The longest header that is looked at, that of NIfTI-2, with the four bytes behind it."""
PICTURE_HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"P5", b"P6")
"""How the files begin that are asked for most; they are nothing else."""
_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    ".mnc": (b"CDF", b"\x89HDF"),
    ".par": (b"# === DATA DESCRIPTION FILE",),
    ".head": (b"type", b"\ntype", b"\r\ntype"),
    ".v": (b"MATRIX7",),
}
"""Suffix of further kinds that nibabel reads → how such files begin."""
_NEVER = b"\0 no file begins so \0"
_BESIDE = {".rec": ".par", ".brik": ".head"}
"""Suffix of voxels → that of the header beside them."""
_ITK_SUFFIXES = {".mhd": "MetaImage", ".mha": "MetaImage"}
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_SLIDE = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.77\.1\.6[^.0-9]")
"""The class of objects that are whole slides, as the first elements of a file name it."""
_MOST_LOOKED_AT = 16
"""Files of a folder that are opened to tell whether it holds DICOM."""


def volume_kind(address: str | Path) -> str | None:
    """Return `dicom`, `nibabel` or `itk`: by what a file, or a folder of files, is read; None: by none of them."""
    if is_member(address) or is_remote(address):
        return None
    path = Path(address)
    try:
        if path.is_dir():
            return "dicom" if holds_dicom(path) and not is_dicom_slide(path) else None
        if not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            if head.startswith(b"\x1f\x8b"):
                file.seek(0)
                with contextlib.suppress(OSError, EOFError, zlib.error):
                    head = gzip.GzipFile(fileobj=file).read(_HEAD_BYTES)
    except (OSError, ValueError):
        return None
    return None if head.startswith(PICTURE_HEADS) or _is_slide(head) else _kind(head, path)


def _kind(head: bytes, path: Path) -> str | None:
    suffix = path.with_suffix("").suffix if path.suffix.lower() in (".gz", ".bz2") else path.suffix
    suffix = suffix.lower()
    if head[128:132] == b"DICM" or _is_bare_dicom(head):
        return "dicom"
    if head.startswith(b"NRRD000"):
        return "itk"
    if suffix in _ITK_SUFFIXES and (b"NDims" in head or b"ObjectType" in head):
        return "itk"
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0"):
        return "nibabel"
    if suffix in (".mgz", ".mgh") or path.suffix.lower() == ".mgz":
        return "nibabel"
    if suffix == ".hdr" and _is_analyze(head):
        return "nibabel"
    if suffix == ".img" and _header_beside(path):
        return "nibabel"
    if suffix in _BESIDE:
        name = path.name[: path.name.lower().rindex(suffix)]
        beside = (path.with_name(name + end) for end in (_BESIDE[suffix], _BESIDE[suffix].upper()))
        return "nibabel" if any(header.is_file() for header in beside) else None
    return "nibabel" if head.startswith(_BEGINNINGS.get(suffix, (_NEVER,))) else None


def _is_analyze(head: bytes) -> bool:
    """Return whether a header is one of Analyze 7.5 or NIfTI-1: its first number is its own length."""
    return head[:4] in ((348).to_bytes(4, "little"), (348).to_bytes(4, "big"))


def _header_beside(path: Path) -> bool:
    heads = (head_of(path.with_suffix(suffix), _HEAD_BYTES) for suffix in (".hdr", ".HDR"))
    head = next(filter(None, heads), b"")
    return _is_analyze(head) or head[4:8] == b"ni2\0"


def _is_bare_dicom(head: bytes) -> bool:
    """Return whether these are the first elements of a DICOM file without its preamble."""
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        group, element = (int.from_bytes(head[at : at + 2], order) for at in (0, 2))
        if group not in (2, 8) or element > 0x60:
            continue
        # Behind the tag stand two letters and a length or, from the least byte on, a length alone.
        length = int.from_bytes(head[4:8], order)
        if head[4:6] in _VRS or (order == "little" and 0 < length < 256):
            return True
    return False


def is_dicom_file(path: Path) -> bool:
    """Return whether a file is DICOM, whatever its name."""
    head = head_of(path, 132)
    return head[128:132] == b"DICM" or _is_bare_dicom(head)


def is_dicom_slide(path: Path) -> bool:
    """Return whether a file is an image of a whole slide (VL Whole Slide Microscopy), or a folder of such files."""
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                files = [
                    Path(entry.path)
                    for entry in itertools.islice(entries, _MOST_LOOKED_AT)
                    if entry.is_file()
                ]
            return any(is_dicom_slide(file) for file in files)
    except OSError:
        return False
    return _is_slide(head_of(path, _HEAD_BYTES))


def _is_slide(head: bytes) -> bool:
    return head[128:132] == b"DICM" and _SLIDE.search(head) is not None


def holds_dicom(folder: Path) -> bool:
    """Return whether one of a folder's first files is DICOM."""
    looked = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_file():
                continue
            looked += 1
            if is_dicom_file(Path(entry.path)) and entry.name.upper() != "DICOMDIR":
                return True
            if looked >= _MOST_LOOKED_AT:
                break
    return False
