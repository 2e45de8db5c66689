"""From a raster with a GeoPackage to a map of another raster: compile, pretrain, finetune, predict, open.

    python examples/raster_to_map.py OUT [STEPS]

The raster (four bands of 16 bits, half a metre a pixel) and its fields, of two kinds that differ in near infrared only,
are generated. The commands are those that anybody would type, and are printed. Needs `pip install 'vitp[geo]'`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyogrio
import rasterio
import rasterio.features
import shapely
from rasterio.transform import Affine

SIDE = 384
NAMES = ("bare", "crop")


def field(x: float, y: float, width: float, height: float, degrees: float) -> shapely.Polygon:
    """Return a turned rectangle in metres of UTM zone 33; x and y are pixels from the corner of the raster."""
    centre = Affine.translation(500_000 + x / 2, 5_300_000 - y / 2) @ Affine.rotation(degrees)
    corners = [
        (-width / 2, -height / 2),
        (width / 2, -height / 2),
        (width / 2, height / 2),
        (-width / 2, height / 2),
    ]
    return shapely.Polygon([centre @ corner for corner in corners])


def write_scene(folder: Path, name: str, seed: int) -> np.ndarray:
    """Write NAME.tif and NAME.gpkg; return the class of each pixel: 0 nothing, 1 bare, 2 crop."""
    rng = np.random.default_rng(seed)
    transform = Affine(0.5, 0, 500_000, 0, -0.5, 5_300_000)
    shapes = [
        field(
            32 + 64 * (k % 6),
            32 + 64 * (k // 6),
            rng.uniform(10, 26),
            rng.uniform(10, 26),
            rng.uniform(0, 90),
        )
        for k in range(36)
    ]
    kinds = rng.integers(1, 3, len(shapes))
    truth_HW = rasterio.features.rasterize(zip(shapes, kinds, strict=True), (SIDE, SIDE), transform=transform)
    bands_CHW = rng.normal(900, 60, (4, SIDE, SIDE))
    bands_CHW[:3] += 500 * (truth_HW > 0)
    bands_CHW[3] += np.array([0, 300, 2400])[truth_HW]
    folder.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "width": SIDE, "height": SIDE, "count": 4, "dtype": "uint16", "tiled": True}
    with rasterio.open(folder / f"{name}.tif", "w", crs="EPSG:32633", transform=transform, **profile) as file:
        file.write(bands_CHW.clip(0, 65535).astype(np.uint16))
        file.descriptions = ("red", "green", "blue", "nir")
    classes = np.array([NAMES[kind - 1] for kind in kinds], object)
    facts = {"crs": "EPSG:32633", "geometry_type": "Polygon", "driver": "GPKG"}
    pyogrio.raw.write(
        folder / f"{name}.gpkg", shapely.to_wkb(np.array(shapes)), [classes], ["class"], **facts
    )
    return np.asarray(truth_HW)


def vitp(*words: object) -> None:
    """Run a command."""
    command = ["vitp", *map(str, words)]
    print("$", " ".join(command), flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def main(out: Path, steps: int = 300) -> float:
    """Write everything under OUT; return the share of a new scene's pixels that the map has right."""
    write_scene(out / "scenes", "north", seed=1)
    truth_HW = write_scene(out / "new", "south", seed=2)
    cut = ("--crop", 64, "--overlap", 16, "-o", "semantic=both", "-o", "val=0.15", "-o", "test=0.15")
    vitp("data", "compile", out / "scenes", "--out", out / "data", *cut)
    vitp("data", "check", out / "data")
    vitp("pretrain", "--data", out / "data", "--out", out / "run", "--steps", steps)
    made = ("--data", out / "data", "--backbone", out / "run", "--out", out / "fields")
    vitp("finetune", "segmentation", *made, "--steps", steps)
    vitp("predict", out / "fields", out / "new" / "south.tif", "--out", out / "map")
    with rasterio.open(out / "map" / "masks" / "south.tif") as file:
        print(f"{file.name}: {file.width}×{file.height}, {file.crs}, {file.transform.to_gdal()}")
        return float((file.read(1) == truth_HW).mean())


if __name__ == "__main__":
    print(f"{main(Path(sys.argv[1]), *map(int, sys.argv[2:])):.1%} of the pixels are right")
