"""The parts of COCO sets: annotation files, their splits and images; ids of rows, and where an object lies."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import json_or_none, read_text
from vitp.data.formats.builder import SetBuilder
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.walk import (
    child,
    images_below,
    parse_label_json,
    read_label_text,
    split_in,
    split_of,
    suffixed,
)
from vitp.records.geometry import Box, area, as_flat, as_points
from vitp.records.regions import Rings, outline
from vitp.records.rle import decode
from vitp.records.tool_shapes import CLASSES_KEY, TASK_KEY, centred_corners

_SCORE_KEYS = ("score", "confidence")
_NOTES = "vitp_predictions.json"
"""What `vitp predict` notes down beside what it has found; no annotations."""
_WHOLE = re.compile(r"[+-]?\d{1,300}(\.0*)?$")

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class CocoFile:
    """One annotation file, with the split that its name says and the folder of its images, where they are known.

    `content` holds the lists `images` and `annotations`; `below` the images in all sub-folders of images/ by name, once
    they were looked for.
    """

    path: Path
    split: str | None
    content: dict[str, Any]
    images: Path | None = None
    below: dict[str, list[Path]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def labels_objects(self) -> bool:
        """Whether the file labels objects; others hold captions."""
        rows = self.content["annotations"][:100]
        return bool(self.content.get("categories")) or any(
            isinstance(row, dict) and "category_id" in row for row in rows
        )

    @property
    def is_panoptic(self) -> bool:
        """Whether the annotations are segments, whose masks lie in PNGs."""
        rows = self.content["annotations"][:100]
        return any(isinstance(row, dict) and "segments_info" in row for row in rows)


def annotation_files(root: Path) -> list[Path]:
    """Return the JSON files that may be COCO annotations: of annotations/, else of the folder, else of the splits'."""
    if root.is_file():
        return [root]
    for folder in (child(root, ("annotations",)) or root, root):
        if found := [path for path in suffixed(folder, ".json") if path.name != _NOTES]:
            return found
    splits = [folder for folder in root.iterdir() if folder.is_dir() and split_of(folder.name)]
    return sorted(path for folder in splits for path in suffixed(folder, ".json"))


def is_coco_file(path: Path) -> bool:
    """Return whether a file is COCO JSON."""
    content = json_or_none(path)
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def panoptic_files(root: Path) -> list[Path]:
    """Return the panoptic files among the annotation files, unless there are files of instances, which go first."""
    paths = annotation_files(root)
    if any(path.name.startswith("instances") for path in paths):
        return []
    return [path for path in paths if is_panoptic_file(path)]


def is_panoptic_file(path: Path) -> bool:
    """Return whether a file is COCO JSON of segments."""
    try:
        return '"segments_info"' in read_text(path) and is_coco_file(path)
    except (OSError, ValueError):
        return False


def without_doubles(builder: SetBuilder, paths: list[Path]) -> list[Path]:
    """Leave out the files that COCO ships beside its instances and that label the same objects again."""
    if not any(path.name.startswith("instances") for path in paths):
        return paths
    doubles = [p for p in paths if p.name.startswith(("person_keypoints", "panoptic", "stuff", "image_info"))]
    for path in doubles:
        builder.note(builder.place(path), "labels the objects of the instances files again; left out")
    return [path for path in paths if path not in doubles]


def load_coco_file(path: Path, base: Path) -> CocoFile:
    """Read an annotation file; its split is in its name or its folder's ("person_keypoints_val2017" → "val").

    Raises:
        DataError: It isn't COCO JSON.
    """
    content = parse_label_json(read_label_text(path), path)
    _refuse_results(content, path)
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            fix = "give a COCO file, or move others away"
            raise DataError(f'has no list "{key}"', where=str(path), fix=fix)
    if not isinstance(content.get("categories") or [], list):
        raise DataError("categories is no list", where=str(path), fix='write [{"id": 1, "name": …}]')
    words = path.stem.replace("-", "_").replace(".", "_").split("_")
    if path.parent != base:
        words.append(path.parent.name)
    found = (split_of(word.rstrip("0123456789")) for word in words)
    return CocoFile(path, next((split for split in found if split), None), content)


def _refuse_results(content: Any, path: Path) -> None:
    """Raise for a list of COCO's results, which holds predictions and names neither images nor classes."""
    rows = content[:100] if isinstance(content, list) else []
    if rows and all(isinstance(row, dict) and {"image_id", "category_id"} <= row.keys() for row in rows):
        raise DataError(
            "is a list of COCO results, as predictions are written, without images and categories",
            where=str(path),
            fix="name the file of the labels; if these are labels that somebody has checked, add the lists images and "
            "categories",
        )


def refuse_results(paths: Sequence[Path]) -> None:
    """Refuse files that are lists of COCO's results.

    Raises:
        DataError: One is.
    """
    for path in paths:
        _refuse_results(json_or_none(path), path)


def refuse_scores(files: Sequence[CocoFile], scores: str) -> None:
    """Refuse files whose annotations, or their segments, have scores, as predictions have. 0 and 1 say nothing.

    Args:
        files: The files.
        scores: "labels": they are labels all the same; "": see above.

    Raises:
        ConfigError: `scores` is something else.
        DataError: Some annotation has another score, or one that can't be read.
    """
    if scores not in ("", "labels"):
        raise ConfigError(f'is "{scores}"', where="scores", fix="write labels, or leave the option out")
    for file in () if scores else files:
        rows = [row for row in file.content["annotations"] if isinstance(row, dict)]
        lists = [row["segments_info"] for row in rows if isinstance(row.get("segments_info"), list)]
        rows = [one for one in chain.from_iterable(lists) if isinstance(one, dict)] if lists else rows
        told = [(key, row[key]) for row in rows for key in _SCORE_KEYS if row.get(key) not in (None, "")]
        doubtful = [(key, value) for key, value in told if _number(value) not in (-1, 0, 1)]
        if not doubtful or ({value for _, value in told} == {100} and len(told) > 1):
            continue
        key, first = doubtful[0]
        raise DataError(
            f'{len(told):,} of {len(rows):,} annotations have a "{key}" (such as {str(first)[:20]}), as predictions have',
            where=str(file.path),
            fix="name the file of the labels; -o scores=labels reads them as labels, if somebody has checked them",
        )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def coco_image_folders(builder: SetBuilder, file: CocoFile) -> list[Path]:
    """Return where the images of a file may lie, the file's own split first.

    Folders of other splits are left out: two splits may use the same file names for different images.
    """
    if file.images is not None:
        return [file.images]
    folders: list[Path] = []
    for base in dict.fromkeys((file.path.parent, builder.root)):
        plain = [base, base / "images", base / "JPEGImages"]
        places = [p for parent in plain[:2] if parent.is_dir() for p in sorted(parent.iterdir())]
        for place in (p for p in places if p.is_dir()):
            split = split_of(place.name.rstrip("0123456789"))
            if split and file.split in (None, split):
                folders += [place, place / "images"]
        folders += plain
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def find_coco_image(file: CocoFile, name: str, folders: list[Path], root: Path, where: str) -> Path | None:
    """Return the image that the row at `where` names, or None.

    The name is looked up in the folders as it is written, then without its own, which may be those of another machine;
    then in the sub-folders of images/, as in images/default/ of CVAT.

    Raises:
        DataError: Several images of that name lie in the folders of different splits, or in sub-folders.
    """

    def refuse_two(found: list[Path], fix: str) -> None:
        raise DataError(f"{name} may be {found[0]} or {found[-1]}", where=where, fix=fix)

    plain = name.replace("\\", "/")
    for short in dict.fromkeys((name, plain, plain.rpartition("/")[2])):
        found = [path for folder in folders if (path := folder / short).is_file()]
        splits = {split_of_image(file, path, root) for path in found}
        if len(splits) > 1 and file.images is None:
            refuse_two(found, "write the folder into file_name, or the split into the name of the file")
        if found:
            return found[0]
    if file.images is not None:
        return None
    name = plain
    if not file.below:
        for base in dict.fromkeys((file.path.parent, root)):
            for path in images_below(base / "images") if (base / "images").is_dir() else ():
                if file.split is None or split_in(path.relative_to(base))[0] in (None, file.split):
                    file.below.setdefault(path.name, []).append(path)
        file.below.setdefault("", [])  # looked through, even where there is no image
    found = file.below.get(plain.rpartition("/")[2], [])
    found = [path for path in found if path.as_posix().endswith(f"/{plain}")] or found
    if len(found) > 1:
        refuse_two(found, "write the folder into file_name")
    return found[0] if found else None


def split_of_image(file: CocoFile, path: Path, root: Path) -> str | None:
    """Return the split of a file's image: the file's own, or that of the folder in which the image lies."""
    if file.split is not None or not path.is_relative_to(root):
        return file.split
    return split_in(path.relative_to(root))[0]


# --- rows


class Ids(Generic[_Value]):
    """Values by id, where a number and the same number as text mean the same: some tools write "1", others 1 or 1.0.

    An id that is there exactly as it is asked for goes first.
    """

    def __init__(self) -> None:
        self._exact: dict[tuple[bool, str], _Value] = {}
        self._alike: dict[str, list[tuple[bool, str]]] = defaultdict(list)

    def add(self, key: Any, value: _Value) -> _Value:
        """Put a value under an id that is free, and return what stands under it now.

        Raises:
            ValueError: It is neither a number nor text.
        """
        name = _id_name(key)
        if name is None:
            raise ValueError(f"id {str(key)[:40]!r} is neither a whole number nor text")
        if name not in self._exact:
            self._alike[_plain(name[1])].append(name)
        return self._exact.setdefault(name, value)

    def doubles(self) -> list[_Value]:
        """Return the values that stand under several ids."""
        counts = Counter(self._exact.values())
        return [value for value, count in counts.items() if count > 1]

    def exact(self, key: Any) -> _Value | None:
        """Return the value under an id as it is written, or None."""
        name = _id_name(key)
        return self._exact.get(name) if name is not None else None

    def find(self, key: Any, kind: str, where: str) -> _Value | None:
        """Return the value under an id, or None.

        Raises:
            DataError: The id may mean two, such as "01" where there are 1 and "1".
        """
        name = _id_name(key)
        if name is None or name in self._exact:
            return None if name is None else self._exact[name]
        alike = self._alike.get(_plain(name[1]), ())
        if len(alike) > 1:
            what = f"{kind}_id {key!r} may mean {' or '.join(repr(text) for _, text in alike)}"
            raise DataError(what, where=where, fix="write ids alike everywhere")
        return self._exact[alike[0]] if alike else None


def is_id(key: Any) -> bool:
    """Return whether a value can be an id: a whole number or text."""
    return _id_name(key) is not None


def _id_name(key: Any) -> tuple[bool, str] | None:
    """Return (is text, id as text), or None for what is no id."""
    if isinstance(key, bool):
        return None
    if isinstance(key, int):
        return False, str(key)
    if isinstance(key, float):
        return (False, str(int(key))) if key.is_integer() else None
    return (True, key.strip()) if isinstance(key, str) and key.strip() else None


def _plain(text: str) -> str:
    return str(int(text.partition(".")[0])) if _WHOLE.match(text) else text


def is_set(value: Any) -> bool:
    """Return whether a flag such as `iscrowd` is set; numbers may be text."""
    return str(value).strip().lower() in ("1", "1.0", "true")


def _attributes(row: dict[str, Any]) -> dict[str, Any]:
    attributes = row.get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def is_cvat_mask(row: dict[str, Any]) -> bool:
    """Return whether an annotation is a mask of CVAT, which calls masks crowds and says whether they are occluded."""
    return "occluded" in _attributes(row) and isinstance(row.get("segmentation"), dict)


def says_segmentation(file: CocoFile) -> bool:
    """Return whether a file says that its outlines are for segmentation, as `vitp predict` writes it."""
    info = file.content.get("info")
    return isinstance(info, dict) and info.get(TASK_KEY) == "segmentation"


def told_classes(files: Sequence[CocoFile]) -> tuple[str, ...]:
    """Return the classes that `vitp predict` made the files with, where all say it."""
    told = [
        info.get(CLASSES_KEY) if isinstance(info := file.content.get("info"), dict) else () for file in files
    ]
    names = [str(name) for each in told for name in (each if isinstance(each, list) else ())]
    return tuple(dict.fromkeys(names)) if all(told) else ()


def coco_shape(row: dict[str, Any], size: tuple[int, int]) -> tuple[LabelShape | None, str]:
    """Return where the object of an annotation lies, and what had to be mended or why it has no place."""
    box, wrong = _box(row.get("bbox"))
    if box is not None and not row.get("segmentation"):
        try:
            turn = float(_attributes(row).get("rotation") or 0)
        except (TypeError, ValueError, OverflowError):
            turn = math.nan
        if not math.isfinite(turn):
            return None, "its rotation is no finite number"
        if turn % 360:
            return LabelShape(quad=centred_corners(*box, turn)), ""
    rings: Rings = ()
    holes: Rings = ()
    broken = ""
    try:
        rings, holes = polygons_of(row.get("segmentation"), size)
    except DataError as error:
        broken = error.what
    if rings and (box is None or box[0] == box[2] or box[1] == box[3]):
        said = f"{wrong}; its box is taken from its outline" if row.get("bbox") else ""
        return LabelShape(polygons=rings, holes=holes), said
    if box is None:
        return None, broken if broken and not row.get("bbox") else wrong
    said = f"{broken}; only its box is used" if broken else ""
    corners = (box[0], box[1], box[2] - box[0], box[3] - box[1])
    return LabelShape(box=box, polygons=rings, holes=holes, corners=corners), said


def _box(bbox: Any) -> tuple[Box | None, str]:
    """Return x1, y1, x2, y2, or None and what is wrong with the row's box."""
    if bbox is None or bbox == []:
        return None, "has no bbox"
    try:
        if not isinstance(bbox, list) or any(isinstance(value, bool) for value in bbox):
            raise TypeError
        x, y, w, h = (float(value) for value in bbox)
    except (TypeError, ValueError, OverflowError):
        return None, "bbox is not four numbers"
    if not all(math.isfinite(value) for value in (x, y, w, h)):
        return None, "bbox has a coordinate that is not a number"
    if w < 0 or h < 0:
        return None, f"bbox has a negative size ({w:g}×{h:g})"
    return (x, y, x + w, y + h), "bbox has no area"


def polygons_of(segmentation: Any, size: tuple[int, int]) -> tuple[Rings, Rings]:
    """Return rings and holes of polygons or of a run-length mask; rings without area are dropped.

    Raises:
        DataError: It is neither, or the mask has another size than the image.
    """
    if not segmentation:
        return (), ()
    holes: tuple[np.ndarray, ...] = ()
    try:
        if isinstance(segmentation, dict):
            try:
                (height, width), counts = map(int, segmentation["size"]), segmentation["counts"]
            except (KeyError, TypeError, ValueError, OverflowError):
                raise ValueError("a mask has size [height, width] and counts") from None
            if (width, height) != size:
                raise ValueError(f"the mask is {width}×{height}, the image {size[0]}×{size[1]}")
            found = outline(decode(counts, height, width))
            rings, holes = found.rings, found.holes
        else:
            rings = tuple(map(_ring, segmentation if isinstance(segmentation, list) else [None]))
            if not any(np.isfinite(ring).all() for ring in rings):
                raise ValueError("a coordinate is no finite number")
    except ValueError as error:
        raise DataError(
            f"segmentation can't be understood ({error})",
            fix="write polygons [[x1, y1, …], …] or a run-length mask {size, counts}",
        ) from error
    used = (ring for ring in rings if np.isfinite(ring).all() and area(ring) > 0)
    return tuple(as_flat(ring) for ring in used), tuple(as_flat(hole) for hole in holes)


def _ring(values: Any) -> np.ndarray:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise ValueError("an outline is a list of numbers") from None
    if len(numbers) % 2:
        raise ValueError("an outline has x without y")
    return as_points(numbers)
