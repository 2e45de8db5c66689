"""Sets of defects: good images to learn from, good and faulty ones to test on; in the layout of MVTec AD or of VisA.

bottle/train/good/000.png
bottle/test/{good,broken}/000.png
bottle/ground_truth/broken/000_mask.png

split_csv/1cls.csv
candle/Data/Images/{Normal,Anomaly}/000.JPG
candle/Data/Masks/Anomaly/000.png
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.drawn_masks import with_drawn_masks
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.tables import raw_rows
from vitp.data.formats.walk import child, list_images, named_file, split_folders, split_of, stem_of
from vitp.io.images import load_label_pixels
from vitp.records.labels import LabelledSet
from vitp.records.regions import objects_of

_GOOD = ("good", "normal", "ok")
_TRUTH = ("ground_truth", "groundtruth", "gt")
_SPLITS = "1cls.csv"
"""VisA's table of the splits in which good images alone are learned from; there are others for few labels."""
_MOST_KINDS = 16
"""Values of a mask of VisA, which numbers the kinds of defects; one of more was saved with smoothing."""


def anomaly_folders(root: Path) -> list[Path]:
    """Return the folders of products: `root` or those in it, with images of kinds of defects and masks of them."""
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return [base for base in (root, *folders) if _kinds_with_masks(base)]


def _visa(base: Path) -> tuple[Path, Path] | None:
    """Return the folders of images and of masks of a product as VisA has them."""
    data = child(base, ("data",))
    images, masks = (None if data is None else child(data, (name,)) for name in ("images", "masks"))
    if images is None or masks is None or child(images, _GOOD) is None or child(masks, _GOOD) is not None:
        return None
    return images, masks


def _kinds_with_masks(base: Path) -> list[str]:
    if (visa := _visa(base)) is not None:
        images, masks = visa
        return [
            kind.name for kind in sorted(masks.iterdir()) if kind.is_dir() and (images / kind.name).is_dir()
        ]
    truth, tests = child(base, _TRUTH), child(base, ("test",))
    if truth is None or tests is None or not any(child(tests, (name,)) for name in _GOOD):
        return []
    return [kind.name for kind in sorted(truth.iterdir()) if kind.is_dir() and (tests / kind.name).is_dir()]


def read_anomalies(
    root: Path, options: ReadOptions = ReadOptions(), *, semantic: bool | str = False
) -> LabelledSet:
    """Read a product, or a folder of products: each connected region of a mask is a defect of its folder's kind.

    Args:
        root: Holds `train`, `test` and `ground_truth`, or `Data/Images` and `Data/Masks`; or folders that do.
        options: Name, licence, splits.
        semantic: True: masks of the kinds instead of objects; "both": beside them.

    Raises:
        DataError: There is no such folder, or too many masks can't be used.
    """
    builder = SetBuilder(root, options)
    bases = anomaly_folders(root)
    if not bases:
        fix = "arrange it as train/good, test/KIND and ground_truth/KIND"
        raise DataError(
            "holds no test/ and ground_truth/ with folders of the same kinds", where=str(root), fix=fix
        )
    kinds: set[str] = set()
    told = _told_splits(builder)
    for base in bases:
        visa = _visa(base)
        truth = visa[1] if visa else child(base, _TRUTH)
        assert truth is not None
        for split, kind, images in _images(base, told):
            masks = truth / kind
            if kind.lower() not in _GOOD and not masks.is_dir():
                text = f"{len(images):,} images of a kind without masks; left out"
                builder.note(builder.place(images[0].parent), text)
                continue
            for image in images:
                own = None if kind.lower() in _GOOD else masks
                if _add(builder, image, split, kind, own, _MOST_KINDS if visa else 2):
                    kinds.add(kind)
    builder.understand(
        f"defects: each region of the masks is an object of its folder's kind; "
        f"{', '.join(_GOOD)}: nothing is wrong there"
    )
    found = builder.build(object_classes=sorted(kinds))
    if not any(item.objects for item in found.items if item.split == "train"):
        text = "splits: no training image shows a defect, as published for learning from good images alone"
        found = replace(found, understood=(*found.understood, f"{text}; -o splits=drawn draws others"))
    return with_drawn_masks(found, semantic)


def _told_splits(builder: SetBuilder) -> dict[Path, str]:
    """Return the splits that a table of VisA names, by image; none without it."""
    folder = child(builder.root, ("split_csv",))
    path = None if folder is None else named_file(folder, (_SPLITS,))
    if path is None:
        return {}
    builder.splits_from = builder.place(path)
    found = {}
    for number, row in raw_rows(path):
        image, split = str(row.get("image") or "").strip(), split_of(str(row.get("split") or ""))
        if not image or split is None:
            fix = "give each row an image and a split (train or test)"
            raise DataError("names no image, or no split", where=f"{path}:{number}", fix=fix)
        found[builder.root / image] = split
    return found


def _images(base: Path, told: Mapping[Path, str]) -> Iterator[tuple[str | None, str, list[Path]]]:
    """Yield split, kind and images of each folder of a product, by split where a table tells it."""
    visa = _visa(base)
    for split, folder in split_folders(base) if visa is None else [(None, visa[0])]:
        for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
            by_split: dict[str | None, list[Path]] = {}
            for image in list_images(kind):
                by_split.setdefault(told.get(image, split), []).append(image)
            for own, images in by_split.items():
                yield own, kind.name, images


def _add(
    builder: SetBuilder, image: Path, split: str | None, kind: str, masks: Path | None, most: int
) -> bool:
    """Add an image, of whose masks each has so many values at most; return whether it shows a defect."""
    size = builder.size_of(image)
    if size is None:
        return False
    found = builder.labels_of(size, builder.place(masks or image.parent), folder=True)
    where = builder.place(image)
    files = [] if masks is None else _masks_of(masks, stem_of(image))
    if masks is not None and not files:
        found.lose(where, f"has no mask in {builder.place(masks)}", kind)
    for path in files:
        try:
            values = load_label_pixels(path)
        except DataError as error:
            found.lose(builder.place(path), error.what, kind)
            continue
        values_HW = values.any(axis=2) if values.ndim == 3 else values
        if values_HW.shape != (size[1], size[0]):
            height, width = values_HW.shape
            found.lose(builder.place(path), f"is {width}×{height} but its image {size[0]}×{size[1]}", kind)
            continue
        if (count := len(np.unique(values))) > most:
            text = (
                f"holds {count} values, but a mask of defects holds {'two' if most == 2 else 'few'}: save it without "
                "smoothing and as PNG"
            )
            found.lose(builder.place(path), text, kind)
            continue
        regions = objects_of(values_HW > 0, {1: kind}, min_area=1).objects
        if not regions:
            found.lose(builder.place(path), "holds no defect", kind)
        for region in regions:
            shape = LabelShape(polygons=region.polygons, holes=region.holes)
            found.add(builder.place(path), kind, shape)
    builder.add_labelled(image, found, split=split)
    return bool(found.objects)


def _masks_of(masks: Path, stem: str) -> list[Path]:
    """Return the masks of an image: of its name, with `_mask` behind it, or all in a folder of its name."""
    folder = masks / stem
    if folder.is_dir():
        return list_images(folder)
    return [path for path in list_images(masks) if stem_of(path) in (stem, f"{stem}_mask")]
