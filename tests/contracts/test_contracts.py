"""Every vision tower keeps the backbone's contract, every objective the engine's; the command line is frozen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from rich.console import Console
from torch import Tensor

from tests.conftest import make_record, random_tiles, tiny_chat, tiny_vlm_config
from vitp.cli import app
from vitp.cli.panels import DATA, JUDGE, PLAN, TRAIN, USE
from vitp.core.errors import ConfigError
from vitp.data.packing import PackedBatch, pack
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.loop import Trainer
from vitp.models.backbone import Backbone
from vitp.models.vision import VisionSettings, VisionTower
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.base import Objective
from vitp.objectives.dense import DenseBatch, DenseObjective
from vitp.objectives.vitp import ViTPObjective

# Vision towers: architecture → patch size and tokens before the patches, as its name says.

TOWERS = {
    "vit_tiny_patch16_224": (16, 1),
    "vit_intern300m_patch14_448": (14, 1),
    "vit_small_patch14_reg4_dinov2": (14, 5),
    "vit_base_patch16_siglip_224": (16, 0),
}
WIDTH, DEPTH = 32, 3


@pytest.fixture(scope="module", params=TOWERS)
def tower(request: pytest.FixtureRequest) -> VisionTower:
    """A timm architecture with all that is special about it, at toy size."""
    patch, _ = TOWERS[request.param]
    torch.manual_seed(0)
    arguments = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2}
    config = VisionSettings(
        architecture=request.param,
        arguments=arguments,
        image_size=4 * patch,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
    )
    return VisionTower(config).eval()


def test_a_tower_says_what_a_head_has_to_know(tower: VisionTower) -> None:
    patch, prefix = TOWERS[tower.config.architecture]
    assert isinstance(tower, Backbone)
    assert tower.image_size == (4 * patch, 4 * patch)
    assert (tower.num_layers, tower.patch_size, tower.grid) == (DEPTH, patch, 4)
    assert tower.channels == (WIDTH,) * DEPTH and tower.strides == (patch,) * DEPTH
    assert tower.model.num_prefix_tokens == prefix
    assert (tower.mean, tower.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def test_a_tower_normalises_with_its_own_numbers(tower: VisionTower) -> None:
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = torch.tensor([0.6 / 0.2, 0.5 / 0.3, 0.4 / 0.25])
    assert torch.allclose(tower.normalize(white)[0, :, 0, 0], expected)
    assert torch.allclose(tower.normalize(white / 255), tower.normalize(white))


@pytest.mark.parametrize("cells", [(4, 4), (2, 6), (7, 3)])
@torch.no_grad()
def test_features_have_the_shape_of_the_image(tower: VisionTower, cells: tuple[int, int]) -> None:
    rows, columns = cells
    image = torch.randn(2, 3, rows * tower.patch_size, columns * tower.patch_size)
    maps = tower.forward_features(image, layers=(0, -1, 1))
    assert [tuple(m.shape) for m in maps] == [(2, WIDTH, rows, columns)] * 3
    assert all(bool(torch.isfinite(m).all()) for m in maps)
    again = tower.forward_features(image, layers=(2, 1))
    assert torch.equal(again[0], maps[1]) and torch.equal(again[1], maps[2])
    tokens = tower.forward_tokens(image)
    assert torch.allclose(maps[1].flatten(2).transpose(1, 2), tokens, atol=1e-6)


@torch.no_grad()
def test_features_stand_where_the_image_changed(tower: VisionTower) -> None:
    """Rows and columns of a map are those of the image: with attention off, a patch changes its own cell."""
    image = torch.zeros(1, 3, 2 * tower.patch_size, 5 * tower.patch_size)
    changed = image.clone()
    changed[:, :, tower.patch_size :, 3 * tower.patch_size : 4 * tower.patch_size] = 1.0
    handles = [
        module.register_forward_hook(lambda _module, _args, out: torch.zeros_like(out))
        for name, module in tower.model.named_modules()
        if name.endswith(".attn")
    ]
    try:
        before, after = (tower.forward_features(x)[0] for x in (image, changed))
    finally:
        for handle in handles:
            handle.remove()
    moved = (before - after).abs().amax(1)[0] > 1e-6
    assert moved.nonzero().tolist() == [[1, 3]]


def test_gradients_reach_every_layer_of_a_tower(tower: VisionTower) -> None:
    image = torch.randn(1, 3, *tower.image_size)
    tower.zero_grad()
    tower.forward_tokens(image).square().sum().backward()
    without = [name for name, p in tower.named_parameters() if p.grad is None or not bool(p.grad.any())]
    tower.zero_grad()
    assert [name for name in without if "blocks" in name or "patch_embed" in name] == []


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose a multiple of 14"):
        VisionTower(VisionSettings(architecture="vit_small_patch14_reg4_dinov2", image_size=64))


# Objectives.


@dataclass(frozen=True)
class Case:
    """An objective, and the batch of some samples."""

    make: Callable[[], Objective]
    batch: Callable[[range], Any]
    losses: frozenset[str]
    groups: tuple[str, ...]


def instruction_batch(samples: range) -> PackedBatch:
    """Records with 1 tile and 2 questions; every third image token survives."""
    chat = tiny_chat()
    encoded = [chat.encode(make_record(n), [1]) for n in samples]
    return pack(
        encoded,
        [random_tiles(n, 1) for n in samples],
        [np.arange(0, 16, 3) for _ in samples],
        tokens_per_tile=16,
        max_length=256,
        pad_id=chat.pad_id,
        together=True,
    )


def vitp_objective() -> ViTPObjective:
    torch.manual_seed(0)
    chat = tiny_chat()
    return ViTPObjective(VisionLanguageModel(tiny_vlm_config(), vocabulary=len(chat)), chat)


def dense_batch(samples: range) -> DenseBatch:
    parts = []
    for number in samples:
        generator = torch.Generator().manual_seed(number)
        target = torch.randint(0, 3, (32, 32), generator=generator, dtype=torch.uint8)
        target[: number + 1] = 255
        presence = torch.randint(-1, 2, (2,), generator=generator, dtype=torch.int8)
        parts.append((torch.from_numpy(random_tiles(number, 1)[0]), target, presence))
    tiles, targets, presences = (torch.stack(column) for column in zip(*parts, strict=True))
    return DenseBatch(tiles, targets, tuple(str(n) for n in samples), presences)


def dense_objective(head: str) -> Callable[[], DenseObjective]:
    def make() -> DenseObjective:
        torch.manual_seed(0)
        arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
        tower = VisionTower(VisionSettings(arguments=arguments, image_size=32))
        classes = () if head == "none" else ("water", "land", "ship")
        return DenseObjective(
            tower,
            classes,
            head=head,  # type: ignore[arg-type]
            layers=(0, -1) if head == "conv" else (-1,),
            presence_classes=("ship", "car"),
            class_weights=None if head == "none" else (1.0, 0.5, 2.0),
        )

    return make


OBJECTIVES = {
    "vitp": Case(
        vitp_objective,
        instruction_batch,
        frozenset({"language"}),
        ("vision tower", "projector", "language model"),
    ),
    **{
        f"dense, {head}": Case(
            dense_objective(head),
            dense_batch,
            frozenset({"presence"} if head == "none" else {"dense", "presence"}),
            ("vision tower", "head"),
        )
        for head in ("linear", "conv", "none")
    },
}


@dataclass
class Source:
    """Four samples a step, the same in every step."""

    case: Case

    def __call__(self, step: int, micro: int, rank: int, world: int) -> Any:
        return self.case.batch(range(4))

    def fingerprint(self) -> str:
        return "four samples"


@pytest.fixture(params=OBJECTIVES)
def case(request: pytest.FixtureRequest) -> Case:
    return OBJECTIVES[request.param]


def test_an_objective_holds_every_parameter_once(case: Case) -> None:
    objective = case.make()
    groups = objective.parameter_groups()
    held = [id(p) for group in groups for p in group.parameters.values()]
    assert sorted(held) == sorted(id(p) for p in objective.parameters())
    assert tuple(group.name for group in groups) == case.groups
    own = dict(objective.named_parameters())
    assert all(own[name] is p for group in groups for name, p in group.parameters.items())
    tower = [id(p) for p in objective.vision_tower.parameters()]
    assert [id(p) for p in groups[0].parameters.values()] == tower


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


def test_losses_are_sums_over_the_samples(case: Case) -> None:
    objective = case.make().eval()
    whole, counts = case.batch(range(4)), objective.loss_counts(case.batch(range(4)))
    losses = values(objective(whole))
    assert losses.keys() == counts.keys() == case.losses
    assert all(math.isfinite(value) and value > 0 for value in losses.values())
    parts = [case.batch(part) for part in (range(1), range(1, 4))]
    in_parts, counts_of_parts = (
        [values(objective(p)) for p in parts],
        [objective.loss_counts(p) for p in parts],
    )
    for name, value in losses.items():
        assert sum(part[name] for part in in_parts) == pytest.approx(value, rel=1e-5)
        assert sum(part[name] for part in counts_of_parts) == pytest.approx(counts[name])
    work = [objective.work(batch).get("samples", 0) for batch in (whole, *parts)]
    assert work == [4, 1, 3]


def test_two_steps_move_the_vision_tower(case: Case, tmp_path: Path) -> None:
    objective = case.make()
    before = {name: p.detach().clone() for name, p in objective.vision_tower.named_parameters()}
    trainer = Trainer(
        objective,
        Source(case),
        OptimSettings(lr=1e-3, warmup_ratio=0, schedule="constant"),
        TrainSettings(steps=2, num_workers=0, device="cpu", log_every=1, must_train=("vision tower",)),
        tmp_path / "run",
        console=Console(quiet=True),
    )
    result = trainer.train()
    assert result.step == 2 and math.isfinite(result.loss)
    unmoved = [name for name, p in objective.vision_tower.named_parameters() if torch.equal(p, before[name])]
    assert unmoved == []
    assert 0 < result.evidence["gradient_share"] < 1
    assert result.evidence["relative_change"] > 1e-4
    assert result.model is not None and any(result.model.iterdir())


# The command line: what people's scripts depend on. A change here is a change for them.

RECIPE = [
    "NAME", "--out", "--scale", "--seeds", "--data", "--init", "--gpus", "--as-published", "--available",
    "--dry-run", "--set -s",
]  # fmt: skip

SURFACE = {
    "": ["--version"],
    "tune": [
        "WHAT", "--out", "--data", "--init --backbone", "--probe", "--space", "--steps", "--trials", "--minutes",
        "--prune", "--seed", "--set -s",
    ],
    "serve": [
        "MODEL", "--host", "--port", "--root", "--token", "--device", "--max-upload-mb", "--max-pixels", "--queue",
        "--batch",
    ],
    "data merge": [
        "OLD", "NEW", "--out", "--splits", "--val", "--test", "--seed", "--complete", "--other-patients", "--force",
    ],
    "ask": ["MODEL", "ARGUMENTS", "--draw", "--max-tokens", "--max-tiles"],
    "convert": [
        "SOURCE", "OUT", "--to", "--dtype", "--architecture", "--heads", "--image-size", "--positions", "--template",
        "--force",
    ],
    "bench": ["RUN", "--size", "--steps", "--json", "--against", "--profile", "--set -s"],
    "check": ["RUN", "--records", "--ranks", "--only", "--skip", "--json", "--set -s"],
    "data check": ["SOURCE", "--against", "--model", "--max-length", "--max-tiles", "--buffer", "--json"],
    "data compile": [
        "SOURCE", "--out", "--format", "--seed", "--crop", "--overlap", "--empty", "--questions", "--grid",
        "--grid-always", "--task", "--neighbours", "--wordings", "--max-tiles", "--option -o", "--force",
    ],
    "data leaks": ["MIXTURE", "--test", "--out", "--clean", "--whole-only", "--json"],
    "data prepare": [
        "NAME", "--root", "--out", "--protocol", "--crop", "--overlap", "--option -o", "--partial", "--check",
        "--force",
    ],
    "data scenes": ["DOMAIN", "--out", "--layout", "--count", "--size", "--seed"],
    "data sets": [],
    "data show": ["SOURCE", "--out", "--count", "--seed", "--model", "--max-tiles"],
    "demo": ["--out", "--seeds", "--ceiling", "--force"],
    "doctor": ["--json"],
    "eval": ["RUN", "DATA", "--split", "--format", "--option -o", "--set -s", "--out"],
    "export": [
        "SOURCE", "--out", "--format", "--image-size", "--size", "--batch", "--proposals", "--int8", "--most-loss",
        "--check", "--check-images", "--resolution", "--verify", "--against", "--force",
    ],
    "features": ["BACKBONES", "--images", "--out", "--pictures", "--patch", "--shared-colours", "--max-images"],
    "finetune": [
        "TASK", "CONFIG", "--data", "--backbone", "--out", "--steps", "--folds", "--fold", "--set -s", "--resume",
    ],
    "predict": [
        "RUN", "IMAGES", "--out", "--later", "--vector", "--probabilities", "--format", "--resolution", "--mpp",
        "--all-tiles", "--tta", "--pictures", "--for", "--image-url", "--set -s", "--resume", "--force",
    ],
    "pretrain": ["CONFIG", "--out", "--objective", "--data", "--init", "--steps", "--set -s", "--resume"],
    "probe": [
        "BACKBONE", "DATA", "--compare", "--labels", "--seeds", "--view", "--points", "--missing-bands", "--looks",
        "--out",
    ],
    "plan": [
        "NAME", "--data", "--gpu", "--init", "--as-published", "--images", "--utilisation", "--price",
        "--samples", "--set -s", "--json",
    ],
    "recipe": RECIPE,
    "push": ["SOURCE", "REPOSITORY", "--dry-run", "--private", "--license", "--also", "--force"],
    "recipes parity": ["NAME", "--images", "--json"],
    "recipes run": RECIPE,
    "starter build": ["--out", "--language", "--quick"],
    "recipes show": ["NAME", "--data", "--init", "--gpus", "--as-published", "--set -s", "--out"],
    "report": ["RUN", "--out", "--samples"],
    "study": [
        "NAME", "--scale", "--out", "--data", "--quick", "--set -s", "--label", "--minutes", "--plan", "--rows",
        "--arm",
    ],
    "robustness": [
        "RUN", "DATA", "--compare", "--severities", "--corruptions", "--split", "--max-images", "--seed",
        "--labels", "--seeds", "--metric", "--format", "--option -o", "--set -s", "--out", "--force",
    ],
    "swap": [
        "MODEL", "OUT", "--vision", "--language", "--image-size", "--shuffle", "--template",
        "--keep-projector", "--seed", "--force",
    ],
}  # fmt: skip


def surface(command: Any, path: str = "") -> dict[str, list[str]]:
    """Return command → arguments and options, as users type them."""
    found = {}
    own = [
        parameter.name.upper() if parameter.param_type_name == "argument" else " ".join(parameter.opts)
        for parameter in command.params
        if parameter.name != "help"
    ]
    if own or not getattr(command, "commands", None):
        found[path] = own
    for name, child in getattr(command, "commands", {}).items():
        found |= surface(child, f"{path} {name}".strip())
    return found


def test_the_command_line_is_what_it_was() -> None:
    found = surface(typer.main.get_command(app))
    commands = {name: [own for own in options if own != "--allow-remote"] for name, options in found.items()}
    assert commands == SURFACE
    assert [name for name, options in found.items() if "--allow-remote" not in options] == [""]


def test_help_groups_the_commands_in_panels() -> None:
    """Every command that is shown is in one of five panels, and those come in the order of the work."""
    group = typer.main.get_command(app)
    shown = {name: c for name, c in group.commands.items() if not c.hidden}  # type: ignore[attr-defined]
    panels = [shown[name].rich_help_panel for name in group.list_commands(None) if name in shown]  # type: ignore[attr-defined]
    assert list(dict.fromkeys(panels)) == [DATA, TRAIN, USE, JUDGE, PLAN]
    assert len(panels) == len(shown) == 24
    assert [name for name, command in group.commands.items() if command.hidden] == ["recipe"]  # type: ignore[attr-defined]


def test_every_command_and_option_has_a_sentence() -> None:
    def silent(command: Any, path: str) -> list[str]:
        found = [
            f"{path} {one.name}"
            for one in command.params
            if one.name not in ("help", "version") and not (one.help or "").rstrip().endswith((".", "?"))
        ]
        if not (command.help or "").strip():
            found.append(path)
        for name, child in getattr(command, "commands", {}).items():
            found += silent(child, f"{path} {name}".strip())
        return found

    assert silent(typer.main.get_command(app), "") == []
