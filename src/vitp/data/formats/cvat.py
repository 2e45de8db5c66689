"""CVAT for images 1.1: tags, boxes (turned, too), polygons, ellipses and masks. Tracks of videos are refused.

An `image` without shapes may be empty, or nobody came to it: the file doesn't say. The tag "nothing here" does, and
then such images are unlabelled; else `-o empty=…` must.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.tool_labels import NamedImages, ToolImage, ToolSet, class_names
from vitp.data.formats.walk import comma_list, read_label_xml, split_of
from vitp.records.geometry import as_flat
from vitp.records.labels import LabelledSet
from vitp.records.regions import outline
from vitp.records.tool_shapes import NOTHING_HERE, TASK_KEY, centred_corners, decode_cvat_mask, ellipse_ring

_HEAD = 1 << 12
_TRUE = ("1", "true", "True")
_Size = tuple[int, int]


def cvat_files(root: Path) -> list[Path]:
    """Return the XML files in a folder, or in its `annotations/`, that CVAT exported."""
    if root.is_file():
        return [root] if _is_export(root) else []
    folders = [folder for folder in (root, root / "annotations") if folder.is_dir()]
    return [path for folder in folders for path in sorted(folder.glob("*.xml")) if _is_export(path)]


def _is_export(path: Path) -> bool:
    try:
        if not path.is_file() or path.suffix.lower() != ".xml":
            return False
        with path.open("rb") as file:
            return b"<annotations>" in file.read(_HEAD)
    except OSError:
        return False


def read_cvat(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    semantic: bool | str | None = None,
    empty: Literal["", "nothing", "unlabelled"] = "",
) -> LabelledSet:
    """Read what CVAT exported as "CVAT for images 1.1".

    Args:
        root: A file, or a folder with files in itself or in `annotations/`; images lie anywhere below and are found by
            the ends of their paths.
        options: Name, licence, splits.
        classes: The object classes in order; the places of others are ignored. Tags that aren't named are left out.
        semantic: True: masks of classes instead of objects; "both": beside them; by default as the file says.
        empty: What images without shapes are: "nothing" is there, or they are "unlabelled".

    Raises:
        DataError: A file can't be understood, holds tracks, has two readings, or too many labels can't be used.
        ConfigError: `empty` is something else.
    """
    if empty not in ("", "nothing", "unlabelled"):
        raise ConfigError(f'is "{empty}"', where="empty", fix="choose nothing or unlabelled")
    paths = cvat_files(root)
    if not paths:
        raise DataError("no export of CVAT found", where=str(root), fix='export it as "CVAT for images 1.1"')
    base = root if root.is_dir() else root.parent
    builder = SetBuilder(base, options)
    known = comma_list(classes)
    tools = ToolSet(builder, empty=empty)
    images, names, seen = NamedImages(base), dict[str, None](), set[str]()
    count = 0
    for path in paths:
        tree = read_label_xml(path)
        if tree.find("track") is not None:
            raise DataError(
                "holds tracks, which say where an object is in a video between its frames",
                where=str(path),
                fix='export it as "CVAT for images 1.1", which writes the shapes of each frame',
            )
        tools.task = tools.task or _task_of(tree)
        names |= dict.fromkeys(_declared(tree))
        for node in tree.iter("image"):
            count += 1
            image = _image(builder, images, node, path, known)
            if image is not None:
                tools.images.append(image)
                seen |= {label.category for label in image.found.objects}
    builder.understand(
        f"CVAT: {count:,} images" + (f"; labels for {tools.task}, as the file says" if tools.task else "")
    )
    order = [name for name in names if name in seen]
    return tools.build(known or [*order, *sorted(seen - set(order))], semantic, class_names(known))


def _declared(tree: ElementTree.Element) -> list[str]:
    """Return the names of the labels of a task, or of all tasks of a project, in order."""
    return [" ".join((node.findtext("name") or "").split()) for node in tree.iterfind("meta//labels/label")]


def _task_of(tree: ElementTree.Element) -> str:
    """Return which task the labels are made for, by the attribute that `vitp predict` gives them; "": unknown."""
    found = {
        (node.findtext("default_value") or "").strip()
        for node in tree.iterfind("meta//labels/label/attributes/attribute")
        if (node.findtext("name") or "").strip() == TASK_KEY
    }
    return found.pop() if len(found) == 1 else ""


def _image(
    builder: SetBuilder,
    images: NamedImages,
    node: ElementTree.Element,
    path: Path,
    known: tuple[str, ...] | None,
) -> ToolImage | None:
    """Return what a file says of one image, or None with a finding where it isn't there or isn't the same."""
    name = node.get("name", "")
    where = builder.place(path, f"image {node.get('id', '?')}")
    found_at = images.find(name, where)
    if found_at is None:
        builder.lose(where, f"{name or 'an image without a name'} is missing; image left out", absent=True)
        return None
    size = builder.size_of(found_at, where)
    if size is None:
        return None
    told = [_whole(node.get(key, ""), own) for key, own in zip(("width", "height"), size, strict=True)]
    if not builder.agree(where, told, size):
        return None
    image = ToolImage(found_at, where, builder.labels_of(size, builder.place(path)), looked_at=None)
    image.split = split_of(node.get("subset", ""))
    for number, child in enumerate(node, 1):
        label = " ".join(child.get("label", "").split())
        if child.tag == "tag":
            if label == NOTHING_HERE:
                image.looked_at = True
            elif label:
                image.classes.append(label)
        elif child.tag != "attribute":
            image.drawn = True
            _take(image, child, label, f"{where}: {child.tag} {number}", known)
    return image


def _whole(text: str, own: int) -> int | str:
    try:
        return int(text) if text else own
    except ValueError:
        return text[:40]


def _take(
    image: ToolImage, node: ElementTree.Element, label: str, where: str, known: tuple[str, ...] | None
) -> None:
    """Take one shape; what can't be used costs the image its labels, or its place is ignored."""
    found, named = image.found, label or "a shape without a label"
    if node.tag not in _SHAPES:
        found.lose(where, f"{named}: a {node.tag} has no area", label)
        return
    try:
        shape = _SHAPES[node.tag](node, found.size)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        found.lose(where, f"{named} can't be understood ({type(error).__name__}: {error})", label)
        return
    if not label:
        found.ignore(where, "a shape without a label", "unknown", shape)
    elif node.get("outside") in _TRUE:
        found.ignore(where, f"{label} has left the image", label, shape)
    else:
        found.add(where, label, shape, known=known)


def _number(node: ElementTree.Element, key: str, default: str | None = None) -> float:
    text = node.get(key, default)
    if text is None:
        raise KeyError(key)
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{key} is {text}")
    return value


def _box(node: ElementTree.Element, size: _Size) -> LabelShape:
    x1, y1, x2, y2 = (_number(node, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    degrees = _number(node, "rotation", "0") % 360
    if degrees == 0:
        return LabelShape(box=(x1, y1, x2, y2))
    return LabelShape(quad=centred_corners(x1, y1, x2, y2, degrees))


def _polygon(node: ElementTree.Element, size: _Size) -> LabelShape:
    points = [
        [float(word) for word in point.split(",")] for point in node.attrib["points"].split(";") if point
    ]
    if len(points) < 3 or any(len(point) != 2 for point in points):
        raise ValueError("points aren't three or more of x,y")
    return LabelShape(polygons=(tuple(value for point in points for value in point),))


def _ellipse(node: ElementTree.Element, size: _Size) -> LabelShape:
    x, y, across, down = (_number(node, key) for key in ("cx", "cy", "rx", "ry"))
    return LabelShape(polygons=(ellipse_ring(x, y, across, down, _number(node, "rotation", "0")),))


def _mask(node: ElementTree.Element, size: _Size) -> LabelShape:
    left, top, width, height = (int(node.attrib[key]) for key in ("left", "top", "width", "height"))
    mask_HW = decode_cvat_mask(node.attrib["rle"], (left, top, width, height), size[1], size[0])
    found = outline(mask_HW)
    return LabelShape(polygons=tuple(map(as_flat, found.rings)), holes=tuple(map(as_flat, found.holes)))


_SHAPES: dict[str, Callable[[ElementTree.Element, _Size], LabelShape]] = {
    "box": _box,
    "polygon": _polygon,
    "ellipse": _ellipse,
    "mask": _mask,
}
