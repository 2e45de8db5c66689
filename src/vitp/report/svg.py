"""Small pieces of SVG: elements, axes and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

PALETTE_SIZE = 7
"""How many series colours the style sheet holds (`--c0` …): Okabe and Ito's, safe for colour-blind readers."""

# The page's sans-serif type is about this wide, in parts of its size: to reserve room without measuring.
_CHARACTER = 0.56


def element(tag: str, /, *children: str, text: str | None = None, **attributes: str | float | None) -> str:
    """Return one SVG element. Attribute values and `text` are escaped; `children` must be SVG already.

    A trailing underscore is dropped from attribute names and other underscores become hyphens
    (`class_`, `stroke_width`); None leaves an attribute out.
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is None:
            continue
        shown = compact(value) if isinstance(value, float) else str(value)
        parts.append(f'{name.rstrip("_").replace("_", "-")}="{escape(shown, quote=True)}"')
    inner = "".join(children) + (escape(text) if text is not None else "")
    return f"<{' '.join(parts)}>{inner}</{tag}>" if inner else f"<{' '.join(parts)}/>"


def compact(value: float) -> str:
    """Return a coordinate with at most two decimals and no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def series_class(index: int) -> str:
    """Return the style class of the `index`-th series; colours repeat after `PALETTE_SIZE`."""
    return f"s{index % PALETTE_SIZE}"


def text_width(text: str, size: float) -> float:
    """Return about how wide `text` is in type of `size`."""
    return len(text) * size * _CHARACTER


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers that lie within low..high."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the 1-2-5 numbers (or only powers of ten, over three decades and more) within low..high > 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps: Sequence[int] = (1,) if last - first > 3 else (1, 2, 5)
    ticks = [m * 10.0**e for e in range(first, last + 1) for m in steps]
    return [t for t in ticks if low * 0.999 <= t <= high * 1.001]


def tick_label(value: float) -> str:
    """Return an axis number as short as it can be read: `0.25`, `1.5k`, `2e-5`."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def number(value: float, digits: int | None = None) -> str:
    """Return a number for reading: `digits` decimals, or four significant ones, thousands grouped by commas."""
    if value < 0 and math.isfinite(value):
        positive = number(-value, digits)
        return positive if not positive.strip("0.,") else f"−{positive}"
    if not math.isfinite(value):
        return "–"
    if digits is not None:
        return f"{value:,.{digits}f}"
    size = abs(value)
    if value == int(value) and size < 1e15:
        return f"{int(value):,}"
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-3:
        return tick_label(value)
    return f"{value:.4g}"


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the positions moved apart so that neighbours are `gap` apart, in the given order, within low..high."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed: list[float] = []
    for index in order:
        wanted = max(positions[index], low)
        placed.append(max(wanted, placed[-1] + gap) if placed else wanted)
    limit = high
    for rank in range(len(placed) - 1, -1, -1):
        placed[rank] = min(placed[rank], limit)
        limit = placed[rank] - gap
    moved = [0.0] * len(positions)
    for rank, index in enumerate(order):
        moved[index] = placed[rank]
    return moved
