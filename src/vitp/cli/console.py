"""Where commands print."""

from __future__ import annotations

import sys

from rich.console import Console

PIPE_WIDTH = 200
"""Columns when nobody looks: a path that is broken over two lines can't be searched for."""


def make_console() -> Console:
    """Return a console on standard output as wide as the terminal, wider when the output goes into a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
