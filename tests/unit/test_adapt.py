"""Few parameters beside a frozen tower: prompts, adapters, gates, low-rank updates, in pretraining and finetuning."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.objective_toys import SIZE, VISION, labelled_folder, tiny_tower
from vitp.checkpoints.export import export_backbone
from vitp.checkpoints.loading import load_backbone
from vitp.core.config import make_config
from vitp.core.errors import CheckpointError, ConfigError
from vitp.models.adapt import AdapterSettings, AdaptSettings, PromptSettings
from vitp.models.adapting import adapt_tower, base_digest, own_part, save_adapt
from vitp.models.lora import VisionLoRASettings
from vitp.models.vision import VisionSettings, VisionTower
from vitp.runs.finetune import FinetuneConfig, run_finetune
from vitp.runs.pretrain import PretrainConfig, run_pretraining
from vitp.tasks.model_folder import load_task

QUIET = Console(quiet=True)
KINDS: dict[str, AdaptSettings] = {
    "adapters": AdapterSettings(width=4),
    "houlsby": AdapterSettings(width=4, place="after"),
    "gates": AdapterSettings(kind="gates", width=4),
    "deep": PromptSettings(count=3),
    "shallow": PromptSettings(count=3, deep=False),
}
ROTARY = VisionSettings(
    architecture="vit_small_patch16_dinov3",
    arguments={"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8},
    image_size=SIZE,
)


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_plain_tower_and_moves_alone(kind: str) -> None:
    tower: Any = tiny_tower()
    plain = copy.deepcopy(tower).eval()
    adapt_tower(tower, KINDS[kind])  # type: ignore[arg-type]
    tower.eval()
    names = {name for name in tower.state_dict() if not name.startswith("adapt.")}
    assert names == set(plain.state_dict())  # the plain ViT's keys are all that is left without it
    same = torch.equal(tower.forward_tokens(images()), plain.forward_tokens(images()))
    assert same == (kind not in ("deep", "shallow"))  # bit for bit, where nothing is added at first
    before, digest = own_part(tower), base_digest(tower)
    assert before.keys() == {name for name, p in tower.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam([p for p in tower.parameters() if p.requires_grad], lr=0.1)
    before = {name: tensor.clone() for name, tensor in before.items()}
    for _ in range(3):
        (
            tower.forward_tokens(images(1)) * images(2).flatten()[: 2 * 16 * 32].view(2, 16, 32)
        ).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert base_digest(tower) == digest and not torch.equal(
        tower.forward_tokens(images()), plain.forward_tokens(images())
    )
    assert [
        name
        for name, t in own_part(tower).items()
        if torch.equal(t, before[name]) and "in_proj_bias" not in name
    ] == []
    if kind == "gates":
        assert tower.adapt["0"].alpha.item() != 0
    # Features by any way through the tower, of a copy, and after a round trip, are the same.
    expected = tower.forward_tokens(images())
    map_BDhw = tower.forward_features(images(), (0, -1))
    assert torch.allclose(map_BDhw[-1].flatten(2).transpose(1, 2), expected, atol=1e-5)
    assert map_BDhw[0].shape == map_BDhw[1].shape
    tokens = tower.finish_tokens(tower.run_blocks(tower.embed_tokens(images()), 0, 1)).patches_BND
    assert torch.allclose(tokens, expected, atol=1e-5)
    assert torch.equal(copy.deepcopy(tower).forward_tokens(images()), expected)
    again = VisionTower(tower.config).eval()
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again.forward_tokens(images()), expected)
    assert tower.attention(images()).shape[-1] == 17


def test_prompts_go_into_rotary_towers_and_not_into_recomputed_ones_from_block_to_block() -> None:
    for settings in (PromptSettings(count=3), PromptSettings(count=3, deep=False)):
        tower = VisionTower(ROTARY).eval()
        plain = tower.forward_tokens(images())
        adapt_tower(tower, settings)
        assert tower.forward_tokens(images()).shape == plain.shape
        assert not torch.allclose(tower.forward_tokens(images()), plain)
    with pytest.raises(ConfigError, match="deep: true"):
        tower.set_gradient_checkpointing(True)
    with pytest.raises(ConfigError, match="has prompts of its own"):
        adapt_tower(tower, AdapterSettings())


@pytest.mark.slow
def test_the_file_alone_fits_the_tower_that_it_was_trained_on(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    for number, settings in enumerate((VisionLoRASettings(rank=2), *KINDS.values())):
        tower, place = tiny_tower(), tmp_path / str(number)
        adapt_tower(tower, settings)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in tower.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        save_adapt(place, tower)
        again, given = tiny_tower(), settings.model_copy(update={"init": str(place)})
        adapt_tower(again, given, seed=9)  # type: ignore[arg-type]
        assert torch.equal(again.eval().forward_tokens(images()), tower.eval().forward_tokens(images()))
        with pytest.raises(CheckpointError, match="other weights"):
            adapt_tower(tiny_tower(seed=1), given)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="other settings"):
        adapt_tower(tiny_tower(), PromptSettings(count=4, init=str(place)))
    with pytest.raises(CheckpointError, match="holds no adapt"):
        adapt_tower(tiny_tower(), PromptSettings(init=str(tmp_path)))


def test_spellings() -> None:
    def adapt_of(*words: str, **model: Any) -> Any:
        values = {"objective": "mae", "data": {"mixture": ["x"]}, "model": model}
        return make_config(PretrainConfig, values, words).model.adapt

    assert adapt_of("model.adapt=prompts") == PromptSettings()
    assert adapt_of("model.adapt.kind=gates", "model.adapt.width=3") == AdapterSettings(kind="gates", width=3)
    assert adapt_of(vision_lora=None) is None
    assert adapt_of(vision_lora={"rank": 3}) == VisionLoRASettings(rank=3)
    assert adapt_of("model.vision_lora.rank=2", "model.vision_lora.norms=false") == VisionLoRASettings(
        rank=2, norms=False
    )
    assert adapt_of("model.vision_lora={rank: 2}") == VisionLoRASettings(rank=2)
    with pytest.raises(ConfigError, match=r"did you mean.*prompts"):
        adapt_of("model.adapt=prompt")


@pytest.mark.slow
def test_prompts_of_a_pretraining_go_on_in_finetuning(tmp_path: Path) -> None:
    folder, base = labelled_folder(tmp_path / "toy"), tmp_path / "base"
    tiny = {"init": "random", "vision": VISION.model_dump(), "drop_path": 0.0}
    steps = {"steps": 3, "num_workers": 0, "device": "cpu"}
    rates = {"lr": 1e-2, "warmup_ratio": 0}

    def pretrain(out: Path, objective: Any, **model: Any) -> None:
        values = {"model": {**tiny, **model}, "data": {"mixture": [str(folder)], "global_batch": 4}}
        run = make_config(PretrainConfig, {**values, **objective, "optim": rates, "train": steps})
        run_pretraining(run, out, console=QUIET)

    pretrain(base, {"objective": "mae"})
    start = {"init": str(base), "vision": None}
    prompted = tmp_path / "prompted"
    # Self-distillation whose student and teacher differ by prompts alone.
    dino = {"name": "dino", "prototypes": 16, "hidden": 32, "bottleneck": 8, "local_views": 1}
    pretrain(prompted, {"objective": dino}, **start, adapt={"kind": "prompts", "count": 3})
    frozen = json.loads((prompted / "evidence.json").read_text())["frozen"]
    assert frozen["unchanged"] is True
    plain, kept = (load_file(run / "model" / "model.safetensors") for run in (base, prompted))
    assert plain.keys() == kept.keys() and all(torch.equal(plain[name], kept[name]) for name in plain)
    learned = load_file(prompted / "model" / "adapt" / "adapt.safetensors")
    assert learned.keys() == {"adapt.0.tokens_nD", "adapt.1.tokens_nD"}
    fresh = tiny_tower()
    adapt_tower(fresh, PromptSettings(count=3), seed=0)
    assert not any(torch.equal(learned[name], tensor) for name, tensor in own_part(fresh).items())
    tower = load_backbone(prompted)
    assert torch.equal(tower.adapt["0"].tokens_nD, learned["adapt.0.tokens_nD"])  # type: ignore[index,union-attr]
    with pytest.raises(CheckpointError, match="can't be merged"):
        export_backbone(prompted, tmp_path / "export")

    def finetune(out: Path, backbone: Any) -> Any:
        values = {
            "task": "classification",
            "data": {"root": str(folder), "global_batch": 4, "splits": {"test": "val"}},
            "backbone": backbone,
        }
        tune = {**steps, "val_every": 0, "choose": "last"}
        return run_finetune(
            make_config(FinetuneConfig, {**values, "optim": rates, "train": tune}), out, console=QUIET
        )

    onto = {"kind": "prompts", "count": 3, "init": str(prompted)}
    for name, backbone in (
        ("onto", {"init": str(base), "adapt": onto}),
        ("on", {"init": str(prompted), "adapt": {"kind": "prompts", "count": 3}}),
        (
            "lora",
            {"init": str(base), "adapt": {"kind": "lora", "rank": 2, "unfrozen_blocks": 0, "norms": False}},
        ),
    ):
        finetune(tmp_path / name, backbone)
        assert json.loads((tmp_path / name / "evidence.json").read_text())["frozen"]["unchanged"] is True
        model = load_task(tmp_path / name)
        assert (model.backbone.adapt is None) == (name == "lora")  # type: ignore[union-attr]
        own = load_file(tmp_path / name / "model" / "adapt" / "adapt.safetensors")
        if name != "lora":  # begun with what pretraining learned
            distance = (own["adapt.0.tokens_nD"] - learned["adapt.0.tokens_nD"]).abs().max().item()
            assert 0 < distance < 0.1
            assert load_backbone(tmp_path / name).adapt is not None
