"""The fingerprint of a source follows its labels and images, wherever they are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.batch_cases import (
    OBJECTIVES,
    TASKS,
    objective_batches,
    pretraining_folder,
    save,
    task_batches_of,
    task_set,
)
from tests.objective_toys import labelled_folder
from vitp.data.batches import SampledBatches
from vitp.data.fingerprint import MOST_FILES, fingerprint, images_digest, labels_digest
from vitp.data.formats import read_labels
from vitp.data.formats.pixel_masks import MaskFile
from vitp.data.readers.records import JsonlRecords
from vitp.objectives.base import is_of_source
from vitp.objectives.dense import RenamedMask
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.scenes import scene_set


@pytest.fixture
def labelled(tmp_path: Path) -> LabelledSet:
    return task_set(tmp_path)


def blank(path: str) -> None:
    """Make every pixel of an image file 0, its size as it was."""
    save(Path(path), np.zeros(np.asarray(Image.open(path)).shape))


def edit_labels(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the labels of the third training image of a compiled folder."""
    edit_rows(folder / "labels" / "train.jsonl", change)


def edit_rows(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    change(rows[2])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def other_answer(row: dict[str, Any]) -> None:
    turns = row["conversations"]
    turns[1]["value"] = "field" if turns[1]["value"] != "field" else "harbour"


IN_FILES: dict[str, Callable[[Path], None]] = {
    "a blanked mask": lambda folder: blank(str(folder / "2_mask.png")),
    "a moved box": lambda folder: edit_labels(
        folder, lambda row: row["objects"][0].update(box=[1.0, 1.0, 9.0, 9.0])
    ),
    "another class": lambda folder: edit_labels(
        folder, lambda row: row["objects"][0].update(category="plane")
    ),
    "another scene": lambda folder: edit_labels(folder, lambda row: row.update(scene="field")),
    "another caption": lambda folder: edit_labels(folder, lambda row: row.update(captions=["a field"])),
    "another image": lambda folder: blank(str(folder / "2.png")),
    "another answer": lambda folder: edit_rows(folder / "train.jsonl", other_answer),
}
"""What may change in the files of a compiled folder."""

READS = {
    # ViTP learns from the records alone, and `clip` with `texts: records` from both.
    "vitp": {"another image", "another answer"},
    "records": set(IN_FILES),
}


@pytest.mark.parametrize("objective", [*OBJECTIVES, "records"])
def test_every_objective_notices_what_its_batches_are_made_of(tmp_path: Path, objective: str) -> None:
    sections = {"image_text": {"texts": "records"}} if objective == "records" else {}
    name = "clip" if objective == "records" else objective

    def now() -> SampledBatches[Any]:
        return objective_batches(name, folder, **sections)

    for change in sorted(READS.get(objective, IN_FILES.keys() - {"another answer"})):
        folder = pretraining_folder(tmp_path / change)
        before, again = now(), now()
        assert before.fingerprint() == again.fingerprint()
        saved = (before.fingerprint(), *before.former_fingerprints())
        IN_FILES[change](folder)
        after = now()
        assert after.fingerprint() != saved[0], change
        assert not is_of_source(saved[0], after, after.fingerprint()), change
        if change == "a blanked mask":
            # A run of a version that didn't look at masks still goes on.
            assert is_of_source(saved[2], after, after.fingerprint())
            assert not is_of_source(saved[1], after, after.fingerprint())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_runs_of_earlier_versions_go_on(tmp_path: Path, objective: str) -> None:
    source = objective_batches(objective, pretraining_folder(tmp_path))
    own, (second, first) = source.fingerprint(), source.former_fingerprints()
    assert own.startswith("3:" if objective in ("vitp", "clip", "siglip", "regionclip") else "2:")
    assert second.startswith("2:") and len(first) == 64
    assert all(is_of_source(saved, source, own) for saved in (own, second, first))
    assert not any(is_of_source(saved, source, own) for saved in ("3:" + first, "2:" + first, own[2:]))


def test_vitp_notices_what_is_dropped_and_how_images_are_read(tmp_path: Path) -> None:
    folder = pretraining_folder(tmp_path)
    data = {"mixture": [str(folder)], "global_batch": 4}
    found = {
        objective_batches("vitp", folder, **sections).fingerprint()
        for sections in (
            {},
            {"vrl": {"ratio": 0.5}},
            {"vrl": {"probability": 0.5}},
            {"data": {**data, "input": {"draft": False}}},
            {"data": {**data, "sequence": {"max_turns": 1}}},
        )
    }
    assert len(found) == 5
    # Where tiles are kept, and who computes which of them, decides nothing.
    same = objective_batches("vitp", folder, data={**data, "input": {"cache_gb": 0.1}, "balance": True})
    assert same.fingerprint() == objective_batches("vitp", folder, micro_batches=2).fingerprint()
    assert same.fingerprint() in found


HEADS = [*((task, {}) for task in TASKS), ("classification", {"multi_label": True})]


@pytest.mark.parametrize(("task", "head"), HEADS)
def test_every_task_notices_another_mask_image_or_label(
    labelled: LabelledSet, tmp_path: Path, task: str, head: dict[str, Any]
) -> None:
    before = task_batches_of(task, labelled, **head)
    first, former = before.fingerprint(), before.former_fingerprints()[1]
    assert task_batches_of(task, labelled, **head).fingerprint() == first
    for name, change in CHANGES.items():
        items = list(labelled.items)
        items[3] = change(items[3])
        changed = task_batches_of(task, replace(labelled, items=items), **head)
        assert changed.fingerprint() != first, name
    for file in ("masks/2.png", "change/2.png", "images/2.png"):
        blank(str(tmp_path / file))
        after = task_batches_of(task, labelled, **head)
        assert after.fingerprint() != first, file
        assert not is_of_source(first, after, after.fingerprint())
        assert is_of_source(former, after, after.fingerprint())
        first = after.fingerprint()


CHANGES: dict[str, Callable[[LabelledImage], LabelledImage]] = {
    "box": lambda item: replace(item, objects=(replace(item.objects[0], box=(2.0, 2.0, 9.0, 8.0)),)),  # type: ignore[index]
    "class": lambda item: replace(item, objects=(replace(item.objects[0], category="car"),)),  # type: ignore[index]
    "outline": lambda item: replace(item, objects=(replace(item.objects[0], polygons=()),)),  # type: ignore[index]
    "difficult": lambda item: replace(item, objects=(replace(item.objects[0], difficult=True),)),  # type: ignore[index]
    "nothing there": lambda item: replace(item, objects=()),
    "not labelled": lambda item: replace(item, objects=None),
    "ignored": lambda item: replace(item, ignored=item.objects or ()),
    "scene": lambda item: replace(item, scene="field"),
    "caption": lambda item: replace(item, captions=("a port",)),
    "values": lambda item: replace(item, semantic=replace(item.semantic, values=((0, 1), (1, 0)))),  # type: ignore[type-var]
    "window": lambda item: replace(item, semantic=replace(item.semantic, window=(0, 0, 8, 8))),  # type: ignore[type-var]
    "array": lambda item: replace(item, semantic=lambda: np.ones((16, 16), np.uint8)),
    "renamed": lambda item: replace(item, semantic=RenamedMask(item.semantic, (1, 0))),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_label_counts(labelled: LabelledSet, name: str) -> None:
    items = list(labelled.items)
    items[3] = CHANGES[name](items[3])
    assert labels_digest(replace(labelled, items=items)) != labels_digest(labelled)


def test_a_set_that_moved_is_the_same_set(labelled: LabelledSet, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "images", tmp_path / "other" / "images")
    shutil.copytree(tmp_path / "masks", tmp_path / "other" / "masks")

    def moved(item: LabelledImage) -> LabelledImage:
        mask = item.semantic
        assert isinstance(mask, MaskFile)
        other = tmp_path / "other"
        image = str(other / "images" / Path(item.image).name)
        semantic = replace(mask, path=str(other / "masks" / Path(mask.path).name))
        return replace(item, image=image, second_image=image, semantic=semantic)

    assert labels_digest(replace(labelled, items=[moved(i) for i in labelled.items])) == labels_digest(
        labelled
    )


def test_masks_behind_other_readers_count(labelled: LabelledSet) -> None:
    def turned(read: Callable[[], np.ndarray], quarters: int) -> np.ndarray:
        return np.rot90(read(), quarters)

    def with_mask(mask: Callable[[], np.ndarray]) -> str:
        return labels_digest(replace(labelled, items=[replace(labelled.items[0], semantic=mask)]))

    mask, other = labelled.items[0].semantic, labelled.items[1].semantic
    assert mask is not None and other is not None
    found = {
        with_mask(partial(turned, mask, 1)),
        with_mask(partial(turned, mask, 2)),
        with_mask(partial(turned, other, 1)),
    }
    assert len(found) == 3


def test_masks_in_the_working_folder_count(
    labelled: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "masks")
    items = [replace(item, semantic=replace(item.semantic, path=f"{item.id}.png")) for item in labelled.items]  # type: ignore[type-var]
    beside = replace(labelled, items=items)
    before, former = labels_digest(beside), labels_digest(beside, former=True)
    source = task_batches_of("segmentation", beside)
    now, saved = source.fingerprint(), source.former_fingerprints()[0]
    blank("2.png")
    assert labels_digest(beside) != before
    # Earlier versions took the file for a name; their runs go on, as nothing tells what it was.
    assert labels_digest(beside, former=True) == former
    again = task_batches_of("segmentation", beside)
    assert is_of_source(saved, again, again.fingerprint())
    assert not is_of_source(now, again, again.fingerprint())


def test_large_sets_are_looked_into_here_and_there(
    labelled: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitp.data.fingerprint.MOST_FILES", 2)
    assert MOST_FILES >= 10_000
    before = labels_digest(labelled)
    mask = tmp_path / "masks" / "1.png"  # not one of the two, but of another size afterwards
    save(mask, np.zeros((16, 16)))
    assert labels_digest(labelled) != before


def test_generated_sets_are_not_rendered_as_a_whole() -> None:
    one, two = (scene_set("port", seed=seed, count=400, size=48, split="train") for seed in (1, 2))
    assert labels_digest(one) == labels_digest(one) != labels_digest(two)


def test_instructions_notice_another_image(tmp_path: Path) -> None:
    folder = labelled_folder(tmp_path / "toy")
    records = JsonlRecords(folder / "train.jsonl", folder, "toy")
    before = images_digest(records)
    assert before == images_digest(records)
    path = Path(records[5].images[0])
    with Image.open(path) as image:
        size = image.size
    Image.new("RGB", size).save(path)
    assert images_digest(records) != before
    path.unlink()
    assert images_digest(records) != before  # which file is missing is told when its turn comes


def test_the_form_tells_what_counts() -> None:
    one, more = fingerprint("order", ["a", "b"]), fingerprint("order", ["a"], ["b"])
    assert one.startswith("2:") and more.startswith("3:") and len(one) == len(more) == 66
    assert len({one, fingerprint("order", ["b", "a"]), fingerprint("other", ["a", "b"]), more}) == 4


def test_masks_of_generated_pairs_keep_the_name_that_earlier_runs_hold() -> None:
    pairs = read_labels("scenes", "general", count=6, size=32, pairs=True)
    assert type(pairs.items[0].change).__name__ == "SceneChange"
    assert labels_digest(pairs) == "fd151b85251678b3a293db882fd1929592d7f037b032f990f885ace94b28e733"
