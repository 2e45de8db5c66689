"""The groups and splits of a set's images: from the user, from lists and folders, or drawn by group or by place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.identity import (
    equal_findings,
    image_folder,
    join_equal,
    series_findings,
    within_splits,
)
from vitp.data.formats.patients import barcode_patients, folder_patients, pseudonyms, renamed, told_patients
from vitp.data.formats.places import GroundPlace, find_places, on_one_plane, split_by_place, with_ground
from vitp.data.formats.read_options import ReadOptions
from vitp.data.formats.split_lists import read_split_file
from vitp.data.formats.splits import (
    FROM_FOLDERS,
    assign_fractions,
    check_missing,
    compile_group_regex,
    group_in,
    match_entries,
    splits_from_lists,
    unused_lists,
)
from vitp.data.formats.walk import Note, within
from vitp.records.labels import SPLITS, LabelledImage, PlaceSplit


@dataclass(frozen=True)
class Added:
    """An image, its split from the layout, and what lists call it; see `SetBuilder.add`."""

    item: LabelledImage
    split: str | None
    known_as: str
    apart: bool


@dataclass
class SetSplits:
    """Gives the images of a set their groups and splits.

    Attributes:
        root: The set's folder.
        options: Which splits count, and how others are drawn.
        added: The images, sorted by id.
        persons: Group → what it is a group of, where it is a person's own name or number.
        note: Takes findings.
        understand: Takes lines about how the splits were understood.
        splits_from: What named the splits, where the reader knows; lists of names aren't looked for then.
        drawn: How they were drawn by place, once they are.
    """

    root: Path
    options: ReadOptions
    added: Sequence[Added]
    persons: dict[str, str]
    note: Note
    understand: Callable[[str], None]
    splits_from: str = ""
    drawn: PlaceSplit | None = field(default=None, init=False)

    def place(self, path: str | Path) -> str:
        """Return a path under the set's folder."""
        return within(path, self.root)

    def items(self) -> list[LabelledImage]:
        """Return the images, each with group and split.

        Raises:
            DataError: The lists, folders or groups can't be used.
            ConfigError: The options don't fit.
        """
        pattern = compile_group_regex(self.options.group_regex)
        items = [
            replace(entry.item, group=entry.item.group or group_in(Path(entry.item.image).stem, pattern))
            for entry in self.added
        ]
        if self.options.group == "folder":
            items = [replace(item, group=item.group or image_folder(item, self.root)) for item in items]
        if pattern is not None and not any(item.group for item in items):
            raise DataError(
                f'no file name matches the group expression "{pattern.pattern}"',
                where=str(self.root),
                fix=f'write one that matches names like "{Path(items[0].image).stem}"',
            )
        items = self._by_patient(items)
        places = find_places(items, self.understand)
        items = [with_ground(item, placed) for item, placed in zip(items, places, strict=True)]
        known, before = join_equal(items), items
        given, origin = self._given_splits()
        free = [number for number, entry in enumerate(self.added) if not entry.apart]
        drawn = not any(given[number] for number in free)
        if drawn and free:
            self._say_unused_lists()
            own, origin = self._draw([known.items[n] for n in free], [places[n] for n in free])
            for number, split in zip(free, own, strict=True):
                given[number] = split
        else:
            drawn = False
            origin = f"from {origin}"
            if self.options.block is not None or self.options.buffer:
                self.understand("block and buffer aren't used: nothing is drawn, the splits are given")
        names = pseudonyms(known.items, self.persons)
        known = replace(known, items=renamed(known.items, names))
        items, before = [], renamed(before, names)
        for item, split in zip(known.items, given, strict=True):
            if split:
                items.append(replace(item, split=split))
            elif not drawn:
                self.note(self.place(item.image), f"not in {origin.removeprefix('from ')}; image left out")
        counts = Counter(item.split for item in items)
        named = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if counts[split])
        self.understand(f"splits: {named}; {origin}")
        items = items if drawn else within_splits(known, before, items)
        # What is drawn by place is kept apart by place, whatever it is called.
        series = [] if self.drawn else series_findings(items, self.root, drawn=drawn)
        for line in (*equal_findings(known, items, self.place), *series):
            self.note("splits", line)
        if not known.by_pixels:
            self.understand("equal images: only files of equal bytes were looked for, the set is too large")
        return items

    def _say_unused_lists(self) -> None:
        lists = unused_lists(self.root, [entry.known_as for entry in self.added])
        if lists and self.options.splits != "drawn":
            self.understand(
                f"not used: {', '.join(lists)}, which name images; lists of the splits are called train.txt, val.txt "
                "and test.txt"
            )

    def _draw(
        self, items: Sequence[LabelledImage], places: Sequence[GroundPlace | None]
    ) -> tuple[list[str | None], str]:
        """Return drawn splits, None for an image that is left out, and how they were drawn.

        Raises:
            ConfigError: The options don't fit.
        """
        options = self.options
        shares: dict[str, Any] = {"val": options.val, "test": options.test, "seed": options.seed}
        groups = [item.group for item in items]
        known = [placed for placed in places if placed is not None]
        if len(known) == len(items) and not (options.group_regex or options.group):
            how = PlaceSplit(**shares, block=options.block, buffer=options.buffer)
            found = split_by_place(on_one_plane(known), groups, how)
            self.drawn = how
            if found.left_out:
                self.note("splits", f"{found.left_out:,} images are left out; {found.said}")
            return found.splits, found.said
        if options.block is not None or options.buffer:
            why = f"{len(items) - len(known)} of {len(items)} images don't say where they lie"
            raise ConfigError(
                "splits can't be drawn by place: " + (why if len(known) < len(items) else "groups are given"),
                where="block, buffer",
                fix="leave these options out, or give group_regex or split_file instead",
            )
        if known and len(known) < len(items):
            self.note(
                "splits", f"only {len(known)} of {len(items)} images say where they lie; not drawn by place"
            )
        found_splits = assign_fractions(groups, **shares)
        return [*found_splits], f"drawn (val={options.val:g}, test={options.test:g}, seed={options.seed})"

    def _by_patient(self, items: list[LabelledImage]) -> list[LabelledImage]:
        """Return images in the groups of their patients, where an option or folders tell them."""
        free = [n for n, item in enumerate(items) if not item.group]
        places = [self.added[n].known_as for n in free]
        if self.options.patient and not self.persons:
            found = told_patients(places, self.options.patient, str(self.root))
        else:
            found = folder_patients(places, {item.scene for item in items if item.scene})
            if any(found):
                count = len(set(found) - {""})
                self.understand(f"patients: {count:,}, by the folders that are called after them")
            elif any(found := barcode_patients(places)):
                self.understand(
                    f"patients: {len(set(found) - {''}):,}, by the barcodes in the names of their files"
                )
        for number, patient in zip(free, found, strict=True):
            if patient:
                items[number] = replace(items[number], group=patient)
                self.persons[patient] = "patient"
        return items

    def _given_splits(self) -> tuple[list[str | None], str]:
        """Return the split of each image, None where nothing says it, and what says it."""
        splits = {entry.known_as: entry.split for entry in self.added}
        found, origin = self._listed_splits([*splits], [*splits.values()])
        by_name = dict(zip(splits, found, strict=True))
        return [entry.split if entry.apart else by_name[entry.known_as] for entry in self.added], origin

    def _listed_splits(self, places: list[str], layout: list[str | None]) -> tuple[list[str | None], str]:
        """Return the split of each file; see `_given_splits`."""
        if self.options.split_file is not None:
            path = Path(self.options.split_file)
            found, missing = match_entries(read_split_file(path), places)
            if not any(found):
                fix = f'write names like "{Path(places[0]).name}"'
                raise DataError("names none of the set's images", where=str(path), fix=fix)
            check_missing(self.root, places, missing, self.note, partial=self.options.partial)
            return found, f"the split file {path.name}"
        wanted = self.options.splits
        if wanted == "drawn":
            return [None] * len(layout), ""
        if self.splits_from and wanted != "lists":
            return layout, self.splits_from
        if wanted == "folders":
            return layout, FROM_FOLDERS
        found, origin = splits_from_lists(
            self.root, places, layout, self.note, partial=self.options.partial, first=wanted == "lists"
        )
        if wanted == "lists" and origin == FROM_FOLDERS:
            fix = "add train.txt, val.txt and test.txt, or name a file with the option split_file"
            raise DataError("has no lists of the splits", where=str(self.root), fix=fix)
        return found, origin
