"""A page as Markdown: its text and tables, for a repository or a terminal. Charts and pictures stay with the HTML."""

from __future__ import annotations

from collections.abc import Sequence

from vitp.report.page import Page
from vitp.report.sections import Block, Code, KeyValue, Table, Text


def page_markdown(page: Page) -> str:
    """Return the page's texts, tables, facts and code; blocks that only a browser can show are left out."""
    lines = [f"# {page.title}", ""]
    if page.subtitle:
        lines += [page.subtitle, ""]
    if page.facts:
        lines += [" · ".join(f"{name}: {value}" for name, value in page.facts), ""]
    for section in page.sections:
        blocks = [_block(block) for block in section.blocks]
        if section.blocks and not any(blocks):
            continue  # charts alone
        lines += [f"## {section.title}", "", *([section.lead, ""] if section.lead else [])]
        for block in blocks:
            lines += block
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [block.text.strip(), ""]
    if isinstance(block, Table):
        return [*_table(block), ""]
    if isinstance(block, Code):
        return [*([f"**{block.title}**", ""] if block.title else []), "```", block.text.strip(), "```", ""]
    if isinstance(block, KeyValue):
        return [*_facts(block), ""]
    return []


def _table(table: Table) -> list[str]:
    numeric = [
        any(row[i]["numeric"] and row[i]["text"] != "–" for row in table.cells)
        for i in range(len(table.heads))
    ]
    lines = [
        _row([head.title for head in table.heads]),
        "|" + "".join("---:|" if one else "---|" for one in numeric),
    ]
    for cells in table.cells:
        shown = []
        for cell in cells:
            text = f"{cell['text']} ± {cell['spread']}" if cell["spread"] else cell["text"]
            shown.append(f"**{text}**" if cell["best"] else text)
        lines.append(_row(shown))
    return [*lines, "", table.note] if table.note else lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _facts(block: KeyValue) -> list[str]:
    lines = [f"**{block.title}**", ""] if block.title else []
    nested = [(name, text) for name, text, is_nested in block.rows if is_nested]
    lines += [f"- {name}: {text}" for name, text, is_nested in block.rows if not is_nested]
    for name, text in nested:
        lines += ["", f"{name}:", "", "```yaml", text, "```"]
    return lines
