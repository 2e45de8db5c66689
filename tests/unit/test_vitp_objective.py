"""The ViTP objective: what trains, what is refused, and what a batch amounts to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import make_record, random_tiles, tiny_chat, tiny_vlm_config
from vitp.core.errors import ConfigError, DataError
from vitp.data.packing import PackedBatch, pack
from vitp.models.language import LoRASettings, micro_qwen2
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.vitp import ViTPObjective
from vitp.records.instructions import InstructionRecord, Turn

CHAT = tiny_chat()


def vlm(**changes) -> VisionLanguageModel:
    torch.manual_seed(0)
    return VisionLanguageModel(tiny_vlm_config(**changes), vocabulary=len(CHAT))


def batch(*records: InstructionRecord) -> PackedBatch:
    encoded = [CHAT.encode(r, [1] * len(r.images)) for r in records]
    return pack(
        encoded,
        [random_tiles(i, len(r.images)) for i, r in enumerate(records)],
        [np.arange(int(e.image_N.sum())) for e in encoded],
        tokens_per_tile=16,
        max_length=512,
        pad_id=CHAT.pad_id,
    )


def test_all_three_parts_train_by_default():
    objective = ViTPObjective(vlm(), CHAT)
    objective(batch(make_record(1)))["language"].backward()
    for group in objective.parameter_groups():
        norms = [float(p.grad.norm()) for p in group.parameters.values() if p.grad is not None]
        assert norms and sum(norms) > 0, f"{group.name} gets no gradient"


def test_groups_cover_every_parameter_once():
    objective = ViTPObjective(vlm(), CHAT)
    found = [id(p) for group in objective.parameter_groups() for p in group.parameters.values()]
    assert sorted(found) == sorted(id(p) for p in objective.parameters())


def test_freezing_by_part_and_by_pattern():
    objective = ViTPObjective(vlm(), CHAT, freeze=["language", "vision.model.blocks.0.*"])
    trainable = {name for name, p in objective.vlm.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("language.", "vision.model.blocks.0.")) for name in trainable)
    assert "vision.model.blocks.1.attn.qkv.weight" in trainable
    assert "projector.1.weight" in trainable


@pytest.mark.parametrize(
    ("freeze", "message"),
    [(["visoin"], "fits no parameter"), (["vision", "projector", "language"], "nothing is left to train")],
)
def test_wrong_freezing_is_refused(freeze, message):
    with pytest.raises(ConfigError, match=message):
        ViTPObjective(vlm(), CHAT, freeze=freeze)


def test_unknown_part_for_a_learning_rate_is_refused():
    with pytest.raises(ConfigError, match="unknown part 'visual'"):
        ViTPObjective(vlm(), CHAT, lr_scale={"visual": 2.0})


def test_lora_trains_adapters_and_leaves_the_language_model():
    pytest.importorskip("peft")
    language = micro_qwen2(width=32, layers=2, heads=4, kv_heads=2, mlp=64)
    objective = ViTPObjective(vlm(language=language.model_copy(update={"lora": LoRASettings(rank=2)})), CHAT)
    trainable = [n for n, p in objective.vlm.language.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    objective(batch(make_record(1)))["language"].backward()
    assert any(
        float(p.grad.abs().sum()) > 0
        for n, p in objective.vlm.language.named_parameters()
        if p.grad is not None
    )
    assert all(p.requires_grad for p in objective.vlm.vision.parameters())


def test_lora_starts_as_the_plain_model():
    pytest.importorskip("peft")
    language = micro_qwen2(width=32, layers=2, heads=4, kv_heads=2, mlp=64)
    plain, adapted = vlm(), vlm(language=language.model_copy(update={"lora": LoRASettings(rank=2)}))
    weights = plain.state_dict()
    own = adapted.state_dict()
    adapted.load_state_dict(
        {n: weights.get(n.replace(".base_layer", ""), value) for n, value in own.items()}, strict=True
    )
    one = batch(make_record(1))
    first = ViTPObjective(plain.eval(), CHAT)(one)["language"]
    second = ViTPObjective(adapted.eval(), CHAT)(one)["language"]
    assert float(first) == pytest.approx(float(second), rel=1e-6)


def test_placeholder_mismatch_names_the_record():
    objective = ViTPObjective(vlm(), CHAT)
    good = batch(make_record(7))
    with pytest.raises(DataError, match=r"record 7: 16 image placeholders but 15 image features"):
        objective(replace(good, keep_K=good.keep_K[:-1]))


def test_tiles_of_another_number_are_refused_before_packing():
    encoded = CHAT.encode(make_record(7), [1])
    with pytest.raises(DataError, match=r"record 7: 16 image placeholders but 32 image features"):
        pack([encoded], [random_tiles(0, 2)], [np.arange(16)], tokens_per_tile=16, max_length=512, pad_id=0)


def test_over_long_record_is_refused_by_name():
    with pytest.raises(DataError, match=r"record 7: takes \d+ tokens, a row holds 20"):
        encoded = CHAT.encode(make_record(7), [1])
        pack([encoded], [random_tiles(0, 1)], [np.arange(16)], tokens_per_tile=16, max_length=20, pad_id=0)


def test_text_only_batch_gives_the_vision_tower_zero_gradient():
    objective = ViTPObjective(vlm(), CHAT)
    record = InstructionRecord("1", (), (Turn("ship?", "yes"),))
    encoded = [CHAT.encode(record, [])]
    only_text = pack(
        encoded,
        [np.empty((0, 3, 32, 32), dtype=np.uint8)],
        [np.arange(0)],
        tokens_per_tile=16,
        max_length=512,
        pad_id=CHAT.pad_id,
    )
    objective(only_text)["language"].backward()
    weight = objective.vlm.vision.model.blocks[0].attn.qkv.weight
    assert weight.grad is not None and float(weight.grad.abs().sum()) == 0.0


def test_work_counts_what_is_in_the_batch():
    made = batch(make_record(1, turns=3), make_record(2, images=2, turns=1))
    work = ViTPObjective(vlm(), CHAT).work(made)
    assert work["samples"] == 2
    assert work["tiles"] == 3
    assert work["questions"] == 4
    assert work["tokens"] == int((made.segments_BL >= 0).sum())
    assert work["capacity"] >= work["tokens"]


def test_gradient_checkpointing_changes_no_gradient():
    one, plain, saving = batch(make_record(1), make_record(2)), vlm().train(), vlm().train()
    saving.set_gradient_checkpointing(True)
    gradients = []
    for model in (plain, saving):
        ViTPObjective(model, CHAT)(one)["language"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-7)
