"""What lies beside images that no reader took: named where no labels were found, since the labels may be there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.walk import files_below, images_below, within

_LABEL_SUFFIXES = frozenset(
    [
        ".json",
        ".jsonl",
        ".geojson",
        ".odgt",
        ".xml",
        ".csv",
        ".tsv",
        ".txt",
        ".mat",
        ".npy",
        ".npz",
        ".h5",
        ".hdf5",
        ".pkl",
        ".pickle",
        ".parquet",
        ".xlsx",
        ".xls",
        ".tfrecord",
        ".record",
        ".db",
        ".sqlite",
        ".yaml",
        ".yml",
        ".svg",
        ".dat",
        ".bin",
    ]
)
"""Files that labels come in."""

STRUCTURED = frozenset(
    [".json", ".geojson", ".odgt", ".xml", ".mat", ".npy", ".npz", ".h5", ".hdf5", ".pkl", ".pickle"]
)
"""Those of them that are no lists of names."""

_PAPERS = (
    "readme",
    "license",
    "licence",
    "copying",
    "citation",
    "requirements",
    "notes",
    "changelog",
    "attribution",
)
_SHOWN = 3
_WAYS = {
    ".mat": "MATLAB's files aren't read: write their classes as a table image,class, and masks as PNG (SciPy's loadmat)",
    **dict.fromkeys(
        (".npy", ".npz", ".h5", ".hdf5", ".pkl", ".pickle", ".tfrecord", ".record"),
        "images in arrays aren't read: write each as a file (PNG) into a folder of its class, or with a table image,class",
    ),
}
"""Kinds of files that nobody reads → what to do."""


class Unlabelled(DataError):
    """Images are there, and nothing that a reader takes for their labels."""


def with_unread(error: Unlabelled, root: Path) -> Unlabelled:
    """Return the error with the files that may hold the labels, where there are any."""
    if not (there := unread_files(root)):
        return error
    fix = "; ".join(filter(None, (way_of(root), error.fix)))
    return Unlabelled(
        f"{error.what}; there, and of no kind that is read: {there}", where=error.where, fix=fix
    )


def way_of(root: Path) -> str:
    """Return what to do about files below a folder whose kind nobody reads; "" where there are none."""
    suffixes = {path.suffix.lower() for path in files_below(root)}
    return next((way for suffix, way in _WAYS.items() if suffix in suffixes), "")


def unread_files(root: Path, suffixes: Collection[str] = _LABEL_SUFFIXES) -> str:
    """Return which files below a folder may hold labels that no reader knows, by folder and kind; "" where none do.

    Pictures aren't among them, nor what says something of the whole set.
    """
    images = set(images_below(root))
    kinds: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in files_below(root, whole=images.__contains__):
        suffix = path.suffix.lower()
        if path not in images and suffix in suffixes and not path.stem.lower().startswith(_PAPERS):
            kinds[path.parent, suffix].append(path)
    shown = []
    for (_, suffix), paths in sorted(kinds.items())[:_SHOWN]:
        more = f" and {len(paths) - 1:,} more {suffix}" if len(paths) > 1 else ""
        shown.append(f"{within(paths[0], root)}{more}")
    rest = f" and others in {len(kinds) - _SHOWN} more places" if len(kinds) > _SHOWN else ""
    return f"{', '.join(shown)}{rest}" if shown else ""
