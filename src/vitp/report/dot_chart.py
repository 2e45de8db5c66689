"""Many measurements at each place of an axis, as dots with their mean as a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from vitp.report.svg import element, linear_ticks, number, series_class, text_width, tick_label


@dataclass(frozen=True)
class DotChart:
    """Dots over whole numbers 0, 1, 2, … of an axis, such as the heads of each layer.

    Attributes:
        title: Above the chart.
        values: For each place of the axis its measurements.
        x_label, y_label: Of the axes.
        highest: Upper end of the y axis, which begins at 0; None: the largest value. Give one for charts to compare.
        colour: Index into the palette.
        digits: Decimals in the tooltips.
        note: Small text below.
        wide: Over the whole column instead of half of it.
    """

    kind: ClassVar[str] = "chart"
    title: str
    values: Sequence[Sequence[float]]
    x_label: str
    y_label: str
    highest: float | None = None
    colour: int = 0
    digits: int = 1
    note: str = ""
    wide: bool = False

    data: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not self.values or not all(len(row) for row in self.values):
            raise ValueError("a chart of dots needs a measurement at each place")

    @property
    def means(self) -> list[float]:
        """Mean at each place."""
        return [sum(row) / len(row) for row in self.values]

    @property
    def table(self) -> list[tuple[str, str]]:
        """Mean at each place: what a reader who can't see the drawing gets."""
        return [(f"{self.x_label} {x}", number(mean, self.digits)) for x, mean in enumerate(self.means)]

    @property
    def svg(self) -> Markup:
        """The drawing."""
        plot = _Plot.of(self)
        style = series_class(self.colour)
        means = "L".join(f"{plot.x(x):.1f} {plot.y(mean):.1f}" for x, mean in enumerate(self.means))
        parts = [*self._axes(plot), element("path", class_=f"line {style}", d=f"M{means}", opacity=0.5)]
        for place, row in enumerate(self.values):
            parts += [
                element("circle", class_=f"dot {style}", cx=plot.x(place), cy=plot.y(value), r=2.8)
                for value in row
                if math.isfinite(value)
            ]
            measured = ", ".join(number(value, self.digits) for value in sorted(row))
            tip = f"{self.x_label} {place}: mean {number(self.means[place], self.digits)} of {measured}"
            wide = (plot.right - plot.left) / len(self.values)
            hit = element(
                "rect",
                class_="hit",
                x=plot.x(place) - wide / 2,
                y=plot.top,
                width=wide,
                height=plot.bottom - plot.top,
            )
            parts.append(element("g", hit, class_="row", data_tip=tip))
        size = f"0 0 {plot.width:.0f} {plot.height:.0f}"
        return Markup(element("svg", *parts, viewBox=size, role="img", aria_label=self.title))

    def _axes(self, plot: _Plot) -> list[str]:
        left, right, bottom = plot.left, plot.right, plot.bottom
        parts = [element("text", class_="name", x=2, y=10, text=self.y_label)]
        for tick in plot.ticks:
            y = plot.y(tick)
            parts.append(element("line", class_="gridline", x1=left, x2=right, y1=y, y2=y))
            parts.append(element("text", class_="tick ty", x=left - 7, y=y + 4, text=tick_label(tick)))
        parts.append(element("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
        parts += [
            element("text", class_="tick tx", x=plot.x(place), y=bottom + 17, text=str(place))
            for place in range(0, plot.places, max(1, math.ceil(plot.places / 12)))
        ]
        middle = (left + right) / 2
        parts.append(element("text", class_="name tx", x=middle, y=bottom + 34, text=self.x_label))
        return parts


@dataclass(frozen=True)
class _Plot:
    """Where the axes lie, and how values become coordinates."""

    width: float
    height: float
    left: float
    places: int
    highest: float
    ticks: list[float]
    top: float = 18.0

    @classmethod
    def of(cls, chart: DotChart) -> _Plot:
        width, height = (860.0, 300.0) if chart.wide else (480.0, 270.0)
        known = [value for row in chart.values for value in row if math.isfinite(value)]
        highest = chart.highest or max([*known, 1e-9]) * 1.05
        ticks = linear_ticks(0.0, highest, 5)
        left = 14 + max(text_width(tick_label(tick), 12) for tick in ticks)
        return cls(width, height, left, len(chart.values), highest, ticks)

    @property
    def right(self) -> float:
        return self.width - 16

    @property
    def bottom(self) -> float:
        return self.height - 40

    def x(self, place: float) -> float:
        return self.left + (place + 0.5) / self.places * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - value / self.highest * (self.bottom - self.top)
