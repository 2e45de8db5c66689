"""`dataset.json` and `splits_final.json`: what nnU-Net (both versions) and the Medical Decathlon write about a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.data.formats.class_names import is_ignored_name
from vitp.data.formats.volume_names import volume_suffix
from vitp.data.formats.walk import parse_label_json, read_label_text
from vitp.io.open_pixels import open_pixels
from vitp.records.labels import BACKGROUND, IGNORE

DATASET_FILE, FOLDS_FILE = "dataset.json", "splits_final.json"
_FIX = "mend the file, or take it away and name the classes with -o classes=NAME=VALUE,…"


@dataclass(frozen=True)
class LabelRegion:
    """A class of `dataset.json`: its name and the values that it is made of; several overlap with other regions."""

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class DatasetHead:
    """What `dataset.json` says.

    Attributes:
        path: Path of the file.
        channels: Names of the channels, in their order; empty where it names none.
        regions: The classes with their values.
        order: Values that nnU-Net writes for the regions, in the order in which it paints them: that of the file.
        ignore: Value of what counts for nothing; None: none.
        ending: Ending of the files, such as ".nii.gz"; "" where it isn't told.
        listed: Cases that the file lists: (split, image, mask or "").
        count: How many cases there are for training; None where it isn't told.
    """

    path: Path
    channels: tuple[str, ...]
    regions: tuple[LabelRegion, ...]
    order: tuple[int, ...] = ()
    ignore: int | None = None
    ending: str = ""
    listed: tuple[tuple[str, str, str], ...] = ()
    count: int | None = None

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of several channels that tell them apart; none where they don't, as nnU-Net's "noNorm" for each."""
        different = len({name.casefold() for name in self.channels}) == len(self.channels) > 1
        return self.channels if different and not any(name.isdecimal() for name in self.channels) else ()

    def file_word(self, name: str) -> str:
        """Return how the files of a channel end ("T2" → "0001"); another word as it is."""
        names = [one.casefold() for one in self.band_names]
        return f"{names.index(name.casefold()):04d}" if name.casefold() in names else name

    @property
    def overlaps(self) -> bool:
        """Whether some value belongs to several classes."""
        values = [value for region in self.regions for value in region.values]
        return len(set(values)) < len(values)

    def missing(self, addresses: Sequence[str]) -> list[str]:
        """Return lines about cases that the file lists and that aren't among the volumes' addresses."""
        root = self.path.parent
        return [
            f"{image} ({split}) is missing"
            for split, image, _ in self.listed
            if not (root / image).is_file()
            and not any(one.startswith(str(root / image.partition(".")[0])) for one in addresses)
        ]

    def doubts(self, masks: Sequence[str]) -> list[str]:
        """Return lines about masks, by their names, that don't fit what the file tells of their number and ending."""
        return [line for line in (self._other_ending(masks), self._fewer(len(masks))) if line]

    def _other_ending(self, names: Sequence[str]) -> str:
        ending = self.ending.lower() if self.ending.startswith(".") else f".{self.ending.lower()}"
        others = [name for name in names if not name.lower().endswith(ending)]
        if not self.ending or not others:
            return ""
        kinds = Counter(volume_suffix(name) or Path(name).suffix or "without one" for name in others)
        listed = ", ".join(f"{suffix} {count:,}" for suffix, count in kinds.most_common(3))
        return (
            f'file_ending is "{self.ending}", but {len(others):,} of {len(names):,} cases end otherwise ({listed}); '
            "they are read"
        )

    def _fewer(self, cases: int) -> str:
        told = 0 if self.listed else self.count or 0
        return f"numTraining is {told}, but {cases} cases with masks are there" if told > cases else ""

    def check_bands(self, address: str) -> None:
        """Check that a slice of a case has the channels that the file names.

        Raises:
            DataError: It has more or fewer.
        """
        with open_pixels(address) as pixels:
            bands = len(pixels.bands)
        if self.channels and bands != len(self.channels):
            raise DataError(
                f"names {len(self.channels)} channels ({', '.join(self.channels)}), but the cases have {bands}",
                where=str(self.path),
                fix="mend the file, add the missing files (CASE_0001), or choose the channels that are there with "
                "-o channels=NAME,…",
            )

    def painted(self) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...], list[str]]:
        """Return class names, (value, class index) pairs, and lines about how overlaps are resolved.

        Of regions that overlap a later one is painted over earlier ones, as nnU-Net does when it writes a mask.

        Raises:
            DataError: A region is hidden by those that are painted later.
        """
        said: list[str] = []
        ordered = list(self.regions)
        if all(region.name.lower() != BACKGROUND for region in ordered):
            ordered.insert(0, LabelRegion(BACKGROUND, (0,)))
        names = tuple(region.name for region in ordered)
        index_of: dict[int, int] = {}
        for place, region in enumerate(ordered):
            for value in region.values:
                index_of[value] = place
        hidden = [names[place] for place in range(len(names)) if place not in index_of.values()]
        if hidden:
            raise DataError(
                f"{', '.join(hidden)} can't be seen: all its values belong to regions that are named later, too",
                where=str(self.path),
                fix="name larger regions first, or name the values themselves with -o classes=NAME=VALUE,…",
            )
        if self.overlaps:
            parts = ", ".join(f"{value} → {names[place]}" for value, place in sorted(index_of.items()))
            said.append(
                f"regions overlap: a pixel is of the last one that its value belongs to, as nnU-Net paints them ({parts})"
            )
        pairs = [*index_of.items()]
        if self.ignore is not None:
            pairs.append((self.ignore, IGNORE))
        return names, tuple(pairs), said


def dataset_head(root: Path) -> DatasetHead | None:
    """Return what `dataset.json` in a set's folder says; None: there is none, or it is about other things.

    Raises:
        DataError: It can't be understood.
    """
    path = root / DATASET_FILE
    if not path.is_file():
        return None
    content = parse_label_json(read_label_text(path), path, _FIX)
    if not isinstance(content, dict) or "labels" not in content:
        return None
    labels = content["labels"]
    if isinstance(labels, list) and all(isinstance(name, str) for name in labels):
        if not labels or labels[0].strip().lower() != BACKGROUND:
            what = 'lists its labels, but not with "background" first: which value the first has isn\'t known'
            raise DataError(what, where=str(path), fix='write "labels": {"background": 0, NAME: 1, …}')
        labels = {str(value): name for value, name in enumerate(labels)}
    if not isinstance(labels, dict):
        raise DataError("has labels that name no values", where=str(path), fix=_FIX)
    count = content.get("numTraining")
    named = content.get("channel_names") or content.get("modality")
    regions, ignore = _regions(labels, path)
    order = content.get("regions_class_order") or ()
    if not isinstance(order, list | tuple) or not all(isinstance(value, int) for value in order):
        raise DataError("regions_class_order is no list of numbers", where=str(path), fix=_FIX)
    return DatasetHead(
        path,
        _channel_names(named, path),
        regions,
        tuple(order),
        ignore,
        str(content.get("file_ending") or ""),
        tuple(_listed(content, path)),
        count if isinstance(count, int) else None,
    )


def _channel_names(named: Any, path: Path) -> tuple[str, ...]:
    if named is None:
        return ()
    if isinstance(named, str):
        return (named.strip(),)
    if isinstance(named, list):
        return tuple(str(name).strip() for name in named)
    if not isinstance(named, Mapping) or not all(str(key).isdecimal() for key in named):
        raise DataError("names its channels in a way that can't be understood", where=str(path), fix=_FIX)
    return tuple(str(named[key]).strip() for key in sorted(named, key=int))


def _regions(labels: Mapping[str, Any], path: Path) -> tuple[tuple[LabelRegion, ...], int | None]:
    """Return the classes in the order of the file: index → name (version 1), or name → value or values."""
    by_index = all(str(key).lstrip("-").isdecimal() for key in labels)
    if by_index and all(isinstance(value, str) for value in labels.values()):
        pairs: list[tuple[str, Any]] = [(labels[key], int(key)) for key in sorted(labels, key=int)]
    else:
        pairs = list(labels.items())
    regions: list[LabelRegion] = []
    ignore: int | None = None
    for name, told in pairs:
        values = told if isinstance(told, list | tuple) else [told]
        if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            what = f'the label "{name}" has the value {told!r:.60}, which is no whole number'
            raise DataError(what, where=str(path), fix=_FIX)
        if is_ignored_name(str(name)) and len(values) == 1:
            ignore = int(values[0])
        else:
            regions.append(LabelRegion(str(name).strip(), tuple(int(value) for value in values)))
    return tuple(regions), ignore


def _listed(content: Mapping[str, Any], path: Path) -> list[tuple[str, str, str]]:
    """Return the cases that the file lists itself, as the Decathlon's and AMOS's do."""
    found = []
    for key, split in (("training", "train"), ("validation", "val"), ("test", "test")):
        for row in content.get(key) or ():
            image, mask = (row.get("image"), row.get("label")) if isinstance(row, Mapping) else (row, None)
            if not isinstance(image, str) or not image:
                raise DataError(f'a row of "{key}" names no image', where=str(path), fix=_FIX)
            found.append((split, image.removeprefix("./"), str(mask or "").removeprefix("./")))
    return found


def published_folds(root: Path) -> list[dict[str, str]]:
    """Return for each fold of `splits_final.json` case → `train` or `val`; empty without the file.

    Raises:
        DataError: It can't be understood.
    """
    path = root / FOLDS_FILE
    if not path.is_file():
        return []
    content = parse_label_json(read_label_text(path), path, 'write [{"train": [cases], "val": [cases]}, …]')
    rows = content if isinstance(content, list) else [content]
    found = []
    for row in rows:
        lists = {side: row.get(side) if isinstance(row, Mapping) else None for side in ("train", "val")}
        if not all(isinstance(names, list) for names in lists.values()):
            fix = 'write [{"train": [cases], "val": [cases]}, …]'
            raise DataError("isn't a list of folds", where=str(path), fix=fix)
        both: Sequence[str] = sorted({*map(str, lists["train"] or ())} & {*map(str, lists["val"] or ())})
        if both:
            what = f"has {both[0]} in train and val of one fold"
            raise DataError(what, where=str(path), fix="keep it in one of them")
        found.append({str(name): side for side, names in lists.items() for name in names or ()})
    return found
