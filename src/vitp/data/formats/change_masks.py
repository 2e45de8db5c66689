"""The meaning of masks of pairs: what changed, what became what, and levels or kinds of change.

| masks | meaning |
|---|---|
| one of two values | 0 (dark) is unchanged, the other value changed |
| one of several values | levels or kinds of change, as `unchanged` and `classes` say; refused without |
| two of classes, one a date | a value that both hold at the same places is unchanged; the others became each other |
| two at different places, beside one of both | what appears and what vanishes; only that something changed is read |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.builder import SetBuilder
from vitp.data.formats.mask_classes import (
    MaskClasses,
    find_colour_table,
    from_file,
    from_option,
    from_table,
    from_values,
    parse_value,
    says,
)
from vitp.data.formats.mask_kinds import (
    MaskFacts,
    find_strays,
    mask_facts,
    refuse_odd_looks,
    shares,
    shown,
    totals,
)
from vitp.data.formats.pixel_masks import MaskFile, TransitionFiles, mask_values
from vitp.io.images import load_label_pixels
from vitp.io.warped import Grid
from vitp.records.labels import BACKGROUND, IGNORE

_LOOKED_AT = 50
_LOOSE = 0.02
"""Share of the changed pixels by which masks may differ that mean the same, along borders."""


@dataclass(frozen=True)
class ChangeMasks:
    """The masks of one place, each as image of the first date → file.

    Attributes:
        change: What changed.
        first: Classes at the first date.
        second: Classes at the second date.
    """

    change: Mapping[Path, Path]
    first: Mapping[Path, Path]
    second: Mapping[Path, Path]


@dataclass(frozen=True)
class ChangeMeaning:
    """How the masks of a set are read.

    Attributes:
        unchanged: Values that say "unchanged"; None: 0, or what is dark.
        names: Classes of what became what.
        values: (value, class index) pairs of masks of classes or levels.
        former: For masks of levels: the class index that each value had before.
    """

    unchanged: int | tuple[int, ...] | None = None
    names: tuple[str, ...] = ()
    values: tuple[tuple[int, int], ...] = ()
    former: tuple[tuple[int, int], ...] = ()

    def transition(
        self, mask: Path, classes: Sequence[Path], onto: Mapping[Path, Grid] | None = None
    ) -> TransitionFiles | None:
        """Return what reads what became what, from the masks of classes or else from the one of levels.

        Args:
            mask: Mask of what changed, or of levels.
            classes: Masks of classes at both dates.
            onto: The pixels of the image, for each of these files that has others on the ground.
        """
        grids = onto or {}
        if self.former:
            values = (self.former, self.values)
            return TransitionFiles(*(MaskFile(str(mask), each, onto=grids.get(mask)) for each in values))
        if not self.names or len(classes) != 2:
            return None
        return TransitionFiles(*(MaskFile(str(path), self.values, onto=grids.get(path)) for path in classes))


def understood_changes(
    builder: SetBuilder,
    places: Sequence[ChangeMasks],
    unchanged: str | int | Sequence[str | int] | None,
    classes: str | Sequence[str] | Mapping[str, str | int] | None,
) -> ChangeMeaning:
    """Return how the masks of a set are read, and say it.

    Raises:
        DataError: They have several readings.
        ConfigError: An option can't be understood.
    """
    told = _values_told(unchanged)
    both = all(place.first and place.second for place in places)
    if both and _are_kinds(places):
        builder.understand(
            "the masks of each date mark other places, and together they are those of what changed: two kinds of change "
            "(what appears, what vanishes), which aren't told apart"
        )
        return _of_one_mask(builder, places, told, classes)
    if both:
        value = told or (_unchanged_value(builder, places),)
        return _of_classes(builder, places, value, classes)
    return _of_one_mask(builder, places, told, classes)


def _values_told(unchanged: str | int | Sequence[str | int] | None) -> tuple[int, ...]:
    if unchanged is None:
        return ()
    words = unchanged if isinstance(unchanged, list | tuple) else str(unchanged).split(",")
    try:
        return tuple(parse_value(str(word).strip()) for word in words)
    except ValueError as error:
        fix = "write 0, white, #ffffff or 255:255:255"
        raise ConfigError(f'"{unchanged}" is no value', where="unchanged", fix=fix) from error


def _facts(paths: Sequence[Path]) -> tuple[list[MaskFacts], bool]:
    """Return what is counted in masks, and whether they hold colours."""
    facts, colour = [], False
    for path in paths:
        pixels = load_label_pixels(path)
        colour = colour or pixels.ndim == 3
        facts.append(mask_facts(pixels, path, regions=False))
    return facts, colour


def _are_kinds(places: Sequence[ChangeMasks]) -> bool:
    """Return whether masks beside those of what changed are parts of these, as what appears and what vanishes.

    Masks of classes of two dates are not: they hold what changed at the same places.
    """
    trios = [
        (mask, place.first.get(image), place.second.get(image))
        for place in places
        for image, mask in place.change.items()
    ]
    differ = False
    for change, first, second in islice(trios, _LOOKED_AT):
        if first is None or second is None:
            return False
        change_HW, *parts = (_is_bright(load_label_pixels(path)) for path in (change, first, second))
        if any(part_HW.shape != change_HW.shape for part_HW in parts):
            return False
        if ((parts[0] | parts[1]) != change_HW).sum() > _LOOSE * change_HW.sum():
            return False
        differ = differ or (parts[0] != parts[1]).sum() > _LOOSE * change_HW.sum()
    return differ


def _is_bright(pixels: np.ndarray) -> np.ndarray:
    bright_HW: np.ndarray = (pixels if pixels.ndim == 2 else pixels.max(axis=2)) > 0
    return bright_HW


# --- one mask a pair


def _of_one_mask(
    builder: SetBuilder,
    places: Sequence[ChangeMasks],
    told: tuple[int, ...],
    classes: str | Sequence[str] | Mapping[str, str | int] | None,
) -> ChangeMeaning:
    if told and not classes:
        return ChangeMeaning(told if len(told) > 1 else told[0])
    paths = [path for place in places for path in place.change.values()]
    facts, colour = _facts(paths)
    counts, grey = totals(facts), False
    if not classes:
        _refuse_nodata(facts, paths, colour=colour)
        if any(one.nodata == 0 for one in facts):
            builder.understand("0 is nodata by the masks' own tags, and read as unchanged")
    if colour and (grey := all(value % 0x010101 == 0 for value in counts)):
        counts = Counter({value & 255: n for value, n in counts.items()})
    if not classes:
        refuse_odd_looks(facts, paths)
        if len(counts) == 1:
            text = shown(next(iter(counts)), colour=colour and not grey)
            raise DataError(
                f"all pixels of all masks of what changed have one value, {text}: either nothing or everything changed",
                where=str(builder.root),
                fix=f"-o unchanged={text} if nothing changed; -o unchanged= with another value if everything did",
            )
        # Levels fill areas; the edges of resized masks and what JPEG leaves don't.
        solid = {value for mask in facts for value in mask.values if value not in mask.thin}
        strays = find_strays(facts, colour=colour)
        main = solid.intersection(strays.main) if strays else solid
        values = sorted({value & 255 for value in main} if grey else main)
        if len(values) > 2:
            raise _several(builder.root, values, counts, colour=colour and not grey)
        return ChangeMeaning()
    named = _occurring(from_option(classes, colour=colour and not grey), counts)
    same = told or (0,)
    index = dict(named.values)
    kept = [value for value in same if value in index]
    if not kept:
        what = f"no class has the value {', '.join(map(str, same))}, which says unchanged"
        raise ConfigError(what, where="unchanged", fix="name the value of a class, as in -o unchanged=0")
    # What is damaged was intact before: the last of the unchanged classes that isn't the background.
    base = next((value for value in reversed(kept) if value), kept[0])
    former = tuple((value, index[value if value in kept else base]) for value, _ in named.values)
    builder.understand(says(named, colour=colour and not grey))
    names = [named.names[index[value]] for value in kept]
    builder.understand(
        f"unchanged: {', '.join(names)}; the other classes were {named.names[index[base]]} before"
    )
    open_values = [value for value, number in named.values if number == IGNORE]
    if open_values:
        listed = ", ".join(shown(value, colour=colour and not grey) for value in open_values)
        builder.understand(f"{listed} is ignored, and counts as unchanged where only change is asked for")
    scale = 0x010101 if grey else 1
    return ChangeMeaning(
        tuple(value * scale for value in (*kept, *open_values)),
        named.names,
        tuple((value * scale, number) for value, number in named.values),
        tuple((value * scale, number) for value, number in former),
    )


def _refuse_nodata(
    facts: Sequence[MaskFacts], paths: Sequence[Path], told: Sequence[int] = (), *, colour: bool
) -> None:
    """Refuse pixels of which a mask says that nothing is known, where change must be known of all pixels."""
    for one, path in zip(facts, paths, strict=True):
        if one.blank or (one.nodata and one.nodata not in told):
            text = shown(one.nodata, colour=colour) if one.nodata is not None else "NaN"
            known = one.nodata is not None
            raise DataError(
                f"{text} is nodata by its own tag: nothing is known there, which masks of what changed don't tell",
                where=str(path),
                fix=f"-o unchanged=0,{text} counts such pixels as unchanged, -o unchanged=0 as changed"
                if known and not colour
                else "save the masks with 0 and 1 alone, and cut the images to what is known",
            )


def _several(root: Path, values: Sequence[int], counts: Counter[int], *, colour: bool) -> DataError:
    listed = ",".join(f"NAME_{shown(value, colour=colour)}={shown(value, colour=colour)}" for value in values)
    return DataError(
        f"the masks of what changed hold {shares(counts, values, colour=colour)}: levels or kinds of change, or any "
        "but one may be change",
        where=str(root),
        fix=f"-o unchanged=0 reads all other values as changed; -o classes={listed} -o unchanged=VALUE,… reads levels "
        "or kinds, and which of them say unchanged",
    )


# --- a mask of classes a date


def _of_classes(
    builder: SetBuilder,
    places: Sequence[ChangeMasks],
    unchanged: tuple[int, ...],
    classes: str | Sequence[str] | Mapping[str, str | int] | None,
) -> ChangeMeaning:
    """Return which value is which class, where there is more than one beside "unchanged"."""
    found = ChangeMeaning(unchanged[0] if len(unchanged) == 1 else unchanged)
    if any(place.change for place in places):
        found = _of_one_mask(builder, places, (), None)
    paths = [path for place in places for own in (place.first, place.second) for path in own.values()]
    facts, colour = _facts(paths)
    counts = totals(facts)
    _refuse_nodata(facts, paths, unchanged, colour=colour)
    for value in unchanged:
        counts.pop(value, None)
    if len(counts) < 2 and not classes:
        return found
    table, names = find_colour_table(builder.root), builder.root / "classes.txt"
    if classes:
        named = from_option(classes, colour=colour)
    elif names.is_file():
        named = from_file(names, colour=colour, occurring=counts)
    elif table is not None:
        named = from_table(table, colour=colour)
    else:
        refuse_odd_looks(facts, paths)
        named = from_values(list(counts), builder.root, colour=colour, palette=False)
    named = _occurring(named, counts)
    builder.understand(f"what became what, {says(named, colour=colour)}")
    return replace(found, names=named.names, values=named.values)


def _occurring(named: MaskClasses, counts: Counter[int]) -> MaskClasses:
    """Return the map without a background that no mask holds, which an option adds."""
    values = [(v, i) for v, i in named.values if v in counts or v or named.names[i] != BACKGROUND]
    kept = [i for i in range(len(named.names)) if any(i == number for _, number in values)]
    names = tuple(named.names[i] for i in kept)
    return replace(
        named, names=names, values=tuple((v, kept.index(i) if i in kept else i) for v, i in values)
    )


def _unchanged_value(builder: SetBuilder, places: Sequence[ChangeMasks]) -> int:
    """Return the value that both masks of classes have at the same places."""
    possible: set[int] | None = None
    pairs = [(path, place.second.get(image)) for place in places for image, path in place.first.items()]
    for mask, other in islice(((a, b) for a, b in pairs if b is not None), _LOOKED_AT):
        one_HW, other_HW = (mask_values(load_label_pixels(path)) for path in (mask, other))
        if one_HW.shape != other_HW.shape:
            continue
        occurring = set(np.unique(one_HW).tolist()) & set(np.unique(other_HW).tolist())
        if possible is not None:
            occurring &= possible
        possible = {
            value for value in occurring if ((one_HW == value) == (other_HW == value)).all()
        } or possible
    if possible is None or len(possible) != 1:
        several = "no value" if not possible else "more than one value"
        raise DataError(
            f"{several} of label1 and label2 is at the same places in both, so what says unchanged isn't known",
            where=str(builder.root),
            fix="name it with the option unchanged, as 0 or white",
        )
    value = possible.pop()
    text = f"#{value:06x}" if value > 255 else str(value)
    builder.understand(f"{text} in the masks of classes says unchanged")
    return value
