"""Sets as people have them, through the command line: each is read as what it is, or refused with the way out."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import done, read_rows, refused, vitp
from vitp.io import image_kinds, images, open_pixels

SIDE = 40
ISPRS = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)


def mask(path: Path, *values: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask_HW = np.zeros((SIDE, SIDE), np.uint8)
    for number, value in enumerate(values or (255,)):
        mask_HW[1 + 13 * number : 13 + 13 * number, 5:15] = value
    Image.fromarray(mask_HW).save(path)


def colours(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels_HWC = np.zeros((SIDE, SIDE, 3), np.uint8)
    for number, colour in enumerate(ISPRS):
        pixels_HWC[:, 7 * number : 7 * number + 7] = colour
    Image.fromarray(pixels_HWC).save(path)


def _potsdam(root: Path) -> None:
    for k in range(6):
        photo(root / "2_Ortho_RGB" / f"top_potsdam_2_1{k}_RGB.tif")
        colours(root / "5_Labels_all" / f"top_potsdam_2_1{k}_label.tif")


def _vaihingen(root: Path) -> None:
    for k in range(6):
        photo(root / "top" / f"top_mosaic_09cm_area{k}.tif")
        colours(root / "gts_for_participants" / f"top_mosaic_09cm_area{k}.tif")
        photo(root / "dsm" / f"dsm_09cm_matching_area{k}.tif")


def _plain(images: str, masks: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for k in range(6):
            photo(root / images.format(k))
            mask(root / masks.format(k))

    return write


def _dates(first: str, second: str, *masks: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for k in range(6):
            photo(root / first / f"{k}.png")
            photo(root / second / f"{k}.png")
            for number, name in enumerate(masks):
                mask(root / name / f"{k}.png", *((1 + number, 2 + number) if len(masks) > 1 else (255,)))

    return write


LAYOUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "imgs + segmentation_masks": (_plain("imgs/i{}.png", "segmentation_masks/i{}.png"), "masks"),
    "imagesTr + labelsTr": (_plain("imagesTr/i{}_0000.png", "labelsTr/i{}.png"), "masks"),
    "train/images + train/targets": (_plain("train/images/i{}.png", "train/targets/i{}.png"), "masks"),
    "images + GT": (_plain("images/i{}.png", "GT/i{}.png"), "masks"),
    "Images + Masks": (_plain("Images/i{}.png", "Masks/i{}.png"), "masks"),
    "IMG_DIR + ANN_DIR": (_plain("IMG_DIR/train/i{}.png", "ANN_DIR/train/i{}.png"), "masks"),
    "NAME_mask": (_plain("i{}.png", "i{}_mask.png"), "masks"),
    "_sat, _mask": (_plain("{}_sat.jpg", "{}_mask.png"), "masks"),
    "_RGBIR, _label": (_plain("top_{}_RGBIR.tif", "top_{}_label.tif"), "masks"),
    "Potsdam": (_potsdam, "masks"),
    "Vaihingen": (_vaihingen, "masks"),
    "im1, im2, label1, label2": (_dates("im1", "im2", "label1", "label2"), "pairs"),
    "before, after, mask": (_dates("before", "after", "mask"), "pairs"),
    "Before, AFTER, Mask": (_dates("Before", "AFTER", "Mask"), "pairs"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_common_layouts_are_what_they_are_and_said_first(tmp_path: Path, layout: str) -> None:
    write, kind = LAYOUTS[layout]
    write(tmp_path / "set")
    printed = done("data", "compile", tmp_path / "set", "--out", tmp_path / "out").out
    lines = printed.splitlines()
    assert lines[0] == f"understood as {kind}:"
    assert printed.index("splits: train") < printed.index("questions by task")
    head = json.loads((tmp_path / "out" / "labels" / "set.json").read_text())
    assert head["scene_classes"] == []  # "Is this scene images or targets?" is never asked
    rows = [
        row
        for split in ("train", "val", "test")
        for row in read_rows(tmp_path / "out" / "labels" / f"{split}.jsonl")
    ]
    key = "change" if kind == "pairs" else "semantic"
    assert len(rows) == 6 and all(key in row for row in rows)
    if kind == "masks" and layout not in ("Potsdam", "Vaihingen"):
        assert head["semantic_classes"] == ["background", "foreground"]


def test_sibling_folders_of_equal_names_are_never_classes(tmp_path: Path) -> None:
    for k in range(6):
        for name in ("foo", "bar"):
            photo(tmp_path / "set" / name / f"{k}a.png")
    line = refused("data", "compile", tmp_path / "set", "--out", tmp_path / "out")
    for option in ("-o images=", "-o masks=", "-o before=", "--format folders"):
        assert option in line
    assert not (tmp_path / "out").exists()
    done("data", "compile", tmp_path / "set", "--format", "folders", "--out", tmp_path / "out")


# --- labels that are lost


def _fair1m(root: Path) -> None:
    for k in range(6):
        photo(root / "JPEGImages" / f"{k}.tif")
        points = "".join(f"<point>{x},{y}</point>" for x, y in ((2, 2), (12, 2), (12, 9), (2, 9)))
        content = (
            f"<annotation><objects><object><coordinate>pixel</coordinate><possibleresult><name>Boeing737</name>"
            f"</possibleresult><points>{points}</points></object></objects></annotation>"
        )
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{k}.xml").write_text(content)


def _coco(root: Path) -> None:
    for k in range(6):
        photo(root / "images" / f"{k}.png")
    images = [{"id": k, "file_name": f"{k}.png", "width": SIDE, "height": SIDE} for k in range(6)]
    rows = [{"id": k, "image_id": k, "category_id": 1, "bbox": [2, 2, 9, 9]} for k in range(6)]
    (root / "annotations").mkdir()
    (root / "annotations" / "instances.json").write_text(json.dumps({"images": images, "annotations": rows}))


def _yolo(root: Path, row: str = "0 20 20 10 10") -> None:
    for k in range(6):
        photo(root / "images" / f"{k}.png")
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{k}.txt").write_text(row)
    (root / "classes.txt").write_text("ship\n")


@pytest.mark.parametrize(
    ("write", "words"),
    [(_coco, "no categories"), (_yolo, "20 looks like pixels")],
)
def test_sets_whose_labels_are_all_lost_are_errors(
    tmp_path: Path, write: Callable[[Path], None], words: str
) -> None:
    write(tmp_path / "set")
    assert words in refused("data", "compile", tmp_path / "set", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_of_another_xml_never_become_background(tmp_path: Path) -> None:
    _fair1m(tmp_path / "set")
    result = vitp("data", "compile", tmp_path / "set", "--out", tmp_path / "out")
    if result.code == 0:  # read as what they are
        rows = read_rows(tmp_path / "out" / "labels" / "train.jsonl")
        assert all(row["objects"] for row in rows)
    else:
        assert result.code == 2 and result.error and not (tmp_path / "out").exists()


def test_an_image_whose_label_is_lost_is_unlabelled_and_the_check_says_so_again(tmp_path: Path) -> None:
    _yolo(tmp_path / "set", "0 .5 .5 .2 .2")
    (tmp_path / "set" / "labels" / "0.txt").write_text("0 .5 nan .2 .2")
    done("data", "compile", tmp_path / "set", "--out", tmp_path / "out")
    names = [
        row["image"]
        for split in ("train", "val", "test")
        for row in read_rows(tmp_path / "out" / f"{split}.jsonl")
    ]
    assert "images/0.png" not in names and len(names) == 5
    checked = done("data", "check", tmp_path / "out").out
    assert "labels/0.txt:1" in checked and "counts as unlabelled" in checked


# --- splits


@pytest.mark.parametrize("form", ["{}.png", "{}", "images/{}.png", "/data/of/others/images/{}.png"])
@pytest.mark.parametrize("beside", ["", "images", "ImageSets/Main", "Splits"])
def test_lists_of_names_are_the_splits(tmp_path: Path, form: str, beside: str) -> None:
    _yolo(tmp_path / "set", "0 .5 .5 .2 .2")
    folder = tmp_path / "set" / beside
    folder.mkdir(parents=True, exist_ok=True)
    for split, numbers in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4, 5))):
        (folder / f"{split}.txt").write_text("".join(form.format(k) + "\n" for k in numbers))
    printed = done("data", "compile", tmp_path / "set", "--out", tmp_path / "out").out
    assert "splits: train 3, val 1, test 2; from the lists train.txt, val.txt, test.txt" in printed
    (folder / "test.txt").write_text("4\n5\nghost\n")
    line = refused("data", "compile", tmp_path / "set", "--out", tmp_path / "more")
    assert 'test.txt:3: "ghost" means no image of the set' in line and "-o partial=true" in line
    done("data", "compile", tmp_path / "set", "--out", tmp_path / "more", "-o", "partial=true")


# --- files of which only a part would be seen


def _pages(path: Path) -> None:
    pictures = [Image.new("RGB", (SIDE, SIDE), (40 * k, 9, 9)) for k in range(1, 4)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])


@pytest.mark.parametrize("name", ["a.tif", "a.gif"])
def test_files_of_several_pages_are_refused_with_their_number(tmp_path: Path, name: str) -> None:
    for kind in ("port", "farm"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        _pages(tmp_path / "set" / kind / f"{kind}_{name}")
    line = refused("data", "compile", tmp_path / "set", "--out", tmp_path / "out")
    assert "holds 3" in line and "only the first of which would be seen" in line


def test_what_only_rasterio_reads_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rasterio = pytest.importorskip("rasterio")
    values = np.random.default_rng(0).integers(0, 255, (3, SIDE, SIDE), dtype=np.uint8)
    kinds = {
        "webp.tif": ("GTiff", {"compress": "WEBP"}),
        "wide.jp2": ("JP2OpenJPEG", {}),
        "float.tif": ("GTiff", {}),
    }
    for module in (image_kinds, images, open_pixels):
        monkeypatch.setattr(module, "has_rasterio", lambda: False)
    for name, (driver, options) in kinds.items():
        own = {
            "webp.tif": values,
            "wide.jp2": values.astype(np.uint16),
            "float.tif": values.astype(np.float32),
        }[name]
        path = tmp_path / name
        form = {"driver": driver, "width": SIDE, "height": SIDE, "count": 3, "dtype": own.dtype.name}
        with rasterio.open(path, "w", **form, **options) as file:
            file.write(own)
        result = vitp("ask", "starter", path, "What is it?")
        assert result.code == 2 and "vitp[geo]" in result.error, name
