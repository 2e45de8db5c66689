"""Robustness of finetuned models and of probes: neutral at severity 0, resumable, the same for every model."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vitp.cli import app, evidence
from vitp.core.errors import ConfigError, DataError
from vitp.evaluation.corruptions.catalogue import CORRUPTIONS
from vitp.evaluation.corruptions.sets import corrupted_set
from vitp.evaluation.features import extract, probe_data
from vitp.evaluation.probes import fit_probes
from vitp.evaluation.robustness import measure, robustness_of_backbone, robustness_of_task
from vitp.evaluation.robustness_result import RobustnessResult, comparable
from vitp.metrics.results import Scores
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.labels import LabelledSet
from vitp.report.charts import HeatMap
from vitp.report.robustness_page import (
    example_figures,
    labelled_picture,
    robustness_sections,
    write_robustness_page,
    write_robustness_table,
)
from vitp.scenes import scene_set
from vitp.tasks.base import InputSize, TestSettings
from vitp.tasks.build import NeckSettings, build_model, task_of
from vitp.tasks.data import classes_of

VISION = {"arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}, "image_size": 32}
SMALL = {"width": 16, "proposals": {"anchor_scales": [2.0]}}
HEADS = {
    "classification": {},
    "segmentation": {"kind": "linear"},
    "change": {"kind": "linear"},
    "detection": {**SMALL, "box": {"kind": "faster", "hidden": 16}},
    "instance": {**SMALL, "box": {"kind": "faster", "hidden": 16}, "mask": {"layers": 1, "width": 8}},
    "oriented": {**SMALL, "box": {"hidden": 16}},
}


def tower(seed: int = 0) -> VisionTower:
    torch.manual_seed(seed)
    return VisionTower(VisionSettings.model_validate(VISION)).eval()


def scenes(count: int = 6, *, pairs: bool = False, split: str = "test") -> LabelledSet:
    lazy = scene_set("port", seed=1, count=count, size=48, split=split, pairs=pairs)
    return replace(lazy, items=[lazy.items[index] for index in range(count)])


def model_of(name: str, labelled: LabelledSet):
    neck = NeckSettings(kind="auto", options={} if name == "classification" else {"channels": 16})
    model = build_model(
        name, tower(), classes_of(labelled, task_of(name).labels({})), neck, HEADS[name], seed=1
    )
    model.input_size = InputSize(mode="fixed", size=32)
    return model.eval()


def flat_result(name: str = "ours", clean: float = 0.8, **values: list[float]) -> RobustnessResult:
    """A result with given scores at severities 1, 2, …."""
    cells = {
        corruption: {level: Scores("mIoU", {"mIoU": v, "F1": v / 2}) for level, v in enumerate(row, 1)}
        for corruption, row in (values or {"haze": [0.7, 0.6], "rotation": [0.5, 0.2]}).items()
    }
    facts = {"set": "toy", "images": 3, "image_names": "abc", "seed": 0, "weights": name}
    return RobustnessResult(
        name, "segmentation", "toy", Scores("mIoU", {"mIoU": clean, "F1": 0.4}, images=3), cells, 0, facts
    )


# Numbers.


def test_averages_are_means_of_means() -> None:
    result = flat_result(haze=[0.7, 0.6, 0.5], rotation=[0.2])
    assert result.by_corruption() == pytest.approx({"haze": 0.6, "rotation": 0.2})
    assert result.average() == pytest.approx(0.4) and result.drop() == pytest.approx(0.4)
    assert result.average("F1") == pytest.approx(0.2) and result.value("F1") == 0.4
    assert result.by_severity() == pytest.approx({1: 0.45, 2: 0.6, 3: 0.5})
    assert result.severities == (1, 2, 3)


def test_what_could_not_be_counted_is_left_out() -> None:
    result = flat_result(haze=[0.7, math.nan], rotation=[math.nan, math.nan])
    assert result.by_corruption()["haze"] == 0.7 and math.isnan(result.by_corruption()["rotation"])
    assert result.average() == 0.7
    again = RobustnessResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert math.isnan(again.cell("rotation", 1)) and again.cell("haze", 1) == 0.7
    assert again.to_json() == result.to_json()


def test_json_holds_all_and_nothing_else_passes() -> None:
    result = flat_result()
    value = result.to_json()
    assert (value["clean"], value["average"], value["drop"]) == pytest.approx((0.8, 0.5, 0.3))
    assert value["corruptions"]["haze"]["severities"]["2"]["values"] == {"mIoU": 0.6, "F1": 0.3}
    assert RobustnessResult.from_json(value) == result
    for wrong in ({}, {**value, "format": "other"}, {**value, "corruptions": {"haze": 1}}):
        with pytest.raises(DataError, match="no result of a robustness test"):
            RobustnessResult.from_json(wrong)


# Every task.


@pytest.mark.parametrize("name", HEADS)
def test_every_task_is_scored_on_moved_labels(name: str) -> None:
    labelled = scenes(4, pairs=name == "change")
    model = model_of(name, labelled)
    found = robustness_of_task(
        model, labelled, severities=[5], corruptions=["rotation", "gaussian_noise"], name="m"
    )
    assert found.task == name and found.clean.images == 4
    assert list(found.cells) == ["rotation", "gaussian_noise"]
    for row in found.cells.values():
        assert row[5].images == 4 and row[5].headline == found.clean.headline
        assert row[5].values.keys() == found.clean.values.keys()
    again = robustness_of_task(
        model, labelled, severities=[5], corruptions=["rotation", "gaussian_noise"], name="m"
    )
    assert again.to_json() == found.to_json()


@pytest.mark.parametrize("name", ["classification", "segmentation", "change"])
def test_severity_0_is_the_clean_score(name: str, tmp_path: Path) -> None:
    labelled = scenes(4, pairs=name == "change")
    model = model_of(name, labelled)
    task, settings = task_of(name), TestSettings()
    clean = task.evaluate(model, labelled, settings)
    for corruption in ("rotation", "cloud"):
        same = corrupted_set(labelled, CORRUPTIONS[corruption], 0, tmp_path / corruption)
        assert task.evaluate(model, same, settings).to_json() == clean.to_json()


def test_a_model_that_knows_the_mask_keeps_its_score_when_labels_move(tmp_path: Path) -> None:
    """With truth painted into the pixels and a model that reads it off, only the moved border is at stake."""
    labelled = scenes(3)
    model = model_of("segmentation", labelled)
    painted = []
    for item in labelled.items:
        assert item.semantic is not None
        mask = item.semantic()
        path = tmp_path / f"{item.id}.png"
        write_grey(path, mask * 20)
        painted.append(replace(item, image=str(path)))

    class Reader(type(model)):  # type: ignore[misc]
        def probabilities(self, images_BCHW, later_BCHW=None):
            number = (images_BCHW[:, 0].float() / 20).round().long().clamp(max=len(self.classes) - 1)
            return torch.nn.functional.one_hot(number, len(self.classes)).permute(0, 3, 1, 2).float()

    model.__class__ = Reader
    model.input_size = InputSize()
    truth = replace(labelled, items=painted)
    found = robustness_of_task(model, truth, severities=[1, 5], corruptions=["rotation", "translation"])
    assert found.value() == 1.0
    assert found.cell("translation", 5) == 1.0 and found.cell("rotation", 5) == 1.0
    assert found.cell("rotation", 1) > 0.6


def write_grey(path: Path, values: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(np.repeat(values[..., None], 3, -1).astype(np.uint8)).save(path)


# Resuming, comparing.


def test_known_cells_are_not_measured_again() -> None:
    labelled = scenes(2)
    asked: list[str] = []

    def score(part: LabelledSet) -> Scores:
        asked.append(part.name)
        return Scores("value", {"value": 0.5}, images=len(part))

    start = RobustnessResult("m", "toy", "toy", Scores("value", {"value": 1.0}), {}, 0, {"weights": "a"})
    seen: list[int] = []
    whole = measure(
        labelled,
        score,
        start,
        severities=[2, 1],
        corruptions=["haze", "scale"],
        on_cell=lambda result: seen.append(sum(len(row) for row in result.cells.values())),
    )
    assert seen == [0, 1, 2, 3, 4] and len(asked) == 4
    assert asked[0] == f"{labelled.name}, haze 1" and whole.severities == (1, 2)
    part = replace(whole, cells={"haze": {1: Scores("value", {"value": 0.25})}})
    asked.clear()
    again = measure(labelled, score, start, severities=[1, 2], corruptions=["haze", "scale"], known=part)
    assert len(asked) == 3 and again.cell("haze", 1) == 0.25
    asked.clear()
    other = replace(start, facts={"weights": "b"})
    measure(labelled, score, other, severities=[1], corruptions=["haze"], known=part)
    assert len(asked) == 1


def test_only_like_is_compared_with_like() -> None:
    comparable([flat_result("a"), flat_result("b")])
    other = flat_result("b")
    with pytest.raises(ConfigError, match=r"a and b differ in corruptions"):
        comparable([flat_result("a"), flat_result("b", haze=[0.1])])
    with pytest.raises(ConfigError, match=r"differ in image_names"):
        comparable([flat_result("a"), replace(other, facts={**other.facts, "image_names": "x"})])
    with pytest.raises(ConfigError, match="no results"):
        comparable([])


# Probes.


def probe_splits() -> dict[str, LabelledSet]:
    return {
        "train": scenes(10, split="train"),
        "val": scenes(5, split="val"),
        "test": scenes(5, split="test"),
    }


def test_backbones_are_probed_on_corrupted_images() -> None:
    splits, backbone = probe_splits(), tower()
    found = robustness_of_backbone(
        backbone, splits, severities=[5], corruptions=["salt_and_pepper"], seeds=(0,)
    )
    assert found.task == "probes" and found.clean.headline == "patches linear, pixel mIoU"
    data = probe_data(backbone, splits)
    fitted = fit_probes(data, seeds=(0,))
    assert found.value() == fitted.score(data.test)["patches linear", "pixel mIoU"].mean
    assert found.value("scene linear, accuracy") == fitted.score(data.test)["scene linear", "accuracy"].mean
    # Of a set that is touched once, the same features come out.
    assert torch.equal(extract(backbone, splits["test"]).pooled_ND, data.test.pooled_ND)


# Pages and the command.


def test_heat_maps_colour_by_loss() -> None:
    values = [[80.0, 60.0], [90.0, float("nan")]]
    chart = HeatMap(title="t", rows=["a", "b"], columns=["1", "2"], values=values, reference=80.0)
    assert chart.largest_loss == 20.0
    assert chart.colour(80.0) == (255, 247, 236) and chart.colour(60.0) == (127, 0, 0)
    assert chart.colour(90.0) == (209, 229, 240) and chart.colour(float("nan")) == (200, 204, 210)
    assert [chart.svg.count(colour) for colour in ("#fff7ec", "#7f0000", "#d1e5f0", "#c8ccd2")] == [1] * 4
    assert "<title>a, 2: 60.0 (−20.0)</title>" in chart.svg and "<title>b, 2: – (–)</title>" in chart.svg
    assert re.findall(r">([\d.–]+)</text>", chart.svg)[-4:] == ["80.0", "60.0", "90.0", "–"]
    with pytest.raises(ValueError, match="don't fit"):
        HeatMap(title="t", rows=["a"], columns=["1"], values=[[1.0, 2.0]], reference=1.0)


def test_the_page_tells_clean_average_and_drop(tmp_path: Path) -> None:
    one, two = flat_result("ours"), flat_result("theirs", clean=0.7)
    alone = write_robustness_page([one], tmp_path / "one.html").read_text()
    assert (
        ">80.0<" in alone
        and ">50.0<" in alone
        and "−30.0 against clean" in alone
        and "worst: rotation" in alone
    )
    both = write_robustness_page([one, two], tmp_path / "two.html", metric="F1").read_text()
    assert "ours" in both and "theirs" in both and ">25.0<" in both
    titles = [section.title for section in robustness_sections([one, two])]
    assert titles == ["Summary", "By corruption", "Heat map", "Settings"]
    write_robustness_table([one, two], tmp_path / "all.csv")
    rows = (tmp_path / "all.csv").read_text().splitlines()
    assert rows[0] == "model,task,data,corruption,severity,score,value"
    assert (
        "ours,segmentation,toy,haze,2,mIoU,0.6" in rows and "theirs,segmentation,toy,clean,0,mIoU,0.7" in rows
    )
    assert len(rows) == 1 + 2 * 2 * 5


def test_examples_show_the_labels_where_they_went() -> None:
    labelled = scenes(4)
    figures = example_figures(labelled, "objects", list(CORRUPTIONS.values()), 5, 0)
    assert [figure.caption for figure in figures] == [
        "clean",
        *(name.replace("_", " ") for name in CORRUPTIONS),
    ]
    drawn = np.asarray(figures[0].image)
    assert drawn.shape == (320, 320, 3) and (drawn == (255, 159, 28)).all(-1).any()
    plain = np.asarray(example_figures(labelled, None, [CORRUPTIONS["haze"]], 1, 0)[0].image)
    assert not (plain == (255, 159, 28)).all(-1).any()
    masked = np.asarray(example_figures(labelled, "semantic", [CORRUPTIONS["haze"]], 1, 0)[0].image)
    assert not np.array_equal(masked, plain)
    assert labelled_picture.__doc__


def test_list_options_take_several_values(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(
        evidence.TyperCommand,
        "parse_args",
        lambda self, ctx, args: seen.append(args) or [],  # type: ignore[func-returns-value]
    )
    command = evidence.ListCommand("x")
    for given in (
        ["a", "b", "--severities", "1", "3", "--out", "o", "--compare", "c"],
        ["--images", "1.png", "2.png", "3.png"],
        ["a", "--severities", "--out", "o"],
        ["a", "--severities=1", "b"],
    ):
        command.parse_args(None, given)
    assert seen == [
        ["a", "b", "--severities", "1", "--severities", "3", "--out", "o", "--compare", "c"],
        ["--images", "1.png", "--images", "2.png", "--images", "3.png"],
        ["a", "--severities", "--out", "o"],
        ["a", "--severities=1", "b"],
    ]


def test_the_command_writes_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled = scenes(3)
    model_of("segmentation", labelled).save_pretrained(tmp_path / "run")
    monkeypatch.setattr("vitp.tasks.data.open_labelled", lambda *args, **options: labelled)
    arguments = [
        "robustness",
        str(tmp_path / "run"),
        "labels",
        "--severities",
        "2",
        "4",
        "--corruptions",
        "haze",
    ]
    arguments += ["rotation", "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert first.exit_code == 0 and "drop" in first.output and "rotation 4" in first.output
    found = json.loads((tmp_path / "out" / "robustness.json").read_text())
    (run,) = found["runs"]
    assert set(run["corruptions"]) == {"haze", "rotation"} and run["facts"]["images"] == 3
    assert (tmp_path / "out" / "robustness.html").stat().st_size > 20_000
    # A second call has nothing left to measure; an altered test is refused rather than mixed in.
    monkeypatch.setattr("vitp.evaluation.robustness.corrupted_set", None)
    again = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert again.exit_code == 0
    with pytest.raises(ConfigError, match="holds another test"):
        CliRunner().invoke(app, [*arguments, "--seed", "1"], catch_exceptions=False)
    with pytest.raises(ConfigError, match='no score "AP"'):
        CliRunner().invoke(app, [*arguments, "--metric", "AP"], catch_exceptions=False)
