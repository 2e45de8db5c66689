"""Findings of `vitp data check`, counted, shown and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Severity = Literal["error", "warning", "info"]
_STYLES: dict[str, str] = {"error": "bold red", "warning": "yellow", "info": "cyan"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the check has to say.

    Attributes:
        severity: `error`: the row can't or must not be used. `warning`: it can, and is probably not what was
            meant. `info`: good to know.
        kind: Short name for counting: "row", "image", "box", "size", "length", "duplicate id", "leak", …
        file: Annotation file, or the file that could not be opened.
        line: Line in it, from 1; 0 when the finding is about the whole file.
        id: Id of the record; empty when it has none.
        what: What is wrong.
        fix: What to do.
    """

    severity: Severity
    kind: str
    file: str
    line: int
    id: str
    what: str
    fix: str

    @property
    def where(self) -> str:
        """File and line as messages write them."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class SourceCount:
    """What was looked at in one source.

    Attributes:
        name: Name of the source.
        split: `train`, `val` or `test`.
        rows: Rows in it.
        usable: Rows without an error.
        images: Different images that its rows name.
    """

    name: str
    split: str
    rows: int
    usable: int
    images: int


@dataclass
class CheckReport:
    """Result of a check.

    Attributes:
        findings: All findings, in the order of the files.
        sources: Counts of each source.
    """

    findings: list[Finding] = field(default_factory=list)
    sources: list[SourceCount] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 when something can't be used, else 0."""
        return int(any(finding.severity == "error" for finding in self.findings))

    def counts(self) -> dict[str, int]:
        """Return the number of findings by severity."""
        seen = Counter(finding.severity for finding in self.findings)
        return {severity: seen[severity] for severity in ("error", "warning", "info")}

    def kinds(self) -> dict[str, int]:
        """Return the number of findings by kind, most frequent first."""
        return dict(Counter(finding.kind for finding in self.findings).most_common())

    def of_kind(self, kind: str) -> list[Finding]:
        """Return the findings of one kind."""
        return [finding for finding in self.findings if finding.kind == kind]

    def to_json(self) -> dict[str, Any]:
        """Return the whole report as plain values."""
        return {
            "exit_code": self.exit_code,
            "counts": self.counts(),
            "kinds": self.kinds(),
            "sources": [asdict(source) for source in self.sources],
            "findings": [asdict(finding) for finding in self.findings],
        }

    def render(self, *, most: int = 10, width: int = 80) -> RenderableType:
        """Return tables for a console of `width` columns, with at most `most` findings of each kind."""
        parts: list[RenderableType] = [self._source_table()]
        if self.findings:
            parts.append(self._finding_table(most, width))
        counts = self.counts()
        verdict = "Some rows can't be used." if self.exit_code else "Every row can be used."
        amounts = ", ".join(
            f"{number:,} {name}{'s' if number != 1 and name != 'info' else ''}"
            for name, number in counts.items()
            if number
        )
        style = "bold red" if self.exit_code else "bold green"
        parts.append(Text(f"{verdict} {amounts.capitalize() or 'No findings'}.", style=style))
        return Group(*parts)

    def _source_table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("set")
        table.add_column("split")
        for name in ("rows", "usable", "images"):
            table.add_column(name, justify="right")
        for s in self.sources:
            style = "" if s.usable == s.rows else "red"
            table.add_row(s.name, s.split, f"{s.rows:,}", Text(f"{s.usable:,}", style=style), f"{s.images:,}")
        return table

    def _finding_table(self, most: int, width: int) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        # A place that is broken over two lines can't be copied or searched for: the other columns fold before it does.
        longest = max(len(finding.where) for finding in self._shown(most))
        for name in ("", "where", "id", "what", "what to do"):
            table.add_column(name, overflow="fold", no_wrap=name == "where" and longest <= 0.6 * width)
        for finding in self._shown(most):
            table.add_row(
                Text(finding.severity, style=_STYLES[finding.severity]),
                Text(finding.where),
                Text(finding.id),
                Text(finding.what),
                Text(finding.fix, style="dim"),
            )
        for kind, number in self.kinds().items():
            if number > most:
                table.add_row("", "", "", Text(f"… and {number - most:,} more of this kind: {kind}"), "")
        return table

    def _shown(self, most: int) -> Iterator[Finding]:
        for severity in ("error", "warning", "info"):
            seen: Counter[str] = Counter()
            for finding in self.findings:
                seen[finding.kind] += 1
                if finding.severity == severity and seen[finding.kind] <= most:
                    yield finding
