"""A run with a finished model, and with much that is to stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.test_prediction_files import model_of

SCORES = {
    "split": "test",
    "headline": "AP",
    "values": {"AP": 0.5, "AR": None},
    "per_class": {"sea": {"AP": 0.4}},
    "images": 8,
    "intervals": {"AP": [0.25, 0.75]},
}


def run_of(folder: Path, task: str = "segmentation") -> Path:
    """Return a run with a finished model, and with much that is to stay."""
    model = model_of(task)
    model.description["card"] = {
        "backbone": "/home/alice/secret/vit",
        "data": "ships",
        "licence": "CC-BY-4.0",
        "train_images": 28,
    }
    model.save_pretrained(folder / "model")
    (folder / "scores.json").write_text(json.dumps(SCORES))
    for name in ("cases.csv", "metrics.jsonl", "config.yaml", "model/picture.png", "model/notes.md"):
        (folder / name).write_text("/home/alice/secret/mueller_anna")
    (folder / "checkpoints" / "step_1").mkdir(parents=True)
    (folder / "checkpoints" / "step_1" / "model.safetensors").write_bytes(b"secret")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("runs") / "ships")


TASK = {"README.md", "SHA256SUMS", "check/test_vectors.safetensors", "config.json", "model.safetensors"}
