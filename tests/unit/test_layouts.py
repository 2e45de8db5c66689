"""Detection: layouts of masks, dates, tables and classes are read as what they are, or refused with their readings."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import ConfigError, DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import detect, read_labels
from vitp.data.formats.detect import detect_format
from vitp.data.formats.walk import role_of, words_of
from vitp.data.synthesis.build import SynthesisConfig
from vitp.tasks.data import LabelReader, labelled_only

SIDE = 40


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return path


def mask(path: Path, *values: int) -> Path:
    """Write a mask of 0 with a block of 10 × 12 pixels of each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask_HW = np.zeros((SIDE, SIDE), np.uint8)
    for number, value in enumerate(values or (255,)):
        mask_HW[1 + 13 * number : 13 + 13 * number, 5:15] = value
    Image.fromarray(mask_HW).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


MASK_LAYOUTS = {
    "imgs + masks": ("imgs/i{}.png", "masks/i{}.png"),
    "imgs + segmentation_masks": ("imgs/i{}.png", "segmentation_masks/i{}.png"),
    "imagesTr + labelsTr": ("imagesTr/i{}_0000.png", "labelsTr/i{}.png"),
    "train_images + train_masks": ("train_images/i{}.png", "train_masks/i{}.png"),
    "train/images + train/targets": ("train/images/i{}.png", "train/targets/i{}.png"),
    "images + GT": ("images/i{}.jpg", "GT/i{}.png"),
    "Images + Masks": ("Images/i{}.png", "Masks/i{}.png"),
    "img_dir + ann_dir": ("img_dir/val/i{}.png", "ann_dir/val/i{}.png"),
    "VOC": ("JPEGImages/i{}.jpg", "SegmentationClass/i{}.png"),
    "nested scenes": ("Train/Urban/images_png/{}.png", "Train/Urban/masks_png/{}.png"),
    "unnamed images": ("flight 3/i{}.png", "masks/i{}.png"),
    "images in the root": ("i{}.png", "masks/i{}.png"),
    "words at the end": ("imgs/{}_sat.jpg", "masks/{}_mask.png"),
    "words in front": ("imgs/image_{}.jpg", "masks/mask_{}.png"),
    "one folder": ("d/n{}.png", "d/n{}_mask.png"),
    "one folder, satellite": ("train/{}_sat.jpg", "train/{}_mask.png"),
    "one folder, bands": ("x/top_{}_RGBIR.tif", "x/top_{}_label.tif"),
    "names with spaces": ("Images/scan 1 ({}).png", "Labels/scan 1 ({}).png"),
}


@pytest.mark.parametrize("layout", MASK_LAYOUTS)
def test_layouts_of_masks(tmp_path: Path, layout: str) -> None:
    image_name, mask_name = MASK_LAYOUTS[layout]
    for k in range(4):
        photo(tmp_path / image_name.format(k))
        mask(tmp_path / mask_name.format(k))
    assert detect_format(tmp_path) == "masks"
    found = read_labels("auto", tmp_path)
    assert len(found) == 4 and found.findings == ()
    assert found.scene_classes == () and found.semantic_classes == ("background", "foreground")
    assert all(item.semantic is not None and item.semantic().sum() == 120 for item in found.items)
    split = next(
        (s for s in ("train", "val") if image_name.lower().startswith(s) or f"/{s}/" in image_name), None
    )
    if split or "Tr/" in image_name:
        assert {item.split for item in found.items} == {split or "train"}
    assert "values of the masks: 0 = background, 255 = foreground" in found.understood


def test_masks_of_several_places_and_what_is_missing(tmp_path: Path) -> None:
    for split, place in (("train", "a"), ("val", "b")):
        for k in range(2):
            photo(tmp_path / split / place / "images" / f"{k}.png")
            mask(tmp_path / split / place / "masks" / f"{k}.png", 1, 2)
    photo(tmp_path / "train" / "a" / "images" / "extra.png")
    mask(tmp_path / "val" / "b" / "masks" / "extra.png")
    photo(tmp_path / "test" / "c" / "images" / "0.png")
    found = read_labels("auto", tmp_path)
    assert [(item.id, item.split) for item in found.items] == [
        ("train/a/images/0", "train"),
        ("train/a/images/1", "train"),
        ("val/b/images/0", "val"),
        ("val/b/images/1", "val"),
    ]
    assert found.findings == (
        "test/c/images: 1 images without masks; left out",
        "train/a/images/extra.png: no mask; image left out",
        "val/b/masks/extra.png: its image is missing; left out",
    )


def test_folders_are_named_by_options(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / "pictures of 2021" / "train" / f"{k}.png")
        mask(tmp_path / "roads" / "train" / f"{k}.png")
        mask(tmp_path / "houses" / "train" / f"{k}.png", 3)
    with pytest.raises(DataError, match=r"files of equal names.*-o images=.*-o masks=.*--format folders"):
        detect_format(tmp_path)
    found = read_labels("masks", tmp_path, images="pictures of 2021", masks="houses")
    assert {item.split for item in found.items} == {"train"} and len(found) == 3
    assert found.items[0].semantic().sum() == 120
    with pytest.raises(DataError, match="option images is missing"):
        read_labels("masks", tmp_path, masks="houses")
    with pytest.raises(DataError, match="is not a folder"):
        read_labels("masks", tmp_path, images="pictures of 2021", masks="trees")


def test_two_folders_of_masks_are_two_readings(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / "images" / f"{k}.png")
        mask(tmp_path / "1st_manual" / f"{k}.png")
        mask(tmp_path / "mask" / f"{k}.png")
    with pytest.raises(
        DataError, match=r"1st_manual and mask may both hold the masks.*images=FOLDER and masks=FOLDER"
    ):
        detect_format(tmp_path)
    assert len(read_labels("masks", tmp_path, images="images", masks="1st_manual")) == 3


def test_channels_in_several_files_are_refused(tmp_path: Path) -> None:
    for k in range(2):
        photo(tmp_path / "imagesTr" / f"c{k}_0000.png")
        photo(tmp_path / "imagesTr" / f"c{k}_0001.png")
        mask(tmp_path / "labelsTr" / f"c{k}.png")
    with pytest.raises(
        DataError, match=r"two images belong to one name.*channels of one image must be in one file"
    ):
        detect_format(tmp_path)


@pytest.mark.parametrize(
    "layout", ["{0}/images/{0}.png | {0}/masks/{1}.png", "images/{0}.png | masks/{0}/{1}.png"]
)
def test_one_file_an_object(tmp_path: Path, layout: str) -> None:
    image_name, mask_name = layout.split(" | ")
    for k in range(3):
        photo(tmp_path / image_name.format(f"3f{k}0gt7"))
        for j in range(k + 1):
            mask_HW = np.zeros((SIDE, SIDE), np.uint8)
            mask_HW[10 * j : 10 * j + 10, 4:16] = 255  # they touch, and stay apart
            path = tmp_path / mask_name.format(f"3f{k}0gt7", f"{j}ab")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask_HW).save(path)
    found = read_labels("auto", tmp_path, classes="nucleus")
    assert [len(item.objects or ()) for item in found.items] == [1, 2, 3]
    assert found.object_classes == ("nucleus",)
    assert {label.box for label in found.items[2].objects or ()} == {(4, y, 16, y + 10) for y in (0, 10, 20)}


# --- dates


@pytest.mark.parametrize(
    "folders",
    [
        ("A", "B", "label"),
        ("before", "after", "mask"),
        ("t1", "t2", "GT"),
        ("im1", "im2", "label"),
        ("pre", "post", "change"),
    ],
)
@pytest.mark.parametrize("below", ["{}", "train/{}", "{}/train"])
def test_layouts_of_dates(tmp_path: Path, folders: tuple[str, ...], below: str) -> None:
    for k in range(3):
        for name in folders[:2]:
            photo(tmp_path / below.format(name) / f"{k}.png")
        mask(tmp_path / below.format(folders[2]) / f"{k}.png")
    assert detect_format(tmp_path) == "pairs"
    found = read_labels("auto", tmp_path)
    assert len(found) == 3 and found.findings == ()
    assert all(item.change is not None and item.change().sum() == 120 for item in found.items)
    assert all(folders[1] in str(item.second_image) for item in found.items)
    if "train" in below:
        assert {item.split for item in found.items} == {"train"}


@pytest.mark.parametrize("white", [False, True])
def test_masks_of_classes_of_two_dates(tmp_path: Path, white: bool) -> None:
    for k in range(3):
        for name in ("im1", "im2"):
            photo(tmp_path / name / f"{k}.png")
        for name, value in (("label1", 3), ("label2", 4 + k)):
            path = mask(tmp_path / name / f"{k}.png", value)
            if white:
                grey_HW = np.array(Image.open(path))
                Image.fromarray(np.where(grey_HW > 0, grey_HW, 255).astype(np.uint8)).convert("RGB").save(
                    path
                )
    found = read_labels("auto", tmp_path)
    assert all(item.change is not None and item.change().sum() == 120 for item in found.items)
    assert any("says unchanged" in line for line in found.understood)
    compile_labels(tmp_path, "auto", tmp_path / "out")
    again = read_labels("vitp", tmp_path / "out")
    assert [item.change().sum() for item in again.items] == [120] * 3  # type: ignore[misc]


def test_dates_without_masks_and_kinds_of_mri_are_refused(tmp_path: Path) -> None:
    for k in range(3):
        for name in ("A", "B"):
            photo(tmp_path / "two" / name / f"{k}.png")
        for name in ("t1", "t2", "flair"):
            photo(tmp_path / "mri" / name / f"{k}.png")
        mask(tmp_path / "mri" / "seg" / f"{k}.png")
        for date in ("pre", "post"):
            photo(tmp_path / "xview" / "train" / "images" / f"h_{k}_{date}_disaster.png")
            mask(tmp_path / "xview" / "train" / "targets" / f"h_{k}_{date}_disaster_target.png")
    with pytest.raises(DataError, match="A and B are two dates, but there is no folder of masks"):
        detect_format(tmp_path / "two")
    with pytest.raises(DataError, match="kinds of MRI, not two dates"):
        detect_format(tmp_path / "mri")
    with pytest.raises(DataError, match=r"holds two dates of each place.*xView2"):
        detect_format(tmp_path / "xview")


# --- classes


def test_folders_of_equal_names_are_no_classes(tmp_path: Path) -> None:
    for k in range(5):
        for name in ("foo", "bar"):
            photo(tmp_path / "unknown" / name / f"im{k}.png")
            photo(tmp_path / "numbers" / name / f"{k}.png")
            photo(tmp_path / "classes" / name / f"{name}{k}.png")
    for name in ("unknown", "numbers"):
        with pytest.raises(DataError, match="bar and foo have 5 files of equal names"):
            detect_format(tmp_path / name)
        assert read_labels("folders", tmp_path / name).scene_classes == ("bar", "foo")
    found = read_labels("auto", tmp_path / "classes")
    assert found.scene_classes == ("bar", "foo")
    assert "classes are the folders' names: bar, foo" in found.understood


@pytest.mark.parametrize("names", [("images",), ("photos", "scans"), ("imgs", "other"), ("harbour",)])
def test_folders_without_labels_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        for k in range(3):
            photo(tmp_path / name / f"{name}{k}.png")
    with pytest.raises(DataError, match="no labels found"):
        detect_format(tmp_path)


def test_nested_class_folders(tmp_path: Path) -> None:
    for k in range(2):
        for name in ("land/forest", "land/meadow", "water/lake"):
            photo(tmp_path / "words" / "train" / name / f"{name[-4:]}{k}.png")
        for name in ("benign/p1", "benign/p2", "malignant/p3"):
            photo(tmp_path / "patients" / name / f"{name[-2:]}{k}.png")
    words = read_labels("auto", tmp_path / "words")
    assert words.scene_classes == ("forest", "lake", "meadow") and {i.split for i in words.items} == {"train"}
    assert read_labels("folders", tmp_path / "words", level=1).scene_classes == ("land", "water")
    with pytest.raises(DataError, match=r'the class may be "benign" or "p1".*level=1.*level=2'):
        read_labels("auto", tmp_path / "patients")
    assert read_labels("auto", tmp_path / "patients", level=1).scene_classes == ("benign", "malignant")


TABLES: dict[str, tuple[str, Callable[[int], str]]] = {
    "names": ("image,label", lambda k: f"{k}.png,{'ab'[k % 2]}"),
    "no suffix": ("image_id,age,dx", lambda k: f"{k},{40 + k},{'ab'[k % 2]}"),
    "semicolons": ("filename;class", lambda k: f"{k}.png;{'ab'[k % 2]}"),
    "one column a class": ("image,a,b", lambda k: f"{k},{float(1 - k % 2)},{float(k % 2)}"),
    "paths": ("Path,Category", lambda k: f"pics/{k}.png,{'ab'[k % 2]}"),
}


def class_table(root: Path, head: str, row: Callable[[int], str]) -> Path:
    for k in range(4):
        photo(root / "pics" / f"{k}.png")
    text(root / "labels.csv", head + "\n" + "".join(row(k) + "\n" for k in range(4)))
    return root


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_classes(tmp_path: Path, table: str) -> None:
    class_table(tmp_path, *TABLES[table])
    assert detect_format(tmp_path) == detect_format(tmp_path / "labels.csv") == "classes"
    found = read_labels("auto", tmp_path)
    assert [item.scene for item in found.items] == ["a", "b", "a", "b"] and found.findings == ()
    assert found.scene_classes == ("a", "b")
    assert found.understood[0].startswith('labels.csv: column "')


def test_tables_of_classes_with_numbers_splits_and_gaps(tmp_path: Path) -> None:
    class_table(
        tmp_path,
        "image,label,split",
        lambda k: f"{k + 1}.png,{'' if k == 2 else k},{('train', 'test')[k % 2]}",
    )
    found = read_labels("auto", tmp_path, classes="sea,port,town,farm")
    assert [(i.scene, i.split) for i in found.items] == [("sea", "train"), ("port", "test")]
    assert found.findings == (
        "labels.csv:4: 3.png has no class; left out",
        "labels.csv:5: 4.png is missing; left out",
    )
    assert read_labels("auto", tmp_path).scene_classes == ("0", "1")


@pytest.mark.parametrize(
    ("head", "row", "words"),
    [
        (
            "image,labels",
            lambda k: f"{k}.png,a b",
            'labels.csv: "a b" .* may be one class or 2 classes.*separator=blank',
        ),
        (
            "image,label",
            lambda k: f"0.png,{k}",
            '0.png has the class "1" here and "0" in labels.csv:2.*separator=rows',
        ),
        (
            "filename,xmin,ymin,xmax,ymax,class",
            lambda k: f"{k}.png,1,1,9,9,a",
            "labels.csv is a table of boxes",
        ),
    ],
)
def test_tables_that_say_more_than_a_class(
    tmp_path: Path, head: str, row: Callable[[int], str], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read_labels("auto", class_table(tmp_path, head, row))


MULTI_LABEL: dict[str, tuple[str, Callable[[int], str], dict[str, str]]] = {
    "bars": ("image,labels", lambda k: f"{k}.png,{('a|b', 'c', 'a|c', 'b')[k]}", {}),
    "semicolons": ("file;tags", lambda k: f'{k}.png;"{("a;b", "c", "a;c", "b")[k]}"', {}),
    "commas": ("image,tags", lambda k: f'{k}.png,"{("a, b", "c", "a, c", "b")[k]}"', {}),
    "blanks": ("image,tags", lambda k: f"{k}.png,{('a b', 'c', 'a c', 'b')[k]}", {"separator": "blank"}),
    "columns": ("image,a,b,c", lambda k: f"{k},{('1,1,0', '0,0,1', '1,0,1', '0,1,0')[k]}", {}),
    "rows": (
        "image,class",
        lambda k: f"{k}.png,{'acab'[k]}" + ("", "", "\n2.png,c", "\n0.png,b")[k],
        {"separator": "rows"},
    ),
}


@pytest.mark.parametrize("form", MULTI_LABEL)
def test_tables_of_several_classes_of_an_image(tmp_path: Path, form: str) -> None:
    head, row, options = MULTI_LABEL[form]
    class_table(tmp_path, head, row)
    found = read_labels("auto", tmp_path, **options)
    assert [item.tags for item in found.items] == [("a", "b"), ("c",), ("a", "c"), ("b",)]
    assert found.scene_classes == ("a", "b", "c") and found.findings == ()
    assert all(item.scene is None for item in found.items)
    assert {"images may have several classes", "images of each class: a 2, b 2, c 2"} <= set(found.understood)
    if form == "columns":  # no class at all is an answer there
        text(tmp_path / "labels.csv", "image,a,b,c\n0,1,1,0\n1,0,0,0\n")
        assert read_labels("auto", tmp_path).items[1].tags == ()
    if form == "blanks":
        assert "a b" in read_labels("auto", tmp_path, separator="none").scene_classes
        with pytest.raises(
            ConfigError, match=r'separator: is "tab"; choose bar, semicolon, comma, blank, none or rows'
        ):
            read_labels("auto", tmp_path, separator="tab")


def test_several_classes_survive_compiling_and_become_questions_and_targets(tmp_path: Path) -> None:
    class_table(
        tmp_path / "set", "image,tags,split", lambda k: f"{k}.png,{('a|b', 'c', 'a|c', 'b')[k]},train"
    )
    compile_labels(
        tmp_path / "set", "auto", tmp_path / "out", synthesis=SynthesisConfig(questions_per_image=8)
    )
    labelled = read_labels("vitp", tmp_path / "out")
    assert [item.tags for item in labelled.items] == [("a", "b"), ("c",), ("a", "c"), ("b",)]
    rows = [
        json.loads(line)["conversations"]
        for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()
    ]
    answers = [turn["value"] for turn in rows[0]]
    assert "a, b" in answers and {"yes", "no"} <= set(answers)
    reader = LabelReader(labelled, "presence")
    assert reader.classes == ("a", "b", "c")
    assert reader.target(reader.sample(labelled.items[2])).classes_C.tolist() == [1, 0, 1]
    with pytest.raises(
        DataError, match=r"classes of whole images; images with several classes need .*multi_label"
    ):
        labelled_only(labelled, "scene")


def test_a_column_of_patients_gives_the_groups(tmp_path: Path) -> None:
    class_table(tmp_path, "image,dx,patient_id", lambda k: f"{k}.png,{'ab'[k % 2]},p{k // 2}")
    found = read_labels("auto", tmp_path, val=0.5, test=0)
    assert [item.group for item in found.items] == ["patient-0001"] * 2 + ["patient-0002"] * 2
    assert found.items[0].split == found.items[1].split != found.items[2].split == found.items[3].split
    assert 'labels.csv: images of one "patient_id" are a group' in found.understood
    class_table(
        tmp_path,
        "image,dx,patient_id,split",
        lambda k: f"{k}.png,{'ab'[k % 2]},p{k // 2},{('train', 'val')[k % 2]}",
    )
    (line,) = read_labels("auto", tmp_path).findings
    assert line.startswith(
        "splits: the images are of 2 groups (such as patient-0001), and 2 of them are in several splits"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("stats.csv", "file,size,description\na/a0.png,3,x\n"),
        ("notes.csv", "image,comment\nfoo.png,bar\nbar.png,foo\n"),
        ("meta.json", '[{"image": "a0.png", "text": "x"}]'),
        ("config.json", '{"lr.png": "0.1", "model.png": "vit"}'),
        ("sizes.csv", "name,label\nnobody.png,3\n"),
        ("scores.csv", "image,label\nfoo.png,a\nbar.png,b\n"),
    ],
)
def test_a_stray_table_beside_class_folders_labels_nothing(tmp_path: Path, name: str, content: str) -> None:
    for kind in "ab":
        for k in range(6):
            photo(tmp_path / kind / f"{kind}{k}.png")
    text(tmp_path / name, content)
    found = read_labels("auto", tmp_path)
    assert (
        found.scene_classes == ("a", "b")
        and len(found) == 12
        and all(not item.captions for item in found.items)
    )


def test_a_table_whose_images_are_not_there_is_named(tmp_path: Path) -> None:
    for k in range(6):
        photo(tmp_path / f"{k}.png")
    text(tmp_path / "captions.csv", "image,caption\n" + "".join(f"{k}.jpeg,A port.\n" for k in range(12)))
    with pytest.raises(DataError, match=r"captions.csv names images, but most of them aren't there .*0.jpeg"):
        detect_format(tmp_path)
    text(tmp_path / "captions.csv", "image,caption\n" + "".join(f"{k}.png,A port.\n" for k in range(16)))
    with pytest.raises(
        DataError, match=r"10 of 16 labelled images aren't there .*captions.csv:8.*-o partial=true"
    ):
        read_labels("captions", tmp_path)
    assert len(read_labels("captions", tmp_path, partial=True)) == 6


def test_captions_over_class_folders_say_that_there_are_both(tmp_path: Path) -> None:
    for kind in "ab":
        for k in range(3):
            photo(tmp_path / kind / f"{kind}{k}.png")
    text(
        tmp_path / "c.csv", "image,caption\n" + "".join(f"{s}{k}.png,{s}.\n" for s in "ab" for k in range(3))
    )
    found = detect(tmp_path)
    assert found.format == "captions" and "not read, but there, too: folders" in found.understood[0]


def test_a_table_of_other_things_makes_no_captions(tmp_path: Path) -> None:
    for k in range(4):
        photo(tmp_path / "images" / f"{k}.png")
        mask(tmp_path / "masks" / f"{k}.png")
    text(tmp_path / "images.csv", "image,kind,width\n0.png,stained,40\n")
    text(tmp_path / "dataset.json", '{"labels": {"0": "background"}, "numTraining": 4}')
    assert detect_format(tmp_path) == "masks"
    text(tmp_path / "captions.csv", "image,caption\n0.png,A port.\n")
    assert detect(tmp_path).format == "masks"
    assert "captions" in detect(tmp_path).understood[0]  # and says that there is more
    assert read_labels("captions", tmp_path).items[0].captions == ("A port.",)


def test_captions_keep_line_breaks_and_commas(tmp_path: Path) -> None:
    for name in "abc":
        photo(tmp_path / f"{name}.png")
    text(
        tmp_path / "c.csv",
        'image,caption\na.png,"A port,\nwith two ships."\nb.png,"He said ""ships""."\n\nc.png,"x"\n',
    )
    found = read_labels("auto", tmp_path)
    assert {Path(i.image).name: i.captions for i in found.items} == {
        "a.png": ("A port, with two ships.",),
        "b.png": ('He said "ships".',),
        "c.png": ("x",),
    }
    text(tmp_path / "c.csv", 'image,caption\na.png,"A port,\nwith ships."\nb.png,A port, with ships.\n')
    with pytest.raises(DataError, match=r"c.csv:4: has 3 cells, the head 2"):
        read_labels("auto", tmp_path)
    (tmp_path / "c.csv").unlink()
    text(tmp_path / "c.jsonl", '{"image": "a.png", "caption": "One\u2028two."}\n')
    assert read_labels("auto", tmp_path).items[0].captions == ("One two.",)


def test_words_in_names() -> None:
    assert words_of("JPEGImages") == ["jpeg", "images"] and words_of("train_images2") == ["train", "images"]
    assert words_of("3f0gt7") == [] and role_of("00gt1mask2") == ""
    assert role_of("SegmentationClass") == "mask" and role_of("SegmentationObject") == "instance"
    assert role_of("image_masks") == "mask" and role_of("Images") == "image" and role_of("harbour") == ""


def test_options_of_masks_are_checked(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "0.png")
    mask(tmp_path / "masks" / "0.png")
    with pytest.raises(ConfigError, match=r"mask_type.*semantic or instances"):
        read_labels("masks", tmp_path, mask_type="instance")
    with pytest.raises(ConfigError, match=r"strays.*nearest or ignore"):
        read_labels("masks", tmp_path, strays="drop")


def test_cityscapes_is_no_set_of_class_folders(tmp_path: Path) -> None:
    for split, city in (("train", "bonn"), ("val", "ulm")):
        for number in range(2):
            name = f"{split}/{city}/{city}_{number:06d}_000019"
            photo(tmp_path / f"leftImg8bit/{name}_leftImg8bit.png")
            for kind, value in (("labelIds", 7), ("instanceIds", 26), ("color", 3)):
                mask(tmp_path / f"gtFine/{name}_gtFine_{kind}.png", value)
    found = read_labels("auto", tmp_path)
    assert not found.scene_classes and found.findings == ()
    assert {item.id.split("/")[2]: item.split for item in found.items} == {"bonn": "train", "ulm": "val"}
    assert all(item.semantic.path.endswith("labelIds.png") for item in found.items)


def test_masks_that_are_called_otherwise_are_no_classes(tmp_path: Path) -> None:
    for number in range(3):
        photo(tmp_path / f"images/bonn/p{number}.png")
        mask(tmp_path / f"masks/bonn/q{number}.png")
        mask(tmp_path / f"masks/ulm/r{number}.png")
    with pytest.raises(DataError, match=r"masks have other names than images \(q0\.png, p0\.png\)"):
        detect_format(tmp_path)


@pytest.mark.parametrize(
    "folders", [("T1", "T2", "T3"), ("A/train", "B/train", "C/train"), ("img_1", "img_2", "img_3")]
)
def test_three_dates_are_refused(tmp_path: Path, folders: tuple[str, ...]) -> None:
    below = folders[0].partition("/")[2]
    for number in range(2):
        for folder in folders:
            photo(tmp_path / folder / f"{number}.png")
        mask(tmp_path / "label" / below / f"{number}.png")
    with pytest.raises(DataError, match=f"{folders[0]}, {folders[1]} and {folders[2]} are three dates"):
        detect_format(tmp_path)
    names = {
        key: folder.partition("/")[0] for key, folder in zip(("before", "after"), folders[1:], strict=True)
    }
    found = read_labels("pairs", tmp_path, **names)
    assert {Path(item.image).parent for item in found.items} == {tmp_path / folders[1]}


@pytest.mark.parametrize("value", [0, 255])
def test_masks_of_change_of_one_value_are_refused(tmp_path: Path, value: int) -> None:
    for number in range(2):
        for folder in ("old", "new"):
            photo(tmp_path / folder / f"{number}.png")
        (tmp_path / "diff").mkdir(exist_ok=True)
        Image.fromarray(np.full((SIDE, SIDE), value, np.uint8)).save(tmp_path / f"diff/{number}.png")
    assert detect_format(tmp_path) == "pairs"
    with pytest.raises(DataError, match=f"have one value, {value}: either nothing or everything changed"):
        read_labels("pairs", tmp_path)
    assert not read_labels("pairs", tmp_path, unchanged=value).items[0].change().any()


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_tables_in_another_encoding_are_named(tmp_path: Path, encoding: str) -> None:
    images = [photo(tmp_path / f"images/{number}.png") for number in range(3)]
    rows = ["image,label", *(f"{path.name},Käse" for path in images)]
    (tmp_path / "labels.csv").write_bytes("\n".join(rows).encode(encoding))
    with pytest.raises(DataError, match=r"labels\.csv: may be a table of labels, but is not UTF-8 text"):
        detect_format(tmp_path)
