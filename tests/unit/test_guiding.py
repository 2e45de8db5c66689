"""Guided attention: which place a question names, where it lies among a batch's tokens, and what its loss is."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import random_tiles, tiny_chat, tiny_vlm_config
from vitp.core.errors import ConfigError
from vitp.data.asked_places import asked_place, tokens_inside
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.packing import PackedBatch, pack
from vitp.data.record_set import ListRecords
from vitp.engine.config import TrainSettings
from vitp.engine.sharding import shard
from vitp.models.attention_layouts import packed_attention_mask
from vitp.models.compute import ComputeSettings, configure
from vitp.models.language import LanguageSettings
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.guiding import GUIDE_LOSS, GuideSettings, asked, places_warning
from vitp.objectives.packed_layouts import with_layout
from vitp.objectives.vitp import ViTPObjective
from vitp.records.instructions import InstructionRecord, Turn
from vitp.runs.pretrain import PretrainConfig

CHAT = tiny_chat()
SIDE = 4
TOLD = GuideSettings(weight=1.0)
KINDS = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "llama": {},
}


def language(kind: str) -> LanguageSettings:
    return LanguageSettings(
        model_type=kind,
        arguments={
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            **KINDS[kind],
        },
    )


def vlm(kind: str = "qwen2", std: float = 0.3) -> VisionLanguageModel:
    torch.manual_seed(0)
    model = VisionLanguageModel(tiny_vlm_config(language=language(kind)), vocabulary=len(CHAT))
    for parameter in model.language.parameters():
        if parameter.ndim > 1:  # as transformers leaves them, attention is all but equal
            torch.nn.init.normal_(parameter, std=std)
    return model


def record(number: int, *questions: str, answer: str = "one ship") -> InstructionRecord:
    marks = [f"<image>\n{question}" if n == 0 else question for n, question in enumerate(questions)]
    turns = tuple(Turn(text, f"{answer} {n}") for n, text in enumerate(marks))
    return InstructionRecord(id=str(number), images=(f"{number}.png",), turns=turns, independent=True)


def packed(records: list[InstructionRecord], kept: list[np.ndarray], *, together: bool = True) -> PackedBatch:
    encoded = [
        replace(
            CHAT.encode(one, [1]),
            inside_QI=tokens_inside([turn.question for turn in one.turns], 1, SIDE**2),
        )
        for one in records
    ]
    tiles = [random_tiles(int(one.id), 1) for one in records]
    return pack(
        encoded,
        tiles,
        kept,
        tokens_per_tile=SIDE**2,
        max_length=512,
        pad_id=CHAT.pad_id,
        together=together,
    )


def cell(row: int, column: int, side: int = SIDE) -> str:
    return f"On the {side} by {side} grid, name row {row}, column {column}."


ALL = np.arange(SIDE**2)


@pytest.mark.parametrize(
    ("question", "place"),
    [
        ("In a 6 by 6 grid, what is in row 2, column 3?", (2 / 6, 1 / 6, 3 / 6, 2 / 6)),
        ("Class on a 4 by 4 grid at Row 4, Column 1?", (0, 3 / 4, 1 / 4, 1)),
        ("What is in <box>[100, 200, 300, 450]</box>?", (0.1, 0.2, 0.3, 0.45)),
        ("What is at (500, 250)?", (0.5 - 1 / 12, 0.25 - 1 / 12, 0.5 + 1 / 12, 0.25 + 1 / 12)),
        ("What is at (0, 1000)?", (0, 1 - 1 / 6, 1 / 6, 1)),
        ("What is in row 2, column 3?", None),
        ("In a 6 by 6 grid, what is in row 7, column 3?", None),
        ("In a 6 by 6 grid, what is in row 0, column 3?", None),
        ("Is <box>[0, 0, 10, 10]</box> left of <box>[20, 0, 30, 10]</box>?", None),
        ("Which of (10, 10) and (20, 20) is water?", None),
        ("What is in <box>[300, 200, 100, 450]</box>?", None),
        ("What is at (1500, 20)?", None),
        ("How many ships (10)?", None),
    ],
)
def test_the_place_that_a_question_names(question: str, place: tuple[float, ...] | None) -> None:
    found = asked_place(question)
    assert found == (None if place is None else pytest.approx(place))


def test_image_tokens_of_a_place() -> None:
    """A cell is its tokens; a box smaller than a token is the one around it; of several tiles the last counts."""
    inside_QI = tokens_inside(
        [cell(1, 2, 2), "<box>[510, 510, 520, 520]</box>", "what is this?", "<box>[1000, 0, 1000, 0]</box>"],
        3,
        SIDE**2,
    )
    assert inside_QI.shape == (4, 3 * SIDE**2) and not inside_QI[:, : 2 * SIDE**2].any()
    places = inside_QI[:, 2 * SIDE**2 :]
    assert np.flatnonzero(places[0]).tolist() == [2, 3, 6, 7]
    assert np.flatnonzero(places[1]).tolist() == [10]
    assert not places[2].any()
    assert np.flatnonzero(places[3]).tolist() == [3]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**16)), min_size=1, max_size=5)
)
def test_places_among_the_tokens_of_a_batch(plans: list[tuple[int, int, int]]) -> None:
    """Whatever survives and however records are packed: a query foretells its answer, a token lies in its cell."""
    records, kept = [], []
    for number, (turns, plain, seed) in enumerate(plans):
        rng = np.random.default_rng(seed)
        cells = [cell(*map(int, rng.integers(1, SIDE + 1, 2))) for _ in range(turns)]
        asking = [*cells, *["how many?"] * plain]
        records.append(record(number, *(asking[i] for i in rng.permutation(len(asking)))))
        kept.append(np.sort(rng.permutation(SIDE**2)[: rng.integers(1, SIDE**2 + 1)]))
    batch = packed(records, kept)
    expected = []
    for number, (one, survivors) in enumerate(zip(records, kept, strict=True)):
        for n, turn in enumerate(one.turns):
            place = asked_place(turn.question)
            if place is not None:
                token = round(place[1] * SIDE) * SIDE + round(place[0] * SIDE)
                if token in survivors:
                    first = CHAT.tokenizer(f"one ship {n}", add_special_tokens=False)["input_ids"][0]
                    expected.append((number, SIDE**2 * number + token, first, len(survivors)))
    places = asked(batch)
    found = []
    for query, inside_K, own_K in zip(places.query_P, places.inside_PK, places.own_PK, strict=True):
        (token,) = batch.keep_K[inside_K].tolist()
        numbers = (batch.keep_K[own_K] // SIDE**2).unique().tolist()
        assert numbers == [token // SIDE**2]
        found.append((numbers[0], token, int(batch.target_ids_S[query]), int(own_K.sum())))
        # What foretells the answer isn't supervised itself: it ends the question.
        assert int(batch.target_index_S[query]) - 1 not in batch.target_index_S.tolist()
        row, place = divmod(int(batch.target_index_S[query]), batch.ids_BL.shape[1])
        (segment,) = batch.segments_BL.flatten()[batch.image_index_K[own_K]].unique().tolist()
        assert (int(batch.image_index_K[own_K][0]) // batch.ids_BL.shape[1], segment) == (
            row,
            int(batch.segments_BL[row, place]),
        )
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("laid_out", [False, True])
def test_the_loss_is_that_of_the_attention_weights(kind: str, laid_out: bool) -> None:
    """Against transformers' own weights of each record by itself, at the middle layer, its first two heads."""
    model = vlm(kind).eval()
    records = [record(0, cell(2, 3)), record(1, "how many?", cell(4, 4)), record(2, cell(1, 1))]
    kept = [ALL, ALL[::3], ALL[1:]]  # the token of the last record's cell doesn't survive
    batch = packed(records, kept)
    inputs = model.embed(batch.tiles_TCHW, batch.keep_K, batch.image_index_K, batch.ids_BL)
    seen = packed_attention_mask(batch.segments_BL, batch.branches_BL)
    seen = seen | torch.eye(
        seen.shape[-1], dtype=torch.bool
    )  # padding sees itself, as no softmax is over nothing
    model.language.set_attn_implementation("eager")
    weights_BALL = model.language.get_decoder()(
        inputs_embeds=inputs,
        position_ids=batch.positions_BL,
        attention_mask=torch.zeros(seen.shape).masked_fill(~seen, torch.finfo().min),
        output_attentions=True,
        use_cache=False,
    ).attentions[1]
    expected, length = 0.0, batch.ids_BL.shape[1]
    for query, own_K in zip(asked(batch).query_P, asked(batch).own_PK, strict=True):
        place, images = int(batch.target_index_S[query]), batch.image_index_K[own_K]
        number = int(batch.keep_K[own_K][0]) // SIDE**2
        token = {0: 6, 1: 5}[number]  # the cell's among those that survive
        heads_AK = weights_BALL[place // length, :2, place % length, images % length]
        expected -= float((heads_AK[:, token] / heads_AK.sum(-1)).log().mean().detach())
    model = vlm(kind).eval()
    objective = ViTPObjective(model, CHAT, guide=TOLD)
    batch = with_layout(batch) if laid_out else batch
    losses, counts = objective(batch), objective.loss_counts(batch)
    assert counts[GUIDE_LOSS] == 2
    assert float(losses[GUIDE_LOSS].detach()) == pytest.approx(expected, rel=1e-4)
    assert float(losses["language"].detach()) == pytest.approx(
        float(ViTPObjective(model, CHAT)(batch)["language"].detach()), rel=1e-6
    )


def test_the_loss_does_not_depend_on_how_a_batch_is_cut() -> None:
    objective = ViTPObjective(vlm(), CHAT, guide=TOLD)
    records = [record(n, cell(1 + n % 4, 1 + n // 2), "how many?", cell(2, 2)) for n in range(4)]
    whole = packed(records, [ALL] * 4)
    parts = [packed(records[:1], [ALL]), packed(records[1:], [ALL] * 3, together=False)]
    total = sum(float(objective(part)[GUIDE_LOSS].detach()) for part in parts)
    assert float(objective(whole)[GUIDE_LOSS].detach()) == pytest.approx(total, rel=1e-5)
    assert sum(objective.loss_counts(part)[GUIDE_LOSS] for part in parts) == 8


@pytest.mark.parametrize(
    "compute",
    [ComputeSettings(compile="all"), ComputeSettings(recompute="full")],
    ids=["compiled", "recomputed"],
)
def test_compiled_and_recomputed_layers_are_watched_as_well(compute: ComputeSettings) -> None:
    batch = with_layout(packed([record(n, cell(1 + n, 2), "how many?") for n in range(3)], [ALL] * 3))
    gradients = []
    for chosen in (ComputeSettings(), compute):
        model = vlm()
        configure(model, chosen, backend="eager")
        objective = copy.deepcopy(ViTPObjective(model, CHAT, guide=TOLD))
        sum(objective(batch).values(), torch.zeros(())).backward()
        gradients.append({name: p.grad for name, p in objective.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-4, msg=name)


def test_a_batch_that_asks_for_no_place_has_no_loss() -> None:
    objective = ViTPObjective(vlm(), CHAT, guide=TOLD)
    batch = packed([record(0, "how many?")], [ALL])
    loss = objective(batch)[GUIDE_LOSS]
    loss.backward()
    assert float(loss.detach()) == 0 and objective.loss_counts(batch)[GUIDE_LOSS] == 0


def test_attention_goes_where_it_is_told() -> None:
    """Works means: after 240 steps nearly all of the told heads' attention to images never seen is in the quarter."""
    model = vlm(std=0.1)
    objective = ViTPObjective(model, CHAT, guide=TOLD, freeze=["vision"])
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    rng = np.random.default_rng(0)

    def losses_of(step: int) -> dict[str, torch.Tensor]:
        quarters = [cell(*map(int, rng.integers(1, 3, 2)), 2) for _ in range(8)]
        batch = packed([record(step, *quarters)], [ALL])
        counts = objective.loss_counts(batch)
        return {name: loss / counts[name] for name, loss in objective(batch).items()}

    before = float(losses_of(0)[GUIDE_LOSS].detach())
    for step in range(1, 241):
        optimizer.zero_grad()
        torch.stack(list(losses_of(step).values())).sum().backward()
        optimizer.step()
    after = float(losses_of(241)[GUIDE_LOSS].detach())
    assert np.exp(-before) == pytest.approx(0.25, abs=0.05)
    assert np.exp(-after) > 0.9


def test_what_a_language_model_lacks_is_refused() -> None:
    for wrong, where in (
        (GuideSettings(weight=1, layer=3), "objective.guide.layer"),
        (GuideSettings(weight=1, heads=5), "objective.guide.heads"),
    ):
        with pytest.raises(ConfigError, match="more than the language model has") as caught:
            ViTPObjective(vlm(), CHAT, guide=wrong)
        assert caught.value.where == where
    old = LanguageSettings(
        model_type="gpt_neox",
        arguments={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        },
    )
    model = VisionLanguageModel(tiny_vlm_config(language=old), vocabulary=len(CHAT))
    with pytest.raises(ConfigError, match="doesn't keep queries and keys apart"):
        ViTPObjective(model, CHAT, guide=TOLD)


def test_a_sharded_model_is_refused() -> None:
    objective = ViTPObjective(vlm(), CHAT, guide=TOLD)
    with pytest.raises(ConfigError, match=r"objective\.guide reads weights") as caught:
        shard(objective, TrainSettings(steps=1, parallel="fsdp"), torch.device("cpu"))
    assert caught.value.where == "train.parallel"


def mixture_of(count: int, *questions: str, images: int = 1) -> Mixture[InstructionRecord]:
    text = "<image>\n" * images
    rows = [
        InstructionRecord(
            str(n),
            tuple(f"{n}-{k}.png" for k in range(images)),
            (Turn(text + questions[0], "a"), *(Turn(one, "b") for one in questions[1:])),
            independent=True,
        )
        for n in range(count)
    ]
    return Mixture([MixtureEntry(ListRecords(rows, "set"))], seed=0)


def test_questions_that_name_no_place_are_told_before_the_run() -> None:
    """Where all records are looked at it is an error, of a large mixture a warning; one question is enough."""
    assert places_warning(mixture_of(3, "What is this?", cell(1, 2)), None) == []
    for mixture, most in (
        (mixture_of(3, "What is this?", "Is it red?"), None),
        (mixture_of(3, "What is this?", cell(1, 2)), 1),  # the rest of the questions is left out
        (mixture_of(3, cell(1, 2), images=2), None),  # of two images nobody knows which one is meant
    ):
        with pytest.raises(
            ConfigError, match=r"no question of the 3 records names a place .* throughout"
        ) as caught:
            places_warning(mixture, most)
        assert caught.value.where == "objective.guide.weight"
    (line,) = places_warning(mixture_of(5000, "What is this?"), None)
    assert "no question of the first 4,096 records names a place" in line


def test_a_run_without_places_stops_before_its_model_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PretrainConfig.model_validate(
        {"data": {"mixture": ["here"]}, "objective": {"guide": {"weight": 1}}}
    )
    monkeypatch.setattr("vitp.objectives.vitp.open_mixture", lambda *_: mixture_of(3, "What is this?"))
    monkeypatch.setattr("vitp.objectives.vitp._initial_model", None)
    with pytest.raises(ConfigError, match="leave it at 0"):
        config.objective.build(config, steps=1, micro_batches=1)
    with pytest.raises(ConfigError, match="leave it at 0"):
        config.objective.warnings(config)
    monkeypatch.setattr("vitp.objectives.vitp.open_mixture", lambda *_: mixture_of(5000, "What is this?"))
    assert any("objective.guide.weight" in line for line in config.objective.warnings(config))
