"""One self-contained HTML page made of sections: no file beside it, nothing fetched from anywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from vitp.core import files
from vitp.core.version import __version__
from vitp.report.sections import Section


@cache
def environment() -> jinja2.Environment:
    """Return the Jinja environment of the pages: everything is escaped unless it is marked as safe."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("vitp.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


@dataclass(frozen=True)
class Page:
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
        anchors = _unique([section.anchor for section in self.sections])
        template = environment().get_template("report.html.j2")
        return template.render(
            page=self,
            sections=list(zip(anchors, self.sections, strict=True)),
            css=_asset("report.css"),
            theme_js=_asset("report_theme.js"),
            js=_asset("report.js"),
            version=__version__,
        )

    def write(self, path: str | Path) -> Path:
        """Write the page atomically and return its path.

        Raises:
            VitpError: The path can't be written, or a picture can't be read.
        """
        files.write_text(path, self.html())
        return Path(path)


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result


@cache
def _asset(name: str) -> Markup:
    loader = environment().loader
    assert loader is not None
    source = loader.get_source(environment(), name)[0]
    return Markup(re.sub(r"\n{2,}", "\n", source.strip()))
