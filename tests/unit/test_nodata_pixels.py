"""Pixels of maps that hold nothing: no class is learned or scored where `vitp predict` writes none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from tests.map_models import Brighter, BrightestBand, channels_of, write_raster
from tests.map_toys import BANDS, WINDOWS, blocks, read
from vitp.data.batches import ShuffledImages
from vitp.data.nodata import nodata_note
from vitp.data.seen import PICTURES, SeenBands
from vitp.inference.prediction_files import predict_files
from vitp.objectives.dense import dense_batches
from vitp.records.channels import Channels
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet
from vitp.tasks.base import InputSize, TestSettings
from vitp.tasks.batches import LabelledSamples, task_batches
from vitp.tasks.data import LabelReader, label_reader
from vitp.tasks.label_notes import nodata_notes
from vitp.tasks.semantic import evaluate_pixels

SIDE = 40
CLASSES = ("background", "water", "wood")


class Filled:
    """A mask of one class."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self) -> np.ndarray:
        return np.full((SIDE, SIDE), self.value, np.uint8)


def labelled_as(image: Path, channels: Channels | None = None) -> LabelledSet:
    """Return an image whose mask is of one class everywhere."""
    item = LabelledImage(image.stem, str(image), SIDE, SIDE, semantic=Filled(1))
    return LabelledSet("fields", [item], semantic_classes=CLASSES, channels=channels)


def raster(kind: str, path: Path) -> tuple[Path, Channels | None]:
    """Write a raster whose first seven rows hold nothing, in one of the ways in which a file says so."""
    values, channels = blocks(SIDE, SIDE, empty=7), channels_of(*BANDS)
    if kind == "nan":
        floats = np.where(values == 0, np.float32(np.nan), values).astype(np.float32)
        return write_raster(path, floats, names=BANDS), channels
    if kind == "tag":
        return write_raster(path, values, nodata=0, names=BANDS), channels
    eight = (values // 4).astype(np.uint8)
    if kind == "colours":
        return write_raster(path, eight, nodata=0), None
    assert kind == "mask"
    write_raster(path, np.maximum(eight, 1))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask((values[0] > 0).astype(np.uint8) * 255)
    return path, None


@pytest.mark.parametrize("kind", ["nan", "tag", "colours", "mask"])
def test_no_class_counts_where_a_prediction_has_none(tmp_path: Path, kind: str) -> None:
    image, channels = raster(kind, tmp_path / "scene.tif")
    model = BrightestBand(CLASSES, channels)
    predict_files(model, [image], tmp_path / "out", WINDOWS)
    nothing_HW = read(tmp_path / "out" / "masks" / "scene.tif") == IGNORE
    assert nothing_HW[:7].all() and not nothing_HW[7:].any()
    labelled = labelled_as(image, channels)
    reader = label_reader(model, labelled, "semantic", TestSettings())
    truth_HW = reader.sample(labelled.items[0]).semantic_HW
    assert truth_HW is not None and np.array_equal(truth_HW.numpy() == IGNORE, nothing_HW)
    assert (truth_HW.numpy()[7:] == 1).all()
    share = 7 / SIDE
    (line,) = nodata_notes(reader, "training")
    assert line.startswith(f"{share:.1%} of the pixels of the training images are nodata")


def test_scores_and_batches_leave_out_what_holds_nothing(tmp_path: Path) -> None:
    """The model says class 0 of what is black, as nodata is: with it IoU would be 33 / 40."""
    values = np.zeros((3, SIDE, SIDE), np.uint16)
    values[1, 7:] = 900
    image = write_raster(tmp_path / "scene.tif", values, nodata=0, names=BANDS)
    channels = channels_of(*BANDS)
    labelled = labelled_as(image, channels)
    scores = evaluate_pixels(BrightestBand(CLASSES, channels), labelled, TestSettings())
    assert scores.per_class["water"]["iou"] == 1
    batch = task_batches(LabelReader(labelled, "semantic", seen=SeenBands(channels)), 1, 0)(0, 0, 0, 1)
    semantic_HW = batch.targets[0].semantic_HW
    assert semantic_HW is not None and int((semantic_HW == IGNORE).sum()) == 7 * SIDE
    dense = dense_batches(labelled, 1, 0, size=SIDE, augment=None, seen=SeenBands(channels))
    ignored = [float((dense(step, 0, 0, 1).target_BHW == IGNORE).float().mean()) for step in range(12)]
    assert max(ignored) > 0.1  # crops of the image, some without its empty rows


def test_a_place_without_values_on_either_date_is_no_change_and_no_rest(tmp_path: Path) -> None:
    early, late = blocks(SIDE, SIDE, empty=5)[:1], blocks(SIDE, SIDE, seed=1, empty=3)[:1]
    late[:, -4:] = 0
    before = write_raster(tmp_path / "a.tif", early, nodata=0, names=["B2"])
    after = write_raster(tmp_path / "b.tif", late, nodata=0, names=["B2"])
    model = Brighter(channels_of("B2"))
    predict_files(model, [before], tmp_path / "out", WINDOWS, later=[after])
    nothing_HW = read(tmp_path / "out" / "label" / "a.tif") == IGNORE
    item = LabelledImage("a", str(before), SIDE, SIDE, second_image=str(after), change=Filled(1))
    reader = label_reader(
        model, LabelledSet("pairs", [item], channels=channels_of("B2")), "change", TestSettings()
    )
    changed_HW = reader.sample(item).semantic_HW
    assert changed_HW is not None and np.array_equal(changed_HW.numpy() == IGNORE, nothing_HW)
    assert int(nothing_HW.sum()) == 9 * SIDE


def test_pictures_count_as_a_whole_and_their_batches_are_those_of_before(tmp_path: Path) -> None:
    plain = write_raster(tmp_path / "plain.tif", np.zeros((3, SIDE, SIDE), np.uint8), place=None, nodata=0)
    placed = write_raster(tmp_path / "placed.tif", np.zeros((3, SIDE, SIDE), np.uint8))
    tagged = write_raster(tmp_path / "tagged.tif", np.zeros((3, SIDE, SIDE), np.uint8), nodata=0)

    def source(image: Path) -> tuple[LabelledSamples, ShuffledImages]:
        reader = LabelReader(labelled_as(image), "semantic", seen=PICTURES)
        made = task_batches(reader, 1, 0, size=InputSize())
        assert isinstance(made.collate, LabelledSamples) and isinstance(made.order, ShuffledImages)
        return made.collate, made.order

    for image in (plain, placed):
        collate, order = source(image)
        sample = collate.reader.sample(order.labelled.items[0])
        assert sample.semantic_HW is not None and torch.all(sample.semantic_HW == 1)
        assert "nodata" not in collate.facts(order, 1)
        assert nodata_note(order.labelled, PICTURES, "training") == []
    collate, order = source(tagged)
    assert collate.facts(order, 1)["nodata"] == "ignored"
    objects = replace(
        order.labelled, object_classes=("ship",), items=[replace(order.labelled.items[0], objects=())]
    )
    boxes = task_batches(LabelReader(objects, "objects"), 1, 0).collate
    assert isinstance(boxes, LabelledSamples) and "nodata" not in boxes.facts(order, 1)
