"""Images and masks for tests of compilation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from vitp.data.formats.pixel_masks import ChangeFile, MaskFile
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel


def photograph(path: Path, width: int, height: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def ship_masks(root: Path, count: int = 10) -> Path:
    """Write images with masks of ships: 255 on 0."""
    rng = np.random.default_rng(0)
    for k in range(count):
        photograph(root / "images" / f"P{k // 2}_{k}.png", 64, 48, k)
        mask = np.zeros((48, 64), np.uint8)
        for _ in range(2):
            x, y = rng.integers(0, 50), rng.integers(0, 40)
            mask[y : y + 6, x : x + 12] = 255
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "masks" / f"P{k // 2}_{k}.png")
    return root


coordinates = st.floats(-50, 150, allow_nan=False)


def large_set(root: Path) -> LabelledSet:
    first = photograph(root / "images" / "a.png", 150, 100, 1)
    later = photograph(root / "later" / "a.png", 150, 100, 2)
    small = photograph(root / "images" / "b.jpg", 50, 40, 3)
    values = np.random.default_rng(4).integers(0, 3, (100, 150), dtype=np.uint8)
    Image.fromarray(values).save(root / "a_mask.png")
    return LabelledSet(
        name="large",
        items=[
            LabelledImage(
                "images/a",
                str(first),
                150,
                100,
                split="val",
                objects=(
                    ObjectLabel("ship", (10.5, 10, 20, 30.25)),
                    ObjectLabel("ship", (0, 0, 150, 100)),
                ),
                captions=("A sea.",),
                semantic=MaskFile(str(root / "a_mask.png"), ((0, 1), (1, 0), (2, 255))),
                second_image=str(later),
                change=ChangeFile(str(root / "a_mask.png")),
            ),
            LabelledImage("images/b", str(small), 50, 40, group="g", objects=(), captions=("Small.",)),
        ],
        object_classes=("ship",),
        semantic_classes=("one", "zero"),
        licence="CC0",
        findings=("old",),
    )
