"""Vision transformers in files of pretraining runs and of timm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitp.checkpoints.checkpoint import Hints
from vitp.checkpoints.loading import load_backbone, open_tower
from vitp.checkpoints.state_dicts import find_backbone
from vitp.core.errors import CheckpointError
from vitp.models.positions import resample_positions
from vitp.models.vision import VisionTower

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 1}
"""A head of 64 channels, as all published plain ViTs have."""


def vit(name: str = "vit_base_patch16_224", **arguments) -> dict[str, Tensor]:
    torch.manual_seed(0)
    values = SMALL | {"img_size": 32, "patch_size": 8, "num_classes": 0} | arguments
    model = timm.create_model(name, **values)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def assert_holds(tower, weights: dict[str, Tensor]) -> None:
    own = tower.model.state_dict()
    assert own.keys() == weights.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, weights[name]), name


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def test_dino_runs_hold_a_teacher_with_a_head(tmp_path):
    teacher, student = vit(), {name: tensor + 1 for name, tensor in vit().items()}
    head = {"head.mlp.0.weight": torch.zeros(3), "head.last_layer.weight_v": torch.zeros(3)}
    file = tmp_path / "checkpoint.pth"
    torch.save(
        {
            "student": prefixed("module.backbone.", student),
            "teacher": prefixed("backbone.", teacher) | head,
            "epoch": 100,
        },
        file,
    )
    tower, report = open_tower(file)
    assert isinstance(tower, VisionTower)
    assert_holds(tower, teacher)
    assert (tower.heads, tower.patch_size, tower.image_size) == (1, 8, (32, 32))
    assert set(report.ignored) == set(head)
    assert "found at teacher · backbone." in report.notes[0]
    assert_holds(load_backbone(file), teacher)


def test_mae_runs_hold_a_decoder(tmp_path):
    encoder = vit()
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 17, 8),
        "decoder_embed.weight": torch.zeros(8, 64),
        "decoder_blocks.0.norm1.weight": torch.zeros(8),
    }
    torch.save({"model": encoder | decoder}, tmp_path / "mae_pretrain.pth")
    tower, report = open_tower(tmp_path / "mae_pretrain.pth")
    assert isinstance(tower, VisionTower)
    assert_holds(tower, encoder)
    assert set(report.ignored) == set(decoder)


def test_dinov2_with_registers_is_converted_by_timm(tmp_path):
    timm_weights = vit(init_values=1e-5, reg_tokens=2, no_embed_class=True)
    # The publication keeps the position of [CLS] apart from the token; timm adds the two up.
    place = torch.full((1, 1, 64), 0.25)
    published = {name: t for name, t in timm_weights.items() if name != "reg_token"} | {
        "register_tokens": timm_weights["reg_token"],
        "cls_token": timm_weights["cls_token"] - place,
        "pos_embed": torch.cat([place, timm_weights["pos_embed"]], dim=1),
        "mask_token": torch.zeros(1, 64),
    }
    torch.save(published, tmp_path / "dinov2.pth")
    tower = load_backbone(tmp_path / "dinov2.pth")
    assert tower.model.num_prefix_tokens == 3
    for name, tensor in tower.model.state_dict().items():
        torch.testing.assert_close(tensor, timm_weights[name], atol=1e-6, rtol=0, msg=name)


def test_plain_files_need_timms_name(tmp_path):
    weights = vit()
    save_file(
        weights | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)},
        tmp_path / "vit.safetensors",
    )
    with pytest.raises(
        CheckpointError, match=r"doesn't tell its architecture and normalisation.*architecture=…"
    ):
        load_backbone(tmp_path / "vit.safetensors")
    arguments = SMALL | {"patch_size": 8}
    tower, report = open_tower(
        tmp_path / "vit.safetensors",
        hints=Hints(architecture="vit_base_patch16_224.augreg_in1k", arguments=arguments, image_size=32),
    )
    assert_holds(tower, weights)
    assert set(report.ignored) == {"head.weight", "head.bias"}
    assert tower.mean == (0.5, 0.5, 0.5)  # what timm knows of this training


def test_positions_of_another_size_are_resampled_and_reported(tmp_path):
    weights = vit()
    torch.save(weights, tmp_path / "vit.pth")
    tower, report = open_tower(
        tmp_path / "vit.pth",
        hints=Hints(architecture="vit_base_patch16_224", arguments=SMALL | {"patch_size": 8}, image_size=48),
    )
    expected = resample_positions(weights["pos_embed"], (6, 6), prefix=1)
    torch.testing.assert_close(tower.model.pos_embed.data, expected, atol=1e-6, rtol=0)
    assert report.resampled == ("pos_embed (1, 17, 64) → (1, 37, 64)",)


def test_rotary_towers_come_with_an_architecture(tmp_path):
    torch.manual_seed(0)
    arguments = {"embed_dim": 64, "depth": 2, "num_heads": 1}
    model = timm.create_model("vit_small_patch16_dinov3", num_classes=0, img_size=64, **arguments)
    torch.save(model.state_dict(), tmp_path / "dinov3.pth")
    tower = load_backbone(
        tmp_path / "dinov3.pth", architecture="vit_small_patch16_dinov3", arguments=arguments, image_size=64
    )
    assert isinstance(tower, VisionTower)
    assert_holds(tower, model.state_dict())


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_small_patch16_dinov3"])
def test_timm_folders_say_all_that_is_needed(tmp_path, name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, img_size=64, **SMALL)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": name,
        "num_classes": 3,
        "model_args": SMALL | {"img_size": 64},
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 64]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    tower = load_backbone(tmp_path)
    assert (tower.mean, tower.std, tower.image_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (64, 64))
    own = tower.model.state_dict()
    assert own.keys() == {n for n in model.state_dict() if not n.startswith("head.")}
    assert torch.equal(own["norm.weight"], model.norm.weight)


@pytest.mark.parametrize("size", [[16, 64], [24, 40]])
def test_tables_of_oblong_images_are_refused_and_computed_positions_go(tmp_path, size):
    """2 × 8 cells are as many as 4 × 4: read as these, every position would be another's."""
    for name in ("vit_base_patch16_224", "vit_small_patch16_dinov3"):
        (tmp_path / name).mkdir()
        model = timm.create_model(name, num_classes=0, img_size=size, **SMALL | {"patch_size": 8})
        save_file(model.state_dict(), tmp_path / name / "model.safetensors")
        config = {"architecture": name, "model_args": SMALL | {"img_size": size, "patch_size": 8}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"for images of {size[0]} × {size[1]} px"):
        load_backbone(tmp_path / "vit_base_patch16_224")
    model.eval()
    tower = load_backbone(tmp_path / "vit_small_patch16_dinov3")
    image = torch.randn(1, 3, *size)
    assert torch.equal(tower.forward_tokens(image), model.forward_features(image)[:, 5:])


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch16_224", "vit_huge_patch14_224", "vit_giant_patch14_224"],
)
def test_heads_of_runs_are_those_of_the_published_vit(tmp_path, name):
    """Shapes don't tell them, and with 20 heads instead of 16 a ViT-H loads and computes something else."""
    with torch.device("meta"):
        published = timm.create_model(name)
    small = {"mlp_ratio": 0.1, "depth": 1, "patch_size": 8, "img_size": 16, "num_classes": 0}
    made = timm.create_model("vit_base_patch16_224", embed_dim=published.embed_dim, num_heads=1, **small)
    torch.save({"teacher": prefixed("backbone.", made.state_dict())}, tmp_path / "run.pth")
    tower, report = open_tower(tmp_path / "run.pth")
    assert tower.heads == published.blocks[0].attn.num_heads
    assert any(f"{tower.heads} heads and ImageNet's normalisation assumed" in note for note in report.notes)
    assert open_tower(tmp_path / "run.pth", hints=Hints(heads=4))[0].heads == 4


def test_of_jepa_the_target_encoder_is_used(tmp_path):
    """As its publication does: it is the average of the encoder that is trained beside it."""
    target, context = vit(), {name: tensor + 1 for name, tensor in vit().items()}
    file = tmp_path / "jepa.pth"
    torch.save({"encoder": prefixed("module.", context), "target_encoder": prefixed("module.", target)}, file)
    hints = Hints(architecture="vit_base_patch16_224", arguments=SMALL | {"patch_size": 8}, image_size=32)
    tower, _ = open_tower(file, hints=hints)
    assert_holds(tower, target)


def test_open_clip_files_hold_the_tower_under_a_prefix(tmp_path):
    weights = vit(class_token=False, global_pool="map")
    plain = {name: t for name, t in weights.items() if not name.startswith("attn_pool")}
    file = tmp_path / "open_clip_model.safetensors"
    save_file(prefixed("visual.trunk.", weights) | {"text.token_embedding.weight": torch.zeros(4, 4)}, file)
    tower, report = open_tower(
        file,
        hints=Hints(
            architecture="vit_base_patch16_siglip_224", arguments=SMALL | {"patch_size": 8}, image_size=32
        ),
    )
    assert_holds(tower, plain)
    assert "text.token_embedding.weight" in report.ignored
    assert any(name.startswith("attn_pool.") for name in report.ignored)
    assert tower.mean == (0.5, 0.5, 0.5)


def test_openai_clips_names_are_converted_by_timm(tmp_path):
    make = torch.Generator().manual_seed(0)
    layer = "visual.transformer.resblocks.{}."
    shapes = {
        "visual.class_embedding": (64,),
        "visual.positional_embedding": (17, 64),
        "visual.conv1.weight": (64, 3, 8, 8),
        "visual.ln_pre.weight": (64,),
        "visual.ln_pre.bias": (64,),
        "visual.ln_post.weight": (64,),
        "visual.ln_post.bias": (64,),
        "visual.proj": (64, 32),
        "token_embedding.weight": (10, 32),
    }
    for number in range(2):
        for name, shape in {
            "attn.in_proj_weight": (192, 64),
            "attn.in_proj_bias": (192,),
            "attn.out_proj.weight": (64, 64),
            "attn.out_proj.bias": (64,),
            "ln_1.weight": (64,),
            "ln_1.bias": (64,),
            "ln_2.weight": (64,),
            "ln_2.bias": (64,),
            "mlp.c_fc.weight": (256, 64),
            "mlp.c_fc.bias": (256,),
            "mlp.c_proj.weight": (64, 256),
            "mlp.c_proj.bias": (64,),
        }.items():
            shapes[layer.format(number) + name] = shape
    published = {name: torch.rand(shape, generator=make) for name, shape in shapes.items()}
    torch.save(published, tmp_path / "clip.pt")
    tower, report = open_tower(
        tmp_path / "clip.pt",
        hints=Hints(
            architecture="vit_base_patch16_clip_quickgelu_224.openai",
            arguments=SMALL | {"patch_size": 8},
            image_size=32,
        ),
    )
    own = tower.model.state_dict()
    assert report.complete
    assert torch.equal(own["pos_embed"][0], published["visual.positional_embedding"])
    assert torch.equal(own["blocks.1.attn.qkv.weight"], published[layer.format(1) + "attn.in_proj_weight"])
    assert torch.equal(own["norm_pre.bias"], published["visual.ln_pre.bias"])
    assert tower.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-3)


def test_other_architectures_are_reported_name_by_name(tmp_path):
    torch.save(vit(depth=3), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=r"12 unexpected \(blocks\.2\.norm1\.weight"):
        load_backbone(
            tmp_path / "vit.pth",
            architecture="vit_base_patch16_224",
            arguments=SMALL | {"patch_size": 8},
            image_size=32,
        )
    torch.save(vit(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="no plain Vision Transformer"):
        load_backbone(tmp_path / "vit.pth", architecture="resnet18")


def test_several_towers_are_an_error_unless_one_is_a_teacher():
    first, second = prefixed("online.", vit()), prefixed("target.", vit())
    found = find_backbone({"state_dict": first | second}, where="file")
    assert found is not None and found.place == "state_dict · target."
    with pytest.raises(CheckpointError, match=r"holds 2 vision transformers \(online\., other\.\)"):
        find_backbone(first | prefixed("other.", vit()), where="file")
    with pytest.raises(CheckpointError, match="holds no named tensors"):
        find_backbone({"epoch": 3, "optimizer": {"lr": 0.1}}, where="file")
    assert find_backbone({"a": torch.zeros(1), "b": torch.zeros(1)}, where="file") is None


def test_missing_files(tmp_path: Path):
    with pytest.raises(CheckpointError, match="there is no such file or folder"):
        load_backbone(tmp_path / "none.pth", architecture="vit_base_patch16_224")
