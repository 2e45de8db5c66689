"""The scripts in examples/ run as they are, on generated scenes."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.e2e.conftest import done, vitp

FOLDER = Path(__file__).parents[2] / "examples"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script whose commands run in this process, without the seconds of the imports."""

    def here(*words: object) -> None:
        result = vitp(*words)
        assert result.code == 0, result.err
        print("$ vitp", *words, result.out)

    def walked(name: str) -> ModuleType:
        module = script(name)
        monkeypatch.setattr(module, "vitp", here)
        return module

    return walked


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "port"
    done("data", "scenes", "port", "--layout", "coco", "--count", 24, "--size", 64, "--out", folder)
    return folder


@pytest.mark.slow
def test_labels_become_a_backbone_that_can_be_compared(scenes: Path, capsys: pytest.CaptureFixture) -> None:
    out = scenes.parent / "out"
    batch, tokens, width = script("labels_to_backbone").main(scenes, out, 2)
    assert batch == 1 and tokens >= 36 and width >= 64
    capsys.readouterr()
    means = script("is_it_better").main(out / "data", str(out / "backbone"))
    assert set(means) == {str(out / "backbone"), "random"}
    assert all(0 <= value <= 1 for row in means.values() for value in row.values())
    assert capsys.readouterr().out.count("presence linear") >= 2


@pytest.mark.slow
def test_a_detector_is_finetuned_and_used(scenes: Path) -> None:
    found = script("finetune_a_detector").main(scenes, "starter", scenes.parent / "detector", 2)
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)


def test_every_script_is_named_in_the_readme_and_says_how_it_is_called() -> None:
    for path in FOLDER.glob("*.py"):
        assert re.search(rf"^    python examples/{path.name} ", path.read_text(encoding="utf-8"), re.M)


@pytest.mark.slow
def test_a_raster_becomes_a_map(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    right = script("raster_to_map").main(tmp_path, 4)
    assert 0 <= right <= 1
    assert (tmp_path / "data" / "mixture.json").is_file()
    said = capfd.readouterr().out
    assert "drawn by place in blocks of" in said and "384×384, EPSG:32633" in said


@pytest.mark.slow
def test_slides_become_what_qupath_shows(
    walk: Callable[[str], ModuleType], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    right = walk("slide_walk").main(tmp_path, 4)
    assert 0 <= right <= 1
    content = json.loads((tmp_path / "map" / "vectors" / "eve.geojson").read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    said = capfd.readouterr().out
    assert "4 of 0.25 µm a pixel: all read at 0.5 µm" in said and "at 0.5 µm a pixel, as in training" in said
    assert "image,class,objects,pixels,area_mm2,share" in said


@pytest.mark.slow
def test_ct_volumes_become_a_segmentation(walk: Callable[[str], ModuleType], tmp_path: Path) -> None:
    dice = walk("ct_walk").main(tmp_path, 2)
    assert "liver" in dice and all(0 <= value <= 1 for value in dice.values())
    assert (tmp_path / "labels" / "dicom-seg" / "series.dcm").is_file()
    assert (tmp_path / "organs" / "cases-volumes-test.html").is_file()


@pytest.mark.slow
def test_annotation_goes_round_twice(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    scores = script("annotation_walk").main(tmp_path, 1)
    assert set(scores) == {"uncertain", "random"} and all(len(values) == 3 for values in scores.values())
    assert scores["uncertain"][0] == scores["random"][0]
    said = capfd.readouterr().out
    assert said.count("8 added") == 4 and said.count("label-studio: 40 tasks, most uncertain first") == 2
    assert re.search(r"24 +\d+\.\d +\d+\.\d\nuncertain less random at the end: [+-]", said)
    assert re.search(r"objects drawn: \d+ uncertain, \d+ random", said)
    for way in ("uncertain", "random"):
        head = json.loads((tmp_path / f"{way}-2-data" / "summary.json").read_text(encoding="utf-8"))
        assert head["splits"]["train"]["images"] == 24 and head["splits"]["test"]["images"] == 24
