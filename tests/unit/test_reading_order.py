"""docs/reading.md: the way from a record to its loss, and that it stays short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 2_500
"""Lines of functions, with signatures and docstrings, that a reader has to go through."""


@pytest.mark.slow
def test_the_page_is_up_to_date_and_the_way_short(tmp_path: Path) -> None:
    """In a process of its own: what an earlier test left in a cache isn't called again."""
    made = tmp_path / "reading.md"
    subprocess.run([sys.executable, str(ROOT / "tools" / "reading.py"), str(made)], check=True)
    page = made.read_text(encoding="utf-8")
    assert page == (ROOT / "docs" / "reading.md").read_text(encoding="utf-8"), (
        "python tools/reading.py docs/reading.md"
    )
    lines = [int(number) for number in re.findall(r"`, (\d+) lines$", page, re.M)]
    assert 500 < sum(lines) <= MOST_LINES
    steps = ("SampledBatches.__call__", "choose_grid", "ChatTokenizer.encode", "surviving_tokens", "pack")
    for step in (*steps, "VisionTower.forward_tokens", "pixel_shuffle", "ViTPObjective.forward"):
        assert f"`{step}`" in page
