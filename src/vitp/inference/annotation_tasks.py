"""Predictions as tasks of annotation tools, with scores, the most uncertain image first and near duplicates last.

    OUT/label-studio/tasks.json, labels.xml             Label Studio: tasks with predictions, labelling configuration
    OUT/cvat/annotations.xml, labels.json, images.txt   CVAT for images 1.1, labels of the task, images in order
    OUT/coco/annotations.json                           COCO
    OUT/TOOL/order.csv                                  uncertainty of each image, and what it is a duplicate of

`vitp data compile` reads what comes back: `vitp.data.formats.label_studio`, `cvat` and `coco`.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np

from vitp.core.errors import ConfigError
from vitp.core.files import to_json, write_json, write_text
from vitp.inference.annotation_order import MEASURES, annotation_order
from vitp.inference.outputs import Named, quads_in_view
from vitp.io.colours import CLASS_COLOURS
from vitp.io.images import load_label_pixels
from vitp.records.labels import BACKGROUND
from vitp.records.rle import encode
from vitp.records.tool_shapes import (
    CLASSES_KEY,
    NOTHING_HERE,
    SEVERAL_CLASSES,
    TASK_KEY,
    encode_brush,
    encode_cvat_mask,
    rectangle_of,
    unturned_box,
)

Tool = Literal["", "label-studio", "cvat", "coco"]

_WITHOUT_SHAPE = {
    "label-studio": ("panoptic",),
    "cvat": ("change", "panoptic"),
    "coco": ("change", "classification", "panoptic"),
}
"""Tool → tasks that it has no shape for."""

_LOCAL = "/data/local-files/?d="
"""What Label Studio calls files of its own machine by."""

_SHAPE_KINDS = {"detection": "rectangle", "oriented": "rectangle"}


def check_tool(tool: Tool, task: str) -> None:
    """Make sure that a tool can show what a model finds.

    Raises:
        ConfigError: It can't.
    """
    if task in _WITHOUT_SHAPE.get(tool, ()):
        others = [name for name in ("label-studio", "cvat") if task not in _WITHOUT_SHAPE.get(name, ())]
        what = {
            "change": "has no pairs of images",
            "classification": "has no classes of whole images",
            "panoptic": "gets no segments of panoptic models yet",
        }[task]
        fix = (
            f"choose {' or '.join(others)}"
            if others
            else "leave it out: COCO's panoptic form is written anyway"
        )
        raise ConfigError(f"{tool} {what}", where="--for", fix=fix)


@dataclass(frozen=True)
class _Shape:
    """One object, or one class of a class map: a box, four corners or a mask."""

    name: str
    score: float | None
    box: tuple[float, float, float, float] | None = None
    quad: tuple[float, ...] | None = None
    mask_HW: np.ndarray | None = None


@dataclass(frozen=True)
class LookedAt:
    """An image to be labelled.

    Attributes:
        named: What was found.
        dates: Paths of the image, or of both dates.
        doubt: How unsure the model is, on 0..1.
        class_map: File of the class map; None: there is none.
    """

    named: Named
    dates: tuple[str, ...]
    doubt: float
    class_map: Path | None = None


@dataclass(frozen=True)
class _Image:
    """An image in its place in the order: how it is called, and what it repeats."""

    looked: LookedAt
    names: tuple[str, ...]
    duplicate_of: str


@dataclass(frozen=True)
class TaskWriter:
    """Writes the tasks of one tool.

    Attributes:
        tool: Name of the annotation tool.
        task: Task of the model.
        classes: Classes of the model.
        multi_label: An image may have several classes.
        url: Put before the names of images, in place of Label Studio's own files.
        version: Version of the model.
    """

    tool: Tool
    task: str
    classes: tuple[str, ...]
    multi_label: bool
    url: str
    version: str

    def write(self, out: Path, found: Sequence[LookedAt]) -> list[str]:
        """Write all files of the tool, and return lines about them."""
        places = annotation_order([one.dates for one in found], [one.doubt for one in found])
        # Tools are told of one folder, below which all images lie.
        folder = os.path.commonpath([Path(date).absolute().parent for one in found for date in one.dates])
        names = [
            tuple(os.path.relpath(date, folder).replace(os.sep, "/") for date in one.dates) for one in found
        ]
        images = [
            _Image(
                found[p.number], names[p.number], "" if p.duplicate_of is None else names[p.duplicate_of][0]
            )
            for p in places
        ]
        out.mkdir(parents=True, exist_ok=True)
        {"label-studio": self._label_studio, "cvat": self._cvat, "coco": self._coco}[self.tool](out, images)
        _write_order(out, images)
        repeats = sum(bool(image.duplicate_of) for image in images)
        lines = [
            f"{self.tool}: {len(images):,} tasks, most uncertain first ({MEASURES[self._measure]})"
            + (f"; {repeats:,} near duplicates last" if repeats else "")
        ]
        if self.tool == "label-studio" and not self.url:
            lines.append(
                f"Label Studio finds the images with LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={folder}"
            )
        if outside := sum(quads_in_view(one.named).count(None) for one in found):
            lines.append(f"{outside:,} objects that lie outside of their image are left out")
        if self.tool == "cvat":
            lines.append(f"images of the task, in order: {folder}, as images.txt names them")
        return lines

    @property
    def _measure(self) -> str:
        return "multi-label" if self.multi_label else self.task

    @property
    def _told(self) -> str:
        """What the files say that labels are for."""
        return SEVERAL_CLASSES if self.multi_label else self.task

    @property
    def _named(self) -> tuple[str, ...]:
        """The classes that are drawn."""
        if self.task == "change":
            return self.classes[1:]
        return tuple(name for name in self.classes if self.task != "segmentation" or name != BACKGROUND)

    # --- Label Studio

    def _label_studio(self, out: Path, images: Sequence[_Image]) -> None:
        with io.StringIO() as text:
            text.write("[\n")
            for number, image in enumerate(images):
                text.write(f"{',' if number else ''}{to_json(self._task_of(image))}\n")
            text.write("]\n")
            write_text(out / "tasks.json", text.getvalue())
        write_text(out / "labels.xml", self._label_studio_config())

    def _task_of(self, image: _Image) -> dict[str, Any]:
        keys = ("before", "after") if self.task == "change" else ("image",)
        before = self.url or _LOCAL
        data: dict[str, Any] = {
            key: before + quote(name) for key, name in zip(keys, image.names, strict=True)
        }
        data |= {"uncertainty": round(image.looked.doubt, 6), "uncertainty_is": MEASURES[self._measure]}
        if image.duplicate_of:
            data["duplicate_of"] = image.duplicate_of
        data |= {TASK_KEY: self._told, CLASSES_KEY: list(self._named)}
        height, width = image.looked.named.size
        common = {
            "to_name": keys[-1],
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
        }
        results = [
            {"id": f"{image.looked.named.name}-{number}", "from_name": "label", **common, **result}
            for number, result in enumerate(self._results(image.looked))
        ]
        prediction = {
            "model_version": self.version,
            "score": round(1 - image.looked.doubt, 6),
            "result": results,
        }
        return {"data": data, "predictions": [prediction]}

    def _results(self, looked: LookedAt) -> Iterator[dict[str, Any]]:
        height, width = looked.named.size
        if self.task == "classification":
            chosen = self._chosen(looked)
            value: dict[str, Any] = {"choices": [name for name, _ in chosen]}
            yield {
                "type": "choices",
                "value": value,
                "score": min((score for _, score in chosen), default=0.0),
            }
            return
        for shape in self._shapes(looked):
            if shape.mask_HW is not None:
                kind, value = "brushlabels", {"format": "rle", "rle": encode_brush(shape.mask_HW)}
            else:
                # Label Studio counts in percent, and turns a rectangle around its first corner, not around its middle.
                x, y, across, down, degrees = rectangle_of(shape.quad or _corners(shape.box))
                kind, value = "rectanglelabels", {"rotation": round(degrees, 8) % 360}
                value |= {"x": 100 * x / width, "y": 100 * y / height}
                value |= {"width": 100 * across / width, "height": 100 * down / height}
            score = {} if shape.score is None else {"score": round(shape.score, 5)}
            yield {"type": kind, "value": {**value, kind: [shape.name]}, **score}

    def _label_studio_config(self) -> str:
        view = ElementTree.Element("View")
        keys = ("before", "after") if self.task == "change" else ("image",)
        for key in keys:
            ElementTree.SubElement(view, "Header", value=key.capitalize()) if len(keys) > 1 else None
            ElementTree.SubElement(view, "Image", name=key, value=f"${key}", zoom="true", zoomControl="true")
        if self.task == "classification":
            choice = "multiple" if self.multi_label else "single"
            control = ElementTree.SubElement(view, "Choices", name="label", toName="image", choice=choice)
        else:
            tag = "RectangleLabels" if self.task in _SHAPE_KINDS else "BrushLabels"
            control = ElementTree.SubElement(view, tag, name="label", toName=keys[-1])
            if tag == "RectangleLabels":
                control.set("canRotate", "true" if self.task == "oriented" else "false")
        for number, name in enumerate(self._named):
            if self.task == "classification":
                ElementTree.SubElement(control, "Choice", value=name)
            else:
                colour = CLASS_COLOURS[self.classes.index(name) % len(CLASS_COLOURS)]
                label = ElementTree.SubElement(control, "Label", value=name, background=colour)
                if number < 9:  # the tool gives the others keys of its own
                    label.set("hotkey", str(number + 1))
        return _as_xml(view)

    # --- CVAT

    def _cvat(self, out: Path, images: Sequence[_Image]) -> None:
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = "1.1"
        labels = ElementTree.SubElement(
            ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels"
        )
        for one in self._cvat_labels():
            label = ElementTree.SubElement(labels, "label")
            for key in ("name", "color", "type"):
                ElementTree.SubElement(label, key).text = one[key]
            attributes = ElementTree.SubElement(label, "attributes")
            for row in one["attributes"]:
                attribute = ElementTree.SubElement(attributes, "attribute")
                for key in ("name", "mutable", "input_type", "default_value"):
                    ElementTree.SubElement(attribute, key).text = str(row[key])
                ElementTree.SubElement(attribute, "values").text = "\n".join(row["values"])
        for number, image in enumerate(images):
            height, width = image.looked.named.size
            facts = {"id": str(number), "name": image.names[0], "width": str(width), "height": str(height)}
            self._cvat_image(ElementTree.SubElement(root, "image", facts), image.looked)
        write_text(out / "annotations.xml", '<?xml version="1.0" encoding="utf-8"?>\n' + _as_xml(root))
        write_json(out / "labels.json", self._cvat_labels())
        write_text(out / "images.txt", "".join(f"{image.names[0]}\n" for image in images))

    def _cvat_labels(self) -> list[dict[str, Any]]:
        """Return what CVAT's page takes as the raw labels of a task; a hidden attribute says what they are for."""
        kind = "tag" if self.task == "classification" else _SHAPE_KINDS.get(self.task, "mask")
        text = {"mutable": False, "input_type": "text"}
        attributes = [
            {"name": "score", **text, "default_value": "", "values": [""]},
            {"name": TASK_KEY, **text, "default_value": self._told, "values": [self._told]},
        ]
        labels: list[dict[str, Any]] = [
            {
                "name": name,
                "color": CLASS_COLOURS[self.classes.index(name) % len(CLASS_COLOURS)],
                "type": kind,
                "attributes": attributes,
            }
            for name in self._named
        ]
        if self.task != "classification" or self.multi_label:
            labels.append({"name": NOTHING_HERE, "color": "#808080", "type": "tag", "attributes": []})
        return labels

    def _cvat_image(self, node: ElementTree.Element, looked: LookedAt) -> None:
        common = {"source": "auto", "occluded": "0", "z_order": "0"}
        if self.task == "classification":
            for name, score in self._chosen(looked):
                tag = ElementTree.SubElement(node, "tag", label=name, source="auto")
                self._cvat_attributes(tag, score)
            return
        for shape in self._shapes(looked):
            if shape.mask_HW is not None:
                kind, facts = "mask", encode_cvat_mask(shape.mask_HW)
            else:
                places = unturned_box(shape.quad or _corners(shape.box))
                keys = ("xtl", "ytl", "xbr", "ybr", "rotation")
                kind, facts = "box", {key: f"{value:.6f}" for key, value in zip(keys, places, strict=True)}
            child = ElementTree.SubElement(node, kind, {"label": shape.name, **common, **facts})
            self._cvat_attributes(child, shape.score)

    def _cvat_attributes(self, node: ElementTree.Element, score: float | None) -> None:
        ElementTree.SubElement(node, "attribute", name="score").text = "" if score is None else f"{score:.5f}"
        ElementTree.SubElement(node, "attribute", name=TASK_KEY).text = self._told

    # --- COCO

    def _coco(self, out: Path, images: Sequence[_Image]) -> None:
        numbers = {name: number for number, name in enumerate(self._named, 1)}
        rows: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, image in enumerate(images, 1):
            height, width = image.looked.named.size
            row = {"id": number, "file_name": image.names[0], "width": width, "height": height}
            repeats = {"duplicate_of": image.duplicate_of} if image.duplicate_of else {}
            rows.append({**row, "uncertainty": round(image.looked.doubt, 6), **repeats})
            for shape in self._shapes(image.looked):
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": numbers[shape.name],
                }
                annotations.append({**annotation, "iscrowd": 0, **_coco_place(shape)})
        info = {
            TASK_KEY: self._told,
            CLASSES_KEY: list(self._named),
            "model": self.version,
            "uncertainty": MEASURES[self._measure],
        }
        categories = [{"id": number, "name": name} for name, number in numbers.items()]
        content = {"info": info, "images": rows, "annotations": annotations, "categories": categories}
        write_json(out / "annotations.json", content)

    # --- what is drawn

    def _chosen(self, looked: LookedAt) -> list[tuple[str, float]]:
        """Return the classes of a whole image, with their probabilities."""
        assert looked.named.prediction.probabilities_C is not None
        values = looked.named.prediction.probabilities_C.tolist()
        if self.multi_label:
            return [(name, value) for name, value in zip(self.classes, values, strict=True) if value > 0.5]
        best = int(np.argmax(values))
        return [(self.classes[best], values[best])]

    def _shapes(self, looked: LookedAt) -> Iterator[_Shape]:
        prediction = looked.named.prediction
        if looked.class_map is not None:
            map_HW = load_label_pixels(str(looked.class_map))
            changed = self.task == "change"
            for number, name in enumerate(self.classes):
                if name not in self._named:
                    continue
                # Files of change hold 0 and 255, for eyes, and not numbers of classes.
                mask_HW = map_HW > 127 if changed else map_HW == number
                if mask_HW.any():
                    yield _Shape(name, None, mask_HW=mask_HW)
            return
        assert prediction.scores_N is not None and prediction.labels_N is not None
        quads = quads_in_view(looked.named)
        for index, (score, label) in enumerate(
            zip(prediction.scores_N.tolist(), prediction.labels_N.tolist(), strict=True)
        ):
            name = self.classes[label]
            if prediction.masks_NHW is not None:
                mask_HW = prediction.masks_NHW[index].numpy()
                if mask_HW.any():
                    yield _Shape(name, score, mask_HW=mask_HW)
            elif prediction.quads_N8 is not None:
                if quads[index] is not None:
                    yield _Shape(name, score, quad=quads[index])
            elif prediction.boxes_N4 is not None:
                x1, y1, x2, y2 = prediction.boxes_N4[index].double().tolist()
                yield _Shape(name, score, box=(x1, y1, x2, y2))


def _corners(box: tuple[float, float, float, float] | None) -> tuple[float, ...]:
    assert box is not None
    x1, y1, x2, y2 = box
    return (x1, y1, x2, y1, x2, y2, x1, y2)


def _coco_place(shape: _Shape) -> dict[str, Any]:
    """Return where a shape lies. A turned box is given as CVAT does: upright, and the angle that it is turned by."""
    score = {} if shape.score is None else {"score": round(shape.score, 5)}
    if shape.mask_HW is not None:
        rows, columns = np.flatnonzero(shape.mask_HW.any(1)), np.flatnonzero(shape.mask_HW.any(0))
        left, top = int(columns[0]), int(rows[0])
        box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
        area = int(shape.mask_HW.sum())
        return {"bbox": box, "area": area, "segmentation": encode(shape.mask_HW), **score}
    if shape.quad is None:
        assert shape.box is not None
        x1, y1, x2, y2 = shape.box
        turned = {}
    else:
        x1, y1, x2, y2, degrees = unturned_box(shape.quad)
        turned = {"attributes": {"occluded": False, "rotation": round(degrees, 8)}}
    sides = x2 - x1, y2 - y1
    box_of = [round(value, 6) for value in (x1, y1, *sides)]
    return {"bbox": box_of, "area": round(sides[0] * sides[1], 3), "segmentation": [], **turned, **score}


def _as_xml(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _write_order(out: Path, images: Sequence[_Image]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "uncertainty", "duplicate_of"])
    for image in images:
        writer.writerow([image.names[0], f"{image.looked.doubt:.6f}", image.duplicate_of])
    write_text(out / "order.csv", text.getvalue())
