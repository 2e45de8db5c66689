"""From slides with QuPath's annotations to what QuPath shows: compile, pretrain, finetune, predict, open.

    python examples/slide_walk.py OUT [STEPS]

The slides (Aperio's SVS, a quarter of a micrometre a pixel) and their glands, of two kinds, are generated. The commands
are those that anybody would type, and are printed. Needs `pip install 'vitp[medical,geo]'`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import tifffile

SIDE, MPP = 1536, 0.25
COLOURS = {"benign": (214, 120, 170), "tumor": (112, 62, 160)}
Gland = tuple[float, float, float, str]


def glands(seed: int) -> list[Gland]:
    """Return x, y, radius and class of discs that don't touch."""
    rng = np.random.default_rng(seed)
    found: list[Gland] = []
    while len(found) < 24:
        x, y, radius = (*rng.uniform(120, SIDE - 120, 2), rng.uniform(40, 90))
        if all(np.hypot(x - a, y - b) > radius + r + 24 for a, b, r, _ in found):
            found.append((float(x), float(y), float(radius), ("benign", "tumor")[len(found) % 2]))
    return found


def write_slide(folder: Path, name: str, seed: int) -> list[Gland]:
    """Write NAME.svs, with two coarser levels, and NAME.geojson as QuPath exports it; return its glands."""
    rng, found = np.random.default_rng(seed), glands(seed)
    image = np.full((SIDE, SIDE, 3), 243.0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    features = []
    for x, y, radius, kind in found:
        image[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = COLOURS[kind]
        angles = np.linspace(0, 2 * np.pi, 49)
        ring = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)
        told = {"objectType": "annotation", "classification": {"name": kind, "color": list(COLOURS[kind])}}
        shape = {"type": "Polygon", "coordinates": [[*ring[:-1].tolist(), ring[0].tolist()]]}
        features.append({"type": "Feature", "geometry": shape, "properties": told})
    pixels = (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    told = f"Aperio Image Library v12.0.15\r\n{SIDE}x{SIDE} (256x256) JPEG/RGB Q=90|AppMag = 40|MPP = {MPP}"
    with tifffile.TiffWriter(folder / f"{name}.svs") as file:
        options = {"compression": "jpeg", "photometric": "rgb", "metadata": None, "description": told}
        for step in (1, 8, 4):  # what follows the finest level is the thumbnail
            level = pixels.reshape(SIDE // step, step, SIDE // step, step, 3).mean((1, 3)).astype(np.uint8)
            file.write(level, **options, **({"rowsperstrip": 16} if step == 8 else {"tile": (256, 256)}))
    (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return found


def vitp(*words: object) -> None:
    """Run a command."""
    command = ["vitp", *map(str, words)]
    print("$", " ".join(command), flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def main(out: Path, steps: int = 300) -> float:
    """Write everything under OUT; return the share of a new slide's glands whose centre has their class."""
    for seed, name in enumerate(("ann", "bob", "cem", "dee")):
        write_slide(out / "slides", name, seed)
    wanted = write_slide(out / "new", "eve", 9)
    cut = ("--crop", 128, "-o", "mpp=0.5", "-o", "semantic=both", "-o", "val=0.25", "-o", "test=0.25")
    vitp("data", "compile", out / "slides", "--out", out / "data", *cut)
    vitp("data", "check", out / "data")
    vitp("pretrain", "--data", out / "data", "--out", out / "run", "--steps", steps)
    made = ("--data", out / "data", "--backbone", out / "run", "--out", out / "glands")
    # A small head learns in tens of steps what the default one needs hundreds for.
    small = (
        "-s",
        "head.kind=fpn",
        "-s",
        "head.width=48",
        "-s",
        "head.auxiliary=0",
        "-s",
        "data.global_batch=8",
    )
    vitp("finetune", "segmentation", *made, "--steps", steps, *small)
    vitp("predict", out / "glands", out / "new" / "eve.svs", "--out", out / "map")
    print((out / "map" / "areas.csv").read_text(encoding="utf-8"))
    with tifffile.TiffFile(out / "map" / "masks" / "eve.tif") as file:
        classes_HW = file.pages.first.asarray()
    names = ["background", *sorted(COLOURS)]
    right = [
        names.index(kind) == classes_HW[round(y * MPP / 0.5), round(x * MPP / 0.5)]
        for x, y, _, kind in wanted
    ]
    return sum(right) / len(right)


if __name__ == "__main__":
    print(f"{main(Path(sys.argv[1]), *map(int, sys.argv[2:])):.1%} of the glands have their class")
