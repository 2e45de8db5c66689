"""Masked image modelling: the loss by hand, nothing seen of what is masked, positions where they belong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.objective_toys import PATCH, SIZE, masked, tiny_tower
from vitp.objectives.masked_image import (
    MaskedBatch,
    MaskedImageObjective,
    MaskedImageSettings,
    patchify,
    sincos_positions,
)


def batch(images: int = 3, kept: int = 4, seed: int = 0) -> MaskedBatch:
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.randint(0, 256, (images, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    keep = torch.stack([torch.randperm(16, generator=generator)[:kept].sort().values for _ in range(images)])
    return MaskedBatch(tiles, keep, tuple(f"image {number}" for number in range(images)))


def test_patchify_cuts_row_by_row() -> None:
    image = torch.arange(3 * 4 * 6).view(1, 3, 4, 6).float()
    patches = patchify(image, 2)
    assert patches.shape == (1, 6, 12)
    for row, column in np.ndindex(2, 3):
        expected = image[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].permute(1, 2, 0).flatten()
        assert torch.equal(patches[0, 3 * row + column], expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_the_mean_squared_error_of_the_masked_patches(normalize: bool) -> None:
    objective = MaskedImageObjective(
        tiny_tower(), MaskedImageSettings(decoder_width=32, decoder_layers=1, normalize=normalize)
    ).eval()
    made = batch()
    image = objective.tower.normalize(made.tiles_BCHW)
    predicted = objective.decoder(objective.encode(image, made.keep_BK), made.keep_BK)
    total, terms = 0.0, 0
    for b in range(3):
        for n in range(16):
            if n in made.keep_BK[b].tolist():
                continue
            row, column = divmod(n, SIZE // PATCH)
            square = image[b, :, PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)]
            target = square.permute(1, 2, 0).flatten()
            if normalize:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            total += (predicted[b, n] - target).square().mean().item()
            terms += 1
    assert objective.loss_counts(made) == {"pixels": terms}
    assert objective(made)["pixels"].item() == pytest.approx(total, rel=1e-5)


def test_the_encoder_sees_visible_patches_only() -> None:
    objective, made = masked().eval(), batch(images=1)
    changed = made.tiles_BCHW.clone()
    hidden = next(n for n in range(16) if n not in made.keep_BK[0].tolist())
    row, column = divmod(hidden, SIZE // PATCH)
    changed[..., PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)] = 0
    normalize = objective.tower.normalize
    before, after = (objective.encode(normalize(tiles), made.keep_BK) for tiles in (made.tiles_BCHW, changed))
    assert before.shape == (1, 1 + 4, 32)
    assert torch.equal(before, after)


def test_all_patches_visible_is_the_plain_forward_pass() -> None:
    objective = masked().eval()
    image = objective.tower.normalize(batch(images=2).tiles_BCHW)
    everything = torch.arange(16).expand(2, -1)
    assert torch.equal(objective.encode(image, everything)[:, 1:], objective.tower.forward_tokens(image))


def test_visible_patches_get_no_gradient_from_the_loss() -> None:
    """The decoder's predictions of visible patches are not asked for: their targets don't matter."""
    objective, made = masked().eval(), batch(images=1)
    predictions = []
    handle = objective.decoder.register_forward_hook(
        lambda _module, _args, out: (out.retain_grad(), predictions.append(out))[0]
    )
    objective(made)["pixels"].backward()
    handle.remove()
    gradient_N = predictions[0].grad[0].abs().sum(-1)
    visible = made.keep_BK[0]
    assert float(gradient_N[visible].sum()) == 0
    rest = torch.ones(16, dtype=torch.bool).scatter(0, visible, False)
    assert bool((gradient_N[rest] > 0).all())


def test_positions_are_sines_of_column_and_row() -> None:
    positions = sincos_positions(4, 16)
    assert positions.shape == (16, 16)
    frequency = [10_000 ** (-k / 4) for k in range(4)]
    n = 4 * 2 + 3  # row 2, column 3
    expected = [math.sin(3 * f) for f in frequency] + [math.cos(3 * f) for f in frequency]
    expected += [math.sin(2 * f) for f in frequency] + [math.cos(2 * f) for f in frequency]
    assert positions[n].tolist() == pytest.approx(expected, abs=1e-6)
    assert len({tuple(row) for row in positions.tolist()}) == 16


def test_masked_patches_are_not_computed() -> None:
    objective = masked()
    quarter, all_but_one = objective.work(batch(kept=4)), objective.work(batch(kept=15))
    assert quarter["flops"] < 0.75 * all_but_one["flops"]
