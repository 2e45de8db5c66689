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
