"""Questions about slices: every answer is computed again from the label volume, in voxels and RAS+ millimetres."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitp.core.errors import ConfigError
from vitp.data.formats.findings import declare_findings
from vitp.data.formats.pixel_masks import MaskFile
from vitp.data.formats.studies import join_studies
from vitp.data.formats.vitp_labels import Roots, read_compiled, write_compiled
from vitp.data.synthesis import phrases
from vitp.data.synthesis.build import TASK_NAMES, SynthesisConfig, synthesize_with_tasks
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.ground_tasks import (
    body_length_text,
    body_volume_text,
    parse_amount,
)
from vitp.data.synthesis.volume_facts import VolumeIndex
from vitp.data.synthesis.volume_tasks import longest_diameter
from vitp.io.volume_grid import VolumeGrid
from vitp.records.labels import BACKGROUND, LabelledImage, LabelledSet
from vitp.scenes.volume_files import write_nifti
from vitp.scenes.volumes import TRUNK_CLASSES, TrunkVolume, make_volume

NAMES = (BACKGROUND, *TRUNK_CLASSES)


CLASSES = SetClasses((), (), NAMES, "set", abnormal_classes=("lesion",), change_classes=NAMES)


SIZE = (64, 48, 20)


def grid_of(volume: TrunkVolume) -> VolumeGrid:
    return VolumeGrid(volume.voxels_IJK.shape, tuple(map(tuple, volume.affine_44.tolist())))  # type: ignore[arg-type]


def slices(
    volume: TrunkVolume, plane: str = "axial", name: str = "a", **fields: object
) -> list[LabelledImage]:
    """Return all slices of a volume, labelled."""
    grid = grid_of(volume)
    labels_NHW = grid.as_slices(volume.labels_IJK, plane)
    thickness, y, x = grid.slice_spacing(plane) or (1.0, 1.0, 1.0)
    count, height, width = labels_NHW.shape
    return [
        LabelledImage(
            f"{name}-{number:03d}",
            f"{name}.nii.gz#slice={number}&plane={plane}",
            width,
            height,
            semantic=lambda mask_HW=mask_HW: mask_HW,  # type: ignore[misc]
            spacing=(x, y),
            thickness=thickness,
            level=number / (count - 1),
            metadata={"modality": "CT", "plane": plane, "body_part": "abdomen"},
            **fields,  # type: ignore[arg-type]
        )
        for number, mask_HW in enumerate(labels_NHW)
    ]


def asked(
    items: list[LabelledImage], *tasks: str, seeds: int = 3, neighbours: int = 0
) -> Iterator[tuple[LabelledImage, str, str, str]]:
    """Yield image, task, question and answer."""
    weights = {name: float(name in tasks) for name in TASK_NAMES}
    config = SynthesisConfig(tasks=weights, questions_per_image=8, neighbours=neighbours)
    volumes = VolumeIndex(items)
    for item, seed in itertools.product(items, range(seeds)):
        made = synthesize_with_tasks(item, CLASSES, seed=seed, config=config, volumes=volumes)
        if made is not None:
            for task, turn in zip(made[1], made[0].turns, strict=True):
                yield item, task, turn.question, turn.answer


def class_in(question: str) -> str:
    """Return the class that a question names, the longest name first."""
    found = [name for name in sorted(TRUNK_CLASSES, key=len, reverse=True) if name in question]
    return found[0]


def slice_of(item: LabelledImage) -> int:
    return int(re.search(r"slice=(\d+)", item.image)[1])  # type: ignore[index]


def world(volume: TrunkVolume, name: str, plane: str, number: int | None = None) -> np.ndarray:
    """Return (N, 3) millimetres in RAS+ of the voxels of a class, in one slice or in all."""
    place_IJK = np.broadcast_to(np.arange(volume.labels_IJK.size), (1, volume.labels_IJK.size))
    place_IJK = place_IJK.reshape(volume.labels_IJK.shape)
    there = volume.labels_IJK == TRUNK_CLASSES.index(name) + 1
    if number is not None:
        own = np.zeros(volume.labels_IJK.size, bool)
        own[grid_of(volume).as_slices(place_IJK, plane)[number].ravel()] = True
        there &= own.reshape(there.shape)
    return np.argwhere(there) @ volume.affine_44[:3, :3].T + volume.affine_44[:3, 3]


# --- sides


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "ASL"])
@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_sides_are_the_patients(orientation: str, plane: str) -> None:
    """RAS+ itself says which side something is on: a mirrored picture or answer fails."""
    volume = make_volume(3, size=SIZE, orientation=orientation, lesions=0)
    middle = (
        volume.affine_44[:3, :3] @ ((np.array(volume.labels_IJK.shape) - 1) / 2) + volume.affine_44[:3, 3]
    )[0]
    seen = set()
    for item, task, question, answer in asked(slices(volume, plane), "side", "side_of_class", seeds=2):
        number = slice_of(item)
        if task == "side":
            name = class_in(question)
            rightwards = world(volume, name, plane, number)[:, 0].mean() > middle
            patient = any(one.format(one=name) in question for one in phrases.PATIENT_SIDE)
            assert patient or any(one.format(one=name) in question for one in phrases.PICTURE_SIDE)
            assert not (patient and "kidney" in name), "its name would tell"
            # The patient's right is on the left of the picture.
            assert answer == ("right" if rightwards == patient else "left"), question
            seen.add((patient, answer))
        else:
            pairs = itertools.permutations(("lung", "liver", "spleen", "bone"), 2)
            a, b = next(
                p for p in pairs if any(t.format(a=p[0], b=p[1]) in question for t in phrases.SIDE_OF)
            )
            x, other = (world(volume, one, plane, number)[:, 0].mean() for one in (a, b))
            assert answer == ("right" if x > other else "left"), question
            seen.add(("of", answer))
    assert {(True, "right"), (True, "left"), (False, "right"), ("of", "right"), ("of", "left")} <= seen


def test_sides_are_not_known_of_sagittal_slices_and_pictures() -> None:
    volume = make_volume(3, size=SIZE)
    assert not list(asked(slices(volume, "sagittal"), "side", "side_of_class", seeds=1))
    pictures = [replace(item, image=f"{item.id}.png") for item in slices(volume)]
    assert not list(asked(pictures, "side", "side_of_class", "slice_level", "level_of_class", seeds=1))


# --- levels


@pytest.mark.parametrize(
    ("plane", "axis", "sign", "words"),
    [
        ("axial", 2, 1, ("below", "above", "lower", "upper")),
        ("coronal", 1, 1, ("behind", "in front", "back", "front")),
        ("sagittal", 0, -1, ("to the right", "to the left", "right", "left")),
    ],
)
def test_levels_follow_the_world(plane: str, axis: int, sign: int, words: tuple[str, ...]) -> None:
    volume = make_volume(5, size=(40, 32, 24), orientation="IPR", lesions=1)
    low, high = (sign * world(volume, "bone", plane)[:, axis] for _ in range(2))
    before, after, first, last = words
    seen = set()
    for item, task, question, answer in asked(
        slices(volume, plane), "slice_level", "level_of_class", seeds=2
    ):
        seen.add(answer)
        if task == "slice_level":
            level = item.level or 0.0
            assert answer == (f"{first} third", "middle third", f"{last} third")[min(int(3 * level), 2)]
            continue
        name = class_in(question.split("<image>")[-1])
        places = sign * world(volume, name, plane)[:, axis]
        grid = grid_of(volume)
        centre = np.zeros(3)
        axes = {"axial": "S", "coronal": "A", "sagittal": "R"}
        along = int(np.argmax(np.abs(volume.affine_44["RAS".index(axes[plane]), :3])))
        count = grid.slices_shape(plane)[0]
        step = sign * volume.affine_44[axis, along]
        centre[along] = slice_of(item) if step > 0 else count - 1 - slice_of(item)
        here = sign * float(volume.affine_44[axis, :3] @ centre + volume.affine_44[axis, 3])
        near = 0.5 * abs(step)
        expected = (
            before if here < places.min() - near else after if here > places.max() + near else "through"
        )
        assert answer == expected, (question, here, places.min(), places.max())
    assert {before, after, "through", f"{first} third", f"{last} third"} <= seen
    assert low.size and high.size


def test_levels_of_organs_need_the_whole_volume() -> None:
    items = slices(make_volume(5, size=SIZE))
    assert list(asked(items, "level_of_class", seeds=1))
    assert not list(asked(items[1:], "level_of_class", seeds=1))
    assert not list(asked(items[:5] + items[6:], "level_of_class", seeds=1))
    windows = [replace(i, image=f"{i.image}&window=0,0,64,48") for i in items]
    assert not list(asked(windows, "level_of_class", seeds=1))


def test_slices_that_were_left_out_are_known_by_their_masks(tmp_path: Path) -> None:
    """Empty slices are mostly left out of training; what they don't hold is known all the same."""
    volume = make_volume(5, size=SIZE)
    write_nifti(volume, tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    pairs = tuple((value, value) for value in range(len(NAMES)))
    items = [
        replace(i, semantic=MaskFile(str(tmp_path / i.image.replace("a.nii", "b.nii")), pairs))
        for i in slices(volume)
    ]
    np.testing.assert_array_equal(items[7].semantic(), slices(volume)[7].semantic())  # type: ignore[misc]
    few = items[4:14:3]
    whole = list(asked(items, "level_of_class", "volume_ml", seeds=1))
    assert list(asked(few, "level_of_class", "volume_ml", seeds=1)) == [one for one in whole if one[0] in few]
    before, after = VolumeIndex(few).beside(few[0], 5)
    assert [slice_of(one) for one in (*before, *after)] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert before[0].image == "a.nii.gz#slice=0&plane=axial"


# --- sizes


@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_sizes_are_millimetres_of_the_volume(plane: str) -> None:
    volume = make_volume(8, size=(96, 80, 40), lesions=3)
    spacing = grid_of(volume).slice_spacing(plane)
    assert spacing is not None
    thickness, y, x = spacing
    tasks = ("diameter_mm", "extent_mm", "area_mm2", "volume_ml")
    seen = set()
    for item, task, question, answer in asked(slices(volume, plane)[::3], *tasks, seeds=2):
        name = class_in(question.split("<image>")[-1])
        own_HW = grid_of(volume).as_slices(volume.labels_IJK, plane)[slice_of(item)] == NAMES.index(name)
        rows, columns = np.nonzero(own_HW)
        pixels = len(rows)
        amount = parse_amount(answer)
        assert amount is not None and f"picture is {body_length_text(item.width * x)} wide" in question
        if task == "area_mm2":
            expected = pixels * x * y * 1e-6
        elif task == "volume_ml":
            expected = pixels * x * y * thickness * 1e-9
            assert ("this slice" in question) != (pixels == (volume.labels_IJK == NAMES.index(name)).sum())
        elif task == "extent_mm":
            wide = np.ptp(columns) + 1, np.ptp(rows) + 1
            right = "right to left" in question or ("front to back" in question and plane == "sagittal")
            expected = (wide[0] * x if right else wide[1] * y) * 1e-3
        elif "largest" in question.split("(")[0] and "the largest" in question:
            continue
        else:
            corners = {
                (c + dx, r + dy) for r, c in zip(rows, columns, strict=True) for dx in (0, 1) for dy in (0, 1)
            }
            places = np.array(sorted(corners), float) * (x, y)
            expected = max(float(np.linalg.norm(places - one, axis=1).max()) for one in places) * 1e-3
        assert amount == pytest.approx(expected, rel=0.051), (question, answer)
        seen.add(task)
    assert seen == set(tasks)


def test_adjacent_slices_hold_their_sum_and_the_whole_where_they_hold_it() -> None:
    volume = make_volume(2, size=(64, 64, 24), lesions=1)
    items = slices(volume)
    there = [i for i, item in enumerate(items) if (item.semantic() == NAMES.index("lesion")).any()]  # type: ignore[misc]
    voxel = math.prod(volume.spacing) / 1000
    seen = set()
    for item, _, question, answer in asked(items, "volume_ml", neighbours=len(there), seeds=4):
        name = class_in(question.split("<image>")[-1])
        number = slice_of(item)
        shown = items[max(number - len(there), 0) : number + len(there) + 1]
        held = sum(int((one.semantic() == NAMES.index(name)).sum()) for one in shown)  # type: ignore[misc]
        whole = held == (volume.labels_IJK == NAMES.index(name)).sum()
        assert (f"these {len(shown)} slices" in question) != whole
        assert answer == body_volume_text(held * voxel * 1000)
        seen.add((name == "lesion", bool(whole)))
    assert {(True, True), (False, False)} <= seen


def test_adjacent_slices_are_images_with_their_places() -> None:
    items = slices(make_volume(2, size=(32, 32, 8)))
    config = SynthesisConfig(neighbours=1, tasks={"context": 0.0})
    made = synthesize_with_tasks(items[3], CLASSES, seed=0, config=config, volumes=VolumeIndex(items))
    assert made is not None
    assert made[0].images == tuple(one.image for one in items[2:5])
    far = body_length_text(items[0].thickness or 0).removeprefix("about ")
    marks = (
        f"Image-1 ({far} below): <image>\nImage-2 (asked about): <image>\nImage-3 ({far} above): <image>\n"
    )
    assert made[0].turns[0].question.startswith(marks)
    first = synthesize_with_tasks(items[0], CLASSES, seed=0, config=config, volumes=VolumeIndex(items))
    assert first is not None and first[0].images == (items[0].image, items[1].image)
    apart = synthesize_with_tasks(items[4], CLASSES, seed=0, config=config, volumes=VolumeIndex(items[::2]))
    assert apart is not None and apart[0].images == (items[4].image,), "the next slice is missing"
    with pytest.raises(ConfigError, match="neighbours"):
        SynthesisConfig(neighbours=17)


def test_open_pixels_are_not_measured() -> None:
    items = slices(make_volume(8, size=SIZE))
    masks = [np.where(np.arange(64) == 0, 255, item.semantic()).astype(np.uint8) for item in items]  # type: ignore[misc]
    holes = [replace(item, semantic=lambda m=m: m) for item, m in zip(items, masks, strict=True)]  # type: ignore[misc]
    assert not list(asked(holes, "diameter_mm", "area_mm2", "volume_ml", "side", "level_of_class", seeds=1))


# --- findings


def test_findings_are_there_from_their_first_pixel_on() -> None:
    items = slices(make_volume(1, size=SIZE, lesions=2)) + slices(
        make_volume(2, size=SIZE, lesions=0), name="b"
    )
    answers = []
    for item, task, _, answer in asked(items, "abnormal", "findings", seeds=6):
        there = bool((item.semantic() == NAMES.index("lesion")).any())  # type: ignore[misc]
        assert answer == {("abnormal", True): "yes", ("findings", True): "lesion"}.get(
            (task, there), "no" if task == "abnormal" else "none"
        )
        answers += [answer] if task == "abnormal" else []
    assert {"yes", "no"} == set(answers)


def labelled_set(items: list[LabelledImage], **fields: object) -> LabelledSet:
    return LabelledSet("set", items, semantic_classes=NAMES, **fields)  # type: ignore[arg-type]


def test_findings_are_declared_or_evident_and_said() -> None:
    labelled = labelled_set(slices(make_volume(1, size=SIZE))[:2])
    found = declare_findings(labelled, "")
    assert found.abnormal_classes == ("lesion",)
    assert found.understood[-1] == "findings: lesion (by its name; -o abnormal=… names others, or none)"
    assert declare_findings(labelled, "none").abnormal_classes == ()
    assert declare_findings(labelled, "spleen,lesion").abnormal_classes == ("spleen", "lesion")
    plain = replace(labelled, items=[replace(i, spacing=None, metadata=None) for i in labelled.items])
    assert declare_findings(plain, "").abnormal_classes == (), "only medical sets have evident findings"
    with pytest.raises(ConfigError, match="lesion"):
        declare_findings(labelled, "lesoin")
    with pytest.raises(ConfigError, match="nothing was found"):
        declare_findings(labelled, "background")


def test_classes_of_whole_images_are_findings_too() -> None:
    classes = SetClasses(
        (), ("effusion", "nodule", "normal"), (), "set", abnormal_classes=("effusion", "nodule")
    )
    config = SynthesisConfig(tasks={n: float(n in ("abnormal", "findings")) for n in TASK_NAMES})

    def answers(**fields: object) -> set[str]:
        item = LabelledImage("x", "x.png", 8, 8, **fields)  # type: ignore[arg-type]
        made = [synthesize_with_tasks(item, classes, seed=seed, config=config) for seed in range(12)]
        return {turn.answer for one in made if one is not None for turn in one[0].turns}

    assert answers(tags=("nodule", "effusion")) == {"yes", "effusion, nodule"}
    assert answers(scene="normal") == {"no", "none"}
    assert answers(scene="nodule") == {"yes", "nodule"}
    assert answers() == set()


# --- metadata


def test_modality_plane_and_body_part_are_asked() -> None:
    (item,) = slices(make_volume(1, size=SIZE))[3:4]
    item = replace(
        item, metadata={"modality": "MR", "plane": "axial", "laterality": "left", "window": "lung"}
    )
    found = {
        task: answer for _, task, _, answer in asked([item], "modality", "plane", "laterality", "window")
    }
    assert found == {"modality": "MRI", "plane": "axial", "laterality": "left", "window": "lung"}
    weights = {name: float(name in ("area_mm2", "context", "modality", "plane")) for name in TASK_NAMES}
    told = [
        synthesize_with_tasks(item, CLASSES, seed=seed, config=SynthesisConfig(tasks=weights))
        for seed in range(9)
    ]
    questions = [one[0].turns[0].question for one in told if one is not None]
    assert any(question.startswith("Modality: MRI; plane: axial.\n<image>\n") for question in questions)


# --- prior and current studies


def test_growth_is_the_difference_of_two_studies() -> None:
    volumes = [make_volume(4, size=(96, 96, 24), lesions=1, study=study) for study in (0, 1)]
    items = [i for v, n in zip(volumes, "ab", strict=True) for i in slices(v, name=n, group="patient-0001")]
    joined = join_studies(labelled_set(items), True)
    assert len(joined.items) == 24 and "1 pairs" in joined.understood[-1]
    x, y, thickness = volumes[0].spacing
    lesion = NAMES.index("lesion")
    seen = set()
    tasks = ("growth", "growth_mm", "growth_mm2", "growth_ml")
    for item, task, question, answer in asked(list(joined.items), *tasks, seeds=4):
        if "lesion" not in question:
            assert (task == "growth" and answer == "unchanged") or "lung" in question or "liver" in question
            continue
        before, after = (
            grid_of(v).as_slices(v.labels_IJK, "axial")[slice_of(item)] == lesion for v in volumes
        )
        change = int(after.sum()) - int(before.sum())
        amount = parse_amount(answer)
        if task == "growth":
            assert answer == ("larger" if change > 0.1 * after.sum() else "unchanged")
        elif task == "growth_mm2":
            assert amount == pytest.approx(change * x * y * 1e-6, rel=0.051) and answer.endswith("larger")
        elif task == "growth_ml":
            assert amount == pytest.approx(change * x * y * thickness * 1e-9, rel=0.051)
        else:
            longer = longest_diameter(after, (x, y)) - longest_diameter(before, (x, y))
            assert amount == pytest.approx(longer * 1e-3, rel=0.051)
        seen.add(task)
    assert seen == set(tasks)


def test_studies_that_differ_in_their_grid_are_no_pairs() -> None:
    one, other = (slices(make_volume(seed, size=SIZE), name=str(seed), group="p") for seed in (1, 2))
    with pytest.raises(ConfigError, match="resample"):
        join_studies(labelled_set(one + other), True)
    alone = labelled_set(one + other)
    assert join_studies(alone, False) is alone


# --- the usual questions, and written down


def test_grids_points_and_cells_are_asked_of_slices() -> None:
    items = slices(make_volume(8, size=SIZE))
    tasks = ("grid", "cells", "cell", "point", "cover", "presence")
    assert {task for _, task, _, _ in asked(items, *tasks, seeds=2)} == set(tasks)


def test_findings_survive_being_written_down(tmp_path: Path) -> None:
    bare = [
        LabelledImage("a", str(tmp_path / "a.png"), 8, 8, scene="nodule", spacing=(0.5, 0.75), level=0.25)
    ]
    labelled = LabelledSet("set", bare, scene_classes=("nodule",), abnormal_classes=("nodule",))
    write_compiled(labelled, Roots(tmp_path, tmp_path, tmp_path))
    again = read_compiled(tmp_path)
    assert again.abnormal_classes == ("nodule",)
