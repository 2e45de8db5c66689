"""Pascal VOC: one XML file an image, in Annotations/ or beside the image, with ImageSets/Main/{train,val,test}.txt."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import parse_xml
from vitp.data.formats.common import (
    ReadOptions,
    SetBuilder,
    child,
    comma_list,
    read_text,
    split_folders,
    split_in,
)
from vitp.data.formats.label_files import Place, files_below, images_below
from vitp.data.formats.voc_shapes import shape_of
from vitp.io.images import IMAGE_SUFFIXES
from vitp.records.labels import LabelledSet

_LABEL_FOLDERS = ("Annotations", "Annotation", "xml", "xmls", "labels")
_IMAGE_FOLDERS = ("JPEGImages", "images", "image", "imgs")

Angles = Literal["radians", "degrees"]


def read(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    one_based: bool = False,
    angles: Angles = "radians",
    point_size: float | None = None,
) -> LabelledSet:
    """Read a Pascal VOC folder.

    An object has a `bndbox`, a `robndbox` (centre, width, height and angle, or four named corners) or a `polygon`.

    Args:
        root: Holds, itself or in its only folder of a set (VOCdevkit/VOC2007), `Annotations` and the images in `JPEGImages`, `images` or `Annotations` itself, in any case, also
            under folders of the splits; or images and XML files side by side.
        options: Name, licence, splits.
        classes: The object classes in order; by default those that occur, sorted. The places of labels of other
            classes are ignored: they are neither objects nor background.
        one_based: Corners count from 1 and include the last pixel, as in the original VOC; sets of others
            mostly count from 0.
        angles: Unit of `robndbox` angles, which run clockwise in the image: "radians" or "degrees".
        point_size: Side in pixels of the box around an object without width and height; such objects have no area by
            default, and are left out.

    Raises:
        DataError: An XML file can't be understood, or too many labels can't be used.
        ConfigError: `angles` is neither of the two.
    """
    if angles not in ("radians", "degrees"):
        raise ConfigError(f'is "{angles}"', where="angles", fix="choose radians or degrees")
    outer, root = root, set_folder(root)
    builder = SetBuilder(root, options, point_size=point_size)
    if root != outer:
        builder.understand(f"the set is the folder {root.relative_to(outer).as_posix()}")
    known = comma_list(classes)
    seen: set[str] = set()
    for place in annotation_places(root):
        for path, tree, image in _entries(builder, place):
            size = builder.size_of(image)
            if size is None or not _size_agrees(builder, path, tree, size):
                continue
            found = builder.labels_of(size, builder.place(place.labels), folder=True)
            for number, node in enumerate(tree.iter("object"), 1):
                where = builder.place(path, f"object {number}")
                shape = shape_of(
                    node, str(path), f"object {number}", one_based=one_based, degrees=angles == "degrees"
                )
                name = " ".join((node.findtext("name") or "").split())
                difficult = _flag(node, f"{path}: object {number}")
                if not name:
                    found.ignore(where, "an object without a class", "unknown", shape)
                elif known is None or name in known:
                    found.add(where, name, shape, difficult=difficult)
                else:
                    found.exclude(where, name, shape)
            seen.update(label.category for label in found.objects)
            split = place.split or split_in(path.relative_to(place.labels))[0]
            builder.add_labelled(image, found, split=split)
    return builder.build(object_classes=known or sorted(seen))


def set_folder(root: Path) -> Path:
    """Return the folder that holds the set: `root`, or the only one below it that holds it, as VOCdevkit/VOC2007.

    Raises:
        DataError: Several folders below hold one, as VOC2007 and VOC2012.
    """
    if annotation_places(root) or child(root, (*_LABEL_FOLDERS, *_IMAGE_FOLDERS)) is not None:
        return root
    for pattern in ("*", "*/*"):
        below = sorted(path for path in root.glob(pattern) if path.is_dir() and not path.name.startswith("."))
        found = [path for path in below if _is_set(path)]
        if len(found) > 1:
            names = ", ".join(path.relative_to(root).as_posix() for path in found[:6])
            raise DataError(
                f"holds several sets: {names}", where=str(root), fix="name the folder of one of them"
            )
        if found:
            return found[0]
    return root


def _is_set(folder: Path) -> bool:
    labels, images = child(folder, _LABEL_FOLDERS[:2]), child(folder, _IMAGE_FOLDERS)
    return labels is not None and images is not None and bool(_xml_files(labels))


def annotation_places(root: Path) -> list[Place]:
    """Return where XML files of labels and their images lie; empty where there are none."""
    places = []
    bases = [(split, folder) for split, folder in split_folders(root) if split is not None]
    for split, base in (*bases, (None, root)):
        labels = child(base, _LABEL_FOLDERS)
        if labels is None or not _xml_files(labels):
            continue
        images = child(base, _IMAGE_FOLDERS)
        if images is None:
            images = labels if images_below(labels) else base
        places.append(Place(images, labels, split))
    if places:
        return places
    beside = [path for base in (root, *(f for _, f in bases)) for path in sorted(base.glob("*.xml"))]
    return [Place(root, root)] if any(_labels_an_image(path) for path in beside) else []


def _xml_files(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if path.suffix.lower() == ".xml"]


def _labels_an_image(path: Path) -> bool:
    """Return whether an XML file holds VOC's labels of an image beside it; other XML files lie beside images, too."""
    suffixes = (*IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))
    return any(path.with_suffix(suffix).is_file() for suffix in suffixes) and _parse(path).tag == "annotation"


def _entries(builder: SetBuilder, place: Place) -> list[tuple[Path, ElementTree.Element, Path]]:
    """Return label file, its content and its image; what is missing becomes findings.

    Raises:
        DataError: A file isn't XML, or it isn't clear which image it belongs to.
    """
    by_place: dict[Path, list[Path]] = defaultdict(list)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for image in images_below(place.images):
        by_place[image.relative_to(place.images).with_suffix("")].append(image)
        by_stem[image.stem].append(image)
    owners: dict[Path, Path] = {}
    entries = []
    for path in _xml_files(place.labels):
        tree = _parse(path)
        if tree.tag != "annotation":
            builder.note(builder.place(path), f"is no annotation but <{tree.tag}>; left out")
            continue
        inside = path.relative_to(place.labels).with_suffix("")
        images = by_place.get(inside) or by_stem.get(path.stem) or []
        name = (tree.findtext("filename") or "").replace("\\", "/").rpartition("/")[2]
        images = [image for image in images if image.name == name] or images
        if not images:
            builder.note(builder.place(path), "its image is missing; left out")
            continue
        if len(images) > 1:
            raise DataError(
                f"may belong to {builder.place(images[0])} or to {builder.place(images[1])}",
                where=builder.place(path),
                fix="keep one of the images, or name it in <filename>",
            )
        if (other := owners.setdefault(images[0], path)) != path:
            raise DataError(
                f"is labelled in {builder.place(other)} and in {builder.place(path)}",
                where=builder.place(images[0]),
                fix="keep one of the files",
            )
        entries.append((path, tree, images[0]))
    bare = [image for group in by_place.values() for image in group if image not in owners]
    if bare:
        count = f"{len(bare):,} {'image has' if len(bare) == 1 else 'images have'}"
        text = f"{count} no annotation (the first: {bare[0].name}); left out"
        builder.note(builder.place(place.images), text)
    return entries


def _parse(path: Path) -> ElementTree.Element:
    try:
        return parse_xml(read_text(path))
    except ElementTree.ParseError as error:
        row, _ = error.position
        raise DataError(
            f"is not XML ({error})", where=f"{path}:{row}", fix="mend or remove the file"
        ) from error


def _size_agrees(builder: SetBuilder, path: Path, tree: ElementTree.Element, size: tuple[int, int]) -> bool:
    told = tuple(_pixels(tree, key, path) for key in ("width", "height"))
    if 0 in told or told == size:  # several tools leave the size at 0
        return True
    builder.note(
        builder.place(path), f"says {told[0]}×{told[1]} but the image has {size[0]}×{size[1]}; image left out"
    )
    return False


def _pixels(tree: ElementTree.Element, key: str, path: Path) -> int:
    text = (tree.findtext(f"size/{key}") or "0").strip()
    try:
        return int(float(text or 0))
    except (ValueError, OverflowError) as error:
        raise DataError(
            f'{key} is "{text[:40]}"', where=f"{path}: size", fix="write whole numbers of pixels"
        ) from error


def _flag(node: ElementTree.Element, where: str) -> bool:
    text = (node.findtext("difficult") or "0").strip()
    try:
        return bool(int(float(text or 0)))
    except (ValueError, OverflowError) as error:
        raise DataError(f'difficult is "{text[:40]}"', where=where, fix="write 0 or 1") from error
