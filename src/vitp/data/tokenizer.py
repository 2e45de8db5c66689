"""Tokenizers of micro language models, trained on the corpus they will read."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

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
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.clean_up_tokenization_spaces = False
    return fast


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the hash of a tokenizer's tokens and their ids."""
    return json_digest(sorted(tokenizer.get_vocab().items()))
