"""The charts of all pages, drawn by matplotlib: inline SVG that follows light and dark, and PNG files.

Equal charts give equal bytes: nothing in the SVG depends on the date, on chance or on the user's matplotlib settings.
Text stays text, in the font of the page. Bars and cells carry their numbers, with more in their tooltips; the numbers
of curves are in `Chart.table`.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib import style, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitp.core.files import atomic_path
from vitp.records.instructions import printable
from vitp.report.text import format_number, format_tick

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b8588f", "#c98a00", "#3fa0d8", "#7a8290")
"""Colours of series, after Okabe and Ito, safe for colour-blind readers; the style sheet has them as `--c0` …"""

_INK, _SOFT, _FAINT, _EDGE, _PAPER = "#16191d", "#5a6472", "#8b95a3", "#e4e8ed", "#fefefe"
_VARIABLES = {
    **{colour: f"var(--c{place})" for place, colour in enumerate(PALETTE)},
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _FAINT: "var(--faint)",
    _EDGE: "var(--edge)",
    _PAPER: "var(--bg)",
}
"""Colours of a light page that the SVG takes from the style sheet, so that a dark page has its own."""

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vitp",
    "text.parse_math": False,  # the name of a class may hold a dollar sign
    "font.size": 12,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _FAINT,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.xmargin": 0.02,
    "grid.color": _EDGE,
    "xtick.color": _EDGE,
    "ytick.color": _EDGE,
    "xtick.labelcolor": _FAINT,
    "ytick.labelcolor": _FAINT,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 10,
}
_MOST_POINTS = 600
_MOST_ROWS = 24
_MOST_BINS = 24


@dataclass(frozen=True, kw_only=True)
class Chart(ABC):
    """A drawing with a title above and a note below.

    Attributes:
        title: Above the chart.
        x_label: Below its x axis.
        wide: Draw over the whole column of the page instead of half of it.
        note: Small text below.
    """

    kind: ClassVar[str] = "chart"
    title: str
    x_label: str = ""
    wide: bool = False
    note: str = ""

    @abstractmethod
    def _draw(self, axes: Axes) -> None:
        """Draw on matplotlib's axes."""

    @property
    def height(self) -> float:
        """Height in pixels, at a width of 480, or 860 of a wide chart."""
        return 300.0 if self.wide else 270.0

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Name and colour of each series where there are several; the page writes them above the drawing."""
        return []

    @property
    def table(self) -> list[tuple[str, ...]]:
        """The numbers that the drawing and its tooltips don't say, heads first; the page folds them away."""
        return []

    @property
    def svg(self) -> Markup:
        """The drawing as an SVG element."""
        buffer = io.StringIO()
        with self._figure() as figure:
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return Markup(_inline(buffer.getvalue(), self.title))

    def write_png(self, path: Path) -> None:
        """Write the drawing with its title and its legend as a picture of its own."""
        with self._figure() as figure, atomic_path(path) as temporary:
            (axes,) = figure.axes
            # Over the whole picture: above the axes alone a long title would be cut off behind long names.
            lines = wrap(printable(self.title), 120 if self.wide else 66)
            figure.set_figheight(figure.get_figheight() + 0.2 * len(lines))
            figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11)
            if self.legend:
                axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
            figure.savefig(temporary, dpi=150, format="png", facecolor="white")

    @contextmanager
    def _figure(self) -> Iterator[Figure]:
        """Yield the drawn figure, within its style. A unit of the SVG is a point, of which 72 make an inch."""
        with style.context(["default", _STYLE]), warnings.catch_warnings():
            # The browser has the letters that matplotlib's font lacks.
            warnings.filterwarnings("ignore", message="Glyph")
            figure = Figure(((860 if self.wide else 480) / 72, self.height / 72), layout="constrained")
            axes = figure.add_subplot()
            axes.set_xlabel(printable(self.x_label), fontsize=11)
            self._draw(axes)
            yield figure


def _inline(svg: str, title: str) -> str:
    """Return what matplotlib wrote as an element of a page, in its colours and font, without what only files need."""
    head, _, body = svg.partition("<svg ")[2].replace("xlink:href", "href").partition(">")
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(
        r'(<text style="font[^"]*?)font-family:[^";]*(?:&quot;[^";]*)*', r"\1font-family: inherit", body
    )
    # matplotlib turns every text, most of them by 0 degrees.
    body = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", body)
    # A group named `tip: …` gets a title instead, which browsers show as a tooltip.
    body = re.sub(r"<g id=(['\"])tip: (.*?)\1>", r"<g><title>\2</title>", body)
    # All others lose their names, which several charts of a page would share.
    body = re.sub(r"<g id=\"[^\"]*\">", "<g>", body)
    # Hundredths of a pixel are enough.
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0].replace("\n", "")), body)
    body = re.sub("(?<=: )#[0-9a-f]{6}", lambda colour: _VARIABLES.get(colour[0], colour[0]), body)
    body = re.sub(r">\s+<", "><", body)
    size = re.findall(r'viewBox="[^"]*"', head)[0]
    return f'<svg {size} role="img" aria-label="{escape(title)}">{body}'


def _with_tip(artist: Any, tip: str) -> None:
    """Give a drawn thing a tooltip. matplotlib has none, so the text travels as the name of its group."""
    artist.set_gid(f"tip: {printable(tip)}")


def _number_axis(axis: Any, ticks: int = 6) -> None:
    axis.set_major_locator(ticker.MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda value, _: format_tick(value))


def _name_axis(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a chart that has a row for each name."""
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.spines["bottom"].set_visible(False)


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: In the legend.
        x, y: Points, by ascending x. Points whose y is not finite are left out.
        raw: What the line is a smoothed form of, at the same x, drawn pale below it; empty: none.
        colour: Index into the palette; None takes the place in the chart.
        error: Half the length of the error bar of each point; empty: none.
        runs: Single measurements (x, y) that the line is the mean of, drawn as pale dots.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    raw: Sequence[float] = ()
    colour: int | None = None
    error: Sequence[float] = ()
    runs: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, kw_only=True)
class LineChart(Chart):
    """Curves over a common x axis.

    Attributes:
        lines: The lines; a point marks each value where a line has few.
        from_zero: The y axis begins at 0.
        highest: Upper end of the y axis; None: by the data. Give one for charts to compare.
    """

    lines: Sequence[Curve]
    x_label: str = "step"
    y_label: str = ""
    from_zero: bool = False
    highest: float | None = None

    def _draw(self, axes: Axes) -> None:
        for line in self._known:
            keep = np.linspace(0, len(line.x) - 1, min(len(line.x), _MOST_POINTS)).round().astype(int)
            x, y = (np.asarray(values, float)[keep] for values in (line.x, line.y))
            colour = PALETTE[line.colour or 0]
            if line.raw:
                axes.plot(x, np.asarray(line.raw)[keep], color=colour, linewidth=1, alpha=0.28)
            dots = "o-" if len(x) <= 24 and not line.raw and not line.runs else "-"
            # matplotlib leaves names that begin with an underscore out of the legend.
            name = printable(line.name).lstrip("_")
            axes.plot(x, y, dots, color=colour, linewidth=2, markersize=5, label=name)
            if line.error:
                axes.errorbar(x, y, np.asarray(line.error)[keep], color=colour, linestyle="", capsize=3)
            runs = np.asarray(line.runs, float).reshape(-1, 2)
            axes.plot(runs[:, 0], runs[:, 1], "o", color=colour, markersize=5, markeredgewidth=0, alpha=0.5)
        low, high = min(0.0, axes.dataLim.ymin), axes.dataLim.ymax
        if self.from_zero and low < high < math.inf:
            axes.set_ylim(low, high + 0.06 * (high - low))
        axes.set_ylim(top=self.highest)
        axes.set_ylabel(printable(self.y_label), fontsize=11)
        axes.grid(axis="y")
        _number_axis(axes.xaxis, 9 if self.wide else 5)
        _number_axis(axes.yaxis)

    @property
    def _known(self) -> list[Curve]:
        """The lines that have points, with these points only, and each with a colour."""
        found = []
        for place, line in enumerate(self.lines):
            keep = [n for n, y in enumerate(line.y) if math.isfinite(y)]
            x, y = [float(line.x[n]) for n in keep], [float(line.y[n]) for n in keep]
            colour = (place if line.colour is None else line.colour) % len(PALETTE)
            raw, error = ([of[n] for n in keep] if of else () for of in (line.raw, line.error))
            if keep:
                found.append(replace(line, x=x, y=y, colour=colour, raw=raw, error=error))
        return found

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Name and colour of each line, where there are several."""
        lines = self._known
        return [(line.name, f"var(--c{line.colour})") for line in lines] if len(lines) > 1 else []

    @property
    def table(self) -> list[tuple[str, ...]]:
        """Values at evenly spread x, the first and the last included."""
        lines = self._known
        places = sorted({x for line in lines for x in line.x})
        chosen = np.linspace(0, len(places) - 1, min(len(places), _MOST_ROWS)).round().astype(int)
        columns = []
        for line in lines:
            shown = {x: format_number(y) for x, y in zip(line.x, line.y, strict=True)}
            for x in shown if line.runs else ():
                shown[x] += f" ({', '.join(format_number(y) for at, y in line.runs if at == x)})"
            columns.append([line.name, *(shown.get(places[n], "") for n in chosen)])
        heads = [self.x_label, *(format_number(places[n]) for n in chosen)]
        return list(zip(heads, *columns, strict=True))


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: Left of the bar.
        value: Its length.
        error: Half the length of the error bar (one standard deviation unless the chart's note says else).
        points: Single measurements, drawn as dots over the bar.
        colour: Index into the palette.
        text: Beside the bar; empty: its number.
    """

    label: str
    value: float
    error: float | None = None
    points: Sequence[float] = ()
    colour: int = 0
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class BarChart(Chart):
    """Horizontal bars from zero, with the number beside each.

    Attributes:
        bars: Bars from top to bottom.
        digits: Decimals of the numbers; None chooses by size.
        unit: Behind each number, such as " %".
    """

    bars: Sequence[Bar]
    digits: int | None = None
    unit: str = ""

    @property
    def height(self) -> float:
        """Height in pixels."""
        return 44 + (16 if self.x_label else 0) + len(self.bars) * (30 if len(self.bars) <= 10 else 22)

    def _draw(self, axes: Axes) -> None:
        longest = 44 if self.wide else 24
        axes.set_ylim(len(self.bars) - 0.4, -0.6)
        for place, bar in enumerate(self.bars):
            value, error = bar.value if math.isfinite(bar.value) else 0.0, bar.error or 0.0
            colour = PALETTE[bar.colour % len(PALETTE)]
            (drawn,) = axes.barh(place, value, 0.58, color=colour)
            measured = ", ".join(format_number(point, self.digits) for point in bar.points)
            _with_tip(drawn, f"{bar.label}: {self.shown(bar)}" + (f" ({measured})" if measured else ""))
            if error:
                axes.errorbar(value, place, xerr=error, color=_INK, capsize=3, linewidth=1.4)
            # The dots lie above one another, so that runs that agree don't hide each other.
            spread = np.linspace(-1, 1, len(bar.points)) * min(0.22, 0.06 * (len(bar.points) - 1))
            axes.plot(bar.points, place + spread, "o", color=_PAPER, markeredgecolor=_INK, markersize=4)
            end = max([value + error, 0.0, *(point for point in bar.points if math.isfinite(point))])
            shown = printable(self.shown(bar))
            axes.annotate(shown, (end, place), (6, 0), textcoords="offset points", va="center")
        lines = 2 if len(self.bars) <= 10 else 1
        names = (wrap(printable(bar.label), longest, max_lines=lines, placeholder="…") for bar in self.bars)
        _name_axis(axes, ["\n".join(name) for name in names])
        axes.axvline(0, color=_FAINT, linewidth=1)
        axes.grid(axis="x")
        if not any(bar.value and math.isfinite(bar.value) for bar in self.bars):
            axes.set_xlim(0, 1)
        _number_axis(axes.xaxis)

    def shown(self, bar: Bar) -> str:
        """Return the bar's number as it is written beside it."""
        error = "" if bar.error is None else f" ± {format_number(bar.error, self.digits)}"
        return bar.text or f"{format_number(bar.value, self.digits)}{error}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class HeatMap(Chart):
    """Cells coloured by their loss against a reference, with the number in each.

    Attributes:
        rows, columns: Names.
        values: One list a row; NaN is shown as a dash on grey.
        reference: What no loss is.
        largest: Loss of the darkest colour; None: the largest that occurs. Give one for maps to compare.
        digits: Decimals.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    reference: float
    largest: float | None = None
    digits: int = 1
    wide: bool = True

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError(f"values don't fit {len(self.rows)} rows and {len(self.columns)} columns")

    @property
    def height(self) -> float:
        """Height in pixels."""
        return 34.0 + 26 * len(self.rows)

    @property
    def largest_loss(self) -> float:
        """The loss of the darkest colour."""
        losses = [self.reference - value for row in self.values for value in row]
        return self.largest or max([loss for loss in losses if loss > 0], default=1.0)

    def colour(self, value: float) -> tuple[int, int, int]:
        """Return the colour of a cell: ColorBrewer's OrRd, blue for a gain, grey for what isn't known."""
        # Even in lightness, so it can be read by colour-blind people and in grey.
        shades = mpl.colormaps["OrRd"].with_extremes(under="#d1e5f0", bad="#c8ccd2")
        loss = (self.reference - value) / self.largest_loss
        red, green, blue = (round(255 * part) for part in shades(loss)[:3])
        return red, green, blue

    def _draw(self, axes: Axes) -> None:
        for r, row in enumerate(self.values):
            for c, value in enumerate(row):
                colour = self.colour(value)
                cell = axes.bar(c, 0.92, 0.98, r - 0.46, color=[part / 255 for part in colour])[0]
                shown, more = (format_number(v, self.digits) for v in (value, value - self.reference))
                _with_tip(cell, f"{self.rows[r]}, {self.columns[c]}: {shown} ({more})")
                # As the eye weighs red, green and blue.
                dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 140
                # The cell decides about the colour of its number, whatever the page's theme is.
                axes.text(c, r, shown, ha="center", va="center", color="white" if dark else "black")
        axes.set(xlim=(-0.5, len(self.columns) - 0.5), ylim=(len(self.rows) - 0.5, -0.5))
        axes.set_xticks(range(len(self.columns)), map(printable, self.columns))
        _name_axis(axes, [printable(name) for name in self.rows])
        axes.tick_params(axis="x", length=0, top=False, labeltop=True, bottom=False, labelbottom=False)


@dataclass(frozen=True, kw_only=True)
class Histogram(Chart):
    """How often values ≥ 0 occur; whole numbers of a small range get a bar each.

    Attributes:
        values: At least one.
        unit: Unit of the values, in the tooltips.
    """

    values: Sequence[float]
    unit: str

    @property
    def height(self) -> float:
        """Height in pixels."""
        return 170.0

    @property
    def counted(self) -> list[tuple[float, float, int]]:
        """Lower edge, upper edge and count of each bar."""
        data = np.asarray(self.values, np.float64)
        low, high = float(data.min()), float(data.max())
        if (data == np.rint(data)).all() and high - low < _MOST_BINS:
            edges = np.arange(low - 0.5, high + 1)
        else:
            edges = np.linspace(low, high if high > low else low + 1, _MOST_BINS + 1)
        counts, _ = np.histogram(data, edges)
        return list(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True))

    def _draw(self, axes: Axes) -> None:
        for low, high, count in self.counted:
            (drawn,) = axes.bar((low + high) / 2, count, 0.92 * (high - low), color=PALETTE[0])
            first, last = math.ceil(low), math.floor(high)
            span = f"{first:,}" if first >= last else f"{first:,}–{last:,}"
            _with_tip(drawn, f"{span} {self.unit}: {count:,}")
        if len(self.counted) < 6:  # a single bar should not fill the chart
            axes.set_xlim(right=axes.get_xlim()[0] + 6)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        _number_axis(axes.yaxis, 3)
