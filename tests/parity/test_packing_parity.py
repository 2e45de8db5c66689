"""Packed equals one by one, shared prefix equals separate sequences, VRL 0 equals no VRL."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import make_record, random_tiles, tiny_chat, tiny_vlm_config
from tests.parity.test_attention_parity import varlen_promise
from vitp.data.packing import pack
from vitp.models import attention_layouts
from vitp.models.attention_layouts import packed_attention_mask
from vitp.models.compute import set_recompute
from vitp.models.packed_layout import PackedLayout, sequence_ends
from vitp.models.token_runs import token_runs
from vitp.models.vlm import VisionLanguageModel
from vitp.models.vrl import VisualRobustness, VRLSettings
from vitp.objectives.packed_layouts import with_layout
from vitp.objectives.vitp import ViTPObjective
from vitp.records.instructions import InstructionRecord
from vitp.runs.check.batches import one_by_one

CHAT = tiny_chat()


def objective() -> ViTPObjective:
    torch.manual_seed(0)
    return ViTPObjective(VisionLanguageModel(tiny_vlm_config(), vocabulary=len(CHAT)).eval(), CHAT)


def batch_of(
    records: list[InstructionRecord],
    tiles: list[list[int]],
    *,
    ratio=0.0,
    keys=None,
    together=True,
    length=512,
):
    vrl = VisualRobustness(VRLSettings(ratio=ratio), seed=3).train()
    encoded = [CHAT.encode(r, t) for r, t in zip(records, tiles, strict=True)]
    keys = keys or [int(r.id) for r in records]
    return pack(
        encoded,
        [random_tiles(int(r.id), sum(t)) for r, t in zip(records, tiles, strict=True)],
        [vrl(int(e.image_N.sum()), (k,)) for e, k in zip(encoded, keys, strict=True)],
        tokens_per_tile=16,
        max_length=length,
        pad_id=CHAT.pad_id,
        together=together,
    )


def loss_and_gradient(model: ViTPObjective, batches) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(batch)["language"]
        loss.backward()
        total += float(loss)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return total, gradient


def assert_same(a, b) -> None:
    assert a[0] == pytest.approx(b[0], rel=1e-4)
    assert torch.norm(a[1] - b[1]) <= 1e-4 * torch.norm(b[1])
    assert torch.cosine_similarity(a[1].double(), b[1].double(), dim=0) >= 0.9999


@st.composite
def batches_of_records(draw, most: int) -> tuple[list[InstructionRecord], list[list[int]], float]:
    """Records with 1 to 2 images of 1 to 3 tiles each and 1 to 4 questions, some of them conversations."""
    shapes = draw(
        st.lists(
            st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=2), st.integers(1, 4), st.booleans()),
            min_size=1,
            max_size=most,
        )
    )
    records = [
        make_record(number, images=len(tiles), turns=turns, independent=independent)
        for number, (tiles, turns, independent) in enumerate(shapes)
    ]
    return records, [tiles for tiles, _, _ in shapes], draw(st.sampled_from([0.0, 0.5, 0.75]))


@settings(max_examples=10, deadline=None)
@given(made=batches_of_records(most=6))
def test_packed_equals_one_by_one(made):
    records, tiles, ratio = made
    model = objective()
    packed = loss_and_gradient(model, [batch_of(records, tiles, ratio=ratio)])
    single = loss_and_gradient(
        model, [batch_of([r], [t], ratio=ratio) for r, t in zip(records, tiles, strict=True)]
    )
    assert_same(packed, single)


@settings(max_examples=6, deadline=None)
@given(made=batches_of_records(most=5))
def test_every_attention_gives_what_the_dense_mask_gives(made):
    records, tiles, ratio = made
    model, batch = objective(), batch_of(records, tiles, ratio=ratio)
    model.vlm.attention = "dense"
    reference = loss_and_gradient(model, [batch])
    model.vlm.attention = "runs"
    assert_same(loss_and_gradient(model, [batch]), reference)
    model.vlm.static_rows = True
    assert_same(loss_and_gradient(model, [batch]), reference)


@settings(max_examples=4, deadline=None)
@given(made=batches_of_records(most=4))
def test_questions_that_share_an_image_equal_separate_ones(made):
    records, tiles, ratio = made
    model = objective()
    shared = loss_and_gradient(model, [batch_of(records, tiles, ratio=ratio)])
    apart, apart_tiles, keys = [], [], []
    for record, counts in zip(records, tiles, strict=True):
        alone = one_by_one(record) if record.independent else [record]
        apart += alone
        apart_tiles += [counts] * len(alone)
        keys += [int(record.id)] * len(alone)
    assert_same(shared, loss_and_gradient(model, [batch_of(apart, apart_tiles, ratio=ratio, keys=keys)]))


@pytest.mark.parametrize("count", [1, 64])
def test_one_and_many_records_in_a_pack(count):
    """The ends of the range: a pack of one record, and one of 64 with all kinds of tiles and questions."""
    records = [make_record(i, images=1 + i % 2, turns=1 + i % 4, independent=i % 3 > 0) for i in range(count)]
    tiles = [[1 + i % 3] * (1 + i % 2) for i in range(count)]
    model = objective()
    packed = loss_and_gradient(model, [batch_of(records, tiles, ratio=0.75)])
    single = loss_and_gradient(
        model, [batch_of([r], [t], ratio=0.75) for r, t in zip(records, tiles, strict=True)]
    )
    assert_same(packed, single)


def test_padded_tiles_change_nothing():
    model, batch = objective(), batch_of([make_record(i) for i in range(3)], [[1]] * 3)
    expected = loss_and_gradient(model, [batch])
    model.vlm.tile_multiple = 4
    assert_same(loss_and_gradient(model, [batch]), expected)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputed_activations_change_nothing(mode):
    model, batch = objective().train(), batch_of([make_record(i) for i in range(3)], [[1]] * 3)
    expected = loss_and_gradient(model, [batch])
    set_recompute(model.vlm, mode)
    assert_same(loss_and_gradient(model, [batch]), expected)
    set_recompute(model.vlm, "none")
    again = loss_and_gradient(model, [batch])
    assert again[0] == expected[0] and torch.equal(again[1], expected[1])


def test_shared_prefix_equals_separate_sequences():
    model = objective()
    record = make_record(5, turns=4)
    separate = one_by_one(record)
    shared = loss_and_gradient(model, [batch_of([record], [[2]], ratio=0.75)])
    apart = loss_and_gradient(model, [batch_of([r], [[2]], ratio=0.75, keys=[5]) for r in separate])
    assert_same(shared, apart)


def test_questions_on_one_image_cost_one_vision_pass():
    batch = batch_of([make_record(1, turns=8)], [[1]])
    assert len(batch.tiles_TCHW) == 1
    assert int((batch.ids_BL == CHAT.image_id).sum()) == 16
    assert batch.turns == 8


def test_changing_one_record_changes_nothing_in_another():
    model = objective()
    records = [make_record(9, images=4, turns=4), *(make_record(i, turns=1) for i in range(3))]

    def hidden_of(batch):
        with torch.no_grad():
            return model.vlm.language.get_decoder()(
                inputs_embeds=model.vlm.embed(
                    batch.tiles_TCHW, batch.keep_K, batch.image_index_K, batch.ids_BL
                ),
                attention_mask=packed_attention_mask(batch.segments_BL, batch.branches_BL),
                position_ids=batch.positions_BL,
                use_cache=False,
            ).last_hidden_state

    batch = batch_of(records, [[1, 1, 1, 1], [1], [1], [1]])
    assert set(batch.segments_BL.unique().tolist()) >= {0, 1, 2}, "the three records share a row"
    before = hidden_of(batch)
    changed = replace(batch, ids_BL=batch.ids_BL.clone(), tiles_TCHW=batch.tiles_TCHW.clone())
    text = (batch.segments_BL == 1) & (batch.ids_BL != CHAT.image_id)
    changed.ids_BL[text] = CHAT.stop_id
    for k in (batch.segments_BL.flatten()[batch.image_index_K] == 1).nonzero().flatten():
        changed.tiles_TCHW[batch.keep_K[k] // 16] = 255 - batch.tiles_TCHW[batch.keep_K[k] // 16]
    after = hidden_of(changed)
    other = (batch.segments_BL == 0) | (batch.segments_BL == 2)
    assert torch.equal(before[other], after[other])
    assert not torch.equal(before[batch.segments_BL == 1], after[batch.segments_BL == 1])


def test_ratio_zero_equals_no_dropping():
    model = objective()
    records = [make_record(i) for i in range(3)]
    dropped = batch_of(records, [[1]] * 3, ratio=0.0)
    encoded = [CHAT.encode(r, [1]) for r in records]
    plain = pack(
        encoded,
        [random_tiles(int(r.id), 1) for r in records],
        [np.arange(16)] * 3,
        tokens_per_tile=16,
        max_length=512,
        pad_id=CHAT.pad_id,
    )
    first, second = loss_and_gradient(model, [dropped]), loss_and_gradient(model, [plain])
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])


def test_language_path_against_transformers():
    """One conversation through our packing equals transformers' own forward with labels."""
    model = objective()
    record = make_record(2, turns=3, independent=False)
    batch = batch_of([record], [[1]])
    ours = model(batch)["language"]
    encoded = CHAT.encode(record, [1])
    inputs = model.vlm.embed(
        batch.tiles_TCHW,
        batch.keep_K,
        torch.from_numpy(np.flatnonzero(encoded.image_N)),
        torch.from_numpy(encoded.ids_N)[None],
    )
    labels = torch.from_numpy(np.where(encoded.supervised_N, encoded.ids_N, -100))[None]
    theirs = model.vlm.language(inputs_embeds=inputs, labels=labels).loss * int(encoded.supervised_N.sum())
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_sequence_really_is_shorter():
    records = [make_record(i, turns=1) for i in range(2)]
    full = batch_of(records, [[4]] * 2, together=False)
    short = batch_of(records, [[4]] * 2, ratio=0.75, together=False)
    assert full.tokens - short.tokens == 2 * (64 - 16)
    kept = short.positions_BL[short.ids_BL == CHAT.image_id]
    assert len(kept) == 2 * 16
    assert kept.max() > 16, "survivors keep the positions they had before anything was dropped"


def test_chunked_logits_equal_whole():
    whole = objective()
    batch = batch_of([make_record(i) for i in range(3)], [[1]] * 3)
    expected = loss_and_gradient(whole, [batch])
    whole.logit_chunk = 3
    assert_same(loss_and_gradient(whole, [batch]), expected)


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("attention", ["runs", "varlen"])
def test_a_layout_made_with_the_batch_changes_nothing(
    multiple: int, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit where nothing is filled up; filling a row up changes no more than rounding."""
    monkeypatch.setattr(attention_layouts, "varlen_kernel", lambda: varlen_promise)
    model, records = objective(), [make_record(i, turns=1 + i % 3, independent=i != 2) for i in range(5)]
    batch = batch_of(records, [[1 + i % 2] for i in range(5)], ratio=0.5)
    model.vlm.attention = attention  # type: ignore[assignment]
    loss, gradient = loss_and_gradient(model, [batch])
    laid_out = with_layout(batch, token_multiple=multiple)
    assert isinstance(laid_out.layout, PackedLayout) and laid_out.layout.ids_BN.shape[1] % multiple == 0
    found, found_gradient = loss_and_gradient(model, [laid_out])
    if multiple == 1:
        assert found == loss and torch.equal(found_gradient, gradient)
    assert found == pytest.approx(loss, rel=1e-6)
    assert float((found_gradient - gradient).norm()) <= 1e-5 * float(gradient.norm())


def test_a_record_of_one_question_is_one_sequence() -> None:
    """Its keys are read where they lie; further questions read those of the prefix once more each."""
    one = sequence_ends(
        token_runs(np.array([[0] * 6 + [1] * 5]), np.array([[0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1]]))
    )
    assert one.keys_M is None and one.query_ends.tolist() == [0, 6, 11] == one.key_ends.tolist()
    two = sequence_ends(token_runs(np.array([[0] * 7]), np.array([[0, 0, 0, 1, 1, 2, 2]])))
    assert two.query_ends.tolist() == [0, 5, 7] and two.key_ends.tolist() == [0, 5, 10]
    assert two.keys_M is not None and two.keys_M.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6]
