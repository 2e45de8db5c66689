"""`vitp data leaks`: pretraining images that are, or show a part of, downstream test images.

Three ways to leak are told apart, the plainest first: equal pixels, the same picture after resizing or recompression
(perceptual hash), and a crop, tile or mosaic of it (`vitp.data.overlap`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from vitp.core import files
from vitp.core.errors import ConfigError, DataError
from vitp.core.files import to_json
from vitp.data.formats.vitp_labels import channels_to_json
from vitp.data.image_hash import HASH_DISTANCE, ImagePrint, alike_pairs, as_compared, image_print, in_threads
from vitp.data.overlap import Landmarks, OverlapIndex, landmarks
from vitp.data.sources import Source, is_mixture, open_sources, read_mixture_table
from vitp.io.images import is_scene
from vitp.records.labels import LabelledSet

Kind = Literal["pixels", "picture", "overlap"]
LEAST_SHARE = 0.01
"""Part of a test image that must be seen for an overlap to be a leak."""

_CHUNK = 4096
"""Pretraining images whose prints are compared at once: the test images are sorted into buckets once a chunk."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A pretraining image that holds a test image or a part of it.

    Attributes:
        image: The pretraining image.
        source: Name of its set.
        test_image: The test image.
        test_set: Name of the test set.
        kind: "pixels": equal; "picture": alike as a whole; "overlap": a part.
        share: Part of the test image that is seen, 0..1.
    """

    image: str
    source: str
    test_image: str
    test_set: str
    kind: Kind
    share: float


@dataclass
class LeakReport:
    """What was found.

    Attributes:
        leaks: One for each pretraining image and test image, in the order of the sources.
        images: Pretraining images that were looked at.
        records: Set → (records that use a leaking image, all records).
        tests: Test set → images.
        unreadable: Lines about images that couldn't be read.
    """

    leaks: list[Leak] = field(default_factory=list)
    images: int = 0
    records: dict[str, tuple[int, int]] = field(default_factory=dict)
    tests: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def affected(self) -> dict[str, dict[str, int]]:
        """Return source → test set → its different test images that leak."""
        seen = {(leak.source, leak.test_set, leak.test_image) for leak in self.leaks}
        table: dict[str, dict[str, int]] = {}
        for (source, test), count in sorted(Counter((s, t) for s, t, _ in seen).items()):
            table.setdefault(source, {})[test] = count
        return table

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "images": self.images,
            "tests": self.tests,
            "records": {name: {"leaking": a, "all": b} for name, (a, b) in self.records.items()},
            "test_images_seen": self.affected(),
            "unreadable": self.unreadable,
            "leaks": [asdict(leak) for leak in self.leaks],
        }


@dataclass(frozen=True, slots=True)
class _Seen:
    print: ImagePrint
    landmarks: Landmarks | None


def find_leaks(
    mixture: str | Path,
    tests: Mapping[str, LabelledSet],
    *,
    overlaps: bool = True,
    threads: int | None = None,
    progress: Callable[[], None] | None = None,
) -> LeakReport:
    """Compare the images of a mixture with downstream test images.

    Memory: about 300 kB a test image, 2 kB without overlaps; pretraining images are not kept.

    Args:
        mixture: Annotation file, mixture file or compiled folder; only its training rows count.
        tests: Name → set; its items of the split `test` are compared.
        overlaps: Also look for crops and tiles, which costs about as much as decoding.
        threads: Number of threads that decode images; twice the cores by default, 16 at most.
        progress: Called after each image, test images first.

    Raises:
        DataError: The mixture can't be opened.
        ConfigError: There is no test image.
    """
    sources = _training(mixture)
    report = LeakReport()
    tested: list[tuple[str, str]] = []
    for name, labelled in tests.items():
        items = [item for item in labelled.items if item.split == "test" and not is_scene(item.image)]
        paths = [path for item in items for path in (item.image, item.second_image) if path is not None]
        report.tests[name] = len(paths)
        tested += [(name, path) for path in paths]
    if not tested:
        raise ConfigError(
            "there is no test image to compare with", where="--test", fix="name sets with a test split"
        )
    look = partial(_look, overlaps, threads, progress, report.unreadable)
    known = list(look(tested))
    index = None
    if overlaps:
        index = OverlapIndex(seen.landmarks for _, seen in known if seen.landmarks is not None)
    for source in sources:
        _compare(source, known, index, look, report)
    return report


def _training(mixture: str | Path) -> list[Source]:
    sources, errors = open_sources(mixture)
    if errors:
        raise errors[0]
    return [source for source in sources if source.split == "train"]


_Place = tuple[str, str]
"""Set and path of an image."""


def _look(
    overlaps: bool,
    threads: int | None,
    progress: Callable[[], None] | None,
    unreadable: list[str],
    places: Iterable[_Place],
) -> Iterator[tuple[_Place, _Seen]]:
    """Decode images in threads; yield where each is and what is seen, and note those that can't be read."""

    def one(place: _Place) -> _Seen | DataError:
        try:
            image, digest, _ = as_compared(place[1])
        except DataError as error:
            return error
        return _Seen(image_print(image, digest), landmarks(image) if overlaps else None)

    for place, found in in_threads(one, places, threads=threads):
        if progress is not None:
            progress()
        if isinstance(found, DataError):
            unreadable.append(str(found))
        else:
            yield place, found


def _compare(
    source: Source,
    known: list[tuple[_Place, _Seen]],
    index: OverlapIndex | None,
    look: Callable[[Iterable[_Place]], Iterator[tuple[_Place, _Seen]]],
    report: LeakReport,
) -> None:
    """Add the leaks of one source to the report."""
    names: dict[str, None] = {}  # the different images, in order; generated scenes are no files
    for row in range(len(source.records)):
        try:
            names.update((name, None) for name in source.records[row].images if not is_scene(name))
        except DataError as error:
            report.unreadable.append(str(error))
    prints = [seen.print for _, seen in known]
    seen_images = (
        _overlapping(path, seen, index) for (_, path), seen in look((source.name, n) for n in names)
    )
    leaking: set[str] = set()
    while chunk := list(islice(seen_images, _CHUNK)):
        report.images += len(chunk)
        for k, j in alike_pairs(prints, [own for _, own, _ in chunk], HASH_DISTANCE):
            _, own, found = chunk[j]
            found[k] = ("pixels" if prints[k].digest == own.digest else "picture", 1.0)
        for path, _, found in chunk:
            for k, (kind, share) in sorted(found.items()):
                (test_set, test_image), _ = known[k]
                report.leaks.append(Leak(path, source.name, test_image, test_set, kind, round(share, 4)))
                leaking.add(path)
    using = sum(uses for _, uses in _rows(source, leaking)) if leaking else 0
    report.records[source.name] = (using, len(source.records))


def _overlapping(
    path: str, seen: _Seen, index: OverlapIndex | None
) -> tuple[str, ImagePrint, dict[int, tuple[Kind, float]]]:
    """Return path, print and overlaps (test image → kind and share) of an image; its key points are not kept."""
    found: dict[int, tuple[Kind, float]] = {}
    if index is not None and seen.landmarks is not None:
        for overlap in index.find(seen.landmarks):
            if overlap.share >= LEAST_SHARE:
                found[overlap.known] = ("overlap", overlap.share)
    return path, seen.print, found


def _rows(source: Source, leaking: set[str]) -> Iterator[tuple[int, bool]]:
    """Yield the rows, and whether each uses a leaking image."""
    for row in range(len(source.records)):
        try:
            yield row, any(image in leaking for image in source.records[row].images)
        except DataError:
            yield row, False


def write_clean(mixture: str | Path, report: LeakReport, out: str | Path) -> dict[str, int]:
    """Write the mixture without the records that use a leaking image.

    `out` becomes a folder with an annotation file a set (rows as they were, image paths absolute) and `mixture.json`
    with the rates and tile limits of the original.

    Returns:
        Set → records that are left. A set of which nothing is left isn't written.

    Raises:
        ConfigError: `out` isn't empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("isn't empty", where=str(out), fix="name a new folder with --clean")
    leaking = {(leak.source, leak.image) for leak in report.leaks}
    path = Path(mixture)
    fields = read_mixture_table(path) if is_mixture(path) else {}
    left: dict[str, int] = {}
    table: dict[str, dict[str, Any]] = {}
    with files.atomic_dir(out) as temporary:
        for source in _training(mixture):
            own = {image for name, image in leaking if name == source.name}
            root, count = source.records.root, 0
            annotation = temporary / f"{files.inner_path(source.name)}.jsonl"
            annotation.parent.mkdir(parents=True, exist_ok=True)
            with annotation.open("w", encoding="utf-8") as file:
                for row, uses in _rows(source, own):
                    if not uses:
                        file.write(to_json(source.records.row(row)) + "\n")
                        count += 1
            left[source.name] = count
            if not count:
                annotation.unlink()
                continue
            kept = {
                key: value
                for key, value in fields.get(source.name, {}).items()
                if key not in ("root", "annotation", "length")
            }
            table[source.name] = {
                "repeat_time": source.rate,
                **kept,
                "root": str(root.resolve()) if isinstance(root, Path) else root,
                "annotation": annotation.relative_to(temporary).as_posix(),
                "length": count,
            }
            if source.channels is not None:
                table[source.name]["channels"] = channels_to_json(source.channels)
        files.write_json(temporary / "mixture.json", table)
    return left
