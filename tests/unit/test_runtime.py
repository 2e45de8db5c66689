"""The runtime of exported models, numpy alone, beside the torch code whose results it must give."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms

from vitp.core.errors import CheckpointError, ConfigError, DataError
from vitp.data.image_sample import resized
from vitp.deployment import card
from vitp.deployment.export import GraphOptions
from vitp.io.images import load_planes
from vitp.models.heads.mask import paste_masks
from vitp.models.rotated.boxes import long_edge_first, quads_of
from vitp.models.rotated.iou import paired_rotated_iou
from vitp.models.rotated.nms import rotated_nms
from vitp.records.channels import Channel, Channels
from vitp.runtime.__main__ import run_runtime
from vitp.runtime.boxes import corners_of, mask_in_image, overlaps_of_rotated, rectangles_of, suppressed
from vitp.runtime.contract import GraphContract, contract_of
from vitp.runtime.graph_model import GraphModel, GraphPrediction, open_graph
from vitp.runtime.pixels import read_planes, resized_maps, resized_planes, scaled_values
from vitp.runtime.views import window_weights
from vitp.tasks.windows import View, view_weights

BLOCKER = """
import sys
BLOCKED = {"torch", "torchvision", "transformers", "timm", "pydantic", "yaml", "scipy", "cv2", "safetensors"}
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Finder())
import vitp.runtime
import vitp.runtime.__main__
import vitp.runtime.graph_model
print("imported")
"""


def contract(**changes: Any) -> GraphContract:
    values: dict[str, Any] = {
        "task": "detection",
        "classes": ("a", "b"),
        "size": (32, 32),
        "batch": 1,
        "channels": None,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "resize": {"mode": "none", "size": None},
        "overlap": 0.25,
        "least_score": 0.05,
        "iou": 0.5,
        "most_objects": 10,
    }
    return GraphContract(**{**values, **changes})


def test_it_needs_neither_torch_nor_pydantic() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKER], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "imported", done.stderr


@pytest.mark.parametrize("size", [(64, 64), (20, 150), (300, 201), (97, 40)])
def test_resizing_is_that_of_training_bit_for_bit(size: tuple[int, int]) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (5, 97, 123), dtype=np.uint8)
    assert np.array_equal(resized_planes(planes, size), resized(torch.from_numpy(planes), size).numpy())


def test_maps_are_resized_as_by_torch() -> None:
    maps = np.random.default_rng(0).random((3, 9, 14), dtype=np.float32)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], size=(31, 10), mode="bilinear")[0]
    assert np.abs(resized_maps(maps, (31, 10)) - wanted.numpy()).max() < 1e-5


def random_boxes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    corner, side = rng.random((count, 2)) * 50, rng.random((count, 2)) * 20 + 2
    boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
    return boxes, rng.permutation(count).astype(np.float32) / count, rng.integers(0, 2, count)


def test_suppression_is_torchvisions() -> None:
    boxes, scores, labels = random_boxes(200)
    wanted = batched_nms(*(torch.from_numpy(values) for values in (boxes, scores, labels)), 0.4)
    assert suppressed(boxes, scores, labels, 0.4).tolist() == wanted.tolist()
    assert suppressed(boxes[:0], scores[:0], labels[:0], 0.4).tolist() == []


def test_rotated_overlaps_and_suppression_are_those_of_the_models() -> None:
    boxes, scores, labels = random_boxes(120, seed=1)
    rng = np.random.default_rng(2)
    sides = boxes[:, 2:] - boxes[:, :2]
    angle = np.where(rng.random(120) < 0.2, 0.0, rng.random(120) * 3 - 1.5)[:, None]
    rotated = long_edge_first(torch.from_numpy(np.concatenate([boxes[:, :2], sides, angle], 1))).numpy()
    wanted = paired_rotated_iou(torch.from_numpy(rotated[:1]).expand(120, 5), torch.from_numpy(rotated))
    assert np.abs(overlaps_of_rotated(rotated[0], rotated) - wanted.numpy()).max() < 1e-9
    kept = rotated_nms(torch.from_numpy(rotated), torch.from_numpy(scores), 0.2, torch.from_numpy(labels))
    assert suppressed(rotated, scores, labels, 0.2, overlaps_of_rotated).tolist() == kept.tolist()
    quads = corners_of(rotated)
    assert np.abs(quads - quads_of(torch.from_numpy(rotated)).numpy()).max() < 1e-9
    again = rectangles_of(quads)
    assert (
        np.abs(overlaps_of_rotated(again[3], rotated) - overlaps_of_rotated(rotated[3], rotated)).max() < 1e-6
    )


def test_masks_are_pasted_as_by_the_model() -> None:
    masks = np.random.default_rng(0).random((4, 14, 14), dtype=np.float32)
    boxes = np.array(
        [[3.2, 4.7, 20.1, 17.9], [0, 0, 30, 24], [25.5, 20.2, 29.9, 23.7], [5, 5, 5.2, 5.2]], np.float32
    )
    wanted = paste_masks(torch.from_numpy(masks), torch.from_numpy(boxes), (24, 30)).numpy()
    given = np.stack([mask_in_image(mask, box, (24, 30)) for mask, box in zip(masks, boxes, strict=True)])
    assert (given != wanted).sum() <= 1  # a value of just ½


@pytest.mark.parametrize("window", [(0, 0, 20, 16), (5, 3, 25, 19), (20, 14, 40, 30), (0, 0, 40, 30)])
def test_windows_count_as_in_prediction(window: tuple[int, int, int, int]) -> None:
    wanted = view_weights(View(window, (16, 20)), (30, 40))
    given = window_weights(window, (30, 40))
    assert np.abs(given - (1 if wanted is None else wanted.numpy())).max() < 1e-6


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_pictures_are_read_as_in_training(tmp_path: Path, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 4), dtype=np.uint8)
    path = tmp_path / f"picture.{'tif' if mode == 'CMYK' else 'png'}"
    Image.fromarray(pixels, "RGBA").convert("RGB" if mode in ("P", "CMYK") else "RGBA").convert(mode).save(
        path
    )
    if mode == "CMYK":
        with Image.open(path) as file:
            assert np.array_equal(read_planes(path, None), np.asarray(file.convert("RGB")).transpose(2, 0, 1))
        return
    assert np.array_equal(read_planes(path, None), load_planes(path))


def test_a_turned_photo_stands_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    assert read_planes(tmp_path / "turned.png", None).shape == (3, 12, 8)
    assert np.array_equal(read_planes(tmp_path / "turned.png", None), load_planes(tmp_path / "turned.png"))


def test_bands_are_scaled_as_by_the_model(tmp_path: Path) -> None:
    channels = Channels(
        channels=(Channel(band="VV", low=-20, high=5, transform="db"), Channel(band="B4", low=0, high=3000))
    )
    values = np.random.default_rng(0).random((2, 6, 7)) * np.array([2, 4000])[:, None, None]
    values[0, 0, 0], values[1, 1, 1] = 0, np.nan
    plain = [channel.model_dump() for channel in channels.channels]
    np.save(tmp_path / "bands.npy", values)
    assert np.array_equal(read_planes(tmp_path / "bands.npy", plain), channels.scale(values))
    with pytest.raises(DataError, match=r"the model sees \(2, height, width\) numbers"):
        scaled_values(values[:1], plain)
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    with pytest.raises(
        DataError,
        match=r"the model sees the bands VV, B4; save the quantity .*not the stored values\) as a \.npy",
    ):
        read_planes(tmp_path / "picture.png", plain)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.tif")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:5000])
    for name, says in [
        ("deep.tif", "more than 8 bits"),
        ("text.png", "is no picture"),
        ("broken.npy", "is no array"),
        ("cut.png", r"the image is damaged \(.*copy it again"),
        ("empty.jpg", "the file is empty; copy it again"),
        ("missing.png", "doesn't exist"),
    ]:
        with pytest.raises(DataError, match=says):
            read_planes(tmp_path / name, None)


@pytest.mark.parametrize(
    "channels", [None, ({"band": "CT", "low": 0.0, "high": 1.0, "transform": "linear"},)]
)
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("folder", "is a folder"),
        ("ct.nii.gz", "is a volume or a DICOM file"),
        ("CT.NRRD", "is a volume or a DICOM file"),
        ("IM0001", "is a volume or a DICOM file"),
        ("ct.nii.gz#slice=7", "names a part of a file"),
        ("folder#series=3&slice=1", "names a part of a file"),
        ("case_{0000,0001}.nii.gz", "names a part of a file, or several files"),
    ],
)
def test_what_vitp_predict_reads_is_named(tmp_path: Path, channels: Any, name: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    for file in ("ct.nii.gz", "CT.NRRD"):
        (tmp_path / file).write_bytes(b"x")
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(
        DataError, match=says + ".*; the runtime reads 8-bit pictures.*vitp predict reads volumes"
    ):
        read_planes(tmp_path / name, channels)


def test_the_readme_of_a_graph_of_bands_says_what_an_array_must_hold() -> None:
    own = contract(channels=({"band": "CT", "low": -160.0, "high": 240.0, "transform": "linear"},))
    assert "must hold the quantity of each band, such as HU" in card.contract_section(own)
    assert "must hold" not in card.contract_section(contract())
    assert 'predict_file("image.npy")' in card._use(own, GraphOptions(kind="onnx"), "graph")
    assert 'predict_file("image.png")' in card._use(contract(), GraphOptions(kind="onnx"), "graph")


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, ["first get | their own size", "Larger than the graph | windows that overlap by 25%"]),
        (
            {"resize": {"mode": "fixed", "size": 32}, "parts": (48.0, 1.0)},
            [
                "first get | 32 × 32 px, bilinear with antialiasing",
                "longer than 48 px | their own size, and are seen through windows",
            ],
        ),
        (
            {"resize": {"mode": "long", "size": 64}, "parts": (0.0, 0.5)},
            ["first get | 0.5 times their own size, and are seen through windows"],
        ),
        ({"task": "classification"}, ["Larger than the graph | made as small as the graph"]),
        (
            {"task": "panoptic", "mask_patch": 8},
            ["Larger than the graph | refused", "logits of the whole image; the runtime merges them"],
        ),
        ({"task": "instance", "mask_patch": 8}, ["logits of the whole image, to be enlarged to it"]),
    ],
)
def test_the_readme_of_a_graph_says_how_images_are_seen(changes: dict[str, Any], rows: list[str]) -> None:
    said = card.contract_section(contract(**changes))
    assert all(row in said for row in rows), said
    windows = changes.get("task") not in ("classification", "panoptic")
    assert ("merged by the runtime" in said) == windows
    assert said.count("Images first get") == 1


def test_a_contract_comes_back(tmp_path: Path) -> None:
    own = contract(channels=({"band": "VV", "low": 0.0, "high": 1.0, "transform": "db"},))
    assert contract_of({"vitp": json.dumps(own.to_values())}, where="m") == own
    with pytest.raises(CheckpointError, match="isn't the graph of a task model"):
        contract_of({}, where="model.onnx")
    with pytest.raises(CheckpointError, match="not vitp-task-graph-1"):
        contract_of({"vitp": json.dumps({**own.to_values(), "format": "vitp-task-graph-9"})}, where="m")
    with pytest.raises(CheckpointError, match="lacks 'iou'"):
        GraphContract.from_values({k: v for k, v in own.to_values().items() if k != "iou"}, where="m")


def known_table(image_BChw: np.ndarray) -> dict[str, np.ndarray]:
    """A detector that sees one object where the red channel is brightest, and a weaker copy of it."""
    tables = []
    for image_Chw in image_BChw:
        y, x = np.unravel_index(int(image_Chw[0].argmax()), image_Chw[0].shape)
        score = float(image_Chw[0].max()) * 0.9
        rows = [[x + 0.5, y + 0.5, 6, 6, score, 0], [x + 1, y + 0.5, 6, 6, score / 2, 0], [0, 0, 0, 0, 0, 0]]
        tables.append(np.array(rows, np.float32).T)
    return {"detections": np.stack(tables)}


def test_objects_come_once_and_in_pixels_of_the_image() -> None:
    image = np.zeros((3, 60, 90), np.uint8)
    image[0, 40, 70] = 255
    found = GraphModel(contract(), known_table).predict(image).objects
    assert found is not None
    strong = found.of_rows(np.flatnonzero(found.scores_N > 0.5))
    assert strong.boxes_N4.tolist() == [[67.5, 37.5, 73.5, 43.5]]
    assert strong.labels_N.tolist() == [0]


def test_batches_of_a_fixed_number_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def run(image_BChw: np.ndarray) -> dict[str, np.ndarray]:
        shapes.append(image_BChw.shape)
        return known_table(image_BChw)

    image = np.zeros((3, 60, 90), np.uint8)
    GraphModel(contract(batch=4), run).predict(image)
    assert set(shapes) == {(4, 3, 32, 32)}
    shapes.clear()
    GraphModel(contract(batch=None, resize={"mode": "fixed", "size": 32}), run).predict(image)
    assert shapes == [(1, 3, 32, 32)]


def test_class_maps_have_the_images_size() -> None:
    def run(image_BChw: np.ndarray) -> dict[str, np.ndarray]:
        share = image_BChw[:, :1]
        return {"probabilities": np.concatenate([1 - share, share], axis=1)}

    image = np.zeros((3, 50, 70), np.uint8)
    image[0, 20:35, 30:60] = 255
    own = contract(task="segmentation", batch=None)
    found = GraphModel(own, run).predict(image).classes_HW
    assert found is not None
    assert np.array_equal(found, (image[0] > 127).astype(np.uint8))


def test_dates_are_asked_for_where_they_are_needed() -> None:
    image = np.zeros((3, 32, 32), np.uint8)
    with pytest.raises(ConfigError, match="needs two dates"):
        GraphModel(contract(task="change"), known_table).predict(image)
    with pytest.raises(ConfigError, match="takes no later dates"):
        GraphModel(contract(), known_table).predict(image, image)
    with pytest.raises(DataError, match="32×32 and 30×32 px"):
        GraphModel(contract(task="change"), known_table).predict(image, image[:, :, :30])
    with pytest.raises(DataError, match=r"the graph sees \(3, H, W\) uint8"):
        GraphModel(contract(), known_table).predict(image[:1])


def test_the_command_answers_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_runtime([str(tmp_path / "model.onnx"), "image.png"]) == 2
    assert "doesn't exist; write it: vitp export RUN --format onnx" in capsys.readouterr().err
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="is no graph that onnxruntime can read"):
        open_graph(tmp_path)
    assert run_runtime([str(tmp_path), "a/x.png", "b/x.png", "--out", str(tmp_path / "o")]) == 2
    assert "several images are called x" in capsys.readouterr().err


def test_one_bad_picture_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Model:
        contract = contract(task="classification")

        def predict_file(self, image: str, later: str | None) -> GraphPrediction:
            read_planes(Path(image), None)
            return GraphPrediction(probabilities_K=np.array([0.75, 0.25]))

    monkeypatch.setattr("vitp.runtime.__main__.open_graph", lambda path: Model())
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (4, 4)).save(good)
    bad.touch()
    assert run_runtime(["model", str(good), str(bad), str(good)]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["probabilities"]["a"] for line in out.splitlines()] == [0.75, 0.75]
    assert err == f"error: {bad}: the file is empty; copy it again\n"
    assert run_runtime(["model", str(bad)]) == 2


@pytest.mark.parametrize("task", ["segmentation", "change"])
def test_what_is_found_replaces_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    class Model:
        contract = contract(task=task)

        def predict_file(self, image: str, later: str | None) -> GraphPrediction:
            return GraphPrediction(classes_HW=np.ones((4, 4), np.uint8))

    monkeypatch.setattr("vitp.runtime.__main__.open_graph", lambda path: Model())
    monkeypatch.chdir(tmp_path)
    first, later = tmp_path / "a.png", tmp_path / "later" / "a.png"
    later.parent.mkdir()
    for file in (first, later):
        Image.new("RGB", (4, 4), (9, 9, 9)).save(file)
    before = first.read_bytes()
    dates = ["--later", str(later)] if task == "change" else []
    for out in (".", *(["later"] if dates else [])):
        assert run_runtime(["model", "a.png", *dates, "--out", out]) == 2
        assert "would be replaced by what is found in it; name another folder" in capsys.readouterr().err
    assert first.read_bytes() == later.read_bytes() == before
    assert run_runtime(["model", "a.png", *dates, "--out", "found"]) == 0
    assert np.asarray(Image.open("found/a.png")).tolist() == [[1] * 4] * 4
    assert json.loads(Path("found/a.json").read_text())["pixels"] == {"a": 0, "b": 16}
    assert sorted(path.name for path in Path("found").iterdir()) == ["a.json", "a.png"]
    assert run_runtime(["model", "a.png", *dates, "--out", "a.png"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_says_that_its_packages_are_missing() -> None:
    block = "import sys; sys.modules['typer'] = None; sys.argv = ['vitp', '--help']; from vitp.__main__ import run; run()"
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "typer is missing" in done.stderr and "python -m vitp.runtime" in done.stderr
