"""From an `InstructionRecord` to token ids with positions, branches and the places of the loss.

A record is laid out as one sequence. Independent questions share the tokens before them (system text and
images) and are branches of a tree: each sees the shared prefix and itself, and its positions go on from the
end of the prefix, exactly as if it stood alone behind the images.

Shapes: N tokens of the record before anything is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from vitp.core.errors import ConfigError, DataError, did_you_mean
from vitp.data.locations import count_locations, location_names, with_locations, without_locations
from vitp.data.tokenizer import ASSISTANT, END, IMAGE_CONTEXT, IMAGE_END, IMAGE_START, USER, PlainText
from vitp.records.instructions import IMAGE_MARK, InstructionRecord, text_problem


@dataclass(frozen=True)
class ChatTemplate:
    """Text around the turns. The loss is taken on the answer and on `stop`."""

    system: str
    user_start: str
    user_end: str
    assistant_start: str
    stop: str
    turn_end: str = ""


_MARK = re.compile(r"<\|[^<>]*\|>|<[^<>|\s]+>")

_CHATML = ChatTemplate(
    system="",
    user_start="<|im_start|>user\n",
    user_end="<|im_end|>\n",
    assistant_start="<|im_start|>assistant\n",
    stop="<|im_end|>",
    turn_end="\n",
)
TEMPLATES: dict[str, ChatTemplate] = {
    "internvl2_5": replace(
        _CHATML,
        # The system text that InternVL2.5 was trained with.
        system="<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
        "多模态大语言模型。<|im_end|>\n",
    ),
    "chatml": _CHATML,
    "micro": ChatTemplate(system="", user_start=USER, user_end="", assistant_start=ASSISTANT, stop=END),
}


@dataclass(frozen=True)
class EncodedRecord:
    """One record as tokens, before tokens are dropped.

    Attributes:
        ids_N: Token ids; image tokens hold the placeholder's id.
        positions_N: Position ids, given before anything is dropped (ViTP, eq. 1).
        branches_N: 0 = shared by all turns, k = belongs to the k-th independent question.
        image_N: True at image tokens.
        supervised_N: True where the token is to be predicted (answers and stop tokens).
        hidden_N: True where the token is predicted but not read: a padding token is in its place. None: nowhere.
        tiles: Number of tiles of all images.
        turns: Number of questions that it holds with their answers.
        name: Name of the record, for messages.
        inside_QI: Which of the record's image tokens lie in the place that a question asks about; None: nobody asked.
    """

    ids_N: np.ndarray
    positions_N: np.ndarray
    branches_N: np.ndarray
    image_N: np.ndarray
    supervised_N: np.ndarray
    tiles: int
    turns: int
    name: str
    hidden_N: np.ndarray | None = None
    inside_QI: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids_N)

    def take(self, keep_N: np.ndarray) -> EncodedRecord:
        """Return the record with the tokens that the boolean array keeps; positions stay what they were."""
        arrays = ("ids_N", "positions_N", "branches_N", "image_N", "supervised_N", "hidden_N")
        given = {name: array for name in arrays if (array := getattr(self, name)) is not None}
        inside_QI = None if self.inside_QI is None else self.inside_QI[:, keep_N[self.image_N]]
        return replace(self, **{name: array[keep_N] for name, array in given.items()}, inside_QI=inside_QI)

    def in_parallel(self, share: float, rng: np.random.Generator) -> EncodedRecord:
        """Return the record with the answers of some questions unread, so that their tokens can't tell each other.

        Args:
            share: Probability that a question's answer is.
            rng: Chooses the questions.
        """
        chosen = rng.random(int(self.branches_N.max()) + 1) < share
        return replace(self, hidden_N=self.supervised_N & chosen[self.branches_N])


class ChatTokenizer:
    """A tokenizer that knows the chat template and the image placeholders.

    Args:
        tokenizer: Any Hugging Face tokenizer that holds the template's marks and InternVL's image tokens;
            missing image tokens are added (`added_tokens` tells how many, so that embeddings can grow).
        template: One of `TEMPLATES`.
        tokens_per_tile: Image tokens that the projector makes of a tile.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, template: str, tokens_per_tile: int) -> None:
        if template not in TEMPLATES:
            raise ConfigError(
                f"unknown chat template {template!r}",
                where="template",
                fix=did_you_mean(template, TEMPLATES) or f"choose one of {', '.join(TEMPLATES)}",
            )
        self.tokenizer, self.template_name, self.tokens_per_tile = tokenizer, template, tokens_per_tile
        self.template = TEMPLATES[template]
        known = tokenizer.get_vocab()
        missing = [t for t in (IMAGE_START, IMAGE_END, IMAGE_CONTEXT) if t not in known]
        # False: the special tokens that the tokenizer has stay special.
        self.added_tokens = (
            tokenizer.add_special_tokens({"additional_special_tokens": missing}, False) if missing else 0
        )
        vocabulary = tokenizer.get_vocab()
        self.locations = count_locations(vocabulary)
        if self.template.stop not in vocabulary:
            raise ConfigError(
                f"the tokenizer doesn't know {self.template.stop}",
                where=f"template {template}",
                fix="choose the template that the language model was trained with",
            )
        self.image_id, self.stop_id = vocabulary[IMAGE_CONTEXT], vocabulary[self.template.stop]
        self.image_start_id, self.image_end_id = vocabulary[IMAGE_START], vocabulary[IMAGE_END]
        self.pad_id: int = (
            self.stop_id if tokenizer.pad_token is None else vocabulary[str(tokenizer.pad_token)]
        )
        marks = set(_MARK.findall("".join(astuple(self.template))))
        self.plain = PlainText(tokenizer, (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, *marks))
        self._vocabulary = {name: number for number, name in self.plain.control.items()}
        self._split: dict[str, list[tuple[bool, str]]] = {}

    def __len__(self) -> int:
        return len(self.tokenizer)

    def add_locations(self, count: int) -> None:
        """Add location tokens to the vocabulary; coordinates are written with them from then on.

        Raises:
            ConfigError: It has another number of them, or one alone is wanted.
        """
        if count == 1:
            raise ConfigError(
                "one location token tells nothing", where="model.locations", fix="use 2 or more"
            )
        if self.locations not in (0, count):
            what = f"the model has {self.locations} location tokens, not {count}"
            raise ConfigError(what, where="model.locations", fix=f"set it to {self.locations}, or to 0")
        self.tokenizer.add_tokens(location_names(count)[self.locations :])
        self.locations = count

    def encode(self, record: InstructionRecord, tiles_per_image: Sequence[int]) -> EncodedRecord:
        """Return the record's tokens with room for the image tokens of its tiles.

        What questions and answers say is plain text: the name of a control token in them is no control token.

        Args:
            record: Whose images have been tiled.
            tiles_per_image: Tiles of each image, thumbnail included.

        Raises:
            DataError: Images and marks differ, or a text can't be told from a control token.
        """
        pieces = self._system()
        if not record.independent:
            for turn in record.turns:
                pieces += self._asked(self._located(turn.question, points=True))
                pieces += self._answered(self._located(turn.answer))
        else:
            prefix = record.prefix
            pieces += _pieces_of(self.template.user_start, prefix, "")
            for branch, turn in enumerate(record.turns, 1):
                question = turn.question[len(prefix) :] if branch == 1 else turn.question
                question = self._located(question, points=True)
                pieces += [_Piece("", question, self.template.user_end, branch)]
                pieces += self._answered(self._located(turn.answer), branch)
        return self._laid_out(pieces, record.name, tiles_per_image, turns=len(record.turns))

    def encode_prompt(
        self, question: str, tiles_per_image: Sequence[int], history: Sequence[tuple[str, str]] = ()
    ) -> EncodedRecord:
        """Return the tokens of a question that is to be answered, after earlier turns if there were any.

        Raises:
            DataError: Images and marks differ, or a text is none (half a character, a NUL).
        """
        for text in (question, *(text for turn in history for text in turn)):
            if (problem := text_problem(text)) is not None:
                raise DataError(problem, where="question", fix="remove it from the text")
        pieces = self._system()
        for past_question, past_answer in history:
            pieces += self._asked(self._located(past_question, points=True))
            pieces += self._answered(self._located(past_answer))
        pieces += [
            *self._asked(self._located(question, points=True)),
            _Piece(before=self.template.assistant_start),
        ]
        return self._laid_out(pieces, "question", tiles_per_image, turns=0)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, markup kept, stop and padding tokens dropped."""
        drop = {self.stop_id, self.pad_id, self.tokenizer.eos_token_id}
        text = self.tokenizer.decode([i for i in ids if i not in drop], skip_special_tokens=False)
        return without_locations(str(text), self.locations)

    def _located(self, text: str, *, points: bool = False) -> str:
        return with_locations(text, self.locations, points=points)

    def _system(self) -> list[_Piece]:
        return [_Piece(before=self.template.system)] if self.template.system else []

    def _asked(self, question: str) -> list[_Piece]:
        return _pieces_of(self.template.user_start, question, self.template.user_end)

    def _answered(self, answer: str, branch: int = 0) -> list[_Piece]:
        """Return the pieces of an answer; the turn ends after it unless it is the end of a branch."""
        template = self.template
        return [
            _Piece(before=template.assistant_start, branch=branch),
            _Piece("", answer, "", branch, True),
            _Piece(before=template.stop, branch=branch, supervised=True),
            *([_Piece(before=template.turn_end)] if template.turn_end and not branch else []),
        ]

    def _laid_out(
        self, pieces: list[_Piece], name: str, tiles_per_image: Sequence[int], turns: int
    ) -> EncodedRecord:
        """Return the tokens of the pieces, one after the other, with room for the images' tiles."""
        marks, images = sum(piece.image for piece in pieces), len(tiles_per_image)
        if marks > images:
            raise DataError(f"more {IMAGE_MARK} marks than the {images} images", where=name)
        if marks < images:
            what = f"{marks} {IMAGE_MARK} marks but {images} images"
            raise DataError(what, where=name, fix="give one mark an image")
        texts = [piece.whole for piece in pieces if not piece.image]
        rows = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        tiles = iter(tiles_per_image)
        parts: list[tuple[Sequence[int], int, bool, bool]] = []  # ids, branch, image, supervised
        for piece in pieces:
            if piece.image:
                tokens = [self.image_id] * (next(tiles) * self.tokens_per_tile)
                parts.append(([self.image_start_id], piece.branch, False, False))
                parts.append((tokens, piece.branch, True, False))
                parts.append(([self.image_end_id], piece.branch, False, False))
                continue
            ids = next(rows)
            try:
                ids = ids if self._is_right(piece, ids) else self._apart(piece)
            except DataError as error:
                raise DataError(error.what, where=name, fix=error.fix) from error
            parts.append((ids, piece.branch, False, piece.supervised))
        lengths = [len(ids) for ids, *_ in parts]
        branches_N = np.repeat(np.array([branch for _, branch, _, _ in parts], np.int64), lengths)
        return EncodedRecord(
            ids_N=np.concatenate([np.asarray(ids, np.int64) for ids, *_ in parts]),
            positions_N=_positions(branches_N),
            branches_N=branches_N,
            image_N=np.repeat(np.array([image for _, _, image, _ in parts], np.bool_), lengths),
            supervised_N=np.repeat(np.array([supervised for *_, supervised in parts], np.bool_), lengths),
            tiles=sum(tiles_per_image),
            turns=turns,
            name=name,
        )

    def _is_right(self, piece: _Piece, ids: Sequence[int]) -> bool:
        """Return whether all control tokens of a piece are the template's."""
        if not piece.text:
            return True
        marks = sum(mark for mark, _ in (*self._marks(piece.before), *self._marks(piece.after)))
        return sum(number in self.plain.control for number in ids) == marks and (
            self.plain.unknown is None or self.plain.unknown not in piece.text
        )

    def _apart(self, piece: _Piece) -> list[int]:
        """Return the tokens of a piece with the template's marks put in as ids and all else as plain text."""
        parts = [*self._marks(piece.before), (False, piece.text), *self._marks(piece.after)]
        ids: list[int] = []
        for mark, group in groupby(parts, key=lambda part: part[0]):
            texts = [text for _, text in group]
            ids += [self._vocabulary[text] for text in texts] if mark else self.plain.split("".join(texts))
        return ids

    def _marks(self, text: str) -> list[tuple[bool, str]]:
        """Split a text of the template into (is a control token, text)."""
        if text not in self._split:
            parts = re.split(f"({'|'.join(map(re.escape, self.plain.names))})", text)
            self._split[text] = [(number % 2 == 1, part) for number, part in enumerate(parts) if part]
        return self._split[text]


class _Piece(NamedTuple):
    """A piece of a sequence that is tokenized on its own.

    Attributes:
        before, after: Texts of the template, whose marks become control tokens.
        text: Text of the data between them, which is plain text.
        branch: See `EncodedRecord`.
        supervised: It is to be predicted.
        image: It stands for an image and has no text.
    """

    before: str = ""
    text: str = ""
    after: str = ""
    branch: int = 0
    supervised: bool = False
    image: bool = False

    @property
    def whole(self) -> str:
        return self.before + self.text + self.after


def _pieces_of(before: str, question: str, after: str) -> list[_Piece]:
    """Return a question as pieces: each image mark is one of its own; empty pieces are left out."""
    parts = question.split(IMAGE_MARK)
    pieces: list[_Piece] = []
    for number, part in enumerate(parts):
        if number:
            pieces.append(_Piece(image=True))
        piece = _Piece("" if number else before, part, after if number == len(parts) - 1 else "")
        if piece.whole:
            pieces.append(piece)
    return pieces


def _positions(branches_N: np.ndarray) -> np.ndarray:
    """Positions that count on within the shared prefix, and start anew behind it in every branch."""
    positions = np.arange(len(branches_N))
    prefix = int((branches_N == 0).sum())
    for start in np.flatnonzero(np.diff(branches_N, prepend=0)):
        members = branches_N == branches_N[start]
        positions[members] = prefix + np.arange(int(members.sum()))
    return positions
