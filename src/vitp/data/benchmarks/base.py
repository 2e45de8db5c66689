"""`Benchmark`: what is fixed about a downstream set; `Reading`: reading its published folder, strictly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import update_wrapper
from inspect import signature
from pathlib import Path
from typing import Any, Literal, NoReturn

from vitp.core.errors import ConfigError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.empty import is_empty
from vitp.data.formats.pixel_masks import MaskFile
from vitp.data.formats.walk import list_images
from vitp.data.published import PublishedSet, any_of
from vitp.records.labels import LabelledImage, LabelledSet

Protocol = Literal["official", "paper"]
_PROTOCOLS: tuple[Protocol, ...] = ("official", "paper")

Values = tuple[tuple[int, int], ...]
"""(value in a mask, class index) pairs; colours are red << 16 | green << 8 | blue."""


@dataclass(frozen=True, kw_only=True)
class Benchmark(PublishedSet):
    """A downstream set and how it is evaluated.

    Attributes:
        task: Task of `vitp finetune`.
        modality: "RGB", "SAR", "RGB pair", "CT", "MRI" or "X-ray".
        classes: Names, in the order of the published evaluation.
        counts: Official split → images (volumes for CT and MRI) that it has.
        metric: What the paper's table reports.
        train_on: Official splits that the paper trains on.
        test_on: Official split that the paper's score is of.
        test_labels: The labels of the official test split are published; otherwise a server scores.
        palette: RGB of each class, where the set has one.
        licence: As its publisher states it; empty where nothing is stated.
        crop: Side of the crops that `vitp data prepare` makes; None: images are used whole.
        overlap: Pixels that neighbouring crops share.
        min_visible: Share of an object that a crop must hold for the object not to be difficult in it.
        crop_test: Test images are cut as well, without overlap; otherwise a window slides over them.
        window: Side of the window at test time; None: the whole image.
        stride: Pixels between two windows.
        volumes: Its images are slices of volumes, and its counts those of volumes.
        drop_empty: Training images without objects are left out under the paper's protocol, as the published code does.
        notes: What else must be known: quirks of the files, disagreements about the numbers.
    """

    task: Literal["detection", "oriented", "instance", "segmentation", "change"]
    modality: str
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    metric: str
    train_on: tuple[str, ...] = ("train",)
    test_on: str = "test"
    test_labels: bool = True
    palette: tuple[tuple[int, int, int], ...] = ()
    licence: str = ""
    crop: int | None = None
    overlap: int = 0
    min_visible: float = 0.4
    crop_test: bool = False
    window: int | None = None
    stride: int | None = None
    volumes: bool = False
    drop_empty: bool = False
    notes: tuple[str, ...] = ()

    @property
    def window_overlap(self) -> float:
        """Share of a test window that the next one sees again, as `TestSettings.overlap` has it."""
        if self.window is None or self.stride is None:
            return 0.0
        return (self.window - self.stride) / self.window

    @property
    def colours(self) -> Values:
        """Colour → class, for masks that are painted with the palette."""
        return tuple((r << 16 | g << 8 | b, index) for index, (r, g, b) in enumerate(self.palette))


@dataclass
class Reading:
    """One reading of a published folder: every missing file is an error that names it, or a finding where the options
    say `partial`.

    Attributes:
        facts: Facts of the set.
        root: The download.
        options: Name, licence, splits; the set's own name and licence by default.
        protocol: Which splits `finish` makes, see `under_protocol`.
        builder: Collects the images.
        missing: Files that should be there and aren't, relative to the root.
    """

    facts: Benchmark
    root: Path
    options: ReadOptions
    protocol: Protocol = "official"
    builder: SetBuilder = field(init=False)
    missing: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.options = replace(
            self.options,
            name=self.options.name or self.facts.name,
            licence=self.options.licence or self.facts.licence,
        )
        self.builder = SetBuilder(self.root, self.options, splits_from="the published splits")

    def folder(self, *places: str) -> Path:
        """Return the first of the places (relative to the root) that is a folder with something in it.

        Raises:
            DataError: None is; the message names the first.
        """
        folders = [place for place in places if (self.root / place).is_dir()]
        for place in folders:
            if any((self.root / place).iterdir()):
                return self.root / place
        if folders:
            self.refuse(f"the folder {folders[0]}/ is empty")
        return self.refuse(f"the folder {any_of(places)}/ is missing")

    def file(self, *places: str) -> Path:
        """Return the first of the places (relative to the root) that is a file.

        Raises:
            DataError: None is; the message names the first.
        """
        for place in places:
            if (self.root / place).is_file():
                return self.root / place
        return self.refuse(f"{any_of(places)} is missing")

    def base(self, inside: str, *bases: str) -> str:
        """Return the first of the bases ("" or "folder/", below the root) that holds a folder, or else the first."""
        return next((base for base in bases if (self.root / base / inside).is_dir()), bases[0])

    def has(self, *paths: Path) -> bool:
        """Return whether files are there; each that isn't is remembered and spoils `finish`."""
        gone = [path for path in paths if not path.is_file()]
        for path in gone:
            self.lacks(path)
        return not gone

    def lacks(self, path: Path) -> None:
        """Remember that a file is missing."""
        place = self.builder.place(path)
        if place not in self.missing:
            self.missing.append(place)

    def add(
        self, image: Path, split: str | None, mask: Path | None = None, values: Values = (), group: str = ""
    ) -> None:
        """Add an image that can be read.

        Args:
            image: The file.
            split: Official split; None where there is none.
            mask: File with the class of each pixel; None: the image isn't labelled.
            values: (value in the mask, class index) pairs.
            group: Images of one group are never split.
        """
        if (size := self.builder.size_of(image)) is not None:
            semantic = None if mask is None else MaskFile(str(mask), values)
            self.builder.add(image, size, split=split, semantic=semantic, group=group)

    def add_folder(
        self, split: str, images: Path, masks: Path | None = None, values: Values = (), group: str = ""
    ) -> None:
        """Add the images of a folder; each has a mask of the same name in `masks`, unless that is None."""
        for image in list_images(images):
            mask = None if masks is None else masks / image.name
            if mask is None or self.has(mask):
                self.add(image, split, mask, values, group)
        if masks is not None:
            self.has(*(images / mask.name for mask in list_images(masks)))

    def refuse(self, what: str) -> NoReturn:
        """Raise that the download isn't complete, and say where the set is published.

        Raises:
            DataError: Always.
        """
        self.facts.refuse(self.root, what)

    def refuse_missing(self, hint: str = "") -> None:
        """Stop before more work is done if a file is missing, unless the options say `partial`.

        Raises:
            DataError: The message names the first, and ends with the hint.
        """
        if self.missing and not self.options.partial:
            others = len(self.missing) - 1
            more = f" (and {others:,} other files)" if others else ""
            self.refuse(f"{self.missing[0]} is missing{more}{hint}")

    def finish(
        self, *, object_classes: Iterable[str] = (), semantic_classes: Iterable[str] = ()
    ) -> LabelledSet:
        """Return what was read, under the protocol.

        Raises:
            DataError: Files are missing; the message names the first.
            ConfigError: There is no such protocol.
        """
        self.refuse_missing("; partial=true goes on without")
        for place in self.missing:
            self.builder.note(place, "is missing; left out")
        if not self.builder.count:
            self.refuse("holds no image")
        built = self.builder.build(object_classes=object_classes, semantic_classes=semantic_classes)
        return under_protocol(built, self.facts, self.protocol)


def reader_of(facts: Benchmark) -> Callable[[Callable[..., LabelledSet]], Callable[..., LabelledSet]]:
    """Turn `read(reading, *, own options)` into the reader of a published set.

    The reader takes the download's folder, `ReadOptions`, a protocol (see `under_protocol`) and the function's own
    options. It raises DataError where a file is missing or can't be
    understood, and ConfigError where an option has an unknown value.
    """

    def decorate(read: Callable[..., LabelledSet]) -> Callable[..., LabelledSet]:
        def reader(
            root: Path,
            options: ReadOptions = ReadOptions(),
            *,
            protocol: Protocol = "official",
            **own: Any,
        ) -> LabelledSet:
            return read(Reading(facts, root, options, protocol), **own)

        shared = signature(reader)
        parameters = [*list(shared.parameters.values())[:-1], *list(signature(read).parameters.values())[1:]]
        update_wrapper(reader, read)
        # `read_labels` tells by the signature which options a format has.
        reader.__signature__ = shared.replace(parameters=parameters)  # type: ignore[attr-defined]
        return reader

    return decorate


def under_protocol(labelled: LabelledSet, facts: Benchmark, protocol: str) -> LabelledSet:
    """Return the set with the splits of a protocol.

    "official" leaves the published splits. "paper" makes `train_on` the training split and `test_on` the test
    split; official validation images that are trained on or tested on stay visible as `val` a second time, to
    watch a run with, not to choose weights by.

    Raises:
        ConfigError: There is no such protocol.
    """
    if protocol not in _PROTOCOLS:
        fix = f"choose {' or '.join(_PROTOCOLS)}"
        raise ConfigError(f'no protocol "{protocol}"', where=facts.name, fix=fix)
    if protocol == "official":
        return labelled
    items: list[LabelledImage] = []
    empty = 0
    for item in labelled.items:
        if item.split == "val":
            items.append(item)
        if item.split in facts.train_on:
            if facts.drop_empty and is_empty(item):
                empty += 1
            else:
                items.append(replace(item, split="train"))
        elif item.split == facts.test_on:
            items.append(replace(item, split="test"))
    findings = list(labelled.findings)
    if empty:
        findings.append(f"{empty:,} training images without objects; left out")
    if any(item.split == "val" for item in items):
        if "val" in facts.train_on:
            findings.append("val: these images are trained on as well; choose no weights by them")
        elif facts.test_on == "val":
            findings.append("val: these are the test images, as in the paper; choose no weights by them")
    return replace(labelled, items=items, findings=tuple(findings))


def count_problems(labelled: LabelledSet, facts: Benchmark) -> list[str]:
    """Return a line for each official split whose number of images (groups, of volumes) isn't the published one."""
    parts = {split: [item for item in labelled.items if item.split == split] for split in facts.counts}
    if facts.volumes:
        return differing_counts({s: len({item.group for item in part}) for s, part in parts.items()}, facts)
    return differing_counts({split: len(part) for split, part in parts.items()}, facts)


def differing_counts(found: Mapping[str, int], facts: Benchmark) -> list[str]:
    """Return a line for each official split whose count, of images or of volumes, isn't the published one."""
    unit = "volumes" if facts.volumes else "images"
    return [
        f"{split}: {found[split]:,} {unit}, {count:,} are published"
        for split, count in facts.counts.items()
        if found[split] != count
    ]


def option(name: str, value: Any, choices: tuple[str, ...], where: str) -> str:
    """Return an option's value.

    Raises:
        ConfigError: It is none of the choices.
    """
    if value not in choices:
        raise ConfigError(f'{name} "{value}"', where=where, fix=f"choose one of {', '.join(choices)}")
    return str(value)
