"""Two studies of a patient as pairs of slices: the prior one and the current one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

from vitp.core.errors import ConfigError
from vitp.data.formats.pixel_masks import TransitionFiles
from vitp.io.parts import FilePart, split_address
from vitp.records.labels import LabelledImage, LabelledSet

_SAME = 0.01
"""Relative difference of spacings up to which two studies have the same grid."""

_Volume = list[tuple[int, LabelledImage]]


def join_studies(labelled: LabelledSet, wanted: bool) -> LabelledSet:
    """Return the set with the slices of two studies of one patient, one after the other, joined into pairs.

    Studies are paired where they have the same number of slices and pixels and the same spacing, in the order of their
    names; slices of one number belong together. Slices of other volumes stay as they are.

    Args:
        labelled: With patients as groups and masks of classes.
        wanted: False leaves the set as it is.

    Raises:
        ConfigError: No two studies fit.
    """
    if not isinstance(wanted, bool):
        raise ConfigError(f"is {wanted}", where="studies", fix="choose true or false")
    if not wanted:
        return labelled
    patients: dict[tuple[str, str], dict[tuple[str, FilePart], _Volume]] = defaultdict(
        lambda: defaultdict(list)
    )
    rest = []
    for item in labelled.items:
        base, part = split_address(item.image) if "#" in item.image else (item.image, FilePart())
        if part.slice is None or not item.group or item.semantic is None or item.second_image is not None:
            rest.append(item)
        else:
            volumes = patients[item.group, item.split]
            volumes[base, replace(part, slice=None)].append((part.slice, item))
    pairs: list[LabelledImage] = []
    joined = 0
    for volumes in patients.values():
        ordered = [sorted(volumes[key], key=lambda one: one[0]) for key in sorted(volumes, key=str)]
        used: set[int] = set()
        for place, (prior, current) in enumerate(pairwise(ordered)):
            if _alike(prior, current):
                used |= {place, place + 1}
                joined += 1
                pairs += [_pair(a, b) for (_, a), (_, b) in zip(prior, current, strict=True)]
        rest += [item for place, volume in enumerate(ordered) if place not in used for _, item in volume]
    if not pairs:
        what = "no two studies of one patient have the same slices, pixels and spacing"
        raise ConfigError(
            what, where="studies", fix="leave it out, or resample the studies of a patient alike"
        )
    line = f"studies: {joined:,} pairs of a prior and a current study of one patient, in the order of their names"
    items = sorted([*rest, *pairs], key=lambda item: item.id)
    return replace(
        labelled,
        items=items,
        change_classes=labelled.semantic_classes,
        understood=(*labelled.understood, f"{line}; {len(pairs):,} slices"),
    )


def _alike(prior: _Volume, current: _Volume) -> bool:
    if [number for number, _ in prior] != [number for number, _ in current]:
        return False
    one, other = prior[0][1], current[0][1]
    if (one.width, one.height) != (other.width, other.height):
        return False
    sizes = [(*(item.spacing or ()), *((item.thickness,) if item.thickness else ())) for item in (one, other)]
    return len(sizes[0]) == len(sizes[1]) and all(
        abs(a - b) <= _SAME * a for a, b in zip(*sizes, strict=True)
    )


def _pair(prior: LabelledImage, current: LabelledImage) -> LabelledImage:
    return replace(
        prior,
        second_image=current.image,
        transition=TransitionFiles(prior.semantic, current.semantic),  # type: ignore[arg-type]
        later_objects=current.objects,
    )
