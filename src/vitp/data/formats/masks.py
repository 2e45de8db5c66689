"""Masks: of classes, of instances, or one file an object; see `mask_layouts` for where they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.colour_tables import find_colour_table
from vitp.data.formats.mask_classes import (
    BACKGROUND,
    ClassMap,
    from_file,
    from_option,
    from_table,
    from_values,
    says,
)
from vitp.data.formats.mask_kinds import (
    MOST_LOOKED_AT,
    MaskFacts,
    find_strays,
    large_indices,
    look_like_instances,
    mask_facts,
    shares,
    shown,
    totals,
)
from vitp.data.formats.mask_layouts import MaskEntry, MaskLayout, find_masks
from vitp.data.formats.mask_objects import InstanceMasks
from vitp.data.formats.pixel_masks import MaskFile, mask_values
from vitp.io.images import is_turned, load_label_pixels
from vitp.records.geometry import area, as_points
from vitp.records.labels import IGNORE, LabelledSet, ObjectLabel
from vitp.records.regions import objects_of

MASK_TYPES = ("semantic", "instances")
STRAYS = ("nearest", "ignore")
_INDEX_MODES = ("1", "L", "P", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class MaskOptions:
    """How masks are read, as `read` has it.

    Attributes:
        classes: Names and values.
        mask_type: "semantic", "instances", or "" where the values are to say it.
        strays: "nearest", "ignore", or "".
        instances: Objects from connected regions.
        min_area: Of a region.
    """

    classes: str | Mapping[str, str | int] | None = None
    mask_type: str = ""
    strays: str = ""
    instances: bool = False
    min_area: int = 10


@dataclass(frozen=True)
class _Read:
    """One image with what was counted in its mask."""

    entry: MaskEntry
    size: tuple[int, int]
    facts: MaskFacts

    @property
    def mask(self) -> Path:
        return self.entry.masks[0]


def read_masks(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | Mapping[str, str | int] | None = None,
    instances: bool = False,
    min_area: int = 10,
    images: str | None = None,
    masks: str | None = None,
    mask_type: str = "",
    strays: str = "",
) -> LabelledSet:
    """Read images with masks. Every mask is decoded once to see which values occur.

    Masks of instances (a number an object, or a file an object) become objects. VOC's `SegmentationObject` beside
    masks of classes gives the objects their outlines.

    Args:
        root: The set's folder.
        options: Name, licence, splits.
        classes: "name=value,…" with indices or colours (see `mask_classes.from_option`); by default from
            classes.txt or a table of colours, else from the values that occur. For masks of instances the name of their class.
        instances: Derive objects from the connected regions of every class but "background".
        min_area: Regions of fewer pixels are no objects.
        images: Folder of the images, where its name doesn't say it.
        masks: Folder of the masks, likewise.
        mask_type: "semantic": a value is a class; "instances": a value is an object. Where the values can be both,
            it must be given.
        strays: What the values of smoothed edges and of JPEG become: "nearest" the nearest class, "ignore" nothing.

    Raises:
        DataError: A mask is damaged, or the masks have no or two readings.
        ConfigError: An option can't be understood.
    """
    for name, value, known in (("mask_type", mask_type, MASK_TYPES), ("strays", strays, STRAYS)):
        if value and value not in known:
            raise ConfigError(f'is "{value}"', where=name, fix=f"choose {' or '.join(known)}")
    builder = SetBuilder(root, options)
    layout = find_masks(root, images, masks)
    if layout is None:
        raise DataError(
            "has no folders of images and masks with files of equal names",
            where=str(root),
            fix="call them images/ and masks/, or name them with the options images=FOLDER and masks=FOLDER",
        )
    builder.understand(layout.understood)
    _note_missing(builder, layout)
    how = MaskOptions(classes, mask_type, strays, instances, min_area)
    if layout.per_object:
        return InstanceMasks(builder, _class_name(how)).add_files(layout.entries)
    entries = list(_entries(builder, layout.entries, regions=not (classes or mask_type or _named(root))))
    if not entries:
        return builder.build()
    if mask_type != "semantic" and not (_is_named(how) or _named(root)):
        _refuse_instances(root, entries, mask_type)
    if mask_type == "instances":
        return InstanceMasks(builder, _class_name(how)).add_numbers(
            [(found.entry, found.size) for found in entries]
        )
    return _read_classes(builder, entries, how)


def _named(root: Path) -> bool:
    return (root / "classes.txt").is_file() or find_colour_table(root) is not None


def _is_named(how: MaskOptions) -> bool:
    return bool(how.classes) and not (isinstance(how.classes, str) and "=" not in how.classes)


def _class_name(how: MaskOptions) -> str:
    """Return the name of the one class of instances."""
    names = [how.classes] if isinstance(how.classes, str) else list(how.classes or ())
    if len(names) > 1 or any("=" in name or "," in name for name in names):
        raise ConfigError(
            "gives values to classes, but each value is an instance",
            where="classes",
            fix="name the one class, as classes=nucleus",
        )
    return names[0] if names else "object"


def _note_missing(builder: SetBuilder, layout: MaskLayout) -> None:
    for folder in layout.without:
        builder.note(builder.place(folder.path), f"{len(folder.files)} images without masks; left out")
    for path in layout.alone:
        builder.note(builder.place(path), "no mask; image left out")
    for path in layout.strangers:
        builder.note(builder.place(path), "its image is missing; left out")


def _entries(builder: SetBuilder, entries: Sequence[MaskEntry], *, regions: bool) -> Iterator[_Read]:
    looked = max(1, len(entries) // MOST_LOOKED_AT)
    for number, entry in enumerate(entries):
        size = builder.size_of(entry.image)
        if size is None:
            continue
        mask = entry.masks[0]
        values_HW = mask_values(load_label_pixels(mask))
        if values_HW.shape != (size[1], size[0]):
            height, width = values_HW.shape
            turned = size == (height, width) and is_turned(entry.image)
            why = " (turned by its EXIF orientation; the mask is of the pixels as stored)" if turned else ""
            builder.note(
                builder.place(mask),
                f"is {width}×{height} but its image {size[0]}×{size[1]}{why}; image left out",
            )
            continue
        yield _Read(entry, size, mask_facts(values_HW, mask, regions=regions and number % looked == 0))


def _refuse_instances(root: Path, entries: Sequence[_Read], mask_type: str) -> None:
    looked = max(1, len(entries) // MOST_LOOKED_AT)
    if mask_type or any(found.entry.instances for found in entries):
        return
    fix = (
        "-o mask_type=instances reads each value as one object (its class: -o classes=NAME), "
        "-o mask_type=semantic as a class"
    )
    evidence = look_like_instances([found.facts for found in entries[::looked]])
    if evidence is not None:
        raise DataError(
            f"the values of the masks look like numbers of instances: {evidence}, and nearly each is one region",
            where=str(root),
            fix=fix,
        )
    indices = all(found.facts.mode in _INDEX_MODES for found in entries)
    if indices and (largest := large_indices([found.facts for found in entries])) is not None:
        raise DataError(
            f"the masks hold values up to {largest}, more than there are classes: they may be numbers of instances",
            where=str(root),
            fix=fix,
        )


# --- masks of classes


def _read_classes(builder: SetBuilder, entries: list[_Read], how: MaskOptions) -> LabelledSet:
    root = builder.root
    modes = {found.facts.mode for found in entries}
    colour = not modes <= set(_INDEX_MODES)
    if colour and modes & set(_INDEX_MODES):
        raise DataError(
            "some masks hold colours and others indices", where=str(root), fix="save all masks in one way"
        )
    # Indices and grey levels that were saved with three equal channels are what they were.
    grey = colour and all(v % 0x010101 == 0 for found in entries for v in found.facts.values)
    facts = [_as_grey(found.facts) if grey else found.facts for found in entries]
    as_colour = colour and not grey
    class_map = _class_map(root, facts, how, colour=as_colour, palette=modes == {"P"})
    for line in (*class_map.said, says(class_map, colour=as_colour)):
        builder.understand(line)
    if grey:
        builder.understand("the masks' three channels are equal: read as one")
    _check_any_used(root, facts, class_map, colour=as_colour)
    _check_most_known(root, facts, class_map, how, colour=as_colour)
    values = tuple((v * 0x010101 if grey else v, i) for v, i in class_map.values)
    known = {value for value, _ in class_map.values}
    objects = _Objects(builder, class_map, how)
    for found, counted in zip(entries, facts, strict=True):
        unknown = [value for value in counted.values if value not in known and (as_colour or value != IGNORE)]
        if unknown and not how.strays:
            texts = ", ".join(shown(v, colour=as_colour) for v in unknown[:5])
            builder.note(builder.place(found.mask), f"{len(unknown)} unknown values ({texts}); ignored there")
        mask = MaskFile(str(found.mask), values, nearest=how.strays == "nearest")
        builder.add(
            found.entry.image,
            found.size,
            split=found.entry.split,
            semantic=mask,
            **objects.of(found.entry, mask),
        )
    objects.tell()
    return builder.build(semantic_classes=class_map.names, object_classes=objects.classes)


def _as_grey(facts: MaskFacts) -> MaskFacts:
    return replace(
        facts,
        values={v & 255: n for v, n in facts.values.items()},
        thin=frozenset(v & 255 for v in facts.thin),
        whole=frozenset(v & 255 for v in facts.whole),
    )


def _class_map(
    root: Path, facts: Sequence[MaskFacts], how: MaskOptions, *, colour: bool, palette: bool
) -> ClassMap:
    if how.classes:
        return from_option(how.classes, colour=colour)
    table, names = find_colour_table(root), root / "classes.txt"
    if names.is_file() and (table is None or not colour or table.path == names):
        named = from_file(names, colour=colour, occurring=totals(facts))
        if table is None or table.path == names:
            return named
        line = f"{table.path.name}: not used, classes.txt names the values of the masks"
        return replace(named, said=(*named.said, line))
    if table is not None:
        return from_table(table, colour=colour)
    strays = find_strays(facts, colour=colour)
    counts = totals(facts)
    if strays is None:
        return from_values(list(counts), root, colour=colour, palette=palette)
    if not how.strays:
        kept = shares(counts, strays.main, colour=colour)
        raise DataError(
            f"the masks hold {len(counts)} values, of which {len(counts) - len(strays.main)} are on only "
            f"{strays.pixels} pixels ({strays.share:.2%}): {strays.why}; the others are {kept}",
            where=str(root),
            fix="-o strays=nearest gives those pixels to the nearest of the others, -o strays=ignore ignores them; "
            "if they are classes, name all with the option classes",
        )
    return from_values(strays.main, root, colour=colour, palette=palette)


def _check_any_used(root: Path, facts: Sequence[MaskFacts], class_map: ClassMap, *, colour: bool) -> None:
    """Raise when the masks hold no class but background: then the map is wrong, not the images empty."""
    found = {value for mask in facts for value in mask.values}
    wanted = {v for v, i in class_map.values if i != IGNORE and class_map.names[i] != BACKGROUND}
    if not found & wanted:
        texts = ", ".join(shown(v, colour=colour) for v in sorted(found)[:10])
        raise DataError(
            f"no mask holds any of the classes; the values that occur are {texts}",
            where=str(root),
            fix="name them with the option classes",
        )


def _check_most_known(
    root: Path, facts: Sequence[MaskFacts], class_map: ClassMap, how: MaskOptions, *, colour: bool
) -> None:
    """Raise when more than half of the pixels have values that nothing names."""
    if how.strays == "nearest":
        return
    counts = totals(facts)
    known = {value for value, _ in class_map.values} | (set() if colour else {IGNORE})
    unknown = [value for value in counts if value not in known]
    share = sum(counts[value] for value in unknown) / sum(counts.values())
    if share > 0.5:
        raise DataError(
            f"{share:.0%} of the masks' pixels have values that no class has: "
            f"{shares(counts, unknown, colour=colour)}",
            where=str(root),
            fix="name them with the option classes, where they are to be ignored as ignore=VALUE",
        )


class _Objects:
    """Objects of class masks: by their instance masks where there are any, else the connected regions.

    Args:
        builder: Takes findings.
        class_map: Of the masks.
        how: Whether regions are wanted.
    """

    def __init__(self, builder: SetBuilder, class_map: ClassMap, how: MaskOptions) -> None:
        self.builder, self.how = builder, how
        self.names = {i: name for i, name in enumerate(class_map.names) if name.lower() != BACKGROUND}
        self.found: list[ObjectLabel] = []
        self.used = False
        self.numbers = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the object classes."""
        return tuple(self.names.values()) if self.used else ()

    def of(self, entry: MaskEntry, mask: MaskFile) -> dict[str, tuple[ObjectLabel, ...] | None]:
        """Return `objects` and `ignored` of an image; nothing where they aren't known."""
        if entry.instances is not None:
            self.used, self.numbers = True, self.numbers + 1
            masks = InstanceMasks(self.builder, "")
            objects, ignored = masks.with_classes(entry.instances, mask(), self.names)
            return {"objects": objects, "ignored": ignored}
        if not self.how.instances:
            return {}
        self.used = True
        regions = objects_of(mask(), self.names, min_area=self.how.min_area)
        self.found += regions.objects
        if regions.too_small:
            self.builder.note(
                self.builder.place(entry.masks[0]),
                f"{regions.too_small} regions under {self.how.min_area} pixels; not counted as objects",
            )
        return {"objects": regions.objects}

    def tell(self) -> None:
        """Say what the objects are, and how many may be several in one."""
        if self.numbers:
            self.builder.understand(f"objects: from the instance masks of {self.numbers} images")
        if not self.found:
            return
        self.builder.understand("objects: the connected regions of each class; those that touch are one")
        several = _may_be_several(self.found)
        if several:
            self.builder.note(
                "instances",
                f"objects that touch are one region: {several} of {len(self.found)} regions are bent inwards or more "
                "than three times as large as the middle one of their class; masks of instances tell them apart",
            )


def _may_be_several(objects: Sequence[ObjectLabel]) -> int:
    """Return how many regions look like several objects in one."""
    areas = [
        sum(area(as_points(r)) for r in label.polygons) - sum(area(as_points(h)) for h in label.holes)
        for label in objects
    ]
    by_class: dict[str, list[float]] = {}
    for label, own in zip(objects, areas, strict=True):
        by_class.setdefault(label.category, []).append(own)
    middle = {name: float(np.median(values)) for name, values in by_class.items()}
    count: Counter[bool] = Counter()
    for label, own in zip(objects, areas, strict=True):
        filled = sum(area(as_points(ring)) for ring in label.polygons)
        points = np.concatenate([as_points(ring) for ring in label.polygons]).astype(np.float32)
        hull = float(cv2.contourArea(cv2.convexHull(points)))
        # Corners of pixels bend the outline of small regions, too.
        bent = filled >= 50 and filled < 0.85 * hull
        count[bent or own > 3 * middle[label.category]] += 1
    return count[True]
