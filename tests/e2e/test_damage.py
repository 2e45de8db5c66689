"""One flipped bit in any weights file that vitp writes: every command that reads the file refuses it by name."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.e2e.conftest import SIZE, done, litter, read_rows, refused, snapshot, vitp, write_config
from tests.e2e.test_finetune import FAST
from vitp.checkpoints.tensors import write_tensors

MODEL = "model/model.safetensors"


def flip(file: Path, seed: int = 0) -> None:
    """Flip one bit anywhere in a file."""
    data = bytearray(file.read_bytes())
    bit = random.Random(f"{file.name} {seed}").randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def only_line(*arguments: object, file: Path) -> str:
    """Return the line with which a command refuses a damaged file; it must name the file."""
    line = refused(*arguments)
    assert str(file) in line or f"{file.parent.name}/{file.name}" in line, line
    assert "is damaged" in line or "is no whole safetensors file" in line or "is missing" in line, line
    return line


@pytest.fixture(scope="module")
def task(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finetuned model of two steps on masks."""
    out = tmp_path_factory.mktemp("task") / "run"
    settings = [*FAST, "neck.options.channels=16", "head.width=16", "train.choose=best"]
    options = [word for setting in settings for word in ("-s", setting)]
    vision = {"arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}, "image_size": SIZE}
    arguments = ("--data", scenes, "--backbone", "random", "--steps", 2, "--out", out)
    done("finetune", "segmentation", *arguments, *options, "-s", f"backbone.vision={json.dumps(vision)}")
    return out


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.png"
    Image.new("RGB", (SIZE, SIZE), (90, 120, 30)).save(path)
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "finished"))


Command = Callable[[Path, Path, Path, Path], tuple[object, ...]]
"""Run, compiled data, image, new folder → the words of a command that reads the run's model."""

READERS: dict[str, Command] = {
    "export": lambda run, data, image, new: ("export", run, "--out", new),
    "export hf": lambda run, data, image, new: ("export", run, "--out", new, "--format", "hf"),
    "export graph": lambda run, data, image, new: ("export", run, "--out", new, "--format", "torch-export"),
    "convert": lambda run, data, image, new: ("convert", run, new, "--to", "hf"),
    "convert file": lambda run, data, image, new: ("convert", run / MODEL, new, "--to", "timm"),
    "swap": lambda run, data, image, new: ("swap", run, new, "--vision", "starter"),
    "swap in": lambda run, data, image, new: ("swap", "starter", new, "--vision", run),
    "ask": lambda run, data, image, new: ("ask", run, image, "Is there a ship?"),
    "probe": lambda run, data, image, new: ("probe", run, data),
    "report": lambda run, data, image, new: ("report", run, "--out", new),
    "features": lambda run, data, image, new: ("features", run, "--images", image, "--out", new),
    "robustness": lambda run, data, image, new: ("robustness", run, data, "--out", new),
    "finetune": lambda run, data, image, new: (
        *("finetune", "segmentation", "--data", data, "--backbone", run, "--steps", 1, "--out", new),
    ),
    "pretrain": lambda run, data, image, new: (
        *("pretrain", "--data", data, "--init", run, "--steps", 1, "--out", new),
    ),
    "check": lambda run, data, image, new: ("check", run),
}


@pytest.mark.parametrize("command", READERS)
def test_a_flipped_bit_of_a_model_is_refused(
    command: str, run: Path, compiled: Path, image: Path, tmp_path: Path
) -> None:
    flip(run / MODEL, seed=len(command))
    words = READERS[command](run, compiled, image, tmp_path / "new")
    only_line(*words, file=run / MODEL)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["eval", "predict", "robustness"])
def test_a_flipped_bit_of_a_task_model_is_refused(
    command: str, task: Path, scenes: Path, image: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(task, tmp_path / "copy"))
    flip(copy / MODEL)
    words: dict[str, tuple[object, ...]] = {
        "eval": ("eval", copy, scenes),
        "predict": ("predict", copy, image, "--out", tmp_path / "new"),
        "robustness": ("robustness", copy, scenes, "--out", tmp_path / "new"),
    }
    only_line(*words[command], file=copy / MODEL)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("form", ["timm", "hf", "torch-export"])
def test_a_flipped_bit_of_an_export_is_refused(
    form: str, finished: Path, compiled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "export"
    done("export", finished, "--out", out, "--format", form)
    weights = out / ("backbone.pt2" if form == "torch-export" else "model.safetensors")
    flip(weights)
    if form in ("timm", "torch-export"):
        error = refused("export", out, "--verify")
        assert weights.name in error and "damaged" in error
    if form != "torch-export":
        only_line("probe", out, compiled, file=weights)
        only_line("convert", out, tmp_path / "new", "--to", "timm", file=weights)


def test_a_flipped_bit_of_test_vectors_is_refused(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "export"
    done("export", finished, "--out", out)
    flip(out / "check" / "test_vectors.safetensors")
    assert "test_vectors.safetensors: is " in refused("export", out, "--verify")


@pytest.mark.parametrize("command", ["convert", "swap"])
def test_a_flipped_bit_of_what_was_converted_is_refused(
    command: str, finished: Path, image: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    if command == "convert":
        done("convert", finished, out, "--to", "hf")
    else:
        done("swap", finished, out, "--vision", "starter")
    flip(out / "model.safetensors")
    only_line("ask", out, image, "Is there a ship?", file=out / "model.safetensors")


def test_a_flipped_bit_of_a_shard_is_refused(finished: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    done("convert", finished, out, "--to", "hf")
    weights = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    write_tensors(out, weights, max_shard=60_000)
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 2
    flip(shards[1])
    only_line("ask", out, image, "Is there a ship?", file=shards[1])


def test_a_run_goes_on_from_the_checkpoint_before(finished: Path, tmp_path: Path) -> None:
    """And ends with the bits of one that was never damaged."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(run / "model")
    flip(run / "checkpoints" / "step_00000010" / "optimizer.safetensors")
    result = done("pretrain", "--resume", "--out", run)
    said = " ".join(result.out.split())
    assert "WARNING: skipped the damaged checkpoint step_00000010" in said and "step_00000008" in said
    for file in (
        MODEL,
        *(f"checkpoints/step_00000010/{part}.safetensors" for part in ("model", "optimizer")),
    ):
        ours, theirs = load_file(run / file), load_file(finished / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = [
        [(row["step"], row["loss"]) for row in read_rows(folder / "metrics.jsonl") if "loss" in row]
        for folder in (run, finished)
    ]
    assert rows[0] == rows[1] and litter(run) == []


def test_a_restart_does_not_loop(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun and Slurm start the very same command again: with one good checkpoint it goes on, with none it stops."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(run / "model")
    for step in (8, 10):
        flip(run / "checkpoints" / f"step_{step:08d}" / "model.safetensors")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    before = snapshot(run)
    for _ in range(2):
        error = refused("pretrain", run / "config.yaml", "--out", run)
        assert "all 2 checkpoints are damaged" in error
        assert "step_00000010" in error and "step_00000008" in error
        assert snapshot(run) == before
    shutil.copytree(finished / "checkpoints" / "step_00000008", tmp_path / "whole")
    shutil.rmtree(run / "checkpoints" / "step_00000008")
    (tmp_path / "whole").rename(run / "checkpoints" / "step_00000008")
    done("pretrain", run / "config.yaml", "--out", run)
    ours, theirs = (load_file(folder / MODEL) for folder in (run, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_damaged_phase_is_made_again(compiled: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", compiled, objective={"align": {"steps": 2}})
    done("pretrain", config, "--out", tmp_path / "run", "--steps", 2)
    straight = load_file(tmp_path / "run" / MODEL)
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    flip(tmp_path / "run" / "align" / MODEL)
    result = done("pretrain", "--resume", "--out", tmp_path / "run")
    assert "the phase is made again from its last checkpoint" in " ".join(result.out.split())
    again = load_file(tmp_path / "run" / MODEL)
    assert all(torch.equal(again[name], straight[name]) for name in straight)


def test_a_finished_run_is_made_longer(compiled: Path, tmp_path: Path) -> None:
    constant = {"schedule": "constant", "warmup_steps": 2, "lr": 3e-3}
    config = write_config(tmp_path / "run.yaml", compiled, optim=constant)
    for name, steps in (("long", 7), ("run", 4)):
        done("pretrain", config, "--out", tmp_path / name, "--steps", steps)
    result = done("pretrain", "--resume", "--out", tmp_path / "run", "--steps", 7)
    assert "train.steps 4 → 7" in result.out and "WARNING" not in result.out
    assert (tmp_path / "run" / MODEL).read_bytes() == (tmp_path / "long" / MODEL).read_bytes()
    short = refused("pretrain", "--resume", "--out", tmp_path / "run", "--steps", 5)
    assert "has 7 steps behind it" in short
    assert vitp("pretrain", "--resume", "--out", tmp_path / "run").code == 0
