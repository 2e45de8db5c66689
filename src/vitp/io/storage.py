"""Bytes of local files and of remote ones (fsspec), by position; and the addresses that name them.

URLs are opened only where the user has allowed their scheme: see `vitp.core.remote`.

| address | what |
|---|---|
| `folder/image.png` | a file |
| `s3://bucket/image.png`, `https://…` | a file behind a URL, by the fsspec package of that scheme |
| `tar:shards/000.tar#1024+5310/image.png` | 5,310 bytes from byte 1,024 of a tar file, local or behind a URL |
| `scene:…` | a generated image |

Of an image, an address may also name a part: see `vitp.io.parts`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from io import FileIO
from pathlib import Path
from urllib.parse import quote, unquote

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.core.files import atomic_path
from vitp.core.reading import check_file
from vitp.core.remote import check_allowed

COPY_IT_AGAIN = "copy it again from its source or remove it"
"""What to do about a damaged file."""

SCENE_PREFIX = "scene:"
"""Begins the address of a generated image, which has no file."""
TAR_PREFIX = "tar:"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_MEMBER = re.compile(r"tar:(?P<file>.*)#(?P<offset>\d{1,18})\+(?P<size>\d{1,18})/(?P<name>.*)", re.DOTALL)


@contextlib.contextmanager
def readable(path: str | Path, fix: str = "check the path") -> Iterator[None]:
    """Turn the operating system's refusal to open or read a file into a `DataError` that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=str(path), fix=fix) from error


class LocalBytes:
    """A file on disk, read by position. Safe to fork and to share between threads: no place moves.

    Attributes:
        size: Size in bytes.
        version: Changes when the file does.

    Raises:
        OSError: As `open` does.
    """

    def __init__(self, path: Path) -> None:
        check_file(path)
        self._file = FileIO(path)
        stat = os.fstat(self._file.fileno())
        self.size, self.version = stat.st_size, stat.st_mtime_ns

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer at the end of the file."""
        return os.pread(self._file.fileno(), max(0, min(length, self.size - offset)), offset)


class RemoteBytes:
    """A file behind a URL, with the attributes of `LocalBytes`; each read is a request.

    Raises:
        DataError: The scheme isn't allowed (`vitp.core.remote`), there is no package for it, or no such file.
    """

    def __init__(self, url: str) -> None:
        check_allowed(url)
        try:
            # Optional, and slow to import: most runs read local files only.
            self._system, self._path = need("remote", "fsspec.core", url).url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise DataError(
                f"no package reads this scheme ({_reason(error)})",
                where=url,
                fix="install vitp[remote], or the fsspec package of the scheme",
            ) from error
        try:
            info = self._system.info(self._path)
            self.size = int(info["size"])
        except FileNotFoundError as error:
            raise DataError("is missing", where=url, fix="check the URL") from error
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"can't be reached ({_reason(error)})", where=url, fix="check the URL") from error
        # Stores have different names for what tells two versions of a file apart.
        marks = [str(info.get(key)) for key in ("ETag", "etag", "mtime", "LastModified", "created")]
        digest = hashlib.sha256("|".join([str(self.size), *marks]).encode()).digest()
        self.version = int.from_bytes(digest[:7], "little")
        self._url = url

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer at the end of the file."""
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        try:
            data: bytes = self._system.cat_file(self._path, start=offset, end=end)
            return data
        except OSError as error:
            raise DataError(
                f"can't be read ({_reason(error)})", where=self._url, fix="check the network, then resume"
            ) from error


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_remote(address: str | Path) -> bool:
    """Return whether an address is a URL. A `Path` never is: it would have lost a slash."""
    return isinstance(address, str) and _SCHEME.match(address) is not None


def is_member(address: str | Path) -> bool:
    """Return whether an address is that of a part of a tar file."""
    return isinstance(address, str) and address.startswith(TAR_PREFIX)


def member_address(tar: str, offset: int, size: int, name: str) -> str:
    """Return the address of a part of a tar file."""
    return f"{TAR_PREFIX}{tar}#{offset}+{size}/{quote(name)}"


def join(root: str | Path, name: str) -> str:
    """Return the address of a name in a folder or below a URL; a whole address stays as it is."""
    if is_remote(name) or is_member(name) or name.startswith(SCENE_PREFIX):
        return name
    if is_remote(root):
        return f"{str(root).rstrip('/')}/{name.lstrip('/')}"
    return str(Path(root) / name)  # an absolute path wins over the root


def parent(address: str | Path) -> str | Path:
    """Return the folder, or the URL, that an address stands in."""
    return str(address).rpartition("/")[0] if is_remote(address) else Path(address).parent


@lru_cache(maxsize=256)
def open_bytes(address: str) -> LocalBytes | RemoteBytes:
    """Return a local or remote file, opened once a process.

    Raises:
        OSError: A local file can't be opened.
        DataError: A remote one can't.
    """
    return RemoteBytes(address) if is_remote(address) else LocalBytes(Path(address))


def read_address(address: str) -> bytes:
    """Return all bytes behind the URL or the member address of an image.

    Raises:
        DataError: The file is missing, can't be read, or is shorter than the address says.
    """
    if not is_member(address):
        source = open_bytes(address)
        return source.read(0, source.size)
    match = _MEMBER.fullmatch(address)
    if match is None:
        raise DataError("is no address of a tar member", where=address, fix="use those that shards give")
    offset, size = int(match["offset"]), int(match["size"])
    with readable(address, "check the path of the shard"):
        data = open_bytes(match["file"]).read(offset, size)
    if len(data) < size:
        raise DataError("the shard is cut off", where=address, fix="copy the shard again from its source")
    return data


def member_name(address: str) -> str:
    """Return the name of a tar member, from its address."""
    match = _MEMBER.fullmatch(address)
    return unquote(match["name"]) if match else address


def local_copy(url: str, folder: Path) -> Path:
    """Return a local copy of a remote file, fetched when there is none of its present version.

    Args:
        url: URL of the file.
        folder: Folder that keeps the copies.

    Raises:
        DataError: The file can't be fetched.
        VitpError: There is no room for it.
    """
    source = RemoteBytes(url)
    name = url.rpartition("/")[2]
    key = hashlib.sha256(f"{url} {source.version}".encode(errors="surrogatepass")).hexdigest()[:16]
    path = folder / key / name
    if path.is_file() and path.stat().st_size == source.size:
        return path
    with atomic_path(path) as temporary, temporary.open("wb") as out:
        step = 16 << 20
        for offset in range(0, source.size, step):
            out.write(source.read(offset, step))
    return path
