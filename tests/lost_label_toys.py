"""Small label files for tests of labels that can't be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitp.records.labels import LabelledImage, LabelledSet

BOX = [5, 6, 20, 24]
GOOD = [
    {"image_id": 1, "category_id": 1, "bbox": BOX},
    {"image_id": 1, "category_id": 2, "bbox": [1, 1, 9, 9]},
    {"image_id": 2, "category_id": 2, "bbox": [1, 1, 9, 9]},
]


def image(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((48, 64, 3), 40 + number, np.uint8)).save(path)


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def coco(root: Path, annotations: list[dict[str, Any]], **content: Any) -> Path:
    for i in range(3):
        image(root / "images" / f"im{i}.png", i)
    rows = [{"id": i + 1, "file_name": f"im{i}.png", "width": 64, "height": 48} for i in range(3)]
    classes = [{"id": 1, "name": "ship"}, {"id": 2, "name": "car"}]
    whole = {"images": rows, "categories": classes, "annotations": annotations, **content}
    text(root / "annotations" / "instances_train.json", json.dumps(whole))
    return root


def by_name(found: LabelledSet) -> dict[str, LabelledImage]:
    return {Path(item.image).stem: item for item in found.items}
