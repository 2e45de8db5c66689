"""`data.yaml` of YOLO sets: class names as they are written, and which folders or lists are the splits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from vitp.core.errors import DataError
from vitp.core.reading import parse_yaml
from vitp.data.formats.walk import read_label_text

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_NULLS = ("", "~", "null", "Null", "NULL")
_WRITE_NAMES = "write names: [first, second] or 0: first"


class _TextLoader(yaml.BaseLoader):
    """Reads every value as the text that is written; "no" and "on" are names here, not booleans."""

    def construct_scalar(self, node: Any) -> Any:
        return None if node.style is None and node.value in _NULLS else node.value


@dataclass(frozen=True)
class DataYaml:
    """A set's YAML file: its values as text, lists and mappings; what is empty or null is None."""

    path: Path
    content: dict[Any, Any]

    def names(self) -> tuple[str, ...]:
        """Return the class names in the order of their numbers.

        Raises:
            DataError: There are none, one is empty, numbers are missing, or `nc` says another count.
        """
        names = self.content.get("names")
        if isinstance(names, dict):
            names = self._numbered(names)
        if not isinstance(names, list) or not names:
            self._refuse("has no list of class names", _WRITE_NAMES)
        for number, name in enumerate(names):
            if not isinstance(name, str) or not name.strip():
                self._refuse(
                    f"class {number} has no name", "write it in quotes if it is meant so", f"[{number}]"
                )
        count = self.content.get("nc")
        if isinstance(count, str) and count.strip().isdecimal() and int(count) != len(names):
            self._refuse(f"there are {len(names)} names, but nc says {count}", "mend the one that is wrong")
        return tuple(name.strip() for name in names)

    def splits(self) -> dict[str, list[str]]:
        """Return the entries of train, val and test: folders or lists, as they are written.

        Raises:
            DataError: An entry is neither text nor a list of texts.
        """
        found: dict[str, list[str]] = {}
        for split, keys in _SPLIT_KEYS.items():
            value = next((self.content[key] for key in keys if self.content.get(key) is not None), None)
            if value is None:
                continue
            entries = value if isinstance(value, list) else [value]
            if not all(isinstance(entry, str) and entry.strip() for entry in entries):
                raise DataError(
                    "is neither a folder, nor a list of names, nor several of them",
                    where=f"{self.path}: {split}",
                    fix="write train: images/train or train: train.txt",
                )
            found[split] = [entry.strip() for entry in entries]
        return found

    def entries(self, root: Path) -> list[tuple[str, str, Path | None]]:
        """Return split, entry and the folder or list in the set's folder that it names, None where it isn't there.

        Exported sets are moved: an entry may begin with "../", and `path` may be that of another machine.
        """
        own, path = self.path.parent, self.content.get("path")
        bases = [own / path.strip(), own] if isinstance(path, str) and path.strip() else [own]
        found = []
        for split, entry in ((split, entry) for split, entries in self.splits().items() for entry in entries):
            name = entry.replace("\\", "/")
            plain = "/".join(part for part in name.split("/") if part not in (".", ".."))
            places = [p for base in bases for p in (Path(os.path.normpath(base / name)), base / plain)]
            there = (p for p in places if p.exists() and p.is_relative_to(root))
            found.append((split, entry, next(there, None)))
        return found

    def keypoints(self) -> tuple[int, int] | None:
        """Return number and columns of an object's keypoints, or None where the set has none.

        Raises:
            DataError: `kpt_shape` isn't of the form [17, 3].
        """
        shape = self.content.get("kpt_shape")
        if shape is None:
            return None
        texts = shape if isinstance(shape, list) else [shape]
        if not (
            len(texts) == 2
            and all(isinstance(text, str) and text.strip().isdecimal() for text in texts)
            and 0 < int(texts[0]) < 10_000
            and int(texts[1]) in (2, 3)
        ):
            raise DataError(
                "is not the number of keypoints and their columns",
                where=f"{self.path}: kpt_shape",
                fix="write kpt_shape: [17, 3]",
            )
        return int(texts[0]), int(texts[1])

    def _numbered(self, names: dict[Any, Any]) -> list[Any]:
        numbers = {}
        for key, name in names.items():
            text = str(key).strip()
            if not text.isdecimal():
                self._refuse(f'"{text}" is not the number of a class', _WRITE_NAMES)
            numbers[int(text)] = name
        missing = next((i for i in range(len(numbers)) if i not in numbers), None)
        if missing is not None:
            self._refuse(f"class {missing} is missing", "number the classes from 0 on without gaps")
        return [numbers[i] for i in range(len(numbers))]

    def _refuse(self, what: str, fix: str, item: str = "") -> NoReturn:
        raise DataError(what, where=f"{self.path}: names{item}", fix=fix)


def find_data_yaml(root: Path) -> DataYaml | None:
    """Return data.yaml, or another YAML file in the set's folder that names classes or splits.

    Raises:
        DataError: data.yaml isn't YAML, or no mapping.
    """
    path = next((root / name for name in _YAML_NAMES if (root / name).is_file()), None)
    if path is not None:
        return _read_data_yaml(path)
    for path in sorted((*root.glob("*.yaml"), *root.glob("*.yml"))):
        try:
            found = _read_data_yaml(path)
        except DataError:
            continue  # the set's folder may hold other YAML files
        if found.content.keys() & {"names", "train"}:
            return found
    return None


def _read_data_yaml(path: Path) -> DataYaml:
    text = read_label_text(path)
    try:
        parse_yaml(text)  # bounds what aliases may expand to
        content = yaml.load(text, Loader=_TextLoader)
    except yaml.YAMLError as error:
        # The whole error repeats the text and draws an arrow below it.
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise DataError(f"is not YAML ({line}{reason})", where=str(path), fix="mend the file") from error
    if not isinstance(content, dict):
        raise DataError("holds no keys such as names", where=str(path), fix=_WRITE_NAMES)
    return DataYaml(path, content)
