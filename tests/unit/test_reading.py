"""Text, JSON, YAML and XML of others: bounded before they are expanded, and one kind of error whatever they hold."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from vitp.core.reading import (
    LARGEST_YAML,
    MOST_DIGITS,
    MOST_LEVELS,
    check_file,
    parse_json,
    parse_word,
    parse_xml,
    parse_yaml,
    read_text,
)


def _bomb(levels: int, width: int = 10) -> str:
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1),
        '{"a":' * 5_000 + "1" + "}" * 5_000,
        '{"a": ' + "1" * 5_000 + "}",
        '{"a": ' + "1" * (MOST_DIGITS + 1) + "}",
        '{"a": "\ud83d" ',
        "",
    ],
)
def test_json_fails_in_one_way(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        parse_json(text)


def test_json_within_the_bounds_is_read_as_ever() -> None:
    digits = "7" * 400
    assert parse_json(f'{{"a": "{digits}", "b": [1, 2.5, null]}}') == {"a": digits, "b": [1, 2.5, None]}
    assert parse_json("[" * MOST_LEVELS + "]" * MOST_LEVELS)
    assert parse_json("9" * MOST_DIGITS) == int("9" * MOST_DIGITS)
    assert parse_json('{"a": 1, "a": 2}', pairs_hook=list) == [("a", 1), ("a", 2)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_bomb(9), "aliases expanded"),
        (
            "a: &a {b: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [*a, *a]}}\n" for n in range(2)) + _bomb(9),
            "aliases",
        ),
        ("a: &a [*a]", "part of"),
        ("[" * 9_999, "levels"),
        ("".join(" " * n + f"k{n}:\n" for n in range(300)), "levels"),
        ("a: !!int abc", "tag"),
        ("a: !!bool perhaps", "tag"),
        ("a: !!timestamp soon", "tag"),
        ("a: 2024-99-99", "tag"),
        ("a: !!float x", "tag"),
        ("a: !mine x", "constructor"),
        ("a: !!python/object/apply:os.system [ls]", "constructor"),
        ("1" * 5_000, "digits"),
        ("0x" + "f" * 5_000, "digits"),
        ("a: \x00", "forbids"),
        ("x" * (LARGEST_YAML + 1), "characters"),
    ],
)
def test_yaml_fails_in_one_way(text: str, said: str) -> None:
    with pytest.raises(yaml.YAMLError, match=said):
        parse_yaml(text)


def test_yaml_aliases_and_merges_of_ordinary_files_work() -> None:
    assert parse_yaml("a: &a {b: 1}\nc: {<<: *a, d: 2}\ne: [*a, *a]\nlr: 0.1") == {
        "a": {"b": 1},
        "c": {"b": 1, "d": 2},
        "e": [{"b": 1}, {"b": 1}],
        "lr": 0.1,
    }
    assert (
        len(parse_yaml("names:\n" + "".join(f"  {n}: class {n}\n" for n in range(2_000)))["names"]) == 2_000
    )


def test_xml_may_name_an_encoding_of_one_byte_a_character(tmp_path: Path) -> None:
    path, head = tmp_path / "a.xml", '<?xml version="1.0" encoding="ISO-8859-1"?>'
    path.write_bytes(f"{head}<a>Gr\u00f6\u00dfe</a>".encode("latin-1"))
    assert parse_xml(read_text(path)).text == "Gr\u00f6\u00dfe"
    # Many tools write that line above UTF-8.
    path.write_bytes(f"{head}<a>Gr\u00f6\u00dfe</a>".encode())
    assert parse_xml(read_text(path)).text == "Gr\u00f6\u00dfe"
    path.write_bytes("<a>Gr\u00f6\u00dfe</a>".encode("latin-1"))
    with pytest.raises(UnicodeDecodeError):
        read_text(path)


@pytest.mark.parametrize(
    "text",
    [
        "<a>" * (MOST_LEVELS + 1) + "</a>" * (MOST_LEVELS + 1),
        '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        '<!DOCTYPE a [<!entity % b SYSTEM "http://localhost/x">]><a/>',
        "<a",
        "<a>\ud800</a>",
        "",
    ],
)
def test_xml_fails_in_one_way(text: str) -> None:
    with pytest.raises(ElementTree.ParseError):
        parse_xml(text)


def test_only_ordinary_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, said in (("pipe", "named pipe"), ("socket", "socket"), (".", "folder")):
            with pytest.raises(OSError, match=said):
                read_text(tmp_path / name)
    for path in ("/dev/zero", "/dev/full"):
        with pytest.raises(OSError, match="device"):
            check_file(path)
    with pytest.raises(OSError, match="symbolic links") as caught:
        read_text(tmp_path / "loop")
    assert caught.value.errno == errno.ELOOP


def test_text_is_bounded_and_loses_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfcar\n")
    assert read_text(path) == "car\n"
    with pytest.raises(OSError, match="more than 3 bytes"):
        read_text(path, largest=3)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("{mode:long,size:512}", {"mode": "long", "size": 512}),
        ("{mode: long, size:512}", {"mode": "long", "size": 512}),
        ("{0:ship,1:car}", {0: "ship", 1: "car"}),
        ("[{a:b},{c:1e3}]", [{"a": "b"}, {"c": "1e3"}]),
        ("{a:[1,2]}", {"a": [1, 2]}),
        ("{a:[1,2}", None),
        ("{a: {b:true}}", {"a": {"b": True}}),
        ("{a:}", {"a": None}),
        ("{a}", {"a": None}),
        ("C:/data", "C:/data"),
    ],
)
def test_mappings_of_the_command_line_need_no_blanks(text: str, meant: object) -> None:
    if meant is None:
        with pytest.raises(yaml.YAMLError):
            parse_word(text)
    else:
        assert parse_word(text) == meant
