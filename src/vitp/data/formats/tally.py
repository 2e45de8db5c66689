"""How many labels of a set can be used, and when too few can: a set that lost them must not pass as an empty one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from vitp.core.errors import DataError

FEWEST_FOR_SHARE = 10
"""Labels from which on a set is refused when more than half of them are lost; below, only when all are."""

FEWEST_IN_FOLDER = 3
"""Labels from which on a folder of label files is refused when all of its labels are lost."""

_Key = tuple[str, str]
"""Source and class."""

_MEND = "mend them, or say how they are meant with the format's options"


@dataclass
class Tally:
    """Counts of a set's labels, by the file or folder that they stand in and by class.

    Attributes:
        used: Labels that became objects, by (source, class).
        lost: Labels that can't be used, by (source, class); the class is "" where it isn't known.
        flat: Labels without area, likewise.
        excluded: Labels of classes that weren't asked for, by class.
        largest: Largest coordinate of a source's used boxes in pixels.
        first: First line about a label that is lost or has no area, by (source, class).
        folders: Sources that are folders of label files.
        unlabelled: Images that lost a label without a place.
    """

    used: Counter[_Key] = field(default_factory=Counter)
    lost: Counter[_Key] = field(default_factory=Counter)
    flat: Counter[_Key] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)
    largest: dict[str, float] = field(default_factory=dict)
    first: dict[_Key, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    unlabelled: int = 0

    def use(self, source: str, category: str, box: tuple[float, float, float, float]) -> None:
        """Count a label that can be used."""
        self.used[source, category] += 1
        self.largest[source] = max(self.largest.get(source, 0.0), box[2], box[3])

    def lose(self, source: str, category: str, line: str) -> None:
        """Count a label that can't be used; the line says which and why."""
        self.lost[source, category] += 1
        self.first.setdefault((source, category), line)

    def drop(self, source: str, category: str, line: str) -> None:
        """Count a label without area."""
        self.flat[source, category] += 1
        self.first.setdefault((source, category), line)

    def check(self, root: str) -> None:
        """Refuse a set whose labels are lost.

        Raises:
            DataError: All labels of the set, of a file, of a folder (from three on) or of a class are lost, or more
                than half of the set's (from ten on), or all boxes of a file or folder lie within one pixel; or none
                of the classes that were asked for occurs.
        """
        for source in dict.fromkeys(source for source, _ in (*self.used, *self.lost, *self.flat)):
            fewest = FEWEST_IN_FOLDER if source in self.folders else 1
            self._refuse_lost(_from(source), source or root, "", fewest)
            if self.largest.get(source, 2.0) <= 1.0:
                raise DataError(
                    "all boxes lie within the first pixel: their coordinates look like shares of the image",
                    where=source or root,
                    fix="write them in pixels",
                )
        for category in sorted({category for _, category in (*self.lost, *self.flat)} - {""}):
            self._refuse_lost(_of(category), root, f' of the class "{category}"', 1)
        self._refuse_lost(lambda _: True, root, "", 1)
        used, lost, flat = (counts.total() for counts in (self.used, self.lost, self.flat))
        if used + lost + flat >= FEWEST_FOR_SHARE and lost + flat > used:
            raise DataError(
                f"{lost + flat:,} of {used + lost + flat:,} labels can't be used "
                f"(the first: {next(iter(self.first.values()))})",
                where=root,
                fix=_MEND,
            )
        if self.excluded and not used:
            raise DataError(
                f"no label is of a class that was asked for; the labels are of {_some(self.excluded)}",
                where=root,
                fix="write the option classes like the labels",
            )

    def _refuse_lost(self, belongs: Callable[[_Key], bool], where: str, of: str, fewest: int) -> None:
        used, lost, flat = (
            sum(count for key, count in counts.items() if belongs(key))
            for counts in (self.used, self.lost, self.flat)
        )
        # One label without area is a slip of the mouse; several say that these labels are points.
        if used or lost + flat < fewest or (not lost and flat < 2):
            return
        line = next(line for key, line in self.first.items() if belongs(key))
        what = f"none of the {lost + flat:,} labels{of} can be used (the first: {line})"
        raise DataError(what, where=where, fix=_MEND)

    def lines(self) -> list[str]:
        """Return what became of the labels, in words; nothing when all are used."""
        parts = []
        if lost := self.lost.total():
            parts.append(f"{lost:,} can't be used")
        if flat := self.flat.total():
            parts.append(f"{flat:,} without area dropped")
        if excluded := self.excluded.total():
            parts.append(f"{excluded:,} of other classes ignored in their places ({_some(self.excluded)})")
        if self.unlabelled:
            images = "image" if self.unlabelled == 1 else "images"
            parts.append(f"{self.unlabelled:,} {images} left without object labels")
        return [f"labels: {self.used.total():,} used, {', '.join(parts)}"] if parts else []


def _from(source: str) -> Callable[[_Key], bool]:
    return lambda key: key[0] == source


def _of(category: str) -> Callable[[_Key], bool]:
    return lambda key: key[1] == category


def _some(counts: Counter[str], most: int = 8) -> str:
    named = [f"{name} {count:,}" for name, count in counts.most_common(most)]
    return ", ".join(named) + (" …" if len(counts) > most else "")
