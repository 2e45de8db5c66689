"""Pairs of dates with a mask of what changed: A/, B/ and label/ with files of the same stem (LEVIR style)."""

from __future__ import annotations

from pathlib import Path

from vitp.data.formats.common import ReadOptions, SetBuilder, list_images, paired_folders
from vitp.data.formats.pixel_masks import ChangeFile
from vitp.data.labels import LabelledSet
from vitp.errors import DataError

LAYOUT = (("A", "time1", "T1"), ("B", "time2", "T2"), ("label", "labels", "mask", "masks", "OUT"))


def read(root: Path, options: ReadOptions = ReadOptions()) -> LabelledSet:
    """Read image pairs.

    Args:
        root: Holds `{split}/{A,B,label}`, `{A,B,label}/{split}` or `A`, `B` and `label`.
        options: Name, licence, splits.

    Raises:
        DataError: The folders aren't there.
    """
    builder = SetBuilder(root, options)
    places = paired_folders(root, LAYOUT)
    if not places:
        raise DataError("has no A/, B/ and label/ folders", where=str(root), fix="put the files into them")
    for split, (before, after, label) in places:
        later = {path.stem: path for path in list_images(after)}
        masks = {path.stem: path for path in list_images(label)}
        for image in list_images(before):
            second, mask = later.pop(image.stem, None), masks.pop(image.stem, None)
            if second is None or mask is None:
                builder.note(
                    builder.place(image), f"no {'later date' if second is None else 'mask'}; left out"
                )
                continue
            sizes = [builder.size_of(path) for path in (image, second, mask)]
            if sizes[0] is None or None in sizes:
                continue
            if len(set(sizes)) > 1:
                shown = ", ".join(f"{s[0]}×{s[1]}" for s in sizes if s)
                builder.note(
                    builder.place(image), f"the dates and the mask differ in size ({shown}); left out"
                )
                continue
            builder.add(image, sizes[0], split=split, second_image=str(second), change=ChangeFile(str(mask)))
        for path in [*later.values(), *masks.values()]:
            builder.note(builder.place(path), "no earlier date; left out")
    return builder.build()
