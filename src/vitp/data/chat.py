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
from vitp.data.plain_text import PlainText
from vitp.data.tokenizer import ASSISTANT, END, IMAGE_CONTEXT, IMAGE_END, IMAGE_START, USER
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

TEMPLATES: dict[str, ChatTemplate] = {
    "internvl2_5": ChatTemplate(
        # The system text that InternVL2.5 was trained with.
        system="<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
        "多模态大语言模型。<|im_end|>\n",
        user_start="<|im_start|>user\n",
        user_end="<|im_end|>\n",
        assistant_start="<|im_start|>assistant\n",
        stop="<|im_end|>",
        turn_end="\n",
    ),
    "chatml": ChatTemplate(
        system="",
        user_start="<|im_start|>user\n",
        user_end="<|im_end|>\n",
        assistant_start="<|im_start|>assistant\n",
        stop="<|im_end|>",
        turn_end="\n",
    ),
    "micro": ChatTemplate(system="", user_start=USER, user_end="", assistant_start=ASSISTANT, stop=END),
}


def _template_marks(template: ChatTemplate) -> set[str]:
    """The tokens in the texts of a template."""
    return set(_MARK.findall("".join(astuple(template))))


@dataclass(frozen=True)
class EncodedRecord:
    """One record as tokens, before tokens are dropped.

    Attributes:
        ids_N: Token ids; image tokens hold the placeholder's id.
        positions_N: Position ids, given before anything is dropped (ViTP, eq. 1).
        branches_N: 0 = shared by all turns, k = belongs to the k-th independent question.
        image_N: True at image tokens.
        supervised_N: True where the token is to be predicted (answers and stop tokens).
        tiles: Tiles of all images.
        turns: Questions and answers it holds.
        name: For messages.
    """

    ids_N: np.ndarray
    positions_N: np.ndarray
    branches_N: np.ndarray
    image_N: np.ndarray
    supervised_N: np.ndarray
    tiles: int
    turns: int
    name: str

    def __len__(self) -> int:
        return len(self.ids_N)

    def take(self, keep_N: np.ndarray) -> EncodedRecord:
        """Return the record with the tokens that the boolean array keeps; positions stay what they were."""
        return replace(
            self,
            ids_N=self.ids_N[keep_N],
            positions_N=self.positions_N[keep_N],
            branches_N=self.branches_N[keep_N],
            image_N=self.image_N[keep_N],
            supervised_N=self.supervised_N[keep_N],
        )


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
        marks = _template_marks(self.template)
        self.plain = PlainText(tokenizer, (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, *marks))
        self._vocabulary = {name: number for number, name in self.plain.control.items()}
        self._split: dict[str, list[tuple[bool, str]]] = {}

    def __len__(self) -> int:
        return len(self.tokenizer)

    def encode(self, record: InstructionRecord, tiles_per_image: Sequence[int]) -> EncodedRecord:
        """Return the record's tokens with room for the image tokens of its tiles.

        What questions and answers say is plain text: the name of a control token in them is no control token.

        Args:
            record: Whose images have been tiled.
            tiles_per_image: Tiles of each image, thumbnail included.

        Raises:
            DataError: Images and marks differ, or a text can't be told from a control token.
        """
        return self._laid_out(
            self._pieces(record), record.name, list(tiles_per_image), turns=len(record.turns)
        )

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
        template = self.template
        pieces = [_Piece(before=template.system)] if template.system else []
        for past_question, past_answer in history:
            pieces += self._turn(past_question, past_answer, branch=0)
        pieces += _asked(template.user_start, question, template.user_end, branch=0)
        pieces.append(_Piece(before=template.assistant_start))
        return self._laid_out(pieces, "question", list(tiles_per_image), turns=0)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, markup kept, stop and padding tokens dropped."""
        drop = {self.stop_id, self.pad_id, self.tokenizer.eos_token_id}
        return str(self.tokenizer.decode([i for i in ids if i not in drop], skip_special_tokens=False))

    def _pieces(self, record: InstructionRecord) -> list[_Piece]:
        """Pieces of which each is tokenized on its own; an image mark is a piece."""
        template = self.template
        pieces = [_Piece(before=template.system)] if template.system else []
        if not record.independent:
            for turn in record.turns:
                pieces += self._turn(turn.question, turn.answer, branch=0)
            return pieces
        prefix = record.prefix
        pieces += _asked(template.user_start, prefix, "", branch=0)
        for number, turn in enumerate(record.turns, 1):
            question = turn.question[len(prefix) :] if number == 1 else turn.question
            pieces += [
                _Piece("", question, template.user_end, number),
                _Piece(before=template.assistant_start, branch=number),
                _Piece("", turn.answer, "", number, True),
                _Piece(before=template.stop, branch=number, supervised=True),
            ]
        return pieces

    def _turn(self, question: str, answer: str, branch: int) -> list[_Piece]:
        template = self.template
        pieces = [
            *_asked(template.user_start, question, template.user_end, branch),
            _Piece(before=template.assistant_start, branch=branch),
            _Piece("", answer, "", branch, True),
            _Piece(before=template.stop, branch=branch, supervised=True),
        ]
        return [*pieces, _Piece(before=template.turn_end, branch=branch)] if template.turn_end else pieces

    def _laid_out(self, pieces: list[_Piece], name: str, tiles: list[int], turns: int) -> EncodedRecord:
        layout = _Layout(self, name, tiles)
        texts = iter(
            self.tokenizer([piece.whole for piece in pieces if not piece.image], add_special_tokens=False)[
                "input_ids"
            ]
        )
        for piece in pieces:
            if piece.image:
                layout.add_image(piece.branch)
                continue
            ids = next(texts)
            try:
                layout.add(ids if self._is_right(piece, ids) else self._apart(piece), piece)
            except DataError as error:
                raise DataError(error.what, where=name, fix=error.fix) from error
        return layout.finish(turns)

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
        before, after: Of the template: its marks become control tokens.
        text: Of the data, between them: plain text.
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


def _asked(before: str, question: str, after: str, branch: int) -> list[_Piece]:
    """A question as pieces: each image mark is one of its own; empty pieces are left out."""
    parts = question.split(IMAGE_MARK)
    pieces: list[_Piece] = []
    for number, part in enumerate(parts):
        if number:
            pieces.append(_Piece(branch=branch, image=True))
        piece = _Piece("" if number else before, part, after if number == len(parts) - 1 else "", branch)
        if piece.whole:
            pieces.append(piece)
    return pieces


class _Layout:
    """Collects the arrays of one record piece by piece."""

    def __init__(self, chat: ChatTokenizer, name: str, tiles_per_image: list[int]) -> None:
        self.chat, self.name, self.tiles = chat, name, tiles_per_image
        self.images_placed = 0
        self.prefix_length: int | None = None
        self.pieces: list[tuple[np.ndarray, int, bool, bool]] = []  # ids, branch, image, supervised

    def add(self, ids: Sequence[int], piece: _Piece) -> None:
        self._append(ids, piece.branch, False, piece.supervised)

    def add_image(self, branch: int) -> None:
        chat = self.chat
        if self.images_placed >= len(self.tiles):
            raise DataError(f"more {IMAGE_MARK} marks than the {len(self.tiles)} images", where=self.name)
        count = self.tiles[self.images_placed] * chat.tokens_per_tile
        self.images_placed += 1
        self._append([chat.image_start_id], branch, False, False)
        self._append([chat.image_id] * count, branch, True, False)
        self._append([chat.image_end_id], branch, False, False)

    def _append(self, ids: Sequence[int], branch: int, image: bool, supervised: bool) -> None:
        if len(ids):
            self.pieces.append((np.asarray(ids, dtype=np.int64), branch, image, supervised))

    def finish(self, turns: int) -> EncodedRecord:
        if self.images_placed != len(self.tiles):
            raise DataError(
                f"{self.images_placed} {IMAGE_MARK} marks but {len(self.tiles)} images",
                where=self.name,
                fix="give one mark an image",
            )
        lengths = [len(ids) for ids, *_ in self.pieces]

        def spread(values: list, dtype: type) -> np.ndarray:
            return np.repeat(np.asarray(values, dtype=dtype), lengths)

        branches_N = spread([branch for _, branch, _, _ in self.pieces], np.int64)
        return EncodedRecord(
            ids_N=np.concatenate([ids for ids, *_ in self.pieces]),
            positions_N=_positions(branches_N),
            branches_N=branches_N,
            image_N=spread([image for _, _, image, _ in self.pieces], np.bool_),
            supervised_N=spread([supervised for *_, supervised in self.pieces], np.bool_),
            tiles=sum(self.tiles),
            turns=turns,
            name=self.name,
        )


def _positions(branches_N: np.ndarray) -> np.ndarray:
    """Positions that count on within the shared prefix, and start anew behind it in every branch."""
    positions = np.arange(len(branches_N))
    prefix = int((branches_N == 0).sum())
    starts = np.flatnonzero(np.diff(branches_N, prepend=0))
    for start in starts:
        branch = branches_N[start]
        members = branches_N == branch
        positions[members] = prefix + np.arange(int(members.sum()))
    return positions
