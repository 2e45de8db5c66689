"""Small charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_WIDTH, _HEIGHT, _BASE = 320, 120, 100


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of the page.

    Attributes:
        title: What is counted.
        note: The typical value in words.
        svg: The drawing; escaped already.
    """

    title: str
    note: str
    svg: str


def histogram(title: str, values: Sequence[float], unit: str, *, bins: int = 24) -> Chart:
    """Return a histogram of values ≥ 0; whole numbers of a small range get a bar each."""
    data = np.asarray(values, np.float64)
    low, high = float(data.min()), float(data.max())
    if (data == np.rint(data)).all() and high - low < bins:
        edges = np.arange(low - 0.5, high + 1)
    else:
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    counts, edges = np.histogram(data, edges)
    step = _WIDTH / max(len(counts), 6)  # a single bar should not fill the chart
    bars = []
    for i, count in enumerate(counts.tolist()):
        height = 0.0 if not count else max(1.5, count / counts.max() * (_BASE - 6))
        first, last = np.ceil(edges[i]), np.floor(edges[i + 1])
        span = f"{first:,.0f}" if first >= last else f"{first:,.0f}–{last:,.0f}"
        bars.append(
            f'<rect x="{i * step + 1:.1f}" y="{_BASE - height:.1f}" width="{step - 2:.1f}" height="{height:.1f}"'
            f' rx="1.5"><title>{span} {escape(unit)}: {count:,}</title></rect>'
        )
    end = step * len(counts)
    axis = (
        f'<line x1="0" y1="{_BASE}" x2="{_WIDTH}" y2="{_BASE}"/>'
        f'<text x="0" y="{_HEIGHT - 4}">{low:,.0f}</text>'
        f'<text x="{end:.1f}" y="{_HEIGHT - 4}" text-anchor="end">{high:,.0f}</text>'
    )
    if high == low:
        axis = f'<line x1="0" y1="{_BASE}" x2="{_WIDTH}" y2="{_BASE}"/><text x="0" y="{_HEIGHT - 4}">{low:,.0f}</text>'
    svg = (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(bars)}{axis}</svg>"
    )
    return Chart(title, f"median {np.median(data):,.0f}", svg)


def bar_list(title: str, counts: Sequence[tuple[str, int]], *, most: int = 8) -> Chart:
    """Return named bars, longest first; what is beyond `most` is added up."""
    ordered = sorted(counts, key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[most:])
    shown = [*ordered[:most], *([("others", rest)] if rest else [])]
    total, top = sum(count for _, count in ordered), max(count for _, count in ordered)
    line, left = 22, 118
    parts = []
    for i, (name, count) in enumerate(shown):
        y, width = i * line, max(2.0, count / top * (_WIDTH - left - 54))
        label = name if len(name) <= 18 else name[:17] + "…"
        parts.append(
            f'<text class="name" x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(label)}'
            f"<title>{escape(name)}</title></text>"
            f'<rect x="{left}" y="{y + 4}" width="{width:.1f}" height="14" rx="2">'
            f"<title>{escape(name)}: {count:,}</title></rect>"
            f'<text x="{left + width + 6:.1f}" y="{y + 15}">{_percent(count / total)}</text>'
        )
    height = max(_HEIGHT, len(shown) * line)
    svg = (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
    return Chart(title, f"{total:,} in all", svg)


def _percent(share: float) -> str:
    return "&lt;1%" if share < 0.005 else f"{share:.0%}"
