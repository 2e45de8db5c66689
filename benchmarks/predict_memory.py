"""Seconds and memory of `vitp predict` against the size of the raster: linear in what it holds, flat.

    python benchmarks/predict_memory.py                          # all of it
    python benchmarks/predict_memory.py --sides 20000 --full     # one size; the others' results stay
    python benchmarks/predict_memory.py --sides --full --slides 100000x80000

Rasters of four bands of uint16 are generated, tiled and sparse: nodata but for tiles of about one per cent of the
area, and one that is full. Each is predicted by the command in a process of its own, by a segmentation model and by an
oriented detector of micro size with random weights; the process's own peak memory is what the system says of it.

Slides are pyramids of JPEG tiles, paper but for some tissue, seen at their own resolution by a segmentation model and a
detector.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import rasterio
import tifffile
import torch
from PIL import Image
from rasterio import Affine
from rio_cogeo.cogeo import cog_validate

from common import RESULTS, save
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.channels import Channel, Channels
from vitp.tasks.base import TestSettings
from vitp.tasks.build import NeckSettings, build_model

BANDS = ("B2", "B3", "B4", "B8")
TASKS = ("segmentation", "oriented")
WINDOW, TILE = 128, 512
SLIDE_TASKS, SLIDE_WINDOW = ("segmentation", "detection"), 512
TISSUE_TILES = 8
"""Tiles of tissue along x and along y."""
MEASURED = """
import atexit, pathlib, runpy, sys
status = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: status.write_text(pathlib.Path("/proc/self/status").read_text()))
runpy.run_module("vitp", run_name="__main__", alter_sys=True)
"""
"""The command, which leaves what the system says of its memory; `ru_maxrss` would count this process's, too."""


def write_raster(path: Path, side: int, full: bool, seed: int = 0) -> float:
    """Write a raster; return the share of its pixels that hold something."""
    rng = np.random.default_rng(seed)
    starts = range(0, side, TILE)
    every = 1 if full else 10  # a tile in 100 holds something
    held = 0
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=len(BANDS), dtype="uint16", nodata=0,
        crs="EPSG:32633", transform=Affine(10, 0, 500_000, 0, -10, 5_200_000), tiled=True, blockxsize=TILE,
        blockysize=TILE, compress="deflate", sparse_ok=True, bigtiff="if_safer", interleave="pixel",
    ) as file:  # fmt: skip
        for number, name in enumerate(BANDS, 1):
            file.set_band_description(number, name)
        for y in starts:
            for x in starts:
                if (y // TILE) % every or (x // TILE) % every:
                    continue
                height, width = min(TILE, side - y), min(TILE, side - x)
                coarse = rng.integers(1, 3000, (len(BANDS), -(-height // 16), -(-width // 16)))
                values = np.kron(coarse, np.ones((1, 16, 16)))[:, :height, :width].astype(np.uint16)
                file.write(values, window=((y, y + height), (x, x + width)))
                held += height * width
    return held / side**2


def slide_tiles(seed: int = 0) -> tuple[bytes, list[bytes]]:
    """Return a tile of paper and some of tissue, as JPEG."""
    rng = np.random.default_rng(seed)

    def encoded(values_HWC: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(values_HWC.astype(np.uint8)).save(buffer, "JPEG", quality=80, optimize=True)
        return buffer.getvalue()

    coarse = rng.uniform((150, 60, 120), (230, 140, 200), (4, TILE // 16, TILE // 16, 3))
    tissue = [encoded(np.kron(one, np.ones((16, 16, 1)))) for one in coarse]
    return encoded(np.full((TILE, TILE, 3), 243)), tissue


def write_slide(path: Path, width: int, height: int) -> float:
    """Write an Aperio slide of 0.25 µm a pixel with levels of a quarter each; return the share of its tissue."""
    paper, tissue = slide_tiles()
    told = f"Aperio Image Library v12.0.15\r\n{width}x{height} (512x512) JPEG/RGB Q=80|AppMag = 40|MPP = 0.25"
    left, top = (length // TILE // 12 * 4 for length in (width, height))

    def tiles(wide: int, high: int, factor: int) -> Iterator[bytes]:
        x, y, side = left // factor, top // factor, TISSUE_TILES // factor
        for row in range(-(-high // TILE)):
            for column in range(-(-wide // TILE)):
                inside = x <= column < x + side and y <= row < y + side
                yield tissue[(row + column) % len(tissue)] if inside else paper

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        told_all = {"description": told, "metadata": None, "compression": "jpeg"}
        for factor in (1, 4):
            wide, high = width // factor, height // factor
            file.write(
                tiles(wide, high, factor), shape=(high, wide, 3), dtype=np.uint8, tile=(TILE, TILE),
                photometric="ycbcr", subsampling=(2, 2), **told_all,
            )  # fmt: skip
            if factor == 1:  # what follows the finest level is the thumbnail
                file.write(
                    np.full((80, 100, 3), 243, np.uint8), photometric="rgb", rowsperstrip=16, **told_all
                )
        for factor in (16, 64):
            image = np.full((height // factor, width // factor, 3), 243, np.uint8)
            x, y, side = (value * TILE // factor for value in (left, top, TISSUE_TILES))
            image[y : y + side, x : x + side] = (190, 100, 160)
            file.write(image, photometric="rgb", tile=(TILE, TILE), **told_all)
    return (TISSUE_TILES * TILE) ** 2 / (width * height)


def write_model(folder: Path, task: str, window: int = WINDOW, pictures: bool = False) -> None:
    """Write a model of micro size with random weights that sees the four bands, or pictures."""
    torch.manual_seed(0)
    channels = Channels(channels=tuple(Channel(band=band, low=0, high=3000) for band in BANDS))
    tower = VisionTower(
        VisionSettings.model_validate(
            {
                "arguments": {"embed_dim": 64, "depth": 4, "num_heads": 4, "patch_size": 16},
                "image_size": window,
                "channels": None if pictures else channels.model_dump(),
            }
        )
    )
    neck = NeckSettings(options={"channels": 32})
    head = {"width": 32}
    if task in ("oriented", "detection"):
        # An untrained detector finds thousands of objects everywhere; a trained one a few.
        head |= {
            "proposals": {"keep_before": [60, 60], "keep": [60, 60]},
            "box": {"detections": 60, "hidden": 128},
        }
    model = build_model(task, tower, ("water", "wood", "field"), neck, head).eval()
    model.description["test"] = TestSettings(
        window=window, overlap=0.25, score_threshold=0.35, batch_size=4
    ).model_dump()
    model.save_pretrained(folder)


def measure(model: Path, raster: Path, out: Path) -> tuple[float, float, float]:
    """Return seconds by the clock, seconds of the processor and peak memory in megabytes of one prediction."""
    status = out.with_name(f"{out.name}.status")
    words = [str(status), "predict", str(model), str(raster), "--out", str(out)]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", MEASURED, *words], stdout=subprocess.DEVNULL)
    _, ended, usage = os.wait4(process.pid, 0)
    if ended:
        raise SystemExit(f"vitp {' '.join(words[1:])} ended with {os.waitstatus_to_exitcode(ended)}")
    (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, int(peak) / 1024


def measure_slides(root: Path, sizes: Sequence[str]) -> list[dict[str, object]]:
    """Return a row for each size and task."""
    rows: list[dict[str, object]] = []
    for size in sizes:
        width, height = map(int, size.split("x"))
        slide = root / f"{size}.svs"
        share = write_slide(slide, width, height)
        for task in SLIDE_TASKS:
            model, out = root / f"slide_{task}", root / f"out_{size}_{task}"
            if not model.exists():
                write_model(model, task, SLIDE_WINDOW, pictures=True)
            seconds, busy, megabytes = measure(model, slide, out)
            row: dict[str, object] = {
                "task": f"slide {task}", "side": width, "height": height, "full": False, "held": round(share, 4),
                "seconds": round(seconds, 1), "cpu_seconds": round(busy, 1), "peak_mb": round(megabytes),
                "file_mb": round(slide.stat().st_size / 1e6, 1),
            }  # fmt: skip
            print(row, flush=True)
            rows.append(row)
        slide.unlink()
    return rows


def main() -> None:
    """Measure and write `results/predict_memory.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="*", default=[2500, 5000, 10_000, 20_000])
    parser.add_argument("--full", type=int, nargs="*", default=[512, 1024, 2048])
    parser.add_argument("--slides", nargs="*", default=["100000x80000"], help="width x height in pixels")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for task in given.tasks:
            write_model(root / task, task)
        for side, full in [*((side, False) for side in given.sides), *((side, True) for side in given.full)]:
            raster = root / f"{side}_{full}.tif"
            share = write_raster(raster, side, full)
            for task in given.tasks:
                out = root / f"out_{side}_{full}_{task}"
                seconds, busy, megabytes = measure(root / task, raster, out)
                row = {
                    "task": task,
                    "side": side,
                    "full": full,
                    "held": round(share, 4),
                    "seconds": round(seconds, 1),
                    "cpu_seconds": round(busy, 1),
                    "peak_mb": round(megabytes),
                }
                if task == "segmentation":
                    row["valid_cog"] = cog_validate(str(out / "masks" / f"{raster.stem}.tif"), strict=True)[0]
                print(row, flush=True)
                rows.append(row)
            raster.unlink()
        rows += measure_slides(root, given.slides)
    earlier = (
        json.loads(path.read_text())["rows"] if (path := RESULTS / "predict_memory.json").exists() else []
    )
    measured = {(row["task"], row["side"], row["full"]) for row in rows}
    kept = [row for row in earlier if (row["task"], row["side"], row["full"]) not in measured]
    rows = sorted(kept + rows, key=lambda row: (row["task"], row["full"], row["side"]))
    save("predict_memory", {"window": WINDOW, "bands": len(BANDS), "rows": rows}, quiet=True)


if __name__ == "__main__":
    main()
