"""Tables of captions and classes under the names, heads and delimiters that published sets use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.data.formats.detect import detect_format


def pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


JPEGS = [f"{i}.jpg" for i in range(4)]


@pytest.mark.parametrize(
    ("file", "head", "mark"),
    [
        ("captions.txt", "image,caption", ","),
        ("results.csv", "image_name| comment", "|"),
        ("results.txt", "image\tcaption", "\t"),
        ("captions.csv", "image;caption", ";"),
        ("captions.csv", "image\tcaption", "\t"),
    ],
)
@pytest.mark.parametrize("folder", ["Images", "flickr30k_images"])
def test_captions_of_any_delimiter(tmp_path: Path, file: str, head: str, mark: str, folder: str) -> None:
    pictures(tmp_path / folder, JPEGS)
    rows = [f"{name}{mark}A child climbs stairs {i} ." for name in JPEGS for i in range(2)]
    (tmp_path / file).write_text("\n".join([head, *rows]) + "\n")
    assert detect_format(tmp_path) == "captions"
    for options in ({}, {"table": file}):
        found = read_labels("captions", tmp_path, **options)
        assert [item.captions for item in found.items] == [
            ("A child climbs stairs 0 .", "A child climbs stairs 1 .")
        ] * 4
        assert any("parted by" in line for line in found.understood) == (mark != ",")


def test_texts_for_no_caption_are_counted(tmp_path: Path) -> None:
    pictures(tmp_path / "images", [f"{i}.jpg" for i in range(8)])
    texts = ["A cat.", "nan", "N/A", "None", "NULL", "-", "", "A none too small <image>."]
    (tmp_path / "captions.csv").write_text(
        "image,caption\n" + "".join(f"{i}.jpg,{text}\n" for i, text in enumerate(texts))
    )
    found = read_labels("auto", tmp_path)
    assert [item.captions for item in found.items] == [("A cat.",), ("A none too small <image>.",)]
    assert sum("no caption; left out" in line for line in found.findings) == 6
    assert any('"nan" 1, "N/A" 1, "None" 1, "NULL" 1, "-" 1' in line for line in found.findings)
    assert any("1 hold <image>" in line for line in found.findings)


def test_text_files_that_say_there_is_none_are_no_captions(tmp_path: Path) -> None:
    pictures(tmp_path, JPEGS)
    for name, text in zip(JPEGS, ["A cat.", "n/a", "A dog.\nnull", "nan"], strict=True):
        (tmp_path / name).with_suffix(".txt").write_text(text)
    found = read_labels("auto", tmp_path)
    assert [item.captions for item in found.items] == [("A cat.",), ("A dog.",)]


@pytest.mark.parametrize("head", ["id_code,diagnosis", "Id,grade", "id_code,breed"])
def test_a_table_that_names_the_images_and_few_classes(tmp_path: Path, head: str) -> None:
    pictures(tmp_path / "train_images", [f"x{i}.png" for i in range(6)])
    (tmp_path / "train.csv").write_text(head + "\n" + "".join(f"x{i},{i % 2}\n" for i in range(6)))
    found = read_labels("auto", tmp_path)
    assert found.scene_classes == ("0", "1")
    image, label = head.split(",")
    assert f'train.csv: column "{image}" is the image, "{label}" its class' in found.understood


def test_a_table_whose_class_is_not_known_names_the_options(tmp_path: Path) -> None:
    pictures(tmp_path / "train_images", [f"x{i}.png" for i in range(6)])
    rows = "".join(f"x{i},{20 + i},{i % 2}\n" for i in range(6))
    (tmp_path / "train.csv").write_text("id_code,age,grade\n" + rows)
    with pytest.raises(DataError, match=r"id_code.*train\.csv.*image_column=id_code -o class_column=COLUMN"):
        read_labels("auto", tmp_path)
    found = read_labels("classes", tmp_path, table="train.csv", image_column="id_code", class_column="grade")
    assert found.scene_classes == ("0", "1")


def test_a_table_of_other_facts_beside_class_folders_is_left_alone(tmp_path: Path) -> None:
    for k, folder in enumerate(("cat", "dog")):
        pictures(tmp_path / folder, [f"{folder}{i}{k}.png" for i in range(3)])
    (tmp_path / "meta.csv").write_text("picture,sex\ncat00,f\ncat10,m\ndog01,f\ndog11,m\n")
    assert detect_format(tmp_path) == "folders"


def table(root: Path, rows: list[str], head: str = "image,cat,dog,bird") -> Path:
    pictures(root / "images", [f"{k}.png" for k in range(len(rows))])
    lines = [head, *(f"{k}.png,{row}" for k, row in enumerate(rows))]
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


ROWS = ["1,0,0", "0,1,0", "1,{},0", "0,0,1", "1,1,0", "0,1,1"]


@pytest.mark.parametrize("word", ["", "NA", "nan", "null", "-1"])
def test_what_programs_write_for_nothing_is_not_known(tmp_path: Path, word: str) -> None:
    found = read_labels("auto", table(tmp_path, [row.format(word) for row in ROWS]))
    assert found.scene_classes == ("bird", "cat", "dog")
    assert [item.unknown for item in found.items] == [(), (), ("dog",), (), (), ()]
    assert [item.tags for item in found.items][1:3] == [("dog",), ("cat",)]


@pytest.mark.parametrize("word", ["l", "2", "0.5", "maybe"])
def test_a_column_with_one_odd_cell_is_not_dropped(tmp_path: Path, word: str) -> None:
    """Without it images of that class would say that nothing is there."""
    root = table(tmp_path, [row.format(word) for row in ROWS])
    with pytest.raises(DataError, match=f'column "dog" holds "{word}"') as error:
        read_labels("auto", root)
    assert error.value.where == "labels.csv:4"
    assert read_labels("auto", root, classes="cat,bird").scene_classes == ("cat", "bird")
    with pytest.raises(DataError, match='column "dog" holds'):
        read_labels("auto", root, classes="cat,dog")


def test_columns_of_other_facts_are_no_classes(tmp_path: Path) -> None:
    rows = [
        f"{row.format(0)},{view},{length}" for row, view, length in zip(ROWS, "AABBAB", "314159", strict=True)
    ]
    found = read_labels("auto", table(tmp_path, rows, "image,cat,dog,bird,view,length"))
    assert found.scene_classes == ("bird", "cat", "dog")


@pytest.mark.parametrize("quote", ["'", '""'])
def test_lists_in_cells_are_several_classes(tmp_path: Path, quote: str) -> None:
    cells = [["cat", "dog"], ["bird"], ["cat"], ["dog", "bird"]]
    rows = ['"[' + ", ".join(f"{quote}{name}{quote}" for name in own) + ']"' for own in cells]
    found = read_labels("auto", table(tmp_path, rows, "image,labels"))
    assert found.scene_classes == ("bird", "cat", "dog")
    assert [sorted(item.tags or ()) for item in found.items] == [sorted(own) for own in cells]


@pytest.mark.parametrize("words", ["no yes", "N Y", "False True", "0 Yes"])
def test_words_for_0_and_1_in_several_columns(tmp_path: Path, words: str) -> None:
    no, yes = words.split()
    rows = [f"{(no, yes)[i % 2]},{(no, yes)[i // 2 % 2]}" for i in range(6)]
    found = read_labels("auto", table(tmp_path, rows, "image,cat,dog"))
    assert [item.tags for item in found.items] == [(), ("cat",), ("dog",), ("cat", "dog"), (), ("cat",)]
    told = next(line for line in found.understood if line.startswith("labels.csv"))
    assert {"no yes": "(yes/no: 1 and 0)", "N Y": "(y/n: 1 and 0)"}.get(words, "1 and 0)") in told


@pytest.mark.parametrize("words", ["no yes", "False True", "0 1"])
def test_one_column_of_yes_and_no_says_how_its_classes_get_names(tmp_path: Path, words: str) -> None:
    no, yes = words.split()
    table(tmp_path, [f"{(no, yes)[i % 2]}" for i in range(6)], "image,label")
    found = read_labels("auto", tmp_path)
    assert found.scene_classes == (no, yes)
    expected = (
        f'two classes, called "{no}" and "{yes}" as the cells are: -o classes=A,B names {no} A and {yes} B'
    )
    assert expected in found.understood
    found = read_labels("auto", tmp_path, classes="healthy,sick")
    assert [item.scene for item in found.items] == ["healthy", "sick"] * 3
    assert not any("two classes" in line for line in found.understood)
    table(tmp_path, [f"{(no, yes, '2')[i % 3]}" for i in range(6)], "image,label")
    found = read_labels("auto", tmp_path)
    assert len(found.scene_classes) == 3 and not any("two classes" in line for line in found.understood)


@pytest.mark.parametrize(
    ("head", "row", "message"),
    [
        ("image,car,car", "{0},{1}", 'has "1" and "0" in two columns that are both called "car"'),
        ("image,car,dog", "{0},maybe", 'column "dog" holds "maybe", which is neither 0 nor 1'),
    ],
)
def test_a_table_that_names_the_images_is_refused_for_what_is_wrong_in_it(
    tmp_path: Path, head: str, row: str, message: str
) -> None:
    rows = [f"{row.format(i % 2, i // 2 % 2)}" for i in range(6)]
    rows[2:] = [line.replace("maybe", "1") for line in rows[2:]]
    root = table(tmp_path, rows, head)
    with pytest.raises(DataError, match=message):
        read_labels("auto", root)
