"""Runs on files with bands: every objective and task sees them, chance leaves them alone or out, models keep theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from tests.band_files import BANDS, MASK_CLASSES, mask_scenes, write_bands
from tests.conftest import tiny_vlm_config
from tests.objective_toys import VISION
from vitp.checkpoints.loading import load_backbone
from vitp.core.config import load_config, make_config
from vitp.core.errors import ConfigError, DataError
from vitp.data.augment import (
    AugmentSettings,
    MaskAugmentation,
    ViewSettings,
    augment,
    augment_with_mask,
    brightened,
    distort,
    jitter_tiles,
    make_view,
)
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels
from vitp.data.image_sample import ImageSample, rotate
from vitp.data.seen import SeenBands, lone_image, seen_again
from vitp.data.tiling import cut_tiles
from vitp.evaluation.attention import as_batch
from vitp.evaluation.corruptions import CORRUPTIONS, EXTRAS, corrupted_set
from vitp.evaluation.features import probe_data
from vitp.inference.ask import Assistant
from vitp.inference.inputs import sources_of
from vitp.io.images import load_planes
from vitp.io.open_pixels import open_pixels
from vitp.models.vision import VisionTower
from vitp.objectives import SETTINGS
from vitp.objectives.vitp import ViTPObjective
from vitp.records.channels import PICTURE, Channel, Channels
from vitp.records.labels import LabelledSet
from vitp.runs.finetune import FinetuneConfig, build_run, run_finetune
from vitp.runs.pretrain import PretrainConfig, build, run_pretraining
from vitp.tasks.base import TestSettings
from vitp.tasks.ground import RasterGround
from vitp.tasks.model_folder import load_task

QUIET = Console(quiet=True)
SIX = Channels(channels=tuple(Channel(band=name, high=4000) for name in BANDS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled set of 6 bands."""
    root = tmp_path_factory.mktemp("bands")
    mask_scenes(root / "data", 12, size=32, splits=True)
    compile_labels(root / "data", "masks", root / "set", classes=MASK_CLASSES, range="0,4000")
    return root / "set"


def pretraining(folder: Path, objective: str, **sections: Any) -> PretrainConfig:
    """A run of two steps of a tiny model."""
    language = objective == "vitp"
    model: dict[str, Any] = {"init": "random", "vision": VISION.model_dump()}
    if language:
        model = {"init": "scratch", "scratch": tiny_vlm_config().model_dump(), "vocabulary": 320}
    values: dict[str, Any] = {
        "objective": objective,
        "model": model,
        "data": {"mixture": [str(folder)], "global_batch": 4},
        "train": {"steps": 2, "num_workers": 0, "device": "cpu"},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return make_config(PretrainConfig, values)


def finetuning(root: Path, **sections: Any) -> FinetuneConfig:
    values: dict[str, Any] = {
        "task": "segmentation",
        "backbone": {"init": "random", "vision": VISION.model_dump()},
        "neck": {"options": {"channels": 16}},
        "data": {"root": str(root), "global_batch": 4},
        "train": {"steps": 2, "val_every": 0, "threads": 1},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return make_config(FinetuneConfig, values)


@pytest.mark.parametrize("objective", sorted(set(SETTINGS) - {"supervised", "joint", "regionclip"}))
def test_every_objective_learns_from_all_bands(folder: Path, objective: str) -> None:
    run = build(pretraining(folder, objective, data={"band_dropout": 0.3}))
    tower = run.objective.vision_tower
    assert isinstance(tower, VisionTower) and tower.in_channels is not None
    assert tower.in_channels.reads_like(SIX) and tower.in_channels.dropout == 0.3
    batch = run.source(0, 0, 0, 1)
    tiles = batch.tiles_TCHW if objective == "vitp" else batch.tiles_BCHW
    assert tiles.dtype == torch.uint8 and tiles.shape[1] == 6
    losses = run.objective(batch)
    assert losses and all(bool(torch.isfinite(loss)) for loss in losses.values())
    # Some channels are nothing but 0, others aren't.
    empty = (tiles == 0).flatten(2).all(2)
    assert empty.any() and not empty.all(1).any()


def test_scenes_of_classes_teach_by_all_bands(tmp_path: Path) -> None:
    for number in range(8):
        values = np.full((5, 16, 16), 100 * number, np.uint16)
        write_bands(tmp_path / "data" / f"c{number % 2}" / f"{number}.tif", values, BANDS[:5], place=number)
    compile_labels(tmp_path / "data", "folders", tmp_path / "set", range="0,800")
    run = build(pretraining(tmp_path / "set", "supervised"))
    batch = run.source(0, 0, 0, 1)
    assert batch.tiles_BCHW.shape[1] == 5 and "scene" in run.objective(batch)


def test_boxes_teach_by_all_bands(tmp_path: Path) -> None:
    boxes = []
    for number in range(8):
        values = np.full((5, 32, 32), 100 * number, np.uint16)
        write_bands(tmp_path / "data" / "images" / f"{number}.tif", values, BANDS[:5], place=number)
        own = {"id": number, "image_id": number, "category_id": 1 + number % 2}
        boxes.append({**own, "bbox": [2, 3, 9, 9], "area": 81, "iscrowd": 0})
    images = [{"id": n, "file_name": f"{n}.tif", "width": 32, "height": 32} for n in range(8)]
    classes = [{"id": 1, "name": "ship"}, {"id": 2, "name": "port"}]
    table = {"images": images, "annotations": boxes, "categories": classes}
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(table), encoding="utf-8")
    compile_labels(tmp_path / "data", "coco", tmp_path / "set", range="0,800")
    run = build(pretraining(tmp_path / "set", "regionclip"))
    batch = run.source(0, 0, 0, 1)
    assert batch.tiles_BCHW.shape[1] == 5 and len(batch.text_R) >= 4
    assert torch.isfinite(run.objective(batch)["regions"])


def test_a_run_states_its_channels_and_resumes(folder: Path, tmp_path: Path) -> None:
    wanted = pretraining(folder, "mae")
    run_pretraining(wanted, tmp_path / "run", console=QUIET)
    stated = load_config(PretrainConfig, tmp_path / "run" / "config.yaml").model.channels
    assert stated is not None and stated.reads_like(SIX)
    tower = load_backbone(tmp_path / "run")
    assert tower.in_channels == stated
    # The run's own configuration has no channels: they are found in the data again.
    run_pretraining(wanted, tmp_path / "run", resume=True, console=QUIET)
    again = run_finetune(
        finetuning(folder, backbone={"init": str(tmp_path / "run"), "vision": None}),
        tmp_path / "task",
        console=QUIET,
    )
    model = load_task(again.model)
    assert model.backbone.in_channels == stated
    scores = model.evaluate(read_labels("vitp", folder).split("test"), TestSettings())
    assert scores.values["miou"] == pytest.approx(again.scores.values["miou"])


def test_batches_count_channels_in_their_fingerprint(folder: Path) -> None:
    def of(**data: Any) -> str:
        return build(pretraining(folder, "mae", **data)).source.fingerprint()

    narrow = SIX.model_copy(update={"channels": SIX.channels[:5]}).model_dump()
    found = {of(), of(data={"band_dropout": 0.1}), of(model={"channels": narrow})}
    assert len(found) == 3
    tasks = {
        build_run(finetuning(folder, **sections)).source.fingerprint()
        for sections in ({}, {"augment": {"band_dropout": 0.1}}, {"backbone": {"channels": narrow}})
    }
    assert len(tasks) == 3


def test_a_tower_with_channels_reads_other_data_by_them(folder: Path, tmp_path: Path) -> None:
    mask_scenes(tmp_path / "data", 8, size=32, splits=True, seed=5)
    compile_labels(tmp_path / "data", "masks", tmp_path / "other", classes=MASK_CLASSES, range="0,9999")
    run_pretraining(pretraining(folder, "mae"), tmp_path / "run", console=QUIET)
    said = Console(record=True, width=200)
    settings = {"init": str(tmp_path / "run"), "vision": None}
    task = build_run(finetuning(tmp_path / "other", backbone=settings))
    assert task.model.backbone.in_channels is not None and task.model.backbone.in_channels.reads_like(SIX)
    assert "data is read by these bands and ranges, not by its own" in task.notes
    run_pretraining(pretraining(tmp_path / "other", "mae", model=settings), tmp_path / "run2", console=said)
    assert "is read by these bands and ranges, not by its own" in said.export_text()
    compile_labels(
        tmp_path / "data", "masks", tmp_path / "fewer", classes=MASK_CLASSES, bands="B2,B3,B4", range="0,4000"
    )
    with pytest.raises(DataError, match="lacks the bands B8, B11, B12; it has B2, B3, B4"):
        build_run(finetuning(tmp_path / "fewer", backbone=settings))


def test_sets_of_a_run_must_agree(folder: Path, tmp_path: Path) -> None:
    mask_scenes(tmp_path / "data", 8, size=32, splits=True)
    compile_labels(tmp_path / "data", "masks", tmp_path / "other", classes=MASK_CLASSES, range="0,9999")
    both = {"mixture": [str(folder), str(tmp_path / "other")]}
    for objective in ("mae", "vitp"):
        with pytest.raises(DataError, match=r"reads B2 from 0 to 9999.*reads B2 from 0 to 4000"):
            build(pretraining(folder, objective, data=both))


def test_rows_of_wide_files_need_channels(tmp_path: Path) -> None:
    values = np.arange(6 * 32 * 32, dtype=np.uint16).reshape(6, 32, 32)
    write_bands(tmp_path / "a.tif", values, BANDS)
    turns = [{"from": "human", "value": "<image>\nIs there a ship?"}, {"from": "gpt", "value": "no"}]
    rows = [{"id": str(number), "image": "a.tif", "conversations": turns} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"a\.tif: is no 8-bit picture.*mixture file `channels`"):
        build(pretraining(tmp_path / "rows.jsonl", "vitp")).source(0, 0, 0, 1)
    entry = {"annotation": "rows.jsonl", "channels": SIX.model_dump(mode="json")}
    (tmp_path / "mixture.json").write_text(json.dumps({"rows": entry}))
    run = build(pretraining(tmp_path / "mixture.json", "vitp"))
    assert isinstance(run.objective, ViTPObjective) and run.source(0, 0, 0, 1).tiles_TCHW.shape[1] == 6
    entry["channels"] = {"channels": [{"bnd": "B2"}]}
    (tmp_path / "mixture.json").write_text(json.dumps({"rows": entry}))
    with pytest.raises(DataError, match='set rows: "channels" can\'t be understood'):
        build(pretraining(tmp_path / "mixture.json", "vitp"))


def test_probes_and_attention_see_all_bands(folder: Path) -> None:
    labelled = read_labels("vitp", folder)
    torch.manual_seed(0)
    tower = VisionTower(VISION.model_copy(update={"channels": SIX})).eval()
    data = probe_data(tower, labelled)
    image = labelled.split("train").items[0].image
    batch = as_batch(tower, lone_image(image, SIX))
    assert batch.shape[1] == 6
    (map_BDhw,) = tower.forward_features(batch)
    assert torch.allclose(map_BDhw[0].permute(1, 2, 0), data.train.patches_VhwD[0].float(), atol=1e-2)
    with pytest.raises(DataError, match="lacks the bands red, green, blue; it has B2"):
        probe_data(VisionTower(VISION).eval(), labelled)


def test_models_with_band_dropout_take_data_that_lack_bands_on_request(folder: Path) -> None:
    labelled = read_labels("vitp", folder)
    wide = SIX.model_copy(update={"channels": (*SIX.channels, Channel(band="B99"))})
    with pytest.raises(DataError, match="lacks the bands B99"):
        SeenBands.by(wide, labelled)
    with pytest.raises(ConfigError, match="wasn't trained with band dropout"):
        SeenBands.by(wide, labelled, missing_bands="zero")
    seen = SeenBands.by(wide.model_copy(update={"dropout": 0.2}), labelled, missing_bands="zero")
    planes_CHW = seen.planes(labelled.items[0].image)
    assert planes_CHW.shape[0] == 7 and not planes_CHW[6].any() and planes_CHW[:6].any(axis=(1, 2)).all()
    assert np.array_equal(planes_CHW[:6], load_planes(labelled.items[0].image, channels=SIX))


def test_maps_are_read_by_the_names_of_bands_and_lack_some_on_request(tmp_path: Path) -> None:
    values_CHW = np.arange(2 * 16 * 16, dtype=np.uint16).reshape(2, 16, 16) + 1
    path = write_bands(tmp_path / "two.tif", values_CHW)  # its bands are numbered only
    wanted = Channels(
        channels=(
            Channel(band="nir", number=2, high=600),
            Channel(band="red", number=1, high=600),
            Channel(band="x"),
        ),
        dropout=0.1,
    )
    assert "lacks the bands x; it has 1, 2" in str(sources_of([path], None, "segmentation", wanted)[0].reason)
    with pytest.raises(ConfigError, match="wasn't trained with band dropout"):
        sources_of([path], None, "segmentation", wanted.model_copy(update={"dropout": 0}), "zero")
    assert sources_of([path], None, "segmentation", wanted, "zero")[0].reason is None
    with open_pixels(path) as pixels:
        ground = RasterGround(pixels, wanted, None, "zero")
        planes_CHW = ground.planes((0, 0, 16, 16), (16, 16)).numpy()
        valid_HW = ground.valid((0, 0, 16, 16))
    assert np.array_equal(planes_CHW[:2], wanted.part((0, 1)).scale(values_CHW[::-1]))
    assert not planes_CHW[2].any() and (valid_HW is None or valid_HW.all())


def test_channels_are_left_out_by_their_place_alone() -> None:
    seen = SeenBands(SIX, band_dropout=0.5)
    drawn = [seen.dropped(3, position) for position in range(2000)]
    again = [seen.dropped(3, position) for position in reversed(range(2000))][::-1]
    assert all((a is None and b is None) or np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))
    share_C = np.mean([np.zeros(6, bool) if one is None else one for one in drawn], axis=0)
    assert share_C == pytest.approx(0.5, abs=0.05)
    assert not any(one is not None and one.all() for one in drawn)
    assert SeenBands(SIX).dropped(3, 0) is None
    one = SeenBands(Channels(channels=(Channel(band="a"),)), band_dropout=0.9)
    assert all(one.dropped(0, position) is None for position in range(50))


def test_a_view_of_bands_changes_in_brightness_and_contrast_only() -> None:
    rng = np.random.default_rng(0)
    image_HWC = rng.integers(60, 180, (40, 40, 6)).astype(np.uint8)
    strong = ViewSettings(
        crop=(1, 1), flip=False, rotate90=False, colour=0.4, hue=0.5, grey=1, blur=0, colour_probability=1
    )
    view_SSC, _ = make_view(image_HWC, 40, strong, np.random.default_rng(1), rgb=False)
    assert view_SSC.shape == (40, 40, 6)
    draws = np.random.default_rng(1).random(16)[7:]
    brightness, contrast = 1 + 0.4 * (2 * draws[1:3] - 1)
    assert np.array_equal(view_SSC, brightened(image_HWC, brightness, contrast))
    dropped_C = np.array([True, False, False, True, False, False])
    left_out, _ = make_view(image_HWC, 40, strong, np.random.default_rng(1), rgb=False, dropped_C=dropped_C)
    assert not left_out[..., dropped_C].any() and np.array_equal(
        left_out[..., ~dropped_C], view_SSC[..., ~dropped_C]
    )
    # As many random numbers are drawn for pictures, whose view is as ever.
    picture = Image.fromarray(image_HWC[..., :3])
    for rgb in (True, False):
        rng = np.random.default_rng(2)
        make_view(picture, 16, strong, rng, rgb=rgb)
        assert rng.random() == np.random.default_rng(2).random(17)[16]


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_random_changes_take_any_number_of_channels(channels: int) -> None:
    rng = np.random.default_rng(0)
    image_HWC = rng.integers(0, 256, (24, 32, channels)).astype(np.uint8)
    views = ViewSettings(solarize=1, blur=1)
    assert make_view(image_HWC, 16, views, rng, rgb=False)[0].shape == (16, 16, channels)
    mask_HW = np.zeros((24, 32), np.uint8)
    made, _, _ = augment_with_mask(image_HWC, mask_HW, 16, MaskAugmentation(), rng)
    assert made.shape == (16, 16, channels)
    tiles = cut_tiles(image_HWC, 16, 4)
    assert tiles.shape[1:] == (channels, 16, 16)
    assert np.array_equal(tiles[0, 0], cut_tiles(Image.fromarray(image_HWC[..., [0] * 3]), 16, 4)[0, 0])
    assert jitter_tiles(tiles, rng, rgb=False).shape == tiles.shape
    sample = ImageSample(torch.from_numpy(image_HWC).permute(2, 0, 1).contiguous())
    settings = AugmentSettings(scale=(0.5, 2), crop=16, rotate=30, photometric=1)
    assert augment(sample, settings, rng, rgb=False).image_CHW.shape == (channels, 16, 16)
    turned_CHW = rotate(sample, 30).image_CHW
    assert len(turned_CHW) == channels
    # Channel by channel as three equal ones.
    three = ImageSample(sample.image_CHW[:1].repeat(3, 1, 1))
    assert torch.equal(rotate(three, 30).image_CHW[0], turned_CHW[0])
    assert distort(sample.image_CHW, 1.0, rng, rgb=False).shape == sample.image_CHW.shape


def test_channels_that_are_colours_change_as_pictures_do() -> None:
    assert SeenBands().is_rgb and SeenBands(PICTURE).is_rgb and not SeenBands(SIX).is_rgb
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8))
    assert np.array_equal(seen_again(image, PICTURE), np.asarray(image))


@pytest.mark.parametrize("name", [*CORRUPTIONS, *EXTRAS])
def test_corruptions_change_what_is_seen_of_bands(name: str, folder: Path, tmp_path: Path) -> None:
    corruption = {**CORRUPTIONS, **EXTRAS}[name]
    labelled: LabelledSet = read_labels("vitp", folder).split("test")
    seen = SeenBands(SIX)

    def load(address: str) -> np.ndarray:
        return np.asarray(seen.load(address))

    for severity in (0, 3):
        changed = corrupted_set(
            labelled, corruption, severity, tmp_path / str(severity), load=load, channels=SIX
        )
        item = changed.items[0]
        wanted = corruption.apply(load(labelled.items[0].image), severity, 0, item.id)
        assert np.array_equal(load(item.image), wanted)
        assert changed.channels == labelled.channels


def test_an_assistant_reads_files_by_the_bands_of_its_tower(folder: Path) -> None:
    run = build(pretraining(folder, "vitp"))
    assert isinstance(run.objective, ViTPObjective)
    helper = Assistant(run.objective.vlm, run.objective.chat)
    image = read_labels("vitp", folder).items[0].image
    assert isinstance(helper.answer([image], "What is it?", max_new_tokens=2), str)
    with pytest.raises(DataError, match="lacks the bands B2"):
        helper.answer([Image.new("RGB", (32, 32))], "What is it?", max_new_tokens=2)
