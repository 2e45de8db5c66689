"""Deformable attention and UperNet against transformers' implementations: values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GroundingDinoConfig, ResNetConfig, UperNetConfig
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoMultiscaleDeformableAttention,
    GroundingDinoPreTrainedModel,
)
from transformers.models.grounding_dino.modeling_grounding_dino import (
    MultiScaleDeformableAttention as Reference,
)
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from vitp.core.errors import ConfigError
from vitp.models.convolution import group_count
from vitp.models.deformable import MultiScaleDeformableAttention, cell_centers, deformable_attention
from vitp.models.heads.upernet import FCNHead, UperNet

SHAPES = [(9, 13), (5, 7), (3, 4)]
CELLS = sum(height * width for height, width in SHAPES)


def reference_attention(value, shapes, locations, weights):
    sizes = torch.tensor(shapes)
    start = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))
    return Reference()(value, sizes, shapes, start, locations, weights, 64)


def random_inputs(shapes, *, batch=2, queries=11, heads=4, points=3, channels=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cells = sum(height * width for height, width in shapes)
    value = torch.randn(batch, cells, heads, channels, generator=generator, dtype=torch.float64)
    # Some locations lie outside of the maps.
    locations = 1.4 * torch.rand(
        batch, queries, heads, len(shapes), points, 2, generator=generator, dtype=torch.float64
    )
    weights = torch.rand(batch, queries, heads, len(shapes), points, generator=generator, dtype=torch.float64)
    return [tensor.requires_grad_() for tensor in (value, locations - 0.2, weights)]


def by_definition(value, shapes, locations, weights):
    """Eq. 3 with loops: bilinear interpolation written out, zeros outside."""
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    out = torch.zeros(batch, queries, heads, channels, dtype=torch.float64)
    starts = [0]
    for height, width in shapes:
        starts.append(starts[-1] + height * width)
    for b, q, a, level, p in torch.cartesian_prod(
        *(torch.arange(n) for n in (batch, queries, heads, levels, points))
    ).tolist():
        height, width = shapes[level]
        x = float(locations[b, q, a, level, p, 0]) * width - 0.5
        y = float(locations[b, q, a, level, p, 1]) * height - 0.5
        for row in (int(y // 1), int(y // 1) + 1):
            for column in (int(x // 1), int(x // 1) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column)) * float(weights[b, q, a, level, p])
                    out[b, q, a] += share * value[b, starts[level] + row * width + column, a]
    return out.flatten(2)


@settings(max_examples=15, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    seed=st.integers(0, 999),
)
def test_it_is_equation_3(shapes, seed):
    value, locations, weights = (
        tensor.detach()
        for tensor in random_inputs(shapes, queries=3, heads=2, points=2, channels=2, seed=seed)
    )
    found = deformable_attention(value, shapes, locations, weights)
    torch.testing.assert_close(found, by_definition(value, shapes, locations, weights), atol=1e-12, rtol=0)


def test_values_and_gradients_equal_transformers():
    ours, theirs = random_inputs(SHAPES), random_inputs(SHAPES)
    found = deformable_attention(ours[0], SHAPES, ours[1], ours[2])
    expected = reference_attention(theirs[0], SHAPES, theirs[1], theirs[2])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert b.grad.abs().max() > 0.1
        torch.testing.assert_close(a.grad, b.grad, atol=1e-11, rtol=0)


def test_gradients_equal_differences():
    value, locations, weights = random_inputs([(3, 4)], batch=1, queries=2, heads=1, points=2, channels=2)
    assert torch.autograd.gradcheck(lambda *tensors: deformable_attention(tensors[0], [(3, 4)], *tensors[1:]), (
        value, locations, weights,
    ))  # fmt: skip


class Initializer(GroundingDinoPreTrainedModel):
    """Nothing but transformers' initialisation."""


def transformers_module(width: int, heads: int, levels: int, points: int) -> nn.Module:
    config = GroundingDinoConfig(d_model=width, num_feature_levels=levels)
    module = GroundingDinoMultiscaleDeformableAttention(config, heads, points)
    torch.manual_seed(3)
    Initializer(config)._init_weights(module)
    return module


def test_the_start_is_the_published_one():
    theirs = transformers_module(32, 8, 3, 4)
    torch.manual_seed(3)
    ours = MultiScaleDeformableAttention(32, levels=3, heads=8, points=4)
    torch.manual_seed(3)
    ours.reset_parameters()
    expected = theirs.state_dict()
    assert set(ours.state_dict()) == set(expected)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0, msg=name)
    # Head 0 looks to the right: 1, 2, 3 and 4 cells on each level.
    assert ours.sampling_offsets.bias[:8].tolist() == pytest.approx([1, 0, 2, 0, 3, 0, 4, 0])


def test_the_module_equals_transformers_module():
    theirs = transformers_module(32, 4, 3, 2)
    ours = MultiScaleDeformableAttention(32, levels=3, heads=4, points=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    query, memory = torch.randn(2, 11, 32), torch.randn(2, CELLS, 32)
    reference = torch.rand(2, 11, 2)
    inputs = [query.clone().requires_grad_(), memory.clone().requires_grad_()]
    found = ours(inputs[0], reference, inputs[1], SHAPES)
    query.requires_grad_(), memory.requires_grad_()
    expected, _ = theirs(
        query,
        encoder_hidden_states=memory,
        reference_points=reference[:, :, None].expand(-1, -1, 3, -1),
        spatial_shapes=torch.tensor(SHAPES),
        spatial_shapes_list=SHAPES,
        level_start_index=torch.tensor([0, 117, 152]),
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, query.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inputs[1].grad, memory.grad, atol=1e-4, rtol=1e-4)
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-3, rtol=1e-4, msg=name)


def test_a_quarter_of_the_channels_carries_the_values():
    module = MultiScaleDeformableAttention(64, levels=1, heads=4, value_ratio=0.25)
    assert module.value_proj.weight.shape == (16, 64)
    assert module.output_proj.weight.shape == (64, 16)
    out = module(torch.randn(1, 6, 64), cell_centers((2, 3), 16, (32, 48)), torch.randn(1, 6, 64), [(2, 3)])
    assert out.shape == (1, 6, 64)
    with pytest.raises(ConfigError, match="can't be shared among 5 heads"):
        MultiScaleDeformableAttention(64, levels=1, heads=5, value_ratio=0.25)


def test_values_that_are_no_map_are_refused():
    with pytest.raises(ValueError, match="don't hold 10 values"):
        deformable_attention(
            torch.zeros(1, 10, 1, 2), [(3, 3)], torch.zeros(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1)
        )


def test_centers_of_cells():
    centers = cell_centers((2, 3), 16, (32, 48))
    expected = [[1 / 6, 0.25], [0.5, 0.25], [5 / 6, 0.25], [1 / 6, 0.75], [0.5, 0.75], [5 / 6, 0.75]]
    torch.testing.assert_close(centers, torch.tensor(expected), atol=1e-6, rtol=0)
    # A grid of 14 px patches that sticks out of a frame of 32 px.
    beyond = cell_centers((1, 3), 14, (32, 32))
    torch.testing.assert_close(beyond[:, 0], torch.tensor([7, 21, 35]) / 32, atol=1e-6, rtol=0)


def test_a_query_finds_the_cell_that_it_points_at():
    """One head, one point on one level with no offset: the value at the reference, on each level."""
    module = MultiScaleDeformableAttention(8, levels=2, heads=1, points=1)
    with torch.no_grad():
        module.sampling_offsets.bias.zero_()
        for layer in (module.value_proj, module.output_proj):
            layer.weight.copy_(torch.eye(8))
    fine, coarse = torch.randn(1, 8, 4, 6), torch.randn(1, 8, 2, 3)
    memory = torch.cat([fine.flatten(2), coarse.flatten(2)], dim=2).transpose(1, 2)
    reference = torch.tensor([[(3 + 0.5) / 6, (1 + 0.5) / 4]])
    found = module(torch.zeros(1, 1, 8), reference, memory, [(4, 6), (2, 3)])
    # Of the coarse map, fine cell (1, 3) lies at (0.25, 1.25).
    rows = 0.75 * coarse[0, :, 0] + 0.25 * coarse[0, :, 1]
    expected = (fine[0, :, 1, 3] + 0.75 * rows[:, 1] + 0.25 * rows[:, 2]) / 2
    torch.testing.assert_close(found[0, 0], expected, atol=1e-6, rtol=0)


@pytest.fixture
def moved_module() -> MultiScaleDeformableAttention:
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(32, levels=3, heads=4, points=2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def test_under_autocast_only_the_projections_lose_precision(moved_module):
    query, memory, reference = torch.randn(2, 11, 32), torch.randn(2, CELLS, 32), torch.rand(11, 2)
    expected = moved_module(query, reference, memory, SHAPES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = moved_module(query, reference, memory, SHAPES)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()
    found.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in moved_module.parameters())


def test_locations_stay_exact_under_autocast():
    """A ramp over 512 columns tells where a location was read: in bfloat16 it would be cells away."""
    ramp = torch.arange(512.0).view(1, 512, 1, 1)
    locations = torch.full((1, 1, 1, 1, 1, 2), 0.5)
    locations[..., 0] = 300.25 / 512
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = deformable_attention(ramp, [(1, 512)], locations, torch.ones(1, 1, 1, 1, 1))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(299.75, abs=1e-3)


def test_recomputing_gives_the_same_gradients(moved_module):
    query, memory, reference = torch.randn(2, 11, 32), torch.randn(2, CELLS, 32), torch.rand(11, 2)
    moved_module(query, reference, memory, SHAPES).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in moved_module.named_parameters()}
    moved_module.zero_grad()
    again = checkpoint(moved_module, query, reference, memory, SHAPES, use_reentrant=False)
    again.square().sum().backward()
    for name, parameter in moved_module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=0, rtol=0, msg=name)


def test_it_can_be_compiled_without_a_graph_break(moved_module):
    query, memory, reference = torch.randn(2, 11, 32), torch.randn(2, CELLS, 32), torch.rand(11, 2)
    compiled = torch.compile(moved_module, fullgraph=True, backend="aot_eager")
    expected = moved_module(query, reference, memory, SHAPES)
    torch.testing.assert_close(compiled(query, reference, memory, SHAPES), expected, atol=1e-6, rtol=0)


CHANNELS = (16, 24, 32, 40)
SIZES = ((24, 33), (12, 17), (6, 9), (3, 5))


def copy_convolution(ours: nn.Module, theirs: nn.Module) -> None:
    ours[0].load_state_dict(theirs.conv.state_dict())
    ours[1].load_state_dict(theirs.batch_norm.state_dict())


def trained(module: nn.Module) -> nn.Module:
    """The module with norms that show when they are mixed up."""
    torch.manual_seed(5)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
                tensor.uniform_(0.5, 1.5)
    return module.eval()


def test_upernet_equals_transformers():
    config = UperNetConfig(backbone_config=ResNetConfig(), hidden_size=20, num_labels=7)
    theirs = trained(UperNetHead(config, list(CHANNELS)))
    ours = UperNet(CHANNELS, 20, 7, norm="batch").eval()
    for branch, block in zip(ours.pooling.branches, theirs.psp_modules.blocks, strict=True):
        copy_convolution(branch, block.layers[1])
    copy_convolution(ours.pooling.bottleneck, theirs.bottleneck)
    for mine, other in zip(ours.laterals, theirs.lateral_convs, strict=True):
        copy_convolution(mine, other)
    for mine, other in zip(ours.smoothers, theirs.fpn_convs, strict=True):
        copy_convolution(mine, other)
    copy_convolution(ours.fuse, theirs.fpn_bottleneck)
    ours.classify.load_state_dict(theirs.classifier.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    maps = [torch.randn(2, width, *size) for width, size in zip(CHANNELS, SIZES, strict=True)]
    found, expected = ours(maps), theirs(maps)
    assert found.shape == (2, 7, 24, 33)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(
        ours.laterals[1][0].weight.grad, theirs.lateral_convs[1].conv.weight.grad, atol=1e-4, rtol=1e-3
    )
    torch.testing.assert_close(
        ours.pooling.branches[3][0].weight.grad,
        theirs.psp_modules.blocks[3].layers[1].conv.weight.grad,
        atol=1e-4,
        rtol=1e-3,
    )


def test_the_auxiliary_head_equals_transformers():
    config = UperNetConfig(
        backbone_config=ResNetConfig(), num_labels=7, auxiliary_channels=12, auxiliary_concat_input=False
    )
    theirs = trained(UperNetFCNHead(config, list(CHANNELS)))
    ours = FCNHead(32, 12, 7, norm="batch").eval()
    copy_convolution(ours.convolutions[0], theirs.convs[0])
    ours.classify.load_state_dict(theirs.classifier.state_dict())
    maps = [torch.randn(2, width, *size) for width, size in zip(CHANNELS, SIZES, strict=True)]
    torch.testing.assert_close(ours(maps[2]), theirs(maps), atol=1e-6, rtol=1e-5)


def test_images_of_a_batch_do_not_touch_each_other_in_training():
    torch.manual_seed(0)
    model = UperNet(CHANNELS, 32, 3, dropout=0.0).train()
    maps = [torch.randn(3, width, *size) for width, size in zip(CHANNELS, SIZES, strict=True)]
    alone = model([level[:1] for level in maps])
    torch.testing.assert_close(model(maps)[:1], alone, atol=1e-5, rtol=1e-4)


def test_the_global_pool_is_heard_under_group_norm():
    """A map that is pooled to one cell must not be normalised away."""
    torch.manual_seed(0)
    model = UperNet(CHANNELS, 32, 3, dropout=0.0).eval()
    last = torch.randn(1, 40, 3, 5)
    pooled = model.pooling.branches[0](last.mean((2, 3), keepdim=True))
    assert (pooled > 0.1).float().mean() > 0.2
    assert [group_count(channels) for channels in (8, 12, 64, 192, 256, 512, 1024)] == [
        1,
        1,
        8,
        24,
        32,
        32,
        32,
    ]


def test_upernet_starts_undecided_and_reads_every_level():
    torch.manual_seed(0)
    model = UperNet(CHANNELS, 32, 3, dropout=0.0)
    maps = [
        torch.randn(1, width, *size, requires_grad=True) for width, size in zip(CHANNELS, SIZES, strict=True)
    ]
    logits = model(maps)
    assert logits.abs().max() < 1
    logits.square().sum().backward()
    assert all(level.grad.abs().sum() > 0 for level in maps)
    assert all(parameter.grad is not None for parameter in model.parameters())
