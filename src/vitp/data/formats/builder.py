"""`SetBuilder`: what all label readers fill, and what turns their images and findings into a `LabelledSet`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.data.formats.class_names import check_names, without_reserved
from vitp.data.formats.image_labels import ImageLabels, Tally
from vitp.data.formats.patients import case_patient
from vitp.data.formats.read_options import ReadOptions
from vitp.data.formats.set_splits import Added, SetSplits
from vitp.data.formats.slices import VolumeFacts, is_medical
from vitp.data.formats.turned import AS_STORED, swaps_sides, turned_line
from vitp.data.formats.walk import named_file, stem_of, within
from vitp.io.images import image_size, orientation_of
from vitp.io.parts import base_address
from vitp.records.labels import LabelledImage, LabelledSet

__all__ = ["ReadOptions", "SetBuilder"]

_NOT_READ = {
    "bounding_boxes.txt": "a box for each image (CUB-200; boxes are read as COCO JSON)",
    "sceneCategories.txt": "the kind of scene of each image (ADE20K; classes are read as a table of image and label)",
}
"""Files of published sets beside images that another format reads → what they hold, which no reader takes."""


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
        shown: Whether labels lie on images that EXIF turns as viewers show these, as the format's tool does.
        whole_volumes: Volumes of several slices that are labelled as a whole.
        band_names: What the set calls the bands of its files, in their order.
        point_size: Side of the box that a label without width and height gets; None: it has no area.
    """

    root: Path
    options: ReadOptions
    findings: list[str] = field(default_factory=list)
    understood: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    splits_from: str = ""
    band_names: tuple[str, ...] = ()
    point_size: float | None = None
    shown: bool = False
    whole_volumes: int = field(default=0, init=False)
    _items: list[Added] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)
    _files: dict[tuple[int, int], str] = field(default_factory=dict)
    _counted: set[str] = field(default_factory=set)
    _persons: dict[str, str] = field(default_factory=dict)
    _orientations: dict[Path, int] = field(default_factory=dict)
    _turned: list[str] = field(default_factory=list)

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
            size = image_size(path)
            if (number := orientation_of(path)) > 1:
                self._orientations[path] = number
            return size
        except DataError as error:
            named = f"{self.place(path)} " if where else ""
            self.lose(where or self.place(path), f"{named}{error.what}; image left out", category)
            return None

    def orientation(self, path: Path) -> int:
        """Return the EXIF orientation of an image whose size was asked for; 1: it isn't turned."""
        return self._orientations.get(path, 1)

    def check_turned(self, turned: Sequence[str], decided: bool, what: str, count: int) -> None:
        """Say that labels lie on images that EXIF turns as these are shown, or refuse it; see `turned_line`."""
        where, orientation = str(self.root), self.options.orientation
        line = turned_line(turned, decided, what=what, where=where, count=count, orientation=orientation)
        if line:
            self.understand(line)

    def lose(
        self, where: str, text: str, category: str = "", *, absent: bool = False, mend: str = ""
    ) -> None:
        """Note that a labelled image is left out, and count its label as lost.

        Args:
            where: "file" or "file:row".
            text: What is wrong, and that it is left out.
            category: Class of the whole image.
            absent: The image isn't there, which is no fault of its label.
            mend: What to do about it, for a set that is refused because of such labels.
        """
        self.note(where, text)
        if absent:
            self.tally.absent += 1
            self.tally.first_absent = self.tally.first_absent or f"{where}: {text}"
        else:
            self.tally.lose("", category, f"{where}: {text}", mend=mend)

    def leave_out(self, error: DataError, path: str | Path, fate: str) -> None:
        """Note that something is left out with what it is made of: the finding names the file that is to blame.

        Args:
            error: What is wrong, and where.
            path: Path of what is left out; named where the error is about no file of the set.
            fate: What becomes of it, as in "volume left out".

        Raises:
            DataError: A package is missing, which is no fault of the file.
        """
        self.lose(self._blamed(error, path), f"{error.what}; {fate}")

    def _blamed(self, error: DataError, path: str | Path) -> str:
        """Return the file of the set that an error is about, else `path`; what a missing package makes is raised."""
        if "pip install" in (error.fix or ""):
            raise error
        own = Path(base_address(error.where or ""))
        return self.place(own if own.is_relative_to(self.root) and own.exists() else path)

    def agree(self, where: str, told: Sequence[object], size: tuple[int, int], path: Path) -> bool:
        """Return whether the width and height that a label file tells are the image's; else note it. 0: not told."""
        given, number = tuple(one or own for one, own in zip(told, size, strict=True)), self.orientation(path)
        if given == size:
            self.shown |= all(told) and swaps_sides(number, size)
            return True
        stored = swaps_sides(number, size) and given == size[::-1]
        why = " (turned by its EXIF orientation; the labels are of the pixels as stored)" if stored else ""
        text = f"says {given[0]}×{given[1]} but the image has {size[0]}×{size[1]}{why}; image left out"
        mend = f"{AS_STORED}, or label the images as viewers show them" if stored else ""
        self.lose(where, text, mend=mend)
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
            if self.orientation(path) > 1 and (objects or found.ignored or others.get("semantic")):
                self._turned.append(self.place(path))
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
            path: Path of the image, or the address of a slice.
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
        whole = known_as or place  # the slices of a volume count as one, as it is lost as one
        if labels.keys() & {"scene", "tags", "semantic", "change"} and whole not in self._counted:
            self._counted.add(whole)  # objects are counted one by one
            for category in labels.get("tags") or (labels.get("scene") or "",):
                self.tally.used["", category] += 1
        if person and labels.get("group"):
            self._persons[labels["group"]] = person
        item = LabelledImage(name, str(path), *size, **labels)
        self._items.append(Added(item, split, known_as or place, apart))

    def add_file(
        self, path: Path, *, split: str | None = None, where: str = "", category: str = "", **labels: Any
    ) -> bool:
        """Add a file that is labelled as a whole, and return whether it can be read.

        A volume gives slices: its middle one, or each whose number `ReadOptions.every` divides. A patient that a header
        tells is the group, where none is given.

        Args:
            path: Path of a picture, a volume or a series.
            split: From the layout.
            where: "file:row" of the label, for a finding.
            category: Class of the whole image.
            **labels: Further fields of `LabelledImage`, and `person`.
        """
        if not is_medical(path):
            size = self.size_of(path, where, category)
            if size is not None:
                self.add(path, size, split=split, **labels)
            return size is not None
        try:
            facts = VolumeFacts.of(str(path))
            plane = self.options.plane or facts.grid.plane
            facts.grid.check_single(plane, "the set has")
            count, size = facts.count(plane), facts.size(plane)
        except DataError as error:
            blamed = self._blamed(error, path)
            what = f"{blamed} {error.what}" if where else error.what
            self.lose(where or blamed, f"{what}; image left out", category)
            return False
        for line in facts.findings:
            self.note(self.place(path), line)
        patient = facts.patient() or (case_patient(self.place(path)) if count > 1 else "")
        if not labels.get("group") and patient:
            labels |= {"group": patient, "person": "patient"}
        name = stem_of(Path(self.place(path))) if "/" not in self.place(path) else ""
        name = name or f"{Path(self.place(path)).parent.as_posix()}/{stem_of(path)}"
        if count == 1:
            known = facts.known(0, plane, self.options.modality)
            self.add(path, size, split=split, name=name, **{**known, **labels})
            return True
        every = self.options.every
        self.whole_volumes += 1
        for number in range(0, count, every) if every else (count // 2,):
            known = facts.known(number, plane, self.options.modality)
            self.add(
                facts.slice_address(number, plane),
                size,
                split=split,
                name=f"{name}/{number:04d}",
                known_as=self.place(path),
                **{**known, **labels},
            )
        return True

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
            found = self.findings
            first = f"; the first of {len(found)} findings: {found[0]}" if found else ""
            raise DataError(
                f"no labelled image found{first}", where=where, fix="check the folder and its format"
            )
        self.check_turned(self._turned, self.shown, "labels", len(self._items))
        self._items.sort(key=lambda entry: entry.item.id)
        used = {label.category for entry in self._items for label in entry.item.objects or ()}
        objects, unused = without_reserved(object_classes, used, where)
        for name in (name for name in unused if name not in self.tally.unasked):  # the tally tells of those
            self.note("classes", f'no object is of the class "{name}"; it is left out')
        scenes, semantic, changes = tuple(scene_classes), tuple(semantic_classes), tuple(change_classes)
        for names in (objects, scenes, semantic, changes):
            check_names(names, where, self.note)
        splits = SetSplits(
            self.root, self.options, self._items, self._persons, self.note, self.understand, self.splits_from
        )
        items = splits.items()
        if self.whole_volumes:
            every = self.options.every
            which = f"each {every}th slice" if every else "the middle slice (-o every=N takes each Nth)"
            self.understand(f"{self.whole_volumes:,} volumes are labelled as a whole: {which} is the image")
        for line in (*_counted(items, objects, scenes), *_held_out(items, scenes), *self.tally.lines()):
            self.understand(line)
        for name, held in _NOT_READ.items():
            if (path := named_file(self.root, (name,))) is not None:
                self.understand(f"there, and not read: {path.name}, {held}")
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
            drawn=splits.drawn,
            band_names=self.band_names,
        )


def _counted(
    items: Iterable[LabelledImage], object_classes: Iterable[str], scene_classes: Iterable[str]
) -> list[str]:
    """Return lines that count the objects, of them the difficult ones, and the images of each class."""
    objects: Counter[str] = Counter(dict.fromkeys(object_classes, 0))
    difficult: Counter[str] = Counter()
    scenes: Counter[str] = Counter(dict.fromkeys(scene_classes, 0))
    for item in items:
        objects.update(label.category for label in item.objects or ())
        difficult.update(label.category for label in item.objects or () if label.difficult)
        scenes.update(item.tags or () if item.scene is None else (item.scene,))
    counted = [
        f"{name} {count:,}" + (f" ({hard:,} difficult)" if (hard := difficult[name]) else "")
        for name, count in objects.items()
    ]
    lines = [f"objects: {', '.join(counted)}"] if counted else []
    if scenes:
        lines.append(
            f"images of each class: {', '.join(f'{name} {count:,}' for name, count in scenes.items())}"
        )
    return lines


def _held_out(items: Sequence[LabelledImage], scene_classes: Iterable[str]) -> list[str]:
    """Return a line on classes of whole images that other splits have and no training image, or none."""
    held = {train: set[str]() for train in (True, False)}
    for item in items:
        held[item.split == "train"].update(item.tags or filter(None, (item.scene,)))
    missing = [name for name in scene_classes if name in held[False] - held[True]]
    if not (held[True] and missing):
        return []
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    return [f"no training image is of {', '.join(missing[:8])}{more}: only images of other splits are"]
