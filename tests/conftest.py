"""Fixtures shared by all tests: tiny models and a tokenizer made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitp.data.chat import ChatTokenizer
from vitp.data.tokenizer import train_tokenizer
from vitp.models.language import micro_qwen2
from vitp.models.vision import VisionSettings
from vitp.models.vlm import VisionLanguageModel, VLMSettings
from vitp.records.instructions import InstructionRecord, Turn

CORPUS = [
    "Is there a ship in the image?",
    "yes",
    "no",
    "How many planes are there?",
    "one two three harbour",
] * 20


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, or skip."""
    root = Path(os.environ.get("VITP_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real images: set VITP_DATA ({root} does not exist)")
    return root


def tiny_vlm_config(**changes) -> VLMSettings:
    """A vision-language model of some thousand parameters: 32 px, patches of 8, 16 image tokens a tile."""
    values = {
        "vision": VisionSettings(
            arguments={"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}, image_size=32
        ),
        "language": micro_qwen2(width=32, layers=2, heads=4, kv_heads=2, mlp=64),
        "shuffle": 1,
        "template": "micro",
    }
    return VLMSettings(**(values | changes))


def tiny_chat(tokens_per_tile: int = 16, template: str = "micro") -> ChatTokenizer:
    return ChatTokenizer(
        train_tokenizer(CORPUS, vocabulary=320), template=template, tokens_per_tile=tokens_per_tile
    )


@pytest.fixture(scope="session")
def chat() -> ChatTokenizer:
    return tiny_chat()


@pytest.fixture
def vlm(chat) -> VisionLanguageModel:
    torch.manual_seed(0)
    return VisionLanguageModel(tiny_vlm_config(), vocabulary=len(chat)).eval()


def make_record(
    number: int, *, images: int = 1, turns: int = 2, independent: bool = True
) -> InstructionRecord:
    rng = np.random.default_rng(number)
    marks = "".join("<image>\n" for _ in range(images))
    words = ["ship", "plane", "harbour", "one", "two", "yes", "no", "image"]
    made = [
        Turn(
            (marks if n == 0 else "") + " ".join(rng.choice(words, size=int(rng.integers(1, 7)))) + "?",
            " ".join(rng.choice(words, size=int(rng.integers(1, 5)))),
        )
        for n in range(turns)
    ]
    return InstructionRecord(
        id=str(number),
        images=tuple(f"image{number}_{i}.png" for i in range(images)),
        turns=tuple(made),
        independent=independent,
    )


def random_tiles(number: int, count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, size=(count, 3, size, size), dtype=np.uint8)


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path
