"""Panoptic segmentation: COCO's sets, truth and merge of segments, files of predictions, graphs, and that it learns."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from transformers.models.eomt.image_processing_eomt import compute_segments, remove_low_and_no_objects

from tests.unit.test_mask_queries import tower
from tests.unit.test_task_graphs import graph_of
from tests.unit.test_task_runs import config
from vitp.core.errors import ConfigError, DataError
from vitp.data.augment import AugmentSettings
from vitp.data.formats import detect_format, read_labels
from vitp.data.formats.vitp_labels import Roots, write_compiled
from vitp.deployment.export import GraphOptions, export_task
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.loop import Trainer
from vitp.inference.prediction_files import predict_files
from vitp.metrics.results import Target
from vitp.models.timm_backbone import timm_backbone
from vitp.records.labels import IGNORE, LabelledSet
from vitp.runs.finetune import build_run
from vitp.runtime.graph_model import GraphModel, open_graph
from vitp.runtime.segments import merged_segments
from vitp.scenes import load_scene, scene_set
from vitp.scenes.export import write_scenes
from vitp.tasks.base import TestSettings, check_windows
from vitp.tasks.batches import task_batches
from vitp.tasks.build import build_model
from vitp.tasks.data import LabelReader
from vitp.tasks.panoptic import QueryPanoptic, true_segments
from vitp.tasks.predict import predict_images

THINGS, STUFF = ("ship", "car"), ("sea", "land")
CLASSES = (*STUFF, *THINGS)


def small_set(root: Path, change: Any = lambda content: None, pixels: Any = lambda ids: ids) -> Path:
    """Two images of 8 × 6 px: sea (1), land (2), two ships (3 and 70000) and void in one column."""
    ids_HW = np.full((6, 8), 1, np.int64)
    ids_HW[3:] = 2
    ids_HW[1:3, 1:3], ids_HW[1:3, 4:6], ids_HW[:, 7] = 3, 70_000, 0
    rows = [
        {"id": ident, "category_id": category, "iscrowd": 0}
        for ident, category in ((1, 1), (2, 2), (3, 3), (70_000, 3))
    ]
    categories = [
        {"id": n, "name": name, "isthing": int(name in THINGS)} for n, name in enumerate(CLASSES, 1)
    ]
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 8, "height": 6} for n in (1, 2)],
        "annotations": [
            {"image_id": n, "file_name": f"{n}.png", "segments_info": [dict(row) for row in rows]}
            for n in (1, 2)
        ],
        "categories": categories,
    }
    change(content)
    folder = root / "annotations" / "panoptic_train"
    folder.mkdir(parents=True)
    (root / "images").mkdir()
    for number in (1, 2):
        own_HW = pixels(ids_HW.copy()) if number == 1 else ids_HW
        colours = np.stack([own_HW & 255, own_HW >> 8 & 255, own_HW >> 16], -1).astype(np.uint8)
        Image.fromarray(colours).save(folder / f"{number}.png")
        photo = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(photo).save(root / "images" / f"{number}.png")
    (root / "annotations" / "panoptic_train.json").write_text(json.dumps(content))
    return root


def test_segments_become_objects_and_the_png_a_mask(tmp_path: Path) -> None:
    def crowd(content: Any) -> None:
        content["annotations"][0]["segments_info"][3]["iscrowd"] = 1

    root = small_set(tmp_path / "set", crowd)
    assert detect_format(root) == detect_format(root / "annotations" / "panoptic_train.json") == "panoptic"
    found = read_labels("auto", root, val=0.0, test=0.0)
    assert found.object_classes == THINGS and found.semantic_classes == CLASSES and not found.findings
    said = " ".join(found.understood)
    assert "2 classes of things: ship, car" in said and "2 classes of stuff: sea, land" in said
    assert "crowds: 1 segments" in said and "void: of pixels of id 0, in 2 images" in said
    first, second = found.items
    assert [label.box for label in first.objects or ()] == [(1, 1, 3, 3), (4, 1, 6, 3)]
    assert [label.difficult for label in first.objects or ()] == [False, True]
    assert first.semantic is not None
    wanted_HW = np.zeros((6, 8), np.uint8)
    wanted_HW[3:], wanted_HW[1:3, 1:3], wanted_HW[1:3, 4:6], wanted_HW[:, 7] = 1, 2, 2, IGNORE
    assert (first.semantic() == wanted_HW).all()
    # The labels of a compiled set are the same, and the truth of them leaves the crowd out.
    write_compiled(found, Roots(tmp_path / "compiled", root, root))
    again = read_labels("vitp", tmp_path / "compiled")
    assert again.items[0].objects == first.objects and (again.items[0].semantic() == wanted_HW).all()  # type: ignore[misc]
    reader = LabelReader(again, "panoptic")
    labels_S, masks_SHW = true_segments(reader.target(reader.sample(again.items[0])), (2, 3))
    assert (
        labels_S.tolist() == [2, 0, 1] and not masks_SHW[:, 1:3, 4:6].any() and not masks_SHW[:, :, 7].any()
    )
    other = LabelReader(found, "panoptic")
    assert len(true_segments(other.target(other.sample(second)), (2, 3))[0]) == 4
    things = read_labels("panoptic", root, things="car,land", val=0.0, test=0.0)
    assert things.object_classes == ("land", "car")


def test_generated_scenes_are_what_they_were(tmp_path: Path) -> None:
    scenes = scene_set("general", seed=3, count=2, size=48)
    write_scenes(scenes, tmp_path / "set", layout="panoptic")
    found = read_labels("auto", tmp_path / "set", val=0.0, test=0.0)
    for item, scene in zip(found.items, (load_scene(one.image) for one in scenes.items), strict=True):
        assert item.semantic is not None and (item.semantic() == scene.semantic_HW).all()
        reader = LabelReader(found, "panoptic")
        target = reader.target(reader.sample(item))
        assert target.masks_NHW is not None
        masks_NHW = target.masks_NHW.numpy() > 0
        numbers = [np.unique(scene.instance_HW[mask_HW]).tolist() for mask_HW in masks_NHW]
        assert all(len(own) == 1 for own in numbers) and (masks_NHW.any(0) == (scene.instance_HW > 0)).all()


def _annotation(**values: Any) -> Any:
    return lambda content: content["annotations"][0].update(values)


def _segment(number: int, **values: Any) -> Any:
    return lambda content: content["annotations"][0]["segments_info"][number].update(values)


def _unnamed(content: Any) -> None:
    del content["annotations"][0]["segments_info"][3]


def _extra(content: Any) -> None:
    content["annotations"][0]["segments_info"].append({"id": 9, "category_id": 3})


FINDINGS: list[tuple[Any, Any, str, str]] = [
    (_annotation(file_name="7.png"), None, r"annotations\[0\]: its PNG 7.png is missing", "none"),
    (None, lambda ids: ids[:4], r"panoptic_train/1.png has 8×4 px, the image 8×6", "none"),
    (
        _unnamed,
        None,
        r"no segment is called 70000, as pixels of .*1.png are; its place is ignored",
        "ignored",
    ),
    (_extra, None, r"segments_info\[4\]: segment 9 \(ship\) has no pixel in", "map"),
    (
        _segment(3, category_id=77),
        None,
        r"segments_info\[3\]: unknown class number 77; its place is",
        "ignored",
    ),
    (_segment(3, id="x"), None, r"segments_info\[3\]: id x is none of a segment", "map"),
    (_annotation(segments_info=None), None, "has no list segments_info", "none"),
    (_annotation(segments_info=[]), None, "names no segment; all of its image is void", "none"),
]


def test_what_cannot_be_used_is_a_finding_and_never_nothing(tmp_path: Path) -> None:
    for number, (change, pixels, said, left) in enumerate(FINDINGS):
        root = small_set(tmp_path / str(number), change or (lambda _: None), pixels or (lambda ids: ids))
        found = read_labels("panoptic", root, val=0.0, test=0.0)
        assert any(re.search(said, line) for line in found.findings), (said, found.findings)
        items = {Path(item.image).name: item for item in found.items}
        assert ("1.png" in items) == (left != "none"), said
        if left == "ignored":
            assert len(items["1.png"].ignored) == 1 and len(items["1.png"].objects or ()) == 1
            assert (
                items["1.png"].semantic is not None and (items["1.png"].semantic()[1:3, 4:6] == IGNORE).all()
            )
        elif left == "map":  # where one of its objects lies isn't known
            assert items["1.png"].objects is None and items["1.png"].semantic is not None


REFUSED: list[tuple[Any, str]] = [
    (
        lambda content: content["categories"][1].pop("isthing"),
        "categories\\[1\\].*a thing .single objects. or stuff",
    ),
    (_segment(3, id=3), "names segment 3 twice"),
    (
        lambda content: content["annotations"].append(dict(content["annotations"][0])),
        "second annotation of 1.png",
    ),
]


def test_what_has_two_readings_is_refused(tmp_path: Path) -> None:
    for number, (change, said) in enumerate(REFUSED):
        with pytest.raises(DataError, match=said):
            read_labels("panoptic", small_set(tmp_path / str(number), change))
    root = small_set(tmp_path / "plain")
    with pytest.raises(DataError, match="--format panoptic"):
        read_labels("coco", root)
    with pytest.raises(DataError, match='no class "cars"'):
        read_labels("panoptic", root, things="cars")
    (root / "annotations" / "panoptic_train").rename(root / "elsewhere")
    with pytest.raises(DataError, match="-o panoptic=FOLDER"):
        read_labels("panoptic", root)
    assert len(read_labels("panoptic", root, panoptic="elsewhere", val=0.0, test=0.0)) == 2


def test_truth_is_of_one_segment_a_pixel() -> None:
    semantic_HW = torch.tensor([[0, 0, 0, 2, 2, IGNORE]], dtype=torch.uint8)
    masks_NHW = torch.tensor([[[0, 1, 1, 1, 0, 0]], [[0, 0, 1, 0, 0, 0]]], dtype=torch.uint8)
    target = Target(labels_N=torch.tensor([2, 3]), masks_NHW=masks_NHW, semantic_HW=semantic_HW)
    labels_S, masks_SHW = true_segments(target, (2, 3))
    # The smaller object lies above, both above stuff; a pixel of ships that no object holds is unknown.
    assert labels_S.tolist() == [2, 3, 0]
    assert masks_SHW[:, 0].int().tolist() == [[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    labels_S, masks_SHW = true_segments(target, (3,))  # ships as stuff
    assert labels_S.tolist() == [3, 0, 2] and masks_SHW[2, 0].int().tolist() == [0, 1, 0, 1, 1, 0]
    hidden = torch.tensor([[[1, 1, 0, 0, 0, 0]]], dtype=torch.uint8)
    ignored = Target(**{**vars(target), "ignored_MHW": hidden, "difficult_N": torch.tensor([False, True])})
    labels_S, masks_SHW = true_segments(ignored, (2, 3))
    assert labels_S.tolist() == [2] and masks_SHW[0, 0].int().tolist() == [0, 1, 0, 1, 0, 0]


def test_the_merge_is_the_library_s() -> None:
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        logits_QC = 4 * torch.randn(12, 5, generator=generator)
        small = 4 * torch.randn(12, 4, 4, generator=generator)
        masks_QHW = torch.nn.functional.interpolate(small[None], (16, 20), mode="bilinear")[0]
        shares_QC = logits_QC.softmax(1)
        scores_Q, labels_Q = shares_QC.max(1)
        kept = remove_low_and_no_objects(masks_QHW, scores_Q, labels_Q, 0.5, 4)
        wanted_HW, rows = compute_segments(*kept, stuff_classes={0, 1}, overlap_mask_area_threshold=0.3)
        found = merged_segments(
            shares_QC[:, :-1].numpy(),
            lambda query, masks=masks_QHW.sigmoid().numpy(): masks[query],  # type: ignore[misc]
            (16, 20),
            things={2, 3},
            least_score=0.5,
            least_share=0.3,
        )
        assert sorted(found.labels_S.tolist()) == sorted(row["label_id"] for row in rows)
        theirs = sorted((row["label_id"], (wanted_HW == row["id"]).numpy().tobytes()) for row in rows)
        ours = sorted(
            (int(label), mask.tobytes()) for label, mask in zip(found.labels_S, found.masks_SHW, strict=True)
        )
        assert ours == theirs and found.masks_SHW.sum(0).max(initial=0) <= 1


def model_of(kind: str = "learned", **head: Any) -> Any:
    head = {
        "queries": 12,
        "blocks": 2,
        "points": 64,
        "things": THINGS,
        "least_score": 0.0,
        "least_share": 0.0,
        **head,
    }
    model = build_model("panoptic", tower(kind), CLASSES, None, head).eval()
    with torch.no_grad():
        model.head.to_class.weight.mul_(20)  # loud enough to find things
    return model


def agree(graph: GraphModel, image_CHW: Tensor, wanted: Any) -> None:
    """Hold the segments of a graph's runtime to the model's; pixels at their borders may differ by rounding."""
    objects = graph.predict(image_CHW.numpy()).objects
    assert (
        objects is not None and objects.masks is not None and len(objects.masks) == len(wanted.labels_N) > 1
    )
    assert objects.labels_N.tolist() == wanted.labels_N.tolist()
    assert objects.scores_N == pytest.approx(wanted.scores_N.numpy(), abs=1e-4)
    assert (np.stack(objects.masks) != wanted.masks_NHW.numpy()).mean() < 1e-3


def test_graph_and_runtime_say_what_the_model_says() -> None:
    model = model_of("rotary")
    image_CHW = torch.randint(
        0, 256, (3, 37, 50), generator=torch.Generator().manual_seed(2), dtype=torch.uint8
    )
    graph = graph_of(model, (37, 50))  # no whole patches
    (wanted,) = predict_images(model, [image_CHW])
    assert wanted.masks_NHW.shape[1:] == (37, 50) and int(wanted.masks_NHW.sum(0).max()) == 1
    assert wanted.things_N.tolist() == [CLASSES[label] in THINGS for label in wanted.labels_N.tolist()]
    agree(graph, image_CHW, wanted)
    assert graph.contract.things == THINGS and graph.contract.mask_patch == 8
    with pytest.raises(DataError, match="seen at 60×37 px, and the graph at most at 50×37"):
        graph.predict(np.zeros((3, 37, 60), np.uint8))


def test_what_it_needs_is_said(tmp_path: Path) -> None:
    for asked in ({"window": 32}, {"flip": True}, {"scales": (1.0, 2.0)}, {"tta": "d4"}):
        with pytest.raises(ConfigError, match="aren't merged over several looks"):
            predict_images(model_of(), [torch.zeros(3, 32, 32, dtype=torch.uint8)], TestSettings(**asked))
    with pytest.raises(ConfigError, match="are read by windows"):
        check_windows(model_of())
    with pytest.raises(ConfigError, match="a TimmStages has none"):
        build_model("panoptic", timm_backbone("resnet18"), CLASSES, None, {"things": []})
    with pytest.raises(ConfigError, match="which classes are single objects"):
        build_model("panoptic", tower(), CLASSES)
    with pytest.raises(ConfigError, match='no class "ships"'):
        build_model("panoptic", tower(), CLASSES, None, {"things": ["ships"]})
    root = small_set(tmp_path / "set")
    found = read_labels("panoptic", root, things="car", val=0.0, test=0.0)
    with pytest.raises(DataError, match='"ship" is stuff in it'):
        model_of().evaluate(found, TestSettings())


def test_predictions_are_coco_s_and_read_again(tmp_path: Path) -> None:
    root = small_set(tmp_path / "set")
    paths = sorted((root / "images").iterdir())
    done, left_out = predict_files(model_of(), paths, tmp_path / "found", TestSettings(score_threshold=0.0))
    assert done == 2 and not left_out
    images = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]
    for kind in ("auto", "panoptic"):
        with pytest.raises(DataError, match=r'panoptic\.json: \d+ of \d+ annotations have a "score"'):
            read_labels(kind, tmp_path / "found", val=0.0, test=0.0)
    again = read_labels("auto", tmp_path / "found", val=0.0, test=0.0, scores="labels")
    for item, wanted in zip(again.items, predict_images(model_of(), images), strict=True):
        things = [CLASSES[label] for label in wanted.labels_N.tolist() if CLASSES[label] in THINGS]
        assert sorted(label.category for label in item.objects or ()) == sorted(things)
        classes_HW = np.full((6, 8), IGNORE)
        for label, mask_HW in zip(wanted.labels_N.tolist(), wanted.masks_NHW.numpy(), strict=True):
            classes_HW[mask_HW] = label
        assert item.semantic is not None and (item.semantic() == classes_HW).all()
    drawn = np.array(Image.open(tmp_path / "found" / "pictures" / "1.png").convert("RGB"))
    assert (drawn != images[0].permute(1, 2, 0).numpy()).any()


@pytest.mark.parametrize("threshold", [0.0, 0.95])
def test_segments_are_scored_as_they_are_written(tmp_path: Path, threshold: float) -> None:
    root = small_set(tmp_path / "set")
    labelled = read_labels("panoptic", root, val=0.0, test=0.0)
    model, settings = model_of(), TestSettings(score_threshold=threshold)
    scores = model.evaluate(labelled, settings)
    predict_files(model, [item.image for item in labelled.items], tmp_path / "found", settings)
    written = json.loads((tmp_path / "found" / "panoptic.json").read_text())["annotations"]
    found = [(row["category_id"] - 1, row["score"]) for one in written for row in one["segments_info"]]
    assert all(score >= threshold for _, score in found) and len(found) > 1
    # No car is labelled: what is written of them is wrong, and without any the class has no score.
    cars = [score for label, score in found if CLASSES[label] == "car"]
    assert bool(cars) == (threshold == 0)
    assert scores.per_class["car"]["pq"] == (0.0 if cars else pytest.approx(math.nan, nan_ok=True))


def fitted(
    kind: str, steps: int, labelled: LabelledSet, folder: Path, resume: bool = False, end: int = 120
) -> Any:
    """Return a model that has seen two scenes so many times of `end`."""
    torch.manual_seed(0)
    head = {"queries": 24, "blocks": 2, "points": 512, "things": list(labelled.object_classes)}
    reader = LabelReader(labelled, "panoptic")
    model = build_model("panoptic", tower(kind, width=64), reader.classes, None, head)
    model.description |= {"input": {}, "test": {}}
    model.steps = end
    train = TrainSettings(steps=steps, save_every=end, device="cpu", num_workers=0, threads=1, log_every=50)
    optim = OptimSettings(lr=3e-3, weight_decay=0.01, warmup_ratio=0.1, schedule="constant", clip_norm=1.0)
    source = task_batches(reader, 2, 0, augmentation=AugmentSettings.none())
    Trainer(model, source, optim, train, folder, console=Console(quiet=True), resume=resume).train()
    return model


@pytest.mark.slow
@pytest.mark.timeout(1800)  # some seconds of computing, which a loaded machine stretches
def test_two_scenes_are_learned_and_exported(tmp_path: Path) -> None:
    labelled = scene_set("general", seed=3, count=2, size=64)
    model = fitted("rotary", 120, labelled, tmp_path / "run")
    values = model.evaluate(labelled, TestSettings()).values
    print(values)
    assert values["pq"] > 0.9 and values["pq_things"] > 0.8 and values["pq_stuff"] > 0.9
    model.save_pretrained(tmp_path / "model")
    done = export_task(tmp_path / "model", tmp_path / "graph", GraphOptions(size=64, batch=None))
    assert done.outputs.images == 3 and max(done.outputs.largest.values()) < 1e-4
    graph = open_graph(tmp_path / "graph", threads=1)
    reader = LabelReader(labelled, "panoptic")
    images = [reader.sample(item).image_CHW for item in labelled.items]
    for image_CHW, wanted in zip(images, predict_images(model.eval(), images), strict=True):
        agree(graph, image_CHW, wanted)


@pytest.mark.slow
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    labelled = scene_set("general", seed=3, count=2, size=32)
    run = build_run(config(task="panoptic", head={"blocks": 1}))
    assert isinstance(run.model, QueryPanoptic) and run.model.settings.queries == 100
    assert set(run.model.things) == set(run.splits["train"].object_classes)
    whole = fitted("rotary", 4, labelled, tmp_path / "whole", end=4).state_dict()
    fitted("rotary", 2, labelled, tmp_path / "stopped", end=4)
    resumed = fitted("rotary", 4, labelled, tmp_path / "stopped", resume=True, end=4).state_dict()
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
