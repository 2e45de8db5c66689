"""From an `InstructionRecord` to token ids with positions, branches and the places of the loss.

A record is laid out as one sequence. Independent questions share the tokens before them (system text and
images) and are branches of a tree: each sees the shared prefix and itself, and its positions go on from the
end of the prefix, exactly as if it stood alone behind the images.

Shapes: N tokens of the record before anything is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from vitp.data.records import IMAGE_MARK, InstructionRecord
from vitp.data.tokenizer import ASSISTANT, END, IMAGE_CONTEXT, IMAGE_END, IMAGE_START, USER
from vitp.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class ChatTemplate:
    """Text around the turns. The loss is taken on the answer and on `stop`."""

    system: str
    user_start: str
    user_end: str
    assistant_start: str
    stop: str
    turn_end: str = ""


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

    def __len__(self) -> int:
        return len(self.tokenizer)

    def encode(self, record: InstructionRecord, tiles_per_image: Sequence[int]) -> EncodedRecord:
        """Return the record's tokens with room for the image tokens of its tiles.

        Args:
            record: Whose images have been tiled.
            tiles_per_image: Tiles of each image, thumbnail included.

        Raises:
            DataError: Images and marks differ, or a text holds the placeholder itself.
        """
        layout = _Layout(self, record.name, list(tiles_per_image))
        texts = self._texts(record)
        encoded = self.tokenizer([text for text, _, _ in texts], add_special_tokens=False)["input_ids"]
        for ids, (_, branch, supervised) in zip(encoded, texts, strict=True):
            layout.add(ids, branch, supervised)
        return layout.finish(turns=len(record.turns))

    def encode_prompt(
        self, question: str, tiles_per_image: Sequence[int], history: Sequence[tuple[str, str]] = ()
    ) -> EncodedRecord:
        """Return the tokens of a question that is to be answered, after earlier turns if there were any."""
        layout = _Layout(self, "question", list(tiles_per_image))
        texts = [(text, 0, False) for text in self._mark_split(self.template.system)]
        for past_question, past_answer in history:
            texts += self._turn(past_question, past_answer, branch=0)
        texts += [
            (text, 0, False)
            for text in self._mark_split(self.template.user_start + question + self.template.user_end)
        ]
        texts.append((self.template.assistant_start, 0, False))
        for ids, (_, branch, supervised) in zip(
            self.tokenizer([t for t, _, _ in texts], add_special_tokens=False)["input_ids"],
            texts,
            strict=True,
        ):
            layout.add(ids, branch, supervised)
        return layout.finish(turns=0)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, markup kept, stop and padding tokens dropped."""
        drop = {self.stop_id, self.pad_id, self.tokenizer.eos_token_id}
        return str(self.tokenizer.decode([i for i in ids if i not in drop], skip_special_tokens=False))

    def _texts(self, record: InstructionRecord) -> list[tuple[str, int, bool]]:
        """(text, branch, supervised) pieces; each piece is tokenized on its own, an image mark is a piece."""
        template = self.template
        texts = [(text, 0, False) for text in self._mark_split(template.system)]
        if not record.independent:
            for turn in record.turns:
                texts += self._turn(turn.question, turn.answer, branch=0)
            return texts
        prefix = record.prefix
        texts += [(text, 0, False) for text in self._mark_split(template.user_start + prefix)]
        for number, turn in enumerate(record.turns, 1):
            question = turn.question[len(prefix) :] if number == 1 else turn.question
            texts += [
                (question + template.user_end, number, False),
                (template.assistant_start, number, False),
                (turn.answer, number, True),
                (template.stop, number, True),
            ]
        return texts

    def _turn(self, question: str, answer: str, branch: int) -> list[tuple[str, int, bool]]:
        template = self.template
        pieces = [
            (text, branch, False)
            for text in self._mark_split(template.user_start + question + template.user_end)
        ]
        pieces += [
            (template.assistant_start, branch, False),
            (answer, branch, True),
            (template.stop, branch, True),
        ]
        return [*pieces, (template.turn_end, branch, False)] if template.turn_end else pieces

    @staticmethod
    def _mark_split(text: str) -> list[str]:
        """Split so that each image mark is a piece of its own; empty pieces are left out."""
        pieces: list[str] = []
        for number, part in enumerate(text.split(IMAGE_MARK)):
            if number:
                pieces.append(IMAGE_MARK_PIECE)
            if part:
                pieces.append(part)
        return pieces


IMAGE_MARK_PIECE = IMAGE_START + IMAGE_END
"""An image mark as a text piece: start and end token, between which the layout puts the placeholders."""


class _Layout:
    """Collects the arrays of one record piece by piece."""

    def __init__(self, chat: ChatTokenizer, name: str, tiles_per_image: list[int]) -> None:
        self.chat, self.name, self.tiles = chat, name, tiles_per_image
        self.images_placed = 0
        self.prefix_length: int | None = None
        self.pieces: list[tuple[np.ndarray, int, bool, bool]] = []  # ids, branch, image, supervised

    def add(self, ids: Sequence[int], branch: int, supervised: bool) -> None:
        chat = self.chat
        if chat.image_id in ids:
            raise DataError(f"a text holds {IMAGE_CONTEXT}", where=self.name, fix="remove it from the text")
        if list(ids) == [chat.image_start_id, chat.image_end_id]:
            if self.images_placed >= len(self.tiles):
                raise DataError(f"more {IMAGE_MARK} marks than the {len(self.tiles)} images", where=self.name)
            count = self.tiles[self.images_placed] * chat.tokens_per_tile
            self.images_placed += 1
            self._append([chat.image_start_id], branch, False, False)
            self._append([chat.image_id] * count, branch, True, False)
            self._append([chat.image_end_id], branch, False, False)
            return
        self._append(ids, branch, False, supervised)

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
