"""What annotation tools have in common: how they name images, and what becomes of the labels of one.

Of an image a tool says one of three things: nobody was done with it (it was skipped, or nobody came to it), somebody
was done and found nothing, or somebody was done and drew something. Only the last two are labels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from vitp.core.errors import DataError
from vitp.data.formats.builder import SetBuilder
from vitp.data.formats.drawn_masks import Drawn, DrawnMask, object_parts, with_drawn_masks
from vitp.data.formats.image_labels import ImageLabels
from vitp.data.formats.walk import images_below, split_in, within
from vitp.records.labels import LabelledSet
from vitp.records.tool_shapes import SEVERAL_CLASSES

_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of a file that is uploaded."""


@dataclass
class NamedImages:
    """The images of a folder by the ends of their paths, for names from other machines.

    Args:
        root: The set's folder.
    """

    root: Path
    _by_name: dict[str, list[Path]] = field(init=False)

    def __post_init__(self) -> None:
        self._by_name = {}
        for path in images_below(self.root):
            self._by_name.setdefault(path.name, []).append(path)

    def find(self, reference: str, where: str) -> Path | None:
        """Return the image that a path, an address or the name of an upload means, or None.

        Of several images of its name that counts whose path ends most like it.

        Raises:
            DataError: Two end alike.
        """
        parts = _parts_of(reference)
        if not parts:
            return None
        names = [parts[-1]]
        if (found := _UPLOADED.match(parts[-1])) is not None:
            names.append(parts[-1][found.end() :])
        candidates = next((self._by_name[name] for name in names if name in self._by_name), [])
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        alike = [_alike(parts[:-1], path.relative_to(self.root).parts[:-1]) for path in candidates]
        best = [path for path, count in zip(candidates, alike, strict=True) if count == max(alike)]
        if len(best) > 1:
            first, second = (within(path, self.root) for path in best[:2])
            fix = "keep one of them, or give the images different names"
            raise DataError(f"{reference} may be {first} or {second}", where=where, fix=fix)
        return best[0]


def _parts_of(reference: str) -> list[str]:
    """Return the parts of the path in a name: of Label Studio's local files it stands behind `?d=`."""
    split = urlsplit(reference.replace("\\", "/"))
    local = parse_qs(split.query).get("d") if "local-files" in split.path else None
    if local:
        path = local[0]
    elif split.scheme and split.netloc:
        path = unquote(split.path)
    else:
        plain = reference.replace("\\", "/")
        path = unquote(plain) if plain.startswith(("/data/", "/static/")) else plain
    return [part for part in path.split("/") if part not in ("", ".")]


def _alike(parts: Sequence[str], others: Sequence[str]) -> int:
    """Return how many of the last parts are equal."""
    pairs = zip(reversed(parts), reversed(others), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(parts), len(others)))


@dataclass
class ToolImage:
    """What a tool says of an image that somebody was done with.

    Attributes:
        path: Of the image.
        where: "file:row".
        found: The objects.
        drawn: Whether a shape was drawn, of whatever use.
        classes: Of the whole image.
        captions: Texts.
        later: The later date of a pair.
        split: That the tool names.
        looked_at: Somebody said that there is nothing; None: an image without shapes may mean that or be new.
    """

    path: Path
    where: str
    found: ImageLabels
    drawn: bool = False
    classes: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    later: Path | None = None
    split: str | None = None
    looked_at: bool | None = True


@dataclass
class ToolSet:
    """The images of a set that a tool wrote, once all are read.

    Attributes:
        builder: Takes images and findings.
        task: What the files say that they are for; "": nothing.
        images: What was read.
        states: What became of the images that nobody was done with, and how many are of each kind.
        empty: What an image without shapes is where the tool can't say it: "nothing", "unlabelled" or "".
    """

    builder: SetBuilder
    task: str = ""
    images: list[ToolImage] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    empty: str = ""

    def build(
        self, classes: Sequence[str], semantic: bool | str | None, fixed: Callable[[str], str]
    ) -> LabelledSet:
        """Return the set.

        Args:
            classes: Names of the classes of objects.
            semantic: As of `with_drawn_masks`; None: as the files say.
            fixed: Returns a class's name; "" leaves it out.

        Raises:
            DataError: An image without shapes has two readings, or nothing is labelled.
        """
        shapes = any(image.drawn for image in self.images)
        objects = shapes or self.task in ("detection", "instance", "oriented", "segmentation", "change")
        whole = any(image.classes for image in self.images) or self.task in (
            "classification",
            SEVERAL_CLASSES,
        )
        several = self.task == SEVERAL_CLASSES or any(len(set(image.classes)) > 1 for image in self.images)
        if objects or several:
            self._check_empty(objects)
        for image in self.images:
            names = list(dict.fromkeys(filter(None, map(fixed, image.classes))))
            others: dict[str, Any] = {
                "captions": tuple(image.captions),
                "split": image.split or self._folder_split(image.path),
            }
            if whole:
                others |= {"tags": tuple(names)} if several else {"scene": names[0] if names else None}
            if objects and self.task == "change":
                self._add_pair(image, others)
            elif objects and image.looked_at:
                self.builder.add_labelled(image.path, image.found, **others)
            elif others["captions"] or names or (several and image.looked_at):
                self.builder.add(image.path, image.found.size, **others)
            else:
                self.states["without a label"] += 1
        self._tell()
        scenes = sorted({name for image in self.images for name in map(fixed, image.classes) if name})
        pairs = self.task == "change"
        built = self.builder.build(object_classes=() if pairs else classes, scene_classes=scenes)
        if semantic is None and self.task == "segmentation":
            self.builder.understand("masks of classes: as the files say that they are for")
            built = replace(built, understood=tuple(self.builder.understood))
            return with_drawn_masks(built, True)
        return with_drawn_masks(built, bool(semantic) if semantic in (None, False, True) else semantic)

    def _folder_split(self, path: Path) -> str | None:
        return split_in(path.relative_to(self.builder.root))[0]

    def _add_pair(self, image: ToolImage, others: dict[str, Any]) -> None:
        found = image.found
        if image.later is None or not found.are_known or found.ignored:
            self.builder.note(image.where, "what changed isn't known; left out")
            self.states["without a label"] += 1
            return
        shapes: tuple[Drawn, ...] = tuple((1, object_parts(label)) for label in found.objects)
        mask = DrawnMask(found.size, shapes, change=True)
        self.builder.add(image.path, found.size, second_image=str(image.later), change=mask, **others)

    def _check_empty(self, objects: bool) -> None:
        """Decide what images without shapes, or of classes alone without a class, are, where the tool can't say it."""

        def says(image: ToolImage) -> bool:
            return image.drawn or (not objects and bool(image.classes))

        open_ones = [image for image in self.images if image.looked_at is None and not says(image)]
        marked = any(image.looked_at and not says(image) for image in self.images)
        for image in self.images:
            if image.looked_at is None:
                image.looked_at = says(image) or (self.empty == "nothing" and not marked)
        if not open_ones:
            return
        kind = "shape" if objects else "class"
        count = f"{len(open_ones):,} {'image' if len(open_ones) == 1 else 'images'}"
        if marked:
            self.builder.understand(
                f"{count} without a {kind} or the tag that there is nothing: nobody was done with them"
            )
        elif self.empty == "nothing":
            self.builder.understand(f"{count} without a {kind}: there is nothing, as -o empty=nothing says")
        elif self.empty != "unlabelled":
            raise DataError(
                f"{count} (such as {open_ones[0].path.name}) have no {kind}, which may mean that there is nothing, or that "
                "nobody came to them",
                where=open_ones[0].where,
                fix="-o empty=nothing or -o empty=unlabelled says which",
            )

    def _tell(self) -> None:
        parts = [f"{count:,} {state}" for state, count in self.states.items() if count]
        if parts:
            self.builder.understand(f"left out as unlabelled, not as empty: {', '.join(parts)}")


def class_names(classes: tuple[str, ...] | None) -> Callable[[str], str]:
    """Return what gives the name of a class of whole images, "" for one that wasn't asked for."""
    return lambda name: name if classes is None or name in classes else ""
