"""Names of the same weights in four layouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights_toys import Sizes, hf_names, original_weights, vision_weights
from vitp.checkpoints.layouts import (
    LANGUAGE,
    PROJECTOR,
    VISION,
    from_hf,
    from_original,
    from_timm,
    part_of,
    to_hf,
    to_original,
)
from vitp.core.errors import CheckpointError

SIZES = Sizes(width=8, layers=2, heads=2, mlp=12, patch=2, image=8, language_width=6, language_heads=2, kv_heads=1, language_mlp=10, vocabulary=20)  # fmt: skip


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_every_published_name_has_one_of_ours_and_comes_back():
    published = original_weights(SIZES)
    ours = from_original(published)
    assert (ours.unexpected, ours.ignored) == ([], [])
    assert len(ours.weights) == len(published)
    assert {name.split(".")[0] for name in ours.weights} == {"vision", "projector", "language"}
    back = to_original(ours.weights)
    assert back.unexpected == []
    assert same(back.weights, published)


def test_names_are_timms():
    import timm

    model = timm.create_model(
        "vit_intern300m_patch14_448", num_classes=0, global_pool="", img_size=8, patch_size=2, embed_dim=8, depth=2,
        num_heads=2, mlp_ratio=1.5,
    )  # fmt: skip
    ours = part_of(from_original(vision_weights(SIZES)).weights, VISION)
    own = model.state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in own.items()}
    assert from_timm(ours).keys() == from_original(vision_weights(SIZES)).weights.keys()


def test_a_tower_is_understood_with_and_without_its_prefix():
    with_prefix = from_original(vision_weights(SIZES)).weights
    without = from_original(vision_weights(SIZES, prefix="")).weights
    assert same(with_prefix, without)
    assert all(name.startswith(VISION) for name in with_prefix)


def test_transformers_names_are_those_of_the_published_conversion():
    published = original_weights(SIZES)
    expected = hf_names(published, SIZES)
    written = to_hf(from_original(published).weights)
    assert written.unexpected == []
    assert same(written.weights, expected)
    back = from_hf(expected)
    assert (back.unexpected, back.ignored) == ([], [])
    assert same(back.weights, from_original(published).weights)


@pytest.mark.parametrize("form", ["new", "bare head", "tower alone"])
def test_all_spellings_of_transformers_are_understood(form):
    named = hf_names(original_weights(SIZES), SIZES)
    if form == "new":  # as transformers names the modules themselves
        spelt = {
            (
                "lm_head.weight"
                if name == "language_model.lm_head.weight"
                else f"model.{name.replace('language_model.model.', 'language_model.')}"
            ): tensor
            for name, tensor in named.items()
        }
    elif form == "bare head":
        spelt = {name.replace("language_model.lm_head", "lm_head"): t for name, t in named.items()}
    else:
        named = {name: t for name, t in named.items() if name.startswith("vision_tower.")}
        spelt = {name.removeprefix("vision_tower."): t for name, t in named.items()}
    found = from_hf(spelt)
    assert found.unexpected == []
    assert same(found.weights, from_hf(named).weights)


def test_queries_keys_and_values_are_cut_and_joined_in_this_order():
    qkv = torch.arange(24.0).reshape(24, 1).expand(24, 8).contiguous()
    pieces = to_hf({f"{VISION}blocks.3.attn.qkv.weight": qkv}).weights
    layer = "vision_tower.encoder.layer.3.attention"
    assert torch.equal(pieces[f"{layer}.q_proj.weight"], qkv[:8])
    assert torch.equal(pieces[f"{layer}.k_proj.weight"], qkv[8:16])
    assert torch.equal(pieces[f"{layer}.v_proj.weight"], qkv[16:])
    assert torch.equal(from_hf(pieces).weights[f"{VISION}blocks.3.attn.qkv.weight"], qkv)


def test_an_incomplete_triple_is_unexpected():
    pieces = to_hf({f"{VISION}blocks.0.attn.qkv.bias": torch.arange(6.0)}).weights
    del pieces["vision_tower.encoder.layer.0.attention.k_proj.bias"]
    found = from_hf(pieces)
    assert found.weights == {}
    assert sorted(name.split(".")[-2] for name in found.unexpected) == ["q_proj", "v_proj"]


def test_a_tower_without_layer_scale_gets_ones():
    weights = {
        f"{VISION}blocks.0.norm1.weight": torch.rand(4),
        f"{VISION}blocks.0.norm1.bias": torch.rand(4),
    }
    named = to_hf(weights).weights
    for scale in ("lambda_1", "lambda_2"):
        assert torch.equal(named[f"vision_tower.encoder.layer.0.{scale}"], torch.ones(4))


def test_what_the_architecture_computes_is_ignored_and_strangers_are_unexpected():
    found = from_original(
        {
            "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2),
            "vision_model.encoder.layers.0.attn.q_norm.weight": torch.zeros(2),
            "mask_token": torch.zeros(2),
        }
    )
    assert found.weights == {}
    assert found.ignored == ["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert found.unexpected == ["vision_model.encoder.layers.0.attn.q_norm.weight", "mask_token"]


def test_a_final_norm_has_no_place_in_the_original_layout_but_in_transformers():
    weights = {f"{VISION}norm.weight": torch.ones(2), f"{VISION}norm.bias": torch.zeros(2)}
    assert to_original(weights).unexpected == list(weights)
    assert set(to_hf(weights).weights) == {"vision_tower.layernorm.weight", "vision_tower.layernorm.bias"}
    assert same(from_hf(to_hf(weights).weights).weights, weights)


def test_two_tensors_for_one_name_are_an_error_unless_they_are_equal():
    head = torch.rand(3, 2)
    twice = {"lm_head.weight": head, "language_model.lm_head.weight": head.clone()}
    assert set(from_hf(twice).weights) == {f"{LANGUAGE}lm_head.weight"}
    with pytest.raises(CheckpointError, match=r"two different tensors for language\.lm_head\.weight"):
        from_hf(twice | {"lm_head.weight": head + 1})


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.sampled_from(
                ["attn.qkv.weight", "attn.proj.bias", "mlp.fc1.weight", "norm2.bias", "ls1.gamma"]
            ),
        ),
        unique=True,
        max_size=12,
    ),
    st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_any_part_of_a_model_goes_there_and_back(entries, width):
    ours = {f"{VISION}blocks.{n}.{name}": torch.rand(3 * width, width) for n, name in entries}
    ours[f"{PROJECTOR}3.bias"] = torch.rand(2)
    ours[f"{LANGUAGE}model.layers.0.mlp.up_proj.weight"] = torch.rand(2, 2)
    assert same(from_original(to_original(ours).weights).weights, ours)
    assert same(from_hf(to_hf(ours).weights).weights, ours)
