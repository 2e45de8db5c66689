"""`vitp serve`: what clients get is what `vitp predict` writes, and what they may not get is refused in a sentence."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from pyproj import Transformer

from tests.map_models import PLACES, Brighter, BrightestBand, BrightObjects, channels_of, write_raster
from tests.serving_toys import Served, png, serving
from tests.volume_files import affine, write_series
from vitp.core.errors import DataError
from vitp.core.tensors import present
from vitp.inference.ask import Assistant
from vitp.inference.prediction_files import predict_files
from vitp.io.images import load_planes
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.channels import Channel, Channels
from vitp.runtime.contract import GraphContract
from vitp.runtime.graph_model import GraphModel
from vitp.serving.gate import ServerLimits
from vitp.serving.models import ServedModel, named_sources
from vitp.serving.refusal import refusal_of
from vitp.serving.worker import Worker
from vitp.tasks.base import InputSize, TaskModel, TestSettings
from vitp.tasks.build import NeckSettings, build_model
from vitp.tasks.predict import predict_images

TASKS = ("classification", "segmentation", "change", "detection", "instance", "oriented", "panoptic")
VISION = {"arguments": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}, "image_size": 32}


def model_of(task: str) -> TaskModel:
    torch.manual_seed(0)
    backbone = VisionTower(VisionSettings.model_validate(VISION))
    plain = task == "classification"
    neck = NeckSettings() if plain else NeckSettings(options={"channels": 8})
    classes = ("unchanged", "changed") if task == "change" else ("sea", "land", "ice")
    head: dict[str, Any] = {} if plain else {"width": 8}
    if task == "panoptic":
        head = {"things": ["ice"], "queries": 12, "blocks": 1, "least_score": 0.0, "least_share": 0.0}
        neck = NeckSettings()
    model = build_model(task, backbone, classes, neck, head).eval()
    model.input_size = InputSize(mode="fixed", size=32)
    return model


def noise(seed: int = 0, size: tuple[int, int] = (40, 56)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def bright(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Black with grey rectangles, each brighter than the one before."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        pixels[y1:y2, x1:x2] = 120 + 60 * number
    return pixels


@pytest.fixture(scope="module")
def all_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    settings = TestSettings(score_threshold=0.0)
    with serving(folder / "files", {task: model_of(task) for task in TASKS}, settings=settings) as served:
        yield served


@pytest.mark.parametrize("task", TASKS)
def test_json_says_what_predict_writes(all_tasks: Served, task: str, tmp_path: Path) -> None:
    files = [tmp_path / "first.png", tmp_path / "second.png"]
    for number, file in enumerate(files):
        file.write_bytes(png(noise(number)))
    later = [str(files[1])] if task == "change" else None
    model = all_tasks.service.models[task].task
    assert model is not None
    predict_files(
        model, [str(files[0])], tmp_path / "out", all_tasks.service.models[task].settings, later=later
    )
    given = {"file": ("a.png", files[0].read_bytes())}
    given |= {"after_file": ("b.png", files[1].read_bytes())} if later else {}
    answer = all_tasks.client.post("/predict", files=given, data={"model": task})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["task"], found["width"], found["height"]) == (task, 56, 40)
    if task == "classification":
        header, row = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
        written = dict(zip(header.split(",")[2:], map(float, row.split(",")[2:]), strict=True))
        assert {one["class"]: one["score"] for one in found["scores"]} == pytest.approx(written, abs=1e-5)
        assert found["scores"][0]["class"] == row.split(",")[1]
        return
    if task in ("segmentation", "change"):
        mask_HW = np.array(Image.open(io.BytesIO(base64.b64decode(found["mask"]["png"]))))
        file = tmp_path / "out" / ("masks" if task == "segmentation" else "label") / "first.png"
        written_HW = np.array(Image.open(file))
        assert (mask_HW == (written_HW if task == "segmentation" else written_HW // 255)).all()
        names = found["mask"]["classes"]
        assert found["pixels"] == pytest.approx(
            {name: float((mask_HW == number).mean()) for number, name in enumerate(names)}, abs=1e-6
        )
        return
    name = "panoptic.json" if task == "panoptic" else "predictions.json"
    written_rows = json.loads((tmp_path / "out" / name).read_text())["annotations"]
    if task == "panoptic":
        written_rows = written_rows[0]["segments_info"]
    assert len(found["objects"]) == len(written_rows) > 0
    for one, row in zip(found["objects"], written_rows, strict=True):
        x, y, w, h = row["bbox"]
        assert one["box"] == pytest.approx([x, y, x + w, y + h], abs=0.02)
        assert one["score"] == pytest.approx(row["score"], abs=2e-5)
        assert ("outline" in one) == (task != "detection")


def test_many_at_once_are_computed_together_and_get_what_each_gets_alone(all_tasks: Served) -> None:
    images = [png(noise(seed)) for seed in range(8)]
    for task in ("classification", "detection"):
        alone = [all_tasks.post("/predict", image, model=task).json() for image in images]
        worker = all_tasks.service.models[task].worker
        batches, computed = worker.batches, worker.computed
        with ThreadPoolExecutor(8) as pool:
            together = list(
                pool.map(
                    lambda image, task=task: all_tasks.post("/predict", image, model=task).json(), images
                )
            )
        assert worker.computed - computed == 8
        assert worker.batches - batches <= 8
        for one, other in zip(alone, together, strict=True):
            rows = "scores" if task == "classification" else "objects"
            assert len(one[rows]) == len(other[rows])
            for mine, theirs in zip(one[rows], other[rows], strict=True):
                assert mine["class"] == theirs["class"]
                assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)
                assert mine.get("box", []) == pytest.approx(theirs.get("box", []), abs=0.02)


def test_a_worker_takes_what_waits_together_within_its_bounds() -> None:
    worker = Worker("test", most=3, most_weight=100)
    gate, seen = threading.Event(), []

    def together(arguments: Any) -> list[Any]:
        seen.append(list(arguments))
        return [ValueError("odd") if argument % 2 else argument for argument in arguments]

    try:
        blocked = worker.call(gate.wait)
        futures = [worker.call_together(together, number, 10) for number in range(5)]
        heavy = [worker.call_together(together, number, 60) for number in (6, 8)]
        alone = worker.call(lambda: "alone")
        cancelled = worker.call_together(together, 10, 10)
        assert cancelled.cancel()
        gate.set()
        assert blocked.result(10) and alone.result(10) == "alone"
        assert [future.result(10) for future in futures[::2]] == [0, 2, 4]
        with pytest.raises(ValueError, match="odd"):
            futures[1].result(10)
        assert [future.result(10) for future in heavy] == [6, 8]
        assert seen == [[0, 1, 2], [3, 4, 6], [8]]
    finally:
        worker.close()


def test_one_bad_picture_of_a_batch_is_refused_alone(all_tasks: Served) -> None:
    good, cut = png(noise(1)), png(noise(2))[:-300]
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda one: all_tasks.post("/predict", one, model="detection"), [good, cut] * 2)
        )
    assert [answer.status_code for answer in answers] == [200, 422, 200, 422]
    sentence = answers[1].json()["error"]
    assert sentence.startswith("the image ") and "/" not in sentence.replace("and/or", ""), sentence


# Rasters.


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Models whose answers are known."""
    folder = tmp_path_factory.mktemp("known")
    models = {
        "map": BrightestBand(),
        "bands": BrightestBand(channels=channels_of("B2", "B3", "B8")),
        "change": Brighter(),
        "boxes": BrightObjects(),
        "quads": BrightObjects("oriented"),
        "masks": BrightObjects("instance"),
    }
    root = folder / "root"
    raster = np.zeros((3, 60, 80), np.uint8)
    raster[0, 10:20, 30:50] = 200
    write_raster(root / "utm.tif", raster)
    write_raster(root / "later.tif", np.where(raster == 200, 0, 220).astype(np.uint8))
    write_raster(
        root / "wide" / "bands.tif",
        np.kron(raster, np.ones((1, 2, 2))).astype(np.uint16) * 4,
        names=("B2", "B3", "B8"),
    )
    (root / "plain.png").write_bytes(png(bright((10, 20, 30, 40))))
    with serving(folder / "files", models, root=root) as served:  # type: ignore[arg-type]
        yield served


def test_objects_come_with_outlines(known: Served) -> None:
    image = png(bright((10, 20, 30, 40), (50, 5, 70, 15)))
    for model in ("boxes", "quads", "masks"):
        found = known.post("/predict", image, model=model, threshold=0.5).json()["objects"]
        assert [one["class"] for one in found] == ["ship"], "the fainter one is below the threshold"
        found = known.post("/predict", image, model=model, threshold=0.1).json()["objects"]
        assert [one["box"] for one in found] == [[50, 5, 70, 15], [10, 20, 30, 40]]
        assert [one["score"] for one in found] == pytest.approx([180 / 255, 120 / 255], abs=1e-4)
    masks = known.post("/predict", image, model="masks", threshold=0.1).json()["objects"]
    assert sorted(map(tuple, masks[0]["outline"])) == [(50, 5), (50, 15), (70, 5), (70, 15)]


def test_a_raster_with_a_place_becomes_geojson_and_a_map(known: Served, tmp_path: Path) -> None:
    found = known.post("/predict", path="utm.tif", model="boxes", format="geojson")
    assert found.headers["content-type"] == "application/geo+json"
    (feature,) = found.json()["features"]
    crs, transform = PLACES["utm"]
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    corners = {to_degrees.transform(*(transform @ (x, y))) for x in (30, 50) for y in (10, 20)}
    ring = feature["geometry"]["coordinates"][0]
    assert np.allclose(sorted(map(tuple, ring[:-1])), sorted(corners), atol=1e-6)
    assert feature["properties"]["class"] == "car"
    content = (known.service.store.root / "utm.tif").read_bytes()  # type: ignore[operator]
    answers = [
        known.post("/predict", path="utm.tif", model="map", format="cog"),
        known.client.post("/predict", files={"file": ("x", content)}, data={"model": "map", "format": "cog"}),
    ]
    for answer in answers:
        (tmp_path / "map.tif").write_bytes(answer.content)
        with rasterio.open(tmp_path / "map.tif") as file:
            assert file.crs.to_string() == crs and file.transform == transform
            assert (file.read(1)[10:20, 30:50] == 0).all()
            assert not any("source" in key for key in file.tags()), "names of files stay here"
    assert answers[0].headers["content-type"] == "image/tiff"


def test_a_raster_in_json_is_what_its_map_is(known: Served) -> None:
    found = known.post("/predict", path="utm.tif", model="map").json()
    mask_HW = np.array(Image.open(io.BytesIO(base64.b64decode(found["mask"]["png"]))))
    assert mask_HW.shape == (60, 80) and (mask_HW[10:20, 30:50] == 0).all()
    bands = known.post("/predict", path="wide/bands.tif", model="bands").json()
    assert (bands["width"], bands["height"]) == (160, 120)
    (one,) = known.post("/predict", path="utm.tif", model="masks").json()["objects"]
    assert one["box"] == [30, 10, 50, 20] and len(one["outline"]) == 4
    picture = known.post("/predict", path="utm.tif", model="boxes", format="png")
    assert Image.open(io.BytesIO(picture.content)).size == (80, 60)
    fields = {"path": "utm.tif", "after_path": "later.tif", "model": "change", "format": "cog"}
    assert known.client.post("/predict", data=fields).status_code == 200
    nothing = known.post("/predict", path="utm.tif", model="boxes", threshold=1).json()
    assert nothing["objects"] == []


def test_png_is_the_mask_or_a_drawing(known: Served, all_tasks: Served) -> None:
    image = png(bright((10, 20, 30, 40)))
    mask = Image.open(io.BytesIO(known.post("/predict", image, model="map", format="png").content))
    assert mask.mode == "P" and mask.size == (80, 60)
    drawn = Image.open(io.BytesIO(known.post("/predict", image, model="boxes", format="png").content))
    assert drawn.mode == "RGB" and drawn.getpixel((10, 30)) != (0, 0, 0)
    named = all_tasks.post("/predict", image, model="classification", format="png")
    assert Image.open(io.BytesIO(named.content)).size == (80, 60)


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "map", "format": "geojson"}, 422, "doesn't say where it lies"),
    ({"model": "map", "format": "cog"}, 422, "doesn't say where it lies"),
    ({"model": "boxes", "format": "cog", "path": "utm.tif"}, 422, "use format=geojson"),
    ({"model": "boxes", "format": "kml"}, 422, "format"),
    ({"model": "boxes", "threshold": "high"}, 422, "threshold"),
    ({"model": "boxes", "threshold": 7}, 422, "threshold"),
    ({"model": "boxes", "thresold": 0.2}, 422, 'no field "thresold"; did you mean "threshold"?'),
    ({"model": "boxes", "xyz": 1}, 422, 'no field "xyz"; known are after_file'),
    ({"model": "change"}, 422, "compares two dates"),
    ({"model": "boxes", "after_path": "utm.tif"}, 422, "takes one image"),
    ({"model": "other"}, 404, "there is no model 'other'"),
    ({}, 422, "no model is named"),
    ({"model": "boxes", "path": "none.tif"}, 404, "no such file"),
    ({"model": "boxes", "image": "none"}, 404, "no such image"),
    ({"model": "boxes", "path": "utm.tif", "image": "x"}, 422, "give the image once"),
    ({"model": "bands", "path": "plain.png"}, 422, "B2"),
    ({"model": "change", "path": "utm.tif", "after_path": "plain.png"}, 422, "later image"),
]


@pytest.mark.parametrize(("fields", "status", "words"), REFUSED, ids=[str(one[0]) for one in REFUSED])
def test_what_makes_no_sense_is_refused_in_a_sentence(
    known: Served, fields: dict[str, Any], status: int, words: str
) -> None:
    file = None if "path" in fields or "image" in fields else png(bright((1, 2, 30, 40)))
    answer = known.post("/predict", file, **fields)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"} and words in answer.json()["error"]
    assert "Traceback" not in answer.text and str(known.service.store.folder) not in answer.text


def test_fields_in_the_address_are_not_lost(known: Served) -> None:
    for query, words in (("threshold=0.9", "from the form"), ("x=1", 'no "x"')):
        answer = known.client.post(f"/predict?{query}", data={"model": "boxes", "path": "plain.png"})
        assert answer.status_code == 422 and words in answer.json()["error"]


def test_what_is_given_twice_or_is_no_form_is_refused(known: Served) -> None:
    """Of two files the last one would be answered, and of JSON nothing would be read."""
    picture = png(bright((1, 2, 30, 40)))
    for data, files, name in (
        ({"model": "boxes"}, [("file", ("a.png", picture)), ("file", ("b.png", picture))], "file"),
        ({"model": ["boxes", "map"]}, [("file", ("a.png", picture))], "model"),
    ):
        answer = known.client.post("/predict", data=data, files=files)
        assert answer.status_code == 422
        assert answer.json() == {"error": f'the field "{name}" is given 2 times, and one is read'}
    for body in (
        {"json": {"model": "boxes"}},
        {"content": picture, "headers": {"content-type": "image/png"}},
    ):
        answer = known.client.post("/predict", **body)
        assert answer.status_code == 415 and "send a form (multipart/form-data)" in answer.json()["error"]


@pytest.mark.parametrize(("form", "says"), [("TIFF", "holds 2 pages"), ("GIF", "holds 2 images")])
def test_a_file_of_several_images_is_refused_without_words_of_the_command_line(
    known: Served, form: str, says: str
) -> None:
    pages = [Image.fromarray(bright((1, 2, 30, 40))), Image.fromarray(bright((5, 6, 20, 20)))]
    file = io.BytesIO()
    pages[0].save(file, form, save_all=True, append_images=pages[1:])
    answer = known.post("/predict", file.getvalue(), model="boxes")
    assert answer.status_code == 422 and says in answer.json()["error"]
    assert answer.json()["error"].endswith("; save it as a file of its own")


# Images, samples, tiles.


def test_an_image_that_was_sent_is_used_again(known: Served) -> None:
    sent = known.post("/images", png(bright((10, 20, 30, 40)))).json()
    assert (sent["width"], sent["height"], sent["name"], len(sent["bands"])) == (80, 60, "upload", 3)
    found = known.post("/predict", image=sent["id"], model="boxes", threshold=0).json()
    assert found["objects"][0]["box"] == [10, 20, 30, 40]
    sample = known.post("/images", path="utm.tif").json()
    assert sample["name"] == "utm.tif" and sample["placed"]
    assert {one["name"] for one in known.client.get("/samples").json()} == {
        *("later.tif", "plain.png", "utm.tif", "wide/bands.tif")
    }


def test_tiles_are_parts_of_the_image_at_every_level(known: Served) -> None:
    pixels = noise(5, (300, 520))
    number = known.post("/images", png(pixels)).json()["id"]

    def tile(level: int, x: int, y: int) -> np.ndarray:
        answer = known.client.get(f"/images/{number}/tiles/{level}/{x}/{y}.png")
        assert answer.status_code == 200, answer.text
        return np.array(Image.open(io.BytesIO(answer.content)))

    assert (tile(0, 0, 0)[..., :3] == pixels[:256, :256]).all()
    corner = tile(0, 2, 1)
    assert (corner[:44, :8, :3] == pixels[256:, 512:]).all() and corner[..., 3].sum() == 255 * 44 * 8
    half = tile(1, 0, 0)
    wanted = pixels[:256, :512].reshape(128, 2, 256, 2, 3).mean((1, 3))
    assert np.abs(half[:128, :256, :3] - wanted).max() <= 1
    for place in ("0/3/0", "0/0/2", "30/0/0", "-1/0/0", "0/-1/0"):
        assert known.client.get(f"/images/{number}/tiles/{place}.png").status_code == 404
    wide = known.post("/images", path="wide/bands.tif").json()["id"]
    assert known.client.get(f"/images/{wide}/tiles/0/0/0.png").status_code == 200


def test_the_oldest_images_go_first_and_their_files_with_them(tmp_path: Path) -> None:
    limits = ServerLimits(upload_bytes=20_000)  # 80,000 bytes of images are kept
    with serving(tmp_path / "files", {"boxes": BrightObjects()}, limits=limits) as served:
        sent = [served.post("/images", png(noise(seed, (64, 64)))).json()["id"] for seed in range(8)]
        states = [served.post("/predict", image=one, model="boxes").status_code for one in sent]
        assert states[0] == 404 and states[-1] == 200
        assert len(list((tmp_path / "files").iterdir())) == states.count(200) < 8
        served.post("/predict", png(noise()), model="boxes")
        assert len(list((tmp_path / "files").iterdir())) == states.count(200), (
            "a passing upload leaves nothing"
        )


# What clients may not do.


@pytest.fixture(scope="module")
def rooted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a root from which links lead outside."""
    folder = tmp_path_factory.mktemp("rooted")
    root = folder / "root"
    (root / "folder").mkdir(parents=True)
    image = png(bright((1, 1, 9, 9)))
    (root / "inside.png").write_bytes(image)
    (folder / "secret.png").write_bytes(image)
    (root / "link.png").symlink_to(folder / "secret.png")
    (root / "out").symlink_to(folder)
    with serving(folder / "files", {"boxes": BrightObjects()}, root=root) as served:
        yield served


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../secret.png",
            "/etc/passwd",
            "a/../../secret.png",
            "..\\secret.png",
            "link.png",
            "out/secret.png",
        ),
        *(
            "%2e%2e/secret.png",
            "..%2fsecret.png",
            "in\0side.png",
            "\\\\host\\share\\a.png",
            "C:\\a.png",
            "//host/a.png",
        ),
        *(
            "file:///etc/passwd",
            "scene:port/1",
            "tar:x.tar#0+10/a.png",
            "{inside,inside}.png",
            ".",
            "",
            "a" * 5000,
        ),
        *("https://example.org/a.png", "folder", "inside.png#window=0,0,4,4"),
    ],
)
def test_no_file_outside_the_root_is_read(rooted: Served, name: str) -> None:
    answer = rooted.client.post("/predict", data={"model": "boxes", "path": name})
    assert answer.status_code in (404, 422), answer.text
    assert str(rooted.service.store.root) not in answer.text


@pytest.mark.parametrize(
    "stem",
    [
        *("a b", "a#b", "50%", "%41", "c:d", "e?f", "g&h", "x=y", "é", "日本", "a+b", "q;r"),
        *("a\\b", "a\tb", "a\u00a0b", "a#window=0,0,4,4", "a#slice=3", "a#mirror=1", "a#bands=1"),
    ],
)
def test_a_file_of_any_name_is_read(tmp_path: Path, stem: str) -> None:
    root = tmp_path / "root"
    (root / "a folder #1").mkdir(parents=True)
    place = f"a folder #1/{stem}.png"
    (root / place).write_bytes(png(bright((1, 1, 9, 9), (20, 20, 40, 40))))
    write_raster(root / f"{stem}.tif", np.full((3, 40, 40), 200, np.uint8), "utm")
    with serving(tmp_path / "files", {"boxes": BrightObjects()}, root=root) as served:
        assert [one["name"] for one in served.client.get("/samples").json()] == sorted([place, f"{stem}.tif"])
        found = served.post("/predict", model="boxes", path=place)
        assert found.status_code == 200 and len(found.json()["objects"]) == 2
        assert served.client.get("/samples/picture", params={"path": place}).status_code == 200
        shapes = served.post("/predict", model="boxes", path=f"{stem}.tif", format="geojson")
        assert shapes.status_code == 200 and len(shapes.json()["features"]) == 1
        kept = served.client.post("/images", data={"path": place}).json()
        assert (
            served.post("/predict", model="boxes", image=kept["id"]).json()["objects"]
            == found.json()["objects"]
        )


def test_a_file_below_the_root_is_read(rooted: Served) -> None:
    assert rooted.post("/predict", model="boxes", path="inside.png").status_code == 200
    assert [one["name"] for one in rooted.client.get("/samples").json()] == ["inside.png"]


def test_without_a_root_no_file_can_be_named(tmp_path: Path) -> None:
    with serving(tmp_path / "files", {"boxes": BrightObjects()}) as served:
        answer = served.post("/predict", model="boxes", path="a.png")
        assert answer.status_code == 422 and "--root" in answer.json()["error"]
        assert served.client.get("/samples").json() == []


def vrt(source: str) -> bytes:
    return (
        f'<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{source}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    ).encode()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"%PDF-1.7 not an image", 415, "a PDF"),
        (b"", 415, "empty"),
        (b"\x00" * 4000, 415, "are read"),
        (vrt("/etc/passwd"), 415, "virtual raster"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 500, 415, "isn't taken from clients"),
        (b"EHFA_HEADER_TAG" + b"\0" * 500, 415, "isn't taken from clients"),
        (b"PK\x03\x04" + b"\0" * 500, 415, "are read"),
    ],
)
def test_what_is_no_image_is_refused_by_its_content(
    known: Served, content: bytes, status: int, words: str
) -> None:
    for name in ("a.png", "a.tif", "a.vrt"):
        answer = known.client.post("/images", files={"file": (name, content)})
        assert answer.status_code == status, answer.text
        assert words in answer.json()["error"]
    assert not list(known.service.store.folder.glob("*.vrt"))


def test_a_single_dicom_image_is_read_as_predict_reads_it(tmp_path: Path) -> None:
    values_IJK = np.random.default_rng(4).permutation(48 * 40 * 3).reshape(48, 40, 3).astype(np.int16)
    write_series(tmp_path / "series", values_IJK, affine(), RescaleSlope=1, RescaleIntercept=-1000)
    ct = tmp_path / "one.dcm"
    ct.write_bytes((tmp_path / "series" / "im1").read_bytes())
    ranges = ((-1000, 4000), (0, 2000), (0, 3000))
    alone = BrightestBand(
        channels=Channels(channels=tuple(Channel(band="1", low=low, high=high) for low, high in ranges))
    )
    around = BrightestBand(channels=channels_of("1@-1", "1", "1@+1", high=2000.0))
    with serving(tmp_path / "files", {"alone": alone, "around": around}) as served:

        def asked(model: str) -> Any:
            # Its name may say nothing: the content tells what it is.
            return served.client.post(
                "/predict", files={"file": ("scan", ct.read_bytes())}, data={"model": model}
            )

        answer = asked("alone")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["width"], found["height"]) == (48, 40)
        planes_CHW = torch.from_numpy(load_planes(f"{ct}#slice=0", channels=alone.in_channels))
        (wanted,) = predict_images(alone, [planes_CHW])
        mask_HW = np.array(Image.open(io.BytesIO(base64.b64decode(found["mask"]["png"]))))
        assert (torch.from_numpy(mask_HW) == present(wanted.semantic_HW)).all()
        assert np.unique(mask_HW).tolist() == [0, 1]
        refused = asked("around")
        assert refused.status_code == 422
        assert refused.json()["error"] == (
            "the image is one slice, and around sees the slices beside it, too (1@-1, 1@+1): vitp predict reads the "
            "whole series"
        )


def test_a_bomb_is_refused_by_its_head(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (8_000, 4_000)).save(bomb, format="PNG", compress_level=1)
    with serving(
        tmp_path / "files", {"boxes": BrightObjects()}, limits=ServerLimits(pixels=1_000_000)
    ) as served:
        answer = served.post("/predict", bomb.getvalue(), model="boxes")
        assert answer.status_code == 413 and "8000×4000" in answer.json()["error"]
        assert served.post("/images", bomb.getvalue()).status_code == 413
        assert not list((tmp_path / "files").iterdir())


def test_too_much_is_refused_whatever_the_head_says(tmp_path: Path) -> None:
    with serving(
        tmp_path / "files", {"boxes": BrightObjects()}, limits=ServerLimits(upload_bytes=10_000)
    ) as served:
        stated = served.post("/predict", b"x" * 20_000, model="boxes")
        assert stated.status_code == 413 and "10,000 bytes" in stated.json()["error"]
        sent = 0

        def pieces() -> Iterator[bytes]:
            nonlocal sent
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(1000):
                sent += 1
                yield b"x" * 1000

        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = served.client.post("/images", content=pieces(), headers=headers)
        assert answer.status_code == 413 and "bytes" in answer.json()["error"]


def test_a_full_line_says_when_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path / "files", {"boxes": BrightObjects()}, limits=ServerLimits(queue=2)) as served:
        with served.service.line.place(), served.service.line.place():
            answer = served.post("/predict", png(noise()), model="boxes")
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
            assert served.client.get("/health").json()["queue"] == 2
        assert served.post("/predict", png(noise()), model="boxes").status_code == 200
        assert served.client.get("/health").json()["queue"] == 0


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    with serving(tmp_path / "files", {"boxes": BrightObjects()}, token="sesame") as served:
        wrong = "is not the server's token"
        for headers, words in (
            ({}, "a token is needed"),
            ({"Authorization": "Bearer open"}, wrong),
            ({"Authorization": "sesame"}, wrong),
        ):
            answer = served.client.get("/models", headers=headers)
            assert answer.status_code == 401 and words in answer.json()["error"]
            assert answer.headers["www-authenticate"] == "Bearer"
        key = {"Authorization": "Bearer sesame"}
        assert served.client.get("/models", headers=key).status_code == 200
        assert served.client.get("/health").json()["models"] == []
        assert served.client.get("/health", headers=key).json()["models"] == ["boxes"]
        assert served.client.get("/", headers={}).status_code != 401


def test_a_foreign_name_of_this_machine_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "files", {"boxes": BrightObjects()}, local=True) as served:
        for host, status in (
            ("localhost:8000", 200),
            ("127.0.0.1", 200),
            ("[::1]:80", 200),
            ("evil.example", 421),
        ):
            assert served.client.get("/models", headers={"host": host}).status_code == status
    with serving(tmp_path / "files", {"boxes": BrightObjects()}, local=True, token="sesame") as served:
        headers = {"host": "models.example", "Authorization": "Bearer sesame"}
        assert served.client.get("/models", headers=headers).status_code == 200


def test_the_end_is_told(tmp_path: Path) -> None:
    with serving(tmp_path / "files", {"boxes": BrightObjects()}) as served:
        served.gate.draining = True
        answer = served.client.get("/models")
        assert answer.status_code == 503 and "shutting down" in answer.json()["error"]
        assert answer.headers["retry-after"] == "10"


def test_the_log_names_routes_alone(known: Served) -> None:
    known.client.post("/images", files={"file": ("Mustermann^Max.png", png(noise()))})
    known.client.get("/nothing/Mustermann?path=Mustermann.png")
    known.post("/predict", model="boxes", path="Mustermann.png")
    text = "\n".join(known.lines)
    assert "POST /images 200" in text and "GET - 404" in text and "Mustermann" not in text


def test_a_fault_of_the_program_is_one_sentence_and_a_place_in_the_log(
    known: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("Mustermann.png")

    monkeypatch.setattr(known.service.store, "samples", broken)
    answer = known.client.get("/samples")
    assert answer.status_code == 500 and set(answer.json()) == {"error"}
    assert "Mustermann" not in answer.text
    assert any("KeyError at " in line for line in known.lines)
    assert not any("Mustermann" in line for line in known.lines)


# Facts and questions.


def test_models_describe_themselves(all_tasks: Served, known: Served) -> None:
    found = {one["name"]: one for one in all_tasks.client.get("/models").json()}
    assert found["segmentation"]["classes"][1] == {"name": "land", "colour": "#ee6677"}
    assert found["change"]["images"] == 2 and found["detection"]["images"] == 1
    assert found["oriented"]["kind"] == "task" and found["oriented"]["size"] == 32
    bands = {one["name"]: one["bands"] for one in known.client.get("/models").json()}
    assert bands["bands"] == ["B2", "B3", "B8"] and bands["map"] is None
    page = all_tasks.client.get("/api")
    assert "/predict" in page.text and "after_path" in page.text and "http" not in page.text
    assert "/images/{id}/tiles" in str(all_tasks.client.get("/openapi.json").json()["paths"])


def test_what_isnt_there_is_told(known: Served) -> None:
    for method, route, status in (
        ("GET", "/nothing", 404),
        ("GET", "/predict", 405),
        ("DELETE", "/models", 405),
    ):
        answer = known.client.request(method, route)
        assert answer.status_code == status and "/api" in answer.json()["error"]


def test_head_is_get_without_its_body(known: Served) -> None:
    for path in ("/", "/health", "/models", "/samples", "/api", "/openapi.json"):
        whole, head = known.client.get(path), known.client.head(path)
        assert head.status_code == whole.status_code == 200 and head.content == b"", path
        for name in ("content-type", "content-length"):
            assert head.headers[name] == whole.headers[name], path
    assert known.client.head("/nothing").status_code == 404
    refused = known.client.head("/predict")
    assert refused.status_code == 405 and refused.headers["allow"] == "POST" and refused.content == b""
    assert known.client.post("/models").headers["allow"] == "GET, HEAD"
    assert any("HEAD /models 200" in line for line in known.lines)
    # The page of the API still names each route once.
    assert "head" not in known.client.get("/openapi.json").json()["paths"]["/models"]


def test_names_of_models() -> None:
    assert named_sources(["runs/one", "b=runs/two", "starter", "x.onnx"]) == {
        "one": "runs/one",
        "b": "runs/two",
        "starter": "starter",
        "x": "x.onnx",
    }
    for words, problem in ((["a/one", "b/one"], "two models"), (["=x"], "no name"), (["a b=x"], "no name")):
        with pytest.raises(Exception, match=problem):
            named_sources(words)


def test_an_exported_graph_is_served_like_its_run(tmp_path: Path) -> None:
    contract = GraphContract(
        *("segmentation", ("dark", "light"), (32, 32), 1, None, (0.0,) * 3, (1.0,) * 3),
        resize={"mode": "none", "size": None},
        overlap=0.25,
    )

    def run(image_BChw: np.ndarray, /) -> dict[str, np.ndarray]:
        light = image_BChw.mean(1)
        return {"probabilities": np.stack([1 - light, light], 1)}

    worker = Worker("graph", 1, 1 << 30)
    graph = ServedModel("graph", worker, graph=GraphModel(contract, run))
    write_raster(tmp_path / "root" / "utm.tif", np.full((3, 40, 40), 200, np.uint8))
    with serving(tmp_path / "files", {}, others={"graph": graph}, root=tmp_path / "root") as served:
        pixels = bright((10, 20, 30, 40), (50, 5, 70, 15))
        found = served.post("/predict", png(pixels)).json()
        mask_HW = np.array(Image.open(io.BytesIO(base64.b64decode(found["mask"]["png"]))))
        assert (mask_HW == (pixels[..., 0] > 127)).all()
        refused = served.post("/predict", path="utm.tif", format="cog")
        assert refused.status_code == 422 and "serve the run itself" in refused.json()["error"]
    worker.close()


def test_answers_stream_with_their_boxes(vlm: Any, chat: Any, tmp_path: Path) -> None:
    assistant = Assistant(vlm, chat, max_tiles=2)
    with serving(tmp_path / "files", {"talk": assistant, "boxes": BrightObjects()}) as served:
        answer = served.post("/ask", png(noise()), question="How many planes are there?", max_tokens=12)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
        assert events[-1]["done"] and "".join(one["text"] for one in events[:-1]) == events[-1]["answer"]
        image = Image.fromarray(noise())
        assert events[-1]["answer"] == assistant.answer(
            [image], "How many planes are there?", max_new_tokens=12
        )

        def says(*_: Any, stream: Any, **__: Any) -> str:
            stream("<ref>ship</ref><box>[[0, 500, 250, 1000]]</box>")
            return "<ref>ship</ref><box>[[0, 500, 250, 1000]]</box>"

        assistant.answer = says  # type: ignore[method-assign]
        text = served.post("/ask", png(bright((1, 1, 9, 9))), question="Where?").text
        (box,) = json.loads(text.split("\n\n")[-2].removeprefix("data: "))["boxes"]
        assert box["label"] == "ship" and box["box"] == [0, 30, 20, 60]
        assert served.post("/ask", png(noise()), question=" ").status_code == 422
        assert served.post("/ask", png(noise()), question="a", model="boxes").status_code == 422
        assert served.post("/ask", png(noise())[:-300], question="a").status_code in (200, 422)
        assert served.client.get("/health").json()["queue"] == 0


def test_the_examples_of_the_docs_work(vlm: Any, chat: Any, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines() if line]
    assert len(commands) >= 10 and all(words[0] == "curl" for words in commands)
    root = tmp_path / "root"
    write_raster(root / "scene.tif", np.full((3, 40, 40), 200, np.uint8))
    write_raster(root / "later.tif", np.full((3, 40, 40), 20, np.uint8))
    (root / "harbour.png").write_bytes(png(bright((10, 20, 30, 40))))
    models = {"ships": BrightObjects(), "land": BrightestBand(), "change": Brighter()}
    both = {**models, "talk": Assistant(vlm, chat, max_tiles=1)}
    with serving(tmp_path / "files", both, root=root, local=True) as served:  # type: ignore[arg-type]
        for words in commands:
            answer = ran(words, served, root)
            assert answer.status_code == 200, (words, answer.text)


def ran(words: list[str], served: Served, folder: Path) -> Any:
    """Return the answer to a curl command."""
    address = next(word for word in words if word.startswith("http://127.0.0.1:8000/"))
    files, data, headers = {}, {}, {}
    for flag, value in pairwise(words):
        if flag == "-F":
            name, _, content = value.partition("=")
            if content.startswith("@"):
                files[name] = (content[1:], (folder / content[1:]).read_bytes())
            else:
                data[name] = content
        elif flag == "-H":
            name, _, content = value.partition(": ")
            headers[name] = content
        else:
            assert flag in ("curl", "-s", "-sN", "-o", address) or not flag.startswith("-"), f"unknown {flag}"
    route = address.removeprefix("http://127.0.0.1:8000")
    if not (files or data):
        return served.client.get(route, headers=headers)
    return served.client.post(route, files=files or None, data=data, headers=headers)


def test_a_sentence_names_no_file() -> None:
    names = {"/srv/root/Mustermann.tif": "the image"}
    for what, where in (
        ("doesn't overlap /srv/root/Mustermann.tif", "/srv/root/Mustermann.tif"),
        ("can't be read (Mustermann.tif is cut off)", None),
        ("image is damaged", "/srv/root/Mustermann.tif#window=0,0,1,1"),
    ):
        refusal = refusal_of(DataError(what, where=where, fix="name it with --out"), names)
        assert refusal.status_code == 422
        assert (
            "Mustermann" not in refusal.detail
            and "/srv" not in refusal.detail
            and "--out" not in refusal.detail
        )
        assert refusal.detail.startswith("the image ") and "image image" not in refusal.detail
    assert refusal_of(MemoryError(), names).status_code == 503
