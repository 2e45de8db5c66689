"""Whether the windows of a finetuned model show in its maps: the same ground, its windows beginning elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from vitp.core import distributed
from vitp.core.config import CONFIG_FILE, load_config
from vitp.runs.check.findings import CheckFinding, Difference
from vitp.runs.finetune import FinetuneConfig, run_splits
from vitp.tasks.base import TaskModel, TestSettings
from vitp.tasks.build import task_of
from vitp.tasks.data import label_reader, open_labelled
from vitp.tasks.dense import DenseModel
from vitp.tasks.model_folder import load_task
from vitp.tasks.predict import ground_of, predict_images

MOST_CHANGED = 0.01
"""Share of the pixels that may get another class when the windows begin elsewhere."""
SHIFTS = ((1 / 2, 1 / 2), (1 / 3, 2 / 3), (3 / 4, 1 / 4))
"""How far the windows move along x and y, in parts of the way from one window to the next, to whole patches."""
PHASES = ((0, 0), (1 / 2, 1 / 2), (1 / 4, 5 / 8))
"""And how far on, in parts of a patch: a vision transformer sees other patches then, everywhere."""


def check_seams(run: Path, overrides: Sequence[str] = (), *, images: int = 8) -> CheckFinding:
    """Return which share of the test images' pixels changes class when the origin of the windows moves, at worst.

    Windows move by whole patches (other surroundings of each pixel) and by parts of one (other patches). Pixels that
    hold nothing aren't counted.

    Args:
        run: Folder of a finetuned run.
        overrides: Changes of its configuration, such as `test.window=256`.
        images: That are looked at.

    Raises:
        VitpError: It is no such run, or its data can't be used.
    """
    name = "seams: windows moved ≡ windows as they are"
    config = load_config(FinetuneConfig, run / CONFIG_FILE, overrides)
    model = load_task(run).to(distributed.resolve_device(config.train.device))
    if not isinstance(model, DenseModel):
        return CheckFinding(name, skipped=f"{model.name} makes no map of classes")
    settings = config.test.model_copy(update={"resize": config.test.resize or model.input_size})
    kind = task_of(model.name).labels(model.description["head"])
    labelled = open_labelled(config.data.root, config.data.format, **config.data.options)
    splits = run_splits(labelled, config, kind)
    part = splits["test"] if len(splits["test"]) else splits["val"]
    reader = label_reader(model, part, kind, settings)
    changed_S, seen, large = torch.zeros(len(SHIFTS), dtype=torch.float64), 0, 0
    for item in islice(part.items, images):
        sample = reader.sample(item)
        pair = None if sample.later_CHW is None else [sample.later_CHW]
        with ground_of(item, reader) as ground:
            valid_HW = None if ground is None else ground.valid((0, 0, *sample.size[::-1]))
        moved = moved_pixels(model, sample.image_CHW, settings, pair, valid_HW)
        if moved is not None:
            held = sample.size[0] * sample.size[1] if valid_HW is None else int(valid_HW.sum())
            changed_S, seen, large = changed_S + moved, seen + held, large + 1
    if not large:
        side = "the whole image" if settings.window is None else f"windows of {settings.window} px"
        reason = f"its images are seen through {side} at once; name larger ones (-s data.root=…) or -s test.window=…"
        return CheckFinding(name, skipped=reason)
    share = float((changed_S / seen).max())
    return CheckFinding(
        f"{name} ({large} images)",
        (Difference("pixels that change class, share of all", share, MOST_CHANGED),),
    )


def moved_pixels(
    model: TaskModel,
    image_CHW: torch.Tensor,
    settings: TestSettings,
    later: list[torch.Tensor] | None = None,
    valid_HW: np.ndarray | None = None,
) -> torch.Tensor | None:
    """Return how many pixels of an image change class with each of `SHIFTS`; None: it has no windows to move.

    Args:
        model: Model of class maps.
        image_CHW: uint8.
        settings: How it is applied.
        later: The second date.
        valid_HW: Which pixels hold something and are counted; None: all.
    """
    if settings.window is None:
        return None
    rows, columns = settings.resize.of(*image_CHW.shape[-2:]) if settings.resize else image_CHW.shape[-2:]
    if max(rows, columns) <= settings.window:
        return None
    step = settings.window - int(settings.overlap * settings.window)
    patch = model.backbone.strides[-1]

    def moved(share: float, phase: float, scale: float) -> int:
        # Whole patches by the share of a step, and a part of one by the phase.
        return round((share * step // patch + phase) * patch * scale)

    def classes(shift: tuple[float, float], phase: tuple[float, float]) -> torch.Tensor:
        scales = image_CHW.shape[-1] / columns, image_CHW.shape[-2] / rows
        x, y = (moved(*each) for each in zip(shift, phase, scales, strict=True))
        (found,) = predict_images(model, [image_CHW], settings, later, origin=(x, y))
        assert found.semantic_HW is not None
        return found.semantic_HW

    still_HW = classes((0, 0), (0, 0))
    counted_HW = torch.ones_like(still_HW) if valid_HW is None else torch.from_numpy(valid_HW)
    moves = zip(SHIFTS, PHASES, strict=True)
    changed = [(classes(*move) != still_HW) & counted_HW.bool() for move in moves]
    return torch.stack([each.sum() for each in changed]).double()
