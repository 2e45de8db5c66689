"""Files of predictions, read back by the readers of labels and by independent code."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from shapely.geometry import shape

from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.data.formats.pixel_masks import ChangeFile
from vitp.inference.inputs import image_files, unique_names
from vitp.inference.outputs import (
    Named,
    picture,
    regions,
    surest,
    write_change,
    write_coco,
    write_dota,
    write_geojson,
    write_image,
    write_mask,
    write_probabilities,
    write_summary,
)
from vitp.io.images import load_label_pixels
from vitp.metrics.results import Prediction
from vitp.records.rle import decode, decode_counts, encode, encode_counts

ROOT = Path(__file__).parents[2]
CLASSES = ("ship", "car")
SIZE = (24, 32)


def save_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def instances() -> Prediction:
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 2:8, 3:13] = True
    masks[1, 10:20, 15:30] = True
    masks[1, 13:16, 20:24] = False
    return Prediction(
        boxes_N4=torch.tensor([[3.0, 2, 13, 8], [15, 10, 30, 20]]),
        scores_N=torch.tensor([0.9, 0.4]),
        labels_N=torch.tensor([1, 0]),
        masks_NHW=masks,
    )


def test_coco_is_read_back_as_labels(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png")
    named = Named("a", str(image), SIZE, instances())
    write_coco(tmp_path / "predictions.json", [named], CLASSES)
    with pytest.raises(DataError, match='2 of 2 annotations have a "score"'):
        read_labels("coco", tmp_path / "predictions.json", val=0.0)
    # The notes that lie beside it are no annotations.
    (tmp_path / "vitp_predictions.json").write_text('{"format": "vitp-predictions-1", "images": []}')
    labelled = read_labels("auto", tmp_path, val=0.0, scores="labels")
    (item,) = labelled.items
    assert labelled.object_classes == CLASSES and item.objects is not None
    assert [label.category for label in item.objects] == ["car", "ship"]
    assert [label.box for label in item.objects] == [(3, 2, 13, 8), (15, 10, 30, 20)]
    rows = json.loads((tmp_path / "predictions.json").read_text())["annotations"]
    masks = instances().masks_NHW
    assert masks is not None
    for row, mask in zip(rows, masks.numpy(), strict=True):
        height, width = row["segmentation"]["size"]
        # As it is: `loadRes` of COCO's tools takes masks that were found as text alone.
        assert np.array_equal(coco_mask.decode(row["segmentation"]), mask) and row["area"] == mask.sum()
        assert np.array_equal(decode(row["segmentation"]["counts"], height, width), mask)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_page_says_how_to_recount_with_cocos_tools(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = instances()
    assert found.masks_NHW is not None and found.scores_N is not None
    (tmp_path / "found").mkdir()
    write_coco(tmp_path / "found" / "predictions.json", [Named("a", "x/a.png", SIZE, found)], CLASSES)
    masks = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in found.masks_NHW.numpy()]
    truth = [
        # Numbers that aren't those of the predictions: both found objects are there, one of them as another class.
        {"id": n, "image_id": 70, "category_id": category, "iscrowd": 0, "area": float(coco_mask.area(mask))}
        | {
            "bbox": coco_mask.toBbox(mask).tolist(),
            "segmentation": {**mask, "counts": mask["counts"].decode()},
        }
        for n, category, mask in zip((5, 6), (30, 30), masks, strict=True)
    ]
    images = [{"id": 70, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}]
    categories = [{"id": 40, "name": CLASSES[1]}, {"id": 30, "name": CLASSES[0]}]
    value = {"images": images, "annotations": truth, "categories": categories}
    (tmp_path / "labels.json").write_text(json.dumps(value))
    page = (ROOT / "docs" / "tasks" / "detection.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    if kind == "segm":  # as its comment says
        code = code.replace('"bbox")', '"segm")').replace("    row[", "    row.pop('bbox'); row[")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    # Of the two objects of one class that class's detection finds one, at precision 1: 51 of 101 recalls.
    assert names["evaluation"].stats[:3] == pytest.approx([51 / 101] * 3)


@given(seed=st.integers(0, 10_000), height=st.integers(1, 9), width=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_run_lengths_are_decoded_to_the_mask(seed: int, height: int, width: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    packed = encode(mask)
    assert np.array_equal(decode(packed["counts"], height, width), mask)
    text = encode_counts(packed["counts"])
    assert text == coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    assert np.array_equal(decode(text, height, width), mask)


@pytest.mark.parametrize(
    "counts", [[0, 700, 3, 40_000, 90_000, 1], [15, 16, 17, 1, 49, 16, 33], [2**31, 1, 0, 2**31]]
)
def test_run_lengths_of_any_size_are_written_as_text(counts: list[int]) -> None:
    assert decode_counts(encode_counts(counts)) == counts


def test_dota_text_is_read_back_as_labels(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.png")
    quads = torch.tensor([[4.0, 2, 12, 6, 10, 10, 2, 6], [20, 5, 30, 5, 30, 15, 20, 15]])
    prediction = Prediction(quads_N8=quads, scores_N=torch.tensor([0.9, 0.8]), labels_N=torch.tensor([0, 1]))
    write_dota(tmp_path / "labelTxt" / "a.txt", Named("a", "a.png", SIZE, prediction), CLASSES)
    labelled = read_labels("auto", tmp_path, val=0.0)
    (item,) = labelled.items
    assert item.objects is not None and [label.category for label in item.objects] == ["ship", "car"]
    assert [label.quad for label in item.objects] == [tuple(row) for row in quads.tolist()]


@pytest.mark.parametrize("kind", ["masks", "quads", "boxes"])
def test_geojson_has_the_area_of_what_it_shows(tmp_path: Path, kind: str) -> None:
    prediction = instances()
    expected = [60.0, 150.0 - 12]
    if kind == "boxes":
        prediction = Prediction(prediction.boxes_N4, None, prediction.scores_N, prediction.labels_N)
        expected = [60.0, 150.0]
    if kind == "quads":
        quads = torch.tensor([[4.0, 2, 12, 6, 10, 10, 2, 6], [20, 5, 30, 5, 30, 15, 20, 15]])
        prediction = Prediction(None, quads, prediction.scores_N, prediction.labels_N)
        expected = [40.0, 100.0]
    write_geojson(tmp_path / "a.geojson", Named("a", "a.png", SIZE, prediction), CLASSES)
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection" and content["image"] == "a.png"
    features = content["features"]
    assert [feature["properties"] for feature in features] == [
        {"class": "car", "score": 0.9},
        {"class": "ship", "score": 0.4},
    ]
    polygons = [shape(feature["geometry"]) for feature in features]
    assert all(polygon.is_valid for polygon in polygons)
    assert [polygon.area for polygon in polygons] == pytest.approx(expected, abs=1e-6)


def test_geojson_of_class_maps_has_regions_with_holes(tmp_path: Path) -> None:
    semantic_HW = torch.zeros(SIZE, dtype=torch.uint8)
    semantic_HW[2:12, 3:23] = 1
    semantic_HW[5:8, 6:10] = 0
    semantic_HW[20:22, 28:31] = 1
    semantic_HW[0, 31] = 1  # too small to be an outline
    named = Named("a", "a.png", SIZE, Prediction(semantic_HW=semantic_HW))
    write_geojson(tmp_path / "a.geojson", named, ("background", "water"))
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    areas = sorted(shape(feature["geometry"]).area for feature in features)
    assert areas == [6.0, 188.0] and {f["properties"]["class"] for f in features} == {"water"}


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_regions_cover_what_they_outline(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.random((30, 40)).astype(np.float32), (0, 0), 2.5) > 0.5
    total = 0.0
    for rings in regions(mask, smallest=1):
        outer, *holes = rings
        total += cv2.contourArea(outer.astype(np.float32))
        total -= sum(cv2.contourArea(hole.astype(np.float32)) for hole in holes)
        assert shape({"type": "Polygon", "coordinates": rings}).is_valid
    assert total == mask.sum()


def test_masks_keep_their_numbers_and_show_colours(tmp_path: Path) -> None:
    semantic_HW = torch.arange(24 * 32, dtype=torch.int64).reshape(24, 32).remainder(5).to(torch.uint8)
    write_mask(tmp_path / "masks" / "a.png", semantic_HW)
    assert np.array_equal(load_label_pixels(tmp_path / "masks" / "a.png"), semantic_HW.numpy())
    with Image.open(tmp_path / "masks" / "a.png") as shown:
        assert len(np.unique(np.asarray(shown.convert("RGB")).reshape(-1, 3), axis=0)) == 5
    save_image(tmp_path / "images" / "a.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    labelled = read_labels("masks", tmp_path, val=0.0)
    assert labelled.semantic_classes == tuple("abcde") and labelled.items[0].semantic is not None
    assert np.array_equal(labelled.items[0].semantic(), semantic_HW.numpy())
    write_change(tmp_path / "change.png", (semantic_HW == 3).to(torch.uint8))
    assert np.array_equal(ChangeFile(str(tmp_path / "change.png"))(), (semantic_HW == 3).numpy())


def test_tables_name_the_surest_class(tmp_path: Path) -> None:
    rows = [
        Named("a", "a.png", SIZE, Prediction(probabilities_C=torch.tensor([0.2, 0.8]))),
        Named("b", "b, c.png", SIZE, Prediction(probabilities_C=torch.tensor([0.6, 0.4]))),
    ]
    write_probabilities(tmp_path / "t.csv", rows, CLASSES)
    with (tmp_path / "t.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [(row["image"], row["class"], float(row["ship"])) for row in read] == [
        ("a.png", "car", 0.2),
        ("b, c.png", "ship", 0.6),
    ]


def test_only_the_surest_objects_are_written() -> None:
    kept = surest(instances(), 0.5)
    assert kept.scores_N is not None and kept.masks_NHW is not None and kept.boxes_N4 is not None
    assert len(kept.scores_N) == len(kept.masks_NHW) == len(kept.boxes_N4) == 1
    semantic = Prediction(semantic_HW=torch.zeros(2, 2, dtype=torch.uint8))
    assert surest(semantic, 0.5) is semantic


def test_names_are_unique() -> None:
    assert unique_names(["x/a.png", "y/a.jpg", "b.png", "a.tif"]) == ["a", "a-2", "b", "a-3"]
    # The file system takes 255 bytes, also with ".pixels.geojson" behind them; an ä has two.
    long = [f"x/{mark * count}{end}.png" for mark, count in (("a", 240), ("ä", 120)) for end in "12"]
    names = unique_names(long)
    assert len(set(names)) == 4 and max(len(name.encode()) for name in names) == 211
    assert all(name.startswith(path[2:90]) for name, path in zip(names, long, strict=True))


def test_pictures_show_what_was_found() -> None:
    grey = Image.new("RGB", (32, 24), (100, 100, 100))
    before = np.asarray(grey).astype(int)
    drawn = np.asarray(picture(grey, instances(), CLASSES)).astype(int)
    changed = np.abs(drawn - before).sum(-1) > 0
    assert changed[3:7, 5:11].all() and not changed[23, 0]
    semantic_HW = torch.zeros(SIZE, dtype=torch.uint8)
    semantic_HW[4:8] = 1
    painted = np.asarray(picture(grey, Prediction(semantic_HW=semantic_HW), ("background", "b"))).astype(int)
    rows = (np.abs(painted - before).sum(-1) > 0).all(1)
    assert rows.nonzero()[0].tolist() == [4, 5, 6, 7]


def test_each_task_writes_its_files(tmp_path: Path) -> None:
    image = Image.open(save_image(tmp_path / "a.png"))
    objects = instances()
    boxes = Prediction(objects.boxes_N4, None, objects.scores_N, objects.labels_N)
    quads = Prediction(
        objects.boxes_N4,
        torch.tensor([[4.0, 2, 12, 6, 10, 10, 2, 6], [20, 5, 30, 5, 30, 15, 20, 15]]),
        objects.scores_N,
        objects.labels_N,
    )
    classes = Prediction(probabilities_C=torch.tensor([0.3, 0.7]))
    pixels = Prediction(semantic_HW=torch.zeros(SIZE, dtype=torch.uint8))
    expected = {
        "classification": (classes, {"pictures/a.png", "predictions.csv"}),
        "segmentation": (
            pixels,
            {"pictures/a.png", "masks/a.png", "geojson/a.pixels.geojson", "classes.txt"},
        ),
        "change": (pixels, {"pictures/a.png", "label/a.png", "geojson/a.pixels.geojson"}),
        "detection": (
            boxes,
            {"pictures/a.png", "labelTxt/a.txt", "geojson/a.pixels.geojson", "predictions.json"},
        ),
        "instance": (
            objects,
            {"pictures/a.png", "labelTxt/a.txt", "geojson/a.pixels.geojson", "predictions.json"},
        ),
        "oriented": (
            quads,
            {"pictures/a.png", "labelTxt/a.txt", "geojson/a.pixels.geojson", "predictions.json", "Task1.zip"},
        ),
    }
    for task, (prediction, files) in expected.items():
        named = Named("a", "a.png", SIZE, prediction)
        write_image(tmp_path / task, task, named, CLASSES, image)
        write_summary(tmp_path / task, task, [named], CLASSES)
        written = {str(p.relative_to(tmp_path / task)) for p in (tmp_path / task).rglob("*") if p.is_file()}
        assert written == files, task


@pytest.mark.parametrize(
    ("image", "classes"),
    [("a b", ("ship", "plane")), ("a", ("storage tank", "plane")), ("a", ("ship", "plane"))],
)
def test_names_that_no_submission_can_hold_cost_the_submission_alone(
    tmp_path: Path, image: str, classes: tuple[str, ...]
) -> None:
    quads = torch.tensor([[10.0, 5, 30, 8, 28, 20, 8, 17]])
    found = Prediction(quads_N8=quads, scores_N=torch.tensor([0.5]), labels_N=torch.tensor([0]))
    line = write_summary(tmp_path, "oriented", [Named(image, f"{image}.png", (40, 40), found)], classes)
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert content["categories"][0]["name"] == classes[0]
    assert content["annotations"][0]["bbox"] == [8.0, 5.0, 22.0, 15.0]
    spaced = " " in image or " " in classes[0]
    assert (tmp_path / "Task1.zip").exists() is not spaced
    assert (line is not None and "no Task1.zip" in line) is spaced


def test_a_folder_whose_folders_hold_the_images_names_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        image_files([tmp_path])
    assert caught.value.fix == "name a folder of images or volumes"
    (tmp_path / "ships").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "ships" / "a.png")
    with pytest.raises(DataError) as caught:
        image_files([tmp_path])
    assert caught.value.fix == f"name its folders, as in {tmp_path / 'ships'}"
    assert image_files([tmp_path / "ships"]) == [str(tmp_path / "ships" / "a.png")]
