"""Teachers and their matches: each by hand, zero where student and teacher are one, and what a student may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from rich.console import Console

from tests.objective_toys import (
    CASES,
    SIZE,
    TAUGHT,
    VISION,
    labelled_folder,
    masked,
    source_of,
    taught,
    tiny_tower,
)
from vitp.checkpoints.description import Provenance
from vitp.checkpoints.export import write_backbone
from vitp.checkpoints.loading import load_backbone
from vitp.core.config import make_config
from vitp.core.errors import CheckpointError, ConfigError
from vitp.data.augment import ViewSettings
from vitp.models.vision import VisionTower
from vitp.objectives.distil import DistilObjective, DistilSettings, TaughtBatch, TaughtViews
from vitp.objectives.preserving import FeaturePreserving
from vitp.objectives.settings import PreserveSettings
from vitp.objectives.simclr import SimCLRSettings
from vitp.objectives.teachers import (
    Whitening,
    attention_divergence,
    attention_nmi,
    cosine_distance,
    observed,
    relations,
    timm_student,
)
from vitp.runs.pretrain import PretrainConfig, build, run_pretraining
from vitp.tasks.build import BackboneSettings, open_backbone

QUIET = Console(quiet=True)
EVERYTHING = {"tokens": 1.0, "pooled": 1.0, "attention": 1.0, "relations": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("taught") / "toy")


def images(*, sets: tuple[int, ...] = (0, 0, 0, 0), seed: int = 0, step: int = 0) -> TaughtBatch:
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.randint(0, 256, (len(sets), 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return TaughtBatch(tiles, (tiles[:0],) * 3, torch.tensor(sets), step, tuple(map(str, range(len(sets)))))


def moved(tower: VisionTower, by: float = 0.1, seed: int = 1) -> VisionTower:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return tower


def objective_of(*teachers: dict[str, Any], sets: tuple[str, ...] = (), **more: Any) -> DistilObjective:
    return DistilObjective(
        tiny_tower(), DistilSettings.model_validate({"teachers": list(teachers), **more}), sets
    )


def descend(objective: DistilObjective, batches: list[TaughtBatch], steps: int, lr: float = 3e-3) -> None:
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr)
    for step in range(steps):
        losses = objective(batches[step % len(batches)])
        total: Any = sum(objective.loss_weights[name] * loss for name, loss in losses.items())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


# The matches.


def test_all_is_zero_where_student_and_teacher_are_one_and_falls_after_a_drift() -> None:
    objective = objective_of(EVERYTHING)
    assert all(abs(loss.item()) < 1e-5 for loss in objective(images()).values())
    moved(objective.tower)
    first = {name: loss.item() for name, loss in objective(images()).items()}
    assert first.keys() == set(EVERYTHING) and all(loss > 1e-3 for loss in first.values())
    descend(objective, [images()], 25)
    last = {name: loss.item() for name, loss in objective(images()).items()}
    assert all(last[name] < 0.7 * first[name] for name in first), (first, last)
    assert all(p.grad is None for p in objective.taught_by.parameters())


def test_attention_is_matched_by_its_divergence() -> None:
    logits = torch.randn(2, 2, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    p, q = logits.softmax(-1).unbind(0)
    expected = [
        np.mean([np.sum(a * np.log(a / b)) for a, b in zip(x.reshape(-1, 5), y.reshape(-1, 5), strict=True)])
        for x, y in zip(p.double().numpy(), q.double().numpy(), strict=True)
    ]
    assert attention_divergence(p, q).tolist() == pytest.approx(expected, rel=1e-4)
    fewer = q[:, :1]
    merged = attention_divergence(p.mean(1, keepdim=True), fewer)
    assert torch.allclose(attention_divergence(p, fewer), merged)
    # Among patches alone, rows sum to 1; as `VisionTower.attention` has them, but with a gradient.
    tower = tiny_tower().eval()
    image = tower.normalize(images().tiles_BCHW)
    _, seen = observed(tower, image, -1, attention=True)
    assert seen is not None and seen.requires_grad and seen.shape == (4, 2, 16, 16)
    whole = tower.attention(image)[..., 1:, 1:]
    assert torch.allclose(seen, whole / whole.sum(-1, keepdim=True), atol=1e-6)


def test_mutual_information_tells_local_attention_from_uniform() -> None:
    cells = torch.arange(64)
    distance = ((cells[:, None] // 8 - cells // 8) ** 2 + (cells[:, None] % 8 - cells % 8) ** 2).float()
    local = (-distance).softmax(-1)
    found = [attention_nmi(a).item() for a in (torch.full((64, 64), 1 / 64), local, torch.eye(64))]
    assert found[0] == pytest.approx(0, abs=1e-9) and 0.4 < found[1] < 0.8 and found[2] == pytest.approx(1)
    one = torch.zeros(64, 64)
    one[:, 3] = 1  # every query looks at one key
    assert attention_nmi(torch.stack([one, local])).tolist() == pytest.approx([0, found[1]], abs=1e-6)


def test_relations_by_hand() -> None:
    generator = torch.Generator().manual_seed(3)
    before, now = (torch.randn(4, 6, generator=generator).double() for _ in range(2))
    total = 0.0
    for i in range(4):
        others = [j for j in range(4) if j != i]
        p, q = (
            F.softmax(torch.stack([F.cosine_similarity(x[i], x[j], dim=0) for j in others]) / 0.2, 0)
            for x in (before, now)
        )
        total += float((p * (p / q).log()).sum())
    assert relations(before, now, 0.2).item() == pytest.approx(total, rel=1e-5)
    assert relations(before, 3 * before, 0.2).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match="order of neighbours"):
        relations(before[:2], now[:2], 0.2)


def test_the_average_of_three() -> None:
    objective = objective_of({"source": "average", "momentum": 0.9, "past": 0.25}).train()
    name = "blocks.0.attn.qkv.weight"
    teacher = objective.teachers()[0]
    start = tiny_tower().model.get_parameter(name)
    with torch.no_grad():
        objective.tower.model.get_parameter(name).add_(1.0)
    student = objective.tower.model.get_parameter(name)
    objective(images(step=0))
    assert torch.equal(teacher.backbone.model.get_parameter(name), start)  # type: ignore[union-attr]
    expected = start.clone()
    for step in (1, 1, 2):  # a second micro-batch moves nothing
        objective(images(step=step))
    for _ in range(2):
        expected = 0.9 * expected + 0.1 * (0.75 * student + 0.25 * start)
    found = teacher.backbone.model.get_parameter(name)  # type: ignore[union-attr]
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_relations_to_the_start_keep_what_another_domain_would_overwrite() -> None:
    """Two domains in turn: the second has a teacher of its own; what images of the first look like is kept or lost."""
    first, second = images(sets=(0,) * 8, seed=1), images(sets=(0,) * 8, seed=2)
    drift = {}
    for weight in (0.0, 2.0):
        new, old = {"tokens": 1.0}, {"tokens": 0.0, "relations": max(weight, 1e-9), "projector": "none"}
        objective = objective_of(new, old)
        moved(objective.teachers()[0].backbone, 0.3)  # type: ignore[arg-type]
        descend(objective, [second], 30)
        drift[weight] = objective(first)["relations 2"].item()
    assert drift[2.0] < 0.7 * drift[0.0], drift


def test_two_teachers_with_data_of_their_own() -> None:
    """The first teacher is not forgotten while the second is learned."""
    objective = objective_of({"sets": ["a"], "weight": 2.0}, {"sets": ["b"]}, sets=("a", "b"))
    assert objective.loss_weights == {"tokens 1": 2.0, "tokens 2": 1.0}
    moved(objective.teachers()[1].backbone, 0.3)  # type: ignore[arg-type]
    both = images(sets=(0, 1, 0, 1, 1))
    assert objective.loss_counts(both) == {"tokens 1": 2, "tokens 2": 3}
    alone = objective(images(sets=(0, 0, 0)))
    assert alone["tokens 2"].item() == 0 and objective.loss_counts(images(sets=(0,)))["tokens 2"] == 0
    before = objective(both)["tokens 2"].item()
    descend(objective, [both], 30)
    after = objective(both)
    assert after["tokens 2"].item() < 0.7 * before and after["tokens 1"].item() / 2 < 0.1
    with pytest.raises(ConfigError, match="there is no set 'c'"):
        objective_of({"sets": ["c"]}, sets=("a", "b"))


def test_what_can_not_be_matched_is_said() -> None:
    for wrong, words in (
        ({"tokens": 0}, "nothing is matched"),
        ({"past": 0.5}, "only the source"),
        ({"source": "further"}, "first stage"),
        ({"weights": "a.safetensors"}, "brings its own"),
        ({"whiten": True, "source": "average"}, "move"),
        ({"whiten": True, "projector": "none"}, "need a projector"),
        ({"whiten": True, "tokens": 0, "attention": 1.0}, "only tokens and pooled"),
    ):
        with pytest.raises(ValueError, match=words):
            DistilSettings.model_validate({"teachers": [wrong]})
    with pytest.raises(ConfigError, match="2 layers, none is 5"):
        objective_of({"layer": 5})
    with pytest.raises(ConfigError, match="at 64 px the teacher has 8 patches"):
        objective_of({"attention": 1.0, "size": 64})
    with pytest.raises(ConfigError, match="random weights"):
        objective_of({"source": "timm:resnet18"})
    with pytest.raises(ConfigError, match="network without attention"):
        convolutional = timm_student("convnext_atto", None, 32, None)
        DistilObjective(convolutional, DistilSettings.model_validate({"teachers": [{"attention": 1.0}]}))


# What a cosine of raw vectors hardly sees.


def test_whitened_vectors_vary_alike_in_every_direction() -> None:
    generator = torch.Generator().manual_seed(4)
    spread = torch.tensor([10.0, 1.0, 0.1, 1e-6])
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    vectors = torch.randn(4000, 4, generator=generator) * spread @ turn + 50
    whitening = Whitening(4)
    whitening.measure(vectors)
    told = whitening(vectors)
    assert told.mean(0).abs().max() < 1e-3
    variances = torch.linalg.eigvalsh(torch.cov(vectors.double().T)).clamp(min=0)
    expected = variances / (variances + 0.01 * variances.mean())
    assert torch.allclose(torch.linalg.eigvalsh(torch.cov(told.double().T)), expected, atol=1e-3)
    # Rows that differ in the direction of spread 1 alone: raw cosines call them the same, whitened ones opposite.
    a, b = (sign * 2 * turn[1] + 50 for sign in (1, -1))
    assert cosine_distance(a, b) < 0.01 and cosine_distance(whitening(a), whitening(b)) > 1.5
    with pytest.raises(ConfigError, match="the same of every patch"):
        whitening.measure(torch.ones(50, 4))


@pytest.mark.parametrize("projector", ["linear", pytest.param("mlp", marks=pytest.mark.slow)])
def test_a_whitened_teacher_is_measured_over_the_first_views_of_the_run(folder: Path, projector: str) -> None:
    config = run_of(folder, {"teachers": [{"whiten": True, "pooled": 1.0, "projector": projector}]})
    run = build(config)
    objective = cast(DistilObjective, run.objective).eval()
    (teacher,) = objective.teachers()
    views = torch.cat([run.source(step, 0, 0, 1).tiles_BCHW for step in range(64)])
    with torch.no_grad():
        tokens = teacher.backbone.forward_tokens(teacher.backbone.normalize(views)).flatten(0, 1)
        told = teacher.whitening(tokens)
    assert told.mean(0).abs().max() < 1e-3 and 0.2 < told.var(0).mean() < 1.001
    batch = run.source(0, 0, 0, 1)
    assert all(abs(loss.item()) < 1e-3 for loss in objective(batch).values())  # the student is its teacher
    moved(objective.tower)
    first = {name: loss.item() for name, loss in objective(batch).items()}
    descend(objective, [batch], 15)
    assert all(objective(batch)[name].item() < 0.8 * loss for name, loss in first.items())
    again = build(config).objective.state_dict()
    saved = objective.state_dict()
    names = [name for name in saved if "whitening" in name]
    assert len(names) == 2 and all(torch.equal(again[name], saved[name]) for name in names)


# Other sizes and kinds.


@pytest.mark.slow
def test_a_teacher_of_other_width_and_patches_sees_the_same_crop(folder: Path, tmp_path: Path) -> None:
    sizes = {"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 16}
    other = VisionTower(VISION.model_copy(update={"arguments": sizes, "image_size": 96}))
    write_backbone(tmp_path / "teacher", other, Provenance(source="toy"), name="teacher")
    source = str(tmp_path / "teacher")
    objective = objective_of({"source": source, **EVERYTHING, "layer": 1})
    assert objective.teachers()[0].size == 64  # 4 patches of 16 px, as the student has 4 of 8
    views = TaughtViews((SIZE, 64), ViewSettings.geometric())
    batch = source_of(folder, views)(0, 0, 0, 1)
    assert batch.taught[0].shape == (4, 3, 64, 64)
    small = F.interpolate(batch.taught[0].float(), SIZE, mode="bilinear", antialias=True)
    assert (small - batch.tiles_BCHW).abs().mean() < 0.5 * (small.roll(1, 0) - batch.tiles_BCHW).abs().mean()
    before = sum(loss.item() for loss in objective(batch).values())
    descend(objective, [batch], 15)
    assert sum(loss.item() for loss in objective(batch).values()) < before
    resampled = objective_of({"source": source, "size": 96})
    other_sizes = source_of(folder, TaughtViews((SIZE, 96), ViewSettings.geometric()))(0, 0, 0, 1)
    assert resampled(other_sizes)["tokens"].isfinite()


def run_of(folder: Path, objective: dict[str, Any], **train: Any) -> PretrainConfig:
    return make_config(
        PretrainConfig,
        {
            "objective": {"name": "distil", **objective},
            "model": {"init": "random", "vision": VISION.model_dump(), "drop_path": 0.0},
            "data": {"mixture": [str(folder)], "global_batch": 4},
            "optim": {"lr": 1e-3, "warmup_ratio": 0},
            "train": {"steps": 2, "num_workers": 0, "device": "cpu", **train},
        },
    )


@pytest.mark.slow
def test_two_stages_begin_from_the_same_weights(folder: Path, tmp_path: Path) -> None:
    stage = {"objective": {"name": "mae", "decoder_width": 32, "decoder_layers": 1}, "steps": 2, "lr": 1e-2}
    config = run_of(folder, {"teachers": [{"source": "further"}], "further": stage})
    run_pretraining(config, tmp_path / "run", console=QUIET)
    taught_by, student = load_backbone(tmp_path / "run" / "teacher"), load_backbone(tmp_path / "run")
    start = build(run_of(folder, {})).objective.vision_tower
    name = "model.blocks.0.attn.qkv.weight"
    weights = [dict(tower.named_parameters())[name] for tower in (start, taught_by, student)]
    assert not torch.equal(weights[1], weights[0]) and not torch.equal(weights[2], weights[1])
    # Two steps at the run's rate are far less than what the teacher moved at its own: the student began anew.
    assert (weights[2] - weights[0]).norm() < 0.5 * (weights[1] - weights[0]).norm()
    provenance = json.loads((tmp_path / "run" / "model" / "vitp_backbone.json").read_text())["provenance"]
    (teacher,) = provenance["configuration"]["objective"]["teachers"]
    assert teacher["source"] == str(tmp_path / "run" / "teacher") or teacher["source"] == "further"
    at_teacher = DistilObjective(taught_by, DistilSettings.model_validate({"teachers": [{}]}))
    assert at_teacher.eval()(images())["tokens"].item() < 1e-4


def test_relations_beside_another_objective(folder: Path) -> None:
    """CTP: contrast of a new domain, and the topology of the tower of before."""
    config = run_of(folder, {}).model_dump()
    old = {"teachers": [{"tokens": 0, "relations": 1.0}], "views": SimCLRSettings().views.model_dump()}
    del config["objective"]
    config["objectives"] = {"simclr": {"weight": 1.0, "dimension": 8}, "distil": {"weight": 0.5, **old}}
    run = build(make_config(PretrainConfig, config))
    losses = run.objective(run.source(0, 0, 0, 1))
    assert losses.keys() == {"simclr.contrast", "distil.relations"}
    assert losses["distil.relations"].abs() < 1e-5 and run.objective.loss_weight("distil.relations") == 0.5
    moved(run.objective.vision_tower, 0.5)  # type: ignore[arg-type]
    losses = run.objective(run.source(0, 0, 0, 1))
    assert losses["distil.relations"] > 1e-4
    sum(losses.values()).backward()
    frozen = [n for n, p in run.objective.named_parameters() if ".taught_by." in n and p.grad is not None]
    assert frozen == []


@pytest.mark.slow
def test_a_convolutional_student(folder: Path, tmp_path: Path) -> None:
    student = {"architecture": "convnext_atto", "image_size": 64}
    config = run_of(
        folder, {"student": student, "student_layer": 2, "teachers": [{"source": "starter"}]}, steps=1
    )
    run_pretraining(config, tmp_path / "run", console=QUIET)
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True).eval()
    weights = str(tmp_path / "run" / "model" / "model.safetensors")
    settings = BackboneSettings(init="timm:convnext_atto", weights=weights, image_size=64)
    backbone = open_backbone(settings).eval()
    image = torch.randn(1, 3, 64, 64)
    assert torch.allclose(backbone.forward_features(image)[0], model.forward_features(image), atol=1e-5)
    with pytest.raises((CheckpointError, ConfigError), match=r"finetune it with backbone\.init"):
        load_backbone(tmp_path / "run")


@pytest.mark.slow
def test_preservation_through_a_decoder_at_another_size(folder: Path) -> None:
    batch = CASES["mae"].source(folder)(0, 0, 0, 1)
    for kind in ("linear", "mlp"):
        objective = FeaturePreserving(masked(), PreserveSettings(weight=0.5, decoder=kind, size=48)).eval()  # type: ignore[arg-type]
        assert objective(batch)["preserve"].item() == pytest.approx(0, abs=1e-5)
        with torch.no_grad():  # a turn of all features: lost without a decoder, and a decoder learns it back
            turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))[0]
            norm = objective.vision_tower.model.norm
            norm.register_forward_hook(lambda _module, _arguments, output, turn=turn: output @ turn)
        lost = objective(batch)["preserve"].item()
        assert lost > 1
        optimizer = torch.optim.Adam(objective.decoder.parameters(), 1e-2)
        for _ in range(30):
            loss = objective(batch)["preserve"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert objective(batch)["preserve"].item() < 0.5 * lost
        names = [group.name for group in objective.parameter_groups()]
        assert names == ["vision tower", "head", "feature decoder", "initial tower"]
    with pytest.raises(ConfigError, match="50 px evenly"):
        FeaturePreserving(masked(), PreserveSettings(weight=0.5, size=50))


def test_case_of_the_contracts_has_all_kinds_of_teachers() -> None:
    assert {one.source for one in TAUGHT.teachers} == {"start", "average"}
    assert all(loss > 0.01 for loss in taught().eval()(images()).values())
