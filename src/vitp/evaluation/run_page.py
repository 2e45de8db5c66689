"""`vitp report`: asks a run's model some questions, looks at its attention, and writes the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vitp.ask import Assistant
from vitp.config import load_config
from vitp.data.formats.vitp_labels import read as read_labels
from vitp.data.images import load_image
from vitp.data.records import InstructionRecord
from vitp.evaluation.answers import Answered, ask_all, questions_of
from vitp.evaluation.report import AttentionExplorer, BackboneAttention, Section, write_run_report
from vitp.files import write_json
from vitp.models.vision import VisionTower
from vitp.objectives.dense_source import resize
from vitp.pretrain import PretrainConfig, open_mixture
from vitp.pretrained import load_vlm, resolve

EXPLORED_IMAGES = 4
SAMPLES_FILE = "samples.json"


def report_run(
    run: str | Path, out: str | Path | None = None, *, samples: int = 12, extra_sections: Sequence[Section] = ()
) -> Path:
    """Write the page of a run and return its path.

    The questions come from held-out images when the run learned from a compiled folder, else from its mixture.

    Raises:
        VitpError: The folder holds no finished run, or its data is gone.
    """
    run = Path(run)
    resolve(run)
    config = load_config(PretrainConfig, run / "config.yaml")
    loaded = load_vlm(run)
    assistant = Assistant(loaded.vlm, loaded.chat, max_tiles=config.data.sequence.max_tiles)
    answered = ask_all(assistant, _questions(config, samples))
    write_json(run / SAMPLES_FILE, [one.to_json() for one in answered])
    towers = {"after the run": loaded.vlm.vision}
    if config.model.init != "scratch":
        towers = {"before the run": load_vlm(config.model.init).vlm.vision, **towers}
    explorer = attention_explorer(towers, _images_of(answered))
    return write_run_report(run, out, attention=explorer, extra_sections=extra_sections)


def _questions(config: PretrainConfig, count: int) -> Iterator[tuple[InstructionRecord, str]]:
    for name in config.data.mixture:
        folder = Path(name) if Path(name).is_dir() else Path(name).parent
        if (folder / "labels" / "set.json").is_file():
            labelled = read_labels(folder)
            for split in ("val", "test", "train"):
                held_out = labelled.split(split)
                if len(held_out):
                    return questions_of(held_out, count)
    return _questions_of_mixture(config, count)


def _questions_of_mixture(config: PretrainConfig, count: int) -> Iterator[tuple[InstructionRecord, str]]:
    mixture = open_mixture(config.data, config.seed)
    for position in range(count):
        record = mixture[position].record
        yield record.with_turns(record.turns[:1]), ""


def _images_of(answered: Sequence[Answered]) -> list[str]:
    return list(dict.fromkeys(one.image for one in answered))[:EXPLORED_IMAGES]


def attention_explorer(towers: Mapping[str, VisionTower], images: Sequence[str]) -> AttentionExplorer | None:
    """Return the explorer of the self-attention of some towers of one image size on some images.

    Args:
        towers: Name → tower; the tables of all are shown side by side.
        images: Paths or addresses; squeezed to the towers' size.
    """
    if not images:
        return None
    size = next(iter(towers.values())).image_size
    pictures = [resize(np.asarray(load_image(image)), size) for image in images]
    backbones = [
        BackboneAttention(name, range(tower.num_layers), (tower.grid, tower.grid), _maps(tower, pictures))
        for name, tower in towers.items()
    ]
    from PIL import Image

    return AttentionExplorer(
        "Self-attention of a patch", [Image.fromarray(picture) for picture in pictures], backbones
    )


@torch.no_grad()
def _maps(tower: VisionTower, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return (layers, N, N) attention of each picture, mean over heads, patches only, rows sum to one."""
    tower = tower.eval()
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    image_BCHW = tower.normalize(batch)
    prefix = tower.model.num_prefix_tokens
    layers = []
    for layer in range(tower.num_layers):
        weights_BNN = tower.attention(image_BCHW, layer).mean(1)[:, prefix:, prefix:]
        layers.append(nn.functional.normalize(weights_BNN, p=1, dim=-1))
    return list(torch.stack(layers, 1).numpy())
