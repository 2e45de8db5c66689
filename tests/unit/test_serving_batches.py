"""What the server computes together, and that it is what `vitp predict` writes."""

from __future__ import annotations

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving_toys import TASKS, Served, all_tasks, noise, png
from vitp.inference.prediction_files import predict_files
from vitp.serving.worker import Worker

__all__ = ["all_tasks"]  # a fixture


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
