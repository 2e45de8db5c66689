"""`vitp serve`: what it answers, and what it refuses to answer."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from pyproj import Transformer

from tests.map_models import PLACES, Brighter, BrightestBand, BrightObjects, write_raster
from tests.serving_toys import Served, all_tasks, bright, known, noise, png, serving
from vitp.core.errors import DataError
from vitp.inference.ask import Assistant
from vitp.runtime.contract import GraphContract
from vitp.runtime.graph_model import GraphModel
from vitp.serving.models import ServedModel, named_sources
from vitp.serving.refusal import refusal_of
from vitp.serving.worker import Worker

__all__ = ["all_tasks", "known"]  # fixtures


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
