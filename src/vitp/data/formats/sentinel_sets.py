"""Sets of Sentinel-2 with one folder a patch or place: BigEarthNet's classes, and the pairs of OSCD."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.pixel_masks import ChangeFile
from vitp.data.formats.walk import (
    child,
    comma_list,
    files_below,
    parse_label_json,
    read_label_text,
    split_of,
    within,
)
from vitp.records.labels import LabelledSet

_COLUMNS = ("patch_id", "labels", "split")
_METADATA = "_labels_metadata.json"
_IMAGES, _LABELS = "images", ("train labels", "test labels")


def bigearthnet_files(root: Path) -> list[Path]:
    """Return BigEarthNet's files of classes: one in each folder of a patch, or `metadata.parquet` of version 2."""
    table = root / "metadata.parquet"
    # Tables of this name are common, and reading one needs a package: only beside bands it is looked into.
    has_bands = table.is_file() and any(path.stem.endswith("_B02") for path in files_below(root, ".tif"))
    try:
        if has_bands and set(_COLUMNS) <= set(_parquet().read_schema(table).names):
            return [table]
    except (OSError, ValueError):  # a damaged one is none of BigEarthNet's
        pass
    return [path for path in files_below(root, ".json") if path.name.endswith(_METADATA)]


def _parquet() -> Any:
    return need("parquet", "pyarrow.parquet", "metadata.parquet")


def _patches(root: Path) -> Iterator[tuple[str, Path, object, str | None]]:
    """Yield where each patch is named, its folder, its labels, and its split."""
    for path in bigearthnet_files(root):
        if path.suffix == ".json":
            content = parse_label_json(read_label_text(path), path)
            yield (
                within(path, root),
                path.parent,
                content.get("labels") if isinstance(content, dict) else None,
                None,
            )
            continue
        files = files_below(root, ".tif")
        folders = {file.parent.name: file.parent for file in files if file.stem.endswith("_B02")}
        try:
            rows = _parquet().read_table(path, columns=[*_COLUMNS]).to_pylist()
        except (OSError, ValueError) as error:
            raise DataError(f"can't be read ({error})", where=str(path), fix="download it again") from error
        for number, row in enumerate(rows, 1):
            name, labels, split = (row[key] for key in _COLUMNS)
            yield f"{path.name}:{number}", folders.get(name, root / name), labels, split_of(str(split))


def read_bigearthnet(
    root: Path, options: ReadOptions = ReadOptions(), *, classes: str | list[str] | None = None
) -> LabelledSet:
    """Read BigEarthNet: a folder a patch with one file a band, and what it shows in it (version 1) or in a table (2).

    Args:
        root: Holds the patches, anywhere below.
        options: Name, licence, splits.
        classes: The classes in order; others are left out.

    Raises:
        DataError: A file can't be read.
    """
    builder, known, seen = SetBuilder(root, options), comma_list(classes), set[str]()
    for where, folder, labels, split in _patches(root):
        if not isinstance(labels, list) or not labels:
            builder.lose(where, "names no labels; patch left out")
        elif not folder.is_dir():
            builder.lose(where, f"{folder.name} is missing; left out", absent=True)
        elif (size := builder.size_of(folder, where)) is not None:
            tags = tuple(name for name in map(str, labels) if known is None or name in known)
            seen.update(tags)
            builder.add(folder, size, split=split, tags=tags)
    return builder.build(scene_classes=known or sorted(seen))


def oscd_regions(root: Path) -> dict[str, tuple[Path, str | None, Path | None]]:
    """Return region → its folder of images, its split, and its mask of OSCD's three folders; {}: these aren't there."""
    folders = {path.name.lower().rpartition(" - ")[2]: path for path in root.iterdir() if path.is_dir()}
    if _IMAGES not in folders or not any(name in folders for name in _LABELS):
        return {}
    found: dict[str, tuple[Path, str | None, Path | None]] = {}
    for region in sorted(path for path in folders[_IMAGES].iterdir() if path.is_dir()):
        masks = {name: folders[name] / region.name / "cm" / "cm.png" for name in _LABELS if name in folders}
        split, mask = next(
            ((name.split()[0], path) for name, path in masks.items() if path.is_file()), (None, None)
        )
        if child(region, ("imgs_1_rect",)) and child(region, ("imgs_2_rect",)):
            found[region.name] = region, split, mask
    return found


def read_oscd(root: Path, options: ReadOptions = ReadOptions()) -> LabelledSet:
    """Read the Onera Satellite Change Detection set: the bands of two dates of each region, and where it changed.

    Args:
        root: Holds "… - Images", "… - Train Labels" and "… - Test Labels", as they are unpacked.
        options: Name, licence, splits.

    Raises:
        DataError: No region has a mask.
    """
    builder = SetBuilder(root, options)
    builder.understand(
        "OSCD: imgs_1_rect and imgs_2_rect are the dates, cm/cm.png is what changed; pair/ isn't read"
    )
    for name, (region, split, mask) in oscd_regions(root).items():
        if mask is None:
            builder.note(name, "no mask; left out")
            continue
        dates = [region / f"imgs_{number}_rect" for number in (1, 2)]
        sizes = {builder.size_of(path) for path in (*dates, mask)}
        if len(sizes) > 1 or None in sizes:
            texts = ", ".join(f"{size[0]}×{size[1]}" for size in sizes if size)
            builder.lose(name, f"its dates and its mask differ in size ({texts}); left out")
            continue
        size = next(size for size in sizes if size)
        before, after = map(str, dates)
        builder.add(before, size, split=split, name=name, second_image=after, change=ChangeFile(str(mask)))
    if not builder.count:
        raise DataError(
            "no region has both dates and a mask", where=str(root), fix="unpack the train labels, too"
        )
    return builder.build()
