"""Volumes with masks: nnU-Net and Medical Decathlon folders, a folder a case, BIDS, DICOM; see `volume_cases`.

Every slice is an image of the set: its address is that of the volume with the number of the slice, and its mask is the
slice of the mask that lies in the same place. Nothing is cut into files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.mask_classes import MaskClasses, from_file, from_option, from_values, says
from vitp.data.formats.mask_objects import numbered_objects
from vitp.data.formats.nnunet import DATASET_FILE, DatasetHead, dataset_head, published_folds
from vitp.data.formats.slices import (
    BACKGROUND_SHARE,
    VolumeFacts,
    common_plane,
    limit_background,
    modality_of,
    told_volumes,
)
from vitp.data.formats.volume_cases import CaseLayout, VolumeCase, find_cases
from vitp.data.formats.volume_scan import LabelScan, header_classes, scan_objects, scan_values
from vitp.data.formats.walk import comma_list, named_file
from vitp.io.volume_labels import header_segments
from vitp.records.labels import IGNORE, LabelledSet, ObjectLabel

_MOST_CLASSES = 255
_GRIDS = ("", "world", "voxels")
_MASK_TYPES = ("", "semantic", "instances")


@dataclass(frozen=True)
class VolumeOptions:
    """Options of the format; see `read_volumes`."""

    classes: str | Sequence[str] | Mapping[str, Any] | None = None
    mask_type: str = ""
    grid: str = ""
    background: float = BACKGROUND_SHARE
    fold: int = 0


def read_volumes(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | Sequence[str] | Mapping[str, str | int] | None = None,
    images: str | None = None,
    masks: str | None = None,
    channels: str | None = None,
    mask_type: str = "",
    grid: str = "",
    background: float = BACKGROUND_SHARE,
    fold: int = 0,
) -> LabelledSet:
    """Read volumes with masks as slices.

    Args:
        root: The set's folder.
        options: Name, licence, splits; plane and every say which slices are taken.
        classes: "name=value,…"; by default those of dataset.json, of the masks' own headers, or of classes.txt, else
            the values that occur. Where each file is an object, the names that are read, in the order in which they
            are painted. For masks of instances the name of their class.
        images: Folder of the volumes, where its name doesn't say it.
        masks: Folder of the masks, likewise.
        channels: Words of the files that are the channels, as in "flair,t1ce,t2", or names that dataset.json gives
            them; by default all.
        mask_type: "semantic": a value is a class; "instances": a value is an object.
        grid: What counts where a mask has the shape of its image and lies elsewhere: "world": its place, each pixel has
            the nearest voxel's label; "voxels": its shape.
        background: Training slices in which nothing is labelled, as a share of those in which something is.
        fold: Fold of splits_final.json, whose val cases are the split val.

    Raises:
        DataError: There are no volumes with masks, or they have no or two readings.
        ConfigError: An option can't be understood.
    """
    for name, value, known in (("mask_type", mask_type, _MASK_TYPES), ("grid", grid, _GRIDS)):
        if value not in known:
            raise ConfigError(f'is "{value}"', where=name, fix=f"choose {' or '.join(filter(None, known))}")
    if not 0 <= background <= 1e6:
        raise ConfigError(f"is {background}", where="background", fix="give a share, such as 0.1")
    chosen = comma_list(channels) or ()
    if chosen and (head := dataset_head(root)) is not None:
        chosen = tuple(head.file_word(name) for name in chosen)
    layout = find_cases(root, images, masks, chosen)
    if layout is None:
        raise DataError(
            "has no volumes with masks",
            where=str(root),
            fix="call their folders images/ and masks/, or name them with the options images=FOLDER and masks=FOLDER",
        )
    own = VolumeOptions(classes, mask_type, grid, background, fold)
    reading = _Reading(SetBuilder(root, options), layout, own)
    named = reading.fill()
    if reading.head is not None and not chosen:
        reading.head.check_bands(next(iter(reading.facts.values())).slice_address(0, "stored"))
    kind = "object_classes" if own.mask_type == "instances" else "semantic_classes"
    labelled = reading.builder.build(**{kind: named.names})
    labelled = replace(labelled, band_names=reading.band_names())
    return limit_background(labelled, reading.empty, own.background)


def add_volumes(builder: SetBuilder, layout: CaseLayout, own: VolumeOptions) -> MaskClasses:
    """Add the slices of cases to a set, all of them, and return their classes.

    Args:
        builder: Builder of the set; its options say which slices.
        layout: The cases.
        own: See `read_volumes`.

    Raises:
        DataError: The labels can't be used.
        ConfigError: An option can't be understood.
    """
    return _Reading(builder, layout, own).fill()


@dataclass
class _Reading:
    """A set of volumes while it is read.

    Attributes:
        builder: Builder of the set.
        layout: Its cases.
        own: Options of the format.
        head: Head of dataset.json.
        facts: Case → head of its volume.
        scans: Case → what its labels hold.
        empty: Ids of slices in which nothing is labelled.
    """

    builder: SetBuilder
    layout: CaseLayout
    own: VolumeOptions
    head: DatasetHead | None = None
    facts: dict[str, VolumeFacts] = field(default_factory=dict)
    scans: dict[str, LabelScan] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)
    plane: str = ""
    modality: str = ""

    def fill(self) -> MaskClasses:
        """Add all slices to the builder, and return their classes."""
        builder, options = self.builder, self.builder.options
        self.head = dataset_head(builder.root)
        for line in self.layout.understood:
            builder.understand(line)
        self._open()
        self.modality = options.modality.upper() or self._modality()
        self.plane = options.plane or common_plane([*self.facts.values()])
        self._check_single()
        builder.understand(told_volumes([*self.facts.values()], self.plane, self.modality))
        if names := self.band_names() or self._words():
            builder.understand(f"channels: {', '.join(names)}")
        people = len({case.patient for case in self.layout.cases})
        builder.understand(
            f"patients: {people:,} of {len(self.layout.cases):,} volumes; a patient's are in one split"
        )
        self._note_lost()
        named = self._scan_objects() if self._are_objects() else self._scan_values()
        self._add(named)
        return named

    def _modality(self) -> str:
        """Return what dataset.json, the channels, or the ends of names say of the modality; "" where none does."""
        if self.head is not None and self.head.channels:
            return modality_of(self.head.channels)
        if words := self._words():
            return modality_of(words)
        if any(one.acquisition.modality for one in self.facts.values()):
            return ""  # each file says it of itself
        taken = {case.word for case in self.layout.cases}
        found = modality_of(sorted(taken)) if "" not in taken else ""
        if found:
            ends = ", ".join(sorted(taken))
            self.builder.understand(
                f"modality: {found}, as the names end with {ends} (-o modality=… says otherwise)"
            )
        return found

    def band_names(self) -> tuple[str, ...]:
        """Return what dataset.json calls the channels; none where others than the first are chosen, as of whole
        cases, which are predicted, the numbers would be others."""
        names = () if self.head is None else self.head.band_names
        words = self._words()
        first = [f"{place:04d}" for place in range(min(len(words), len(names)))]
        return names[: len(words) or None] if list(words) == first else ()

    def _words(self) -> tuple[str, ...]:
        return next((case.channels for case in self.layout.cases if case.channels), ())

    def _open(self) -> None:
        """Look at the head of each volume; those that can't be read are left out."""
        builder = self.builder
        for case in list(self.layout.cases):
            try:
                facts = VolumeFacts.of(case.address)
                facts.count(builder.options.plane or facts.grid.plane)
            except DataError as error:
                builder.leave_out(error, case.address, "volume left out")
                self.layout.cases.remove(case)
                continue
            self.facts[case.name] = facts
            for line in facts.findings:
                builder.note(builder.place(case.address), line)
        if not self.facts:
            builder.build()

    def _check_single(self) -> None:
        """Leave out volumes of a single image in another plane than the set's."""
        for case in list(self.layout.cases):
            try:
                self.facts[case.name].grid.check_single(self.plane, "the set has")
            except DataError as error:
                self.builder.lose(self.builder.place(case.address), f"{error.what}; volume left out")
                self.layout.cases.remove(case)
                del self.facts[case.name]
        if not self.facts:
            self.builder.build()

    def _note_lost(self) -> None:
        builder = self.builder
        for where, text in self.layout.findings:
            builder.note(where, text)
        for error in self.layout.damaged:
            builder.leave_out(error, builder.root, "left out")
        for path in self.layout.strangers:
            builder.lose(builder.place(path), "its image is missing; left out", absent=True)
        if self.head is not None:
            for text in self.head.missing([case.address for case in self.layout.cases]):
                builder.lose(DATASET_FILE, f"{text}; left out", absent=True)
            for text in self.head.doubts([c.labels[0].path.name for c in self.layout.cases if c.labels]):
                builder.note(DATASET_FILE, text)
        for case in self.layout.cases:
            if not case.labels and case.split != "test":
                builder.note(builder.place(case.address), "no mask; its slices are not labelled")

    # --- classes

    def _are_objects(self) -> bool:
        """Return whether files, segments or regions are an object each, not the values of one file."""
        labels = [label for case in self.layout.cases for label in case.labels]
        if any(label.name or label.role for label in labels):
            return True
        return any(len({layer for _, _, layer in header_segments(str(label.path))}) > 1 for label in labels)

    def _scan_objects(self) -> MaskClasses:
        """Read labels of which each is one object: a file, a segment, a region."""
        chosen = comma_list(self.own.classes if isinstance(self.own.classes, str) else None) or ()
        if self.own.classes and any("=" in name for name in chosen):
            fix = "name the objects alone, in the order in which they are painted: -o classes=liver,tumour"
            raise ConfigError(
                "gives values to classes, but each object has a name of its own", where="classes", fix=fix
            )
        found = scan_objects(self.builder, self.layout.cases, self.facts, self.plane, chosen)
        self.scans = found.scans
        if len(found.names) > _MOST_CLASSES:
            self._refuse_many(len(found.names))
        pairs = tuple((place, place) for place in range(len(found.names)))
        self.builder.understand(f"each label is one object of a class: {', '.join(found.names[1:21])}")
        for line in found.said:
            self.builder.understand(line)
        return MaskClasses(found.names, pairs)

    def _scan_values(self) -> MaskClasses:
        """Read masks whose values are classes, or numbers of instances."""
        self.scans = scan_values(self.builder, self.layout.cases, self.facts, self.plane, self.own.grid)
        counts: Counter[int] = Counter()
        for scan in self.scans.values():
            counts.update(scan.total)
        if not counts:
            what = "no mask can be used"
            lost = [line for own, line in self.builder.tally.first.items() if own[0] == ""]
            first = f" (the first: {lost[0]})" if lost else ""
            raise DataError(what + first, where=str(self.builder.root), fix="mend the masks")
        if self.own.mask_type == "instances":
            named = self.own.classes if isinstance(self.own.classes, str) else "object"
            if "=" in named or "," in named:
                fix = "name the one class, as classes=nodule"
                raise ConfigError(
                    "gives values to classes, but each value is an instance", where="classes", fix=fix
                )
            self.builder.understand(f"each value but 0 is one {named}")
            return MaskClasses((named,), ())
        named_classes = self._named(counts)
        if len(named_classes.names) > _MOST_CLASSES:
            self._refuse_many(len(named_classes.names))
        self._check_values(named_classes, counts)
        return named_classes

    def _named(self, counts: Mapping[int, int]) -> MaskClasses:
        """Return which value is which class."""
        root, builder = self.builder.root, self.builder
        if self.own.classes:
            named = from_option(self.own.classes, colour=False)
        elif self.head is not None:
            names, pairs, said = self.head.painted()
            named = MaskClasses(names, pairs, (f"{DATASET_FILE}: names of the values", *said))
        elif (own := header_classes(self.layout.cases)) is not None:
            named = own
        elif (listed := named_file(root, ("classes.txt",))) is not None:
            named = from_file(listed, colour=False, occurring=counts)
        else:
            self._refuse_instances()
            named = from_values(sorted(counts), root, colour=False, palette=False)
        for line in (*named.said, says(named, colour=False)):
            builder.understand(line)
        return named

    def _refuse_instances(self) -> None:
        """Refuse values that nobody named and that run to another last one each time: they may be objects."""
        if self.own.mask_type:
            return
        tops = []
        for scan in self.scans.values():
            values = sorted(value for value in scan.total if value)
            tops.append(values[-1] if values == [*range(1, len(values) + 1)] and values else 0)
        largest = max((value for scan in self.scans.values() for value in scan.total), default=0)
        several = len({top for top in tops if top}) > 1 and max(tops) > 2
        if largest >= IGNORE or several:
            what = f"the masks hold values up to {largest}, another last one in each, and nothing names them"
            raise DataError(
                f"{what}: they may be classes or numbers of objects",
                where=str(self.builder.root),
                fix="-o mask_type=instances reads each value as one object (its class: -o classes=NAME), "
                "-o mask_type=semantic as a class, and -o classes=NAME=VALUE,… names them",
            )

    def _refuse_many(self, count: int) -> None:
        raise DataError(
            f"has {count} classes; a mask holds {_MOST_CLASSES} at most",
            where=str(self.builder.root),
            fix="choose some with -o classes=…; the places of the others are ignored",
        )

    def _check_values(self, named: MaskClasses, counts: Counter[int]) -> None:
        """Note values that nothing names, case by case; refuse a set in which no class or little else occurs."""
        known = {value for value, _ in named.values}
        wanted = {value for value, index in named.values if index not in (0, IGNORE)}
        texts = ", ".join(map(str, sorted(counts)[:10]))
        fix = "name the values with -o classes=NAME=VALUE,…, those to be ignored as ignore=VALUE"
        if not counts.keys() & wanted:
            what = f"no mask holds any of the classes; the values that occur are {texts}"
            raise DataError(what, where=str(self.builder.root), fix=fix)
        labelled = sum(n for value, n in counts.items() if value)
        strange = sum(n for value, n in counts.items() if value not in known)
        if strange > 0.5 * labelled:
            what = f"{strange / labelled:.0%} of the labelled voxels have values that no class has ({texts})"
            raise DataError(what, where=str(self.builder.root), fix=fix)
        for case in self.layout.cases:
            scan = self.scans.get(case.name)
            unknown = {v: n for v, n in (scan.total if scan else {}).items() if v not in known}
            if unknown:
                listed = ", ".join(f"{value} ({n:,} voxels)" for value, n in sorted(unknown.items())[:5])
                where = self.builder.place(case.labels[0].path)
                self.builder.note(where, f"values that no class has, ignored there: {listed}")

    # --- images

    def _add(self, named: MaskClasses) -> None:
        splits, folds = self._splits()
        every = self.builder.options.every or 1
        for case in self.layout.cases:
            scan = self.scans.get(case.name)
            if case.labels and scan is None:
                continue  # its labels can't be used, which a finding says
            facts = self.facts[case.name]
            for number in range(0, facts.count(self.plane), every):
                self._add_slice(case, facts, number, named, scan, splits.get(case.name), folds.get(case.name))

    def _add_slice(
        self,
        case: VolumeCase,
        facts: VolumeFacts,
        number: int,
        named: MaskClasses,
        scan: LabelScan | None,
        split: str | None,
        fold: int | None,
    ) -> None:
        name = f"{case.name}/{number:04d}"
        labels: dict[str, Any] = facts.known(number, self.plane, self.modality)
        if scan is not None and self.own.mask_type == "instances":
            found: tuple[tuple[ObjectLabel, ...], tuple[ObjectLabel, ...]] = ((), ())
            if scan.slices[number]:
                found = numbered_objects(self.builder, Path(scan.mask_address(number)), named.names[0])
            labels |= {"objects": found[0], "ignored": found[1]}
        elif scan is not None:
            labels["semantic"] = scan.mask(number, named.values)
        if scan is not None and not scan.slices[number]:
            self.empty.add(name)
        self.builder.add(
            facts.slice_address(number, self.plane),
            facts.size(self.plane),
            split=split,
            name=name,
            known_as=case.name,
            group=case.patient,
            person="patient",
            apart=scan is None and split is not None,
            fold=fold,
            **labels,
        )

    def _splits(self) -> tuple[dict[str, str | None], dict[str, int]]:
        """Return the split of each case and its published fold.

        Folders of training cases alone say nothing of val and test: then the labelled cases are drawn from, and
        unlabelled test cases keep their split.
        """
        splits = {case.name: case.split for case in self.layout.cases}
        labelled = [case.name for case in self.layout.cases if case.name in self.scans]
        if not any(splits[name] in ("val", "test") for name in labelled):
            splits |= dict.fromkeys(labelled)
        lists = published_folds(self.builder.root)
        if not lists or self.builder.options.splits in ("folders", "drawn"):
            return splits, {}
        if not 0 <= self.own.fold < len(lists):
            fix = f"folds count from 0 to {len(lists) - 1}"
            raise ConfigError(f"there is no fold {self.own.fold}", where="fold", fix=fix)
        unknown = sorted({name for fold in lists for name in fold} - {*splits})
        if unknown:
            self.builder.lose("splits_final.json", f"{unknown[0]} is no case of the set", absent=True)
        found = {
            name: place for place, fold in enumerate(lists) for name, side in fold.items() if side == "val"
        }
        chosen = lists[self.own.fold]
        splits |= {name: chosen[name] for name in labelled if name in chosen}
        self.builder.splits_from = (
            f"splits_final.json, fold {self.own.fold} of 0–{len(lists) - 1} (-o fold=…)"
        )
        return splits, {name: found[name] for name in labelled if name in found}


def is_volume_set(root: Path) -> bool:
    """Return whether a folder holds volumes with masks.

    Raises:
        DataError: It has two readings.
    """
    return find_cases(root) is not None
