"""`open_pixels`: one contract for whatever holds pixels, in the file's own values.

| kind | behind it |
|---|---|
| pictures (PNG, JPEG, WebP, …) | `vitp.io.image_file` |
| GeoTIFF, COG, JPEG 2000, VRT, ENVI, HDF, netCDF | `vitp.io.rasters` (extra `geo`) |
| a folder with one file a band | `vitp.io.band_folders` (extra `geo`) |
| a slice of a volume, a DICOM image | `vitp.io.volumes` (extra `medical`) |
| whole slides, OME-TIFF, OME-Zarr | `vitp.io.slides` (extra `medical`) |

An address may end with `#window=x1,y1,x2,y2` and more: then only this part is the image; see `vitp.io.parts`.
"""

from __future__ import annotations

from pathlib import Path

from vitp.core.errors import DataError
from vitp.io.band_folders import FolderPixels
from vitp.io.contract import Band, Geometry, PartPixels, Pixels
from vitp.io.image_file import open_stream
from vitp.io.image_kinds import has_rasterio, jpeg2000_depth, page_alone
from vitp.io.image_pixels import PicturePixels
from vitp.io.parts import FilePart, Window, part_address, split_address
from vitp.io.rasters import RasterPixels, raster_driver
from vitp.io.slides import SlidePixels, slide_kind
from vitp.io.storage import is_member, is_remote
from vitp.io.tiff import is_sparse
from vitp.io.tiff_image import COMPRESSIONS, layout_of
from vitp.io.tiff_tags import Page, TiffError, read_pages
from vitp.io.volumes import is_volume, open_volume
from vitp.records.channels import Channels

__all__ = ["Band", "Geometry", "Pixels", "Window", "open_pixels"]


_CMYK, _CIELAB = 5, 8
"""Photometric interpretations of TIFF whose colours are resolved into RGB."""


def open_pixels(address: str | Path) -> Pixels:
    """Open a file, a folder with one file a band, a part of a shard or a URL, whatever holds the pixels.

    Args:
        address: As `vitp.io.storage` and `vitp.io.parts` have them.

    Raises:
        DataError: It is missing, holds no image or several, needs the extra `geo` or `medical`, or is damaged.
    """
    base, part = split_address(address)
    where = str(address)
    if is_volume(base):
        _check_part(part, True, where)
        slice_ = open_volume(address).slice(part.slice, part.plane, part.around)
        return PartPixels(slice_, part, where)
    kind = slide_kind(address)
    if kind is not None:
        return PartPixels(SlidePixels(base, kind, part, where), part, where)
    _check_part(part, False, where)
    if part.mpp is not None or part.own_mpp is not None:
        what = "isn't a slide, and only slides are read at so many micrometres a pixel"
        raise DataError(what, where=where, fix="leave mpp and own_mpp out of the address")
    if not is_remote(base) and not is_member(base) and Path(base).is_dir():
        return PartPixels(FolderPixels(Path(base), where), part, where)
    driver = raster_driver(base)
    if driver is None or _is_ours(address, driver):
        return PartPixels(PicturePixels(base, part.page, where), part, where)
    return PartPixels(RasterPixels(base, driver, part, where), part, where)


def _check_part(part: FilePart, volume: bool, where: str) -> None:
    """Refuse what an address chooses of a volume though it is none, and the other way round."""
    if (part.hole, part.mirror, part.turn) != (None, None, None):
        what = "is a mirrored, turned or blanked view, whose own values nothing reads"
        raise DataError(what, where=where, fix="leave hole=, mirror= and turn= out of the address")
    of_volumes = {"slice": part.slice, "plane": part.plane, "around": part.around, "series": part.series}
    of_others = {"page": part.page, "layer": part.layer, "mpp": part.mpp, "own_mpp": part.own_mpp}
    for name, value in (of_others if volume else of_volumes).items():
        if value is not None:
            what = f"is {'a' if volume else 'no'} volume, of which no {name} can be chosen"
            raise DataError(what, where=where, fix=f"leave {name}= out of the address")


def open_seen(address: str | Path, channels: Channels | None) -> Pixels:
    """Open what channels see: a slice of a volume with as many neighbours as they name; see `open_pixels`."""
    base, part = split_address(address)
    if (
        channels is None
        or not channels.around
        or (part.around or 0) >= channels.around
        or not is_volume(base)
    ):
        return open_pixels(address)
    return open_pixels(part_address(address, FilePart(around=channels.around)))


def _is_ours(address: str | Path, driver: str) -> bool:
    """Return whether a raster is our own code's: rasterio is missing, or would leave a picture as stored."""
    if driver not in ("GTiff", "JP2OpenJPEG") or not has_rasterio():
        return driver in ("GTiff", "JP2OpenJPEG")
    base, part = split_address(address)
    if driver != "GTiff" or part.bands or is_remote(base):
        return False
    page = _page(address)
    if page is None or (page.orientation == 1 and page.photometric not in (_CMYK, _CIELAB)):
        return False
    return is_picture_file(address)


def is_picture_file(address: str | Path) -> bool:
    """Return whether `vitp.io.image_file` reads what the address names, as 8-bit RGB.

    True, too, for what nothing reads: then its words tell why.
    """
    base, part = split_address(address)
    if part.bands or part.layer or part.mpp is not None or part.own_mpp is not None:
        return False
    if is_volume(base) or slide_kind(address) is not None:
        return False
    if not is_remote(base) and not is_member(base) and Path(base).is_dir():
        return False
    driver = raster_driver(base)
    if driver is None:
        return True
    if driver not in ("GTiff", "JP2OpenJPEG") or not has_rasterio():
        return driver in ("GTiff", "JP2OpenJPEG")
    if is_remote(base):
        return part.window is None  # a window is read by parts
    if driver == "JP2OpenJPEG":
        with open_stream(address) as stream:
            # Boxes of metadata, at times large ones, stand before the codestream.
            components, bits = jpeg2000_depth(stream.read(1 << 20))
        return components == 1 or (components <= 4 and bits <= 8)
    page = _page(address)
    if page is None:
        return True
    try:
        layout_of(page, base)
    except DataError:
        return False
    return not (page.compression in COMPRESSIONS or is_sparse(page))


def is_compressed_otherwise(address: str | Path) -> bool:
    """Return whether a TIFF is compressed in a way for which not every library has the decoder."""
    page = _page(address)
    return page is not None and page.compression in COMPRESSIONS


def _page(address: str | Path) -> Page | None:
    """Return the page of a TIFF that is meant, by default the first; None: its tags can't be read."""
    part = split_address(address)[1]
    with open_stream(address) as stream:
        try:
            pages = read_pages(stream)
        except TiffError:
            return None
    return pages[0] if part.page is None else page_alone(pages, part.page, str(address))[1][0]
