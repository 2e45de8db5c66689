"""Rasters through rasterio: GeoTIFF, COG, JPEG 2000, VRT, ENVI, ERDAS, HDF and netCDF.

The kind of a file is told by its content, and GDAL is given the driver: a file can't choose one that opens connections
or runs code. Each thread and process opens files of its own.

Shapes: C bands, H × W pixels.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.core.reading import head_of
from vitp.core.remote import check_allowed
from vitp.io.contract import Pixels
from vitp.io.image_kinds import page_alone
from vitp.io.parts import FilePart, Window
from vitp.io.raster_bands import file_bands, file_geometry
from vitp.io.raster_lengths import check_length
from vitp.io.raster_sources import check_sources
from vitp.io.storage import COPY_IT_AGAIN, is_member, is_remote, open_bytes, read_address
from vitp.io.tiff import check_segments
from vitp.io.tiff_image import is_alpha, named_alpha
from vitp.io.tiff_tags import Page, TiffError, read_pages
from vitp.io.volume_kinds import PICTURE_HEADS

_LARGEST_BLOCK_BYTES = 1 << 29
"""Once it is decoded, as a block always is as a whole, whatever part of it is wanted."""
_ALPHA_PIXELS = 1 << 24
"""Of a band that may be transparency are looked at to tell."""
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"II*\0", "GTiff"),
    (0, b"MM\0*", "GTiff"),
    (0, b"II+\0", "GTiff"),
    (0, b"MM\0+", "GTiff"),
    (4, b"jP  \r\n", "JP2OpenJPEG"),
    (0, b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
    (0, b"<VRTDataset", "VRT"),
    (0, b"CDF", "netCDF"),
    (0, b"\x89HDF", "netCDF"),
    (0, b"EHFA_HEADER_TAG", "HFA"),
)
_GDAL_FILES = {"https": "/vsicurl/https://", "http": "/vsicurl/http://", "s3": "/vsis3/", "gs": "/vsigs/"}
"""Scheme → how GDAL reads parts of a file behind it. Others are fetched as a whole."""
_BY_PARTS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG"}
"""Suffix → driver, of files behind a URL that are read by parts. Others are fetched as a whole."""


def raster_driver(address: str) -> str | None:
    """Return GDAL's name of the kind of a file that rasterio reads; None: it is none of them, or is missing."""
    if is_remote(address) and address.partition("://")[0].lower() in _GDAL_FILES:
        driver = _BY_PARTS.get(Path(address.partition("?")[0]).suffix.lower())
        if driver is not None:
            return driver
    try:
        if is_member(address):
            head = read_address(address)[:512]
        elif is_remote(address):
            head = open_bytes(address).read(0, 512)
        elif not Path(address).is_file():
            return None
        else:
            with Path(address).open("rb") as file:
                head = file.read(512)
    except (OSError, ValueError):
        return None
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, mark, driver in _MAGIC:
        if (text if driver == "VRT" else head).startswith(mark, start):
            return driver
    local = not (is_remote(address) or is_member(address))
    # ENVI's pixels may begin with anything: a header beside a picture doesn't make it one.
    known = head.startswith(PICTURE_HEADS)
    return "ENVI" if local and not known and _envi_header(Path(address)) is not None else None


def _envi_header(path: Path) -> Path | None:
    """Return the header of an ENVI file, given it or the file of its pixels."""
    if path.suffix.lower() == ".hdr":
        places = [path]
    else:
        places = [Path(f"{path}.hdr"), path.with_suffix(".hdr"), Path(f"{path}.HDR")]
    for place in places:
        if head_of(place, 4) == b"ENVI":
            return place
    return None


def envi_pixels(path: Path) -> Path:
    """Return the file of the pixels of an ENVI header."""
    if path.suffix.lower() != ".hdr":
        return path
    stem = path.with_suffix("")
    for place in (stem, *(stem.with_suffix(suffix) for suffix in (".img", ".dat", ".bin", ".raw", ".bsq"))):
        if place.is_file():
            return place
    raise DataError("is a header of ENVI without its file", where=str(path), fix=f"put {stem.name} beside it")


@contextlib.contextmanager
def gdal(where: str, remote: bool = False) -> Iterator[Any]:
    """Give rasterio, held to our rules: no connection unless asked for, no code in files, no warnings.

    Raises:
        DataError: Whatever GDAL raises.
    """
    rasterio = need("geo", "rasterio", where)
    options: dict[str, Any] = {
        "GDAL_CACHEMAX": 256,  # MB of decoded blocks; by default it is a twentieth of the machine's memory
        "GDAL_VRT_ENABLE_PYTHON": "NO",
        "GDAL_TIFF_INTERNAL_MASK": "YES",
        "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE",  # a JPEG that ends early would be grey from there
    }
    if remote:
        # GDAL would ask the server for a list of the folder, to look for files that belong to this one.
        options["GDAL_DISABLE_READDIR_ON_OPEN"] = "EMPTY_DIR"
    else:
        # The only file name that may be asked for behind a URL, and there is none of it.
        options["CPL_VSIL_CURL_ALLOWED_FILENAME"] = "none"
    try:
        with warnings.catch_warnings(), rasterio.Env(**options):
            warnings.simplefilter("ignore")
            yield rasterio
    except MemoryError as error:
        raise DataError(
            "doesn't fit into memory", where=where, fix="read windows of it (FILE#window=…)"
        ) from error
    except (rasterio.errors.RasterioError, ValueError, TypeError) as error:
        raise DataError(f"can't be read ({_reason(error)})", where=where, fix=COPY_IT_AGAIN) from error
    except Exception as error:
        if not type(error).__name__.startswith("CPLE_"):
            raise
        raise DataError(f"can't be read ({_reason(error)})", where=where, fix=COPY_IT_AGAIN) from error


_BLOCK = re.compile(r"(.+), band (\d+): IReadBlock failed at X offset (\d+), Y offset (\d+)")


def _reason(error: BaseException) -> str:
    # What failed is in the innermost cause; where, of which file behind a VRT, is in one of those around it.
    inner, place = error, ""
    while inner.__cause__ is not None:
        inner = inner.__cause__
        if (match := _BLOCK.search(str(inner))) is not None:
            place = " in the block of column {2}, row {3} of band {1} of {0}, from 0".format(*match.groups())
    text = str(getattr(inner, "errmsg", "") or inner)
    return (text.splitlines() or [type(error).__name__])[0][:300] + place


def _open(address: str, driver: str, part: FilePart, where: str) -> tuple[Any, Any]:
    """Return the open file, and what holds its bytes in memory or None."""
    rasterio = need("geo", "rasterio", where)
    scheme = address.partition("://")[0].lower() if is_remote(address) else ""
    by_parts = scheme in _GDAL_FILES and driver in _BY_PARTS.values()
    if by_parts:
        check_allowed(address)
        name = _GDAL_FILES[scheme] + address.partition("://")[2]
        return _chosen(rasterio, name, driver, part, where), None
    if not (scheme or is_member(address)):
        path = envi_pixels(Path(address)) if driver == "ENVI" else Path(address)
        name = str(path.absolute())
        return _chosen(rasterio, name, driver, part, where), None
    memory = rasterio.MemoryFile(read_address(address))
    try:
        return _chosen(rasterio, memory.name, driver, part, where), memory
    except BaseException:
        memory.close()
        raise


def _chosen(rasterio: Any, name: str, driver: str, part: FilePart, where: str) -> Any:
    """Return the one image that is meant of a file that may hold several."""
    try:
        file = rasterio.open(name, driver=driver)
    except rasterio.errors.RasterioIOError:
        # netCDF-4 is HDF5, but not all HDF5 is netCDF-4: only opening tells.
        if driver != "netCDF":
            raise
        file = rasterio.open(name, driver="HDF5")
    inner = list(file.subdatasets)
    if file.driver == "GTiff":
        if part.layer is not None:
            raise DataError("is a TIFF, which has no layers", where=where, fix="choose a page (FILE#page=1)")
        if len(inner) > 1 and part.page is None:
            file.close()
            fix = "choose one (FILE#page=1), or save it as a file of its own"
            what = f"holds {len(inner)} pages, only one of which can be an image"
            raise DataError(what, where=where, fix=fix)
        if part.page is None or (part.page == 1 and not inner):
            return file
        file.close()
        if part.page > max(1, len(inner)):
            what = f"has no page {part.page}; it holds {max(1, len(inner))}"
            raise DataError(what, where=where, fix="name one of these (FILE#page=1)")
        return rasterio.open(inner[part.page - 1], driver="GTiff")
    if part.page is not None:
        file.close()
        raise DataError("has no pages", where=where, fix="leave `page` out of the address")
    if part.layer is None and (file.count or not inner):
        if file.count:
            return file
        file.close()
        raise DataError("holds no image", where=where, fix="name another file")
    file.close()
    names = [_layer_name(one) for one in inner]
    if part.layer is not None and names.count(part.layer) == 1:
        chosen = inner[names.index(part.layer)]
        return rasterio.open(chosen, driver="HDF5Image" if chosen.startswith("HDF5:") else None)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    what = f"holds {len(names)} data sets: {shown}" if names else "holds no data sets to choose"
    if part.layer is not None:
        what = f"has no data set {part.layer!r}; it {what}"
    raise DataError(what, where=where, fix="choose one of them (FILE#layer=NAME)")


def _layer_name(dataset: str) -> str:
    """Return the name of a data set in its file, of how GDAL calls it: `NETCDF:"file.nc":name`."""
    return re.sub(r'^\w+:(?:"[^"]*"|.*?):(?=[^:]+$)', "", dataset).lstrip("/")


class RasterPixels(Pixels):
    """A raster, open for reading; see `Pixels`.

    Args:
        address: Address of the file itself.
        driver: What `raster_driver` says.
        part: Which page or layer is meant; its window and bands are left to the caller.
        where: Address, for messages.

    Raises:
        DataError: rasterio isn't installed or can't read the file, or it holds several images.
    """

    def __init__(self, address: str, driver: str, part: FilePart, where: str) -> None:
        self.where = where
        self._address = address
        self._remote = is_remote(address)
        if driver == "VRT":
            self._remote = check_sources(address, where)
        self._page = part.page
        self._reduced: dict[int, Any] = {}
        self._memory: Any = None
        with gdal(where, self._remote):
            self._file, self._memory = _open(address, driver, part, where)
            try:
                self._describe()
            except BaseException:
                self.close()
                raise

    def _describe(self) -> None:
        file = self._file
        self.size = (file.width, file.height)
        if any(str(dtype).startswith("complex") for dtype in file.dtypes):
            what = "holds complex values, which have no one reading"
            raise DataError(what, where=self.where, fix="save amplitude or phase as a file of real numbers")
        self.dtype = np.result_type(*(np.dtype(dtype) for dtype in file.dtypes))
        if not is_remote(self._address) and not is_member(self._address):
            path = Path(self._address)
            check_length(file, envi_pixels(path) if file.driver == "ENVI" else path, self.where)
        # A tile or strip whose pixels hold all bands is decoded with all of them, whichever are wanted.
        together = (
            file.count
            if file.driver == "GTiff" and file.interleaving is not None and file.interleaving.value == "PIXEL"
            else 1
        )
        for height, width in file.block_shapes:
            bytes_ = height * width * self.dtype.itemsize * together
            if bytes_ > _LARGEST_BLOCK_BYTES:
                what = f"is compressed in pieces of {bytes_ / 1e9:.1f} GB, too large to be decoded"
                raise DataError(
                    what, where=self.where, fix="write it in tiles (gdal_translate -co TILED=YES)"
                )
        notes = []
        self._alpha = None
        if file.count > 1 and file.colorinterp[-1].name == "alpha":
            if _is_alpha(file, self._address, self.where):
                self._alpha = file.count - 1
            else:
                notes.append(f"band {file.count} is tagged as transparency, but read as a measurement")
        count = file.count - (self._alpha is not None)
        self._mask = [flag.name for flag in file.mask_flag_enums[0]] == ["per_dataset"]
        self.bands = file_bands(file, count)
        values = {band.nodata for band in self.bands}
        self.nodata = values.pop() if len(values) == 1 else None
        self.geometry, note = file_geometry(file)
        notes += [note] if note else []
        self.notes = tuple(notes)
        if count == 1 and self.dtype == np.uint8 and file.colorinterp[0].name == "palette":
            self.palette_V3 = np.zeros((256, 3), np.uint8)
            for value, colour in file.colormap(1).items():
                self.palette_V3[value] = colour[:3]
        self.is_picture = self.dtype == np.uint8 and count in (1, 3)

    @functools.cached_property
    def _factors(self) -> tuple[int, ...]:  # type: ignore[override]
        """Reductions of the file's pyramid, of those that are powers of two; each is opened once to see its size."""
        found = [1]
        with gdal(self.where, self._remote) as rasterio:
            for level, factor in enumerate(self._file.overviews(1)):
                if factor < 2 or factor & (factor - 1):
                    continue
                file = rasterio.open(self._file.name, driver=self._file.driver, overview_level=level)
                self._reduced[factor] = file
                # Others round sides down, and their pixels lie a little elsewhere.
                if (file.width, file.height) == tuple(-(-length // factor) for length in self.size):
                    found.append(factor)
        return tuple(found)

    @property
    def _all_valid(self) -> bool:
        marked = any(band.nodata is not None for band in self.bands)
        return not (marked or self._mask or self._alpha is not None or self.dtype.kind == "f")

    def _stored(self, window: Window, numbers: list[int], factor: int) -> tuple[np.ndarray, np.ndarray]:
        x1, y1, x2, y2 = window
        place = ((y1, y2), (x1, x2))
        file = self._file if factor == 1 else self._reduced[factor]
        self._check_stored((file.width, file.height), window)
        with gdal(self.where, self._remote):
            values_CHW: np.ndarray = file.read([number + 1 for number in numbers], window=place)
            values_CHW = values_CHW.astype(self.dtype, copy=False)
            valid_CHW = np.ones(values_CHW.shape, bool)
            if self._mask:
                valid_CHW &= file.read_masks(1, window=place) > 0
            if self._alpha is not None:
                valid_CHW &= file.read(self._alpha + 1, window=place) > 0
        for number, values_HW, valid_HW in zip(numbers, values_CHW, valid_CHW, strict=True):
            _mark(values_HW, self.bands[number].nodata, valid_HW)
        return values_CHW, valid_CHW

    @functools.cached_property
    def _pages(self) -> list[Page]:
        """Of a TIFF on this machine, with masks and overviews; none of other files."""
        if self._file.driver != "GTiff" or is_remote(self._address) or is_member(self._address):
            return []
        with Path(self._address).open("rb") as stream, contextlib.suppress(TiffError):
            return page_alone(read_pages(stream), self._page or 1, self.where)[1]
        return []

    def _check_stored(self, size: tuple[int, int], window: Window) -> None:
        if pages := [page for page in self._pages if page.size == size]:
            with Path(self._address).open("rb") as stream:
                check_segments(stream, pages, self.where, window)

    def close(self) -> None:
        """Close the file."""
        for file in (*self._reduced.values(), getattr(self, "_file", None), self._memory):
            if file is not None:
                file.close()


def _mark(values_HW: np.ndarray, nodata: float | None, valid_HW: np.ndarray) -> None:
    """Mark in `valid_HW` what holds nothing: nodata, compared in the type of the values; NaN and infinity."""
    if values_HW.dtype.kind == "f":
        valid_HW &= np.isfinite(values_HW)
        if nodata is not None and np.isfinite(nodata):
            with np.errstate(over="ignore"):
                valid_HW &= values_HW != values_HW.dtype.type(nodata)
    elif nodata is not None and float(nodata).is_integer():
        limits = np.iinfo(values_HW.dtype)
        if limits.min <= nodata <= limits.max:
            valid_HW &= values_HW != values_HW.dtype.type(int(nodata))


_opaque_bands: dict[tuple[str, int, int], bool] = {}


def _is_alpha(file: Any, address: str, where: str) -> bool:
    """Return whether the last band of a file that is tagged as transparency is that, by its name or its values."""
    named = named_alpha(file.descriptions[-1] or "")
    if named is not None:
        return named
    key = None
    if not (is_remote(address) or is_member(address)):
        stat = Path(address).stat()
        key = (file.name, stat.st_size, stat.st_mtime_ns)
    if key is None or key not in _opaque_bands:
        step = max(1, math.isqrt(file.width * file.height // _ALPHA_PIXELS) + 1)
        shape = (file.count, -(-file.height // step), -(-file.width // step))
        values_HWN = np.moveaxis(file.read(out_shape=shape), 0, 2)
        kind = values_HWN.dtype
        top = float(np.iinfo(kind).max) if kind.kind in "iu" else 1.0
        try:
            found = is_alpha([values_HWN], top, where, colours=file.count - 1)
        except DataError:  # it may be a measurement; as a band of its own it changes nothing else
            found = False
        if key is None:
            return found
        if len(_opaque_bands) >= 4096:
            _opaque_bands.clear()
        _opaque_bands[key] = found
    return _opaque_bands[key]
