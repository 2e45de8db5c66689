"""Random permutations that are computed, not stored."""

from __future__ import annotations

import hashlib
import math

_ROUNDS = 8
_TABLE_UP_TO = 256  # a network over so few values is visibly uneven; sorting by random numbers is exact
_MASK = (1 << 64) - 1


class Permutation:
    """A seeded bijection of 0..n-1 in constant memory: about 5 µs an element, whatever n is.

    An alternating Feistel network over a × b ≥ n with modular addition; values of n and above are sent
    through the network again until they fall below n (cycle walking), which keeps it a bijection. Since
    a·b < n + √n + 1, that happens rarely.

    Args:
        size: n, at least 1.
        key: Anything that names this permutation; another key gives an independent one.
    """

    __slots__ = ("_keys", "_left", "_right", "_table", "size")

    def __init__(self, size: int, *key: int | str) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, not {size}")
        self.size = size
        self._left = math.isqrt(size - 1) + 1
        self._right = -(-size // self._left)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, 8 * _ROUNDS, 8))
        self._table: list[int] | None = None
        if size <= _TABLE_UP_TO:
            self._table = sorted(range(size), key=lambda index: _mix(index ^ self._keys[0]))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(f"{index} is outside 0..{self.size - 1}")
        if self._table is not None:
            return self._table[index]
        index = self._once(index)
        while index >= self.size:
            index = self._once(index)
        return index

    def _once(self, index: int) -> int:
        left, right = divmod(index, self._right)
        for to_left, to_right in zip(self._keys[::2], self._keys[1::2], strict=True):
            left = (left + _mix(right ^ to_left)) % self._left
            right = (right + _mix(left ^ to_right)) % self._right
        return left * self._right + right


def _mix(value: int) -> int:
    """Return a well-mixed 64-bit number (the finaliser of SplitMix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
