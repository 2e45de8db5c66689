"""`vitp data show`: instruction data as one HTML page; what labels and answers name is drawn over the pictures."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats import vitp_labels
from vitp.data.nodata import held_by, held_change, held_classes
from vitp.data.permutation import Permutation
from vitp.data.sources import Source, open_sources
from vitp.io.images import is_scene, load_image
from vitp.io.open_pixels import open_pixels
from vitp.io.parts import split_view
from vitp.records.channels import Channels
from vitp.records.instructions import IMAGE_MARK, InstructionRecord
from vitp.records.labels import IGNORE, LabelledImage
from vitp.report.charts import Bar, BarChart, Chart, Histogram
from vitp.report.page import Block, HtmlPage, Section, Text
from vitp.report.pictures import data_address
from vitp.report.places import (
    Colours,
    PlaceOutline,
    TextPart,
    box_corners,
    class_words,
    outlines_in,
    text_parts,
)

_COUNTED = 2000
"""Records that the charts are drawn from: a random sample of larger data."""

_LONGEST_SIDE = 480

RecordSize = Callable[[InstructionRecord, int | None], tuple[int, int]]
"""(record, most tiles an image of its set is cut into or None) → (tokens, tiles); see `lengths.RecordLength.both`."""


@dataclass(frozen=True)
class ShowSummary:
    """What a page shows.

    Attributes:
        path: Path of the page.
        shown: Records with pictures.
        counted: Records in the charts.
        unreadable: Messages of records that were drawn and could not be shown.
    """

    path: Path
    shown: int
    counted: int
    unreadable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RecordPicture:
    """One image of a record.

    Attributes:
        src, mask: Data addresses; the mask's is "" without one.
        width, height: Width and height of the image, in pixels.
        outlines: What is drawn over it.
        classes: Names of the classes in its mask.
    """

    src: str
    width: int
    height: int
    mask: str
    outlines: tuple[PlaceOutline, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class RecordCard:
    """All that the page shows of a record.

    Attributes:
        record: The record.
        pictures: Its images.
        turns: Questions and answers in parts.
        size: Tokens and tiles in words, or "".
    """

    record: InstructionRecord
    pictures: tuple[RecordPicture, ...]
    turns: tuple[tuple[list[TextPart], list[TextPart]], ...]
    size: str = ""

    @property
    def legend(self) -> list[str]:
        """The classes, each once, in order of appearance."""
        names = [outline.label for picture in self.pictures for outline in picture.outlines]
        names += [name for picture in self.pictures for name in picture.classes]
        names += [name for _, answer in self.turns for part in answer for row in part.rows for name in row]
        return list(dict.fromkeys(map(class_words, names)))

    @property
    def search(self) -> str:
        """What the filter of the page looks into."""
        record = self.record
        texts = [f"{turn.question} {turn.answer}" for turn in record.turns]
        return " ".join([record.id, record.source, *texts, *self.legend]).casefold()


@dataclass(frozen=True)
class RecordCards:
    """Records as cards: the block of the page."""

    kind: ClassVar[str] = "records"
    cards: Sequence[RecordCard]
    colours: Colours

    @property
    def has_outlines(self) -> bool:
        """Whether a switch for them is needed."""
        return any(picture.outlines for card in self.cards for picture in card.pictures)

    @property
    def has_masks(self) -> bool:
        """Whether a switch for them is needed."""
        return any(picture.mask for card in self.cards for picture in card.pictures)


def show_records(
    source: str | Path,
    out_html: str | Path,
    *,
    count: int = 24,
    seed: int = 0,
    measure: RecordSize | None = None,
    measured: str = "",
) -> ShowSummary:
    """Write a page with pictures, labels, questions, answers and charts of instruction data.

    Args:
        source: An annotation file, a mixture, or a compiled folder (then with masks, where it has some).
        out_html: The page, one file without external resources.
        count: Records to show, taken evenly from the sets.
        seed: Seed of the choice.
        measure: Tokens and tiles of a record; draws their histograms.
        measured: What counted them, in words: stands beside the histograms.

    Returns:
        What was shown.

    Raises:
        DataError: There is nothing that can be shown.
    """
    source = Path(source)
    sources, errors = open_sources(source)
    sources = [item for item in sources if len(item.records)]
    if not sources:
        raise errors[0] if errors else DataError("holds no rows", where=str(source), fix="name other data")
    numbers = _Numbers()
    for item in sources:
        numbers.add(item, max(1, _COUNTED // len(sources)), seed, measure)
    block, unreadable = _cards(sources, count, seed, _Labels(source), measure)
    if not block.cards:
        raise DataError(
            "no record can be shown", where=str(source), fix=f"run a check; the first says: {unreadable[0]}"
        )
    problems = [*map(str, errors), *unreadable]
    blocks: list[Block] = [block]
    if problems:
        lines = "\n".join(f"- {problem}" for problem in problems)
        blocks.insert(0, Text(f"{len(problems)} could not be shown:\n\n{lines}", "bad"))
    licences = [name for name, _ in numbers.licences.most_common(3)]
    records = sum(len(item.records) for item in sources)
    facts = [
        ("records", f"{records:,}"),
        ("sets", f"{len(sources)}"),
        ("questions each", f"{numbers.questions / max(1, numbers.records):.1f}"),
        *([("licence", ", ".join(licences))] if licences != ["not stated"] else []),
        *(("shown", text) for text in dict.fromkeys(map(_shown, sources)) if text),
        *([("charts from a random", f"{numbers.records:,}")] if numbers.records < records else []),
    ]
    title = source.resolve().name if source.is_dir() else source.stem
    sections = [Section("Numbers", numbers.charts(sources, measured)), Section("Records", blocks)]
    path = HtmlPage(title, sections, "Instruction data.", facts).write(out_html)
    return ShowSummary(path, len(block.cards), numbers.records, tuple(unreadable))


def _shown(source: Source) -> str:
    """Return which bands of a source are shown as red, green and blue, or how values are; "": they are pictures."""
    channels = source.channels
    if channels is not None:
        return ", ".join(channels.bands[number] for number in channels.shown)
    try:
        first = source.records[0].images[:1]
        with contextlib.ExitStack() as stack:
            wide = [
                one
                for one in first
                if not is_scene(one) and not stack.enter_context(open_pixels(split_view(one)[0])).is_picture
            ]
    except DataError:
        return ""  # the record's card tells
    return "each file between its own 2nd and 98th percentile" if wide else ""


@dataclass
class _Numbers:
    """What the charts are drawn from."""

    records: int = 0
    questions: int = 0
    tokens: list[int] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)

    def add(self, item: Source, most: int, seed: int, measure: RecordSize | None) -> None:
        """Count a random sample of a source."""
        for row, _ in zip(_sample(item, seed), range(most), strict=False):
            try:
                record = item.records[row]
                counts = None if measure is None else measure(record, item.max_tiles)
            except DataError:
                continue  # `vitp data check` is the place that lists these
            self.records += 1
            self.questions += len(record.turns)
            self.licences[record.licence or "not stated"] += 1
            self.classes.update(region.label for region in record.regions)
            self.words += [len(turn.answer.split()) for turn in record.turns]
            self.kinds.update(answer_kind(turn.answer) for turn in record.turns)
            if counts is not None:
                self.tokens.append(counts[0])
                self.tiles.append(counts[1])

    def charts(self, sources: Sequence[Source], measured: str) -> list[Block]:
        """Return the charts of what there is."""
        charts: list[Chart] = []
        sets = Counter({item.name: len(item.records) for item in sources}) if len(sources) > 1 else Counter()
        for title, counts in (
            ("Records by set", sets),
            ("Answers by kind", self.kinds),
            ("Labelled objects by class", self.classes),
        ):
            if counts:
                charts.append(counted_bars(title, list(counts.items())))
        for title, values, unit, note in (
            ("Words in an answer", self.words, "words", ""),
            ("Tokens in a record", self.tokens, "tokens", measured),
            ("Tiles in a record", self.tiles, "tiles", measured),
        ):
            if values:
                note = " · ".join(part for part in (f"median {np.median(values):,.0f}", note) if part)
                charts.append(Histogram(title=title, values=values, unit=unit, note=note))
        return list(charts)


def counted_bars(title: str, counts: Sequence[tuple[str, int]], *, most: int = 8) -> BarChart:
    """Return named counts as bars with their shares, longest first; what is beyond `most` is added up."""
    ordered = sorted(counts, key=lambda item: (-item[1], item[0]))
    rest, total = sum(count for _, count in ordered[most:]), sum(count for _, count in ordered)
    shown = [*ordered[:most], *([("others", rest)] if rest else [])]
    bars = [
        Bar(name, count, text="<1%" if count < 0.005 * total else f"{count / total:.0%}")
        for name, count in shown
    ]
    return BarChart(title=title, bars=bars, note=f"{total:,} in all")


def _sample(item: Source, seed: int) -> Iterator[int]:
    order = Permutation(len(item.records), seed, "show", item.name)
    return (order[i] for i in range(len(item.records)))


def answer_kind(answer: str) -> str:
    """Return what sort of answer a text is, by its form."""
    text = answer.strip().rstrip(".")
    words = text.split()
    if "<box>" in text or "<quad>" in text or "{<" in text:
        return "places"
    if re.fullmatch(r"(yes|no)\b.{0,40}", text, re.IGNORECASE | re.DOTALL):
        return "yes or no"
    if re.fullmatch(r"[\d.,]+\s*%?", text):
        return "number"
    if ";" in text and not text.endswith(";") and len(text.split(";")) > 2:
        return "grid or cells"
    if len(words) <= 3:
        return "word or two"
    return "sentence" if len(words) <= 25 else "long text"


class _Labels:
    """The label set of a compiled folder, where there is one."""

    def __init__(self, folder: Path) -> None:
        self.classes: tuple[str, ...] = ()
        self._items: dict[str, LabelledImage] = {}
        if (folder / "labels" / "set.json").is_file():
            labelled = vitp_labels.read_compiled(folder)
            self.classes = labelled.semantic_classes
            self._items = {_picture_key(item.image): item for item in labelled.items}

    def of(self, record: InstructionRecord) -> LabelledImage | None:
        """Return the labels of a record's first image."""
        return self._items.get(_picture_key(record.images[0])) if record.images else None


def _picture_key(address: str) -> str:
    """Return what a record's image and a labelled image are matched by: the path without detours."""
    return address if is_scene(address) else str(Path(address).resolve())


def _cards(
    sources: Sequence[Source], count: int, seed: int, labels: _Labels, measure: RecordSize | None
) -> tuple[RecordCards, list[str]]:
    """Take records from the sources in turns until there are enough; return also why some can't be shown."""
    colours, cards, unreadable = Colours(), list[RecordCard](), list[str]()
    queues = [(item, _sample(item, seed)) for item in sources]
    # Data of which nothing can be shown is not read to its end.
    while queues and len(cards) < count and len(unreadable) < 4 * count:
        for item, rows in list(queues):
            row = next(rows, None)
            if row is None:
                queues.remove((item, rows))
                continue
            try:
                record, size = item.records[row], ""
                if measure is not None:
                    tokens, tiles = measure(record, item.max_tiles)
                    size = f"{tokens:,} token{'s' * (tokens != 1)}, {tiles:,} tile{'s' * (tiles != 1)}"
                own = labels.of(record)
                cards.append(
                    record_card(record, colours, own, labels.classes, size=size, channels=item.channels)
                )
            except DataError as error:
                unreadable.append(str(error))
            if len(cards) >= count:
                break
    return RecordCards(cards, colours), unreadable


def record_card(
    record: InstructionRecord,
    colours: Colours,
    labels: LabelledImage | None = None,
    classes: tuple[str, ...] = (),
    *,
    size: str = "",
    channels: Channels | None = None,
) -> RecordCard:
    """Return a record's card.

    Args:
        record: The record.
        colours: Colours of the page.
        labels: The labelled image it was made from; gives the masks.
        classes: Names of the values of its semantic mask.
        size: Tokens and tiles, in words.
        channels: What is seen of the images' bands, of which the composite is shown; None: they are pictures.

    Raises:
        DataError: An image can't be read.
    """
    pictures = []
    for number, address in enumerate(record.images):
        image = load_image(address, channels=channels)
        mask, names = _mask(labels, number, classes, colours, channels)
        outlines = [
            PlaceOutline(region.label, region.quad or box_corners(region.box))
            for region in record.regions
            if region.image == number
        ]
        # Coordinates in text don't say which image they mean, so they are drawn on each.
        for turn, pair in enumerate(record.turns, 1):
            for text in (pair.question, pair.answer):
                outlines += outlines_in(text, image.size, turn)
        src = data_address(image, longest=_LONGEST_SIDE)
        pictures.append(RecordPicture(src, *image.size, mask, tuple(outlines), names))
    turns = tuple((_question_parts(turn.question), text_parts(turn.answer)) for turn in record.turns)
    return RecordCard(record, tuple(pictures), turns, size)


def _question_parts(text: str) -> list[TextPart]:
    """Return a question in parts. Where the only mark opens it, the picture beside it says as much."""
    opening = text.lstrip().startswith(IMAGE_MARK) and text.count(IMAGE_MARK) == 1
    return [part for part in text_parts(text) if not (opening and part.kind == "mark")]


def _mask(
    labels: LabelledImage | None,
    number: int,
    classes: tuple[str, ...],
    colours: Colours,
    channels: Channels | None,
) -> tuple[str, tuple[str, ...]]:
    """Return the data address of the mask of a record's `number`-th image, "" without one, and the classes in it."""
    if labels is not None and number == 0 and labels.semantic is not None:
        mask_HW = held_classes(labels, held_by(labels, channels))
    elif labels is not None and number == 1 and labels.change is not None:
        mask_HW, classes = held_change(labels, held_by(labels, channels)), ("", "changed")
    else:
        return "", ()
    rgba_HW4 = np.zeros((*mask_HW.shape, 4), np.uint8)
    names = []
    for value in np.unique(mask_HW).tolist():
        if value == IGNORE or not classes[value : value + 1] or not classes[value]:
            continue
        names.append(classes[value])
        rgba_HW4[mask_HW == value] = (*bytes.fromhex(colours(classes[value])[1:]), 255)
    return data_address(Image.fromarray(rgba_HW4), longest=_LONGEST_SIDE), tuple(names)
