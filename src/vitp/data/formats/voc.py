"""Pascal VOC: one XML file an image, in Annotations/ or beside the image, with ImageSets/Main/{train,val,test}.txt.

FAIR1M's files are read, too: `labelXml/*.xml` with `<possibleresult>` and `<points>` in pixels or in degrees. So are
HRSC2016's: turned boxes by centre, size and radians, and numbers as classes.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import head_of
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.label_files import LabelPlace
from vitp.data.formats.walk import (
    bases_of,
    child,
    comma_list,
    files_below,
    image_folders,
    images_below,
    read_label_xml,
    split_in,
    suffixed,
    within,
)
from vitp.io.ground import LONGITUDE_LATITUDE, geometry_of, reproject
from vitp.records.geometry import as_flat, as_points
from vitp.records.labels import LabelledSet

XML_FOLDERS = ("Annotations", "Annotation", "xml", "xmls", "labelXml", "labelXmls")
_LABEL_FOLDERS = (*XML_FOLDERS, "labels")
_IMAGE_FOLDERS = ("JPEGImages", "images", "image", "imgs", "AllImages")

BOX_EDGES = ("xmin", "ymin", "xmax", "ymax")
_CENTRE = ("cx", "cy", "w", "h", "angle")
QUAD_CORNERS = tuple(
    f"{axis}_{corner}"
    for corner in ("left_top", "right_top", "right_bottom", "left_bottom")
    for axis in ("x", "y")
)
"""Names of the four corners of an oriented box, as DIOR-R writes them."""

_HRSC = "HRSC_Image"
"""Root element of HRSC2016's files."""

_PARTS = re.compile(r"part[-_ ]?\d+$", re.IGNORECASE)
"""Folders that FAIR1M's splits are cut into."""

_ANNOTATION, _HEAD = re.compile(rb"<annotation[\s>]"), 4096
"""What a file of labels begins with, and in how many bytes."""

_NUMBERED = re.compile(r"([xy])(\d{1,4})$")

Angles = Literal["radians", "degrees"]


def read_voc(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    one_based: bool = False,
    angles: Angles = "radians",
    point_size: float | None = None,
) -> LabelledSet:
    """Read a Pascal VOC folder.

    An object has a `bndbox`, a `robndbox` (centre, width, height and angle, or four named corners), a `polygon`, or
    `points` as FAIR1M has them, in pixels or in degrees of the ground.

    Args:
        root: Holds, itself or in its only folder of a set (VOCdevkit/VOC2007), `Annotations` and the images in
            `JPEGImages`, `images` or `Annotations` itself, in any case, also under folders of the splits; or images
            and XML files side by side.
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
    outer, root = root, voc_folder(root)
    builder = SetBuilder(root, options, point_size=point_size)
    if root != outer:
        builder.understand(f"the set is the folder {within(root, outer)}")
    known = comma_list(classes)
    seen: set[str] = set()
    places = voc_places(root)
    for place in places:
        for path, tree, image in _entries(builder, place):
            size = builder.size_of(image)
            if size is None or not _size_agrees(builder, path, tree, size, image):
                continue
            found = builder.labels_of(size, builder.place(place.labels), folder=True)
            for title, node in ((f"object {n}", node) for n, node in enumerate(tree.iter("object"), 1)):
                shape = voc_shape(node, str(path), title, one_based=one_based, degrees=angles == "degrees")
                if _in_degrees(node):
                    shape = degrees_to_pixels(shape, image, size, f"{path}: {title}")
                difficult = bool(_number(node, "difficult", f"{path}: {title}", "write 0 or 1"))
                _take(found, builder.place(path, title), node, shape, known, difficult=difficult)
            seen.update(label.category for label in found.objects)
            split = place.split or split_in(path.relative_to(place.labels))[0]
            builder.add_labelled(image, found, split=split)
    # Folders of images that no XML file is about, such as those of masks.
    folders = [folder.path for folder in image_folders(root)]
    if others := [path for path in folders if not any(path.is_relative_to(one.images) for one in places)]:
        builder.understand(f"there, and not read: the images in {', '.join(map(builder.place, others[:4]))}")
    return builder.build(object_classes=known or sorted(seen))


def _take(
    found: ImageLabels,
    where: str,
    node: ElementTree.Element,
    shape: LabelShape,
    known: tuple[str, ...] | None,
    *,
    difficult: bool,
) -> None:
    """Take one object; where its class isn't clear its place is ignored."""
    several = {" ".join((one.text or "").split()) for one in node.findall("possibleresult/name")}
    name = " ".join((node.findtext("name") or "").split())
    if not name and len(several) > 1:
        found.ignore(where, f"may be of several classes ({', '.join(sorted(several))})", "unknown", shape)
    elif name := name or next(iter(several), ""):
        found.add(where, name, shape, known=known, difficult=difficult)
    else:
        found.ignore(where, "an object without a class", "unknown", shape)


def _size_agrees(
    builder: SetBuilder, path: Path, tree: ElementTree.Element, size: tuple[int, int], image: Path
) -> bool:
    fix = "write whole numbers of pixels"
    told = [_number(tree, f"size/{key}", f"{path}: size", fix) for key in ("width", "height")]
    return 0 in told or builder.agree(
        builder.place(path), told, size, image
    )  # several tools leave the size at 0


def _number(node: ElementTree.Element, key: str, where: str, fix: str) -> int:
    """Return the whole number under an element; 0 where there is none."""
    text = (node.findtext(key) or "0").strip()
    try:
        return int(float(text or 0))
    except (ValueError, OverflowError) as error:
        what = f'{key.rpartition("/")[2]} is "{text[:40]}"'
        raise DataError(what, where=where, fix=fix) from error


def voc_folder(root: Path) -> Path:
    """Return the folder that holds the set: `root`, or the only one below it that holds it, as VOCdevkit/VOC2007.

    Raises:
        DataError: Several folders below hold one, as VOC2007 and VOC2012.
    """
    if voc_places(root) or child(root, (*_LABEL_FOLDERS, *_IMAGE_FOLDERS)) is not None:
        return root
    for pattern in ("*", "*/*"):
        below = sorted(path for path in root.glob(pattern) if path.is_dir() and not path.name.startswith("."))
        found = [
            folder
            for folder in below
            if (labels := child(folder, _LABEL_FOLDERS[:2])) is not None
            and child(folder, _IMAGE_FOLDERS) is not None
            and files_below(labels, ".xml")
        ]
        if len(found) > 1:
            names = ", ".join(within(path, root) for path in found[:6])
            fix = "name the folder of one of them"
            raise DataError(f"holds several sets: {names}", where=str(root), fix=fix)
        if found:
            return found[0]
    return root


def voc_places(root: Path) -> list[LabelPlace]:
    """Return where XML files of labels and their images lie; empty where there are none."""
    places = []
    for split, base in bases_of(root):
        below = [path for path in sorted(base.iterdir()) if path.is_dir() and _PARTS.match(path.name)]
        for folder in (base, *below):
            labels = child(folder, _LABEL_FOLDERS)
            if labels is not None and files_below(labels, ".xml"):
                images = child(folder, _IMAGE_FOLDERS) or (labels if images_below(labels) else folder)
                places.append(LabelPlace(images, labels, split))
    if places:
        return places
    # Other XML files may lie beside images, too; a few in what may be class folders don't say what all images are.
    folders = image_folders(root)
    beside = [path for own in folders for path in suffixed(own.path, ".xml") if path.stem in own.stems]
    if 2 * len(beside) < sum(len(own.files) for own in folders):
        bases = {base for _, base in bases_of(root)}
        beside = [path for path in beside if path.parent in bases]
    # XML files of slides are large, so that none is parsed whose first lines say that it is another kind's.
    maybe = (path for path in beside if _ANNOTATION.search(head_of(path, _HEAD).replace(b"\0", b"")))
    return [LabelPlace(root, root)] if any(read_label_xml(p).tag == "annotation" for p in maybe) else []


def _entries(builder: SetBuilder, place: LabelPlace) -> list[tuple[Path, ElementTree.Element, Path]]:
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
    named: dict[str, str] = {}
    for path in files_below(place.labels, ".xml"):
        tree = read_label_xml(path)
        if tree.tag == _HRSC:
            tree = _from_hrsc(tree)
        if tree.tag != "annotation":
            builder.note(builder.place(path), f"is no annotation but <{tree.tag}>; left out")
            continue
        inside = path.relative_to(place.labels).with_suffix("")
        images = by_place.get(inside) or by_stem.get(path.stem) or []
        name = (
            (tree.findtext("filename") or tree.findtext("source/filename") or "")
            .replace("\\", "/")
            .rpartition("/")[2]
        )
        named[path.stem] = Path(name).stem
        images = [image for image in images if image.name == name] or images
        if not images:
            builder.lose(builder.place(path), "its image is missing; left out", absent=True)
            continue
        if len(images) > 1:
            raise DataError(
                f"may belong to {builder.place(images[0])} or to {builder.place(images[1])}",
                where=builder.place(path),
                fix="keep one of the images, or name it in <filename>",
            )
        if (other := owners.setdefault(images[0], path)) != path:
            what = f"is labelled in {builder.place(other)} and in {builder.place(path)}"
            raise DataError(what, where=builder.place(images[0]), fix="keep one of the files")
        entries.append((path, tree, images[0]))
    _refuse_exchanged(builder, entries, named)
    bare = [image for group in by_place.values() for image in group if image not in owners]
    if bare:
        count = f"{len(bare):,} {'image has' if len(bare) == 1 else 'images have'}"
        text = f"{count} no annotation (the first: {bare[0].name}); left out"
        builder.note(builder.place(place.images), text)
    return entries


def _from_hrsc(tree: ElementTree.Element) -> ElementTree.Element:
    """Return an annotation as VOC has it of one of HRSC2016: turned boxes, and numbers as classes."""

    def put(parent: ElementTree.Element, path: str, text: str | None) -> None:
        for name in path.split("/"):
            parent = ElementTree.SubElement(parent, name)
        parent.text = text

    made = ElementTree.Element("annotation")
    name, suffix = ((tree.findtext(key) or "").strip() for key in ("Img_FileName", "Img_FileFmt"))
    put(made, "filename", f"{name}.{suffix}")
    size = ElementTree.SubElement(made, "size")
    for key in ("Width", "Height"):
        put(size, key.lower(), tree.findtext(f"Img_Size{key}"))
    for node in tree.iter("HRSC_Object"):
        one = ElementTree.SubElement(made, "object")
        put(one, "name", node.findtext("Class_ID"))
        put(one, "difficult", node.findtext("difficult"))
        box = ElementTree.SubElement(one, "robndbox")
        for key, words in zip(_CENTRE, ("cx", "cy", "w", "h", "ang"), strict=True):
            put(box, key, node.findtext(f"mbox_{words}"))
    return made


def _refuse_exchanged(
    builder: SetBuilder, entries: Sequence[tuple[Path, ElementTree.Element, Path]], named: dict[str, str]
) -> None:
    """Refuse files whose <filename> is another image of the set, of which that one's own file says the same.

    Copies (as of augmentation) often keep the name of the image that they were made from: its own file names it, or
    their names hold its name.
    """
    images = {image.stem: image for _, _, image in entries}
    for path, _, image in entries:
        other = named[path.stem]
        if (
            other in images
            and not re.search(rf"(?<![^\W_]){re.escape(other)}(?![^\W_])", image.stem)
            and named.get(other) != other
            and named.get(other) in images
        ):
            raise DataError(
                f"is called like {builder.place(image)}, but <filename> is that of {builder.place(images[other])}",
                where=builder.place(path),
                fix="mend <filename>, or call the file like its image",
            )


def voc_shape(
    node: ElementTree.Element, path: str, name: str, *, one_based: bool = False, degrees: bool = False
) -> LabelShape:
    """Return where an object lies; empty when it says nothing about it.

    Args:
        node: The `object` element.
        path: The file, for errors.
        name: What errors call the object.
        one_based: Edges of `bndbox` count from 1 and include the last pixel.
        degrees: The angle of `robndbox` is in degrees, else in radians; clockwise in the image, from the x axis.

    Raises:
        DataError: A coordinate isn't a number, or an angle can't be radians.
    """
    box = _values(node, "bndbox", BOX_EDGES, path, name)
    if box is not None and one_based:
        box = (box[0] - 1, box[1] - 1, box[2], box[3])
    quad = _values(node, "robndbox", QUAD_CORNERS, path, name)
    centre = _values(node, "robndbox", _CENTRE, path, name) if quad is None else None
    if centre is not None:
        quad = _turned(centre, path, name, degrees)
    points = None if quad is not None or box is not None else _points(node, path, name)
    if points is not None:
        return LabelShape(quad=points) if len(points) == 8 else LabelShape(polygons=(points,))
    if quad is not None:
        return LabelShape(quad=quad)
    return LabelShape(box=box, polygons=_polygons(node, path, name))


def _points(node: ElementTree.Element, path: str, name: str) -> tuple[float, ...] | None:
    """Return the corners in `points/point`, each "x,y", the first of them not repeated; None where there are none."""
    texts = [point.text or "" for point in node.findall("points/point")]
    if not texts:
        return None
    try:
        corners = [tuple(float(word) for word in text.split(",")) for text in texts]
        if any(len(corner) != 2 for corner in corners):
            raise ValueError("not x and y")
    except ValueError as error:
        fix = "write each point as x,y"
        raise DataError(f"{name} has points that can't be read ({error})", where=path, fix=fix) from error
    if len(corners) > 3 and corners[0] == corners[-1]:
        corners.pop()
    return tuple(value for corner in corners for value in corner)


def _in_degrees(node: ElementTree.Element) -> bool:
    """Return whether an object says that its points are in coordinates of the ground."""
    told = (node.findtext("coordinate") or "pixel").strip().lower()
    return not told.startswith(("pixel", "image"))


def degrees_to_pixels(shape: LabelShape, image: Path, size: tuple[int, int], where: str) -> LabelShape:
    """Return a shape of longitudes and latitudes in the pixels of its image, in the order that lies in the image.

    Raises:
        DataError: The image doesn't say where it lies, or the shape lies in it in both orders.
    """
    geometry = geometry_of(image)
    if geometry is None:
        fix = "give the image its coordinate reference system, or the points in pixels"
        raise DataError(f"is in degrees, but {image.name} doesn't say where it lies", where=where, fix=fix)
    ring = as_points(shape.quad if shape.quad is not None else [v for one in shape.polygons for v in one])
    both = [
        geometry.to_pixels(reproject(points, LONGITUDE_LATITUDE, geometry.crs))
        for points in (ring, ring[:, ::-1])
    ]
    inside = [bool(np.isfinite(p).all() and ((p > 0) & (p < size)).any(0).all()) for p in both]
    if all(inside):
        fix = "write the points in pixels"
        raise DataError(
            "lies in its image with longitude first, and with latitude first", where=where, fix=fix
        )
    points = as_flat(both[1] if inside[1] else both[0])
    return LabelShape(quad=points) if len(points) == 8 else LabelShape(polygons=(points,))


def _values(
    node: ElementTree.Element, parent: str, names: Sequence[str], path: str, name: str
) -> tuple[float, ...] | None:
    """Return the numbers under an element; None where the element or all of them are missing."""
    texts = [node.findtext(f"{parent}/{key}") for key in names]
    if all(text is None for text in texts):
        return None
    try:
        return tuple(float(text or "") for text in texts)
    except ValueError as error:
        what = f"{name} has no readable {parent}"
        raise DataError(what, where=path, fix=f"give {', '.join(names)} as numbers") from error


def _turned(centre: Sequence[float], path: str, name: str, degrees: bool) -> tuple[float, ...]:
    cx, cy, w, h, angle = centre
    if not degrees and abs(angle) > 2 * math.pi + 1e-6:
        what = f"the angle {angle:g} of {name} is no angle in radians"
        raise DataError(what, where=path, fix="if angles are degrees, say so with the option angles=degrees")
    turn = math.radians(angle) if degrees else angle
    cos, sin = math.cos(turn), math.sin(turn)
    offsets = ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2))
    return tuple(value for x, y in offsets for value in (cx + cos * x - sin * y, cy + sin * x + cos * y))


def _polygons(node: ElementTree.Element, path: str, name: str) -> tuple[tuple[float, ...], ...]:
    """Return the rings of `polygon` elements with pt/x and pt/y, or with x1, y1, x2, y2, …"""
    rings = []
    for polygon in node.iter("polygon"):
        points = [(point.findtext("x"), point.findtext("y")) for point in polygon.iter("pt")]
        numbered = {
            (int(match[2]), match[1]): child.text
            for child in polygon
            if (match := _NUMBERED.match(child.tag)) is not None
        }
        points += [(numbered.get((k, "x")), numbered.get((k, "y"))) for k in sorted({k for k, _ in numbered})]
        try:
            rings.append(tuple(float(text or "") for point in points for text in point))
        except ValueError as error:
            what = f"{name} has a polygon that can't be read"
            raise DataError(what, where=path, fix="give x and y of each corner as numbers") from error
    return tuple(ring for ring in rings if len(ring) >= 6)
