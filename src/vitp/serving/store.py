"""Images of a server: what clients have sent, and files below the root; each is looked at before it is decoded."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vitp.core.errors import DataError
from vitp.io.ground import RASTER_SUFFIXES
from vitp.io.image_file import open_image
from vitp.io.images import IMAGE_SUFFIXES
from vitp.io.open_pixels import is_picture_file, open_pixels
from vitp.io.parts import FilePart, part_address, split_address
from vitp.io.rasters import raster_driver
from vitp.io.slides import slide_kind
from vitp.io.volume_kinds import volume_kind
from vitp.io.volumes import is_volume, open_volume
from vitp.records.instructions import text_problem
from vitp.serving.refusal import Refusal, refusal_of

MOST_IMAGES = 64
"""Of clients that are kept."""

_TAKEN = "PNG, JPEG, WebP, BMP, GIF, PNM, TIFF, GeoTIFF, JPEG 2000, slides and DICOM are read"
_WITH_FILES = {"VRT": "a virtual raster, which names other files", "ENVI": "a raster of several files"}
_OF_ROOT = frozenset({"netCDF", "HFA"})
_SUFFIX_OF = {"GTiff": ".tif", "JP2OpenJPEG": ".jp2"}
"""GDAL's names of rasters that are one file which names no other → suffix of such a file."""


@dataclass
class StoredImage:
    """An image that requests may be about.

    Attributes:
        address: As `vitp.io.parts` has them.
        size: Width and height.
        bands: Names.
        name: What it is called for clients: its place below the root, or "upload".
        bytes: Bytes of the file.
        own: Whether the file is the server's and removed with it.
        windowed: Whether parts of it are read without the whole.
        placed: Whether it says where it lies on the ground.
        users: Requests that are about it.
        gone: Whether it isn't kept any more.
    """

    address: str
    size: tuple[int, int]
    bands: tuple[str, ...]
    name: str
    bytes: int
    own: bool
    windowed: bool
    placed: bool
    users: int = 0
    gone: bool = False

    @property
    def pixels(self) -> int:
        """Of the image."""
        return self.size[0] * self.size[1]

    def described(self) -> dict[str, Any]:
        """Return what clients learn of it."""
        width, height = self.size
        return {
            "width": width,
            "height": height,
            "bands": list(self.bands),
            "name": self.name,
            "placed": self.placed,
        }


class ImageStore:
    """The images that clients have sent, within bounds; the oldest go first.

    Args:
        folder: Folder for their files.
        root: Below which files may be named; None: none may.
        most_pixels: Most pixels of an image that is decoded.
        most_bytes: Most bytes of all files together.
    """

    def __init__(self, folder: Path, root: Path | None, most_pixels: int, most_bytes: int) -> None:
        self.folder, self.most_pixels, self.most_bytes = folder, most_pixels, most_bytes
        self.root = None if root is None else root.resolve()
        self._kept: OrderedDict[str, StoredImage] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, file: BinaryIO, name: str) -> StoredImage:
        """Write what a client has sent into a file, and look at it.

        Args:
            file: Open file, read from its beginning.
            name: As the client calls it; of it the suffix alone is used.

        Raises:
            Refusal: It is no image, or too large.
        """
        suffix = Path(name.replace("\\", "/")).suffix.lower()
        suffix = suffix if suffix in IMAGE_SUFFIXES | RASTER_SUFFIXES else ""
        path = self.folder / f"upload-{secrets.token_hex(12)}{suffix}"
        try:
            with path.open("wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
            path = _with_suffix(path)
            return self._looked_at(path, "upload", own=True)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def keep(self, image: StoredImage) -> str:
        """Keep an image for later requests; return its id."""
        number = secrets.token_urlsafe(12)
        with self._lock:
            self._kept[number] = image
            while len(self._kept) > MOST_IMAGES or (
                len(self._kept) > 1
                and sum(one.bytes for one in self._kept.values() if one.own) > self.most_bytes
            ):
                oldest = self._kept.popitem(last=False)[1]
                oldest.gone = True
                if not oldest.users:
                    self._remove(oldest)
        return number

    @contextmanager
    def used(self, image: StoredImage | str) -> Iterator[StoredImage]:
        """Yield an image, or the one of an id, whose file stays until the request is done.

        Raises:
            Refusal: There is none.
        """
        with self._lock:
            if isinstance(image, str):
                if image not in self._kept:
                    raise Refusal(
                        404, "there is no such image, or it was replaced by later ones; send it again"
                    )
                self._kept.move_to_end(image)
                image = self._kept[image]
            image.users += 1
        try:
            yield image
        finally:
            with self._lock:
                image.users -= 1
                if image.gone and not image.users:
                    self._remove(image)

    def passing(self, image: StoredImage) -> StoredImage:
        """Return an image that goes when its one request is done."""
        image.gone = True
        return image

    def _remove(self, image: StoredImage) -> None:
        if image.own:
            with suppress(OSError):
                Path(split_address(image.address)[0]).unlink()

    def below_root(self, name: str) -> StoredImage:
        """Return the image of a file below the root.

        Args:
            name: Its place there, parts separated by `/`, or by `\\` where no file is called so.

        Raises:
            Refusal: There is no root, no such file below it, or it is no image.
        """
        if self.root is None:
            raise Refusal(
                422, "no files can be named here: the server was started without --root; send the image"
            )
        path = self._path_below(name)
        return self._looked_at(path, path.relative_to(self.root).as_posix(), own=False)

    def _path_below(self, name: str) -> Path:
        assert self.root is not None
        # A name is never decoded, and an address of a part (`#window=…`) is no file: what is named must be there.
        # On Windows a colon would name a drive, or another stream of a file.
        odd = text_problem(name) is not None or (os.name == "nt" and ":" in name)
        slashed = name.replace("\\", "/")
        # Elsewhere a backslash may belong to the name itself.
        for one in () if odd or len(name) > 4096 else (slashed,) if os.name == "nt" else (name, slashed):
            if not one.strip("/") or one.startswith("/") or ".." in one.split("/"):
                continue
            with suppress(OSError, ValueError, RuntimeError):
                # Links are followed before it is asked whether the file lies below the root.
                path = (self.root / one).resolve(strict=True)
                if path.is_relative_to(self.root) and path.is_file():
                    return path
        raise Refusal(404, "there is no such file below the root")

    def samples(self, most: int) -> list[dict[str, Any]]:
        """Return name and bytes of images below the root, by name; links that lead out of it are left out."""
        if self.root is None:
            return []
        found = []
        for path in sorted(self._walked(self.root, depth=4)):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.resolve().is_relative_to(self.root):
                name = path.relative_to(self.root).as_posix()
                with suppress(Refusal, OSError):
                    found.append({"name": name, "bytes": self._path_below(name).stat().st_size})
            if len(found) >= most:
                break
        return found

    def _walked(self, folder: Path, depth: int) -> Iterator[Path]:
        with suppress(OSError):
            for path in sorted(folder.iterdir()):
                if path.name.startswith("."):
                    continue
                if path.is_dir() and not path.is_symlink() and depth:
                    yield from self._walked(path, depth - 1)
                elif path.is_file():
                    yield path

    def _looked_at(self, path: Path, name: str, *, own: bool) -> StoredImage:
        address = str(path)
        try:
            address = _checked_kind(path, own)
            with open_pixels(address) as pixels:
                size, bands, placed = pixels.size, pixels.names, pixels.geometry is not None
            windowed = not (is_picture_file(address) or is_volume(address))
            image = StoredImage(address, size, bands, name, path.stat().st_size, own, windowed, placed)
        except (DataError, MemoryError) as error:
            raise refusal_of(error, {address: "the image", str(path): "the image"}) from error
        if own or not image.windowed:
            self.check_pixels(image)
        return image

    def check_pixels(self, image: StoredImage) -> None:
        """Do nothing where an image isn't too large to be decoded or predicted as a whole.

        Raises:
            Refusal: It is.
        """
        if image.pixels > self.most_pixels:
            width, height = image.size
            raise Refusal(
                413,
                f"the image has {width}×{height} pixels, the most that are taken are {self.most_pixels:,}; send a part of it",
            )


def _with_suffix(path: Path) -> Path:
    """Return a file under a name whose suffix says what it is, where it has none: places are looked for by it."""
    driver = raster_driver(str(path))
    if driver not in _SUFFIX_OF or path.suffix in RASTER_SUFFIXES | IMAGE_SUFFIXES:
        return path
    return path.rename(path.with_suffix(_SUFFIX_OF[driver]))


def _checked_kind(path: Path, own: bool) -> str:
    """Return the address of a file that holds one image, of a kind that opens no other file.

    Raises:
        Refusal: It is of another kind.
        DataError: It is damaged.
    """
    address = str(path)
    kind = volume_kind(address)
    if kind == "dicom":
        count = max(open_volume(address).grid.slices_shape(None)[0], 1)
        if count > 1:
            raise Refusal(
                422, f"the image is a volume of {count} slices; send one of them, or use vitp predict"
            )
        return part_address(address, FilePart(slice=0))
    if kind is not None:
        raise Refusal(422, "the image is a volume; send one of its slices as a picture, or use vitp predict")
    driver = raster_driver(address)
    if driver in _WITH_FILES:
        raise Refusal(415, f"the image is {_WITH_FILES[driver]}; send a GeoTIFF")
    if driver in _OF_ROOT and own:
        raise Refusal(415, f"the image is of a kind that isn't taken from clients; {_TAKEN}")
    if driver is None and slide_kind(address) is None:
        try:
            with open_image(address):
                pass
        except DataError as error:
            if error.what.startswith("image is too large"):
                raise Refusal(413, f"the {error.what}") from error
            if error.what.startswith("is not an image"):
                raise Refusal(415, f"the file {error.what}; {_TAKEN}") from error
            raise
    return address
