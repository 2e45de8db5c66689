"""Our own label files: a `LabelledSet` in lossless JSON, one line an image, masks by path.

    labels/set.json        name, classes, licence, findings, image_root, label_root, channels
    labels/{split}.jsonl   one image a line

Roots are relative to the folder that holds `labels`, or absolute. Images are relative to `image_root`, masks
to `label_root`; the two differ where the images are crops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.core.config import make_config
from vitp.core.errors import ConfigError, DataError
from vitp.core.files import to_json, write_json
from vitp.core.reading import lines_of, no_such, parse_json
from vitp.data.formats.pixel_masks import MaskReader, mask_from_json, mask_to_json
from vitp.data.formats.walk import parse_label_json, read_label_text, within
from vitp.io.images import is_scene
from vitp.records.channels import Channels
from vitp.records.labels import SPLITS, LabelledImage, LabelledSet, ObjectLabel

SET_FILE = "labels/set.json"
"""Head of a compiled set, below its folder."""

_VERSION = 1

_LARGEST_SIDE = 10_000_000
"""Pixels of an image's side, and of a coordinate in it."""

_TEXTS = ("name", "image_root", "label_root", "licence")
_LISTS = ("object_classes", "scene_classes", "semantic_classes", "findings", "understood")
_OPTIONAL_LISTS = ("change_classes", "abnormal_classes")
"""Lists that are written only where there is something in them."""

_COMPILE_AGAIN = "compile the labels again"


@dataclass(frozen=True)
class Roots:
    """Folders that paths are relative to: `out` holds `labels`, the others images and masks."""

    out: Path
    images: Path
    labels: Path


def relative(path: str | Path, root: Path) -> str:
    """Return a path relative to `root` where it lies in it, `scene:` addresses as they are."""
    return str(path) if is_scene(path) else within(path, root)


class LineWriter(ExitStack):
    """Writes `{split}.jsonl` line by line, so that a large or generated set never has to be in memory.

    It writes in place: give it a folder that is put in its place as a whole (`vitp.core.files.atomic_dir`).

    Args:
        folder: Holds the files; it is made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
        self._files = {
            split: self.enter_context(path.open("w", encoding="utf-8", newline="\n"))
            for split, path in paths.items()
        }

    def add(self, split: str, line: str) -> None:
        """Write a line into the file of a split."""
        self._files[split].write(line + "\n")


def write_head(labelled: LabelledSet, roots: Roots, *, image_root: str | None = None) -> None:
    """Write `labels/set.json`.

    Args:
        labelled: The set; its items aren't looked at.
        roots: Folders; those inside `roots.out` are recorded relative to it.
        image_root: What to record instead of `roots.images`, when the images are still to be moved.
    """
    head = {
        "format": "vitp-labels",
        "version": _VERSION,
        "name": labelled.name,
        "image_root": image_root or relative(roots.images, roots.out),
        "label_root": relative(roots.labels, roots.out),
        **{key: list(getattr(labelled, key)) for key in _LISTS[:3]},
        "licence": labelled.licence,
        **{key: list(getattr(labelled, key)) for key in _LISTS[3:]},
        **{key: list(own) for key in _OPTIONAL_LISTS if (own := getattr(labelled, key))},
    }
    if labelled.channels is not None:
        head["channels"] = channels_to_json(labelled.channels)
    write_json(roots.out / SET_FILE, head)


def write_compiled(labelled: LabelledSet, roots: Roots, *, image_root: str | None = None) -> None:
    """Write a whole set under `roots.out`; `image_root` is as `write_head` takes it.

    Raises:
        DataError: A mask is neither in a file nor of a generated scene.
    """
    with LineWriter(roots.out / "labels") as writer:
        for item in labelled.items:
            writer.add(item.split, label_line(item, roots))
    write_head(labelled, roots, image_root=image_root)


def read_compiled(root: Path) -> LabelledSet:
    """Read the set that `write_compiled` wrote under `root`.

    Raises:
        DataError: There is no such set, or a row can't be understood.
    """
    folder = root / "labels"
    head = _head(root / SET_FILE)
    roots = Roots(root, root / head["image_root"], root / head["label_root"])
    items = [item for split in SPLITS for item in _items(folder / f"{split}.jsonl", split, roots)]
    lists: dict[str, Any] = {key: tuple(head[key]) for key in (*_LISTS, *_OPTIONAL_LISTS)}
    channels = channels_from_json(head.get("channels"), root / SET_FILE)
    return LabelledSet(name=head["name"], items=items, licence=head["licence"], channels=channels, **lists)


def read_channels(root: Path) -> Channels | None:
    """Return the channels of the set that `write_compiled` wrote under `root`; its items aren't looked at.

    Raises:
        DataError: There is no such set, or its head can't be understood.
    """
    path = root / SET_FILE
    return channels_from_json(_head(path).get("channels"), path)


def channels_to_json(channels: Channels) -> dict[str, Any]:
    """Return channels as `set.json` and the entries of mixture files have them."""
    return channels.model_dump(mode="json", exclude_none=True, exclude={"dropout"})


def channels_from_json(value: Any, where: str | Path) -> Channels | None:
    """Return what `channels_to_json` wrote down; None: pictures.

    Raises:
        DataError: It is something else.
    """
    if value is None:
        return None
    try:
        return make_config(Channels, dict(value), where=str(where))
    except (ConfigError, TypeError, ValueError) as error:
        what = error.what if isinstance(error, ConfigError) else f"{value!r:.60} is no mapping"
        fix = 'write {"channels": [{"band": NAME, "low": …, "high": …}, …]}'
        raise DataError(f'"channels" can\'t be understood: {what}', where=str(where), fix=fix) from error


def _head(path: Path) -> dict[str, Any]:
    if not path.is_file():
        fix = "make them with `vitp data compile`"
        where = path.parent.parent
        raise DataError(no_such(where) or "holds no compiled labels", where=str(where), fix=fix)

    def refuse(what: str) -> DataError:
        return DataError(what, where=str(path), fix=_COMPILE_AGAIN)

    head = parse_label_json(read_label_text(path), path, _COMPILE_AGAIN)
    if not isinstance(head, dict) or head.get("format") != "vitp-labels" or head.get("version") != _VERSION:
        raise refuse(f"is not a label set of version {_VERSION}")
    for key in _TEXTS:
        if not isinstance(head.get(key), str) or "\0" in head[key]:
            raise refuse(f'"{key}" is no text')
    for key in ("understood", *_OPTIONAL_LISTS):  # older sets have none
        head.setdefault(key, [])
    for key in (*_LISTS, *_OPTIONAL_LISTS):
        texts = head.get(key)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise refuse(f'"{key}" is no list of texts')
    return head


def _items(path: Path, split: str, roots: Roots) -> Iterator[LabelledImage]:
    for row, line in enumerate(lines_of(read_label_text(path)), 1):
        try:
            yield item_from_json(parse_json(line), split, roots)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"is not a labelled image ({type(error).__name__}: {error})"
            raise DataError(what, where=f"{path}:{row}", fix=_COMPILE_AGAIN) from error


def label_line(item: LabelledImage, roots: Roots) -> str:
    """Return an image and its labels as one line of JSON; absent keys mean "not labelled".

    Raises:
        DataError: A mask is neither in a file nor of a generated scene.
    """

    def objects(labels: tuple[ObjectLabel, ...] | None) -> list[dict[str, Any]] | None:
        return None if labels is None else [_object_to_json(label) for label in labels]

    def mask(reader: Any) -> dict[str, Any] | None:
        if reader is None:
            return None
        if not isinstance(reader, MaskReader):
            what = "its mask is neither in a file nor of a generated scene"
            raise DataError(what, where=item.id, fix="save the mask as PNG")
        return mask_to_json(reader, roots.labels)

    second = item.second_image
    row = {
        "id": item.id,
        "image": relative(item.image, roots.images),
        "width": item.width,
        "height": item.height,
        "group": item.group or None,
        "objects": objects(item.objects),
        "ignored": objects(item.ignored) or None,
        "scene": item.scene,
        "tags": None if item.tags is None else list(item.tags),
        "captions": list(item.captions) or None,
        "semantic": mask(item.semantic),
        "second_image": None if second is None else relative(second, roots.images),
        "change": mask(item.change),
        "later_objects": objects(item.later_objects),
        "transition": mask(item.transition),
        "ground": None if item.ground is None else list(item.ground),
        "metadata": dict(item.metadata) if item.metadata else None,
        "series": [relative(image, roots.images) for image in item.series] or None,
        "spacing": None if item.spacing is None else list(item.spacing),
        "thickness": item.thickness,
        "level": item.level,
        "unknown": list(item.unknown) or None,
        "fold": item.fold,
    }
    return to_json({key: value for key, value in row.items() if value is not None})


def _object_to_json(label: ObjectLabel) -> dict[str, Any]:
    row = {
        "category": label.category,
        "box": list(label.box),
        "quad": None if label.quad is None else list(label.quad),
        "polygons": [list(ring) for ring in label.polygons] or None,
        "difficult": label.difficult or None,
        "holes": [list(ring) for ring in label.holes] or None,
    }
    return {key: value for key, value in row.items() if value is not None}


def item_from_json(row: dict[str, Any], split: str, roots: Roots) -> LabelledImage:
    """Return what `label_line` wrote down; other JSON is an error of Python's."""

    def address(name: str) -> str:
        return name if is_scene(name) else str(roots.images / name)

    def objects(key: str) -> tuple[ObjectLabel, ...] | None:
        return tuple(_object_from_json(label) for label in row[key]) if key in row else None

    def mask(key: str) -> MaskReader | None:
        return None if row.get(key) is None else mask_from_json(row[key], roots.labels)

    return LabelledImage(
        id=_text(row["id"]),
        image=address(row["image"]),
        width=_side(row["width"]),
        height=_side(row["height"]),
        split=split,
        group=_text(row.get("group", "")),
        objects=objects("objects"),
        scene=None if row.get("scene") is None else _text(row["scene"]),
        captions=tuple(_text(caption) for caption in row.get("captions", ())),
        semantic=mask("semantic"),
        second_image=None if row.get("second_image") is None else address(row["second_image"]),
        change=mask("change"),
        later_objects=objects("later_objects"),
        ignored=objects("ignored") or (),
        tags=tuple(_text(name) for name in row["tags"]) if "tags" in row else None,
        transition=mask("transition"),
        ground=None if row.get("ground") is None else _ground(row["ground"]),
        metadata={_text(key): _text(value) for key, value in row.get("metadata", {}).items()} or None,
        series=tuple(address(_text(image)) for image in row.get("series", ())),
        spacing=None if row.get("spacing") is None else _spacing(row["spacing"]),
        thickness=None if row.get("thickness") is None else _millimetres(row["thickness"]),
        level=None if row.get("level") is None else _share(row["level"]),
        unknown=tuple(_text(name) for name in row.get("unknown", ())),
        fold=None if row.get("fold") is None else _fold(row["fold"]),
    )


def _object_from_json(row: dict[str, Any]) -> ObjectLabel:
    x1, y1, x2, y2 = _points(row["box"], 2)
    return ObjectLabel(
        _text(row["category"]),
        (x1, y1, x2, y2),
        _points(row["quad"], 4) if "quad" in row else None,
        tuple(_points(ring) for ring in row.get("polygons", ())),
        row.get("difficult", False) is True,
        tuple(_points(ring) for ring in row.get("holes", ())),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value


def _ground(values: Any) -> tuple[float, float, float, float]:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{values!r:.60} is no size of a pixel")
    a, b, c, d = values
    if not 0 < abs(a * d - b * c) < math.inf:
        raise ValueError(f"{values!r:.60} is no size of a pixel")
    return float(a), float(b), float(c), float(d)


def _spacing(values: Any) -> tuple[float, float]:
    x, y = values
    return _millimetres(x), _millimetres(y)


def _millimetres(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r:.60} are no millimetres")
    return float(value)


def _share(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"{value!r:.60} is no share")
    return float(value)


def _fold(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.60} is no fold")
    return value


def _side(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _LARGEST_SIDE:
        raise ValueError(f"{value!r:.60} is no width or height")
    return value


def _points(values: Any, count: int | None = None) -> tuple[float, ...]:
    """Return the coordinates x, y, x, y, … of a number of points; None: of any number."""
    numbers = isinstance(values, list) and all(
        type(v) in (int, float) and abs(v) <= _LARGEST_SIDE for v in values
    )
    if not numbers or len(values) % 2 or (count is not None and len(values) != 2 * count):
        raise ValueError(f"{values!r:.60} are no coordinates of points")
    return tuple(values)
