"""Models on disk and configurations of runs: whole or refused, never partly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

from vitp.core.config import make_config
from vitp.core.errors import CheckpointError, ConfigError, VitpError
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.runs.finetune import FinetuneConfig, build_run, run_finetune
from vitp.runs.folder import as_begun, settings_that_differ
from vitp.tasks.base import InputSize
from vitp.tasks.build import (
    BackboneSettings,
    NeckSettings,
    build_model,
    describe_backbone,
    empty_backbone,
    open_backbone,
)
from vitp.tasks.model_folder import load_task
from vitp.tasks.validation import CURVE_FILE, best_weights

VISION = {"arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}, "image_size": 32}
QUIET = Console(quiet=True)


def config(**changes: Any) -> FinetuneConfig:
    values: dict[str, Any] = {
        "task": "classification",
        "backbone": {"init": "random", "vision": VISION},
        "data": {
            "root": "port",
            "format": "scenes",
            "options": {"count": 20, "size": 32, "val": 0.2, "test": 0.2},
            "global_batch": 4,
        },
        "train": {"steps": 4, "val_every": 2, "save_every": 2, "log_every": 1, "threads": 1},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return make_config(FinetuneConfig, values)


@pytest.mark.parametrize(
    ("init", "arguments"),
    [("random", {}), ("timm:resnet18", {}), ("timm:vit_tiny_patch16_224", {"embed_dim": 32, "depth": 1, "num_heads": 2})],
)  # fmt: skip
def test_models_come_back_as_they_were_saved(tmp_path: Path, init: str, arguments: dict) -> None:
    vision = VisionSettings.model_validate(VISION) if init == "random" else None
    size = None if init == "timm:resnet18" else 64
    backbone = open_backbone(
        BackboneSettings(init=init, vision=vision, arguments=arguments, image_size=size), seed=3
    )
    neck = NeckSettings(options={"channels": 16})
    model = build_model("segmentation", backbone, ("a", "b", "c"), neck, {"width": 16}, seed=3).eval()
    model.input_size = InputSize(mode="fixed", size=48)
    model.description["input"] = model.input_size.model_dump()
    model.save_pretrained(tmp_path)
    loaded = load_task(tmp_path)
    assert loaded.classes == ("a", "b", "c") and loaded.name == "segmentation"
    assert loaded.input_size == model.input_size and not loaded.training
    assert loaded.description == model.description
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8))
    one, two = (m.predict([image])[0].semantic_HW for m in (model, loaded))
    assert one is not None and two is not None and torch.equal(one, two)
    assert loaded.backbone.mean == model.backbone.mean and loaded.backbone.image_size == backbone.image_size
    # Saving again gives the same bytes.
    loaded.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def saved(folder: Path) -> Path:
    backbone = VisionTower(VisionSettings.model_validate(VISION))
    build_model("classification", backbone, ("a", "b")).save_pretrained(folder)
    return folder


def test_another_number_of_classes_is_reported_name_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    description = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**description, "classes": ["a", "b", "c"]}))
    with pytest.raises(CheckpointError) as caught:
        load_task(folder)
    assert "2 of another shape (head.2.weight (2, 32) instead of (3, 32), head.2.bias (2,)" in str(
        caught.value
    )


def test_weights_that_do_not_match_are_reported_name_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["extra.weight"] = weights.pop("head.0.weight")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 missing \(head\.0\.weight\); 1 unexpected \(extra\.weight\)"
    ):
        load_task(folder)
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        load_task(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read"),
        ('{"format": "vitp-vlm-1"}', "is not the configuration of a finetuned model"),
        ('{"format": "vitp-task-1", "task": "classification"}', "doesn't describe a model"),
        ('{"format": "vitp-task-1", "task": "tagging", "classes": [], "backbone": {"kind": "x"}}', "doesn't describe"),
    ],
)  # fmt: skip
def test_configurations_that_describe_no_model_are_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    folder = saved(tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_task(folder)
    with pytest.raises(CheckpointError, match="there is no such file or folder"):
        load_task(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no finetuned model"):
        load_task(tmp_path / "empty")


def test_backbones_come_from_all_the_places() -> None:
    starter = open_backbone(BackboneSettings())
    assert isinstance(starter, VisionTower)
    same = open_backbone(BackboneSettings(init="random"), seed=1)
    assert describe_backbone(same) == describe_backbone(starter)
    assert not torch.equal(next(same.parameters()), next(starter.parameters()))
    again = open_backbone(BackboneSettings(init="random"), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), again.parameters(), strict=True))
    larger = open_backbone(BackboneSettings(image_size=128))
    assert larger.image_size == (128, 128) and isinstance(larger, VisionTower)
    frozen = open_backbone(BackboneSettings(init="timm:resnet18", freeze=True))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert empty_backbone(describe_backbone(frozen)).strides == frozen.strides == (2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "timm:resnet19"}, 'no model "resnet19"'),
        ({"init": "nowhere"}, "there is no such file or folder"),
        ({"init": "starter", "arguments": {"depth": 3}}, "takes neither arguments nor weights"),
        ({"init": "starter", "vision": VISION}, "has its own architecture"),
        ({"init": "timm:resnet18", "patch_size": 16}, "aren't resampled here"),
    ],
)
def test_backbones_that_are_not_there_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(VitpError, match=message):
        open_backbone(make_config(BackboneSettings, settings))


def test_the_kind_of_neck_follows_the_backbone() -> None:
    cnn = build_model("segmentation", open_backbone(BackboneSettings(init="timm:resnet18")), ("a", "b"))
    assert type(cnn.pyramid).__name__ == "CNNPyramid"
    tower = VisionTower(VisionSettings.model_validate(VISION))
    kinds = {
        kind: type(build_model("segmentation", tower, ("a", "b"), NeckSettings(kind=kind)).pyramid).__name__
        for kind in ("auto", "adapter", "none")
    }
    assert kinds == {"auto": "SimpleFeaturePyramid", "adapter": "ViTAdapter", "none": "LastMap"}


def test_a_seed_gives_the_same_run() -> None:
    one, two, other = build_run(config()), build_run(config()), build_run(config(seed=1))
    assert one.source.fingerprint() == two.source.fingerprint() != other.source.fingerprint()
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert one.model.input_size == InputSize(mode="fixed", size=32)
    assert {name: len(part) for name, part in one.splits.items()} == {"train": 12, "val": 4, "test": 4}


def test_drawn_labels_and_sizes_reach_the_batches() -> None:
    run = build_run(config(data={"labels": 5, "resize": {"mode": "short", "size": 24}}))
    assert len(run.splits["train"]) == 5 and run.source(0, 0, 0, 1).images_BCHW.shape[-2:] == (24, 24)
    cropped = build_run(config(data={"resize": {"mode": "none"}, "crop": 16}))
    assert cropped.source(0, 0, 0, 1).images_BCHW.shape[-2:] == (16, 16)


def test_empty_training_images_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    ship = ObjectLabel("ship", (1.0, 1.0, 5.0, 5.0))
    items = [
        LabelledImage(f"{split}{i}", f"{split}{i}.png", 8, 8, split, objects=(ship,) if i < full else ())
        for split, full in (("train", 2), ("val", 1), ("test", 1))
        for i in range(12)
    ]

    def sizes(labelled: LabelledSet, **data: Any) -> dict[str, int]:
        monkeypatch.setattr("vitp.runs.finetune.open_configured", lambda *_, **__: labelled)
        return {
            name: len(part) for name, part in build_run(config(task="detection", data=data)).splits.items()
        }

    ships = LabelledSet("ships", items, object_classes=("ship",))
    assert sizes(ships, options={}) == {"train": 12, "val": 12, "test": 12}
    assert sizes(ships, options={}, empty=0.5) == {"train": 4, "val": 12, "test": 12}
    assert sizes(ships, options={}, empty=0.5, labels=3)["train"] == 3
    nothing = replace(ships, items=[replace(item, objects=()) for item in items])
    with pytest.raises(ConfigError, match=r"data\.empty: no training image holds an object"):
        sizes(nothing, options={}, empty=0.5)


def test_validation_can_be_left_out(tmp_path: Path) -> None:
    result = run_finetune(config(train={"val_every": 0, "steps": 2}), tmp_path / "run", console=QUIET)
    assert result.scores.images == 4 and not (tmp_path / "run" / CURVE_FILE).exists()
    with pytest.raises(ConfigError, match='"best" weights are chosen on validation images'):
        config(train={"val_every": 0, "choose": "best"})


def test_the_best_weights_are_those_of_the_best_validation(tmp_path: Path) -> None:
    result = run_finetune(config(train={"choose": "best", "steps": 6}), tmp_path / "run", console=QUIET)
    found = json.loads((tmp_path / "run" / CURVE_FILE).read_text())
    steps = [row[0] for row in found["curve"]]
    assert steps == [2, 4, 6]
    best = max(row[1] for row in found["curve"])
    assert result.step == next(step for step, value in found["curve"] if value == best) == found["best"][0]
    file = best_weights(tmp_path / "run", result.step)
    assert file is not None
    kept, written = load_file(file), load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(kept[name], written[name]) for name in written)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["step"] == result.step and scores["split"] == "test" and scores["images"] == 4
    assert load_task(tmp_path / "run").description["card"]["step"] == result.step


def test_a_frozen_backbone_doesn_t_move(tmp_path: Path) -> None:
    frozen = config(backbone={"freeze": True}, train={"steps": 2, "val_every": None})
    before = {name: p.clone() for name, p in build_run(frozen).model.named_parameters()}
    run_finetune(frozen, tmp_path / "run", console=QUIET)
    after = dict(load_task(tmp_path / "run").named_parameters())
    moved = {name.split(".")[0] for name, p in after.items() if not torch.equal(p, before[name])}
    assert moved == {"head"}


def test_runs_are_not_written_over_and_resume_only_themselves(tmp_path: Path) -> None:
    run_finetune(config(train={"steps": 2}), tmp_path / "run", console=QUIET)
    with pytest.raises(ConfigError, match="holds a run already"):
        run_finetune(config(train={"steps": 2}), tmp_path / "run", console=QUIET)
    with pytest.raises(ConfigError, match=r"differs from the run.*data\.global_batch"):
        run_finetune(
            config(train={"steps": 2}, data={"global_batch": 2}), tmp_path / "run", resume=True, console=QUIET
        )
    with pytest.raises(CheckpointError, match="no run to resume"):
        run_finetune(config(), tmp_path / "other", resume=True, console=QUIET)


def test_an_old_run_goes_on_with_what_it_did_before_there_was_a_choice(tmp_path: Path) -> None:
    run = tmp_path / "run"
    optim, train = {"warmup_steps": 2}, {"steps": 4, "val_every": 0}
    began = config(optim=optim, train=train)
    run_finetune(began, run, console=QUIET)
    assert as_begun(began, run) == began
    rates = [json.loads(line)["lr"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [rate / rates[1] for rate in rates] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    values = yaml.safe_load((run / "config.yaml").read_text())
    del values["backbone"]["positions"], values["optim"]["decay_from"]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    # As a recipe of today asks for it.
    today = config(backbone={"positions": "bicubic"}, optim={**optim, "decay_from": "start"}, train=train)
    assert settings_that_differ(run, today) == []
    run_finetune(today, run, resume=True, console=QUIET)
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert (kept["backbone"]["positions"], kept["optim"]["decay_from"]) == ("antialiased", "warmup")
    backbone = load_task(run).description["backbone"]["config"]
    assert backbone["positions"] == "antialiased"
    # A run that began with a choice is held to it.
    assert settings_that_differ(run, today) == ["backbone.positions", "optim.decay_from"]
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is no YAML"):
        as_begun(today, run)


def test_a_mistake_leaves_the_folder_free(tmp_path: Path) -> None:
    wrong = config(data={"options": {"count": 20, "size": 32, "test": 0.0}})
    with pytest.raises(ConfigError, match="no test images"):
        run_finetune(wrong, tmp_path / "run", console=QUIET)
    run_finetune(config(train={"steps": 1}), tmp_path / "run", console=QUIET)


def documented() -> list[dict[str, Any]]:
    """The configurations in the documentation."""
    text = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")
    return [yaml.safe_load(part.split("```")[0]) for part in text.split("```yaml")[1:]]


@pytest.mark.parametrize("values", documented(), ids=lambda values: values["task"])
def test_documented_configurations_can_be_built(values: dict[str, Any]) -> None:
    settings = make_config(FinetuneConfig, values)
    tower = VisionTower(VisionSettings.model_validate(VISION))
    with torch.device("meta"):
        model = build_model(
            settings.task,
            tower,
            ("a", "b"),
            NeckSettings(kind="simple", options={"channels": 16}),
            settings.head,
        )
    assert model.name == settings.task and settings.neck.kind == "adapter"
    assert settings.train.steps == 80000 or settings.task == "oriented"
