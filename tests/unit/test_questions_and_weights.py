"""What makes answers tell of the image: wordings, location tokens, parallel answers, weights, edited captions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import make_record, random_tiles, tiny_chat, tiny_vlm_config
from tests.objective_toys import image_text
from tests.synthesis_toys import make_image, only, rectangle
from vitp.core.errors import ConfigError
from vitp.data.locations import with_locations, without_locations
from vitp.data.packing import pack
from vitp.data.synthesis.build import SynthesisConfig, synthesize_with_tasks
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.edited import edited
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.image_text import ImageTextBatch
from vitp.objectives.lexicon import LexiconSettings, LexiconWeights
from vitp.objectives.prior_weights import PriorWeights, TextReference
from vitp.objectives.text_tower import LanguageTextTower, TextBatch
from vitp.objectives.vitp import ViTPObjective
from vitp.records.instructions import InstructionRecord, Turn
from vitp.records.labels import LabelledImage

CHAT = tiny_chat()
CLASSES = SetClasses(("ship", "crane"), (), (), "toy")


def vlm(seed: int = 0) -> VisionLanguageModel:
    torch.manual_seed(seed)
    return VisionLanguageModel(tiny_vlm_config(), vocabulary=len(CHAT)).eval()


def batch_of(*records: InstructionRecord, parallel: float = 0.0):
    encoded = [CHAT.encode(record, [1]) for record in records]
    if parallel:
        encoded = [one.in_parallel(parallel, np.random.default_rng(0)) for one in encoded]
    tiles = [random_tiles(i, 1) for i in range(len(records))]
    kept = [np.arange(16)] * len(records)
    return pack(encoded, tiles, kept, tokens_per_tile=16, max_length=512, pad_id=CHAT.pad_id)


def asked(*answers: str) -> InstructionRecord:
    turns = tuple(
        Turn(("<image>\n" if n == 0 else "") + "Is there a ship?", a) for n, a in enumerate(answers)
    )
    return InstructionRecord("r", ("i.png",), turns, independent=True)


def test_one_wording_is_the_first_and_none_changes_nothing():
    item = make_image(3)
    classes = SetClasses(("ship", "crane", "storage_tank", "barge", "buoy"), ("harbour",), (), "port")

    def questions(**changes):
        config = replace(only("presence", "position", "count"), questions_per_image=8, **changes)
        return [t.question for t in synthesize_with_tasks(item, classes, seed=1, config=config)[0].turns]

    assert questions() == questions(wordings=0) != questions(wordings=1)
    assert all(
        text.removeprefix("<image>\n").startswith(("Do you see", "In which part", "How many"))
        for text in questions(wordings=1)
    )
    # What tells compiled sets apart stays what it was.
    assert (
        "wordings" not in SynthesisConfig().stated() and SynthesisConfig(wordings=1).stated()["wordings"] == 1
    )
    with pytest.raises(ConfigError, match="synthesis wordings"):
        SynthesisConfig(wordings=101)


def test_ptp_names_the_right_block_in_both_forms_for_all_blocks():
    side, forms = 4, set()
    config = replace(only("block"), questions_per_image=2, wordings=1, grid=side)
    for number in range(side * side):
        row, column = divmod(number, side)
        box = rectangle("ship", (column + 0.5) * 24, (row + 0.5) * 24, 8, 8)
        item = LabelledImage(f"b{number}", "b.png", 96, 96, objects=(box,))
        for seed in range(3):
            record, tasks = synthesize_with_tasks(item, CLASSES, seed=seed, config=config)
            assert (record, tasks) == synthesize_with_tasks(item, CLASSES, seed=seed, config=config)
            for turn in record.turns:
                text = turn.question.removeprefix(record.prefix)
                to_block = "which block" in text
                forms.add(to_block)
                assert turn.answer == (str(number + 1) if to_block else "ship")
                assert to_block or text == f"On a 4 by 4 grid, the block {number + 1} has a:"
                CHAT.encode(record, [1])
    assert forms == {True, False} and set(tasks) == {"block"}
    assert SynthesisConfig().weight("block") == 0  # sets compiled before have none


COORDINATES = st.lists(st.integers(0, 1000), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(COORDINATES, min_size=1, max_size=3), st.sampled_from([2, 17, 101, 1001]))
def test_coordinates_become_one_token_each_and_come_back(boxes, count):
    text = f"a (3, 4) <ref>ship</ref><box>[{', '.join(str(box) for box in boxes)}]</box> [1, 2]"
    told = with_locations(text, count)
    assert (
        told.count("<loc_") == 4 * len(boxes)
        and told.startswith("a (3, 4) <ref>")
        and told.endswith(" [1, 2]")
    )
    back = without_locations(told, count)
    if count == 1001:
        assert back == text
    inner = back.split("<box>[")[1].split("]</box>")[0]
    values = [int(value) for value in inner.replace("[", "").replace("]", "").split(",")]
    wanted = [value for box in boxes for value in box]
    assert max(abs(a - b) for a, b in zip(values, wanted, strict=True)) <= 500 / (count - 1) + 1
    assert with_locations(text, 0) == without_locations(text, 0) == text


def test_location_tokens_shorten_records_and_are_answers_again():
    chat = tiny_chat()
    turns = (
        Turn("<image>\nWhat is at (250, 500)?", "<ref>ship</ref><box>[[100, 200, 300, 400]]</box>"),
        Turn("What is in <box>[0, 0, 500, 1000]</box>?", "ship"),
    )
    record = InstructionRecord("r", ("i.png",), turns, independent=True)
    before, prompt = chat.encode(record, [1]), chat.encode_prompt(turns[0].question, [1])
    chat.add_locations(101)
    after = chat.encode(record, [1])
    assert len(after) < len(before) - 30 and len(chat.encode_prompt(turns[0].question, [1])) < len(prompt)
    named = chat.tokenizer.convert_ids_to_tokens(after.ids_N[after.supervised_N & (after.branches_N == 1)])
    assert named[-6:-2] == ["<loc_10>", "<loc_20>", "<loc_30>", "<loc_40>"]
    assert chat.decode(after.ids_N[after.supervised_N & (after.branches_N == 1)].tolist()) == turns[0].answer
    again = type(chat)(chat.tokenizer, template="micro", tokens_per_tile=16)
    assert again.locations == 101 and np.array_equal(again.encode(record, [1]).ids_N, after.ids_N)
    for count, message in ((1, "tells nothing"), (64, "has 101 location tokens")):
        with pytest.raises(ConfigError, match=message):
            chat.add_locations(count)


def test_tokens_of_a_parallel_answer_see_none_of_each_other():
    model = vlm()
    objective = ViTPObjective(model, CHAT)

    def states(*answers: str, parallel: float):
        made = batch_of(asked(*answers), parallel=parallel)
        names = ("tiles_TCHW", "keep_K", "image_index_K", "ids_BL", "positions_BL")
        names += ("segments_BL", "branches_BL", "target_index_S")
        with torch.no_grad():
            return made, model(**{name: getattr(made, name) for name in names})

    length = len(CHAT.encode(asked("yes no one"), [1]).ids_N)
    other = next(a for a in ("one no yes", "no one yes") if len(CHAT.encode(asked(a), [1]).ids_N) == length)
    batch, hidden = states("yes no one", parallel=1.0)
    edited_batch, edited_hidden = states(other, parallel=1.0)
    assert not torch.equal(batch.target_ids_S, edited_batch.target_ids_S)
    assert torch.equal(hidden, edited_hidden)  # no answer token is read by any other
    assert not torch.allclose(states("yes no one", parallel=0.0)[1], states(other, parallel=0.0)[1])
    # What is predicted is the same, and with a share of 0 so is what is read.
    plain = batch_of(asked("yes no one"))
    assert torch.equal(plain.target_ids_S, batch.target_ids_S) and not torch.equal(plain.ids_BL, batch.ids_BL)
    half = CHAT.encode(asked(*["yes"] * 40), [1]).in_parallel(0.5, np.random.default_rng(1))
    hidden_turns = {int(branch) for branch in half.branches_N[half.hidden_N]}
    assert 8 < len(hidden_turns) < 32
    objective(batch)["language"].backward()


def test_prior_weights_can_keep_the_loss_its_size():
    batch = batch_of(make_record(1), make_record(2))
    reference = TextReference(vlm(1).language)
    plain, normalised = (PriorWeights(reference, 2.0, normalise=n)(batch) for n in (False, True))
    assert normalised.mean().item() == pytest.approx(1) and plain.mean() < 1
    torch.testing.assert_close(plain / plain.mean(), normalised)
    flat = ViTPObjective(vlm(), CHAT, prior=PriorWeights(reference, 0.0, normalise=True))(batch)["language"]
    torch.testing.assert_close(flat, ViTPObjective(vlm(), CHAT)(batch)["language"])


def test_listed_entities_weigh_more_and_none_changes_nothing():
    batch = batch_of(asked("yes two ships, one harbour", "Ship"), asked("no shipping"))
    weights = LexiconWeights(CHAT, LexiconSettings(words=["ship", "two ships"], weight=3.0))(batch)
    assert weights.mean().item() == pytest.approx(1) and len(set(weights.tolist())) == 2
    text = [CHAT.tokenizer.decode([number]) for number in batch.target_ids_S.tolist()]
    heavy = "".join(t for t, w in zip(text, weights.tolist(), strict=True) if w > 1)
    assert "shipping" not in heavy and heavy.replace(" ", "") == "twoshipsShip"
    model = vlm()
    weighted = ViTPObjective(
        model, CHAT, lexicon=LexiconWeights(CHAT, LexiconSettings(words=["ship"], weight=1.0))
    )
    plain = ViTPObjective(model, CHAT)(batch)["language"]
    torch.testing.assert_close(weighted(batch)["language"], plain)
    assert ViTPObjective(model, CHAT, lexicon=None)(batch)["language"] == plain


def test_the_language_models_text_vector_without_causal_mask_ignores_padding():
    tower = LanguageTextTower(vlm().language, causal=False).eval()
    ids = torch.tensor([[5, 9, 12, 7]])
    padded = TextBatch(torch.cat([ids, torch.full((1, 5), 3)], 1), torch.arange(9)[None] < 4)
    whole = TextBatch(ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(tower(padded), tower(whole), atol=1e-5, rtol=1e-5)
    last = TextBatch(torch.tensor([[5, 9, 12, 8]]), whole.valid_BL)
    assert not torch.allclose(tower(last), tower(whole))
    # The first token knows the last one, which no causal model's does.
    hidden = [
        t.decoder(
            input_ids=w.ids_BL, attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.bool)
        ).last_hidden_state
        for t in (tower,)
        for w in (whole, last)
    ]
    assert not torch.allclose(hidden[0][0, 0], hidden[1][0, 0])
    causal = LanguageTextTower(vlm().language).eval()
    assert not torch.allclose(causal(whole), tower(whole)) and tower.flops(whole) > causal.flops(whole)


def test_an_edited_caption_differs_in_exactly_one_word_and_trains():
    names = ("ship", "storage_tank", "crane")
    text = "A harbour with three ships, two storage tanks and a large red crane, left of the water."
    seen = set()
    for seed in range(60):
        edit = edited(text, names, np.random.default_rng(seed))
        assert edit.text != text and edit.before.casefold() != edit.after.casefold()
        assert edit.text.count(edit.after) > text.count(edit.after)
        assert edit.text.replace(edit.after, edit.before, 1) == text or edit.text.count(edit.after) > 1
        seen.add(edit.before)
    assert {"three", "two", "large", "red", "left"} <= seen and not seen & {"ships", "storage tanks"}
    assert edited("Nothing to exchange", names, np.random.default_rng(0)) is None
    assert edited("One ship", names, np.random.default_rng(0)).text in ("One storage tank", "One crane")


def test_edited_captions_are_told_from_true_ones_after_training():
    torch.manual_seed(0)
    objective = image_text("clip")
    objective.loss_weights = {"negatives": 1.0}
    rng = np.random.default_rng(0)
    tiles = torch.from_numpy(rng.integers(0, 255, (8, 3, *objective.vision_tower.image_size), np.uint8))
    ids = torch.arange(8)[:, None] + 10
    wrong = torch.cat([ids, ids + 20], 1)
    right = torch.cat([ids, ids + 40], 1)
    valid = torch.ones_like(right, dtype=torch.bool)
    batch = ImageTextBatch(
        tiles, TextBatch(right, valid), tuple("abcdefgh"), TextBatch(wrong[:6], valid[:6]), torch.arange(6)
    )
    assert objective.loss_counts(batch) == {"contrast": 8.0, "negatives": 6.0}
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        sums = objective(batch)
        losses.append(float(sums["negatives"].detach()) / 6)
        (sums["contrast"] / 8 + sums["negatives"] / 6).backward()
        optimizer.step()
        optimizer.zero_grad()
    # ln 2 is chance; the true caption is preferred for each image when the loss is far below it.
    assert losses[-1] < 0.3 < losses[0]
    objective.loss_weights = {}
    assert set(objective(batch)) == {"contrast"} == set(objective.loss_counts(batch))
