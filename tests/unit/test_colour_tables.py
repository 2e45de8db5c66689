"""Files beside masks that say which colour or value is which class, and numbered lists of class names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.layout_toys import mask, photo
from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.data.formats.class_names import numbered
from vitp.data.formats.mask_classes import read_colour_table
from vitp.records.labels import IGNORE

RGB = np.array([[0, 0, 0], [255, 255, 0], [0, 255, 255]], np.uint8)


def masks_set(root: Path, *, colour: bool) -> Path:
    """Write four images whose masks hold black, yellow and cyan, or 0, 1 and 2."""
    for i in range(4):
        rng = np.random.default_rng(i)
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(root / f"images/{i}.png")
        index_HW = np.zeros((24, 24), np.uint8)
        index_HW[2 : 10 + i, 2:12], index_HW[14:20, 4 : 16 + i] = 1, 2
        Image.fromarray(RGB[index_HW] if colour else index_HW).save(root / f"masks/{i}.png")
    return root


TABLES = {
    "class_dict.csv": "name,r,g,b\nroad,255,255,0\nwater,0,255,255\nunknown,0,0,0\n",
    "label_colors.txt": "0 0 0\tVoid\n255 255 0\troad\n0 255 255\twater\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nno-data:0,0,0::\nroad:255,255,0::\nwater:0,255,255:a,b:c\n",
    "colours.txt": "Unlabelled 0 0 0\nroad 255 255 0\nwater 0 255 255\n",
    "legend.txt": "void: 0,0,0\nroad: 255, 255, 0\nwater: (0, 255, 255)\n",
    "class_colours.txt": "0 = 0 0 0 = void\n1 = 255 255 0 = road\n2 = 0 255 255 = water\n",
    "palette.json": '{"ignore": [0, 0, 0], "road": [255, 255, 0], "water": "#00ffff"}',
    "classes.csv": "id;class;color\n0;void;#000000\n1;road;#ffff00\n2;water;#00ffff\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_colours_name_the_classes(tmp_path: Path, name: str) -> None:
    masks_set(tmp_path, colour=True)
    (tmp_path / name).write_text(TABLES[name])
    found = read_labels("auto", tmp_path)
    assert found.semantic_classes == ("road", "water")
    semantic = found.items[0].semantic
    assert semantic is not None
    mask_HW = semantic()
    assert [mask_HW[0, 0], mask_HW[3, 3], mask_HW[15, 5]] == [IGNORE, 0, 1]
    assert any(f"{name}: " in line and "ignored there" in line for line in found.understood)


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("class_dict.csv", "name,r,g,b\nroad,255,255,0\nwater,0,255,300\n", "class_dict.csv:3"),
        ("label_colors.txt", "0 0 0 Void\n255 255 0 road\ncyan water\n", "label_colors.txt:3"),
        ("labelmap.txt", "road:255,255,0::\nwater:255,255,0::\n", "labelmap.txt"),
        ("colormap.json", '{"road": [1, 2', "colormap.json"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, place: str) -> None:
    masks_set(tmp_path, colour=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        read_labels("masks", tmp_path)
    assert str(error.value).startswith(f"{tmp_path / place}")


def test_other_files_beside_masks_are_no_tables_of_colours(tmp_path: Path) -> None:
    contents = {
        "meta.csv": "name,color\na,red\n",
        "points.txt": "a 1 2 3\n",
        "labels.json": '{"images": [], "categories": [{"name": "ship"}]}',
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        assert read_colour_table(tmp_path / name) is None


def test_a_table_of_colours_needs_numbers_for_masks_of_indices(tmp_path: Path) -> None:
    masks_set(tmp_path, colour=False)
    table = tmp_path / "class_dict.csv"
    table.write_text(TABLES["class_dict.csv"])
    with pytest.raises(DataError, match=r"class_dict\.csv.*one value a pixel.*road=0,water=1"):
        read_labels("masks", tmp_path)
    table.write_text("id,name,r,g,b\n0,void,0,0,0\n1,road,255,255,0\n2,water,0,255,255\n")
    found = read_labels("masks", tmp_path)
    assert found.semantic_classes == ("road", "water")
    assert found.items[0].semantic is not None
    assert found.items[0].semantic()[3, 3] == 0


@pytest.mark.parametrize("mark", [" ", ": ", ",", "\t"])
def test_numbered_names_of_mask_values(tmp_path: Path, mark: str) -> None:
    masks_set(tmp_path, colour=False)
    (tmp_path / "classes.txt").write_text(f"0{mark}background\n1{mark}water\n2{mark}no-data\n")
    found = read_labels("auto", tmp_path)
    assert found.semantic_classes == ("background", "water")
    assert found.items[0].semantic is not None
    mask_HW = found.items[0].semantic()
    assert [mask_HW[0, 0], mask_HW[3, 3], mask_HW[15, 5]] == [0, 1, IGNORE]


def test_which_lines_are_numbered() -> None:
    assert numbered(["0 ship", "1 storage tank"]) == [(0, "ship"), (1, "storage tank")]
    assert numbered(["2 storey house", "3 storey house"]) is None
    assert numbered(["1 storey"]) is None
    assert numbered(["20 a", "7 b"], values=[7, 20, 255]) == [(20, "a"), (7, "b")]
    assert numbered(["0 ship", "car"]) is None


def yolo_set(root: Path, file: str, names: str) -> Path:
    """Write four images with boxes of the classes 0 and 1."""
    for i in range(4):
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{i}.png")
        (root / f"labels/{i}.txt").write_text("0 0.3 0.3 0.2 0.2\n1 0.7 0.7 0.2 0.2\n")
    (root / file).write_text(names)
    return root


@pytest.mark.parametrize("file", ["classes.txt", "obj.names"])
def test_numbered_names_of_yolo(tmp_path: Path, file: str) -> None:
    found = read_labels("auto", yolo_set(tmp_path, file, "0: ship\n1: storage tank\n"))
    assert found.object_classes == ("ship", "storage tank")


def test_numbers_of_yolo_that_do_not_begin_with_0_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="numbers 1–2, which aren't 0–1"):
        read_labels("yolo", yolo_set(tmp_path, "classes.txt", "1 ship\n2 car\n"))


def test_names_of_the_values_as_ade20k_and_camvid_have_them(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"images/{k}.png")
        mask(tmp_path / f"masks/{k}.png", 1, 2, 3)
    info = tmp_path / "objectInfo150.txt"
    rows = [
        "1\t0.15\t11664\t1172\t1\twall",
        "2\t0.10\t6046\t612\t1\tdoor, double door",
        "3\t0.1\t8\t7\t1\tdoor, gate",
    ]
    info.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]))
    found = read_labels("auto", tmp_path)
    assert found.semantic_classes == ("wall", "door, double door", "door, gate")
    assert (
        "values of the masks: 0 = ignore, 1 = wall, 2 = door, double door, 3 = door, gate" in found.understood
    )
    first = found.items[0].semantic
    assert first is not None
    counts = dict(zip(*np.unique(first(), return_counts=True), strict=True))
    assert counts == {0: 120, 1: 120, 2: 120, 255: 1600 - 360}
    info.unlink()
    (tmp_path / "codes.txt").write_text("Sky\nRoad\nTree\nVoid\n")
    assert read_labels("auto", tmp_path).semantic_classes == ("Sky", "Road", "Tree")
    (tmp_path / "codes.txt").write_text("3 Tree\n2 Road\n1 Sky\n0 Void\n")
    assert read_labels("auto", tmp_path).semantic_classes == ("Tree", "Road", "Sky")
    (tmp_path / "codes.txt").write_text("Sky\nRoad\nTree\n")
    with pytest.raises(
        DataError, match=r"codes.txt: names 3 classes, from 0 to 2, but the masks hold values up to 3"
    ):
        read_labels("auto", tmp_path)
    (tmp_path / "colours.csv").write_text("name,r,g,b\nvoid,0,0,0\nSky,1,1,1\nRoad,2,2,2\nTree,3,3,3\n")
    tabled = read_labels("auto", tmp_path)
    assert tabled.semantic_classes == ("Sky", "Road", "Tree")
    assert any(line.startswith("codes.txt: not used, it names 3 classes") for line in tabled.understood)
    (tmp_path / "colours.csv").unlink()
    (tmp_path / "codes.txt").unlink()
    info.write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n1\tof\tmany\tother\tfields\twall\n")
    with pytest.raises(DataError, match=r"objectInfo150.txt: has rows that aren't number"):
        read_labels("auto", tmp_path)
    info.unlink()
    (tmp_path / "codes.txt").write_text("4711\n")  # other codes
    assert read_labels("auto", tmp_path).semantic_classes == ("background", "class_1", "class_2", "class_3")
