"""Formats with masks: run lengths, colours, indices, and the regions found in them."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from shapely.geometry import Polygon

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats import read_labels
from vitp.data.formats.crops import crop_object
from vitp.data.formats.detect import detect_format
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.facts import Facts, Limits
from vitp.records.geometry import area, as_flat, as_points, signed_area
from vitp.records.labels import BACKGROUND, IGNORE, LabelledImage, LabelledSet, ObjectLabel
from vitp.records.regions import object_of, objects_of, outline, parts, rasterise
from vitp.records.rle import decode, decode_counts, encode
from vitp.scenes.export import write_scenes
from vitp.tasks.data import LabelReader


def image(path: Path, width: int = 100, height: int = 80) -> Path:
    """Write an image that no other test image equals: equal ones would stay together."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


# --- COCO


def _encode(counts: list[int]) -> str:
    """Write run lengths in COCO's text form, independently of the reader."""
    out = ""
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            out += chr((bits | (32 if more else 0)) + 48)
    return out


@settings(deadline=None)
@given(st.lists(st.integers(0, 100_000), max_size=40))
def test_rle_text_round_trip(counts: list[int]) -> None:
    assert decode_counts(_encode(counts)) == counts


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(1, 12), st.randoms(use_true_random=False))
def test_rle_decodes_column_by_column(height: int, width: int, random) -> None:
    mask = np.array([[random.random() < 0.5 for _ in range(width)] for _ in range(height)])
    column = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(column.astype(int))) + 1
    runs = np.diff([0, *edges, column.size]).tolist()
    runs = [0, *runs] if column[0] else runs
    assert np.array_equal(decode(runs, height, width), mask)
    assert np.array_equal(decode(_encode(runs), height, width), mask)


@settings(deadline=None)
@given(st.text(max_size=20))
def test_rle_text_of_any_kind_gives_numbers_or_value_error(string: str) -> None:
    with contextlib.suppress(ValueError):
        assert all(isinstance(count, int) for count in decode_counts(string))


def coco(root: Path, annotations: list[dict], name: str = "instances_val2017.json", **extra: object) -> None:
    image(root / "images" / "a.png")
    image(root / "images" / "b.png")
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 2, "file_name": "b.png", "width": 80, "height": 100},
            {"id": 3, "file_name": "missing.png"},
        ],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "ship"}, {"id": 3, "name": "car"}],
    }
    text(root / "annotations" / name, json.dumps(content | extra))


def test_coco_polygons_masks_crowds_and_findings(tmp_path: Path) -> None:
    mask = np.zeros((80, 100), bool)
    mask[10:20, 30:50] = True
    runs = [30 * 80 + 10, *([10, 70] * 19), 10, 80 * 100 - 49 * 80 - 20]
    square = [5, 5, 15, 5, 15, 15, 5, 15]
    coco(
        tmp_path,
        [
            {"image_id": 1, "category_id": 7, "bbox": [5, 5, 10, 10], "segmentation": [square]},
            {"image_id": 1, "category_id": 3, "segmentation": {"size": [80, 100], "counts": runs}},
            {"image_id": 1, "category_id": 7, "segmentation": {"size": [80, 100], "counts": _encode(runs)}},
            {"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "iscrowd": 1},
            {"image_id": 1, "category_id": 99, "bbox": [0, 0, 5, 5]},
            {"image_id": 1, "category_id": 7, "bbox": [0, 0, 0, 5]},
            {"image_id": 9, "category_id": 7, "bbox": [0, 0, 5, 5]},
            {"image_id": 3, "category_id": 7, "bbox": [0, 0, 5, 5]},
        ],
    )
    found = read_labels("coco", tmp_path)
    assert [i.id for i in found.items] == ["images/a"]
    assert found.items[0].split == "val"
    ship, car, same, crowd = found.items[0].objects
    assert ship.polygons == (tuple(square),)
    assert car.box == same.box == (30, 10, 50, 20)
    assert (crowd.category, crowd.box, crowd.difficult) == ("car", (0, 0, 5, 5), True)
    assert [label.box for label in found.items[0].ignored] == [(0, 0, 5, 5)]
    assert area(as_points(car.polygons[0])) == mask.sum()
    assert found.object_classes == ("ship", "car")
    text_of = "\n".join(found.findings)
    for place, words in {
        "images[1]": "says 80×100 but the image has 100×80",
        "images[2]": "missing.png is missing",
        "annotations[4]": "unknown class number 99",
        "annotations[5]": "ship has no area",
        "annotations[6]": "belongs to no image",
    }.items():
        assert f"annotations/instances_val2017.json:{place}: {words}" in text_of
    assert len(found.findings) == 5
    assert detect_format(tmp_path) == "coco"


@pytest.mark.parametrize("counts", [[5, 5], "a\x7f", [8001, -1]])
def test_coco_wrong_masks_are_refused(tmp_path: Path, counts: object) -> None:
    coco(tmp_path, [{"image_id": 1, "category_id": 3, "segmentation": {"size": [80, 100], "counts": counts}}])
    with pytest.raises(DataError, match=r"annotations\[0\]: segmentation can't be understood"):
        read_labels("coco", tmp_path)


@pytest.mark.parametrize("layout", ["{split}/images", "{split}2017", "images/{split}"])
def test_coco_splits_with_the_same_file_names(tmp_path: Path, layout: str) -> None:
    for split, width in (("train", 100), ("val", 60)):
        folder = layout.format(split=split)
        image(tmp_path / folder / "0.png", width)
        content = {
            "images": [{"id": 0, "file_name": "0.png", "width": width, "height": 80}],
            "annotations": [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4]}],
            "categories": [{"id": 1, "name": "ship"}],
        }
        text(tmp_path / "annotations" / f"instances_{split}.json", json.dumps(content))
    found = read_labels("coco", tmp_path)
    assert found.findings == ()
    assert {(i.split, i.width) for i in found.items} == {("train", 100), ("val", 60)}


def test_coco_captions_join_instances(tmp_path: Path) -> None:
    coco(tmp_path, [{"image_id": 1, "category_id": 7, "bbox": [5, 5, 10, 10]}])
    coco(
        tmp_path,
        [{"image_id": 1, "caption": "A ship. "}, {"image_id": 1, "caption": "One\nship."}],
        "captions_val2017.json",
        categories=[],
    )
    found = read_labels("coco", tmp_path)
    assert found.items[0].captions == ("A ship.", "One ship.")
    assert len(found.items[0].objects) == 1


# --- masks


def mask_set(root: Path, masks: list[np.ndarray], palette: list[int] | None = None) -> Path:
    for k, values in enumerate(masks):
        image(root / "images" / f"m{k}.png", values.shape[1], values.shape[0])
        (root / "masks").mkdir(exist_ok=True)
        file = Image.fromarray(values)
        if palette is not None:
            file.putpalette(palette)
        file.save(root / "masks" / f"m{k}.png")
    return root


def _two_regions(colour: tuple[int, int, int]) -> np.ndarray:
    values = np.zeros((40, 60, 3), np.uint8)
    values[5:15, 10:30] = colour
    values[20:22, 40:42] = colour  # 4 pixels
    return values


def test_masks_by_colour_with_regions(tmp_path: Path) -> None:
    root = mask_set(tmp_path, [_two_regions((0, 255, 0)), _two_regions((0, 0, 0))])
    found = read_labels("masks", root, classes="ship=green", instances=True, min_area=10)
    assert found.semantic_classes == ("background", "ship")
    assert found.object_classes == ("ship",)
    (ship,) = found.items[0].objects
    assert ship.box == (10, 5, 30, 15)
    assert area(as_points(ship.quad)) == pytest.approx(200)
    assert area(as_points(ship.polygons[0])) == 200
    assert found.items[0].semantic().sum() == 204
    assert found.items[1].objects == ()
    assert found.findings == ("masks/m0.png: 1 regions under 10 pixels; not counted as objects",)
    automatic = read_labels("masks", root)
    assert automatic.semantic_classes == ("background", "foreground")
    assert automatic.items[0].objects is None
    assert detect_format(root) == "masks"


def test_masks_unknown_colours_are_ignored_and_reported(tmp_path: Path) -> None:
    values = _two_regions((255, 255, 255))
    values[30, :7] = (1, 2, 3)
    root = mask_set(tmp_path, [values])
    found = read_labels("masks", root, classes={"forest": "white"})
    assert Counter(found.items[0].semantic().reshape(-1).tolist()) == {0: 2400 - 204 - 7, 1: 204, IGNORE: 7}
    assert found.findings == ("masks/m0.png: 1 unknown values (#010203); ignored there",)
    with pytest.raises(
        DataError, match="no mask holds any of the classes; the values that occur are #000000"
    ):
        read_labels("masks", root, classes="forest=red")
    with pytest.raises(ConfigError, match='"purpleish" is not a value'):
        read_labels("masks", root, classes="forest=purpleish")


def test_masks_of_indices_palettes_and_class_files(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    root = mask_set(tmp_path, [values], palette=list(range(256)) * 3)
    found = read_labels("masks", root)
    assert found.semantic_classes == ("background", "class_1", "class_2")
    assert np.array_equal(found.items[0].semantic(), values)
    text(root / "classes.txt", "sea\nport\nship\n")
    named = read_labels("masks", root)
    assert named.semantic_classes == ("sea", "port", "ship")
    assert named.items[0].semantic().tolist() == [[0, 1, 2], [2, 255, 0]]
    chosen = read_labels("masks", root, classes="land=1,ship=2,ignore=255,land=0")
    assert chosen.semantic_classes == ("land", "ship")
    assert chosen.items[0].semantic().tolist() == [[0, 0, 1], [1, 255, 0]]


def test_binary_grey_masks_and_photographs(tmp_path: Path) -> None:
    grey = _two_regions((255, 255, 255))[..., 0]
    root = mask_set(tmp_path / "grey", [grey])
    assert read_labels("masks", root).items[0].semantic().sum() == 204
    assert read_labels("masks", root, classes="forest=white").semantic_classes == ("background", "forest")
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    with pytest.raises(DataError, match="different values, too many for classes"):
        read_labels("masks", mask_set(tmp_path / "photo", [noise]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8), st.integers(0, 8), st.integers(1, 12), st.integers(1, 12))
def test_region_of_a_rectangle_is_exact(x: int, y: int, w: int, h: int) -> None:
    semantic = np.zeros((24, 24), np.uint8)
    semantic[y : y + h, x : x + w] = 3
    (label,) = objects_of(semantic, {3: "tank"}, min_area=1).objects
    assert label.box == (x, y, x + w, y + h)
    assert area(as_points(label.polygons[0])) == w * h
    assert area(as_points(label.quad)) == pytest.approx(w * h, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_outline_covers_about_the_region(seed: int) -> None:
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:32, :32]
    cx, cy, rx, ry = *rng.uniform(12, 20, 2), *rng.uniform(3, 10, 2)
    mask = ((xx - cx) / rx) ** 2 + ((yy - cy) / ry) ** 2 <= 1
    assert sum(area(ring) for ring in outline(mask).rings) == mask.sum()


@settings(max_examples=200, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_rasterised_outline_is_the_mask(mask: np.ndarray) -> None:
    found = outline(mask)
    for ring in (*found.rings, *found.holes):
        assert signed_area(ring) > 0
        assert len({tuple(point) for point in ring.tolist()}) == len(ring)  # it never touches itself
    size = (mask.shape[0], mask.shape[1])
    assert np.array_equal(rasterise(flat(found.rings), size, flat(found.holes)), mask)
    each = [rasterise(flat(part.rings), size, flat(part.holes)) for part in parts(mask)]
    assert np.array_equal(sum(each, np.zeros(size, int)), mask)  # together the mask, and no pixel twice
    for part in parts(mask):
        assert Polygon(part.rings[0], part.holes).is_valid


def flat(rings: Sequence[np.ndarray]) -> list[tuple[float, ...]]:
    return [as_flat(ring) for ring in rings]


def test_rings_are_joined_and_holes_cut_only_what_is_around_them() -> None:
    square = (1.0, 1.0, 7.0, 1.0, 7.0, 7.0, 1.0, 7.0)
    hole = (2.0, 2.0, 4.0, 2.0, 4.0, 4.0, 2.0, 4.0)
    bar = (3.0, 0.0, 5.0, 0.0, 5.0, 8.0, 3.0, 8.0)
    assert rasterise([square, bar], (8, 8)).sum() == 36 + 4  # what both cover stays covered
    assert rasterise([square], (8, 8), [hole]).sum() == 32
    assert rasterise([square, bar], (8, 8), [hole]).sum() == 40 - 2  # the bar goes through the hole
    assert rasterise([square], (8, 8), [square]).sum() == 0


def test_rings_are_joined_and_holes_are_no_object_in_grids_and_exports(tmp_path: Path) -> None:
    mask = np.ones((90, 90), bool)
    mask[25:65, 25:65] = False
    mask[40:44, 40:44] = True  # an island in the hole
    ring = object_of(mask, "wall")
    assert ring is not None
    item = LabelledImage("a", "scene:general/0/0?size=90&split=train", 90, 90, objects=(ring,))
    grid = Facts(item, SetClasses(("wall",)), Limits(grid=3)).grid
    assert grid == [["wall"] * 3, ["wall", BACKGROUND, "wall"], ["wall"] * 3]
    # Of two rings of one object, what both cover is covered.
    twice = ObjectLabel("wall", (0, 0, 90, 90), polygons=(_box(0, 0, 60, 90), _box(30, 0, 90, 90)))
    whole = Facts(replace(item, objects=(twice,)), SetClasses(("wall",)), Limits(grid=3)).grid
    assert whole == [["wall"] * 3] * 3
    write_scenes(LabelledSet("s", [item], ("wall",)), tmp_path / "out", layout="coco")
    (written,) = read_labels("coco", tmp_path / "out").items
    (again,) = written.objects or ()
    assert np.array_equal(rasterise(again.polygons, (90, 90), again.holes), mask)


def _box(x1: float, y1: float, x2: float, y2: float) -> tuple[float, ...]:
    return (x1, y1, x2, y1, x2, y2, x1, y2)


def test_what_is_smaller_than_a_pixel_does_not_vanish() -> None:
    dot = (2.1, 3.6, 2.4, 3.6, 2.4, 3.9, 2.1, 3.9)
    assert np.argwhere(rasterise([dot], (6, 6))).tolist() == [[3, 2]]
    assert rasterise([(9.1, 3.6, 9.4, 3.6, 9.4, 3.9, 9.1, 3.9)], (6, 6)).sum() == 0  # outside


def test_coco_ring_keeps_its_hole_in_truth_and_crops(tmp_path: Path) -> None:
    mask = np.zeros((80, 100), bool)
    mask[20:44, 30:50] = True
    mask[26:36, 34:46] = False
    assert mask.sum() == 360
    coco(tmp_path, [{"image_id": 1, "category_id": 7, "segmentation": encode(mask)}])
    found = read_labels("coco", tmp_path)
    (ring,) = found.items[0].objects
    assert (len(ring.polygons), len(ring.holes)) == (1, 1)
    reader = LabelReader(found, "instances")
    truth = reader.target(reader.sample(found.items[0])).masks_NHW
    assert truth is not None and np.array_equal(truth[0].numpy().astype(bool), mask)
    (part, *_), window = [crop_object(ring, (32, 0, 64, 30), 0.1)], np.s_[0:30, 32:64]
    assert part is not None
    assert np.array_equal(rasterise(part.polygons, (30, 32), part.holes), mask[window])
