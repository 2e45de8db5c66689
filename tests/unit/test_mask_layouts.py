"""Layouts of published sets of masks: fields of view, endings of names, several annotators, GIF, kinds of change."""

from __future__ import annotations

import shlex
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.layout_toys import SIDE, mask, photo
from vitp.core.errors import DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels
from vitp.records.labels import LabelledSet


def _view(path: Path) -> None:
    """Write a field of view: all of the image but a border."""
    path.parent.mkdir(parents=True, exist_ok=True)
    view_HW = np.zeros((SIDE, SIDE), np.uint8)
    view_HW[1:-1, 2:-2] = 255
    Image.fromarray(view_HW).save(path)


def _sums(found: LabelledSet) -> list[int]:
    return [int((item.semantic() == 1).sum()) for item in found.items if item.semantic is not None]


def _drive(root: Path, *, second: bool) -> Path:
    for k in range(21, 24):
        photo(root / f"training/images/{k}_training.tif")
        mask(root / f"training/1st_manual/{k}_manual1.gif")
        _view(root / f"training/mask/{k}_training_mask.gif")
    for k in range(1, 4):
        photo(root / f"test/images/{k:02}_test.tif")
        _view(root / f"test/mask/{k:02}_test_mask.gif")
        if second:
            mask(root / f"test/1st_manual/{k:02}_manual1.gif")
            mask(root / f"test/2nd_manual/{k:02}_manual2.gif", 255, 255)
    return root


def test_fields_of_view_are_no_labels(tmp_path: Path) -> None:
    found = read_labels("auto", _drive(tmp_path, second=False))
    assert _sums(found) == [120] * 3 and {item.split for item in found.items} == {"train"}
    assert "test/mask and training/mask: the field of view, which is no label" in found.understood[0]
    assert found.findings == ("test/images: 3 images without masks; left out",)


def test_two_annotators_are_never_mixed(tmp_path: Path) -> None:
    root = _drive(tmp_path, second=True)
    with pytest.raises(DataError, match="2 people have drawn the masks") as caught:
        read_labels("auto", root)
    assert "test/1st_manual and test/2nd_manual" in caught.value.what
    assert caught.value.fix == "-o annotator=1 or -o annotator=2 reads one's masks"
    first = read_labels("auto", root, annotator=1)
    assert _sums(first) == [120] * 6 and {item.split for item in first.items} == {"train", "test"}
    # Of the second there is none in training.
    second = read_labels("auto", root, annotator=2)
    assert _sums(second) == [240] * 3 and {item.split for item in second.items} == {"test"}
    with pytest.raises(DataError, match=r"no mask is of annotator 3; there are 1, 2"):
        read_labels("auto", root, annotator=3)


@pytest.mark.parametrize("places", [("{}.jpg", "{}_{}.png"), ("Images/{}.jpg", "Masks/{}_{}.png")])
def test_annotators_in_the_names_of_files(tmp_path: Path, places: tuple[str, str]) -> None:
    for k in range(1, 4):
        for eye in "LR":
            photo(tmp_path / places[0].format(f"Image_{k:02}{eye}"))
            mask(tmp_path / places[1].format(f"Image_{k:02}{eye}", "1stHO"))
            mask(tmp_path / places[1].format(f"Image_{k:02}{eye}", "2ndHO"), 255, 255)
    with pytest.raises(DataError, match=r"Image_01L_1stHO.png and .*Image_01L_2ndHO.png"):
        read_labels("auto", tmp_path)
    assert _sums(read_labels("auto", tmp_path, annotator=1)) == [120] * 6
    assert _sums(read_labels("auto", tmp_path, annotator=2)) == [240] * 6
    for path in tmp_path.rglob("*_2ndHO.png"):
        path.unlink()
    assert _sums(read_labels("auto", tmp_path)) == [120] * 6


def test_masks_of_two_people_are_no_two_objects(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"{k}a.png")
        for person in (1, 2):
            mask(tmp_path / f"{k}a_manual{person}.png")
    with pytest.raises(DataError, match="2 people have drawn the masks"):
        read_labels("auto", tmp_path)


@pytest.mark.parametrize(
    "ending", ["reader{}", "readerAB", "reader{}_mask", "mask_expert_{}", "radiologist-{}"]
)
def test_masks_of_people_are_told_by_a_number_or_letter(tmp_path: Path, ending: str) -> None:
    for k in range(3):
        photo(tmp_path / f"{k}.png")
        for person in (1, 2):
            name = ending.format(person).replace("AB", " AB"[person])
            mask(tmp_path / f"{k}_{name}.png", *([255] * person))
    with pytest.raises(DataError, match=r"2 people have drawn the masks \(0_"):
        read_labels("auto", tmp_path)
    assert _sums(read_labels("auto", tmp_path, annotator=2)) == [240] * 3


def test_several_files_whose_names_begin_with_people_are_named(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"p_{k}.png")
        for person in ("anna", "ben"):
            mask(tmp_path / f"{person}_p_{k}.png")
    with pytest.raises(DataError, match=r"anna_p_0, ben_p_0 lie beside p_0, and so for each of 3 images"):
        read_labels("auto", tmp_path)


@pytest.mark.parametrize("ending", ["{}", "mask_{}"])
def test_several_files_of_each_images_name_are_named(tmp_path: Path, ending: str) -> None:
    for k in range(3):
        photo(tmp_path / f"p_{k}.png")
        for person in ("anna", "ben"):
            mask(tmp_path / f"p_{k}_{ending.format(person)}.png")
    with pytest.raises(
        DataError, match=r"p_0_\S*anna, p_0_\S*ben lie beside p_0, and so for each of 3 images"
    ):
        read_labels("auto", tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for k in range(3):
        (tmp_path / f"p_{k}.png").rename(tmp_path / f"images/p_{k}.png")
        (tmp_path / f"p_{k}_{ending.format('ben')}.png").rename(tmp_path / f"masks/p_{k}.png")
        (tmp_path / f"p_{k}_{ending.format('anna')}.png").unlink()
    assert _sums(read_labels("auto", tmp_path)) == [120] * 3


@pytest.mark.parametrize(
    "place",
    [
        "masks/{0}_{1}.png",
        "masks/{0}_mask_{1}.png",
        "masks_{1}/{0}.png",
        "masks/{1}_{0}.png",
        "masks/{1}-{0}_mask.png",
    ],
)
def test_masks_of_people_are_told_by_a_word_and_chosen_by_it(tmp_path: Path, place: str) -> None:
    for k in range(3):
        photo(tmp_path / f"images/p{k}.png")
        for person, name in ((1, "anna"), (2, "ben")):
            mask(tmp_path / place.format(f"p{k}", name), *([255] * person))
    with pytest.raises(DataError, match="of several people") as error:
        read_labels("auto", tmp_path)
    if place.startswith("masks/"):
        names = " and ".join(place.format("p0", name) for name in ("anna", "ben"))
        assert f"3 images have several masks each, {names} for example" in error.value.what
        assert "(anna, ben)" in error.value.what
        verb = "begin" if place.startswith("masks/{1}") else "end"
        assert error.value.fix is not None
        assert error.value.fix.startswith(f"-o annotator=anna reads those whose names {verb} so")
    assert _sums(read_labels("auto", tmp_path, annotator="anna")) == [120] * 3
    assert _sums(read_labels("auto", tmp_path, annotator="ben")) == [240] * 3
    with pytest.raises(DataError, match='no name of a mask ends or begins with the word "carl"'):
        read_labels("auto", tmp_path, annotator="carl")


@pytest.mark.parametrize("place", ["reader{1}/{0}.png", "masks/reader{1}/{0}.png"])
def test_folders_of_people_are_named_as_such(tmp_path: Path, place: str) -> None:
    for k in range(3):
        photo(tmp_path / f"images/p{k}.png")
        for person in (1, 2):
            mask(tmp_path / place.format(f"p{k}", person), *([255] * person))
    with pytest.raises(
        DataError, match=r"reader1, .*reader2 have files of the same names as images"
    ) as error:
        read_labels("auto", tmp_path)
    first = place.rpartition("/")[0].format("", 1)
    assert f"--format masks -o images=images -o masks={first} reads those of one" in error.value.fix
    second = place.rpartition("/")[0].format("", 2)
    assert _sums(read_labels("masks", tmp_path, images="images", masks=second)) == [240] * 3


def test_a_number_of_an_object_or_one_mask_each_is_no_person(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"images/p{k}.png")
        mask(tmp_path / f"masks/p{k}_anna.png", 255)
        for number in (1, 2):
            photo(tmp_path / f"numbers/images/p{k}.png")
            mask(tmp_path / f"numbers/masks/p{k}_{number}.png", 255)
    with pytest.raises(DataError, match="masks have other names than images"):
        read_labels("auto", tmp_path / "numbers")
    shutil.rmtree(tmp_path / "numbers")
    assert _sums(read_labels("auto", tmp_path)) == [120] * 3


def test_images_in_the_folder_of_a_split(tmp_path: Path) -> None:
    for k in range(3):
        for view in (1, 2):
            photo(tmp_path / f"train/0c{k}_0{view}.jpg")
            mask(tmp_path / f"train_masks/0c{k}_0{view}_mask.gif", 1)
        photo(tmp_path / f"test/9c{k}_01.jpg")
    (tmp_path / "train_masks.csv").write_text("img,rle_mask\n0c0_01.jpg,1 2 3 4\n")
    found = read_labels("auto", tmp_path)
    assert _sums(found) == [120] * 6 and {item.split for item in found.items} == {"train"}
    assert found.findings == ("test: 3 images without masks; left out",)


def test_one_ending_of_all_masks(tmp_path: Path) -> None:
    for k in range(1, 12):
        photo(tmp_path / f"stare/im{k:04}.ppm")
        for person in ("ah", "vk"):
            mask(
                tmp_path / f"labels-{person}/im{k:04}.{person}.ppm",
                *((255,) if person == "ah" else (255, 255)),
            )
    with pytest.raises(DataError, match="labels-ah and labels-vk may both hold the masks"):
        read_labels("auto", tmp_path)
    assert _sums(read_labels("auto", tmp_path, images="stare", masks="labels-vk")) == [240] * 11


@pytest.mark.parametrize("places", [("my foo", "b'a\"r"), ("{0}", "{x} $y"), ("-a", "b;c")])
def test_options_in_a_message_are_words_of_a_shell(tmp_path: Path, places: tuple[str, str]) -> None:
    for k in range(5):
        for name in places:
            photo(tmp_path / name / f"im{k}.png")
    with pytest.raises(DataError, match="files of equal names") as caught:
        read_labels("auto", tmp_path)
    words = shlex.split((caught.value.fix or "").partition(" (or the other")[0])
    assert {word.partition("=")[2] for word in words if "=" in word} == set(places)


@pytest.mark.parametrize("person", ["{0}", "{x}", "a b"])
def test_several_people_in_folders_of_odd_names(tmp_path: Path, person: str) -> None:
    for k in range(1, 12):
        photo(tmp_path / f"my {{photos}}/im{k:04}.ppm")
        for name in (person, "z"):
            mask(tmp_path / f"labels {name}/im{k:04}.{name}.ppm")
    with pytest.raises(DataError, match="may both hold the masks") as caught:
        read_labels("auto", tmp_path)
    words = shlex.split((caught.value.fix or "").partition("never mixed: ")[2].partition(" reads one")[0])
    assert words == ["-o", "images=my {photos}", "-o", f"masks=labels {min(person, 'z')}"]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (("1", "2", "10"), ("11", "12", "100")),  # further numbers are no endings
        (("a", "b"), ("a_x", "b_y")),
        (("cat_01", "cat_02"), ("dog_01", "dog_02")),
    ],
)
def test_other_names_are_not_paired(tmp_path: Path, images: Iterable[str], masks: Iterable[str]) -> None:
    for name in images:
        photo(tmp_path / f"images/{name}.png")
    for name in masks:
        mask(tmp_path / f"masks/{name}.png")
    with pytest.raises(DataError, match="no labels found"):
        read_labels("auto", tmp_path)


def test_names_with_accents_case_and_their_folders_name(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"accents/images/évian_{k}.png")
        mask(tmp_path / f"accents/masks/{unicodedata.normalize('NFD', f'évian_{k}')}.png")
        photo(tmp_path / f"case/images/a{k}.JPG")
        mask(tmp_path / f"case/masks/{'aA'[k % 2]}{k}.PNG")
        photo(tmp_path / f"hand/S1Hand/Ghana_{k}_S1Hand.png")
        mask(tmp_path / f"hand/LabelHand/Ghana_{k}_LabelHand.png")
        photo(tmp_path / f"camvid/train/{k}.png")
        mask(tmp_path / f"camvid/trainannot/{k}.png")
    for name in ("accents", "case", "hand", "camvid"):
        assert _sums(read_labels("auto", tmp_path / name)) == [120] * 3


def test_two_images_of_one_name_have_no_one_mask(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"images/{k}.png")
        mask(tmp_path / f"masks/{k}.png")
    photo(tmp_path / "images/1.jpg")
    with pytest.raises(DataError, match=r"two images belong to one name: images/1.jpg and images/1.png"):
        read_labels("auto", tmp_path)


def test_white_in_some_masks_and_ones_in_others(tmp_path: Path) -> None:
    for k in range(4):
        photo(tmp_path / f"images/{k}.png")
        mask(tmp_path / f"masks/{k}.png", 255 if k == 2 else 1)
    with pytest.raises(DataError, match="1 masks hold 0 and 255 alone, and 3 others hold 1 but no 255"):
        read_labels("auto", tmp_path)
    found = read_labels("auto", tmp_path, classes="background=0,road=1,road=255")
    assert _sums(found) == [120] * 4
    # Beside classes in one mask 255 is what to ignore.
    mask(tmp_path / "masks/0.png", 1, 255)
    assert read_labels("auto", tmp_path).semantic_classes == ("background", "foreground")


def test_a_damaged_mask_costs_its_image(tmp_path: Path) -> None:
    for k in range(4):
        photo(tmp_path / f"images/{k}.png")
        mask(tmp_path / f"masks/{k}.png")
    (tmp_path / "masks/1.png").write_bytes((tmp_path / "masks/1.png").read_bytes()[:60])
    found = read_labels("auto", tmp_path)
    assert _sums(found) == [120] * 3
    assert found.findings[0].startswith("masks/1.png: ") and found.findings[0].endswith("image left out")
    for k in range(4):
        (tmp_path / f"masks/{k}.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 4 labels can be used"):
        read_labels("auto", tmp_path)


def test_images_that_no_mask_fits_lie_beside(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"images/{k}.png")
        photo(tmp_path / f"src/part{k}.png")
        mask(tmp_path / f"masks/{k}.png")
    found = read_labels("auto", tmp_path)
    assert _sums(found) == [120] * 3 and found.findings == ("src: 3 images without masks; left out",)


def test_options_that_name_folders_say_the_format(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for k in range(3):
            photo(tmp_path / f"{split}_one/{k}.png")
            mask(tmp_path / f"{split}_two/{k}.png")
    with pytest.raises(DataError, match="files of equal names"):
        read_labels("auto", tmp_path)
    found = read_labels("auto", tmp_path, images="train_one", masks="train_two")
    assert _sums(found) == [120] * 3
    compile_labels(tmp_path, "auto", tmp_path / "out", images="test_one", masks="test_two")
    for split in ("train", "test"):
        for k in range(3):
            photo(tmp_path / f"cracks/{split}_img/{k}.jpg")
            mask(tmp_path / f"cracks/{split}_lab/{k}.png")
    assert _sums(read_labels("auto", tmp_path / "cracks")) == [120] * 6


# --- GIF and palettes


def test_gif_is_read_by_its_colours_where_its_values_have_several(tmp_path: Path) -> None:
    """An empty mask and a full one both hold only the value 0 where a writer left out what doesn't occur."""
    expected = [120, 0, SIDE * SIDE]
    for k in range(3):
        photo(tmp_path / f"images/{k}.jpg")
        mask(tmp_path / f"masks/{k}.gif")
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tmp_path / "masks/1.gif")
    Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(tmp_path / "masks/2.gif")
    found = read_labels("auto", tmp_path)
    assert _sums(found) == expected
    assert any("read by their colours" in line for line in found.understood)
    named = read_labels("auto", tmp_path, classes="bg=0,road=white")
    assert (named.semantic_classes, _sums(named)) == (("bg", "road"), expected)
    compile_labels(tmp_path, "auto", tmp_path / "out", val=0.0, test=0.0)
    assert _sums(read_labels("vitp", tmp_path / "out")) == expected


def _palette(path: Path, values_HW: np.ndarray, colours: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values_HW, "P")
    image.putpalette(colours)
    image.save(path)


def test_a_palette_that_is_turned_is_refused(tmp_path: Path) -> None:
    values_HW = np.ones((SIDE, SIDE), np.uint8)
    values_HW[2:12, 3:15] = 0
    for k in range(3):
        photo(tmp_path / f"images/{k}.png")
        _palette(tmp_path / f"masks/{k}.png", values_HW, [255, 255, 255, 0, 0, 0])
    with pytest.raises(DataError, match="shows 0 as white and 1 as black"):
        read_labels("auto", tmp_path)
    told = read_labels("auto", tmp_path, classes="crack=0,background=1")
    assert told.items[0].semantic is not None and int((told.items[0].semantic() == 0).sum()) == 120


def test_a_table_of_colours_names_those_of_palettes(tmp_path: Path) -> None:
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nroad,255,0,0\ngrass,0,255,0\nbackground,0,0,0\n")
    orders = ([0, 1, 2], [2, 0, 1])
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]])
    for k, order in enumerate(orders):
        photo(tmp_path / f"images/{k}.png")
        path = mask(tmp_path / f"masks/{k}.png", 1, 2)
        values_HW = np.asarray(Image.open(path))
        _palette(path, np.argsort(order).astype(np.uint8)[values_HW], colours[order].reshape(-1).tolist())
    found = read_labels("auto", tmp_path)
    assert found.semantic_classes == ("road", "grass", "background")
    for item in found.items:
        assert item.semantic is not None
        assert np.bincount(item.semantic().reshape(-1)).tolist() == [120, 120, SIDE * SIDE - 240]


# --- change


def test_what_appears_and_vanishes_beside_what_changed(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for k in range(3):
            for date in (1, 2):
                photo(tmp_path / f"{split}/Image{date}/{k}.png")
            both_HW = np.asarray(Image.open(mask(tmp_path / f"{split}/label/{k}.png", 255, 255)))
            for part, rows in ((1, slice(0, 14)), (2, slice(14, None))):
                own_HWC = np.zeros((SIDE, SIDE, 3), np.uint8)
                own_HWC[rows, :, 2 * (part - 1)] = both_HW[rows]
                path = tmp_path / f"{split}/label{part}/{k}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(own_HWC).save(path)
    found = read_labels("auto", tmp_path)
    assert [int(item.change().sum()) for item in found.items if item.change] == [240] * 6
    assert all(item.transition is None for item in found.items)
    assert any("what appears, what vanishes" in line for line in found.understood)


def test_labels_of_matlab_are_named(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"image/{k}.jpg")
        (tmp_path / "groundTruth").mkdir(exist_ok=True)
        (tmp_path / f"groundTruth/{k}.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(DataError, match="groundTruth holds labels in 3 files of MATLAB"):
        read_labels("auto", tmp_path)


def test_camvids_own_folders(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"701_StillsRaw_full/{k}.png")
        mask(tmp_path / f"LabeledApproved_full/{k}_L.png", 1)
    assert _sums(read_labels("auto", tmp_path)) == [120] * 3
