"""The nodata tags of masks: pixels of which a file itself says that nothing is known.

Such pixels are ignored, unless somebody named their value as a class. A tag of 0 has two readings: writers that draw
outlines into a raster tag its background with it, and writers of maps tag what lies outside of the map. Where the masks
hold one other value, 0 must be the background; else `-o nodata=` decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.mask_classes import MaskClasses
from vitp.data.formats.mask_kinds import MaskFacts, shares, shown, totals
from vitp.records.labels import BACKGROUND, IGNORE

NODATA_READINGS = ("ignore", "background")


@dataclass(frozen=True)
class NodataTags:
    """What the tags of a set's masks say.

    Attributes:
        masks: Value → number of masks that name it as nodata and hold it.
        pixels: Value → pixels of these masks that have it.
        blank: Pixels that are nodata and hold no whole number (NaN).
        total: Pixels of all masks.
        first: A mask that names one of the values, by its place in the set's order.
    """

    masks: Counter[int]
    pixels: Counter[int]
    blank: int
    total: int
    first: int

    @classmethod
    def of(cls, facts: Sequence[MaskFacts]) -> NodataTags:
        """Return what the tags of some masks say."""
        masks: Counter[int] = Counter()
        pixels: Counter[int] = Counter()
        for one in facts:
            if one.nodata is not None:
                masks[one.nodata] += 1
                pixels[one.nodata] += one.values[one.nodata]
        blank = sum(one.blank for one in facts)
        named = [number for number, one in enumerate(facts) if one.nodata is not None or one.blank]
        total = sum(totals(facts).values()) + blank
        return cls(masks, pixels, blank, total, named[0] if named else -1)


def facts_without_nodata(facts: MaskFacts, kept: frozenset[int] = frozenset()) -> MaskFacts:
    """Return what was counted in a mask without the value that its tag names, unless it is one of those kept."""
    value = facts.nodata
    if value is None or value in kept:
        return facts
    return replace(
        facts,
        values={v: n for v, n in facts.values.items() if v != value},
        thin=facts.thin - {value},
        whole=facts.whole - {value},
        palette={v: colour for v, colour in facts.palette.items() if v != value},
        hidden=facts.hidden - {value},
    )


def nodata_as_zero(facts: MaskFacts) -> MaskFacts:
    """Return what was counted in a mask with the pixels that its tag names counted as 0."""
    value, found = facts.nodata, facts_without_nodata(facts)
    if not value:
        return facts
    return replace(found, values={**found.values, 0: found.values.get(0, 0) + facts.values[value]})


def facts_to_name(facts: Sequence[MaskFacts], reading: str, root: Path) -> list[MaskFacts]:
    """Return what was counted in masks without what is nodata: these values are looked at for classes.

    0 stays, for it is the background of most masks, unless `reading` says that it is ignored.

    Raises:
        DataError: NaN is to be the background.
    """
    tags = NodataTags.of(facts)
    if reading == "background":
        if tags.blank:
            raise DataError(
                "masks whose nodata value is NaN hold no number there that could be the background",
                where=str(root),
                fix="save them with 0 instead of NaN (gdalwarp -dstnodata 0), or leave out -o nodata=background",
            )
        return [nodata_as_zero(one) for one in facts]
    return [
        facts_without_nodata(one, frozenset() if reading == "ignore" else frozenset({0})) for one in facts
    ]


def check_left(facts: Sequence[MaskFacts], left: Sequence[MaskFacts], root: Path, *, colour: bool) -> None:
    """Make sure that masks whose classes nobody named hold something beside what is nodata.

    Raises:
        DataError: They hold one value or none: then nodata may be the background as well.
    """
    tags, counts = NodataTags.of(facts), totals(left)
    if 0 in tags.masks and 0 not in counts and len(counts) < 2:
        rest = f"only {shown(next(iter(counts)), colour=colour)}" if counts else "nothing"
        name = (
            f", -o classes=NAME={shown(next(iter(counts)), colour=colour)} names the one class"
            if counts
            else ""
        )
        raise DataError(
            f"-o nodata=ignore ignores 0, which has {tags.pixels[0] / tags.total:.2%} of the pixels, and beside it the masks "
            f"hold {rest}",
            where=str(root),
            fix=f"-o nodata=background reads 0 as the background{name}",
        )
    if (tags.masks or tags.blank) and len(counts) < 2 and not tags.masks.keys() <= {0}:
        named = ", ".join(shown(value, colour=colour) for value in tags.masks) or "NaN"
        rest = f"only {shown(next(iter(counts)), colour=colour)}" if counts else "nothing"
        raise DataError(
            f"the masks' files name {named} as nodata, and beside it they hold {rest}: either nothing is known there, "
            "or it is a class or the background",
            where=str(root),
            fix="-o nodata=background reads it as the background"
            if 0 not in counts
            else f"name the classes: -o classes=background=0,NAME={named}",
        )


def with_nodata(
    facts: Sequence[MaskFacts], named: MaskClasses, reading: str, root: Path, *, colour: bool
) -> MaskClasses:
    """Return the classes of masks with what their nodata tags mean, and lines that say it.

    Args:
        facts: Of all masks, their tags' values included.
        named: The classes of the other values.
        reading: "", or what the user says that nodata is.
        root: The set's folder.
        colour: The values are colours.

    Raises:
        DataError: 0 is nodata beside several classes, or a value is nodata in some masks and a class in others.
    """
    tags, said = NodataTags.of(facts), list(named.said)
    values = dict(named.values)
    for value, masks in sorted(tags.masks.items()):
        text = shown(value, colour=colour)
        tag = f"{text} is nodata by the tag of {masks} of {len(facts)} masks"
        share = f"{tags.pixels[value] / tags.total:.2%} of the pixels"
        if value in named.told:
            index = values[value]
            meant = "ignored" if index == IGNORE else f'the class "{named.names[index]}"'
            said.append(f"{tag}, and named: {meant} ({share})")
        elif value == 0 and reading != "ignore":
            _check_zero(facts, values, named, reading, root, colour=colour)
            said.append(f"{tag}, and read as background ({share}); -o nodata=ignore ignores it")
        elif reading == "background":
            values[value] = _background(values, named, root)
            said.append(f"{tag}, and read as background ({share})")
        else:
            _check_untagged(facts, value, values, named, reading, root, colour=colour)
            values[value] = IGNORE
            said.append(f"{tag}, so nothing is known there: ignored ({share})")
    if tags.blank:
        share = f"{tags.blank / tags.total:.2%} of the pixels"
        said.append(f"pixels without a number are nodata by the masks' tags: ignored ({share})")
    found = replace(named, values=tuple(values.items()), said=tuple(said))
    assumed = 0 not in named.told and values.get(0) == IGNORE
    if assumed and not any(0 in facts_without_nodata(one).values for one in facts):
        return _without_background(found)
    return found


def values_of_mask(
    facts: MaskFacts, named: MaskClasses, before: MaskClasses, scale: int = 1
) -> tuple[tuple[int, int], ...]:
    """Return (value, class index) of one mask: what is nodata by the tags of others is what it was before.

    Args:
        facts: Of the mask.
        named: The classes with what is nodata.
        before: The same without.
        scale: Grey levels are saved as colours: what to multiply with.
    """
    pairs = dict(named.values)
    for value, index in before.values:
        if value != facts.nodata and pairs[value] == IGNORE and before.names[index : index + 1]:
            pairs[value] = (
                named.names.index(before.names[index]) if before.names[index] in named.names else IGNORE
            )
    return tuple((value * scale, index) for value, index in pairs.items())


def _check_zero(
    facts: Sequence[MaskFacts],
    values: dict[int, int],
    named: MaskClasses,
    reading: str,
    root: Path,
    *,
    colour: bool,
) -> None:
    counts = totals([facts_without_nodata(one, frozenset({0})) for one in facts])
    used = {values[v] for v in counts if v and values.get(v, IGNORE) != IGNORE}
    if reading or len(used) < 2:
        return
    listed = ", ".join(named.names[index] for index in sorted(used)[:5])
    raise DataError(
        f"{shown(0, colour=colour)} is nodata by the masks' own tags, beside {len(used)} classes ({listed}): it may be "
        f"the background, or say that nothing is known; of the pixels it has {shares(totals(facts), [0], colour=colour)}",
        where=str(root),
        fix="-o nodata=background or -o nodata=ignore",
    )


def _background(values: dict[int, int], named: MaskClasses, root: Path) -> int:
    index = values.get(0, IGNORE)
    if index == IGNORE and BACKGROUND in named.names:
        index = named.names.index(BACKGROUND)
    if index == IGNORE:
        what = "no class is the background that nodata is to be"
        raise DataError(what, where=str(root), fix="name one: -o classes=background=0,…")
    return index


def _check_untagged(
    facts: Sequence[MaskFacts],
    value: int,
    values: dict[int, int],
    named: MaskClasses,
    reading: str,
    root: Path,
    *,
    colour: bool,
) -> None:
    """Refuse a value that is a class in masks without the tag, unless the user says what the tag means."""
    index = values.get(value, IGNORE)
    others = sum(value in one.values and one.nodata != value for one in facts)
    if reading or index == IGNORE or not others:
        return
    text = shown(value, colour=colour)
    raise DataError(
        f"some masks name {text} as nodata, and {others} others hold it without saying so: there it would be "
        f'"{named.names[index]}"',
        where=str(root),
        fix=f"-o nodata=ignore ignores it where it is nodata, -o classes=… with ignore={text} everywhere",
    )


def _without_background(named: MaskClasses) -> MaskClasses:
    """Return the classes without a background that was only assumed, where its value is ignored now."""
    kept = [i for i, name in enumerate(named.names) if name != BACKGROUND]
    values = tuple((v, i if i == IGNORE else kept.index(i)) for v, i in named.values if i in (*kept, IGNORE))
    return replace(named, names=tuple(named.names[i] for i in kept), values=values)
