"""Small images and files of annotation tools for tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vitp.data.formats import read_labels
from vitp.inference.annotation_tasks import LookedAt, TaskWriter
from vitp.inference.outputs import Named, write_change, write_mask
from vitp.metrics.results import Prediction
from vitp.records.labels import LabelledImage
from vitp.records.tool_shapes import centred_corners

TOOLS = ("label-studio", "cvat", "coco")
CLASSES = ("ship", "tank farm", "crane & quay")
SIZES = ((90, 70), (64, 64), (33, 120))


def picture(path: Path, size: tuple[int, int], seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A mask of rectangles with holes, and islands in the holes."""
    mask = np.zeros((height, width), bool)
    for step in range(6):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        bottom, right = top + rng.integers(2, height // 2), left + rng.integers(2, width // 2)
        mask[top:bottom, left:right] = step % 3 != 2
    return mask


def found_of(task: str, rng: np.random.Generator, size: tuple[int, int]) -> Prediction:
    """What a model might find: boxes on a grid of their own, so that no two are equal."""
    width, height = size
    count = int(rng.integers(1, 6))
    scores, labels = torch.rand(count), torch.from_numpy(rng.integers(0, 3, count))
    if task == "detection":
        at = torch.from_numpy(rng.uniform(0, 0.5, (count, 2)) * size)
        sides = torch.from_numpy(rng.uniform(0.05, 0.45, (count, 2)) * size)
        return Prediction(torch.cat([at, at + sides], 1).float(), None, scores, labels)
    if task == "oriented":
        quads = []
        for angle in rng.uniform(0, 360, count):
            (x, y), half = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(2, 12, 2)
            quads.append(centred_corners(x - half[0], y - half[1], x + half[0], y + half[1], float(angle)))
        return Prediction(None, torch.tensor(quads, dtype=torch.float32), scores, labels)
    if task == "instance":
        masks = torch.from_numpy(np.stack([blob(rng, height, width) for _ in range(count)]))
        return Prediction(torch.zeros(count, 4), None, scores, labels, masks)
    if task in ("segmentation", "change"):
        values = blob(rng, height, width).astype(np.uint8)
        if task == "segmentation":
            values[blob(rng, height, width)] = 2
        return Prediction(semantic_HW=torch.from_numpy(values))
    return Prediction(probabilities_C=torch.from_numpy(rng.dirichlet(np.ones(3))))


@dataclass
class Written:
    """Tasks of a tool in a folder of images, and what they say."""

    root: Path
    tool: str
    images: list[Path]
    predictions: list[Prediction]

    def labels(self, **options: Any) -> dict[str, LabelledImage]:
        read = read_labels("auto", self.root, val=0, test=0, **options)
        return {item.id.rpartition("/")[2]: item for item in read.items}


def written(root: Path, tool: str, task: str, seed: int, *, several: bool = False) -> Written:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    classes = {"segmentation": ("background", *CLASSES), "change": ("unchanged", "changed")}.get(
        task, CLASSES
    )
    images, predictions, looked = [], [], []
    for number, size in enumerate(SIZES):
        image = picture(root / "images" / f"{number} ü&.png", size, seed + number)
        dates = [str(image)]
        if task == "change":
            dates.append(str(picture(root / "later" / f"l{number}.png", size, seed + 10 + number)))
        prediction, class_map = found_of(task, rng, size), None
        if prediction.semantic_HW is not None:
            class_map = root.parent / "maps" / f"{number}.png"
            class_map.parent.mkdir(exist_ok=True)
            (write_change if task == "change" else write_mask)(class_map, prediction.semantic_HW)
        named = Named(f"{number}", str(image), size[::-1], prediction)
        images.append(image)
        predictions.append(prediction)
        looked.append(LookedAt(named, tuple(dates), number / 4, class_map))
    writer = TaskWriter(tool, task, classes, several, "", "vitp test")  # type: ignore[arg-type]
    writer.write(root.parent / "out", looked)
    back(root, root.parent / "out", tool)
    return Written(root, tool, images, predictions)


def back(root: Path, out: Path, tool: str) -> None:
    """What an annotator does who accepts everything: the export lies beside the images."""
    if tool == "label-studio":
        tasks = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
        for number, task in enumerate(tasks):
            task |= {
                "id": number,
                "annotations": [{"id": number, "result": task["predictions"][0]["result"]}],
            }
        (root / "project.json").write_text(json.dumps(tasks), encoding="utf-8")
    elif tool == "cvat":
        (root / "annotations.xml").write_bytes((out / "annotations.xml").read_bytes())
    else:
        content = json.loads((out / "annotations.json").read_text(encoding="utf-8"))
        for row in content["annotations"]:
            row.pop("score", None)  # tools don't keep it
        (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
