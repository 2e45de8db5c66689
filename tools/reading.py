"""The functions of the package that a record passes on its way to a loss, in the order in which they are first called.

`python tools/reading.py docs/reading.md` writes the page; a test tells when it is out of date and bounds its length.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
from PIL import Image

import vitp
from vitp.core.files import write_text
from vitp.data.compile import compile_labels
from vitp.recipes.paradigms import starter_config
from vitp.runs.pretrain import build

ROOT = Path(vitp.__file__).parent
HEAD = """# From record to loss

This page is made by running a step (`python tools/reading.py docs/reading.md`); don't edit it.

These are the functions that run between a place in the training (step, micro-batch, rank) and the summed loss of
ViTP on one batch of pictures, in the order in which they are first called. Read them from the top.
"""


@contextmanager
def calls() -> Iterator[list[CodeType]]:
    """Collect the functions of the package that are called, each once."""
    found: dict[CodeType, None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        # Comprehensions and lambdas are parts of the functions that they stand in.
        inside = frame.f_code.co_name.startswith("<")
        if event == "call" and not inside and frame.f_code.co_filename.startswith(str(ROOT)):
            found[frame.f_code] = None

    order: list[CodeType] = []
    sys.setprofile(note)
    try:
        yield order
    finally:
        sys.setprofile(None)
        order += found


def walked(folder: Path) -> list[CodeType]:
    """Return the functions that one batch of a fresh run of ViTP passes, of a set of generated pictures."""
    rng = np.random.default_rng(0)
    for name in ("forest", "water"):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            picture = Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
            picture.save(folder / "pictures" / name / f"{name}{number}.png")
    compile_labels(folder / "pictures", "folders", folder / "data")
    config = starter_config([folder / "data"])
    run = build(config)
    with calls() as order:
        run.objective(run.source(0, 0, 0, 1))
    return order


def lines_of(code: CodeType) -> int:
    """Return the lines of a function, its signature and docstring with it."""
    last = max(line for _, _, line in code.co_lines() if line is not None)
    return last - code.co_firstlineno + 1


def length(order: list[CodeType]) -> int:
    """Return the lines of functions together."""
    return sum(lines_of(code) for code in order)


def page(order: list[CodeType]) -> str:
    """Return the page, as Markdown."""
    rows = [HEAD]
    before = ""
    for code in order:
        file = str(Path(code.co_filename).relative_to(ROOT))
        if file != before:
            rows.append(f"\n**{file}**\n")
            before = file
        rows.append(f"- `{code.co_qualname.replace('.<locals>', '')}`, {lines_of(code)} lines")
    rows.append(f"\n{len(order)} functions, {length(order):,} lines with signatures and docstrings.\n")
    return "\n".join(rows)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        write_text(Path(sys.argv[1]), page(walked(Path(made))))
