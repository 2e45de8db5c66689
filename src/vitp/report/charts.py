"""Line and bar charts as inline SVG, coloured by the page's style sheet (so they follow light and dark)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from vitp.report.svg import (
    element,
    linear_ticks,
    log_ticks,
    number,
    series_class,
    spread,
    text_width,
    tick_label,
)

_TYPE = 12.0
_MOST_POINTS = 600


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: Shown at the line's end and in the tooltip.
        x, y: Points, by ascending x. Points whose y is not finite are left out.
        smooth: 0..1, share of its weight that a neighbour keeps a place further on, in the mean that is drawn over the
            pale raw line (see `smoothed`). 0 draws the raw line only.
        colour: Index into the palette; None takes the place in the chart.
        error: Half the length of the error bar of each point; empty: none.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    smooth: float = 0.0
    colour: int | None = None
    error: Sequence[float] = ()


@dataclass(frozen=True)
class LineChart:
    """Curves over a common x axis, with a tooltip that reads all of them at one x.

    Attributes:
        title: Above the chart.
        series: The lines; a point marks each value where a line has few.
        y_log: Logarithmic y axis; values ≤ 0 are left out.
        from_zero: The y axis begins at 0.
        wide: Over the whole column instead of half of it.
        note: Small text below.
    """

    kind: ClassVar[str] = "chart"
    title: str
    series: Sequence[Series]
    x_label: str = "step"
    y_label: str = ""
    y_log: bool = False
    from_zero: bool = False
    wide: bool = False
    note: str = ""

    @property
    def svg(self) -> Markup:
        """The drawing."""
        return Markup(_draw_lines(self))

    @property
    def data(self) -> dict[str, object]:
        """What the tooltip reads: the drawn points in units of the axes, and where the axes lie."""
        plot = _Plot.of(self)
        return {
            "plot": [plot.left, plot.top, plot.width, plot.height],
            "x": [plot.x_low, plot.x_high],
            "y": [plot.y_low, plot.y_high],
            "log": self.y_log,
            "label": self.x_label,
            "series": [
                {"name": line.name, "colour": line.colour, "x": line.x, "y": line.shown}
                for line in plot.lines
            ],
        }

    @property
    def table(self) -> list[tuple[str, str]]:
        """Last value of each line: what a reader who can't see the drawing gets."""
        return [(line.name, number(line.y[-1])) for line in _Plot.of(self).lines]


@dataclass(frozen=True)
class _Line:
    name: str
    x: list[float]
    y: list[float]
    mean: list[float] | None
    colour: int
    error: list[float] = field(default_factory=list)

    @property
    def shown(self) -> list[float]:
        return self.y if self.mean is None else self.mean


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Return the mean of `values` around each place, weighted by `weight ** distance` to both sides.

    Looking to both sides, the curve does not lag behind a falling loss as a running mean does.
    """

    def tails(items: Sequence[float]) -> list[float]:
        total, result = 0.0, []
        for item in items:
            result.append(total)
            total = weight * (total + item)
        return result

    def both(items: Sequence[float]) -> list[float]:
        before, after = tails(items), tails(items[::-1])[::-1]
        return [a + item + b for a, item, b in zip(before, items, after, strict=True)]

    return [top / bottom for top, bottom in zip(both(values), both([1.0] * len(values)), strict=True)]


def _thin(count: int) -> list[int]:
    """Return the indices of at most `_MOST_POINTS` evenly spread points, first and last included."""
    if count <= _MOST_POINTS:
        return list(range(count))
    return [round(i * (count - 1) / (_MOST_POINTS - 1)) for i in range(_MOST_POINTS)]


def _lines(chart: LineChart) -> list[_Line]:
    lines = []
    for place, series in enumerate(chart.series):
        errors = series.error or [0.0] * len(series.y)
        points = [
            (float(x), float(y), float(error))
            for x, y, error in zip(series.x, series.y, errors, strict=True)
            if math.isfinite(y) and (y > 0 or not chart.y_log)
        ]
        if not points:
            continue
        mean = smoothed([y for _, y, _ in points], series.smooth) if series.smooth else None
        keep = _thin(len(points))
        lines.append(
            _Line(
                name=series.name,
                x=[points[i][0] for i in keep],
                y=[points[i][1] for i in keep],
                mean=[mean[i] for i in keep] if mean else None,
                colour=place if series.colour is None else series.colour,
                error=[points[i][2] for i in keep] if series.error else [],
            )
        )
    return lines


@dataclass(frozen=True)
class _Plot:
    """Where the axes of a line chart lie, and how values become coordinates."""

    lines: list[_Line]
    size: tuple[float, float]
    left: float
    top: float
    width: float
    height: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log: bool
    ticks: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, chart: LineChart) -> _Plot:
        lines = _lines(chart)
        size = (860.0, 300.0) if chart.wide else (480.0, 270.0)
        xs = [x for line in lines for x in line.x] or [0.0, 1.0]
        ys = [y for line in lines for y in line.y] or ([1.0, 10.0] if chart.y_log else [0.0, 1.0])
        ys += [
            y + way * e for line in lines for y, e in zip(line.y, line.error, strict=False) for way in (-1, 1)
        ]
        ys = [y for y in ys if y > 0 or not chart.y_log]
        low, high = _y_range(min(ys), max(ys), log=chart.y_log, from_zero=chart.from_zero)
        ticks = log_ticks(low, high) if chart.y_log else linear_ticks(low, high, 5)
        left = 14 + max((text_width(tick_label(t), _TYPE) for t in ticks), default=20)
        right = (
            14 + max((text_width(line.name, _TYPE) for line in lines), default=0) if len(lines) > 1 else 16
        )
        # Names at the lines' ends must leave most of the picture to the lines.
        right = min(right, size[0] * 0.3)
        x_low, x_high = min(xs), max(xs)
        return cls(
            lines=lines,
            size=size,
            left=left,
            top=16,
            width=size[0] - left - right,
            height=size[1] - 16 - 40,
            x_low=x_low,
            x_high=x_high if x_high > x_low else x_low + 1,
            y_low=low,
            y_high=high,
            log=chart.y_log,
            ticks=ticks,
        )

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * self.width

    def y(self, value: float) -> float:
        if self.log:
            part = math.log(value / self.y_low) / math.log(self.y_high / self.y_low)
        else:
            part = (value - self.y_low) / (self.y_high - self.y_low)
        return self.top + (1 - part) * self.height

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in zip(xs, ys, strict=True))


def _y_range(low: float, high: float, *, log: bool, from_zero: bool) -> tuple[float, float]:
    if log:
        return (low / 1.15, high * 1.15) if high > low else (low / 2, high * 2)
    if from_zero:
        low = min(low, 0.0)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if from_zero and low == 0 else low - margin), high + margin


def _draw_lines(chart: LineChart) -> str:
    plot = _Plot.of(chart)
    parts = [*_axes(plot, chart)]
    for line in plot.lines:
        style = series_class(line.colour)
        if line.mean is not None:
            parts.append(element("path", class_=f"line raw {style}", d=plot.path(line.x, line.y)))
        parts.append(element("path", class_=f"line {style}", d=plot.path(line.x, line.shown)))
        parts += _whiskers(plot, line)
        if line.mean is None and len(line.x) <= 24:
            parts += [
                element("circle", class_=f"dot {style}", cx=plot.x(x), cy=plot.y(y), r=2.6)
                for x, y in zip(line.x, line.y, strict=True)
            ]
    if len(plot.lines) > 1:
        ends = [plot.y(line.shown[-1]) for line in plot.lines]
        places = spread(ends, 15, plot.top, plot.top + plot.height)
        parts += [
            element(
                "text",
                class_=f"end {series_class(line.colour)}",
                x=plot.x(line.x[-1]) + 7 if line.x[-1] == plot.x_high else plot.left + plot.width + 7,
                y=place + 4,
                text=line.name,
            )
            for line, place in zip(plot.lines, places, strict=True)
        ]
    parts.append(element("line", class_="cursor", x1=0, x2=0, y1=plot.top, y2=plot.top + plot.height))
    width, height = plot.size
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=chart.title,
    )


def _whiskers(plot: _Plot, line: _Line) -> list[str]:
    """Return the error bars of a line."""
    parts = []
    for x, y, error in zip(line.x, line.y, line.error, strict=False):
        if error and not (plot.log and y - error <= 0):
            at, a, b = plot.x(x), plot.y(y - error), plot.y(y + error)
            shape = f"M{at:.1f} {a:.1f}V{b:.1f}M{at - 4:.1f} {a:.1f}h8M{at - 4:.1f} {b:.1f}h8"
            parts.append(element("path", class_="error", d=shape))
    return parts


def _axes(plot: _Plot, chart: LineChart) -> list[str]:
    right, bottom = plot.left + plot.width, plot.top + plot.height
    parts = []
    for tick in plot.ticks:
        y = plot.y(tick)
        parts.append(element("line", class_="gridline", x1=plot.left, x2=right, y1=y, y2=y))
        parts.append(element("text", class_="tick ty", x=plot.left - 7, y=y + 4, text=tick_label(tick)))
    x_ticks = linear_ticks(plot.x_low, plot.x_high, max(2, int(plot.width // 90)))
    parts.append(element("line", class_="axis", x1=plot.left, x2=right, y1=bottom, y2=bottom))
    parts += [
        element("text", class_="tick tx", x=plot.x(tick), y=bottom + 17, text=tick_label(tick))
        for tick in x_ticks
    ]
    parts.append(
        element("text", class_="name tx", x=plot.left + plot.width / 2, y=bottom + 34, text=chart.x_label)
    )
    if chart.y_label:
        parts.append(element("text", class_="name", x=2, y=10, text=chart.y_label))
    return parts


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: Left of the bar.
        value: Its length.
        error: Half the length of the error bar (one standard deviation unless the chart's note says else).
        points: Single measurements, drawn as dots over the bar.
        colour: Index into the palette; None takes the chart's first.
    """

    label: str
    value: float
    error: float | None = None
    points: Sequence[float] = ()
    colour: int | None = None


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars from zero, with the number beside each.

    Attributes:
        title: Above the chart.
        bars: From top to bottom.
        digits: Decimals of the numbers; None chooses by size.
        unit: Behind each number, such as " %".
        x_label: Below the axis.
        wide: Over the whole column instead of half of it.
        note: Small text below.
    """

    kind: ClassVar[str] = "chart"
    title: str
    bars: Sequence[Bar]
    digits: int | None = None
    unit: str = ""
    x_label: str = ""
    wide: bool = False
    note: str = ""

    data: ClassVar[None] = None

    @property
    def svg(self) -> Markup:
        """The drawing."""
        return Markup(_draw_bars(self))

    @property
    def table(self) -> list[tuple[str, str]]:
        """Label and number of each bar."""
        return [(bar.label, self.shown(bar)) for bar in self.bars]

    def shown(self, bar: Bar) -> str:
        """Return the bar's number as it is written beside it."""
        text = number(bar.value, self.digits)
        if bar.error is not None:
            text += f" ± {number(bar.error, self.digits)}"
        return text + self.unit


def _extent(bars: Sequence[Bar]) -> tuple[float, float]:
    values = [0.0]
    for bar in bars:
        error = bar.error or 0.0
        values += [bar.value - error, bar.value + error, *bar.points]
    values = [v for v in values if math.isfinite(v)]
    low, high = min(values), max(values)
    return low, high if high > low else low + 1.0


def _draw_bars(chart: BarChart) -> str:
    width = 860.0 if chart.wide else 480.0
    row = 30.0 if len(chart.bars) <= 10 else 22.0
    left = min(12 + max((text_width(b.label, 12.5) for b in chart.bars), default=0), width * 0.38)
    right = 18 + max((text_width(chart.shown(b), 12.5) for b in chart.bars), default=0)
    low, high = _extent(chart.bars)
    plot = width - left - right

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * plot

    bottom = 6 + row * len(chart.bars)
    parts = []
    for tick in linear_ticks(low, high, max(2, int(plot // 62))):
        x = place(tick)
        parts.append(element("line", class_="gridline", x1=x, x2=x, y1=4, y2=bottom))
        parts.append(element("text", class_="tick tx", x=x, y=bottom + 15, text=tick_label(tick)))
    for index, bar in enumerate(chart.bars):
        parts += _draw_bar(chart, bar, 6 + row * index, row, place, left)
    parts.append(element("line", class_="axis", x1=place(0.0), x2=place(0.0), y1=4, y2=bottom))
    height = bottom + 22
    if chart.x_label:
        height += 16
        parts.append(element("text", class_="name tx", x=left + plot / 2, y=bottom + 32, text=chart.x_label))
    return element("svg", *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=chart.title)


def _draw_bar(
    chart: BarChart, bar: Bar, top: float, row: float, place: Callable[[float], float], left: float
) -> list[str]:
    middle, thick = top + row / 2, row * 0.58
    style = series_class(bar.colour or 0)
    tip = f"{bar.label}: {chart.shown(bar)}"
    if bar.points:
        tip += " (" + ", ".join(number(p, chart.digits) for p in bar.points) + ")"
    value = bar.value if math.isfinite(bar.value) else 0.0
    x1, x2 = sorted((place(0.0), place(value)))
    parts = [
        element("rect", class_="hit", x=0, y=top, width=x2 + 400, height=row),
        element("text", class_="label", x=left - 9, y=middle + 4.5, text=bar.label),
        element(
            "rect", class_=f"bar {style}", x=x1, y=middle - thick / 2, width=x2 - x1, height=thick, rx=2.5
        ),
    ]
    end = x2
    if bar.error:
        a, b = place(value - bar.error), place(value + bar.error)
        cap = thick * 0.24
        parts.append(
            element(
                "path",
                class_="error",
                d=f"M{a:.1f} {middle}H{b:.1f}M{a:.1f} {middle - cap:.1f}v{2 * cap:.1f}M{b:.1f} {middle - cap:.1f}v{2 * cap:.1f}",
            )
        )
        end = max(end, b)
    for turn, point in enumerate(bar.points):
        # Above one another, so that runs that agree don't hide each other.
        y = middle + (turn - (len(bar.points) - 1) / 2) * min(4.0, thick / len(bar.points))
        parts.append(element("circle", class_="seed", cx=place(point), cy=y, r=2.1))
        end = max(end, place(point) + 2)
    parts.append(element("text", class_="value", x=end + 8, y=middle + 4.5, text=chart.shown(bar)))
    return [element("g", *parts, class_="row", data_tip=tip)]
