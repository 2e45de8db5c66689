"""YOLO text, normalised to the image: boxes, oriented boxes and polygons; class names in a file beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.class_lists import numbered
from vitp.data.formats.common import ReadOptions, SetBuilder, child, comma_list, read_text
from vitp.data.formats.data_yaml import YAML_NAMES, DataYaml, doubles, read_data_yaml
from vitp.data.formats.image_labels import ImageLabels
from vitp.data.formats.label_files import LabelFile, Place, add_labels, find_labels, label_places
from vitp.data.formats.split_lists import match_entries, read_list
from vitp.data.formats.splits import SplitEntry
from vitp.data.formats.yolo_rows import RowForm, Rows, form_of, parse_row, shape_of, survey
from vitp.records.labels import LabelledSet

NOT_LABELS = (
    "classes.txt",
    "obj.names",
    "train.txt",
    "val.txt",
    "valid.txt",
    "test.txt",
    "trainval.txt",
    "README.txt",
    "README.dataset.txt",
    "README.roboflow.txt",
)


def read(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    drop_empty: bool = False,
    rows: Rows = "auto",
    point_size: float | None = None,
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

    Raises:
        DataError: A row can't be understood, there are no class names, or too many labels can't be used.
    """
    builder = SetBuilder(root, options, point_size=point_size)
    yaml = _data_yaml(root)
    names, origin = (known, "the option classes") if (known := comma_list(classes)) else _names(root, yaml)
    builder.understand(f"class numbers: 0–{len(names) - 1}, named by {origin}")
    for name in doubles(names):
        builder.understand(f'classes: several numbers are called "{name}" and count as one class')
    labels = _labels(builder, yaml)
    form = form_of(rows, survey(entry.labels for entry in labels), yaml.keypoints() if yaml else None)
    if form.text:
        builder.understand(form.text)

    def read_one(path: Path, found: ImageLabels) -> int:
        return _read_objects(builder.place(path), path, found, names, form)

    add_labels(builder, labels, read_one, drop_empty=drop_empty)
    return builder.build(object_classes=tuple(dict.fromkeys(names)))


def class_names(root: Path) -> tuple[str, ...]:
    """Return the class names in the order of their numbers.

    Raises:
        DataError: There is no file that names them, or it can't be understood.
    """
    return _names(root, _data_yaml(root))[0]


def label_folders(root: Path) -> list[Place]:
    """Return where images and labels may lie: what data.yaml names, and the usual folders."""
    return [*_yaml_places(root, _data_yaml(root)), *label_places(root, ("labels",))]


def _names(root: Path, yaml: DataYaml | None) -> tuple[tuple[str, ...], str]:
    """Return the class names and the file that they come from."""
    places = [root / "classes.txt", root / "labels" / "classes.txt", *sorted(root.glob("*.names"))]
    path = next((place for place in places if place.is_file()), None)
    if yaml is not None and (yaml.content.get("names") is not None or path is None):
        return yaml.names(), yaml.path.name
    if path is None:
        raise DataError(
            "no class names found (data.yaml, classes.txt or *.names)",
            where=str(root),
            fix="add one of them, or name the classes in order with the option classes",
        )
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    empty = next((row for row, line in enumerate(lines, 1) if not line), None)
    if empty is not None or not lines:
        raise DataError(
            "a class has no name: the row is the class's number",
            where=f"{path}:{empty or 1}",
            fix="write one name a row",
        )
    pairs = numbered(lines)
    if pairs is not None and [number for number, _ in pairs] != list(range(len(pairs))):
        raise DataError(
            f"the lines begin with the numbers {pairs[0][0]}–{pairs[-1][0]}, which aren't 0–{len(pairs) - 1}",
            where=str(path),
            fix="number the classes as the labels do, from 0, or name them in order with the option classes",
        )
    names = [name for _, name in pairs] if pairs is not None else lines
    return tuple(names), path.relative_to(root).as_posix()


def _data_yaml(root: Path) -> DataYaml | None:
    """Return data.yaml, or another YAML file in the set's folder that names classes or splits."""
    path = next((root / name for name in YAML_NAMES if (root / name).is_file()), None)
    if path is not None:
        return read_data_yaml(path)
    for path in sorted((*root.glob("*.yaml"), *root.glob("*.yml"))):
        try:
            found = read_data_yaml(path)
        except DataError:
            continue  # the set's folder may hold other YAML files
        if found.content.keys() & {"names", "train"}:
            return found
    return None


def _labels(builder: SetBuilder, yaml: DataYaml | None) -> list[LabelFile]:
    """Return images and label files with the splits of data.yaml, or else of the folders."""
    root = builder.root
    named = _yaml_places(root, yaml)
    layout = label_places(root, ("labels",))
    _refuse_shared(root, named, yaml)
    labels = find_labels(builder, [*named, *layout], not_labels=NOT_LABELS)
    lists, gone = _entries(root, yaml)
    if not named and not lists:
        if gone and yaml is not None:
            builder.understand(
                f"{yaml.path.name}: {gone[0]} isn't there; the splits are those of the folders"
            )
        return labels
    assert yaml is not None
    for entry in gone:
        builder.note(yaml.path.name, f"{entry} isn't there; left out")
    splits, missing = match_entries(lists, [builder.place(entry.image) for entry in labels])
    for miss in missing[:20]:
        builder.note(miss.where, f'"{miss.name}" is no labelled image of the set')
    builder.splits_from = yaml.path.name
    return [
        replace(entry, split=_split(builder, yaml, entry, listed, named))
        for entry, listed in zip(labels, splits, strict=True)
    ]


def _split(
    builder: SetBuilder, yaml: DataYaml, entry: LabelFile, listed: str | None, named: Sequence[Place]
) -> str | None:
    """Return the split of an image by data.yaml; its folder says only what data.yaml leaves out."""
    folder = next((place.split for place in named if entry.image.is_relative_to(place.images)), None)
    if listed and folder and listed != folder:
        raise DataError(
            f"is in the list of {listed} and in the folder of {folder}",
            where=builder.place(entry.image),
            fix=f"mend {yaml.path.name}",
        )
    return listed or folder or (entry.split if entry.split not in yaml.splits() else None)


def _entries(root: Path, yaml: DataYaml | None) -> tuple[list[SplitEntry], list[str]]:
    """Return what the lists of data.yaml name, and the entries of data.yaml that aren't there."""
    found: list[SplitEntry] = []
    gone = []
    for split, entry in _split_entries(yaml):
        path = _found(root, yaml, entry)
        if path is None:
            gone.append(f"{split}: {entry}")
        elif path.is_file():
            found += read_list(path, split, root)
    return found, gone


def _split_entries(yaml: DataYaml | None) -> list[tuple[str, str]]:
    if yaml is None:
        return []
    return [(split, entry) for split, entries in yaml.splits().items() for entry in entries]


def _found(root: Path, yaml: DataYaml | None, entry: str) -> Path | None:
    """Return the folder or list that an entry of data.yaml names, in the set's folder, or None.

    Exported sets are moved: an entry may begin with "../", and `path` may be that of another machine.
    """
    name = entry.replace("\\", "/")
    plain = "/".join(part for part in name.split("/") if part not in (".", ".."))
    for base in yaml.bases() if yaml else ():
        for path in (Path(os.path.normpath(base / name)), base / plain):
            if path.exists() and path.is_relative_to(root):
                return path
    return None


def _yaml_places(root: Path, yaml: DataYaml | None) -> list[Place]:
    """Return the image folders that data.yaml names, each with the folder of its labels."""
    places = []
    for split, entry in _split_entries(yaml):
        folder = _found(root, yaml, entry)
        if folder is None or not folder.is_dir():
            continue
        if (folder / "images").is_dir():  # some write train: train, and mean train/images
            folder = folder / "images"
        places.append(Place(folder, _labels_of(folder, root), split))
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


def _refuse_shared(root: Path, places: Sequence[Place], yaml: DataYaml | None) -> None:
    for i, place in enumerate(places):
        for other in places[:i]:
            nested = place.images.is_relative_to(other.images) or other.images.is_relative_to(place.images)
            if nested and place.split != other.split and yaml is not None:
                raise DataError(
                    f"{other.split} and {place.split} name the same images, {place.images.relative_to(root)}",
                    where=str(yaml.path),
                    fix="name other images, or remove one of the two, or say the splits with the option split_file",
                )


def _read_objects(place: str, path: Path, found: ImageLabels, names: tuple[str, ...], form: RowForm) -> int:
    """Read the labels of one file, and return how many rows it has."""
    count = 0
    for row, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        count += 1
        where = f"{place}:{row}"
        number, values = parse_row(words, path, row, form)
        known = 0 <= number < len(names)
        shape = shape_of(values, form, found.size)
        if isinstance(shape, str):
            found.lose(where, shape, names[number] if known else "")
        elif known:
            found.add(where, names[number], shape)
        else:
            why = f"class number {number} is not one of 0–{len(names) - 1}"
            found.ignore(where, why, f"class {number}", shape)
    return count
