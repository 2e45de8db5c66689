"""Feature pyramids: ViT-Adapter, the simple pyramid, hierarchical networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GroundingDinoConfig
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoMultiscaleDeformableAttention,
)

from tests.pyramid_toys import SLIM, VITS, adapter_of, awake, images, swin, tower_of, vit
from vitp.core.errors import ConfigError
from vitp.models.adapter import (
    ConvFFN,
    Extractor,
    Injector,
    ViTAdapter,
    build_pyramid,
    interactions,
    join_maps,
    split_maps,
)
from vitp.models.deformable import MultiScaleDeformableAttention, cell_centers, deformable_attention
from vitp.models.pyramid import CNNPyramid, SimpleFeaturePyramid, to_stride

# The parts of the blocks


def test_24_blocks_are_cut_as_in_the_paper():
    assert interactions(24) == (range(8), range(8, 12), range(12, 16), range(16, 24))
    assert interactions(12) == (range(3), range(3, 6), range(6, 9), range(9, 12))
    assert interactions(6) == (range(2), range(2, 3), range(3, 5), range(5, 6))
    assert interactions(2) == (range(1), range(1, 2))


@given(depth=st.integers(1, 60), count=st.integers(1, 8))
def test_the_parts_are_the_blocks_in_order(depth, count):
    parts = interactions(depth, count)
    assert [block for part in parts for block in part] == list(range(depth))
    assert len(parts) == min(depth, count)
    if (depth, count) != (24, 4):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_parts_can_be_given_and_are_checked():
    assert adapter_of(parts=[(0, 2), (3, 3)]).parts == (range(3), range(3, 4))
    assert adapter_of(parts=1).parts == (range(4),)
    for wrong in ([(0, 1), (1, 3)], [(0, 2)], [(0, 3), (4, 3)], 0):
        with pytest.raises(ConfigError, match=r"parts"):
            adapter_of(parts=wrong)


# Sizes


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (65, 97), (33, 20), (5, 200)])
@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize("kind", ["adapter", "simple"])
def test_maps_have_strides_4_to_32_whatever_the_patch_and_the_image(kind, patch, size):
    pyramid = build_pyramid(tower_of(patch), kind, **SLIM[kind]).eval()
    assert pyramid.strides == (4, 8, 16, 32)
    assert pyramid.channels == (32 if kind == "adapter" else 24)
    with torch.no_grad():
        maps = pyramid(images(2, *size))
    assert [tuple(level.shape) for level in maps] == [
        (2, pyramid.channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        for stride in (4, 8, 16, 32)
    ]
    assert all(torch.isfinite(level).all() and level.std() > 0.05 for level in maps)


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), patch=st.sampled_from([8, 14, 16]))
def test_any_image_size_fits(height, width, patch):
    with torch.no_grad():
        maps = adapter_of(patch, extra_extractors=0)(images(1, height, width))
    assert [tuple(level.shape[2:]) for level in maps] == [
        (math.ceil(height / stride), math.ceil(width / stride)) for stride in (4, 8, 16, 32)
    ]


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_shallow_towers_have_fewer_interactions(depth):
    pyramid = awake(ViTAdapter(tower_of(depth=depth), prior_width=8, drop_path=0.0))
    assert len(pyramid.parts) == min(depth, 4)
    maps = pyramid(images(1, 64, 64))
    sum(level.square().sum() for level in maps).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pyramid.parameters())


# Places: what looks and what is looked at agree on where they are


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_patches_look_at_their_own_place(patch):
    """A map that holds its cells' own x and y in pixels, read at the patches' places, gives their centres."""
    frame, stride = (96, 128), 8
    shape = (frame[0] // stride, frame[1] // stride)
    pixels_S2 = cell_centers(shape, stride, (1, 1))
    grid = (math.ceil(frame[0] / patch), math.ceil(frame[1] / patch))
    places_N2 = cell_centers(grid, patch, frame)
    found = deformable_attention(
        pixels_S2[None, :, None], [shape], places_N2[None, :, None, None, None], torch.ones(1, len(places_N2), 1, 1, 1)
    )[0]  # fmt: skip
    wanted = cell_centers(grid, patch, (1, 1))
    # At the border bilinear sampling mixes in zeros from outside.
    inside = ((wanted > stride / 2) & (wanted < torch.tensor([frame[1], frame[0]]) - stride / 2)).all(1)
    assert inside.float().mean() > 0.7
    torch.testing.assert_close(found[inside], wanted[inside], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("old", "new"), [(14, 4), (14, 16), (14, 32), (8, 4), (8, 32), (16, 16), (16, 32)])
def test_a_resampled_map_keeps_its_place(old, new):
    frame = 224
    ramp_1D11 = (torch.arange(frame // old) + 0.5) * old
    found = to_stride(ramp_1D11.expand(1, 1, frame // old, -1), old, new, (5, frame // new))
    assert found.shape == (1, 1, 5, frame // new)
    wanted = (torch.arange(frame // new) + 0.5) * new
    inside = (wanted > old / 2) & (wanted < frame - old / 2)
    torch.testing.assert_close(found[0, 0, 2][inside], wanted[inside], atol=1e-3, rtol=0)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_joining_undoes_splitting(shapes, seed):
    cells = torch.randn(2, sum(h * w for h, w in shapes), 3, generator=torch.Generator().manual_seed(seed))
    maps = split_maps(cells, shapes)
    assert [tuple(level.shape[2:]) for level in maps] == shapes
    assert torch.equal(join_maps(maps), cells)
    height, width = shapes[0]
    assert torch.equal(maps[0][:, :, height - 1, width - 1], cells[:, height * width - 1])


# The adapter and the ViT


@pytest.mark.parametrize("name", VITS)
def test_running_blocks_in_parts_is_the_plain_forward_pass(name):
    tower = vit(name).eval()
    image_BCHW = images(2, 64, 96)
    tokens = tower.embed_tokens(image_BCHW)
    assert tokens.grid == (4, 6)
    assert tokens.patches_BND.shape == (2, 24, 32)
    for first, last in ((0, 0), (1, 2), (3, 3)):
        tokens = tower.run_blocks(tokens, first, last)
    found = tower.finish_tokens(tokens)
    assert torch.equal(found.tokens_BLD, tower.model.forward_features(image_BCHW))
    assert torch.equal(found.map_BDhw, tower.forward_features(image_BCHW)[0])


@pytest.mark.parametrize("name", VITS)
def test_a_new_adapter_leaves_the_vit_as_it_is(name):
    tower = vit(name).eval()
    adapter = ViTAdapter(tower, prior_width=8).eval()
    image_BCHW = images(2, 64, 96)
    expected = tower.model.forward_features(image_BCHW)
    seen: list[Tensor] = []
    handle = tower.model.norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        adapter(image_BCHW)
        for injector in adapter.injectors:
            injector.gamma.fill_(0.1)
        adapter(image_BCHW)
    handle.remove()
    untouched, touched = seen
    assert torch.equal(untouched, expected)
    assert not torch.allclose(touched, expected, atol=1e-3)


def reference_attention(module: MultiScaleDeformableAttention, levels: int) -> nn.Module:
    config = GroundingDinoConfig(d_model=32, num_feature_levels=levels)
    reference = GroundingDinoMultiscaleDeformableAttention(config, module.heads, module.points)
    reference.load_state_dict(module.state_dict(), strict=True)
    return reference


def reference_look(module, query, places, value, shapes) -> Tensor:
    """Deformable attention by transformers; `module` tells the weights and norms."""
    sizes = torch.tensor(shapes)
    start = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))
    return reference_attention(module.attention, len(shapes))(
        module.query_norm(query),
        encoder_hidden_states=module.value_norm(value),
        reference_points=places[None, :, None].expand(len(query), -1, len(shapes), -1),
        spatial_shapes=sizes,
        spatial_shapes_list=shapes,
        level_start_index=start,
    )[0]


def written_out(adapter: ViTAdapter, image_BCHW: Tensor) -> list[Tensor]:
    """The published forward pass for patches of 16 and 64 × 96 px, step by step, on the adapter's weights."""
    shapes, grid = [(8, 12), (4, 6), (2, 3)], (4, 6)

    def centers(rows: int, columns: int) -> list[tuple[float, float]]:
        return [((c + 0.5) / columns, (r + 0.5) / rows) for r in range(rows) for c in range(columns)]

    places_s = torch.tensor([place for shape in shapes for place in centers(*shape)])
    places_n = torch.tensor(centers(*grid))
    c1 = adapter.prior.stem(image_BCHW)
    c2 = adapter.prior.stages[0](c1)
    c3 = adapter.prior.stages[1](c2)
    c4 = adapter.prior.stages[2](c3)
    c1, c2, c3, c4 = (project(c) for project, c in zip(adapter.prior.project, (c1, c2, c3, c4), strict=True))
    c = torch.cat(
        [
            level.flatten(2).transpose(1, 2) + adapter.level_embedding[i]
            for i, level in enumerate((c2, c3, c4))
        ],
        dim=1,
    )
    model: Any = adapter.backbone.model
    x = model.patch_embed(image_BCHW).flatten(1, 2)
    cls = model.cls_token.expand(len(x), -1, -1)
    # The table is 4 × 4, the image 4 × 6 patches.
    table = model.pos_embed[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    x, cls = x + table, cls + model.pos_embed[:, :1]
    outs = []
    for i, blocks in enumerate([(0,), (1,), (2,), (3,)]):
        injector, extractors = adapter.injectors[i], [adapter.extractors[i]]
        x = x + injector.gamma * reference_look(injector, x, places_n, c, shapes)
        for block in blocks:
            whole = model.blocks[block](torch.cat([cls, x], dim=1))
            cls, x = whole[:, :1], whole[:, 1:]
        if i == 3:
            extractors += [adapter.extractors[4], adapter.extractors[5]]
        for extractor in extractors:
            c = c + reference_look(extractor, c, places_s, x, [grid])
            hidden = extractor.ffn.expand(extractor.ffn_norm(c))
            mixed = []
            for part, (h, w) in zip(hidden.split([96, 24, 6], dim=1), shapes, strict=True):
                image = part.transpose(1, 2).reshape(len(part), -1, h, w)
                weight, bias = extractor.ffn.depthwise.weight, extractor.ffn.depthwise.bias
                mixed.append(F.conv2d(image, weight, bias, padding=1, groups=len(weight)).flatten(2).mT)
            c = c + extractor.ffn.reduce(F.gelu(torch.cat(mixed, dim=1)))
        outs.append(x.transpose(1, 2).reshape(len(x), 32, *grid))
    outs[3] = model.norm(outs[3].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    c2, c3, c4 = (
        part.transpose(1, 2).reshape(len(part), 32, h, w)
        for part, (h, w) in zip(c.split([96, 24, 6], dim=1), shapes, strict=True)
    )
    c1 = c1 + adapter.up(c2)
    scaled = [
        F.interpolate(out, size=size, mode="bilinear", align_corners=False)
        for out, size in zip(outs, [(16, 24), *shapes], strict=True)
    ]
    return [
        norm(level + out) for norm, level, out in zip(adapter.norms, (c1, c2, c3, c4), scaled, strict=True)
    ]


def test_the_adapter_is_the_published_one():
    adapter = awake(adapter_of(value_ratio=1.0, norm="batch")).train()
    image_BCHW = images(2, 64, 96)
    found, expected = adapter(image_BCHW), written_out(adapter, image_BCHW)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    weights = [torch.randn(level.shape, generator=torch.Generator().manual_seed(3)) for level in found]
    sum((level * weight).sum() for level, weight in zip(found, weights, strict=True)).backward()
    own = {name: p.grad.clone() for name, p in adapter.named_parameters()}
    adapter.zero_grad()
    sum((level * weight).sum() for level, weight in zip(expected, weights, strict=True)).backward()
    compared = 0
    for name, parameter in adapter.named_parameters():
        if ".attention." in name:
            continue  # the reference has its own copies of these
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(own[name], parameter.grad, atol=2e-4 * max(scale, 1), rtol=1e-3, msg=name)
        compared += 1
    assert compared > 100


def test_ratios_set_the_widths_of_the_paper():
    adapter = ViTAdapter(tower_of(), prior_width=8)
    assert isinstance(adapter.injectors[0], Injector)
    assert isinstance(adapter.extractors[0], Extractor)
    assert adapter.injectors[0].attention.value_proj.out_features == 8
    assert adapter.extractors[0].ffn.expand.out_features == 8
    assert (adapter.injectors[0].attention.heads, adapter.injectors[0].attention.levels) == (4, 3)
    assert len(adapter.injectors) == 4
    assert len(adapter.extractors) == 6
    assert {extractor.drop_path.drop_prob for extractor in adapter.extractors} == {0.1}
    with pytest.raises(ConfigError, match="can't be shared among 16 heads"):
        ViTAdapter(tower_of(), heads=16)


def test_the_depthwise_convolution_keeps_maps_apart():
    torch.manual_seed(0)
    ffn, shapes = ConvFFN(16, 8), [(4, 4), (2, 2)]
    cells = torch.randn(1, 20, 16)
    changed = cells.clone()
    changed[:, 16:] += 1
    before, after = ffn(cells, shapes), ffn(changed, shapes)
    assert torch.equal(before[:, :16], after[:, :16])
    assert not torch.allclose(before[:, 16:], after[:, 16:], atol=1e-3)


@pytest.mark.parametrize("norm", ["group", "batch", "sync"])
@pytest.mark.parametrize("kind", ["adapter", "simple", "cnn"])
def test_every_parameter_gets_a_gradient(kind, norm):
    backbone = swin() if kind == "cnn" else tower_of(14, reg_tokens=2)
    pyramid = awake(build_pyramid(backbone, kind, norm=norm, **SLIM[kind])).train()
    maps = pyramid(images(2, 70, 64))
    sum((level * torch.randn_like(level)).sum() for level in maps).backward()
    without = [n for n, p in pyramid.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def loss_and_gradients(pyramid: nn.Module, image_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    pyramid.zero_grad()
    torch.manual_seed(11)  # of drop path
    loss = sum((level * level.detach().cos()).sum() for level in pyramid(image_BCHW))
    assert isinstance(loss, Tensor)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in pyramid.named_parameters()}


@pytest.mark.parametrize("name", ["plain", "DINOv3"])
def test_recomputing_changes_nothing(name):
    adapter = awake(ViTAdapter(vit(name), prior_width=8, drop_path=0.4)).train()
    image_BCHW = images(2, 64, 64)
    loss, gradients = loss_and_gradients(adapter, image_BCHW)
    again, same = loss_and_gradients(adapter, image_BCHW)
    assert torch.equal(loss, again)
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)
    adapter.set_gradient_checkpointing(True)
    assert adapter.backbone.model.grad_checkpointing
    recomputed, others = loss_and_gradients(adapter, image_BCHW)
    assert torch.equal(loss, recomputed)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-5, rtol=1e-5, msg=name)
    adapter.set_gradient_checkpointing(False)
    assert not adapter.recompute


@pytest.mark.parametrize("kind", ["adapter", "simple", "cnn"])
def test_bfloat16_autocast_is_close(kind):
    pyramid = awake(build_pyramid(swin() if kind == "cnn" else tower_of(), kind, **SLIM[kind])).eval()
    expected = pyramid(images(2, 64, 96))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pyramid(images(2, 64, 96))
    for level, wanted in zip(found, expected, strict=True):
        error = (level.float() - wanted).square().mean().sqrt() / wanted.std()
        assert error < 0.05
    sum(level.float().square().sum() for level in found).backward()
    assert all(torch.isfinite(p.grad).all() for p in pyramid.parameters())


@pytest.mark.parametrize("kind", ["adapter", "simple"])
def test_images_of_a_batch_do_not_touch_each_other(kind):
    settings = SLIM[kind] | ({"drop_path": 0.0} if kind == "adapter" else {})
    pyramid = awake(build_pyramid(tower_of(), kind, **settings)).train()
    batch = images(3, 64, 64)
    for level, alone in zip(pyramid(batch), pyramid(batch[:1]), strict=True):
        torch.testing.assert_close(level[:1], alone, atol=1e-4, rtol=1e-4)


# The simple pyramid


@pytest.mark.parametrize(("patch", "layers"), [(8, (1, 0, 0, 0)), (14, (2, 1, 0, 0)), (16, (2, 1, 0, 0))])
def test_the_simple_pyramid_doubles_and_halves_the_last_map(patch, layers):
    pyramid = SimpleFeaturePyramid(tower_of(patch), channels=24)
    assert pyramid.base_stride == (8 if patch == 8 else 16)
    doublings = tuple(
        sum(isinstance(layer, nn.ConvTranspose2d) for layer in stage) for stage in pyramid.stages
    )
    assert doublings == layers
    pools = [
        [layer.kernel_size for layer in stage if isinstance(layer, nn.MaxPool2d)] for stage in pyramid.stages
    ]
    assert pools == ([[], [], [2], [4]] if patch == 8 else [[], [], [], [2]])


def test_the_simple_pyramid_is_written_out_for_one_level():
    pyramid = awake(SimpleFeaturePyramid(tower_of(16), channels=24)).eval()
    image_BCHW = images(1, 64, 64)
    (last,) = pyramid.backbone.forward_features(image_BCHW)
    first, norm, _, second, reduce, norm2, smooth, norm3 = pyramid.stages[0]
    x = F.conv_transpose2d(last, first.weight, first.bias, stride=2)
    x = F.layer_norm(x.permute(0, 2, 3, 1), (16,), norm.weight, norm.bias, 1e-6).permute(0, 3, 1, 2)
    x = F.conv_transpose2d(F.gelu(x), second.weight, second.bias, stride=2)
    x = norm3(smooth(norm2(reduce(x))))
    torch.testing.assert_close(pyramid(image_BCHW)[0], x, atol=1e-5, rtol=1e-5)
    assert reduce.weight.shape == (24, 8, 1, 1)


def test_pyramids_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match='no pyramid "adaptor"; did you mean "adapter"'):
        build_pyramid(tower_of(), "adaptor")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='no setting "chanels"; did you mean "channels"'):
        build_pyramid(tower_of(), "simple", chanels=3)
    with pytest.raises(ConfigError, match="has no layer of stride 4"):
        CNNPyramid(tower_of())
    with pytest.raises(ConfigError, match='no norm "layr"'):
        ViTAdapter(tower_of(), norm="layr")  # type: ignore[arg-type]
