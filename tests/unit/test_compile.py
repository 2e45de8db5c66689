"""Crops, our own label files and `compile_labels`: exact geometry, lossless round trips, the same bytes twice."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitp.core import files
from vitp.core.errors import ConfigError, DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels, vitp_labels
from vitp.data.formats.crops import crop_object, crop_windows, cut
from vitp.data.formats.pixel_masks import ChangeFile, MaskFile
from vitp.data.formats.vitp_labels import Roots
from vitp.data.sources import read_mixture
from vitp.data.synthesis.build import SynthesisConfig
from vitp.records.geometry import area, as_points, bounds, clip_polygon, min_area_quad, signed_area
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel

DATA = Path(os.environ.get("VITP_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def photograph(path: Path, width: int, height: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def ship_masks(root: Path, count: int = 10) -> Path:
    """Write images with masks of ships: 255 on 0."""
    rng = np.random.default_rng(0)
    for k in range(count):
        photograph(root / "images" / f"P{k // 2}_{k}.png", 64, 48, k)
        mask = np.zeros((48, 64), np.uint8)
        for _ in range(2):
            x, y = rng.integers(0, 50), rng.integers(0, 40)
            mask[y : y + 6, x : x + 12] = 255
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "masks" / f"P{k // 2}_{k}.png")
    return root


# --- geometry

coordinates = st.floats(-50, 150, allow_nan=False)
polygons = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8).map(np.array)
windows = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(5, 60), st.integers(5, 60)).map(
    lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])
)


@settings(deadline=None)
@given(polygons, windows)
def test_clipped_polygons_lie_in_the_window(points: np.ndarray, window: tuple) -> None:
    clipped = clip_polygon(points, window)
    if len(clipped):
        x1, y1, x2, y2 = bounds(clipped)
        assert x1 >= window[0] - 1e-9
        assert y1 >= window[1] - 1e-9
        assert x2 <= window[2] + 1e-9
        assert y2 <= window[3] + 1e-9


@settings(deadline=None, max_examples=50)
@given(st.tuples(coordinates, coordinates), st.floats(2, 60), st.floats(2, 60), st.floats(0, 180), windows)
def test_clipped_rectangles_have_the_area_counted_in_pixels(
    centre: tuple, w: float, h: float, degrees: float, window: tuple
) -> None:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    corners = np.array([(-w, -h), (w, -h), (w, h), (-w, h)]) / 2 @ np.array([[c, s], [-s, c]]) + centre
    assert area(corners) == pytest.approx(w * h)
    quad = min_area_quad(corners)
    assert area(quad) == pytest.approx(w * h, rel=1e-3)
    assert signed_area(quad) > 0
    # Sampled independently: points of the window that lie in the rectangle.
    xs = np.linspace(window[0], window[2], 101)[:-1] + (window[2] - window[0]) / 200
    ys = np.linspace(window[1], window[3], 101)[:-1] + (window[3] - window[1]) / 200
    dx, dy = np.meshgrid(xs - centre[0], ys - centre[1])
    inside = (np.abs(dx * c + dy * s) <= w / 2) & (np.abs(dy * c - dx * s) <= h / 2)
    whole = (window[2] - window[0]) * (window[3] - window[1])
    assert area(clip_polygon(corners, window)) == pytest.approx(inside.mean() * whole, abs=0.03 * whole)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120), st.data())
def test_windows_cover_the_image_with_the_overlap(
    width: int, height: int, size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size - max(1, size // 8)))
    found = crop_windows(width, height, size, overlap)
    assert len(set(found)) == len(found)
    for low, high, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(w[low], w[high]) for w in found})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert all(b - a == min(size, length) for a, b in spans)
        assert all(second[0] <= first[1] - overlap for first, second in pairwise(spans))


@settings(deadline=None)
@given(windows, st.data())
def test_objects_inside_a_window_only_move(window: tuple, data: st.DataObject) -> None:
    x1, y1, x2, y2 = window
    bx1 = data.draw(st.integers(x1, x2 - 2))
    by1 = data.draw(st.integers(y1, y2 - 2))
    bx2, by2 = data.draw(st.integers(bx1 + 1, x2)), data.draw(st.integers(by1 + 1, y2))
    quad = (bx1, by1, bx2, by1, bx2, by2, bx1, by2)
    label = ObjectLabel("ship", (bx1, by1, bx2, by2), quad, (quad,), True)
    moved = crop_object(label, window, 1.0)
    corners = (bx1 - x1, by1 - y1, bx2 - x1, by1 - y1, bx2 - x1, by2 - y1, bx1 - x1, by2 - y1)
    assert moved == ObjectLabel("ship", (bx1 - x1, by1 - y1, bx2 - x1, by2 - y1), corners, (corners,), True)


@settings(deadline=None)
@given(windows, st.tuples(coordinates, coordinates), st.floats(2, 60), st.floats(2, 60), st.floats(0.05, 1))
def test_boxes_are_kept_by_their_visible_share(
    window: tuple, corner: tuple, w: float, h: float, min_visible: float
) -> None:
    label = ObjectLabel("ship", (corner[0], corner[1], corner[0] + w, corner[1] + h))
    width = max(0.0, min(window[2], corner[0] + w) - max(window[0], corner[0]))
    height = max(0.0, min(window[3], corner[1] + h) - max(window[1], corner[1]))
    share = width * height / (w * h)
    found = crop_object(label, window, min_visible)
    if abs(share - min_visible) < 1e-6 or 0 < share < 1e-9:
        return
    assert (found is not None) == (share > 0 and share >= min_visible)
    if found is not None:
        assert found.box[2] - found.box[0] == pytest.approx(width, abs=1e-6)
        assert found.box[3] - found.box[1] == pytest.approx(height, abs=1e-6)


def test_a_cut_quad_is_fitted_again() -> None:
    label = ObjectLabel("ship", (10, 10, 30, 20), (10, 10, 30, 10, 30, 20, 10, 20))
    found = crop_object(label, (20, 0, 100, 100), 0.4)
    assert found is not None
    assert found.box == (0, 10, 10, 20)
    assert sorted(map(tuple, as_points(found.quad).round(4))) == [(0, 10), (0, 20), (10, 10), (10, 20)]
    assert crop_object(label, (20, 0, 100, 100), 0.6) is None


# --- cutting whole sets


def large_set(root: Path) -> LabelledSet:
    first = photograph(root / "images" / "a.png", 150, 100, 1)
    later = photograph(root / "later" / "a.png", 150, 100, 2)
    small = photograph(root / "images" / "b.jpg", 50, 40, 3)
    values = np.random.default_rng(4).integers(0, 3, (100, 150), dtype=np.uint8)
    Image.fromarray(values).save(root / "a_mask.png")
    return LabelledSet(
        name="large",
        items=[
            LabelledImage(
                "images/a",
                str(first),
                150,
                100,
                split="val",
                objects=(
                    ObjectLabel("ship", (10.5, 10, 20, 30.25)),
                    ObjectLabel("ship", (0, 0, 150, 100)),
                ),
                captions=("A sea.",),
                semantic=MaskFile(str(root / "a_mask.png"), ((0, 1), (1, 0), (2, 255))),
                second_image=str(later),
                change=ChangeFile(str(root / "a_mask.png")),
            ),
            LabelledImage("images/b", str(small), 50, 40, group="g", objects=(), captions=("Small.",)),
        ],
        object_classes=("ship",),
        semantic_classes=("one", "zero"),
        licence="CC0",
        findings=("old",),
    )


def test_crops_hold_the_pixels_and_labels_of_their_place(tmp_path: Path) -> None:
    whole = large_set(tmp_path)
    crops = cut(whole, 64, 16, tmp_path / "crops")
    parent = whole.items[0]
    image, later = (np.asarray(Image.open(p)) for p in (parent.image, parent.second_image))
    semantic, change = parent.semantic(), parent.change()
    assert semantic.tolist()[0][:5] == [
        {0: 1, 1: 0, 2: 255}[v] for v in np.asarray(Image.open(tmp_path / "a_mask.png"))[0][:5]
    ]
    covered = np.zeros((100, 150), bool)
    assert len(crops) == 6 + 1
    for crop in crops.items[:6]:
        x, y = (int(v) for v in crop.id.split("@")[1].split(","))
        place = np.s_[y : y + crop.height, x : x + crop.width]
        covered[place] = True
        assert np.array_equal(np.asarray(Image.open(crop.image)), image[place])
        assert np.array_equal(np.asarray(Image.open(crop.second_image)), later[place])
        assert np.array_equal(crop.semantic(), semantic[place])
        assert np.array_equal(crop.change(), change[place])
        assert (crop.split, crop.group, crop.captions) == ("val", "images/a", ())
    assert covered.all()
    clear, hidden = crops.items[0].objects
    assert clear.box == (10.5, 10, 20, 30.25) and not clear.difficult
    # Less than 40 % of the large one is in this crop: it is neither an object of it nor background.
    assert hidden == replace(hidden, box=(0, 0, 64, 64), difficult=True)
    small = crops.items[6]
    assert (small.group, small.captions, small.objects) == ("g", ("Small.",), ())
    assert Path(small.image).read_bytes() == Path(whole.items[1].image).read_bytes()
    assert crops.findings == (
        "old",
        "1 images: captions and scene class are about the whole image; crops have none",
        "1 objects: less than 40% of them is in any crop; difficult in all of them",
    )


def test_an_interrupted_cut_continues(tmp_path: Path) -> None:
    whole = large_set(tmp_path)
    first = cut(whole, 64, 16, tmp_path / "crops")
    kept, lost = Path(first.items[0].image), Path(first.items[1].image)
    pixels, before = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert cut(whole, 64, 16, tmp_path / "crops").items[1].image == str(lost)
    assert lost.read_bytes() == pixels
    assert kept.stat().st_mtime_ns == before
    os.utime(whole.items[0].image, ns=(before + 10**9, before + 10**9))
    cut(whole, 64, 16, tmp_path / "crops")
    assert kept.stat().st_mtime_ns != before


@pytest.mark.parametrize(
    ("size", "overlap", "visible"), [(0, 0, 0.4), (64, 64, 0.4), (64, -1, 0.4), (64, 0, 0)]
)
def test_impossible_crops_are_refused(tmp_path: Path, size: int, overlap: int, visible: float) -> None:
    with pytest.raises(ConfigError):
        cut(large_set(tmp_path), size, overlap, tmp_path / "crops", visible)


def test_crops_of_killed_compilations_are_used_again_or_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ship_masks(tmp_path / "masks", 4)
    out = tmp_path / "out"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vitp.data.compile._write_lines", killed)
        compile_labels(folder, "masks", out, crop=32)
    (waiting,) = tmp_path.glob(".out.crops-*")
    assert len(list(waiting.rglob("*.png"))) > 4
    # Of this process, so it may still be wanted; then of one that is gone.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vitp.data.compile._write_lines", killed)
        compile_labels(folder, "masks", out, crop=48)
    assert len(list(tmp_path.glob(".out.crops-*"))) == 2
    for note in tmp_path.glob(".out.crops-*/.owner.*"):
        note.rename(note.with_name(re.sub(r"-\d+-\d+\.", f"-{2**22 + 5}-7.", note.name)))
    compile_labels(folder, "masks", out, crop=32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "out"]
    assert [path.name for path in (out / "crops").iterdir() if path.name.startswith(".")] == []


# --- our own label files

flat = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=5).map(
    lambda points: tuple(v for point in points for v in point)
)
labels = st.builds(
    ObjectLabel,
    category=st.text(min_size=1, max_size=5),
    box=st.tuples(coordinates, coordinates, coordinates, coordinates),
    quad=st.none() | st.tuples(*[coordinates] * 8),
    polygons=st.lists(flat, max_size=2).map(tuple),
    difficult=st.booleans(),
)
objects = st.none() | st.lists(labels, max_size=3).map(tuple)


@settings(max_examples=80, deadline=None)
@given(
    objects=objects,
    later=objects,
    scene=st.none() | st.text(max_size=5),
    captions=st.lists(st.text(min_size=1, max_size=9), max_size=3).map(tuple),
    split=st.sampled_from(["train", "val", "test"]),
)
def test_items_survive_json(objects, later, scene, captions, split) -> None:
    root = Path("/data")
    item = LabelledImage(
        "x/a",
        "/data/x/a.png",
        30,
        20,
        split=split,
        group="g",
        objects=objects,
        scene=scene,
        captions=captions,
        semantic=MaskFile("/data/m/a.png", ((0, 0), (0xFFFFFF, 1)), (1, 2, 3, 4)),
        second_image="/elsewhere/a.png",
        change=ChangeFile("/data/c/a.png"),
        later_objects=later,
    )
    roots = Roots(Path("/out"), root, root)
    row = json.loads(vitp_labels.label_line(item, roots))
    assert vitp_labels.item_from_json(row, split, roots) == item
    assert row["image"] == "x/a.png"


def test_label_files_name_what_is_wrong(tmp_path: Path) -> None:
    whole = large_set(tmp_path)
    roots = Roots(tmp_path / "out", tmp_path, tmp_path)
    vitp_labels.write_compiled(whole, roots)
    again = vitp_labels.read_compiled(tmp_path / "out")
    assert sorted(again.items, key=lambda i: i.id) == whole.items
    assert replace(again, items=()) == replace(whole, items=())
    with (tmp_path / "out" / "labels" / "val.jsonl").open("a") as file:
        file.write('{"id": "x"}\n')
    with pytest.raises(DataError, match=r"val\.jsonl:2: is not a labelled image \(KeyError"):
        vitp_labels.read_compiled(tmp_path / "out")
    (tmp_path / "out" / "labels" / "set.json").write_text("{}")
    with pytest.raises(DataError, match=r"set\.json: is not a label set"):
        vitp_labels.read_compiled(tmp_path / "out")
    odd = replace(whole, items=[replace(whole.items[1], semantic=lambda: np.zeros((40, 50), np.uint8))])
    with pytest.raises(DataError, match="images/b: its mask is neither in a file"):
        vitp_labels.write_compiled(odd, roots)


# --- compile_labels


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


OPTIONS = {"classes": "ship=white", "instances": True, "group_regex": r"^P\d+", "licence": "CC0"}


@pytest.mark.parametrize("crop", [None, 32])
def test_compiling_twice_gives_the_same_bytes(tmp_path: Path, crop: int | None) -> None:
    root = ship_masks(tmp_path / "ships")
    first = compile_labels(
        root, "auto", tmp_path / "one", seed=3, crop=crop, overlap=8 if crop else 0, **OPTIONS
    )
    compile_labels(root, "masks", tmp_path / "two", seed=3, crop=crop, overlap=8 if crop else 0, **OPTIONS)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    other = compile_labels(root, "masks", tmp_path / "three", seed=4, crop=crop, **OPTIONS)
    assert other.content_hash != first.content_hash
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "ships", "three", "two"]


@pytest.mark.parametrize("crop", [None, 32])
def test_compiled_files_fit_together(tmp_path: Path, crop: int | None) -> None:
    root = ship_masks(tmp_path / "ships")
    out = tmp_path / "out"
    config = SynthesisConfig(questions_per_image=3, tasks={"caption": 0.0})
    summary = compile_labels(root, "masks", out, crop=crop, synthesis=config, max_tiles=6, **OPTIONS)
    out = out.rename(tmp_path / "moved")
    (entry,) = read_mixture(out / "mixture.json")
    train = summary.splits["train"]
    assert len(entry.records) == train.records > 0
    assert entry.max_tiles == 6
    labelled = vitp_labels.read_compiled(out)
    assert Counter(i.split for i in labelled.items) == {s: c.images for s, c in summary.splits.items()}
    by_image = {item.image: item for item in labelled.items}
    for record in entry.records:
        item = by_image[record.images[0]]
        assert item.split == "train"
        assert Path(item.image).is_file()
        assert record.sizes == ((item.width, item.height),)
        assert len(record.turns) <= 3
        assert item.semantic().shape == (item.height, item.width)
        assert record.licence == "CC0"
    if crop is None:
        direct = read_labels("masks", root, **OPTIONS)
        assert sorted(labelled.items, key=lambda i: i.id) == list(direct.items)
    else:
        assert {(i.width, i.height) for i in labelled.items} == {(32, 32)}
    written = json.loads((out / "summary.json").read_text())
    assert written["content_hash"] == summary.content_hash
    assert written["splits"]["train"]["tasks"] == dict(sorted(train.tasks.items()))
    assert sum(train.tasks.values()) == train.turns
    clear = [not o.difficult for i in labelled.items if i.split == "train" for o in i.objects]
    assert train.objects["ship"] == sum(clear)
    assert all(clear) == (crop is None)  # ships that a crop cuts are difficult in it
    assert written["options"]["classes"] == "ship=white"


def test_a_compiled_set_can_be_compiled_again(tmp_path: Path) -> None:
    root = ship_masks(tmp_path / "ships")
    first = compile_labels(root, "masks", tmp_path / "one", **OPTIONS)
    second = compile_labels(tmp_path / "one", "auto", tmp_path / "two", seed=9)
    assert {s: c.images for s, c in first.splits.items()} == {s: c.images for s, c in second.splits.items()}
    assert first.splits["train"].objects == second.splits["train"].objects
    assert len(read_mixture(tmp_path / "two" / "mixture.json")[0].records) == second.splits["train"].records


def test_what_is_there_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ship_masks(tmp_path / "ships")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(DataError, match="doesn't come from an earlier compilation"):
            compile_labels(root, "masks", foreign, force=force)
    with pytest.raises(DataError, match="doesn't come from an earlier compilation"):
        compile_labels(root, "masks", root, force=True)
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is welcome
    compile_labels(root, "masks", out, **OPTIONS)
    before = tree(out)
    with pytest.raises(DataError, match="--force"):
        compile_labels(root, "masks", out, **OPTIONS)
    with pytest.raises(DataError, match="holds the labels that are to be read"):
        compile_labels(out, "vitp", out, force=True)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitp.data.compile_summary.CompileSummary.write", fail)
        with pytest.raises(KeyboardInterrupt):
            compile_labels(root, "masks", out, seed=1, force=True, **OPTIONS)
    assert tree(out) == before
    compile_labels(root, "masks", out, seed=1, force=True, **OPTIONS)
    assert tree(out) != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign", "out", "ships"]


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    root = ship_masks(tmp_path / "ships", 4)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"val": [f"P{k // 2}_{k}" for k in range(4)]}))
    with pytest.raises(DataError, match="nothing to ask in the training split"):
        compile_labels(root, "masks", tmp_path / "out", split_file=split)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pairs", [False, True])
def test_generated_scenes_take_the_same_path(tmp_path: Path, pairs: bool) -> None:
    options = {"count": 20, "size": 64, "val": 0.2, "test": 0.1, "pairs": pairs}
    summary = compile_labels("general", "scenes", tmp_path / "out", seed=5, **options)
    assert {s: c.images for s, c in summary.splits.items()} == {"train": 14, "val": 4, "test": 2}
    compile_labels("general", "scenes", tmp_path / "again", seed=5, **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "again")
    read = vitp_labels.read_compiled(tmp_path / "out")
    made = read_labels("scenes", "general", seed=5, **options)
    for item, expected in zip(read.items, made.items, strict=True):
        assert item == expected
        assert np.array_equal(item.semantic(), expected.semantic())
        assert item.image.startswith("scene:general/5/")
    assert (read.items[0].change is not None) == pairs
    (entry,) = read_mixture(tmp_path / "out" / "mixture.json")
    assert entry.records[0].images[0].startswith("scene:")


@pytest.mark.realdata
def test_real_ships_in_crops(tmp_path: Path) -> None:
    root = DATA / "hrsid_mini"
    if not root.is_dir():
        pytest.skip(f"{root} is absent; set VITP_DATA")
    for kind in ("images", "masks"):
        (tmp_path / "few" / kind).mkdir(parents=True)
        for path in sorted((root / kind).iterdir())[::6]:
            (tmp_path / "few" / kind / path.name).write_bytes(path.read_bytes())
    summary = compile_labels(
        tmp_path / "few",
        "auto",
        tmp_path / "out",
        crop=512,
        overlap=224,
        classes="ship=green",
        instances=True,
        group_regex=r"^P\d+",
    )
    assert sum(c.images for c in summary.splits.values()) == 6 * 4
    assert sum(c.objects["ship"] for c in summary.splits.values()) > 0
    labelled = vitp_labels.read_compiled(tmp_path / "out")
    for item in labelled.items:
        mask = item.semantic()
        assert mask.shape == (item.height, item.width) == (512, 512)
        for label in item.objects:
            x1, y1, x2, y2 = (int(v) for v in label.box)
            assert mask[y1:y2, x1:x2].any()


@pytest.mark.parametrize("name", ["/pics/a", "../pics/a", "a/../../b", "C:\\pics\\a", "..\\a", "/", ".."])
def test_names_that_lead_elsewhere_get_a_path_inside(tmp_path: Path, name: str) -> None:
    inside = files.inner_path(name)
    assert inside != files.inner_path(name + "b")
    assert (tmp_path / inside).resolve().is_relative_to(tmp_path) and "\\" not in inside
    assert files.inner_path("train/a b") == "train/a b"


@pytest.mark.parametrize("absolute", [True, False])
def test_crops_of_images_elsewhere_lie_in_the_output(tmp_path: Path, absolute: bool) -> None:
    pictures = tmp_path / "pics"
    pictures.mkdir()
    labels = tmp_path / "set" / "annotations.json"
    labels.parent.mkdir()
    rows = []
    for k in range(6):
        Image.new("RGB", (64, 64), (40 * k, 9, 9)).save(pictures / f"{k}.png")
        name = str(pictures / f"{k}.png") if absolute else f"../pics/{k}.png"
        rows.append({"id": k, "file_name": name, "width": 64, "height": 64})
    boxes = [
        {"id": k, "image_id": k, "category_id": 1, "bbox": [2, 2, 20 + k, 20], "iscrowd": 0} for k in range(6)
    ]
    content = {"images": rows, "annotations": boxes, "categories": [{"id": 1, "name": "ship"}]}
    labels.write_text(json.dumps(content))
    compile_labels(labels.parent, "coco", tmp_path / "out", crop=32)
    assert len(list(pictures.iterdir())) == 6
    assert len(list((tmp_path / "out" / "crops").rglob("*.png"))) == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pics", "set"]


def test_captions_that_cropping_loses_are_named_as_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    lines = ["image,caption"]
    for k in range(6):
        Image.new("RGB", (64, 64), (40 * k, 9, 9)).save(folder / f"{k}.png")
        lines.append(f"{k}.png,a boat {k}")
    (folder / "captions.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="not about crops"):
        compile_labels(folder, "captions", tmp_path / "out", crop=32)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
