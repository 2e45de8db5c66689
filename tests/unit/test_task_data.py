"""From labels to targets and batches, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitp.core.errors import ConfigError, DataError
from vitp.data import image_sample
from vitp.data.augment import AugmentSettings
from vitp.data.batches import SampledBatches
from vitp.inference import pictures, prediction_files
from vitp.io import image_file, pixels
from vitp.metrics.results import Prediction, Target
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet, ObjectLabel
from vitp.scenes import load_scene, scene_set, write_scenes
from vitp.tasks import data
from vitp.tasks.base import InputSize, TaskBatch, TestSettings, pad_images
from vitp.tasks.batches import task_batches
from vitp.tasks.data import (
    LabelReader,
    draw_labels,
    labelled_only,
    open_configured,
    open_labelled,
    task_splits,
)

RNG = np.random.default_rng(0)


def save(path: Path, size: tuple[int, int] = (20, 16)) -> str:
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return str(path)


def image_set(folder: Path, **labels: Any) -> LabelledSet:
    """One image of 20 × 16 px with labels."""
    item = LabelledImage("one", save(folder / "one.png"), 20, 16, **labels)
    return LabelledSet("set", [item], ("ship", "car"), ("port", "field"), ("water", "land", "road"))


def mask_of(*values: int, size: tuple[int, int] = (16, 20)) -> Callable[[], np.ndarray]:
    mask = np.zeros(size, np.uint8)
    mask.flat[: len(values)] = values
    return lambda: mask


def test_objects_become_boxes_quads_labels_and_masks(tmp_path: Path) -> None:
    ring = (2.0, 3.0, 8.0, 3.0, 8.0, 7.0, 2.0, 7.0)
    quad = (4.0, 4.0, 9.0, 6.0, 8.0, 9.0, 3.0, 7.0)
    objects = (
        ObjectLabel("car", (2.0, 3.0, 8.0, 7.0), None, (ring,)),
        ObjectLabel("ship", (3.0, 4.0, 20.4, 9.0), quad, (ring,), difficult=True),
    )
    labelled = image_set(tmp_path, objects=objects)

    def target(kind: Any) -> Target:
        reader = LabelReader(labelled, kind)
        return reader.target(reader.sample(labelled.items[0]))

    found = target("objects")
    assert found.boxes_N4 is not None and found.boxes_N4.tolist() == [[2, 3, 8, 7], [3, 4, 20, 9]]
    assert found.labels_N is not None and found.labels_N.tolist() == [1, 0]
    assert found.difficult_N is not None and found.difficult_N.tolist() == [False, True]
    assert found.masks_NHW is None and found.quads_N8 is None
    oriented = target("oriented").quads_N8
    assert oriented is not None
    # Without a quad the box's corners are one.
    assert oriented[0].tolist() == [2, 3, 8, 3, 8, 7, 2, 7] and oriented[1].tolist() == list(quad)
    masks = target("instances").masks_NHW
    assert masks is not None and masks.dtype == torch.uint8 and masks.shape == (2, 16, 20)
    assert int(masks[0].sum()) == 24 and int(masks[0, 3:7, 2:8].sum()) == 24
    presence = target("presence").classes_C
    assert presence is not None and presence.tolist() == [-1.0, 1.0]  # a difficult ship alone tells nothing


def test_nothing_to_see_is_a_label_too(tmp_path: Path) -> None:
    labelled = image_set(tmp_path, objects=())
    reader = LabelReader(labelled, "instances")
    target = reader.target(reader.sample(labelled.items[0]))
    assert target.boxes_N4 is not None and target.boxes_N4.shape == (0, 4)
    assert target.masks_NHW is not None and target.masks_NHW.shape == (0, 16, 20)
    assert target.labels_N is not None and target.labels_N.dtype == torch.int64


def test_masks_and_scenes_are_read_in_the_model_s_numbers(tmp_path: Path) -> None:
    labelled = image_set(tmp_path, semantic=mask_of(0, 1, 2, 255), scene="field")
    plain = LabelReader(labelled, "semantic").sample(labelled.items[0]).semantic_HW
    assert plain is not None and plain.flatten()[:4].tolist() == [0, 1, 2, IGNORE]
    turned = LabelReader(labelled, "semantic", ("road", "water", "sky", "land"))
    mapped = turned.sample(labelled.items[0]).semantic_HW
    assert mapped is not None and mapped.flatten()[:4].tolist() == [1, 3, 0, IGNORE]
    scene = LabelReader(labelled, "scene", ("field", "port")).sample(labelled.items[0]).classes_K
    assert scene is not None and scene.tolist() == [1.0, 0.0]
    with pytest.raises(DataError, match=r'class "water".*did you mean "waters"'):
        LabelReader(labelled, "semantic", ("waters", "land", "road"))


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("objects", {"objects": (ObjectLabel("shipp", (1, 1, 2, 2)),)}, 'class "shipp" is not.*did you mean "ship"'),
        ("objects", {"objects": (ObjectLabel("ship", (15, 1, 30, 9)),)}, "lies outside the image of 20×16"),
        ("objects", {"objects": (ObjectLabel("ship", (5, 5, 5, 9)),)}, "has no area"),
        ("semantic", {"semantic": mask_of(7)}, "mask holds class 7, but there are 3"),
        ("semantic", {"semantic": mask_of(size=(8, 8))}, "mask of 8×8 px for an image of 20×16"),
        ("scene", {"scene": "harbour"}, 'class "harbour" is not'),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, kind: Any, labels: dict, message: str) -> None:
    labelled = image_set(tmp_path, **labels)
    with pytest.raises(DataError, match=message) as caught:
        LabelReader(labelled, kind).sample(labelled.items[0])
    assert "image one" in str(caught.value) and "\n" not in str(caught.value)


def test_pairs_must_fit_each_other(tmp_path: Path) -> None:
    later = save(tmp_path / "later.png", (20, 12))
    labelled = image_set(tmp_path, second_image=later, change=lambda: np.zeros((16, 20), bool))
    with pytest.raises(DataError, match="later date is 20×12 px, its first date 20×16"):
        LabelReader(labelled, "change").sample(labelled.items[0])
    good = image_set(tmp_path, second_image=save(tmp_path / "b.png"), change=lambda: np.ones((4, 4), bool))
    with pytest.raises(DataError, match="change mask is 4×4 px"):
        LabelReader(good, "change").sample(good.items[0])


def _pretend_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (image_file, pixels, data, image_sample, pictures, prediction_files):
        monkeypatch.setattr(module, "LARGE_PIXELS", 1000)


def test_large_images_of_one_class_come_at_the_size_that_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = save(tmp_path / "large.png", (203, 301))
    item = LabelledImage("one", address, 203, 301, scene="port")
    reader = LabelReader(LabelledSet("set", [item], (), ("port", "field"), ()), "scene")
    whole = reader.sample(item, InputSize(mode="fixed", size=16))
    assert whole.size == (301, 203)
    _pretend_large(monkeypatch)
    small = reader.sample(item, InputSize(mode="fixed", size=16))
    assert small.size == (76, 51), "a quarter: an eighth would have 25 columns, and 32 are needed"
    seen = (
        image_sample.resized(small.image_CHW, (16, 16)).int()
        - image_sample.resized(whole.image_CHW, (16, 16)).int()
    )
    assert int(seen.abs().max()) <= 12 and float(seen.float().abs().mean()) < 3
    assert reader.sample(item, InputSize(mode="fixed", size=16), largest=2.0).size == (151, 102)
    assert reader.sample(item, InputSize()).size == reader.sample(item).size == (301, 203)
    with pytest.raises(DataError, match="is 203×301 px, its labels say 301×203"):
        reader.sample(replace(item, width=301, height=203), InputSize(mode="fixed", size=16))
    batch = task_batches(reader, 1, 0, size=InputSize(mode="fixed", size=16))(0, 0, 0, 1)
    assert tuple(batch.images_BCHW.shape) == (1, 3, 16, 16)


def test_large_images_with_places_keep_their_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = save(tmp_path / "large.png", (203, 301))
    item = LabelledImage("one", address, 203, 301, objects=(ObjectLabel("car", (2.0, 3.0, 90.0, 80.0)),))
    reader = LabelReader(LabelledSet("set", [item], ("ship", "car"), (), ()), "objects")
    _pretend_large(monkeypatch)
    assert reader.sample(item, InputSize(mode="fixed", size=16)).size == (301, 203)


def test_a_large_image_is_resized_without_floating_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = np.asarray(
        Image.fromarray(RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize(
            (230, 310), Image.Resampling.BICUBIC
        )
    )
    image_CHW = torch.from_numpy(smooth.copy()).permute(2, 0, 1)
    expected = image_sample.resized(image_CHW, (31, 23)).int()
    _pretend_large(monkeypatch)
    assert int((image_sample.resized(image_CHW, (31, 23)).int() - expected).abs().max()) <= 3
    assert tuple(image_sample.resized(image_CHW, (200, 23)).shape) == (3, 200, 23)


def test_predictions_of_whole_images_need_no_more_than_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(save(tmp_path / "large.png", (203, 301)))
    seen = TestSettings(resize=InputSize(mode="short", size=16), scales=(1.0, 1.5))
    source = SimpleNamespace(raster=False, image=str(path), dates=(str(path),), name="large")
    shapes: list[tuple[int, ...]] = []

    def predicted(model: object, images: list[torch.Tensor], *_: object, **__: object) -> list[Prediction]:
        shapes.append(tuple(images[0].shape))
        return [Prediction(probabilities_C=torch.ones(1))]

    def read(task: str) -> tuple[int, ...]:
        options = SimpleNamespace(pictures=False, tool=None)
        model = SimpleNamespace(name=task, description={})
        job = SimpleNamespace(model=model, settings=seen, options=options)
        prediction_files._predict(job, source)  # type: ignore[arg-type]
        return shapes[-1]

    monkeypatch.setattr(prediction_files, "predict_images", predicted)
    assert read("classification") == (3, 301, 203), "an ordinary image"
    _pretend_large(monkeypatch)
    assert read("classification") == (3, 76, 51)
    assert read("detection") == (3, 301, 203), "its boxes have places in the image"


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    labelled = image_set(tmp_path, scene="port")
    Path(labelled.items[0].image).unlink()
    with pytest.raises(DataError, match=r"one\.png: image is missing"):
        LabelReader(labelled, "scene").sample(labelled.items[0])
    save(Path(labelled.items[0].image), (10, 10))
    with pytest.raises(DataError, match="is 10×10 px, its labels say 20×16"):
        LabelReader(labelled, "scene").sample(labelled.items[0])


def test_images_without_labels_are_a_finding_and_all_of_them_an_error(tmp_path: Path) -> None:
    labelled = image_set(tmp_path, objects=())
    bare = replace(labelled.items[0], id="two", objects=None)
    both = replace(labelled, items=[labelled.items[0], bare])
    kept = labelled_only(both, "objects")
    assert [item.id for item in kept.items] == ["one"]
    assert kept.findings == ("1 of 2 images have no objects; left out",)
    with pytest.raises(DataError, match="none of its 1 images has objects"):
        labelled_only(replace(labelled, items=[bare]), "objects")
    with pytest.raises(DataError, match="has no classes of whole images"):
        labelled_only(replace(labelled, scene_classes=()), "scene")


def test_splits_come_from_the_set_or_are_held_out() -> None:
    labelled = open_labelled("port", "scenes", count=20, size=32, val=0.0, test=0.2)
    splits = task_splits(labelled, "semantic")
    assert {name: len(part) for name, part in splits.items()} == {"train": 13, "val": 3, "test": 4}
    with pytest.raises(ConfigError, match="scenes-port: there are no test images"):
        task_splits(open_labelled("port", "scenes", count=8, size=32, test=0.0), "semantic")


def test_drawn_labels_depend_on_the_set_and_the_seed_alone() -> None:
    train = task_splits(open_labelled("port", "scenes", count=20, size=32, test=0.2), "semantic")["train"]
    ids = [
        [item.id for item in draw_labels(train, count, seed).items]
        for count, seed in ((4, 0), (4, 0), (4, 1), (0.5, 0))
    ]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 4 and len(ids[3]) == len(train) // 2
    assert draw_labels(train, None, 0) is train
    with pytest.raises(ConfigError, match=r"data\.labels: 99 labels asked for"):
        draw_labels(train, 99, 0)


def source(**changes: Any) -> SampledBatches[Any, TaskBatch]:
    labelled = scene_set("port", seed=0, count=6, size=40)
    options = {"size": InputSize(mode="fixed", size=32), "augmentation": AugmentSettings(scale=(0.7, 1.4))}
    return task_batches(LabelReader(labelled, "instances"), 4, 0, **(options | changes))


def same(one: TaskBatch, two: TaskBatch) -> bool:
    return torch.equal(one.images_BCHW, two.images_BCHW) and all(
        torch.equal(a.masks_NHW, b.masks_NHW) and torch.equal(a.boxes_N4, b.boxes_N4)  # type: ignore[arg-type]
        for a, b in zip(one.targets, two.targets, strict=True)
    )


def test_batches_are_a_pure_function_of_the_place() -> None:
    whole = source()(3, 0, 0, 1)
    assert len(whole) == 4 and whole.images_BCHW.shape == (4, 3, 32, 32)
    assert same(whole, source()(3, 0, 0, 1)) and not same(whole, source()(4, 0, 0, 1))
    # Cut over two ranks of two micro-batches: the same images with the same augmentation.
    parts = [source(micro_batches=2)(3, micro, rank, 2) for micro in (0, 1) for rank in (0, 1)]
    assert sorted(n for part in parts for n in part.record_names) == sorted(whole.record_names)
    for part in parts:
        at = whole.record_names.index(part.record_names[0])
        assert torch.equal(part.images_BCHW[0], whole.images_BCHW[at])
    with pytest.raises(
        ConfigError,
        match=r"^data\.global_batch: a step of 4 samples can't be cut into 6 equal parts",
    ):
        source()(0, 0, 0, 6)


def test_an_epoch_sees_every_image_once() -> None:
    batches = [source()(step, 0, 0, 1).record_names for step in range(3)]
    seen = [name for batch in batches for name in batch]
    assert len(set(seen[:6])) == 6 and sorted(seen[:6]) == sorted(seen[6:12]) and seen[:6] != seen[6:12]


def test_the_fingerprint_changes_with_what_decides_batches() -> None:
    prints = {
        source().fingerprint(),
        source(size=InputSize(mode="fixed", size=24)).fingerprint(),
        source(augmentation=AugmentSettings.none()).fingerprint(),
    }
    assert len(prints) == 3 and source().fingerprint() in prints


def test_images_of_different_sizes_are_padded_and_can_move(tmp_path: Path) -> None:
    small, large = torch.full((3, 4, 6), 1, dtype=torch.uint8), torch.full((3, 5, 3), 2, dtype=torch.uint8)
    images_BCHW, sizes_B2 = pad_images([small, large])
    assert images_BCHW.shape == (2, 3, 5, 6) and sizes_B2.tolist() == [[4, 6], [5, 3]]
    assert images_BCHW[0, 0, 4].sum() == 0 and images_BCHW[1, :, :, :3].sum() == 2 * 45
    batch = source()(0, 0, 0, 1)
    moved = batch.to("cpu")
    assert same(batch, moved) and moved.record_names == batch.record_names


def test_input_sizes() -> None:
    assert InputSize().of(30, 40) == (30, 40)
    assert InputSize(mode="fixed", size=64).of(30, 40) == (64, 64)
    assert InputSize(mode="short", size=60).of(30, 40) == (60, 80)
    assert InputSize(mode="long", size=60).of(30, 40) == (45, 60)
    with pytest.raises(ConfigError, match="fixed needs a size"):
        InputSize(mode="fixed").of(3, 4)


def test_raw_folders_give_the_labels_of_the_scenes(tmp_path: Path) -> None:
    """Written to disk in the usual layouts and read back, the targets are those of the generator."""
    labelled = scene_set("port", seed=0, count=4, size=64, split="train")
    write_scenes(labelled, tmp_path / "coco", layout="coco")
    read = open_labelled(tmp_path / "coco", val=0.0)
    own, theirs = LabelReader(labelled, "instances"), LabelReader(read, "instances")
    by_name = {Path(item.image).stem: item for item in read.items}
    for item in labelled.items:
        sample, again = own.sample(item), theirs.sample(by_name[item.id])
        assert torch.equal(sample.image_CHW, again.image_CHW)
        one, two = own.target(sample), theirs.target(again)
        torch.testing.assert_close(one.boxes_N4, two.boxes_N4, atol=2e-3, rtol=0)
        assert torch.equal(one.masks_NHW, two.masks_NHW) and torch.equal(one.labels_N, two.labels_N)  # type: ignore[arg-type]
    write_scenes(labelled, tmp_path / "masks", layout="masks")
    masks = open_labelled(tmp_path / "masks", val=0.0)
    reader = LabelReader(masks, "semantic")
    for item in masks.items:
        truth = load_scene(next(i.image for i in labelled.items if i.id == Path(item.image).stem)).semantic_HW
        found = reader.sample(item).semantic_HW
        assert found is not None and np.array_equal(found.numpy(), truth)


REAL = {
    "gdit_airport": ("oriented", {}),
    "bccd": ("objects", {}),
    "kit_ais_cars": ("objects", {}),
    "amazon_forest": ("semantic", {"classes": "forest=white"}),
    "hrsid_mini": ("instances", {"classes": "ship=green", "instances": True}),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_real_labels_become_targets(name: str, real_data: Path) -> None:
    kind, options = REAL[name]
    labelled = labelled_only(open_labelled(real_data / name, **options), kind)  # type: ignore[arg-type]
    reader = LabelReader(labelled, kind)  # type: ignore[arg-type]
    wanted = AugmentSettings(scale=(0.5, 2.0), crop=256, rotate=30 if kind == "oriented" else 0)
    batch = task_batches(reader, 4, 0, augmentation=wanted)(0, 0, 0, 1)
    assert batch.images_BCHW.shape == (4, 3, 256, 256)
    for target in batch.targets:
        if kind == "semantic":
            assert target.semantic_HW is not None
            assert set(target.semantic_HW.unique().tolist()) <= {0, 1, IGNORE}
            continue
        boxes_N4 = target.boxes_N4
        assert boxes_N4 is not None and target.labels_N is not None
        assert bool((boxes_N4 >= 0).all()) and bool((boxes_N4 <= 256).all())
        assert bool((boxes_N4[:, 2:] > boxes_N4[:, :2]).all())
        assert bool((target.labels_N < len(reader.classes)).all())
        if kind == "instances":
            assert target.masks_NHW is not None and bool(target.masks_NHW.flatten(1).any(1).all())


def test_messages_name_the_settings_of_a_run(tmp_path: Path) -> None:
    for folder in ("images", "scans"):
        (tmp_path / "alike" / folder).mkdir(parents=True)
        for name in "abc":
            Image.new("RGB", (8, 8)).save(tmp_path / "alike" / folder / f"{name}.png")
    with pytest.raises(DataError) as refused:
        open_configured(tmp_path / "alike", "auto", {})
    assert "-s data.format=folders" in str(refused.value) and "--format" not in str(refused.value)
    assert "-s data.options.images=" in str(refused.value) and "-o " not in str(refused.value)
