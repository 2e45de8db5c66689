"""Predictions become tasks of annotation tools, and what comes back from these compiles to the same labels."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats import detect_format, read_labels
from vitp.inference.annotation_order import annotation_order, uncertainty
from vitp.inference.annotation_tasks import LookedAt, TaskWriter, check_tool
from vitp.inference.outputs import Named, write_change, write_mask
from vitp.metrics.results import Prediction
from vitp.records.geometry import area, as_points
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.records.regions import rasterise
from vitp.records.tool_shapes import (
    NOTHING_HERE,
    TASK_KEY,
    centred_corners,
    decode_brush,
    decode_cvat_mask,
    ellipse_ring,
    encode_brush,
    rectangle_in_view,
    rectangle_of,
)

TOOLS = ("label-studio", "cvat", "coco")
CLASSES = ("ship", "tank farm", "crane & quay")
SIZES = ((90, 70), (64, 64), (33, 120))


def picture(path: Path, size: tuple[int, int], seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A mask of rectangles with holes, and islands in the holes."""
    mask = np.zeros((height, width), bool)
    for step in range(6):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        bottom, right = top + rng.integers(2, height // 2), left + rng.integers(2, width // 2)
        mask[top:bottom, left:right] = step % 3 != 2
    return mask


def found_of(task: str, rng: np.random.Generator, size: tuple[int, int]) -> Prediction:
    """What a model might find: boxes on a grid of their own, so that no two are equal."""
    width, height = size
    count = int(rng.integers(1, 6))
    scores, labels = torch.rand(count), torch.from_numpy(rng.integers(0, 3, count))
    if task == "detection":
        at = torch.from_numpy(rng.uniform(0, 0.5, (count, 2)) * size)
        sides = torch.from_numpy(rng.uniform(0.05, 0.45, (count, 2)) * size)
        return Prediction(torch.cat([at, at + sides], 1).float(), None, scores, labels)
    if task == "oriented":
        quads = []
        for angle in rng.uniform(0, 360, count):
            (x, y), half = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(2, 12, 2)
            quads.append(centred_corners(x - half[0], y - half[1], x + half[0], y + half[1], float(angle)))
        return Prediction(None, torch.tensor(quads, dtype=torch.float32), scores, labels)
    if task == "instance":
        masks = torch.from_numpy(np.stack([blob(rng, height, width) for _ in range(count)]))
        return Prediction(torch.zeros(count, 4), None, scores, labels, masks)
    if task in ("segmentation", "change"):
        values = blob(rng, height, width).astype(np.uint8)
        if task == "segmentation":
            values[blob(rng, height, width)] = 2
        return Prediction(semantic_HW=torch.from_numpy(values))
    return Prediction(probabilities_C=torch.from_numpy(rng.dirichlet(np.ones(3))))


@dataclass
class Written:
    """Tasks of a tool in a folder of images, and what they say."""

    root: Path
    tool: str
    images: list[Path]
    predictions: list[Prediction]

    def labels(self, **options: Any) -> dict[str, LabelledImage]:
        read = read_labels("auto", self.root, val=0, test=0, **options)
        return {item.id.rpartition("/")[2]: item for item in read.items}


def written(root: Path, tool: str, task: str, seed: int, *, several: bool = False) -> Written:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    classes = {"segmentation": ("background", *CLASSES), "change": ("unchanged", "changed")}.get(
        task, CLASSES
    )
    images, predictions, looked = [], [], []
    for number, size in enumerate(SIZES):
        image = picture(root / "images" / f"{number} ü&.png", size, seed + number)
        dates = [str(image)]
        if task == "change":
            dates.append(str(picture(root / "later" / f"l{number}.png", size, seed + 10 + number)))
        prediction, class_map = found_of(task, rng, size), None
        if prediction.semantic_HW is not None:
            class_map = root.parent / "maps" / f"{number}.png"
            class_map.parent.mkdir(exist_ok=True)
            (write_change if task == "change" else write_mask)(class_map, prediction.semantic_HW)
        named = Named(f"{number}", str(image), size[::-1], prediction)
        images.append(image)
        predictions.append(prediction)
        looked.append(LookedAt(named, tuple(dates), number / 4, class_map))
    writer = TaskWriter(tool, task, classes, several, "", "vitp test")  # type: ignore[arg-type]
    writer.write(root.parent / "out", looked)
    back(root, root.parent / "out", tool)
    return Written(root, tool, images, predictions)


def back(root: Path, out: Path, tool: str) -> None:
    """What an annotator does who accepts everything: the export lies beside the images."""
    if tool == "label-studio":
        tasks = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
        for number, task in enumerate(tasks):
            task |= {
                "id": number,
                "annotations": [{"id": number, "result": task["predictions"][0]["result"]}],
            }
        (root / "project.json").write_text(json.dumps(tasks), encoding="utf-8")
    else:
        name = "annotations.xml" if tool == "cvat" else "annotations.json"
        (root / name).write_bytes((out / name).read_bytes())


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


# --- the order


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


# --- Label Studio


def region(kind: str, name: str | None, **value: Any) -> dict[str, Any]:
    labels = {} if name is None else {kind: [name]}
    return {
        "id": f"r{len(value)}",
        "type": kind,
        "from_name": "label",
        "to_name": "image",
        "value": {**value, **labels},
    }


def box(name: str | None = "ship", x: float = 10, **more: float) -> dict[str, Any]:
    return region(
        "rectanglelabels", name, **{"x": x, "y": 20, "width": 30, "height": 40, "rotation": 0} | more
    )


def label_studio(tmp_path: Path, *tasks: Any, **options: Any) -> LabelledSet:
    """Read tasks, each a list of annotations (lists of results, or whole ones), of an image of 200 by 100 pixels."""
    rows = []
    for number, made in enumerate(tasks):
        picture(tmp_path / "upload" / f"i{number}.png", (200, 100), number)
        own = [one if isinstance(one, dict) else {"result": one} for one in made]
        data = {"image": f"/data/upload/3/0a1b2c3d-i{number}.png"}
        rows.append(
            {"id": number, "data": data, "annotations": own, "predictions": [{"result": [box("wrong")]}]}
        )
    (tmp_path / "project-1-at-2026.json").write_text(json.dumps(rows), encoding="utf-8")
    return read_labels("auto", tmp_path, val=0, test=0, **options)


def test_skipped_tasks_are_unlabelled_and_submitted_empty_ones_are_empty(tmp_path: Path) -> None:
    skipped = {"result": [box()], "was_cancelled": True}
    read = label_studio(tmp_path, [[box()]], [[]], [skipped], [], [skipped, [box(x=50)]])
    assert {item.id: len(item.objects or ()) for item in read.items} == {
        "upload/i0": 1,
        "upload/i1": 0,
        "upload/i4": 1,
    }
    assert "left out as unlabelled, not as empty: 1 skipped, 1 without an annotation" in read.understood
    assert read.items[0].objects is not None and read.items[0].objects[0].box == (20, 20, 80, 60)
    assert read.object_classes == ("ship",)


def test_a_set_of_which_nothing_is_annotated_is_refused_and_says_why(tmp_path: Path) -> None:
    skipped = {"result": [box()], "was_cancelled": True}
    with pytest.raises(DataError, match="no image is labelled: 2 without an annotation, 1 skipped"):
        label_studio(tmp_path / "exported", [], [], [skipped])
    picture(tmp_path / "images" / "a.png", (200, 100), 1)
    rows = [{"data": {"image": "images/a.png"}, "predictions": [{"result": [box()]}]}]
    tasks = tmp_path / "tasks.json"
    tasks.write_text(json.dumps(rows), encoding="utf-8")
    for kind, path in (
        ("auto", tmp_path),
        ("auto", tasks),
        ("label-studio", tmp_path),
        ("label-studio", tasks),
    ):
        with pytest.raises(DataError, match=r"tasks\.json: holds tasks .* of which none is annotated"):
            read_labels(kind, path)
    # Beside labels of another form such a file is no obstacle.
    for number, (split, name) in enumerate(itertools.product(("train", "test"), ("cat", "dog"))):
        picture(tmp_path / "set" / split / name / f"i{number}.png", (20, 10), number)
    shutil.copy(tasks, tmp_path / "set" / "tasks.json")
    assert read_labels("auto", tmp_path / "set").scene_classes == ("cat", "dog")


def test_two_annotators_who_differ_are_refused_and_named(tmp_path: Path) -> None:
    by = [{"result": [box(x=x)], "completed_by": {"email": name}, "updated_at": at} for x, name, at in
          ((10, "ann", "2026-01-02"), (30, "bob", "2026-01-01"))]  # fmt: skip
    with pytest.raises(
        DataError, match=r"2 different annotations, of ann and bob; -o several=latest .* -o annotator=WHO"
    ):
        label_studio(tmp_path, by)
    for options, left in (
        ({"several": "latest"}, 20),
        ({"several": "first"}, 60),
        ({"annotator": "bob"}, 60),
    ):
        (item,) = label_studio(tmp_path, by, **options).items
        assert item.objects is not None and item.objects[0].box[0] == left
    (item,) = label_studio(tmp_path, [by[0], by[1] | {"ground_truth": True}]).items
    assert item.objects is not None and item.objects[0].box[0] == 60
    (item,) = label_studio(tmp_path, [by[0], by[0] | {"completed_by": 3}]).items  # they agree
    assert item.objects is not None and len(item.objects) == 1
    assert len(label_studio(tmp_path, by, [[box()]], annotator="bob").items) == 1


def test_what_cannot_be_used_is_never_nothing(tmp_path: Path) -> None:
    point = region("keypointlabels", "ship", x=5, y=5, width=0.3)
    other_size = box() | {"original_width": 100, "original_height": 100}
    turned = box() | {"image_rotation": 90}
    read = label_studio(
        tmp_path, [[box()]], [[box(), point]], [[other_size]], [[turned]], [[box(None), box(x=60)]],
        [[region("rectanglelabels", None, x=1, y=1, width=9, height=9) | {"value": {
            "x": 1, "y": 1, "width": 9, "height": 9, "rectanglelabels": ["a", "b"]}}]],
    )  # fmt: skip
    items = {item.id[-1]: item for item in read.items}
    assert set(items) == {"0", "4", "5"}
    assert len(items["4"].objects or ()) == len(items["4"].ignored) == 1
    assert items["5"].objects == () and len(items["5"].ignored) == 1
    for said in (
        "a point has no area",
        "100×100, and this one has 200×100",
        "turned by 90°",
        "several classes (a, b)",
    ):
        assert any(said in line for line in read.findings), said


def test_shapes_of_label_studio(tmp_path: Path) -> None:
    mask = np.zeros((100, 200), bool)
    mask[10:30, 40:90] = True
    mask[15:20, 50:60] = False
    shapes = [
        region("polygonlabels", "a", points=[[10, 10], [20, 10], [20, 30]], closed=True),
        region("ellipselabels", "b", x=50, y=50, radiusX=10, radiusY=10, rotation=0),
        region("brushlabels", "c", format="rle", rle=encode_brush(mask)),
        box("d", rotation=90, x=60),
    ]
    (item,) = label_studio(tmp_path, [shapes], classes="a,b,c,d").items
    polygon, ellipse, brush, turned = item.objects or ()
    assert polygon.polygons == ((20, 10, 40, 10, 40, 30),)
    assert area(as_points(ellipse.polygons[0])) == pytest.approx(np.pi * 20 * 10)
    assert (rasterise(brush.polygons, (100, 200), brush.holes) == mask).all()
    # 60 px wide and 40 px high, turned by a quarter about (120, 20): to the left of that corner, and down.
    assert turned.box == pytest.approx((80, 20, 120, 80)) and turned.quad is not None


def test_labels_of_their_own_belong_to_their_region(tmp_path: Path) -> None:
    value = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0}
    pair = [
        {"id": "q", "type": "rectangle", "value": value},
        {"id": "q", "type": "labels", "value": {**value, "labels": ["ship"]}},
        {"id": "q", "type": "choices", "from_name": "seen", "value": {**value, "choices": ["half"]}},
        {"id": "z", "type": "textarea", "from_name": "text", "value": {"text": ["A  ship at a quay."]}},
    ]
    (item,) = label_studio(tmp_path, [pair]).items
    assert item.objects is not None and [label.category for label in item.objects] == ["ship"]
    assert not item.ignored and item.scene is None and item.captions == ("A ship at a quay.",)


def choice(name: str, control: str = "kind") -> dict[str, Any]:
    return {"id": name, "type": "choices", "from_name": control, "value": {"choices": [name]}}


def test_choices_are_classes_and_two_controls_are_two_readings(tmp_path: Path) -> None:
    read = label_studio(tmp_path, [[choice("port")]], [[choice("sea")]], [[]])
    assert {item.id[-1]: item.scene for item in read.items} == {"0": "port", "1": "sea"}
    assert "left out as unlabelled, not as empty: 1 without a label" in read.understood
    both = [choice("port"), choice("sharp", "quality")]
    with pytest.raises(DataError, match="choices are made in kind and quality; -o choices=NAME"):
        label_studio(tmp_path, [both])
    read = label_studio(tmp_path, [both], [[choice("sea"), choice("dim", "quality")]], choices="kind")
    assert {item.scene for item in read.items} == {"port", "sea"}


def test_json_min_says_the_same(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"i{number}.png", (200, 100), number)
    own = {
        "x": 10,
        "y": 20,
        "width": 30,
        "height": 40,
        "rotation": 0,
        "original_width": 200,
        "original_height": 100,
    }
    common = {"annotator": 1, "annotation_id": 5, "lead_time": 3.2}
    rows = [
        {
            "image": "/data/local-files/?d=a/i0.png",
            "id": 1,
            "label": [{**own, "rectanglelabels": ["ship"]}],
            **common,
        },
        {"image": "s3://bucket/i1.png", "id": 2, **common},
        {
            "image": "i2.png",
            "uncertainty": 0.3,
            "id": 3,
            "label": [{**own, "rectanglelabels": ["tank"]}],
            **common,
        },
    ]
    (tmp_path / "min.json").write_text(json.dumps(rows))
    read = read_labels("auto", tmp_path, val=0, test=0)
    assert detect_format(tmp_path) == "label-studio"
    assert [[label.category for label in item.objects or ()] for item in read.items] == [
        ["ship"],
        [],
        ["tank"],
    ]
    (tmp_path / "min.json").write_text(json.dumps([rows[0], rows[0] | {"label": [], "annotator": 2}]))
    with pytest.raises(DataError, match="2 different annotations, of 1 and 2"):
        read_labels("auto", tmp_path)
    kinds: tuple[Any, ...] = ("sea", {"choices": ["sea", "port"]}, [{"choices": ["port"]}])
    rows = [{"image": f"i{n}.png", "id": n, "kind": kind, **common} for n, kind in enumerate(kinds)]
    (tmp_path / "min.json").write_text(json.dumps(rows))
    read = read_labels("auto", tmp_path, val=0, test=0)
    assert [item.tags for item in read.items] == [("sea",), ("sea", "port"), ("port",)]


def test_names_find_their_images_or_are_refused(tmp_path: Path) -> None:
    for folder in ("north", "south"):
        picture(tmp_path / folder / "i.png", (20, 10), len(folder))
    rows = [
        {
            "id": 1,
            "data": {"image": "https://x.org/deep/north/i.png?v=3"},
            "annotations": [{"result": [box()]}],
        }
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (item,) = read_labels("auto", tmp_path, val=0, test=0).items
    assert item.id == "north/i"
    rows[0]["data"] = {"image": "i.png"}
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"i\.png may be north/i\.png or south/i\.png"):
        read_labels("auto", tmp_path)
    rows[0]["data"] = {"image": "north/i.png", "other": "south/i.png"}
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match='images under "image" and "other"; -o image=KEY'):
        read_labels("auto", tmp_path)
    assert len(read_labels("auto", tmp_path, image="other", val=0, test=0).items) == 1


def tasks_of(tmp_path: Path, *rows: Any, **options: Any) -> LabelledSet:
    """Read tasks as they are, of the images i0.png and i1.png."""
    for number in range(2):
        if not (tmp_path / f"i{number}.png").exists():
            picture(tmp_path / f"i{number}.png", (200, 100), number)
    (tmp_path / "p.json").write_text(json.dumps(rows))
    return read_labels("auto", tmp_path, val=0, test=0, **options)


def done(*results: Any, image: str = "i0.png", **more: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": list(results), **more}]}


def test_tasks_of_one_image_count_once_or_are_refused(tmp_path: Path) -> None:
    other = done(box(), image="/data/upload/3/0a1b2c3d-i1.png")
    for again in (done(box()), done(box(), image="/data/upload/1/0a1b2c3d-i0.png") | {"id": 7}):
        read = tasks_of(tmp_path, done(box()), other, again)
        assert [len(item.objects or ()) for item in read.items] == [
            1,
            1,
        ] and "objects: ship 2" in read.understood
        assert "p.json:3: is of the same image as p.json:1; counted once" in read.findings
    for differing in (done(), done(box(x=50))):
        with pytest.raises(
            DataError, match=r"of somebody in p\.json:1 and somebody in p\.json:2.*-o several"
        ):
            tasks_of(tmp_path, done(box()), differing)
    (item,) = tasks_of(tmp_path, done(box()), done(box(x=50), ground_truth=True)).items
    assert item.objects is not None and item.objects[0].box[0] == 100
    for waiting in (done(was_cancelled=True), {**done(), "annotations": []}, {"data": {"image": "i0.png"}}):
        for rows in ((done(box()), waiting), (waiting, done(box()))):
            (item,) = tasks_of(tmp_path, *rows).items
            assert len(item.objects or ()) == 1


def test_a_list_of_tasks_is_told_by_all_of_them(tmp_path: Path) -> None:
    for bare in ({"data": {"image": "i1.png"}}, {"data": {"image": "i1.png"}, "annotations": None}):
        for rows in ((done(box()), bare), (bare, done(box()))):
            read = tasks_of(tmp_path, *rows)
            assert [item.id for item in read.items] == ["i0"]
            assert f"p.json:{rows.index(bare) + 1}: has no annotations; unlabelled" in read.findings
    for odd in (3, "task", None, [], {"id": 2}, {"data": "i1.png", "annotations": []}):
        with pytest.raises(DataError, match=r"p\.json:2: is no task.*remove it, or export"):
            tasks_of(tmp_path, done(box()), odd)
    with pytest.raises(DataError, match=r"p\.json:2: names no image: its data holds nothing; add the"):
        tasks_of(tmp_path, done(box()), {**done(box()), "data": {}})
    with pytest.raises(DataError, match='names no image under "pic": its data holds "image"; add'):
        tasks_of(tmp_path, done(box()), image="pic")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"x": 1, "y": 1, "height": 5}, "it has no width"),
        (
            {"x": 1, "y": 1, "width": 5, "height": float("inf")},
            "its height is inf, which is no finite number",
        ),
        ({"x": "left", "y": 1, "width": 5, "height": 5}, "its x is left, which is no finite number"),
        ({"x": 1, "y": 1, "width": 5, "height": 5, "rotation": []}, "its rotation is [], which is"),
        ({"x": 1, "y": 1, "radiusX": 5}, "it has no radiusY"),
        ({"points": [[1, 1], [2], 3]}, "its points aren't three or more of x,y"),
        ({"points": [[1, 1], [2, float("nan")], [3, 3]]}, "y of a point is nan"),
        ({"rle": [1, [2]], "format": "rle"}, "a brush is a list of bytes"),
    ],
)
def test_what_a_region_lacks_is_said_in_words(tmp_path: Path, value: dict[str, Any], said: str) -> None:
    broken = {"type": "labels", "value": {**value, "labels": ["ship"]}}
    read = tasks_of(tmp_path, done(box()), done(broken, image="i1.png"))
    assert [item.id for item in read.items] == ["i0"]
    assert any(f"p.json:2: result 1: ship can't be understood: {said}" in line for line in read.findings)
    assert not any("Error" in line for line in read.findings)


STRANGE = '"Drache" isn\'t among the classes that the tasks were made with ({}): a typing error?'


@pytest.mark.parametrize("tool", TOOLS)
def test_a_class_that_the_tasks_do_not_know_is_said(tmp_path: Path, tool: str) -> None:
    made = written(tmp_path / "set", tool, "oriented", 1)
    (path,) = (*made.root.glob("*.json"), *made.root.glob("*.xml"))
    text = path.read_text(encoding="utf-8")
    assert not any("typing error" in line for line in read_labels("auto", made.root).understood)
    if tool == "label-studio":
        rows = json.loads(text)
        rows[0]["annotations"][0]["result"][0]["value"]["rectanglelabels"] = ["Drache"]
        text = json.dumps(rows)
    elif tool == "cvat":
        text = text.replace('box label="ship"', 'box label="Drache"')
    else:
        content = json.loads(text)
        content["categories"].append({"id": 9, "name": "Drache"})
        content["annotations"][0]["category_id"] = 9
        text = json.dumps(content)
    path.write_text(text, encoding="utf-8")
    read = read_labels("auto", made.root, val=0, test=0)
    assert STRANGE.format(", ".join(CLASSES)) in read.understood and "Drache" in read.object_classes
    if (
        tool == "label-studio"
    ):  # older tasks don't list the classes: labels.xml does, and else what was predicted
        for row in rows:
            del row["data"]["vitp_classes"]
        path.write_text(json.dumps(rows))
        assert any(
            "Drache" in line and "typing error" in line for line in read_labels("auto", made.root).understood
        )
        (made.root / "labels.xml").write_bytes((tmp_path / "out" / "labels.xml").read_bytes())
        assert STRANGE.format(", ".join(CLASSES)) in read_labels("auto", made.root).understood


def test_turned_boxes_far_outside_are_cut_or_left_out(tmp_path: Path) -> None:
    near = centred_corners(-5, 20, 25, 40, 30)  # reaches over the edge: stays
    far = centred_corners(-400, 30, 420, 50, 5)
    centre = centred_corners(-60, 30, 40, 50, 20)  # its centre is outside
    gone = centred_corners(-80, 10, -30, 30, 45)
    for quad in (far, centre):
        cut = as_points(rectangle_in_view(quad, 100, 80) or ())
        assert 0 <= cut.mean(0)[0] <= 100 and 0 <= cut.mean(0)[1] <= 80 and np.abs(cut).max() < 160
        own, turned = rectangle_of(quad), rectangle_of(cut.reshape(-1).tolist())
        assert turned[4] == pytest.approx(own[4]) and turned[2] < own[2] and turned[3] <= own[3] + 1e-6
    image = picture(tmp_path / "i.png", (100, 80), 1)
    quads = torch.tensor([near, far, centre, gone], dtype=torch.float32)
    found = Prediction(None, quads, torch.rand(4), torch.zeros(4, dtype=torch.long))
    looked = LookedAt(Named("i", str(image), (80, 100), found), (str(image),), 0.5)
    for tool in TOOLS:
        writer = TaskWriter(tool, "oriented", CLASSES, False, "", "v")  # type: ignore[arg-type]
        assert "1 objects that lie outside of their image are left out" in writer.write(
            tmp_path / tool, [looked]
        )
    (task,) = json.loads((tmp_path / "label-studio" / "tasks.json").read_text())
    values = [one["value"] for one in task["predictions"][0]["result"]]
    assert len(values) == 3 and all(-60 < value[key] < 160 for value in values for key in "xy")
    assert rectangle_in_view(near, 100, 80) == pytest.approx(near)


@pytest.mark.parametrize(
    "stream", [[], [0, 0, 0, 8], encode_brush(np.ones((3, 3), bool)), [1.5], [300] * 9, "text", None]
)
def test_a_broken_brush_is_a_lost_label(tmp_path: Path, stream: Any) -> None:
    good = encode_brush(np.eye(100, 200, dtype=bool))
    assert (decode_brush(good, 100, 200) == np.eye(100, 200, dtype=bool)).all()
    read = label_studio(tmp_path, [[box()]], [[region("brushlabels", "ship", format="rle", rle=stream)]])
    assert [item.id for item in read.items] == ["upload/i0"]


# --- CVAT

HEAD = "<?xml version='1.0'?>\n<annotations><version>1.1</version><meta><task><labels>{}</labels></task></meta>{}</annotations>"


def cvat(tmp_path: Path, *images: str, labels: str = "", **options: Any) -> LabelledSet:
    nodes = []
    for number, shapes in enumerate(images):
        picture(tmp_path / "images" / f"i{number}.png", (200, 100), number)
        nodes.append(f'<image id="{number}" name="i{number}.png" width="200" height="100">{shapes}</image>')
    (tmp_path / "annotations.xml").write_text(HEAD.format(labels, "".join(nodes)), encoding="utf-8")
    return read_labels("auto", tmp_path, val=0, test=0, **options)


SHIP = '<box label="ship" xtl="20" ytl="20" xbr="80" ybr="60"/>'


def test_an_image_without_shapes_has_two_readings_in_cvat(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"1 image \(such as i1.png\) have no shape.*-o empty=nothing or -o empty=unlab"
    ):
        cvat(tmp_path, SHIP, "")
    assert [len(item.objects or ()) for item in cvat(tmp_path, SHIP, "", empty="nothing").items] == [1, 0]
    assert len(cvat(tmp_path, SHIP, "", empty="unlabelled").items) == 1
    marked = cvat(tmp_path, SHIP, "", f'<tag label="{NOTHING_HERE}"/>')
    assert {item.id: len(item.objects or ()) for item in marked.items} == {"images/i0": 1, "images/i2": 0}
    assert not marked.scene_classes


def test_shapes_of_cvat(tmp_path: Path) -> None:
    shapes = (
        SHIP
        + '<box label="turned" xtl="60" ytl="40" xbr="100" ybr="60" rotation="90.0"/>'
        + '<polygon label="area" points="10,10;20,10;20,30"/>'
        + '<ellipse label="tank" cx="50" cy="50" rx="10" ry="20"/>'
        + '<mask label="oil" rle="1, 2, 2, 1" left="5" top="6" width="3" height="2"/>'
    )
    (item,) = cvat(tmp_path, shapes, classes="ship,turned,area,tank,oil").items
    ship, turned, polygon, ellipse, oil = item.objects or ()
    assert ship.box == (20, 20, 80, 60) and ship.quad is None
    assert turned.box == pytest.approx((70, 30, 90, 70))
    assert rectangle_of(turned.quad or ())[2:] == pytest.approx((40, 20, 90))
    assert polygon.box == (10, 10, 20, 30) and area(as_points(ellipse.polygons[0])) == pytest.approx(
        np.pi * 200
    )
    assert np.argwhere(rasterise(oil.polygons, (100, 200), oil.holes)).tolist() == [[6, 6], [6, 7], [7, 7]]
    assert (decode_cvat_mask("0, 6", (0, 0, 3, 2), 2, 3) == 1).all()


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ('<polyline label="ship" points="1,1;5,5;9,1"/>', "a polyline has no area"),
        ('<points label="ship" points="1,1"/>', "a points has no area"),
        ('<cuboid label="ship" xtl1="1"/>', "a cuboid has no area"),
        (
            '<mask label="ship" rle="1, 9" left="5" top="6" width="3" height="2"/>',
            "the runs cover 10 pixels of 6",
        ),
        ('<mask label="ship" rle="0, 6" left="199" top="6" width="3" height="2"/>', "isn't in the image"),
        ('<box label="ship" xtl="nan" ytl="1" xbr="3" ybr="4"/>', "xtl is nan"),
        ('<box label="ship" ytl="1" xbr="3" ybr="4"/>', "ship can't be understood: it has no xtl"),
        (
            '<box label="ship" xtl="one" ytl="1" xbr="3" ybr="4"/>',
            "its xtl is one, which is no finite number",
        ),
        ('<polygon label="ship" points="1,1;2,a;3,3"/>', "y of a point is a, which is no finite number"),
        (
            '<mask label="ship" rle="0, x" left="5" top="6" width="3" height="2"/>',
            "runs aren't whole numbers",
        ),
        ('<polygon label="ship" points="1,1;2"/>', "points aren't three or more"),
    ],
)
def test_shapes_that_cannot_be_used_leave_the_image_unlabelled(tmp_path: Path, shape: str, said: str) -> None:
    read = cvat(tmp_path, SHIP, shape, SHIP)
    assert [item.id for item in read.items] == ["images/i0", "images/i2"]
    assert any(said in line for line in read.findings)


def test_images_of_cvat_that_come_twice(tmp_path: Path) -> None:
    def twice(first: str, second: str, name: str = "i0.png", **options: Any) -> LabelledSet:
        more = f'{first}</image><image id="7" name="{name}" width="200" height="100">{second}'
        return cvat(tmp_path, more, SHIP, **options)

    noted = SHIP.replace("<box ", '<box source="auto" z_order="2" ')
    for second in (SHIP, noted):
        read = twice(SHIP, second)
        assert [len(item.objects or ()) for item in read.items] == [
            1,
            1,
        ] and "objects: ship 2" in read.understood
        said = "annotations.xml:image 7: is of the same image as annotations.xml:image 0; counted once"
        assert said in read.findings
    said = r"image 7: says something else of i0\.png than annotations\.xml:image 0; keep one"
    for second, options in ((SHIP.replace("20", "30"), {}), ("", {}), ("", {"empty": "nothing"})):
        with pytest.raises(DataError, match=said):
            twice(SHIP, second, **options)
    for pair in ((SHIP, ""), ("", SHIP)):
        assert [len(item.objects or ()) for item in twice(*pair, empty="unlabelled").items] == [1, 1]


def test_tracks_other_sizes_and_subsets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'holds tracks, .* export it as "CVAT for images 1.1"'):
        cvat(tmp_path, SHIP + "</image><track id='0' label='ship'/><image id='9' name='i0.png'>")
    cvat(tmp_path, SHIP, SHIP, SHIP)
    path = tmp_path / "annotations.xml"
    text = path.read_text().replace('i1.png" width="200"', 'i1.png" width="201"')
    text = text.replace('name="i2.png"', 'name="i2.png" subset="Validation"').replace(
        'name="i0.png"', 'name="i0.png" subset="Train"'
    )
    path.write_text(text)
    read = read_labels("cvat", tmp_path)
    assert {item.id: item.split for item in read.items} == {"images/i0": "train", "images/i2": "val"}
    assert any("says 201×100 but the image has 200×100" in line for line in read.findings)


def test_a_set_of_cvat_of_which_nothing_is_labelled_is_refused_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image is labelled: 2 without a label"):
        cvat(tmp_path, "", "", empty="unlabelled")


def test_tags_of_cvat_are_classes(tmp_path: Path) -> None:
    read = cvat(tmp_path, '<tag label="port"/>', '<tag label="sea"/>', "")
    assert {item.id: item.scene for item in read.items} == {"images/i0": "port", "images/i1": "sea"}


# --- what these tools export as COCO and YOLO


def coco(root: Path, rows: list[dict[str, Any]], **more: Any) -> LabelledSet:
    picture(root / "images" / "default" / "a.png", (200, 100), 1)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, **row} for n, row in enumerate(rows)],
        "categories": [{"id": 1, "name": "ship"}],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "instances_default.json").write_text(json.dumps(content))
    return read_labels("auto", root, val=0, test=0, **more)


@pytest.mark.parametrize("angle", [30.0, 120.5, 200, 300, -15])
def test_a_turned_box_of_cvats_coco_is_turned(tmp_path: Path, angle: float) -> None:
    row = {"bbox": [60, 40, 40, 20], "segmentation": [], "iscrowd": 0}
    (item,) = coco(tmp_path, [row | {"attributes": {"occluded": False, "rotation": angle}}]).items
    (label,) = item.objects or ()
    points = as_points(label.quad or ())
    assert points.mean(0) == pytest.approx((80, 50))
    assert rectangle_of(label.quad or ())[2:] == pytest.approx((40, 20, angle % 360))


def test_masks_of_cvats_coco_are_objects_and_crowds_of_others_are_not(tmp_path: Path) -> None:
    counts = [105, 20, 80, 20, 200 * 100 - 225]
    row = {"bbox": [1, 5, 2, 20], "segmentation": {"size": [100, 200], "counts": counts}, "iscrowd": 1}
    (item,) = coco(tmp_path, [row]).items
    assert [label.difficult for label in item.objects or ()] == [True]
    cvats = [row | {"attributes": {"occluded": False}}]
    read = coco(tmp_path, cvats)
    assert [label.difficult for label in read.items[0].objects or ()] == [False]
    assert any("1 masks of CVAT" in line and "-o crowds=difficult" in line for line in read.understood)
    assert [
        label.difficult for label in coco(tmp_path, cvats, crowds="difficult").items[0].objects or ()
    ] == [True]
    assert [label.difficult for label in coco(tmp_path, [row], crowds="objects").items[0].objects or ()] == [
        False
    ]


def test_images_of_coco_that_come_twice_and_broken_places(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (200, 100), 1)
    row = {"category_id": 1, "bbox": [20, 20, 60, 40], "iscrowd": 0}
    images = [{"id": n, "file_name": "a.png", "width": 200, "height": 100} for n in (1, 2)]

    def read(*rows: dict[str, Any], entries: Any = images) -> LabelledSet:
        content = {"images": entries, "categories": [{"id": 1, "name": "ship"}]}
        content["annotations"] = [{"id": n, **one} for n, one in enumerate(rows)]
        (tmp_path / "r.json").write_text(json.dumps(content))
        return read_labels("auto", tmp_path, val=0, test=0)

    both = read(*({**row, "image_id": n} for n in (2, 1)))
    assert [len(item.objects or ()) for item in both.items] == [1]
    said = "r.json:images[1]: a.png is listed under two ids, before in r.json:images[0], with the same annotations"
    assert f"{said}; counted once" in both.findings
    for rows in (
        [row | {"image_id": 1}],
        [row | {"image_id": 1}, row | {"image_id": 2, "bbox": [1, 1, 9, 9]}],
    ):
        with pytest.raises(
            DataError, match=r"images\[1\]: a.png is listed under two ids, before in .*other ann"
        ):
            read(*rows)
    once = read(row | {"image_id": 1}, entries=[images[0], images[0]])
    assert (
        "r.json:images[1]: a.png is listed twice, before in r.json:images[0]; counted once" in once.findings
    )
    picture(tmp_path / "b.png", (200, 100), 2)
    entries = [images[0], {**images[1], "file_name": "b.png"}]
    for broken, why in (
        ({"bbox": None, "segmentation": {"size": [100, 200]}}, "a mask has size [height, width] and counts"),
        ({"bbox": None, "segmentation": {"size": [100, 200], "counts": ["a"]}}, "no list of whole numbers"),
        ({"bbox": None, "segmentation": [["a", 1, 2, 3, 4, 5]]}, "an outline is a list of numbers"),
        ({"bbox": None, "segmentation": [[1, 2, 3, 4, 5]]}, "an outline has x without y"),
        ({"attributes": {"rotation": "much"}}, "its rotation is no finite number"),
        ({"bbox": [1, 2, 3, float("inf")]}, "bbox has a coordinate that is not a number"),
    ):
        found = read(row | {"image_id": 1}, row | {"image_id": 2} | broken, entries=entries)
        assert [item.id for item in found.items] == ["a"] and any(why in line for line in found.findings), why


def test_rows_of_yolo_twice_and_with_words(tmp_path: Path) -> None:
    label_studio_yolo(tmp_path, "1 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n")
    read = read_labels("auto", tmp_path, val=0, test=0)
    assert len(read.items[0].objects or ()) == 1 and any(
        "stands there twice" in line for line in read.findings
    )
    (tmp_path / "labels" / "0a1b2c3d-a.txt").write_text("1 0.5 left 0.2 0.4\n")
    with pytest.raises(DataError, match='"left" is no number'):
        read_labels("yolo", tmp_path, val=0, test=0)


def label_studio_yolo(root: Path, rows: str) -> None:
    picture(root / "images" / "0a1b2c3d-a.png", (200, 100), 1)
    (root / "labels").mkdir()
    (root / "labels" / "0a1b2c3d-a.txt").write_text(rows)
    (root / "classes.txt").write_text("ship\ntank\n")
    (root / "notes.json").write_text('{"categories": [{"id": 0, "name": "ship"}], "info": {"year": 2026}}')


def cvat_yolo(root: Path, rows: str) -> None:
    picture(root / "obj_train_data" / "a.png", (200, 100), 1)
    (root / "obj_train_data" / "a.txt").write_text(rows)
    (root / "obj.names").write_text("ship\ntank\n")
    (root / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    (root / "train.txt").write_text("data/obj_train_data/a.png\n")


def ultralytics(root: Path, rows: str) -> None:
    picture(root / "images" / "train" / "a.png", (200, 100), 1)
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text(rows)
    (root / "data.yaml").write_text("names:\n  0: ship\n  1: tank\npath: .\ntrain: train.txt\n")
    (root / "train.txt").write_text("data/images/train/a.png\n")


@pytest.mark.parametrize("layout", [label_studio_yolo, cvat_yolo, ultralytics])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("1 0.5 0.5 0.2 0.4\n", (80, 30, 120, 70)),
        ("0 0.5 0.3 0.6 0.5 0.5 0.7 0.4 0.5\n", (80, 30, 120, 70)),
        ("0 0.4 0.3 0.6 0.3 0.6 0.7\n1 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.3 0.1 0.2\n", (80, 30, 120, 70)),
    ],
)
def test_yolo_of_both_tools_compiles(
    tmp_path: Path, layout: Callable[[Path, str], None], rows: str, expected: tuple[float, ...]
) -> None:
    layout(tmp_path, rows)
    read = read_labels("auto", tmp_path, val=0, test=0)
    (item,) = read.items
    assert item.objects is not None and len(item.objects) == rows.count("\n")
    assert item.objects[0].box == pytest.approx(expected) and read.object_classes[:1] == ("ship",)
    assert (item.objects[0].quad is not None) == (rows.count(" ") == 8)


def test_label_studios_coco_compiles(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "0a1b2c3d-a.png", (200, 100), 1)
    row = {
        "id": 0,
        "image_id": 0,
        "category_id": 0,
        "segmentation": [],
        "bbox": [20.0, 20.0, 60.0, 40.0],
        "ignore": 0,
    }
    content = {
        "images": [{"width": 200, "height": 100, "id": 0, "file_name": "images\\0a1b2c3d-a.png"}],
        "categories": [{"id": 0, "name": "ship"}],
        "annotations": [{**row, "iscrowd": 0, "area": 2400.0}],
        "info": {"year": 2026, "version": "1.0", "contributor": "Label Studio"},
    }
    (tmp_path / "result.json").write_text(json.dumps(content))
    (item,) = read_labels("auto", tmp_path, val=0, test=0).items
    assert item.objects is not None and item.objects[0].box == (20, 20, 80, 60)


def test_an_ellipse_keeps_its_area_and_place() -> None:
    points = as_points(ellipse_ring(50, 40, 20, 5, 90))
    assert area(points) == pytest.approx(np.pi * 100) and points.mean(0) == pytest.approx((50, 40))
    assert np.ptp(points[:, 0]) < 11 and np.ptp(points[:, 1]) > 39
    assert TASK_KEY == "vitp_task"  # stands in files that are already out
