"""What the values of masks are: classes, what to ignore, numbers of instances, strays. Two readings are refused."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from vitp.core.errors import DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels
from vitp.data.formats.mask_kinds import mask_facts
from vitp.data.formats.pixel_masks import MaskFile, nearest_values
from vitp.records.labels import IGNORE, LabelledSet
from vitp.records.regions import rasterise

SIDE = 96
Make = Callable[[int], np.ndarray | Image.Image]


def mask_set(root: Path, make: Make, *, count: int = 6, suffix: str = ".png") -> Path:
    for k in range(count):
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([zlib.crc32(str(root).encode()), k])
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(
            root / "images" / f"{k}.png"
        )
        made = make(k)
        (made if isinstance(made, Image.Image) else Image.fromarray(made)).save(
            root / "masks" / f"{k}{suffix}"
        )
    return root


def blocks(*values: int) -> Make:
    """Return what makes a mask with a block of 14 × 30 pixels of each value."""

    def make(k: int) -> np.ndarray:
        mask_HW = np.zeros((SIDE, SIDE), np.uint8)
        for number, value in enumerate(values):
            mask_HW[4 + 18 * number : 18 + 18 * number, 10 + k : 40 + k] = value
        return mask_HW

    return make


def palette(make: Make) -> Make:
    def made(k: int) -> Image.Image:
        image = Image.fromarray(np.asarray(make(k)))
        image.putpalette([value for level in range(256) for value in (level, 255 - level, 7)])
        return image

    return made


def numbered(first: int = 1, step: int = 0, dtype: type = np.uint8) -> Make:
    """Return what makes a mask of instances: blocks on a grid, numbered from `first + step · k`."""

    def make(k: int) -> np.ndarray:
        rng = np.random.default_rng(k)
        mask_HW = np.zeros((SIDE, SIDE), dtype)
        number = first + step * k
        for y in range(4, 80, 20):
            for x in range(4, 80, 20):
                if rng.random() < 0.5:
                    mask_HW[y : y + 20, x : x + 12] = number  # they touch from row to row
                    number += 1
        return mask_HW

    return make


def smoothed(*colours: str) -> Make:
    """Return what makes a mask of circles with soft edges."""

    def make(k: int) -> Image.Image:
        image = Image.new("RGB", (4 * SIDE, 4 * SIDE))
        pen = ImageDraw.Draw(image)
        for number, colour in enumerate(colours):
            pen.ellipse((20 + 150 * number, 20 + 10 * k, 160 + 150 * number, 200 + 10 * k), fill=colour)
        return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)

    return make


def pixels(found: LabelledSet) -> dict[int, int]:
    counts: Counter[int] = Counter()
    for item in found.items:
        assert item.semantic is not None
        counts.update(item.semantic().reshape(-1).tolist())
    return dict(counts)


ONE = 6 * 14 * 30
ALL = 6 * SIDE * SIDE


@pytest.mark.parametrize(
    ("make", "names", "counts"),
    [
        (blocks(255), ("background", "foreground"), {0: ALL - ONE, 1: ONE}),
        (blocks(1), ("background", "foreground"), {0: ALL - ONE, 1: ONE}),
        (palette(blocks(255)), ("background", "foreground"), {0: ALL - ONE, 1: ONE}),
        (palette(blocks(1, 255)), ("background", "foreground"), {0: ALL - 2 * ONE, 1: ONE, IGNORE: ONE}),
        (
            blocks(1, 2, 255),
            ("background", "class_1", "class_2"),
            {0: ALL - 3 * ONE, 1: ONE, 2: ONE, IGNORE: ONE},
        ),
        (
            blocks(7, 26, 255),
            ("background", "class_7", "class_26"),
            {0: ALL - 3 * ONE, 1: ONE, 2: ONE, IGNORE: ONE},
        ),
        (blocks(50, 100), ("background", "class_50", "class_100"), {0: ALL - 2 * ONE, 1: ONE, 2: ONE}),
        (
            lambda k: np.repeat(blocks(1, 2)(k)[..., None], 3, -1),
            ("background", "class_1", "class_2"),
            {0: ALL - 2 * ONE, 1: ONE, 2: ONE},
        ),
    ],
)
def test_values_are_understood_and_said(
    tmp_path: Path, make: Make, names: tuple[str, ...], counts: dict[int, int]
) -> None:
    found = read_labels("masks", mask_set(tmp_path, make))
    assert found.semantic_classes == names and pixels(found) == counts and found.findings == ()
    (line,) = (line for line in found.understood if line.startswith("values of the masks: "))
    assert ("255 = ignore" in line) == (IGNORE in counts)


@pytest.mark.parametrize("values", [(128, 255), (50, 100, 255), (85, 170, 255), (128, 200, 255)])
def test_255_beside_grey_levels_has_two_readings(tmp_path: Path, values: tuple[int, ...]) -> None:
    root = mask_set(tmp_path, blocks(*values))
    with pytest.raises(
        DataError, match=r"255 may be a class, or say what to ignore.*NAME_255=255.*ignore=255"
    ):
        read_labels("masks", root)
    first = ",".join(f"c{value}={value}" for value in values[:-1])
    as_class = read_labels("masks", root, classes=f"{first},white=255")
    assert as_class.semantic_classes[-1] == "white" and IGNORE not in pixels(as_class)
    ignored = read_labels("masks", root, classes=f"{first},ignore=255")
    assert pixels(ignored)[IGNORE] == ONE


@pytest.mark.parametrize(
    "make",
    [
        numbered(),
        numbered(step=40),
        numbered(first=1000, dtype=np.uint16),
        numbered(first=1, step=300, dtype=np.uint16),
        lambda k: (
            np.random.default_rng(k).integers(30, 256, (64, 3), dtype=np.uint8)[numbered()(k)]
            * (numbered()(k) > 0)[..., None]
        ),
    ],
)
def test_numbers_of_instances_are_no_classes(tmp_path: Path, make: Make) -> None:
    root = mask_set(tmp_path, make)
    with pytest.raises(DataError, match=r"instances.*mask_type=instances.*mask_type=semantic"):
        read_labels("masks", root)
    found = read_labels("masks", root, mask_type="instances", classes="nucleus")
    assert found.object_classes == ("nucleus",) and found.semantic_classes == ()
    for k, item in enumerate(found.items):
        truth_HW = np.asarray(make(k))
        if truth_HW.ndim == 3:
            truth_HW = (truth_HW.astype(int) * (1, 256, 65536)).sum(-1)
        values = [value for value in np.unique(truth_HW) if value]
        assert len(item.objects or ()) == len(values)  # though they touch
        drawn = {rasterise(o.polygons, (SIDE, SIDE), o.holes).tobytes() for o in item.objects or ()}
        assert drawn == {(truth_HW == value).astype(np.uint8).tobytes() for value in values}


def test_few_classes_of_one_region_each_stay_classes(tmp_path: Path) -> None:
    make = blocks(1, 2)
    assert read_labels("masks", mask_set(tmp_path / "two", make)).semantic_classes == (
        *("background", "class_1", "class_2"),
    )
    # Organs on slices: not all are on each slice, and the values don't count up.
    organs = mask_set(tmp_path / "organs", lambda k: blocks(*[v for v in (1, 2, 3, 4) if (v + k) % 3])(k))
    assert len(read_labels("masks", organs).semantic_classes) == 5
    text = tmp_path / "named" / "classes.txt"
    root = mask_set(tmp_path / "named", numbered())
    text.write_text("\n".join(["ground", *(f"kind {n}" for n in range(15))]))
    assert len(read_labels("masks", root).semantic_classes) == 16


def test_255_in_masks_of_instances_is_an_instance_only_where_numbers_reach_it(tmp_path: Path) -> None:
    root = mask_set(tmp_path, blocks(1, 2, 255), count=2)
    found = read_labels("masks", root, mask_type="instances")
    assert [len(item.objects or ()) for item in found.items] == [2, 2]
    assert [len(item.ignored) for item in found.items] == [1, 1]
    assert "masks/0.png: 255 is taken as what to ignore" in found.findings


def test_instances_beside_classes_keep_touching_objects_apart(tmp_path: Path) -> None:
    def both(root: Path) -> None:
        for k in range(3):
            (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(k)
            picture = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
            picture.save(root / "JPEGImages" / f"{k}.jpg")
            numbers_HW = np.zeros((SIDE, SIDE), np.uint8)
            numbers_HW[10:30, 10:30], numbers_HW[10:30, 30:50], numbers_HW[50:60, 50:60] = 1, 2, 3
            classes_HW = np.array([0, 4, 4, 9], np.uint8)[numbers_HW]
            for folder, values_HW in (("SegmentationClass", classes_HW), ("SegmentationObject", numbers_HW)):
                (root / folder).mkdir(exist_ok=True)
                values_HW[70:72] = 255
                palette(lambda _, values_HW=values_HW: values_HW)(0).save(root / folder / f"{k}.png")

    both(tmp_path)
    found = read_labels("auto", tmp_path)
    assert found.semantic_classes == ("background", "class_4", "class_9")
    assert [[o.category for o in item.objects or ()] for item in found.items] == [
        ["class_4", "class_4", "class_9"]
    ] * 3
    assert (found.items[0].objects or ())[0].box == (10, 10, 30, 30)
    assert "objects: from the instance masks of 3 images" in found.understood


def test_regions_say_that_touching_objects_are_one(tmp_path: Path) -> None:
    def make(k: int) -> np.ndarray:
        y, x = np.mgrid[:SIDE, :SIDE]
        mask_HW = np.zeros((SIDE, SIDE), np.uint8)
        for cy, cx in ((16, 16), (16, 60), (60, 16), (60, 60), (60, 77)):  # the last two touch
            mask_HW[(y - cy) ** 2 + (x - cx) ** 2 <= 81] = 255
        return mask_HW

    found = read_labels("masks", mask_set(tmp_path, make), classes="nucleus=255", instances=True)
    assert sum(len(item.objects or ()) for item in found.items) == 24
    assert [line for line in found.findings if line.startswith("instances: ")] == [
        "instances: objects that touch are one region: 6 of 24 regions are bent inwards or more than three times as "
        "large as the middle one of their class; masks of instances tell them apart"
    ]


STRAYS: dict[str, tuple[Make, str, int]] = {
    "soft edges, colour": (smoothed("white", "red"), ".png", 3),
    "soft edges, grey": (lambda k: smoothed("white")(k).convert("L"), ".png", 2),  # type: ignore[union-attr]
    "JPEG, grey": (blocks(255), ".jpg", 2),
    "JPEG, colour": (lambda k: np.repeat(blocks(255)(k)[..., None], 3, -1), ".jpg", 2),
    "a stray pixel": (
        lambda k: np.where(np.arange(SIDE * SIDE).reshape(SIDE, SIDE) == 8000, 7, blocks(1, 2)(k)).astype(
            np.uint8
        ),
        ".png",
        3,
    ),
}


@pytest.mark.parametrize("kind", STRAYS)
def test_strays_are_no_classes(tmp_path: Path, kind: str) -> None:
    make, suffix, classes = STRAYS[kind]
    root = mask_set(tmp_path, make, suffix=suffix)
    with pytest.raises(
        DataError,
        match=r"the masks hold \d+ values, of which \d+ are on only .*strays=nearest.*strays=ignore",
    ):
        read_labels("masks", root)
    nearest = read_labels("masks", root, strays="nearest")
    assert len(nearest.semantic_classes) == classes and IGNORE not in pixels(nearest)
    ignored = read_labels("masks", root, strays="ignore")
    assert ignored.semantic_classes == nearest.semantic_classes
    assert 0 < pixels(ignored)[IGNORE] < 0.1 * ALL
    if suffix == ".jpg":  # what was saved comes back
        assert pixels(nearest) == {0: ALL - ONE, 1: ONE}


def test_nearest_values_survive_compiling(tmp_path: Path) -> None:
    root = mask_set(tmp_path / "set", smoothed("white", "red"))
    compile_labels(root, "masks", tmp_path / "out", strays="nearest")
    first, again = read_labels("masks", root, strays="nearest"), read_labels("vitp", tmp_path / "out")
    by_id = {item.id: item for item in again.items}
    for item in first.items:
        assert np.array_equal(item.semantic(), by_id[item.id].semantic())  # type: ignore[misc]


def test_masks_of_values_that_nobody_named_are_refused(tmp_path: Path) -> None:
    root = mask_set(tmp_path, lambda k: np.where(blocks(2)(k) == 0, 9, 2).astype(np.uint8))
    with pytest.raises(DataError, match="of the masks' pixels have values that no class has: 9"):
        read_labels("masks", root, classes="ship=2")
    assert pixels(read_labels("masks", root, classes="ship=2,ignore=9"))[IGNORE] == ALL - ONE


def test_a_file_of_one_object_must_hold_one(tmp_path: Path) -> None:
    for k in range(2):
        (tmp_path / f"i{k}" / "images").mkdir(parents=True)
        (tmp_path / f"i{k}" / "masks").mkdir()
        Image.fromarray(np.full((20, 20, 3), 40 + k, np.uint8)).save(tmp_path / f"i{k}" / "images" / "x.png")
        Image.fromarray(np.array([[0, 1, 2]] * 20, np.uint8).repeat(7, 1)[:, :20]).save(
            tmp_path / f"i{k}" / "masks" / "m.png"
        )
    with pytest.raises(DataError, match="holds 3 values, but a mask of one object holds 0 and one other"):
        read_labels("auto", tmp_path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
@pytest.mark.parametrize("seed", range(8))
def test_facts_count_what_is_there(tmp_path: Path, seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    small_HW = rng.choice(np.append(rng.integers(1, 250, 4), 0), (4, 5))
    values_HW = small_HW.repeat(rng.integers(2, 4), 0).repeat(3, 1).astype(dtype)
    Image.fromarray(values_HW.astype(np.uint8)).save(tmp_path / "m.png")
    found = mask_facts(values_HW, tmp_path / "m.png", regions=True)
    assert (found.format, found.mode) == ("PNG", "L")
    assert found.values == Counter(values_HW.reshape(-1).tolist())
    for value in found.values:
        mask_HW = (values_HW == value).astype(np.uint8)
        assert (value in found.thin) == (cv2.erode(mask_HW, np.ones((3, 3)), borderValue=0).sum() == 0)
        if value:
            assert (value in found.whole) == (cv2.connectedComponents(mask_HW, connectivity=8)[0] == 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_nearest_is_the_nearest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values_HW = rng.integers(0, 1 << 24, (5, 6))
    known = sorted({int(v) for v in rng.integers(0, 1 << 24, 4)})

    def channels(value: int) -> np.ndarray:
        return np.array([value >> 16 & 255, value >> 8 & 255, value & 255])

    found_HW = nearest_values(values_HW, known, colour=True)
    for value, chosen in zip(values_HW.reshape(-1).tolist(), found_HW.reshape(-1).tolist(), strict=True):
        far = [((channels(value) - channels(other)) ** 2).sum() for other in known]
        assert ((channels(value) - channels(chosen)) ** 2).sum() == min(far)


def test_nearest_mask_file(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 100, 130, 255]], np.uint8)).save(tmp_path / "m.png")
    values = ((0, 0), (255, 1))
    assert MaskFile(str(tmp_path / "m.png"), values, nearest=True)().tolist() == [[0, 0, 1, 1]]
    assert MaskFile(str(tmp_path / "m.png"), values)().tolist() == [[0, IGNORE, IGNORE, 1]]


def test_palettes_that_differ_have_two_readings(tmp_path: Path) -> None:
    def make(k: int) -> Image.Image:
        image = Image.fromarray(blocks(1, 2)(k))
        image.putpalette([0, 0, 0, *((255, 0, 0, 0, 255, 0) if k % 2 else (0, 255, 0, 255, 0, 0))])
        return image

    root = mask_set(tmp_path, make)
    with pytest.raises(DataError, match=r"1\.png: shows the value 1 as #ff0000, 0\.png as #00ff00"):
        read_labels("masks", root)
    found = read_labels("masks", root, classes="background=0,a=1,b=2")
    assert np.array_equal(found.items[0].semantic(), blocks(1, 2)(0))


def test_a_mask_in_the_transparency_is_refused(tmp_path: Path) -> None:
    def make(k: int) -> np.ndarray:
        return np.dstack([np.full((SIDE, SIDE, 3), 255, np.uint8), blocks(255)(k)])

    with pytest.raises(DataError, match=r"one value \(#ffffff\) that are partly transparent"):
        read_labels("masks", mask_set(tmp_path, make))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda k: np.full((SIDE, SIDE), 255, np.uint8), "all pixels of all masks have one value, 255"),
        (lambda k: blocks(2)(k) * np.float32(0.35), r"holds 0\.7 and other values that are no whole numbers"),
        (lambda k: blocks(1)(k).astype(np.int32) * -1, "values below 0 may say what to ignore"),
    ],
)
def test_values_that_are_no_classes_are_refused(tmp_path: Path, make: Make, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_labels("masks", mask_set(tmp_path, make, suffix=".tif"))


def test_whole_floating_numbers_are_classes(tmp_path: Path) -> None:
    root = mask_set(tmp_path, lambda k: blocks(1)(k).astype(np.float32), suffix=".tif")
    found = read_labels("masks", root)
    assert "values of the masks: 0 = background, 1 = foreground" in found.understood
    assert np.array_equal(found.items[2].semantic(), blocks(1)(2))


@pytest.mark.parametrize("values", [(1, 2), (2,)])
def test_names_that_are_one_too_few_have_two_readings(tmp_path: Path, values: tuple[int, ...]) -> None:
    root = mask_set(tmp_path, blocks(*values))
    (root / "classes.txt").write_text("water\nroad\n")
    with pytest.raises(DataError, match="from 0 to 1, but the masks hold values up to 2"):
        read_labels("masks", root)
    (root / "classes.txt").write_text("0 background\n1 water\n2 road\n")
    assert read_labels("masks", root).semantic_classes == ("background", "water", "road")
