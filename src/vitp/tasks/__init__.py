"""Downstream tasks: what a pretrained backbone is for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitp.tasks.base import TaskModel


def load_task(path: str | Path) -> TaskModel:
    """Return the finetuned model of a run or model folder; see `vitp.tasks.model_folder.load_task`."""
    # Imported when it is used: the parts of this package must not pull in all the others.
    from vitp.tasks import model_folder as runs

    return runs.load_task(path)
