"""What annotation tools have in common: how they name images, and what becomes of the labels of one.

Of an image a tool says one of three things: nobody was done with it (it was skipped, or nobody came to it), somebody
was done and found nothing, or somebody was done and drew something. Only the last two are labels.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from vitp.core.errors import DataError
from vitp.data.formats.builder import SetBuilder
from vitp.data.formats.drawn_masks import Drawn, DrawnMask, object_parts, with_drawn_masks
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.walk import images_below, split_in, within
from vitp.records.geometry import as_flat
from vitp.records.labels import LabelledSet
from vitp.records.regions import outline
from vitp.records.tool_shapes import SEVERAL_CLASSES, decode_brush, ellipse_ring, rectangle_corners

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
        path: Path of the image.
        where: "file:row".
        found: The objects.
        drawn: Whether a shape was drawn, of whatever use.
        classes: Classes of the whole image.
        captions: Texts.
        later: The later date of a pair.
        split: Split that the tool names.
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
        made_with: The classes that the tasks were made with, where the files say it.
    """

    builder: SetBuilder
    task: str = ""
    images: list[ToolImage] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    empty: str = ""
    made_with: dict[str, None] = field(default_factory=dict)

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
                "split": image.split or split_in(image.path.relative_to(self.builder.root))[0],
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
        if parts := self._unlabelled():
            self.builder.understand(f"left out as unlabelled, not as empty: {parts}")
        if self.states and not self.builder.count:
            raise DataError(
                f"no image is labelled: {self._unlabelled()}",
                where=str(self.builder.root),
                fix="label some and export again; --format images reads images without labels",
            )
        scenes = sorted({name for image in self.images for name in map(fixed, image.classes) if name})
        drawn = {label.category for image in self.images for label in image.found.objects}
        tell_strange(self.builder, drawn.union(scenes), tuple(self.made_with))
        pairs = self.task == "change"
        built = self.builder.build(object_classes=() if pairs else classes, scene_classes=scenes)
        if semantic is None and self.task == "segmentation":
            self.builder.understand("masks of classes: as the files say that they are for")
            built = replace(built, understood=tuple(self.builder.understood))
            return with_drawn_masks(built, True)
        return with_drawn_masks(built, bool(semantic) if semantic in (None, False, True) else semantic)

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

    def _unlabelled(self) -> str:
        return ", ".join(f"{count:,} {state}" for state, count in self.states.items() if count)


def tell_strange(builder: SetBuilder, drawn: Collection[str], made_with: Sequence[str]) -> None:
    """Say which classes aren't among those that the tasks were made with, where these are known."""
    for name in sorted(set(drawn).difference(made_with)) if made_with else ():
        builder.understand(
            f'"{name}" isn\'t among the classes that the tasks were made with ({", ".join(made_with)}): a typing error?'
        )


def number_in(values: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Return a number of a shape.

    Raises:
        ValueError: It isn't there, or is no finite number.
    """
    value = values.get(key, default)
    if value is None:
        raise ValueError(f"it has no {key}")
    return _finite(value, f"its {key}")


def _finite(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {str(value)[:40]}, which is no finite number")
    return number


def ring_of(points: Any) -> list[tuple[float, float]]:
    """Return the corners of an outline.

    Raises:
        ValueError: They aren't three or more pairs of finite numbers.
    """
    pairs = points if isinstance(points, list) else []
    if len(pairs) < 3 or not all(isinstance(one, list) and len(one) == 2 for one in pairs):
        raise ValueError("its points aren't three or more of x,y")
    return [(_finite(x, "x of a point"), _finite(y, "y of a point")) for x, y in pairs]


def percent_shape(value: dict[str, Any], size: tuple[int, int]) -> LabelShape | None:
    """Return a region of Label Studio, in percent of its image, in pixels; None: a brush that painted nothing.

    Raises:
        ValueError: It is none.
    """
    width, height = size
    if "rle" in value:
        found = outline(decode_brush(value["rle"], height, width))
        if not found.rings:
            return None
        return LabelShape(polygons=tuple(map(as_flat, found.rings)), holes=tuple(map(as_flat, found.holes)))
    if "points" in value:
        if value.get("closed") is False:
            raise ValueError("its outline isn't closed")
        ring = [(x * width / 100, y * height / 100) for x, y in ring_of(value["points"])]
        return LabelShape(polygons=(tuple(number for point in ring for number in point),))
    x, y = number_in(value, "x") * width / 100, number_in(value, "y") * height / 100
    turn = 0.0 if value.get("rotation") is None else number_in(value, "rotation")
    if "radiusX" in value or "radiusY" in value:
        radii = number_in(value, "radiusX") * width / 100, number_in(value, "radiusY") * height / 100
        return LabelShape(polygons=(ellipse_ring(x, y, *radii, turn),))
    if "height" not in value and ("width" not in value or "keypointlabels" in value):
        raise ValueError("a point has no area")
    across, down = number_in(value, "width") * width / 100, number_in(value, "height") * height / 100
    if turn % 360 == 0:
        return LabelShape(box=(x, y, x + across, y + down))
    return LabelShape(quad=rectangle_corners(x, y, across, down, turn))


def class_names(classes: tuple[str, ...] | None) -> Callable[[str], str]:
    """Return what gives the name of a class of whole images, "" for one that wasn't asked for."""
    return lambda name: name if classes is None or name in classes else ""
