"""The fingerprint of a source follows its labels and images, wherever they are kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.objective_toys import labelled_folder
from vitp.data.fingerprint import MOST_FILES, fingerprint, images_digest, labels_digest
from vitp.data.formats import read_labels
from vitp.data.formats.pixel_masks import ChangeFile, MaskFile
from vitp.data.formats.vitp_labels import read_compiled
from vitp.data.readers.jsonl import JsonlRecords
from vitp.objectives.base import is_of_source
from vitp.objectives.supervised import RenamedMask
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.runs.image_pretrain import ImagePretrainConfig
from vitp.runs.image_pretrain import build as build_images
from vitp.scenes import scene_set
from vitp.tasks.data import LabelKind, LabelReader, TaskSource


def save(path: Path, pixels: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture
def labelled(tmp_path: Path) -> LabelledSet:
    """Four images with every kind of label."""
    rng = np.random.default_rng(0)
    box = ObjectLabel("ship", (2.0, 2.0, 9.0, 9.0), polygons=((2.0, 2.0, 9.0, 2.0, 9.0, 9.0),))
    items = []
    for number in range(4):
        image = save(tmp_path / "images" / f"{number}.png", rng.integers(0, 255, (16, 16, 3)))
        mask = save(tmp_path / "masks" / f"{number}.png", rng.integers(0, 2, (16, 16)))
        change = save(tmp_path / "change" / f"{number}.png", rng.integers(0, 2, (16, 16)) * 255)
        items.append(
            LabelledImage(
                id=str(number),
                image=image,
                width=16,
                height=16,
                objects=(box,),
                scene="port",
                semantic=MaskFile(mask, ((0, 0), (1, 1))),
                second_image=image,
                change=ChangeFile(change),
            )
        )
    return LabelledSet("toy", items, ("ship", "car"), ("port", "field"), ("sea", "land"))


KINDS: tuple[LabelKind, ...] = (
    *("scene", "presence", "objects", "instances", "oriented", "semantic", "change"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["masks/2.png", "change/2.png", "images/2.png"])
def test_every_task_notices_another_mask_or_image(
    labelled: LabelledSet, tmp_path: Path, kind: LabelKind, file: str
) -> None:
    def now() -> str:
        return TaskSource(LabelReader(labelled, kind), 2, 0).fingerprint()

    before = now()
    assert before == now()
    path = tmp_path / file
    shape = np.asarray(Image.open(path)).shape
    save(path, np.zeros(shape))
    assert now() != before


def blank(folder: Path) -> None:
    """Blank one training mask of a compiled folder, in its file."""
    item = next(item for item in read_compiled(folder).split("train").items if item.semantic is not None)
    assert isinstance(item.semantic, MaskFile)
    size = np.asarray(Image.open(item.semantic.path)).shape
    save(Path(item.semantic.path), np.zeros(size))


@pytest.mark.parametrize("objective", ["mae", "simclr", "supervised", "dense"])
def test_every_paradigm_notices_a_blanked_mask(tmp_path: Path, objective: str) -> None:
    folder = labelled_folder(tmp_path / "toy")
    vision = {"arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}, "image_size": 32}
    config = ImagePretrainConfig.model_validate(
        {
            "objective": objective,
            "model": {"init": "random", "vision": vision},
            "data": {"mixture": [str(folder)], "global_batch": 4},
            "train": {"steps": 2},
        }
    )
    before: Any = build_images(config).source
    first, former = before.fingerprint(), before.former_fingerprint()
    blank(folder)
    after: Any = build_images(config).source
    assert after.fingerprint() != first
    # A run of a version that didn't look at masks still goes on.
    assert after.former_fingerprint() == former
    assert is_of_source(former, after, after.fingerprint())
    assert not is_of_source(first, after, after.fingerprint())


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


def test_the_form_tells_the_version() -> None:
    one = fingerprint("order", ["a", "b"])
    assert one.startswith("2:") and len(one) == 66
    assert len({one, fingerprint("order", ["b", "a"]), fingerprint("other", ["a", "b"])}) == 3


def test_masks_of_generated_pairs_keep_the_name_that_earlier_runs_hold() -> None:
    pairs = read_labels("scenes", "general", count=6, size=32, pairs=True)
    assert type(pairs.items[0].change).__name__ == "SceneChange"
    assert labels_digest(pairs) == "fd151b85251678b3a293db882fd1929592d7f037b032f990f885ace94b28e733"
