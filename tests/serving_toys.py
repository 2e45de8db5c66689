"""A server in this process, over models that are at hand."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from tests.map_models import Brighter, BrightestBand, BrightObjects, channels_of, write_raster
from vitp.inference.ask import Assistant
from vitp.models.vision import VisionSettings, VisionTower
from vitp.serving.app import gated_app
from vitp.serving.gate import Gate, ServerLimits
from vitp.serving.models import ServedModel
from vitp.serving.predicting import Predictor
from vitp.serving.service import Service
from vitp.serving.store import ImageStore
from vitp.serving.worker import WaitingLine, Worker
from vitp.tasks.base import InputSize, TaskModel, TestSettings
from vitp.tasks.build import NeckSettings, build_model


def png(pixels_HWC: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, format="PNG")
    return file.getvalue()


class Served:
    """The parts of a server, and a client of it."""

    def __init__(self, client: TestClient, gate: Gate, service: Service, lines: list[str]) -> None:
        self.client, self.gate, self.service, self.lines = client, gate, service, lines

    def post(self, route: str, file: bytes | None = None, **fields: Any) -> Any:
        """Return the answer to a form with a file."""
        files = None if file is None else {"file": ("x.png", file)}
        return self.client.post(route, files=files, data={k: str(v) for k, v in fields.items()})


@contextmanager
def serving(
    folder: Path,
    models: dict[str, TaskModel | Assistant],
    *,
    limits: ServerLimits | None = None,
    root: Path | None = None,
    settings: TestSettings | None = None,
    others: dict[str, ServedModel] | None = None,
    **options: Any,
) -> Iterator[Served]:
    """Yield a server over models."""
    limits = limits or ServerLimits()
    worker = Worker("test", limits.batch, limits.pixels)
    served = {
        name: ServedModel(name, worker, assistant=model, tower=model.vlm.vision)
        if isinstance(model, Assistant)
        else ServedModel(name, worker, model, settings=settings or TestSettings())
        for name, model in models.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    store = ImageStore(folder, root, limits.pixels, 4 * limits.upload_bytes)
    predictor = Predictor(folder, limits.pixels)
    service = Service({**served, **(others or {})}, store, WaitingLine(limits.queue), predictor)
    lines: list[str] = []
    gate = gated_app(service, limits, log=lines.append, **options)
    try:
        with TestClient(gate, base_url="http://localhost") as client:
            yield Served(client, gate, service, lines)
    finally:
        worker.close()
        predictor.close()


TASKS = ("classification", "segmentation", "change", "detection", "instance", "oriented", "panoptic")

VISION = {"arguments": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}, "image_size": 32}


def model_of(task: str) -> TaskModel:
    torch.manual_seed(0)
    backbone = VisionTower(VisionSettings.model_validate(VISION))
    plain = task == "classification"
    neck = NeckSettings() if plain else NeckSettings(options={"channels": 8})
    classes = ("unchanged", "changed") if task == "change" else ("sea", "land", "ice")
    head: dict[str, Any] = {} if plain else {"width": 8}
    if task == "panoptic":
        head = {"things": ["ice"], "queries": 12, "blocks": 1, "least_score": 0.0, "least_share": 0.0}
        neck = NeckSettings()
    model = build_model(task, backbone, classes, neck, head).eval()
    model.input_size = InputSize(mode="fixed", size=32)
    return model


def noise(seed: int = 0, size: tuple[int, int] = (40, 56)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def bright(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Black with grey rectangles, each brighter than the one before."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        pixels[y1:y2, x1:x2] = 120 + 60 * number
    return pixels


@pytest.fixture(scope="module")
def all_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    settings = TestSettings(score_threshold=0.0)
    with serving(folder / "files", {task: model_of(task) for task in TASKS}, settings=settings) as served:
        yield served


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Models whose answers are known."""
    folder = tmp_path_factory.mktemp("known")
    models = {
        "map": BrightestBand(),
        "bands": BrightestBand(channels=channels_of("B2", "B3", "B8")),
        "change": Brighter(),
        "boxes": BrightObjects(),
        "quads": BrightObjects("oriented"),
        "masks": BrightObjects("instance"),
    }
    root = folder / "root"
    raster = np.zeros((3, 60, 80), np.uint8)
    raster[0, 10:20, 30:50] = 200
    write_raster(root / "utm.tif", raster)
    write_raster(root / "later.tif", np.where(raster == 200, 0, 220).astype(np.uint8))
    write_raster(
        root / "wide" / "bands.tif",
        np.kron(raster, np.ones((1, 2, 2))).astype(np.uint16) * 4,
        names=("B2", "B3", "B8"),
    )
    (root / "plain.png").write_bytes(png(bright((10, 20, 30, 40))))
    with serving(folder / "files", models, root=root) as served:  # type: ignore[arg-type]
        yield served
