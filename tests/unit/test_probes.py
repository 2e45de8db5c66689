"""Probes of frozen features: labels of patches, classifiers against their definitions, honest splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitp.core.errors import ConfigError
from vitp.data.splits import development_splits, draw_images, label_count
from vitp.evaluation.features import Features, ProbeData, box_labels, extract, majority_labels
from vitp.evaluation.linear import fit_logistic, fit_selected, knn_predict
from vitp.evaluation.probe_table import ProbeTable
from vitp.evaluation.probes import probe_features, run_probes
from vitp.models.backbone import frozen
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet, ObjectLabel

COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220]])


def tiny_tower() -> VisionTower:
    torch.manual_seed(0)
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    return VisionTower(VisionSettings(arguments=arguments, image_size=32))


@pytest.fixture(scope="module")
def coloured_set(tmp_path_factory: pytest.TempPathFactory) -> LabelledSet:
    """Sixty images of 4 × 4 coloured fields; scene = the commonest colour, an object on each red field."""
    folder = tmp_path_factory.mktemp("coloured")
    items = []
    for index in range(60):
        rng = np.random.default_rng(index)
        scene = index % 3
        fields = np.where(rng.random((4, 4)) < 0.7, scene, rng.integers(0, 3, (4, 4)))
        mask = np.kron(fields, np.ones((8, 8))).astype(np.uint8)
        image = (COLOURS[mask] + rng.normal(0, 10, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        path = folder / f"{index}.png"
        Image.fromarray(image).save(path)
        objects = tuple(
            ObjectLabel("red", (8.0 * x, 8.0 * y, 8.0 * x + 8, 8.0 * y + 8))
            for y, x in np.argwhere(fields == 0)
        )
        items.append(
            LabelledImage(
                id=str(index),
                image=str(path),
                width=32,
                height=32,
                split="train" if index < 30 else "val" if index < 42 else "test",
                scene=f"scene {scene}",
                objects=objects,
                semantic=lambda mask=mask: mask,
            )
        )
    return LabelledSet(
        "coloured",
        items,
        object_classes=("red",),
        scene_classes=("scene 0", "scene 1", "scene 2"),
        semantic_classes=("red", "green", "blue"),
    )


def test_features_are_the_towers_and_labels_lie_on_them(coloured_set: LabelledSet) -> None:
    tower = tiny_tower().train()
    tower.model.blocks[0].eval()
    features = extract(tower, coloured_set, batch_size=7)
    assert tower.training and not tower.model.blocks[0].training and tower.model.blocks[1].training
    assert features.patches_VhwD.shape == (60, 4, 4, 32) and features.patches_VhwD.dtype == torch.float16
    image = torch.from_numpy(np.asarray(Image.open(coloured_set.items[9].image)).copy()).permute(2, 0, 1)[
        None
    ]
    with torch.no_grad():
        tokens = tower.eval().forward_tokens(tower.normalize(image)).view(4, 4, 32)
    assert torch.allclose(features.patches_VhwD[9].float(), tokens, atol=5e-3)
    assert torch.allclose(features.pooled_ND[9], tokens.mean((0, 1)), atol=5e-3)
    assert torch.equal(
        features.patch_labels_Vhw[9], torch.from_numpy(coloured_set.items[9].semantic()[4::8, 4::8].copy())
    )
    assert features.scene_N.tolist() == [index % 3 for index in range(60)]
    assert features.presence_NK[:, 0].tolist() == [int(len(item.objects) > 0) for item in coloured_set.items]


def test_tiles_cover_the_image_once(coloured_set: LabelledSet, tmp_path) -> None:
    left, right = (np.asarray(Image.open(coloured_set.items[i].image)) for i in (0, 1))
    Image.fromarray(np.concatenate([left, right], 1)).save(tmp_path / "wide.png")
    mask = np.concatenate([coloured_set.items[i].semantic() for i in (0, 1)], 1)
    wide = LabelledImage("wide", str(tmp_path / "wide.png"), 64, 32, semantic=lambda: mask)
    tower = tiny_tower()
    found = extract(tower, replace(coloured_set, items=[wide]), view="tiles")
    apart = extract(tower, replace(coloured_set, items=coloured_set.items[:2]))
    assert torch.equal(found.patches_VhwD, apart.patches_VhwD)
    assert torch.equal(found.pixel_labels_VSS, apart.pixel_labels_VSS)
    assert found.view_image_V.tolist() == [0, 0]
    assert torch.allclose(found.pooled_ND[0], apart.pooled_ND.mean(0), atol=1e-6)


def test_features_that_do_not_fit_are_refused(coloured_set: LabelledSet) -> None:
    with pytest.raises(ConfigError, match="use 4 images or fewer"):
        extract(tiny_tower(), coloured_set, batch_size=1, max_bytes=4 * 16 * 32 * 2)


def test_majority_labels() -> None:
    mask = np.zeros((1, 4, 8), np.uint8)
    mask[0, :, :4] = [[0, 1, 1, 1]] * 4
    mask[0, :, 4:] = [[IGNORE, IGNORE, IGNORE, 2]] * 4
    assert majority_labels(mask, 4, 3, 0.5).tolist() == [[[1, IGNORE]]]
    assert majority_labels(mask, 4, 3, 0.8).tolist() == [[[IGNORE, IGNORE]]]
    assert majority_labels(mask, 4, 3, 0.25).tolist() == [[[1, 2]]]


def test_box_labels() -> None:
    objects = (
        ObjectLabel("ship", (0.0, 0.0, 16.0, 8.0)),
        ObjectLabel("car", (8.0, 0.0, 16.0, 8.0)),  # equal cover, smaller: wins
        ObjectLabel("ship", (16.0, 0.0, 19.0, 8.0)),  # covers 3/8 only
        ObjectLabel("car", (0.0, 16.0, 8.0, 24.0), difficult=True),
    )
    found = box_labels(objects, ("ship", "car"), (24, 32), (3, 4))
    assert found.tolist() == [[0, 1, 2, 2], [2, 2, 2, 2], [IGNORE, 2, 2, 2]]
    assert (box_labels(None, ("ship",), (24, 32), (3, 4)) == IGNORE).all()
    # A diamond covers half of each of its four cells: not more than half of the corner ones' area is outside.
    diamond = ObjectLabel("ship", (0.0, 0.0, 16.0, 16.0), quad=(8.0, 0.0, 16.0, 8.0, 8.0, 16.0, 0.0, 8.0))
    assert box_labels((diamond,), ("ship",), (16, 16), (2, 2), min_share=0.45).tolist() == [[0, 0], [0, 0]]
    assert box_labels((diamond,), ("ship",), (16, 16), (2, 2), min_share=0.56).tolist() == [[1, 1], [1, 1]]


@given(st.tuples(*[st.floats(-8, 40)] * 2), st.floats(0.5, 30), st.floats(0.5, 30))
@settings(max_examples=50, deadline=None)
def test_cover_of_upright_boxes_is_their_overlap(
    corner: tuple[float, float], width: float, height: float
) -> None:
    x, y = corner
    found = box_labels((ObjectLabel("a", (x, y, x + width, y + height)),), ("a",), (32, 32), (4, 4), 0.5)
    overlap_x = [max(0, min(8 * c + 8, x + width) - max(8 * c, x)) / 8 for c in range(4)]
    overlap_y = [max(0, min(8 * r + 8, y + height) - max(8 * r, y)) / 8 for r in range(4)]
    cover = np.outer(overlap_y, overlap_x)
    certain = abs(cover - 0.5) > 0.13  # a sixteenth on each side
    assert np.array_equal((found == 0)[certain], (cover >= 0.5)[certain])


def test_knn_by_hand() -> None:
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    labels = torch.tensor([0, 0, 1, 1])
    assert knn_predict(train, labels, torch.tensor([[5.0, 1.0], [0.2, 3.0]]), 2, k=3).tolist() == [0, 1]
    # The near one outweighs two far ones.
    assert knn_predict(
        train, torch.tensor([0, 1, 1, 1]), torch.tensor([[1.0, 0.0]]), 2, k=3, temperature=0.001
    ).tolist() == [0]


def test_logistic_regression_is_at_the_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=generator) * torch.tensor([1.0, 10, 0.1, 1, 1]) + 3
    target = (features[:, 0] + features[:, 1] / 10 + torch.randn(200, generator=generator) > 6).long()
    model, theta = fit_logistic(features, target, 3, 0.01, max_iter=200)
    x = (features - features.mean(0)) / features.std(0, unbiased=False)
    theta = theta.clone().requires_grad_()
    logits = x @ theta[:5] + theta[5]
    assert torch.allclose(model(features), logits, atol=1e-4)
    loss = F.cross_entropy(logits, target) + 0.005 * theta[:5].square().sum()
    loss.backward()
    assert theta.grad.abs().max() < 1e-3


def test_multi_label_fit_equals_separate_fits_without_unknown_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(120, 4, generator=generator)
    target = (features[:, :2] + 0.5 * torch.randn(120, 2, generator=generator) > 0).to(torch.int8)
    model, _ = fit_logistic(features, target, 2, 1e-6, max_iter=300)
    hidden = torch.cat([features, torch.randn(30, 4, generator=generator)])
    unknown = torch.cat([target, torch.full((30, 2), -1, dtype=torch.int8)])
    other, _ = fit_logistic(hidden, unknown, 2, 1e-6, max_iter=300)
    assert torch.allclose(model(features).sigmoid(), other(features).sigmoid(), atol=0.02)


def test_selection_takes_the_best_on_validation() -> None:
    features, target = torch.randn(50, 3), torch.arange(50) % 2
    norms: list[float] = []

    def score(model) -> float:
        norms.append(float(model.weight_DC.norm()))
        return -abs(len(norms) - 3)

    model, l2 = fit_selected(features, target, 2, score, choices=(1.0, 0.1, 0.01, 0.001))
    assert l2 == 0.01 and float(model.weight_DC.norm()) == norms[2]
    assert norms == sorted(norms)


def test_draws_are_seeded_balanced_and_grow() -> None:
    scenes = torch.tensor([0] * 40 + [1] * 8 + [2] * 2)
    few = draw_images(scenes, 6, 0)
    assert torch.equal(few, draw_images(scenes, 6, 0)) and not torch.equal(few, draw_images(scenes, 6, 1))
    assert scenes[few].bincount().tolist() == [2, 2, 2]
    assert set(few.tolist()) <= set(draw_images(scenes, 20, 0).tolist())
    assert draw_images(scenes, 50, 0).tolist() == list(range(50))


@pytest.mark.parametrize(("labels", "count"), [(None, 80), (10, 10), (0.25, 20)])
def test_label_count(labels: float | int | None, count: int) -> None:
    assert label_count(80, labels) == count


def test_too_many_labels_are_refused() -> None:
    with pytest.raises(ConfigError, match="100 labels asked for, 80 train images there"):
        label_count(80, 100)


def test_run_probes_solves_colours(coloured_set: LabelledSet) -> None:
    table = run_probes(tiny_tower(), coloured_set, seeds=(0, 1), labels_per_seed=20)
    assert {row.task for row in table.rows} == {
        "scene kNN",
        "scene linear",
        "patches linear",
        "presence linear",
    }
    assert all(row.n == 2 for row in table.rows)
    assert table["patches linear", "patch mIoU"].mean > 0.95
    assert table["patches linear", "pixel mIoU"].mean > 0.6
    assert table["scene linear", "accuracy"].mean > 0.8
    assert ProbeTable.from_json(table.to_json()) == table
    assert "| patches linear | patch mIoU |" in table.to_markdown()


def test_sets_with_boxes_only_are_probed_by_patch(coloured_set: LabelledSet) -> None:
    items = [replace(item, semantic=None, scene=None) for item in coloured_set.items]
    boxes = replace(coloured_set, items=items, semantic_classes=(), scene_classes=())
    table = run_probes(tiny_tower(), boxes, seeds=(0,))
    assert {row.task for row in table.rows} == {"patches linear", "presence linear"}
    assert "pixel mIoU" not in {row.metric for row in table.rows}
    assert table["patches linear", "patch macro-F1"].mean > 0.95


def test_images_of_several_classes_are_probed_by_their_tags(coloured_set: LabelledSet) -> None:
    """Whether a class has at least five of the sixteen fields; of one image in four nobody said whether "b" fits."""
    items = []
    for index, item in enumerate(coloured_set.items):
        assert item.semantic is not None
        counts = np.bincount(item.semantic().ravel(), minlength=3) // 64
        unknown = ("b",) if index % 4 == 0 else ()
        tags = tuple(name for name, n in zip("abc", counts, strict=True) if n >= 5 and name not in unknown)
        items.append(replace(item, semantic=None, scene=None, objects=None, tags=tags, unknown=unknown))
    items[0] = replace(items[0], tags=None, unknown=())
    several = replace(
        coloured_set, items=items, semantic_classes=(), object_classes=(), scene_classes=("a", "b", "c")
    )
    found = extract(tiny_tower(), several.split("train"))
    assert found.presence_NK[0].tolist() == [-1, -1, -1] and found.presence_NK[4, 1] == -1
    assert found.presence_NK[1].tolist() == [int(name in (items[1].tags or ())) for name in "abc"]
    table = run_probes(tiny_tower(), several, seeds=(0,))
    assert {row.task for row in table.rows} == {"presence linear"}
    assert table["presence linear", "mAP"].mean > 0.9


def test_a_set_without_validation_holds_groups_out(coloured_set: LabelledSet) -> None:
    items = [replace(item, group=f"g{index // 3}") for index, item in enumerate(coloured_set.items)]
    table = run_probes(
        tiny_tower(),
        {
            "train": replace(coloured_set, items=items[:30]),
            "test": replace(coloured_set, items=items[42:]),
        },
        tasks=("scene linear",),
        seeds=(0,),
    )
    assert table.note.startswith("24 train, 6 val and 18 test images")


def random_features(images: int, seed: int) -> Features:
    """Features that know the first label only."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (images, 4, 4), generator=generator)
    patches = torch.randn(images, 4, 4, 8, generator=generator)
    patches[..., 0] = 4.0 * (labels == 0)
    return Features(
        patches.half(),
        patches.mean((1, 2)),
        torch.arange(images),
        ("a", "b", "c"),
        labels.to(torch.uint8),
        None,
        torch.full((images,), -1),
        torch.zeros(images, 0, dtype=torch.int8),
        tuple(map(str, range(images))),
    )


def test_probes_report_chance_where_features_know_nothing() -> None:
    data = ProbeData(*(random_features(200, seed) for seed in (0, 1, 2)), device=torch.device("cpu"))
    table = probe_features(data, seeds=(0,))
    # Class a is read off, b and c are a coin's throw apart.
    assert table["patches linear", "patch accuracy"].mean == pytest.approx(2 / 3, abs=0.04)
    assert table.rows == probe_features(data, seeds=(0,)).rows


def test_wishes_that_labels_do_not_allow_are_refused() -> None:
    data = ProbeData(*(random_features(20, seed) for seed in (0, 1, 2)), device=torch.device("cpu"))
    with pytest.raises(ConfigError, match='"scene linear"; the labels allow patches linear'):
        probe_features(data, tasks=("scene linear",))
    with pytest.raises(ConfigError, match='did you mean "patches linear"'):
        probe_features(data, tasks=("patchs linear",))


def test_frozen_restores_modes_after_an_error() -> None:
    tower = tiny_tower().train()
    with pytest.raises(RuntimeError), frozen(tower):
        assert not tower.training and not torch.is_grad_enabled()
        raise RuntimeError
    assert tower.training and torch.is_grad_enabled()


def test_development_splits_leave_the_test_images_alone(coloured_set: LabelledSet) -> None:
    splits = development_splits(coloured_set)
    ids = {name: {item.id for item in images.items} for name, images in splits.items()}
    of = {name: {item.id for item in coloured_set.items if item.split == name} for name in ("train", "val")}
    assert ids["test"] == of["val"]
    assert ids["train"] | ids["val"] == of["train"] and not ids["train"] & ids["val"]
    assert len(ids["val"]) == 6
