"""The loader alone: what data workers deliver, and how long a training step of a given length waits for them.

    python benchmarks/loader.py --workers 0 2 --step-ms 500

The images are generated JPEGs of photographic size (a mix of sizes, as aerial tiles and phone pictures have them);
`--data` takes a mixture of your own. Each line of the result is one setting: samples a second without anybody
computing, and the share of a step of `--step-ms` milliseconds that is spent waiting.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from common import save
from vitp.data.batches import SampledBatches
from vitp.data.chat import ChatTokenizer
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.record_set import ListRecords
from vitp.data.sources import read_mixture
from vitp.data.tiles import TileCache, TileLoader
from vitp.data.tokenizer import train_tokenizer
from vitp.engine.loading import StepLoader
from vitp.models.vrl import VisualRobustness, VRLSettings
from vitp.objectives.packed_records import PackedRecords, SequenceSettings
from vitp.records.instructions import InstructionRecord, Turn

SIZES = ((512, 512), (800, 800), (1024, 768), (2048, 1536), (4000, 3000))
TILE, MAX_TILES = 448, 6


@dataclass(frozen=True)
class Setting:
    """What is compared: draft decoding on or off, with or without a cache that holds all."""

    name: str
    draft: bool
    cached: bool


SETTINGS = (
    Setting("full decode", False, False),
    Setting("draft", True, False),
    Setting("cached", True, True),
)


def make_images(folder: Path, count: int) -> Mixture:
    """Write JPEGs with noise and structure, which decode as slowly as photographs do."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 8, (height, width, 1)).astype(np.int16)
        path = folder / f"{number}.jpg"
        Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)).save(path, quality=90)
        turn = Turn("<image>\nHow many ships are in this image?", "There are three ships.")
        records.append(InstructionRecord(str(number), (str(path),), (turn,), sizes=((width, height),)))
    return Mixture([MixtureEntry(ListRecords(records, "generated"))])


def source(mixture: Mixture, batch: int, setting: Setting, cache: Path) -> SampledBatches:
    """Return the batches of a run at full scale: tiles of 448, 256 image tokens each, VRL 0.75."""
    tokenizer = train_tokenizer(
        ["How many ships are in this image? There are three ships."] * 20, vocabulary=400
    )
    kept = TileCache(8 << 30, cache) if setting.cached else None
    collator = PackedRecords(
        ChatTokenizer(tokenizer, template="micro", tokens_per_tile=256),
        tile=TILE,
        config=SequenceSettings(max_length=4096, max_tiles=MAX_TILES),
        drop=VisualRobustness(VRLSettings(ratio=0.75), seed=0).train(),
        load_tiles=TileLoader(TILE, draft=setting.draft, cache=kept),
    )
    return SampledBatches(mixture, collator, batch)


def measure(batches: SampledBatches, workers: int, steps: int, step_s: float) -> dict[str, Any]:
    """Return the rate without a consumer, and the wait of one that takes `step_s` a step."""
    result: dict[str, Any] = {"workers": workers}
    for name, busy in (("free", 0.0), ("busy", step_s)):
        loader = StepLoader(batches, 0, steps + 2, 1, num_workers=workers)
        try:
            loader.next_step()  # starts the workers
            loader.next_step()
            before, began, tiles = loader.wait_s, time.perf_counter(), 0
            waits = []
            for _ in range(steps):
                waited = loader.wait_s
                (batch,) = loader.next_step()
                waits.append(loader.wait_s - waited)
                tiles += len(batch.tiles_TCHW)
                time.sleep(busy)
            seconds = time.perf_counter() - began
        finally:
            loader.close()
        if name == "free":
            result["samples_per_s"] = round(steps * batches.global_batch / seconds, 1)
            result["tiles_per_s"] = round(tiles / seconds, 1)
        else:
            result["data_wait"] = round((loader.wait_s - before) / seconds, 4)
            result["median_wait_ms"] = round(statistics.median(waits) * 1e3, 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="A mixture file; generated JPEGs by default.")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16, help="Records a step.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--step-ms", type=float, default=500, help="How long a step computes.")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="loader_") as name:
        folder = Path(name)
        mixture = (
            Mixture(read_mixture(arguments.data)) if arguments.data else make_images(folder, arguments.images)
        )
        for setting in SETTINGS:
            batches = source(mixture, arguments.batch, setting, folder / "cache")
            for workers in arguments.workers:
                row = measure(batches, workers, arguments.steps, arguments.step_ms / 1e3)
                rows.append({"setting": setting.name, **row})
                print(rows[-1], flush=True)
    save(
        "loader",
        {
            "decoder": f"Pillow, libjpeg-turbo {features.version('libjpeg_turbo')}",
            "images": str(arguments.data) if arguments.data else [f"{w}x{h}" for w, h in SIZES],
            "batch": arguments.batch,
            "step_ms": arguments.step_ms,
            "rows": rows,
            "peak_mb_of_a_process": round(
                max(
                    resource.getrusage(who).ru_maxrss
                    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
                )
                / 1024
            ),
        },
    )


if __name__ == "__main__":
    main()
