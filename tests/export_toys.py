"""A finished run with a normalisation of its own, and its export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import make_record, tiny_vlm_config
from vitp.checkpoints.export import export_backbone
from vitp.checkpoints.writing import save_vlm
from vitp.core.files import write_json, write_text
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.record_set import ListRecords
from vitp.models.vision import VisionSettings
from vitp.models.vlm import VisionLanguageModel

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def odd_vision(**changes) -> VisionSettings:
    values = {
        "arguments": {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8},
        "image_size": 40,
        "mean": MEAN,
        "std": STD,
    }
    return VisionSettings(**(values | changes))


def described(mixture: Mixture) -> dict:
    """What a pretraining run writes about its data."""
    return {"fingerprint": "ab" * 32, "sets": mixture.describe()}


@pytest.fixture
def run(tmp_path, chat) -> Path:
    """A finished run: a model with a normalisation of its own, and what the engine leaves beside it."""
    torch.manual_seed(3)
    config = tiny_vlm_config(vision=odd_vision())
    folder = tmp_path / "my_run"
    save_vlm(folder / "model", VisionLanguageModel(config, vocabulary=len(chat)), chat)
    mixture = Mixture(
        [
            MixtureEntry(ListRecords([make_record(n) for n in range(8)], "ships"), rate=0.5),
            MixtureEntry(ListRecords([make_record(n) for n in range(4)], "planes")),
        ]
    )
    write_text(folder / "config.yaml", f"steps: 7\ndata: {tmp_path / 'private' / 'mixture.json'}\n")
    write_json(folder / "mixture.json", described(mixture))
    write_json(
        folder / "evidence.json",
        {
            "step": 7,
            "meant_to_train": True,
            "relative_change": 0.125,
            "gradient_share": 0.5,
            "cka": 0.75,
            "layers": [{"layer": "blocks.0", "parameters": 12, "trainable": 12, "change": 0.25}],
        },
    )
    return folder


@pytest.fixture
def exported(run, tmp_path) -> Path:
    return export_backbone(run, tmp_path / "out" / "ships-vit").folder


def without_digest(metadata):
    """What a program that rewrites a file's tensors keeps of its header, if it is one that knows of digests."""
    return {key: value for key, value in metadata.items() if key != "vitp_sha256"}


def change_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
