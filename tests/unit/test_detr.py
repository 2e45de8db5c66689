"""Detection transformers: their geometry, what they learn from, that they learn it, resume and leave as graphs."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torchvision.ops import box_iou, generalized_box_iou

from vitp.core.errors import ConfigError
from vitp.data.augment import AugmentSettings
from vitp.deployment.export import GraphOptions, contract_for, export_task
from vitp.engine import checkpoint
from vitp.metrics.results import Target
from vitp.models.heads.detr import DETRSettings, Noised
from vitp.models.heads.detr_boxes import OrientedBoxes, QueryBoxes, Stage, UprightBoxes
from vitp.models.heads.detr_losses import DETR_LOSSES, detr_losses, matched_queries, noised_objects
from vitp.models.heads.oriented_targets import OrientedTruth
from vitp.models.heads.rpn import ImageTruth
from vitp.models.rotated.boxes import boxes_of_hulls, long_edge_first, quads_of
from vitp.models.rotated.gaussian import bhattacharyya, doubled, hellinger, other_description, undoubled
from vitp.models.rotated.iou import paired_rotated_iou
from vitp.models.timm_backbone import TimmSettings, timm_backbone
from vitp.models.vision import VisionSettings, VisionTower
from vitp.planning.finetune import image_flops
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.runs.finetune import run_finetune
from vitp.runs.finetune_settings import FinetuneConfig
from vitp.tasks.base import InputSize, TaskBatch, TestSettings, pad_images
from vitp.tasks.batches import LabelledSamples
from vitp.tasks.build import NeckSettings, build_model
from vitp.tasks.data import LabelReader
from vitp.tasks.detr import DETRModel
from vitp.tasks.graphs import TaskGraph
from vitp.tasks.sizes import fitted_head

SIDE = 64
HEAD = {"kind": "detr", "width": 32, "heads": 4, "hidden": 64, "layers": 2, "queries": 12, "noised": 16}
TASKS = ("detection", "oriented")


def boxes5(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, span = torch.tensor([20.0, 20, 12, 4, -1.57]), torch.tensor([30.0, 30, 20, 8, 3.1])
    return low + span * torch.rand(count, 5, generator=generator)


def geometry_of(task: str) -> QueryBoxes:
    return UprightBoxes() if task == "detection" else OrientedBoxes()


def truth_of(task: str, boxes_N5: Tensor, ignored_N5: Tensor | None = None) -> ImageTruth | OrientedTruth:
    labels = torch.arange(len(boxes_N5)) % 2 + 1
    ignored = boxes_N5[:0] if ignored_N5 is None else ignored_N5
    if task == "oriented":
        return OrientedTruth(boxes_N5, labels, ignored, (SIDE, SIDE))
    hulls = [torch.cat([b[:, :2] - b[:, 2:4] / 2, b[:, :2] + b[:, 2:4] / 2], 1) for b in (boxes_N5, ignored)]
    return ImageTruth(hulls[0], labels, hulls[1], (SIDE, SIDE))


def backbone_of(kind: str) -> Any:
    if kind == "vit":
        arguments = {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8}
        return VisionTower(VisionSettings(arguments=arguments, image_size=SIDE))
    if kind == "rotary":
        # Trained towers have awake layers; those of a random DINOv3 are scaled by 1e-5.
        arguments = {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8, "init_values": 1.0}
        return timm_backbone(
            TimmSettings(architecture="vit_small_patch16_dinov3", arguments=arguments, image_size=SIDE)
        )
    return timm_backbone(TimmSettings(architecture="resnet18"))


def made(task: str, kind: str = "vit", neck: NeckSettings | None = None, **head: Any) -> DETRModel:
    torch.manual_seed(0)
    neck = neck or NeckSettings(options={"channels": 32})
    model = build_model(task, backbone_of(kind), ["bar", "box"], neck, {**HEAD, **head})
    assert isinstance(model, DETRModel)
    return model


def target_of(boxes_N5: Tensor) -> Target:
    return Target(
        boxes_N4=boxes_N5.new_tensor([]).view(0, 4) if not len(boxes_N5) else _hull(boxes_N5),
        quads_N8=quads_of(boxes_N5),
        labels_N=torch.arange(len(boxes_N5)) % 2,
        difficult_N=torch.zeros(len(boxes_N5), dtype=torch.bool),
    )


def _hull(boxes_N5: Tensor) -> Tensor:
    corners = quads_of(boxes_N5).view(-1, 4, 2)
    return torch.cat([corners.amin(1), corners.amax(1)], 1)


def batch_of(*counts: int, sizes: tuple[tuple[int, int], ...] | None = None) -> TaskBatch:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        for size in sizes or ((SIDE, SIDE),) * len(counts)
    ]
    padded, sizes_B2 = pad_images(images)
    targets = tuple(target_of(boxes5(count, seed)) for seed, count in enumerate(counts))
    return TaskBatch(padded, None, sizes_B2, targets, tuple(map(str, counts)))


# Geometry.


def test_gaussians_are_those_of_points_spread_over_the_boxes() -> None:
    first, second = boxes5(20).double(), boxes5(20, 1).double()
    normals = []
    for boxes in (first, second):
        cos, sin = boxes[:, 4].cos(), boxes[:, 4].sin()
        turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        spread = turn @ torch.diag_embed(boxes[:, 2:4] ** 2 / 12) @ turn.transpose(1, 2)
        normals.append(MultivariateNormal(boxes[:, :2], spread))
    one, two = normals
    middle = (one.covariance_matrix + two.covariance_matrix) / 2
    apart = (one.mean - two.mean)[:, :, None]
    wanted = (apart.transpose(1, 2) @ middle.inverse() @ apart)[:, 0, 0] / 8
    wanted = (
        wanted + (middle.det() / (one.covariance_matrix.det() * two.covariance_matrix.det()).sqrt()).log() / 2
    )
    assert torch.allclose(bhattacharyya(doubled(first), doubled(second)), wanted, rtol=1e-9)


def test_the_distance_of_oriented_boxes_knows_rectangles_alone() -> None:
    first, second = doubled(boxes5(30)), doubled(boxes5(30, 1))
    near = hellinger(first, second)
    assert ((near >= 0) & (near <= 1)).all() and near.max() > 0.9
    assert torch.allclose(hellinger(second, first), near, atol=1e-5)
    assert torch.allclose(hellinger(other_description(first), second), near, atol=1e-5)
    assert hellinger(first, other_description(first)).max() < 1e-3
    iou = paired_rotated_iou(undoubled(first), undoubled(second))
    assert np.corrcoef(iou, 1 - near)[0, 1] > 0.95  # ProbIoU follows the overlap
    # Slopes, at equal boxes and squares, too.
    moved = doubled(torch.cat([boxes5(4), torch.tensor([[30.0, 30, 9, 9, 0.3]])])).double().requires_grad_()
    still = moved.detach() + torch.tensor([1.0, -2, 3, 1, 0, 0])
    assert torch.autograd.gradcheck(lambda boxes: bhattacharyya(boxes, still), moved, atol=1e-4)
    (slope,) = torch.autograd.grad(hellinger(moved, moved.detach()).sum(), moved)
    assert torch.isfinite(slope).all() and slope.abs().max() < 1e-3


def test_differences_of_upright_boxes_are_torchvisions() -> None:
    geometry = UprightBoxes()
    first, second = (truth_of("detection", boxes5(9, seed)) for seed in (0, 1))
    own, other = geometry.wanted(first, SIDE), geometry.wanted(second, SIDE)
    apart, beyond = geometry.differences(own[:, None], other)
    assert torch.allclose(1 - beyond, generalized_box_iou(first.boxes_N4, second.boxes_N4), atol=1e-5)  # type: ignore[union-attr]
    assert torch.allclose(apart, torch.cdist(own, other, p=1), atol=1e-5)
    overlap = geometry.overlap(own, other)
    assert torch.allclose(overlap, box_iou(first.boxes_N4, second.boxes_N4).diag(), atol=1e-5)  # type: ignore[union-attr]


def test_differences_of_oriented_boxes_have_no_jump_and_turn_with_the_image() -> None:
    geometry, eps = OrientedBoxes(), 1e-3
    # A hair on either side of where angles jump, and of where the longer edge changes.
    for one, two in (
        ((30.0, 30, 20, 6, math.pi / 2 - eps), (30.0, 30, 20, 6, -math.pi / 2)),
        ((30.0, 30, 10 + eps, 10, 0.4), (30.0, 30, 10 + eps, 10, 0.4 - math.pi / 2)),
    ):
        pair = [geometry.wanted(truth_of("oriented", torch.tensor([box])), SIDE) for box in (one, two)]
        apart, beyond = geometry.differences(*pair)
        assert apart.item() < 1e-3 and beyond.item() < 2e-3
        assert geometry.overlap(*pair).item() > 0.99
    first, second = boxes5(12), boxes5(12, 1)
    turned = [
        long_edge_first(torch.stack([SIDE - b[:, 1], b[:, 0], b[:, 2], b[:, 3], b[:, 4] + math.pi / 2], 1))
        for b in (first, second)
    ]
    before = geometry.differences(*(geometry.wanted(truth_of("oriented", b), SIDE) for b in (first, second)))
    after = geometry.differences(*(geometry.wanted(truth_of("oriented", b), SIDE) for b in turned))
    assert torch.allclose(before[1], after[1], atol=1e-4)
    # x and y change places, so do the differences; the sums stay but for the diagonal angle's L1.
    assert torch.allclose(before[0], after[0], atol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_boxes_come_back_in_pixels_and_frames_end_at_corners(task: str) -> None:
    geometry, boxes = geometry_of(task), boxes5(6)
    truth = truth_of(task, long_edge_first(boxes))
    own = geometry.wanted(truth, SIDE)
    pixels = geometry.pixels(own[None], torch.tensor([float(SIDE)]))[0]
    given = truth.boxes_N5 if isinstance(truth, OrientedTruth) else truth.boxes_N4
    quads = quads_of(pixels if task == "oriented" else boxes_of_hulls(pixels))
    assert torch.allclose(pixels, given, atol=1e-3)
    assert torch.allclose(geometry.moved(own, torch.zeros_like(own)), own, atol=1e-4)
    half = geometry.frame(own) * SIDE
    ends = own[:, None, :2] * SIDE + torch.stack(
        [half @ torch.tensor(s) for s in ((1.0, 1.0), (1.0, -1.0))], 1
    )
    nearest = torch.cdist(ends, quads.view(-1, 4, 2)).amin(-1)
    assert nearest.max() < 1e-3  # both ends are corners
    torch.manual_seed(0)
    little, far = (geometry.noised(own.repeat(50, 1), torch.full((300,), least)) for least in (0.0, 1.0))
    kept = [geometry.overlap(noised, own.repeat(50, 1)).mean() for noised in (little, far)]
    assert kept[0] > 0.45 > 0.3 > kept[1]


# What is learned.


@pytest.mark.parametrize("task", TASKS)
def test_each_object_gets_the_query_that_fits_and_ignored_places_teach_nothing(task: str) -> None:
    model = made(task, noised=0)
    boxes = torch.tensor([[16.0, 16, 16, 10, 0.0], [48, 48, 14, 10, 0.0]])
    hidden = torch.tensor([[44.0, 16, 30, 20, 0.0]])
    truth = truth_of(task, boxes, hidden)
    wanted = model.head.geometry.wanted(truth, SIDE)
    places = torch.cat([boxes[1:], hidden, boxes[:1], torch.tensor([[12.0, 50, 10, 8, 0.0]])])
    guess = model.head.geometry.wanted(truth_of(task, places), SIDE)[None]
    logits = torch.zeros(1, 4, 2, requires_grad=True)
    matched = matched_queries(model.head, Stage(logits, guess), [(wanted, truth.labels_N - 1)])
    assert matched.tolist() == [[1, -1, 0, -1]]
    calls = iter([Stage(logits, guess)])
    model.head.forward = lambda *_: [next(calls)]  # type: ignore[method-assign, assignment]
    loss = detr_losses(model.head, [torch.zeros(1)], [truth])
    (slope,) = torch.autograd.grad(loss["class"], logits)
    assert slope[0, 1].abs().max() == 0  # nobody knows what is there
    assert (slope[0, 3] > 0).all() and slope[0, 0, 1] < 0 and slope[0, 2, 0] < 0
    assert loss["box"] < 1e-4 and loss["overlap"] < 1e-2


def test_noised_objects_are_alone_with_their_group() -> None:
    head = made("oriented", noised=8).head
    wanted = [
        (head.geometry.wanted(truth_of("oriented", boxes5(n)), SIDE), torch.arange(n) % 2) for n in (2, 1, 0)
    ]
    noised, owner = noised_objects(head, wanted)
    assert noised is not None and owner.tolist() == [[0, 1, -1, -1] * 2, [0, -2, -1, -2] * 2, [-2] * 8]
    sees = noised.allowed(3)
    assert sees.shape == (3, 11, 11) and sees.diagonal(dim1=1, dim2=2).all()
    assert not sees[:, 8:, :8].any()  # what is found must not read the answers
    assert not sees[:, :4, 4:8].any() and not sees[:, 4:8, :4].any()
    assert sees[0, 0].tolist() == [True] * 4 + [False] * 4 + [True] * 3
    assert sees[1, 0].tolist() == [True, False, True, False] + [False] * 4 + [True] * 3
    assert noised_objects(head, wanted[2:])[0] is None
    assert isinstance(noised, Noised)


@pytest.mark.parametrize(("task", "kind"), [("detection", "vit"), ("oriented", "rotary")])
def test_losses_and_gradients_are_finite(task: str, kind: str) -> None:
    """With objects, without any, and both in one batch of two sizes, in bfloat16, too."""
    model = made(task, kind)
    for batch in (batch_of(3), batch_of(0), batch_of(0, 2, sizes=((SIDE, 40), (48, SIDE)))):
        for half in (False, True) if len(batch) == 2 else (False,):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                losses, counts = model(batch), model.loss_counts(batch)
            assert losses.keys() == counts.keys() == model.loss_weights.keys()
            assert (losses["box"] > 0) == (counts["box"] > 0) and losses["class"] > 0
            sum(losses.values()).backward()
            grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            assert all(torch.isfinite(grad).all() for grad in grads.values())
            if counts["box"] and len(batch) == 1 and not half:
                silent = [
                    n for n, p in model.head.named_parameters() if not grads[f"head.{n}"].abs().sum() > 0
                ]
                # Offsets are read where maps are flat at the start only by chance; the masks' last layer starts at 0.
                assert not [n for n in silent if "fpn" not in n and "move.0" not in n and "move.2" not in n]
    assert counts == dict.fromkeys(model.loss_weights, 2.0) | {"class": 3.0}
    assert [name for name in losses if not name.startswith("noised")] == list(DETR_LOSSES)


def test_queries_stay_out_of_the_padding() -> None:
    model = made("detection").eval()
    sizes = [(SIDE, SIDE), (24, 32)]
    with torch.no_grad():
        stages = model.head(model.levels(torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)), sizes)
    centres = stages[0].boxes_BQK[1, :, :2] * 32
    assert (centres[:, 0] < 33).all() and (centres[:, 1] < 25).all()
    # 12 cells of stride 8, 4 of 16 and 1 of 32 begin in 24 × 32 px: enough for all queries.
    assert stages[0].boxes_BQK.shape[1] == 12


@pytest.mark.parametrize("task", TASKS)
def test_one_map_is_enough_and_graphs_say_the_same(task: str) -> None:
    model = made(task, neck=NeckSettings(kind="none"), score_threshold=0.0, detections=9).eval()
    assert model.head.strides == (8,)
    with torch.no_grad():
        for say in model.head.say:
            say.move[-1].weight.normal_(0, 0.2)  # type: ignore[union-attr, operator]
            say.score.weight.normal_(0, 1)  # type: ignore[union-attr, operator]
    image = torch.randint(
        0, 256, (3, 44, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    (found,) = model.predict([image])
    assert found.scores_N is not None and len(found.scores_N) == 9
    graph = TaskGraph(model, (44, SIDE))
    contract = contract_for(model, TestSettings(), (44, SIDE), 1)
    assert (contract.iou, contract.most_objects) == (1.0, 9)
    (table,) = graph(image[None].float() / 255)
    assert table.shape == (1, 6 if task == "detection" else 7, 12)
    assert torch.allclose(table[0, 4:6].flatten().sort(descending=True).values[:9], found.scores_N, atol=1e-5)
    assert TaskGraph(model, (44, SIDE), 5)(image[None].float() / 255)[0].shape[-1] == 5
    assert image_flops(model, SIDE) > 1e6


def test_settings_follow_the_data_and_mistakes_are_named() -> None:
    assert fitted_head("oriented", {"kind": "detr"}, 768, 4.0, None, 40) == {"kind": "detr"}
    small = fitted_head("detection", {"kind": "detr"}, 192, 2.0, None, 400)
    assert small == {"kind": "detr", "width": 64, "hidden": 256, "finest": 4, "queries": 600}
    with pytest.raises(ConfigError, match="32 channels can't be shared among 5 heads"):
        made("detection", heads=5)
    with pytest.raises(ConfigError, match="unknown key 'querys'"):
        made("detection", querys=5)
    assert DETRSettings().kind == "detr"


# Learning.


def planted(folder: Path, count: int = 4) -> LabelledSet:
    """Bars and boxes at all angles on noise: three an image, in files."""
    rng, items = np.random.default_rng(3), []
    for number in range(count):
        image = Image.fromarray(rng.integers(0, 90, (SIDE, SIDE, 3)).astype(np.uint8))
        objects = []
        for place, (x, y) in enumerate(itertools.islice(((18, 18), (46, 20), (30, 48)), 3)):
            name = "bar" if (place + number) % 2 else "box"
            sides = (22, 9) if name == "bar" else (15, 14)
            box = torch.tensor(
                [[x + rng.integers(-3, 4), y + rng.integers(-3, 4), *sides, rng.uniform(-1.5, 1.5)]]
            )
            quad = tuple(quads_of(box.float())[0].tolist())
            ImageDraw.Draw(image).polygon(quad, fill=(230, 60, 40) if name == "bar" else (50, 210, 90))
            hull = (min(quad[0::2]), min(quad[1::2]), max(quad[0::2]), max(quad[1::2]))
            objects.append(ObjectLabel(name, hull, quad=quad))  # type: ignore[arg-type]
        file = folder / f"{number}.png"
        image.save(file)
        items.append(
            LabelledImage(id=str(number), image=str(file), width=SIDE, height=SIDE, objects=tuple(objects))
        )
    return LabelledSet(name="planted", items=tuple(items), object_classes=("bar", "box"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("task", "kind"),
    [("detection", "vit"), ("detection", "cnn"), ("oriented", "rotary"), ("oriented", "cnn")],
)
def test_few_images_are_learned_and_leave_as_a_graph(task: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    labelled = planted(tmp_path)
    reader = LabelReader(labelled, "oriented" if task == "oriented" else "objects")
    model = made(task, kind, finest=4, width=48, noised=24, queries=40)
    samples = [reader.sample(item) for item in labelled.items]
    batch = LabelledSamples(reader, InputSize(), AugmentSettings.none()).pad(samples, ["0", "1", "2", "3"])
    counts, steps = model.loss_counts(batch), 150
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps) ** 0.5
        total = sum(model.loss_weights[name] * loss / counts[name] for name, loss in model(batch).items())
        optimizer.zero_grad()
        total.backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    scores = model.evaluate(labelled, TestSettings()).values
    print(task, kind, scores["AP50"], scores["AP"])
    assert scores["AP50"] is not None and scores["AP50"] > 0.9
    if kind == "cnn":
        return
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    model.input_size = InputSize()
    model.description |= {"input": model.input_size.model_dump(mode="json")}
    model.save_pretrained(tmp_path / "model")
    done = export_task(tmp_path / "model", tmp_path / "graph", GraphOptions(size=SIDE))
    assert done.outputs.largest["detections"] <= 1e-4 and done.outputs.rows >= 12
    import openvino

    core = openvino.Core()
    graph = core.read_model(tmp_path / "graph" / "model.onnx")
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = samples[0].image_CHW[None].float() / 255
    wanted, given = TaskGraph(model, (SIDE, SIDE))(image)[0].numpy(), compiled(image.numpy())[0]
    sure = np.argsort(-wanted[0, 4:6].max(0))[:3]
    found = np.argsort(-given[0, 4:6].max(0))[:3]
    assert np.abs(given[0][:6, found] - wanted[0][:6, sure]).max() / SIDE <= 1e-3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """The EMA's weights of four steps are those of two and two; what is drawn for noised objects comes back."""
    config = FinetuneConfig.model_validate(
        {
            "task": "oriented",
            "backbone": {
                "init": "timm:vit_small_patch16_dinov3",
                "arguments": {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8},
            },
            "head": HEAD,
            "neck": {"options": {"channels": 32}},
            "data": {
                "root": "port",
                "format": "scenes",
                "options": {"count": 12, "size": SIDE, "val": 0.25, "test": 0.25},
                "global_batch": 4,
            },
            "train": {
                "steps": 4,
                "save_every": 2,
                "device": "cpu",
                "threads": 1,
                "val_every": 0,
                "keep_last": 5,
            },
        }
    )
    quiet = Console(quiet=True)
    run_finetune(config, tmp_path / "run", console=quiet)
    wanted = load_file(tmp_path / "run" / "model" / "model.safetensors")
    shutil.rmtree(checkpoint.folder(tmp_path / "run", 4))
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "scores.json").unlink()
    run_finetune(config, tmp_path / "run", resume=True, console=quiet)
    again = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert wanted.keys() == again.keys()
    assert all(torch.equal(wanted[name], again[name]) for name in wanted)
