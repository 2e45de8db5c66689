"""Semantic masks: images/ and masks/ with files of the same stem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitp.data.formats.common import ReadOptions, SetBuilder, list_images, paired_folders
from vitp.data.formats.mask_classes import (
    BACKGROUND,
    ClassMap,
    distinct,
    from_file,
    from_option,
    from_values,
    mode_of,
)
from vitp.data.formats.pixel_masks import MaskFile, mask_values
from vitp.data.formats.regions import objects_of
from vitp.data.images import load_label_pixels
from vitp.data.labels import IGNORE, LabelledSet
from vitp.errors import DataError

MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "gt", "label")
_INDEX_MODES = ("1", "L", "P", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class _Entry:
    image: Path
    mask: Path
    size: tuple[int, int]
    split: str | None
    values: list[int]


def read(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | Mapping[str, str | int] | None = None,
    instances: bool = False,
    min_area: int = 10,
) -> LabelledSet:
    """Read images with semantic masks. Every mask is decoded once to see which values occur.

    Args:
        root: Holds `{split}/{images,masks}`, `{images,masks}/{split}` or `images` and `masks`.
        options: Name, licence, splits.
        classes: "name=value,…" with indices or colours (see `mask_classes.from_option`); by default from
            classes.txt, else from the values that occur.
        instances: Derive objects from the connected regions of every class but "background".
        min_area: Regions of fewer pixels are no objects.

    Raises:
        DataError: A mask is damaged, or the masks' values can't be classes.
        ConfigError: The option `classes` can't be understood.
    """
    builder = SetBuilder(root, options)
    entries = _entries(builder, root)
    if not entries:
        return builder.build()
    modes = {mode_of(entry.mask) for entry in entries}
    colour = not modes <= set(_INDEX_MODES)
    if colour and modes & set(_INDEX_MODES):
        raise DataError(
            "some masks hold colours and others indices", where=str(root), fix="save all masks in one way"
        )
    class_map = _class_map(root, entries, classes, colour=colour, palette=modes == {"P"})
    _check_any_used(root, entries, class_map, colour=colour)
    known = {value for value, _ in class_map.values}
    names = {i: name for i, name in enumerate(class_map.names) if name != BACKGROUND}
    for entry in entries:
        if unknown := [value for value in entry.values if value not in known and (colour or value != IGNORE)]:
            shown = ", ".join(f"#{v:06x}" if colour else str(v) for v in unknown[:5])
            builder.note(builder.place(entry.mask), f"{len(unknown)} unknown values ({shown}); ignored there")
        mask = MaskFile(str(entry.mask), class_map.values)
        objects = None
        if instances:
            regions = objects_of(mask(), names, min_area=min_area)
            objects = regions.objects
            if regions.too_small:
                builder.note(
                    builder.place(entry.mask),
                    f"{regions.too_small} regions under {min_area} pixels; not counted as objects",
                )
        builder.add(entry.image, entry.size, split=entry.split, semantic=mask, objects=objects)
    return builder.build(semantic_classes=class_map.names, object_classes=names.values() if instances else ())


def _entries(builder: SetBuilder, root: Path) -> list[_Entry]:
    places = paired_folders(root, (("images", "image"), MASK_FOLDERS))
    if not places:
        raise DataError("has no images/ and masks/ folders", where=str(root), fix="put the files into them")
    entries = []
    for split, (image_folder, mask_folder) in places:
        masks = {path.stem: path for path in list_images(mask_folder)}
        for image in list_images(image_folder):
            mask = masks.pop(image.stem, None)
            if mask is None:
                builder.note(builder.place(image), "no mask; image left out")
                continue
            size = builder.size_of(image)
            if size is None:
                continue
            values_HW = mask_values(load_label_pixels(mask))
            if values_HW.shape != (size[1], size[0]):
                height, width = values_HW.shape
                builder.note(
                    builder.place(mask),
                    f"is {width}×{height} but its image {size[0]}×{size[1]}; image left out",
                )
                continue
            entries.append(_Entry(image, mask, size, split, distinct(values_HW)))
        for mask in masks.values():
            builder.note(builder.place(mask), "its image is missing; left out")
    return entries


def _check_any_used(root: Path, entries: list[_Entry], class_map: ClassMap, *, colour: bool) -> None:
    """Raise when the masks hold no class but background: then the map is wrong, not the images empty."""
    found = {value for entry in entries for value in entry.values}
    wanted = {v for v, i in class_map.values if i != IGNORE and class_map.names[i] != BACKGROUND}
    if not found & wanted:
        shown = ", ".join(f"#{v:06x}" if colour else str(v) for v in sorted(found)[:10])
        raise DataError(
            f"no mask holds any of the classes; the values that occur are {shown}",
            where=str(root),
            fix="name them with the option classes",
        )


def _class_map(
    root: Path,
    entries: list[_Entry],
    classes: str | Mapping[str, str | int] | None,
    *,
    colour: bool,
    palette: bool,
) -> ClassMap:
    if classes:
        return from_option(classes, colour=colour)
    if (root / "classes.txt").is_file():
        return from_file(root / "classes.txt", colour=colour)
    return from_values([v for entry in entries for v in entry.values], root, colour=colour, palette=palette)
