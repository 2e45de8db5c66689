"""Questions that teach: small changes, all captions, and no task with one answer for the whole set."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import save_image
from tests.synthesis_toys import constantly, only, port, rectangle, turns_of
from vitp.core.errors import DataError
from vitp.data.compile import compile_labels
from vitp.data.synthesis import phrases
from vitp.data.synthesis.answers import parse_boxes, parse_cells
from vitp.data.synthesis.build import SynthesisConfig
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.constant import ConstantTask, constant_tasks
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.scenes import scene_set

__all__ = ["port"]  # a fixture


def tiny_change(index: int, side: int = 2) -> LabelledImage:
    """A pair of which a few pixels changed, far below half a percent."""
    mask = np.zeros((96, 96), bool)
    x, y = np.random.default_rng(index).integers(4, 90, 2)
    mask[y : y + side, x : x + side] = True
    return LabelledImage(
        f"pair-{index}",
        f"{index}.png",
        96,
        96,
        second_image=f"later/{index}.png",
        change=partial(constantly, mask),
    )


def test_pairs_that_changed_a_little_get_the_questions_that_their_masks_support() -> None:
    """Share, boxes, cells, and a part that changed beside one that did not; and never "0%"."""
    labelled = LabelledSet("pairs", [tiny_change(i) for i in range(60)])
    asked: dict[str, Counter[str]] = defaultdict(Counter)
    for item, task, _, answer in turns_of(labelled, SynthesisConfig()):
        asked[item.id][task] += 1
        if task == "change_share":
            assert answer == "less than 1%"
        elif task == "change_boxes":
            assert len(parse_boxes(answer)) == 1
        elif task == "change_cells":
            ((row, column),) = parse_cells(answer)
            mask = item.change()
            assert mask[(row - 1) * 16 : row * 16, (column - 1) * 16 : column * 16].any()
    assert len(asked) == 60
    for tasks in asked.values():
        assert tasks.total() >= 5 and tasks["change_part"] == 2
        assert tasks["change_share"] == tasks["change_boxes"] == tasks["change_cells"] == 1


def test_more_changes_than_boxes_are_asked_for_by_number() -> None:
    mask = np.zeros((96, 96), bool)
    for number in range(12):
        mask[4 + 7 * number : 8 + 7 * number, 8 + 5 * number : 12 + 5 * number] = True
    item = replace(tiny_change(0), change=partial(constantly, mask))
    ((_, _, question, answer),) = turns_of(LabelledSet("p", [item]), only("change_boxes", max_boxes=5))
    assert "5" in question and len(parse_boxes(answer)) == 5
    assert max(box[1] for _, box in parse_boxes(answer)) < 1000 * 40 / 96


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("number", [1, 5, 9])
def test_all_captions_are_used_each_with_a_wording_of_its_own(change: bool, number: int) -> None:
    captions = tuple(f"Caption number {n}." for n in range(number))
    item = LabelledImage("a", "a.png", 96, 96, captions=() if change else captions)
    if change:
        item = replace(item, second_image="b.png", change_captions=captions)
    found = list(turns_of(LabelledSet("set", [item]), SynthesisConfig(questions_per_image=12)))
    assert sorted(answer for *_, answer in found) == sorted(captions)
    wordings = phrases.CHANGE_CAPTION if change else phrases.CAPTION
    assert len({question for _, _, question, _ in found}) == min(number, len(wordings))


# Tasks that can't teach


def test_tasks_with_one_answer_for_nearly_all_images_are_found(port: LabelledSet) -> None:
    def constant(
        items: list[LabelledImage], config: SynthesisConfig | None = None, **classes: tuple[str, ...]
    ) -> dict[str, ConstantTask]:
        labelled = LabelledSet("set", items, **classes)
        return constant_tasks(items, SetClasses.from_set(labelled), config or SynthesisConfig())

    scenes = [LabelledImage(str(i), f"{i}.png", 9, 9, scene="beach") for i in range(20)]
    found = constant(scenes, scene_classes=("beach", "port"))
    assert set(found) == {"scene", "scene_options"}
    assert (found["scene"].answer, found["scene"].alike, found["scene"].of) == ("beach", 20, 20)
    assert set(constant(scenes, SynthesisConfig(tasks={"scene": 2}), scene_classes=("beach", "port"))) == {
        "scene_options"
    }
    assert constant(scenes[:11], scene_classes=("beach", "port")) == {}, "too few to tell"
    rare = [*scenes * 20, replace(scenes[0], id="rare", scene="port")]
    assert constant(rare, scene_classes=("beach", "port")) == {}, "a rare class is what is looked for"

    small = [
        LabelledImage(
            str(i), f"{i}.png", 900, 900, objects=(rectangle("car", 40 + 40 * i, 800 - 39 * i, 9, 9),)
        )
        for i in range(20)
    ]
    alike = {name: task.answer for name, task in constant(small, object_classes=("car",)).items()}
    assert (alike["size"], alike["region_class"]) == ("tiny", "car")
    assert not alike.keys() & {"box", "boxes", "position", "count", "presence"}
    changes = constant([tiny_change(i) for i in range(20)])
    assert changes["change_share"].answer == "less than 1%" and "change_boxes" not in changes
    assert (
        constant(
            list(port.items),
            **{k: getattr(port, k) for k in ("object_classes", "scene_classes", "semantic_classes")},
        )
        == {}
    )


@pytest.mark.parametrize("domain", ["general", "port"])
def test_no_task_of_generated_scenes_is_constant(domain: str) -> None:
    labelled = scene_set(domain, seed=0, count=40, size=96, split="train")
    found = constant_tasks(labelled.items, SetClasses.from_set(labelled, sample=40), SynthesisConfig())
    assert found == {}


def test_classes_that_are_spoken_alike_are_refused(tmp_path: Path) -> None:
    for name in ("StorageTank", "storage_tank", "Harbour"):
        for number in range(3):
            save_image(tmp_path / "set" / name / f"{number}.png", number)
    with pytest.raises(DataError, match=r'"StorageTank" and "storage_tank" are spoken alike'):
        compile_labels(tmp_path / "set", "folders", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_long_answers_are_cut_where_nothing_is_asked(tmp_path: Path) -> None:
    for number in range(24):
        save_image(tmp_path / "set" / " ".join(["beach"] * 40) / f"{number}.png", number)
    heard: list[tuple[str, tuple[str, ...]]] = []
    with pytest.raises(DataError) as caught:
        compile_labels(
            tmp_path / "set",
            "folders",
            tmp_path / "out",
            synthesis=SynthesisConfig(tasks={"caption": 0}),
            told=lambda *said: heard.append(said),
        )
    # How the set was understood is known though it is refused.
    ((fmt, lines),) = heard
    assert fmt == "folders" and any(line.startswith("splits: ") for line in lines)
    assert 'beach …" for nearly all images' in str(caught.value) and len(str(caught.value)) < 500
    assert "(--crop 512)" in str(caught.value)


def test_what_is_not_asked_is_told(tmp_path: Path) -> None:
    for number in range(24):
        save_image(tmp_path / "set" / "beach" / f"{number}.png", number)
    summary = compile_labels(tmp_path / "set", "folders", tmp_path / "out", val=0, test=0)
    assert summary.constant == {"scene": ConstantTask("beach", 24, 24)}
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert told["constant_tasks"] == {"scene": {"answer": "beach", "alike": 24, "of": 24}}
    assert told["splits"]["train"]["tasks"] == {"caption": 24}
    with pytest.raises(DataError, match=r'scene is "beach" for nearly all images; .*--task scene=1'):
        compile_labels(
            tmp_path / "set", "folders", tmp_path / "none", synthesis=SynthesisConfig(tasks={"caption": 0})
        )
    asked = compile_labels(
        tmp_path / "set", "folders", tmp_path / "asked", synthesis=SynthesisConfig(tasks={"scene": 1})
    )
    assert asked.constant == {} and asked.splits["train"].tasks["scene"] > 0
