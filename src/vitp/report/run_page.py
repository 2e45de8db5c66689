"""`vitp report`: asks a run's model some questions, looks at its attention, and writes the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vitp.checkpoints.pretrained import load_vlm, resolve
from vitp.core.config import CONFIG_FILE, load_config
from vitp.core.files import write_json
from vitp.data.augment import resize_image
from vitp.data.formats.vitp_labels import read as read_labels
from vitp.evaluation.answers import Answered, ask_all, questions_of
from vitp.evaluation.attention import patch_attention
from vitp.inference.ask import Assistant
from vitp.io.images import load_image
from vitp.models.vision import VisionTower
from vitp.objectives.vitp import open_entries, open_mixture
from vitp.records.instructions import InstructionRecord
from vitp.report import AttentionExplorer, BackboneAttention, Section, write_run_report
from vitp.runs.pretrain import PretrainConfig

EXPLORED_IMAGES = 4
SAMPLES_FILE = "samples.json"


def report_run(
    run: str | Path,
    out: str | Path | None = None,
    *,
    samples: int = 12,
    lead_sections: Sequence[Section] = (),
    towers: Mapping[str, VisionTower] | None = None,
    title: str | None = None,
) -> Path:
    """Write the page of a run and return its path.

    The questions come from held-out images when the run learned from a compiled folder, else from its mixture.

    Args:
        run: Folder of a finished run.
        out: The page; None takes `report.html` in the run's folder.
        samples: Questions that the model answers.
        lead_sections: Shown first.
        towers: Name → tower whose attention is shown; None: the run's, before and after.
        title: Heading; None takes the folder's name.

    Raises:
        VitpError: The folder holds no finished run, or its data is gone.
    """
    run = Path(run)
    resolve(run)
    config = load_config(PretrainConfig, run / CONFIG_FILE)
    loaded = load_vlm(run)
    answered: list[Answered] = []
    for record, task, tiles in _questions(config, samples):
        assistant = Assistant(loaded.vlm, loaded.chat, max_tiles=tiles or config.data.sequence.max_tiles)
        answered += ask_all(assistant, [(record, task)])
    write_json(run / SAMPLES_FILE, [one.to_json() for one in answered])
    if towers is None:
        towers = {"after the run": loaded.vlm.vision}
        if config.model.init != "scratch":
            towers = {"before the run": load_vlm(config.model.init).vlm.vision, **towers}
    explorer = attention_explorer(towers, _images_of(answered))
    return write_run_report(run, out, attention=explorer, lead_sections=lead_sections, title=title)


def _questions(config: PretrainConfig, count: int) -> Iterator[tuple[InstructionRecord, str, int | None]]:
    """Yield questions, their tasks, and the most tiles of their set where the mixture says so."""
    for name in config.data.mixture:
        folder = Path(name) if Path(name).is_dir() else Path(name).parent
        if (folder / "labels" / "set.json").is_file():
            labelled = read_labels(folder)
            for split in ("val", "test", "train"):
                held_out = labelled.split(split)
                if len(held_out):
                    tiles = open_entries(Path(name))[0].max_tiles
                    for record, task in questions_of(held_out, count):
                        yield record, task, tiles
                    return
    mixture = open_mixture(config.data, config.seed)
    shown = 0
    for position in range(len(mixture)):
        sample = mixture[position]
        if shown == count:
            return
        if not sample.record.images:
            continue
        shown += 1
        yield sample.record.with_turns(sample.record.turns[:1]), "", sample.max_tiles


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
    pictures = [resize_image(np.asarray(load_image(image)), size) for image in images]
    backbones = [
        BackboneAttention(
            name,
            range(tower.num_layers),
            (tower.grid, tower.grid),
            [patch_attention(tower, picture, range(tower.num_layers)) for picture in pictures],
        )
        for name, tower in towers.items()
    ]
    return AttentionExplorer(
        "Self-attention of a patch", [Image.fromarray(picture) for picture in pictures], backbones
    )
