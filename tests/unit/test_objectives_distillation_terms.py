"""What DINOv2 and DINOv3 added to self-distillation: each term by hand, at its neutral setting nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.objective_toys import DINO, IBOT, PATCH, SIZE, TODAY, distillation, labelled_folder, source_of
from tests.unit.test_objectives_distillation import batch
from vitp.core.errors import ConfigError
from vitp.objectives.distillation import Crops, DistillationSettings
from vitp.objectives.distillation_terms import GramSettings, gram_distance, koleo, resized_tokens, sinkhorn


def test_koleo_is_minus_the_log_of_the_distance_to_the_nearest_image() -> None:
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    expected = 0.0
    for i in range(5):
        expected -= np.log(min(np.linalg.norm(unit[i] - unit[j]) for j in range(5) if j != i))
    assert koleo(rows.float()).item() == pytest.approx(expected, rel=1e-5)
    leaf = rows.float().requires_grad_()
    koleo(leaf).backward()
    assert leaf.grad is not None
    assert koleo(leaf.detach() - 0.01 * leaf.grad).item() < expected  # images part
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert koleo(rows.float()).item() == pytest.approx(expected, rel=1e-5)


def test_images_that_are_the_same_get_no_gradient_of_koleo() -> None:
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    rows[1] = rows[0]
    rows.requires_grad_()
    koleo(rows).backward()
    assert rows.grad is not None and rows.grad.isfinite().all() and rows.grad.norm() < 100
    with pytest.raises(ConfigError, match="no nearest neighbour"):
        koleo(torch.ones(1, 6))


def test_gram_distance_by_hand() -> None:
    generator = torch.Generator().manual_seed(3)
    own, other = (torch.randn(2, 4, 5, generator=generator) for _ in range(2))
    expected = []
    for s, g in zip(own.double(), other.double(), strict=True):
        s, g = F.normalize(s, dim=1), F.normalize(g, dim=1)
        cells = [float(s[i] @ s[j] - g[i] @ g[j]) ** 2 for i in range(4) for j in range(4)]
        expected.append(sum(cells) / 16)
    assert gram_distance(own, other).tolist() == pytest.approx(expected, rel=1e-5)
    # A rotation of all features changes no angle, so the loss leaves it free.
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    assert gram_distance(own, 3 * own @ turn).abs().max() < 1e-10
    # A plane stays a plane when the map shrinks; rows and columns stay where they are.
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    plane = torch.stack([y, x], -1).reshape(1, 64, 2)
    small = resized_tokens(plane, 16).reshape(4, 4, 2)
    assert torch.allclose(small[1:3, 1:3, 0], torch.tensor([[2.5, 2.5], [4.5, 4.5]]), atol=0.05)
    assert torch.allclose(small[1:3, 1:3, 1], torch.tensor([[2.5, 4.5], [2.5, 4.5]]), atol=0.05)


def test_sinkhorn_shares_prototypes_out() -> None:
    cosines = torch.rand(6, 4, generator=torch.Generator().manual_seed(4)) * 2 - 1
    cosines[:, 0] += 0.8  # every row likes the first prototype best
    cosines.clamp_(max=1)
    found, plain = sinkhorn(cosines, 0.5), (cosines / 0.5).softmax(-1)
    q = np.exp(cosines.double().numpy() / 0.5).T
    for _ in range(3):
        q = q / q.sum(1, keepdims=True) / 4
        q = q / q.sum(0, keepdims=True) / 6
    assert np.allclose(found.numpy(), (q * 6).T, atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(6)) and plain.mean(0)[0] > 0.4 > 0.3 > found.mean(0)[0]
    assert sinkhorn(cosines, 0.01).isfinite().all()


def test_all_terms_by_hand_and_none_without_a_weight() -> None:
    made = batch(masked=5)
    plain, today = distillation(IBOT).eval(), distillation(TODAY).eval()
    assert plain.loss_weights == {} and plain.gram_tower is None
    assert [n for n, _ in plain.named_parameters()] == [
        n for n, _ in today.named_parameters() if not n.startswith("gram_tower.")
    ]
    assert today.loss_weights == {"koleo": 0.1, "gram": 2.0}
    with torch.no_grad():
        for parameter in today.tower.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
        losses = today(made)
        views = made.global_GBCHW.flatten(0, 1)
        tokens = today._tokens(views, made.mask_GBN.flatten(0, 1))
        anchor = plain.tower.forward_tokens(plain.tower.normalize(views))  # the tower of the start
        assert losses["gram"].item() == pytest.approx(
            gram_distance(tokens, anchor).sum().item() / 2, rel=1e-5
        )
        assert losses["gram"] > 1e-4
        first, second = tokens.mean(1).split(3)
        assert losses["koleo"].item() == pytest.approx((koleo(first) + koleo(second)).item() / 2, rel=1e-5)
    assert today.loss_counts(made) == {"views": 3, "patches": 30, "koleo": 3, "gram": 3}
    assert today.work(made)["flops"] > plain.work(made)["flops"]


def test_the_gram_teacher_stays_or_follows_now_and_then() -> None:
    name = "blocks.0.attn.qkv.weight"
    for every, moves in ((0, []), (2, [2])):
        gram = GramSettings(weight=1.0, every=every)
        objective = distillation(DINO.model_copy(update={"gram": gram})).train()
        assert objective.gram_tower is not None
        start, seen = objective.gram_tower.model.get_parameter(name).clone(), []
        for step in range(4):
            with torch.no_grad():
                objective.tower.model.get_parameter(name).add_(1.0)
            before = objective.gram_tower.model.get_parameter(name).clone()
            objective(batch(step=step))["gram"].backward()
            now = objective.gram_tower.model.get_parameter(name)
            assert now.grad is None and not objective.gram_tower.training
            if not torch.equal(now, before):
                seen.append(step)
                assert torch.equal(now, objective.teacher.tower.model.get_parameter(name))
        assert seen == moves and (every > 0 or torch.equal(now, start))


def test_views_of_the_last_steps_are_larger(tmp_path: Path) -> None:
    high = {"share": 0.5, "size": 48, "local_size": 24, "gram_size": 64}
    config = DistillationSettings.model_validate({**TODAY.model_dump(), "high": high})
    data = labelled_folder(tmp_path / "toy")
    collate = Crops(SIZE, PATCH, config, high_from=2)
    source, plain = source_of(data, collate), source_of(data, Crops(SIZE, PATCH, config))
    before, after = source(1, 0, 0, 1), source(2, 0, 0, 1)
    assert before.gram_GBCHW is None and torch.equal(before.global_GBCHW, plain(1, 0, 0, 1).global_GBCHW)
    assert after.global_GBCHW.shape[-2:] == (48, 48) and after.local_VBChw.shape[-1] == 24
    assert after.gram_GBCHW is not None and after.gram_GBCHW.shape == (2, 4, 3, 64, 64)
    assert after.mask_GBN.shape == (2, 4, 36)
    # The same crop under the same colours, at another size.
    shrunk = F.interpolate(after.gram_GBCHW.flatten(0, 1).float(), 48, mode="bilinear", antialias=True)
    large = after.global_GBCHW.flatten(0, 1).float()
    assert 2 * (shrunk - large).abs().mean() < (shrunk.roll(1, 0) - large).abs().mean()
    assert source.fingerprint() != plain.fingerprint()
    losses = distillation(config)(after)
    assert all(loss.isfinite() for loss in losses.values()) and losses.keys() >= {"koleo", "gram"}
    for wrong, words in (
        ({**high, "size": 50}, "high.size"),
        ({**high, "gram_size": 40}, "at least as large"),
    ):
        settings = DistillationSettings.model_validate({**TODAY.model_dump(), "high": wrong})
        with pytest.raises(ConfigError, match=words):
            Crops(SIZE, PATCH, settings, high_from=2).sizes_at(2)
    with pytest.raises(ValueError, match="size is missing"):
        DistillationSettings.model_validate({"high": {"share": 0.5}})
