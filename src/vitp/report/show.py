"""`vitp data show`: instruction data as one HTML page that needs nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files as package_files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from vitp.core.errors import DataError
from vitp.core.files import write_text
from vitp.data.formats import vitp_labels
from vitp.data.permutation import Permutation
from vitp.data.sources import Source, open_sources
from vitp.records.instructions import InstructionRecord
from vitp.records.labels import LabelledImage
from vitp.report.show_card import Card, Colours, make_card, picture_key
from vitp.report.show_charts import Chart, bar_list, histogram

COUNTED = 2000
"""Records that the charts are drawn from: a random sample of larger data."""

Measure = Callable[[InstructionRecord, int | None], tuple[int, int]]
"""(record, most tiles an image of its set is cut into or None) → (tokens, tiles); see `lengths.RecordLength.both`."""

_TEMPLATE = "data_show.html.j2"


@dataclass(frozen=True)
class ShowSummary:
    """What a page shows.

    Attributes:
        path: Of the page.
        shown: Records with pictures.
        counted: Records in the charts.
        unreadable: Messages of records that were drawn and could not be shown.
    """

    path: Path
    shown: int
    counted: int
    unreadable: tuple[str, ...]


def show_records(
    source: str | Path,
    out_html: str | Path,
    *,
    count: int = 24,
    seed: int = 0,
    measure: Measure | None = None,
    measured: str = "",
) -> ShowSummary:
    """Write a page with pictures, labels, questions, answers and charts of instruction data.

    Args:
        source: An annotation file, a mixture, or a compiled folder (then with masks, where it has some).
        out_html: The page, one file without external resources.
        count: Records to show, taken evenly from the sets.
        seed: Of the choice.
        measure: Tokens and tiles of a record; draws their histograms.
        measured: What counted them, in words: stands beside the histograms.

    Returns:
        What was shown.

    Raises:
        DataError: There is nothing that can be shown.
    """
    sources, errors = open_sources(source)
    sources = [item for item in sources if len(item.records)]
    if not sources:
        raise errors[0] if errors else DataError("holds no rows", where=str(source), fix="name other data")
    labels = _Labels(Path(source))
    numbers = _Numbers()
    for item in sources:
        _count_source(item, numbers, max(1, COUNTED // len(sources)), seed, measure)
    cards, unreadable = _cards(sources, count, seed, labels, measure)
    if not cards:
        raise DataError(
            "no record can be shown", where=str(source), fix=f"run a check; the first says: {unreadable[0]}"
        )
    problems = [*map(str, errors), *unreadable]
    write_text(out_html, _render(Path(source), sources, numbers, cards, problems, measured))
    return ShowSummary(Path(out_html), len(cards), numbers.records, tuple(unreadable))


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


class _Labels:
    """The label set of a compiled folder, where there is one."""

    def __init__(self, folder: Path) -> None:
        self.classes: tuple[str, ...] = ()
        self._items: dict[str, LabelledImage] = {}
        if (folder / "labels" / "set.json").is_file():
            labelled = vitp_labels.read_compiled(folder)
            self.classes = labelled.semantic_classes
            self._items = {picture_key(item.image): item for item in labelled.items}

    def of(self, record: InstructionRecord) -> LabelledImage | None:
        """Return the labels of a record's first image."""
        return self._items.get(picture_key(record.images[0])) if record.images else None


def _sample(item: Source, seed: int) -> Iterator[int]:
    order = Permutation(len(item.records), seed, "show", item.name)
    return (order[i] for i in range(len(item.records)))


def _count_source(
    item: Source,
    numbers: _Numbers,
    most: int,
    seed: int,
    measure: Measure | None,
) -> None:
    for row, _ in zip(_sample(item, seed), range(most), strict=False):
        try:
            record = item.records[row]
            counts = None if measure is None else measure(record, item.max_tiles)
        except DataError:
            continue  # the check is the place that lists these
        numbers.records += 1
        numbers.questions += len(record.turns)
        numbers.licences[record.licence or "not stated"] += 1
        numbers.classes.update(region.label for region in record.regions)
        for turn in record.turns:
            numbers.words.append(len(turn.answer.split()))
            numbers.kinds[answer_kind(turn.answer)] += 1
        if counts is not None:
            numbers.tokens.append(counts[0])
            numbers.tiles.append(counts[1])


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


def _cards(
    sources: Sequence[Source],
    count: int,
    seed: int,
    labels: _Labels,
    measure: Measure | None,
) -> tuple[list[Card], list[str]]:
    """Draw records from the sources in turns until there are enough."""
    colours, cards, unreadable = Colours(), list[Card](), list[str]()
    queues = [(item, _sample(item, seed)) for item in sources]
    while queues and len(cards) < count and len(unreadable) < 4 * count:
        for item, rows in list(queues):
            row = next(rows, None)
            if row is None:
                queues.remove((item, rows))
                continue
            try:
                record = item.records[row]
                facts = () if measure is None else (_size(*measure(record, item.max_tiles)),)
                cards.append(
                    make_card(record, colours, labels=labels.of(record), classes=labels.classes, facts=facts)
                )
            except DataError as error:
                unreadable.append(str(error))
            if len(cards) >= count:
                break
    return cards, unreadable


def _size(tokens: int, tiles: int) -> str:
    return f"{tokens:,} token{'s' * (tokens != 1)}, {tiles:,} tile{'s' * (tiles != 1)}"


def _charts(sources: Sequence[Source], numbers: _Numbers, measured: str) -> list[Chart]:
    charts = []
    if len(sources) > 1:
        charts.append(bar_list("Records by set", [(s.name, len(s.records)) for s in sources]))
    if numbers.kinds:
        charts.append(bar_list("Answers by kind", list(numbers.kinds.items())))
    if numbers.classes:
        charts.append(bar_list("Labelled objects by class", list(numbers.classes.items())))
    if numbers.words:
        charts.append(histogram("Words in an answer", numbers.words, "words"))
    if numbers.tokens:
        sizes = [
            histogram("Tokens in a record", numbers.tokens, "tokens"),
            histogram("Tiles in a record", numbers.tiles, "tiles"),
        ]
        charts += [replace(chart, note=f"{chart.note}{measured and f' · {measured}'}") for chart in sizes]
    return charts


def _render(
    source: Path,
    sources: Sequence[Source],
    numbers: _Numbers,
    cards: Sequence[Card],
    problems: Sequence[str],
    measured: str,
) -> str:
    text = (package_files("vitp") / "report" / "templates" / _TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    records = sum(len(item.records) for item in sources)
    return environment.from_string(text).render(
        title=source.resolve().name if source.is_dir() else source.stem,
        records=records,
        sampled=numbers.records < records,
        counted=numbers.records,
        sets=[item.name for item in sources],
        per_record=numbers.questions / max(1, numbers.records),
        licences=[name for name, _ in numbers.licences.most_common(3)],
        charts=_charts(sources, numbers, measured),
        cards=cards,
        has_masks=any(picture.mask for card in cards for picture in card.pictures),
        has_shapes=any(picture.shapes for card in cards for picture in card.pictures),
        problems=problems,
    )
