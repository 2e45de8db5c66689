"""What all label readers share: options, findings, checks of boxes, splits and the order of the items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitp.core import reading
from vitp.core.errors import DataError
from vitp.data.formats.class_checks import check_names, without_reserved
from vitp.data.formats.identity import equal_findings, join_equal, series_findings, within_splits
from vitp.data.formats.image_labels import ImageLabels
from vitp.data.formats.split_lists import lists_or_layout, match_entries
from vitp.data.formats.splits import (
    assign_fractions,
    compile_group_regex,
    group_of,
    read_split_file,
    split_of,
)
from vitp.data.formats.tally import Tally
from vitp.io.images import IMAGE_SUFFIXES, image_size
from vitp.records.labels import SPLITS, LabelledImage, LabelledSet


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
    """

    name: str = ""
    licence: str = ""
    split_file: str | Path | None = None
    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    group_regex: str | None = None


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

    @property
    def count(self) -> int:
        """Number of images so far."""
        return len(self._items)

    def place(self, path: str | Path, row: int | str | None = None) -> str:
        """Return "file:row" with the file relative to the set's folder."""
        path = Path(path)
        name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
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

    def labels_of(self, size: tuple[int, int], source: str, *, folder: bool = False) -> ImageLabels:
        """Return what collects the labels of one image; `add_labelled` takes it.

        Args:
            size: Width and height of the image.
            source: File or folder that the labels stand in.
            folder: The source is a folder of label files.
        """
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
        """Add an image. Its id is its path under the set's folder without suffix.

        Args:
            path: The image.
            size: Width and height.
            split: From the layout; None when the layout doesn't say.
            **labels: Further fields of `LabelledImage`.

        Raises:
            DataError: Two images would have the same id, or are the same file.
        """
        self._refuse_same_file(path)
        place = Path(self.place(path))
        name = place.with_suffix("").as_posix()
        if name in self._ids:
            name = place.as_posix()
        if name in self._ids:
            raise DataError("image is listed twice", where=self.place(path), fix="remove one of the entries")
        self._ids.add(name)
        self._items.append((LabelledImage(name, str(path), *size, **labels), split))

    def _refuse_same_file(self, path: Path) -> None:
        """Refuse a file that is in the set already, under another name, through a link or in another case."""
        try:
            facts = path.stat()
        except OSError:
            return
        place = self.place(path)
        other = self._files.setdefault((facts.st_dev, facts.st_ino), place)
        if other != place:
            raise DataError(
                f"is the same file as {other}",
                where=place,
                fix="keep one of them, with one split and one label",
            )

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
        scene_classes, semantic_classes = tuple(scene_classes), tuple(semantic_classes)
        self.tally.check(str(self.root))
        if not self._items:
            seen = (
                f"; the first of {len(self.findings)} findings: {self.findings[0]}" if self.findings else ""
            )
            raise DataError(
                f"no labelled image found{seen}", where=str(self.root), fix="check the folder and its format"
            )
        self._items.sort(key=lambda entry: entry[0].id)
        object_classes = self._checked_classes(object_classes, scene_classes, semantic_classes)
        items = self._with_splits()
        for line in (*counted(items, object_classes, scene_classes), *self.tally.lines()):
            self.understand(line)
        return LabelledSet(
            name=self.options.name or self.root.resolve().name,
            items=items,
            object_classes=tuple(object_classes),
            scene_classes=tuple(scene_classes),
            semantic_classes=tuple(semantic_classes),
            licence=self.options.licence,
            findings=tuple(self.findings),
            understood=tuple(self.understood),
        )

    def _checked_classes(
        self, objects: Iterable[str], scenes: Iterable[str], semantic: Iterable[str]
    ) -> tuple[str, ...]:
        """Return the object classes, less those that only say that there is none."""
        where = str(self.root)
        used = {label.category for item, _ in self._items for label in item.objects or ()}
        kept, unused = without_reserved(tuple(objects), used, where)
        for name in unused:
            self.note("classes", f'no object is of the class "{name}"; it is left out')
        for names in (kept, scenes, semantic):
            check_names(names, where, self.note)
        return kept

    def _with_splits(self) -> list[LabelledImage]:
        pattern = compile_group_regex(self.options.group_regex)
        items = [
            replace(item, group=item.group or group_of(Path(item.image).stem, pattern))
            for item, _ in self._items
        ]
        if pattern is not None and not any(item.group for item in items):
            raise DataError(
                f'no file name matches the group expression "{pattern.pattern}"',
                where=str(self.root),
                fix=f'write one that matches names like "{Path(items[0].image).stem}"',
            )
        known, before = join_equal(items), items
        items, drawn = self._split(known.items)
        items = items if drawn else within_splits(known, before, items)
        for line in (*equal_findings(known, items, self.place), *series_findings(items, drawn=drawn)):
            self.note("splits", line)
        if not known.by_pixels:
            self.understand("equal images: only files of equal bytes were looked for, the set is too large")
        return items

    def _split(self, items: list[LabelledImage]) -> tuple[list[LabelledImage], bool]:
        """Return the images with their splits, and whether we drew them."""
        given, origin = self._given_splits([self.place(item.image) for item in items])
        if not any(given):
            return self._drawn(items), True
        kept = [replace(item, split=split) for item, split in zip(items, given, strict=True) if split]
        for item, split in zip(items, given, strict=True):
            if not split:
                self.note(self.place(item.image), f"not in {origin}; image left out")
        counts = Counter(item.split for item in kept)
        named = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if counts[split])
        self.understand(f"splits: {named}; from {origin}")
        return kept, False

    def _given_splits(self, places: list[str]) -> tuple[list[str | None], str]:
        """Return the split of each image, None where nothing says it, and what says it."""
        layout = [split for _, split in self._items]
        if self.options.split_file is not None:
            path = Path(self.options.split_file)
            found, _ = match_entries(read_split_file(path), places)
            if not any(found):
                raise DataError(
                    "names none of the set's images",
                    where=str(path),
                    fix=f'write names like "{Path(places[0]).name}"',
                )
            return found, f"the split file {path.name}"
        if self.splits_from:
            return layout, self.splits_from
        return lists_or_layout(self.root, places, layout, self.note)

    def _drawn(self, items: list[LabelledImage]) -> list[LabelledImage]:
        val, test = self.options.val, self.options.test
        drawn = assign_fractions([item.group for item in items], val=val, test=test, seed=self.options.seed)
        counts = Counter(drawn)
        named = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if counts[split])
        self.understand(f"splits: {named}; drawn (val={val:g}, test={test:g}, seed={self.options.seed})")
        return [replace(item, split=split) for item, split in zip(items, drawn, strict=True)]


def counted(
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


def list_images(folder: Path) -> list[Path]:
    """Return the image files of one folder, sorted by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def split_folders(root: Path) -> list[tuple[str | None, Path]]:
    """Return the folders of the splits under `root`, or `root` itself with None when there are none."""
    found = [(split_of(p.name), p) for p in sorted(root.iterdir()) if p.is_dir() and split_of(p.name)]
    found.sort(key=lambda entry: SPLITS.index(entry[0] or "train"))
    return list(found) or [(None, root)]


def split_in(inside: Path) -> tuple[str | None, str | None]:
    """Return the split that a folder of a relative path names, and that folder ("a/val2017/b.png" → val, val2017)."""
    found = ((split_of(part), part) for part in inside.parts[:-1])
    return next(((split, part) for split, part in found if split), (None, None))


def child(base: Path, names: Sequence[str]) -> Path | None:
    """Return the sub-folder that has one of the names, in any case; the first name goes first. None without one."""
    if not base.is_dir():
        return None
    folders = {path.name.lower(): path for path in sorted(base.iterdir(), reverse=True) if path.is_dir()}
    return next((folders[name.lower()] for name in names if name.lower() in folders), None)


def paired_folders(root: Path, names: Sequence[Sequence[str]]) -> list[tuple[str | None, list[Path]]]:
    """Return split and folders of each place where one folder of every list of names exists.

    Looks at `root/{split}/{name}`, `root/{name}/{split}` and `root/{name}`, in this order.
    """

    def pick(base: Path) -> list[Path] | None:
        picked = [next((base / n for n in options if (base / n).is_dir()), None) for options in names]
        return [p for p in picked if p is not None] if all(picked) else None

    places: list[tuple[str | None, list[Path]]] = []
    for split, folder in split_folders(root):
        if split is not None and (picked := pick(folder)) is not None:
            places.append((split, picked))
    if places or (flat := pick(root)) is None:
        return places
    for split, folder in split_folders(flat[0]):
        others = [base / folder.name for base in flat[1:]]
        if split is not None and all(other.is_dir() for other in others):
            places.append((split, [folder, *others]))
    return places or [(None, flat)]


def read_text(path: Path) -> str:
    """Return a label file's text.

    Raises:
        DataError: It can't be read or isn't UTF-8.
    """
    try:
        return reading.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"can't be read ({error})", where=str(path), fix="check the file; text must be UTF-8"
        ) from error


def comma_list(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return "a,b" or a list of words as a tuple of words; None stays None."""
    if value is None:
        return None
    words = value.split(",") if isinstance(value, str) else value
    return tuple(word.strip() for word in words if word.strip())
