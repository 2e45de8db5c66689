"""Windows, scales and mirrors: what is put together again is what was there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitp.core.errors import ConfigError, VitpError
from vitp.metrics.results import Prediction, Scores
from vitp.models.backbone import Backbone
from vitp.models.rotated.boxes import quads_of
from vitp.records.labels import LabelledSet
from vitp.tasks import merging
from vitp.tasks.base import InputSize, TaskBatch, TaskModel, TestSettings
from vitp.tasks.dense import DecodedModel, DecoderSettings
from vitp.tasks.merging import in_image, merge
from vitp.tasks.predict import predict_images
from vitp.tasks.views import View, views_of
from vitp.tasks.windows import ClassSums, class_map, view_weights


def test_views_cover_the_image_and_end_at_its_border() -> None:
    views = views_of(50, 70, TestSettings(window=32, overlap=0.25), InputSize())
    seen = torch.zeros(50, 70)
    for view in views:
        x1, y1, x2, y2 = view.window
        assert view.size == (y2 - y1, x2 - x1) == (32, 32)
        seen[y1:y2, x1:x2] += 1
    assert bool((seen > 0).all()) and len(views) == 6
    assert views_of(50, 70, TestSettings(), InputSize()) == [View((0, 0, 70, 50), (50, 70))]
    assert views_of(50, 70, TestSettings(), InputSize(mode="fixed", size=32)) == [
        View((0, 0, 70, 50), (32, 32))
    ]


def test_scales_and_mirrors_multiply_the_views() -> None:
    wanted = TestSettings(window=32, scales=(0.5, 1.0, 2.0), flip=True)
    views = views_of(64, 64, wanted, InputSize())
    per_scale = [sum(view.window[2] - view.window[0] == side for view in views) for side in (64, 32, 16)]
    assert per_scale == [2, 2 * 9, 2 * 25]
    assert all(view.size == (32, 32) for view in views)
    assert sum(view.mirrored for view in views) == len(views) // 2
    tops = [view.window[1] for view in views]
    assert tops == sorted(tops)


def colour_classes(images_BCHW: Tensor, later_BCHW: Tensor | None = None) -> Tensor:
    """A model without context: the classes of a pixel are its colours."""
    return (images_BCHW.float() / 255 + 1e-3).softmax(1)


@given(
    height=st.integers(9, 60), width=st.integers(9, 60), window=st.integers(8, 40), overlap=st.sampled_from([0.0, 0.25, 0.6]),
    flip=st.booleans(), batch=st.integers(1, 5),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_windows_of_a_pixelwise_model_change_nothing(
    height: int, width: int, window: int, overlap: float, flip: bool, batch: int
) -> None:
    rng = np.random.default_rng(height * width)
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    wanted = TestSettings(window=window, overlap=overlap, flip=flip)
    views = views_of(height, width, wanted, InputSize())
    found = class_map(colour_classes, image, None, views, batch, torch.device("cpu"), shares=True)
    wanted_KHW = colour_classes(image[None])[0]
    assert torch.equal(found.classes_RW, wanted_KHW.argmax(0).to(torch.uint8))
    assert found.shares_KRW is not None
    torch.testing.assert_close(found.shares_KRW, wanted_KHW / wanted_KHW.sum(0), atol=1e-5, rtol=0)


def test_overlapping_maps_are_weighted_as_if_they_were_all_kept() -> None:
    rng = np.random.default_rng(0)
    image = torch.zeros(3, 37, 29, dtype=torch.uint8)
    views = views_of(37, 29, TestSettings(window=16, overlap=0.5, scales=(1.0, 2.0)), InputSize())
    maps = {view: torch.from_numpy(rng.random((5, *view.size))).float() for view in views}
    rows = iter(views)
    found = class_map(
        lambda images, later: torch.stack([maps[next(rows)] for _ in range(len(images))]),
        image, None, views, 3, torch.device("cpu"),
    )  # fmt: skip
    total = torch.zeros(5, 37, 29)
    for view in views:
        x1, y1, x2, y2 = view.window
        size = (y2 - y1, x2 - x1)
        large = nn.functional.interpolate(maps[view][None], size, mode="bilinear")[0]
        weights = view_weights(view, (37, 29))
        total[:, y1:y2, x1:x2] += large if weights is None else large * weights
    assert torch.equal(found.classes_RW, total.argmax(0).to(torch.uint8))


def test_only_the_rows_that_can_change_are_kept() -> None:
    kept = ClassSums((1000, 16), (0, 16), torch.device("cpu"))
    for top in range(0, 992, 8):
        kept.finish(top)
        kept.add(
            torch.rand(2, 16, 16)[:, : min(16, 1000 - top)], View((0, top, 16, min(top + 16, 1000)), (16, 16))
        )
        assert kept._sum_KRW is not None and kept._sum_KRW.shape[1] <= 24


def test_objects_of_a_view_move_into_the_image() -> None:
    view = View((10, 20, 30, 60), (80, 40), mirrored=True)  # enlarged twice
    prediction = Prediction(
        boxes_N4=torch.tensor([[0.0, 0.0, 10.0, 20.0]]),
        quads_N8=torch.tensor([[0.0, 0.0, 10.0, 0.0, 10.0, 20.0, 0.0, 20.0]]),
        scores_N=torch.tensor([0.5]),
        labels_N=torch.tensor([1]),
    )
    moved = in_image(prediction, view)
    assert moved.boxes_N4 is not None and moved.boxes_N4.tolist() == [[25.0, 20.0, 30.0, 30.0]]
    assert moved.quads_N8 is not None
    x, y = moved.quads_N8.view(4, 2).T
    assert (float(x.min()), float(y.min()), float(x.max()), float(y.max())) == (25.0, 20.0, 30.0, 30.0)
    # Still clockwise in the image, y down.
    assert float((x * y.roll(-1) - y * x.roll(-1)).sum()) > 0


def objects(boxes: Sequence[Sequence[float]], scores: Sequence[float], labels: Sequence[int]) -> Prediction:
    boxes_N4 = torch.tensor(boxes).reshape(-1, 4).float()
    return Prediction(boxes_N4=boxes_N4, scores_N=torch.tensor(scores), labels_N=torch.tensor(labels).long())


def test_an_object_in_two_windows_is_one() -> None:
    left, right = View((0, 0, 32, 32), (32, 32)), View((16, 0, 48, 32), (32, 32))
    found = [
        (objects([[20, 4, 30, 14], [0, 0, 5, 5]], [0.6, 0.9], [0, 1]), left),
        (objects([[4, 4, 14, 14], [4, 4, 14, 14]], [0.8, 0.3], [0, 1]), right),
    ]
    merged = merge(found, (32, 48))
    assert merged.scores_N is not None and merged.boxes_N4 is not None and merged.labels_N is not None
    assert merged.scores_N.tolist() == pytest.approx([0.9, 0.8, 0.3])
    assert merged.boxes_N4[1].tolist() == [20, 4, 30, 14] and merged.labels_N.tolist() == [1, 0, 1]
    alone = merge(found[:1], (32, 48))
    assert alone.scores_N is not None and alone.scores_N.tolist() == pytest.approx([0.6, 0.9])


def test_an_oriented_object_in_two_windows_is_one() -> None:
    def oriented(boxes: Sequence[Sequence[float]], scores: list[float], labels: list[int]) -> Prediction:
        quads_N8 = quads_of(torch.tensor(boxes).reshape(-1, 5).float())
        return Prediction(quads_N8=quads_N8, scores_N=torch.tensor(scores), labels_N=torch.tensor(labels))

    left, right = View((0, 100, 100, 200), (100, 100)), View((50, 100, 150, 200), (100, 100))
    found = [
        (oriented([(70, 50, 30, 10, 0.3), (20, 20, 8, 6, 0.0)], [0.9, 0.6], [0, 1]), left),
        (oriented([(20, 50, 28, 10, 0.3), (20, 50, 30, 10, 0.3)], [0.8, 0.7], [0, 1]), right),
    ]
    merged = merge(found, (200, 150))
    assert merged.quads_N8 is not None and merged.scores_N is not None and merged.labels_N is not None
    assert merged.scores_N.tolist() == pytest.approx([0.9, 0.7, 0.6]) and merged.labels_N.tolist() == [
        0,
        1,
        1,
    ]
    centres = merged.quads_N8.reshape(-1, 4, 2).mean(1)
    assert centres.tolist() == [pytest.approx(place, abs=1e-4) for place in ([70, 150], [70, 150], [20, 120])]
    assert len(merge(found, (200, 150), most=2).scores_N) == 2  # type: ignore[arg-type]


def test_masks_are_pasted_where_their_window_was(monkeypatch: pytest.MonkeyPatch) -> None:
    views = [View((0, 0, 8, 8), (8, 8)), View((4, 0, 12, 8), (16, 16), mirrored=True)]
    small, large = torch.zeros(1, 8, 8, dtype=torch.bool), torch.zeros(1, 16, 16, dtype=torch.bool)
    small[0, 0:2, 0:3] = True
    large[0, 8:12, 0:4] = True  # mirrored: columns 12 … 16 of 16, so 6 … 8 of 8, so 10 … 12 of the image
    found = [
        (Prediction(torch.tensor([[0.0, 0, 3, 2]]), None, torch.tensor([0.9]), torch.tensor([0]), small), views[0]),
        (Prediction(torch.tensor([[0.0, 8, 4, 12]]), None, torch.tensor([0.8]), torch.tensor([0]), large), views[1]),
    ]  # fmt: skip
    merged = merge(found, (8, 12))
    assert merged.masks_NHW is not None and merged.masks_NHW.shape == (2, 8, 12)
    assert int(merged.masks_NHW[0].sum()) == 6 and bool(merged.masks_NHW[0, 0:2, 0:3].all())
    assert int(merged.masks_NHW[1].sum()) == 4 and bool(merged.masks_NHW[1, 4:6, 10:12].all())
    assert merged.boxes_N4 is not None and merged.boxes_N4[1].tolist() == [10, 4, 12, 6]
    monkeypatch.setattr(merging, "LARGEST_MASKS", 100)
    with pytest.raises(VitpError, match="2 masks of 12×8 px don't fit"):
        merge(found, (8, 12))


class Plain(Backbone):
    """Nothing but what a model asks for."""

    image_size, mean, std = (8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    num_layers, channels, strides = 1, (3,), (1,)

    def forward_features(self, image_BCHW: Tensor, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        return [image_BCHW]


class Colours(DecodedModel):
    """Classifies each pixel by its brightest colour."""

    name: ClassVar[str] = "segmentation"

    def __init__(self) -> None:
        super().__init__(("r", "g", "b"), (3,), DecoderSettings(kind="linear", auxiliary=0))
        self.decoder = nn.Identity()
        self.plain = Plain()
        self.unused = nn.Parameter(torch.zeros(1))

    @property
    def backbone(self) -> Backbone:
        return self.plain

    def maps(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Tensor]:
        return images_BCHW.float() / 255  # type: ignore[return-value]

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        raise NotImplementedError


class Corner(TaskModel):
    """Finds one box: the pixels above 0."""

    name: ClassVar[str] = "detection"

    def __init__(self) -> None:
        super().__init__(("bright",))
        self.plain, self.seen = Plain(), []
        self.unused = nn.Parameter(torch.zeros(1))

    @property
    def backbone(self) -> Backbone:
        return self.plain

    def forward(self, batch: TaskBatch) -> dict[str, Tensor]:
        raise NotImplementedError

    def loss_counts(self, batch: TaskBatch) -> dict[str, float]:
        raise NotImplementedError

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        raise NotImplementedError

    def predict_batch(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Prediction]:
        self.seen += [tuple(image.shape[-2:]) for image in images_BCHW]
        found = []
        for image in images_BCHW:
            rows, columns = torch.nonzero(image[0] > 127, as_tuple=True)
            if len(rows):
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                found.append(objects([[float(v) for v in box]], [0.9], [0]))
            else:
                found.append(objects([], [], []))
        return found


@pytest.mark.parametrize("wanted", [{}, {"window": 16}, {"flip": True}, {"window": 24, "overlap": 0.5}])
def test_class_maps_have_the_size_of_each_image(wanted: dict) -> None:
    rng = np.random.default_rng(1)
    images = [
        torch.from_numpy(rng.integers(0, 256, (3, h, w), dtype=np.uint8))
        for h, w in ((20, 33), (40, 24), (20, 33))
    ]
    found = predict_images(Colours(), images, TestSettings(**wanted))
    for image, prediction in zip(images, found, strict=True):
        assert prediction.semantic_HW is not None
        assert torch.equal(prediction.semantic_HW.long(), image.float().argmax(0))
    resized = predict_images(Colours(), images, TestSettings(resize=InputSize(mode="fixed", size=16)))
    assert [tuple(p.semantic_HW.shape) for p in resized] == [(20, 33), (40, 24), (20, 33)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"flip": True},
        {"scales": (0.5, 1.0, 2.0)},
        {"resize": InputSize(mode="fixed", size=96)},
        {"window": 48},
    ],
)
def test_boxes_come_back_in_pixels_of_the_image(wanted: dict) -> None:
    image = torch.zeros(3, 64, 80, dtype=torch.uint8)
    image[:, 12:20, 36:44] = 255
    (found,) = predict_images(Corner(), [image], TestSettings(**wanted))
    assert found.boxes_N4 is not None and len(found.boxes_N4) == 1
    assert found.boxes_N4[0].tolist() == pytest.approx([36, 12, 44, 20], abs=1.0)


def test_models_remember_their_input_size() -> None:
    model, image = Corner(), torch.zeros(3, 30, 40, dtype=torch.uint8)
    model.input_size = InputSize(mode="short", size=60)
    predict_images(model, [image])
    predict_images(model, [image], TestSettings(resize=InputSize()))
    assert model.seen == [(60, 80), (30, 40)]


def test_pairs_are_asked_for() -> None:
    model, image = Colours(), torch.zeros(3, 8, 8, dtype=torch.uint8)
    model.name = "change"  # type: ignore[misc]
    with pytest.raises(ConfigError, match="needs two dates"):
        predict_images(model, [image])
    with pytest.raises(ConfigError, match="the dates are 8×8 and 8×6 px"):
        predict_images(model, [image], later=[image[:, :6]])


def test_a_part_at_the_edge_of_a_window_gives_way_to_the_whole() -> None:
    left, right = View((0, 0, 32, 32), (32, 32)), View((16, 0, 48, 32), (32, 32))
    whole = objects([[2, 4, 30, 14]], [0.5], [0])
    # The right window sees only columns 16 … 30 of it, and is surer.
    for part, kept in (
        (objects([[0, 4, 14, 14]], [0.9], [0]), 1),
        (objects([[0, 4, 14, 14]], [0.9], [1]), 2),  # another class
        (objects([[2, 4, 14, 14]], [0.9], [0]), 2),  # not at the edge
        (objects([[0, 20, 14, 30]], [0.9], [0]), 2),  # elsewhere
    ):
        merged = merge([(whole, left), (part, right)], (32, 48))
        assert merged.scores_N is not None and len(merged.scores_N) == kept
    # At the image's own border nothing is cut.
    outer = objects([[14, 4, 32, 14]], [0.9], [0])
    merged = merge([(objects([[30, 4, 32, 14]], [0.5], [0]), left), (outer, right)], (32, 48))
    assert merged.boxes_N4 is not None and merged.boxes_N4[0].tolist() == [30, 4, 48, 14]


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_what_is_found_in_each_position_of_a_square_comes_back(turns: int, mirrored: bool) -> None:
    """One object, drawn; seen in each position, found there, and brought back as box, quad, mask and class map."""
    image = torch.zeros(1, 24, 40, dtype=torch.uint8)
    image[0, 3:9, 12:28] = 200
    view = View((0, 2, 40, 20), (36, 80), mirrored, turns)  # enlarged twice
    seen = view.of(image)
    assert tuple(seen.shape[-2:]) == view.seen_size == ((80, 36) if turns % 2 else (36, 80))
    mask = seen[0] > 100
    rows, columns = torch.nonzero(mask, as_tuple=True)
    x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    box = torch.stack([x1, y1, x2, y2]).float()
    # A quad that tells its corners apart: the upper left one of the box as it is seen, then clockwise.
    quad = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2]).float()
    found = Prediction(box[None], quad[None], torch.tensor([0.9]), torch.tensor([0]), mask[None])
    moved = in_image(found, view)
    assert moved.boxes_N4 is not None and moved.quads_N8 is not None and moved.masks_NHW is not None
    assert moved.boxes_N4.tolist() == [[12, 3, 28, 9]]
    x, y = moved.quads_N8.view(4, 2).T
    assert sorted(zip(x.tolist(), y.tolist(), strict=True)) == [(12, 3), (12, 9), (28, 3), (28, 9)]
    assert float((x * y.roll(-1) - y * x.roll(-1)).sum()) == 2 * 16 * 6, "clockwise in the image, y down"
    merged = merge([(found, view)], (24, 40))
    assert merged.masks_NHW is not None and torch.equal(merged.masks_NHW[0], image[0] > 100)
    assert torch.equal(view.upright(seen), View(view.window, view.size).of(image))


def test_eight_positions_of_oriented_objects_are_one() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 10:16, 20:40] = 255
    views = views_of(40, 60, TestSettings(tta="d4"), InputSize())
    assert len(views) == 8 and len({(view.turns, view.mirrored) for view in views}) == 8
    (found,) = predict_images(Corner(), [image], TestSettings(tta="d4"))
    assert found.boxes_N4 is not None and found.boxes_N4.tolist() == [[20, 10, 40, 16]]
    tilted = torch.tensor([[30.0, 20, 16, 6, 0.4]])
    parts = []
    for view in views:
        # The same box as each view shows it: its corners, moved as the image is.
        points = quads_of(tilted).view(4, 2)
        for _ in range(view.turns):
            width = 60 if _ % 2 == 0 else 40
            points = torch.stack([points[:, 1], width - points[:, 0]], 1)
        if view.mirrored:
            points = torch.stack([view.seen_size[1] - points[:, 0], points[:, 1]], 1)
        parts.append((Prediction(None, points.reshape(1, 8), torch.tensor([0.5]), torch.tensor([0])), view))
    merged = merge(parts, (40, 60))
    assert merged.quads_N8 is not None and len(merged.quads_N8) == 1
    corners = merged.quads_N8.view(4, 2)
    wanted = quads_of(tilted).view(4, 2)
    assert float(torch.cdist(corners, wanted).amin(1).max()) < 1e-4


def test_staggered_windows_see_each_pixel_at_four_places_of_a_patch() -> None:
    wanted = TestSettings(window=32, overlap=0.5, stagger=True)
    views = views_of(150, 171, wanted, InputSize(), origin=(5, -3), patch=8)
    seen = np.zeros((150, 171), int)
    along = {axis: [np.zeros((150, 171), bool) for _ in range(4)] for axis in (0, 1)}
    for x1, y1, x2, y2 in (view.window for view in views):
        assert (x2 - x1, y2 - y1) == (32, 32)
        seen[y1:y2, x1:x2] += 1
        for axis, start in ((0, x1 - 5), (1, y1 + 3)):
            if start % 2 == 0:  # those at the border lie where the border is
                along[axis][start % 8 // 2][y1:y2, x1:x2] = True
    assert seen.min() >= 1
    inside = (slice(48, -48), slice(48, -48))
    assert all(place[inside].mean() > 0.85 for axis in (0, 1) for place in along[axis])
    assert len(views) == len(views_of(150, 171, wanted, InputSize(), origin=(5, -3)))
    assert [view.window[1] for view in views] == sorted(view.window[1] for view in views)
    # Two cuts of one ground see the same windows inside.
    cut = views_of(150, 150, wanted, InputSize(), origin=(-16, -19), patch=8)
    moved = {(x1 + 21, y1 + 16, x2 + 21, y2 + 16) for x1, y1, x2, y2 in (view.window for view in cut)}
    inner = {view.window for view in views if min(view.window[:2]) > 32 and max(view.window[2:]) < 128}
    assert len(inner) >= 4 and inner <= moved


@given(
    height=st.integers(9, 90), width=st.integers(9, 90), x=st.integers(-50, 50), y=st.integers(-50, 50),
    overlap=st.sampled_from([0.5, 0.625, 0.75]), patch=st.sampled_from([2, 7, 8]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_staggered_windows_of_a_pixelwise_model_change_nothing(
    height: int, width: int, x: int, y: int, overlap: float, patch: int
) -> None:
    rng = np.random.default_rng(height * width)
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    wanted = TestSettings(window=24, overlap=overlap, stagger=True)
    views = views_of(height, width, wanted, InputSize(), origin=(x, y), patch=patch)
    found = class_map(colour_classes, image, None, views, 4, torch.device("cpu"))
    assert torch.equal(found.classes_RW, colour_classes(image[None])[0].argmax(0).to(torch.uint8))


def test_windows_that_share_too_little_are_not_staggered() -> None:
    narrow = TestSettings(window=32, overlap=0.125, stagger=True)
    with pytest.raises(ConfigError, match=r"test\.stagger.* share 4 px .* patch of 8 px"):
        views_of(60, 60, narrow, InputSize(), patch=8)
    assert len(views_of(30, 32, narrow, InputSize(), patch=8)) == 1, "seen whole"
    assert all(not view.flat for view in views_of(60, 60, narrow, InputSize())), "a model without patches"


def test_windows_are_counted_from_one_place() -> None:
    wanted = TestSettings(window=32, overlap=0.25)
    whole = {view.window for view in views_of(200, 200, wanted, InputSize())}
    cut = {
        (x1 + 50, y1 + 30, x2 + 50, y2 + 30)
        for x1, y1, x2, y2 in (
            view.window for view in views_of(170, 150, wanted, InputSize(), origin=(-50, -30))
        )
    }
    inside = {window for window in whole if window[0] > 50 and window[1] > 30 and max(window[2:]) < 200}
    assert inside <= cut and len(inside) >= 20
