"""`SetBuilder`: what all label readers fill, and what turns their images and findings into a `LabelledSet`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.class_names import check_names, without_reserved
from vitp.data.formats.identity import (
    equal_findings,
    image_folder,
    join_equal,
    series_findings,
    within_splits,
)
from vitp.data.formats.image_labels import ImageLabels, Tally
from vitp.data.formats.patients import folder_patients, pseudonyms, renamed, told_patients
from vitp.data.formats.places import GroundPlace, find_places, on_one_plane, split_by_place, with_ground
from vitp.data.formats.splits import (
    FROM_FOLDERS,
    assign_fractions,
    check_missing,
    compile_group_regex,
    group_in,
    match_entries,
    read_split_file,
    splits_from_lists,
)
from vitp.data.formats.walk import within
from vitp.io.images import image_size
from vitp.records.labels import SPLITS, LabelledImage, LabelledSet, PlaceSplit


@dataclass(frozen=True)
class ReadOptions:
    """Options of every label format.

    Attributes:
        name: Of the set; the folder's name by default.
        licence: Of the data, as its publisher states it.
        split_file: File that names the split of each image; goes before the layout's splits.
        val: Share of validation images where neither the layout nor `split_file` says it.
        test: Share of test images, likewise.
        seed: Decides which images the shares get.
        group_regex: Finds a file name's group (its first bracket, or its match); groups are never split.
        group: "folder": images of one folder are a group.
        patient: Column of a table, or an expression that finds the patient in a path (its first bracket, or its match);
            by default what tables, folders and headers say. A patient's images are never split.
        splits: Which of the set's own splits count: "lists", "folders", or "drawn" for none; by default the lists, else
            the folders.
        partial: Images that lists, tables and labels name may be missing.
        block: Side in metres of the blocks that splits are drawn in, where the files say where they lie.
        buffer: Metres that images of different splits are apart at least, likewise.
        plane: Of the slices of volumes: "axial", "coronal", "sagittal" or "stored"; by default across their widest step.
        every: Of volumes with masks each slice whose number this divides, by default all; of volumes that are labelled
            as a whole, by default the middle one alone.
        modality: DICOM's code (CT, MR, …) of medical images whose files don't tell it.
        dates: Most dates of one place that are joined into one record; 1: each image is one of its own.
        studies: Two studies of a patient on equal grids are pairs of a prior and a current one.
        abnormal: Classes that are findings, between commas; "": of a medical set those with evident names.
    """

    name: str = ""
    licence: str = ""
    split_file: str | Path | None = None
    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    group_regex: str | None = None
    group: Literal["", "folder"] = ""
    patient: str = ""
    splits: Literal["", "lists", "folders", "drawn"] = ""
    partial: bool = False
    block: float | None = None
    buffer: float = 0.0
    dates: int = 1
    studies: bool = False
    abnormal: str | list[str] = ""
    plane: Literal["", "axial", "coronal", "sagittal", "stored"] = ""
    every: int = 0
    modality: str = ""

    def __post_init__(self) -> None:
        if type(self.every) is not int or not 0 <= self.every <= 10_000:
            raise ConfigError(f"is {self.every!r}", where="every", fix="give a whole number from 1")
        for name in ("group", "splits", "plane"):
            known = get_args(get_type_hints(ReadOptions)[name])
            if getattr(self, name) not in known:
                fix = f"choose {' or '.join(filter(None, known))}"
                raise ConfigError(f'is "{getattr(self, name)}"', where=name, fix=fix)


@dataclass(frozen=True)
class _Added:
    """An image, its split from the layout, and what lists call it; see `SetBuilder.add`."""

    item: LabelledImage
    split: str | None
    known_as: str
    apart: bool


@dataclass
class SetBuilder:
    """Collects the images of one set and what was wrong with their labels.

    Attributes:
        root: The set's folder.
        options: Name, licence and splits.
        findings: Lines "file:row: …" about labels that were left out or mended.
        understood: Lines about how the files were understood.
        tally: Counts of the labels that can and can't be used.
        splits_from: What named the splits, where the reader knows; lists of names aren't looked for then.
        point_size: Side of the box that a label without width and height gets; None: it has no area.
    """

    root: Path
    options: ReadOptions
    findings: list[str] = field(default_factory=list)
    understood: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    splits_from: str = ""
    point_size: float | None = None
    _items: list[_Added] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)
    _files: dict[tuple[int, int], str] = field(default_factory=dict)
    _drawn: PlaceSplit | None = None
    _persons: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of images so far."""
        return len(self._items)

    def place(self, path: str | Path, row: int | str | None = None) -> str:
        """Return "file:row" with the file relative to the set's folder."""
        name = within(path, self.root)
        return name if row is None else f"{name}:{row}"

    def note(self, where: str, text: str) -> None:
        """Add a finding."""
        self.findings.append(f"{where}: {text}")

    def understand(self, text: str) -> None:
        """Add a line about how the files were understood; the same line counts once."""
        if text not in self.understood:
            self.understood.append(text)

    def size_of(self, path: Path, where: str = "", category: str = "") -> tuple[int, int] | None:
        """Return the width and height of an image (of a class), or None with a finding when it can't be read."""
        try:
            return image_size(path)
        except DataError as error:
            named = f"{self.place(path)} " if where else ""
            self.lose(where or self.place(path), f"{named}{error.what}; image left out", category)
            return None

    def lose(self, where: str, text: str, category: str = "", *, absent: bool = False) -> None:
        """Note that a labelled image is left out, and count its label as lost.

        Args:
            where: "file" or "file:row".
            text: What is wrong, and that it is left out.
            category: Class of the whole image.
            absent: The image isn't there, which is no fault of its label.
        """
        self.note(where, text)
        if absent:
            self.tally.absent += 1
            self.tally.first_absent = self.tally.first_absent or f"{where}: {text}"
        else:
            self.tally.lose("", category, f"{where}: {text}")

    def agree(self, where: str, told: Sequence[object], size: tuple[int, int]) -> bool:
        """Return whether the width and height that a label file tells are the image's; else note it."""
        if tuple(told) == size:
            return True
        self.lose(where, f"says {told[0]}×{told[1]} but the image has {size[0]}×{size[1]}; image left out")
        return False

    def labels_of(self, size: tuple[int, int], source: str, *, folder: bool = False) -> ImageLabels:
        """Return what collects the labels of one image, of a file or a folder of them; `add_labelled` takes it."""
        if folder:
            self.tally.folders.add(source)
        return ImageLabels(size, source, self.note, self.tally, self.point_size)

    def add_labelled(
        self, path: Path, found: ImageLabels, *, split: str | None = None, **others: Any
    ) -> None:
        """Add an image with the labels that were found; without any that is known it is left out.

        Args:
            path: The image.
            found: Its labels.
            split: From the layout; None when the layout doesn't say.
            **others: Further fields of `LabelledImage`.

        Raises:
            DataError: Two images would have the same id, or are the same file.
        """
        if found.are_known:
            objects = tuple(found.objects)
            self.add(path, found.size, split=split, objects=objects, ignored=tuple(found.ignored), **others)
            return
        self.tally.unlabelled += 1
        if any(others.values()):
            self.add(path, found.size, split=split, **others)
        else:
            self.note(self.place(path), "its labels can't be used, and nothing else is known of it; left out")

    def add(
        self,
        path: Path | str,
        size: tuple[int, int],
        *,
        split: str | None = None,
        name: str = "",
        known_as: str = "",
        person: str = "",
        apart: bool = False,
        **labels: Any,
    ) -> None:
        """Add an image.

        Args:
            path: Of the image, or the address of a slice.
            size: Width and height.
            split: From the layout; None when the layout doesn't say.
            name: Its id; by default its path under the set's folder without suffix.
            known_as: What lists of splits call it, as a path under the set's folder; by default its path.
            person: What its group is a group of (`patient`), where the group is a person's own name or number.
            apart: It keeps the split that is given, whatever becomes of the others: an image without labels.
            **labels: Further fields of `LabelledImage`.

        Raises:
            DataError: Two images would have the same id, or are the same file.
        """
        place = self.place(path)
        self._refuse_same_file(Path(path), place)
        name = name or Path(place).with_suffix("").as_posix()
        if name in self._ids:
            name = Path(place).as_posix()
        if name in self._ids:
            raise DataError("image is listed twice", where=place, fix="remove one of the entries")
        self._ids.add(name)
        if labels.keys() & {"scene", "tags", "semantic", "change"}:  # objects are counted one by one
            for category in labels.get("tags") or (labels.get("scene") or "",):
                self.tally.used["", category] += 1
        if person and labels.get("group"):
            self._persons[labels["group"]] = person
        item = LabelledImage(name, str(path), *size, **labels)
        self._items.append(_Added(item, split, known_as or place, apart))

    def _refuse_same_file(self, path: Path, place: str) -> None:
        """Refuse a file that is in the set already, under another name, through a link or in another case."""
        try:
            facts = path.stat()
        except OSError:
            return
        other = self._files.setdefault((facts.st_dev, facts.st_ino), place)
        if other != place:
            fix = "keep one of them, with one split and one label"
            raise DataError(f"is the same file as {other}", where=place, fix=fix)

    def build(
        self,
        *,
        object_classes: Iterable[str] = (),
        scene_classes: Iterable[str] = (),
        semantic_classes: Iterable[str] = (),
        change_classes: Iterable[str] = (),
    ) -> LabelledSet:
        """Return the set, its items sorted by id, each with group and split.

        Raises:
            DataError: There is no usable image, too many labels are lost, the options of the splits don't fit, or
                a class can't be called what it is.
        """
        where = str(self.root)
        self.tally.check(where, self.count, partial=self.options.partial)
        if not self._items:
            first = f"; the first of {len(self.findings)} findings: {self.findings[0]}"
            what = f"no labelled image found{first if self.findings else ''}"
            raise DataError(what, where=where, fix="check the folder and its format")
        self._items.sort(key=lambda entry: entry.item.id)
        used = {label.category for entry in self._items for label in entry.item.objects or ()}
        objects, unused = without_reserved(object_classes, used, where)
        for name in unused:
            self.note("classes", f'no object is of the class "{name}"; it is left out')
        scenes, semantic, changes = tuple(scene_classes), tuple(semantic_classes), tuple(change_classes)
        for names in (objects, scenes, semantic, changes):
            check_names(names, where, self.note)
        items = self._with_splits()
        for line in (*_counted(items, objects, scenes), *self.tally.lines()):
            self.understand(line)
        if folders := [item for item in items if Path(item.image).is_dir()]:
            each = f"{self.place(Path(folders[0].image))}/, for example"
            self.understand(f"{len(folders):,} images are folders with one file a band ({each})")
        return LabelledSet(
            name=self.options.name or self.root.resolve().name,
            items=items,
            object_classes=objects,
            scene_classes=scenes,
            semantic_classes=semantic,
            licence=self.options.licence,
            findings=tuple(self.findings),
            understood=tuple(self.understood),
            change_classes=changes,
            drawn=self._drawn,
        )

    def _with_splits(self) -> list[LabelledImage]:
        pattern = compile_group_regex(self.options.group_regex)
        items = [
            replace(entry.item, group=entry.item.group or group_in(Path(entry.item.image).stem, pattern))
            for entry in self._items
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
        free = [number for number, entry in enumerate(self._items) if not entry.apart]
        drawn = not any(given[number] for number in free)
        if drawn and free:
            own, origin = self._draw([known.items[n] for n in free], [places[n] for n in free])
            for number, split in zip(free, own, strict=True):
                given[number] = split
        else:
            drawn = False
            origin = f"from {origin}"
            if self.options.block is not None or self.options.buffer:
                self.understand("block and buffer aren't used: nothing is drawn, the splits are given")
        names = pseudonyms(known.items, self._persons)
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
        series = [] if self._drawn else series_findings(items, self.root, drawn=drawn)
        for line in (*equal_findings(known, items, self.place), *series):
            self.note("splits", line)
        if not known.by_pixels:
            self.understand("equal images: only files of equal bytes were looked for, the set is too large")
        return items

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
            self._drawn = how
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
        places = [self._items[n].known_as for n in free]
        if self.options.patient and not self._persons:
            found = told_patients(places, self.options.patient, str(self.root))
        else:
            found = folder_patients(places, {item.scene for item in items if item.scene})
            if any(found):
                count = len(set(found) - {""})
                self.understand(f"patients: {count:,}, by the folders that are called after them")
        for number, patient in zip(free, found, strict=True):
            if patient:
                items[number] = replace(items[number], group=patient)
                self._persons[patient] = "patient"
        return items

    def _given_splits(self) -> tuple[list[str | None], str]:
        """Return the split of each image, None where nothing says it, and what says it."""
        splits = {entry.known_as: entry.split for entry in self._items}
        found, origin = self._listed_splits([*splits], [*splits.values()])
        by_name = dict(zip(splits, found, strict=True))
        return [entry.split if entry.apart else by_name[entry.known_as] for entry in self._items], origin

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


def _counted(
    items: Iterable[LabelledImage], object_classes: Iterable[str], scene_classes: Iterable[str]
) -> list[str]:
    """Return lines that count the objects and the images of each class."""
    objects: Counter[str] = Counter(dict.fromkeys(object_classes, 0))
    scenes: Counter[str] = Counter(dict.fromkeys(scene_classes, 0))
    for item in items:
        objects.update(label.category for label in item.objects or ())
        scenes.update(item.tags or () if item.scene is None else (item.scene,))
    return [
        f"{title}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}"
        for title, counts in (("objects", objects), ("images of each class", scenes))
        if counts
    ]
