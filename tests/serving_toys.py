"""A server in this process, over models that are at hand."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from vitp.inference.ask import Assistant
from vitp.serving.app import gated_app
from vitp.serving.gate import Gate, ServerLimits
from vitp.serving.models import ServedModel
from vitp.serving.predicting import Predictor
from vitp.serving.service import Service
from vitp.serving.store import ImageStore
from vitp.serving.worker import WaitingLine, Worker
from vitp.tasks.base import TaskModel, TestSettings


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
