"""Label formats: a folder of labels in any of the usual forms → `LabelledSet`.

read_labels("voc", root, licence="MIT")
read_labels(detect_format(root), root, group_regex=r"^P\\d+")
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vitp.core.errors import ConfigError, DataError, did_you_mean
from vitp.data.formats import (
    captions,
    class_tables,
    coco,
    dota,
    folders,
    generated,
    masks,
    pairs,
    vitp_labels,
    voc,
    yolo,
)
from vitp.data.formats.common import ReadOptions
from vitp.data.formats.detect import detect, detect_format
from vitp.records.labels import LabelledSet

__all__ = ["FORMATS", "ReadOptions", "detect", "detect_format", "option_names", "read_labels"]

FORMATS: dict[str, Callable[..., LabelledSet]] = {
    "coco": coco.read,
    "voc": voc.read,
    "yolo": yolo.read,
    "dota": dota.read,
    "masks": masks.read,
    "folders": folders.read,
    "pairs": pairs.read,
    "captions": captions.read,
    "classes": class_tables.read,
    "scenes": generated.read,
    "vitp": vitp_labels.read,
}
"""Format → reader. All take the folder first; "scenes" takes the name of a domain instead."""

_COMMON = tuple(field.name for field in fields(ReadOptions))


def option_names(fmt: str) -> tuple[str, ...]:
    """Return the names of all options of a format.

    Raises:
        ConfigError: There is no such format.
    """
    own = [name for name in inspect.signature(_reader(fmt)).parameters if name != "options"][1:]
    return (*own, *_COMMON) if _takes_common(fmt) else tuple(own)


def read_labels(fmt: str, root: str | Path, **options: Any) -> LabelledSet:
    """Read labels.

    Args:
        fmt: A key of `FORMATS`, the name of a published set (`vitp.data.benchmarks`), or "auto".
        root: The set's folder (or file, for tables and single COCO files; or the domain of "scenes").
        **options: Those of the format's `read` and the fields of `ReadOptions`.

    Raises:
        ConfigError: There is no such format or option.
        DataError: The labels can't be read.
    """
    if fmt == "auto":
        found = detect(Path(root))
        labelled = read_labels(found.format, root, **options)
        return replace(labelled, understood=(*found.understood, *labelled.understood))
    reader = _reader(fmt)
    known = option_names(fmt)
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(
                f'no option "{name}"', where=f"format {fmt}", fix=hint or f"known are {', '.join(known)}"
            )
    if fmt == "scenes":
        return reader(str(root), **options)
    root = Path(root)
    if not root.exists():
        raise DataError("doesn't exist", where=str(root), fix="check the path")
    if not root.is_dir() and fmt not in ("coco", "captions", "classes"):
        raise DataError("is not a folder", where=str(root), fix="name the folder of the set")
    if not _takes_common(fmt):
        return reader(root, **options)
    common = ReadOptions(**{name: options.pop(name) for name in _COMMON if name in options})
    return reader(root, common, **options)


def _reader(fmt: str) -> Callable[..., LabelledSet]:
    if fmt in FORMATS:
        return FORMATS[fmt]
    # Published sets are formats of their own; their readers are built from those above.
    from vitp.data.benchmarks.catalogue import BENCHMARK_READERS

    if fmt not in BENCHMARK_READERS:
        hint = did_you_mean(fmt, [*FORMATS, *BENCHMARK_READERS])
        raise ConfigError(
            f'no label format "{fmt}"',
            where="format",
            fix=hint or f"known are {', '.join(FORMATS)}, and the sets that `vitp data sets` lists",
        )
    return BENCHMARK_READERS[fmt]


def _takes_common(fmt: str) -> bool:
    return "options" in inspect.signature(_reader(fmt)).parameters
