"""A trained ViT at another patch size and another image size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.pyramid_toys import awake, images, tower_of
from vitp.core.errors import ConfigError
from vitp.models.deformable import cell_centers
from vitp.models.positions import resample_positions
from vitp.models.resample import fit_weights, resample_kernel, resized_tower


def test_a_bicubic_kernel_is_an_interpolated_image():
    kernel = torch.randn(6, 3, 14, 14)
    found = resample_kernel(kernel, 16)
    expected = F.interpolate(kernel, size=(16, 16), mode="bicubic", align_corners=False)
    assert torch.equal(found, expected)
    assert resample_kernel(kernel, 14) is kernel
    ones = resample_kernel(torch.ones(1, 3, 14, 14), 16)
    # A bright patch answers with the area of the patch.
    assert ones.sum() / (3 * 14 * 14) == pytest.approx((16 / 14) ** 2, rel=1e-5)


def test_a_pseudo_inverse_kernel_answers_as_before_to_a_resized_patch():
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(6, 3, 14, 14, generator=generator)
    patch = torch.randn(4, 3, 14, 14, generator=generator)
    larger = F.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    before = torch.einsum("dcij,bcij->bd", kernel, patch)
    after = torch.einsum("dcij,bcij->bd", resample_kernel(kernel, 16, "pseudo_inverse"), larger)
    torch.testing.assert_close(after, before, atol=2e-3, rtol=1e-3)
    with pytest.raises(ConfigError, match='no method "nearest"'):
        resample_kernel(kernel, 16, "nearest")  # type: ignore[arg-type]


def test_positions_keep_their_prefix_and_their_place():
    # A table that holds its own row and column on 0..1, in a grid that isn't square.
    table = torch.cat([torch.full((1, 2, 2), 9.0), cell_centers((4, 8), 1, (4, 8))[None]], dim=1)
    found = resample_positions(table, (10, 7), prefix=2, old_grid=(4, 8))
    assert found.shape == (1, 72, 2)
    assert torch.equal(found[:, :2], table[:, :2])
    wanted = cell_centers((10, 7), 1, (10, 7))
    inside = ((wanted > 0.3) & (wanted < 0.7)).all(1)
    torch.testing.assert_close(found[0, 2:][inside], wanted[inside], atol=0.01, rtol=0)
    assert torch.equal(resample_positions(table, (4, 8), prefix=2, old_grid=(4, 8)), table)
    with pytest.raises(ConfigError, match="32 positions are no grid of 6 × 6"):
        resample_positions(table, (4, 4), prefix=2)


def test_a_tower_with_other_patches_and_size_is_nearly_the_same():
    tower = awake(tower_of(14, cells=4)).eval()
    same = resized_tower(tower)
    image_BCHW = images(1, 56, 56)
    assert torch.equal(same.forward_tokens(image_BCHW), tower.forward_tokens(image_BCHW))
    assert not same.training
    other = resized_tower(tower, patch_size=16, image_size=96, drop_path=0.2)
    assert (other.patch_size, other.image_size, other.grid) == (16, (96, 96), 6)
    assert other.config.arguments["patch_size"] == 16
    assert other.model.blocks[-1].drop_path1.rate == pytest.approx(0.2)
    assert resized_tower(tower, patch_size=16).image_size == (64, 64)
    for name, tensor in other.state_dict().items():
        if name not in ("model.pos_embed", "model.patch_embed.proj.weight"):
            assert torch.equal(tensor, tower.state_dict()[name]), name
    # The same grid, every patch stretched along: the pseudo-inverse leaves the tokens as they were.
    smooth = F.interpolate(images(1, 7, 7), size=(56, 56), mode="bicubic")
    stretched = F.interpolate(
        smooth.unfold(2, 14, 14).unfold(3, 14, 14).reshape(1, -1, 14, 14), size=(16, 16), mode="bicubic", antialias=True
    )  # fmt: skip
    stretched = stretched.reshape(1, 3, 4, 4, 16, 16).permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 64, 64)
    inverse = resized_tower(tower, patch_size=16, method="pseudo_inverse")
    torch.testing.assert_close(
        inverse.forward_tokens(stretched), tower.forward_tokens(smooth), atol=1e-3, rtol=1e-3
    )


def test_weights_of_another_tower_are_not_bent_into_shape():
    weights = fit_weights(tower_of(16, embed_dim=64).state_dict(), tower_of(8))
    with pytest.raises(RuntimeError, match="size mismatch"):
        tower_of(8).load_state_dict(weights, strict=True)
