"""The leak check finds test images in a mixture: whole, resized, cut, turned; and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vitp.cli import run
from vitp.core.errors import ConfigError
from vitp.data.leaks import find_leaks, write_clean
from vitp.data.overlap import OverlapIndex, landmarks
from vitp.data.sources import read_mixture
from vitp.io.images import load_image
from vitp.records.labels import LabelledImage, LabelledSet


def scene(seed: int, size: int = 400) -> Image.Image:
    """Blocks and edges at several scales, as roofs and roads have them."""
    rng = np.random.default_rng(seed)
    pixels = np.full((size, size, 3), rng.integers(60, 190, 3), np.uint8)
    for _ in range(220):
        x, y = rng.integers(0, size, 2)
        w, h = rng.integers(6, 48, 2)
        pixels[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.7))


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def test_set(folder: Path, count: int = 3) -> LabelledSet:
    items = []
    for k in range(count):
        path = save(scene(k), folder / f"{k}.png")
        items.append(LabelledImage(str(k), str(path), 400, 400, "test" if k < 2 else "train"))
    return LabelledSet("roofs", items)


test_set.__test__ = False  # type: ignore[attr-defined]


def mixture(folder: Path, images: dict[str, Image.Image]) -> Path:
    rows = []
    for name, image in images.items():
        save(image, folder / "images" / name)
        said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A town."}]
        rows.append({"id": name, "image": name, "conversations": said})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"root": "images", "annotation": "rows.jsonl", "repeat_time": 2, "max_dynamic_patch": 3}
    (folder / "mixture.json").write_text(json.dumps({"towns": entry}))
    return folder / "mixture.json"


@pytest.fixture
def leaking(tmp_path: Path) -> tuple[Path, LabelledSet]:
    tests = test_set(tmp_path / "test")
    first, second = scene(0), scene(1)
    images = {
        "same.png": first,
        "jpeg.jpg": second.resize((300, 300)),
        "crop.png": first.crop((90, 60, 290, 260)),
        "scaled.png": second.crop((40, 100, 280, 340)).resize((336, 336), Image.Resampling.BICUBIC),
        "turned.png": first.crop((100, 100, 350, 350)).rotate(90),
        "train.png": scene(2),
        "other.png": scene(11),
        "flat.png": Image.new("RGB", (200, 200), (90, 90, 90)),
    }
    return mixture(tmp_path / "mix", images), tests


def test_each_way_to_leak_is_found_and_nothing_else(leaking: tuple[Path, LabelledSet]) -> None:
    path, tests = leaking
    report = find_leaks(path, {"roofs": tests}, threads=1)
    found = {Path(leak.image).name: (Path(leak.test_image).name, leak.kind) for leak in report.leaks}
    assert found == {
        "same.png": ("0.png", "pixels"),
        "jpeg.jpg": ("1.png", "picture"),
        "crop.png": ("0.png", "overlap"),
        "scaled.png": ("1.png", "overlap"),
        "turned.png": ("0.png", "overlap"),
    }
    shares = {Path(leak.image).name: leak.share for leak in report.leaks}
    assert shares["crop.png"] == pytest.approx(0.25, abs=0.01)
    assert shares["scaled.png"] == pytest.approx(0.36, abs=0.02)
    assert shares["turned.png"] == pytest.approx(0.39, abs=0.02)
    assert report.images == 8 and report.tests == {"roofs": 2} and report.unreadable == []
    assert report.records == {"towns": (5, 8)}
    assert report.affected() == {"towns": {"roofs": 2}}


def test_whole_pictures_only(leaking: tuple[Path, LabelledSet]) -> None:
    path, tests = leaking
    report = find_leaks(path, {"roofs": tests}, overlaps=False, threads=1)
    assert {Path(leak.image).name for leak in report.leaks} == {"same.png", "jpeg.jpg"}


def test_the_clean_mixture_keeps_the_rest(leaking: tuple[Path, LabelledSet], tmp_path: Path) -> None:
    path, tests = leaking
    report = find_leaks(path, {"roofs": tests}, threads=1)
    assert write_clean(path, report, tmp_path / "clean") == {"towns": 3}
    (entry,) = read_mixture(tmp_path / "clean" / "mixture.json")
    assert (entry.rate, entry.max_tiles) == (2, 3)
    names = [Path(entry.records[k].images[0]) for k in range(len(entry.records))]
    assert [name.name for name in names] == ["train.png", "other.png", "flat.png"]
    assert all(name.is_file() for name in names)
    assert find_leaks(tmp_path / "clean" / "mixture.json", {"roofs": tests}, threads=1).leaks == []
    with pytest.raises(ConfigError, match="isn't empty"):
        write_clean(path, report, tmp_path / "clean")


def test_without_test_images_there_is_nothing_to_say(leaking: tuple[Path, LabelledSet]) -> None:
    path, tests = leaking
    with pytest.raises(ConfigError, match="no test image"):
        find_leaks(path, {"roofs": tests.split("train")}, threads=1)


def test_an_unreadable_image_is_told_and_left_out(leaking: tuple[Path, LabelledSet]) -> None:
    path, tests = leaking
    (path.parent / "images" / "other.png").write_bytes(b"no image")
    report = find_leaks(path, {"roofs": tests}, threads=1)
    assert len(report.leaks) == 5 and "other.png" in report.unreadable[0]


def test_an_index_without_key_points_finds_nothing() -> None:
    flat = landmarks(Image.new("RGB", (64, 64)))
    assert OverlapIndex([flat]).find(landmarks(scene(0))) == []
    assert OverlapIndex([]).find(landmarks(scene(0))) == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, seed in (("train", 5), ("test", 6)):
        for name in ("A", "B"):
            save(scene(seed), tmp_path / "levir" / split / name / "1.png")
        save(Image.new("L", (400, 400)), tmp_path / "levir" / split / "label" / "1.png")
    save(scene(7), tmp_path / "levir" / "val" / "A" / "1.png")
    save(scene(7), tmp_path / "levir" / "val" / "B" / "1.png")
    save(Image.new("L", (400, 400)), tmp_path / "levir" / "val" / "label" / "1.png")
    path = mixture(tmp_path / "mix", {"a.png": scene(6).crop((0, 0, 200, 200)), "b.png": scene(8)})
    arguments = ["data", "leaks", str(path), "--test", f"levir_cd={tmp_path / 'levir'}"]
    out = tmp_path / "leaks.json"
    assert run([*arguments, "--out", str(out), "--clean", str(tmp_path / "clean")]) == 1
    shown = capsys.readouterr().out
    assert "1 of 2" in shown and "25% of" in shown and "records left: towns 1" in shown
    report = json.loads(out.read_text())
    assert report["records"] == {"towns": {"leaking": 1, "all": 2}}
    assert {leak["kind"] for leak in report["leaks"]} == {"overlap"}
    assert run(["data", "leaks", str(tmp_path / "clean" / "mixture.json"), *arguments[3:]]) == 0


@pytest.mark.realdata
def test_tiles_of_real_aerial_images_are_found_and_blood_cells_are_not(
    real_data: Path, tmp_path: Path
) -> None:
    paths = sorted((real_data / "gdit_airport" / "test" / "images").iterdir())[:8]
    cells = sorted((real_data / "bccd" / "JPEGImages").glob("*.jpg"))[:8]
    if len(paths) < 8 or len(cells) < 8:
        pytest.skip("gdit_airport or bccd is incomplete")
    index = OverlapIndex(landmarks(load_image(path)) for path in paths)
    right = wrong = 0
    for number, path in enumerate(paths):
        tile = save(load_image(path).crop((100, 150, 400, 450)), tmp_path / f"{number}.jpg")
        found = index.find(landmarks(load_image(tile)))
        right += any(overlap.known == number for overlap in found)
        wrong += sum(overlap.known != number for overlap in found)
    assert right >= 6 and wrong == 0
    assert not any(index.find(landmarks(load_image(path))) for path in cells)
