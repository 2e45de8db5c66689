"""Region-text contrast: regions are where their objects are, empty ones are empty, and names are told apart by place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import tiny_chat
from tests.objective_toys import OBJECTS, SIZE, labelled_folder, region_views, regions, tiny_tower
from vitp.cli import run
from vitp.data.batches import SampledBatches
from vitp.data.formats import vitp_labels
from vitp.data.formats.vitp_labels import Roots
from vitp.data.mixture import Sample
from vitp.objectives.image_rows import image_mixture, read_image_rows
from vitp.objectives.regions import (
    RegionBatch,
    RegionTextObjective,
    RegionTextSettings,
    region_weights,
)
from vitp.objectives.text_tower import SmallTextTower
from vitp.records.labels import BACKGROUND, LabelledImage, LabelledSet, ObjectLabel

COLOURS = {"ship": (220, 40, 40), "plane": (40, 60, 220)}


def scene(folder: Path, number: int, *, ignored: bool = False) -> LabelledImage:
    """Two squares of different classes on grey, one in the left and one in the right half, 48 × 40 px."""
    rng = np.random.default_rng(number)
    pixels_HWC = np.full((40, 48, 3), 128, np.uint8)
    objects = []
    for half, name in enumerate(rng.permutation(OBJECTS)):
        x, y = 24 * half + int(rng.integers(0, 13)), int(rng.integers(0, 29))
        pixels_HWC[y : y + 11, x : x + 11] = COLOURS[str(name)]
        objects.append(ObjectLabel(str(name), (float(x), float(y), x + 11.0, y + 11.0)))
    path = folder / f"{number}.png"
    Image.fromarray(pixels_HWC).save(path)
    lost = (ObjectLabel("?", (0.0, 0.0, 48.0, 20.0)),) if ignored else ()
    return LabelledImage(str(number), str(path), 48, 40, objects=tuple(objects), ignored=lost)


def sample(item: LabelledImage, position: int) -> Sample[LabelledImage]:
    return Sample(item, None, True, 0, position, seed=3)


def inside(batch: RegionBatch, region: int) -> torch.Tensor:
    """Return the pixels (3, n) of a region's middle."""
    x1, y1, x2, y2 = (batch.boxes_R4[region] * SIZE).tolist()
    third_x, third_y = (x2 - x1) / 3, (y2 - y1) / 3
    columns = slice(int(x1 + third_x), int(np.ceil(x2 - third_x)))
    rows = slice(int(y1 + third_y), int(np.ceil(y2 - third_y)))
    return batch.tiles_BCHW[int(batch.image_R[region])][:, rows, columns].flatten(1).float()


boxes = st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.01, 1), st.floats(0.01, 1)).map(
    lambda box: (box[0], box[1], min(1.0, box[0] + box[2]), min(1.0, box[1] + box[3]))
)


@given(box=boxes, rows=st.integers(1, 7), columns=st.integers(1, 7))
def test_a_box_is_shared_out_among_the_patches_by_area(
    box: tuple[float, float, float, float], rows: int, columns: int
) -> None:
    found_N = region_weights(torch.tensor([box]), rows, columns)[0]
    x1, y1, x2, y2 = box
    for row in range(rows):
        for column in range(columns):
            wide = max(0.0, min(x2, (column + 1) / columns) - max(x1, column / columns))
            tall = max(0.0, min(y2, (row + 1) / rows) - max(y1, row / rows))
            share = wide * tall / ((x2 - x1) * (y2 - y1))
            assert float(found_N[row * columns + column]) == pytest.approx(share, abs=1e-4)
    assert float(found_N.sum()) == pytest.approx(1, abs=1e-5)


def test_a_region_is_where_its_object_is_seen(tmp_path: Path) -> None:
    items = [scene(tmp_path, number) for number in range(12)]
    collate = region_views(RegionTextSettings(photometric=0.0))
    checked = dict.fromkeys((*OBJECTS, BACKGROUND), 0)
    for position in range(24):
        batch = collate([sample(items[position % 12], position)], 0)
        for region, text in enumerate(batch.text_R.tolist()):
            name = collate.texts[text]
            wanted = torch.tensor(COLOURS.get(name, (128, 128, 128)), dtype=torch.float32)
            # Enlarging blurs a pixel or two at the edges, the middle keeps its colour.
            assert (inside(batch, region).mean(1) - wanted).abs().max() < 40, name
            checked[name] += 1
    assert min(checked.values()) > 10


def test_empty_places_touch_no_object_and_nothing_ignored(tmp_path: Path) -> None:
    items = [scene(tmp_path, number, ignored=True) for number in range(6)]
    settings = RegionTextSettings(crop=1.0, photometric=0.0, empty=4)
    collate, found = region_views(settings), 0
    for position in range(30):
        sample_of = sample(items[position % 6], position)
        view = collate._view(sample_of)
        batch = collate([sample_of], 0)
        taken = [label.box for label in (*(view.objects or ()), *view.ignored)]
        for box, text in zip((batch.boxes_R4 * SIZE).tolist(), batch.text_R.tolist(), strict=True):
            if collate.texts[text] != BACKGROUND:
                continue
            found += 1
            assert 0 <= box[0] < box[2] <= SIZE + 1e-4 and 0 <= box[1] < box[3] <= SIZE + 1e-4
            for x1, y1, x2, y2 in taken:
                wide, tall = min(box[2], x2) - max(box[0], x1), min(box[3], y2) - max(box[1], y1)
                assert min(wide, tall) <= 1e-4
    assert found > 5


def test_difficult_objects_and_those_without_an_area_are_no_regions(tmp_path: Path) -> None:
    item = scene(tmp_path, 0)
    first, second = item.objects or ()
    flat = replace(second, box=(second.box[0], second.box[1], second.box[0], second.box[3]))
    collate = region_views(RegionTextSettings(empty=0))
    assert len(collate([sample(replace(item, objects=(first, flat)), 0)], 0).text_R) == 1
    assert (
        len(collate([sample(replace(item, objects=(first, replace(second, difficult=True))), 0)], 0).text_R)
        == 1
    )
    nothing = collate([sample(replace(item, objects=(replace(first, difficult=True),)), 0)], 0)
    losses = regions()(nothing)
    assert float(losses["regions"]) == 0 and regions().loss_counts(nothing) == {"regions": 0.0}


def test_at_most_so_many_objects_and_other_ones_each_time(tmp_path: Path) -> None:
    item = scene(tmp_path, 0)
    collate = region_views(RegionTextSettings(objects=1, empty=0))
    texts = {tuple(collate([sample(item, position)], 0).text_R.tolist()) for position in range(12)}
    assert texts == {(0,), (1,)}


def test_the_other_regions_do_not_change_the_pixels(tmp_path: Path) -> None:
    item = scene(tmp_path, 0)
    many, few = (region_views(RegionTextSettings(objects=8, empty=e)) for e in (0, 5))
    first, second = (one([sample(item, 4)], 0) for one in (many, few))
    assert torch.equal(first.tiles_BCHW, second.tiles_BCHW)
    assert torch.equal(first.boxes_R4, second.boxes_R4[: len(first.boxes_R4)])


def test_it_learns_what_lies_where(tmp_path: Path) -> None:
    """After a short run the names of places in images that it never saw are right, and change with the place."""
    (tmp_path / "data").mkdir()
    items = [scene(tmp_path / "data", number) for number in range(48)]
    labelled = LabelledSet("toy", items, OBJECTS)
    vitp_labels.write_compiled(labelled, Roots(*(tmp_path / "data",) * 3))
    rows = read_image_rows(tmp_path / "data")
    torch.manual_seed(0)
    text = SmallTextTower(len(tiny_chat()), width=32, layers=1, heads=2, length=16)
    objective = RegionTextObjective(tiny_tower(), text, dimension=16)
    collate = region_views(RegionTextSettings(crop=0.8))
    source = SampledBatches(image_mixture([rows], None, 3), collate, 8, 1)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for step in range(80):
        batch = source(step, 0, 0, 1)
        loss = objective(batch)["regions"] / objective.loss_counts(batch)["regions"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen = [sample(scene(tmp_path, number), number) for number in range(100, 130)]
    batch = collate(unseen, 0)
    told_R = objective.eval().logits(batch).argmax(1)
    assert float((told_R == batch.text_R).float().mean()) > 0.9
    # The same images asked at the place of another region: the answer follows the place, not the image.
    pairs = [
        (a, b)
        for a in range(len(told_R))
        for b in range(a + 1, len(told_R))
        if batch.image_R[a] == batch.image_R[b] and {int(batch.text_R[a]), int(batch.text_R[b])} == {0, 1}
    ]
    assert len(pairs) > 10
    swapped_R4 = batch.boxes_R4.clone()
    for a, b in pairs:
        swapped_R4[[a, b]] = batch.boxes_R4[[b, a]]
    moved_R = objective.logits(replace(batch, boxes_R4=swapped_R4)).argmax(1)
    assert np.mean([int(moved_R[a]) == int(batch.text_R[b]) for a, b in pairs]) > 0.9


def test_a_name_of_another_set_is_no_wrong_answer(tmp_path: Path) -> None:
    collate = replace(region_views(), known=((True, False, True),))
    item = replace(scene(tmp_path, 0), objects=(ObjectLabel("ship", (2.0, 2.0, 20.0, 20.0)),))
    batch = collate([sample(item, 0)], 0)
    logits_RU = regions().logits(batch)
    assert torch.isinf(logits_RU[:, 1]).all() and torch.isfinite(logits_RU[:, [0, 2]]).all()
    assert torch.isfinite(regions()(batch)["regions"])


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    items = [replace(scene(tmp_path, 0), objects=(ObjectLabel("ship", (2.0, 2.0, 20.0, 20.0)),))]
    vitp_labels.write_compiled(LabelledSet("toy", items, ("ship",)), Roots(tmp_path, tmp_path, tmp_path))
    command = [
        "pretrain",
        "--objective",
        "regionclip",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "run"),
    ]
    assert run([*command, "-s", "objective.empty=0", "-s", "train.steps=1"]) == 2
    assert not (tmp_path / "run" / "model").exists()


def test_together_with_visual_instructions(tmp_path: Path) -> None:
    """Through the command line: a run of both, whose language model and tower are saved."""
    data = labelled_folder(tmp_path / "toy")
    config = tmp_path / "run.yaml"
    config.write_text("objectives: {vitp: 1, regionclip: {weight: 0.5, empty: 1}}\n", encoding="utf-8")
    command = ["pretrain", str(config), "--data", str(data), "--out", str(tmp_path / "run")]
    for setting in ("train.steps=2", "data.global_batch=2", "train.num_workers=0"):
        command += ["-s", setting]
    assert run(command) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert "regionclip.regions" in lines and "vitp.language" in lines
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
