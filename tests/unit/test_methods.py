"""Methods beside ViTP that are settings of an objective, each by its smallest sign of working."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.objective_toys import PATCH, SIZE, VISION, labelled_folder, tiny_tower
from vitp.core.config import make_config
from vitp.core.errors import ConfigError, DataError
from vitp.core.tensors import save_tensors
from vitp.data.mixture import Sample
from vitp.models.vision import VisionSettings, VisionTower
from vitp.objectives.dropped_positions import (
    DroppedPositionObjective,
    DroppedPositionSettings,
    PlacedBatch,
    smoothed_places,
)
from vitp.objectives.image_rows import read_image_rows
from vitp.objectives.image_text import clip_loss
from vitp.objectives.masked_image import MaskedBatch, MaskedImageObjective, MaskedImageSettings, patchify
from vitp.objectives.text_tower import captions_of
from vitp.runs.pretrain import PretrainConfig, build

# ConVIRT: the two directions of the contrast may count differently.


def test_the_directions_of_the_contrast_are_weighed() -> None:
    similarity = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    images, texts = torch.eye(4), similarity.T.contiguous()  # so that image · text is the similarity
    v2t = sum(-similarity[n].log_softmax(0)[n].item() for n in range(4))
    t2v = sum(-similarity[:, n].log_softmax(0)[n].item() for n in range(4))
    for share in (0.0, 0.25, 0.5, 1.0):
        found = clip_loss(images, texts, torch.tensor(1.0), share).item()
        assert found == pytest.approx(share * v2t + (1 - share) * t2v, rel=1e-5)
    true = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(2)), dim=-1)
    scale = torch.tensor(10.0)
    assert clip_loss(true, true, scale, 0.75) < clip_loss(true, true[[1, 2, 3, 0]], scale, 0.75)
    with pytest.raises(ConfigError, match="no two directions"):
        make_config(
            PretrainConfig,
            {"objective": {"name": "siglip", "image_share": 0.75}, "data": {"mixture": ["x"]}},
        )


# RS-M-CLIP: captions in several languages, another one each time.


def test_captions_of_several_languages_are_drawn_in_turn(tmp_path: Path) -> None:
    rows = read_image_rows(labelled_folder(tmp_path / "toy"))
    spoken = ("a harbour with ships", "ein Hafen mit Schiffen", "un port avec des navires")
    item = dataclasses.replace(rows.labelled.items[0], captions=spoken)
    texts = captions_of([rows])
    place: Any = lambda position: Sample(item, None, False, 0, position, 3)  # noqa: E731
    drawn = [texts(place(epoch), np.random.default_rng([3, epoch])) for epoch in range(40)]
    assert set(drawn) == set(spoken)
    assert drawn == [texts(place(epoch), np.random.default_rng([3, epoch])) for epoch in range(40)]


# GPT4Image: stored vectors of descriptions instead of a text tower.


@pytest.mark.slow
def test_stored_vectors_take_the_place_of_the_texts(tmp_path: Path) -> None:
    folder = labelled_folder(tmp_path / "toy")
    ids = [item.id for item in read_image_rows(folder).labelled.items]
    torch.manual_seed(0)
    save_tensors(tmp_path / "some.safetensors", {name: torch.randn(6) for name in ids[:4]})

    def run(file: Path) -> Any:
        settings = {"name": "clip", "text": "vectors", "vectors": str(file), "dimension": 8}
        model = {"init": "random", "vision": VISION.model_dump(), "drop_path": 0.0}
        data = {"mixture": [str(folder)], "global_batch": 4}
        return build(make_config(PretrainConfig, {"objective": settings, "model": model, "data": data}))

    made = run(tmp_path / "some.safetensors")
    objective, batch = made.objective, made.source(0, 0, 0, 1)
    assert set(batch.record_names) <= set(ids[:4])
    assert [group.name for group in objective.parameter_groups()] == ["vision tower", "head"]
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    losses = []
    for step in range(25):
        loss = objective(made.source(step, 0, 0, 1))["contrast"] / 4
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    before = made.source.fingerprint()
    save_tensors(tmp_path / "some.safetensors", {name: torch.randn(6) for name in ids[:4]})
    assert run(tmp_path / "some.safetensors").source.fingerprint() != before
    save_tensors(tmp_path / "other.safetensors", {"nobody": torch.randn(6)})
    with pytest.raises(DataError, match="no training images with a stored vector"):
        run(tmp_path / "other.safetensors")


# SiT: restore a corrupted image, all of whose places are seen.


def test_a_corrupted_image_has_other_patches_in_the_masked_places() -> None:
    config = MaskedImageSettings(decoder_width=32, decoder_layers=1, hide="replace")
    objective = MaskedImageObjective(tiny_tower(), config).eval()
    tiles = torch.randint(
        0, 256, (2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    keep = torch.tensor([[0, 3, 7, 9], [1, 2, 4, 15]])
    batch = MaskedBatch(tiles, keep, ("a", "b"))
    image = objective.tower.normalize(tiles)
    whole, seen = patchify(image, PATCH), patchify(objective.corrupted(image, keep), PATCH)
    for row in range(2):
        kept = keep[row].tolist()
        masked = [n for n in range(16) if n not in kept]
        assert torch.equal(seen[row, kept], whole[row, kept])
        assert all(torch.equal(seen[row, n], whole[row, kept[turn % 4]]) for turn, n in enumerate(masked))
    loss = objective(batch)["pixels"]
    changed = tiles.clone()
    changed[:, :, :PATCH, PATCH : 2 * PATCH] = 0  # patch 1: masked in the first image, seen in the second
    again = MaskedBatch(changed, keep, ("a", "b"))
    first, second = (objective.corrupted(objective.tower.normalize(t), keep)[0] for t in (tiles, changed))
    assert torch.equal(first, second) and objective(again)["pixels"] != loss
    assert objective.loss_counts(batch) == {"pixels": 24.0}
    dropped = MaskedImageObjective(tiny_tower(), config.model_copy(update={"hide": "drop"})).eval()
    assert objective.work(batch)["flops"] > 1.5 * dropped.work(batch)["flops"]


# DropPos: say where patches lie.


def placed(tiles: torch.Tensor, seed: int, step: int = 0) -> PlacedBatch:
    generator = torch.Generator().manual_seed(seed)
    keep = torch.stack([torch.randperm(16, generator=generator)[:8].sort().values for _ in tiles])
    lost = torch.rand(keep.shape, generator=generator) < 0.75
    return PlacedBatch(tiles, keep, tuple(map(str, range(len(tiles)))), lost, step)


def test_only_patches_without_a_position_count_and_sigma_0_is_one_hot() -> None:
    torch.manual_seed(0)
    objective = DroppedPositionObjective(
        tiny_tower(), DroppedPositionSettings(smoothing=2.0), steps=10
    ).eval()
    tiles = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    batch = placed(tiles, 1, step=10)  # at the end the smoothing is 0
    assert objective.sigma_at(0) == 2.0 and objective.sigma_at(10) == 0
    logits = objective.answers(batch)
    pairs = [(b, k) for b in range(3) for k in range(8) if batch.lost_BK[b, k]]
    expected = sum(F.cross_entropy(logits[b, k], batch.keep_BK[b, k]).item() for b, k in pairs)
    assert objective(batch)["positions"].item() == pytest.approx(expected, rel=1e-5)
    assert objective.loss_counts(batch) == {"positions": len(pairs)}
    soft = smoothed_places(4, 2.0)
    assert torch.allclose(soft.sum(1), torch.ones(16)) and torch.equal(smoothed_places(4, 0), torch.eye(16))
    assert (soft[5, 6] / soft[5, 5]).item() == pytest.approx(np.exp(-1 / 4))
    # Nothing of a position is left where it is lost: with all of them lost, places can be swapped.
    everywhere = dataclasses.replace(batch, lost_BK=torch.ones_like(batch.lost_BK))
    table = objective.tower.model.pos_embed
    before = objective.answers(everywhere)
    with torch.no_grad():
        table[:, 1:] = table[:, 1:].flip(1)
    assert torch.allclose(objective.answers(everywhere), before, atol=1e-6)
    assert not torch.allclose(objective.answers(batch), logits, atol=1e-3)
    rotary = VisionSettings(
        architecture="vit_small_patch16_dinov3",
        arguments={"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8},
        image_size=SIZE,
    )
    with pytest.raises(ConfigError, match="no table of positions"):
        DroppedPositionObjective(VisionTower(rotary), DroppedPositionSettings(), steps=1)


@pytest.mark.slow
def test_positions_are_found_in_images_with_a_layout() -> None:
    torch.manual_seed(0)
    settings = DroppedPositionSettings(smoothing=0, decoder_layers=1)
    objective = DroppedPositionObjective(tiny_tower(), settings, steps=200)
    ramp = torch.linspace(0, 220, SIZE)
    layout = torch.stack([ramp[:, None].expand(SIZE, SIZE), ramp.expand(SIZE, SIZE), torch.zeros(SIZE, SIZE)])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for step in range(120):
        noise = torch.randint(0, 36, (8, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(step))
        batch = placed((layout + noise).to(torch.uint8), step)
        (objective(batch)["positions"] / objective.loss_counts(batch)["positions"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    test = placed((layout + 18).expand(8, -1, -1, -1).to(torch.uint8), 999)
    right = objective.eval().answers(test).argmax(-1).eq(test.keep_BK)[test.lost_BK].float().mean().item()
    assert right > 0.4  # chance is 1/16
