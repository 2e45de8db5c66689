"""One picture a task for the documentation: what a small model predicts on test images that it has not seen.

`python tools/task_pictures.py OUT [TASK…]` trains each model through the command line, from the packaged starter, on
the real sets in the folder that VITP_DATA names (by default `../shared/data`) or on generated scenes, and writes
`docs/pictures/tasks/TASK.jpg`; `labels:TASK` draws the labels of the same images instead. Seed 0 everywhere; one to
three minutes of one CPU core a task.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageStat

from vitp.data.formats import read_labels
from vitp.inference.outputs import class_colour

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures" / "tasks"
REAL = Path(os.environ.get("VITP_DATA", ROOT.parent / "shared" / "data"))
HEIGHT, GAP, QUALITY = 300, 8, 82
SMALL = ("data.global_batch=4", "data.resize.mode=long")
CROPS = ("data.resize.mode=none",)
WINDOWS = ("test.window=128", "test.overlap=0.5")


@dataclass(frozen=True)
class Job:
    """A set, the settings of a finetuning on it, and which of its test images are shown."""

    data: Callable[[Path], Path]
    settings: tuple[str, ...]
    steps: int
    images: Callable[[Path], Sequence[tuple[Path, ...]]]
    threshold: float = 0.5


def blood_cells(_: Path) -> Path:
    """Boxes of red cells, white cells and platelets under the microscope."""
    return REAL / "bccd"


def nuclei(_: Path) -> Path:
    """Outlines of nuclei."""
    return REAL / "dsb2018"


def forest(work: Path) -> Path:
    """Masks of forest in Sentinel-2; every fifth image is for the test."""
    out = work / "forest"
    names = sorted(path.name for path in (REAL / "amazon_forest" / "images").iterdir())
    for split, part in (("train", [name for name in names if name not in names[::5]]), ("test", names[::5])):
        for kind in ("images", "masks"):
            (out / split / kind).mkdir(parents=True, exist_ok=True)
            for name in part:
                link = out / split / kind / name
                link.is_symlink() or link.symlink_to(REAL / "amazon_forest" / kind / name)
    return out


def drone(_: Path) -> Path:
    """Oriented boxes in thermal images from a drone."""
    return REAL / "hit_uav"


def stains(work: Path) -> Path:
    """The kinds of the nuclei's images as class folders, in their splits."""
    out = work / "stains"
    if not out.is_dir():
        with (REAL / "dsb2018" / "images.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                folder = out / row["split"] / row["kind"]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / row["file"]).symlink_to(REAL / "dsb2018" / "images" / row["file"])
    return out


def pairs(work: Path) -> Path:
    """Generated pairs of dates with masks of what changed."""
    out = work / "pairs"
    if not out.is_dir():
        _vitp("data", "scenes", "port", "--layout", "pairs", "--count", "400", "--size", "96", "--out", out)
    return out


def ground(work: Path) -> Path:
    """Generated aerial scenes with objects and land cover, in COCO's panoptic form."""
    out = work / "ground"
    if not out.is_dir():
        _vitp(
            "data",
            "scenes",
            "general",
            "--layout",
            "panoptic",
            "--count",
            "400",
            "--size",
            "96",
            "--out",
            out,
        )
    return out


def _test_forest(root: Path) -> list[tuple[Path, ...]]:
    return [(path,) for path in sorted((root / "test" / "images").iterdir())[:3]]


def _test_cells(root: Path) -> list[tuple[Path, ...]]:
    names = (root / "ImageSets" / "Main" / "test.txt").read_text(encoding="utf-8").split()
    return [(root / "JPEGImages" / f"{name}.jpg",) for name in names[:2]]


def _test_drone(root: Path) -> list[tuple[Path, ...]]:
    files = sorted((root / "test" / "labelTxt").iterdir(), key=lambda path: (-path.stat().st_size, path.name))
    return [(root / "test" / "images" / f"{path.stem}.jpg",) for path in files[4:40:20]]


def _test_stains(root: Path) -> list[tuple[Path, ...]]:
    kinds = sorted(path for path in (root / "test").iterdir())
    return [(path,) for kind in kinds for path in sorted(kind.iterdir())[:2]]


def _test_nuclei(root: Path) -> list[tuple[Path, ...]]:
    rows = json.loads((root / "annotations" / "instances_test.json").read_text(encoding="utf-8"))["images"]
    wide = [row["file_name"] for row in rows if row["width"] <= 400]
    return [(root / "images" / name,) for name in (wide[0], wide[12], wide[40])]


def _test_ground(root: Path) -> list[tuple[Path, ...]]:
    return [(path,) for path in sorted((root / "test" / "images").iterdir())[1:4]]


def _test_pairs(root: Path) -> list[tuple[Path, ...]]:
    names = sorted(path.name for path in (root / "test" / "A").iterdir())
    shares = [ImageStat.Stat(Image.open(root / "test" / "label" / name)).mean[0] / 255 for name in names]
    changed = [name for name, share in zip(names, shares, strict=True) if share > 0.05]
    return [(root / "test" / "A" / name, root / "test" / "B" / name) for name in changed[:2]]


JOBS = {
    "classification": Job(stains, ("data.global_batch=16",), 40, _test_stains),
    "segmentation": Job(
        forest, (*CROPS, "data.crop=128", "data.global_batch=8", "head.kind=fpn", *WINDOWS), 30, _test_forest
    ),
    "change": Job(pairs, ("data.global_batch=8", "head.kind=fpn"), 400, _test_pairs),
    "detection": Job(
        blood_cells,
        (*SMALL, "data.resize.size=128", "head.box.kind=faster", "head.width=64"),
        300,
        _test_cells,
    ),
    "instance": Job(nuclei, (*SMALL, "data.resize.size=192"), 120, _test_nuclei),
    "panoptic": Job(ground, ("data.global_batch=8", "head.least_score=0.5"), 150, _test_ground),
    "oriented": Job(
        drone, (*CROPS, "data.crop=192", "data.global_batch=4", "data.empty=0.1"), 150, _test_drone
    ),
}


def _vitp(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "vitp", *map(str, words)], check=True)


def run(task: str, work: Path) -> None:
    """Train, predict, and write the picture of a task."""
    job = JOBS[task]
    data, model, found = job.data(work), work / f"{task}-run", work / f"{task}-found"
    settings = [word for setting in (*job.settings, "train.val_every=0") for word in ("-s", setting)]
    resume = ["--resume"] if model.is_dir() else ["--data", data, "--backbone", "starter", *settings]
    if not (model / "model").is_dir():
        _vitp("finetune", task, *resume, "--steps", job.steps, "--out", model)
    chosen = job.images(data)
    later = [word for pair in chosen for word in ("--later", pair[1])] if task == "change" else []
    threshold = ["-s", f"score_threshold={job.threshold}"]
    _vitp("predict", model, *(pair[0] for pair in chosen), *later, *threshold, "--out", found, "--force")
    rows = {"classification": _scored_row, "change": _changed_row}
    row = rows.get(task, _drawn_row)(found, chosen)
    _save(row, task)


def show_labels(task: str, work: Path) -> None:
    """Write the picture of a task from the labels of its test images, where nothing has been trained."""
    job, panels = JOBS[task], []
    data = job.data(work)
    if task == "change":
        masks = [(*pair, data / "test" / "label" / pair[0].name) for pair in job.images(data)]
        _save(_row([Image.open(path).convert("RGB") for pair in masks for path in pair], HEIGHT // 2), task)
        return
    found = {Path(item.image).name: item for item in read_labels("auto", data).items}
    for (image,) in job.images(data):
        drawn = Image.open(image).convert("RGB")
        pen, width = ImageDraw.Draw(drawn), max(2, round(max(drawn.size) / 250))
        classes = sorted({one.category for item in found.values() for one in item.objects or ()})
        for one in found[image.name].objects or ():
            corners = one.quad or [one.box[place] for place in (0, 1, 2, 1, 2, 3, 0, 3)]
            ring = list(zip(corners[::2], corners[1::2], strict=True))
            pen.line([*ring, ring[0]], fill=class_colour(classes.index(one.category)), width=width)
        panels.append(drawn)
    _save(_row(panels, HEIGHT), task)


def _save(row: Image.Image, task: str) -> None:
    target = PICTURES / f"{task}.jpg"
    target.parent.mkdir(parents=True, exist_ok=True)
    row.save(target, quality=QUALITY, optimize=True)
    print(f"{target}: {target.stat().st_size // 1000} kB, {row.size}")


def _drawn_row(found: Path, chosen: Sequence[tuple[Path, ...]]) -> Image.Image:
    """Return the pictures of `vitp predict` side by side."""
    panels = [found / "pictures" / f"{images[0].stem}.png" for images in chosen]
    return _row([Image.open(path).convert("RGB") for path in panels], HEIGHT)


def _changed_row(found: Path, chosen: Sequence[tuple[Path, ...]]) -> Image.Image:
    """Return both dates, what was found and what has changed, of each pair."""
    panels = []
    for before, after in chosen:
        panels += [
            before,
            after,
            found / "label" / f"{before.stem}.png",
            before.parents[1] / "label" / before.name,
        ]
    return _row([Image.open(path).convert("RGB") for path in panels], HEIGHT // 2)


def _scored_row(found: Path, chosen: Sequence[tuple[Path, ...]]) -> Image.Image:
    """Return the images with the class and its probability below each."""
    with (found / "predictions.csv").open(encoding="utf-8") as file:
        rows = {Path(row.pop("image")).name: row for row in csv.DictReader(file)}
    panels = []
    for (image,) in chosen:
        row = rows[image.name]
        name = row.pop("class")
        picture = Image.open(image).convert("RGB").resize((180, 180))
        panel = Image.new("RGB", (180, 208), "white")
        panel.paste(picture, (0, 0))
        text, font = f"{name} {float(row[name]):.2f}", ImageFont.load_default(size=16)
        ImageDraw.Draw(panel).text((90, 194), text, fill="black", font=font, anchor="mm")
        panels.append(panel)
    return _row(panels, 208)


def _row(panels: Sequence[Image.Image], height: int) -> Image.Image:
    scaled = [panel.resize((round(panel.width * height / panel.height), height)) for panel in panels]
    row = Image.new("RGB", (sum(panel.width + GAP for panel in scaled) - GAP, height), "white")
    left = 0
    for panel in scaled:
        row.paste(panel, (left, 0))
        left += panel.width + GAP
    return row


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for wanted in sys.argv[2:] or JOBS:
        if wanted.startswith("labels:"):
            show_labels(wanted.removeprefix("labels:"), folder)
        else:
            run(wanted, folder)
