"""What a page is made of: sections of typed blocks. Charts, samples and attention have files of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import yaml
from markupsafe import Markup, escape

from vitp.report.charts import BarChart, LineChart
from vitp.report.pictures import Picture, data_address, open_picture
from vitp.report.svg import number


class Block(Protocol):
    """One thing on the page. `kind` names its macro in `report_blocks.html.j2`."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Section:
    """A heading of the page and of its table of contents.

    Attributes:
        title: The heading.
        blocks: From top to bottom; charts stand two in a row unless they are wide.
        lead: One or two sentences below the heading, in the small markup of `Text`.
    """

    title: str
    blocks: Sequence[Block]
    lead: str = ""

    @property
    def anchor(self) -> str:
        """The title as an address within the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "section"

    @property
    def laid_out(self) -> list[Block]:
        """The blocks, with a chart that would stand alone in a row of two made wide."""
        blocks = list(self.blocks)
        row: list[int] = []
        for place, block in enumerate([*blocks, None]):
            if isinstance(block, (LineChart, BarChart)) and not block.wide:
                row.append(place)
                continue
            if len(row) % 2:
                chart = blocks[row[-1]]
                assert isinstance(chart, (LineChart, BarChart))
                blocks[row[-1]] = replace(chart, wide=True)
            row = []
        return blocks

    @property
    def lead_html(self) -> Markup:
        """The lead with its markup applied."""
        return inline(self.lead)


def inline(text: str) -> Markup:
    """Return text with `**strong**`, `*emphasis*` and `` `code` `` applied; all else is escaped."""
    safe = str(escape(text))
    # Code first, and set aside: stars within it are literal.
    codes: list[str] = []

    def keep(match: re.Match[str]) -> str:
        codes.append(match[1])
        return f"\0{len(codes) - 1}\0"

    safe = re.sub(r"`([^`]+)`", keep, safe.replace("\0", ""))
    safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
    safe = re.sub(r"(?<!\w)\*(?!\s)(.+?)(?<!\s)\*(?!\w)", r"<em>\1</em>", safe)
    safe = re.sub("\0(\\d+)\0", lambda m: f"<code>{codes[int(m[1])]}</code>", safe)
    return Markup(safe)


@dataclass(frozen=True)
class Text:
    """Paragraphs and lists: blank lines part paragraphs, lines that begin with `- ` are list items.

    Attributes:
        text: The text; see `inline` for the markup within a line.
        tone: "plain", or "good", "bad" or "note" for a box with a coloured edge.
    """

    kind: ClassVar[str] = "text"
    text: str
    tone: Literal["plain", "good", "bad", "note"] = "plain"

    @property
    def html(self) -> Markup:
        """The text as HTML."""
        parts = []
        for chunk in re.split(r"\n\s*\n", self.text.strip()):
            lines = [line.strip() for line in chunk.splitlines()]
            if all(line.startswith("- ") for line in lines):
                items = Markup("").join(Markup("<li>{}</li>").format(inline(line[2:])) for line in lines)
                parts.append(Markup("<ul>{}</ul>").format(items))
            else:
                parts.append(Markup("<p>{}</p>").format(inline(" ".join(lines))))
        return Markup("").join(parts)


@dataclass(frozen=True)
class Card:
    """One large number.

    Attributes:
        value: As it is to be read, such as `0.83` or `48k`.
        label: What it is.
        delta: Change beside it, such as `+0.21 since the start`.
        better: True colours the delta as good, False as bad, None leaves it grey.
    """

    value: str
    label: str
    delta: str = ""
    better: bool | None = None


@dataclass(frozen=True)
class Headline:
    """A row of cards."""

    kind: ClassVar[str] = "headline"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Measure:
    """A mean over repeated runs.

    Attributes:
        mean: The mean.
        std: Sample standard deviation, or None when there was one run.
        n: Number of runs.
    """

    mean: float
    std: float | None = None
    n: int | None = None


Cell = str | float | int | Measure | None


@dataclass(frozen=True)
class Column:
    """A column of a `Table`.

    Attributes:
        title: Its head.
        best: Mark the largest ("max") or smallest ("min") number; all that read the same are marked, none where
            all numbers do.
        digits: Decimals; None chooses by size.
        signed: Show a plus before positive numbers.
    """

    title: str
    best: Literal["max", "min"] | None = None
    digits: int | None = None
    signed: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers.

    Attributes:
        columns: Heads; a plain string is a column without options.
        rows: Cells by row. None is shown as a dash.
        note: Small text below.
        highlight: Rows (by index) that are set off from the others.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[Column | str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    highlight: Sequence[int] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns")

    @cached_property
    def heads(self) -> list[Column]:
        """The columns as `Column`."""
        return [Column(c) if isinstance(c, str) else c for c in self.columns]

    @cached_property
    def cells(self) -> list[list[dict[str, Any]]]:
        """What each cell shows: `text`, `spread` (± part), `numeric`, `best`."""
        shown = [
            [_shown(cell, head) for cell, head in zip(row, self.heads, strict=True)] for row in self.rows
        ]
        for index, head in enumerate(self.heads):
            values = [v for row in self.rows if (v := _value(row[index])) is not None]
            if head.best is None or len({number(value, head.digits) for value in values}) < 2:
                continue
            winner = number(max(values) if head.best == "max" else min(values), head.digits)
            for row, cells in zip(self.rows, shown, strict=True):
                cells[index]["best"] = _value(row[index]) is not None and cells[index]["text"] == winner
        return shown


def _value(cell: Cell) -> float | None:
    if isinstance(cell, Measure):
        return cell.mean
    return float(cell) if isinstance(cell, (int, float)) else None


def _shown(cell: Cell, head: Column) -> dict[str, Any]:
    if cell is None:
        return {"text": "–", "spread": "", "numeric": True, "best": False, "title": ""}
    if isinstance(cell, str):
        return {"text": cell, "spread": "", "numeric": False, "best": False, "title": ""}
    value = _value(cell)
    assert value is not None
    spread, title = "", ""
    if isinstance(cell, Measure):
        spread = "" if cell.std is None else number(cell.std, head.digits)
        title = "" if cell.n is None else f"{cell.n} run{'s' if cell.n != 1 else ''}"
    text = ("+" if head.signed and value > 0 else "") + number(value, head.digits)
    return {"text": text, "spread": spread, "numeric": True, "best": False, "title": title}


@dataclass(frozen=True)
class Figure:
    """A picture with a caption, optionally with a second one laid over it.

    Attributes:
        image: The picture.
        caption: Below it.
        overlay: Of the same shape, shown half transparent while the switch of the grid is on.
    """

    image: Picture
    caption: str = ""
    overlay: Picture | None = None


@dataclass(frozen=True)
class ImageGrid:
    """Pictures side by side.

    Attributes:
        figures: The pictures.
        title: Above them.
        width: Smallest width of a picture on the page, in pixels.
        note: Small text below.
    """

    kind: ClassVar[str] = "images"
    figures: Sequence[Figure]
    title: str = ""
    width: int = 200
    note: str = ""

    @cached_property
    def shown(self) -> list[dict[str, Any]]:
        """Addresses and captions of the pictures."""
        return [
            {
                "address": data_address(open_picture(figure.image)),
                "overlay": None if figure.overlay is None else data_address(open_picture(figure.overlay)),
                "caption": figure.caption,
            }
            for figure in self.figures
        ]

    @property
    def has_overlay(self) -> bool:
        """Whether a switch is needed."""
        return any(figure.overlay is not None for figure in self.figures)


@dataclass(frozen=True)
class KeyValue:
    """Facts as a short list of names and values, or a long one that can be folded away.

    Attributes:
        facts: Name → value. Values that are mappings or lists are written as YAML.
        title: Of the fold; empty shows the list openly.
    """

    kind: ClassVar[str] = "facts"
    facts: dict[str, Any]
    title: str = ""

    @cached_property
    def rows(self) -> list[tuple[str, str, bool]]:
        """Name, text, and whether the text is YAML."""
        rows = []
        for name, value in self.facts.items():
            nested = isinstance(value, (dict, list)) and bool(value)
            rows.append((name, dump_yaml(value) if nested else _scalar(value), nested))
        return rows


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, float) else "–" if value in (None, {}, []) else str(value)


def dump_yaml(value: Any) -> str:
    """Return a value as YAML in the order of its keys."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).strip()


@dataclass(frozen=True)
class Code:
    """Text in fixed width, such as a configuration.

    Attributes:
        text: The text, shown as it is.
        title: Head of the fold; empty shows the text openly.
    """

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""
