"""A starter that reads and writes English: the packaged vision tower before a language model that knows language.

The language model comes as a package (`vitp.checkpoints.gguf`) and is de-quantised once; the projector between them is
new. Both are trained on instructions about generated scenes of the `general` domain with the vision tower frozen, the
language model at a low rate, so that it keeps what it knows while it learns what image tokens mean.

Command: `vitp starter build --language smollm2 --out runs/smollm` (resumable: run it again; `--quick` for a trial).
Hardware and time: two CPU cores, about an hour; 6 GB of memory and 4 GB of disk. Quick: about six minutes.
Result: `runs/smollm`, a run of `vitp pretrain` that `vitp ask`, `vitp pretrain --init` and the studies take as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.checkpoints.card import card_head, licence_keys
from vitp.checkpoints.gguf import PackagedLanguage, dequantised, packaged_language
from vitp.checkpoints.loading import load_vlm
from vitp.checkpoints.swap import swap_language
from vitp.checkpoints.writing import save_vlm
from vitp.core.config import make_config
from vitp.core.errors import ConfigError
from vitp.core.files import write_text
from vitp.core.tensors import weights_sha256
from vitp.data.compile import compile_labels
from vitp.data.synthesis.build import SynthesisConfig
from vitp.recipes.starter import IMAGE_SIZE
from vitp.runs.folder import started
from vitp.runs.pretrain import PretrainConfig, run_pretraining

SCENE_QUESTIONS = SynthesisConfig(
    questions_per_image=3,
    grid=6,
    object_share=0.25,
    tasks={"caption": 6.0, "cell": 2.0, "oriented": 0.0, "boxes": 0.25, "grid": 0.25},
)
"""Mostly a caption, a sentence, and two short answers: what a language model can say of an image."""


@dataclass(frozen=True)
class LanguagePlan:
    """Length and rates.

    Attributes:
        seed: Seed of scenes, questions and the new projector.
        scenes: Generated scenes.
        steps: Optimizer steps.
        batch: Scenes a step.
        lr: Peak learning rate of the projector.
        language_scale: Factor on it for the language model.
        vrl_ratio: Share of the image tokens that half of the scenes lose.
    """

    seed: int = 22
    scenes: int = 4000
    steps: int = 500
    batch: int = 8
    lr: float = 1e-3
    language_scale: float = 0.05
    vrl_ratio: float = 0.75


FULL_PLAN = LanguagePlan()
QUICK_PLAN = LanguagePlan(scenes=400, steps=60, batch=4)


def build_language_starter(out: Path, language: str, plan: LanguagePlan = FULL_PLAN) -> Path:
    """Make a starter with another language model, or go on making it; return its run folder.

    Args:
        out: New folder, or one of an interrupted build.
        language: A key of `vitp.checkpoints.gguf.LANGUAGES`.
        plan: Length and rates; those of an interrupted build.

    Raises:
        ConfigError: The language model's package isn't installed, or the folder holds another run.
    """
    source = packaged_language(language)
    begun = started(out)
    start, data = out / "start", out / "data"
    if begun and not (data / "summary.json").is_file():
        fix = "choose another folder"
        raise ConfigError("holds a run that no build began", where=str(out), fix=fix)
    if not begun and not (start / "config.json").is_file():
        swapped = swap_language(load_vlm("starter"), dequantised(source), seed=plan.seed)
        save_vlm(start, swapped.vlm, swapped.chat)
    if not (data / "summary.json").is_file():
        options: dict[str, Any] = {"count": plan.scenes, "val": 0.05, "test": 0.05, "size": IMAGE_SIZE}
        compile_labels(
            "general", "scenes", data, seed=plan.seed, synthesis=SCENE_QUESTIONS, max_tiles=1, **options
        )
    run_pretraining(language_config_of(start, data, plan), out, resume=begun)
    write_text(out / "model" / "README.md", language_card(out, source, plan))
    return out


def language_config_of(start: Path, data: Path, plan: LanguagePlan) -> PretrainConfig:
    """Return the run that aligns projector and language model with the frozen vision tower."""
    values = {
        "objective": {"name": "vitp", "vrl": {"ratio": plan.vrl_ratio, "probability": 0.5}},
        "seed": plan.seed,
        "model": {
            "init": str(start),
            "drop_path": 0.0,
            "freeze": ["vision"],
            "lr_scale": {"language": plan.language_scale},
        },
        "data": {
            "mixture": [str(data)],
            "global_batch": plan.batch,
            "sequence": {"max_length": 1024, "max_tiles": 1},
        },
        "optim": {"lr": plan.lr, "weight_decay": 0.01, "warmup_ratio": 0.05, "min_lr_ratio": 0.05},
        "train": {
            "steps": plan.steps,
            "num_workers": 1,
            "seed": plan.seed,
            "log_every": 5,
            "save_every": 20,
            "keep_last": 1,
            "must_train": ["projector", "language model"],
        },
    }
    return make_config(PretrainConfig, values, where="starter build")


def language_card(out: Path, source: PackagedLanguage, plan: LanguagePlan) -> str:
    """Return the card of a finished build: what its parts are, what was trained, and on what."""
    loaded = load_vlm(out)
    parts = {
        name: sum(p.numel() for p in part.parameters()) / 1e6
        for name, part in (
            ("vision tower", loaded.vlm.vision),
            ("projector", loaded.vlm.projector),
            ("language model", loaded.vlm.language),
        )
    }
    sizes = ", ".join(f"{name} {millions:.1f} million" for name, millions in parts.items())
    head = {**licence_keys(source.licence), "pipeline_tag": "image-text-to-text", "tags": ["vitp"]}
    body = _CARD.format(
        source=source,
        release=f" {source.release()}".rstrip(),
        sizes=sizes,
        plan=plan,
        seen=plan.steps * plan.batch,
        rate=plan.lr * plan.language_scale,
        tower=weights_sha256(loaded.vlm.vision)[:16],
    )
    return card_head(head) + body


_CARD = """# Starter with {source.title}

The vision tower of the packaged starter before a language model that knows English, aligned on generated scenes.

- **Language model**: {source.title}, {source.licence}, from the package `{source.package}`{release}. The package holds it
  as {source.quantisation}; its weights were de-quantised to float32 before training, and are no longer those of the
  package.
- **Vision tower**: the packaged starter's, frozen throughout (SHA-256 of its weights {tower}…).
- **Projector**: new.
- **Parameters**: {sizes}.
- **Trained**: projector at a learning rate of {plan.lr:g}, language model at {rate:g}; {plan.steps} steps of {plan.batch}
  scenes with three questions each, {seen:,} scenes seen of {plan.scenes:,} generated ones (`general` domain, CC0). Half of the
  scenes lose {plan.vrl_ratio:.0%} of their image tokens.
- **Recipe**: `vitp starter build` (`src/vitp/recipes/language_starter.py`).
- **Limits**: it has seen generated scenes alone. What it says of a photograph is English, and need not be true; it is an
  arm of comparisons and a place to start from, not an assistant.
"""
