"""Pascal VOC: Annotations/*.xml, JPEGImages/, ImageSets/Main/{train,val,test}.txt."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from vitp.data.formats.common import ReadOptions, SetBuilder, comma_list, list_images, read_text
from vitp.data.formats.splits import split_of
from vitp.data.labels import LabelledSet, ObjectLabel
from vitp.errors import DataError
from vitp.reading import parse_xml


def read(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    one_based: bool = False,
) -> LabelledSet:
    """Read a Pascal VOC folder.

    Args:
        root: Holds `Annotations` and the images in `JPEGImages`, `images` or `Annotations` itself.
        options: Name, licence, splits.
        classes: The object classes in order; by default those that occur, sorted.
        one_based: Corners count from 1 and include the last pixel, as in the original VOC; sets of others
            mostly count from 0.

    Raises:
        DataError: An XML file can't be understood.
    """
    builder = SetBuilder(root, options)
    images = _images(root)
    splits = _image_sets(root)
    known = comma_list(classes)
    seen: set[str] = set()
    for path in sorted((root / "Annotations").glob("*.xml")):
        tree = _parse(path)
        image = images.get(path.stem)
        if image is None:
            builder.note(builder.place(path), "its image is missing; left out")
            continue
        if splits and path.stem not in splits:
            builder.note(builder.place(path), "in no list of ImageSets/Main; left out")
            continue
        size = builder.size_of(image)
        if size is None or not _size_agrees(builder, path, tree, size):
            continue
        objects = _objects(builder, path, tree, size, known, one_based)
        seen.update(label.category for label in objects)
        builder.add(image, size, split=splits.get(path.stem), objects=tuple(objects))
    for stem in sorted(set(splits) - {p.stem for p in (root / "Annotations").glob("*.xml")}):
        builder.note(f"ImageSets/Main/{splits[stem]}", f"{stem} has no annotation; left out")
    return builder.build(object_classes=known or sorted(seen))


def _images(root: Path) -> dict[str, Path]:
    for name in ("JPEGImages", "images", "Annotations"):
        if (root / name).is_dir() and (found := list_images(root / name)):
            return {path.stem: path for path in found}
    raise DataError(
        "no image found", where=str(root), fix="VOC images lie in JPEGImages/ beside Annotations/"
    )


def _image_sets(root: Path) -> dict[str, str]:
    """Return stem → split. `trainval` only says something where `train` and `val` don't."""
    splits: dict[str, str] = {}
    for name in ("trainval", "train", "val", "test"):
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        if path.is_file():
            stems = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
            splits.update((stem, split_of(name) or "train") for stem in stems)
    return splits


def _parse(path: Path) -> ElementTree.Element:
    try:
        return parse_xml(read_text(path))
    except ElementTree.ParseError as error:
        row, _ = error.position
        raise DataError(
            f"is not XML ({error})", where=f"{path}:{row}", fix="mend or remove the file"
        ) from error


def _size_agrees(builder: SetBuilder, path: Path, tree: ElementTree.Element, size: tuple[int, int]) -> bool:
    told = tuple(int(float(tree.findtext(f"size/{key}") or 0)) for key in ("width", "height"))
    if 0 in told or told == size:  # several tools leave the size at 0
        return True
    builder.note(
        builder.place(path), f"says {told[0]}×{told[1]} but the image has {size[0]}×{size[1]}; image left out"
    )
    return False


def _objects(
    builder: SetBuilder,
    path: Path,
    tree: ElementTree.Element,
    size: tuple[int, int],
    known: tuple[str, ...] | None,
    one_based: bool,
) -> list[ObjectLabel]:
    objects = []
    for number, node in enumerate(tree.iter("object"), 1):
        where = builder.place(path, f"object {number}")
        name = (node.findtext("name") or "").strip()
        if not name or (known is not None and name not in known):
            builder.note(where, f'unknown class "{name}"; left out')
            continue
        try:
            x1, y1, x2, y2 = (
                float(node.findtext(f"bndbox/{k}") or "") for k in ("xmin", "ymin", "xmax", "ymax")
            )
            difficult = bool(int(node.findtext("difficult") or 0))
        except ValueError as error:
            raise DataError(
                f"object {number} has no readable bndbox or difficult flag",
                where=str(path),
                fix="give xmin, ymin, xmax and ymax as numbers and difficult as 0 or 1",
            ) from error
        if one_based:
            x1, y1 = x1 - 1, y1 - 1
        label = builder.label(where, name, size, box=(x1, y1, x2, y2), difficult=difficult)
        if label is not None:
            objects.append(label)
    return objects
