"""FLOPs by formula against torch's own counter of the operations that really ran."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import make_record, random_tiles, tiny_chat, tiny_vlm_config
from vitp.data.packing import PackedBatch, pack
from vitp.models.flops import (
    TransformerShape,
    forward_flops,
    language_shape,
    patch_embed_flops,
    training_flops,
    vision_flops,
    vision_shape,
)
from vitp.models.vision import VisionSettings, VisionTower
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.vlm_flops import vlm_forward_flops, vlm_step_flops

CHAT = tiny_chat()


def counted(run) -> float:
    """FLOPs that torch counts; the plain attention kernel is the one whose products it sees on every device."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return float(counter.get_total_flops())


def tower(architecture: str = "vit_tiny_patch16_224", **changes) -> VisionTower:
    arguments = {"embed_dim": 48, "depth": 3, "num_heads": 4, "patch_size": 8} | changes
    return VisionTower(VisionSettings(architecture=architecture, arguments=arguments, image_size=32)).eval()


def packed(*records, tiles: int = 1) -> PackedBatch:
    encoded = [CHAT.encode(r, [tiles] * len(r.images)) for r in records]
    return pack(
        encoded,
        [random_tiles(i, tiles * len(r.images)) for i, r in enumerate(records)],
        [np.arange(0, int(e.image_N.sum()), 2) for e in encoded],
        tokens_per_tile=16,
        max_length=512,
        pad_id=CHAT.pad_id,
    )


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    torch.manual_seed(0)
    return VisionLanguageModel(tiny_vlm_config(), vocabulary=len(CHAT))


def test_vision_tower_against_torch_counter():
    vit = tower()
    images = torch.zeros(3, 3, 32, 32)
    with torch.no_grad():
        assert vision_flops(vit, 3) == counted(lambda: vit.forward_tokens(images))


def test_gated_mlp_is_counted():
    plain = tower()
    # Half of its first layer is the gate, as in DINOv2's giant.
    gated = tower("vit_giant_patch14_dinov2")
    assert not vision_shape(plain).gated_mlp and vision_shape(gated).gated_mlp
    images = torch.zeros(2, 3, 32, 32)
    with torch.no_grad():
        assert vision_flops(gated, 2) == counted(lambda: gated.forward_tokens(images))


def test_training_is_three_times_forward():
    vit = tower()
    images = torch.zeros(3, 3, 32, 32)
    # The gradient of the pixels is needed by no one, which saves one product of the patch embedding.
    expected = training_flops(vision_flops(vit, 3)) - patch_embed_flops(48, 8, 3 * 16)
    assert counted(lambda: vit.forward_tokens(images).sum().backward()) == expected
    assert training_flops(2.0) == 6.0 and training_flops(2.0, recompute=True) == 8.0


def test_language_model_against_torch_counter(vlm):
    language = vlm.language
    shape = language_shape(language)
    assert shape == TransformerShape(2, 32, 64, 4, 2, True, len(CHAT), shape.head_width)
    ids = torch.arange(24)[None].repeat(2, 1)
    mask = torch.ones(2, 1, 24, 24, dtype=torch.bool)
    with torch.no_grad():
        measured = counted(lambda: language(input_ids=ids, attention_mask=mask, use_cache=False))
    rotary = 2.0 * 2 * 24 * (shape.head_channels // 2)
    expected = forward_flops(shape, 48, 24, logits=48)
    # Rotary angles are a matrix product in some versions of transformers and a plain one in others.
    assert expected <= measured <= expected + rotary


def test_step_of_the_whole_model(vlm):
    batch = packed(make_record(1, turns=3), make_record(2, images=2))
    parts = vlm_forward_flops(vlm, batch)
    assert parts["vision"] == vision_flops(vlm.vision, 3)
    assert parts["projector"] == len(batch.keep_K) * 2 * (32 * 32 + 32 * 32)
    assert vlm_step_flops(vlm, batch) == 3 * sum(parts.values())
    more = replace(batch, target_ids_S=batch.target_ids_S.repeat(2))
    extra = vlm_forward_flops(vlm, more)["language"] - parts["language"]
    assert extra == pytest.approx(len(batch.target_ids_S) * 2 * 32 * len(CHAT))


def test_frozen_parts_cost_less():
    model = VisionLanguageModel(tiny_vlm_config(), vocabulary=len(CHAT))
    batch = packed(make_record(1))
    parts = vlm_forward_flops(model, batch)
    model.vision.requires_grad_(False)
    assert vlm_step_flops(model, batch) == parts["vision"] + 3 * (parts["projector"] + parts["language"])
    model.vision.requires_grad_(True)
    model.language.requires_grad_(False)
    expected = 3 * (parts["vision"] + parts["projector"]) + 2 * parts["language"]
    assert vlm_step_flops(model, batch) == pytest.approx(expected)


def test_full_scale_figures():
    """ViT-L/14 at 448 px, 1025 tokens: about 0.73 TFLOP forward a tile."""
    shape = TransformerShape(24, 1024, 4096, 16, 16, False, 0)
    tile = forward_flops(shape, 1025, 1025) + patch_embed_flops(1024, 14, 1024)
    assert tile == pytest.approx(0.723e12, rel=0.01)
