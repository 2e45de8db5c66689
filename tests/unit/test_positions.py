"""Position tables at other sizes: the published way and timm's, each against numbers."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed

from tests.pyramid_toys import SMALL, awake, images, tower_of
from tests.weights_toys import Sizes, original_folder, vision_weights
from vitp.checkpoints.checkpoint import Hints
from vitp.checkpoints.export import export_backbone
from vitp.checkpoints.loading import load_backbone, load_vlm, open_tower
from vitp.checkpoints.writing import save_vlm
from vitp.core.errors import ConfigError
from vitp.models.positions import resample_positions, use_bicubic_positions
from vitp.models.resample import resized_tower
from vitp.models.vision import VisionSettings, VisionTower
from vitp.tasks.build import BackboneSettings, build_model, describe_backbone, empty_backbone, open_backbone


def keys(distance: float, a: float) -> float:
    """Cubic convolution (Keys, 1981)."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def plain_matrix(old: int, new: int) -> np.ndarray:
    """(new, old) weights: four neighbours each, coefficient -0.75, the border repeated."""
    matrix = np.zeros((new, old))
    for row in range(new):
        place = (row + 0.5) * old / new - 0.5
        first = int(np.floor(place))
        for cell in range(first - 1, first + 3):
            matrix[row, min(max(cell, 0), old - 1)] += keys(place - cell, -0.75)
    return matrix


def antialiased_matrix(old: int, new: int) -> np.ndarray:
    """(new, old) weights: coefficient -0.5, a kernel as wide as a new cell, weights of cells inside only."""
    wide = max(1.0, old / new)
    matrix = np.zeros((new, old))
    for row in range(new):
        place = (row + 0.5) * old / new - 0.5
        matrix[row] = [keys((cell - place) / wide, -0.5) for cell in range(old)]
    return matrix / matrix.sum(1, keepdims=True)


SIZES = [((32, 32), (28, 28)), ((32, 32), (16, 16)), ((4, 8), (10, 7)), ((32, 32), (50, 50))]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_both_ways_are_their_formulas(old, new):
    table = torch.randn(1, 2 + old[0] * old[1], 3, generator=torch.Generator().manual_seed(0))
    grid = table[0, 2:].double().numpy().reshape(*old, 3)
    found = {}
    for method, matrix in (("bicubic", plain_matrix), ("antialiased", antialiased_matrix)):
        rows, columns = matrix(old[0], new[0]), matrix(old[1], new[1])
        wanted = np.einsum("yr,xc,rcd->yxd", rows, columns, grid).reshape(-1, 3)
        found[method] = resample_positions(table, new, prefix=2, old_grid=old, method=method)
        np.testing.assert_allclose(found[method][0, 2:].numpy(), wanted, atol=3e-5)
        assert torch.equal(found[method][:, :2], table[:, :2])
    assert (found["bicubic"] - found["antialiased"]).abs().max() > 0.1
    theirs = resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=2)
    assert torch.equal(found["antialiased"], theirs)
    assert torch.equal(resample_positions(table, new, prefix=2, old_grid=old), theirs)


def test_a_table_of_the_wanted_grid_is_left_alone_and_keeps_its_type():
    table = torch.randn(1, 17, 4).bfloat16()
    assert resample_positions(table, (4, 4), prefix=1, method="bicubic") is table
    assert resample_positions(table, (6, 3), prefix=1, method="bicubic").dtype == torch.bfloat16
    # As many cells in another shape are another grid.
    assert not torch.equal(resample_positions(table, (2, 8), prefix=1, method="bicubic"), table)
    with pytest.raises(ConfigError, match='no method "nearest"'):
        resample_positions(table, (6, 6), prefix=1, method="nearest")  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize(
    "arguments", [{}, {"reg_tokens": 3}, {"reg_tokens": 2, "no_embed_class": True}, {"class_token": False}]
)
def test_a_tower_resamples_alike_when_it_is_made_and_when_it_runs(arguments):
    config = VisionSettings(arguments=SMALL | arguments, image_size=64)
    torch.manual_seed(0)
    ours = awake(VisionTower(config)).eval()
    published = resized_tower(ours, positions="bicubic")
    assert published.config.positions == "bicubic"
    same_BCHW, other_BCHW = images(2, 64, 64), images(2, 48, 80)
    assert torch.equal(published.forward_tokens(same_BCHW), ours.forward_tokens(same_BCHW))
    assert not torch.allclose(
        published.forward_tokens(other_BCHW), ours.forward_tokens(other_BCHW), atol=1e-4
    )
    for tower in (ours, published):
        smaller = resized_tower(tower, image_size=48)
        assert smaller.config.positions == tower.config.positions
        image_BCHW = images(2, 48, 48)
        torch.testing.assert_close(smaller.forward_tokens(image_BCHW), tower.forward_tokens(image_BCHW))
        # The adapters' path through the blocks is the plain one.
        (map_BDhw,) = tower.forward_features(other_BCHW)
        tokens = tower.finish_tokens(tower.run_blocks(tower.embed_tokens(other_BCHW), 0, 3))
        torch.testing.assert_close(map_BDhw, tokens.map_BDhw)
    for copied in (copy.deepcopy(published), pickle.loads(pickle.dumps(published))):
        assert torch.equal(copied.forward_tokens(other_BCHW), published.forward_tokens(other_BCHW))


def test_positions_of_another_kind_are_refused():
    tower = VisionTower(VisionSettings(arguments=SMALL | {"pos_embed": "none"}, image_size=64))
    with pytest.raises(ConfigError, match="positions of its own kind"):
        use_bicubic_positions(tower.model)


def test_configurations_without_the_key_resample_as_before():
    old = {"architecture": "vit_tiny_patch16_224", "arguments": SMALL, "image_size": 64}
    assert VisionSettings.model_validate(old).positions == "antialiased"
    assert load_backbone("starter").config.positions == "antialiased"
    described = describe_backbone(tower_of())
    del described["config"]["positions"]
    tower = empty_backbone(described)
    assert isinstance(tower, VisionTower) and tower.config.positions == "antialiased"


@torch.no_grad()
def test_weights_in_internvl_layouts_resample_as_published(tmp_path):
    folder = original_folder(tmp_path / "InternVL", Sizes())
    table = vision_weights(Sizes())["vision_model.embeddings.position_embedding"]
    wide = round((table.shape[1] - 1) ** 0.5) + 4
    size = wide * load_backbone(folder).patch_size
    for positions, method in ((None, "bicubic"), ("antialiased", "antialiased")):
        tower = load_backbone(folder, image_size=size, positions=positions)
        assert tower.config.positions == method
        wanted = resample_positions(table, (wide, wide), prefix=1, method=method)
        torch.testing.assert_close(tower.model.pos_embed, wanted)
        again, _ = open_tower(folder, hints=Hints(image_size=size, positions=positions))
        assert torch.equal(again.model.pos_embed, tower.model.pos_embed)
    # What is made of them says so, too: a model folder, an export, a task's description.
    loaded = load_vlm(folder)
    save_vlm(tmp_path / "own", loaded.vlm, loaded.chat)
    assert load_vlm(tmp_path / "own").vlm.config.vision.positions == "bicubic"
    export_backbone(tmp_path / "own", tmp_path / "export")
    exported = load_backbone(tmp_path / "export")
    assert exported.config.positions == "bicubic"
    assert "without antialiasing" in (tmp_path / "export" / "README.md").read_text()
    model = build_model("segmentation", exported, ["a", "b"])
    assert model.description["backbone"]["config"]["positions"] == "bicubic"
    # An export of earlier releases says nothing and gives what it gave.
    path = tmp_path / "export" / "vitp_backbone.json"
    description = json.loads(path.read_text())
    del description["vision"]["positions"]
    path.write_text(json.dumps(description))
    assert load_backbone(tmp_path / "export").config.positions == "antialiased"
    assert load_backbone(tmp_path / "export", positions="bicubic").config.positions == "bicubic"


def test_a_run_can_choose(tmp_path):
    folder = original_folder(tmp_path / "InternVL", Sizes())
    for wanted, method in ((None, "bicubic"), ("bicubic", "bicubic"), ("antialiased", "antialiased")):
        settings = BackboneSettings(init=str(folder), positions=wanted)
        assert open_backbone(settings).config.positions == method
    assert open_backbone(BackboneSettings()).config.positions == "antialiased"
    assert open_backbone(BackboneSettings(positions="bicubic")).config.positions == "bicubic"
    with pytest.raises(ConfigError, match="timm resamples the positions"):
        open_backbone(BackboneSettings(init="timm:vit_tiny_patch16_224", positions="bicubic"))
