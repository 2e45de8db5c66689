"""Where the objects of one JSON list begin and end, found by counting brackets outside of strings.

The file is looked at in large pieces with array operations: the JSON itself is not parsed. What stands between the
objects is checked, what stands within them is not.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

CHUNK = 16 << 20
_QUOTE, _BACKSLASH, _NEWLINE = ord('"'), ord("\\"), ord("\n")
_LONGEST_GAP = 64
"""Longer stretches between two objects are looked at one by one."""

_TOKENS = np.zeros(256, dtype=bool)
_TOKENS[list(b'"[]{}')] = True
_DEPTH = np.zeros(256, dtype=np.int8)
_DEPTH[list(b"[{")] = 1
_DEPTH[list(b"]}")] = -1
_OPEN, _BEGIN, _END, _CLOSE = 1, 2, 3, 4


class BrokenArray(Exception):
    """The file is not one list of objects."""


def array_rows(file: BinaryIO, seen: Callable[[bytes], None]) -> Iterator[np.ndarray]:
    """Yield blocks (n, 3) int64 of byte offset, length and line (from 1) of each object of the list.

    Args:
        file: Not empty.
        seen: Called with all bytes, in order.

    Raises:
        BrokenArray: The file is not one list of objects.
    """
    scan = _Scan(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for base in range(0, len(scan.data), CHUNK):
        chunk = scan.data[base : base + CHUNK]
        seen(chunk)
        yield scan.take(base, np.frombuffer(chunk, np.uint8))
    scan.finish()


@dataclass
class _Scan:
    """What has to be known from one piece of the file to the next.

    Attributes:
        data: The file.
        depth: Open brackets.
        in_string: Whether a string is open.
        escaped: Whether an odd number of backslashes stands right before.
        lines: Line breaks so far.
        last: End of the last event: of the list's opening, of an object's beginning or end.
        last_kind: Of that event; 0 before the first.
        begin: Offset and line of the object that is open.
    """

    data: mmap.mmap
    depth: int = 0
    in_string: bool = False
    escaped: bool = False
    lines: int = 0
    last: int = 0
    last_kind: int = 0
    begin: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.last = 3 if self.data[:3] == b"\xef\xbb\xbf" else 0

    def take(self, base: int, bytes_N: np.ndarray) -> np.ndarray:
        """Return the objects that end in the next piece of the file."""
        places, kinds = self._events(bytes_N)
        newlines = np.flatnonzero(bytes_N == _NEWLINE)
        self._check_gaps(places + base, kinds)
        begins, ends = places[kinds == _BEGIN], places[kinds == _END] + base + 1
        lines = np.searchsorted(newlines, begins) + self.lines + 1
        begins = begins + base
        if self.begin is not None:
            begins, lines = np.append(self.begin[0], begins), np.append(self.begin[1], lines)
        whole = len(ends)
        self.begin = (int(begins[-1]), int(lines[-1])) if len(begins) > whole else None
        self.lines += len(newlines)
        if len(places):
            self.last, self.last_kind = int(places[-1]) + base + 1, int(kinds[-1])
        return np.stack([begins[:whole], ends - begins[:whole], lines[:whole]], axis=1).astype(np.int64)

    def finish(self) -> None:
        """Raise unless the list was closed, and nothing follows it."""
        if self.last_kind != _CLOSE or self.depth or self.data[self.last :].strip():
            raise BrokenArray

    def _events(self, bytes_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return places and kinds of the brackets on the level of the list and of its objects.

        A list of objects is `_OPEN (_BEGIN _END)* _CLOSE`; the depth sees to the order, so all that is left to
        check is that there is no other bracket on these levels, and one `_OPEN` only.
        """
        places = np.flatnonzero(_TOKENS[bytes_N])
        marks = bytes_N[places]
        quotes = self._real_quotes(bytes_N, places, marks)
        inside = (np.cumsum(quotes) - quotes + self.in_string) % 2 == 1
        self.in_string ^= bool(np.count_nonzero(quotes) % 2)
        outside = (marks != _QUOTE) & ~inside
        places, marks = places[outside], marks[outside]
        steps = _DEPTH[marks]
        after = self.depth + np.cumsum(steps, dtype=np.int64)
        before = after - steps
        self.depth = int(after[-1]) if len(after) else self.depth
        kinds = np.select(
            [
                (marks == ord("[")) & (before == 0),
                (marks == ord("{")) & (before == 1),
                (steps < 0) & (before == 2),
                (marks == ord("]")) & (before == 1),
            ],
            [_OPEN, _BEGIN, _END, _CLOSE],
            default=0,
        )
        shallow = np.minimum(before, after) <= 1
        places, kinds = places[shallow], kinds[shallow]
        opened = np.count_nonzero(kinds == _OPEN) + (self.last_kind != 0)
        if not kinds.all() or opened > 1:
            raise BrokenArray
        return places, kinds

    def _real_quotes(self, bytes_N: np.ndarray, places: np.ndarray, marks: np.ndarray) -> np.ndarray:
        """Return which of the marks are quotes that no backslash escapes."""
        quotes = marks == _QUOTE
        slashes = np.flatnonzero(bytes_N == _BACKSLASH)
        carried, self.escaped = self.escaped, False
        if not len(slashes):
            if carried and len(places) and places[0] == 0:
                quotes[0] = False
            return quotes
        # Runs of backslashes: a quote right after one is escaped when the run is of odd length.
        starts = np.flatnonzero(np.diff(slashes, prepend=-2) > 1)
        ends = np.append(starts[1:], len(slashes)) - 1
        odd = (ends - starts) % 2 == 0
        if carried and slashes[0] == 0:
            odd[0] = not odd[0]
        escaped = slashes[ends[odd]] + 1
        if carried and slashes[0] != 0:
            escaped = np.append(0, escaped)
        if len(escaped) and escaped[-1] == len(bytes_N):
            self.escaped = True
        return quotes & ~np.isin(places, escaped, assume_unique=True)

    def _check_gaps(self, places: np.ndarray, kinds: np.ndarray) -> None:
        """Raise unless objects are parted by a comma, and nothing else stands between the brackets."""
        begins = np.append(self.last, places[:-1] + 1)[: len(places)]
        before = np.append(self.last_kind, kinds[:-1])[: len(places)]
        parted = (kinds == _BEGIN) & (before == _END)
        for begin, end in zip(
            begins[~parted & (kinds != _END)].tolist(),
            places[~parted & (kinds != _END)].tolist(),
            strict=True,
        ):
            if self.data[begin:end].strip():
                raise BrokenArray
        lengths = places[parted] - begins[parted]
        for length in np.unique(lengths).tolist():
            some = begins[parted][lengths == length]
            if length > _LONGEST_GAP:
                texts = {self.data[at : at + length] for at in some.tolist()}
            else:
                texts = self._texts(some, length)
            if any(text.strip() != b"," for text in texts):
                raise BrokenArray

    def _texts(self, begins: np.ndarray, length: int) -> set[bytes]:
        """Return the different texts of a length that begin at some places."""
        first = self.data[int(begins[0]) : int(begins[0]) + length]
        view = np.frombuffer(self.data, np.uint8)
        same = np.ones(len(begins), dtype=bool)
        for offset in range(length):
            same &= view[begins + offset] == first[offset]
        return {first, *(self.data[at : at + length] for at in begins[~same].tolist())}
