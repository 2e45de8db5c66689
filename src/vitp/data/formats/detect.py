"""Which label format a folder holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitp.data.formats import captions, coco, dota, masks, pairs, yolo
from vitp.data.formats.common import list_images, paired_folders, split_folders
from vitp.data.images import IMAGE_SUFFIXES
from vitp.errors import DataError
from vitp.reading import parse_json, read_text


def detect_format(root: Path) -> str:
    """Return the format of a folder, by the files and folders that only that format has.

    Raises:
        DataError: None fits; the message says what was looked for.
    """
    if not root.exists():
        raise DataError("doesn't exist", where=str(root), fix="check the path")
    if root.is_file():
        return _of_file(root)
    for name, (test, _) in _SIGNS.items():
        if test(root):
            return name
    looked_for = "; ".join(f"{name}: {sign}" for name, (_, sign) in _SIGNS.items())
    raise DataError(
        f"no label format recognised (looked for {looked_for})",
        where=str(root),
        fix="name the format, or arrange the files in one of these ways",
    )


def _of_file(path: Path) -> str:
    if path.suffix.lower() == ".json" and _is_coco(path):
        return "coco"
    if path.suffix.lower() in (".json", ".jsonl", ".csv", ".tsv"):
        return "captions"
    raise DataError("is not a table of labels", where=str(path), fix="name the folder of the set")


def _is_coco(path: Path) -> bool:
    try:
        content: Any = parse_json(read_text(path))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def _is_vitp(root: Path) -> bool:
    return (root / "labels" / "set.json").is_file()


def _is_voc(root: Path) -> bool:
    return next((root / "Annotations").glob("*.xml"), None) is not None


def _is_coco_folder(root: Path) -> bool:
    return any(_is_coco(path) for path in coco.annotation_files(root))


def _is_pairs(root: Path) -> bool:
    return bool(paired_folders(root, pairs.LAYOUT))


def _first_row(folder: Path) -> list[str]:
    """Return the words of the first label row among the text files of a folder that lie beside images."""
    for path in sorted(folder.glob("*.txt")):
        if path.name in yolo.NOT_LABELS:
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip() and ":" not in line:
                return line.split()
    return []


def _are_numbers(words: list[str]) -> bool:
    try:
        return [float(word) for word in words] != []
    except ValueError:
        return False


def _label_folders(root: Path, names: tuple[str, ...]) -> list[Path]:
    places = [folders[1] for _, folders in paired_folders(root, (("images",), names))]
    return places or [root]


def _is_dota(root: Path) -> bool:
    rows = (_first_row(folder) for folder in _label_folders(root, dota.LABEL_FOLDERS))
    return any(len(row) in (9, 10) and _are_numbers(row[:8]) and not _are_numbers(row[8:9]) for row in rows)


def _is_yolo(root: Path) -> bool:
    rows = (_first_row(folder) for folder in _label_folders(root, ("labels",)))
    return any(len(row) >= 5 and len(row) % 2 == 1 and _are_numbers(row) for row in rows)


def _is_masks(root: Path) -> bool:
    places = paired_folders(root, (("images", "image"), masks.MASK_FOLDERS))
    return any(list_images(folders[1]) for _, folders in places)


def _is_captions(root: Path) -> bool:
    if captions.tables(root):
        return True
    bases = [folder / name for _, folder in split_folders(root) for name in ("", "images")]
    return any(
        image.with_suffix(".txt").is_file()
        for base in bases
        if base.is_dir()
        for image in list_images(base)[:20]
    )


def _is_folders(root: Path) -> bool:
    bases = [folder for _, folder in split_folders(root)]
    classes = [
        p for base in bases for p in base.iterdir() if p.is_dir() and p.name not in ("images", "labels")
    ]
    return any(path.suffix.lower() in IMAGE_SUFFIXES for folder in classes for path in folder.iterdir())


# The order matters: a caption file beside an image looks like a label file of YOLO until its row is read, and
# any folder of folders with images passes for class folders.
_SIGNS: dict[str, tuple[Callable[[Path], bool], str]] = {
    "vitp": (_is_vitp, "labels/set.json"),
    "voc": (_is_voc, "Annotations/*.xml"),
    "coco": (_is_coco_folder, "JSON with images and annotations, in annotations/ or the split's folder"),
    "pairs": (_is_pairs, "folders A, B and label"),
    "dota": (_is_dota, 'labelTxt/*.txt with rows "x1 y1 … x4 y4 class"'),
    "yolo": (_is_yolo, 'labels/*.txt or text beside images with rows "class cx cy w h"'),
    "masks": (_is_masks, "images/ and masks/"),
    "captions": (_is_captions, "a table (.json, .jsonl, .csv) or text files beside images"),
    "folders": (_is_folders, "one folder of images a class"),
}
