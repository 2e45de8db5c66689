"""What a graph's card says about its outputs, followed to the letter by other code, gives the model's objects."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from vitp.core.tensors import present
from vitp.deployment.card import contract_section
from vitp.deployment.export import contract_for
from vitp.models.vision import VisionSettings, VisionTower
from vitp.runtime.pixels import scaled_values
from vitp.tasks.base import InputSize, TaskModel, TestSettings
from vitp.tasks.build import NeckSettings, build_model
from vitp.tasks.graphs import TaskGraph
from vitp.tasks.predict import predict_images

SIZE = (40, 56)
DETR = {"kind": "detr", "width": 32, "queries": 12, "layers": 1, "noised": 0, "detections": 9}
RCNN: dict[str, Any] = {
    "width": 32,
    "proposals": {"keep": [60, 60], "keep_before": [60, 60], "anchor_scales": [2]},
    "box": {"hidden": 32, "detections": 20, "canonical_size": 56},
}


def made(task: str, head: dict[str, Any]) -> TaskModel:
    """Return a random model whose last layers are loud enough to find things."""
    torch.manual_seed(0)
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    tower = VisionTower(VisionSettings(arguments=arguments, image_size=40))
    neck = None if head.get("kind") == "eomt" else NeckSettings(options={"channels": 32})
    model = build_model(task, tower, ["a", "b", "c"], neck, head).eval()
    loud = ("score", "classify", "cls_logits", "bbox_pred", "move", "gamma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(word in name for word in loud):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def told(section: str, name: str) -> str:
    (row,) = [line for line in section.splitlines() if line.startswith(f"| {name} |")]
    return row


@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("detection", {**RCNN, "box": {**RCNN["box"], "kind": "faster"}}),
        ("detection", RCNN),
        ("detection", DETR),
        ("oriented", DETR),
    ],
)
def test_rows_become_objects_as_the_card_says(task: str, head: dict[str, Any]) -> None:
    model = made(task, head)
    image_CHW = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, *SIZE), dtype=np.uint8))
    section = contract_section(contract_for(model, TestSettings(), SIZE, None))
    words, output = told(section, "Objects"), told(section, "Output")
    least = float(re.search(r"score above ([\d.]+)", words)[1])  # type: ignore[index]
    most = int(re.search(r"the (\d+) surest", words)[1])  # type: ignore[index]
    overlap = re.search(r"overlap by more than ([\d.]+) the surer one stays", words)
    assert (overlap is None) == ("none is suppressed" in words) == (head is DETR)
    assert ("one row a query" in output) == (head is DETR) != ("before the suppression" in output)

    with torch.no_grad():
        table_RK = TaskGraph(model, SIZE)(image_CHW[None].float() / 255)[0][0].T
    scores_RC, (row, label) = table_RK[:, 4:7], torch.where(table_RK[:, 4:7] > least)
    score = scores_RC[row, label]
    if task == "oriented":
        boxes = [
            cv2.boxPoints(((cx, cy), (w, h), float(np.degrees(angle))))
            for cx, cy, w, h, angle in table_RK[row][:, [0, 1, 2, 3, -1]].tolist()
        ]
        corners = torch.from_numpy(np.array(boxes)).flatten(1)
        places = torch.stack([corners[:, 0::2].amin(1), corners[:, 1::2].amin(1)], 1)
        wanted = present(predict_images(model, [image_CHW])[0].quads_N8)
        theirs = torch.stack([wanted[:, 0::2].amin(1), wanted[:, 1::2].amin(1)], 1)
    else:
        low, high = table_RK[:, :2] - table_RK[:, 2:4] / 2, table_RK[:, :2] + table_RK[:, 2:4] / 2
        limits = torch.tensor([SIZE[1], SIZE[0]])
        places = torch.cat([low.clamp(min=0).minimum(limits), high.clamp(min=0).minimum(limits)], 1)[row]
        theirs = present(predict_images(model, [image_CHW])[0].boxes_N4)
    order = score.argsort(descending=True, stable=True)
    if overlap is not None:
        order = batched_nms(places, score, label, float(overlap[1]))
    kept = order[:most]
    (prediction,) = predict_images(model, [image_CHW])
    assert len(kept) >= 5
    assert score[kept].tolist() == pytest.approx(present(prediction.scores_N).tolist(), abs=1e-5)
    assert label[kept].tolist() == present(prediction.labels_N).tolist()
    assert float((places[kept] - theirs).abs().max()) < 1e-2


def test_queries_become_objects_as_the_card_says() -> None:
    model = made("instance", {"kind": "eomt", "queries": 8, "blocks": 1, "detections": 10})
    image_CHW = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, *SIZE), dtype=np.uint8))
    words = told(contract_section(contract_for(model, TestSettings(), SIZE, None)), "Objects")
    most = int(re.search(r"the (\d+) surest pairs", words)[1])  # type: ignore[index]
    graph = TaskGraph(model, SIZE)
    with torch.no_grad():
        outputs = graph(image_CHW[None].float() / 255)
    classes_QC, masks_Qhw = (
        dict(zip(graph.outputs, outputs, strict=True))[n][0] for n in ("classes", "masks")
    )
    logits_QHW = torch.nn.functional.interpolate(masks_Qhw[None], SIZE, mode="bilinear")[0]
    found = []
    for pair in classes_QC.flatten().argsort(descending=True)[:most].tolist():
        query, label = divmod(pair, 3)
        mask_HW = logits_QHW[query] > 0
        if mask_HW.any():
            within = float(logits_QHW[query][mask_HW].sigmoid().mean())
            found.append((float(classes_QC[query, label]) * within, label, int(mask_HW.sum())))
    found.sort(reverse=True)
    (prediction,) = predict_images(model, [image_CHW])
    assert len(found) > 3
    assert [row[0] for row in found] == pytest.approx(present(prediction.scores_N).tolist(), abs=1e-5)
    assert [row[1] for row in found] == present(prediction.labels_N).tolist()
    assert [row[2] for row in found] == present(prediction.masks_NHW).sum((1, 2)).tolist()


def test_windows_become_a_map_as_the_card_says() -> None:
    model = made("segmentation", {"kind": "fpn", "width": 32})
    settings = TestSettings(resize=InputSize(mode="none"), window=40, overlap=0.3)
    image_CHW = np.random.default_rng(3).integers(0, 256, (3, 61, 90), dtype=np.uint8)
    section = contract_section(contract_for(model, settings, (40, 40), None))
    step = int(re.search(r"begin each (\d+) px from 0", told(section, "Larger than the graph"))[1])  # type: ignore[index]
    merged = told(section, "Windows are merged")
    floor = float(re.search(r"max\(sin²\(π\(i \+ ½\) / n\), ([\d.]+)\)", merged)[1])  # type: ignore[index]
    graph, total_KHW = TaskGraph(model, (40, 40)), np.zeros((3, 61, 90))
    for y in [*range(0, 61 - 40, step), 61 - 40]:
        for x in [*range(0, 90 - 40, step), 90 - 40]:
            weights = []
            for start, length in ((y, 61), (x, 90)):
                weight = np.maximum(np.sin(np.pi * (np.arange(40) + 0.5) / 40) ** 2, floor)
                weight[: 20 if start == 0 else 0] = 1
                weight[20 if start + 40 == length else 40 :] = 1
                weights.append(weight)
            window = torch.from_numpy(image_CHW[None, :, y : y + 40, x : x + 40]).float() / 255
            with torch.no_grad():
                shares_Khw = graph(window)[0][0].numpy()
            total_KHW[:, y : y + 40, x : x + 40] += shares_Khw * np.outer(*weights)
    (prediction,) = predict_images(model, [torch.from_numpy(image_CHW)], settings)
    assert np.array_equal(total_KHW.argmax(0), present(prediction.semantic_HW).numpy())
    assert len(set(total_KHW.argmax(0).ravel())) > 1


def test_values_become_bytes_as_the_card_says() -> None:
    channel = {"band": "HV", "low": -123456.75, "high": 2345678.5, "transform": "linear", "number": None}
    tower = VisionTower(
        VisionSettings(arguments={"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8})
    )
    head = {"kind": "fpn", "width": 32}
    model = build_model("segmentation", tower, ["a", "b"], NeckSettings(options={"channels": 32}), head)
    contract = contract_for(model, TestSettings(), SIZE, None)
    section = contract_section(replace(contract, channels=(channel,)))
    assert "255 · (value − low) / (high − low), cut to 0…255 and rounded" in section
    low, high = map(float, re.search(r"\| HV \|  ?\| (\S+) \| (\S+) \|", section).groups())  # type: ignore[union-attr]
    values_1HW = np.linspace(-3e5, 3e6, 4000).reshape(1, 40, 100)
    values_1HW[0, 0, :3] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        bytes_1HW = np.rint(np.clip(255 * (values_1HW - low) / (high - low), 0, 255))
    bytes_1HW[~np.isfinite(values_1HW)] = 0
    assert np.array_equal(bytes_1HW, scaled_values(values_1HW, (channel,)))
