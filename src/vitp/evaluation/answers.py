"""Asks a vision-language model questions whose answers are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from PIL import Image
from pydantic import Field

from vitp.data.synthesis.build import SynthesisConfig, score_answer
from vitp.data.synthesis.scene_records import LabelledRecords
from vitp.inference.ask import Assistant
from vitp.records.instructions import InstructionRecord
from vitp.records.labels import LabelledSet

_LONGEST_ANSWER = 160
"""Tokens; a 6 × 6 grid of long class names needs about that many."""


@dataclass(frozen=True)
class Answered:
    """One question, its answer and how right it is.

    Attributes:
        image: Path or address of the first image.
        question, expected, answer: Texts; the question without image marks.
        task: Task of the question, such as "box"; "" where it isn't known.
        score: 0..1, see `vitp.data.synthesis.scoring`; None where the task isn't known.
    """

    image: str
    question: str
    expected: str
    answer: str
    task: str = ""
    score: Annotated[float, Field(ge=0, le=1)] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `samples.json` of a run holds."""
        return asdict(self)


def questions_of(labelled: LabelledSet, count: int) -> Iterator[tuple[InstructionRecord, str]]:
    """Yield `count` (record with one question, task) pairs over the images of a set, tasks as they come.

    Args:
        labelled: Images with labels, of one split.
        count: Questions.
    """
    records = LabelledRecords(labelled, seed=0, config=SynthesisConfig())
    number = 0
    for index in range(len(records)):
        record, tasks = records.with_tasks(index)
        for place, (turn, task) in enumerate(zip(record.turns, tasks, strict=True)):
            if (place + index) % 3:  # two or three questions an image: more images, and all tasks
                continue
            # Of a record's questions only the first has the images' marks.
            marks = "" if turn.question.startswith(record.prefix) else record.prefix
            yield record.with_turns((type(turn)(marks + turn.question, turn.answer),)), task
            number += 1
            if number == count:
                return


def ask_all(
    assistant: Assistant,
    questions: Iterable[tuple[InstructionRecord, str]],
    *,
    shown: Image.Image | None = None,
) -> list[Answered]:
    """Ask greedily, and score by task (an empty task is not scored).

    Args:
        assistant: The model.
        questions: Records with one question, and its task.
        shown: Picture that the model sees in place of each of the record's images.
    """
    answered = []
    for record, task in questions:
        turn = record.turns[0]
        images = list(record.images) if shown is None else [shown] * len(record.images)
        answer = assistant.answer(images, turn.question, max_new_tokens=_LONGEST_ANSWER)
        score = score_answer(task, answer, turn.answer) if task else None
        question = turn.question[len(record.prefix) :]
        answered.append(Answered(record.images[0], question, turn.answer, answer, task, score))
    return answered


def mean_by_task(answered: Iterable[Answered]) -> dict[str, tuple[float, int]]:
    """Return task → (mean score, number of questions), in alphabetical order."""
    scores: dict[str, list[float]] = {}
    for one in answered:
        if one.score is not None:
            scores.setdefault(one.task, []).append(one.score)
    return {task: (sum(values) / len(values), len(values)) for task, values in sorted(scores.items())}
