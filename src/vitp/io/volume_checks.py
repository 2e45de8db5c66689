"""What every reader of volumes makes sure of, and where it says that voxels lie."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import silenced
from vitp.io.acquisition import Acquisition
from vitp.io.storage import COPY_IT_AGAIN
from vitp.io.volume import Volume
from vitp.io.volume_grid import Affine, VolumeGrid

MOST_IN_GZIP = 1032
"""Bytes that one byte of a gzip file can stand for."""
LARGEST_HELD_BYTES = 512 << 20
"""Of the voxels of a file that are held, so that layers across its order are read at once."""
MOST_BANDS = 4096
NOT_PLACED = "doesn't say how it lies in the patient; its slices are shown as stored"


@contextlib.contextmanager
def quiet(where: str, what: str = "can't be read: it is damaged, or cut off") -> Iterator[None]:
    """Turn whatever a library raises into a `DataError`, without its words: these quote the file's own text."""
    try:
        with silenced("nibabel.global", logging.CRITICAL + 1):
            yield
    except (DataError, KeyboardInterrupt):
        raise
    except MemoryError as error:
        raise DataError("needs more memory than there is", where=where, fix="use a smaller volume") from error
    except FileNotFoundError as error:
        what = "lacks a file that belongs to it"
        raise DataError(what, where=where, fix="copy header and voxels to one folder") from error
    except OSError as error:
        reason = f" ({error.strerror})" if error.strerror else ""
        raise DataError(
            f"can't be read{reason}: it is damaged, or cut off", where=where, fix=COPY_IT_AGAIN
        ) from error
    except ModuleNotFoundError as error:
        # Of a package that is there: those that we import ourselves are named by `need`.
        needed = f"needs the package {error.name} to be read"
        raise DataError(needed, where=where, fix=f"install it: `pip install {error.name}`") from error
    except Exception as error:
        raise DataError(f"{what} ({type(error).__name__})", where=where, fix=COPY_IT_AGAIN) from error


def affine_of(matrix_44: np.ndarray) -> Affine:
    """Return a matrix as tuples."""
    a, b, c, d = ((float(row[0]), float(row[1]), float(row[2]), float(row[3])) for row in matrix_44)
    return a, b, c, d


def places_voxels(matrix_44: np.ndarray) -> bool:
    """Return whether a matrix places voxels: finite, and no axis without length or along another."""
    if matrix_44.shape != (4, 4) or not np.isfinite(matrix_44).all():
        return False
    lengths = np.linalg.norm(matrix_44[:3, :3], axis=0)
    if not (lengths > 1e-9).all() or (lengths > 1e9).any():
        return False
    return bool(abs(np.linalg.det(matrix_44[:3, :3] / lengths)) > 1e-3)


def plane_taken(grid: VolumeGrid) -> str | None:
    """Return in which plane the slices were taken, of which the widest step tells; None: it isn't known."""
    if grid.affine is None:
        return None
    plane = grid.plane
    axis, _ = grid.layer(0, plane)
    column = np.array(grid.affine)[:3, axis]
    straight = np.abs(column).max() / np.linalg.norm(column)
    return plane if straight > math.cos(math.radians(25)) else "oblique"


def as_one_file(volume: Volume, notes: Sequence[str], findings: Sequence[str] = ()) -> Volume:
    """Return an opened volume with what is known of one that is a single file."""
    volume.notes, volume.findings = tuple(notes), tuple(findings)
    volume.source = (Path(volume.where),)
    plane = plane_taken(volume.grid)
    volume.acquisition = None if plane is None else Acquisition(plane=plane)
    return volume


def no_series(series: str | None, where: str) -> None:
    """Refuse the choice of a series of a file that is one volume."""
    if series is not None:
        what = "is one volume, of which no series can be chosen"
        raise DataError(what, where=where, fix="leave #series= out")


def check_held(wanted: int, most: int, where: str) -> None:
    """Refuse a file that can't hold as many bytes as it says, before anything is decoded."""
    if wanted > most:
        what = f"says that it holds {wanted:,} bytes, and can't: it is damaged, or cut off"
        raise DataError(what, where=where, fix=COPY_IT_AGAIN)


def check_shape(shape: tuple[int, ...], where: str) -> None:
    """Refuse sizes that no image has, and more volumes than are read as bands."""
    if len(shape) < 2 or min(shape) < 1:
        size = "×".join(map(str, shape))
        raise DataError(f"says that its size is {size or 'none'}", where=where, fix=COPY_IT_AGAIN)
    bands = math.prod(shape[3:])
    if bands > MOST_BANDS:
        what = f"holds {bands} volumes; up to {MOST_BANDS} are read as bands"
        raise DataError(what, where=where, fix="save some of them as a file of their own")


def no_affine(where: str) -> DataError:
    """Return what to say of a file whose affine can't be used."""
    what = "has an affine that places no voxels: it isn't finite, or an axis has no length"
    return DataError(what, where=where, fix="write the file again with its right affine")
