"""One folder a class, optionally under folders of the splits."""

from __future__ import annotations

from pathlib import Path

from vitp.data.formats.common import ReadOptions, SetBuilder, comma_list, list_images, split_folders
from vitp.data.labels import LabelledSet


def read(
    root: Path, options: ReadOptions = ReadOptions(), *, classes: str | list[str] | None = None
) -> LabelledSet:
    """Read class folders.

    Args:
        root: Holds `{class}/*.png` or `{train,val,test}/{class}/*.png`.
        options: Name, licence, splits.
        classes: The classes in order, others are left out; by default the folders' names, sorted.

    Raises:
        DataError: There is no image in any class folder.
    """
    builder = SetBuilder(root, options)
    known = comma_list(classes)
    seen: set[str] = set()
    for split, base in split_folders(root):
        for folder in sorted(p for p in base.iterdir() if p.is_dir() and not p.name.startswith(".")):
            images = list_images(folder)
            if known is not None and folder.name not in known:
                builder.note(builder.place(folder), f"unknown class; {len(images)} images left out")
                continue
            if not images:
                builder.note(builder.place(folder), "class folder without images")
                continue
            seen.add(folder.name)
            for image in images:
                if (size := builder.size_of(image)) is not None:
                    builder.add(image, size, split=split, scene=folder.name)
    return builder.build(scene_classes=known or sorted(seen))
