"""Labels that lie beside their images: read wherever these are, whatever their folders are called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.layout_toys import SIDE, mask, photo, text
from vitp.data.formats import detect, read_labels

_EDGES = {"xmin": 4, "ymin": 8, "xmax": 12, "ymax": 24}
_SHIP = {"label": "ship", "points": [[4, 8], [12, 24]], "shape_type": "rectangle"}


def _xml(path: Path) -> None:
    box = "".join(f"<{name}>{value}</{name}>" for name, value in _EDGES.items())
    size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
    ship = f"<object><name>ship</name><bndbox>{box}</bndbox></object>"
    text(path.with_suffix(".xml"), f"<annotation>{size}{ship}</annotation>")


def _labelme(path: Path) -> None:
    whole = {"shapes": [_SHIP], "imagePath": path.name, "imageHeight": SIDE, "imageWidth": SIDE}
    text(path.with_suffix(".json"), json.dumps(whole))


def _yolo(path: Path) -> None:
    text(path.with_suffix(".txt"), f"0 {8 / SIDE} {16 / SIDE} {8 / SIDE} {16 / SIDE}")


_BESIDE: dict[str, Callable[[Path], object]] = {
    "voc": _xml,
    "labelme": _labelme,
    "yolo": _yolo,
    "dota": lambda path: text(path.with_suffix(".txt"), "4 8 12 8 12 24 4 24 ship 0"),
    "captions": lambda path: text(path.with_suffix(".txt"), "a ship in a harbour"),
    "masks": lambda path: mask(path.with_name(f"{path.stem}_mask.png")),
}
_FOLDERS = (
    *((".",), ("images",), ("img",), ("photos",), ("frames",), ("JPEGImages",), ("data/images",), ("a/b",)),
    *(("train",), ("train", "val"), ("train/images", "val/images"), ("images/train", "images/val")),
    *(("part 1", "part 2"), ("images/east", "images/west")),  # which may be classes
)


@pytest.mark.parametrize("kind", _BESIDE)
@pytest.mark.parametrize("folders", _FOLDERS, ids="+".join)
def test_labels_beside_images_are_found_in_any_folder(
    tmp_path: Path, kind: str, folders: tuple[str, ...]
) -> None:
    for place, folder in enumerate(folders):
        for number, name in enumerate(("ahorn", "birke", "eiche")):
            _BESIDE[kind](photo(tmp_path / folder / f"{name}{7 * place + 3 * number}.png"))
    if kind == "yolo":
        text(tmp_path / "classes.txt", "ship")
    if kind == "captions" and folders in _FOLDERS[-2:]:
        assert detect(tmp_path).format == "folders"
        return
    assert detect(tmp_path).format == kind
    found = read_labels("auto", tmp_path)
    assert len(found.items) == 3 * len(folders)
    for item in found.items:
        if kind == "captions":
            assert item.captions == ("a ship in a harbour",)
        elif kind == "masks":
            assert item.semantic is not None and item.semantic().any()
        else:
            (label,) = item.objects or ()
            assert label.category == "ship"
            assert label.box == pytest.approx((4, 8, 12, 24))
    if "train" in folders[0]:
        assert {item.split for item in found.items} == {"train", "val"}.intersection(
            part for folder in folders for part in Path(folder).parts
        )


def test_folders_that_may_be_classes_are_said_beside_labels(tmp_path: Path) -> None:
    for folder, names in (("ash", ("ahorn3", "birke1")), ("elm", ("eiche7", "kiefer2"))):
        for name in names:
            _xml(photo(tmp_path / folder / f"{name}.png"))
    found = detect(tmp_path)
    assert found.format == "voc"
    assert any("not read, but there, too: folders" in line for line in found.understood)


def test_xml_beside_slides_and_scenes_is_no_box(tmp_path: Path) -> None:
    """What other tools write beside images, and an annotation that is another document's part."""
    for name, content in (("oak", "<Dimap_Document/>"), ("elm", "<set><annotation/></set>")):
        photo(tmp_path / "images" / f"{name}.png")
        text(tmp_path / "images" / f"{name}.xml", content)
        text(tmp_path / "images" / f"{name}.txt", "a tree")
    assert detect(tmp_path).format == "captions"
