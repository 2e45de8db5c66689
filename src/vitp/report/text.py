"""Numbers and short texts as people read them."""

from __future__ import annotations

import math
import re

from markupsafe import Markup, escape


def format_number(value: float, digits: int | None = None, *, signed: bool = False) -> str:
    """Return a number for reading: `digits` decimals, or four significant ones, thousands grouped by commas.

    Args:
        value: The number; one that is not finite is shown as a dash.
        digits: Decimals.
        signed: Write a plus before positive numbers.
    """
    if not math.isfinite(value):
        return "–"
    value = value or 0.0  # of the two zeros the one without a sign
    if value < 0:
        positive = format_number(-value, digits)
        # What is rounded to nothing has no sign.
        return f"−{positive}" if positive.strip("0.,") else positive
    if digits is not None:
        text = f"{value:,.{digits}f}"
    elif value == int(value) and value < 1e15:
        text = f"{int(value):,}"
    elif value >= 1000:
        text = f"{value:,.0f}"
    else:
        text = format_tick(value) if value < 1e-3 else f"{value:.4g}"
    return f"+{text}" if signed and text.strip("0.,") else text


def format_tick(value: float) -> str:
    """Return the number of an axis as short as it can be read: `0.25`, `15k`, `2e-5`."""
    size = abs(value)
    if 0 < size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        # 1500 stays as it is, 15000 becomes 15k.
        if size >= max(unit, 1e4):
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def inline_html(text: str) -> Markup:
    """Return text with `**strong**`, `*emphasis*` and `` `code` `` applied; all else is escaped."""
    # Code is set aside first, because stars within it are literal.
    codes: list[str] = []

    def keep(match: re.Match[str]) -> str:
        codes.append(match[1])
        return f"\0{len(codes) - 1}\0"

    # Null bytes, of which the text has none any more, mark the places of code.
    safe = re.sub(r"`([^`]+)`", keep, str(escape(text)).replace("\0", ""))
    safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
    safe = re.sub(r"(?<!\w)\*(?!\s)(.+?)(?<!\s)\*(?!\w)", r"<em>\1</em>", safe)
    return Markup(re.sub("\0(\\d+)\0", lambda match: f"<code>{codes[int(match[1])]}</code>", safe))
