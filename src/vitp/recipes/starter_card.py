"""The starter's card: what it answers and what its frozen features know, on held-out general scenes.

Command: `vitp recipes run starter-card --out DIR` writes `DIR/README.md` and `DIR/card.json`
(a few minutes on two cores).
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from vitp.checkpoints.loading import load_backbone, load_vlm, random_backbone
from vitp.core.files import write_json, write_text
from vitp.evaluation.answers import ask_all, mean_by_task, questions_of
from vitp.evaluation.probe_table import ProbeTable
from vitp.evaluation.probes import run_probes
from vitp.inference.ask import Assistant
from vitp.scenes import scene_set

_SEED, _IMAGES, _QUESTIONS, _PROBE_IMAGES = 91, 150, 300, 300


def write_card(out: Path) -> Path:
    """Measure the starter on scenes whose textures and shapes training never saw; return the path of its card."""
    loaded = load_vlm("starter")
    assistant = Assistant(loaded.vlm, loaded.chat, max_tiles=2)
    scenes = scene_set("general", seed=_SEED, count=_IMAGES, size=96, split="val")
    questions = list(questions_of(scenes, _QUESTIONS))
    seen = mean_by_task(ask_all(assistant, questions))
    # Of a grey picture: what the language model guesses without looking.
    grey = Image.new("RGB", (96, 96), (110, 110, 110))
    blind = mean_by_task(ask_all(assistant, questions, shown=grey))
    probes = _probes()
    write_json(
        out / "card.json",
        {
            "answers": {
                task: {"score": s, "blind": blind[task][0], "questions": n} for task, (s, n) in seen.items()
            },
            "probes": {name: table.to_json() for name, table in probes.items()},
        },
    )
    rows = [f"| {task} | {100 * s:.0f} | {100 * blind[task][0]:.0f} | {n} |" for task, (s, n) in seen.items()]
    probed = [
        f"| {row.task}, {row.metric} | {probes['random'][row.task, row.metric].percent} | {row.percent} |"
        for row in probes["starter"].rows
    ]
    write_text(out / "README.md", _CARD.format(answers="\n".join(rows), probes="\n".join(probed)))
    return out / "README.md"


def _probes() -> dict[str, ProbeTable]:
    sets = {
        split: scene_set("general", seed=_SEED + 1, count=count, size=96, split=bank)
        for split, count, bank in (
            ("train", _PROBE_IMAGES, "train"),
            ("val", _PROBE_IMAGES // 3, "val"),
            ("test", _PROBE_IMAGES // 2, "test"),
        )
    }
    tower = load_backbone("starter")
    torch.manual_seed(0)
    return {
        name: run_probes(t, sets, seeds=(0, 1, 2), labels_per_seed=2 * _PROBE_IMAGES // 3)
        for name, t in (("random", random_backbone(tower, 0)), ("starter", tower))
    }


_CARD = """# Starter

A general vision-language model of micro size, trained from scratch on generated scenes (`general` domain of
`vitp.scenes`, CC0): what `vitp pretrain` continues from by default.

- **Vision tower**: a plain timm ViT, 6 layers, 192 wide, 3 heads, patches of 8, 96 px, 2.7 million parameters.
- **Projector**: LayerNorm and two linear layers, no pixel shuffle: 144 image tokens.
- **Language model**: Qwen2 of 3 layers, 192 wide, 1.5 million parameters, byte-level BPE tokenizer of about 1,600 tokens.
- **Normalisation**: ImageNet mean and standard deviation, RGB.
- **Storage**: float16, 8.6 MB.
- **Recipe**: `vitp recipes run starter` (`src/vitp/recipes/starter.py`): 64,000 scenes with dense labels at 64 px, 8,000 scenes
  of instructions with the ViT frozen, 12,800 scenes with everything trained; two CPU cores.
- **Limits**: it knows eight object and eight land classes of generated scenes, and reads real images only after continued
  pretraining. It is a place to start from, not an assistant.

## What it answers

Greedy answers on scenes with held-out textures and shapes, scored by task on 0..100 (exact match, F1 of boxes at IoU
0.5, share of right cells, token F1 for captions). *Blind* is the same model shown a grey picture.

| task | score | blind | questions |
|---|---|---|---|
{answers}

## What its frozen features know

Linear probes on 200 labelled scenes, held-out textures, three draws of the labels.

| probe | random weights | starter |
|---|---|---|
{probes}

Both tables are written by `vitp recipes run starter-card`.
"""
