"""The files that a VRT names: each must be a raster on this machine, or behind a URL that the user has allowed.

GDAL opens whatever name stands in a VRT, by any of its drivers, and some of them open connections.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from vitp.core.errors import DataError
from vitp.core.reading import parse_xml, real_path
from vitp.core.remote import check_allowed

_DEEPEST = 8
_SILENT = frozenset({"SRS", "MDI", "Description", "UnitType", "GeoTransform", "Category", "GCP", "Entry"})
"""Elements whose text GDAL never opens."""
_FILES = re.compile(
    rb"II[*+]\0|MM\0[*+]|....jP  \r\n|\xff\x4f\xff\x51|\x89HDF|EHFA|\x89PNG|\xff\xd8\xff",
    re.DOTALL,
)
_REMOTE = re.compile(r"/vsi(?P<kind>curl|s3|gs)(?:_streaming)?/(?P<rest>.*)", re.DOTALL)
_PREFIX = re.compile(r'(?:NETHDF5|GTIFF_DIR:\d+):"?(?P<file>[^":]+)"?(?::.*)?', re.DOTALL)
_OWN_FILES = "name files of this machine as its sources: GeoTIFF, JPEG 2000, netCDF-4, HFA, PNG, JPEG or VRT"


def check_sources(path: str, where: str, depth: int = 0) -> bool:
    """Return whether a VRT has sources behind URLs, all of which are allowed.

    Raises:
        DataError: It can't be read, or names what isn't a raster, isn't there or isn't allowed.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError("is a VRT that isn't a file of its own here", where=where, fix="copy it to a folder")
    if depth > _DEEPEST:
        raise DataError("is a VRT of VRTs that doesn't end", where=where, fix="write it with gdalbuildvrt")
    try:
        root = parse_xml(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, ElementTree.ParseError) as error:
        what = f"is a VRT that can't be parsed ({error})"
        raise DataError(what, where=where, fix="write it with gdalbuildvrt") from error
    remote = False
    if root.find(".//*[@subClass='VRTRawRasterBand']") is not None:
        what = "is a VRT that takes the bytes of other files for pixels, which isn't read"
        raise DataError(what, where=where, fix="save it as GeoTIFF (gdal_translate)")
    for element in root.iter():
        text = (element.text or "").strip()
        if element.tag in ("SourceFilename", "SourceDataset"):
            remote |= _check_source(text, element.get("relativeToVRT") == "1", file, where, depth)
        elif element.tag not in _SILENT and re.search(r"://|/vsi|^\s*<", text):
            what = f"is a VRT whose {element.tag} names {text[:80]!r}, which isn't read"
            raise DataError(what, where=where, fix=_OWN_FILES)
    return remote


def _check_source(text: str, relative: bool, vrt: Path, where: str, depth: int) -> bool:
    match = _REMOTE.fullmatch(text)
    if match is not None:
        check_allowed(match["rest"] if match["kind"] == "curl" else f"{match['kind']}://{match['rest']}")
        return True
    inner = _PREFIX.fullmatch(text)
    name = inner["file"] if inner is not None else text
    source = vrt.parent / name if relative else Path(name)
    try:
        if not source.is_file():
            raise DataError(
                f"is a VRT that names {text[:200]!r}, which is no file here", where=where, fix=_OWN_FILES
            )
        with source.open("rb") as file:
            head = file.read(64)
    except (OSError, ValueError) as error:
        what = f"is a VRT that names {text[:200]!r}, which can't be read"
        raise DataError(what, where=where, fix=_OWN_FILES) from error
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<VRTDataset"):
        return check_sources(str(source), where, depth + 1)
    if not _FILES.match(head):
        what = f"is a VRT that names {text[:200]!r}, which is no raster that one may name"
        raise DataError(what, where=where, fix=_OWN_FILES)
    return False


def vrt_sources(path: Path) -> tuple[list[Path], bool]:
    """Return the files of this machine that a VRT names, and whether it is a mosaic: a band has several of them.

    Nothing for what isn't a VRT that can be parsed.
    """
    try:
        root = parse_xml(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, ElementTree.ParseError):
        return [], False
    found = []
    for element in root.iter():
        text = (element.text or "").strip()
        if element.tag in ("SourceFilename", "SourceDataset") and text and not text.startswith("/vsi"):
            found.append(real_path(path.parent / text if element.get("relativeToVRT") == "1" else Path(text)))
    bands = root.findall("VRTRasterBand")
    mosaic = any(sum(source.tag.endswith("Source") for source in band) > 1 for band in bands)
    return list(dict.fromkeys(found)), mosaic


def uncovered_share(path: str | Path) -> float:
    """Return the share of a VRT's pixels that none of its sources covers; GDAL gives them its nodata value, or 0.

    0 for what isn't put together of plain sources, such as a VRT that warps another file.
    """
    root = parse_xml(Path(path).read_text(encoding="utf-8-sig"))
    try:
        width, height = (int(root.get(f"raster{axis}Size", "0")) for axis in "XY")
        empty = 0.0
        bands = [band for band in root.findall("VRTRasterBand") if band.get("subClass") is None]
        for band in bands:
            covered_HW = np.zeros((height, width), bool)
            sources = [source for source in band if source.tag.endswith("Source")]
            for source in sources:
                # A source without a place fills the band.
                if (place := source.find("DstRect")) is None:
                    covered_HW[:] = True
                    continue
                x, y, wide, high = (float(place.get(key, "0")) for key in ("xOff", "yOff", "xSize", "ySize"))
                rows, columns = (
                    slice(max(0, round(a)), max(0, round(a + b))) for a, b in ((y, high), (x, wide))
                )
                covered_HW[rows, columns] = True
            empty = max(empty, 1 - float(covered_HW.mean()))
    except (ValueError, MemoryError):
        return 0.0
    return empty
