"""`vitp finetune`, `eval` and `predict` for each task and kind of backbone, through the real command line."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.e2e.conftest import done, litter, read_rows, refused
from vitp.checkpoints.loading import load_backbone
from vitp.data.formats import read_labels
from vitp.tasks.model_folder import load_task

SIZE = 48
LAYOUTS = {
    "classification": "folders",
    "segmentation": "masks",
    "change": "pairs",
    "detection": "coco",
    "instance": "coco",
    "oriented": "dota",
}
HEADLINES = {
    "classification": "accuracy",
    "segmentation": "miou",
    "change": "f1",
    "detection": "AP",
    "instance": "mask_AP",
    "oriented": "AP50",
}
VISION = json.dumps(
    {"arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}, "image_size": SIZE}
)
FAST = [
    "data.global_batch=4", "train.threads=1", "train.save_every=2", "train.val_every=2", "train.log_every=1",
    "data.resize.mode=fixed", f"data.resize.size={SIZE}",
]  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Task → folder of 20 generated scenes in a layout with its labels."""
    root = tmp_path_factory.mktemp("labels")

    def get(task: str) -> Path:
        folder = root / LAYOUTS[task]
        if not folder.exists():
            arguments = ("--layout", LAYOUTS[task], "--count", 20, "--size", SIZE, "--out", folder)
            done("data", "scenes", "port", *arguments)
        return folder

    return get


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ViT of a ViTP run of ten steps."""
    folder = tmp_path_factory.mktemp("exported") / "backbone"
    done("export", finished, "--out", folder)
    return folder


def settings_of(task: str, backbone: str) -> list[str]:
    """Return the smallest model of a task."""
    settings = [*FAST, "train.keep_last=3"]
    if backbone == "random":
        settings.append(f"backbone.vision={VISION}")
    if task != "classification":
        settings += ["neck.options.channels=32", "head.width=32"]
    if task in ("detection", "instance", "oriented"):
        settings += ["head.proposals.keep=[40,40]", "head.proposals.anchor_scales=[2]"]
        settings += ["head.box.hidden=32", "head.box.samples=32", "head.box.detections=20"]
    return settings


def finetune(task: str, data: Path, backbone: object, out: Path, steps: int, *settings: str) -> None:
    options = [word for setting in settings for word in ("-s", setting)]
    done("finetune", task, "--data", data, "--backbone", backbone, "--out", out, "--steps", steps, *options)


def check_run(task: str, run: Path) -> None:
    scores = json.loads((run / "scores.json").read_text())
    assert scores["task"] == task and scores["headline"] == HEADLINES[task] and scores["images"] == 4
    assert all(value is None or 0 <= value <= 1 for value in scores["values"].values())
    assert [row[0] for row in scores["validation"]] == [2, 3]
    losses = [row["loss"] for row in read_rows(run / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 3 and all(np.isfinite(losses))
    evidence = json.loads((run / "evidence.json").read_text())
    assert evidence["relative_change"] > 0
    assert {path.name for path in (run / "model").iterdir()} == {"config.json", "model.safetensors"}
    assert litter(run) == []


def check_resume(task: str, run: Path) -> None:
    """Taken up after two of three steps, a run ends with the same weights and scores."""
    again = run.with_name("again")
    shutil.copytree(run, again)
    last = max((again / "checkpoints").iterdir())
    for leftover in (last, again / "model"):
        shutil.rmtree(leftover)
    (again / "scores.json").unlink()
    result = done("finetune", task, "--out", again, "--resume")
    assert "resumed" in result.out and "step 3/3" in result.out and "step 2/3" not in result.out
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (run, again))
    assert one.keys() == two.keys() and all(bool((one[name] == two[name]).all()) for name in one)
    assert (again / "scores.json").read_text() == (run / "scores.json").read_text()


def check_eval(task: str, run: Path, data: Path, out: Path) -> None:
    done("eval", run, data, "--out", out)
    found, before = json.loads(out.read_text()), json.loads((run / "scores.json").read_text())
    assert found["values"] == before["values"] and found["per_class"] == before["per_class"]


def check_predict(task: str, run: Path, data: Path, out: Path) -> None:
    inside = {"folders": sorted((data / "test").glob("*/*.png")), "pairs": [data / "test" / "A"]}
    images = inside.get(LAYOUTS[task], [data / "test" / "images"])
    later = ["--later", data / "test" / "B"] if task == "change" else []
    result = done("predict", run, *images, *later, "--out", out, "-s", "score_threshold=0")
    assert f"predictions of 4 images to {out}" in result.out
    pictures = sorted(path.stem for path in (out / "pictures").iterdir())
    assert len(pictures) == 4
    if task == "classification":
        assert len((out / "predictions.csv").read_text().splitlines()) == 5
        return
    assert sorted(path.name for path in (out / "geojson").iterdir()) == [
        f"{name}.pixels.geojson" for name in pictures
    ]
    if task == "segmentation":
        assert len((out / "classes.txt").read_text().splitlines()) > 2
        with Image.open(out / "masks" / f"{pictures[0]}.png") as mask:
            assert mask.size == (SIZE, SIZE)
    elif task == "change":
        with Image.open(out / "label" / f"{pictures[0]}.png") as mask:
            assert mask.size == (SIZE, SIZE) and set(np.unique(np.asarray(mask))) <= {0, 255}
    else:
        read = read_labels("coco", out / "predictions.json", val=0.0, scores="labels")
        assert len(read.items) == 4
    assert litter(out) == []


CASES = [
    # The slow ones are the same code once more: other heads of objects, other backbones.
    pytest.param(task, backbone, marks=[pytest.mark.slow] if slow else [])
    for backbone in ("exported", "random", "timm:resnet18")
    for task in LAYOUTS
    for slow in [backbone != "exported" or task in ("instance", "oriented")]
]


@pytest.mark.parametrize(("task", "backbone"), CASES)
def test_a_task_from_labels_to_predictions(
    task: str, backbone: str, data: Callable[[str], Path], exported: Path, tmp_path: Path
) -> None:
    labels, run = data(task), tmp_path / "run"
    init = exported if backbone == "exported" else backbone
    finetune(task, labels, init, run, 3, *settings_of(task, backbone))
    check_run(task, run)
    check_resume(task, run)
    check_eval(task, run, labels, tmp_path / "scores.json")
    check_predict(task, run, labels, tmp_path / "predictions")


def test_large_images_are_seen_through_windows(
    data: Callable[[str], Path], exported: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    finetune("segmentation", data("segmentation"), exported, run, 1, *settings_of("segmentation", "exported"))
    tiles = [
        np.asarray(Image.open(path)) for path in sorted((data("segmentation") / "test" / "images").glob("*"))
    ]
    mosaic = np.concatenate([np.concatenate(tiles[:2], 1), np.concatenate(tiles[2:4], 1)])
    Image.fromarray(mosaic).save(tmp_path / "mosaic.png")
    windows = ("-s", "resize.mode=none", "-s", f"window={SIZE}", "-s", "overlap=0.0")
    done("predict", run, tmp_path / "mosaic.png", "--out", tmp_path / "whole", *windows)
    done("predict", run, data("segmentation") / "test" / "images", "--out", tmp_path / "parts")
    parts = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "parts" / "masks").glob("*"))]
    expected = np.concatenate([np.concatenate(parts[:2], 1), np.concatenate(parts[2:4], 1)])
    found = np.asarray(Image.open(tmp_path / "whole" / "masks" / "mosaic.png"))
    assert (found == expected).mean() > 0.999


def test_what_cannot_be_done_is_said_in_one_line(
    data: Callable[[str], Path], exported: Path, tmp_path: Path
) -> None:
    masks, out = data("segmentation"), tmp_path / "run"
    assert "did you mean" in refused("finetune", "segmentatoin", "--data", masks, "--out", out)
    assert "has no objects" in refused("finetune", "detection", "--data", masks, "--out", out)
    assert "holds no backbone" in refused(
        "finetune", "segmentation", "--data", masks, "--backbone", tmp_path, "--out", out
    )
    assert "nothing to learn from" in refused("finetune", "segmentation", "--out", out)
    assert "holds no run to resume" in refused("finetune", "segmentation", "--out", out, "--resume")
    wrong = refused("finetune", "segmentation", "--data", masks, "--out", out, "-s", "train.step=3")
    assert "unknown key 'train.step'" in wrong and 'did you mean "steps"' in wrong
    assert "is not the configuration of a finetuned model" in refused("eval", exported, masks)
    assert "holds no finetuned model" in refused("eval", tmp_path, masks)
    assert not (out / "config.yaml").exists()


def test_a_run_refuses_what_it_was_not_made_for(
    data: Callable[[str], Path], exported: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    finetune(
        "classification", data("classification"), exported, run, 1, *settings_of("classification", "exported")
    )
    image = next((data("segmentation") / "test" / "images").iterdir())
    assert "takes no later dates" in refused("predict", run, image, "--later", image, "--out", tmp_path / "p")
    assert "doesn't exist" in refused("predict", run, tmp_path / "none.png", "--out", tmp_path / "p")
    assert "has no classes of whole images" in refused("eval", run, data("segmentation"))
    assert 'no split "tset"' in refused("eval", run, data("classification"), "--split", "tset")
    assert "did you mean" in refused("eval", run, data("classification"), "-s", "windw=3")
    assert "holds a run already" in refused(
        "finetune", "classification", "--data", data("classification"), "--out", run
    )


@pytest.mark.slow
def test_the_documented_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")
    block = text.split("```bash")[1].split("```")[0]
    lines = [shlex.split(line, comments=True) for line in block.strip().splitlines()]
    assert len(lines) == 4
    monkeypatch.chdir(tmp_path)
    for words in lines:
        # As written, but short.
        if words[1] == "finetune":
            words[words.index("--steps") + 1] = "2"
            words += ["-s", "train.threads=1"]
        if words[1] == "data":
            words += ["--count", "30"]
        assert words[0] == "vitp"
        done(*words[1:])
    assert len(list(Path("predictions/masks").iterdir())) == 6


# Fits a small set: what isn't learned here isn't learned anywhere.

NO_AUGMENTATION = [
    "augment.flip=false", "augment.rotate90=false", "augment.photometric=0", "augment.swap_dates=0",
    "train.val_every=null", "train.save_every=null", "train.log_every=50", "train.threads=1",
    "data.resize.mode=fixed", f"data.resize.size={SIZE}", f"backbone.vision={VISION}",
    "optim.weight_decay=0", "optim.layer_decay=null",
]  # fmt: skip
LIGHT = [
    "neck.options.channels=32", "head.width=32", "head.kind=fpn", "head.dropout=0", "head.auxiliary=0",
    "head.dice=1", "optim.lr=0.005",
]  # fmt: skip
# Generated images, training steps, what has to be reached.
FITS = {
    "classification": (10, 120, 0.9, ["optim.lr=0.003"]),
    "segmentation": (6, 350, 0.9, LIGHT),
    "change": (10, 400, 0.9, LIGHT),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", FITS)
def test_a_task_fits_a_small_set(task: str, tmp_path: Path) -> None:
    count, steps, least, settings = FITS[task]
    scenes = tmp_path / "scenes"
    done(
        "data", "scenes", "port", "--layout", LAYOUTS[task], "--count", count, "--size", SIZE, "--out", scenes
    )
    finetune(
        task, scenes, "random", tmp_path / "run", steps, *NO_AUGMENTATION, "data.global_batch=7", *settings
    )
    done("eval", tmp_path / "run", scenes, "--split", "train", "--out", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["values"][HEADLINES[task]] > least


def test_the_backbone_of_a_task_can_be_exported(data: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [word for setting in settings_of("classification", "random") for word in ("-s", setting)]
    done(
        "finetune", "classification", "--data", data("classification"), "--backbone", "random", "--steps", 1,
        "--out", run, *settings,
    )  # fmt: skip
    done("export", run, "--out", tmp_path / "backbone")
    tuned, exported = load_task(run).backbone.state_dict(), load_backbone(tmp_path / "backbone").state_dict()
    assert tuned.keys() == exported.keys()
    assert all(torch.equal(tuned[name], exported[name]) for name in tuned)
