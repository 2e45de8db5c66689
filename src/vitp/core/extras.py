"""Packages that only some users need: they are imported where they are used, and named where they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vitp.core.errors import DataError


def need_medical(module: str, where: str) -> Any:
    """Return a module of the extra `medical`.

    Args:
        module: `pydicom`, `nibabel`, `SimpleITK`, `highdicom`, `tiffslide`, …
        where: File or setting that needs it.

    Raises:
        DataError: It isn't installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        # In `what`, because where a file is left out for it, the finding holds this alone.
        what = f"needs {module.split('.')[0]}, which `pip install 'vitp[medical]'` brings"
        fix = "install it"
        raise DataError(what, where=where, fix=fix) from error
