"""Which image tokens survive, and how many."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitp.models.reducing import merged, pooled, reduce_tokens
from vitp.models.vrl import VisualRobustness, VRLSettings, count_kept, surviving_tokens


@pytest.mark.parametrize(
    ("count", "ratio", "kept"),
    [(256, 0.75, 64), (10, 0.75, 3), (1, 0.75, 1), (7, 0.0, 7), (100, 0.9, 10), (3, 0.999, 1), (0, 0.75, 0), (1000, 0.3, 700), (10, 0.7, 3), (30, 0.9, 3), (10**6, 0.9999999, 1)],
)  # fmt: skip
def test_the_count_kept_is_rounded_up(count: int, ratio: float, kept: int) -> None:
    assert count_kept(count, ratio) == kept
    rows = surviving_tokens(count, ratio, np.random.default_rng(0))
    assert len(rows) == kept and np.all(np.diff(rows) > 0)
    assert kept == 0 or (rows[0] >= 0 and rows[-1] < count)


def test_survivors_are_uniform() -> None:
    seen = np.zeros(20)
    for seed in range(2000):
        seen[surviving_tokens(20, 0.75, np.random.default_rng(seed))] += 1
    # 500 expected each; five standard deviations are 97.
    assert seen.sum() == 10_000 and abs(seen - 500).max() < 97


def test_the_ratio_grows_over_the_ramp() -> None:
    vrl = VisualRobustness(VRLSettings(ratio=0.8, ramp_steps=4))
    assert [vrl.ratio_at(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert len(vrl(100, (3,), step=1)) == 60
    assert len(vrl(100, (3,))) == 80
    assert vrl.seed == 0
    assert VisualRobustness(VRLSettings(ratio=0.8)).ratio_at(0) == 0.8
    assert VisualRobustness(VRLSettings(ratio=0.8, ramp_steps=1)).ratio_at(0) == 0.8
    assert VisualRobustness(VRLSettings()).ratio_at(7) == 0.75


def test_survivors_are_a_function_of_seed_key_and_count() -> None:
    vrl = VisualRobustness(VRLSettings(), seed=5)
    first = vrl(64, (3, 1))
    assert first.tolist() == vrl(64, (3, 1), step=9).tolist()
    others = [vrl(64, key) for key in ((1, 3), (3, 2), (3,), (3, 1, 0))]
    others.append(VisualRobustness(VRLSettings(), seed=6)(64, (3, 1)))
    assert all(len(other) == 16 and other.tolist() != first.tolist() for other in others)
    # Kept for good: a run that is resumed must draw the same ones.
    rng = np.random.default_rng([5, 0x56524C, 2, 3, 1])
    rng.random()
    assert first.tolist() == np.sort(rng.choice(64, 16, replace=False, shuffle=False)).tolist()


def test_a_share_of_the_samples_is_left_whole() -> None:
    vrl = VisualRobustness(VRLSettings(ratio=0.5, probability=0.25), seed=1)
    lengths = [len(vrl(8, (number,))) for number in range(2000)]
    assert set(lengths) == {4, 8}
    assert abs(lengths.count(4) - 500) < 97
    never, always = VRLSettings(probability=0.0), VRLSettings(probability=1.0)
    assert {len(VisualRobustness(never)(8, (n,))) for n in range(50)} == {8}
    assert {len(VisualRobustness(always)(8, (n,))) for n in range(50)} == {2}


def test_all_survive_where_nothing_is_to_be_dropped() -> None:
    for vrl in (VisualRobustness(VRLSettings()).eval(), VisualRobustness(VRLSettings(ratio=0.0))):
        assert vrl(6, (0,)).tolist() == [0, 1, 2, 3, 4, 5]
    assert VisualRobustness(VRLSettings())(0, (0,)).tolist() == []


def test_settings_have_their_bounds() -> None:
    for wrong in (
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"probability": 1.1},
        {"probability": -0.1},
        {"ramp_steps": -1},
        {"rate": 0.5},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VRLSettings.model_validate(wrong)
    for right in (
        {"ratio": 0.0},
        {"ratio": 0.999},
        {"probability": 0.0},
        {"probability": 1.0},
        {"ramp_steps": 0},
    ):
        VRLSettings.model_validate(right)
    assert VRLSettings().model_dump() == {"ratio": 0.75, "probability": 1.0, "ramp_steps": 0, "how": "drop"}


def test_places_of_reduced_tokens_are_even() -> None:
    for how in ("pool", "merge"):
        vrl = VisualRobustness(VRLSettings(ratio=0.75, how=how))
        assert vrl(16, (1,)).tolist() == vrl(16, (7,)).tolist() == [0, 4, 8, 12]
        assert len(vrl(144, (1,))) == 36 and vrl.eval()(16, (1,)).tolist() == list(range(16))


@pytest.mark.parametrize("k", [1, 4, 5, 8, 12, 15, 16])
def test_merged_and_pooled_tokens_keep_the_mean(k: int) -> None:
    """Each token counts once: the mean weighted by how many it stands for is that of all tokens, and gradient flows."""
    tokens_TnF = torch.randn(3, 16, 5, generator=torch.Generator().manual_seed(k), dtype=torch.double)
    tokens_TnF.requires_grad_()
    found_TkF = merged(tokens_TnF, k)
    # A number of its own in another channel tells what each token stands for: ones stay ones, one-hots become shares.
    marks = torch.eye(16, dtype=torch.double).expand(3, -1, -1)
    shares_Tkn = merged(torch.cat([tokens_TnF, 1e-9 * marks], -1), k)[..., 5:].detach() * 1e9
    assert found_TkF.shape == (3, k, 5) and shares_Tkn.sum(-1).allclose(torch.ones(3, k, dtype=torch.double))
    sizes_Tk = 1 / shares_Tkn.amax(-1)
    assert sizes_Tk.sum(1).allclose(torch.full((3,), 16.0, dtype=torch.double))
    mean_TF = (found_TkF * sizes_Tk[..., None]).sum(1) / 16
    assert mean_TF.allclose(tokens_TnF.mean(1))
    first = (shares_Tkn > 1e-3).double().argmax(-1)
    assert bool((first.diff(dim=1) > 0).all())  # in the order of the image
    found_TkF.sum().backward()
    assert tokens_TnF.grad is not None and bool((tokens_TnF.grad > 0).all())
    if k in (1, 4, 8, 16):
        assert pooled(tokens_TnF, k).mean(1).allclose(tokens_TnF.mean(1))


def test_what_is_alike_is_merged_first() -> None:
    tokens_nF = torch.eye(8).repeat_interleave(2, 0)  # eight pairs of equal neighbours
    assert merged(tokens_nF[None], 8)[0].equal(torch.eye(8))
    grid = torch.arange(16.0).view(1, 16, 1)
    assert pooled(grid, 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pooled(grid, 11).shape == (1, 11, 1)  # no grid of 4 × 4 has so many blocks: runs


def test_tiles_are_reduced_to_what_is_kept_of_each() -> None:
    tokens_TnF = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    keep_K = torch.tensor([0, 2, 4, 5, 6, 7, 9])  # two of the first tile, all of the second, one of the third
    flat = tokens_TnF.flatten(0, 1)
    assert reduce_tokens(tokens_TnF, keep_K, "drop").equal(flat[keep_K])
    for how, made in (("pool", pooled), ("merge", merged)):
        found_KF = reduce_tokens(tokens_TnF, keep_K, how)
        assert found_KF[:2].equal(made(tokens_TnF[:1], 2)[0]) and found_KF[2:6].allclose(tokens_TnF[1])
        assert found_KF[6].allclose(tokens_TnF[2].mean(0))
        assert reduce_tokens(tokens_TnF, torch.arange(12), how).equal(flat)
