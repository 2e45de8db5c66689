"""What a server says of a backbone: the attention of a patch, features as colours, pictures of samples, certainty."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.serving_toys import Served, png, serving
from vitp.evaluation.attention import attention_map, pca_rgb
from vitp.models.vision import VisionSettings, VisionTower
from vitp.serving.models import ServedModel
from vitp.serving.worker import Worker
from vitp.tasks.build import NeckSettings, build_model
from vitp.tasks.predict import predict_images

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)


def tower(width: int, depth: int = 2) -> VisionTower:
    torch.manual_seed(width)
    arguments = {"embed_dim": width, "depth": depth, "num_heads": 2, "patch_size": 8}
    return VisionTower(VisionSettings.model_validate({"arguments": arguments, "image_size": 32})).eval()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("looked")
    (folder / "root").mkdir()
    Image.fromarray(PIXELS).resize((1200, 600)).save(folder / "root" / "wide.png")
    backbone = tower(16)
    task = build_model(
        "segmentation", backbone, ("sea", "land"), NeckSettings(options={"channels": 8}), {"width": 8}
    )
    worker = Worker("look", 1, 1)
    others = {
        "small": ServedModel("small", worker, tower=backbone),
        "wide": ServedModel("wide", worker, tower=tower(24, 3)),
    }
    others["graph"] = ServedModel("graph", worker)
    with serving(folder / "files", {"task": task.eval()}, root=folder / "root", others=others) as found:
        yield found
    worker.close()


def test_attention_is_that_of_the_patch_at_the_point(served: Served) -> None:
    answer = served.post("/attention", png(PIXELS), model="small", x=95.5, y=13, layer=0).json()
    assert (answer["rows"], answer["cols"], answer["layer"], answer["layers"]) == (4, 4, 0, 2)
    assert answer["patch"] == [1, 3]
    wanted_hw = attention_map(served.service.models["small"].tower, Image.fromarray(PIXELS), (1, 3), 0)
    np.testing.assert_allclose(answer["values"], wanted_hw, rtol=1e-4)
    last = served.post("/attention", png(PIXELS), model="small", x=95.5, y=13).json()
    assert last["layer"] == 1
    assert last["values"] != answer["values"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"x": 96, "y": 0}, "the point (96, 0) lies outside of the image of 96×48 pixels"),
        ({"x": -1, "y": 0}, "the point (-1, 0) lies outside of the image of 96×48 pixels"),
        ({"x": "nan", "y": 0}, "the point (nan, 0) lies outside of the image of 96×48 pixels"),
        ({"x": 0, "y": 0, "layer": 2}, "small has the layers 0 to 1, there is no layer 2"),
        (
            {"x": 0, "y": 0, "model": "graph"},
            "graph is an exported graph, into which nobody can look; serve the run instead",
        ),
    ],
)
def test_what_can_not_be_looked_at_is_said(served: Served, fields: dict[str, object], sentence: str) -> None:
    answer = served.post("/attention", png(PIXELS), **{"model": "small", **fields})
    assert answer.status_code == 422
    assert answer.json() == {"error": sentence}


def test_features_are_a_pixel_for_each_patch(served: Served) -> None:
    answer = served.post("/features", png(PIXELS), model="small", layer=0)
    colours_hw3 = np.array(Image.open(io.BytesIO(answer.content)))
    (wanted_hw3,) = pca_rgb(served.service.models["small"].tower, [Image.fromarray(PIXELS)], 0)
    assert np.abs(colours_hw3.astype(int) - wanted_hw3).max() <= 1
    assert 0 < float(answer.headers["X-Explained"]) <= 1


def test_colours_resemble_those_of_another_model(served: Served) -> None:
    def colours(**fields: object) -> np.ndarray:
        content = served.post("/features", png(PIXELS), **fields).content
        return np.array(Image.open(io.BytesIO(content))).reshape(-1, 3).astype(float)

    theirs, alone = colours(model="small"), colours(model="wide")
    alike = colours(model="wide", like="small")

    def likeness(own: np.ndarray) -> float:
        return sum(np.corrcoef(own[:, axis], theirs[:, axis])[0, 1] for axis in range(3))

    assert likeness(alike) >= likeness(alone)
    assert likeness(alike) > 0
    assert served.post("/features", png(PIXELS), model="wide", like="nobody").status_code == 404


def test_a_sample_has_a_picture(served: Served) -> None:
    answer = served.client.get("/samples/picture", params={"path": "wide.png"})
    assert Image.open(io.BytesIO(answer.content)).size == (150, 75)
    assert served.client.get("/samples/picture", params={"path": "../files"}).status_code == 404


def test_a_class_map_says_how_sure_it_is_where_that_is_asked(served: Served) -> None:
    plain = served.post("/predict", png(PIXELS), model="task").json()
    assert "certainty" not in plain["mask"]
    sure = served.post("/predict", png(PIXELS), model="task", certainty="true").json()
    assert sure["mask"]["png"] == plain["mask"]["png"]
    certainty_HW = np.array(Image.open(io.BytesIO(base64.b64decode(sure["mask"]["certainty"]))))
    model = served.service.models["task"].task
    assert model is not None
    (wanted,) = predict_images(model, [torch.from_numpy(PIXELS).permute(2, 0, 1)], certainty=True)
    assert wanted.certainty_HW is not None
    assert np.abs(certainty_HW.astype(int) - wanted.certainty_HW.numpy()).max() <= 1
    assert certainty_HW.min() >= 127  # of two classes the likelier one


def test_the_page_may_load_nothing_from_elsewhere(served: Served) -> None:
    answer = served.client.get("/")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    names = {
        path.name for path in (Path(__file__).parents[2] / "src" / "vitp" / "serving" / "page").iterdir()
    }
    for name in names:
        found = served.client.get(f"/{name}")
        assert found.status_code == 200
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", found.text)
