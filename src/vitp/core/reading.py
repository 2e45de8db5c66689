"""Reading text, JSON, YAML and XML that others wrote: nothing is expanded before its size is known.

Each function fails as the parser that it stands for: `parse_json` with a `json.JSONDecodeError` only, `parse_yaml` and
`parse_word` with a `yaml.YAMLError` only, `parse_xml` with an `ElementTree.ParseError` only, whatever the text holds.
`read_text` and `open_file` fail with an `OSError`, and never wait: a named pipe or a device isn't opened.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

MOST_LEVELS = 100
"""Lists, mappings and elements inside of each other."""

MOST_DIGITS = 308
"""Of a number: each whole number so long is still a finite `float`."""

MOST_YAML_NODES = 200_000
"""Values and keys of a YAML document, each alias counted with all that it stands for."""

LARGEST_YAML = 8 << 20
"""Bytes of a YAML document: one of 100,000 class names has three million."""

LARGEST_XML = 256 << 20
"""Bytes of an XML document."""

LARGEST_TEXT = 8 << 30
"""Bytes of any text: the largest published label files have about five thousand million."""

_UNSTATED = 16 << 20
"""Bytes that are read of a file that states no size."""

_EXACT = 16 << 20
"""Characters up to which depth and digits are looked at one by one; the parser's own limits hold above."""

_LONG_NUMBER = re.compile(rf"(?<![0-9])[0-9]{{{MOST_DIGITS + 1}}}")
_XML_OF_BYTES = re.compile(
    rb"""<\?xml[^>]{1,80}encoding=["'](iso-8859-(?:[1-9]|1[013-6])|windows-125[0-8]|latin-?1)["']""",
    re.IGNORECASE,
)
"""The first line of XML that says that each byte is a character."""
_ENTITY = re.compile(r"<!ENTITY", re.IGNORECASE)
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_file(path: str | Path) -> os.stat_result:
    """Return the facts of an ordinary file, links followed, without opening it.

    Raises:
        OSError: It is missing, or is a folder, a named pipe, a socket or a device: some of those would wait for ever.
    """
    facts = Path(path).stat()
    if stat.S_ISREG(facts.st_mode):
        return facts
    kind = next((name for test, name in _KINDS if test(facts.st_mode)), "something else")
    number = errno.EISDIR if stat.S_ISDIR(facts.st_mode) else errno.EINVAL
    raise OSError(number, f"it is {kind}, not a file", str(path))


def real_path(path: str | Path) -> Path:
    """Return a path with all links followed; one whose links lead in a circle stays as it is (`resolve` raises)."""
    return Path(os.path.realpath(path))


def no_such(path: str | Path) -> str:
    """Return that a file or folder isn't there, "" where it is."""
    return "" if Path(path).exists() else "there is no such file or folder"


def open_file(path: str | Path) -> BufferedReader:
    """Return an ordinary file, open for reading bytes.

    Raises:
        OSError: As `check_file`, or it may not be read.
    """
    check_file(path)
    return Path(path).open("rb")


def read_text(path: str | Path, *, largest: int = LARGEST_TEXT, errors: str = "strict") -> str:
    """Return the text of a UTF-8 file without its byte order mark, or of XML whose first line names another encoding.

    Args:
        path: Path of the file.
        largest: Bytes that it may have.
        errors: What stands for bytes that aren't UTF-8, as `bytes.decode` takes it.

    Raises:
        OSError: As `open_file`, or the file is too large.
        UnicodeDecodeError: It isn't UTF-8.
    """
    data = read_bytes(path, largest=largest)
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError:
        # Tools write this line whatever they write below it: UTF-8 that can be read is UTF-8.
        if (named := _XML_OF_BYTES.match(data)) is None:
            raise
        return data.decode(named[1].decode())


def lines_of(text: str) -> list[str]:
    """Return the lines of a file's text, without their ends.

    `str.splitlines` would also cut at what only Unicode calls a line break, such as U+2028, which stands in captions
    and in texts of JSON as any other character does.

    >>> lines_of('a\r\n{"caption": "one\\u2028two"}\n')
    ['a', '{"caption": "one\\u2028two"}']
    """
    lines = re.split(r"\r\n|\n|\r", text)
    return lines if lines[-1] else lines[:-1]


def read_bytes(path: str | Path, *, largest: int) -> bytes:
    """Return the bytes of an ordinary file.

    Raises:
        OSError: As `open_file`, or the file has more than `largest` bytes.
    """
    with open_file(path) as file:
        # Some files, those of /proc for one, state a size of 0. What is asked for is set aside before it is read, so
        # it must not be the limit.
        stated = os.fstat(file.fileno()).st_size
        data = b"" if stated > largest else file.read(stated + 1 if stated else _UNSTATED)
    if stated > largest or len(data) > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes", str(path))
    return data


def head_of(path: str | Path, size: int) -> bytes:
    """Return the first bytes of an ordinary file; none where there is no such file, or it can't be read."""
    try:
        with open_file(path) as file:
            return file.read(size)
    except OSError:
        return b""


def parse_json(text: str, *, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return what a JSON text says.

    Args:
        text: The document.
        pairs_hook: Makes the value of an object from its keys and values; None: a dictionary.

    Raises:
        json.JSONDecodeError: It isn't JSON, is nested too deeply, or has a number of too many digits.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs_hook)
    except RecursionError:
        raise json.JSONDecodeError("lists or objects are nested too deeply", text, 0) from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # Python refuses to read whole numbers of thousands of digits
        if isinstance(error, UnicodeError) or "digit" not in str(error):
            raise
        raise _too_long(text) from None
    if len(text) <= _EXACT:
        if _LONG_NUMBER.search(text) is not None:
            _refuse_long_numbers(text)
        # Brackets are counted first, which is cheap: only a text that could be so deep is walked through.
        if text.count("[") + text.count("{") > MOST_LEVELS and _levels_above(value, MOST_LEVELS):
            raise json.JSONDecodeError(f"has more than {MOST_LEVELS} levels", text, 0)
    return value


def read_json(path: str | Path) -> Any:
    """Return what a JSON file says.

    Raises:
        OSError: As `read_text`.
        ValueError: It isn't UTF-8, or isn't JSON as `parse_json` takes it.
    """
    return parse_json(read_text(path))


def json_or_none(path: str | Path) -> Any | None:
    """Return what a JSON file says; None when there is none or it can't be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _refuse_long_numbers(text: str) -> None:
    def whole(digits: str) -> int:
        if len(digits) > MOST_DIGITS:
            raise _too_long(text)
        return int(digits)

    json.loads(text, parse_int=whole)  # so many digits may also stand in a text, where they do no harm


def _too_long(text: str) -> json.JSONDecodeError:
    found = _LONG_NUMBER.search(text)
    return json.JSONDecodeError(
        f"has a number of more than {MOST_DIGITS} digits", text, found.start() if found else 0
    )


def _levels_above(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(child for child in one.values() if isinstance(child, (dict, list)))
            elif isinstance(one, list):
                below.extend(child for child in one if isinstance(child, (dict, list)))
        if not below:
            return False
        level = below
    return True


def _refusal(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's loader of plain values, which counts before it builds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._count = 0
        self._sizes: dict[str, int] = {}
        """Of what stands under an anchor, aliases in it expanded; set when it is whole."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        loader: Any = self
        event = loader.peek_event()
        if isinstance(event, yaml.AliasEvent):
            size = self._sizes.get(str(event.anchor))
            if size is None and event.anchor in self.anchors:
                text = f"alias {event.anchor!r} stands for something that it is part of"
                raise _refusal(text, event)
            self._add(size or 0, event)
            return super().compose_node(parent, index)
        self._depth += 1
        if self._depth > MOST_LEVELS:
            raise _refusal(f"has more than {MOST_LEVELS} levels", event)
        before = self._count
        self._add(1, event)
        node = super().compose_node(parent, index)
        if event.anchor is not None:
            self._sizes[event.anchor] = self._count - before
        self._depth -= 1
        return node

    def _add(self, count: int, event: Any) -> None:
        self._count += count
        if self._count > MOST_YAML_NODES:
            raise _refusal(f"has more than {MOST_YAML_NODES:,} values with its aliases expanded", event)

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > MOST_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"has a number of more than {MOST_DIGITS} digits", node.start_mark
            )
        return super().construct_yaml_int(node)


_BoundedLoader.add_constructor("tag:yaml.org,2002:int", _BoundedLoader.construct_yaml_int)


class _WordLoader(_BoundedLoader):
    """Reads plain words as YAML 1.2 does: "no", "010", "10:20" and "2020-01-01" are texts, as they may name classes."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 -- its base declares it so; none of the base's is taken over


for _tag, _form, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
):
    _WordLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_form})$"), _first)


def parse_yaml(text: str, loader: type[_BoundedLoader] = _BoundedLoader) -> Any:
    """Return what a YAML text says: plain values only, aliases counted before they are expanded.

    Raises:
        yaml.YAMLError: It isn't YAML, is too large or too deep, its aliases expand to too much, or a tag is none of
            plain values or doesn't fit its value.
    """
    if len(text) > LARGEST_YAML:
        raise yaml.MarkedYAMLError(problem=f"has more than {LARGEST_YAML:,} characters")
    try:
        reading = loader(text)
        try:
            return reading.get_single_data()
        finally:
            reading.dispose()
    except yaml.reader.ReaderError as error:
        problem = f"has a character that YAML forbids (code {error.character}, {error.reason})"
        raise yaml.MarkedYAMLError(problem=problem) from error
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="is nested too deeply") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, IndexError) as error:
        # PyYAML's own conversions: `!!int abc`, `!!bool x`, `2024-99-99`.
        raise yaml.MarkedYAMLError(problem=f"has a value that doesn't fit its tag ({error})") from error


def yaml_fault(error: Exception) -> str:
    """Return the line and the reason of YAML, or of a file, that can't be read.

    The whole error of YAML repeats the text and draws an arrow below it.
    """
    reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {reason}" if mark is not None else str(reason)


def parse_word(text: str) -> Any:
    """Return what the value of a command line's `key=value` says: YAML 1.2, without need of a blank after a colon.

    "no", "010" and "10:20" are texts. `{mode:long,size:512}` is `{mode: long, size: 512}`, not two keys without a
    value: a shell parts words at blanks.

    Raises:
        yaml.YAMLError: As `parse_yaml`.
    """

    def parted(value: Any) -> Any:
        if isinstance(value, list):
            return [parted(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        found = {}
        for key, inner in value.items():
            if inner is None and isinstance(key, str) and ":" in key:
                name, _, word = key.partition(":")
                key, inner = parse_yaml(name, _WordLoader), parse_yaml(word, _WordLoader)
            found[key] = parted(inner)
        return found

    return parted(parse_yaml(text, _WordLoader))


def parse_xml(text: str) -> ElementTree.Element:
    """Return the root of an XML text.

    Raises:
        ElementTree.ParseError: It isn't XML, is too large or too deep, or declares entities, which labels never need.
    """
    if len(text) > LARGEST_XML:
        raise _xml_error(f"has more than {LARGEST_XML:,} characters")
    if _ENTITY.search(text) is not None:
        raise _xml_error("declares entities")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise
    except (ValueError, RecursionError) as error:
        raise _xml_error(str(error)) from error
    level = [root]
    for _ in range(MOST_LEVELS):
        level = [child for element in level for child in element]
    if level:
        raise _xml_error(f"has more than {MOST_LEVELS} levels")
    return root


def _xml_error(reason: str) -> ElementTree.ParseError:
    error = ElementTree.ParseError(reason)
    error.code, error.position = 0, (1, 0)
    return error
