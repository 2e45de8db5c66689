"""Attention, rollout, distances and pictures against what they must be analytically."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vitp.core.errors import ConfigError
from vitp.evaluation.attention import (
    as_batch,
    attention_distance,
    attention_map,
    attention_rollout,
    colour_basis,
    distance_profile,
    feature_maps,
    grid_of,
    head_maps,
    patch_attention,
    pca_rgb,
    reduced_attention,
    rollout,
    rollout_map,
)
from vitp.evaluation.feature_pictures import (
    compare_attention,
    compare_features,
    overlay,
    rollout_picture,
    side_by_side,
)
from vitp.models.adapt import PromptSettings
from vitp.models.timm_backbone import TimmSettings, timm_backbone
from vitp.models.vision import VisionSettings, VisionTower


def tiny_tower(**changes: object) -> VisionTower:
    torch.manual_seed(0)
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8} | changes
    return VisionTower(VisionSettings(arguments=arguments, image_size=32))


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def test_rows_sum_to_one_and_reproduce_the_layer(image: Image.Image) -> None:
    tower = tiny_tower().train()
    found = reduced_attention(tower, image, [0, 1], lambda attention_HTT: attention_HTT)
    assert tower.training
    assert found.shape == (2, 2, 17, 17)
    assert np.allclose(found.sum(-1), 1, atol=1e-6)
    # Attention times values, projected, must be what the fused kernel returns.
    seen: dict[str, torch.Tensor] = {}
    module = tower.eval().model.blocks[1].attn
    module.register_forward_hook(lambda _m, args, out: seen.update(x=args[0], out=out))
    with torch.no_grad():
        tower.model.forward_features(as_batch(tower, image))
        value = module.qkv(seen["x"]).reshape(17, 3, 2, 16)[:, 2].permute(1, 0, 2)
        mixed = torch.from_numpy(found[1]) @ value
        expected = module.proj(mixed.permute(1, 0, 2).reshape(1, 17, 32))
    assert torch.allclose(seen["out"], expected, atol=1e-5)


@pytest.mark.parametrize("count", [3, 8])
def test_prompts_are_no_places_of_the_image(count: int, image: Image.Image) -> None:
    """With 8 of them 2 heads × (16 + 8) weights could be folded into 3 maps of 4 × 4, none of which is a head's."""
    tower = tiny_tower().eval()
    tower.attach(PromptSettings(count=count))
    seen_HTT = tower.attention(as_batch(tower, image), 1)[
        0
    ].numpy()  # rows and columns of [CLS] and patches alone
    assert seen_HTT.shape == (2, 17, 17) and (seen_HTT.sum(-1) < 0.99).all()
    maps_Hhw = head_maps(tower, image, (1, 2), [1])[0]
    assert np.allclose(maps_Hhw, seen_HTT[:, 1 + 6, 1:].reshape(2, 4, 4), atol=1e-6)
    assert np.allclose(patch_attention(tower, image, [1], heads=True)[0], seen_HTT[:, 1:, 1:], atol=1e-6)
    assert rollout_map(tower, image, (1, 2)).shape == (4, 4) and rollout_map(tower, image).sum() < 1
    assert distance_profile(tower, [image]).shape == (2, 2)


def test_one_pass_gives_what_each_layer_gives_alone(image: Image.Image) -> None:
    tower = tiny_tower(depth=3)
    fused = [block.attn.fused_attn for block in tower.model.blocks]
    found = reduced_attention(tower, image, [2, 0, -1], lambda attention_HTT: attention_HTT)
    for place, layer in enumerate((2, 0, 2)):
        alone = tower.attention(as_batch(tower, image), layer)[0].numpy()
        assert np.allclose(found[place], alone, atol=1e-6)
    means = reduced_attention(tower, image, range(3), lambda attention_HTT: attention_HTT.mean(0))
    assert np.allclose(means[2], found[0].mean(0), atol=1e-6)
    # Nothing of the recording stays behind.
    assert [block.attn.fused_attn for block in tower.model.blocks] == fused
    assert not any(block.attn.attn_drop._forward_hooks for block in tower.model.blocks)


def test_attention_of_rotary_towers_reproduces_the_layer(image: Image.Image) -> None:
    arguments = {"embed_dim": 48, "depth": 2, "num_heads": 2}
    config = TimmSettings(architecture="vit_small_patch16_dinov3", arguments=arguments, image_size=64)
    torch.manual_seed(0)
    tower = timm_backbone(config).eval()
    for block in tower.model.blocks:
        # At its start attention is even, and the layer scale hides it.
        torch.nn.init.ones_(block.gamma_1)
        for parameter in block.attn.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    found = reduced_attention(tower, image, [0, 1], lambda attention_HTT: attention_HTT)  # type: ignore[arg-type]
    prefix = tower.model.num_prefix_tokens
    assert found.shape == (2, 2, prefix + 16, prefix + 16) and np.allclose(found.sum(-1), 1, atol=1e-5)
    assert grid_of(tower) == (4, 4)
    # With these weights put in place of the layer's own, the features stay those of the fused kernel.
    expected = feature_maps(tower, image)[0]
    module = tower.model.blocks[1].attn
    module.fused_attn = False
    put = module.attn_drop.register_forward_hook(lambda *_: torch.from_numpy(found[1:]))
    assert np.allclose(feature_maps(tower, image)[0], expected, atol=1e-5)
    put.remove()
    module.attn_drop.register_forward_hook(lambda *_: torch.from_numpy(found[1:]).roll(1, -1))
    assert not np.allclose(feature_maps(tower, image)[0], expected, atol=1e-3)


def test_backbones_without_attention_are_refused(image: Image.Image) -> None:
    network = timm_backbone(TimmSettings(architecture="resnet10t", image_size=64)).eval()
    with pytest.raises(ConfigError, match="has no attention among patches"):
        reduced_attention(network, image, [0], lambda attention_HTT: attention_HTT)  # type: ignore[arg-type]
    assert feature_maps(network, image)[0].shape == (2, 2, 512)


def test_attention_map_is_one_row(image: Image.Image) -> None:
    tower = tiny_tower()
    heads = patch_attention(tower, image, [1], heads=True)[0]
    assert heads.shape == (2, 16, 16) and (heads.sum(-1) < 1).all()
    assert np.array_equal(attention_map(tower, image, (2, 3), 1, 0), heads[0, 2 * 4 + 3].reshape(4, 4))
    assert np.allclose(attention_map(tower, image, (2, 3)), heads.mean(0)[11].reshape(4, 4))
    every = head_maps(tower, image, (2, 3), [0, 1])
    assert every.shape == (2, 2, 4, 4) and np.array_equal(every[1, 0], heads[0, 11].reshape(4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"patch": (4, 0)}, "grid of 4 × 4"), ({"layer": 2}, "no layer 2"), ({"head": 2}, "no head 2")],
)
def test_places_that_are_not_there_are_refused(image: Image.Image, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attention_map(tiny_tower(), image, **({"patch": (0, 0)} | options))


def test_rollout_of_identity_is_identity_and_rows_sum_to_one(image: Image.Image) -> None:
    assert np.array_equal(rollout(np.stack([np.eye(5)] * 3)), np.eye(5))
    uniform = np.full((2, 4, 4), 0.25)
    assert np.allclose(rollout(uniform), 0.25 * np.eye(4) + 0.75 * 0.25)
    found = attention_rollout(tiny_tower(), image)
    assert found.shape == (17, 17) and np.allclose(found.sum(-1), 1)


def test_rollout_multiplies_later_layers_from_the_left() -> None:
    first, second = np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])
    half = np.eye(2) / 2
    assert np.allclose(rollout(np.stack([first, second])), (second / 2 + half) @ (first / 2 + half))


def test_rollout_maps_are_rows_without_the_prefix(image: Image.Image) -> None:
    tower = tiny_tower()
    traced = attention_rollout(tower, image)
    assert np.allclose(rollout_map(tower, image, (1, 2)).ravel(), traced[1 + 6, 1:])
    assert np.allclose(rollout_map(tower, image).ravel(), traced[1:, 1:].mean(0))
    drawn = rollout_picture(tower, image, (0.25, 0.5), side=64)
    assert drawn.size == (64, 64) and drawn.getpixel((32, 16)) == (0, 220, 255)


def test_attention_distance_by_analysis() -> None:
    assert attention_distance(np.eye(12), (3, 4)) == 0
    # Uniform attention over n cells in a row: the mean distance of two random ones is (n² − 1) / (3n).
    assert attention_distance(np.full((6, 6), 1 / 6), (1, 6)) == pytest.approx(35 / 18)
    # What prefix tokens draw doesn't shorten it.
    assert attention_distance(np.full((6, 6), 0.01), (1, 6)) == pytest.approx(35 / 18)
    shifted = np.roll(np.eye(6), 1, axis=1)
    assert attention_distance(shifted, (1, 6)) == pytest.approx((5 * 1 + 5) / 6)
    uniform = np.full((16, 16), 1 / 16)
    pairs = [np.hypot(a // 4 - b // 4, a % 4 - b % 4) for a in range(16) for b in range(16)]
    assert attention_distance(np.stack([uniform, np.eye(16)]), (4, 4)) == pytest.approx([np.mean(pairs), 0])


def test_distance_profile_of_uniform_attention_is_in_pixels(image: Image.Image) -> None:
    tower = tiny_tower()
    for block in tower.model.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
    pairs = [np.hypot(a // 4 - b // 4, a % 4 - b % 4) for a in range(16) for b in range(16)]
    found = distance_profile(tower, [image, image])
    assert found.shape == (2, 2) and np.allclose(found, 8 * np.mean(pairs), rtol=1e-5)


def test_colour_basis_finds_the_main_directions() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(10, 3)))[0]
    features = (rng.normal(size=(30, 30, 3)) * [9, 3, 1]) @ axes.T + 5
    basis = colour_basis([features[:15], features[15:]])
    assert np.allclose(np.abs(basis.axes_D3.T @ axes), np.eye(3), atol=0.05)
    assert (basis.axes_D3[np.abs(basis.axes_D3).argmax(0), range(3)] > 0).all()
    colours = basis.colours(features)
    assert colours.dtype == np.uint8 and 115 < colours.mean() < 140
    for channel in range(3):
        assert 0.01 < (colours[..., channel] == 0).mean() < 0.03
    with pytest.raises(ConfigError, match="one width"):
        colour_basis([np.zeros((2, 2, 3)), np.zeros((2, 2, 4))])


def test_pictures_of_features_share_their_colours(image: Image.Image) -> None:
    tower = tiny_tower()
    first, second = pca_rgb(tower, [image, image.transpose(Image.Transpose.ROTATE_90)])
    assert first.shape == (4, 4, 3)
    basis = colour_basis([feature_maps(tower, image)[0]])
    (alone,) = pca_rgb(tower, [image], basis=basis)
    assert np.array_equal(alone, basis.colours(feature_maps(tower, image)[0]))
    assert not np.array_equal(first, second)


def test_overlay_colours_strong_places_only() -> None:
    grey = Image.new("RGB", (40, 20), (100, 100, 100))
    values = np.zeros((2, 4))
    values[0, 3] = 1.0
    picture = np.asarray(overlay(grey, values, side=80))
    assert picture.shape == (40, 80, 3)
    assert (picture[:, :60] == 100).all() and (picture[20:] == 100).all()
    assert (picture[2:18, 62:78] != 100).any(-1).all()
    framed = np.asarray(overlay(grey, values, side=80, patch=(1, 0)))
    assert tuple(framed[20, 0]) == (0, 220, 255) and tuple(framed[39, 19]) == (0, 220, 255)


def test_sheets_hold_every_backbone(image: Image.Image) -> None:
    towers = {"a": tiny_tower(), "b": tiny_tower(patch_size=16)}
    sheet = compare_attention(towers, image, (0.5, 0.9), side=64)
    assert sheet.size == (3 * 64 + 2 * 6, 64 + 18)
    rows = compare_features(towers, [image, image], side=32)
    assert [row.size for row in rows] == [(3 * 32 + 2 * 6, 32 + 18)] * 2
    with pytest.raises(ConfigError, match="no pictures"):
        side_by_side({})
