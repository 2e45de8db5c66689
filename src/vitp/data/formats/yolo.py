"""YOLO text, normalised to the image: boxes, oriented boxes and polygons; `data.yaml` with class names and splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

from vitp.core.errors import DataError
from vitp.core.reading import lines_of, parse_yaml, yaml_fault
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.class_names import doubles, numbered
from vitp.data.formats.dota import are_numbers
from vitp.data.formats.drawn_masks import with_drawn_masks
from vitp.data.formats.image_labels import ImageLabels
from vitp.data.formats.label_files import (
    TEXTS_BESIDE_LABELS,
    LabelFile,
    LabelPlace,
    add_labels,
    find_labels,
    first_rows,
    label_places,
    label_rows,
)
from vitp.data.formats.split_lists import SplitEntry, read_split_list
from vitp.data.formats.splits import check_missing, match_entries
from vitp.data.formats.walk import (
    child,
    comma_list,
    image_folders,
    named_file,
    read_label_text,
    suffixed,
    within,
)
from vitp.data.formats.yolo_rows import RowForm, Rows, form_of, parse_row, survey, yolo_shape
from vitp.records.labels import LabelledSet

_NOT_LABELS = TEXTS_BESIDE_LABELS | {"obj.names", "README.dataset.txt", "README.roboflow.txt"}

_DOUBLE = 'classes: several numbers are called "{}" and count as one class'


def is_yolo(root: Path) -> bool:
    """Return whether a label file's first row is one of YOLO."""
    rows = first_rows(
        [*_yaml_places(root, find_data_yaml(root)), *label_places(root, ("labels",))], _NOT_LABELS
    )
    return any(len(row) >= 5 and are_numbers(row) for row in rows)


def read_yolo(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    drop_empty: bool = False,
    rows: Rows = "auto",
    point_size: float | None = None,
    semantic: bool | str = False,
) -> LabelledSet:
    """Read a YOLO folder.

    A row of 5 columns is a box. Where all longer rows of the set have 9 columns they are oriented boxes; where their
    lengths differ they are polygons; with `kpt_shape` in data.yaml they are boxes with keypoints, which aren't used.

    Args:
        root: Holds `{split}/{images,labels}`, `{images,labels}/{split}`, `images` and `labels` with or without
            sub-folders, or images and text side by side; class names in data.yaml, classes.txt or a `.names` file.
            `path`, `train`, `val` and `test` of data.yaml are followed.
        options: Name, licence, splits.
        classes: The class names in the order of their numbers, instead of a file.
        drop_empty: Leave images with an empty label file out; by default they count as labelled, and there
            is nothing in them. An image without label file is not labelled, and always left out.
        rows: What long rows are: "boxes" (there are none), "oriented", "polygons" or "pose"; "auto" as above.
        point_size: Side in pixels of the box around the centre of a row without width and height; such rows have no
            area by default, and are left out.
        semantic: True: masks of classes, drawn from the outlines, instead of objects; "both": beside them.

    Raises:
        DataError: A row can't be understood, there are no class names, or too many labels can't be used.
    """
    builder = SetBuilder(root, options, point_size=point_size)
    told = find_data_yaml(root)
    names, origin = (known, "the option classes") if (known := comma_list(classes)) else _names(root, told)
    builder.understand(f"class numbers: 0–{len(names) - 1}, named by {origin}")
    builder.understood += [_DOUBLE.format(name) for name in doubles(names)]
    labels = _labels(builder, told)
    form = _form(builder, rows, labels, told, (names, origin))

    def read_one(path: Path, found: ImageLabels) -> int:
        count = 0
        for row, words in label_rows(path):
            count += 1
            where = builder.place(path, row)
            number, values = parse_row(words, path, row, form)
            name = names[number] if 0 <= number < len(names) else ""
            shape = yolo_shape(values, form, found.size)
            if isinstance(shape, str):
                found.lose(where, shape, name)
            elif name:
                found.add(where, name, shape)
            else:
                why = f"class number {number} is not one of 0–{len(names) - 1}"
                found.ignore(where, why, f"class {number}", shape)
        return count

    add_labels(builder, labels, read_one, drop_empty=drop_empty)
    return with_drawn_masks(builder.build(object_classes=tuple(dict.fromkeys(names))), semantic)


def _form(
    builder: SetBuilder,
    rows: Rows,
    labels: Sequence[LabelFile],
    told: DataYaml | None,
    known: tuple[Sequence[str], str],
) -> RowForm:
    """Return what the rows of a set mean.

    Raises:
        DataError: They have two readings; or their numbers run from 1 to that of the classes (`known` holds names and
            their file), so that each would be taken for the class after its own.
    """
    found = survey(entry.labels for entry in labels)
    names, origin = known
    if found.numbers and (min(found.numbers), max(found.numbers)) == (1, len(names)):
        raise DataError(
            f"the class numbers of the labels run from 1 to {len(names)}, those of {origin} from 0 to {len(names) - 1}",
            where=str(builder.root),
            fix=f"count from 0 in the labels; or, if no label is of class 0, name it, too: -o classes=unused,{names[0]},…",
        )
    form = form_of(rows, found, told.keypoints() if told else None)
    if form.text:
        builder.understand(form.text)
    return form


def _names(root: Path, told: DataYaml | None) -> tuple[tuple[str, ...], str]:
    """Return the class names and the file that they come from."""
    places = [
        named_file(base, ("classes.txt",)) for base in (root, child(root, ("labels",))) if base is not None
    ]
    path = next((place for place in (*places, *suffixed(root, ".names")) if place is not None), None)
    if told is not None and (told.content.get("names") is not None or path is None):
        return told.names(), told.path.name
    if path is None:
        fix = "add one of them, or name the classes in order with the option classes"
        raise DataError("no class names found (data.yaml, classes.txt or *.names)", where=str(root), fix=fix)
    lines = [line.strip() for line in lines_of(read_label_text(path).rstrip())]
    empty = next((row for row, line in enumerate(lines, 1) if not line), None)
    if empty is not None or not lines:
        what = "a class has no name: the row is the class's number"
        raise DataError(what, where=f"{path}:{empty or 1}", fix="write one name a row")
    pairs = numbered(lines)
    if pairs is not None and [number for number, _ in pairs] != list(range(len(pairs))):
        raise DataError(
            f"the lines begin with the numbers {pairs[0][0]}–{pairs[-1][0]}, which aren't 0–{len(pairs) - 1}",
            where=str(path),
            fix="number the classes as the labels do, from 0, or name them in order with the option classes",
        )
    names = [name for _, name in pairs] if pairs is not None else lines
    return tuple(names), within(path, root)


def _labels(builder: SetBuilder, told: DataYaml | None) -> list[LabelFile]:
    """Return images and label files with the splits of data.yaml, or else of the folders."""
    root = builder.root
    named = _yaml_places(root, told)
    layout = label_places(root, ("labels",))
    if told is not None:
        _refuse_shared(root, named, told)
    sources = [*named, *layout]
    labels = find_labels(builder, sources, not_labels=_NOT_LABELS)
    for images in image_folders(root):
        if not any(images.path.is_relative_to(place.images) for place in sources):
            text = f"{len(images.files):,} images without a folder of label files; left out"
            builder.note(builder.place(images.path), text)
    entries = told.entries(root) if told else []
    gone = [f"{split}: {entry}" for split, entry, path in entries if path is None]
    lists: list[SplitEntry] = []
    for split, _, path in entries:
        if path is not None and path.is_file():
            lists += read_split_list(path, split, root)
    if not named and not lists:
        if gone and told is not None:
            text = f"{gone[0]} isn't there; the splits are those of the folders"
            builder.understand(f"{told.path.name}: {text}")
        return labels
    assert told is not None
    for missing in gone:
        builder.note(told.path.name, f"{missing} isn't there; left out")
    places = [builder.place(entry.image) for entry in labels]
    splits, misses = match_entries(lists, places)
    check_missing(root, places, misses, builder.note, partial=builder.options.partial)
    builder.splits_from = told.path.name
    found = []
    for entry, listed in zip(labels, splits, strict=True):
        folder = next((place.split for place in named if entry.image.is_relative_to(place.images)), None)
        if listed and folder and listed != folder:
            what = f"is in the list of {listed} and in the folder of {folder}"
            raise DataError(what, where=builder.place(entry.image), fix=f"mend {told.path.name}")
        # The folder that an image lies in says only what data.yaml leaves out.
        other = entry.split if entry.split not in told.splits() else None
        found.append(replace(entry, split=listed or folder or other))
    return found


def _yaml_places(root: Path, told: DataYaml | None) -> list[LabelPlace]:
    """Return the image folders that data.yaml names, each with the folder of its labels."""
    places = []
    for split, _, folder in told.entries(root) if told else ():
        if folder is not None and folder.is_dir():
            # Some write train: train, and mean train/images.
            folder = folder / "images" if (folder / "images").is_dir() else folder
            places.append(LabelPlace(folder, _labels_of(folder, root), split))
    return places


def _labels_of(folder: Path, root: Path) -> Path:
    """Return where the labels of an image folder lie: "images" in its path becomes "labels"."""
    parts = list(folder.relative_to(root).parts)
    for i in reversed(range(len(parts))):
        if parts[i].lower() == "images":
            labels = child(root.joinpath(*parts[:i]), ("labels",))
            if labels is not None and labels.joinpath(*parts[i + 1 :]).is_dir():
                return labels.joinpath(*parts[i + 1 :])
    return folder


def _refuse_shared(root: Path, places: Sequence[LabelPlace], told: DataYaml) -> None:
    for i, place in enumerate(places):
        for other in places[:i]:
            nested = place.images.is_relative_to(other.images) or other.images.is_relative_to(place.images)
            if nested and place.split != other.split:
                raise DataError(
                    f"{other.split} and {place.split} name the same images, {place.images.relative_to(root)}",
                    where=str(told.path),
                    fix="name other images, or remove one of the two, or say the splits with the option split_file",
                )


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
            what = "is not the number of keypoints and their columns"
            raise DataError(what, where=f"{self.path}: kpt_shape", fix="write kpt_shape: [17, 3]")
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
    path = named_file(root, _YAML_NAMES)
    if path is not None:
        return _read_data_yaml(path)
    for path in sorted((*suffixed(root, ".yaml"), *suffixed(root, ".yml"))):
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
        raise DataError(f"is not YAML ({yaml_fault(error)})", where=str(path), fix="mend the file") from error
    if not isinstance(content, dict):
        raise DataError("holds no keys such as names", where=str(path), fix=_WRITE_NAMES)
    return DataYaml(path, content)
