"""Formats with one text file of labels an image (DOTA, YOLO): which files belong together, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from vitp.data.formats.common import SetBuilder, list_images, paired_folders
from vitp.data.labels import ObjectLabel

Objects = list[ObjectLabel]


def add_images(
    builder: SetBuilder,
    label_folders: Sequence[str],
    objects_of: Callable[[Path, tuple[int, int]], Objects | None],
    *,
    drop_empty: bool,
    not_labels: Collection[str] = (),
) -> None:
    """Add the images of a set's folder that have a label file; what is missing becomes findings.

    Args:
        builder: Takes images and findings. Its folder holds `{split}/{images,LABELS}`, `{images,LABELS}/{split}`,
            `images` and `LABELS`, or images and text side by side.
        label_folders: Names that LABELS may have.
        objects_of: Label file, width and height of the image → its objects, None where the file is empty.
        drop_empty: Leave images with an empty label file out instead of counting them as without objects.
        not_labels: Names of text files that are no labels.
    """
    places = paired_folders(builder.root, (("images",), label_folders))
    for split, (image_folder, label_folder) in places or [(None, [builder.root, builder.root])]:
        images = list_images(image_folder)
        for image in images:
            path = label_folder / f"{image.stem}.txt"
            if not path.is_file():
                builder.note(builder.place(image), "no label file; image left out")
                continue
            size = builder.size_of(image)
            if size is None:
                continue
            objects = objects_of(path, size)
            if objects is None:
                fate = "left out" if drop_empty else "counted as without objects"
                builder.note(builder.place(path), f"empty label file; image {fate}")
                if drop_empty:
                    continue
            builder.add(image, size, split=split, objects=tuple(objects or ()))
        stems = {image.stem for image in images}
        for path in sorted(label_folder.glob("*.txt")):
            if path.stem not in stems and path.name not in not_labels:
                builder.note(builder.place(path), "its image is missing; left out")
