"""CVAT for images 1.1: tags, boxes (turned, too), polygons, ellipses and masks. Tracks of videos are refused.

An `image` without shapes may be empty, or nobody came to it: the file doesn't say. The tag "nothing here" does, and
then such images are unlabelled; else `-o empty=…` must.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import head_of
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.tool_labels import NamedImages, ToolImage, ToolSet, class_names, number_in, ring_of
from vitp.data.formats.walk import child, comma_list, read_label_xml, split_of, suffixed
from vitp.records.geometry import as_flat
from vitp.records.labels import LabelledSet
from vitp.records.regions import outline
from vitp.records.tool_shapes import NOTHING_HERE, TASK_KEY, centred_corners, decode_cvat_mask, ellipse_ring

_HEAD = 1 << 12
_TRUE = ("1", "true", "True")
_MASK = ("left", "top", "width", "height")
_Size = tuple[int, int]


def cvat_files(root: Path) -> list[Path]:
    """Return the XML files in a folder, or in its `annotations/`, that CVAT exported."""
    if root.is_file():
        return [root] if _is_export(root) else []
    folders = [folder for folder in (root, child(root, ("annotations",))) if folder is not None]
    return [path for folder in folders for path in suffixed(folder, ".xml") if _is_export(path)]


def _is_export(path: Path) -> bool:
    return path.suffix.lower() == ".xml" and b"<annotations>" in head_of(path, _HEAD)


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
    # The tool turns images as EXIF says before they are labelled.
    builder = SetBuilder(base, options, shown=True)
    known = comma_list(classes)
    tools = ToolSet(builder, empty=empty)
    images, names, seen = NamedImages(base), dict[str, None](), set[str]()
    nodes: list[tuple[Path, ElementTree.Element]] = []
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
        tools.made_with |= dict.fromkeys(_declared(tree, TASK_KEY) or _declared(tree))
        nodes += ((path, node) for node in tree.iter("image"))
    for one in _once(builder, images, nodes, empty):
        image = _image(builder, one, known)
        if image is not None:
            tools.images.append(image)
            seen |= {label.category for label in image.found.objects}
    builder.understand(
        f"CVAT: {len(nodes):,} images"
        + (f"; labels for {tools.task}, as the file says" if tools.task else "")
    )
    if known:
        tools.made_with.clear()
    order = [name for name in names if name in seen]
    return tools.build(known or [*order, *sorted(seen - set(order))], semantic, class_names(known))


def _declared(tree: ElementTree.Element, attribute: str = "") -> list[str]:
    """Return the names of the labels of a task, or of all tasks of a project, in order; those with an attribute."""
    return [
        " ".join((node.findtext("name") or "").split())
        for node in tree.iterfind("meta//labels/label")
        if not attribute or attribute in (one.text for one in node.iterfind("attributes/attribute/name"))
    ]


def _task_of(tree: ElementTree.Element) -> str:
    """Return which task the labels are made for, by the attribute that `vitp predict` gives them; "": unknown."""
    found = {
        (node.findtext("default_value") or "").strip()
        for node in tree.iterfind("meta//labels/label/attributes/attribute")
        if (node.findtext("name") or "").strip() == TASK_KEY
    }
    return found.pop() if len(found) == 1 else ""


@dataclass(frozen=True)
class _Node:
    """An `image` of a file, where it stands, and the image that it means."""

    node: ElementTree.Element
    path: Path
    where: str
    image: Path

    def said(self) -> list[str]:
        """Return what it says of the image, without what CVAT notes beside it."""
        beside = {"source", "z_order", "occluded", "group_id"}
        rows = (
            (node.tag, sorted(item for item in node.items() if item[0] not in beside)) for node in self.node
        )
        return sorted(map(str, rows))


def _once(
    builder: SetBuilder,
    images: NamedImages,
    nodes: Iterable[tuple[Path, ElementTree.Element]],
    empty: str,
) -> Iterator[_Node]:
    """Yield what the files say of each image that is there; what is told twice counts once, with a finding.

    Raises:
        DataError: Two say different things of an image, and none of them is unlabelled.
    """
    found: dict[Path, _Node] = {}
    again: list[_Node] = []
    marked = False
    for path, node in nodes:
        name, where = node.get("name", ""), builder.place(path, f"image {node.get('id', '?')}")
        marked = marked or any(tag.get("label") == NOTHING_HERE for tag in node.iterfind("tag"))
        image = images.find(name, where)
        if image is None:
            told = name or "an image without a name"
            builder.lose(where, f"{told} is missing; image left out", absent=True)
            continue
        one = _Node(node, path, where, image)
        if found.setdefault(image, one) is not one:
            again.append(one)
    for one in again:
        first = found[one.image]
        if (marked or empty == "unlabelled") and not (one.said() and first.said()):  # nobody came to one
            found[one.image] = first if first.said() else one
        elif one.said() != first.said() or one.node.get("subset") != first.node.get("subset"):
            raise DataError(
                f"says something else of {one.node.get('name')} than {first.where}",
                where=one.where,
                fix="keep one of the two"
                + ("" if one.said() and first.said() else "; -o empty=unlabelled takes the one with shapes"),
            )
        builder.note(one.where, f"is of the same image as {first.where}; counted once")
    yield from found.values()


def _image(builder: SetBuilder, one: _Node, known: tuple[str, ...] | None) -> ToolImage | None:
    """Return what a file says of one image, or None with a finding where it isn't the same."""
    node, path, where, found_at = one.node, one.path, one.where, one.image
    size = builder.size_of(found_at, where)
    if size is None:
        return None
    if not builder.agree(where, [_whole(node.get(key, "")) for key in ("width", "height")], size, found_at):
        return None
    image = ToolImage(found_at, where, builder.labels_of(size, builder.place(path)), looked_at=None)
    image.split = split_of(node.get("subset", ""))
    for number, inner in enumerate(node, 1):
        label = " ".join(inner.get("label", "").split())
        if inner.tag == "tag":
            if label == NOTHING_HERE:
                image.looked_at = True
            elif label:
                image.classes.append(label)
        elif inner.tag != "attribute":
            image.drawn = True
            _take(image, inner, label, f"{where}: {inner.tag} {number}", known)
    return image


def _whole(text: str) -> int | str:
    try:
        return int(text) if text else 0
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
    except ValueError as error:
        found.lose(where, f"{named} can't be understood: {error}", label)
        return
    if not label:
        found.ignore(where, "a shape without a label", "unknown", shape)
    elif node.get("outside") in _TRUE:
        found.ignore(where, f"{label} has left the image", label, shape)
    else:
        found.add(where, label, shape, known=known)


def _box(node: ElementTree.Element, size: _Size) -> LabelShape:
    x1, y1, x2, y2 = (number_in(node.attrib, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    degrees = number_in(node.attrib, "rotation", 0) % 360
    if degrees == 0:
        return LabelShape(box=(x1, y1, x2, y2))
    return LabelShape(quad=centred_corners(x1, y1, x2, y2, degrees))


def _polygon(node: ElementTree.Element, size: _Size) -> LabelShape:
    points = ring_of([point.split(",") for point in node.get("points", "").split(";") if point])
    return LabelShape(polygons=(tuple(value for point in points for value in point),))


def _ellipse(node: ElementTree.Element, size: _Size) -> LabelShape:
    x, y, across, down = (number_in(node.attrib, key) for key in ("cx", "cy", "rx", "ry"))
    turn = number_in(node.attrib, "rotation", 0)
    return LabelShape(polygons=(ellipse_ring(x, y, across, down, turn),))


def _mask(node: ElementTree.Element, size: _Size) -> LabelShape:
    left, top, width, height = (int(number_in(node.attrib, key)) for key in _MASK)
    mask_HW = decode_cvat_mask(node.get("rle", ""), (left, top, width, height), size[1], size[0])
    found = outline(mask_HW)
    return LabelShape(polygons=tuple(map(as_flat, found.rings)), holes=tuple(map(as_flat, found.holes)))


_SHAPES: dict[str, Callable[[ElementTree.Element, _Size], LabelShape]] = {
    "box": _box,
    "polygon": _polygon,
    "ellipse": _ellipse,
    "mask": _mask,
}
