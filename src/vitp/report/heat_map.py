"""Tables of numbers as coloured cells: what a corruption costs at each severity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from vitp.report.svg import element, number, text_width

# Five stops of ColorBrewer's OrRd: even in lightness, readable for colour-blind people and in grey.
_LOSS_STOPS = ((255, 247, 236), (253, 212, 158), (252, 141, 89), (215, 48, 31), (127, 0, 0))
_GAIN = (209, 229, 240)
_UNKNOWN = (200, 204, 210)


@dataclass(frozen=True)
class HeatMap:
    """Cells coloured by their loss against a reference, with the number in each.

    Attributes:
        title: Above the map.
        rows, columns: Names.
        values: One list a row; NaN is shown as a dash on grey.
        reference: What no loss is.
        largest: Loss of the darkest colour; None: the largest that occurs. Give one for maps to compare.
        digits: Decimals.
        note: Small text below.
    """

    kind: ClassVar[str] = "chart"
    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    reference: float
    largest: float | None = None
    digits: int = 1
    note: str = ""
    wide: bool = True

    data: ClassVar[None] = None

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError(f"values don't fit {len(self.rows)} rows and {len(self.columns)} columns")

    @property
    def largest_loss(self) -> float:
        """The loss of the darkest colour."""
        if self.largest is not None:
            return self.largest
        losses = [self.reference - value for row in self.values for value in row if math.isfinite(value)]
        return max([loss for loss in losses if loss > 0], default=1.0)

    def colour(self, value: float) -> tuple[int, int, int]:
        """Return the colour of a cell."""
        if not math.isfinite(value):
            return _UNKNOWN
        loss = self.reference - value
        if loss < 0:
            return _GAIN
        place = min(loss / max(self.largest_loss, 1e-12), 1.0) * (len(_LOSS_STOPS) - 1)
        low = min(int(place), len(_LOSS_STOPS) - 2)
        share = place - low
        pairs = zip(_LOSS_STOPS[low], _LOSS_STOPS[low + 1], strict=True)
        red, green, blue = (round(a + share * (b - a)) for a, b in pairs)
        return red, green, blue

    @property
    def svg(self) -> Markup:
        """The drawing."""
        width, row_height, top = 860.0 if self.wide else 480.0, 26.0, 24.0
        left = 14 + max((text_width(name, 12.5) for name in self.rows), default=0)
        cell = (width - left) / max(len(self.columns), 1)
        parts = [
            element("text", class_="tick tx", x=left + cell * (c + 0.5), y=15, text=name)
            for c, name in enumerate(self.columns)
        ]
        for r, name in enumerate(self.rows):
            middle = top + row_height * (r + 0.5)
            parts.append(element("text", class_="label", x=left - 9, y=middle + 4.5, text=name))
            for c, value in enumerate(self.values[r]):
                parts.append(self._cell(r, c, value, (left + cell * c, middle), (cell, row_height)))
        height = top + row_height * len(self.rows) + 4
        return Markup(
            element("svg", *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=self.title)
        )

    def _cell(
        self, r: int, c: int, value: float, place: tuple[float, float], size: tuple[float, float]
    ) -> str:
        (x, middle), (wide, high) = place, size
        colour = self.colour(value)
        dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 140
        shown = number(value, self.digits)
        tip = f"{self.rows[r]}, {self.columns[c]}: {shown}"
        if math.isfinite(value):
            tip += f" ({number(value - self.reference, self.digits)})"
        return element(
            "g",
            element(
                "rect",
                x=x + 1,
                y=middle - high / 2 + 1,
                width=wide - 2,
                height=high - 2,
                rx=3,
                style=f"fill: rgb{colour}",
            ),
            element(
                "text",
                x=x + wide / 2,
                y=middle + 4.5,
                # The style sheet colours all text of a chart; here the cell decides.
                style=f"text-anchor: middle; fill: {'#fff' if dark else '#16191d'}",
                text=shown,
            ),
            data_tip=tip,
        )

    @property
    def table(self) -> list[tuple[str, str]]:
        """Name and numbers of each row: what a reader who can't see the drawing gets."""
        return [
            (name, ", ".join(number(value, self.digits) for value in row))
            for name, row in zip(self.rows, self.values, strict=True)
        ]
