"""Crops, our own label files and `compile_labels`: exact geometry, lossless round trips, the same bytes twice."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.compile_toys import coordinates, large_set, ship_masks
from tests.conftest import save_image
from vitp.core import files
from vitp.core.errors import DataError
from vitp.data.check import check_records
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels, vitp_labels
from vitp.data.formats.pixel_masks import ChangeFile, MaskFile
from vitp.data.formats.vitp_labels import Roots
from vitp.data.sources import read_mixture
from vitp.data.synthesis.build import SynthesisConfig
from vitp.records.labels import LabelledImage, ObjectLabel

DATA = Path(os.environ.get("VITP_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
flat = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=5).map(
    lambda points: tuple(v for point in points for v in point)
)
labels = st.builds(
    ObjectLabel,
    category=st.text(min_size=1, max_size=5),
    box=st.tuples(coordinates, coordinates, coordinates, coordinates),
    quad=st.none() | st.tuples(*[coordinates] * 8),
    polygons=st.lists(flat, max_size=2).map(tuple),
    difficult=st.booleans(),
)
objects = st.none() | st.lists(labels, max_size=3).map(tuple)


@settings(max_examples=80, deadline=None)
@given(
    objects=objects,
    later=objects,
    scene=st.none() | st.text(max_size=5),
    captions=st.lists(st.text(min_size=1, max_size=9), max_size=3).map(tuple),
    split=st.sampled_from(["train", "val", "test"]),
)
def test_items_survive_json(objects, later, scene, captions, split) -> None:
    root = Path("/data")
    item = LabelledImage(
        "x/a",
        "/data/x/a.png",
        30,
        20,
        split=split,
        group="g",
        objects=objects,
        scene=scene,
        captions=captions,
        semantic=MaskFile("/data/m/a.png", ((0, 0), (0xFFFFFF, 1)), (1, 2, 3, 4)),
        second_image="/elsewhere/a.png",
        change=ChangeFile("/data/c/a.png"),
        later_objects=later,
    )
    roots = Roots(Path("/out"), root, root)
    row = json.loads(vitp_labels.label_line(item, roots))
    assert vitp_labels.item_from_json(row, split, roots) == item
    assert row["image"] == "x/a.png"


def test_names_may_hold_what_unicode_calls_a_line_break(tmp_path: Path) -> None:
    names = [f"{number}\u2028\x85\x0b.png" for number in range(4)]
    for number, name in enumerate(names):
        save_image(tmp_path / "set" / "images" / name, number)
    rows = "".join(f"{name},a roof {number}\n" for number, name in enumerate(names))
    (tmp_path / "set" / "captions.csv").write_text(f"image,caption\n{rows}", encoding="utf-8")
    compile_labels(tmp_path / "set", "auto", tmp_path / "out", val=0, test=0)
    items = vitp_labels.read_compiled(tmp_path / "out").items
    assert {Path(item.image).name: item.captions for item in items} == {
        name: (f"a roof {number}",) for number, name in enumerate(names)
    }
    assert check_records(tmp_path / "out").exit_code == 0


def test_label_files_name_what_is_wrong(tmp_path: Path) -> None:
    whole = large_set(tmp_path)
    roots = Roots(tmp_path / "out", tmp_path, tmp_path)
    vitp_labels.write_compiled(whole, roots)
    again = vitp_labels.read_compiled(tmp_path / "out")
    assert sorted(again.items, key=lambda i: i.id) == whole.items
    assert replace(again, items=()) == replace(whole, items=())
    with (tmp_path / "out" / "labels" / "val.jsonl").open("a") as file:
        file.write('{"id": "x"}\n')
    with pytest.raises(DataError, match=r"val\.jsonl:2: is not a labelled image \(KeyError"):
        vitp_labels.read_compiled(tmp_path / "out")
    (tmp_path / "out" / "labels" / "set.json").write_text("{}")
    with pytest.raises(DataError, match=r"set\.json: is not a label set"):
        vitp_labels.read_compiled(tmp_path / "out")
    odd = replace(whole, items=[replace(whole.items[1], semantic=lambda: np.zeros((40, 50), np.uint8))])
    with pytest.raises(DataError, match="images/b: its mask is neither in a file"):
        vitp_labels.write_compiled(odd, roots)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


OPTIONS = {"classes": "ship=white", "instances": True, "group_regex": r"^P\d+", "licence": "CC0"}


@pytest.mark.parametrize("crop", [None, 32])
def test_compiling_twice_gives_the_same_bytes(tmp_path: Path, crop: int | None) -> None:
    root = ship_masks(tmp_path / "ships")
    first = compile_labels(
        root, "auto", tmp_path / "one", seed=3, crop=crop, overlap=8 if crop else 0, **OPTIONS
    )
    compile_labels(root, "masks", tmp_path / "two", seed=3, crop=crop, overlap=8 if crop else 0, **OPTIONS)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    other = compile_labels(root, "masks", tmp_path / "three", seed=4, crop=crop, **OPTIONS)
    assert other.content_hash != first.content_hash
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "ships", "three", "two"]


@pytest.mark.parametrize("crop", [None, 32])
def test_compiled_files_fit_together(tmp_path: Path, crop: int | None) -> None:
    root = ship_masks(tmp_path / "ships")
    out = tmp_path / "out"
    config = SynthesisConfig(questions_per_image=3, tasks={"caption": 0.0})
    summary = compile_labels(root, "masks", out, crop=crop, synthesis=config, max_tiles=6, **OPTIONS)
    out = out.rename(tmp_path / "moved")
    (entry,) = read_mixture(out / "mixture.json")
    train = summary.splits["train"]
    assert len(entry.records) == train.records > 0
    assert entry.max_tiles == 6
    labelled = vitp_labels.read_compiled(out)
    assert Counter(i.split for i in labelled.items) == {s: c.images for s, c in summary.splits.items()}
    by_image = {item.image: item for item in labelled.items}
    for record in entry.records:
        item = by_image[record.images[0]]
        assert item.split == "train"
        assert Path(item.image).is_file()
        assert record.sizes == ((item.width, item.height),)
        assert len(record.turns) <= 3
        assert item.semantic().shape == (item.height, item.width)
        assert record.licence == "CC0"
    if crop is None:
        direct = read_labels("masks", root, **OPTIONS)
        assert sorted(labelled.items, key=lambda i: i.id) == list(direct.items)
    else:
        assert {(i.width, i.height) for i in labelled.items} == {(32, 32)}
    written = json.loads((out / "summary.json").read_text())
    assert written["content_hash"] == summary.content_hash
    assert written["splits"]["train"]["tasks"] == dict(sorted(train.tasks.items()))
    assert sum(train.tasks.values()) == train.turns
    clear = [not o.difficult for i in labelled.items if i.split == "train" for o in i.objects]
    assert train.objects["ship"] == sum(clear)
    assert all(clear) == (crop is None)  # ships that a crop cuts are difficult in it
    assert written["options"]["classes"] == "ship=white"


def test_a_compiled_set_can_be_compiled_again(tmp_path: Path) -> None:
    root = ship_masks(tmp_path / "ships")
    first = compile_labels(root, "masks", tmp_path / "one", **OPTIONS)
    second = compile_labels(tmp_path / "one", "auto", tmp_path / "two", seed=9)
    assert {s: c.images for s, c in first.splits.items()} == {s: c.images for s, c in second.splits.items()}
    assert first.splits["train"].objects == second.splits["train"].objects
    assert len(read_mixture(tmp_path / "two" / "mixture.json")[0].records) == second.splits["train"].records


def test_what_is_there_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ship_masks(tmp_path / "ships")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(DataError, match="doesn't come from an earlier compilation"):
            compile_labels(root, "masks", foreign, force=force)
    with pytest.raises(DataError, match="doesn't come from an earlier compilation"):
        compile_labels(root, "masks", root, force=True)
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is welcome
    compile_labels(root, "masks", out, **OPTIONS)
    before = tree(out)
    with pytest.raises(DataError, match="--force"):
        compile_labels(root, "masks", out, **OPTIONS)
    with pytest.raises(DataError, match="holds the labels that are to be read"):
        compile_labels(out, "vitp", out, force=True)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitp.data.compile_summary.CompileSummary.write", fail)
        with pytest.raises(KeyboardInterrupt):
            compile_labels(root, "masks", out, seed=1, force=True, **OPTIONS)
    assert tree(out) == before
    compile_labels(root, "masks", out, seed=1, force=True, **OPTIONS)
    assert tree(out) != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign", "out", "ships"]


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    root = ship_masks(tmp_path / "ships", 4)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"val": [f"P{k // 2}_{k}" for k in range(4)]}))
    with pytest.raises(DataError, match="nothing to ask in the training split"):
        compile_labels(root, "masks", tmp_path / "out", split_file=split)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pairs", [False, True])
def test_generated_scenes_take_the_same_path(tmp_path: Path, pairs: bool) -> None:
    options = {"count": 20, "size": 64, "val": 0.2, "test": 0.1, "pairs": pairs}
    summary = compile_labels("general", "scenes", tmp_path / "out", seed=5, **options)
    assert {s: c.images for s, c in summary.splits.items()} == {"train": 14, "val": 4, "test": 2}
    compile_labels("general", "scenes", tmp_path / "again", seed=5, **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "again")
    read = vitp_labels.read_compiled(tmp_path / "out")
    made = read_labels("scenes", "general", seed=5, **options)
    for item, expected in zip(read.items, made.items, strict=True):
        assert item == expected
        assert np.array_equal(item.semantic(), expected.semantic())
        assert item.image.startswith("scene:general/5/")
    assert (read.items[0].change is not None) == pairs
    (entry,) = read_mixture(tmp_path / "out" / "mixture.json")
    assert entry.records[0].images[0].startswith("scene:")


@pytest.mark.realdata
def test_real_ships_in_crops(tmp_path: Path) -> None:
    root = DATA / "hrsid_mini"
    if not root.is_dir():
        pytest.skip(f"{root} is absent; set VITP_DATA")
    for kind in ("images", "masks"):
        (tmp_path / "few" / kind).mkdir(parents=True)
        for path in sorted((root / kind).iterdir())[::6]:
            (tmp_path / "few" / kind / path.name).write_bytes(path.read_bytes())
    summary = compile_labels(
        tmp_path / "few",
        "auto",
        tmp_path / "out",
        crop=512,
        overlap=224,
        classes="ship=green",
        instances=True,
        group_regex=r"^P\d+",
    )
    assert sum(c.images for c in summary.splits.values()) == 6 * 4
    assert sum(c.objects["ship"] for c in summary.splits.values()) > 0
    labelled = vitp_labels.read_compiled(tmp_path / "out")
    for item in labelled.items:
        mask = item.semantic()
        assert mask.shape == (item.height, item.width) == (512, 512)
        for label in item.objects:
            x1, y1, x2, y2 = (int(v) for v in label.box)
            assert mask[y1:y2, x1:x2].any()


@pytest.mark.parametrize("name", ["/pics/a", "../pics/a", "a/../../b", "C:\\pics\\a", "..\\a", "/", ".."])
def test_names_that_lead_elsewhere_get_a_path_inside(tmp_path: Path, name: str) -> None:
    inside = files.inner_path(name)
    assert inside != files.inner_path(name + "b")
    assert (tmp_path / inside).resolve().is_relative_to(tmp_path) and "\\" not in inside
    assert files.inner_path("train/a b") == "train/a b"


@pytest.mark.parametrize("absolute", [True, False])
def test_crops_of_images_elsewhere_lie_in_the_output(tmp_path: Path, absolute: bool) -> None:
    pictures = tmp_path / "pics"
    pictures.mkdir()
    labels = tmp_path / "set" / "annotations.json"
    labels.parent.mkdir()
    rows = []
    for k in range(6):
        Image.new("RGB", (64, 64), (40 * k, 9, 9)).save(pictures / f"{k}.png")
        name = str(pictures / f"{k}.png") if absolute else f"../pics/{k}.png"
        rows.append({"id": k, "file_name": name, "width": 64, "height": 64})
    boxes = [
        {"id": k, "image_id": k, "category_id": 1, "bbox": [2, 2, 20 + k, 20], "iscrowd": 0} for k in range(6)
    ]
    content = {"images": rows, "annotations": boxes, "categories": [{"id": 1, "name": "ship"}]}
    labels.write_text(json.dumps(content))
    compile_labels(labels.parent, "coco", tmp_path / "out", crop=32)
    assert len(list(pictures.iterdir())) == 6
    assert len(list((tmp_path / "out" / "crops").rglob("*.png"))) == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pics", "set"]


def test_captions_that_cropping_loses_are_named_as_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    lines = ["image,caption"]
    for k in range(6):
        Image.new("RGB", (64, 64), (40 * k, 9, 9)).save(folder / f"{k}.png")
        lines.append(f"{k}.png,a boat {k}")
    (folder / "captions.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="not about crops"):
        compile_labels(folder, "captions", tmp_path / "out", crop=32)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
