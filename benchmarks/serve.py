"""`vitp serve` under load: what is lost, how long requests take, what computing them together is worth, its memory.

Two servers of one model run side by side, one that computes waiting images together (`--batch 8`) and one that doesn't
(`--batch 1`). Clients ask them in turns, so that whatever else the machine does slows both. Every answer is compared
with the one that its image got alone. The clients share the machine with the servers.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from common import save
from vitp.models.vision import VisionSettings, VisionTower
from vitp.serving.gate import ServerLimits
from vitp.serving.server import ServerOptions, serve
from vitp.tasks.base import InputSize
from vitp.tasks.build import NeckSettings, build_model

VISION = {
    "arguments": {"embed_dim": 192, "depth": 6, "num_heads": 3, "patch_size": 16},
    "image_size": 128,
}
IMAGES, ROUNDS, SAMPLE_EVERY = 8, 4, 50
TOLERANCE = 1e-5


class Server:
    """A running server.

    A process of its own from its first line on: a copy of this one would wait for ever for the threads of torch, which
    a copy hasn't got.
    """

    def __init__(self, model: Path, batch: int) -> None:
        context = multiprocessing.get_context("spawn")
        told: Any = context.Queue()
        options = ServerOptions(port=0, limits=ServerLimits(batch=batch))
        self.process = context.Process(target=serve, args=([str(model)], options, told.put), daemon=True)
        self.process.start()
        while not (line := told.get(timeout=600)).startswith("open "):
            pass
        self.url = line.split()[1]
        threading.Thread(target=_emptied, args=(told,), daemon=True).start()

    def resident_kb(self) -> int:
        """Return the memory that the process holds."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(text.partition("VmRSS:")[2].split()[0])


def _emptied(told: Any) -> None:
    while told.get() is not None:
        pass


class Load:
    """Clients, and what became of their requests."""

    def __init__(self, images: Sequence[bytes], expected: Sequence[dict[str, float]]) -> None:
        self.images, self.expected = images, expected
        self.seconds: list[float] = []
        self.lost, self.wrong, self.furthest, self.elapsed = 0, 0, 0.0, 0.0
        self._lock = threading.Lock()

    def run(self, server: Server, clients: int, requests: int) -> None:
        """Send so many requests by each of the clients, each as soon as it has the answer to the one before."""
        began = time.perf_counter()
        threads = [
            threading.Thread(target=self._client, args=(server, number, requests))
            for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.elapsed += time.perf_counter() - began

    def _client(self, server: Server, first: int, requests: int) -> None:
        with httpx.Client(timeout=120) as client:
            for number in range(requests):
                which = (first + number) % len(self.images)
                began = time.perf_counter()
                try:
                    scores = asked(client, server, self.images[which])
                except (httpx.HTTPError, KeyError):
                    scores = None
                seconds = time.perf_counter() - began
                with self._lock:
                    self.seconds.append(seconds)
                    if scores is None:
                        self.lost += 1
                        continue
                    off = max(abs(scores[name] - value) for name, value in self.expected[which].items())
                    self.furthest = max(self.furthest, off)
                    self.wrong += off > TOLERANCE

    def figures(self) -> dict[str, object]:
        """Return what happened."""
        p50, p95, p99 = (round(1000 * float(np.percentile(self.seconds, share)), 1) for share in (50, 95, 99))
        return {
            "requests": len(self.seconds),
            "lost": self.lost,
            "other_than_alone": self.wrong,
            "furthest_from_alone": self.furthest,
            "milliseconds": {"p50": p50, "p95": p95, "p99": p99},
            "requests_a_second": round(len(self.seconds) / self.elapsed, 1),
        }


def asked(client: httpx.Client, server: Server, image: bytes) -> dict[str, float]:
    """Return class → score of an image."""
    answer = client.post(f"{server.url}/predict", files={"file": ("a.png", image)})
    answer.raise_for_status()
    return {one["class"]: one["score"] for one in answer.json()["scores"]}


def save_model(folder: Path) -> None:
    """Write a random classifier of a small vision transformer."""
    torch.manual_seed(0)
    tower = VisionTower(VisionSettings.model_validate(VISION))
    model = build_model(
        "classification", tower, [f"class {number}" for number in range(10)], NeckSettings(), {}
    )
    model.input_size = InputSize(mode="fixed", size=128)
    model.description["input"] = model.input_size.model_dump()
    model.save_pretrained(folder)


def pictures() -> list[bytes]:
    """Return PNG files of noise that has structure at several scales."""
    found = []
    for seed in range(IMAGES):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(file, format="PNG")
        found.append(file.getvalue())
    return found


def memory(server: Server, load: Load, clients: int, requests: int) -> dict[str, object]:
    """Return how the server's memory grows over many requests, by a line through its second half."""
    samples = [server.resident_kb()]
    for _ in range(requests // SAMPLE_EVERY):
        load.run(server, clients, SAMPLE_EVERY // clients)
        samples.append(server.resident_kb())
    half = samples[len(samples) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)) * SAMPLE_EVERY, half, 1)[0])
    return {
        "requests": requests,
        "megabytes_at_first": round(samples[0] / 1024, 1),
        "megabytes_at_the_middle": round(half[0] / 1024, 1),
        "megabytes_at_last": round(samples[-1] / 1024, 1),
        "kilobytes_a_request_in_the_second_half": round(slope, 3),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=200, help="of each client")
    parser.add_argument("--memory-requests", type=int, default=2000)
    parser.add_argument(
        "--json", type=Path, help="file for the figures; by default benchmarks/results/serve.json"
    )
    chosen = parser.parse_args()
    images = pictures()
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model")
        servers = {}
        try:
            for batch in (1, 8):
                servers[batch] = Server(Path(folder) / "model", batch)
            with httpx.Client(timeout=120) as client:
                expected = [asked(client, servers[1], image) for image in images]
            loads = {batch: Load(images, expected) for batch in servers}
            for _ in range(ROUNDS):
                for batch, server in servers.items():
                    loads[batch].run(server, chosen.clients, chosen.requests // ROUNDS)
            together, alone = loads[8].figures(), loads[1].figures()
            ratio = float(str(together["requests_a_second"])) / float(str(alone["requests_a_second"]))
            long = Load(images, expected)
            held = memory(servers[8], long, chosen.clients, chosen.memory_requests)
            figures: dict[str, object] = {
                "clients": chosen.clients,
                "model": "classification, ViT of 6 layers and width 192, 128 px, patches of 16",
                "images": "256×256 px PNG",
                "load_average": round(os.getloadavg()[0], 1),
                "together": together,
                "one_by_one": alone,
                "throughput_together_to_one_by_one": round(ratio, 2),
                "memory": {**held, "lost": long.lost, "other_than_alone": long.wrong},
            }
        finally:
            for server in servers.values():
                server.process.terminate()
                server.process.join(60)
    save("serve", figures, out=chosen.json)


if __name__ == "__main__":
    main()
