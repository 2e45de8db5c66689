"""Crops of large images: windows, objects cut by their borders, files, and interrupted work."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.compile_toys import coordinates, large_set, ship_masks
from vitp.core.errors import ConfigError
from vitp.data.compile import compile_labels
from vitp.data.formats.crops import crop_object, crop_windows, cut
from vitp.data.synthesis.pretext_look import look_at
from vitp.data.synthesis.pretext_tasks import colour
from vitp.io.images import load_image, where_valid
from vitp.records.geometry import area, as_points, bounds, clip_polygon, min_area_quad, signed_area
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel

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


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_what_is_transparent_holds_nothing_in_crops_too(tmp_path: Path, suffix: str) -> None:
    """Its black is no colour of theirs; the pixels are those of the whole image."""
    rgba_HWC = np.full((64, 96, 4), (200, 30, 40, 255), np.uint8)
    rgba_HWC[10:40, 20:60, 3] = 0
    rgba_HWC[50:, 70:, 3] = 128
    path = tmp_path / f"a{suffix}"
    Image.fromarray(rgba_HWC).save(path, **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    whole = LabelledSet("a", [LabelledImage(id="a", image=str(path), width=96, height=64, split="train")])
    shown_HWC, held_HW = np.asarray(load_image(path)), where_valid(path, pictures=True)
    assert held_HW is not None and held_HW.sum() == 64 * 96 - 30 * 40
    crops = cut(whole, 32, 0, tmp_path / "crops").items
    assert len(crops) == 6
    for crop in crops:
        x, y = (int(v) for v in crop.id.split("@")[1].split(","))
        place = np.s_[y : y + 32, x : x + 32]
        assert np.array_equal(np.asarray(load_image(crop.image)), shown_HWC[place])
        own_HW = where_valid(crop.image, pictures=True)
        assert np.array_equal(held_HW[place], np.ones((32, 32), bool) if own_HW is None else own_HW)
    # Of the first crop 264 pixels of 1,024 hold nothing, of the second 704.
    asked = [look_at(crop, None) for crop in crops]
    assert asked[1] is None or not asked[1].held_HW.all()
    assert asked[0] is not None
    question = colour(asked[0], np.random.default_rng(0))
    assert question is not None and question.answer == "red"


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
