"""Pages made of sections of blocks, written as one self-contained HTML file or as Markdown.

A block has a `kind`, which names its macro in `blocks.html.j2`. Charts, cards and the explorer of attention are blocks
with files of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import jinja2
import yaml
from markupsafe import Markup

from vitp.core import files
from vitp.core.version import __version__
from vitp.report.charts import Chart
from vitp.report.pictures import PictureSource, data_address, open_picture
from vitp.report.text import format_number, inline_html


class Block(Protocol):
    """One thing on the page."""

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
    def laid_out(self) -> list[Block]:
        """The blocks, with a chart that would stand alone in a row of two made wide."""
        laid = list(self.blocks)
        narrow = [isinstance(block, Chart) and not block.wide for block in laid]
        in_row = 0
        for place, block in enumerate(laid):
            in_row = in_row + 1 if narrow[place] else 0
            if isinstance(block, Chart) and in_row % 2 and not any(narrow[place + 1 : place + 2]):
                laid[place] = replace(block, wide=True)
        return laid


@dataclass(frozen=True)
class HtmlPage:
    """A page.

    Attributes:
        title: The page's heading.
        sections: From top to bottom; each has an entry in the table of contents.
        subtitle: One sentence below the heading.
        facts: Short name → value, shown in one line below the subtitle.
    """

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    facts: Sequence[tuple[str, str]] = ()

    def html(self) -> str:
        """Return the page."""
        anchors: list[str] = []
        for section in self.sections:
            anchor = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section"
            anchors.append(anchor if anchor not in anchors else f"{anchor}-{len(anchors) + 1}")
        environment = _environment()
        return environment.get_template("page.html.j2").render(
            page=self,
            sections=list(zip(anchors, self.sections, strict=True)),
            css=Markup(environment.get_template("page.css").render()),
            js=Markup(environment.get_template("page.js").render()),
            inline=inline_html,
            version=__version__,
        )

    def markdown(self) -> str:
        """Return the texts, tables, facts and code; blocks that only a browser can show are left out."""
        parts = [
            f"# {self.title}",
            self.subtitle,
            " · ".join(f"{name}: {value}" for name, value in self.facts),
        ]
        for section in self.sections:
            blocks = [block.markdown() for block in section.blocks if isinstance(block, _Written)]
            if blocks or not section.blocks:  # else it has charts alone
                parts += [f"## {section.title}", section.lead, *blocks]
        return "\n\n".join(part for part in parts if part).rstrip() + "\n"

    def write(self, path: str | Path) -> Path:
        """Write the page atomically and return its path.

        Raises:
            VitpError: The path can't be written, or a picture can't be read.
        """
        files.write_text(path, self.html())
        return Path(path)


@cache
def _environment() -> jinja2.Environment:
    """Return the Jinja environment of the pages: HTML is escaped unless it is marked as safe."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("vitp.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


class _Written:
    """A block that has a form in Markdown, too."""

    def markdown(self) -> str:
        """Return the block as Markdown."""
        raise NotImplementedError


@dataclass(frozen=True)
class Text(_Written):
    """Paragraphs and lists: blank lines part paragraphs, lines that begin with `- ` are list items.

    Attributes:
        text: The text; see `inline_html` for the markup within a line.
        tone: "plain", or "good", "bad" or "note" for a box with a coloured edge.
    """

    kind: ClassVar[str] = "text"
    text: str
    tone: Literal["plain", "good", "bad", "note"] = "plain"

    @property
    def chunks(self) -> list[tuple[bool, list[str]]]:
        """The paragraphs: whether each is a list, and its items or its only text."""
        found = []
        for chunk in re.split(r"\n\s*\n", self.text.strip()):
            lines = [line.strip() for line in chunk.splitlines()]
            items = all(line.startswith("- ") for line in lines)
            found.append((items, [line[2:] for line in lines] if items else [" ".join(lines)]))
        return found

    def markdown(self) -> str:
        """Return the text as it is."""
        return self.text.strip()


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
class MeanStd:
    """A mean over repeated runs.

    Attributes:
        mean: The mean.
        std: Sample standard deviation, or None when there was one run.
        n: Number of runs.
    """

    mean: float
    std: float | None = None
    n: int | None = None


TableCell = str | float | int | MeanStd | None


@dataclass(frozen=True)
class Column:
    """A column of a `Table`.

    Attributes:
        title: Its head.
        best: Mark the largest ("max") or smallest ("min") number; all that read the same are marked, none where
            all numbers do.
        digits: Decimals; None chooses by size.
        signed: Show a plus before positive numbers.
        written: How its numbers are written, in place of digits and sign.
    """

    title: str
    best: Literal["max", "min"] | None = None
    digits: int | None = None
    signed: bool = False
    written: Callable[[float], str] | None = None


@dataclass(frozen=True)
class Table(_Written):
    """Rows of text and numbers.

    Attributes:
        columns: Heads; a plain string is a column without options.
        rows: Cells by row. None is shown as a dash.
        note: Small text below.
        highlight: Rows (by index) that are set off from the others.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[Column | str]
    rows: Sequence[Sequence[TableCell]]
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
        """What each cell shows: `text`, `spread` (± part), `numeric`, `best`, `title`."""
        shown = [[_shown(*pair) for pair in zip(row, self.heads, strict=True)] for row in self.rows]
        for index, head in enumerate(self.heads):
            known = [cells[index] for cells in shown if cells[index]["value"] is not None]
            if head.best is None or len({cell["text"] for cell in known}) < 2:
                continue
            winner = (max if head.best == "max" else min)(known, key=lambda cell: float(cell["value"]))
            for cell in known:
                cell["best"] = cell["text"] == winner["text"]
        return shown

    def markdown(self) -> str:
        """Return the table with the best numbers in bold."""
        numeric = [
            any(row[n]["numeric"] and row[n]["text"] != "–" for row in self.cells)
            for n in range(len(self.heads))
        ]
        rows = [[head.title for head in self.heads]]
        for cells in self.cells:
            texts = [c["text"] + (f" ± {c['spread']}" if c["spread"] else "") for c in cells]
            rows.append([f"**{text}**" if c["best"] else text for text, c in zip(texts, cells, strict=True)])
        lines = [
            "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in row) + " |"
            for row in rows
        ]
        lines.insert(1, "|" + "".join("---:|" if one else "---|" for one in numeric))
        return "\n".join([*lines, "", self.note] if self.note else lines)


def _shown(cell: TableCell, head: Column) -> dict[str, Any]:
    if cell is None or isinstance(cell, str):
        text = "–" if cell is None else cell
        return {
            "text": text,
            "spread": "",
            "numeric": cell is None,
            "best": False,
            "title": "",
            "value": None,
        }
    value, spread, title = cell, "", ""
    if isinstance(cell, MeanStd):
        value = cell.mean
        spread = "" if cell.std is None else format_number(cell.std, head.digits)
        title = "" if cell.n is None else f"{cell.n} run{'s' if cell.n != 1 else ''}"
    assert not isinstance(value, MeanStd)
    text = head.written(value) if head.written else format_number(value, head.digits, signed=head.signed)
    known = None if text == "–" else value
    return {"text": text, "spread": spread, "numeric": True, "best": False, "title": title, "value": known}


@dataclass(frozen=True)
class Figure:
    """A picture with a caption below it."""

    image: PictureSource
    caption: str = ""

    @property
    def address(self) -> str:
        """The picture as a data address."""
        return data_address(open_picture(self.image))


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


@dataclass(frozen=True)
class KeyValue(_Written):
    """Facts as a short list of names and values, or a long one that can be folded away.

    Attributes:
        facts: Name → value. Values that are mappings or lists are written as YAML.
        title: Title of the fold; empty shows the list openly.
    """

    kind: ClassVar[str] = "facts"
    facts: dict[str, Any]
    title: str = ""

    @cached_property
    def rows(self) -> list[tuple[str, str, bool]]:
        """Name, text, and whether the text is YAML."""
        rows = []
        for name, value in self.facts.items():
            if isinstance(value, (dict, list)) and value:
                shown = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).strip()
            elif isinstance(value, bool):
                shown = "yes" if value else "no"
            elif isinstance(value, float):
                shown = format_number(value)
            else:
                shown = "–" if value in (None, {}, []) else str(value)
            rows.append((name, shown, isinstance(value, (dict, list)) and bool(value)))
        return rows

    def markdown(self) -> str:
        """Return the facts as a list, and below it those that are YAML."""
        lines = [f"**{self.title}**", ""] if self.title else []
        lines += [f"- {name}: {text}" for name, text, nested in self.rows if not nested]
        for name, text, nested in self.rows:
            lines += ["", f"{name}:", "", "```yaml", text, "```"] if nested else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Code(_Written):
    """Text in fixed width, such as a configuration.

    Attributes:
        text: The text, shown as it is.
        title: Head of the fold; empty shows the text openly.
    """

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""

    def markdown(self) -> str:
        """Return the code between fences."""
        return (f"**{self.title}**\n\n" if self.title else "") + f"```\n{self.text.strip()}\n```"
