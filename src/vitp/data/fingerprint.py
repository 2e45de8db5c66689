"""What labels and images are, in one hash: a resumed run must learn from what it began with.

All labels count, masks with the content of their files. Of image files name, size and a few kilobytes count: enough to
tell a file that was replaced, without reading a data set twice. Of sets with more files than `MOST_FILES` an evenly
spread choice is looked into; of the others their sizes count. Paths don't count: a set may move to another disk.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.files import sha256
from vitp.data.record_set import SampleSet
from vitp.io.images import is_scene
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


def contents_digest(samples: SampleSet[Any]) -> str:
    """Return a hash of what a set's images and labels are, their files included."""
    own = getattr(samples, "contents_digest", None)  # sets of labelled images say it themselves
    return images_digest(samples) if own is None else str(own())


def labels_digest(labelled: LabelledSet) -> str:
    """Return a hash of all labels and images of a set."""
    eager = isinstance(labelled.items, list | tuple)
    step = 1 if eager else max(1, len(labelled) // _LAZY_ITEMS)
    look = _chosen(len(labelled), MOST_FILES if eager else _LAZY_ITEMS)
    digest = hashlib.sha256()
    for number in range(0, len(labelled), step):
        facts = _item_facts(labelled.items[number], not eager or number in look)
        digest.update(json.dumps(facts, default=str).encode())
    classes = [labelled.object_classes, labelled.scene_classes, labelled.semantic_classes]
    digest.update(json.dumps(classes).encode())
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


def _item_facts(item: LabelledImage, look: bool) -> list[Any]:
    """Return what an image and its labels are; what has its default is left out, so that new fields change nothing."""
    facts: list[Any] = []
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        if field.name in ("image", "second_image"):
            facts.append(None if value is None else _image_facts(value, look))
        elif value != field.default:
            facts.append([field.name, _facts(value, look)])
    return facts


def _image_facts(address: str, look: bool) -> Any:
    if is_scene(address) or is_member(address) or is_remote(address):
        return str(address)
    path = Path(address)
    try:
        stat = path.stat()
        blocks = _glance(str(path), stat.st_size, stat.st_mtime_ns) if look else None
    except OSError:
        return [path.name, None]  # reading the image will tell what is wrong with it
    return [path.name, stat.st_size, blocks]


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


def _facts(value: Any, look: bool) -> Any:
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
        return [type(value).__name__, *_fields(value, look)]
    if isinstance(value, functools.partial):
        name = getattr(value.func, "__qualname__", type(value.func).__name__)
        return [name, _facts(value.args, look), _facts(value.keywords, look)]
    if isinstance(value, Mapping):
        return [[_facts(key, look), _facts(one, look)] for key, one in value.items()]
    if isinstance(value, Sequence | set | frozenset):
        if all(type(one) is float for one in value):  # most of what outlines are
            return list(value)
        return [_facts(one, look) for one in value]
    return _read(value) if callable(value) else str(value)


def _fields(value: Any, look: bool) -> Iterator[Any]:
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        if own != field.default:
            yield [field.name, _facts(own, look)]


def _text_or_file(text: str, look: bool) -> Any:
    if (
        "/" not in text and "\\" not in text
    ):  # a name of a class, or a file beside the process: no path of a reader's
        return text
    path = Path(text)
    try:
        stat = path.stat()
        if not path.is_file():
            return text
        return [path.name, stat.st_size, _content(text, stat.st_size, stat.st_mtime_ns) if look else None]
    except (OSError, ValueError):
        return text


def _read(mask: Callable[[], Any]) -> Any:
    """Return what a reader of another kind reads."""
    try:
        return _facts(np.asarray(mask()), True)
    except Exception as error:  # reading it for a batch will tell what is wrong with it
        return type(error).__name__
