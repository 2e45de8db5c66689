"""Options of label formats: what a word of the command line is, and which type a reader gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from vitp.core.errors import ConfigError
from vitp.core.reading import parse_word
from vitp.data.formats import LABEL_FORMATS, option_names, read_labels
from vitp.data.formats.option_types import typed_options


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[no, yes, on, off]", ["no", "yes", "on", "off"]),
        ("[010, 10:20, 2020-01-01, 1_000, 0x10]", ["010", "10:20", "2020-01-01", "1_000", "0x10"]),
        ("{no: 1, yes:2}", {"no": 1, "yes": 2}),
        ("[1, -3, 1.5, .5, 1.5e3, true, null]", [1, -3, 1.5, 0.5, 1500.0, True, None]),
        ('["true", "1"]', ["true", "1"]),
        ("", None),
    ],
)
def test_words_are_what_yaml_1_2_says(text: str, value: Any) -> None:
    assert parse_word(text) == value


DECLARED = {
    "classes": str | list[str] | None,
    "values": str | Sequence[str] | Mapping[str, str | int] | None,
    "share": float,
    "count": int,
    "flag": bool,
    "both": bool | str,
    "choice": Literal["", "a"],
}


@pytest.mark.parametrize(
    ("name", "value", "typed"),
    [
        ("classes", [1, 2], ["1", "2"]),
        ("classes", 7, "7"),
        ("classes", None, None),
        ("classes", ("a", "b"), ("a", "b")),
        ("values", {"a": 1}, {"a": 1}),
        ("share", 1, 1),
        ("share", "1e-3", 1e-3),
        ("both", True, True),
        ("both", "both", "both"),
        ("choice", 5, 5),  # its reader names the choices
        ("unknown", object, object),
    ],
)
def test_numbers_are_texts_where_texts_are_declared(name: str, value: Any, typed: Any) -> None:
    found = typed_options({name: value}, DECLARED)[name]
    assert found == typed and type(found) is type(typed)


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("classes", True, "two pairs of quotes"),
        ("classes", [["a"]], "text or a list of texts"),
        ("classes", {"a": 1}, "text or a list of texts"),
        ("share", "many", "a number"),
        ("share", True, "a number"),
        ("count", 1.5, "a whole number"),
        ("flag", "maybe", "true or false"),
        ("flag", 1, "true or false"),
    ],
)
def test_another_type_is_one_line_that_names_the_option(name: str, value: Any, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        typed_options({name: value}, DECLARED)
    assert str(caught.value).startswith(f"{name}: is ") and fix in str(caught.value)


def test_classes_of_yolo_may_be_called_no_or_by_numbers(tmp_path: Path) -> None:
    for number in range(3):
        for split in ("train", "val"):
            for kind in ("images", "labels"):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
            name = f"{split}{number}"
            Image.new("RGB", (32, 32), (number * 60, 9, 9)).save(tmp_path / split / "images" / f"{name}.png")
            (tmp_path / split / "labels" / f"{name}.txt").write_text(f"{number} 0.5 0.5 0.4 0.4\n")
    for word, names in (("[no, yes, 010]", ("no", "yes", "010")), ("[7, 8, 9]", ("7", "8", "9"))):
        found = read_labels("yolo", tmp_path, classes=parse_word(word))
        assert found.object_classes == names
        assert {label.category for item in found.items for label in item.objects or ()} == set(names)
    with pytest.raises(ConfigError, match="group_regex: is "):
        read_labels("yolo", tmp_path, classes="a,b,c", group_regex=parse_word("[a-z]"))


def test_every_reader_declares_types_that_can_be_looked_up() -> None:
    """An annotation that can't be evaluated would leave its reader unguarded, or break each call of it."""
    for name in LABEL_FORMATS:
        if "val" in option_names(name):
            with pytest.raises(ConfigError, match="val: is 'much'"):
                read_labels(name, Path(__file__).parent, val="much")
