"""`open_volume`: volumes of voxels, their slices as images.

| kind | behind it |
|---|---|
| DICOM: a file, or a series in a folder | `vitp.io.dicom_volume` |
| NIfTI, MGZ, Analyze, MINC, PAR/REC, AFNI | `vitp.io.volume_files`, by nibabel |
| NRRD, MetaImage (MHA, MHD) | `vitp.io.volume_itk`, by SimpleITK |

Opened volumes are kept, within bounds, by each process for itself: a slice is asked for by its address, again and
again. Nothing that was opened crosses a fork.

Shapes: C bands, N slices of H × W pixels, I × J × K voxels.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from pathlib import Path

from vitp.core.errors import DataError
from vitp.io.dicom_volume import open_dicom
from vitp.io.parts import braced, split_address
from vitp.io.storage import is_member, is_remote
from vitp.io.volume import JoinedVolume, Volume
from vitp.io.volume_files import open_with_nibabel
from vitp.io.volume_itk import open_with_itk
from vitp.io.volume_kinds import volume_kind

__all__ = ["Volume", "is_volume", "open_volume"]

_MOST_KEPT = 64
LARGEST_KEPT_BYTES = 512 << 20
"""Of the voxels of all volumes that a process keeps open."""

_READERS = {"dicom": open_dicom, "nibabel": open_with_nibabel, "itk": open_with_itk}


class _Kept:
    """The volumes that this process has opened, the last used ones at the end."""

    def __init__(self) -> None:
        self.volumes: OrderedDict[tuple[object, ...], Volume] = OrderedDict()
        self.lock = threading.Lock()
        self.process = os.getpid()


_kept = _Kept()


def open_volume(address: str | Path) -> Volume:
    """Open a volume: a file, or a folder that holds the files of a DICOM series.

    Args:
        address: Of the volume; `#series=` chooses one of several series of a folder. What it says of a slice doesn't
            matter. Words in braces, `case_{0000,0001}.nii.gz`, join several files as bands.

    Raises:
        DataError: It is missing, is no volume, needs the extra `medical`, or is damaged.
    """
    base, part = split_address(address)
    return _open(base, part.series)


def is_volume(address: str | Path) -> bool:
    """Return whether an address names a volume, a slice of one, or a medical image."""
    base, _ = split_address(address)
    names = braced(base)
    return volume_kind(names[0][1] if names else base) is not None


def _open(base: str, series: str | None) -> Volume:
    if is_remote(base) or is_member(base):
        what = "is a volume that isn't a file of its own here; volumes are read from folders of this machine"
        raise DataError(what, where=base, fix="copy it to a folder")
    names = braced(base)
    if names:
        return JoinedVolume(base, [(word, _open(path, series)) for word, path in names])
    key = _key(base, series)
    global _kept
    if _kept.process != os.getpid():
        _kept = _Kept()
    with _kept.lock:
        if key in _kept.volumes:
            _kept.volumes.move_to_end(key)
            return _kept.volumes[key]
    kind = volume_kind(base)
    if kind is None:
        path = Path(base)
        what = "is no volume" if path.exists() else "is missing"
        if path.is_dir():
            what = "is a folder that holds no DICOM files"
        fix = "name a DICOM file or series, NIfTI, MGZ, NRRD or MHA" if path.exists() else "check the path"
        raise DataError(what, where=base, fix=fix)
    # Outside the lock: a volume that opens slowly holds up no thread that wants another one.
    volume = _READERS[kind](base, series)
    with _kept.lock:
        _kept.volumes[key] = volume
        _trim(_kept.volumes)
    return volume


def _trim(volumes: OrderedDict[tuple[object, ...], Volume]) -> None:
    """Forget the volumes that were not used for longest, and voxels that are held for speed alone."""
    while len(volumes) > _MOST_KEPT:
        volumes.popitem(last=False)
    held = sum(volume.held_bytes for volume in volumes.values())
    # The last is the one that was asked for just now.
    for volume in list(volumes.values())[:-1]:
        if held <= LARGEST_KEPT_BYTES:
            break
        held -= volume.held_bytes
        volume.release()


def _key(base: str, series: str | None) -> tuple[object, ...]:
    """Return what stays the same as long as a volume does."""
    path = Path(base).absolute()
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return str(path), series
    files: list[int] = []
    if path.is_dir():
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            own = [entry.stat() for entry in entries if entry.is_file()]
            files = [
                len(own),
                sum(one.st_size for one in own),
                max(one.st_mtime_ns for one in own) if own else 0,
            ]
    return str(path), series, stat.st_size, stat.st_mtime_ns, stat.st_ino, *files
