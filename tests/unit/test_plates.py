"""Labels on pictures of predictions: readable, and none over another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vitp.inference.outputs import class_colour, picture
from vitp.inference.plates import LabelPlates
from vitp.metrics.results import Prediction

RING = [(40.0, 40.0), (90.0, 40.0), (90.0, 80.0), (40.0, 80.0)]


def places_of(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return np.argwhere((np.asarray(image) == colour).all(-1))


def test_labels_of_one_outline_lie_beside_each_other_until_no_place_is_free() -> None:
    colours = [(10 * n, 255, 0) for n in range(12)]
    image = Image.new("RGB", (200, 160))
    plates = LabelPlates(ImageDraw.Draw(image), image.size)
    written = [plates.beside("vehicle 0.90", RING, colour) for colour in colours]
    assert written[0] and not written[-1]
    boxes = []
    for colour, there in zip(colours, written, strict=True):
        found = places_of(image, colour)
        assert bool(len(found)) == there
        boxes += [(*found.min(0), *found.max(0))] if there else []
    assert len(boxes) >= 3
    for (top, left, bottom, right), other in itertools.combinations(boxes, 2):
        assert bottom < other[0] or other[2] < top or right < other[1] or other[3] < left
    assert boxes[0][2] <= 41  # the first one stands above


@pytest.mark.parametrize("corner", [(-30.0, -30.0), (195.0, 155.0), (90.0, -40.0)])
def test_labels_of_outlines_that_reach_out_are_whole(corner: tuple[float, float]) -> None:
    whole, cut = (Image.new("RGB", (200, 160)) for _ in range(2))
    LabelPlates(ImageDraw.Draw(whole), whole.size).beside("barge 0.50", RING, (255, 0, 0))
    ring = [corner, (corner[0] + 20, corner[1]), (corner[0] + 20, corner[1] + 20)]
    assert LabelPlates(ImageDraw.Draw(cut), cut.size).beside("barge 0.50", ring, (255, 0, 0))
    assert len(places_of(cut, (255, 0, 0))) == len(places_of(whole, (255, 0, 0)))


def test_text_is_dark_on_light_colours_and_light_on_dark_ones() -> None:
    for colour, dark in (((255, 255, 0), True), ((0, 0, 90), False)):
        image = Image.new("RGB", (100, 40), (128, 128, 128))
        LabelPlates(ImageDraw.Draw(image), image.size).within("buoy", (50, 20), colour)
        light_HW = np.asarray(image).sum(-1)
        assert light_HW.min() < 200 if dark else light_HW.max() > 600


def test_no_label_hides_an_object() -> None:
    small = [[(20.0 + 30 * n, 40.0), (35.0 + 30 * n, 40.0), (35.0 + 30 * n, 50.0)] for n in range(3)]
    image = Image.new("RGB", (160, 54))
    plates = LabelPlates(ImageDraw.Draw(image), image.size, [*small, [(0.0, 0.0), (160.0, 54.0)]])
    assert plates.beside("buoy 0.90", small[0], (255, 0, 0))
    assert places_of(image, (255, 0, 0))[:, 0].max() < 40
    crowd = [[(8.0 * x, 8.0 * y), (8.0 * x + 6, 8.0 * y + 6)] for x in range(20) for y in range(7)]
    plates = LabelPlates(ImageDraw.Draw(image), image.size, crowd)
    assert not any(plates.beside("buoy 0.90", ring, (255, 0, 0)) for ring in crowd)


def test_where_one_label_fits_it_is_that_of_the_surest_object() -> None:
    box = [0.0, 0.0, 90.0, 20.0]
    one = Prediction(boxes_N4=torch.tensor([box]), scores_N=torch.tensor([0.9]), labels_N=torch.tensor([1]))
    two = Prediction(
        boxes_N4=torch.tensor([box, box]), scores_N=torch.tensor([0.4, 0.9]), labels_N=torch.tensor([1, 1])
    )
    blank = Image.new("RGB", (100, 30))
    first, second = (np.asarray(picture(blank, found, ["ship", "quay"])) for found in (one, two))
    assert np.array_equal(first, second)
    assert len(places_of(Image.fromarray(first), class_colour(1))) > 200


def test_where_nothing_was_found_the_picture_is_the_image() -> None:
    image = Image.new("RGB", (30, 20), "teal")
    none = {"scores_N": torch.zeros(0), "labels_N": torch.zeros(0, dtype=torch.long)}
    masks = torch.zeros(0, 20, 30, dtype=torch.bool)
    for found in (
        Prediction(boxes_N4=torch.zeros(0, 4), **none),
        Prediction(quads_N8=torch.zeros(0, 8), **none),
        Prediction(boxes_N4=torch.zeros(0, 4), masks_NHW=masks, **none),
        Prediction(masks_NHW=masks, things_N=torch.zeros(0, dtype=torch.bool), **none),
    ):
        assert picture(image, found, ["ship", "quay"]).tobytes() == image.tobytes()
