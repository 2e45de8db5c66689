"""Whole conversations as tokens: text, positions, branches, images and places of the loss."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import tiny_chat
from vitp.core.errors import ConfigError, DataError
from vitp.data.chat import TEMPLATES, ChatTemplate, ChatTokenizer, EncodedRecord
from vitp.data.tokenizer import train_tokenizer
from vitp.records.instructions import InstructionRecord, Turn

SYSTEM = TEMPLATES["internvl2_5"].system


def chat_of(template: str, tokens_per_tile: int = 2) -> ChatTokenizer:
    tokenizer = train_tokenizer(["system user assistant ship plane yes no 你是书生"] * 30, vocabulary=330)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return ChatTokenizer(tokenizer, template=template, tokens_per_tile=tokens_per_tile)


def text_of(chat: ChatTokenizer, encoded: EncodedRecord, where: np.ndarray) -> str:
    return chat.tokenizer.decode(encoded.ids_N[where])


def image(tiles: int, tokens_per_tile: int = 2) -> str:
    return "<img>" + "<IMG_CONTEXT>" * (tiles * tokens_per_tile) + "</img>"


@pytest.mark.parametrize(("template", "system"), [("internvl2_5", SYSTEM), ("chatml", "")])
def test_a_conversation_is_one_branch(template: str, system: str) -> None:
    chat = chat_of(template)
    turns = (Turn("<image>\nship? <image>", "yes"), Turn("plane?", "no"))
    encoded = chat.encode(InstructionRecord("7", ("a.png", "b.png"), turns), [1, 3])
    everywhere = np.ones(len(encoded), bool)
    assert text_of(chat, encoded, everywhere) == (
        f"{system}<|im_start|>user\n{image(1)}\nship? {image(3)}<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nplane?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
    )
    assert text_of(chat, encoded, encoded.supervised_N) == "yes<|im_end|>no<|im_end|>"
    assert text_of(chat, encoded, encoded.image_N) == "<IMG_CONTEXT>" * 8
    assert not encoded.branches_N.any()
    assert encoded.positions_N.tolist() == list(range(len(encoded)))
    assert (encoded.tiles, encoded.turns) == (4, 2) and "7" in encoded.name
    assert encoded.ids_N.dtype == encoded.positions_N.dtype == np.int64
    assert encoded.image_N.dtype == encoded.supervised_N.dtype == np.bool_


@pytest.mark.parametrize(("template", "system"), [("internvl2_5", SYSTEM), ("chatml", "")])
def test_independent_questions_are_branches(template: str, system: str) -> None:
    chat = chat_of(template)
    turns = (Turn("<image>\nship?", "yes"), Turn("plane?", "no"), Turn("no?", "yes"))
    encoded = chat.encode(InstructionRecord("7", ("a.png",), turns, independent=True), [2])
    shared = encoded.branches_N == 0
    assert text_of(chat, encoded, shared).rstrip("\n") == f"{system}<|im_start|>user\n{image(2)}"
    for number, (question, answer) in enumerate((("ship?", "yes"), ("plane?", "no"), ("no?", "yes")), 1):
        own = encoded.branches_N == number
        said = f"{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
        assert text_of(chat, encoded, own).lstrip("\n") == said
        assert text_of(chat, encoded, own & encoded.supervised_N) == f"{answer}<|im_end|>"
        first = int(shared.sum())
        assert encoded.positions_N[own].tolist() == list(range(first, first + int(own.sum())))
    assert encoded.positions_N[shared].tolist() == list(range(int(shared.sum())))
    assert encoded.branches_N.max() == 3 and encoded.turns == 3


def test_a_question_follows_what_was_said_before() -> None:
    chat = chat_of("internvl2_5")
    asked = chat.encode_prompt("ship?", [1], history=[("<image>\nplane?", "no"), ("yes?", "yes")])
    assert text_of(chat, asked, np.ones(len(asked), bool)) == (
        f"{SYSTEM}<|im_start|>user\n{image(1)}\nplane?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
        "<|im_start|>user\nyes?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nship?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert asked.turns == 0 and asked.name == "question" and not asked.branches_N.any()
    # The beginning of what is trained, token for token.
    turns = (Turn("<image>\nplane?", "no"), Turn("yes?", "yes"), Turn("ship?", "no"))
    trained = chat.encode(InstructionRecord("1", ("a.png",), turns), [1])
    assert asked.ids_N.tolist() == trained.ids_N[: len(asked)].tolist()
    micro = tiny_chat(3)
    first = micro.encode_prompt("ship?", [], history=())
    assert text_of(micro, first, np.ones(len(first), bool)) == "<user>ship?<assistant>"
    assert not chat.encode_prompt("ship?", []).supervised_N.any()


def test_answers_end_without_stop_and_padding() -> None:
    chat = chat_of("chatml")
    ids = chat.tokenizer("yes <|im_start|>no", add_special_tokens=False)["input_ids"]
    dropped = [chat.stop_id, chat.pad_id, chat.tokenizer.eos_token_id]
    assert chat.decode([*ids, *[i for i in dropped if i is not None]]) == "yes <|im_start|>no"
    assert chat.decode([]) == ""


def test_the_tokenizer_gets_what_it_lacks_and_nothing_more() -> None:
    tokenizer = train_tokenizer(["ship"] * 30, vocabulary=320)
    before = len(tokenizer)
    chat = ChatTokenizer(tokenizer, template="micro", tokens_per_tile=5)
    vocabulary = tokenizer.get_vocab()
    assert chat.added_tokens == len(tokenizer) - before == 0 and len(chat) == len(tokenizer)
    names = ("<IMG_CONTEXT>", "<img>", "</img>", "<end>")
    assert (chat.image_id, chat.image_start_id, chat.image_end_id, chat.stop_id) == tuple(
        vocabulary[name] for name in names
    )
    assert chat.pad_id == vocabulary[tokenizer.pad_token]
    assert (chat.template_name, chat.tokens_per_tile) == ("micro", 5)
    tokenizer.pad_token = None
    assert ChatTokenizer(tokenizer, template="micro", tokens_per_tile=5).pad_id == chat.stop_id
    with pytest.raises(ConfigError, match=r"template chatml: the tokenizer doesn't know <\|im_end\|>"):
        ChatTokenizer(tokenizer, template="chatml", tokens_per_tile=1)


def test_missing_image_tokens_are_added_and_special_ones_stay() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<user>", "<assistant>", "<end>", "<img>", "ship"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>", "<end>", "<img>"]})
    chat = ChatTokenizer(tokenizer, template="micro", tokens_per_tile=1)
    assert chat.added_tokens == 2 and len(chat) == 8
    assert chat.image_start_id == 4 and {chat.image_id, chat.image_end_id} == {6, 7}
    encoded = chat.encode(InstructionRecord("1", ("a.png",), (Turn("<image>ship", "ship"),)), [2])
    middle = [chat.image_id] * 2
    assert encoded.ids_N.tolist() == [1, 4, *middle, chat.image_end_id, 5, 2, 5, 3]
    assert ChatTokenizer(tokenizer, template="micro", tokens_per_tile=1).added_tokens == 0
    # A tokenizer that begins every text with a token of its own (Llama) doesn't begin every piece with it.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<user> $A", special_tokens=[("<user>", 1)]
    )
    assert tokenizer("ship")["input_ids"] == [1, 5]
    chat = ChatTokenizer(tokenizer, template="micro", tokens_per_tile=1)
    for said in ("ship", "ship <end>"):
        encoded = chat.encode(InstructionRecord("1", (), (Turn(said, "ship"),)), [])
        assert encoded.ids_N.tolist().count(1) == 1


@pytest.mark.parametrize(("tiles", "message"), [([], "0 images"), ([1, 1], "1 <image> marks but 2 images")])
def test_images_and_marks_must_agree(tiles: list[int], message: str) -> None:
    record = InstructionRecord("9", ("a.png",), (Turn("<image>\nship?", "yes"),))
    with pytest.raises(DataError, match=message):
        tiny_chat().encode(record, tiles)


def test_all_marks_of_a_template_stay_marks_beside_a_text_with_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    several = ChatTemplate(
        system="",
        user_start="<|im_start|>a<|im_end|>b<|im_start|>",
        user_end="<|im_end|>",
        assistant_start="<|im_start|>",
        stop="<|im_end|>",
    )
    monkeypatch.setitem(TEMPLATES, "several", several)
    chat = chat_of("several")
    start, stop = (chat.tokenizer.get_vocab()[name] for name in ("<|im_start|>", "<|im_end|>"))
    for question in ("ship", "<|im_end|> ship <|im_start|>"):
        asked = chat.encode_prompt(question, [])
        marks = [number for number in asked.ids_N.tolist() if number in (start, stop)]
        assert marks == [start, stop, start, stop, start]
        everywhere = np.ones(len(asked), bool)
        said = f"<|im_start|>a<|im_end|>b<|im_start|>{question}<|im_end|><|im_start|>"
        assert text_of(chat, asked, everywhere) == said
