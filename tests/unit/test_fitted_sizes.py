"""Sizes that nobody gave: of images and windows from the data, of heads from the tower; what is given wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from tests.e2e.conftest import done
from vitp.core.config import make_config
from vitp.core.errors import ConfigError
from vitp.evaluation.robustness_comparison import open_model
from vitp.models.vision import VisionSettings
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.runs.finetune import FinetuneConfig, build_run, run_finetune
from vitp.runs.folder import as_begun
from vitp.tasks.base import InputSize
from vitp.tasks.build import NeckSettings, build_model, empty_backbone, open_backbone
from vitp.tasks.label_notes import label_notes
from vitp.tasks.model_folder import load_task, stated_settings, task_description
from vitp.tasks.sizes import fitted_head, fitted_neck, fitted_sizes

QUIET = Console(quiet=True)
TINY: dict[str, Any] = {
    "arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8},
    "image_size": 32,
}


def images(sides: list[tuple[int, int]], *objects: tuple[int, int]) -> LabelledSet:
    labels = tuple(ObjectLabel("ship", (0.0, 0.0, float(w), float(h))) for w, h in objects)
    items = [
        LabelledImage(f"{k}", f"{k}.png", width, height, objects=labels)
        for k, (width, height) in enumerate(sides)
    ]
    return LabelledSet("set", items, object_classes=("ship",))


NONE, BOTH = InputSize(), ("objects", "oriented", "instances")


@pytest.mark.parametrize(
    ("sides", "objects", "side", "resize", "window", "anchors"),
    [
        # Ships of 14 px stay as they are, whatever the backbone was pretrained at.
        ([(800, 800)] * 3, [(30, 14)] * 9, 96, NONE, 192, 2.0),
        ([(800, 800)] * 3, [(30, 14)] * 9, 224, NONE, 448, 2.0),
        # Images of one size are reduced as far as small objects keep 32 px, ...
        ([(640, 480)] * 3, [(100, 80)] * 9, 96, InputSize(mode="long", size=256), None, 8.0),
        # ... those of very different sizes are not: a pixel means something else in each.
        ([(640, 480), (2000, 300)], [(100, 80)] * 9, 96, NONE, 416, 8.0),
        # Never below the side of the backbone.
        ([(640, 480)] * 3, [(400, 400)] * 9, 224, InputSize(mode="long", size=224), None, 8.0),
        # Small images are enlarged to the backbone's side, squares as ever.
        ([(64, 64)] * 3, [(9, 5)] * 9, 96, InputSize(mode="fixed", size=96), None, 1.0),
        ([(64, 48)] * 3, [(9, 5)] * 9, 96, InputSize(mode="long", size=96), None, 1.0),
        # The window holds a large object four times, up to 1024 px.
        ([(6000, 6000), (900, 900)], [(20, 20)] * 9 + [(90, 80)] * 9, 96, NONE, 384, 4.0),
        ([(6000, 6000), (900, 900)], [(500, 500)] * 9, 96, NONE, 1024, 8.0),
    ],
)
def test_images_are_as_large_as_their_objects_need(
    sides: list[tuple[int, int]],
    objects: list[tuple[int, int]],
    side: int,
    resize: InputSize,
    window: int | None,
    anchors: float,
) -> None:
    found = fitted_sizes(images(sides, *objects), "objects", side)
    assert (found.resize, found.window, found.anchors) == (resize, window, anchors)
    small = min(min(pair) for pair in objects)
    seen = min(min(found.resize.of(height, width)) / min(height, width) for width, height in sides) * small
    assert seen >= min(small, 32) * 0.99  # no object that was clear gets lost
    assert found.said[0].startswith("images: ") and found.said[1].startswith("objects: mostly ")


def test_regions_follow_the_image_and_the_number_of_objects() -> None:
    few, many = [(20, 14)] * 3, [(20, 14)] * 50
    assert fitted_sizes(images([(96, 96)], *few), "objects", 96).regions == 64
    assert fitted_sizes(images([(96, 96)], *many), "objects", 96).regions == 400
    assert fitted_sizes(images([(400, 400)], *few), "objects", 400).regions == 128
    assert fitted_sizes(images([(1000, 1000)], *few), "objects", 1000).regions is None
    head = fitted_head("detection", {"box": {"samples": 32}}, 768, None, 64)
    assert head["box"] == {"samples": 32}
    assert head["proposals"] == {"samples": 64, "keep_before": [256, 128], "keep": [256, 128]}


def test_maps_of_classes_keep_the_resolution_and_whole_images_the_square() -> None:
    plain = images([(256, 256)] * 3)
    assert fitted_sizes(plain, "semantic", 224).resize == InputSize()
    assert fitted_sizes(plain, "semantic", 224).window is None
    assert fitted_sizes(images([(5000, 5000)]), "semantic", 224).window == 448
    assert fitted_sizes(images([(5000, 5000)]), "change", 512).window == 512
    for kind in ("scene", "presence"):
        found = fitted_sizes(images([(800, 600)]), kind, 96)  # type: ignore[arg-type]
        assert (found.resize, found.window) == (InputSize(mode="fixed", size=96), None)
        assert found.said == ("images: resized to 96×96, the backbone's size (data.resize)",)


def test_sides_of_oriented_objects_are_those_of_the_turned_box() -> None:
    quad = (0.0, 0.0, 30.0, 30.0, 20.0, 40.0, -10.0, 10.0)  # 42 × 14 px, turned by 45°
    item = LabelledImage("a", "a.png", 800, 800, objects=(ObjectLabel("ship", (0, 0, 40, 40), quad),) * 3)
    found = fitted_sizes(LabelledSet("set", [item], object_classes=("ship",)), "oriented", 96)
    assert found.resize == InputSize() and found.anchors == 2.0
    assert found.said[1].startswith("objects: mostly 14–42 px")


@pytest.mark.parametrize(
    "task", ["detection", "instance", "oriented", "segmentation", "change", "classification"]
)
def test_towers_of_the_papers_have_the_published_heads_exactly(task: str) -> None:
    for width in (768, 1024, 1280):
        assert fitted_head(task, {}, width) == {} and fitted_head(task, {}, width, 8.0) == {}
        assert fitted_neck("adapter", {"parts": 2}, width) == {"parts": 2}


@pytest.mark.parametrize(
    ("task", "width", "head"),
    [
        ("detection", 192, {"width": 64, "box": {"hidden": 256}}),
        ("detection", 384, {"width": 128, "box": {"hidden": 512}}),
        ("oriented", 192, {"width": 64, "box": {"hidden": 256}}),
        ("instance", 192, {"width": 64, "box": {"hidden": 256}, "mask": {"width": 64}}),
        ("detection", 48, {"width": 64, "box": {"hidden": 256}}),
        ("segmentation", 192, {}),
        ("change", 32, {}),
        ("classification", 192, {}),
    ],
)
def test_heads_of_narrow_towers_are_narrow_in_proportion(task: str, width: int, head: dict[str, Any]) -> None:
    assert fitted_head(task, {}, width) == head
    given = {"width": 48, "box": {"hidden": 96}, "mask": {"width": 80}}
    kept = fitted_head(task, given, width)
    assert {name: kept[name] for name in given} == given  # what is given wins


def test_anchors_are_fitted_where_none_are_given() -> None:
    found = fitted_head("detection", {"box": {"kind": "faster"}}, 768, 2.0)
    assert found == {
        "box": {"kind": "faster", "canonical_size": 56.0},
        "proposals": {"anchor_scales": [2.0]},
    }
    given = {"proposals": {"anchor_scales": [4.0]}}
    assert fitted_head("detection", given, 768, 2.0) == given
    assert fitted_neck("adapter", {}, 192) == {"prior_width": 32}
    assert fitted_neck("adapter", {"prior_width": 64}, 192) == {"prior_width": 64}
    assert fitted_neck("simple", {}, 192) == {}


def test_the_default_head_of_the_packaged_tower_is_no_larger_than_the_tower() -> None:
    backbone = open_backbone(make_config(FinetuneConfig, {"task": "x", "data": {"root": "."}}).backbone)
    tower = sum(p.numel() for p in backbone.parameters())
    for task, published in (("detection", 41e6), ("oriented", 13e6)):
        sizes = {}
        for name, head in (("fit", fitted_head(task, {}, backbone.channels[-1])), ("published", {})):
            with torch.device("meta"):
                model = build_model(
                    task, empty_backbone({"kind": "vision", "config": _vision(backbone)}), ("a",), None, head
                )
            sizes[name] = sum(
                p.numel()
                for group in model.parameter_groups()
                if group.name == "head"
                for p in group.parameters.values()
            )
        assert sizes["fit"] <= tower < published < sizes["published"]


def _vision(backbone: Any) -> dict[str, Any]:
    return backbone.config.model_dump(mode="json")


# --- runs


def ships(root: Path, side: int = 160, count: int = 8) -> Path:
    """Write images of `side` × `side` px with bright ships of 20 × 14 px."""
    rng = np.random.default_rng(0)
    for k in range(count):
        pixels_HWC = rng.integers(40, 70, (side, side, 3), dtype=np.uint8)
        rows = []
        for _ in range(3):
            x, y = (int(v) for v in rng.integers(2, side - 22, 2))
            pixels_HWC[y : y + 14, x : x + 20] = 250
            rows.append(f"0 {(x + 10) / side} {(y + 7) / side} {20 / side} {14 / side}")
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_HWC).save(root / "images" / f"{k}x.png")
        (root / "labels" / f"{k}x.txt").write_text("\n".join(rows))
    (root / "classes.txt").write_text("ship\n")
    return root


def tiny(root: Path, **changes: Any) -> FinetuneConfig:
    values: dict[str, Any] = {
        "task": "detection",
        "backbone": {"init": "random", "vision": VisionSettings.model_validate(TINY).model_dump(mode="json")},
        "data": {"root": str(root), "global_batch": 2},
        "head": {"box": {"samples": 16}, "proposals": {"keep_before": [50, 50], "keep": [20, 20]}},
        "train": {"steps": 1, "val_every": 0},
    }
    for section, own in changes.items():
        values[section] = {**values.get(section, {}), **own}
    return make_config(FinetuneConfig, values)


def test_a_detector_sees_small_ships_at_their_own_size_in_training_and_in_use(tmp_path: Path) -> None:
    root = ships(tmp_path / "set")
    run = build_run(tiny(root))
    assert run.model.input_size == InputSize() and run.config.data.crop == run.config.test.window == 96
    boxes = [target.boxes_N4 for k in range(4) for target in _targets(run, k)]
    sides = torch.cat([b[:, 2:] - b[:, :2] for b in boxes if b is not None and len(b)])
    assert sides.max(0).values.tolist() == [20, 14]  # not those of images squeezed to 32 × 32
    assert any("read at their own size, in crops and windows of 96 px" in note for note in run.notes)
    assert any("head.box.hidden 256" in note for note in run.notes)


def _targets(run: Any, step: int) -> Any:
    reader, size = run.source.collate.reader, run.source.collate.size
    item = reader.labelled.items[step]
    assert size == InputSize()
    return [reader.target(reader.sample(item))]


def test_predict_uses_what_the_run_stored(tmp_path: Path) -> None:
    root = ships(tmp_path / "set")
    result = run_finetune(tiny(root), tmp_path / "run", console=QUIET)
    description = task_description(result.model)
    assert (
        description["input"] == {"mode": "none", "size": None} and stated_settings(description).window == 96
    )
    assert description["head"]["width"] == 64 and description["head"]["proposals"]["anchor_scales"] == [2.0]
    loaded = load_task(tmp_path / "run")
    assert loaded.input_size == InputSize()
    done("predict", tmp_path / "run", root / "images" / "0x.png", "--out", tmp_path / "pred")
    # What the user gives goes before what the data say.
    given = build_run(tiny(root, data={"resize": {"mode": "fixed", "size": 64}}, head={"width": 24}))
    assert given.model.input_size == InputSize(mode="fixed", size=64)
    assert given.config.data.crop is None and given.config.test.window is None
    assert given.config.head["width"] == 24 and "anchor_scales" not in given.config.head["proposals"]
    cut = build_run(tiny(root, data={"crop": 64}, test={"window": 80}))
    assert (cut.config.data.crop, cut.config.test.window) == (64, 80) and cut.model.input_size == InputSize()


def test_runs_and_models_of_before_keep_their_sizes(tmp_path: Path) -> None:
    root = ships(tmp_path / "set")
    fixed = build_run(tiny(root, data={"sizes": "fixed"}))
    assert fixed.model.input_size == InputSize(mode="fixed", size=32) and fixed.config.test.window is None
    assert fixed.model.neck.width == 256  # type: ignore[attr-defined]
    # A task model that states no widths has the published ones.
    fixed.model.save_pretrained(tmp_path / "model")
    stated = json.loads((tmp_path / "model" / "config.json").read_text())["head"]
    assert "width" not in stated and load_task(tmp_path / "model").neck.width == 256  # type: ignore[attr-defined]
    # A run whose configuration knows no choice goes on as it began.
    today = tiny(root)
    (tmp_path / "run").mkdir()
    values = today.model_dump(mode="json")
    del values["data"]["sizes"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(values))
    assert as_begun(today, tmp_path / "run").data.sizes == "fixed" and today.data.sizes == "fit"


def test_necks_of_models_are_written_as_they_were_built(tmp_path: Path) -> None:
    backbone = open_backbone(tiny(tmp_path).backbone)
    neck = NeckSettings(kind="adapter", options=fitted_neck("adapter", {"parts": 2, "heads": 2}, 32))
    model = build_model("segmentation", backbone, ("a", "b"), neck, {"width": 32})
    model.save_pretrained(tmp_path / "model")
    assert load_task(tmp_path / "model").description["neck"]["options"]["prior_width"] == 32


# --- how windows lie, and sizes that don't say of which side


def fields(root: Path, side: int = 160, count: int = 6) -> Path:
    """Write images of `side` × `side` px, the left half of which is a field, and their masks."""
    rng = np.random.default_rng(0)
    for k in range(count):
        pixels_HWC = rng.integers(40, 70, (side, side, 3), dtype=np.uint8)
        pixels_HWC[:, : side // 2] += 100
        mask_HW = (pixels_HWC[..., 0] > 100).astype(np.uint8)
        for folder, array in (("images", pixels_HWC), ("masks", mask_HW)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{k}.png")
    (root / "classes.txt").write_text("0 soil\n1 field\n")
    return root


def mapped(root: Path, **changes: Any) -> FinetuneConfig:
    head = {"kind": "fpn", "width": 16, "auxiliary": 0}
    config = tiny(root, **changes).model_dump(mode="json", exclude_unset=True)
    return make_config(FinetuneConfig, config | {"task": "segmentation", "head": head})


def test_windows_of_class_maps_are_said_and_stay_those_of_the_run(tmp_path: Path) -> None:
    root = fields(tmp_path / "set")
    config = mapped(root)
    run_finetune(config, tmp_path / "run", console=QUIET)
    test = stated_settings(task_description(tmp_path / "run/model"))
    assert (test.overlap, test.stagger) == (0.5, True)
    stated = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["test"]
    assert (stated["overlap"], stated["stagger"]) == (0.5, True)
    # Begun again from the same words, or resumed from its own file, it goes on as it began.
    for again in (
        config,
        make_config(FinetuneConfig, yaml.safe_load((tmp_path / "run/config.yaml").read_text())),
    ):
        gone_on = as_begun(again, tmp_path / "run").test
        assert (gone_on.overlap, gone_on.stagger) == (0.5, True)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.yaml").write_text(yaml.safe_dump({"task": "segmentation", "data": {"root": str(root)},
                                                              "test": {"overlap": 0.25}}))  # fmt: skip
    assert (
        as_begun(config, tmp_path / "old").test.overlap,
        as_begun(config, tmp_path / "old").test.stagger,
    ) == (
        0.25,
        False,
    )
    said = [line for line in build_run(config).notes if "test.overlap 0.5, test.stagger true" in line]
    assert len(said) == 1
    given = build_run(mapped(root, test={"overlap": 0.125}))
    assert (given.config.test.overlap, given.config.test.stagger) == (0.125, False)
    assert not any("test.stagger" in line for line in given.notes)


@pytest.mark.parametrize("key", ["data.resize.size", "test.resize.size"])
def test_a_size_alone_is_refused(tmp_path: Path, key: str) -> None:
    values = {"task": "segmentation", "data": {"root": "somewhere"}}
    with pytest.raises(ConfigError, match=r"resize is .*mode=fixed.*mode=long or mode=short"):
        make_config(FinetuneConfig, values, [f"{key}=64"])
    part, _, _ = key.partition(".")
    found = make_config(FinetuneConfig, values, [f"{key}=64", f"{part}.resize.mode=long"])
    assert getattr(found, part).resize == InputSize(mode="long", size=64)
    # Runs that were begun with a size alone state both.
    assert InputSize.model_validate({"mode": "none", "size": 64}).of(9, 8) == (9, 8)


def test_a_size_that_no_image_would_get_is_refused_where_a_model_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model:
        description: ClassVar[Any] = {"test": {"resize": {"mode": "none", "size": None}}}

        def to(self, _: Any) -> Any:
            return self

    monkeypatch.setattr("vitp.evaluation.robustness_comparison.load_task", lambda _: Model())
    with pytest.raises(ConfigError, match=r"resize\.mode is none"):
        open_model("run", ["resize.size=64"])
    assert open_model("run", ["resize.size=64", "resize.mode=short"])[1].resize == InputSize(
        mode="short", size=64
    )
    Model.description = {"test": {"resize": {"mode": "none", "size": 64}}}
    assert open_model("run", [])[1].resize == InputSize(mode="none", size=64)
    Model.description = {"test": {"resize": None}}
    with pytest.raises(ConfigError, match="mode=fixed"):
        open_model("run", ["resize.size=64"])


def test_objects_on_slices_of_volumes_are_said_to_have_no_scores_by_case() -> None:
    box = (ObjectLabel("nodule", (1.0, 1.0, 5.0, 5.0)),)
    slices = [LabelledImage(f"{k}", f"a.nii.gz#slice={k}&plane=axial", 9, 9, objects=box) for k in range(2)]
    pictures = [LabelledImage("0", "a.png", 9, 9, objects=box)]
    for kind in ("objects", "instances", "oriented"):
        notes = label_notes({"test": LabelledSet("set", slices)}, kind, ["nodule"], learned=None)  # type: ignore[arg-type]
        assert sum("slice by slice" in line for line in notes) == 1
    assert not label_notes({"test": LabelledSet("set", pictures)}, "objects", ["nodule"], learned=None)
