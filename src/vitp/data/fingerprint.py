"""One hash of labels and images: a resumed run must learn from what it began with.

All labels count, masks with the content of their files. Of image files name, size and a few kilobytes count: enough to
tell a file that was replaced, without reading a data set twice. Of sets with more files than `MOST_FILES` an evenly
spread choice is looked into; of the others their sizes count. Paths don't count: a set may move to another disk.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitp.core.errors import DataError
from vitp.core.files import sha256
from vitp.data.record_set import SampleSet
from vitp.io.images import is_scene
from vitp.io.parts import base_address, file_stamp
from vitp.io.storage import is_member, is_remote
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel

MOST_FILES = 20_000
_LAZY_ITEMS = 8
"""Items of a set whose images are generated when they are touched: a few of them stand for all."""

_BLOCK = 4096
_OBJECT = tuple((field.name, field.default) for field in dataclasses.fields(ObjectLabel))


def fingerprint(order: str, contents: Iterable[str], more: Sequence[Any] = ()) -> str:
    """Return the fingerprint of a source of batches: "2:" and a hash, or "3:" where more than images and labels counts.

    Those of the earliest versions have no such beginning: they are `order` alone.

    Args:
        order: Hash of which images come at which place, and of all options.
        contents: Hashes of what the images and labels are.
        more: What else decides the batches, as JSON values.
    """
    return f"{'3' if more else '2'}:{json_digest([order, *contents, *more])}"


def json_digest(value: Any) -> str:
    """Return the hash of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def contents_digest(samples: SampleSet[Any], *, former: bool = False) -> str:
    """Return a hash of what a set's images and labels are, their files included; see `labels_digest`."""
    own = getattr(samples, "contents_digest", None)  # sets of labelled images say it themselves
    return images_digest(samples) if own is None else str(own(former=former))


def labels_digest(labelled: LabelledSet, *, former: bool = False) -> str:
    """Return a hash of all labels and images of a set.

    Args:
        labelled: The set.
        former: As earlier versions did, which took a file in the working folder for the name of a class.
    """
    eager = isinstance(labelled.items, list | tuple)
    step = 1 if eager else max(1, len(labelled) // _LAZY_ITEMS)
    look = _chosen(len(labelled), MOST_FILES if eager else _LAZY_ITEMS)
    digest = hashlib.sha256()
    for number in range(0, len(labelled), step):
        facts = _item_facts(labelled.items[number], _Look(not eager or number in look, not former))
        digest.update(json.dumps(facts, default=str).encode())
    classes = [labelled.object_classes, labelled.scene_classes, labelled.semantic_classes]
    digest.update(json.dumps(classes).encode())
    if labelled.channels is not None:
        digest.update(labelled.channels.model_dump_json().encode())
    return digest.hexdigest()


def images_digest(records: SampleSet[Any]) -> str:
    """Return a hash of the image files that instruction records name; their texts are in the set's own fingerprint.

    Images within shards, on other machines or generated ones have no file of their own: their addresses count there.
    """
    digest = hashlib.sha256()
    if not hasattr(records, "annotation") or not len(records):  # made in memory, or while it is read
        return digest.hexdigest()
    for number in sorted(_chosen(len(records), MOST_FILES)):
        images = records[number].images
        if number == 0 and images and all(is_member(name) or is_remote(name) for name in images):
            break
        for name in images:
            digest.update(json.dumps(_image_facts(name, True)).encode())
    return digest.hexdigest()


def _chosen(count: int, most: int) -> set[int]:
    """Return an even choice of at most so many numbers below `count`, the first one included."""
    return {number * count // min(count, most) for number in range(min(count, most))}


class _Look(NamedTuple):
    """Which files are looked into: any at all, and those that are named without a folder."""

    inside: bool
    beside: bool


def _item_facts(item: LabelledImage, look: _Look) -> list[Any]:
    """Return what an image and its labels are; what has its default is left out, so that new fields change nothing."""
    facts: list[Any] = []
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        if field.name in ("image", "second_image"):
            facts.append(None if value is None else _image_facts(value, look.inside))
        elif field.name == "series" and value:
            facts.append([field.name, *(_image_facts(one, look.inside) for one in value)])
        elif value != field.default:
            facts.append([field.name, _facts(value, look)])
    return facts


def _image_facts(address: str, look: bool) -> Any:
    if is_scene(address) or is_member(address) or is_remote(address):
        return str(address)
    name = Path(address).name  # with what is chosen of the file: a window is an image of its own
    try:
        base = Path(base_address(address))
        files = sorted(path for path in base.rglob("*") if path.is_file()) if base.is_dir() else [base]
        size, blocks = 0, []
        for path in files:
            own, changed = file_stamp(path)
            size += own
            blocks.append(_glance(str(path), own, changed) if look else None)
    except (OSError, DataError):
        return [name, None]  # reading the image will tell what is wrong with it
    return [name, size, blocks[0] if len(files) == 1 else blocks]


@functools.lru_cache(maxsize=4 * MOST_FILES)
def _glance(path: str, size: int, changed: int) -> str:
    """Return a hash of four blocks of a file: its head, its end, and two between them."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for part in range(4):
            file.seek(max(0, size - _BLOCK) * part // 3)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


@functools.lru_cache(maxsize=4 * MOST_FILES)
def _content(path: str, size: int, changed: int) -> str:
    return sha256(path)


def _facts(value: Any, look: _Look) -> Any:
    """Return a label as JSON. Files that it names are their content, arrays that it reads their numbers."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, ObjectLabel):  # of which there are many, of plain values only
        return [[name, own] for name, default in _OBJECT if (own := getattr(value, name)) != default]
    if isinstance(value, str | Path):
        return _text_or_file(str(value), look)
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own_values = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return [
            type(value).__name__,
            *([field.name, _facts(own, look)] for field, own in own_values if own != field.default),
        ]
    if isinstance(value, functools.partial):
        name = getattr(value.func, "__qualname__", type(value.func).__name__)
        return [name, _facts(value.args, look), _facts(value.keywords, look)]
    if isinstance(value, Mapping):
        return [[_facts(key, look), _facts(one, look)] for key, one in value.items()]
    if isinstance(value, Sequence | set | frozenset):
        if all(type(one) is float for one in value):  # most of what outlines are
            return list(value)
        return [_facts(one, look) for one in value]
    if not callable(value):
        return str(value)
    try:
        return _facts(np.asarray(value()), look)  # a reader of another kind: what it reads
    except Exception as error:  # reading it for a batch will tell what is wrong with it
        return type(error).__name__


def _text_or_file(text: str, look: _Look) -> Any:
    """Return the name, size and content of a file that a label names, or the text where it names none."""
    try:
        path = Path(base_address(text))
    except DataError:
        return text
    # Names of classes have no folder, and no ending; files of a data set in the working folder have no folder, either.
    if not ("/" in text or "\\" in text or (look.beside and path.suffix)):
        return text
    try:
        stat = path.stat()
        if not path.is_file():
            return text
        return [
            Path(text).name,
            stat.st_size,
            _content(str(path), stat.st_size, stat.st_mtime_ns) if look.inside else None,
        ]
    except (OSError, ValueError):
        return text
