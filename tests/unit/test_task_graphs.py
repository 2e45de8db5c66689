"""Task models of fixed shapes: the same answers as the models', before any exporter has seen them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.ops import batched_nms

from vitp.checkpoints.graphs import GraphKind
from vitp.core.errors import CheckpointError, ConfigError, DataError
from vitp.deployment.comparison import compared_outputs, scores_of_graph
from vitp.deployment.export import GraphOptions, contract_for, export_task
from vitp.deployment.images import graph_size
from vitp.deployment.qgis import qgis_metadata, qgis_obstacle
from vitp.deployment.summary import parsed_batch
from vitp.inference.pictures import read_picture
from vitp.models.heads.fpn import RegionPool
from vitp.models.rotated.roi_align import MultiScaleRotatedRoIAlign
from vitp.models.static.atlas import StaticRegionPool, StaticRotatedPool
from vitp.models.static.suppression import kept_boxes, kept_of_levels
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.runtime.graph_model import GraphModel
from vitp.tasks.base import InputSize, TaskModel, TestSettings
from vitp.tasks.build import NeckSettings, build_model
from vitp.tasks.data import label_reader
from vitp.tasks.graphs import TaskGraph
from vitp.tasks.predict import predict_images, predictions_of
from vitp.tasks.seen import larger_note

SIZE = (48, 64)
TASKS = ("classification", "segmentation", "change", "detection", "instance", "oriented")


def made(task: str, neck: str = "simple", **head: Any) -> TaskModel:
    """Return a random model whose last layers are loud enough to find things."""
    torch.manual_seed(0)
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    tower = VisionTower(VisionSettings(arguments=arguments, image_size=40))
    if task in ("detection", "instance", "oriented"):
        box = {"hidden": 32, "detections": 30, "canonical_size": 56, **head.pop("box", {})}
        head = {
            "width": 32,
            "proposals": {"keep": [60, 60], "keep_before": [60, 60], "anchor_scales": [2]},
            "box": box,
            **({"mask": {"layers": 1, "width": 16, "pool_size": 7}} if task == "instance" else {}),
            **head,
        }
    options = {"simple": {"channels": 32}, "adapter": {"prior_width": 32}}.get(neck, {})
    settings = None if task == "classification" else NeckSettings(kind=neck, options=options)  # type: ignore[arg-type]
    model = build_model(task, tower, ["a", "b", "c"], settings, head).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(
                word in name for word in ("score", "classify", "cls_logits", "bbox_pred", "move", "gamma")
            ):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.description = {"head": head}
    return model


def graph_of(model: TaskModel, size: tuple[int, int] = SIZE) -> GraphModel:
    """Return a model's graph as torch computes it."""
    graph = TaskGraph(model, size)

    def run(image_BChw: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            outputs = graph(torch.from_numpy(image_BChw))
        return {name: value.numpy() for name, value in zip(graph.outputs, outputs, strict=True)}

    return GraphModel(contract_for(model, TestSettings(), size, None), run)


@pytest.mark.parametrize(
    ("task", "neck", "head"),
    [
        *((task, "simple", {}) for task in TASKS),
        ("classification", "simple", {"multi_label": True}),
        ("segmentation", "adapter", {"kind": "fpn", "width": 32}),
        ("detection", "simple", {"box": {"kind": "faster", "aligned": False}}),
    ],
)
def test_graph_and_runtime_say_what_the_model_says(task: str, neck: str, head: dict[str, Any]) -> None:
    model, graph = made(task, neck, **head), None
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (3, *SIZE), dtype=np.uint8) for _ in range(2)]
    later = [rng.integers(0, 256, (3, *SIZE), dtype=np.uint8) for _ in range(2)] if task == "change" else None
    second = None if later is None else [torch.from_numpy(image) for image in later]
    wanted = predict_images(model, [torch.from_numpy(image) for image in images], None, second)
    graph = graph_of(model)
    found = 0
    for number, prediction in enumerate(wanted):
        given = graph.predict(images[number], None if later is None else later[number])
        if prediction.probabilities_C is not None:
            assert given.probabilities_K == pytest.approx(prediction.probabilities_C.numpy(), abs=1e-6)
            continue
        if prediction.semantic_HW is not None:
            assert given.classes_HW is not None
            assert (given.classes_HW == prediction.semantic_HW.numpy()).mean() > 0.999
            continue
        objects = given.objects
        assert objects is not None
        assert prediction.scores_N is not None
        assert objects.scores_N == pytest.approx(prediction.scores_N.numpy(), abs=1e-5)
        assert objects.labels_N.tolist() == present(prediction.labels_N).tolist()
        assert np.abs(objects.boxes_N4 - present(prediction.boxes_N4).numpy()).max() < 1e-2
        if task == "oriented":
            assert objects.quads_N8 is not None
            assert np.abs(objects.quads_N8 - present(prediction.quads_N8).numpy()).max() < 1e-2
        if task == "instance":
            assert objects.masks is not None
            assert (np.stack(objects.masks) != present(prediction.masks_NHW).numpy()).mean() < 1e-3
        found += len(objects.scores_N)
    assert found > 10 or task in ("classification", "segmentation", "change")


@pytest.mark.parametrize(
    ("task", "trained", "window"),
    [
        ("segmentation", {"longest": 40, "scale": 1.0}, None),
        ("detection", {"longest": 40, "scale": 0.8}, None),
        ("change", {"longest": 60, "scale": 0.5}, 40),
        ("detection", None, 40),
        ("detection", None, None),  # seen as a whole, as it is no four times as large
        ("classification", {"longest": 40, "scale": 1.0}, None),
    ],
)
def test_pictures_larger_than_in_training_are_seen_as_by_vitp_predict(
    tmp_path: Path, task: str, trained: dict[str, Any] | None, window: int | None
) -> None:
    model = made(task)
    model.input_size = InputSize(mode="fixed", size=40)
    model.description |= {} if trained is None else {"trained": trained}
    settings = TestSettings(window=window, overlap=0.25)
    graph = GraphModel(contract_for(model, settings, (40, 40), None), graph_of(model, (40, 40)).run)
    seen = 0
    for number, (width, height) in enumerate([(150, 110), (47, 42), (90, 86)]):
        path = tmp_path / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        dates = [str(path)] * (2 if task == "change" else 1)
        picture = read_picture(model, dates, settings)
        later = None if picture.later_CHW is None else [picture.later_CHW]
        (wanted,) = predict_images(model, [picture.planes_CHW], picture.settings, later)
        given = graph.predict_file(*dates)
        seen += len(graph._views((height, width)))
        if task == "classification":
            assert given.probabilities_K == pytest.approx(present(wanted.probabilities_C).numpy(), abs=1e-5)
        elif task != "detection":
            assert (present(torch.from_numpy(given.classes_HW)) == wanted.semantic_HW).float().mean() > 0.999
        else:
            assert given.objects is not None
            assert given.objects.scores_N == pytest.approx(present(wanted.scores_N).numpy(), abs=1e-5)
            assert np.abs(given.objects.boxes_N4 - present(wanted.boxes_N4).numpy()).max() < 1e-2
    assert seen > 3 or task == "classification" or (trained, window) == (None, None)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_what_is_scored_is_what_vitp_predict_writes(tmp_path: Path, task: str) -> None:
    """Of images of training's size and of larger ones, of the model and of its graph."""
    model = made(task)
    model.input_size = InputSize(mode="fixed", size=40)
    model.description["trained"] = {"longest": 40, "scale": 0.8}
    settings, items = TestSettings(overlap=0.25, batch_size=2), []
    for number, (width, height) in enumerate([(40, 40), (150, 110), (52, 42), (90, 86)]):
        path = tmp_path / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        mask_HW = np.zeros((height, width), np.uint8)
        box = ObjectLabel("a", (3, 4, 30, 35))
        items.append(
            LabelledImage(
                str(number), str(path), width, height, "test", objects=(box,), semantic=mask_HW.copy
            )
        )
    labelled = LabelledSet("set", items, ("a", "b", "c"), semantic_classes=("a", "b", "c"))
    reader = label_reader(model, labelled, "objects" if task == "detection" else "semantic", settings)
    for item, _, scored in predictions_of(model, reader, settings):
        picture = read_picture(model, [item.image], settings)
        (written,) = predict_images(model, [picture.planes_CHW], picture.settings)
        for name in ("semantic_HW", "boxes_N4", "scores_N", "labels_N"):
            one, other = getattr(scored, name), getattr(written, name)
            assert (one is None and other is None) or torch.allclose(one.float(), other.float(), atol=1e-4)
    assert larger_note(model, settings, labelled) == (
        "2 of 4 images are larger than those of training, and seen through windows of 40 px, the side of the backbone "
        "(training images were up to 32 px long, seen whole), at 0.8 times its own resolution, as in training; "
        "-s window=… and -s resize=… choose otherwise",
    )
    own = model.evaluate(labelled, settings)
    graph = GraphModel(contract_for(model, settings, (40, 40), None), graph_of(model, (40, 40)).run)
    assert scores_of_graph(model, graph, labelled, settings).values == pytest.approx(
        own.values, abs=1e-3, nan_ok=True
    )


def present(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value


def crowded_boxes(count: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    centre = torch.rand(batch, count, 2, generator=generator) * 30
    side = torch.rand(batch, count, 2, generator=generator) * 15 + 8
    return torch.cat([centre, centre + side], dim=2)


@pytest.mark.parametrize("iou", [0.1, 0.5, 0.7])
def test_suppression_in_rounds_is_the_loops(iou: float) -> None:
    boxes = crowded_boxes(300)
    labels = torch.arange(300).remainder(3).expand(2, -1)
    valid = (torch.arange(300) % 7 != 0).float().expand(2, -1)
    given = kept_boxes(boxes, valid, iou, labels.float())
    scores = torch.linspace(1, 0, 300)
    for image in range(2):
        there = torch.nonzero(valid[image])[:, 0]
        kept = there[batched_nms(boxes[image][there], scores[there], labels[image][there], iou)]
        assert sorted(kept.tolist()) == torch.nonzero(given[image])[:, 0].tolist()


def test_levels_are_suppressed_each_for_itself() -> None:
    levels = [crowded_boxes(90), crowded_boxes(40)]
    valid = [torch.ones(level.shape[:2]) for level in levels]
    for level, given in zip(levels, kept_of_levels(levels, valid, 0.5), strict=True):
        assert torch.equal(given, kept_boxes(level, torch.ones(level.shape[:2]), 0.5))


def levels_of(sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize("aligned", [True, False])
def test_regions_are_read_from_their_level(aligned: bool) -> None:
    sizes = [(24, 32), (12, 16), (6, 8)]
    pool = RegionPool((4, 8, 16), 7, canonical_size=40, aligned=aligned)
    generator = torch.Generator().manual_seed(2)
    side = torch.tensor([128.0, 96.0])
    corners = torch.rand(2, 30, 2, 2, generator=generator) * side
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=2)
    boxes[:, 0] = torch.tensor([0.0, 0.0, 128.0, 96.0])
    if aligned:  # else boxes smaller than a cell reach beyond the map, where an atlas goes on
        boxes[:, 1] = torch.tensor([126.0, 90.0, 128.0, 96.0])
    maps = levels_of(sizes)
    assert set(pool.levels(boxes.flatten(0, 1)).tolist()) == {0, 1, 2}
    given = StaticRegionPool(pool, sizes)(maps, boxes)
    assert torch.allclose(given, pool(maps, list(boxes)), atol=1e-4)


def test_rotated_regions_are_read_from_their_level() -> None:
    sizes = [(24, 32), (12, 16), (6, 8)]
    pool = MultiScaleRotatedRoIAlign((4, 8, 16), 7, 2, canonical_size=40)
    generator = torch.Generator().manual_seed(2)
    boxes = torch.rand(2, 30, 5, generator=generator) * torch.tensor([140.0, 110.0, 60.0, 60.0, 3.0])
    boxes = boxes - torch.tensor([6.0, 6.0, -2.0, -2.0, 1.5])  # some reach far beyond the border
    maps = levels_of(sizes)
    image = torch.arange(2.0).repeat_interleave(30)[:, None]
    wanted = pool(maps, torch.cat([image, boxes.flatten(0, 1)], dim=1))
    assert torch.allclose(StaticRotatedPool(pool, sizes)(maps, boxes), wanted, atol=1e-4)


class Rows(nn.Module):
    """A graph that answers with one table."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.table[None],)


def rows_beside(
    task: str, ours: list[list[float]], theirs: list[list[float]], kind: GraphKind = "onnx"
) -> Any:
    model = made(task)
    contract = contract_for(model, TestSettings(), (64, 64), 1)
    wanted, given = (torch.tensor(rows).T for rows in (ours, theirs))
    image = np.zeros((1, 3, 64, 64), np.float32)
    run = lambda _: {"detections": given[None].numpy()}  # noqa: E731
    return compared_outputs(contract, Rows(wanted), ("detections",), run, [image], "noise", kind)


def test_rows_are_compared_whatever_their_order() -> None:
    first, second, nothing = [10, 10, 4, 6, 0.9, 0, 0], [30, 20, 8, 8, 0, 0.5, 0], [1, 1, 0, 0, 0, 0, 0]
    same = rows_beside("detection", [first, second, nothing], [second, first, [9, 9, 9, 9, 0, 0, 0]])
    assert (same.largest["detections"], same.rows, same.lonely) == (0, 2, 0)
    same.check("graph")
    moved = rows_beside("detection", [first, second], [first, [30.1, 20, 8, 8, 0, 0.5, 0]])
    assert moved.largest["detections"] == pytest.approx(0.1 / 64, rel=1e-3)
    with pytest.raises(
        CheckpointError, match=r"its outputs are off \(detections by 1.6e-03; 1e-04 is allowed\)"
    ):
        moved.check("graph")
    lost = rows_beside("detection", [first, second], [first, nothing])
    with pytest.raises(CheckpointError, match=r"50\.0% of its 2 rows have no partner"):
        lost.check("graph")
    broken = rows_beside("detection", [first], [[np.nan] * 7])
    with pytest.raises(CheckpointError, match="detections by nan"):
        broken.check("graph")


def test_a_square_turned_by_a_quarter_is_the_same_square() -> None:
    one = [10.0, 12.0, 8.0, 8.0, 0.9, 0, 0, -np.pi / 2 + 1e-6]
    other = [10.0, 12.0, 8.0, 8.0, 0.9, 0, 0, 0.0]
    assert rows_beside("oriented", [one], [other]).largest["detections"] < 1e-5
    longer = [10.0, 12.0, 8.0, 4.0, 0.9, 0, 0, -np.pi / 2]
    turned = [10.0, 12.0, 8.0, 4.0, 0.9, 0, 0, 0.0]
    assert rows_beside("oriented", [longer], [turned]).lonely == 1


def test_what_qgis_reads() -> None:
    model = made("segmentation")
    contract = contract_for(model, TestSettings(overlap=0.2), (64, 64), 1)
    values = {key: json.loads(text) for key, text in qgis_metadata(contract, 30).items()}
    assert values["model_type"] == "Segmentor"
    assert values["class_names"] == {"0": "a", "1": "b", "2": "c"}
    assert (values["tiles_size"], values["tile_size"], values["tiles_overlap"]) == (64, 64, 20)
    assert (values["resolution"], values["standardization_std"]) == (30, [1.0, 1.0, 1.0])
    types = {
        "detection": "YOLO_Ultralytics",
        "instance": "YOLO_Ultralytics",
        "oriented": "YOLO_Ultralytics_obb",
    }
    for task, kind in types.items():
        found = qgis_metadata(contract_for(made(task), TestSettings(), (64, 64), 1))
        values = {key: json.loads(text) for key, text in found.items()}
        assert (values["model_type"], values["det_type"], values["det_conf"]) == ("Detector", kind, 0.3)
        assert values["det_iou_thresh"] == (0.1 if task == "oriented" else 0.5)
        assert "resolution" not in values
    for changed in ({"size": (64, 32)}, {"batch": None}, {"task": "classification"}):
        other = type(contract)(**{**vars(contract), **changed})
        assert qgis_obstacle(other)
        assert qgis_metadata(other) == {}


def test_the_size_is_what_the_model_sees() -> None:
    model = made("segmentation")
    model.input_size = InputSize(mode="fixed", size=96)
    assert graph_size(None, model, TestSettings(), None)[0] == (96, 96)
    assert graph_size(None, model, TestSettings(window=64), None)[0] == (64, 64)
    assert graph_size("48x64", model, TestSettings(), None)[0] == (48, 64)
    assert graph_size(80, model, TestSettings(), None)[0] == (80, 80)
    model.input_size = InputSize()
    with pytest.raises(ConfigError, match="sees images of any size"):
        graph_size(None, model, TestSettings(), None)
    for text in ("7", "big", "64x", "1x2x3", "9000"):
        with pytest.raises(ConfigError, match="is no size"):
            graph_size(text, model, TestSettings(), None)


def test_images_that_do_not_fit_are_refused_before_the_graph_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}
    tower = VisionTower(VisionSettings(arguments=arguments, image_size=40))
    build_model("classification", tower, ["a", "b", "c"]).save_pretrained(tmp_path / "model")
    for name in ("a", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(4):
            grey = np.full((40, 40, 3), 20 * number, np.uint8)
            Image.fromarray(grey).save(tmp_path / "set" / name / f"{name}{number}.png")

    def never(*_: object) -> TaskGraph:
        raise AssertionError("the graph was made")

    monkeypatch.setattr("vitp.deployment.export._graph", never)
    options = GraphOptions(kind="torch-export", size=40, check=tmp_path / "set")
    with pytest.raises(DataError, match='has the class "dog", the model has a, b, c'):
        export_task(tmp_path / "model", tmp_path / "out", options)
    (tmp_path / "set" / "dog").rename(tmp_path / "set" / "b")
    with pytest.raises(AssertionError, match="the graph was made"):  # a set that fits goes on
        export_task(tmp_path / "model", tmp_path / "out", options)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    with pytest.raises(ConfigError, match="8 bits need training images"):
        export_task(tmp_path / "model", tmp_path / "out", GraphOptions(size=40, int8=True))
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    assert (parsed_batch("dynamic"), parsed_batch("4")) == (None, 4)
    for text in ("0", "-1", "any", "5000"):
        with pytest.raises(ConfigError, match="is no batch"):
            parsed_batch(text)
    with pytest.raises(ConfigError, match="8 bits are written as ONNX"):
        export_task("runs/x", tmp_path / "out", GraphOptions(kind="torch-export", int8=True))
    assert not (tmp_path / "out").exists()
