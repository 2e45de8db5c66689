"""Boxes and grid cells drawn over a picture, as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vitp.records.instructions import COORDINATE_RANGE
from vitp.report.svg import element, text_width

_WIDTH = 400.0


@dataclass(frozen=True)
class Shape:
    """An outline on 0..1000 of the whole image, x1, y1, x2, y2, …"""

    label: str
    corners: tuple[float, ...]


def _extent(size: tuple[int, int]) -> tuple[float, float]:
    """Return width and height of a drawing over an image of `size` pixels; all drawings are equally wide."""
    return _WIDTH, _WIDTH * size[1] / size[0]


def picture_definition(name: str, address: str, size: tuple[int, int]) -> Markup:
    """Return the picture as an SVG definition, to be drawn by its name as often as needed but stored once."""
    width, height = _extent(size)
    image = element(
        "image", id=name, href=address, width=width, height=round(height, 1), preserveAspectRatio="none"
    )
    return Markup(element("svg", element("defs", image), width=0, height=0, aria_hidden="true"))


def draw_shapes(
    picture: str,
    size: tuple[int, int],
    *,
    expected: Sequence[Shape] = (),
    answered: Sequence[Shape] = (),
    asked: Sequence[Shape] = (),
) -> Markup:
    """Return a defined picture of `size` with shapes: expected ones dashed, answered solid, asked dotted."""
    width, height = _extent(size)
    parts: list[str] = []
    # Dashes last: where both agree, the dashed line shows on top of the solid one.
    for style, shapes in (("asked", asked), ("answered", answered), ("expected", expected)):
        for shape in shapes:
            points = [
                (x / COORDINATE_RANGE * width, y / COORDINATE_RANGE * height)
                for x, y in zip(shape.corners[::2], shape.corners[1::2], strict=True)
            ]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(element("polygon", class_=f"halo {style}", points=path))
            parts.append(element("polygon", class_=f"shape {style}", points=path))
    parts += _labels(answered or expected, "answered" if answered else "expected", width, height)
    return _drawing(picture, parts, width, height)


def _labels(shapes: Sequence[Shape], style: str, width: float, height: float) -> list[str]:
    parts: list[str] = []
    if len({shape.label for shape in shapes}) < 2:
        return parts  # the text below says what all of them are
    for shape in shapes[:12]:
        x = min(shape.corners[::2]) / COORDINATE_RANGE * width
        y = min(shape.corners[1::2]) / COORDINATE_RANGE * height
        wide = text_width(shape.label, 13) + 10
        x = min(x, max(width - wide, 0.0))
        top = y - 19 if y >= 19 else y
        parts.append(element("rect", class_=f"tag {style}", x=x, y=top, width=wide, height=18, rx=3))
        parts.append(element("text", class_="tag", x=x + 5, y=top + 13.5, text=shape.label))
    return parts


def draw_grid(
    picture: str,
    size: tuple[int, int],
    names: Sequence[Sequence[str]],
    colours: dict[str, str],
    *,
    truth: Sequence[Sequence[str]] = (),
) -> Markup:
    """Return a defined picture of `size` with coloured cells; those that differ from `truth` are crossed."""
    width, height = _extent(size)
    parts = []
    for r, row in enumerate(names):
        for c, name in enumerate(row):
            x, y = width * c / len(row), height * r / len(names)
            w, h = width / len(row), height / len(names)
            cell = element("title", text=name)
            parts.append(
                element(
                    "rect", cell, class_="cell", x=x, y=y, width=w, height=h, fill=colours.get(name, "#000")
                )
            )
            if truth and at(truth, r, c) != name:
                a, b, d = x + w / 2, y + h / 2, min(w, h) * 0.16
                cross = f"M{a - d:.1f} {b - d:.1f}l{2 * d:.1f} {2 * d:.1f}m0 {-2 * d:.1f}l{-2 * d:.1f} {2 * d:.1f}"
                parts.append(element("path", class_="miss", d=cross))
    return _drawing(picture, parts, width, height)


def at(rows: Sequence[Sequence[str]], r: int, c: int) -> str | None:
    """Return the name in a cell, or None outside the grid."""
    return rows[r][c] if r < len(rows) and c < len(rows[r]) else None


def _drawing(picture: str, parts: Iterable[str], width: float, height: float) -> Markup:
    image = element("use", href=f"#{picture}")
    box = f"0 0 {width:.0f} {height:.1f}"
    return Markup(
        element("svg", image, *parts, class_="overlay", viewBox=box, role="img", aria_label="sample")
    )
