"""What the studies compare: as many runs, rates and draws for every arm, and test images only for the numbers shown."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import pytest

from vitp.core.errors import ConfigError
from vitp.data.compile import compile_labels
from vitp.data.formats.generated import read_scenes
from vitp.data.synthesis.build import QUESTION_TASKS
from vitp.recipes.paradigms import PARADIGMS
from vitp.scenes.export import write_scenes
from vitp.studies.cells import VERSIONS
from vitp.studies.cheap import CHEAP_QUESTIONS
from vitp.studies.cheap_study import CEILING_VITP, CHEAP_VITP, REHEARSED_VITP
from vitp.studies.definitions import STUDIES, make_study
from vitp.studies.grid import Study, StudyCell, cell_keys
from vitp.studies.main import StudyOrder
from vitp.studies.scales import SCALES, scale_of

START = "not continued"
KEYS = {
    "paradigms": "6445c6f9a9c44467",
    "vrl-ratio": "356b6ecc2dbd7050",
    "recipe": "4d32510cd0ad94b4",
    "steps": "a10803d18765d03e",
    "language-size": "ff90c638bdb98a06",
    "data-efficiency": "050673f26b5c3563",
    "robustness": "3cb140f0919bd5a9",
    "cost": "0a7529a2a7b6b2eb",
    "vrl-tokens": "7504eb5847737c97",
    "cheap-labels": "c19dbbe6941064ed",
}
"""Study → hash of the keys of all its cells at all scales, as they were when folders of results were made."""


def opened(name: str, *overrides: str) -> Study:
    """A study at micro scale on generated scenes; nothing is rendered or trained."""
    return make_study(name, scale_of("micro", overrides=overrides, study=name))


def finetunings(study: Study) -> dict[tuple[str, str, str], dict[tuple[int, int], StudyCell]]:
    """(group, arm, task) → (pretraining seed, draw) → cell, of those that are reported."""
    found: dict[tuple[str, str, str], dict[tuple[int, int], StudyCell]] = defaultdict(dict)
    for cell in study.cells:
        if cell.kind == "finetune" and "group" in cell.facts:
            facts = cell.facts
            key = (str(facts["group"]), str(facts["arm"]), str(facts["task"]))
            found[key][int(facts["seed"] or 0), int(facts["draw"] or 0)] = cell
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_folders_of_earlier_studies_are_found_again(name: str) -> None:
    """A key that changes makes a study do its work again; raise a number of `VERSIONS` where that is meant."""
    keys = {}
    for scale in SCALES:
        for quick in (False, True):
            words = ["start=starter", "inits=[start,scratch]"]
            sizes = scale_of(scale, quick=quick, overrides=words, study=name)
            keys[f"{scale} {quick}"] = cell_keys(make_study(name, sizes), VERSIONS)
    assert hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:16] == KEYS[name]


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "cost"])
def test_test_images_choose_nothing(name: str) -> None:
    """Cells that a choice needs look at validation images, reported ones at test images."""
    study = opened(name)
    choices = [cell for cell in study.cells if cell.kind == "choose"]
    assert choices
    for choice in choices:
        assert all(study[need].settings["development"] for need in choice.needs.values())
    reported = [cell for cell in study.cells if "group" in cell.facts and cell.kind != "robustness"]
    assert reported and not any(cell.settings["development"] for cell in reported)


def test_every_paradigm_is_tuned_as_much() -> None:
    tried: dict[str, dict[str, int]] = defaultdict(dict)
    for cell in opened("paradigms").cells:
        if cell.kind == "choose":
            tried[str(cell.facts["tunes"])][str(cell.facts["arm"])] = len(cell.needs)
    assert {len(set(by_arm.values())) for by_arm in tried.values()} == {1}
    assert {len(by_arm) for name, by_arm in tried.items() if name != "pretraining rate"} == {7}
    assert len(tried["pretraining rate"]) == 6


def test_every_paradigm_has_the_same_seeds_and_draws() -> None:
    found = finetunings(opened("paradigms"))
    crossed = {(seed, draw) for seed in range(3) for draw in range(3)}
    for (group, arm, _), cells in found.items():
        if group.startswith("ceiling"):
            continue
        # The start as it is has no pretraining seed.
        assert set(cells) == ({(0, draw) for draw in range(3)} if arm == START else crossed)
        assert all(cell.settings["seed"] == draw for (_, draw), cell in cells.items())
        assert {cell.settings["labels"] for cell in cells.values()} == {150}
    backbones = {
        cell.needs["backbone"]
        for cell in found["continued from the start, equal images", "MAE", "detection"].values()
    }
    assert len(backbones) == 3


@pytest.mark.parametrize("name", ["robustness", "data-efficiency", "steps", "vrl-ratio", "recipe"])
def test_one_draw_a_seed_is_a_draw_of_its_own(name: str) -> None:
    for cells in finetunings(opened(name)).values():
        assert [(seed, cell.settings["seed"]) for (seed, _), cell in sorted(cells.items())] == [
            (0, 0),
            (1, 1),
            (2, 2),
        ]


def test_with_several_draws_the_start_is_not_finetuned_again_for_each_seed() -> None:
    found = finetunings(opened("data-efficiency", "side_draws=3"))
    counts = {arm: len(cells) for (_, arm, _), cells in found.items()}
    assert counts == {"MAE": 9, "CLIP": 9, "ViTP": 9, START: 3}


def test_runs_of_equal_operations_follow_their_vitp_run() -> None:
    study = opened("paradigms")
    runs = {
        (str(cell.facts["arm"]), int(cell.settings["seed"])): cell
        for cell in study.cells
        if cell.kind == "pretrain" and cell.facts["budget"] == "operations"
    }
    assert set(runs) == {
        (arm, seed)
        for arm in ("supervised", "dense supervised", "MAE", "SimCLR", "CLIP")
        for seed in range(3)
    }
    for (_, seed), cell in runs.items():
        followed = study[cell.needs["equal"]]
        assert followed.settings["paradigm"] == "vitp" and followed.settings["seed"] == seed


def test_one_task_alone() -> None:
    study = opened("paradigms", "downstream=[segmentation]", "draws=8", "budgets=[images]")
    found = finetunings(study)
    assert {task for _, _, task in found} == {"segmentation"}
    assert len(found["continued from the start, equal images", "ViTP", "segmentation"]) == 24
    with pytest.raises(ConfigError, match="downstream"):
        opened("paradigms", "downstream=[segmentaton]")


def test_the_start_is_probed_once() -> None:
    for name in ("paradigms", "steps", "vrl-ratio"):
        probes = [
            cell.facts["seed"]
            for cell in opened(name, "budgets=[images]").cells
            if cell.kind == "probe" and cell.facts.get("arm") == START
        ]
        assert probes == [0], name


def test_a_variant_has_a_folder_of_its_own() -> None:
    order = StudyOrder("paradigms", overrides=("seeds=5",), label="five-seeds")
    assert order.folder == Path("studies/paradigms-micro-five-seeds")
    assert order.command.endswith("--set seeds=5 --label five-seeds")
    with pytest.raises(ConfigError, match="end the name of a folder"):
        StudyOrder("paradigms", label="../elsewhere")


def test_the_study_of_cheap_labels() -> None:
    """Who knows where things are is the ceiling alone, and finetunings; detectors have one rate for all arms."""
    study = opened("cheap-labels", "downstream=[segmentation, detection]")
    arms = {"MAE", "DINO", "supervised", "CLIP", CHEAP_VITP, CEILING_VITP, START}
    runs = [cell for cell in study.cells if cell.name.startswith("pretrain/")]
    assert {str(cell.facts["arm"]) for cell in runs} == arms
    learned = {
        str(cell.facts["arm"]): {need for role, need in cell.needs.items() if role.startswith("data")}
        for cell in runs
    }
    cheap = {arm for arm, data in learned.items() if data == {"data/port/cheap"}}
    assert cheap == {"supervised", "CLIP", CHEAP_VITP}
    assert {
        PARADIGMS[study[f"pretrain/{arm}/start/0"].settings["paradigm"]].labels for arm in ("MAE", "DINO")
    } == {"none"}
    asked = study["data/port/cheap"].settings["synthesis"]
    assert asked["tasks"] == CHEAP_QUESTIONS and not asked["grid_always"]
    assert not CHEAP_QUESTIONS.keys() & {name for name in QUESTION_TASKS if "box" in name or "cell" in name}
    found = finetunings(study)
    groups = {group for group, _, _ in found}
    assert groups == {
        *(f"{share} % of the expensive labels, equal images" for share in (5, 10, 25, 100)),
        *(f"{share} % of the expensive labels, equal operations" for share in (5, 10)),
    }
    for (group, arm, task), cells in found.items():
        few = group.startswith(("5 ", "10 "))
        seeds = range(1) if arm == START and few else range(3)
        assert set(cells) == {(s, d) for s in seeds for d in (range(3) if few else [0])}, (group, arm)
        assert ("lr" in cells[0, 0].needs) == (task == "segmentation")
        assert cells[0, 0].settings["labels"] == (None if "100" in group else int(group.split()[0]) / 100)
    rivals = {(claim.theirs, claim.group) for claim in study.claims}
    assert rivals == {(arm, group) for group in groups for arm in arms - {CHEAP_VITP, CEILING_VITP}}
    with pytest.raises(ConfigError, match="no expensive labels"):
        opened("cheap-labels", "downstream=[instance]")


def test_an_arm_that_rehearses_the_scenes_of_the_start() -> None:
    """It sees as many images; 30 % of them are general scenes with all questions, and no other arm's cell moves."""
    words = "downstream=[segmentation]"
    plain, study = (opened("cheap-labels", words, *more) for more in ((), ("rehearsal=0.3",)))
    before, after = (cell_keys(one, VERSIONS) for one in (plain, study))
    assert before.items() <= after.items()
    new = {
        str(study[name].facts["arm"]) for name in after.keys() - before.keys() if name.startswith("pretrain/")
    }
    assert new == {REHEARSED_VITP}
    runs = {
        arm: next(c for c in study.cells if c.name.startswith("pretrain/") and c.facts["arm"] == arm)
        for arm in (CHEAP_VITP, REHEARSED_VITP)
    }
    data = [runs[REHEARSED_VITP].needs[role] for role in ("data00", "data01")]
    assert data == ["data/port/cheap", "data/general"]
    rates = runs[REHEARSED_VITP].settings["rates"]
    assert rates[1] / sum(rates) == pytest.approx(0.3)
    assert runs[REHEARSED_VITP].settings["images"] == runs[CHEAP_VITP].settings["images"]
    claimed = {(claim.ours, claim.theirs) for claim in study.claims}
    assert {theirs for ours, theirs in claimed if ours == REHEARSED_VITP} == {
        theirs for ours, theirs in claimed if ours == CHEAP_VITP
    }


def test_large_images_are_cut_unless_a_study_sees_them_whole(tmp_path: Path) -> None:
    """The starter sees 96 px: images of 144 px and more are cut, or of as many times its side as the scale says."""
    scenes = read_scenes("port", count=12, size=160, val=0.25, test=0.25)
    write_scenes(scenes, tmp_path / "set", layout="coco")
    compile_labels(tmp_path / "set", "coco", tmp_path / "compiled")
    for words, crop, said in (
        ((), 96, "cut into crops of 96 px"),
        (("whole_up_to=1.7",), None, "of about 160 px are seen whole, at 96 px"),
    ):
        scale = scale_of("micro", overrides=["downstream=[detection]", *words], study="cheap-labels")
        study = make_study("cheap-labels", scale, tmp_path / "compiled")
        crops = {cell.settings.get("crop") for cell in study.cells if cell.kind == "data"}
        assert crops - {None} == {crop} - {None}
        assert any(said in line for line in study.said), study.said


def test_reducers_are_compared_at_equal_tokens() -> None:
    """Runs of `vrl-ratio` are shared; each reducer stands against as many tokens dropped, and models are corrupted."""
    study = opened("vrl-tokens")
    keys, others = (cell_keys(one, VERSIONS) for one in (study, opened("vrl-ratio")))
    shared = {
        key for name, key in others.items() if name.startswith("pretrain/") and "not-continued" not in name
    }
    assert shared < {key for name, key in keys.items() if name.startswith("pretrain/")}
    changes = {
        str(cell.facts["arm"]): cell.settings["changes"]
        for cell in study.cells
        if cell.name.startswith("pretrain/")
    }
    assert changes["50 % merged away"] == ["vrl.ratio=0.5", "vrl.how=merge"] and len(changes) == 12
    for claim in study.claims:
        pair = [changes[name][0] for name in (claim.ours, claim.theirs)]
        assert pair[0] == pair[1] or claim.theirs == "0 % dropped"
    assert sum(cell.kind == "robustness" for cell in study.cells) == 3 * len(changes)
