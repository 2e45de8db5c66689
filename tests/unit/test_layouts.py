"""Detection: layouts of masks, dates, tables and classes are read as what they are, or refused with their readings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.layout_toys import SIDE, mask, photo
from vitp.core.errors import ConfigError, DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels
from vitp.data.formats.detect import detect_format
from vitp.data.formats.walk import role_of, words_of

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
    "nested scenes": ("Train/Town/images_png/{}.png", "Train/Town/masks_png/{}.png"),
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
    said = r"files of the same names.*-o 'images=pictures of 2021/train' -o masks=.*--format folders"
    with pytest.raises(DataError, match=said):
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
        DataError,
        match=r"c0_0000.png and imagesTr/c0_0001.png are two channels of one case.*the bands of one file",
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
    with pytest.raises(
        DataError, match="A and B are two dates of which no folder of masks says what changed, or two classes"
    ):
        detect_format(tmp_path / "two")
    with pytest.raises(DataError, match="kinds of MRI, not two dates"):
        detect_format(tmp_path / "mri")
    with pytest.raises(DataError, match=r"holds two dates of each place.*xView2"):
        detect_format(tmp_path / "xview")


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


def test_numbered_files_of_other_sizes_are_classes(tmp_path: Path) -> None:
    for k in range(6):
        for step, name in enumerate(("cat", "dog")):
            pixels = np.random.default_rng([k, step]).integers(
                0, 256, (24 + k, 30 + 3 * k + 5 * step, 3), np.uint8
            )
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{k}.jpg")
    found = read_labels("auto", tmp_path)
    assert sorted(item.scene or "" for item in found.items) == ["cat"] * 6 + ["dog"] * 6


@pytest.mark.parametrize("names", [("images",), ("photos", "scans"), ("imgs", "other"), ("harbour",)])
def test_folders_without_labels_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        for k in range(3):
            photo(tmp_path / name / f"{name}{k}.png")
    with pytest.raises(DataError, match="no labels found"):
        detect_format(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("gt", "suv", "van"),
        ("label_0", "label_1"),
        ("mask", "no_mask"),
        ("tile", "wood", "metal"),
        ("truth", "lie"),
    ],
)
@pytest.mark.parametrize("below", ["{}", "train/{}"])
def test_classes_whose_names_are_those_of_contents(
    tmp_path: Path, names: tuple[str, ...], below: str
) -> None:
    for name in names:
        for k in range(3):
            photo(tmp_path / below.format(name) / f"{name}{k}.png")
    assert read_labels("auto", tmp_path).scene_classes == tuple(sorted(names))


@pytest.mark.parametrize(
    "names",
    [("image", "cat", "dog"), ("image", "gt"), ("tile", "wood"), ("labels", "roads"), ("ground_truth", "x")],
)
def test_classes_and_contents_are_both_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        for k in range(3):
            photo(tmp_path / name / f"{name}{k}.png")
    with pytest.raises(
        DataError, match=r"named after what (it|they) holds?, images or masks, or (is|are)"
    ) as caught:
        detect_format(tmp_path)
    assert "--format folders" in str(caught.value.fix) and "-o images=FOLDER -o masks=" in str(
        caught.value.fix
    )
    assert read_labels("folders", tmp_path).scene_classes == tuple(sorted(names))


@pytest.mark.parametrize("below", ["{}/images", "train/{}/images"])
def test_images_within_folders_of_classes(tmp_path: Path, below: str) -> None:
    for name in ("n01", "n02"):
        for k in range(3):
            photo(tmp_path / below.format(name) / f"{name}_{k}.png")
    assert read_labels("auto", tmp_path).scene_classes == ("n01", "n02")
    # With something beside the images they may be sites, and labelled by it.
    (tmp_path / below.format("n01")).with_name("other").mkdir()
    with pytest.raises(DataError, match="no labels found"):
        detect_format(tmp_path)


def test_a_folder_of_images_alone_is_told_in_a_short_line(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"photos/{k}.png")
        (tmp_path / "scans").mkdir(exist_ok=True)
        (tmp_path / f"scans/case{k}_0000.nii.gz").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"holds 3 images and nothing else; name .*\(masks/, labels/, annotations/\)"
    ):
        detect_format(tmp_path / "photos")
    with pytest.raises(
        DataError, match=r"holds 3 volumes and nothing else; name .*imagesTr/ and labelsTr/"
    ) as error:
        detect_format(tmp_path / "scans")
    assert len(str(error.value)) < 400
    (tmp_path / "scans/readme.dat").write_text("something else")
    with pytest.raises(DataError, match="no label format recognised"):
        detect_format(tmp_path / "scans")


def test_masks_without_images_are_no_classes(tmp_path: Path) -> None:
    for name in ("gt", "suv"):
        for k in range(3):
            mask(tmp_path / name / f"{name}{k}.png", 1 + k)
    with pytest.raises(DataError, match="gt is named after what it holds"):
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


@pytest.mark.parametrize("folders", [("old", "new"), ("A", "B", "C"), ("with_mask", "without_mask")])
def test_classes_that_are_called_like_dates_or_masks(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for place, folder in enumerate(folders):
        for number in range(6 - 3 * place if place < 2 else 1):
            photo(
                tmp_path
                / "train"
                / folder
                / f"{number if 'mask' not in folder else f'{folder}_{number}'}.png"
            )
    # Neither is a table about something else, in whatever encoding, one of labels.
    (tmp_path / "sources.csv").write_bytes("file;author\n0.png;Müller\n".encode("latin-1"))
    assert detect_format(tmp_path) == "folders"
    assert read_labels("auto", tmp_path).scene_classes == tuple(sorted(folders))
    (tmp_path / "labels.csv").write_bytes("image;label\n0.png;Käse\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"labels\.csv: may be a table of labels"):
        detect_format(tmp_path)


def test_a_drawing_of_changes_beside_their_masks(tmp_path: Path) -> None:
    for number in range(2):
        for folder in ("A", "B", "diff"):
            photo(tmp_path / folder / f"{number}.png")
        mask(tmp_path / "label" / f"{number}.png")
    found = read_labels("auto", tmp_path)
    assert any("what changed: label" in line for line in found.understood)
    assert [item.change().sum() for item in found.items] == [120, 120]  # type: ignore[misc]
