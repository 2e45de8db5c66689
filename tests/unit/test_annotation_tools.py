"""Tasks that come back from Label Studio: what a person did with them, and what can't be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.annotation_toys import CLASSES, TOOLS, picture, written
from vitp.core.errors import DataError
from vitp.data.formats import detect_format, read_labels
from vitp.inference.annotation_tasks import LookedAt, TaskWriter
from vitp.inference.outputs import Named
from vitp.metrics.results import Prediction
from vitp.records.geometry import area, as_points
from vitp.records.labels import LabelledSet
from vitp.records.regions import rasterise
from vitp.records.tool_shapes import (
    centred_corners,
    decode_brush,
    encode_brush,
    rectangle_in_view,
    rectangle_of,
)


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
