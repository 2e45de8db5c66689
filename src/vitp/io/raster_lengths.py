"""How long a file must be by its own head, of formats for whose missing end GDAL reads zeros."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vitp.core.errors import DataError

_NETCDF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
"""Type of a value in netCDF's classic format → its size."""
_MOST_ITEMS = 1 << 16


def check_length(file: Any, path: Path, where: str) -> None:
    """Do nothing for an open file that is as long as it must be, or whose format GDAL checks by itself.

    Raises:
        DataError: It is shorter.
    """
    if file.driver == "ENVI":
        told = {key.lower(): value for key, value in file.tags(ns="ENVI").items()}
        if told.get("file_compression", "0") != "0":
            return
        sizes = sum(np.dtype(dtype).itemsize for dtype in file.dtypes)
        needed = int(told.get("header_offset", 0)) + file.width * file.height * sizes
    elif file.driver == "netCDF":
        try:
            with path.open("rb") as stream:
                needed = _netcdf_length(stream)
        except (struct.error, KeyError, IndexError, ValueError) as error:
            what = "is damaged: its head can't be read"
            raise DataError(what, where=where, fix="copy it again from its source or remove it") from error
    else:
        return
    held = path.stat().st_size
    if held < needed:
        what = f"is damaged: it has {held:,} bytes, where its head tells {needed:,}"
        raise DataError(what, where=where, fix="copy it again from its source or remove it")


def _netcdf_length(stream: BinaryIO) -> int:
    """Return where the values of a file of netCDF's classic format end; 0 of a file of another format."""
    magic = stream.read(4)
    if magic[:3] != b"CDF":
        return 0
    # The three versions of the format differ in this alone: 32 or 64 bits for numbers, and for places.
    count, offset = ">q" if magic[3] == 5 else ">i", ">i" if magic[3] == 1 else ">q"

    def number(form: str = count) -> int:
        (value,) = struct.unpack(form, stream.read(struct.calcsize(form)))
        return int(value)

    def items() -> range:
        number(">i")
        found = number()
        if not 0 <= found <= _MOST_ITEMS:
            raise ValueError(f"{found} items")
        return range(found)

    def skip(length: int) -> None:
        if len(stream.read(length + -length % 4)) < length:
            raise ValueError("it ends in its head")

    def skip_attributes() -> None:
        for _ in items():
            skip(number())
            skip(_NETCDF_BYTES[number(">i")] * number())

    records = number()
    lengths = []
    for _ in items():
        skip(number())
        lengths.append(number())
    skip_attributes()
    ends, of_records = [0], []
    for _ in items():
        skip(number())
        shape = [lengths[number()] for _ in range(number())]
        skip_attributes()
        size = _NETCDF_BYTES[number(">i")]
        number()  # its size, which isn't true of large ones
        begin = number(offset)
        # Length 0 marks the growing dimension: the records of all such variables take turns, behind all others.
        if shape and shape[0] == 0:
            size *= math.prod(shape[1:])
            of_records.append((begin, size))
        else:
            ends.append(begin + size * math.prod(shape))
    # Of a single such variable the records lie side by side, however short they are.
    alone = len(of_records) == 1
    in_record = sum(size if alone else size + -size % 4 for _, size in of_records)
    ends += [begin + (records - 1) * in_record + size for begin, size in of_records if records > 0]
    return max(ends)
