"""`vitp study` through the command line: killed and resumed, with a broken cell, spread over processes."""

from __future__ import annotations

import csv
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tiny_chat, tiny_vlm_config
from tests.e2e.conftest import finish, fork, refused, start, vitp
from vitp.checkpoints.writing import save_vlm
from vitp.models.vlm import VisionLanguageModel
from vitp.studies.cells import VERSIONS
from vitp.studies.cheap_study import CEILING_VITP, CHEAP_VITP
from vitp.studies.definitions import make_study
from vitp.studies.grid import Store, Study, cell_keys
from vitp.studies.rows import ROWS_FILE
from vitp.studies.scales import scale_of

TASKS = ("classification", "presence", "segmentation", "detection")
DETECTOR = (
    "{width: 16, proposals: {anchor_scales: [2.0], keep_before: [30, 20], keep: [20, 10]}, "
    "box: {kind: faster, hidden: 16, samples: 16, detections: 10}}"
)


@pytest.fixture(scope="module")
def tiny_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision-language model of some thousand parameters to continue from."""
    folder = tmp_path_factory.mktemp("start") / "vlm"
    chat = tiny_chat()
    save_vlm(folder, VisionLanguageModel(tiny_vlm_config(), vocabulary=len(chat)), chat)
    return folder


def overrides(start_from: Path) -> list[str]:
    """Sizes at which a cell takes a second or two."""
    found = [
        f"start={start_from}",
        "inits=[start]",
        "budgets=[images, flops]",
        "paradigms=[supervised, dense, mae, simclr, dino, clip, vitp]",
        "seeds=1",
        "draws=1",
        "images=64",
        "tuning_images=32",
        "lrs=[1e-3, 3e-3]",
        "workers=0",
        "threads=1",
        "scenes.count=40",
        "scenes.size=32",
        "scenes.val=0.2",
        "scenes.test=0.2",
        "probe_labels=10",
        "probe_draws=1",
        "probe_images=20",
        f"tasks.detection.head={DETECTOR}",
        "tasks.detection.neck={kind: simple, options: {channels: 16}}",
        "tasks.segmentation.head={kind: fpn, width: 16}",
        "tasks.segmentation.neck={kind: simple, options: {channels: 16}}",
    ]
    for task in TASKS:
        found += [f"tasks.{task}.{name}" for name in ("steps=2", "full_steps=2", "labels=8", "lrs=[1e-3]")]
    return [word for override in found for word in ("--set", override)]


def opened(name: str, start_from: Path, out: Path) -> tuple[Study, Store]:
    """The study that the command runs, and where its cells lie."""
    scale = scale_of("micro", overrides=[w for w in overrides(start_from) if w != "--set"])
    study = make_study(name, scale)
    return study, Store(out / "cells", cell_keys(study, VERSIONS))


def rows(folder: Path) -> list[dict[str, Any]]:
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "evaluation_seconds"}


@pytest.mark.slow
def test_a_study_is_killed_resumed_and_complete(tiny_start: Path, tmp_path: Path) -> None:
    command = ("study", "paradigms", "--out", tmp_path, *overrides(tiny_start))
    study, store = opened("paradigms", tiny_start, tmp_path)
    process = fork(*command)
    until = time.monotonic() + 400
    while time.monotonic() < until and process.poll() is None:
        if sum(store.result(cell) is not None for cell in study.cells if cell.kind == "pretrain") >= 2:
            break
        time.sleep(0.2)
    process.kill()
    process.communicate()
    done = {cell.name: store.result(cell) for cell in study.cells}
    before = {name: result["when"] for name, result in done.items() if result is not None}
    assert 2 <= len(before) < len(study.cells)

    result = finish(fork(*command), timeout=1500)
    assert result.code == 0, result.out + result.err
    assert "about " in result.out and "cells are there already" in result.out
    kept = {name: store.result(study[name]) for name in before}
    assert {name: found["when"] for name, found in kept.items() if found is not None} == before

    table = rows(tmp_path / "paradigms-micro")
    assert {row["status"] for row in table} == {"done"}
    arms = {"ViTP", "MAE", "CLIP", "SimCLR", "DINO", "supervised", "dense supervised", "not continued"}
    for group in ("continued from the start, equal images", "continued from the start, equal operations"):
        mine = [row for row in table if row["group"] == group]
        assert {row["arm"] for row in mine} == arms
        tested = {row["task"] for row in mine if row["arm"] == "MAE"}
        assert {"classification", "segmentation", "detection", "frozen: patches linear"} <= tested
    costs = {(row["group"], row["arm"]): float(row["flops"]) for row in table if row["flops"]}
    vitp_flops = costs["continued from the start, equal operations", "ViTP"]
    for arm in arms - {"ViTP", "not continued"}:
        # One step more or less is the best that whole batches allow.
        assert costs["continued from the start, equal operations", arm] == pytest.approx(vitp_flops, rel=0.35)
    chosen = [store.result(cell) for cell in study.cells if cell.kind == "choose"]
    assert chosen and all(found is not None and len(found["values"]["tried"]) == 2 for found in chosen)
    page = (tmp_path / "paradigms-micro" / "index.html").read_text(encoding="utf-8")
    for words in ("Label information", "Tuning", "equal operations", "ceiling"):
        assert words.lower() in page.lower()
    assert list((tmp_path / "paradigms-micro" / "plots").glob("*.png"))


@pytest.mark.slow
def test_a_study_of_own_images(tiny_start: Path, scenes: Path, tmp_path: Path) -> None:
    """Labels of a user's own, compiled with a validation and a test share; the tests are those that they allow."""
    compiled = tmp_path / "compiled"
    shares = ("--option", "val=0.2", "--option", "test=0.2")
    result = finish(fork("data", "compile", scenes, "--out", compiled, *shares), timeout=300)
    assert result.code == 0, result.out + result.err
    fewer = [word for change in ("paradigms=[mae, vitp]", "draws=2") for word in ("--set", change)]
    command = (
        "study",
        "paradigms",
        "--quick",
        "--data",
        compiled,
        "--out",
        tmp_path / "out",
        "--label",
        "mine",
    )
    result = finish(fork(*command, *overrides(tiny_start), *fewer), timeout=1500)
    assert result.code == 0, result.out + result.err
    assert "proves nothing" in " ".join(result.out.split())
    table = rows(tmp_path / "out" / "paradigms-micro-quick-compiled-mine")
    assert {row["status"] for row in table} == {"done"}
    assert {row["arm"] for row in table} == {"MAE", "ViTP", "not continued"}
    assert {row["set"] for row in table} == {scenes.name}
    tasks = {row["task"] for row in table}
    assert tasks == {"segmentation", "frozen: patches linear"}
    tuned = [row for row in table if row["task"] == "segmentation" and row["metric"] == "miou"]
    assert {row["draw"] for row in tuned if row["group"] != "ceiling, all labels"} == {"0", "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "size", "tasks"),
    [("coco", 64, {"instance"}), ("masks", 32, {"segmentation"})],
)
def test_cheap_labels_of_own_images_and_another_machine(
    layout: str, size: int, tasks: set[str], tiny_start: Path, tmp_path: Path
) -> None:
    """Two kinds of sets without a knob: large images with outlines are cut, masks alone are the objects.

    Rows carried to an empty folder: what lacks is done, with the backbone that it needs, and the table is the same.
    """
    source, compiled = tmp_path / "source", tmp_path / "compiled"
    scenes = ("data", "scenes", "port", "--layout", layout, "--count", 24, "--size", size, "--out", source)
    shares = ("--option", "val=0.25", "--option", "test=0.25")
    for words in (scenes, ("data", "compile", source, "--out", compiled, *shares)):
        result = finish(fork(*words), timeout=300)
        assert result.code == 0, result.out + result.err
    fewer = ["paradigms=[supervised, vitp]", "budgets=[images]", "shares=[0.5]", "images=16", "lrs=[1e-3]"]
    fewer.append("downstream=[instance, segmentation]")  # of detection, too, there is a test above
    fewer += [f"tasks.{task}.{name}" for task in ("oriented", "instance") for name in ("steps=1", "labels=8")]
    mask = "mask: {pool_size: 7, layers: 1, width: 8}"
    fewer += [
        f"tasks.instance.head={DETECTOR[:-1]}, {mask}}}",
        "tasks.instance.neck={kind: simple, options: {channels: 16}}",
    ]
    changes = [*overrides(tiny_start), *(word for change in fewer for word in ("--set", change))]
    order = ("study", "cheap-labels", "--data", compiled, *changes)
    result = finish(fork(*order, "--out", tmp_path / "a"), timeout=900)
    assert result.code == 0, result.out + result.err
    assert ("are cut into crops of 32 px" in " ".join(result.out.split())) == (size > 32)
    first = tmp_path / "a" / "cheap-labels-micro-compiled"
    table = rows(first)
    assert {row["status"] for row in table} == {"done"}
    assert {row["arm"] for row in table} == {"supervised", CHEAP_VITP, CEILING_VITP, "not continued"}
    assert {row["task"] for row in table if not row["task"].startswith("frozen")} == tasks
    if layout == "masks":
        return

    lines = (first / ROWS_FILE).read_text(encoding="utf-8").splitlines()
    carried = tmp_path / "carried.jsonl"
    lost = [line for line in lines if "finetune" in line and "supervised" in line and '"instance"' in line]
    carried.write_text("\n".join(line for line in lines if line not in lost))
    assert len(lost) == 1
    result = finish(fork(*order, "--out", tmp_path / "b", "--rows", carried), timeout=900)
    assert result.code == 0, result.out + result.err
    assert f"{len(lines) - 1} rows of finished cells" in " ".join(result.out.split())
    assert "done again, as open cells need their files: " in " ".join(result.out.split())
    made = {path.name.rpartition("-")[0] for path in (tmp_path / "b" / "cells").iterdir()} - {"timing"}
    assert made == {"data", "pretrain", "finetune"}
    assert len(list((tmp_path / "b" / "cells").glob("pretrain-*"))) == 1
    second = tmp_path / "b" / "cheap-labels-micro-compiled"
    # The lost finetuning took another time; all else is the same.
    assert [without_time(row) for row in rows(second)] == [without_time(row) for row in table]
    assert len(carried.read_text(encoding="utf-8").splitlines()) == len(lines)


@pytest.mark.slow
def test_a_broken_cell_is_reported_and_the_others_finish(tiny_start: Path, tmp_path: Path) -> None:
    study, store = opened("cost", tiny_start, tmp_path)
    broken = store.folder(study["pretrain/MAE/start/0"])
    broken.mkdir(parents=True)
    (broken / "run").write_text("something that is no run")
    command = ("study", "cost", "--out", tmp_path, *overrides(tiny_start))
    result = finish(fork(*command), timeout=1200)
    assert result.code == 1, result.out + result.err
    table = rows(tmp_path / "cost-micro")
    assert {row["arm"] for row in table if row["status"] == "failed"} == {"MAE"}
    assert {row["arm"] for row in table if row["status"] == "done"} >= {"ViTP", "CLIP", "supervised"}
    assert all(row["message"] for row in table if row["status"] == "failed")
    page = (tmp_path / "cost-micro" / "index.html").read_text(encoding="utf-8")
    assert "Failed cells" in page and "pretrain/MAE/start/0" in page
    (broken / "run").unlink()
    again = finish(fork(*command), timeout=600)
    assert again.code == 0, again.out + again.err
    assert {row["status"] for row in rows(tmp_path / "cost-micro")} == {"done"}


@pytest.mark.slow
def test_an_interrupt_stops_the_work_and_writes_what_is_there(tiny_start: Path, tmp_path: Path) -> None:
    study, store = opened("vrl-ratio", tiny_start, tmp_path)
    process = start("study", "vrl-ratio", "--out", tmp_path, *overrides(tiny_start))
    until = time.monotonic() + 300
    while time.monotonic() < until and not any(store.result(c) for c in study.cells if c.kind == "pretrain"):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    result = finish(process, timeout=200)
    assert result.code == 130, result.out + result.err
    assert (tmp_path / "vrl-ratio-micro" / "index.html").is_file()
    assert not list((tmp_path / "cells").glob("*/lock.json"))


def test_wrong_words_are_answered_with_the_right_ones(tmp_path: Path) -> None:
    assert 'did you mean "paradigms"' in refused("study", "paradigm", "--out", tmp_path)
    assert 'did you mean "small"' in refused("study", "cost", "--scale", "smal", "--out", tmp_path)
    assert 'did you mean "seeds"' in refused("study", "cost", "--set", "seed=2", "--out", tmp_path)
    assert '"not continued"' in refused("study", "cheap-labels", "--arm", "x", "--plan", "--out", tmp_path)
    assert "vitp data compile" in refused("study", "cost", "--data", tmp_path, "--out", tmp_path / "o")
    plan = vitp("study", "paradigms", "--scale", "paper", "--plan", "--out", tmp_path / "p")
    assert plan.code == 0 and "1,024,000 images a run" in plan.out
