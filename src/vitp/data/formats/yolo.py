"""YOLO text, normalised to the image: boxes, oriented boxes and polygons; class names in a file beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.class_names import doubles, numbered
from vitp.data.formats.data_yaml import DataYaml, find_data_yaml
from vitp.data.formats.dota import are_numbers
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
from vitp.data.formats.splits import SplitEntry, match_entries, read_split_list
from vitp.data.formats.walk import child, comma_list, read_label_text, within
from vitp.data.formats.yolo_rows import Rows, form_of, parse_row, survey, yolo_shape
from vitp.records.labels import LabelledSet

_NOT_LABELS = TEXTS_BESIDE_LABELS | {"obj.names", "README.dataset.txt", "README.roboflow.txt"}


def is_yolo(root: Path) -> bool:
    """Return whether the first row of a folder's label files is one of YOLO."""
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
    yaml = find_data_yaml(root)
    names, origin = (known, "the option classes") if (known := comma_list(classes)) else _names(root, yaml)
    builder.understand(f"class numbers: 0–{len(names) - 1}, named by {origin}")
    for name in doubles(names):
        builder.understand(f'classes: several numbers are called "{name}" and count as one class')
    labels = _labels(builder, yaml)
    form = form_of(rows, survey(entry.labels for entry in labels), yaml.keypoints() if yaml else None)
    if form.text:
        builder.understand(form.text)

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
    return builder.build(object_classes=tuple(dict.fromkeys(names)))


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
    lines = [line.strip() for line in read_label_text(path).rstrip().splitlines()]
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
    return tuple(names), within(path, root)


def _labels(builder: SetBuilder, yaml: DataYaml | None) -> list[LabelFile]:
    """Return images and label files with the splits of data.yaml, or else of the folders."""
    root = builder.root
    named = _yaml_places(root, yaml)
    layout = label_places(root, ("labels",))
    if yaml is not None:
        _refuse_shared(root, named, yaml)
    labels = find_labels(builder, [*named, *layout], not_labels=_NOT_LABELS)
    entries = yaml.entries(root) if yaml else []
    gone = [f"{split}: {entry}" for split, entry, path in entries if path is None]
    lists: list[SplitEntry] = []
    for split, _, path in entries:
        if path is not None and path.is_file():
            lists += read_split_list(path, split, root)
    if not named and not lists:
        if gone and yaml is not None:
            text = f"{gone[0]} isn't there; the splits are those of the folders"
            builder.understand(f"{yaml.path.name}: {text}")
        return labels
    assert yaml is not None
    for missing in gone:
        builder.note(yaml.path.name, f"{missing} isn't there; left out")
    splits, misses = match_entries(lists, [builder.place(entry.image) for entry in labels])
    for miss in misses[:20]:
        builder.note(miss.where, f'"{miss.names[0]}" is no labelled image of the set')
    builder.splits_from = yaml.path.name
    found = []
    for entry, listed in zip(labels, splits, strict=True):
        folder = next((place.split for place in named if entry.image.is_relative_to(place.images)), None)
        if listed and folder and listed != folder:
            raise DataError(
                f"is in the list of {listed} and in the folder of {folder}",
                where=builder.place(entry.image),
                fix=f"mend {yaml.path.name}",
            )
        # The folder that an image lies in says only what data.yaml leaves out.
        other = entry.split if entry.split not in yaml.splits() else None
        found.append(replace(entry, split=listed or folder or other))
    return found


def _yaml_places(root: Path, yaml: DataYaml | None) -> list[LabelPlace]:
    """Return the image folders that data.yaml names, each with the folder of its labels."""
    places = []
    for split, _, folder in yaml.entries(root) if yaml else ():
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


def _refuse_shared(root: Path, places: Sequence[LabelPlace], yaml: DataYaml) -> None:
    for i, place in enumerate(places):
        for other in places[:i]:
            nested = place.images.is_relative_to(other.images) or other.images.is_relative_to(place.images)
            if nested and place.split != other.split:
                raise DataError(
                    f"{other.split} and {place.split} name the same images, {place.images.relative_to(root)}",
                    where=str(yaml.path),
                    fix="name other images, or remove one of the two, or say the splits with the option split_file",
                )
