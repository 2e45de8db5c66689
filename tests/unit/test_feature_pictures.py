"""Features as colours, sheets of attention and the page that shows them side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.unit.test_report import assert_self_contained
from vitp.cli import app
from vitp.core.errors import ConfigError
from vitp.evaluation.attention import ColourBasis, colour_basis, feature_maps, matched
from vitp.evaluation.feature_pictures import (
    attention_sheet,
    below_one_another,
    compare_features,
    compare_rollout,
    enlarged_cells,
    feature_colours,
    layer_number,
    patch_at,
)
from vitp.models.backbone import Backbone
from vitp.models.timm_backbone import TimmSettings, timm_backbone
from vitp.models.vision import VisionSettings, VisionTower
from vitp.report.attention import attention_explorer
from vitp.report.features_page import write_features_page, write_pictures


def tiny_tower(seed: int = 0, **changes: object) -> VisionTower:
    torch.manual_seed(seed)
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8} | changes
    return VisionTower(VisionSettings(arguments=arguments, image_size=32)).eval()


def rotary_tower() -> Backbone:
    arguments = {"embed_dim": 48, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    return timm_backbone(
        TimmSettings(architecture="vit_small_patch16_dinov3", arguments=arguments, image_size=64)
    ).eval()


def picture(seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)


def test_matched_colours_undo_any_order_and_sign() -> None:
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(6, 5, 8)) * [5, 3, 2, 1, 1, 1, 1, 1] for _ in range(3)]
    basis = colour_basis(features)
    order, sign = [2, 0, 1], np.array([-1.0, 1.0, -1.0])
    ends = np.stack([basis.low_3, basis.high_3])[:, order] * sign
    mixed = ColourBasis(
        basis.mean_D, basis.axes_D3[:, order] * sign, ends.min(0), ends.max(0), basis.explained
    )
    again = matched(mixed, features, basis, features)
    assert np.allclose(again.axes_D3, basis.axes_D3)
    assert all(np.array_equal(again.colours(each), basis.colours(each)) for each in features)
    # Of features that carry the same picture in other directions and at another resolution, too.
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    same = [np.repeat(np.repeat(each @ rotation, 2, 0), 2, 1) for each in features]
    alike = matched(colour_basis(same), same, basis, features)
    for one, other in zip(same, features, strict=True):
        # Percentiles of repeated values differ a little.
        assert np.abs(alike.colours(one)[::2, ::2].astype(int) - basis.colours(other)).max() <= 12


def test_a_basis_says_how_much_it_shows() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(10, 10, 3)) @ rng.normal(size=(3, 12))
    assert colour_basis([flat]).explained == pytest.approx(1.0)
    assert colour_basis([rng.normal(size=(60, 60, 12))]).explained == pytest.approx(0.25, abs=0.03)
    with pytest.raises(ConfigError, match="at least 3"):
        colour_basis([np.zeros((4, 4, 2))])


def test_bases_are_shared_on_request_only() -> None:
    towers = {"a": tiny_tower(0), "b": tiny_tower(1)}
    images = [picture(0), picture(1)]
    (own,) = feature_colours(towers, images)
    assert own["a"].basis is not own["b"].basis and own["a"].pictures[0].shape == (4, 4, 3)
    (shared,) = feature_colours(towers, images, shared=True)
    assert shared["a"].basis is shared["b"].basis
    expected = colour_basis([feature_maps(tower, image)[0] for tower in towers.values() for image in images])
    assert np.allclose(shared["a"].basis.axes_D3, expected.axes_D3)
    assert np.array_equal(
        own["a"].pictures[1], own["a"].basis.colours(feature_maps(towers["a"], images[1])[0])
    )
    (twin,) = feature_colours({"a": towers["a"], "twin": towers["a"]}, images)
    assert np.array_equal(twin["a"].pictures[0], twin["twin"].pictures[0])
    with pytest.raises(ConfigError, match="one width"):
        feature_colours({"a": towers["a"], "c": tiny_tower(embed_dim=48)}, images, shared=True)
    with pytest.raises(ConfigError, match="name both"):
        feature_colours({}, images)


def test_layers_are_numbers_or_shares_of_the_depth() -> None:
    deep = tiny_tower(depth=5)
    assert [layer_number(deep, layer) for layer in (0.0, 0.25, 0.5, 1.0, -1, 3)] == [0, 1, 2, 4, -1, 3]
    first, last = feature_colours({"a": deep}, [picture()], [0.0, -1])
    assert np.array_equal(
        last["a"].pictures[0], last["a"].basis.colours(feature_maps(deep, picture(), [4])[0])
    )
    assert not np.array_equal(first["a"].pictures[0], last["a"].pictures[0])


def test_rows_hold_an_image_and_every_backbone() -> None:
    backbones = {
        "vit": tiny_tower(),
        "resnet": timm_backbone(TimmSettings(architecture="resnet10t", image_size=64)).eval(),
    }
    rows = compare_features(backbones, [picture(), picture(1)], side=32)
    assert [row.size for row in rows] == [(3 * 32 + 2 * 6, 32 + 18)] * 2
    cells = enlarged_cells(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], np.uint8), 8)
    assert cells.getpixel((0, 0)) == (255, 0, 0) and cells.getpixel((7, 7)) == (9, 9, 9)


def test_a_sheet_has_a_row_a_layer_and_a_column_a_head() -> None:
    sheet = attention_sheet(tiny_tower(depth=3), picture(), (0.5, 0.5), side=32)
    assert sheet.size == (2 * 32 + 6, 3 * (32 + 18) + 2 * 6)
    part = attention_sheet(tiny_tower(depth=3), picture(), (0.5, 0.5), layers=[-1], side=32)
    assert np.array_equal(np.asarray(part)[18:], np.asarray(sheet)[-32:])
    with pytest.raises(ConfigError, match="no pictures"):
        below_one_another([])


def test_places_are_shares_of_every_grid() -> None:
    assert patch_at(tiny_tower(), (0.5, 0.99)) == (2, 3)
    assert patch_at(tiny_tower(patch_size=16), (0.5, 0.99)) == (1, 1)
    with pytest.raises(ConfigError, match=r"not in 0\.\.1"):
        patch_at(tiny_tower(), (1.0, 0.0))
    sheet = compare_rollout(
        {"a": tiny_tower(), "b": tiny_tower(patch_size=16)}, picture(), (0.5, 0.5), side=64
    )
    assert sheet.size == (3 * 64 + 2 * 6, 64 + 18)


def test_explorers_show_as_many_layers_of_deeper_backbones() -> None:
    towers = {"a": tiny_tower(depth=2), "b": tiny_tower(depth=5)}
    block = attention_explorer(towers, {"one": picture()}, (0.9, 0.1), heads=True)
    assert [list(each.layers) for each in block.backbones] == [[0, 1], [0, 4]]
    assert block.patch == (3, 0) and block.head_count == 2 and block.layer_count == 2


def test_the_page_shows_backbones_of_all_kinds(tmp_path: Path) -> None:
    backbones: dict[str, Backbone] = {
        "plain": tiny_tower(),
        "rotary": rotary_tower(),
        "convolutions": timm_backbone(TimmSettings(architecture="resnet10t", image_size=64)).eval(),
    }
    images = {"first": picture(), "second": picture(1)}
    page = write_features_page(backbones, images, tmp_path / "page.html").read_text(encoding="utf-8")
    assert_self_contained(page)
    for text in (
        "plain",
        "rotary",
        "No attention among patches: convolutions",
        "Attention rollout",
        "after half",
    ):
        assert text in page
    files = write_pictures(backbones, images, tmp_path / "pictures")
    assert sorted(path.name for path in files) == [
        "first-attention.png",
        "first-features.png",
        "first-heads-plain.png",
        "first-heads-rotary.png",
        "first-rollout.png",
        "second-attention.png",
        "second-features.png",
        "second-rollout.png",
    ]
    alone = write_features_page({"convolutions": backbones["convolutions"]}, images, tmp_path / "alone.html")
    assert "Attention of a patch" not in alone.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="name both"):
        write_features_page(backbones, {}, tmp_path / "none.html")


def test_the_command_takes_several_backbones_and_images(tmp_path: Path) -> None:
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    page = tmp_path / "page.html"
    arguments = [
        "features",
        "ours=starter",
        "random",
        "--images",
        *files,
        "--out",
        str(page),
        "--max-images",
        "2",
    ]
    arguments += ["--pictures", str(tmp_path / "pictures")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "wrote 8 pictures" in done.output
    text = page.read_text(encoding="utf-8")
    assert "ours, random on 2 images" in text
    for wrong, message in (("2,0", "is no place"), ("middle", "is no place")):
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(
                app, ["features", "starter", "--images", files[0], "--patch", wrong], catch_exceptions=False
            )
    with pytest.raises(ConfigError, match="no image is named"):
        CliRunner().invoke(app, ["features", "starter"], catch_exceptions=False)
