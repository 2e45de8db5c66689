"""Finetuned models leave: run → ONNX → onnxruntime without torch, OpenVINO, 8 bits, a program of torch.export.

A micro model of each task is trained on generated scenes. Its graph is then run in a virtual environment that holds
numpy, onnxruntime and Pillow alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from rich.console import Console

from tests.e2e.conftest import done, refused
from tests.e2e.micro_tasks import LEAST, SIZE, TASKS, VISION, large_objects, micro_config
from vitp.core.config import CONFIG_FILE, load_config
from vitp.core.errors import CheckpointError
from vitp.deployment.comparison import compared_outputs, scores_of_graph
from vitp.deployment.export import ExportedGraph, GraphOptions, export_task
from vitp.io.images import load_planes
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.runs.finetune import FinetuneConfig, run_finetune
from vitp.runtime.contract import GraphContract
from vitp.runtime.graph_model import GraphModel, open_graph
from vitp.tasks.base import TestSettings
from vitp.tasks.data import open_labelled
from vitp.tasks.graphs import TaskGraph
from vitp.tasks.model_folder import load_task, stated_settings
from vitp.tasks.predict import predict_images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("deployment"),  # one worker trains the models for all
    pytest.mark.skipif(sys.platform == "win32", reason="the environment is made of links"),
]
for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package, reason="the extra vitp[onnx] isn't installed")

DETECTORS = ("detection", "instance", "oriented")
ALLOWED_FOR_8_BITS = 5.0
"""Points. Micro models have few weights to spare."""


@dataclass(frozen=True)
class Deployed:
    """A run and its graph."""

    task: str
    run: Path
    folder: Path
    done: ExportedGraph

    @property
    def contract(self) -> GraphContract:
        return self.done.contract


@pytest.fixture(scope="module", params=list(TASKS))
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """The run of one task, exported in float32 and in 8 bits."""
    torch.set_num_threads(1)
    task, root = request.param, tmp_path_factory.mktemp(request.param)
    data = large_objects(root / "blocks", turned=task == "oriented") if task in DETECTORS else None
    run_finetune(micro_config(task, data), root / "run", console=Console(quiet=True))
    options = GraphOptions(int8=True, most_loss=ALLOWED_FOR_8_BITS)
    done = export_task(root / "run", root / "graph", options)
    return Deployed(task, root / "run", root / "graph", done)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has numpy, onnxruntime and Pillow, and nothing else."""
    root = tmp_path_factory.mktemp("bare")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(root / "env")
    shown = root / "packages"
    shown.mkdir()
    import onnxruntime
    import PIL

    import vitp

    for package in (np, onnxruntime, PIL, vitp):
        assert package.__file__ is not None
        home = Path(package.__file__).parent
        for found in (home, *home.parent.glob(f"{home.name.lower().replace('pil', 'pillow')}.libs")):
            (shown / found.name).symlink_to(found)
    (site,) = (root / "env" / "lib").glob("python*/site-packages")
    (site / "shown.pth").write_text(f"{shown}\n", encoding="utf-8")
    return root / "env" / "bin" / "python"


def alone(python: Path, *arguments: str | Path) -> str:
    """Run the bare environment's Python without any of this one's paths."""
    done = subprocess.run(
        [python, "-I", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pictures(deployed: Deployed, count: int = 3) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Return some scenes of the run's own size, and their later dates."""
    data = load_config(FinetuneConfig, deployed.run / CONFIG_FILE).data
    labelled = open_labelled(data.root, data.format, **data.options)
    items = [labelled.split("val").items[index] for index in range(count)]
    images = [load_planes(item.image) for item in items]
    if deployed.task != "change":
        return images, None
    return images, [load_planes(item.second_image) for item in items]


RUN_RAW = """
import sys, numpy as np
assert not any(name.split(".")[0] in ("torch", "pydantic", "transformers") for name in sys.modules)
from vitp.runtime.graph_model import open_graph
model = open_graph(sys.argv[1])
image = np.load(sys.argv[2])
np.savez(sys.argv[3], **model.run(image))
try:
    import torch
except ImportError:
    print("no torch")
"""


def test_the_graph_gives_the_models_outputs_without_torch(
    deployed: Deployed, bare: Path, tmp_path: Path
) -> None:
    model = load_task(deployed.run)
    graph = TaskGraph(model, deployed.contract.size)
    images, later = pictures(deployed, 1)
    stacked = images[0] if later is None else np.concatenate([images[0], later[0]])
    image = stacked[None].astype(np.float32) / 255
    np.save(tmp_path / "image.npy", image)
    (tmp_path / "raw.py").write_text(RUN_RAW, encoding="utf-8")
    found = tmp_path / "found.npz"
    said = alone(bare, tmp_path / "raw.py", deployed.folder / "model.onnx", tmp_path / "image.npy", found)
    assert said.strip() == "no torch"
    with np.load(found) as outputs:
        given = dict(outputs)
    assert_same_outputs(deployed, graph, given, image, tolerance=1e-4)


def assert_same_outputs(
    deployed: Deployed,
    graph: TaskGraph,
    given: Mapping[str, np.ndarray],
    image: np.ndarray,
    *,
    tolerance: float,
) -> None:
    """Outputs are near those of the module; objects of detectors whose scores are next to equal may change places."""
    if "detections" in graph.outputs:
        parity = compared_outputs(
            deployed.contract, graph, graph.outputs, lambda _: dict(given), [image], "one image", "onnx"
        )
        assert parity.rows > 0 and parity.lonely <= 0.01 and max(parity.largest.values()) <= tolerance, parity
        return
    with torch.no_grad():
        wanted = graph(torch.from_numpy(image))
    for name, value in zip(graph.outputs, wanted, strict=True):
        scale = max(1.0, float(value.abs().max()))
        assert np.abs(given[name] - value.numpy()).max() / scale <= tolerance, name


def test_the_runtime_predicts_what_the_model_predicts(deployed: Deployed, bare: Path, tmp_path: Path) -> None:
    images, later = pictures(deployed)
    dates = {"first": images, **({} if later is None else {"later": later})}
    for which, planes in dates.items():
        for number, plane in enumerate(planes):
            Image.fromarray(plane.transpose(1, 2, 0)).save(tmp_path / f"{which}{number}.png")
    names = [str(tmp_path / f"first{number}.png") for number in range(len(images))]
    second = [word for n in range(len(images)) for word in ("--later", str(tmp_path / f"later{n}.png"))]
    out = tmp_path / "out"
    command = ["-m", "vitp.runtime", str(deployed.folder), *names, "--out", str(out), "--score", str(LEAST)]
    alone(bare, *command, *(second if later is not None else []))
    model = load_task(deployed.run)
    settings = stated_settings(model.description)
    predicted = predict_images(
        model,
        [torch.from_numpy(image) for image in images],
        settings,
        None if later is None else [torch.from_numpy(image) for image in later],
    )
    for number, wanted in enumerate(predicted):
        given = json.loads((out / f"first{number}.json").read_text(encoding="utf-8"))
        if wanted.probabilities_C is not None:
            assert list(given["probabilities"].values()) == pytest.approx(
                wanted.probabilities_C.tolist(), abs=2e-4
            )
        elif wanted.semantic_HW is not None:
            with Image.open(out / f"first{number}.png") as picture:
                assert (np.asarray(picture) == wanted.semantic_HW.numpy()).mean() > 0.999
        else:
            _same_objects(given["objects"], wanted, model.classes)


def _same_objects(given: list[dict[str, Any]], wanted: Any, classes: tuple[str, ...]) -> None:
    shown = [row for row in range(len(wanted.scores_N)) if wanted.scores_N[row] >= LEAST]
    assert len(given) == len(shown) > 0
    boxes = np.array([one["box"] for one in given])
    for row in shown:  # objects of equal score may come in another order
        box = wanted.boxes_N4[row].numpy()
        same_class = np.array([one["class"] == classes[int(wanted.labels_N[row])] for one in given])
        found = given[int(np.argmin(np.abs(boxes - box).max(1) + 1e6 * ~same_class))]
        assert found["box"] == pytest.approx(box.tolist(), abs=0.1)
        assert found["score"] == pytest.approx(float(wanted.scores_N[row]), abs=1e-3)
        if wanted.quads_N8 is not None:
            assert found["quad"] == pytest.approx(wanted.quads_N8[row].tolist(), abs=0.1)
        if wanted.masks_NHW is not None:
            assert found["pixels"] == pytest.approx(int(wanted.masks_NHW[row].sum()), abs=3)


def test_what_the_model_found_the_graph_finds_again(deployed: Deployed, tmp_path: Path) -> None:
    """The model's own detections as the truth: it scores high, and the graph scores the same to 0.1 points."""
    if deployed.task not in DETECTORS:
        pytest.skip("other tasks have scores after so few steps")
    model = load_task(deployed.run)
    settings = stated_settings(model.description)
    images, _ = pictures(deployed, 4)
    items = []
    for number, image in enumerate(images):
        file = tmp_path / f"{number}.png"
        Image.fromarray(image.transpose(1, 2, 0)).save(file)
        (found,) = predict_images(model, [torch.from_numpy(image)], settings)
        assert found.scores_N is not None
        assert found.labels_N is not None
        assert found.boxes_N4 is not None
        rows = range(min(10, len(found.scores_N)))
        boxes = found.boxes_N4.tolist()
        quads = None if found.quads_N8 is None else found.quads_N8.tolist()
        objects = tuple(
            ObjectLabel(
                model.classes[int(found.labels_N[row])],
                _inside(boxes[row]),
                None if quads is None else tuple(quads[row]),
                (_ring(boxes[row]),) if deployed.task == "instance" else (),
            )
            for row in rows
        )
        items.append(LabelledImage(str(number), str(file), SIZE, SIZE, objects=objects))
    truth = LabelledSet("own", items, object_classes=model.classes)
    before = model.evaluate(truth, settings)
    after = scores_of_graph(model, open_graph(deployed.folder), truth, settings)
    assert before.values["AP50"] > 0.5
    for name, value in before.values.items():
        assert after.values[name] == pytest.approx(value, abs=1e-3, nan_ok=True), name


def _inside(box: list[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (min(max(value, 0.0), float(SIZE)) for value in box)
    return x1, y1, x2, y2


def _ring(box: list[float]) -> tuple[float, ...]:
    x1, y1, x2, y2 = box
    return (x1, y1, x2, y1, x2, y2, x1, y2)


def test_scores_before_and_after_stand_in_the_report(deployed: Deployed) -> None:
    report = json.loads((deployed.folder / "parity.json").read_text(encoding="utf-8"))
    scores, outputs = report["scores"], report["outputs"]
    assert max(outputs["largest"].values()) <= outputs["tolerance"] == 1e-4
    assert scores["images"] == scores["available"] == 12
    assert abs(scores["lost_points"]) <= 0.1
    # A model that knows nothing would prove nothing; one of change may find none after so few steps: its mIoU tells.
    assert max(v for v in scores["before"].values() if v) > (0.5 if deployed.task in DETECTORS else 0.1)
    for name, before in scores["before"].items():
        if before is not None:
            assert scores["after"][name] == pytest.approx(before, abs=1e-3)
    eight = report["int8"]
    assert eight["lost_points"] <= ALLOWED_FOR_8_BITS == eight["tolerance"]
    if deployed.task in DETECTORS:  # what 8 bits cost is measured where there is something to lose
        assert min(eight[side]["AP50"] for side in ("before", "after")) > 0.5
    card = ModelCard.load(deployed.folder / "README.md").data
    told = {one.metric_type: one.metric_value for one in card.eval_results}
    assert told == {name: value for name, value in scores["after"].items() if value is not None}
    assert {(one.dataset_name, one.dataset_split) for one in card.eval_results} == {(scores["data"], "val")}
    assert (card.license, card.license_name) == ("other", VISION["licence"])
    description = json.loads((deployed.folder / "vitp_graph.json").read_text(encoding="utf-8"))
    assert (description["weights_of"], description["licence"]) == (VISION["weights_of"], VISION["licence"])
    assert f"{100 * scores['before'][scores['headline']]:.2f}" in (deployed.folder / "README.md").read_text()


def test_shapes_are_fixed_and_nothing_depends_on_the_data(deployed: Deployed) -> None:
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(deployed.folder / "model.onnx"))
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"Loop", "If", "Scan", "NonZero", "NonMaxSuppression", "Unique", "Compress"}
    assert {node.domain for node in model.graph.node} == {""}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        assert all(side.HasField("dim_value") for side in value.type.tensor_type.shape.dim), value.name
    kept = {entry.key for entry in model.metadata_props}
    assert {"vitp", "vitp_version", "weights_of", "licence"} <= kept
    assert ("model_type" in kept) == (deployed.task != "classification")
    assert ("det_type" in kept) == (deployed.task in ("detection", "instance", "oriented"))


def test_8_bits_are_smaller_and_run(deployed: Deployed) -> None:
    whole, small = (deployed.folder / name for name in ("model.onnx", "model.int8.onnx"))
    assert small.stat().st_size < 0.8 * whole.stat().st_size


def test_openvino_gives_the_same(deployed: Deployed) -> None:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(deployed.folder / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    graph = TaskGraph(load_task(deployed.run), deployed.contract.size)
    images, later = pictures(deployed, 1)
    stacked = images[0] if later is None else np.concatenate([images[0], later[0]])
    image = stacked[None].astype(np.float32) / 255
    found = compiled(image)
    given = {name: found[number] for number, name in enumerate(graph.outputs)}
    assert_same_outputs(deployed, graph, given, image, tolerance=1e-3)


def test_nothing_is_left_of_a_graph_that_differs(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if deployed.task != "classification":
        pytest.skip("one task tells")
    forward = TaskGraph.forward
    monkeypatch.setattr(
        TaskGraph, "forward", lambda self, image: tuple(v * 1.01 for v in forward(self, image))
    )
    from vitp.deployment import export as module

    write = module.write_graph

    def honest(graph: TaskGraph, *arguments: Any, **named: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(TaskGraph, "forward", forward)
            write(graph, *arguments, **named)

    monkeypatch.setattr(module, "write_graph", honest)
    with pytest.raises(CheckpointError, match=r"its outputs are off \(probabilities by"):
        export_task(deployed.run, tmp_path / "graph")
    assert list(tmp_path.iterdir()) == []


def test_a_program_of_torch_export_loads_and_equals(deployed: Deployed, tmp_path: Path) -> None:
    if deployed.task not in ("change", "oriented"):
        pytest.skip("two tasks tell: the others are written by the same lines")
    options = GraphOptions(kind="torch-export", batch=None, most_images=4)
    done = export_task(deployed.run, tmp_path / "program", options)
    assert max(done.outputs.largest.values()) <= 1e-5
    assert done.scores is not None
    assert done.scores.after == pytest.approx(done.scores.before, nan_ok=True)
    program = torch.export.load(tmp_path / "program" / "model.pt2").module()
    graph = TaskGraph(load_task(deployed.run), done.contract.size)
    image = torch.rand(3, graph.channels, *done.contract.size)
    for given, wanted in zip(program(image), graph(image), strict=True):
        assert torch.allclose(given, wanted, atol=1e-4)


def test_larger_pictures_are_seen_through_windows(deployed: Deployed) -> None:
    if deployed.task not in ("segmentation", "detection", "oriented"):
        pytest.skip("three tasks tell")
    model = load_task(deployed.run)
    images, _ = pictures(deployed, 2)
    wide = np.concatenate([np.concatenate(images, 2), np.concatenate(images[::-1], 2)], 1)[:, :100, :120]
    settings = TestSettings.model_validate({"resize": {"mode": "none"}, "window": SIZE})
    (wanted,) = predict_images(model, [torch.from_numpy(wide)], settings)
    graph = open_graph(deployed.folder)
    contract = GraphContract(**{**vars(graph.contract), "resize": {"mode": "none", "size": None}})
    given = GraphModel(contract, graph.run).predict(wide)
    if given.classes_HW is not None:
        assert wanted.semantic_HW is not None
        assert (given.classes_HW == wanted.semantic_HW.numpy()).mean() > 0.999
        return
    assert given.objects is not None
    assert wanted.scores_N is not None
    assert wanted.boxes_N4 is not None
    assert len(given.objects.scores_N) == len(wanted.scores_N) > 3
    assert np.abs(given.objects.scores_N - wanted.scores_N.numpy()).max() < 1e-3
    assert np.abs(given.objects.boxes_N4 - wanted.boxes_N4.numpy()).max() < 0.1


def test_the_command_line_says_what_was_understood(
    deployed: Deployed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if deployed.task != "classification":
        pytest.skip("one task tells")
    said = done("export", deployed.run, "--format", "onnx", "--out", tmp_path / "g", "--size", "64x64", "--batch", "dynamic", "--check-images", 3).out  # fmt: skip
    assert f"whose licence ({VISION['licence']}) binds" in caplog.text
    assert "compared on 3 of 12 images of scenes-port (the val images)" in said
    assert "the graph takes 64×64 px: as asked for" in said
    assert "QGIS's plug-in Deepness can't run it: it has no models that give an image one class" in said
    for words, says in [
        (("--format", "onnx", "--batch", "many"), '"many" is no batch'),
        (("--format", "onnx", "--size", "4"), '"4" is no size'),
        (("--format", "onnx", "--check", tmp_path / "nowhere"), "nowhere"),
    ]:
        assert says in refused("export", deployed.run, "--out", tmp_path / "x", *words)
    assert "holds no finetuned model" in refused(
        "export", "starter", "--format", "onnx", "--int8", "--out", tmp_path / "x"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g"]
