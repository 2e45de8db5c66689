"""Whether answers look: measured on rules whose looking is known, and on a model against what it writes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import tiny_chat, tiny_vlm_config
from vitp.core.errors import ConfigError
from vitp.evaluation.looks import ModelReader, PlaceScore, by_class_alike, measure_looks, place_questions
from vitp.inference.ask import Assistant
from vitp.models.vlm import VisionLanguageModel
from vitp.records.labels import LabelledImage, LabelledSet

NAMES = ("water", "road", "field", "town")
COLOURS = np.array([[0, 0, 255], [255, 0, 0], [0, 255, 0], [255, 255, 0]], np.uint8)
SIDE = 48


def _given(mask):
    return mask


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> LabelledSet:
    """Images of 6 × 6 cells, the colour of a cell telling its class."""
    folder, items = tmp_path_factory.mktemp("coloured"), []
    for number in range(24):
        rng = np.random.default_rng([5, number])
        # Two classes an image: knowing the image narrows the answer down, without knowing the place.
        cells = rng.choice(rng.permutation(4)[:2], (6, 6)).astype(np.uint8)
        mask = cells.repeat(8, 0).repeat(8, 1)
        Image.fromarray(COLOURS[mask]).save(folder / f"{number}.png")
        path = str(folder / f"{number}.png")
        items.append(LabelledImage(str(number), path, SIDE, SIDE, semantic=partial(_given, mask)))
    return LabelledSet("coloured", items, (), (), NAMES, "CC0")


class Rule:
    """Answers by a rule over the picture: the colour of the place asked about, the commonest one, or always one."""

    side = SIDE

    def __init__(self, what: str) -> None:
        self.what = what

    def _class(self, record, tile) -> str:
        if tile is None or self.what == "guess":
            return NAMES[0]
        pixels = tile[0].transpose(1, 2, 0)
        if self.what == "place":
            question = record.turns[0].question
            numbers = [int(word.strip("(),.?")) for word in question.split() if word.strip("(),.?").isdigit()]
            if "row" in question:
                row, column = numbers[-2:]
                x, y = column * 8 - 4, row * 8 - 4
            else:
                x, y = (min(SIDE - 1, value * SIDE // 1000) for value in numbers[-2:])
            seen = pixels[y : y + 1, x : x + 1].reshape(-1, 3)
        else:
            seen = pixels.reshape(-1, 3)
        distance = np.abs(seen[:, None].astype(int) - COLOURS[None].astype(int)).sum(-1)
        found = distance.argmin(1)[distance.min(1) == 0]
        return NAMES[np.bincount(found, minlength=4).argmax()] if len(found) else NAMES[0]

    def likelihoods(self, records, tiles):
        right = [self._class(r, t) == r.turns[0].answer for r, t in zip(records, tiles, strict=True)]
        return [(is_right, 0.1 if is_right else 4.0) for is_right in right]

    def attention(self, record, tiles):
        return None

    def write(self, record, tiles):
        return ""


def test_a_rule_that_looks_is_told_from_those_that_see_or_guess(coloured):
    found = {
        what: {one.task: one for one in measure_looks(Rule(what), coloured, 90)}
        for what in ("place", "image", "guess")
    }
    for task in ("cell", "point"):
        place, image, guess = (found[what][task] for what in ("place", "image", "guess"))
        assert place.questions == 90 and place.classes == 4
        assert place.right == 1 and place.looks and place.asked > 2 > 0.5 > abs(place.elsewhere)
        # The commonest colour of the right image is better than blind, and hiding the place costs nothing.
        assert 0.3 < image.right < 0.8 and abs(image.asked - image.elsewhere) < 0.5 and not image.looks
        assert guess.right == guess.shuffled == guess.blind == 0.25 and not guess.looks
        assert place.blind == 0.25 and place.shuffled < 0.5


def test_classes_count_alike():
    assert by_class_alike([True, True, True, False], ["a", "a", "a", "b"]) == 0.5
    assert not PlaceScore("cell", 9, 3, right=0.0, shuffled=0.0, blind=0.0).looks


def test_a_right_answer_is_the_one_that_the_model_writes(coloured):
    """Told by one pass over question and answer; greedy decoding writes token after token."""
    chat = tiny_chat()
    torch.manual_seed(0)
    vlm = VisionLanguageModel(tiny_vlm_config(), vocabulary=len(chat)).eval()
    reader = ModelReader(vlm, chat)
    assistant = Assistant(vlm, chat, max_tiles=1)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    tile = np.array(picture).transpose(2, 0, 1)[None]
    record = next(iter(place_questions(coloured, 4))).record
    written = assistant.answer([picture], record.turns[0].question, max_new_tokens=4)
    turn = record.turns[0]
    same, other = (record.with_turns((type(turn)(turn.question, text),)) for text in (written, "harbour"))
    # An untrained model doesn't stop: of its own text all but the end is what it would write.
    encoded = [chat.encode(one, [1]).ids_N[chat.encode(one, [1]).supervised_N] for one in (same, other)]
    assert chat.decode(encoded[0].tolist()) == written
    (_, own), (is_right, _), (_, blind) = reader.likelihoods([same, other, same], [tile, tile, None])
    assert not is_right and own > 0 and blind != own
    alone = [reader.likelihoods([one], [tile])[0][1] for one in (same, other)]
    assert alone[0] == pytest.approx(own, rel=1e-5)
    attention = reader.attention(record, tile)
    assert attention.shape == (2, 4, 4) and (attention > 0).all() and (attention.sum((1, 2)) < 1).all()
    with pytest.raises(ConfigError, match="too few images"):
        measure_looks(reader, LabelledSet("none", coloured.items[:1], (), (), NAMES, "CC0"), 4)
