"""Mixup, cutmix and mosaic: labels end where their pixels end, and the place in the run alone decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.test_task_runs import config
from vitp.core.errors import ConfigError, DataError
from vitp.data.augment import AugmentSettings
from vitp.data.ignored import UNLABELLED
from vitp.data.image_sample import ImageSample
from vitp.data.mixing import MixSettings, cutmix, mixed, mixup, mosaic
from vitp.records.labels import ObjectLabel
from vitp.records.regions import rasterise
from vitp.runs.finetune import build_run
from vitp.tasks.base import InputSize
from vitp.tasks.batches import LabelledSamples


def planted(value: int, size: tuple[int, int], rng: np.random.Generator) -> ImageSample:
    """One box of a colour that no other image has, with its outline; on 1, so that padding differs."""
    image_CHW = torch.ones(3, *size, dtype=torch.uint8)
    (x1, x2), (y1, y2) = (sorted(rng.choice(side + 1, 2, replace=False).tolist()) for side in size[::-1])
    image_CHW[:, y1:y2, x1:x2] = value
    ring = (x1, y1, x2, y1, x2, y2, x1, y2)
    label = ObjectLabel(f"c{value}", (x1, y1, x2, y2), quad=ring, polygons=(ring,))
    return ImageSample(image_CHW, objects=(label,))


def test_what_is_planted_ends_where_its_pixels_end() -> None:
    rng, seen = np.random.default_rng(0), 0
    for _ in range(60):
        sizes = [(20, 24), *((int(h), int(w)) for h, w in rng.integers(8, 40, (3, 2)))]
        samples = [planted(10 * (k + 1), size, rng) for k, size in enumerate(sizes)]
        centre = (int(rng.integers(6, 19)), int(rng.integers(5, 16)))
        made = mosaic(samples, centre, rng.random((4, 2)).tolist(), min_visible=0.3)
        assert made.size == (20, 24) and made.objects is not None
        gone = {10, 20, 30, 40}
        for label in made.objects:
            value = int(label.category[1:])
            gone.remove(value)
            mask_HW = made.image_CHW[0] == value
            y, x = torch.nonzero(mask_HW, as_tuple=True)
            assert label.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
            assert label.quad is not None
            assert (min(label.quad[::2]), max(label.quad[1::2])) == pytest.approx(
                (label.box[0], label.box[3]), abs=1e-9
            )
            assert np.array_equal(rasterise(label.polygons, made.size), mask_HW.numpy())
            whole = samples[value // 10 - 1].objects[0].box  # type: ignore[index]
            share = len(x) / ((whole[2] - whole[0]) * (whole[3] - whole[1]))
            assert label.difficult == (share < 0.3), "less than that is neither object nor background"
            seen += 1
        assert not any((made.image_CHW == value).any() for value in gone)
    assert seen > 100


def test_four_equal_images_are_that_image_with_its_objects_cut() -> None:
    rng = np.random.default_rng(1)
    image_CHW = torch.from_numpy(rng.integers(0, 256, (3, 16, 20), dtype=np.uint8))
    sample = ImageSample(image_CHW, objects=(ObjectLabel("a", (4.0, 4.0, 16.0, 12.0)),))
    # The parts that lie in the image where they come to lie: the ends of the room that is left.
    corners = [(0.0, 0.0), (0.999, 0.0), (0.0, 0.999), (0.999, 0.999)]
    made = mosaic([sample] * 4, (10, 8), corners, min_visible=0.2)
    assert torch.equal(made.image_CHW, image_CHW)
    boxes = sorted(label.box for label in made.objects or ())
    assert boxes == [(4, 4, 10, 8), (4, 8, 10, 12), (10, 4, 16, 8), (10, 8, 16, 12)]
    assert not any(label.difficult for label in made.objects or ())


def sample_of(value: int, *classes: float, size: tuple[int, int] = (10, 12)) -> ImageSample:
    return ImageSample(torch.full((3, *size), value, dtype=torch.uint8), classes_K=torch.tensor(classes))


def test_labels_follow_the_pixels() -> None:
    one, other = sample_of(200, 1.0, 0.0, 0.0), sample_of(100, 0.0, 0.0, 1.0)
    half = mixup(one, other, 0.25)
    assert (half.image_CHW == 125).all() and half.classes_K is not None
    torch.testing.assert_close(half.classes_K, torch.tensor([0.25, 0.0, 0.75]))
    for centre in ((0.5, 0.5), (0.0, 0.9), (0.99, 0.1)):
        cut = cutmix(one, other, 0.6, centre)
        kept = float((cut.image_CHW[0] == 200).float().mean())
        assert cut.classes_K is not None and 0 < kept < 1
        torch.testing.assert_close(cut.classes_K, torch.tensor([kept, 0.0, 1 - kept]))
    rng = np.random.default_rng(0)
    drawn = [
        mixed(one, [sample_of(100, 0.0, 1.0, 0.0, size=(7, 9))], MixSettings(mixup=0.8, cutmix=1), rng, 0.3)
        for _ in range(40)
    ]
    for found in drawn:
        assert found.classes_K is not None and float(found.classes_K.sum()) == pytest.approx(1)
    plain = [len(found.image_CHW.unique()) == 1 for found in drawn]
    assert 8 < sum(plain) < 32  # one of both, by chance


def test_what_is_not_known_of_one_is_not_known_of_the_mix() -> None:
    found = mixup(sample_of(1, 1.0, UNLABELLED, 1.0), sample_of(3, 0.0, 1.0, 1.0), 0.5).classes_K
    assert found is not None and found.tolist() == [0.5, UNLABELLED, 1.0]


def test_other_bands_and_scalings_are_refused() -> None:
    one = sample_of(1, 1.0, 0.0)
    bands = replace(one, image_CHW=torch.ones(4, 10, 12, dtype=torch.uint8))
    wide = replace(one, image_CHW=torch.ones(3, 10, 12))
    with pytest.raises(DataError, match="images of 3 channels of uint8 and 4 channels of uint8"):
        mixup(one, bands, 0.5)
    with pytest.raises(DataError, match="float32 and 3 channels of uint8"):
        mosaic([one, wide, one, one], (5, 5), [(0, 0)] * 4, min_visible=0.3)


@pytest.mark.parametrize(
    ("task", "augment", "head", "said"),
    [
        ("segmentation", {"mixup": 0.2}, {}, "augment.mixup"),
        ("detection", {"cutmix": 1.0}, {}, "augment.cutmix"),
        ("classification", {"mosaic": 0.5}, {}, "augment.mosaic"),
        ("classification", {"mixup": 0.5}, {"focal": 2.0}, "head.focal"),
        ("classification", {"cutmix": 0.5}, {"class_balance": 0.9}, "head.class_balance"),
    ],
)
def test_where_it_has_no_meaning_it_is_refused(task: str, augment: Any, head: Any, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_run(config(task=task, augment=augment, head=head))
    assert raised.value.where == said


def images(source: Any, steps: int, micro: int, world: int) -> dict[str, Tensor]:
    """Record → its image, of all parts of some steps."""
    source.micro_batches = micro
    found = {}
    for step in range(steps):
        for part in range(micro * world):
            batch = source(step, part % micro, part // micro, world)
            for name, image, target in zip(batch.record_names, batch.images_BCHW, batch.targets, strict=True):
                found[f"{step}/{name}"] = (image, target)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "augment", "head"),
    [
        ("classification", {"mixup": 0.4, "cutmix": 1.0}, {}),
        ("classification", {"mixup": 0.4}, {"multi_label": True, "focal": 1.0}),
        ("detection", {"mosaic": 0.7}, {}),
        ("instance", {"mosaic": 1.0}, {}),
        ("oriented", {"mosaic": 1.0, "rotate": 30.0}, {}),
    ],
)
def test_a_mix_is_a_function_of_the_place_in_the_run(task: str, augment: Any, head: Any) -> None:
    """However a step is cut the images are the same; the model learns from them, and another seed mixes otherwise."""
    vision = {"arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}, "image_size": 64}
    sized = {"options": {"count": 20, "size": 64, "val": 0.2, "test": 0.2}}
    asked = config(task=task, augment=augment, head=head, data=sized, backbone={"vision": vision})
    run = build_run(asked)
    once, cut = images(run.source, 2, 1, 1), images(run.source, 2, 2, 2)
    assert once.keys() == cut.keys() and len(once) == 8
    for name, (image, target) in once.items():
        assert torch.equal(image, cut[name][0])
        boxes, others = target.boxes_N4, cut[name][1].boxes_N4
        assert boxes is None or torch.equal(boxes, others)
        if target.classes_C is not None and not head:
            assert float(target.classes_C.sum()) == pytest.approx(1)
    plain = images(build_run(asked.model_copy(update={"augment": AugmentSettings()})).source, 2, 1, 1)
    assert plain.keys() == once.keys()
    changed = sum(not torch.equal(image, plain[name][0]) for name, (image, _) in once.items())
    assert changed >= 3
    run.source.micro_batches = 1
    losses = run.model.train()(run.source(0, 0, 0, 1))
    assert all(bool(torch.isfinite(loss).all()) for loss in losses.values())
    other = build_run(asked.model_copy(update={"seed": 1}))
    assert other.source.fingerprint() != run.source.fingerprint()


def test_neutral_mixes_leave_the_fingerprint_alone() -> None:
    source = build_run(config()).source
    facts = source.collate.facts(source.order, source.global_batch)
    assert not {*MixSettings.model_fields} & set(facts["options"][3])
    collate = source.collate
    assert isinstance(collate, LabelledSamples) and isinstance(collate.size, InputSize)
    mixes = replace(collate, augmentation=AugmentSettings(mixup=0.2))
    assert mixes.facts(source.order, source.global_batch)["options"][3]["mixup"] == 0.2
