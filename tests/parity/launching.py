"""Starts the ranks of a parity test as processes of their own, as torchrun would."""

from __future__ import annotations

import runpy
import sys

from tests.forks import fork_ranks


def launch_ranks(module: str, *arguments: object, world: int, timeout: float) -> None:
    """Run `python -m module arguments…` in `world` processes that find each other.

    Args:
        module: What every rank runs.
        *arguments: Of the module.
        world: Number of ranks.
        timeout: Seconds that a rank has.

    Raises:
        AssertionError: A rank failed; the message is what it printed.
    """

    def program() -> None:
        sys.argv = [module, *map(str, arguments)]
        runpy.run_module(module, run_name="__main__")

    fork_ranks(program, world, timeout)
