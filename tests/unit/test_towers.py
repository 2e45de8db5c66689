"""Plain ViTs of timm as vision towers: one of each family, in and out, at two sizes, and trained for a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from vitp.checkpoints.convert import convert_model
from vitp.checkpoints.description import Provenance
from vitp.checkpoints.export import export_backbone, write_backbone
from vitp.checkpoints.loading import load_backbone, open_tower
from vitp.checkpoints.verify import verify_export
from vitp.core.errors import CheckpointError, ConfigError, VitpError
from vitp.models.flops import vision_shape
from vitp.models.lora import VisionLoRASettings, add_lora, plain_layers
from vitp.models.resample import resized_tower
from vitp.models.vision import VisionSettings, VisionTower

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "DINOv3": ("vit_small_patch16_dinov3", SMALL),
    "DINOv3, gated": ("vit_small_plus_patch16_dinov3_qkvb", SMALL),
    "EVA-02": ("eva02_tiny_patch14_224", SMALL),
    "EVA-02, kept apart": ("eva02_base_patch14_448", SMALL),
    "Perception Encoder": ("vit_pe_core_tiny_patch16_384", SMALL),
    "mixed rotary": ("vit_small_patch16_rope_mixed_224", SMALL),
    "grouped keys": ("vit_base_patch16_sapiens2", SMALL | {"num_kv_heads": 1}),
    "SigLIP 2": ("vit_base_patch16_siglip_224", SMALL),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", SMALL),
    "patch 8": ("vit_small_patch8_224", SMALL),
    "patch 32": ("vit_base_patch32_clip_224", SMALL),
    "query norms": ("vit_betwixt_patch16_reg4_gap_256", SMALL | {"qk_norm": True}),
}
ROTARY = ("DINOv3", "EVA-02", "EVA-02, kept apart", "mixed rotary", "grouped keys")


def family(name: str, cells: int = 3) -> VisionTower:
    """A tower with every parameter moved, so that scales of 1e-5 and biases of zero hide nothing."""
    architecture, arguments = FAMILIES[name]
    patch = timm.models.get_pretrained_cfg(architecture).input_size[-1] and next(
        size for size in (8, 14, 32, 16) if f"patch{size}" in architecture
    )
    torch.manual_seed(0)
    tower = VisionTower(
        VisionSettings(architecture=architecture, arguments=arguments, image_size=cells * patch)
    )
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return tower.eval()


def images(tower: VisionTower, rows: int, columns: int) -> Tensor:
    shape = (2, 3, rows * tower.patch_size, columns * tower.patch_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def timms(model: Any, image_BCHW: Tensor) -> Tensor:
    tokens_BLD: Tensor = model.forward_features(image_BCHW)
    return tokens_BLD[:, model.num_prefix_tokens :]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_features_are_timms_at_two_sizes_before_and_after_a_round_trip(name: str, tmp_path: Path) -> None:
    tower = family(name)
    write_backbone(tmp_path, tower, Provenance(source="random"))
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    loaded = load_backbone(tmp_path)
    assert model.state_dict().keys() == tower.model.state_dict().keys()
    for rows, columns in ((3, 3), (2, 5)):
        image_BCHW = images(tower, rows, columns)
        expected_BND = timms(model, image_BCHW)
        for one in (tower, loaded):
            torch.testing.assert_close(one.forward_tokens(image_BCHW), expected_BND, atol=1e-5, rtol=0)
            (map_BDhw,) = one.forward_features(image_BCHW)
            assert map_BDhw.shape[2:] == (rows, columns)
            torch.testing.assert_close(map_BDhw.flatten(2).mT, expected_BND, atol=1e-5, rtol=0)
            steps = one.run_blocks(one.embed_tokens(image_BCHW), 0, one.num_layers - 1)
            torch.testing.assert_close(one.finish_tokens(steps).patches_BND, expected_BND, atol=1e-5, rtol=0)
    shape = vision_shape(tower)
    assert (shape.layers, shape.width, shape.heads) == (2, 48, 3)
    assert tower.attention(image_BCHW).sum(-1).allclose(torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("name", [*ROTARY, "SigLIP 2", "DINOv2, registers"])
def test_some_patches_alone_keep_their_places(name: str) -> None:
    """With all patches in another order the tokens come in that order, and otherwise stay what they are."""
    tower = family(name)
    image_BCHW = images(tower, 3, 3)
    order_BK = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(n)) for n in range(2)])
    with torch.no_grad():
        whole_BND = tower.forward_tokens(image_BCHW)
        visible = tower.embed_tokens(image_BCHW).visible(order_BK)
        found_BLD = tower.finish_tokens(tower.run_blocks(visible, 0, 1)).tokens_BLD
        few = tower.run_blocks(tower.embed_tokens(image_BCHW).visible(order_BK[:, :2]), 0, 1).tokens_BLD
    prefix = tower.model.num_prefix_tokens
    expected_BND = whole_BND.gather(1, order_BK[..., None].expand(-1, -1, 48))
    torch.testing.assert_close(found_BLD[:, prefix:], expected_BND, atol=1e-5, rtol=0)
    assert few.shape[1] == prefix + 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_moves_every_parameter_of_the_tower(name: str) -> None:
    tower = family(name)  # in training some families move their positions at random
    tower.set_gradient_checkpointing(True)
    recomputed = tower.forward_tokens(images(tower, 3, 3)).square().mean()
    recomputed.backward()
    first = {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}
    # Tokens before the patches leave only through those: the last block's own queries of them learn nothing.
    still = {n for n, p in tower.named_parameters() if n not in first or not first[n].abs().sum() > 0}
    assert not still
    tower.zero_grad()
    tower.set_gradient_checkpointing(False)
    tower.recompute_contexts = lambda: (torch.enable_grad(), torch.enable_grad())
    tower.forward_tokens(images(tower, 3, 3)).square().mean().backward()
    for key, parameter in tower.named_parameters():
        torch.testing.assert_close(parameter.grad, first[key], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["DINOv3", "DINOv3, gated", "EVA-02", "EVA-02, kept apart", "SigLIP 2"])
def test_low_rank_updates_reach_the_attention_and_are_merged(name: str) -> None:
    pytest.importorskip("peft")
    tower = family(name)
    image_BCHW = images(tower, 3, 3)
    with torch.no_grad():
        before_BND = tower.forward_tokens(image_BCHW)
    add_lora(tower, VisionLoRASettings(rank=2, unfrozen_blocks=1))
    updates = {n: p for n, p in tower.named_parameters() if "lora_B" in n}
    torch.testing.assert_close(tower.forward_tokens(image_BCHW), before_BND, atol=1e-5, rtol=0)
    assert updates and all(n.startswith("model.blocks.0.attn.") for n in updates)
    tower.forward_tokens(image_BCHW).square().mean().backward()
    with torch.no_grad():
        for key, parameter in updates.items():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
            parameter.normal_()
        after_BND = tower.forward_tokens(image_BCHW)
        assert not after_BND.allclose(before_BND, atol=1e-4)
        with plain_layers(tower):
            names = tower.model.state_dict().keys()
            torch.testing.assert_close(tower.forward_tokens(image_BCHW), after_BND, atol=1e-5, rtol=0)
    assert names == family(name).model.state_dict().keys()


def test_low_rank_updates_of_nothing_name_what_is_there() -> None:
    with pytest.raises(ConfigError, match=r"mlp\.fc1 is no linear layer.*mlp\.fc1_g, mlp\.fc1_x, mlp\.fc2"):
        add_lora(family("DINOv3, gated"), VisionLoRASettings(targets=("mlp.fc1",)))


def test_rotary_towers_have_nothing_to_resample_and_tables_are() -> None:
    plain, both = family("DINOv3"), family("EVA-02")
    larger = resized_tower(plain, image_size=80).eval()
    assert larger.grid == 5
    for key, tensor in larger.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[key])
    assert resized_tower(both, image_size=70).model.pos_embed.shape == (1, 26, 48)
    with pytest.raises(ConfigError, match="positions of its own kind"):
        resized_tower(plain, positions="bicubic")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("swin_tiny_patch4_window7_224", "a hierarchical SwinTransformer"),
        ("convnext_atto", "a hierarchical ConvNeXt"),
        ("vit_tiny_r_s16_p8_224", "a hybrid"),
        ("naflexvit_base_patch16_siglip", "takes patches with their places"),
        ("beit_base_patch16_224", "a Beit"),
        ("test_vit_relpos", "a VisionTransformerRelPos"),
    ],
)
def test_what_is_no_plain_vit_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is no plain Vision Transformer but .*{why}"):
        VisionTower(VisionSettings(architecture=name, image_size=224))


def test_norms_behind_the_pooling_are_left_out(tmp_path: Path) -> None:
    """timm's features of such a model are the tokens before that norm."""
    for name in ("eva02_tiny_patch14_224", "vit_base_patch16_rope_reg1_gap_256", "vit_tiny_patch16_224"):
        arguments = SMALL | ({"global_pool": "avg"} if name == "vit_tiny_patch16_224" else {})
        torch.manual_seed(0)
        model = timm.create_model(
            name, num_classes=2, img_size=56 if "14" in name else 64, **arguments
        ).eval()
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        published = {"input_size": [3, 56 if "14" in name else 64] * 1, "mean": [0.5] * 3, "std": [0.5] * 3}
        config = {"architecture": name, "model_args": arguments, "pretrained_cfg": published}
        (tmp_path / "config.json").write_text(json.dumps(config))
        tower, report = open_tower(tmp_path)
        assert report.notes and "behind the pooling" in report.notes[0]
        image_BCHW = images(tower, 4, 4)
        with torch.no_grad():
            torch.testing.assert_close(
                tower.forward_tokens(image_BCHW), timms(model, image_BCHW), atol=1e-5, rtol=0
            )
        write_backbone(tmp_path / "export", tower, Provenance(source="x"))
        assert verify_export(tmp_path / "export").passed


# --- folders of transformers

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 64,
    "patch_size": 16,
}
_WITH_MLP = SIZES | {"intermediate_size": 96}
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DINOv3": ("DINOv3ViT", _WITH_MLP | {"num_register_tokens": 4}),
    "DINOv3, gated": ("DINOv3ViT", _WITH_MLP | {"use_gated_mlp": True, "hidden_act": "silu"}),
    "DINOv3, no biases": ("DINOv3ViT", _WITH_MLP | {"query_bias": False, "value_bias": False}),
    "DINOv2": ("Dinov2", SIZES | {"mlp_ratio": 2}),
    "DINOv2, gated": ("Dinov2", SIZES | {"use_swiglu_ffn": True}),
    "DINOv2, registers": ("Dinov2WithRegisters", SIZES),
    "SigLIP": ("SiglipVision", _WITH_MLP),
}


def folder_of(name: str, folder: Path) -> Any:
    kind, sizes = FOLDERS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_transformers_give_its_features(name: str, tmp_path: Path) -> None:
    model = folder_of(name, tmp_path)
    tower = load_backbone(tmp_path)
    for cells in (4, 6) if "DINOv3" in name else (4,):  # tables are resampled in other ways
        image_BCHW = images(tower, cells, cells)
        with torch.no_grad():
            tokens_BND = tower.forward_tokens(image_BCHW)
            wanted_BLD = model(image_BCHW).last_hidden_state
        torch.testing.assert_close(tokens_BND, wanted_BLD[:, -cells * cells :], atol=1e-5, rtol=0)
    assert tower.mean == ((0.5,) * 3 if name == "SigLIP" else pytest.approx((0.485, 0.456, 0.406)))


def test_a_whole_siglip_gives_its_tower_and_says_its_normalisation(tmp_path: Path) -> None:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    text |= {"vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.SiglipConfig(text_config=text, vision_config=_WITH_MLP)
    transformers.SiglipModel(config).save_pretrained(tmp_path)
    stated = {"image_mean": [0.4] * 3, "image_std": [0.3] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    tower, report = open_tower(tmp_path)
    assert tower.mean == (0.4,) * 3 and tower.std == (0.3,) * 3
    assert any(name.startswith("text_model.") for name in report.ignored)
    assert any(".probe" in name for name in report.ignored)  # the pooling head


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "siglip2"}, "SigLIP 2 in its NaFlex form"),
        ({"model_type": "dinov3_convnext"}, "is a ConvNeXt"),
        ({"layer_norm_eps": 1e-3}, "norms with epsilon 0.001"),
        ({"key_bias": True}, "key_bias is True"),
        ({"hidden_act": "relu"}, "activation relu"),
        ({"patch_size": [16, 8]}, "is no square"),
        ({"hidden_size": "wide"}, "states no whole vision tower"),
    ],
)
def test_folders_that_vitp_cannot_run_are_refused(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    folder_of("DINOv3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(VitpError, match=why):
        load_backbone(tmp_path)


def test_a_folder_without_a_tensor_is_refused(tmp_path: Path) -> None:
    model = folder_of("DINOv3", tmp_path)
    weights = {n: t.contiguous() for n, t in model.state_dict().items() if "layer.1.norm1" not in n}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"2 missing \(model\.blocks\.1\.norm1"):
        load_backbone(tmp_path)


# --- licences


def test_what_goes_back_to_dinov3_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder_of("DINOv3", tmp_path / "hf")
    export_backbone(tmp_path / "hf", tmp_path / "once")
    assert "whose licence (dinov3-license) binds" in caplog.text
    caplog.clear()
    export_backbone(tmp_path / "once", tmp_path / "twice")  # it stays with the weights
    assert "dinov3-license" in caplog.text
    card = (tmp_path / "twice" / "README.md").read_text()
    assert "license: other\nlicense_name: dinov3-license\n" in card
    assert "`hf`, licence: dinov3-license." in card
    assert (
        "rotary: computed for each size" in card and "table" not in card.split("Positions")[1].split("|")[1]
    )


def test_licences_are_those_of_the_folder_before_timms(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = timm.create_model("vit_small_patch16_dinov3", num_classes=0, **SMALL)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_small_patch16_dinov3", "model_args": SMALL}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_backbone(tmp_path).config.licence == "dinov3-license"
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Mine\n")
    assert load_backbone(tmp_path).config.licence == "apache-2.0"
    done = convert_model(tmp_path, tmp_path / "timm", "timm")
    assert done.checks.passed and not caplog.text
    assert "license: apache-2.0\n" in (tmp_path / "timm" / "README.md").read_text()
    file = tmp_path / "model.safetensors"
    tower = load_backbone(file, architecture="vit_small_patch16_dinov3.lvd1689m", arguments=SMALL)
    assert (tower.config.weights_of, tower.config.licence) == (
        "vit_small_patch16_dinov3.lvd1689m",
        "dinov3-license",
    )


def test_random_weights_have_no_licence(tmp_path: Path) -> None:
    write_backbone(tmp_path, family("DINOv3"), Provenance(source="random"))
    card = (tmp_path / "README.md").read_text()
    assert "licence" not in card.lower() and "license" not in card
