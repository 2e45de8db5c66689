"""The vision tower, projector and token dropping against independent implementations and their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp.models.projector import Projector, pixel_shuffle
from vitp.models.vision import VisionSettings, VisionTower
from vitp.models.vrl import VisualRobustness, VRLSettings, count_kept, surviving_tokens

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 4, "patch_size": 8}
VITS = {
    "cls": ("vit_tiny_patch16_224", SMALL),
    "no cls": ("vit_tiny_patch16_224", SMALL | {"class_token": False}),
    "registers": ("vit_tiny_patch16_224", SMALL | {"reg_tokens": 3}),
    "qk norm": ("vit_tiny_patch16_224", SMALL | {"qk_norm": True, "init_values": 0.5}),
    "InternViT": ("vit_intern300m_patch14_448", SMALL),
}


@pytest.fixture(params=VITS, ids=str)
def pair(request) -> tuple[VisionTower, torch.nn.Module]:
    """A tower, and the same weights in a model that timm made without us."""
    architecture, arguments = VITS[request.param]
    torch.manual_seed(0)
    tower = VisionTower(VisionSettings(architecture=architecture, arguments=arguments, image_size=40)).eval()
    plain = timm.create_model(architecture, num_classes=0, global_pool="", img_size=40, **arguments).eval()
    with torch.no_grad():
        for parameter in tower.model.parameters():
            # Norms and biases start at one and zero, where mistakes don't show.
            parameter.add_(0.05 * torch.randn_like(parameter))
    plain.load_state_dict(tower.model.state_dict(), strict=True)
    return tower, plain


@pytest.fixture
def image_BCHW() -> torch.Tensor:
    return torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def test_patch_tokens_equal_timms(pair, image_BCHW):
    tower, plain = pair
    expected = plain.forward_features(image_BCHW)[:, plain.num_prefix_tokens :]
    tokens = tower.forward_tokens(image_BCHW)
    assert tokens.shape == (2, 25, 32)
    torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=0)


def test_feature_maps_equal_timms(pair, image_BCHW):
    tower, plain = pair
    first, second, last = tower.forward_features(image_BCHW, layers=(0, 1, -1))
    # Layer by layer by hand: embedding, then the blocks.
    x = plain.norm_pre(plain.patch_drop(plain._pos_embed(plain.patch_embed(image_BCHW))))
    steps = []
    for block in plain.blocks:
        x = block(x)
        steps.append(x)
    for given_map, tokens in ((first, steps[0]), (second, steps[1]), (last, plain.norm(steps[2]))):
        patches = tokens[:, plain.num_prefix_tokens :]
        assert given_map.shape == (2, 32, 5, 5)
        torch.testing.assert_close(given_map.flatten(2).transpose(1, 2), patches, atol=1e-6, rtol=0)
    # Row by row: the cell in row 1, column 3 is token 8.
    torch.testing.assert_close(last[:, :, 1, 3], tower.forward_tokens(image_BCHW)[:, 8], atol=1e-6, rtol=0)


def test_layers_come_in_the_order_asked_for(image_BCHW):
    torch.manual_seed(0)
    tower = VisionTower(VisionSettings(arguments=SMALL, image_size=40)).eval()
    one = [tower.forward_features(image_BCHW, layers=(layer,))[0] for layer in range(3)]
    for layers in ((2, 0), (0, 0, -1), (-3, -2, -1)):
        for given_map, layer in zip(tower.forward_features(image_BCHW, layers=layers), layers, strict=True):
            torch.testing.assert_close(given_map, one[layer], atol=0, rtol=0)


def test_gradients_equal_timms(pair, image_BCHW):
    tower, plain = pair
    weight = torch.randn(2, 25, 32, generator=torch.Generator().manual_seed(2))
    (tower.forward_tokens(image_BCHW) * weight).sum().backward()
    (plain.forward_features(image_BCHW)[:, plain.num_prefix_tokens :] * weight).sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in tower.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-5, msg=name)
    assert tower.model.patch_embed.proj.weight.grad.abs().sum() > 0


def test_gradients_of_maps_and_tokens_agree(pair, image_BCHW):
    tower, _ = pair
    weight = torch.randn(2, 25, 32, generator=torch.Generator().manual_seed(2))
    (tower.forward_tokens(image_BCHW) * weight).sum().backward()
    by_tokens = {name: p.grad.clone() for name, p in tower.named_parameters()}
    tower.zero_grad()
    (tower.forward_features(image_BCHW)[0].flatten(2).transpose(1, 2) * weight).sum().backward()
    for name, parameter in tower.named_parameters():
        torch.testing.assert_close(parameter.grad, by_tokens[name], atol=1e-5, rtol=1e-5, msg=name)


def test_other_image_sizes_equal_a_model_of_that_size(image_BCHW):
    """Position embeddings are resampled on the fly just as timm resamples them on loading."""
    torch.manual_seed(0)
    tower = VisionTower(VisionSettings(arguments=SMALL, image_size=32)).eval()
    larger = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, global_pool="", img_size=40, **SMALL
    ).eval()
    from timm.models.vision_transformer import checkpoint_filter_fn

    larger.load_state_dict(checkpoint_filter_fn(dict(tower.model.state_dict()), larger), strict=True)
    expected = larger.forward_features(image_BCHW)[:, 1:]
    torch.testing.assert_close(tower.forward_tokens(image_BCHW), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_attention_is_the_softmax_that_timm_computes(pair, image_BCHW, layer):
    tower, plain = pair
    attention = plain.blocks[layer].attn
    attention.fused_attn = False
    seen = []
    # timm's own weights pass through this module on the way to the values.
    attention.attn_drop.register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    with torch.no_grad():
        plain.forward_features(image_BCHW)
    weights = tower.attention(image_BCHW, layer)
    tokens = 25 + plain.num_prefix_tokens
    assert weights.shape == (2, 4, tokens, tokens)
    torch.testing.assert_close(weights, seen[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, tokens))
    assert all(not block.attn._forward_pre_hooks for block in tower.model.blocks)


def test_normalisation_of_bytes_and_floats_agrees():
    tower = VisionTower(VisionSettings(arguments=SMALL, image_size=40, mean=(0.1, 0.2, 0.3), std=(1, 2, 4)))
    pixels = torch.randint(
        0, 256, (1, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    expected = (pixels.double() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [1.0, 2.0, 4.0]
    ).view(3, 1, 1)
    torch.testing.assert_close(tower.normalize(pixels), expected.float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(tower.normalize(pixels.float() / 255), expected.float(), atol=1e-6, rtol=0)


def internvl(downsample: float):
    from transformers import InternVLConfig, InternVLModel, Qwen2Config
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

    torch.manual_seed(0)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=[32, 32],
            patch_size=[4, 4],
        ),
        text_config=Qwen2Config(
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            vocab_size=40,
        ),
        downsample_ratio=downsample,
        image_token_id=39,
    )
    return InternVLModel(config).eval()


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_shuffle_and_projector_equal_internvls(factor):
    reference = internvl(1 / factor)
    projector = Projector(16, 24, factor)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    theirs = reference.multi_modal_projector
    theirs.layer_norm.load_state_dict(projector[0].state_dict())
    theirs.linear_1.load_state_dict(projector[1].state_dict())
    theirs.linear_2.load_state_dict(projector[3].state_dict())

    tokens_TND = torch.randn(3, 64, 16, generator=torch.Generator().manual_seed(1))
    grid = tokens_TND.reshape(3, 8, 8, 16)
    shuffled = reference.pixel_shuffle(grid, scale_factor=1 / factor).reshape(3, -1, 16 * factor * factor)
    assert torch.equal(pixel_shuffle(tokens_TND, factor), shuffled)

    ours_in, theirs_in = (tokens_TND.clone().requires_grad_() for _ in range(2))
    ours = projector(pixel_shuffle(ours_in, factor))
    expected = theirs(
        reference.pixel_shuffle(theirs_in.reshape(3, 8, 8, 16), scale_factor=1 / factor).reshape(
            3, -1, 16 * factor * factor
        )
    )
    assert ours.shape == (3, 64 // factor**2, 24)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_shuffle_folds_squares_of_patches(small, factor, width):
    grid = small * factor
    tokens = torch.arange(grid * grid * width, dtype=torch.float32).reshape(1, grid * grid, width)
    folded = pixel_shuffle(tokens, factor)
    assert folded.shape == (1, small * small, factor * factor * width)
    cells = tokens.reshape(grid, grid, width)
    for row in range(small):
        for column in range(small):
            square = cells[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            token = folded[0, row * small + column]
            assert sorted(token.tolist()) == sorted(square.flatten().tolist())


@pytest.mark.parametrize("number, factor", [(9, 2), (12, 2), (16, 3)])
def test_shuffle_refuses_what_does_not_fit(number, factor):
    with pytest.raises(ValueError, match=f"{number} patch tokens"):
        pixel_shuffle(torch.zeros(1, number, 4), factor)


def dropping(ratio: float = 0.75, seed: int = 0, **changes) -> VisualRobustness:
    return VisualRobustness(VRLSettings(ratio=ratio, **changes), seed=seed).train()


@given(st.integers(0, 3000), st.integers(0, 99), st.lists(st.integers(0, 2**40), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_survivors_are_an_exact_sorted_subset(count, percent, key):
    kept = dropping(percent / 100)(count, key)
    # ceil((1 - r) N) in whole numbers, free of rounding.
    assert len(kept) == -(-(100 - percent) * count // 100)
    assert kept.dtype == np.int64
    assert np.all(np.diff(kept) > 0)
    if len(kept):
        assert kept[0] >= 0
        assert kept[-1] < count
    assert np.array_equal(kept, dropping(percent / 100)(count, key))


@given(st.integers(1, 10**6), st.integers(1, 1000))
@settings(deadline=None)
def test_count_kept_is_the_papers(count, part):
    ratio = 1 - part / 1000
    assert count_kept(count, ratio) == -(-part * count // 1000)
    assert 1 <= count_kept(count, ratio) <= count


def test_the_papers_numbers():
    assert count_kept(256, 0.75) == 64
    assert count_kept(5 * 256, 0.75) == 320
    # 0.1 · 30 is 3.0000000000000004 in floating point, which must not become 4.
    assert count_kept(30, 0.9) == 3
    assert count_kept(7, 0.0) == 7


def test_keys_and_seeds_decide():
    keys = [(0,), (1,), (2,), (2**31,), (2**40,)]
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for same_length in (keys, pairs):
        sets = {tuple(dropping(seed=seed)(256, key)) for seed in range(5) for key in same_length}
        assert len(sets) == 5 * len(same_length)
    assert np.array_equal(dropping(seed=3)(256, (7,)), dropping(seed=3)(256, (7,)))


def test_every_token_survives_equally_often():
    count, ratio, draws = 64, 0.75, 2000
    module = dropping(ratio)
    survived = np.zeros(count)
    together = 0
    for key in range(draws):
        kept = module(count, (key,))
        survived[kept] += 1
        together += {0, 1} <= set(kept.tolist())
    p = 1 - ratio
    sigma = math.sqrt(draws * p * (1 - p))
    assert np.abs(survived - draws * p).max() < 5 * sigma
    # Subsets are uniform, too: neighbours survive together as often as any pair, 16/64 · 15/63.
    pair = p * 15 / 63
    assert abs(together - draws * pair) < 5 * math.sqrt(draws * pair * (1 - pair))


def test_nothing_is_dropped_in_eval_mode_or_at_ratio_0():
    assert np.array_equal(dropping(0.75).eval()(100, (1,)), np.arange(100))
    assert np.array_equal(dropping(0.0)(100, (1,)), np.arange(100))
    assert np.array_equal(dropping(0.75, probability=0.0)(100, (1,)), np.arange(100))
    assert len(dropping(0.75)(0, (1,))) == 0


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_probability_is_the_share_of_samples_that_drop(probability):
    module = dropping(0.75, probability=probability)
    draws = 1000
    kept = [len(module(16, (key,))) for key in range(draws)]
    treated = kept.count(4)
    assert treated + kept.count(16) == draws
    assert abs(treated - draws * probability) < 5 * math.sqrt(draws * probability * (1 - probability))


def test_the_ramp_raises_the_ratio():
    module = dropping(0.8, ramp_steps=4)
    assert [module.ratio_at(step) for step in (0, 1, 2, 3, 4, 100)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 0.8, 0.8]
    )
    assert [len(module(100, (1,), step)) for step in (0, 1, 3, 50)] == [80, 60, 20, 20]


def test_survivors_equal_a_plain_choice():
    rng, same = np.random.default_rng(4), np.random.default_rng(4)
    kept = surviving_tokens(50, 0.5, rng)
    assert np.array_equal(kept, np.sort(same.choice(50, size=25, replace=False, shuffle=False)))
