"""Whether a vision-language model looks at the place that it is asked about.

Questions with one short right answer (the class of a cell, of a point, of a box's content) are asked of held-out
images, with the right image, with the image of another record, and blind: with all image tokens dropped. A model that
guesses from the question and from what is common does as well blind; one that sees the image but not the place does
better with the right image, and not as well as one that looks. Where it looks is measured by its attention from the
answer's first token, and by greying out the place asked about against another of the same size.

An answer is right when each of its tokens is the likeliest one after those before it: exactly when greedy decoding
writes it. All questions are scored by class, so that a frequent answer counts no more than a rare one. Boxes are
decoded and right from an intersection over union of 0.5 on.

Shapes: S supervised tokens, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from vitp.core.errors import ConfigError, DataError
from vitp.data.asked_places import Spot, asked_place
from vitp.data.chat import ChatTokenizer
from vitp.data.packing import pack
from vitp.data.seen import PICTURES, SeenBands
from vitp.data.synthesis.build import QUESTION_TASKS, SynthesisConfig, score_answer
from vitp.data.synthesis.scene_records import LabelledRecords
from vitp.data.tiling import cut_tiles
from vitp.inference.ask import Assistant
from vitp.models.vlm import VisionLanguageModel
from vitp.records.instructions import InstructionRecord
from vitp.records.labels import LabelledSet

LOOKS_TASKS = ("cell", "point", "region_class", "box")
"""Tasks that ask about a place, or for one."""

_BATCH = 8
_GREY = 110
"""Value of pixels that are hidden: neither dark nor bright."""
_ATTENDED = 50
"""Questions whose attention is read, one forward pass for each."""


@dataclass(frozen=True)
class PlaceQuestion:
    """One question about a place of one image.

    Attributes:
        image: Number of the image.
        record: The record with this question alone.
        task: One of `LOOKS_TASKS`.
        label: Class that counts for the balance.
        place: None where a place is asked for.
    """

    image: int
    record: InstructionRecord
    task: str
    label: str
    place: Spot | None


@dataclass(frozen=True)
class PlaceScore:
    """What was found of one task, shares on 0..1.

    Attributes:
        task: Task of the questions.
        questions, classes: Numbers of questions and of classes.
        right, shuffled, blind: Class-balanced share of right answers with the right image, another one and none.
        asked, elsewhere: Rise of the right answer's negative log-likelihood (nats a token) when the place asked about,
            or another one of the same size, is grey; None where a place is asked for.
        attention: Of the language model's layer that looks most: attention on the place's image tokens over what they
            would get if all got the same; None as above.
    """

    task: str
    questions: int
    classes: int
    right: float
    shuffled: float
    blind: float
    asked: float | None = None
    elsewhere: float | None = None
    attention: float | None = None

    @property
    def looks(self) -> bool:
        """Whether the image tells the answer, and of it the place that is asked about.

        Right twice as often as blind, no better than blind with another image, and hiding the place costs at least 0.25
        nats a token more than hiding another one: a model that knows which classes are in the image does the first two.
        """
        image = self.right >= max(2 * self.blind, 0.01) and self.shuffled <= (self.right + self.blind) / 2
        place = self.asked is None or self.elsewhere is None or self.asked >= self.elsewhere + 0.25
        return image and place

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, and the verdict."""
        return {**asdict(self), "looks": self.looks}


class PlaceReader(Protocol):
    """What is measured: a vision-language model, or in tests a rule."""

    side: int
    """Of the images that it takes, in pixels."""

    def likelihoods(
        self, records: Sequence[InstructionRecord], tiles: Sequence[np.ndarray | None]
    ) -> list[tuple[bool, float]]:
        """Return for each record whether its answer is what it would write, and its negative log-likelihood a token.

        Args:
            records: Records with one question each.
            tiles: (1, C, side, side) uint8 of each; None: without the image.
        """
        ...

    def attention(self, record: InstructionRecord, tiles: np.ndarray) -> np.ndarray | None:
        """Return (L, h, w): each layer's attention to the image tokens; None where there is none."""
        ...

    def write(self, record: InstructionRecord, tiles: np.ndarray) -> str:
        """Return the answer to the record's question."""
        ...


@dataclass
class ModelReader:
    """A vision-language model that answers about one tile."""

    vlm: VisionLanguageModel
    chat: ChatTokenizer
    side: int = field(init=False)

    def __post_init__(self) -> None:
        self.side = self.vlm.vision.image_size[0]
        self.vlm.eval()

    @torch.no_grad()
    def likelihoods(
        self, records: Sequence[InstructionRecord], tiles: Sequence[np.ndarray | None]
    ) -> list[tuple[bool, float]]:
        """See `PlaceReader`."""
        # Blind, a tile is computed as well, and none of its tokens is kept.
        none = np.zeros((1, self.vlm.vision.num_channels, self.side, self.side), np.uint8)
        encoded = [self.chat.encode(record, [1]) for record in records]
        count = self.chat.tokens_per_tile
        batch = pack(
            encoded,
            [none if tile is None else tile for tile in tiles],
            [np.arange(0 if tile is None else count) for tile in tiles],
            tokens_per_tile=count,
            max_length=max(map(len, encoded)),
            pad_id=self.chat.pad_id,
            together=False,
        ).to(next(self.vlm.parameters()).device)
        hidden_SH = self.vlm(
            **{
                name: getattr(batch, name)
                for name in (
                    *("tiles_TCHW", "keep_K", "image_index_K", "ids_BL", "positions_BL"),
                    *("segments_BL", "branches_BL", "target_index_S"),
                )
            }
        )
        log_SV = self.vlm.logits(hidden_SH).float().log_softmax(-1)
        # Each record has a row of its own, so the row tells the record.
        targets_S, rows_S = batch.target_ids_S, batch.target_index_S // batch.ids_BL.shape[1]
        greedy_S = log_SV.argmax(-1) == targets_S
        nll_S = -log_SV.gather(1, targets_S[:, None])[:, 0]
        return [
            (bool(greedy_S[rows_S == row].all()), float(nll_S[rows_S == row].mean()))
            for row in range(len(records))
        ]

    @torch.no_grad()
    def attention(self, record: InstructionRecord, tiles: np.ndarray) -> np.ndarray | None:
        """See `PlaceReader`."""
        prompt = self.chat.encode_prompt(record.turns[0].question, [1])
        device = next(self.vlm.parameters()).device
        places = torch.from_numpy(np.flatnonzero(prompt.image_N)).to(device)
        inputs = self.vlm.embed(
            torch.from_numpy(tiles).to(device),
            torch.arange(len(places), device=device),
            places,
            torch.from_numpy(prompt.ids_N).to(device)[None],
        )
        language = self.vlm.language
        before = language.config._attn_implementation
        # The other implementations return no weights.
        language.set_attn_implementation("eager")
        try:
            layers = language.get_decoder()(
                inputs_embeds=inputs, output_attentions=True, use_cache=False
            ).attentions
        finally:
            language.set_attn_implementation(before)
        side = round(len(places) ** 0.5)
        # From the last token of the prompt, which foretells the first one of the answer.
        found = [layer[0, :, -1, places].float().mean(0).reshape(side, side) for layer in layers]
        return torch.stack(found).cpu().numpy()

    def write(self, record: InstructionRecord, tiles: np.ndarray) -> str:
        """See `PlaceReader`."""
        picture = Image.fromarray(tiles[0].transpose(1, 2, 0)[..., :3].copy())
        assistant = Assistant(self.vlm, self.chat, next(self.vlm.parameters()).device, max_tiles=1)
        return assistant.answer([picture], record.turns[0].question, max_new_tokens=60)


def place_questions(labelled: LabelledSet, count: int) -> Iterator[PlaceQuestion]:
    """Yield up to `count` questions about places of each task over the images of a set.

    Args:
        labelled: Images with labels that training hasn't seen.
        count: Questions a task.
    """
    weights = {name: float(name in LOOKS_TASKS) for name in QUESTION_TASKS}
    config = SynthesisConfig(
        questions_per_image=2 * len(LOOKS_TASKS),
        tasks={**weights, "context": 0.0},
        grid=6,
        object_share=0.25,
        wordings=1,
    )
    records = LabelledRecords(labelled, seed=0, config=config)
    asked = dict.fromkeys(LOOKS_TASKS, 0)
    for index, item in enumerate(labelled.items):
        if item.second_image is not None or min(asked.values()) >= count:
            continue
        try:
            record, tasks = records.with_tasks(index)
        except DataError as error:
            if "nothing to ask" not in error.what:
                raise
            continue  # nothing is known of its places
        for turn, task in zip(record.turns, tasks, strict=True):
            if asked[task] >= count:
                continue
            asked[task] += 1
            marks = "" if turn.question.startswith(record.prefix) else record.prefix
            alone = record.with_turns((type(turn)(marks + turn.question, turn.answer),))
            text = turn.question.removeprefix(record.prefix)
            label = turn.answer.partition("</ref>")[0].removeprefix("<ref>")
            yield PlaceQuestion(index, alone, task, label, asked_place(text))


def measure_looks(reader: PlaceReader, labelled: LabelledSet, count: int = 200) -> list[PlaceScore]:
    """Ask about places of held-out images, and return what was found of each task that the labels allow.

    Args:
        reader: The model.
        labelled: Images of one split.
        count: Questions a task; an eighth of them where answers are decoded.

    Raises:
        ConfigError: Nothing is known of places, or there is only one image.
    """
    questions = list(place_questions(labelled, count))
    images = sorted({one.image for one in questions})
    if len(images) < 2:
        raise ConfigError("too few images with labelled places", where=labelled.name, fix="name another set")
    channels = reader.vlm.vision.in_channels if isinstance(reader, ModelReader) else None
    seen = PICTURES if channels is None else SeenBands(channels)
    tiles = {index: cut_tiles(seen.load(labelled.items[index].image), reader.side, 1) for index in images}
    # 0x4C4F4F4B spells "LOOK": other uses of the seed draw other numbers.
    rng = np.random.default_rng([0, 0x4C4F4F4B])
    order = [images[int(i)] for i in rng.permutation(len(images))]
    # In a circle, so that no image is the other one of itself.
    other = dict(zip(order, [*order[1:], order[0]], strict=True))
    found = []
    for task in LOOKS_TASKS:
        asked = [one for one in questions if one.task == task]
        if task == "box":
            # Boxes are decoded token by token, which costs many times what scoring a given answer does.
            asked = asked[: max(1, count // 8)]
        if asked:
            found.append(_measured(reader, task, asked, tiles, other, rng))
    return found


def _measured(
    reader: PlaceReader,
    task: str,
    asked: Sequence[PlaceQuestion],
    tiles: dict[int, np.ndarray],
    other: dict[int, int],
    rng: np.random.Generator,
) -> PlaceScore:
    right = [tiles[one.image] for one in asked]
    shuffled = [tiles[other[one.image]] for one in asked]
    labels = [one.label for one in asked]
    if task == "box":
        grey = [np.full_like(tile, _GREY) for tile in right]
        shares = [
            by_class_alike(
                [_box_is_right(reader, one, tile) for one, tile in zip(asked, shown, strict=True)], labels
            )
            for shown in (right, shuffled, grey)
        ]
        return PlaceScore(task, len(asked), len(set(labels)), *shares)
    blind: list[np.ndarray | None] = [None] * len(asked)
    answers = [_all(reader, asked, shown) for shown in (right, shuffled, blind)]
    shares = [by_class_alike([is_right for is_right, _ in one], labels) for one in answers]
    look = PlaceScore(task, len(asked), len(set(labels)), *shares)
    before = np.array([nll for _, nll in answers[0]])
    rises = []
    for elsewhere in (False, True):
        hidden = []
        for one, tile in zip(asked, right, strict=True):
            assert one.place is not None
            hidden.append(_greyed(tile, _elsewhere(one.place, rng) if elsewhere else one.place))
        after = np.array([nll for _, nll in _all(reader, asked, hidden)])
        rises.append(float((after - before).mean()))
    lifts = [
        lift
        for one, tile in list(zip(asked, right, strict=True))[:_ATTENDED]
        if one.place is not None
        and (lift := _lift(reader.attention(one.record, tile), one.place)) is not None
    ]
    attention = float(np.max(np.mean(lifts, 0))) if lifts else None
    return replace(look, asked=rises[0], elsewhere=rises[1], attention=attention)


def by_class_alike(right: Sequence[bool], labels: Sequence[str]) -> float:
    """Return the mean over the classes of the share of right answers about each."""
    by_class: dict[str, list[bool]] = {}
    for is_right, label in zip(right, labels, strict=True):
        by_class.setdefault(label, []).append(is_right)
    return float(np.mean([np.mean(values) for values in by_class.values()]))


def _all(
    reader: PlaceReader, asked: Sequence[PlaceQuestion], shown: Sequence[np.ndarray | None]
) -> list[tuple[bool, float]]:
    found: list[tuple[bool, float]] = []
    for begin in range(0, len(asked), _BATCH):
        part = slice(begin, begin + _BATCH)
        found += reader.likelihoods([one.record for one in asked[part]], shown[part])
    return found


def _box_is_right(reader: PlaceReader, one: PlaceQuestion, tile: np.ndarray) -> bool:
    return score_answer("box", reader.write(one.record, tile), one.record.turns[0].answer) > 0


def _pixels(place: Spot, side: int) -> tuple[slice, slice]:
    x1, y1 = (int(value * side) for value in place[:2])
    x2, y2 = (max(low + 1, round(value * side)) for low, value in zip((x1, y1), place[2:], strict=True))
    return slice(y1, y2), slice(x1, x2)


def _greyed(tile: np.ndarray, place: Spot) -> np.ndarray:
    changed = tile.copy()
    changed[..., *_pixels(place, tile.shape[-1])] = _GREY
    return changed


def _elsewhere(place: Spot, rng: np.random.Generator) -> Spot:
    """Return a place of the same size that overlaps as little of the given one as any of 16 random ones."""
    width, height = place[2] - place[0], place[3] - place[1]
    corners = rng.random((16, 2)) * (max(0.0, 1 - width), max(0.0, 1 - height))
    shared = np.prod(np.maximum(0, (width, height) - np.abs(corners - place[:2])), axis=1)
    x, y = corners[int(shared.argmin())]
    return float(x), float(y), float(x + width), float(y + height)


def _lift(attention_Lhw: np.ndarray | None, place: Spot) -> np.ndarray | None:
    """Return of each layer the mean attention to the place's tokens over that to all image tokens."""
    if attention_Lhw is None:
        return None
    rows, columns = _pixels(place, attention_Lhw.shape[-1])
    lift_L: np.ndarray = attention_Lhw[:, rows, columns].mean((1, 2)) / attention_Lhw.mean((1, 2))
    return lift_L
