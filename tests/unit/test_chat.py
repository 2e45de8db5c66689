"""Token layout: positions, branches, and loss on the answers only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import make_record, tiny_chat
from vitp.data.chat import ChatTokenizer
from vitp.data.packing import first_fit_decreasing
from vitp.data.records import InstructionRecord, Turn
from vitp.data.tokenizer import train_tokenizer
from vitp.errors import ConfigError, DataError

CHAT = tiny_chat()


def test_loss_covers_answers_and_stop_tokens_only():
    record = InstructionRecord("1", ("a.png",), (Turn("<image>\nship?", "yes"), Turn("plane?", "no")))
    encoded = CHAT.encode(record, [1])
    supervised = encoded.ids_N[encoded.supervised_N]
    assert CHAT.tokenizer.decode(supervised) == "yes<end>no<end>"
    assert int(encoded.image_N.sum()) == 16


def test_micro_layout_reads_as_expected():
    record = InstructionRecord("1", ("a.png",), (Turn("<image>\nship?", "yes"),))
    text = CHAT.tokenizer.decode(CHAT.encode(record, [1]).ids_N)
    assert text == "<user><img>" + "<IMG_CONTEXT>" * 16 + "</img>\nship?<assistant>yes<end>"


def test_internvl_layout_reads_as_expected():
    tokenizer = train_tokenizer(["system user assistant ship yes"] * 30, vocabulary=320)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    chat = ChatTokenizer(tokenizer, template="chatml", tokens_per_tile=2)
    record = InstructionRecord("1", ("a.png",), (Turn("<image>\nship?", "yes"),))
    encoded = chat.encode(record, [1])
    assert chat.tokenizer.decode(encoded.ids_N) == (
        "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\nship?<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n"
    )
    assert chat.tokenizer.decode(encoded.ids_N[encoded.supervised_N]) == "yes<|im_end|>"


def test_independent_questions_start_at_the_same_position():
    encoded = CHAT.encode(make_record(3, turns=3), [2])
    prefix = int((encoded.branches_N == 0).sum())
    for branch in (1, 2, 3):
        positions = encoded.positions_N[encoded.branches_N == branch]
        assert np.array_equal(positions, prefix + np.arange(len(positions)))


def test_prompt_is_the_beginning_of_the_training_sequence():
    """What the model is asked is what it was trained on, token for token."""
    record = InstructionRecord("1", ("a.png",), (Turn("<image>\nship?", "yes"),), independent=True)
    trained = CHAT.encode(record, [2])
    asked = CHAT.encode_prompt("<image>\nship?", [2])
    answer = int(np.flatnonzero(trained.supervised_N)[0])
    assert np.array_equal(asked.ids_N, trained.ids_N[:answer])
    assert np.array_equal(asked.positions_N, trained.positions_N[:answer])


def test_placeholder_in_a_text_is_refused():
    record = InstructionRecord("7", ("a.png",), (Turn("<image>\nship <IMG_CONTEXT>?", "yes"),))
    with pytest.raises(DataError, match="record 7: a text holds"):
        CHAT.encode(record, [1])


def test_tiles_for_another_number_of_images_are_refused():
    with pytest.raises(DataError, match="2 images"):
        CHAT.encode(make_record(1), [1, 1])


def test_unknown_template_suggests_the_nearest():
    with pytest.raises(ConfigError, match='did you mean "internvl2_5"'):
        ChatTokenizer(CHAT.tokenizer, template="internvl25", tokens_per_tile=1)


@given(st.text(max_size=60))
def test_tokenizer_writes_any_text(text):
    import unicodedata

    ids = CHAT.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert CHAT.tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(100, 300))
def test_packing_keeps_every_item_once_and_fits(lengths, capacity):
    rows = first_fit_decreasing(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)
    assert len(rows) <= 2 * -(-sum(lengths) // capacity), (
        "first fit uses at most twice the least number of rows"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": ()}, "has no question"),
        ({"turns": (Turn("<image>\na?", " "),)}, "answer 1 is empty"),
        ({"turns": (Turn("a?", "b"),)}, "0 <image> marks but 1 images"),
        ({"turns": (Turn("<image>\na?", "b"), Turn("<image>\nc?", "d"))}, "2 <image> marks but 1 images"),
    ],
)
def test_record_is_checked_at_the_door(changes, message):
    values = {"id": "9", "images": ("a.png",), "turns": (Turn("<image>\na?", "b"),), "origin": "x.jsonl:4"}
    with pytest.raises(DataError, match=message) as caught:
        InstructionRecord(**(values | changes))
    assert "x.jsonl:4 (id 9)" in str(caught.value)
