"""Dense objective: losses against definitions, and batches that depend on their place in the run only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitp.checkpoints.loading import load_backbone
from vitp.core.errors import ConfigError, DataError
from vitp.data.augment import MaskAugmentation
from vitp.data.ignored import presence_of
from vitp.models.vision import VisionSettings, VisionTower
from vitp.objectives.dense import ConvHead, DenseBatch, DenseObjective, dense_batches, patch_distribution
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet, ObjectLabel

CLASSES = ("water", "land", "ship")


def tiny_tower(size: int = 32) -> VisionTower:
    torch.manual_seed(0)
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    return VisionTower(VisionSettings(arguments=arguments, image_size=size))


def random_batch(images: int = 4, size: int = 32, seed: int = 0) -> DenseBatch:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (images, size, size), generator=generator, dtype=torch.uint8)
    target[:, :5] = IGNORE
    return DenseBatch(
        tiles_BCHW=torch.randint(0, 256, (images, 3, size, size), generator=generator, dtype=torch.uint8),
        target_BHW=target,
        record_names=tuple(f"image {index}" for index in range(images)),
        presence_BK=torch.randint(-1, 2, (images, 2), generator=generator, dtype=torch.int8),
    )


def pixel_logits(objective: DenseObjective, batch: DenseBatch) -> torch.Tensor:
    """What the conv head says of each pixel."""
    image = objective.tower.normalize(batch.tiles_BCHW)
    logits = objective.head(objective.tower.forward_features(image, objective.layers)).float()
    return F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)


@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8]), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_patch_distribution_counts_pixels(seed: int, patch: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes + 1, (2, 8, 16)).astype(np.uint8)
    target[target == classes] = IGNORE
    share = patch_distribution(torch.from_numpy(target), patch, classes).numpy()
    assert share.shape == (2, 8 // patch, 16 // patch, classes)
    for b, row, column, k in np.ndindex(*share.shape):
        cell = target[b, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        assert share[b, row, column, k] == pytest.approx((cell == k).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_loss_is_pixel_cross_entropy_of_logits_constant_in_a_patch(smoothing: float) -> None:
    objective = DenseObjective(tiny_tower(), CLASSES, label_smoothing=smoothing)
    batch = random_batch()
    loss = objective(batch)["dense"] / objective.loss_counts(batch)["dense"]
    tokens = objective.tower.forward_tokens(objective.tower.normalize(batch.tiles_BCHW))
    logits = objective.head(tokens).transpose(1, 2).unflatten(2, (4, 4))
    pixels = F.interpolate(logits, scale_factor=8, mode="nearest")
    expected = F.cross_entropy(pixels, batch.target_BHW.long(), ignore_index=255, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_class_weights_make_a_weighted_mean(head: str) -> None:
    weights = (0.5, 1.0, 4.0)
    objective = DenseObjective(tiny_tower(), CLASSES, head=head, class_weights=weights).eval()
    batch = random_batch()
    loss = objective(batch)["dense"] / objective.loss_counts(batch)["dense"]
    if head == "conv":
        logits = pixel_logits(objective, batch)
    else:
        tokens = objective.tower.forward_tokens(objective.tower.normalize(batch.tiles_BCHW))
        logits = objective.head(tokens).transpose(1, 2).unflatten(2, (4, 4))
        logits = F.interpolate(logits, scale_factor=8, mode="nearest")
    expected = F.cross_entropy(
        logits, batch.target_BHW.long(), weight=torch.tensor(weights), ignore_index=255
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_conv_loss_is_cross_entropy_of_the_predicted_pixels() -> None:
    objective = DenseObjective(tiny_tower(), CLASSES, head="conv", layers=(0, -1), label_smoothing=0.1)
    batch = random_batch()
    loss = objective(batch)["dense"] / objective.loss_counts(batch)["dense"]
    logits = pixel_logits(objective, batch)
    assert logits.shape == (4, 3, 32, 32)
    expected = F.cross_entropy(logits, batch.target_BHW.long(), ignore_index=255, label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_conv_head_has_a_quarter_of_the_stride() -> None:
    head = ConvHead([32, 32], 3, hidden=16)
    assert head([torch.randn(2, 32, 4, 6), torch.randn(2, 32, 4, 6)]).shape == (2, 3, 16, 24)


def test_presence_counts_known_entries_only() -> None:
    objective = DenseObjective(tiny_tower(), (), head="none", presence_classes=("ship", "car"))
    batch = random_batch()
    known = batch.presence_BK >= 0
    losses, counts = objective(batch), objective.loss_counts(batch)
    assert set(losses) == set(counts) == {"presence"}
    assert counts["presence"] == known.sum()
    tokens = objective.tower.forward_tokens(objective.tower.normalize(batch.tiles_BCHW)).mean(1)
    logits = objective.presence_head(tokens)
    expected = F.binary_cross_entropy_with_logits(logits[known], batch.presence_BK[known].float())
    assert losses["presence"].item() / counts["presence"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_a_batch_of_ignored_pixels_has_no_loss_and_no_gradient(head: str) -> None:
    objective = DenseObjective(tiny_tower(), CLASSES, head=head)
    batch = random_batch()
    batch.target_BHW.fill_(IGNORE)
    loss = objective(batch)["dense"]
    loss.backward()
    assert loss.item() == 0 and objective.loss_counts(batch)["dense"] == 0
    assert all(p.grad is None or not p.grad.any() for p in objective.parameters())


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_sums_add_up_over_micro_batches(head: str) -> None:
    objective = DenseObjective(tiny_tower(), CLASSES, head=head, presence_classes=("ship", "car"))
    batch = random_batch()
    halves = [
        DenseBatch(
            batch.tiles_BCHW[part], batch.target_BHW[part], batch.record_names[part], batch.presence_BK[part]
        )
        for part in (slice(0, 1), slice(1, 4))
    ]
    for name, value in objective(batch).items():
        assert sum(objective(half)[name].item() for half in halves) == pytest.approx(value.item(), rel=1e-5)
        assert sum(objective.loss_counts(half)[name] for half in halves) == pytest.approx(
            objective.loss_counts(batch)[name]
        )


def test_parameter_groups_hold_everything_once() -> None:
    objective = DenseObjective(tiny_tower(), CLASSES, head="conv", presence_classes=("ship",))
    groups = objective.parameter_groups()
    held = [id(parameter) for group in groups for parameter in group.parameters.values()]
    assert sorted(held) == sorted(id(parameter) for parameter in objective.parameters())
    assert [group.name for group in groups] == ["vision tower", "head"]
    assert len(groups[0].parameters) == len(list(objective.tower.parameters()))


def test_training_steps_lower_the_loss_and_change_the_tower() -> None:
    objective, batch = DenseObjective(tiny_tower(), CLASSES), random_batch()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    before = objective.tower.model.blocks[0].attn.qkv.weight.clone()
    losses = []
    for _ in range(10):
        loss = objective(batch)["dense"] / objective.loss_counts(batch)["dense"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02
    assert not torch.equal(before, objective.tower.model.blocks[0].attn.qkv.weight)


def test_saved_weights_restore_the_tower(tmp_path: Path) -> None:
    objective = DenseObjective(tiny_tower(), CLASSES, head="conv")
    objective.save_pretrained(tmp_path / "model")
    tower = load_backbone(tmp_path / "model")
    image = random_batch().tiles_BCHW / 255
    assert torch.equal(tower.forward_tokens(image), objective.tower.forward_tokens(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "fancy"}, "fancy"),
        ({"head": "none"}, "nothing to learn"),
        ({"class_weights": (1.0, 2.0)}, "2 class weights for 3 classes"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_contradicting_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DenseObjective(tiny_tower(), CLASSES, **options)


@pytest.fixture
def image_set(tmp_path: Path) -> LabelledSet:
    """Ten images whose red channel is 40 × the class of the pixel, so that image and mask can be compared."""
    items = []
    for index in range(10):
        rng = np.random.default_rng(index)
        mask = np.kron(rng.integers(0, 3, (5, 6)), np.ones((8, 8))).astype(np.uint8)
        image = np.stack([mask * 40, mask * 0 + index, mask * 0 + 200], -1).astype(np.uint8)
        path = tmp_path / f"{index}.png"
        Image.fromarray(image).save(path)
        items.append(
            LabelledImage(
                id=str(index),
                image=str(path),
                width=48,
                height=40,
                objects=(ObjectLabel("ship", (0.0, 0.0, 4.0, 4.0)),) if index % 2 else (),
                semantic=lambda mask=mask: mask,
            )
        )
    return LabelledSet("toy", items, object_classes=("ship", "car"), semantic_classes=CLASSES)


def test_batches_depend_on_the_place_only(image_set: LabelledSet) -> None:
    source = dense_batches(image_set, 6, seed=1, size=32)
    again = dense_batches(image_set, 6, seed=1, size=32)
    other = dense_batches(image_set, 6, seed=2, size=32)
    assert source.fingerprint() == again.fingerprint() != other.fingerprint()
    later, first = source(3, 0, 0, 1), source(0, 0, 0, 1)
    assert torch.equal(again(3, 0, 0, 1).tiles_BCHW, later.tiles_BCHW)
    assert not torch.equal(first.tiles_BCHW, later.tiles_BCHW)
    assert other(3, 0, 0, 1).record_names != later.record_names


@pytest.mark.parametrize(("micro_batches", "world"), [(1, 2), (2, 1), (2, 3)])
def test_parts_of_a_step_make_up_the_same_step(
    image_set: LabelledSet, micro_batches: int, world: int
) -> None:
    whole = dense_batches(image_set, 6, seed=1, size=32)(5, 0, 0, 1)
    source = dense_batches(image_set, 6, seed=1, size=32, micro_batches=micro_batches)
    parts = [source(5, micro, rank, world) for micro in range(micro_batches) for rank in range(world)]
    pixels = {
        name: tile for part in parts for name, tile in zip(part.record_names, part.tiles_BCHW, strict=True)
    }
    assert sorted(name for part in parts for name in part.record_names) == sorted(whole.record_names)
    assert all(
        torch.equal(pixels[name], tile)
        for name, tile in zip(whole.record_names, whole.tiles_BCHW, strict=True)
    )


def test_an_epoch_sees_each_image_once(image_set: LabelledSet) -> None:
    source = dense_batches(image_set, 5, seed=0, size=16)
    epochs = [
        [name for step in (0, 1) for name in source(2 * epoch + step, 0, 0, 1).record_names]
        for epoch in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(str(index) for index in range(10))
    assert epochs[0] != epochs[1]


def test_image_and_mask_move_together(image_set: LabelledSet) -> None:
    source = dense_batches(
        image_set, 10, seed=3, size=40, augment=MaskAugmentation(crop=1.0, photometric=0.0)
    )
    batch = source(0, 0, 0, 1)
    red = batch.tiles_BCHW[:, 0].float()
    # Squeezing 48 to 40 px mixes colours at borders of classes only.
    agree = (red - 40 * batch.target_BHW.float()).abs() < 1
    assert agree.float().mean() > 0.9
    cropped = dense_batches(image_set, 10, seed=3, size=24, augment=MaskAugmentation(photometric=0.0))(
        0, 0, 0, 1
    )
    agree = (cropped.tiles_BCHW[:, 0].float() - 40 * cropped.target_BHW.float()).abs() < 1
    assert agree.float().mean() > 0.75


def test_neutral_augmentation_returns_the_image_itself(image_set: LabelledSet) -> None:
    source = dense_batches(image_set, 10, seed=3, size=40, augment=MaskAugmentation.none())
    batch = source(0, 0, 0, 1)
    for name, target in zip(batch.record_names, batch.target_BHW, strict=True):
        mask = image_set.items[int(name)].semantic()
        columns = ((np.arange(40) + 0.5) * 48 / 40).astype(int)
        assert np.array_equal(target.numpy(), mask[:, columns])


def test_presence_follows_the_crop(image_set: LabelledSet) -> None:
    batch = dense_batches(image_set, 10, seed=0, size=32, presence=True, augment=MaskAugmentation.none())(
        0, 0, 0, 1
    )
    expected = [[int(name) % 2, 0] for name in batch.record_names]
    assert batch.presence_BK.tolist() == expected
    objects = (ObjectLabel("ship", (10.0, 10.0, 14.0, 14.0)),)
    assert presence_of(objects, ("ship",), (0, 0, 12, 12)).tolist() == [0]
    assert presence_of(objects, ("ship",), (0, 0, 13, 13)).tolist() == [1]
    assert presence_of(None, ("ship", "car")).tolist() == [-1, -1]


def test_masks_that_do_not_fit_are_named(image_set: LabelledSet) -> None:
    item = image_set.items[0]
    bad = LabelledImage("odd", item.image, 48, 40, semantic=lambda: np.full((40, 48), 7, np.uint8))
    source = dense_batches(LabelledSet("bad", [bad], semantic_classes=CLASSES), 1, seed=0, size=32)
    with pytest.raises(DataError, match=r"image odd: mask holds class 7, but there are 3 classes"):
        source(0, 0, 0, 1)
    small = LabelledImage("small", item.image, 48, 40, semantic=lambda: np.zeros((8, 8), np.uint8))
    source = dense_batches(LabelledSet("bad", [small], semantic_classes=CLASSES), 1, seed=0, size=32)
    with pytest.raises(DataError, match=r"8×8 px for an image of 48×40 px"):
        source(0, 0, 0, 1)
