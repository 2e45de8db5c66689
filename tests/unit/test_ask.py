from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import save_image
from vitp.core.errors import DataError
from vitp.data.tiling import cut_tiles
from vitp.inference.ask import _COLOURS, Assistant, _PieceStreamer, draw_answer, place_marks


@pytest.fixture
def assistant(vlm, chat) -> Assistant:
    return Assistant(vlm, chat, max_tiles=4)


def greedy(vlm, chat, tiles: np.ndarray, question: str, tiles_per_image: list[int], steps: int) -> list[int]:
    """Token by token through the training forward, without cache or transformers' generate."""
    prompt = chat.encode_prompt(question, tiles_per_image)
    ids = prompt.ids_N.tolist()
    forbidden = [chat.image_id, chat.image_start_id, chat.image_end_id]
    new: list[int] = []
    for _ in range(steps):
        length = len(ids)
        with torch.no_grad():
            hidden = vlm(
                tiles_TCHW=torch.from_numpy(tiles),
                keep_K=torch.arange(len(tiles) * chat.tokens_per_tile),
                image_index_K=torch.from_numpy(np.flatnonzero(prompt.image_N)),
                ids_BL=torch.tensor([ids]),
                positions_BL=torch.arange(length)[None],
                segments_BL=torch.zeros(1, length, dtype=torch.long),
                branches_BL=torch.zeros(1, length, dtype=torch.long),
                target_index_S=torch.tensor([length - 1]),
            )
            logits = vlm.logits(hidden)[0]
        logits[forbidden] = -torch.inf
        new.append(int(logits.argmax()))
        ids.append(new[-1])
        if new[-1] == chat.stop_id:
            break
    return new


def test_greedy_answer_equals_the_argmax_of_the_training_forward(assistant, vlm, chat, tmp_path):
    path = save_image(tmp_path / "a.png", seed=1, size=(64, 32))
    answer = assistant.answer([path], "Is there a ship?", max_new_tokens=12)
    tiles = cut_tiles(Image.open(path), 32, 4)
    assert len(tiles) == 3
    expected = greedy(vlm, chat, tiles, "<image>\nIs there a ship?", [3], 12)
    assert answer == chat.decode(expected)
    assert len(expected) == 12


def test_two_images_share_the_tiles_and_are_numbered(assistant, vlm, chat, tmp_path):
    paths = [save_image(tmp_path / f"{n}.png", seed=n, size=(64, 32)) for n in range(2)]
    answer = assistant.answer(paths, "What changed?", max_new_tokens=5)
    parts = [cut_tiles(Image.open(path), 32, 2) for path in paths]
    question = "Image-1: <image>\nImage-2: <image>\nWhat changed?"
    expected = greedy(vlm, chat, np.concatenate(parts), question, [len(p) for p in parts], 5)
    assert answer == chat.decode(expected)


def test_the_image_matters_and_pil_images_do(assistant, tmp_path):
    path = save_image(tmp_path / "a.png", seed=1)
    image = Image.open(path)
    assert assistant.answer([image], "ship?", max_new_tokens=6) == assistant.answer(
        [path], "ship?", max_new_tokens=6
    )
    grey = image.convert("L")
    assert isinstance(assistant.answer([grey], "ship?", max_new_tokens=2), str)


def test_questions_without_images(assistant, vlm, chat):
    answer = assistant.answer([], "How many?", max_new_tokens=4)
    expected = greedy(vlm, chat, np.empty((0, 3, 32, 32), np.uint8), "How many?", [], 4)
    assert answer == chat.decode(expected)


def test_answers_stop_at_the_stop_token(assistant, vlm, chat, tmp_path):
    path = save_image(tmp_path / "a.png")
    rigged = vlm.language.lm_head.weight.detach().clone()
    with torch.no_grad():
        # Untie, so that the stop token wins whatever comes in.
        vlm.language.lm_head.weight = torch.nn.Parameter(torch.zeros_like(rigged))
        vlm.language.lm_head.bias = torch.nn.Parameter(torch.eye(len(chat))[chat.stop_id])
    assert assistant.answer([path], "ship?", max_new_tokens=9) == ""


def test_stream_gives_the_answer_in_pieces(assistant, tmp_path):
    path = save_image(tmp_path / "a.png")
    pieces: list[str] = []
    answer = assistant.answer([path], "ship?", max_new_tokens=20, stream=pieces.append)
    assert "".join(pieces) == answer
    assert len(pieces) > 3
    assert all(pieces)


def test_stream_keeps_markup_and_holds_back_halves_of_characters(chat):
    text = "<ref>ship</ref><box>[[1, 20, 300, 4]]</box> 飞机 ✈"
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces: list[str] = []
    streamer = _PieceStreamer(chat, pieces.append)
    streamer.put(torch.empty(1, 0, dtype=torch.long))
    for token in [*ids, chat.stop_id]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)
    assert "<box>" in pieces
    assert "飞" in pieces


def test_sampling_is_seeded_by_torch(assistant, tmp_path):
    path = save_image(tmp_path / "a.png")
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        answers.append(assistant.answer([path], "ship?", max_new_tokens=16, do_sample=True, temperature=2.0))
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_history_is_read(assistant, chat, tmp_path):
    path = save_image(tmp_path / "a.png")
    history = [("How many ships?", "two")]
    prompts = []
    encode = chat.encode_prompt

    class Spy:
        def __getattr__(self, name):
            return getattr(chat, name)

        def encode_prompt(self, question, tiles, past=()):
            prompts.append((question, list(past)))
            return encode(question, tiles, past)

    assistant.chat = Spy()
    assistant.answer([path], "And planes?", history=history, max_new_tokens=1)
    assert prompts == [("And planes?", [("<image>\nHow many ships?", "two")])]
    assert history == [("How many ships?", "two")]


def test_marks_are_placed_once():
    assert place_marks("a", [], 0) == ("a", [])
    assert place_marks("a", [], 1) == ("<image>\na", [])
    assert place_marks("a <image> b", [], 1) == ("a <image> b", [])
    assert place_marks("b", [("<image>\na", "x")], 1) == ("b", [("<image>\na", "x")])
    assert place_marks("c", [("a", "x"), ("b", "y")], 1) == ("c", [("<image>\na", "x"), ("b", "y")])


@pytest.mark.parametrize("question, images", [("<image> a", 0), ("<image> a", 2), ("<image><image> a", 1)])
def test_marks_that_differ_from_the_images_are_an_error(assistant, tmp_path, question, images):
    paths = [save_image(tmp_path / f"{n}.png") for n in range(images)]
    with pytest.raises(DataError, match=rf"{question.count('<image>')} <image> marks but {images} images"):
        assistant.answer(paths, question)


def test_bad_inputs_are_errors_of_the_user(assistant, tmp_path):
    with pytest.raises(DataError, match="image is missing"):
        assistant.answer([tmp_path / "none.png"], "ship?")
    with pytest.raises(DataError, match=r"half a character \(the lone surrogate U\+D83D\)"):
        assistant.answer([], "ship \ud83d?")
    with pytest.raises(DataError, match="a NUL character"):
        assistant.answer([], "ship?", history=[("plane\0?", "no")])
    with pytest.raises(DataError, match="exceed the 4096 that the language model reads"):
        assistant.answer([], "ship? " * 2000)


def coloured(image: Image.Image, colour: str) -> np.ndarray:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere((np.asarray(image) == rgb).all(-1))


def test_boxes_are_drawn_where_the_answer_says():
    blank = Image.new("RGB", (400, 200))
    drawn = draw_answer(blank, "<ref>x</ref><box>[[250, 500, 750, 900]]</box>")
    assert drawn.size == (400, 200)
    assert not np.asarray(blank).any()
    pixels = coloured(drawn, _COLOURS[0])
    outline = {(int(y), int(x)) for y, x in pixels}
    for y, x in [(100, 100), (100, 299), (179, 200), (140, 100), (140, 300)]:
        assert any((y + dy, x + dx) in outline for dy in (-1, 0, 1) for dx in (-1, 0, 1)), (y, x)
    assert (140, 200) not in outline
    assert pixels[:, 0].max() <= 182
    assert pixels[:, 1].min() >= 98
    assert pixels[:, 1].max() <= 302


def test_quads_and_geochat_boxes_are_drawn():
    blank = Image.new("RGB", (300, 300))
    quad = coloured(
        draw_answer(blank, "<ref>x</ref><quad>[[500, 300, 700, 500, 500, 700, 300, 500]]</quad>"), _COLOURS[0]
    )
    upright = coloured(draw_answer(blank, "<ref>x</ref>{<300><450><700><550>|<90>}"), _COLOURS[0])
    assert abs(quad[:, 0].max() - 210) <= 2
    assert quad[:, 1].min() >= 88
    # A lying box turned by 90° stands.
    assert abs(upright[:, 0].max() - 210) <= 2
    assert abs(upright[:, 1].max() - 165) <= 4


def test_labels_get_a_colour_each():
    answer = "<ref>ship</ref><box>[[0, 0, 400, 400]]</box><ref>plane</ref><box>[[500, 500, 1000, 1000]]</box>"
    drawn = draw_answer(Image.new("RGB", (300, 300)), answer)
    assert len(coloured(drawn, _COLOURS[0])) > 100
    assert len(coloured(drawn, _COLOURS[1])) > 100
    assert len(coloured(drawn, _COLOURS[2])) == 0


def test_text_without_boxes_leaves_the_image(tmp_path):
    path = save_image(tmp_path / "a.png")
    for answer in ("", "yes", "<ref>x</ref><box>[[5, 5, 1]]</box>", "<box>[[1, 1, 5, 5]]"):
        assert np.array_equal(np.asarray(draw_answer(path, answer)), np.asarray(Image.open(path)))
