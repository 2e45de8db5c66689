"""Mask queries (EoMT): positions, masked attention, losses against the library's, what isn't known, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers.models.eomt import modeling_eomt
from transformers.models.eomt.configuration_eomt import EomtConfig

from tests.unit.test_task_graphs import graph_of
from tests.unit.test_task_runs import config
from vitp.core.errors import ConfigError
from vitp.data.augment import AugmentSettings
from vitp.deployment.export import GraphOptions, export_task
from vitp.deployment.qgis import qgis_obstacle
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.loop import Trainer
from vitp.metrics.results import Prediction, Target
from vitp.models.adapt import PromptSettings
from vitp.models.heads.mask_losses import MaskTruth, mask_loss_counts, mask_losses
from vitp.models.heads.mask_queries import MaskOutputs, MaskQuerySettings, masked_shares
from vitp.models.timm_backbone import timm_backbone
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.labels import IGNORE
from vitp.runs.finetune import build_run
from vitp.runtime.contract import GraphContract
from vitp.runtime.graph_model import GraphModel, open_graph
from vitp.scenes import scene_set
from vitp.tasks.base import TaskBatch, TaskModel, TestSettings, pad_images
from vitp.tasks.batches import task_batches
from vitp.tasks.build import NeckSettings, build_model
from vitp.tasks.data import LabelReader
from vitp.tasks.eomt import QueryInstances, QueryModel
from vitp.tasks.predict import predict_images
from vitp.tasks.sizes import fitted_head

ARCHITECTURES = {
    "learned": "vit_tiny_patch16_224",
    "registers, LayerScale": "vit_small_patch14_reg4_dinov2",
    "rotary": "vit_small_patch16_dinov3",
    "rotary and learned": "eva02_tiny_patch14_224",
}


def tower(kind: str = "learned", width: int = 32, depth: int = 3) -> VisionTower:
    torch.manual_seed(0)
    arguments = {"embed_dim": width, "depth": depth, "num_heads": 2, "patch_size": 8}
    return VisionTower(VisionSettings(architecture=ARCHITECTURES[kind], arguments=arguments, image_size=32))


def model_of(task: str, kind: str = "learned", **head: Any) -> Any:
    head = {"kind": "eomt", "queries": 6, "blocks": 2, "points": 64, **head}
    return build_model(task, tower(kind), ("a", "b", "c"), None, head)


def batch_of(task: str, count: int = 2, side: int = 30) -> TaskBatch:
    """Images with a square of each of two classes, or as many objects, the last image without any."""
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randint(0, 256, (3, side, 32), generator=generator, dtype=torch.uint8) for _ in range(count)
    ]
    masks_NHW = torch.zeros(2, side, 32, dtype=torch.uint8)
    masks_NHW[0, 2:14, 3:15], masks_NHW[1, 16:28, 17:30] = 1, 1
    targets = []
    for number in range(count):
        if task == "segmentation":
            semantic_HW = (masks_NHW[0] + 2 * masks_NHW[1]).clone()
            semantic_HW[:, 31] = IGNORE
            targets.append(Target(semantic_HW=semantic_HW))
            continue
        kept = slice(0, 0 if number == count - 1 and count > 1 else 2)
        boxes_N4 = torch.tensor([[3.0, 2, 15, 14], [17, 16, 30, 28]])[kept]
        labels_N = torch.tensor([0, 2])[kept]
        targets.append(Target(boxes_N4=boxes_N4, labels_N=labels_N, masks_NHW=masks_NHW[kept]))
    images_BCHW, sizes_B2 = pad_images(images)
    return TaskBatch(images_BCHW, None, sizes_B2, tuple(targets), tuple(map(str, range(count))))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_queries_are_prefix_tokens_to_the_blocks(kind: str) -> None:
    """timm leaves its prefix unturned: with queries in front of all tokens as more of it, they come out the same."""
    backbone, queries_QD = tower(kind).eval(), torch.randn(5, 32)
    image_BCHW = torch.randn(2, 3, 32, 24)
    with torch.no_grad():
        tokens = backbone.embed_tokens(image_BCHW)
        found = backbone.run_blocks(tokens.with_queries(queries_QD), 1, 2)
        prefix = tokens.tokens_BLD.shape[1] - 12
        for block in backbone.model.blocks:
            if hasattr(block.attn, "num_prefix_tokens"):
                block.attn.num_prefix_tokens += 5
        front = torch.cat([queries_QD.expand(2, -1, -1), tokens.tokens_BLD], dim=1)
        wanted_BLD = backbone.run_blocks(tokens.with_tokens(front), 1, 2).tokens_BLD
    assert found.grid == (4, 3)
    assert found.map_BDhw.shape == (2, 32, 4, 3)
    order = [*range(5, 5 + prefix), *range(5), *range(5 + prefix, 17 + prefix)]
    assert torch.allclose(found.tokens_BLD, wanted_BLD[:, order], atol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("deep", [True, False])
def test_masked_queries_run_beside_learned_prompts(kind: str, deep: bool) -> None:
    """A mask over the tokens of an image says nothing of prompts: these see all and are seen by all."""
    model = model_of("segmentation", kind)
    model.tower.attach(PromptSettings(count=5, deep=deep))
    model.train()
    losses = model(batch_of("segmentation"))
    assert all(bool(loss.isfinite()) for loss in losses.values())
    model.eval()
    grid = model.tower.embed_tokens(torch.randn(2, 3, 32, 32)).with_queries(model.head.queries)
    count = grid.tokens_BLD.shape[1]
    everything = torch.ones(2, 1, count, count, dtype=torch.bool)
    with torch.no_grad():
        free, masked = (model.tower.run_blocks(grid, 0, 2, seen).tokens_BLD for seen in (None, everything))
        # A query that no other token may read changes nothing of the others.
        hidden = everything.clone()
        query = count - 16 - 1
        hidden[..., :query, query] = hidden[..., query + 1 :, query] = False
        found = model.tower.run_blocks(grid, 0, 2, hidden).tokens_BLD
        moved = grid.tokens_BLD.clone()
        moved[:, query] += 1
        again = model.tower.run_blocks(grid.with_tokens(moved), 0, 2, hidden).tokens_BLD
    assert torch.allclose(free, masked, atol=1e-5)
    others = [number for number in range(count) if number != query]
    assert torch.allclose(found[:, others], again[:, others], atol=1e-6)
    assert not torch.allclose(found[:, query], again[:, query], atol=1e-3)


def test_masked_queries_see_their_mask_alone() -> None:
    model: QueryModel = model_of("segmentation")
    backbone: Any = model.tower
    tokens = backbone.embed_tokens(torch.randn(1, 3, 32, 32)).with_queries(model.head.queries)
    mask_1Qhw = torch.full((1, 6, 8, 8), -1.0)
    mask_1Qhw[:, :, :, 4:] = 1.0  # the right half: patches of columns 2 and 3
    seen = model.head._seen(mask_1Qhw, tokens, 1.0)
    assert seen is not None and seen.shape == (1, 1, 23, 23)
    inside = torch.tensor([False, False, True, True]).repeat(4)
    assert torch.equal(seen[0, 0, 1:7, 7:], inside.expand(6, -1))
    assert seen[0, 0, :, :7].all() and seen[0, 0, 7:].all() and seen[0, 0, 0].all()
    assert model.head._seen(mask_1Qhw, tokens, 0.0) is None
    torch.manual_seed(0)
    many = torch.cat([model.head._seen(mask_1Qhw, tokens, 0.25)[0, 0, 1:7, 7:] for _ in range(200)])
    free = many.all(1).float().mean()
    assert 0.7 < free < 0.8 and torch.equal(many[~many.all(1)][0], inside)


def test_the_share_of_masked_queries_falls_block_by_block() -> None:
    assert masked_shares(0.0, 4) == [1.0] * 4
    assert masked_shares(1.0, 4) == [0.0] * 4 == masked_shares(5 / 6, 4)
    half = masked_shares(0.5, 4)  # of six parts three are over: blocks 1 and 2 are done
    assert half[:2] == [0.0, 0.0] and half[2:] == [1.0, 1.0]
    assert masked_shares(1.5 / 4, 2) == pytest.approx([0.5**0.9, 1.0])


def test_losses_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = modeling_eomt.sample_point
    monkeypatch.setattr(modeling_eomt, "sample_point", partial(real, padding_mode="border"))
    settings = MaskQuerySettings(points=200, queries=9)
    sizes = EomtConfig(
        id2label={0: "a", 1: "b", 2: "c"},
        no_object_weight=0.1,
        train_num_points=200,
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
    )
    library = modeling_eomt.EomtLoss(sizes, {})
    outputs = MaskOutputs(torch.randn(1, 9, 4), torch.randn(1, 9, 8, 8))
    masks_NHW = (torch.rand(3, 32, 32) > 0.5).to(torch.uint8)
    labels_N = torch.tensor([2, 0, 2])
    truth = MaskTruth(labels_N, masks_NHW, torch.ones(32, 32, dtype=torch.bool))
    torch.manual_seed(5)
    found = mask_losses([outputs], [truth], settings)
    torch.manual_seed(5)
    wanted = library(outputs.mask_BQhw, outputs.class_BQC, [masks_NHW.float()], [labels_N])
    counts = mask_loss_counts([3], settings)
    assert counts == pytest.approx({"class": 3 + 0.6, "mask": 3, "dice": 3})
    for name, other in (("class", "cross_entropy"), ("mask", "mask"), ("dice", "dice")):
        assert found[name].item() / counts[name] == pytest.approx(wanted[f"loss_{other}"].item(), rel=1e-4)


def test_what_is_not_known_teaches_nothing() -> None:
    torch.manual_seed(0)
    settings = MaskQuerySettings(points=400, queries=3)
    class_1QC = torch.randn(1, 3, 4)
    mask_1Qhw = torch.full((1, 3, 8, 8), -9.0)
    mask_1Qhw[0, 0, :4], mask_1Qhw[0, 1, 4:] = (
        9.0,
        9.0,
    )  # the second query says what lies below, where nobody knows
    known_HW = torch.ones(32, 32, dtype=torch.bool)
    known_HW[16:] = False
    true_1HW = torch.zeros(1, 32, 32, dtype=torch.uint8)
    true_1HW[0, :16] = 1

    def losses(masks_NHW: Tensor, known: Tensor, class_QC: Tensor = class_1QC) -> dict[str, float]:
        torch.manual_seed(1)
        truth = MaskTruth(torch.tensor([1]), masks_NHW, known)
        found = mask_losses([MaskOutputs(class_QC, mask_1Qhw)], [truth], settings)
        return {name: loss.item() for name, loss in found.items()}

    other_1HW = true_1HW.clone()
    other_1HW[0, 20:] = 1
    assert losses(true_1HW, known_HW) == losses(other_1HW, known_HW)
    changed = class_1QC.clone()
    changed[0, 1] += torch.tensor([5.0, 0, 0, 0])
    assert losses(true_1HW, known_HW, changed) == losses(true_1HW, known_HW)
    assert losses(true_1HW, known_HW | True, changed) != losses(true_1HW, known_HW)
    # Nothing at all is known, or there is nothing: finite, and of nothing.
    empty = losses(true_1HW, known_HW & False)
    assert empty["mask"] == 0.0 and math.isfinite(empty["class"])


def test_ignored_objects_are_unknown() -> None:
    model: QueryInstances = model_of("instance")
    (target,) = batch_of("instance", 1).targets
    truth = model.truth(replace(target, difficult_N=torch.tensor([False, True])))
    assert truth.labels_N.tolist() == [0]
    assert torch.equal(~truth.known_HW, target.masks_NHW[1] > 0)
    place_1HW = torch.ones(1, 30, 32, dtype=torch.uint8)
    truth = model.truth(replace(target, ignored_MHW=place_1HW))
    assert torch.equal(truth.known_HW, (target.masks_NHW > 0).any(0))  # the objects in it are known
    semantic = model_of("segmentation")
    (seen,) = batch_of("segmentation", 1).targets
    truth = semantic.truth(seen)
    assert truth.labels_N.tolist() == [0, 1, 2] and semantic.count(seen) == 3
    assert not truth.known_HW[:, 31].any() and truth.known_HW[:, :31].all()


@pytest.mark.parametrize(("task", "kind"), [("segmentation", "rotary"), ("instance", "learned")])
def test_every_parameter_learns_and_counts_add_up(task: str, kind: str) -> None:
    model: TaskModel = model_of(task, kind)
    batch = batch_of(task)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    assert losses.keys() == model.loss_counts(batch).keys() == model.loss_weights.keys()
    assert all(loss.dtype == torch.float32 and math.isfinite(loss.item()) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    groups = model.parameter_groups()
    assert [group.name for group in groups] == ["vision tower", "head"]
    parts = [replace(batch, targets=batch.targets[:1]), replace(batch, targets=batch.targets[1:])]
    counts = [model.loss_counts(part) for part in parts]
    assert model.loss_counts(batch) == pytest.approx({k: counts[0][k] + counts[1][k] for k in counts[0]})
    if task == "instance":  # without an object there are no masks to be right about, and the graph is whole
        empty = replace(
            batch, images_BCHW=batch.images_BCHW[1:], sizes_B2=batch.sizes_B2[1:], targets=batch.targets[1:]
        )
        lost = model(empty)
        assert lost["mask"].item() == 0.0 and lost["class"].item() > 0
        assert model.loss_counts(empty)["mask"] == 0.0


def test_predictions_are_whole_and_of_the_image() -> None:
    images = list(batch_of("instance", 2, side=70).images_BCHW)
    settings = TestSettings(window=32, overlap=0.5, flip=True)
    for found in predict_images(model_of("instance").eval(), images, settings):
        assert found.masks_NHW is not None and found.scores_N is not None and found.boxes_N4 is not None
        assert found.masks_NHW.shape[1:] == (70, 32) and found.masks_NHW.flatten(1).any(1).all()
        for mask_HW, box_4 in zip(found.masks_NHW, found.boxes_N4.tolist(), strict=True):
            rows, columns = torch.nonzero(mask_HW, as_tuple=True)
            hull = [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]
            assert hull == pytest.approx(box_4, abs=1.01)
    model = model_of("segmentation", queries=40).eval()
    shares = model.probabilities(torch.stack(images))
    assert shares.shape == (2, 3, 70, 32) and torch.allclose(shares.sum(1), torch.ones(()), atol=1e-5)
    (map_of_windows,) = predict_images(model, images[:1], settings.model_copy(update={"stagger": True}))
    assert map_of_windows.semantic_HW is not None and map_of_windows.semantic_HW.shape == (70, 32)


def test_what_it_needs_is_said() -> None:
    with pytest.raises(ConfigError, match="a TimmStages has none"):
        build_model("instance", timm_backbone("resnet18"), ["a"], None, {"kind": "eomt"})
    with pytest.raises(ConfigError, match="segmentation has no neck"):
        build_model("segmentation", tower(), ["a", "b"], NeckSettings(kind="simple"), {"kind": "eomt"})
    with pytest.raises(ConfigError, match="querys"):
        build_model("segmentation", tower(), ["a", "b"], None, {"kind": "eomt", "querys": 3})
    run = build_run(config(task="instance", head={"kind": "eomt", "blocks": 1}))
    assert (
        isinstance(run.model, QueryInstances) and run.model.steps == 4 and run.model.settings.queries == 100
    )
    assert "anchors" not in " ".join(run.notes)
    assert fitted_head("instance", {"kind": "eomt"}, 192, objects=200) == {"kind": "eomt", "queries": 300}
    assert fitted_head("instance", {"kind": "eomt"}, 192) == {"kind": "eomt", "queries": 100}


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    reader = LabelReader(scene_set("general", seed=3, count=2, size=32), "instances")

    def train(folder: Path, steps: int, resume: bool = False) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = build_model(
            "instance", tower("rotary"), reader.classes, None, {"kind": "eomt", "queries": 5, "points": 64}
        )
        model.steps, model.description = 4, {"head": {}}
        settings = TrainSettings(steps=steps, save_every=2, device="cpu", num_workers=0, threads=1, ema=0.5)
        optim = OptimSettings(lr=1e-3, warmup_ratio=0, schedule="constant")
        source = task_batches(reader, 2, 0)
        Trainer(model, source, optim, settings, folder, console=Console(quiet=True), resume=resume).train()
        return dict(model.state_dict())

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "stopped", 2)
    resumed = train(tmp_path / "stopped", 4, resume=True)
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())


def fitted(task: str, kind: str, steps: int) -> tuple[TaskModel, LabelReader, dict[str, float]]:
    """Return a model that has seen two scenes so many times, and its scores on them."""
    torch.manual_seed(0)
    labelled = scene_set("general", seed=3, count=2, size=64)
    reader = LabelReader(labelled, "semantic" if task == "segmentation" else "instances")
    arguments = {"embed_dim": 64, "depth": 3, "num_heads": 4, "patch_size": 8}
    backbone = VisionTower(
        VisionSettings(architecture=ARCHITECTURES[kind], arguments=arguments, image_size=64)
    )
    head = {"kind": "eomt", "queries": 24, "blocks": 2, "points": 512}
    model = build_model(task, backbone, reader.classes, None, head)
    model.description |= {"input": {}, "test": {}}
    model.steps, source = steps, task_batches(reader, 2, 0, augmentation=AugmentSettings.none())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        batch = source(step, 0, 0, 1)
        losses, counts = model(batch), model.loss_counts(batch)
        optimizer.zero_grad()
        torch.stack(
            [model.loss_weights[name] * losses[name] / counts[name] for name in losses]
        ).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    settings = TestSettings(measures=("boundary", "panoptic"))
    return model, reader, dict(model.evaluate(labelled, settings).values)


@pytest.mark.parametrize(("task", "kind"), [("instance", "rotary"), ("segmentation", "learned")])
def test_graph_and_runtime_say_what_the_model_says(task: str, kind: str) -> None:
    model, size = model_of(task, kind, queries=40).eval(), (37, 50)  # no whole patches
    graph = graph_of(model, size)
    image_CHW = torch.randint(
        0, 256, (3, *size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8
    )
    agree(graph, image_CHW, predict_images(model, [image_CHW])[0])
    assert graph.contract.mask_patch == (8 if task == "instance" else 0)
    values = graph.contract.to_values()
    assert GraphContract.from_values(values, where="x") == graph.contract
    del values["mask_patch"]  # as in graphs of earlier versions
    assert GraphContract.from_values(values, where="x").mask_patch == 0
    if task == "instance":
        assert "mask of the whole tile" in (qgis_obstacle(graph.contract) or "")


def agree(graph: GraphModel, image_CHW: Tensor, wanted: Prediction) -> None:
    given = graph.predict(image_CHW.numpy())
    if wanted.semantic_HW is not None:
        assert given.classes_HW is not None
        assert (given.classes_HW == wanted.semantic_HW.numpy()).mean() > 0.999
        return
    objects = given.objects
    assert objects is not None and objects.masks is not None and wanted.scores_N is not None
    assert wanted.masks_NHW is not None and len(wanted.scores_N) > 5
    assert objects.scores_N == pytest.approx(wanted.scores_N.numpy(), abs=1e-4)
    # Equally sure ones may change places; their masks are the same set.
    ours, theirs = (
        sorted(mask.sum() for mask in masks) for masks in (objects.masks, wanted.masks_NHW.numpy())
    )
    assert len(ours) == len(theirs)
    assert sum(abs(int(a) - int(b)) for a, b in zip(ours, theirs, strict=True)) <= 0.001 * image_CHW[
        0
    ].numel() * len(ours)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # some seconds of computing, which a loaded machine stretches
@pytest.mark.parametrize(
    ("task", "kind", "exported"),
    [
        ("segmentation", "learned", False),
        ("segmentation", "rotary", True),
        ("instance", "learned", True),
        ("instance", "rotary", False),
    ],
)
def test_two_scenes_are_learned_and_exported(tmp_path: Path, task: str, kind: str, exported: bool) -> None:
    model, reader, values = fitted(task, kind, 120 if task == "segmentation" else 90)
    if task == "segmentation":  # 0.96, 0.93 and 0.96 where it was written
        assert values["miou"] > 0.9 and values["boundary_iou"] > 0.8 and values["pq"] > 0.85
    else:  # 1.0, 1.0, 1.0 and 0.9
        assert values["mask_AP50"] > 0.9 and values["AP50"] > 0.9
        assert values["boundary_AP50"] > 0.9 and values["pq"] > 0.7
    if not exported:
        return
    model.save_pretrained(tmp_path / "model")
    done = export_task(tmp_path / "model", tmp_path / "graph", GraphOptions(size=64, batch=None))
    assert done.outputs.images == 3 and max(done.outputs.largest.values()) < 1e-4
    graph = open_graph(tmp_path / "graph", threads=1)
    images = [reader.sample(item).image_CHW for item in reader.labelled.items]
    for image_CHW, wanted in zip(images, predict_images(model.eval(), images), strict=True):
        agree(graph, image_CHW, wanted)
