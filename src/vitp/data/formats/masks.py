"""Masks: of classes, of instances, or one file an object; see `mask_layouts` for where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.mask_classes import (
    find_colour_table,
    says,
)
from vitp.data.formats.mask_kinds import (
    MOST_LOOKED_AT,
    MaskFacts,
    by_colours,
    large_indices,
    look_like_instances,
    mask_facts,
    refuse_odd_looks,
    shown,
    values_of_colours,
)
from vitp.data.formats.mask_layouts import MaskEntry, MaskLayout, find_masks
from vitp.data.formats.mask_names import CITYSCAPES
from vitp.data.formats.mask_naming import check_used, name_classes, name_file
from vitp.data.formats.mask_nodata import (
    NODATA_READINGS,
    facts_to_name,
    facts_without_nodata,
    values_of_mask,
    with_nodata,
)
from vitp.data.formats.mask_objects import (
    check_turned,
    mask_fits,
    note_touching,
    numbered_objects,
    objects_of_classes,
    single_object,
)
from vitp.data.formats.mask_published import published_classes
from vitp.data.formats.nnunet_flat import apply_dataset_file
from vitp.data.formats.pixel_masks import MaskFile, mask_values
from vitp.io.images import load_label_pixels
from vitp.io.slide_masks import SlideScale, scale_of_mask
from vitp.io.warped import Grid, grid_of_image
from vitp.records.labels import BACKGROUND, IGNORE, LabelledSet, ObjectLabel
from vitp.records.regions import objects_of

_READINGS = {
    "mask_type": ("semantic", "instances"),
    "strays": ("nearest", "ignore"),
    "nodata": NODATA_READINGS,
}
"""Option → what it may say."""

_INDEX_MODES = frozenset(("1", "L", "P", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"))


@dataclass(frozen=True)
class _Read:
    """One image with what was counted in its mask; `onto` are its pixels, where the mask has others on the ground."""

    entry: MaskEntry
    size: tuple[int, int]
    facts: MaskFacts
    onto: Grid | SlideScale | None = None


def read_masks(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | Sequence[str] | Mapping[str, str | int] | None = None,
    instances: bool = False,
    fold: int = 0,
    min_area: int = 10,
    images: str | None = None,
    masks: str | None = None,
    mask_type: str = "",
    strays: str = "",
    nodata: str = "",
    annotator: int | str | None = None,
) -> LabelledSet:
    """Read images with masks. Every mask is decoded once to see which values occur.

    Masks of instances (a number an object, or a file an object) become objects. VOC's `SegmentationObject` beside
    masks of classes gives the objects their outlines.

    Args:
        root: The set's folder.
        options: Name, licence, splits.
        classes: "name=value,…" with indices or colours (see `mask_classes.from_option`); by default from classes.txt or
            a table of colours, else the values that occur. Of masks of instances the name of their class.
        instances: Derive objects from the connected regions of every class but "background".
        fold: Fold of nnU-Net's splits_final.json, whose val cases are the split val.
        min_area: Regions of fewer pixels are no objects.
        images, masks: Folders of the images and of the masks, where their names don't say it.
        mask_type: "semantic": a value is a class; "instances": a value is an object. Where the values can be both,
            it must be given.
        strays: What the values of smoothed edges and of JPEG become: "nearest" the nearest class, "ignore" nothing.
        nodata: What the value that the masks' own tags name as nodata is: "ignore" (by default) or "background". Of 0
            beside several classes it must be said.
        annotator: Who drew the masks that are read, where several have: a number ("1st_manual", "_2ndHO"), or the word
            with which their names end or begin ("a_anna", "anna_a").

    Raises:
        DataError: A mask is damaged, or the masks have no or two readings.
        ConfigError: An option can't be understood.
    """
    _check_options(mask_type=mask_type, strays=strays, nodata=nodata)
    layout = find_masks(root, images, masks, annotator) or _no_masks(root)
    builder = SetBuilder(root, options)
    _note_missing(builder, layout)
    if not classes and not mask_type:
        classes = apply_dataset_file(builder, layout, fold)
    if layout.per_object:
        return _add_files(builder, layout.entries, _class_name(classes))
    named = layout.label_ids or name_file(root) is not None or find_colour_table(root) is not None
    if not (entries := _entries(builder, layout.entries, regions=not (classes or mask_type or named))):
        return builder.build()
    plain = [(one.entry.image, one.entry.masks[0], one.size) for one in entries if one.onto is None]
    check_turned(builder, plain)
    if not named:
        _refuse_two_readings(root, entries, classes, mask_type)
    if mask_type == "instances":
        return _add_numbers(builder, entries, _class_name(classes))
    return _read_classes(builder, entries, classes, strays, nodata, min_area if instances else None)


def _refuse_two_readings(
    root: Path,
    entries: Sequence[_Read],
    classes: str | Sequence[str] | Mapping[str, str | int] | None,
    mask_type: str,
) -> None:
    """Raise where values may be classes or objects, or are of nothing known, and neither options nor files tell."""
    if not mask_type and (not classes or (isinstance(classes, str) and "=" not in classes)):
        _refuse_instances(root, entries)
    facts = [one.facts for one in entries]
    if mask_type != "instances" and not classes and by_colours(facts) is None:
        refuse_odd_looks(facts, [one.entry.masks[0] for one in entries])


def _no_masks(root: Path) -> NoReturn:
    what = "has no folders of images and masks with files of equal names"
    fix = "call them images/ and masks/, or name them with the options images=FOLDER and masks=FOLDER"
    raise DataError(what, where=str(root), fix=fix)


def _check_options(**options: str) -> None:
    for name, value in options.items():
        if value and value not in _READINGS[name]:
            raise ConfigError(f'is "{value}"', where=name, fix=f"choose {' or '.join(_READINGS[name])}")


def _class_name(classes: str | Sequence[str] | Mapping[str, str | int] | None) -> str:
    """Return the name of the one class of instances."""
    names = [classes] if isinstance(classes, str) else list(classes or ())
    if len(names) > 1 or any("=" in name or "," in name for name in names):
        what = "gives values to classes, but each value is an instance"
        raise ConfigError(what, where="classes", fix="name the one class, as classes=nucleus")
    return names[0] if names else "object"


def _note_missing(builder: SetBuilder, layout: MaskLayout) -> None:
    builder.understand(layout.understood)
    for folder in layout.without:
        builder.note(builder.place(folder.path), f"{len(folder.files)} images without masks; left out")
    for path in layout.alone:
        builder.note(builder.place(path), "no mask; image left out")
    for path in layout.strangers:
        builder.lose(builder.place(path), "its image is missing; left out", absent=True)


def _entries(builder: SetBuilder, entries: Sequence[MaskEntry], *, regions: bool) -> list[_Read]:
    looked = max(1, len(entries) // MOST_LOOKED_AT)
    found = []
    for number, entry in enumerate(entries):
        size = builder.size_of(entry.image)
        if size is None:
            continue
        path = entry.masks[0]
        try:
            pixels = load_label_pixels(path)
        except DataError as error:
            builder.leave_out(error, path, "image left out")
            continue
        try:
            onto: Grid | SlideScale | None = scale_of_mask(entry.image, size, path)
            if onto is None:
                onto = grid_of_image(entry.image, size, path, (pixels.shape[1], pixels.shape[0]))
        except DataError as error:
            builder.note(builder.place(path), f"{error.what}; image left out")
            continue
        if onto is not None or mask_fits(builder, pixels, path, entry.image, size):
            facts = mask_facts(pixels, path, regions=regions and number % looked == 0)
            found.append(_Read(entry, size, facts, onto))
    if scaled := [one for one in found if isinstance(one.onto, SlideScale)]:
        builder.understand(
            f"{len(scaled)} masks have other pixels than their slides ({builder.place(scaled[0].entry.masks[0])} for "
            "example): each pixel of a slide has the value of the nearest one"
        )
    if moved := [one for one in found if isinstance(one.onto, Grid)]:
        builder.understand(
            f"{len(moved)} masks have other pixels on the ground than their images ({builder.place(moved[0].entry.masks[0])} "
            "for example): each pixel of an image has the value of the nearest one, outside of the mask it is ignored"
        )
    return found


def _refuse_moved(found: _Read, path: Path) -> None:
    """Refuse numbers of instances that aren't on the pixels of their image."""
    if found.onto is not None:
        raise DataError(
            "holds numbers of instances on other pixels than its image has",
            where=str(path),
            fix="bring it onto the image's pixels (gdalwarp -r near), or save the objects as a GeoPackage",
        )


def _refuse_instances(root: Path, entries: Sequence[_Read]) -> None:
    """Refuse masks whose values may be numbers of instances, unless masks of instances lie beside them."""
    if any(found.entry.instances for found in entries):
        return
    fix = (
        "-o mask_type=instances reads each value as one object (its class: -o classes=NAME), "
        "-o mask_type=semantic as a class"
    )
    looked = max(1, len(entries) // MOST_LOOKED_AT)
    evidence = look_like_instances([facts_without_nodata(found.facts) for found in entries[::looked]])
    if evidence is not None:
        what = f"the values of the masks look like numbers of instances: {evidence}, and nearly each is one region"
        raise DataError(what, where=str(root), fix=fix)
    indices = all(found.facts.mode in _INDEX_MODES for found in entries)
    if (
        indices
        and (largest := large_indices([facts_without_nodata(found.facts) for found in entries])) is not None
    ):
        raise DataError(
            f"the masks hold values up to {largest}, more than there are classes: they may be numbers of instances",
            where=str(root),
            fix=fix,
        )


# --- masks of instances


def _add_files(builder: SetBuilder, entries: Sequence[MaskEntry], name: str) -> LabelledSet:
    """Add images of which each has several masks with one object each."""
    count = 0
    fitting: list[tuple[Path, Path, tuple[int, int]]] = []
    for entry in entries:
        size = builder.size_of(entry.image)
        if size is None:
            continue
        labels: list[ObjectLabel] = []
        for path in entry.masks:
            try:
                values_HW = mask_values(load_label_pixels(path))
            except DataError as error:
                builder.leave_out(error, path, "image left out")
                break
            if not mask_fits(builder, values_HW, path, None, size):
                break
            label = single_object(values_HW, path, name)
            if label is None:
                builder.note(builder.place(path), "holds no pixel; left out")
            else:
                labels.append(label)
        else:
            fitting.append((entry.image, entry.masks[0], size))
            count += len(labels)
            builder.add(entry.image, size, split=entry.split, objects=tuple(labels))
    check_turned(builder, fitting)
    builder.understand(f"each file is one {name}: {count} objects")
    return builder.build(object_classes=(name,))


def _add_numbers(builder: SetBuilder, entries: Sequence[_Read], name: str) -> LabelledSet:
    """Add images of which each has one mask with a number for each object."""
    count = 0
    for found in entries:
        _refuse_moved(found, found.entry.masks[0])
        objects, ignored = numbered_objects(builder, found.entry.masks[0], name)
        count += len(objects)
        builder.add(found.entry.image, found.size, split=found.entry.split, objects=objects, ignored=ignored)
    builder.understand(f"each value but 0 is one {name}: {count} in {len(entries)} masks")
    return builder.build(object_classes=(name,))


# --- masks of classes


def _read_classes(
    builder: SetBuilder,
    entries: list[_Read],
    classes: str | Sequence[str] | Mapping[str, str | int] | None,
    strays: str,
    nodata: str,
    min_area: int | None,
) -> LabelledSet:
    """Add images with masks of classes; with `min_area` their connected regions are objects."""
    entries, by_palette = _by_palette(builder, entries, classes)
    modes = {found.facts.mode for found in entries}
    colour = _hold_colours(modes, builder.root)
    # Indices and grey levels that were saved with three equal channels are what they were.
    grey = colour and all(v % 0x010101 == 0 for found in entries for v in found.facts.values)
    facts = [_as_grey(found.facts) if grey else found.facts for found in entries]
    colour = colour and not grey
    to_name = facts_to_name(facts, nodata, builder.root)
    ids = all(CITYSCAPES.search(found.entry.masks[0].stem) for found in entries)
    paths = [found.entry.masks[0] for found in entries] if colour and not classes else []
    plain = published_classes(builder.root, paths, to_name) or name_classes(
        *(builder.root, facts, to_name, classes, strays), colour=colour, palette=modes == {"P"}, label_ids=ids
    )
    named = with_nodata(facts, plain, nodata, builder.root, colour=colour)
    for line in (*named.said, says(named, colour=colour)):
        builder.understand(line)
    if grey:
        builder.understand("the masks' three channels are equal: read as one")
    check_used(builder.root, facts, named, strays, colour=colour)
    known = {value for value, _ in named.values} | (set() if colour else {IGNORE})
    things = {i: name for i, name in enumerate(named.names) if name.lower() != BACKGROUND}
    regions: list[ObjectLabel] = []
    numbered = 0
    for found, counted in zip(entries, facts, strict=True):
        entry, path = found.entry, found.entry.masks[0]
        if (unknown := [value for value in counted.values if value not in known]) and not strays:
            texts = ", ".join(shown(v, colour=colour) for v in unknown[:5])
            builder.note(builder.place(path), f"{len(unknown)} unknown values ({texts}); ignored there")
        values = values_of_mask(counted, named, plain, 0x010101 if grey else 1)
        if by_palette:
            values = values_of_colours(values, found.facts.palette, nearest=strays == "nearest")
        mask = MaskFile(str(path), values, nearest=strays == "nearest", onto=found.onto)
        labels: dict[str, Any] = {}
        if entry.instances is not None:
            numbered += 1
            _refuse_moved(found, entry.instances)
            objects, ignored = objects_of_classes(builder, entry.instances, mask(), things)
            labels = {"objects": objects, "ignored": ignored}
        elif min_area is not None:
            derived = objects_of(mask(), things, min_area=min_area)
            if derived.too_small:
                text = f"{derived.too_small} regions under {min_area} pixels; not counted as objects"
                builder.note(builder.place(path), text)
            regions += derived.objects
            labels = {"objects": derived.objects}
        builder.add(entry.image, found.size, split=entry.split, semantic=mask, **labels)
    if numbered:
        builder.understand(f"objects: from the instance masks of {numbered} images")
    note_touching(builder, regions)
    things = things if numbered or min_area is not None else {}
    return builder.build(semantic_classes=named.names, object_classes=things.values())


def _hold_colours(modes: set[str], root: Path) -> bool:
    colour = not modes <= _INDEX_MODES
    if colour and modes & _INDEX_MODES:
        what = "some masks hold colours and others indices"
        raise DataError(what, where=str(root), fix="save all masks in one way")
    return colour


def _by_palette(builder: SetBuilder, entries: list[_Read], classes: object) -> tuple[list[_Read], bool]:
    """Return the masks by the colours of their palettes, and whether these say what they hold."""
    coloured = by_colours([found.facts for found in entries], _table_colours(builder.root, classes))
    if coloured is None:
        return entries, False
    builder.understand("the masks' palettes say what their values mean: read by their colours")
    return [replace(found, facts=facts) for found, facts in zip(entries, coloured, strict=True)], True


def _table_colours(root: Path, classes: object) -> frozenset[int]:
    """Return the colours of the table that names the classes, where it has no numbers for them."""
    table = None if classes or name_file(root) is not None else find_colour_table(root)
    if table is None or all(number is not None for _, _, number in table.rows):
        return frozenset()
    return frozenset(colour for _, colour, _ in table.rows)


def _as_grey(facts: MaskFacts) -> MaskFacts:
    return replace(
        facts,
        values={v & 255: n for v, n in facts.values.items()},
        thin=frozenset(v & 255 for v in facts.thin),
        whole=frozenset(v & 255 for v in facts.whole),
        nodata=None if facts.nodata is None else facts.nodata & 255,
    )
