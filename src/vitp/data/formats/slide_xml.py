"""XML of pathology: Aperio ImageScope's layers of regions (MoNuSeg) and ASAP's groups of annotations (CAMELYON)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

from vitp.core.errors import DataError
from vitp.core.reading import head_of
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.drawings import (
    Drawing,
    ToolShape,
    drawn,
    files_of_tool,
    finite_points,
    read_drawings,
    ring_shape,
)
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.walk import comma_list, read_label_xml
from vitp.records.geometry import as_points, contains
from vitp.records.labels import LabelledSet
from vitp.records.tool_shapes import ellipse_ring

_HEAD = 1 << 12
_KINDS = {"0": "polygon", "1": "rectangle", "2": "ellipse", "3": "arrow", "4": "ruler"}
"""ImageScope's types of regions."""
_CLOSED = ("polygon", "spline", "rectangle", "ellipse")
_TUMOR = ("_0", "_1")
_CUT = {"_2": _TUMOR, "normal": ("metastases",), "Exclusion": ("Tumor",)}
"""Groups that CAMELYON's publishers cut out of others → the groups of which one stands beside them."""


@dataclass(frozen=True)
class _Region:
    """A region of a file: its layer (or group), what it is called there, its points, and whether it is cut out.

    `only_own`: it is cut out of the regions of its own layer alone.
    """

    layer: str
    name: str
    kind: str
    points: Sequence[tuple[object, object]]
    is_cut: bool = False
    only_own: bool = False


_Files = dict[Path, list[_Region]]


def imagescope_files(root: Path) -> list[Path]:
    """Return the XML files below a folder that Aperio ImageScope wrote."""
    return files_of_tool(root, ".xml", ("<Annotations", "<Vert"), partial(_begins, mark=b"<Annotations"))


def asap_files(root: Path) -> list[Path]:
    """Return the XML files below a folder that ASAP wrote."""
    return files_of_tool(root, ".xml", ("<ASAP_Annotations",), partial(_begins, mark=b"<ASAP_Annotations"))


def _begins(path: Path, mark: bytes) -> bool:
    return mark in head_of(path, _HEAD)


def read_imagescope(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    semantic: bool | str = False,
) -> LabelledSet:
    """Read the regions of Aperio ImageScope, in pixels of the whole slide; negative regions are cut out of others.

    Args:
        root: Holds an XML file for each slide or image, of its name, anywhere below.
        options: Name, licence, splits.
        classes: The classes in order; the places of others are ignored. They name the layers where these have no names.
        semantic: True: masks of classes instead of objects; "both": beside them.

    Raises:
        DataError: A file can't be read, or the class of regions isn't known.
    """
    files = _parsed(root, imagescope_files(root), "Annotations", _imagescope_regions)
    return _read(root, options, files, classes, semantic)


def read_asap(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    semantic: bool | str = False,
    holes: str | list[str] | None = None,
) -> LabelledSet:
    """Read the annotations of ASAP, in pixels of the whole slide; their group is the class.

    Args:
        root: Holds an XML file for each slide, of its name, anywhere below.
        options: Name, licence, splits.
        classes: The classes in order; the places of others are ignored. Of annotations without a group one name here is
            the class of all.
        semantic: True: masks of classes instead of objects; "both": beside them.
        holes: Groups that are cut out of the annotations around them; by default those that CAMELYON publishes so.

    Raises:
        DataError: A file can't be read, or the class of annotations isn't known.
    """
    files = _parsed(root, asap_files(root), "ASAP_Annotations", _asap_regions)
    groups = {region.layer for regions in files.values() for region in regions}
    told = comma_list(holes)
    published = {name for name, others in _CUT.items() if groups.intersection(others)}
    cut = published if told is None else set(told)
    if wrong := sorted(cut - groups) if told else []:
        what = f'no annotation is of the group "{wrong[0]}"'
        raise DataError(what, where=str(root), fix=f"there are {', '.join(sorted(groups))}")
    lines = [
        f'the group "{name}" is cut out of the others; -o holes=… names others'
        for name in sorted(cut & groups)
    ]
    if is_camelyon := groups <= {*_TUMOR, "_2"}:
        lines.append("the groups _0 and _1 are tumor, as CAMELYON publishes them")
    files = {
        path: [
            replace(
                one,
                name="tumor" if is_camelyon and one.layer in _TUMOR else one.name,
                is_cut=one.layer in cut,
            )
            for one in regions
        ]
        for path, regions in files.items()
    }
    return _read(root, options, files, classes, semantic, lines)


def _parsed(
    root: Path, paths: Sequence[Path], tag: str, regions_of: Callable[[Element], list[_Region]]
) -> _Files:
    """Return the regions of each file; what is no file of the tool is left out.

    Raises:
        DataError: A file can't be read.
    """
    trees = {path: read_label_xml(path) for path in paths}
    return {path: regions_of(tree) for path, tree in trees.items() if tree.tag == tag}


def _imagescope_regions(tree: Element) -> list[_Region]:
    found = []
    for layer in tree.iter("Annotation"):
        # MoNuSAC writes the class into an attribute of the layer, others into its name or description.
        told = [(one.get("Name", ""), one.get("Value", "")) for one in layer.iterfind("Attributes/Attribute")]
        texts = (value if key in ("", "Description") else key for key, value in told)
        name = layer.get("Name", "").strip() or next((text.strip() for text in texts if text.strip()), "")
        for region in layer.iter("Region"):
            points = [(vertex.get("X"), vertex.get("Y")) for vertex in region.iter("Vertex")]
            kind = _KINDS.get(region.get("Type", "0"), "shape of another kind")
            is_cut = region.get("NegativeROA") == "1"
            found.append(_Region(layer.get("Id", ""), name, kind, points, is_cut, only_own=True))
    return found


def _asap_regions(tree: Element) -> list[_Region]:
    found = []
    for one in tree.iter("Annotation"):
        group = one.get("PartOfGroup", "")
        points = [(corner.get("X"), corner.get("Y")) for corner in one.iter("Coordinate")]
        name = "" if group == "None" else group
        found.append(_Region(group, name, one.get("Type", "Polygon").lower(), points))
    return found


def _read(
    root: Path,
    options: ReadOptions,
    files: _Files,
    classes: str | list[str] | None,
    semantic: bool | str,
    lines: Sequence[str] = (),
) -> LabelledSet:
    known, regions = comma_list(classes), [one for own in files.values() for one in own]
    bare = sorted({one.layer for one in regions if not one.name and not one.is_cut})
    names: dict[str, str] = {}
    if bare and not any(one.name for one in regions):
        if len(known or ()) != len(bare):
            layers = "regions have no names of layers or groups" + (
                f" (layers {', '.join(bare)})" if bare[1:] else ""
            )
            raise DataError(
                f"{layers}, so their class isn't known",
                where=str(root),
                fix=f"-o classes={','.join(['NAME'] * len(bare))} names {'these in order' if bare[1:] else 'it'}",
            )
        names = dict(zip(bare, known or (), strict=True))

    def found(builder: SetBuilder) -> Iterator[Drawing]:
        for line in lines:
            builder.understand(line)
        for layer, name in names.items():
            builder.understand(f'regions of the layer "{layer}" are {name}, as -o classes says')
        for path, own in files.items():
            where = builder.place(path)
            yield Drawing(where, path, "", path.stem, (0, 0), partial(_shapes, where, own, names, builder))

    return read_drawings(root, options, found, classes=classes, semantic=semantic, missing="have no XML file")


def _shapes(
    where: str,
    regions: Sequence[_Region],
    names: Mapping[str, str],
    builder: SetBuilder,
    size: tuple[int, int],
) -> list[ToolShape]:
    """Return the shapes of an image; a region that is cut out is a hole in each one around it."""
    drawings = [
        (one, drawn(f"{where}: region {n}", names.get(one.layer, one.name), partial(_ring, one)))
        for n, one in enumerate(regions, 1)
    ]
    cuts = [
        (cut, as_points(made.shape.polygons[0]))
        for cut, made in drawings
        if cut.is_cut and not isinstance(made.shape, str)
    ]
    found = []
    for one, made in drawings:
        if isinstance(made.shape, str):
            found.append(made)
        elif not one.is_cut:
            ring_N2 = as_points(made.shape.polygons[0])
            holes = [
                cut_N2.ravel().tolist()
                for cut, cut_N2 in cuts
                if contains(ring_N2, cut_N2) and (not cut.only_own or cut.layer == one.layer)
            ]
            found.append(replace(made, shape=LabelShape(polygons=made.shape.polygons, holes=holes)))
    return found


def _ring(region: _Region) -> LabelShape:
    points = finite_points(region.points)
    if region.kind == "ellipse" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        return LabelShape(
            polygons=(ellipse_ring((x1 + x2) / 2, (y1 + y2) / 2, abs(x2 - x1) / 2, abs(y2 - y1) / 2, 0),)
        )
    if region.kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        points = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    if region.kind not in _CLOSED:
        raise ValueError(f"a {region.kind} has no area")
    return ring_shape(points)
