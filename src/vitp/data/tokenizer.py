"""Tokenizers of micro language models, and texts of data and users as tokens that never become control tokens.

A tokenizer turns the text `<|im_end|>` into the token that ends a turn, wherever it stands. In a question, an answer or
a caption that would forge a turn or teach the model to stop in mid-sentence. Control tokens are those that the
tokenizer calls special or that look like `<|…|>`, and the marks of templates and images. Markup such as `<ref>` and
`<box>` and words that were added to a vocabulary are no control tokens: they are how answers are written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vitp.core.errors import DataError
from vitp.data.fingerprint import json_digest

PAD = "<pad>"
END = "<end>"
USER = "<user>"
ASSISTANT = "<assistant>"
IMAGE_START = "<img>"
IMAGE_END = "</img>"
IMAGE_CONTEXT = "<IMG_CONTEXT>"
"""One placeholder for each image token. The names are InternVL's."""

MARKUP = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
SPECIAL = (PAD, END, USER, ASSISTANT, IMAGE_START, IMAGE_END, IMAGE_CONTEXT)


_CONTROL_FORM = re.compile(r"<\|[^<>]*\|>")


def train_tokenizer(corpus: Iterable[str], *, vocabulary: int = 2048) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that can write any text and keeps digits apart.

    Digits are single tokens, as in Qwen2: coordinates are read digit by digit, and no number is rarer than
    another.

    Args:
        corpus: Texts; the vocabulary is made of what is frequent in them.
        vocabulary: Number of tokens, special ones and the 256 bytes included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*SPECIAL, *MARKUP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    build: Any = PreTrainedTokenizerFast  # whose constructor has no types
    fast: PreTrainedTokenizerFast = build(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.clean_up_tokenization_spaces = False
    return fast


class PlainText:
    """Tokenises texts in which nothing is a control token.

    A text without the text of a control token gets exactly the tokens that the tokenizer itself gives.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        marks: Tokens that are control tokens besides those the tokenizer calls special.

    Attributes:
        control: Id → text of the control tokens.
        unknown: Text of the token for what the vocabulary can't write, which only its name is kept from becoming.
        names: Texts that would become one of these, longest first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, marks: Collection[str] = ()) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        added = {
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special or _CONTROL_FORM.fullmatch(token.content)
        }
        names = (added | set(map(str, tokenizer.all_special_tokens)) | set(marks)) - set(MARKUP)
        unknown = tokenizer.unk_token
        self.unknown: str | None = None if unknown is None else str(unknown)
        names.discard(str(unknown))
        self.control = {vocabulary[name]: name for name in names if name in vocabulary}
        known = [*self.control.values(), *([self.unknown] if self.unknown else [])]
        self.names = tuple(sorted(known, key=lambda name: (-len(name), name)))

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text.

        Raises:
            DataError: A text can't be written without a control token.
        """
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [
            self.split(text)
            if not self.control.keys().isdisjoint(ids) or (self.unknown is not None and self.unknown in text)
            else ids
            for text, ids in zip(texts, rows, strict=True)
        ]

    def split(self, text: str) -> list[int]:
        """Return the tokens of a text that holds the text of control tokens.

        Raises:
            DataError: It can't be written without them.
        """
        ids = self._without_control(text)
        if not self.control.keys().isdisjoint(ids):
            # The vocabulary has the control token as an ordinary word, too: a cut behind its first sign breaks it up.
            pieces = self._broken.split(text)
            ids = [number for piece in pieces if piece for number in self._without_control(piece)]
        found = [self.control[number] for number in ids if number in self.control]
        if found:
            what = f"a text holds {found[0]}, which this tokenizer can only read as a control token"
            raise DataError(what, fix="remove it from the text")
        return ids

    @cached_property
    def _broken(self) -> re.Pattern[str]:
        return re.compile(
            "|".join(f"(?<={re.escape(n[0])})(?={re.escape(n[1:])})" for n in self.names if n[1:])
        )

    def _without_control(self, text: str) -> list[int]:
        if self._copy is not None:
            return list(self._copy.encode(text, add_special_tokens=False).ids)
        ids: list[int] = []
        for number, piece in enumerate(self._kept.split(text) if self._kept else [text]):
            if number % 2:
                ids.append(self.tokenizer.get_vocab()[piece])
            elif piece:
                ids += self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    @cached_property
    def _copy(self) -> Tokenizer | None:
        """The tokenizer once more, with control tokens and no others marked as special: those it then splits."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        description: dict[str, Any] = json.loads(backend.to_str())
        names = set(self.names)
        for token in description["added_tokens"]:
            token["special"] = token["content"] in names
        description["truncation"] = description["padding"] = None
        copy = Tokenizer.from_str(json.dumps(description))
        copy.encode_special_tokens = True
        return copy

    @cached_property
    def _kept(self) -> re.Pattern[str] | None:
        """Added tokens that stay tokens, for tokenizers written in Python: those split all added tokens or none."""
        names = set(self.names)
        kept = [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.content not in names]
        return (
            re.compile(f"({'|'.join(map(re.escape, sorted(kept, key=len, reverse=True)))})") if kept else None
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in self.__dict__.items() if name not in ("_copy", "_broken", "_kept")
        }


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the hash of a tokenizer's tokens and their ids."""
    return json_digest(sorted(tokenizer.get_vocab().items()))
