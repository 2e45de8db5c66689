"""The recipes on real images, on small pictures in the layouts of the five real sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import done
from vitp.recipes.downstream import REAL_TASKS
from vitp.recipes.real_images import SETS

Box = tuple[int, int, int, int]


def picture(rng: np.random.Generator, width: int, height: int, objects: int) -> tuple[Image.Image, list[Box]]:
    """Noise with bright rectangles of 16 to 40 px, one in each of the first columns of 60 px."""
    array = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
    boxes = []
    for number in range(objects):
        x, y = 60 * number + int(rng.integers(0, 15)), int(rng.integers(0, height - 40))
        w, h = (int(side) for side in rng.integers(16, 40, 2))
        array[y : y + h, x : x + w] = rng.integers(150, 255, 3)
        boxes.append((x, y, x + w, y + h))
    return Image.fromarray(array), boxes


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def lines(path: Path, rows: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_airport(root: Path, rng: np.random.Generator) -> None:
    for split in ("train", "valid", "test"):
        for number in range(3):
            image, boxes = picture(rng, 240, 120, 3)
            save(image, root / split / "images" / f"airport_{number}.jpg")
            rows = [f"{a} {b} {c} {b} {c} {d} {a} {d} airplane 0" for a, b, c, d in boxes]
            lines(root / split / "labelTxt" / f"airport_{number}.txt", rows)


def write_cells(root: Path, rng: np.random.Generator) -> None:
    for split in ("train", "val", "test"):
        names = [f"BloodImage_{split}_{number}" for number in range(3)]
        lines(root / "ImageSets" / "Main" / f"{split}.txt", names)
        for name in names:
            image, boxes = picture(rng, 240, 240, 3)
            save(image, root / "JPEGImages" / f"{name}.jpg")
            objects = "".join(
                f"<object><name>{kind}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
                "</bndbox></object>"
                for kind, (a, b, c, d) in zip(("RBC", "WBC", "Platelets"), boxes, strict=True)
            )
            size = "<size><width>240</width><height>240</height><depth>3</depth></size>"
            lines(root / "Annotations" / f"{name}.xml", [f"<annotation>{size}{objects}</annotation>"])


def write_masks(root: Path, rng: np.random.Generator, names: Sequence[str], colour: Sequence[int]) -> None:
    for name in names:
        image, boxes = picture(rng, 200, 128, 3)
        mask = np.zeros((128, 200, 3), np.uint8)
        for a, b, c, d in boxes:
            mask[b:d, a:c] = colour
        save(image, root / "images" / f"{name}.png")
        save(Image.fromarray(mask), root / "masks" / f"{name}.png")


def write_cars(root: Path, rng: np.random.Generator) -> None:
    lines(root / "classes.txt", ["car"])
    for number in range(3):
        image, boxes = picture(rng, 188, 188, 2)
        save(image, root / f"Street-{number}.png")
        rows = [f"0 {(a + c) / 376} {(b + d) / 376} {(c - a) / 188} {(d - b) / 188}" for a, b, c, d in boxes]
        lines(root / f"Street-{number}.txt", rows)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    write_airport(root / "gdit_airport", rng)
    write_cells(root / "bccd", rng)
    write_masks(root / "hrsid_mini", rng, [f"P{n:04}_0_{k}" for n in range(9) for k in range(2)], (0, 255, 0))
    write_masks(root / "amazon_forest", rng, [str(n) for n in range(10)], (255, 255, 255))
    write_cars(root / "kit_ais_cars", rng)
    return root


@pytest.mark.slow
def test_labels_become_tables(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITP_DATA", str(images))
    out = tmp_path / "real"
    done("recipes", "run", "real-images", "--out", out, "--scale", 0.002)
    probes = json.loads((out / "probes.json").read_text())
    assert list(probes) == [one.folder for one in SETS if one.probed]
    for result in probes.values():
        assert {"random", "starter", "after ViTP"} < set(result)
        assert all(gain["verdict"] == "no evidence" for gain in result["ViTP - starter"])
    assert "95 % interval" in (out / "results.md").read_text()

    before = {path: path.stat().st_mtime_ns for path in (out / "backbone-0").iterdir()}
    done("recipes", "run", "downstream", "--out", out, "--scale", 0.002)
    assert {path: path.stat().st_mtime_ns for path in (out / "backbone-0").iterdir()} == before
    found = json.loads((out / "downstream.json").read_text())
    assert len(found["values"]) == len(REAL_TASKS)
    for scores in found["values"].values():
        assert set(scores) == {"random", "starter", "supervised", "after ViTP"}
        assert all(len(values) == 1 and 0 <= values[0] <= 1 for values in scores.values())
    table = (out / "downstream.md").read_text().splitlines()
    assert len(table) == 2 + len(REAL_TASKS)
