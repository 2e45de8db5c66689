"""Sets in the folders in which their publishers hand them out: one folder around all, forms, bands and masks apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark_fixtures import write_dior, write_isaid
from tests.layout_toys import SIDE, drawn, mask, noise, photo, text
from vitp.core.errors import DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import look, read_labels
from vitp.data.formats.detect import detect
from vitp.records.labels import LabelledSet


def scenes(found: LabelledSet) -> dict[str, int]:
    return dict(Counter(item.scene for item in found.items if item.scene))


# --- one folder around all


def lesions(root: Path) -> Path:
    """Write a table of classes that names its images from above its folder, as CheXpert does."""
    for i in range(6):
        noise(root / "train" / f"p{i}" / "view.png", i)
    rows = [f"{root.name}/train/p{i}/view.png,{i % 2}.0,{'' if i == 3 else 1 - i % 2}" for i in range(6)]
    text(root / "train.csv", "Path,Edema,Fracture", *rows)
    return root


@pytest.mark.parametrize("around", ["", "download", "download/v1.0"])
def test_the_only_folder_is_the_set(tmp_path: Path, around: str) -> None:
    root = lesions(tmp_path / around / "Chest-small")
    for paper in ("README.md", "md5sums.txt", "requirements.txt", "NOTICE", "download.py", "CHANGELOG.txt"):
        text(tmp_path / paper, "what this is")
    for archive in ("Chest-small.zip", "Chest-small.tar.gz"):
        (tmp_path / archive).write_bytes(b"PK")
    found = detect(tmp_path)
    assert (found.format, found.root) == ("classes", root)
    assert found.understood[:1] == (f"the set is the folder {root.relative_to(tmp_path)}",)
    read = read_labels("auto", tmp_path)
    assert Counter(tag for item in read.items for tag in item.tags or ()) == {"Edema": 3, "Fracture": 3}
    assert [item.unknown for item in read.items] == [(), (), (), ("Fracture",), (), ()]
    summary = compile_labels(tmp_path, "auto", tmp_path.parent / f"{tmp_path.name}-compiled")
    assert summary.understood[0] == found.understood[0]
    told = json.loads((tmp_path.parent / f"{tmp_path.name}-compiled/labels/set.json").read_text())
    assert told["image_root"] == str(root)


def test_what_names_the_values_lies_in_the_only_folder(tmp_path: Path) -> None:
    for i in range(4):
        noise(tmp_path / "set/images" / f"{i}.png", i)
        mask(tmp_path / "set/masks" / f"{i}.png", 0, 1, 2)
    text(tmp_path / "set/classes.txt", "background", "road", "water")
    assert read_labels("auto", tmp_path).semantic_classes == ("background", "road", "water")


def test_a_folder_of_a_split_or_of_images_is_a_part_of_the_set(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        for i in range(3):
            noise(tmp_path / "val" / kind / f"{kind}{i}.png", 7 * i + len(kind))
    found = detect(tmp_path)
    assert (found.format, found.root) == ("folders", tmp_path)
    assert {item.split for item in read_labels("auto", tmp_path).items} == {"val"}


def test_several_things_in_a_folder_are_the_set_themselves(tmp_path: Path) -> None:
    lesions(tmp_path / "a")
    noise(tmp_path / "b/x.png", 1)
    with pytest.raises(DataError):
        read_labels("auto", tmp_path)


# --- folders of splits are no classes


def test_splits_below_other_folders_are_no_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for i in range(3):
            noise(tmp_path / "set/images/100k" / split / f"{split}{i}.png", i)
        text(tmp_path / f"set/labels/det_20/det_{split}.json", "[]")
    with pytest.raises(DataError, match=r"splits and no classes.*labels/det_20/det_train.json and 1 more"):
        read_labels("auto", tmp_path)


def test_a_class_with_folders_of_splits_in_it_is_refused(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        for split in ("train", "test"):
            noise(tmp_path / kind / split / f"{kind}{split}.png", 1)
    with pytest.raises(DataError, match='"cat" or "t'):
        read_labels("folders", tmp_path)
    assert read_labels("folders", tmp_path, level=1).scene_classes == ("cat", "dog")


# --- what nobody reads is named


def test_labels_of_no_known_kind_are_named(tmp_path: Path) -> None:
    for i in range(3):
        photo(tmp_path / "Tissue Images" / f"{i}.png")
        text(tmp_path / "Outlines" / f"{i}.xml", "<Annotations/>")
    with pytest.raises(DataError, match=r"no kind that is read: Outlines/0.xml and 2 more .xml"):
        read_labels("auto", tmp_path)


def test_json_beside_class_folders_is_said(tmp_path: Path) -> None:
    for kind in ("airport", "barn"):
        for i in range(2):
            noise(tmp_path / kind / f"{kind}{i}.jpg", i)
            text(tmp_path / kind / f"{kind}{i}.json", "{}")
    lines = read_labels("folders", tmp_path).understood
    assert (
        "there, and not read: airport/airport0.json and 1 more .json, barn/barn0.json and 1 more .json"
        in lines
    )


# --- tables


def test_forms_and_bare_lists_of_kaggle_are_no_labels(tmp_path: Path) -> None:
    for i in range(8):
        noise(tmp_path / "train_images" / f"a{i}.png", i)
        noise(tmp_path / "test_images" / f"t{i}.png", 50 + i)
    text(tmp_path / "train.csv", "id_code,diagnosis", *(f"a{i},{i % 3}" for i in range(8)))
    text(tmp_path / "test.csv", "id_code", *(f"t{i}" for i in range(8)))
    text(tmp_path / "sample_submission.csv", "id_code,diagnosis", *(f"t{i},0" for i in range(8)))
    found = read_labels("auto", tmp_path)
    assert scenes(found) == {"0": 3, "1": 3, "2": 2}
    assert (
        "there, and not read: sample_submission.csv, test.csv; -o table=NAME reads another table"
        in found.understood
    )


def test_json_in_a_cell_is_no_class(tmp_path: Path) -> None:
    cell = json.dumps([{"x": 1.5, "y": 2, "width": 3, "height": 4, "rectanglelabels": ["crack"]}]).replace(
        '"', '""'
    )
    for i in range(3):
        noise(tmp_path / "images" / f"{i}.png", i)
    text(tmp_path / "project.csv", "id,image,label", *(f'{i},images/{i}.png,"{cell}"' for i in range(3)))
    with pytest.raises(DataError, match=r"project.csv:2: the column \"label\" holds JSON"):
        read_labels("auto", tmp_path)


def test_a_table_of_classes_in_each_split(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("valid", 2)):
        for i in range(count):  # the splits count from 0 each
            noise(tmp_path / split / f"img-{i}.png", i + 10 * count)
        rows = (f"img-{i}.png, {(i + 1) % 2}, {int(i == 0)}" for i in range(count))
        text(tmp_path / split / "_classes.csv", "filename, crack, dent", *rows)
    found = read_labels("auto", tmp_path)
    told = [(item.split, tuple(item.tags or ())) for item in found.items if item.split == "val"]
    assert told == [("val", ("crack", "dent")), ("val", ())] and len(found.items) == 6
    assert Counter(tag for item in found.items for tag in item.tags or ()) == {"crack": 3, "dent": 2}


def boxes(root: Path, head: str, *rows: str, name: str = "train.csv") -> Path:
    for i in range(4):
        noise(root / "images" / f"a{i}.png", i)
    text(root / name, head, *rows)
    return root


VINDR = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"


def test_boxes_of_several_people_are_not_mixed(tmp_path: Path) -> None:
    rows = [f"a{i},Nodule,8,R{r},{1 + r},2,20,{16 + r}" for i in range(3) for r in (8, 9)]
    rows += [f"a3,No finding,14,R{r},,,," for r in (8, 9)]
    boxes(tmp_path, VINDR, *rows)
    with pytest.raises(
        DataError, match=r'"rad_id" says that several people \(R8, R9\) boxed the same images \(4\)'
    ):
        read_labels("auto", tmp_path)
    one = read_labels("auto", tmp_path, annotator="R8")
    assert drawn(one) == {"Nodule": 3} and one.object_classes == ("Nodule",)
    assert [len(item.objects or ()) for item in one.items] == [1, 1, 1, 0]
    assert '"No finding" without a box in 1 row: nothing is there, no class' in one.understood
    assert drawn(read_labels("auto", tmp_path, annotator="all")) == {"Nodule": 6}
    with pytest.raises(DataError, match='holds no boxes of "R1"; choose one of R8, R9, or all'):
        read_labels("auto", tmp_path, annotator="R1")


def test_one_of_several_people_an_image_needs_no_choice(tmp_path: Path) -> None:
    boxes(tmp_path, VINDR, *(f"a{i},Nodule,8,R{i},1,2,20,16" for i in range(4)))
    assert drawn(read_labels("auto", tmp_path)) == {"Nodule": 4}


def test_a_column_of_another_name_and_a_number_that_says_nothing(tmp_path: Path) -> None:
    rows = ["a0,1,2,8,9,1", "a0,12,2,8,9,1", "a1,,,,,0", "a2,3,4,5,6,1", "a3,,,,,0"]
    boxes(tmp_path, "patientId,x,y,width,height,Target", *rows)
    text(
        tmp_path / "info.csv",
        "patientId,class",
        *(f"a{i},{'Normal' if i % 2 else 'Opacity'}" for i in range(4)),
    )
    found = read_labels("auto", tmp_path)
    assert detect(tmp_path).format == "boxes" and drawn(found) == {"1": 3}
    assert [len(item.objects or ()) for item in found.items] == [2, 0, 1, 0]
    assert '"0" without a box in 2 rows: nothing is there, no class' in found.understood


def test_a_class_whose_boxes_are_lost_is_not_nothing(tmp_path: Path) -> None:
    boxes(tmp_path, "image,x,y,width,height,class", "a0,1,2,8,9,bolt", "a1,,,,,nut", "a2,3,4,5,6,bolt")
    with pytest.raises(DataError, match='class "nut"'):
        read_labels("auto", tmp_path)


def test_several_boxes_in_a_cell(tmp_path: Path) -> None:
    rows = ["a0.png,1 2 9 12;10 2 30 20,x", "a1.png,no_box,x", "a2.png,,x", "a3.png,20 2 30 20,y"]
    boxes(tmp_path, "image_name,BoxesString,domain", *rows)
    found = read_labels("auto", tmp_path, classes="wheat", box="corners")
    assert [[label.box for label in item.objects or ()] for item in found.items] == [
        [(1, 2, 9, 12), (10, 2, 30, 20)],
        [],
        [],
        [(20, 2, 30, 20)],
    ]


# --- COCO


def coco(
    root: Path, categories: Sequence[str], annotations: Sequence[dict[str, Any]], count: int = 4
) -> Path:
    for i in range(count):
        noise(root / "images" / f"{i}.png", i)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(count)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories)],
        "annotations": [{"id": i, **row} for i, row in enumerate(annotations)],
    }
    text(root / "annotations.json", json.dumps(content))
    return root


def test_annotations_without_any_place_are_classes_of_images(tmp_path: Path) -> None:
    root = coco(tmp_path, ("oak", "fir", "elm"), [{"image_id": i, "category_id": i % 2} for i in range(3)])
    found = read_labels("auto", root)
    assert scenes(found) == {"oak": 2, "fir": 1} and found.scene_classes == ("oak", "fir")
    assert len(found.items) == 3 and "no class is known" in found.findings[0]
    rows = [{"image_id": i, "category_id": k, "bbox": []} for i in range(4) for k in range(1 + i % 2)]
    several = read_labels("auto", coco(tmp_path / "several", ("oak", "fir"), rows))
    assert [tuple(item.tags or ()) for item in several.items] == [
        ("oak",),
        ("oak", "fir"),
        ("oak",),
        ("oak", "fir"),
    ]


def test_an_empty_frame_of_a_camera_trap_is_empty(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"image_id": i, "category_id": 0} for i in (0, 1)]
    rows += [{"image_id": i, "category_id": 1, "bbox": [2, 3, 10, 12]} for i in (2, 3)]
    found = read_labels("auto", coco(tmp_path, ("empty", "deer"), rows))
    assert [len(item.objects or ()) for item in found.items] == [0, 0, 1, 1]
    assert found.object_classes == ("deer",)
    assert (
        'categories: "empty" without a place in 2 annotations: nothing is there, no class' in found.understood
    )


# --- masks


def test_masks_of_their_photographs_names(tmp_path: Path) -> None:
    for kind in ("Blowhole", "Break"):
        for i in range(4):
            noise(tmp_path / f"MT_{kind}/Imgs/exp{i}{kind}.jpg", i)
            mask(tmp_path / f"MT_{kind}/Imgs/exp{i}{kind}.png", 0, 255)
    found = read_labels("auto", tmp_path)
    assert len(found.items) == 8 and all(item.image.endswith(".jpg") for item in found.items)
    assert found.semantic_classes == ("background", "foreground")


def test_photographs_in_two_forms_are_no_masks(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        for i in range(4):
            noise(tmp_path / kind / f"{kind}{i}.jpg", i)
            noise(tmp_path / kind / f"{kind}{i}.png", 20 + i + len(kind))
    assert detect(tmp_path).format == "folders"


def test_bands_in_folders_of_their_own_are_refused(tmp_path: Path) -> None:
    for i in range(4):
        for k, band in enumerate(("red", "green", "blue", "nir")):
            noise(tmp_path / f"train_{band}" / f"{band}_patch_{i}.png", 10 * i + k, "L")
        mask(tmp_path / "train_gt" / f"gt_patch_{i}.png", 0, 255)
    with pytest.raises(DataError, match="names differ in one word"):
        read_labels("auto", tmp_path)


def test_depth_beside_images_is_not_their_band(tmp_path: Path) -> None:
    for i in range(4):
        noise(tmp_path / "images" / f"rgb_{i}.png", i)
        noise(tmp_path / "depth" / f"depth_{i}.png", i + 9, "L")
        mask(tmp_path / "masks" / f"rgb_{i}.png")
    found = read_labels("auto", tmp_path)
    assert [Path(item.image).parent.name for item in found.items] == ["images"] * 4


def test_values_named_by_a_table_in_each_split(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for i in range(3):
            noise(tmp_path / split / f"a{i}{split}.jpg", i)
            mask(tmp_path / split / f"a{i}{split}_mask.png", 0, 1, 2)
        text(tmp_path / split / "_classes.csv", "Pixel Value, Class", "0, background", "1, crack", "2, dent")
    assert read_labels("auto", tmp_path).semantic_classes == ("background", "crack", "dent")
    text(tmp_path / "valid/_classes.csv", "Pixel Value, Class", "0, background", "1, dent", "2, crack")
    with pytest.raises(DataError, match=r"names other classes than train/_classes.csv"):
        read_labels("auto", tmp_path)


def test_dates_are_no_reports(tmp_path: Path) -> None:
    for city in ("rome", "oslo"):
        for i in (1, 2):
            noise(tmp_path / city / f"{city}{i}.png", i)
        text(tmp_path / city / "dates.txt", "date_1: 20160120", "date_2: 20180328")
    assert all(not item.captions for item in read_labels("folders", tmp_path).items)
    assert detect(tmp_path).format != "captions"


def test_what_is_laid_out_as_published_names_its_format(tmp_path: Path) -> None:
    for kind in ("Urban", "Rural"):
        for i in range(2):
            noise(tmp_path / f"Train/{kind}/images_png/{i}{kind}.png", i)
            mask(tmp_path / f"Train/{kind}/masks_png/{i}{kind}.png", 0, 1, 2)
    with pytest.raises(DataError, match=r"laid out as LoveDA.*--format loveda.*--format masks"):
        read_labels("auto", tmp_path)
    assert len(read_labels("masks", tmp_path).items) == 4
    named = read_labels("auto", tmp_path, classes="ignore=0,background=1,building=2")
    assert named.semantic_classes == ("background", "building")


@pytest.mark.parametrize(
    ("write", "named", "plain"),
    [(write_dior, ("dior", "dior_r"), "voc"), (write_isaid, ("isaid",), "masks")],
)
def test_published_sets_of_two_readings_are_refused_and_both_are_named(
    tmp_path: Path, write: Callable[[Path], Path], named: tuple[str, ...], plain: str
) -> None:
    root = write(tmp_path)
    with pytest.raises(
        DataError, match=rf"{' or '.join(f'--format {n}' for n in named)} reads.*--format {plain} "
    ):
        read_labels("auto", root)
    assert all(read_labels(name, root).items for name in named)


def test_detection_lists_each_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cat", "dog"):
        for i in range(3):
            noise(tmp_path / name / f"{name}{i}.png", i + len(name))
    listed: Counter[Path] = Counter()
    scan = look._listed

    def counting(folder: Path) -> tuple[tuple[str, bool], ...]:
        listed[folder] += 1
        return scan(folder)

    monkeypatch.setattr(look, "_listed", counting)
    assert detect(tmp_path).format == "folders"
    assert listed == {tmp_path: 1, tmp_path / "cat": 1, tmp_path / "dog": 1}
    # Another look sees what has changed since.
    noise(tmp_path / "cow" / "cow0.png", 40)
    assert detect(tmp_path).format == "folders" and listed[tmp_path / "cow"] == 1
