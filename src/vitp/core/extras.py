"""Packages that only some users need: they are imported where they are used, and named where they are missing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from vitp.core.errors import DataError, VitpError


def need(extra: str, module: str, where: str, error: type[VitpError] = DataError) -> Any:
    """Return a module of an optional package.

    Args:
        extra: The extra of this project that brings the package: `geo`, `medical`, `onnx`, …
        module: Module to import: `rasterio`, `pydicom.uid`, …
        where: File, option or setting that needs it.
        error: What is raised: `ConfigError` where a setting asks for the package, `DataError` where a file does.

    Raises:
        VitpError: It isn't installed, or can't be imported.
    """
    try:
        return import_module(module)
    except ImportError as failure:
        package = module.split(".")[0]
        # In `what`, because where a file is left out for it, the finding holds this alone.
        what = f"needs {package}, which `pip install 'vitp[{extra}]'` brings"
        lacking = isinstance(failure, ModuleNotFoundError) and (failure.name or "").split(".")[0] == package
        # A package can be there and fail: it lacks a library of the system, or is of another release.
        fix = "install it" if lacking else f"repair the installed one ({failure})"
        raise error(what, where=where, fix=fix) from failure


@contextmanager
def silenced(logger: str, level: int = logging.ERROR) -> Iterator[None]:
    """Keep back warnings, and what a package's logger says below a level."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
