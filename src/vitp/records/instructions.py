"""`InstructionRecord`: the only way into pretraining. Readers make it, the mixture samples it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vitp.core.errors import DataError
from vitp.core.files import to_json

IMAGE_MARK = "<image>"
"""Marks the place of one image in the text of a question."""

COORDINATE_RANGE = 1000
"""Coordinates in text are integers on 0..1000 of the whole image."""

_KINDS = ("question", "answer")


def text_problem(text: str, *, file_name: bool = False) -> str | None:
    """Return why no tokenizer and no UTF-8 file can take a text: half a character or a NUL; None: nothing is wrong.

    Args:
        text: Text to look at.
        file_name: It is, or comes from, the name of a file. Bytes of a name that aren't UTF-8 stand in it as U+DC80 to
            U+DCFF; no tokenizer sees it, and JSON has an escape for them.
    """
    if not isinstance(text, str):
        return "is no text"
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode(errors="surrogateescape" if file_name else "strict")
    except UnicodeEncodeError as error:
        return f"holds half a character (the lone surrogate U+{ord(text[error.start]):04X})"
    return None


def printable(text: str) -> str:
    """Return a text that a message can hold: what no terminal can write is escaped."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer. The loss is taken on the answer only."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Region:
    """A labelled place in one of a record's images, for drawing and for region tasks.

    Attributes:
        label: Class name.
        box: x1, y1, x2, y2 as integers on 0..1000 of the whole image.
        quad: Corners of an oriented box, x1, y1, …, x4, y4 on the same range.
        image: Which of the record's images.
    """

    label: str
    box: tuple[int, int, int, int]
    quad: tuple[int, ...] | None = None
    image: int = 0


@dataclass(frozen=True, slots=True)
class InstructionRecord:
    """Images and what is asked and answered about them.

    Attributes:
        id: Unique within its set.
        images: Paths (or `scene:` addresses) in the order of the `<image>` marks.
        turns: Questions and answers. The marks stand in the first question.
        sizes: Width and height in pixels of each image, where known.
        independent: The turns are separate questions about the same images: each sees the images and
            itself only, though the images are encoded once. False: a conversation, each turn sees the ones
            before it.
        regions: Labelled places, optional.
        source: Name of the set it comes from.
        licence: Licence of the data, as its publisher states it.
        origin: File and line, for messages.

    Raises:
        DataError: The marks and the images differ in number, or a turn has an empty question or answer.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    sizes: tuple[tuple[int, int], ...] | None = None
    independent: bool = False
    regions: tuple[Region, ...] = ()
    source: str = ""
    licence: str = ""
    origin: str = ""

    def __post_init__(self) -> None:
        where = self.name
        self._check_texts()
        if not self.turns:
            raise DataError("has no question", where=where, fix="remove the row or add a conversation")
        for number, turn in enumerate(self.turns, 1):
            if not turn.answer.strip():
                raise DataError(f"answer {number} is empty", where=where, fix="remove the turn or fill it in")
            if IMAGE_MARK in turn.answer:
                what = f"answer {number} holds {IMAGE_MARK}"
                raise DataError(what, where=where, fix="marks belong into questions")
        marks = sum(turn.question.count(IMAGE_MARK) for turn in self.turns)
        if marks != len(self.images):
            what = f"{marks} {IMAGE_MARK} marks but {len(self.images)} images"
            raise DataError(what, where=where, fix="give one mark an image")
        if self.independent and any(IMAGE_MARK in turn.question for turn in self.turns[1:]):
            what = "independent questions share the images of the first one, but a later one has a mark"
            raise DataError(what, where=where, fix="move the marks into the first question")
        if self.sizes is not None and len(self.sizes) != len(self.images):
            raise DataError("width and height don't fit the number of images", where=where)

    def _check_texts(self) -> None:
        turns = (
            (f"{kind} {n}", t)
            for n, turn in enumerate(self.turns, 1)
            for kind, t in zip(_KINDS, (turn.question, turn.answer), strict=True)
        )
        regions = ((f"the label of region {n}", region.label) for n, region in enumerate(self.regions, 1))
        named = (("its licence", self.licence),)
        images = (("an image's address", image) for image in self.images)
        of_files = (*images, ("its id", self.id), ("its source", self.source))
        problems = (
            *((part, text_problem(text)) for part, text in (*turns, *regions, *named)),
            *((part, text_problem(text, file_name=True)) for part, text in of_files),
        )
        for part, problem in problems:
            if problem is not None:
                what = f"{part} {problem}"
                raise DataError(what, where=printable(self.name), fix="mend the text or remove the row")

    @property
    def name(self) -> str:
        """How messages call this record: origin and id."""
        return f"{self.origin} (id {self.id})" if self.origin else f"record {self.id}"

    @property
    def prefix(self) -> str:
        """Text of the first question up to and with the last image mark and the line break behind it."""
        question = self.turns[0].question
        end = question.rfind(IMAGE_MARK)
        if end < 0:
            return ""
        end += len(IMAGE_MARK)
        return question[: end + 1] if question[end : end + 1] == "\n" else question[:end]

    def with_turns(self, turns: tuple[Turn, ...]) -> InstructionRecord:
        """Return the record with other turns; the first must still hold the image marks."""
        return replace(self, turns=turns)


def record_to_json(record: InstructionRecord) -> dict[str, Any]:
    """Return the canonical JSON object: the InternVL form plus optional keys of ours.

    One image gives `"image": path, "width": w, "height": h`; several give lists.
    """
    one = len(record.images) == 1
    row: dict[str, Any] = {"id": record.id}
    if record.images:
        row["image"] = record.images[0] if one else list(record.images)
        if record.sizes:
            widths, heights = [s[0] for s in record.sizes], [s[1] for s in record.sizes]
            row["width"] = widths[0] if one else widths
            row["height"] = heights[0] if one else heights
    row["conversations"] = [
        message
        for turn in record.turns
        for message in ({"from": "human", "value": turn.question}, {"from": "gpt", "value": turn.answer})
    ]
    if record.independent:
        row["independent"] = True
    if record.regions:
        row["regions"] = [
            {"label": r.label, "box": list(r.box)}
            | ({"quad": list(r.quad)} if r.quad else {})
            | ({"image": r.image} if r.image else {})
            for r in record.regions
        ]
    if record.source:
        row["source"] = record.source
    if record.licence:
        row["licence"] = record.licence
    return row


def to_line(record: InstructionRecord) -> str:
    """Return the record as one line of JSON Lines, without the line break."""
    return to_json(record_to_json(record))
