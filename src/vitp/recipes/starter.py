"""The starter: a general vision-language model of micro size, trained from scratch on generated scenes.

The paper continues from a trained general model; this is the one that comes with the package. A plain ViT of
2.7 million parameters (192 wide, 6 layers, patches of 8, 96 px), a three-layer Qwen2 and a tokenizer, trained in
three stages on scenes of the `general` domain (eight object classes, eight land classes, many renderings):

1. `dense`: the ViT alone learns the class of every pixel, at 64 px. Dense labels teach a ViT most for an image's
   cost, and a language model that can't read yet has nothing to tell it.
2. `align`: projector and language model learn to read the frozen ViT, at 96 px.
3. `joint`: everything is trained on instructions, the ViT with them.

Command: `vitp recipes run starter --out runs/starter` (resumable: run it again; `--scale 0.01` for a dry run).
Hardware and time: two CPU cores, about an hour and a half.
Result: `runs/starter/starter`, at most 12 MB in float16; what it reaches is in `assets/starter/README.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vitp.checkpoints.loading import load_vlm
from vitp.checkpoints.writing import save_vlm
from vitp.core.tensors import load_tensors, save_tensors
from vitp.data.augment import MaskAugmentation
from vitp.data.batches import SampledBatches
from vitp.data.chat import ChatTokenizer
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.synthesis.build import SynthesisConfig
from vitp.data.synthesis.scene_records import LabelledRecords
from vitp.data.tokenizer import train_tokenizer
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.loop import Trainer
from vitp.models.language import micro_qwen2
from vitp.models.resample import fit_weights
from vitp.models.vision import VisionSettings, VisionTower
from vitp.models.vlm import VisionLanguageModel, VLMSettings
from vitp.models.vrl import VisualRobustness, VRLSettings
from vitp.objectives.dense import DenseObjective, dense_batches
from vitp.objectives.packed_records import PackedRecords, SequenceSettings
from vitp.objectives.vitp import ViTPObjective
from vitp.recipes.vocabulary import DOMAIN_WORDS
from vitp.scenes import DOMAINS, scene_set

IMAGE_SIZE = 96
VIT = {"embed_dim": 192, "depth": 6, "num_heads": 3, "patch_size": 8}


@dataclass(frozen=True)
class StarterPlan:
    """Steps and rates of the three stages."""

    seed: int = 20
    scenes: int = 400_000
    dense_steps: int = 1000
    dense_batch: int = 64
    dense_size: int = 64
    dense_lr: float = 1e-3
    align_steps: int = 250
    joint_steps: int = 400
    batch: int = 32
    align_lr: float = 2e-3
    joint_lr: float = 6e-4
    workers: int = 2
    threads: int | None = None

    def scaled(self, factor: float) -> StarterPlan:
        """Return a plan with fewer or more steps."""
        return replace(
            self,
            dense_steps=max(2, round(self.dense_steps * factor)),
            align_steps=max(2, round(self.align_steps * factor)),
            joint_steps=max(2, round(self.joint_steps * factor)),
        )


def vision_config(image_size: int = IMAGE_SIZE) -> VisionSettings:
    """Return the starter's ViT at an image size."""
    return VisionSettings(arguments=dict(VIT), image_size=image_size)


def vlm_config() -> VLMSettings:
    """Return the starter's sizes. No pixel shuffle: 144 image tokens, so that VRL 0.75 leaves 36."""
    return VLMSettings(
        vision=vision_config(),
        language=micro_qwen2(width=192, layers=3, heads=6, kv_heads=2, mlp=512),
        shuffle=1,
        template="micro",
    )


def train_starter(out: Path, plan: StarterPlan | None = None) -> Path:
    """Run the stages that `out` does not hold yet, and return the folder of the finished model."""
    plan = plan or StarterPlan()
    final = out / "starter"
    tower_weights = _stage(
        out / "dense", lambda folder, resume: _dense(folder, plan, resume), "tower.safetensors"
    )
    _stage(out / "align", lambda folder, resume: _align(folder, plan, tower_weights, resume), "done")
    _stage(out / "joint", lambda folder, resume: _joint(folder, plan, out / "align", resume), "done")
    loaded = load_vlm(out / "joint")
    save_vlm(final, loaded.vlm, loaded.chat, dtype=torch.float16)
    return final


def _stage(folder: Path, run: Callable[[Path, bool], None], product: str) -> Path:
    """Run a stage unless its product is there; continue it when it was interrupted."""
    if not (folder / product).exists():
        run(folder, (folder / "checkpoints").is_dir())
    return folder / product


def _dense(folder: Path, plan: StarterPlan, resume: bool) -> None:
    torch.manual_seed(plan.seed)
    tower = VisionTower(vision_config(plan.dense_size))
    scenes = scene_set("general", seed=plan.seed, count=plan.scenes, size=plan.dense_size, split="train")
    domain = DOMAINS["general"]
    objective = DenseObjective(tower, domain.semantic_classes, head="linear")
    source = dense_batches(
        scenes,
        plan.dense_batch,
        plan.seed,
        size=plan.dense_size,
        augment=MaskAugmentation(flip=True, rotate90=True, crop=1.0, photometric=0.1),
    )
    optim = OptimSettings(lr=plan.dense_lr, weight_decay=0.05, warmup_ratio=0.05, min_lr_ratio=0.02)
    Trainer(objective, source, optim, _train_config(plan, plan.dense_steps), folder, resume=resume).train()
    save_tensors(folder / "tower.safetensors", tower.state_dict())


def starter_mixture(plan: StarterPlan) -> Mixture:
    """Return instructions on general scenes, and a small share of before/after pairs."""
    synthesis = SynthesisConfig(questions_per_image=6, grid=6, grid_always=True, object_share=0.25)
    scenes = scene_set("general", seed=plan.seed + 1, count=plan.scenes, size=IMAGE_SIZE, split="train")
    pairs = scene_set(
        "general", seed=plan.seed + 2, count=plan.scenes // 25, size=IMAGE_SIZE, split="train", pairs=True
    )
    return Mixture(
        [
            MixtureEntry(LabelledRecords(scenes, seed=plan.seed, config=synthesis), max_tiles=1),
            MixtureEntry(LabelledRecords(pairs, seed=plan.seed, config=synthesis), max_tiles=2),
        ],
        plan.seed,
    )


def starter_tokenizer(mixture: Mixture, plan: StarterPlan) -> ChatTokenizer:
    """Train the tokenizer on the mixture's texts and on words of the domains that users come with."""
    corpus = [
        text
        for position in range(min(600, len(mixture)))
        for turn in mixture[position].record.turns
        for text in (turn.question, turn.answer)
    ]
    port = LabelledRecords(
        scene_set("port", seed=plan.seed, count=150, size=IMAGE_SIZE, split="train"),
        seed=plan.seed,
        config=SynthesisConfig(),
    )
    corpus += [
        text for i in range(len(port)) for turn in port[i].turns for text in (turn.question, turn.answer)
    ]
    corpus += [f"{word} {word}s the {word}, a {word}" for word in DOMAIN_WORDS for _ in range(40)]
    tokens_per_tile = (IMAGE_SIZE // VIT["patch_size"]) ** 2
    return ChatTokenizer(
        train_tokenizer(corpus, vocabulary=2048), template="micro", tokens_per_tile=tokens_per_tile
    )


def _source(mixture: Mixture, chat: ChatTokenizer, plan: StarterPlan, vrl: VRLSettings) -> SampledBatches:
    collator = PackedRecords(
        chat,
        tile=IMAGE_SIZE,
        config=SequenceSettings(max_length=1024),
        drop=VisualRobustness(vrl, plan.seed).train(),
    )
    return SampledBatches(mixture, collator, plan.batch)


def _align(folder: Path, plan: StarterPlan, tower_weights: Path, resume: bool) -> None:
    mixture = starter_mixture(plan)
    chat = starter_tokenizer(mixture, plan)
    torch.manual_seed(plan.seed)
    vlm = VisionLanguageModel(vlm_config(), vocabulary=len(chat))
    vlm.vision.load_state_dict(fit_weights(load_tensors(tower_weights), vlm.vision))
    objective = ViTPObjective(vlm, chat, freeze=["vision"])
    optim = OptimSettings(lr=plan.align_lr, weight_decay=0.01, warmup_ratio=0.05, min_lr_ratio=0.2)
    source = _source(mixture, chat, plan, VRLSettings(ratio=0.0))
    Trainer(objective, source, optim, _train_config(plan, plan.align_steps), folder, resume=resume).train()
    (folder / "done").touch()


def _joint(folder: Path, plan: StarterPlan, start: Path, resume: bool) -> None:
    loaded = load_vlm(start, drop_path=0.05)
    objective = ViTPObjective(loaded.vlm, loaded.chat)
    optim = OptimSettings(lr=plan.joint_lr, weight_decay=0.01, warmup_ratio=0.05, min_lr_ratio=0.02)
    # Half of the samples drop half of their image tokens, so that the starter knows both.
    source = _source(starter_mixture(plan), loaded.chat, plan, VRLSettings(ratio=0.5, probability=0.5))
    Trainer(objective, source, optim, _train_config(plan, plan.joint_steps), folder, resume=resume).train()
    (folder / "done").touch()


def _train_config(plan: StarterPlan, steps: int) -> TrainSettings:
    return TrainSettings(
        steps=steps,
        save_every=max(1, min(100, steps)),
        keep_last=2,
        log_every=10,
        num_workers=plan.workers,
        seed=plan.seed,
        threads=plan.threads,
    )
