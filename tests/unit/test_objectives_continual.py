"""What any objective can add: low-rank updates, feature preservation, and PRIOR's token weights of ViTP."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import make_record, random_tiles, tiny_chat, tiny_vlm_config
from tests.objective_toys import CASES, labelled_folder, masked, tiny_tower
from vitp.checkpoints.loading import load_vlm
from vitp.core.errors import ConfigError
from vitp.data.packing import PackedBatch, pack
from vitp.models.lora import VisionLoRASettings, add_lora, plain_layers
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.preserving import FeaturePreserving
from vitp.objectives.prior_weights import PriorWeights, TextOnlyObjective, TextReference, text_only_states
from vitp.objectives.settings import PreserveSettings
from vitp.objectives.vitp import ViTPObjective

CHAT = tiny_chat()


def instructions(*numbers: int, tiles_from: int = 0) -> PackedBatch:
    encoded = [CHAT.encode(make_record(n), [1]) for n in numbers]
    return pack(
        encoded,
        [random_tiles(n + tiles_from, 1) for n in numbers],
        [np.arange(0, 16, 2) for _ in numbers],
        tokens_per_tile=16,
        max_length=512,
        pad_id=CHAT.pad_id,
    )


def vlm(seed: int = 0) -> VisionLanguageModel:
    torch.manual_seed(seed)
    return VisionLanguageModel(tiny_vlm_config(), vocabulary=len(CHAT))


# Low-rank updates.


def adapted(**changes: object) -> tuple:
    pytest.importorskip("peft")
    plain, tower = tiny_tower(), tiny_tower()
    add_lora(tower, VisionLoRASettings(rank=2, **changes))  # type: ignore[arg-type]
    return plain.eval(), tower.eval()


def test_fresh_updates_change_nothing() -> None:
    plain, tower = adapted()
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.forward_tokens(image), tower.forward_tokens(image))


def test_updates_last_blocks_and_norms_train_and_nothing_else() -> None:
    _, tower = adapted(unfrozen_blocks=1)
    trained = {name for name, p in tower.named_parameters() if p.requires_grad}
    expected = {name for name, _ in tower.named_parameters() if ".blocks.1." in name or "norm" in name}
    expected |= {f"model.blocks.0.attn.qkv.lora_{side}.default.weight" for side in "AB"}
    assert trained == expected


def test_no_unfrozen_block_and_no_norms_leaves_the_updates() -> None:
    _, tower = adapted(unfrozen_blocks=0, norms=False, targets=("attn.proj", "mlp.fc1"))
    trained = [name for name, p in tower.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2 and all("lora_" in name for name in trained)


def test_merged_updates_compute_the_same_under_plain_names() -> None:
    plain, tower = adapted()
    with torch.no_grad():
        for name, p in tower.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    image = torch.randn(2, 3, 32, 32)
    expected, names = tower.forward_tokens(image), list(tower.state_dict())
    assert not torch.allclose(expected, plain.forward_tokens(image), atol=1e-3)
    with plain_layers(tower):
        assert tower.state_dict().keys() == plain.state_dict().keys()
        assert torch.allclose(tower.forward_tokens(image), expected, atol=1e-5)
        # ΔW = alpha / rank · B A, added to the frozen weight.
        merged = tower.model.blocks[0].attn.qkv.weight.clone()
    assert list(tower.state_dict()) == names
    layer = tower.model.blocks[0].attn.qkv
    update = 16 / 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(merged, plain.model.blocks[0].attn.qkv.weight + update, atol=1e-6)
    assert torch.equal(tower.forward_tokens(image), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"unfrozen_blocks": 3}, "2 blocks, 3 can't"), ({"targets": ("attn.query",)}, "no linear layer")],
)
def test_wrong_updates_are_refused(changes: dict, message: str) -> None:
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match=message):
        add_lora(tiny_tower(), VisionLoRASettings(**changes))


def test_a_vlm_with_an_adapted_vit_is_saved_as_a_plain_one(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = vlm()
    add_lora(model.vision, VisionLoRASettings(rank=2))
    with torch.no_grad():
        model.vision.model.blocks[0].attn.qkv.lora_B["default"].weight.normal_(std=0.3)
    ViTPObjective(model, CHAT).save_pretrained(tmp_path / "model")
    loaded = load_vlm(tmp_path / "model").vlm
    image = torch.randn(1, 3, 32, 32)
    assert torch.allclose(
        loaded.vision.forward_tokens(image), model.vision.eval().forward_tokens(image), atol=1e-5
    )


# Feature preservation.


def test_preservation_is_one_minus_the_cosine_of_the_features(tmp_path: Path) -> None:
    inner = masked()
    batch = CASES["mae"].source(labelled_folder(tmp_path / "toy"))(0, 0, 0, 1)
    objective = FeaturePreserving(inner, PreserveSettings(weight=0.25)).eval()
    with torch.no_grad():
        inner.tower.model.blocks[1].mlp.fc2.weight.add_(torch.randn(32, 128) * 0.2)
    image = inner.tower.normalize(batch.tiles_BCHW)
    now, before = inner.tower.forward_tokens(image), tiny_tower().eval().forward_tokens(image)
    total = 0.0
    for b in range(4):
        cosines = [float(F.cosine_similarity(now[b, n], before[b, n], dim=0)) for n in range(16)]
        total += 1 - sum(cosines) / 16
    losses = objective(batch)
    assert losses["preserve"].item() == pytest.approx(total, rel=1e-4)
    assert losses["pixels"].item() == pytest.approx(inner(batch)["pixels"].item())
    assert objective.loss_weights == {"preserve": 0.25}
    losses["preserve"].backward()
    assert all(p.grad is None for p in objective.initial.parameters())
    assert inner.decoder.predict.weight.grad is None
    assert inner.tower.model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_preservation_works_for_vitp() -> None:
    objective = FeaturePreserving(ViTPObjective(vlm(), CHAT), PreserveSettings(weight=1.0))
    batch = instructions(1, 2)
    assert objective.loss_counts(batch)["preserve"] == 2
    losses = objective(batch)
    assert losses.keys() == {"language", "preserve"}
    names = [group.name for group in objective.parameter_groups()]
    assert names == ["vision tower", "projector", "language model", "initial tower"]


# Token weights.


def test_the_reference_reads_texts_only() -> None:
    model = vlm().eval()
    one, other = instructions(1, 2), instructions(1, 2, tiles_from=50)
    reference = TextReference(copy.deepcopy(model.language))
    assert not torch.equal(one.tiles_TCHW, other.tiles_TCHW)
    assert torch.equal(reference.probabilities(one), reference.probabilities(other))
    # The same tokens with all image tokens dropped beforehand are the same texts.
    encoded = [CHAT.encode(make_record(n), [1]) for n in (1, 2)]
    bare = pack(
        encoded,
        [random_tiles(n, 1) for n in (1, 2)],
        [np.arange(0) for _ in encoded],
        tokens_per_tile=16,
        max_length=512,
        pad_id=CHAT.pad_id,
    )
    with torch.no_grad():
        logits = model.logits(text_only_states(model.language, bare)).log_softmax(-1)
    assert torch.equal(bare.target_ids_S, one.target_ids_S)
    expected = logits.gather(1, bare.target_ids_S[:, None])[:, 0].exp()
    assert torch.allclose(reference.probabilities(one), expected, atol=1e-5)


def test_weights_are_a_power_of_what_the_text_does_not_tell() -> None:
    model, batch = vlm().eval(), instructions(1, 2)
    reference = TextReference(copy.deepcopy(vlm(seed=5).language), chunk=3)
    weights = (1 - reference.probabilities(batch)) ** 2
    assert bool((weights < 1).all())
    plain = ViTPObjective(model, CHAT)
    weighted = ViTPObjective(model, CHAT, prior=PriorWeights(reference, 2.0))
    hidden = model(
        tiles_TCHW=batch.tiles_TCHW,
        keep_K=batch.keep_K,
        image_index_K=batch.image_index_K,
        ids_BL=batch.ids_BL,
        positions_BL=batch.positions_BL,
        segments_BL=batch.segments_BL,
        branches_BL=batch.branches_BL,
        target_index_S=batch.target_index_S,
    )
    nll = F.cross_entropy(model.logits(hidden), batch.target_ids_S, reduction="none")
    assert weighted(batch)["language"].item() == pytest.approx((weights * nll).sum().item(), rel=1e-5)
    assert weighted.loss_counts(batch) == plain.loss_counts(batch)
    in_chunks = ViTPObjective(model, CHAT, prior=PriorWeights(reference, 2.0), logit_chunk=4)
    assert in_chunks(batch)["language"].item() == pytest.approx(weighted(batch)["language"].item(), rel=1e-5)


def test_exponent_zero_weighs_all_tokens_alike() -> None:
    model, batch = vlm().eval(), instructions(1, 2)
    reference = TextReference(copy.deepcopy(model.language))
    plain = ViTPObjective(model, CHAT)(batch)["language"]
    neutral = ViTPObjective(model, CHAT, prior=PriorWeights(reference, 0.0))(batch)["language"]
    assert neutral.item() == pytest.approx(plain.item(), rel=1e-6)


def test_the_reference_is_frozen_and_listed() -> None:
    model = vlm()
    objective = ViTPObjective(model, CHAT, prior=PriorWeights(TextReference(vlm(1).language), 1.0)).train()
    groups = {group.name: group.parameters for group in objective.parameter_groups()}
    assert not any(p.requires_grad for p in groups["text reference"].values())
    held = [id(p) for parameters in groups.values() for p in parameters.values()]
    assert sorted(held) == sorted(id(p) for p in objective.parameters())
    objective(instructions(1))["language"].backward()
    assert all(p.grad is None for p in groups["text reference"].values())
    assert model.vision.model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_the_text_only_objective_trains_the_language_model_alone() -> None:
    model = vlm()
    objective = TextOnlyObjective(model, CHAT)
    batch = instructions(1, 2)
    losses, counts = objective(batch), objective.loss_counts(batch)
    assert counts["text"] == len(batch.target_ids_S)
    reference = TextReference(copy.deepcopy(model.language))
    expected = -reference.probabilities(batch).log().sum().item()
    assert losses["text"].item() == pytest.approx(expected, rel=1e-4)
    losses["text"].backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"language"}
