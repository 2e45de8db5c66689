"""Backbones of timm, and how far each of their parameters lies below the top."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests.engine_toys import ToyObjective
from tests.pyramid_toys import SMALL, SWIN, VITS, adapter_of, awake, images, swin, vit
from vitp.checkpoints.loading import open_timm
from vitp.core.errors import CheckpointError, ConfigError
from vitp.engine.config import OptimSettings
from vitp.engine.optim import build_optimizer
from vitp.models.adapter import build_pyramid
from vitp.models.layer_decay import layer_distances
from vitp.models.positions import resample_positions
from vitp.models.timm_backbone import TimmSettings, TimmStages, timm_backbone
from vitp.models.vision import VisionTower


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("convnext_atto", {}),
        ("swin_tiny_patch4_window7_224", SWIN),
        ("swinv2_tiny_window8_256", SWIN),
    ],
)
def test_hierarchical_networks_give_four_maps(name, arguments):
    torch.manual_seed(0)
    backbone = timm_backbone(TimmSettings(architecture=name, arguments=arguments)).eval()
    assert isinstance(backbone, TimmStages)
    assert backbone.strides[-4:] == (4, 8, 16, 32)
    pyramid = build_pyramid(backbone, "cnn", channels=16).eval()
    with torch.no_grad():
        maps = pyramid(images(1, 65, 97))
    assert [tuple(level.shape) for level in maps] == [
        (1, 16, 17, 25),
        (1, 16, 9, 13),
        (1, 16, 5, 7),
        (1, 16, 3, 4),
    ]
    with pytest.raises(ConfigError, match="is no plain ViT"):
        build_pyramid(backbone, "adapter")


def test_stages_equal_timms_own_features():
    torch.manual_seed(0)
    backbone = timm_backbone("resnet18").eval()
    plain = timm.create_model("resnet18", features_only=True).eval()
    plain.load_state_dict(backbone.model.state_dict(), strict=True)
    image_BCHW = images(1, 64, 96)
    found = backbone.forward_features(image_BCHW, (3, 1, -1))
    expected = plain(image_BCHW)
    for level, number in zip(found, (3, 1, 4), strict=True):
        assert level.shape[1] == backbone.channels[number]
        torch.testing.assert_close(level, expected[number], atol=1e-5, rtol=1e-5)


def test_the_last_stage_of_swin_has_passed_the_final_norm():
    backbone = awake(swin()).eval()
    image_BCHW = images(1, 64, 96)
    expected = backbone.model.forward_features(image_BCHW).permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone.forward_features(image_BCHW)[0], expected, atol=1e-6, rtol=0)


def test_normalisation_and_size_come_with_the_model():
    clip = timm_backbone(
        TimmSettings(
            architecture="vit_small_patch16_dinov3", arguments=SMALL, image_size=64, mean=(0.5, 0.4, 0.3)
        )
    )
    assert isinstance(clip, VisionTower)
    assert (clip.image_size, clip.mean, clip.patch_size) == ((64, 64), (0.5, 0.4, 0.3), 16)
    eva = timm_backbone(TimmSettings(architecture="eva02_tiny_patch14_224", arguments=SMALL))
    assert eva.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-3)
    assert (eva.image_size, eva.strides[-1]) == ((224, 224), 14)
    dino = timm_backbone(
        TimmSettings(architecture="vit_small_patch14_dinov2", arguments=SMALL, image_size=56)
    )
    assert isinstance(dino, VisionTower)
    assert dino.image_size == (56, 56)
    assert timm_backbone("resnet18").std == pytest.approx((0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resnet18", {}), ("vit_tiny_patch16_224", SMALL), ("vit_small_patch16_dinov3", SMALL)],
)
def test_weights_come_from_a_local_file(name, arguments, tmp_path):
    torch.manual_seed(3)
    full = timm.create_model(name, num_classes=5, **arguments).eval()
    torch.save(full.state_dict(), tmp_path / "weights.pth")
    config = TimmSettings(architecture=name, arguments=arguments)
    backbone: Any = open_timm(config, tmp_path / "weights.pth")[0]
    for key, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, full.state_dict()[key]), key


def test_weights_are_resampled_to_the_image_size(tmp_path):
    torch.manual_seed(3)
    full = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL)
    torch.save(full.state_dict(), tmp_path / "weights.pth")
    config = TimmSettings(architecture="vit_tiny_patch16_224", arguments=SMALL, image_size=96)
    tower: Any = open_timm(config, tmp_path / "weights.pth")[0]
    expected = resample_positions(full.pos_embed, (6, 6), prefix=1)
    torch.testing.assert_close(tower.model.pos_embed, expected, atol=1e-6, rtol=0)


def test_models_and_weights_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r'no model "resnet19".*did you mean'):
        timm_backbone("resnet19")
    with pytest.raises(ConfigError, match=r"backbone\.arguments: timm refuses"):
        timm_backbone(TimmSettings(architecture="resnet18", arguments={"patch_size": 3}))
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: is missing"):
        open_timm(TimmSettings(architecture="resnet18"), tmp_path / "nowhere.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: holds no named tensors"):
        open_timm(TimmSettings(architecture="resnet18"), tmp_path / "other.pth")
    other = timm.create_model("resnet34", num_classes=0).state_dict()
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in other.items()}}, tmp_path / "r34.pth"
    )
    with pytest.raises(
        CheckpointError, match=r"r34\.pth: is of another architecture: \d+ unexpected \(layer1"
    ):
        open_timm(TimmSettings(architecture="resnet18"), tmp_path / "r34.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(
        CheckpointError, match=r"broken\.pth: (is no whole PyTorch file|holds Python objects)"
    ):
        open_timm(TimmSettings(architecture="resnet18"), tmp_path / "broken.pth")


# Layer decay


@pytest.mark.parametrize("name", VITS)
def test_distances_of_a_vit(name):
    distance = layer_distances(vit(name))
    first, last = "model.blocks.0.attn.proj.weight", "model.blocks.3.mlp.fc2.bias"
    assert (distance["model.patch_embed.proj.weight"], distance[first], distance[last]) == (5, 4, 1)
    assert {distance[key] for key in distance if "token" in key or "pos_embed" in key} <= {5}
    assert {distance[key] for key in distance if key.startswith("model.norm.")} <= {0}
    assert sorted(set(distance.values())) == ([1, 2, 3, 4, 5] if name == "InternViT" else [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("name", "arguments", "stem", "stages"),
    [
        ("resnet18", {}, "bn1.weight", [f"layer{n}.0.bn1.weight" for n in (1, 2, 3, 4)]),
        ("convnext_atto", {}, "stem.0.weight", [f"stages.{n}.blocks.0.conv_dw.weight" for n in range(4)]),
        ("swin_tiny_patch4_window7_224", SWIN, "patch_embed.proj.bias", [f"layers.{n}.blocks.0.norm1.bias" for n in range(4)]),
    ],
)  # fmt: skip
def test_distances_of_hierarchical_networks_count_stages(name, arguments, stem, stages):
    distance = layer_distances(timm_backbone(TimmSettings(architecture=name, arguments=arguments)))
    assert distance[f"model.{stem}"] == 5
    assert [distance[f"model.{stage}"] for stage in stages] == [4, 3, 2, 1]


def test_the_optimizer_slows_the_tower_and_nothing_else():
    class Objective(ToyObjective):
        """The toy with a real tower inside of an adapter."""

        def __init__(self) -> None:
            super().__init__()
            self.tower = adapter_of()  # type: ignore[assignment]

        @property
        def vision_tower(self) -> nn.Module:
            return self.tower.backbone  # type: ignore[return-value]

    objective = Objective()
    config = OptimSettings(lr=1e-3, layer_decay=0.9)
    optimizer, names = build_optimizer(objective, objective.parameter_groups(), config)
    scale = {
        name: group["scale"] for group, own in zip(optimizer.param_groups, names, strict=True) for name in own
    }
    assert scale["tower.backbone.model.blocks.3.norm1.weight"] == pytest.approx(0.9)
    assert scale["tower.backbone.model.pos_embed"] == pytest.approx(0.9**5)
    assert scale["tower.backbone.model.norm.weight"] == 1.0
    assert {scale[name] for name in scale if not name.startswith("tower.backbone") and "tower" in name} == {
        1.0
    }


def test_layer_decay_without_layers_is_refused():
    class Flat(ToyObjective):
        """The toy whose tower is one layer."""

        def __init__(self) -> None:
            super().__init__()
            self.tower = nn.Linear(8, 16)  # type: ignore[assignment]

    objective = Flat()
    with pytest.raises(ConfigError, match=r"optim\.layer_decay: Linear has no layers"):
        build_optimizer(objective, objective.parameter_groups(), OptimSettings(layer_decay=0.9))
