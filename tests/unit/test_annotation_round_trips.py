"""Predictions become tasks of annotation tools, and what comes back from these compiles to the same labels."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from tests.annotation_toys import CLASSES, TOOLS, picture, written
from vitp.core.errors import ConfigError
from vitp.data.formats import detect_format, read_labels
from vitp.inference.annotation_order import annotation_order, uncertainty
from vitp.inference.annotation_tasks import LookedAt, TaskWriter, check_tool
from vitp.inference.outputs import Named
from vitp.metrics.results import Prediction
from vitp.records.geometry import area, as_points
from vitp.records.labels import LabelledImage
from vitp.records.regions import rasterise
from vitp.records.tool_shapes import NOTHING_HERE, TASK_KEY, ellipse_ring


def corners(item: LabelledImage) -> list[tuple[str, np.ndarray]]:
    found = []
    for label in item.objects or ():
        x1, y1, x2, y2 = label.box
        found.append((label.category, as_points(label.quad or (x1, y1, x2, y1, x2, y2, x1, y2))))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("task", ["detection", "oriented"])
@pytest.mark.parametrize("tool", TOOLS)
def test_boxes_come_back_to_a_thousandth_of_a_pixel(tmp_path: Path, tool: str, task: str, seed: int) -> None:
    made = written(tmp_path / "set", tool, task, 10 * seed)
    assert detect_format(made.root) == tool
    labels = made.labels()
    assert len(labels) == len(made.images)
    for image, prediction in zip(made.images, made.predictions, strict=True):
        found = corners(labels[image.stem])
        assert prediction.labels_N is not None and len(found) == len(prediction.labels_N)
        for index, (name, points) in enumerate(found):
            assert name == CLASSES[int(prediction.labels_N[index])]
            if task == "detection":
                assert prediction.boxes_N4 is not None
                x1, y1, x2, y2 = prediction.boxes_N4[index].tolist()
                expected = as_points((x1, y1, x2, y1, x2, y2, x1, y2))
            else:
                assert prediction.quads_N8 is not None
                expected = as_points(prediction.quads_N8[index].tolist())
            assert np.abs(points - expected).max() < 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tool", TOOLS)
def test_masks_come_back_pixel_by_pixel(tmp_path: Path, tool: str, seed: int) -> None:
    made = written(tmp_path / "set", tool, "instance", 10 * seed)
    labels = made.labels()
    for image, prediction in zip(made.images, made.predictions, strict=True):
        item = labels[image.stem]
        assert prediction.masks_NHW is not None and prediction.labels_N is not None
        masks = prediction.masks_NHW[prediction.masks_NHW.flatten(1).any(1)]
        assert item.objects is not None and len(item.objects) == len(masks)
        for label, mask_HW in zip(item.objects, masks.numpy(), strict=True):
            drawn = rasterise(label.polygons, (item.height, item.width), label.holes)
            assert (drawn == mask_HW).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tool", TOOLS)
def test_class_maps_come_back_as_class_maps_without_an_option(tmp_path: Path, tool: str, seed: int) -> None:
    made = written(tmp_path / "set", tool, "segmentation", 10 * seed)
    read = read_labels("auto", made.root, val=0, test=0)
    names = ("background", *CLASSES)
    assert set(read.semantic_classes) <= set(names) and read.semantic_classes[0] == "background"
    for image, prediction in zip(made.images, made.predictions, strict=True):
        item = next(item for item in read.items if item.image == str(image))
        assert item.semantic is not None and prediction.semantic_HW is not None and item.objects is None
        told = np.array([names.index(name) for name in read.semantic_classes])[item.semantic()]
        assert (told == prediction.semantic_HW.numpy()).all()


def test_pairs_come_back_as_pairs(tmp_path: Path) -> None:
    made = written(tmp_path / "set", "label-studio", "change", 3)
    for number, (image, prediction) in enumerate(zip(made.images, made.predictions, strict=True)):
        item = made.labels()[image.stem]
        assert Path(item.second_image or "").name == f"l{number}.png"
        assert item.change is not None and prediction.semantic_HW is not None
        assert (item.change() == (prediction.semantic_HW.numpy() == 1)).all()
    for tool in ("cvat", "coco"):
        with pytest.raises(ConfigError, match="no pairs of images; choose label-studio"):
            check_tool(tool, "change")  # type: ignore[arg-type]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("tool", ["label-studio", "cvat"])
def test_classes_of_images_come_back(tmp_path: Path, tool: str, several: bool) -> None:
    made = written(tmp_path / "set", tool, "classification", 4, several=several)
    read = read_labels("auto", made.root, val=0, test=0, **({"empty": "nothing"} if tool == "cvat" else {}))
    items = {item.id.rpartition("/")[2]: item for item in read.items}
    for image, prediction in zip(made.images, made.predictions, strict=True):
        assert prediction.probabilities_C is not None
        values = prediction.probabilities_C.tolist()
        if several:
            assert items[image.stem].tags == tuple(
                name for name, value in zip(CLASSES, values, strict=True) if value > 0.5
            )
        else:
            assert items[image.stem].scene == CLASSES[int(np.argmax(values))]
    with pytest.raises(ConfigError, match="no classes of whole images; choose label-studio or cvat"):
        check_tool("coco", "classification")


def test_no_two_classes_have_one_key(tmp_path: Path) -> None:
    classes = tuple(f"kind {number}" for number in range(12))
    image = picture(tmp_path / "a.png", (8, 8), 0)
    nothing = Prediction(boxes_N4=torch.zeros(0, 4), labels_N=torch.zeros(0), scores_N=torch.zeros(0))
    looked = LookedAt(Named("a", str(image), (8, 8), nothing), (str(image),), 0.0, None)
    TaskWriter("label-studio", "detection", classes, False, "", "vitp test").write(tmp_path / "out", [looked])
    control = ElementTree.parse(tmp_path / "out" / "labels.xml").getroot().find("RectangleLabels")
    assert control is not None
    keys = [node.get("hotkey") for node in control]
    assert keys == [*map(str, range(1, 10)), None, None, None]


def test_configurations_name_the_classes_and_tasks_come_in_order(tmp_path: Path) -> None:
    made = written(tmp_path / "set", "label-studio", "oriented", 1)
    out = tmp_path / "out"
    view = ElementTree.parse(out / "labels.xml").getroot()
    control = view.find("RectangleLabels")
    assert control is not None and control.get("toName") == "image" and control.get("canRotate") == "true"
    assert [node.get("value") for node in control] == list(CLASSES)
    tasks = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["uncertainty"] for task in tasks] == [0.5, 0.25, 0.0]
    assert all(task["data"]["image"].startswith("/data/local-files/?d=") for task in tasks)
    first = tasks[0]["predictions"][0]
    assert first["score"] == 0.5 and all(0 <= one["score"] <= 1 for one in first["result"])
    assert {one["from_name"] for one in first["result"]} == {control.get("name")}
    rows = (out / "order.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "image,uncertainty,duplicate_of" and rows[1] == f"{made.images[2].name},0.500000,"
    written(tmp_path / "second" / "set", "cvat", "instance", 1)
    labels = json.loads((tmp_path / "second" / "out" / "labels.json").read_text(encoding="utf-8"))
    assert [(one["name"], one["type"]) for one in labels] == [
        *((name, "mask") for name in CLASSES),
        (NOTHING_HERE, "tag"),
    ]


def test_uncertainty_is_what_each_task_says() -> None:
    even, sure = torch.full((4,), 0.25), torch.tensor([1.0, 0, 0, 0])
    assert uncertainty(Prediction(probabilities_C=even)) == pytest.approx(1)
    assert uncertainty(Prediction(probabilities_C=sure)) == 0
    assert uncertainty(
        Prediction(probabilities_C=torch.tensor([0.9, 0.4])), multi_label=True
    ) == pytest.approx(0.8)
    boxes = Prediction(scores_N=torch.tensor([0.99, 0.55, 0.02]))
    assert uncertainty(boxes) == pytest.approx(0.9)
    assert uncertainty(Prediction(scores_N=torch.zeros(0))) == 0
    certain = torch.tensor([[255, 51]], dtype=torch.uint8)
    assert uncertainty(Prediction(semantic_HW=certain, certainty_HW=certain)) == pytest.approx(0.4)


def test_duplicates_go_last_whatever_their_uncertainty(tmp_path: Path) -> None:
    one = picture(tmp_path / "a.png", (80, 60), 1)
    other = picture(tmp_path / "b.png", (80, 60), 2)
    with Image.open(one) as image:
        image.save(tmp_path / "a.jpg", quality=95)
    order = annotation_order([[str(one)], [str(other)], [str(tmp_path / "a.jpg")]], [0.7, 0.1, 0.9])
    assert [(place.number, place.duplicate_of) for place in order] == [(2, None), (1, None), (0, 2)]
    # A pair is a duplicate only where both dates are.
    pairs = [[str(one), str(one)], [str(tmp_path / "a.jpg"), str(other)]]
    assert [place.duplicate_of for place in annotation_order(pairs, [0.5, 0.5])] == [None, None]


def test_an_ellipse_keeps_its_area_and_place() -> None:
    points = as_points(ellipse_ring(50, 40, 20, 5, 90))
    assert area(points) == pytest.approx(np.pi * 100) and points.mean(0) == pytest.approx((50, 40))
    assert np.ptp(points[:, 0]) < 11 and np.ptp(points[:, 1]) > 39
    assert TASK_KEY == "vitp_task"  # stands in files that are already out
