"""Several dates of one place as several images of one record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

from vitp.core.errors import ConfigError
from vitp.data.formats.places import known_geometry
from vitp.records.labels import LabelledImage, LabelledSet

_MOST = 64


def join_dates(labelled: LabelledSet, most: int) -> LabelledSet:
    """Return the set with images of the same pixels, labels and split, but of other dates, joined into one.

    Args:
        labelled: Set with metadata.
        most: Dates of one record; 1 leaves the set as it is.

    Raises:
        ConfigError: `most` is no number of dates, or no two images can be joined.
    """
    if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= _MOST:
        fix = f"give the most dates of one record, 2 to {_MOST}"
        raise ConfigError(f"is {most}", where="dates", fix=fix)
    if most == 1:
        return labelled
    groups: dict[Hashable, list[LabelledImage]] = defaultdict(list)
    for item in labelled.items:
        groups[_place(item) or item.id].append(item)
    items: list[LabelledImage] = []
    for group in groups.values():
        items += _joined(sorted(group, key=_date), most)
    joined = [item for item in items if item.series]
    if not joined:
        fix = (
            "give each image its date in metadata.csv; images of one place have the same pixels on the ground"
        )
        raise ConfigError(
            "no two images are of one place and of different, known dates", where="dates", fix=fix
        )
    count = sum(1 + len(item.series) for item in joined)
    line = f"{count:,} images are dates of {len(joined):,} places, of which each is one record"
    items.sort(key=lambda item: item.id)
    return replace(labelled, items=items, understood=(*labelled.understood, line))


def _place(item: LabelledImage) -> Hashable | None:
    """Return what images of one place have in common; None where the place or date of an image isn't known."""
    geometry = known_geometry(item.image)
    if geometry is None or item.second_image is not None or not _date(item):
        return None
    a, b, c, d, e, f = geometry.transform
    # A thousandth of a pixel: what several programs write for one place differs in the last digits.
    step = max(abs(a), abs(b)) * 1e-3
    sides = tuple(f"{value:.9g}" for value in (a, b, d, e))
    return geometry.crs, item.width, item.height, item.split, round(c / step), round(f / step), sides


def _joined(group: Sequence[LabelledImage], most: int) -> list[LabelledImage]:
    """Return images of one place, in the order of their dates, as few as their labels allow."""
    found: list[list[LabelledImage]] = []
    for item in group:
        fitting = (
            one
            for one in found
            if len(one) < most and _same_labels(one[0], item) and _date(one[-1]) != _date(item)
        )
        if (own := next(fitting, None)) is None:
            found.append([item])
        else:
            own.append(item)
    return [
        replace(
            first,
            series=tuple(one.image for one in others),
            metadata={**(first.metadata or {}), "dates": ", ".join(map(_date, (first, *others)))},
        )
        if others
        else first
        for first, *others in found
    ]


def _date(item: LabelledImage) -> str:
    return (item.metadata or {}).get("date", "")


def _same_labels(one: LabelledImage, other: LabelledImage) -> bool:
    def labels(item: LabelledImage) -> tuple[object, ...]:
        return item.objects, item.ignored, item.scene, item.captions, item.semantic, item.tags, item.unknown

    return labels(one) == labels(other)
