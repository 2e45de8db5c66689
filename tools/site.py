"""What the documentation's site adds to the pages of docs/, which stay plain Markdown: hooks of mkdocs.yml.

The change log and the rules of contributing become pages of the site. Links that leave docs/ lead to those two
pages, or become their text, as the site holds no other files.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie at the root of the repository."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=LINK.sub(_from_root, text)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links that leave docs/ to their pages."""
    folder = posixpath.dirname(page.file.src_uri)
    return LINK.sub(lambda found: _from_docs(found, folder), markdown)


def _from_root(found: re.Match[str]) -> str:
    text, target = found.groups()
    if target.startswith("docs/"):
        return f"[{text}]({target.removeprefix('docs/')})"
    return found[0] if "://" in target or target.startswith("#") else _page(text, target) or text


def _from_docs(found: re.Match[str], folder: str) -> str:
    text, target = found.groups()
    place = posixpath.normpath(posixpath.join("docs", folder, target))
    if "://" in target or target.startswith("#") or place.startswith("docs/"):
        return found[0]
    return _page(text, place, posixpath.relpath(".", folder or ".")) or text


def _page(text: str, place: str, up: str = ".") -> str | None:
    name, _, anchor = place.partition("#")
    if name not in PAGES:
        return None
    return f"[{text}]({posixpath.normpath(posixpath.join(up, PAGES[name]))}{'#' * bool(anchor)}{anchor})"
