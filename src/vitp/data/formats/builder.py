"""`SetBuilder`: what all label readers fill, and what turns their images and findings into a `LabelledSet`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.class_names import check_names, without_reserved
from vitp.data.formats.identity import equal_findings, join_equal, series_findings, within_splits
from vitp.data.formats.image_labels import ImageLabels, Tally
from vitp.data.formats.places import GroundPlace, find_places, on_one_plane, split_by_place, with_ground
from vitp.data.formats.splits import (
    assign_fractions,
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
        block: Side in metres of the blocks that splits are drawn in, where the files say where they lie.
        buffer: Metres that images of different splits are apart at least, likewise.
    """

    name: str = ""
    licence: str = ""
    split_file: str | Path | None = None
    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    group_regex: str | None = None
    block: float | None = None
    buffer: float = 0.0


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
    _items: list[tuple[LabelledImage, str | None]] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)
    _files: dict[tuple[int, int], str] = field(default_factory=dict)
    _drawn: PlaceSplit | None = None

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

    def size_of(self, path: Path, where: str = "") -> tuple[int, int] | None:
        """Return the width and height of an image, or None with a finding when it can't be read."""
        try:
            return image_size(path)
        except DataError as error:
            named = f"{self.place(path)} " if where else ""
            self.note(where or self.place(path), f"{named}{error.what}; image left out")
            return None

    def agree(self, where: str, told: Sequence[object], size: tuple[int, int]) -> bool:
        """Return whether the width and height that a label file tells are the image's; else note it."""
        if tuple(told) == size:
            return True
        text = f"says {told[0]}×{told[1]} but the image has {size[0]}×{size[1]}; image left out"
        self.note(where, text)
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

    def add(self, path: Path, size: tuple[int, int], *, split: str | None = None, **labels: Any) -> None:
        """Add an image; see `add_labelled`. Its id is its path under the set's folder without suffix."""
        place = self.place(path)
        self._refuse_same_file(path, place)
        name = Path(place).with_suffix("").as_posix()
        if name in self._ids:
            name = Path(place).as_posix()
        if name in self._ids:
            raise DataError("image is listed twice", where=place, fix="remove one of the entries")
        self._ids.add(name)
        self._items.append((LabelledImage(name, str(path), *size, **labels), split))

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
    ) -> LabelledSet:
        """Return the set, its items sorted by id, each with group and split.

        Raises:
            DataError: There is no usable image, too many labels are lost, the options of the splits don't fit, or
                a class can't be called what it is.
        """
        where = str(self.root)
        self.tally.check(where)
        if not self._items:
            first = f"; the first of {len(self.findings)} findings: {self.findings[0]}"
            what = f"no labelled image found{first if self.findings else ''}"
            raise DataError(what, where=where, fix="check the folder and its format")
        self._items.sort(key=lambda entry: entry[0].id)
        used = {label.category for item, _ in self._items for label in item.objects or ()}
        objects, unused = without_reserved(object_classes, used, where)
        for name in unused:
            self.note("classes", f'no object is of the class "{name}"; it is left out')
        scenes, semantic = tuple(scene_classes), tuple(semantic_classes)
        for names in (objects, scenes, semantic):
            check_names(names, where, self.note)
        items = self._with_splits()
        for line in (*_counted(items, objects, scenes), *self.tally.lines()):
            self.understand(line)
        return LabelledSet(
            name=self.options.name or self.root.resolve().name,
            items=items,
            object_classes=objects,
            scene_classes=scenes,
            semantic_classes=semantic,
            licence=self.options.licence,
            findings=tuple(self.findings),
            understood=tuple(self.understood),
            drawn=self._drawn,
        )

    def _with_splits(self) -> list[LabelledImage]:
        pattern = compile_group_regex(self.options.group_regex)
        items = [
            replace(item, group=item.group or group_in(Path(item.image).stem, pattern))
            for item, _ in self._items
        ]
        if pattern is not None and not any(item.group for item in items):
            raise DataError(
                f'no file name matches the group expression "{pattern.pattern}"',
                where=str(self.root),
                fix=f'write one that matches names like "{Path(items[0].image).stem}"',
            )
        places = find_places(items, self.understand)
        items = [with_ground(item, placed) for item, placed in zip(items, places, strict=True)]
        known, before = join_equal(items), items
        given, origin = self._given_splits([self.place(item.image) for item in items])
        drawn = not any(given)
        if drawn:
            given, origin = self._draw(known.items, places)
        else:
            origin = f"from {origin}"
        items = []
        for item, split in zip(known.items, given, strict=True):
            if split:
                items.append(replace(item, split=split))
            elif not drawn:
                self.note(self.place(item.image), f"not in {origin.removeprefix('from ')}; image left out")
        counts = Counter(item.split for item in items)
        named = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if counts[split])
        self.understand(f"splits: {named}; {origin}")
        items = items if drawn else within_splits(known, before, items)
        for line in (*equal_findings(known, items, self.place), *series_findings(items, drawn=drawn)):
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
        if len(known) == len(items) and options.group_regex is None:
            how = PlaceSplit(**shares, block=options.block, buffer=options.buffer)
            found = split_by_place(on_one_plane(known), groups, how)
            self._drawn = how
            if found.left_out:
                self.note("splits", f"{found.left_out:,} images are left out; {found.said}")
            return found.splits, found.said
        if options.block is not None or options.buffer:
            why = f"{len(items) - len(known)} of {len(items)} images don't say where they lie"
            raise ConfigError(
                "splits can't be drawn by place: "
                + (why if len(known) < len(items) else "group_regex is given"),
                where="block, buffer",
                fix="leave these options out, or give group_regex or split_file instead",
            )
        if known and len(known) < len(items):
            self.note(
                "splits", f"only {len(known)} of {len(items)} images say where they lie; not drawn by place"
            )
        found_splits = assign_fractions(groups, **shares)
        return [*found_splits], f"drawn (val={options.val:g}, test={options.test:g}, seed={options.seed})"

    def _given_splits(self, places: list[str]) -> tuple[list[str | None], str]:
        """Return the split of each image, None where nothing says it, and what says it."""
        layout = [split for _, split in self._items]
        if self.options.split_file is not None:
            path = Path(self.options.split_file)
            found, _ = match_entries(read_split_file(path), places)
            if not any(found):
                fix = f'write names like "{Path(places[0]).name}"'
                raise DataError("names none of the set's images", where=str(path), fix=fix)
            return found, f"the split file {path.name}"
        if self.splits_from:
            return layout, self.splits_from
        return splits_from_lists(self.root, places, layout, self.note)


def _counted(
    items: Iterable[LabelledImage], object_classes: Iterable[str], scene_classes: Iterable[str]
) -> list[str]:
    """Return lines that count the objects and the images of each class."""
    objects: Counter[str] = Counter(dict.fromkeys(object_classes, 0))
    scenes: Counter[str] = Counter(dict.fromkeys(scene_classes, 0))
    for item in items:
        objects.update(label.category for label in item.objects or ())
        if item.scene is not None:
            scenes[item.scene] += 1
    return [
        f"{title}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}"
        for title, counts in (("objects", objects), ("images of each class", scenes))
        if counts
    ]
