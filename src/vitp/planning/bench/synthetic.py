"""Models and batches of known sizes, without any data, for benchmarks that name no run.

Pixels are noise and weights are random: neither changes what a step costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from vitp.data.chat import ChatTokenizer
from vitp.data.packing import PackedBatch, pack
from vitp.data.tokenizer import train_tokenizer
from vitp.models.compute import ComputeSettings
from vitp.models.language import QWEN2_VOCABULARY, LanguageSettings, micro_qwen2, qwen2_half_billion
from vitp.models.vision import VisionSettings
from vitp.models.vlm import VisionLanguageModel, VLMSettings
from vitp.models.vrl import VisualRobustness, VRLSettings
from vitp.objectives.packed_layouts import with_layout
from vitp.objectives.vitp import ViTPObjective
from vitp.records.instructions import InstructionRecord, Turn

_WORDS = ("ship", "plane", "harbour", "road", "field", "house", "tree", "car", "river", "bridge")
TILE_HISTOGRAM = {1: 0.35, 3: 0.15, 5: 0.25, 7: 0.25}
"""Tiles a record → share of the records: single tiles, and grids of 2, 4 and 6 with their thumbnail."""


@dataclass(frozen=True)
class ModelSize:
    """A model by name.

    Attributes:
        config: Its three parts.
        vocabulary: Rows of its embedding.
    """

    config: VLMSettings
    vocabulary: int

    @property
    def tokens_per_tile(self) -> int:
        """Image tokens of a tile."""
        vision = self.config.vision
        patch = int(vision.arguments.get("patch_size", 14))
        return (vision.image_size // patch // self.config.shuffle) ** 2

    @property
    def padded_length(self) -> int:
        """Tokens that the published configuration gives every sequence: 4096 where a tile has 256, and so on."""
        return 16 * self.tokens_per_tile


def _size(
    vision: VisionSettings, language: LanguageSettings, vocabulary: int, *, shuffle: int = 1
) -> ModelSize:
    config = VLMSettings(vision=vision, language=language, shuffle=shuffle, template="micro")
    return ModelSize(config, vocabulary)


_MICRO_VIT = {"embed_dim": 192, "depth": 6, "num_heads": 3, "patch_size": 8}
_SMALL_VIT = {"embed_dim": 384, "depth": 12, "num_heads": 6, "patch_size": 16}

MODEL_SIZES: dict[str, ModelSize] = {
    # The starter's kind: a ViT of 2.7 M and a language model of 1.6 M parameters.
    "micro": _size(VisionSettings(arguments=_MICRO_VIT, image_size=96), micro_qwen2(), 2000),
    # A ViT-S and a language model of 8 layers; a tile has 196 image tokens, near the 256 of full scale.
    "small": _size(
        VisionSettings(arguments=_SMALL_VIT, image_size=224),
        micro_qwen2(width=512, layers=8, heads=8, kv_heads=2, mlp=1408),
        8000,
    ),
    # The paper's InternViT-300M and Qwen2.5-0.5B.
    "full": _size(
        VisionSettings(architecture="vit_intern300m_patch14_448", image_size=448),
        qwen2_half_billion(),
        QWEN2_VOCABULARY,
        shuffle=2,
    ),
}


@dataclass(frozen=True)
class Workload:
    """Contents of a step.

    Attributes:
        records: Records of a step.
        tiles: Tiles a record → share of the records.
        questions: Questions of a record, all on its image.
        question_words, answer_words: Length of each, about one token a word.
        vrl_ratio: Share of image tokens dropped.
        independent: Questions see the image and themselves only; False: each sees those before it.
        together: Pack records into shared rows.
    """

    records: int = 16
    tiles: tuple[tuple[int, float], ...] = tuple(TILE_HISTOGRAM.items())
    questions: int = 1
    question_words: int = 12
    answer_words: int = 12
    vrl_ratio: float = 0.75
    independent: bool = True
    together: bool = True


def make_objective(size: ModelSize) -> ViTPObjective:
    """Return the model with random weights and its tokenizer."""
    torch.manual_seed(0)
    return ViTPObjective(VisionLanguageModel(size.config, vocabulary=size.vocabulary), make_chat(size))


def make_chat(size: ModelSize) -> ChatTokenizer:
    """Return the tokenizer of a model, made of the words that the records have."""
    corpus = [" ".join(_WORDS) + "?"] * 20
    return ChatTokenizer(
        train_tokenizer(corpus, vocabulary=400), template="micro", tokens_per_tile=size.tokens_per_tile
    )


@dataclass
class SyntheticSource:
    """Batches of a workload as a pure function of their place; see `vitp.objectives.base.BatchSource`.

    Attributes:
        chat: The model's tokenizer.
        tile: Side of a tile in pixels.
        work: Contents of a step; the records are shared by micro-batches and ranks.
        max_length: Most tokens of a row.
        micro_batches: Micro-batches of each rank.
        seed: Seed of pixels, texts and dropped tokens.
        compute: As `vitp.objectives.packed_records.PackedRecords` has it.
    """

    chat: ChatTokenizer
    tile: int
    work: Workload
    max_length: int = 1 << 20
    micro_batches: int = 1
    seed: int = 0
    compute: ComputeSettings = field(default_factory=ComputeSettings)

    def tile_counts(self, step: int) -> list[int]:
        """Return the tiles of the records of a step, in the shares of the histogram as exactly as they fit."""
        counts, shares = zip(*self.work.tiles, strict=True)
        exact = np.asarray(shares, dtype=float) / sum(shares) * self.work.records
        whole = np.floor(exact).astype(int)
        # What is missing goes to the shares with the largest remainders.
        for number in np.argsort(whole - exact, kind="stable")[: self.work.records - int(whole.sum())]:
            whole[number] += 1
        made = np.repeat(np.asarray(counts), whole)
        return [int(count) for count in np.random.default_rng([self.seed, step]).permutation(made)]

    def record(self, number: int) -> InstructionRecord:
        """Return the `number`-th record of the run."""
        rng, work = np.random.default_rng([self.seed, number]), self.work
        turns = [
            Turn(
                " ".join(rng.choice(_WORDS, work.question_words)) + "?",
                " ".join(rng.choice(_WORDS, work.answer_words)),
            )
            for _ in range(work.questions)
        ]
        turns[0] = Turn(f"<image>\n{turns[0].question}", turns[0].answer)
        return InstructionRecord(str(number), ("noise.png",), tuple(turns), independent=work.independent)

    def __call__(self, step: int, micro: int, rank: int, world: int) -> PackedBatch:
        """Return the `micro`-th batch of a step for a rank."""
        work = self.work
        part, parts = micro * world + rank, self.micro_batches * world
        mine = range(part * work.records // parts, (part + 1) * work.records // parts)
        counts = self.tile_counts(step)
        vrl = VisualRobustness(VRLSettings(ratio=work.vrl_ratio), self.seed).train()
        encoded, tiles, kept = [], [], []
        for place in mine:
            number = step * work.records + place
            encoded.append(self.chat.encode(self.record(number), [counts[place]]))
            rng = np.random.default_rng([self.seed, number, 1])
            shape = (counts[place], 3, self.tile, self.tile)
            tiles.append(rng.integers(0, 256, shape, dtype=np.uint8))
            kept.append(vrl(int(encoded[-1].image_N.sum()), (number,), step))
        packed = pack(
            encoded,
            tiles,
            kept,
            tokens_per_tile=self.chat.tokens_per_tile,
            max_length=self.max_length,
            pad_id=self.chat.pad_id,
            together=work.together,
        )
        return with_layout(
            packed, static=self.compute.static_rows, token_multiple=self.compute.token_multiple
        )

    def fingerprint(self) -> str:
        """Return what decides the batches."""
        return f"{self.work} {self.tile} {self.micro_batches} {self.seed}"
