"""`vitp data merge`: corrected and new labels join a compiled set, and no image changes its side.

1. **Images** are the same where their content is (equal bytes or pixels at all dates), whatever they are called.
2. **Labels** of the new set replace those of the old one, kind by kind: what the new set says nothing of stays.
3. **Splits** of the old set stay. A new image gets that of the images it belongs to (same group, same patient,
   ground that touches); what belongs to nothing is drawn, groups together.
4. **Classes** are joined by name, the old ones first. Names that differ in case or blanks alone, and classes that only
   one of the sets knows, have two readings and are refused.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import read_json
from vitp.data.check_patients import MedicalFiles
from vitp.data.compile import compile_set
from vitp.data.compile_summary import CompileSummary
from vitp.data.formats.places import find_places, near_pairs, on_one_plane
from vitp.data.formats.splits import assign_fractions
from vitp.data.formats.vitp_labels import read_compiled
from vitp.data.identical import equal_files, find_equals
from vitp.data.merge_classes import joined_classes, with_classes
from vitp.data.synthesis.build import SynthesisConfig
from vitp.io.images import is_scene
from vitp.io.parts import base_address
from vitp.records.labels import SPLITS, LabelledImage, LabelledSet

_PSEUDONYM = re.compile(r"patient-\d+$")
_NAMED = 5
NewSplits = Literal["drawn", "own", "train", "val", "test"]

_KINDS: tuple[tuple[str, ...], ...] = (
    ("objects", "ignored"),
    ("later_objects",),
    ("scene",),
    ("tags", "unknown"),
    ("captions",),
    ("change_captions",),
    ("semantic",),
    ("change",),
    ("transition",),
)
"""Fields that are replaced together; the first says whether anything is known."""


@dataclass(frozen=True)
class MergeOptions:
    """How two sets are joined.

    Attributes:
        splits: Splits of new images: `drawn`, their `own` ones of the new set, or all in one.
        val: Share of validation images among drawn ones; None: as the old set drew.
        test: Share of test images, likewise.
        seed: Decides which images the shares get.
        complete: Classes that only one of the sets knows were looked for in the other one, too, and aren't there.
        other_patients: Patients that have numbers alone in both sets are different ones.
    """

    splits: NewSplits = "drawn"
    val: float | None = None
    test: float | None = None
    seed: int = 0
    complete: bool = False
    other_patients: bool = False


@dataclass
class Merged:
    """What became of the images of the new set.

    Attributes:
        added: Ids of images that the old set doesn't have.
        replaced: Ids of images with other labels than before.
        unchanged: Ids of images with the same labels.
        repeated: Ids of images that the new set has twice, with equal labels.
        kept: How many images only the old set has.
        summary: Summary of the set that was written.
    """

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    kept: int = 0
    summary: CompileSummary | None = None

    def lines(self) -> list[str]:
        """Return what changed, in words."""
        parts = [
            f"{len(ids):,} {what}{_some(ids)}"
            for what, ids in (("added", self.added), ("replaced", self.replaced), ("repeated", self.repeated))
            if ids or what != "repeated"
        ]
        return [f"{'; '.join(parts)}; {len(self.unchanged):,} unchanged; {self.kept:,} only in the old set"]


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:_NAMED])
    return f" ({shown}{', …' if len(ids) > _NAMED else ''})" if ids else ""


def merge_sets(
    old: Path, new: Path, out: Path, options: MergeOptions | None = None, *, force: bool = False
) -> Merged:
    """Write the compiled set that holds the images of two compiled sets.

    Images and masks stay where they are.

    Args:
        old: Compiled folder whose splits, ids and questions are kept.
        new: Compiled folder with new images or corrected labels.
        out: New or empty folder, or with `force` one of an earlier compilation, but neither of the two.
        options: See `MergeOptions`.
        force: Replace an earlier compilation.

    Raises:
        DataError: A set can't be read, or the two contradict each other; the message names the images or classes.
        ConfigError: An option doesn't fit.
    """
    options = options or MergeOptions()
    for name, value in (("val", options.val), ("test", options.test)):
        if value is not None and not 0 <= value < 1:
            raise ConfigError(f"is {value:g}", where=name, fix="give a share from 0 to below 1")
    if out.resolve() in (old.resolve(), new.resolve()):
        raise ConfigError("is one of the sets that are read", where=str(out), fix="name another folder")
    first, second = read_compiled(old), read_compiled(new)
    sources = _summary_of(old), _summary_of(new)
    joined = joined_classes(first, second, complete=options.complete)
    second = with_classes(second, joined)
    work = _Work(first, second, options, sources[0].get("options") or {})
    items, merged = work.items()
    licences = dict.fromkeys(filter(None, (first.licence, second.licence)))
    whole = replace(
        first,
        items=items,
        licence="; ".join(licences),
        findings=tuple(dict.fromkeys((*first.findings, *second.findings))),
        understood=(*merged.lines(), *work.said),
        **joined,
        abnormal_classes=tuple(dict.fromkeys((*first.abnormal_classes, *second.abnormal_classes))),
    )
    paths = [Path(base_address(p)) for item in items for p in _dates(item) if not is_scene(p)]
    base = Path(os.path.commonpath([path.parent for path in paths])) if paths else old.resolve()
    settings = {
        "merged": {
            "old": _provenance(old, sources[0]),
            "new": _provenance(new, sources[1]),
            "options": asdict(options),
            **{name: getattr(merged, name) for name in ("added", "replaced", "repeated")},
            "unchanged": len(merged.unchanged),
        }
    }
    asked = SynthesisConfig(**(sources[0].get("options") or {}).get("synthesis", {}))
    seed = int(sources[0].get("seed") or 0)
    merged.summary = compile_set(whole, out, base, seed=seed, synthesis=asked, settings=settings, force=force)
    return merged


def _summary_of(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        fix = "name a folder that `vitp data compile` made"
        raise DataError(f"can't be read ({error})", where=str(path), fix=fix) from error
    if not isinstance(found, dict):
        raise DataError("is no summary", where=str(path), fix="compile the labels again")
    return found


def _provenance(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("name", "label_format", "licence", "seed", "content_hash", "vitp")
    # A merged set tells what it was merged of, so that the whole history is there.
    before = (summary.get("options") or {}).get("merged")
    told = {key: summary.get(key) for key in keys} | {"folder": folder.name}
    return (
        told | {"merged": {key: before[key] for key in ("old", "new")}} if isinstance(before, dict) else told
    )


def _dates(item: LabelledImage) -> tuple[str, ...]:
    return tuple(path for path in (item.image, item.second_image, *item.series) if path is not None)


@dataclass
class _Work:
    """Joins the images of two sets; `said` collects lines about splits."""

    old: LabelledSet
    new: LabelledSet
    options: MergeOptions
    compiled: Mapping[str, Any]
    said: list[str] = field(default_factory=list)

    def items(self) -> tuple[list[LabelledImage], Merged]:
        """Return all images, sorted by id, and what became of those of the new set.

        Raises:
            DataError: The labels or splits of an image contradict each other.
        """
        if self.old.channels != self.new.channels:
            what = "sees other bands, or other ranges of their values, than the old set"
            raise DataError(
                what, where=self.new.name, fix="compile it with the same bands.yaml or -o bands and -o range"
            )
        merged = Merged()
        known: dict[tuple[str, ...], list[int]] = defaultdict(list)
        same = _contents([*self.old.items, *self.new.items])
        result = list(self.old.items)
        for number, item in enumerate(result):
            known[same(item)].append(number)
        fresh: dict[tuple[str, ...], LabelledImage] = {}
        for item in self.new.items:
            key = same(item)
            if key in fresh:
                if not _alike(fresh[key], item):
                    fix = "keep the labels of one of them"
                    raise DataError(
                        f"{item.id} shows {fresh[key].id}, with other labels", where=self.new.name, fix=fix
                    )
                merged.repeated.append(item.id)
                continue
            fresh[key] = item
            for number in known.get(key, ()):
                corrected = _corrected(result[number], item)
                alike = _alike(corrected, result[number])
                (merged.unchanged if alike else merged.replaced).append(result[number].id)
                result[number] = result[number] if alike else corrected
        added = [item for key, item in fresh.items() if key not in known]
        matched = {key: result[known[key][0]] for key in fresh if key in known}
        merged.kept = sum(same(item) not in fresh for item in self.old.items)
        placed = self._placed(added, result, [(fresh[key], item) for key, item in matched.items()])
        merged.added = [item.id for item in placed]
        return sorted([*result, *placed], key=lambda item: item.id), merged

    def _placed(
        self,
        added: Sequence[LabelledImage],
        old: Sequence[LabelledImage],
        matched: Sequence[tuple[LabelledImage, LabelledImage]],
    ) -> list[LabelledImage]:
        """Return new images with id, group and split.

        Raises:
            DataError: An image belongs to old ones of several splits, or it isn't known whose patient it is of.
        """
        belongs = _Together()
        for item in old:
            belongs.add(f"old {item.id}", item.group and f"group {item.group}")
        for item in added:
            belongs.add(f"new {item.id}", item.group and _new_group(item))
        for mine, its in matched:
            if mine.group:
                belongs.add(f"old {its.id}", _new_group(mine))
        _join_patients(belongs, old, added)
        self._join_places(belongs, old, added)
        sides: dict[str, dict[str, str]] = defaultdict(dict)
        for item in old:
            sides[belongs.of(f"old {item.id}")].setdefault(item.split, item.id)
        free = []
        splits: dict[str, str] = {}
        numbered = ""
        for item in added:
            side = sides.get(belongs.of(f"new {item.id}"), {})
            if len(side) > 1:
                where = " and ".join(f"{name} ({split})" for split, name in side.items())
                what = f"{item.id} belongs to {where}, which are in different splits"
                raise DataError(what, where=self.new.name, fix="leave it out, or split the old set anew")
            if side:
                splits[item.id] = next(iter(side))
                continue
            free.append(item)
            numbered = numbered or (item.id if _PSEUDONYM.match(item.group) and not _told(item) else "")
        if numbered and not self.options.other_patients and any(_PSEUDONYM.match(item.group) for item in old):
            raise DataError(
                f"{numbered} is of a patient who has a number alone, who may be one of the old set's or another one",
                where=self.new.name,
                fix="--other-patients says that they are others; or compile the images of both together",
            )
        if splits:
            self.said.append(f"{len(splits):,} new images have the split of the old ones that they belong to")
        splits |= self._drawn(free, [belongs.of(f"new {item.id}") for item in free])
        ids, placed = {item.id for item in old}, []
        for item in added:
            name = item.id if item.id not in ids else f"{self.new.name}/{item.id}"
            while name in ids:
                name += "+"
            ids.add(name)
            group = item.group
            if group and _PSEUDONYM.match(group):
                # Numbers of patients are those of one set alone.
                group = belongs.name(f"new {item.id}") or f"{self.new.name} {group}"
            placed.append(replace(item, id=name, group=group, split=splits[item.id]))
        return placed

    def _join_places(
        self, belongs: _Together, old: Sequence[LabelledImage], added: Sequence[LabelledImage]
    ) -> None:
        """Join images that touch on the ground."""
        items = [*(("old", item) for item in old), *(("new", item) for item in added)]
        places = find_places([item for _, item in items], self.said.append)
        known = [(side, item, placed) for (side, item), placed in zip(items, places, strict=True) if placed]
        if not known or not any(side == "new" for side, *_ in known):
            return
        pairs = near_pairs(on_one_plane([placed for *_, placed in known]), 0.0)
        for one, two in pairs.tolist():
            (side, item, _), (other, twin, _) = known[one], known[two]
            if "new" in (side, other):
                belongs.join(f"{side} {item.id}", f"{other} {twin.id}")

    def _drawn(self, items: Sequence[LabelledImage], groups: Sequence[str]) -> dict[str, str]:
        """Return the splits of images that belong to no old one."""
        how = self.options.splits
        if how == "own":
            first: dict[str, str] = {}
            for item, group in zip(items, groups, strict=True):
                if first.setdefault(group, item.split) != item.split:
                    what = f"{item.id} and the rest of its group are in {first[group]} and {item.split}"
                    raise DataError(what, where=self.new.name, fix="use --splits drawn")
            return {item.id: item.split for item in items}
        if how in SPLITS:
            return dict.fromkeys((item.id for item in items), how)
        drawn = [
            float(self.compiled.get(name, 0.1)) if value is None else value
            for name, value in (("val", self.options.val), ("test", self.options.test))
        ]
        val, test = drawn
        found = assign_fractions(groups, val=val, test=test, seed=self.options.seed) if items else []
        if items:
            self.said.append(
                f"{len(items):,} new images drawn (val={val:g}, test={test:g}, seed={self.options.seed})"
            )
        return {item.id: split for item, split in zip(items, found, strict=True)}


def _contents(items: Iterable[LabelledImage]) -> Callable[[LabelledImage], tuple[str, ...]]:
    """Return what gives the content of an image as a key: of each date the first path with that content.

    A slice is the same where its whole volume is: slices of air are alike in all patients.
    """
    items = list(items)
    bases = {path: base_address(path) for item in items for path in _dates(item)}
    sizes = [
        (path, (item.width, item.height)) for item in items for path in _dates(item) if bases[path] == path
    ]
    groups = [
        *find_equals(sizes).groups,
        *equal_files([base for path, base in bases.items() if base != path]),
    ]
    leader = {path: group[0] for group in groups for path in group}

    def content(path: str) -> str:
        base = bases[path]
        return leader.get(base, base) + path.removeprefix(base)

    return lambda item: tuple(map(content, _dates(item)))


def _alike(first: LabelledImage, second: LabelledImage) -> bool:
    """Return whether two images have the same labels; lists in any order, masks by their pixels."""

    def same(one: Any, two: Any) -> bool:
        if isinstance(one, tuple) and isinstance(two, tuple):
            return sorted(map(repr, one)) == sorted(map(repr, two))
        if one == two or one is None or two is None or not (callable(one) and callable(two)):
            return bool(one == two)
        return np.array_equal(one(), two())

    return all(same(getattr(first, name), getattr(second, name)) for kind in _KINDS for name in kind)


def _corrected(old: LabelledImage, new: LabelledImage) -> LabelledImage:
    """Return the old image with what the new one says."""
    changed: dict[str, Any] = {}
    for kind in _KINDS:
        value = getattr(new, kind[0])
        if value is not None and not (value == () and kind[0].endswith("captions")):
            changed |= {name: getattr(new, name) for name in kind}
    return replace(old, **changed)


class _Together:
    """Which images belong together, through groups, patients and places."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def of(self, name: str) -> str:
        """Return what all that belong together have in common."""
        while self._parent.setdefault(name, name) != name:
            self._parent[name] = self._parent[self._parent[name]]
            name = self._parent[name]
        return name

    def add(self, image: str, group: str) -> None:
        """Add an image and its group ("": none)."""
        self.of(image)
        if group:
            self.join(group, image)
            if group.startswith("group "):
                self._names.setdefault(self.of(image), group.removeprefix("group "))

    def join(self, one: str, two: str) -> None:
        """Put two together."""
        first, second = self.of(one), self.of(two)
        if first != second:
            self._parent[second] = first
            if second in self._names:
                self._names.setdefault(first, self._names[second])

    def name(self, image: str) -> str:
        """Return the name of an old group that an image belongs to, "" without one."""
        return self._names.get(self.of(image), "")


def _told(item: LabelledImage) -> bool:
    """Return whether a header tells whose image it is."""
    return bool(MedicalFiles(_dates(item)).patients)


def _new_group(item: LabelledImage) -> str:
    """Return what a group of the new set is called here: its numbers of patients mean others than in the old set."""
    return f"new {item.group}" if _PSEUDONYM.match(item.group) else f"group {item.group}"


def _join_patients(belongs: _Together, old: Sequence[LabelledImage], added: Sequence[LabelledImage]) -> None:
    """Join images whose DICOM headers tell one patient, or that are slices of one volume."""
    by_patient: dict[Any, str] = {}
    for side, items in (("old", old), ("new", added)):
        for item in items:
            found = MedicalFiles(_dates(item))
            for key in (*found.patients, *found.first):
                twin = by_patient.setdefault(key, f"{side} {item.id}")
                belongs.join(twin, f"{side} {item.id}")
