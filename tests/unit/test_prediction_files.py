"""Predictions of many files: all that can be made, in a folder that was empty before, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.raster_files import write_raster
from vitp.cli import run as run_cli
from vitp.core.errors import ConfigError, DataError, VitpError
from vitp.core.targets import check_output_file
from vitp.inference import prediction_files
from vitp.inference.inputs import Unusable
from vitp.inference.prediction_files import PREDICTIONS_FILE, is_predictions, predict_files
from vitp.inference.raster_files import MapOptions
from vitp.inference.unfinished import unfinished_folder
from vitp.models.vision import VisionSettings, VisionTower
from vitp.tasks.base import InputSize, TaskModel, TestSettings
from vitp.tasks.build import NeckSettings, build_model

VISION = {"arguments": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}, "image_size": 32}


def model_of(task: str) -> TaskModel:
    torch.manual_seed(0)
    backbone = VisionTower(VisionSettings.model_validate(VISION))
    neck = NeckSettings(options={"channels": 8}) if task != "classification" else NeckSettings()
    head = {"width": 8} if task != "classification" else {}
    classes = ("unchanged", "changed") if task == "change" else ("sea", "land")
    model = build_model(task, backbone, classes, neck, head).eval()
    model.input_size = InputSize(mode="fixed", size=32)
    model.description["input"] = model.input_size.model_dump()
    return model


@pytest.fixture(scope="module")
def model() -> TaskModel:
    return model_of("segmentation")


def save(path: Path, value: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)
    return path


def truncated(path: Path) -> Path:
    """A file with a whole header whose pixels are cut off: only decoding finds out."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_unreadable_images_are_known_before_the_first_prediction(
    model: TaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        save(tmp_path / "in" / f"i{number}.png", number)
    truncated(tmp_path / "in" / "i1x.png")
    (tmp_path / "in" / "i9.jpg").write_text("no image")
    told: list[Unusable] = []
    real = prediction_files.predict_images

    def checked(*arguments: object, **named: object) -> object:
        assert len(told) == 2
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction_files, "predict_images", checked)
    count, unusable = predict_files(
        model, [tmp_path / "in"], tmp_path / "out", TestSettings(), tell=told.append
    )
    assert count == 3 and unusable == told
    assert [Path(one.image).name for one in unusable] == ["i1x.png", "i9.jpg"]
    assert {name for name in files(tmp_path / "out") if name.startswith("masks")} == {
        f"masks/i{number}.png" for number in range(3)
    }
    description = json.loads((tmp_path / "out" / PREDICTIONS_FILE).read_text())
    assert [Path(one["image"]).name for one in description["unusable"]] == ["i1x.png", "i9.jpg"]


def test_where_nothing_can_be_used_nothing_is_written(model: TaskModel, tmp_path: Path) -> None:
    bad = [truncated(tmp_path / "a.png"), truncated(tmp_path / "b.png")]
    with pytest.raises(DataError, match=r"a\.png: none of the 2 images can be used"):
        predict_files(model, bad, tmp_path / "out", TestSettings())
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}


def test_what_fails_later_is_left_out_and_what_stops_is_gone_on_with(
    model: TaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [save(tmp_path / f"{number}.png", number) for number in range(3)]
    real = prediction_files.predict_images
    errors = iter([None, DataError("has gone", where="1.png"), None, None, KeyboardInterrupt()])

    def failing(*arguments: object, **named: object) -> object:
        if (error := next(errors)) is not None:
            raise error
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction_files, "predict_images", failing)
    count, unusable = predict_files(model, images, tmp_path / "out", TestSettings())
    assert count == 2 and [one.reason for one in unusable] == ["1.png: has gone"]
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        predict_files(model, images, tmp_path / "second", TestSettings(), say=said.append)
    assert said[-1].endswith("the same command with --resume goes on there")
    kept = unfinished_folder(tmp_path / "second")
    assert {path.name for path in tmp_path.iterdir()} == {"0.png", "1.png", "2.png", "out", kept.name}
    for note in kept.glob(".owner.*"):
        note.rename(note.with_name(note.name.replace("-", "-9", 1)))  # as if another process had left it
    errors = iter([None, None])  # the first picture isn't seen again
    assert predict_files(model, images, tmp_path / "second", TestSettings(), resume=True) == (3, [])
    errors = iter([KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        predict_files(model, images, tmp_path / "third", TestSettings(), say=said.append)
    assert not unfinished_folder(tmp_path / "third").exists()


def test_predictions_of_two_calls_never_mix(model: TaskModel, tmp_path: Path) -> None:
    one, two = save(tmp_path / "a" / "x.png", 1), save(tmp_path / "b" / "x.png", 2, (32, 32))
    out = tmp_path / "out"
    predict_files(model, [tmp_path / "a", tmp_path / "b"], out, TestSettings())
    named = {
        entry["name"]: entry["image"] for entry in json.loads((out / PREDICTIONS_FILE).read_text())["images"]
    }
    assert named == {"x": str(one), "x-2": str(two)}
    sizes = {}
    for name in named:
        with Image.open(out / "masks" / f"{name}.png") as mask:
            sizes[name] = mask.size
    assert sizes == {"x": (40, 30), "x-2": (32, 32)}
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(VitpError, match=r"holds predictions already; .*--force"):
        predict_files(model, [two], out, TestSettings())
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    predict_files(model, [two], out, TestSettings(), overwrite=True)
    assert {name for name in files(out) if "x-2" in name} == set() and is_predictions(out)


def test_dates_of_one_name_belong_together(tmp_path: Path) -> None:
    model = model_of("change")
    for name in ("A/1", "A/2", "B/2", "B/3", "C/x", "C/y", "D/1", "D/2"):
        save(tmp_path / f"{name}.png")
    said: list[str] = []

    def predict(first: list[str], later: list[str]) -> int:
        dates = [[str(tmp_path / one) for one in ones] for ones in (first, later)]
        out = tmp_path / f"out{len(said)}"
        done = predict_files(
            model, dates[0], out, TestSettings(), later=dates[1], overwrite=True, say=said.append
        )
        return done[0]

    with pytest.raises(
        ConfigError, match=r"A/1\.png would be compared with .*B/2\.png, though .*A/2\.png and"
    ):
        predict(["A"], ["B"])
    with pytest.raises(
        ConfigError, match=r"A/2\.png would be compared with .*D/1\.png, though .*A/2\.png and"
    ):
        predict(["A/2.png", "A/1.png"], ["D/1.png", "D/2.png"])
    assert predict(["A"], ["D"]) == 2 and said == []
    assert predict(["A/2.png"], ["B/2.png"]) == 1 and said == []
    assert predict(["A"], ["C"]) == 2
    assert len(said) == 1 and "C/x.png, as that is their order, and so are 1 others" in said[0]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_others_is_never_touched(model: TaskModel, tmp_path: Path, overwrite: bool) -> None:
    image = save(tmp_path / "x.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(VitpError, match="exists and doesn't hold predictions"):
        predict_files(model, [image], out, TestSettings(), overwrite=overwrite)
    with pytest.raises(VitpError, match="exists and doesn't hold predictions"):
        predict_files(model, [image], out / "thesis.tex", TestSettings(), overwrite=overwrite)
    assert files(out) == {"thesis.tex"}


@pytest.mark.parametrize(
    "named", ["out/pictures/own.png", "out/pictures", "out", "link/own.png", "out/pictures/own.png#page=1"]
)
def test_an_input_is_never_replaced(model: TaskModel, tmp_path: Path, named: str) -> None:
    out = tmp_path / "out"
    predict_files(model, [save(tmp_path / "x.png")], out, TestSettings())
    own = save(out / "pictures" / "own.png", 1)
    (tmp_path / "link").symlink_to(out / "pictures")
    with pytest.raises(VitpError, match=r"out: would be replaced with all that is in it, and .* is an input"):
        predict_files(model, [tmp_path / named], out, TestSettings(), overwrite=True)
    assert own.is_file()


def test_an_empty_folder_may_be_used(model: TaskModel, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert predict_files(model, [save(tmp_path / "x.png")], tmp_path / "out", TestSettings())[0] == 1


def test_pairs_of_different_sizes_are_left_out(tmp_path: Path) -> None:
    model = model_of("change")
    first = [save(tmp_path / "A" / f"{number}.png", number) for number in range(3)]
    later = [save(tmp_path / "B" / f"{number}.png", number) for number in range(2)]
    later.append(save(tmp_path / "B" / "2.png", 2, (20, 30)))
    later[1] = truncated(tmp_path / "B" / "1.png")
    count, unusable = predict_files(model, first, tmp_path / "out", TestSettings(), later=later)
    assert count == 1 and [Path(one.image).name for one in unusable] == ["1.png", "2.png"]
    assert "B/1.png" in unusable[0].reason
    assert unusable[1].reason == "its dates are 40×30 and 20×30 px"


def test_the_command_tells_and_exits_with_1(
    model: TaskModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    save(tmp_path / "in" / "good.png")
    truncated(tmp_path / "in" / "bad.png")
    arguments = ["predict", str(tmp_path / "model"), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert run_cli(arguments) == 1
    said = capsys.readouterr()
    assert "can't be used: " in said.out and "bad.png" in said.out and said.err == ""
    assert "1 of 2 images left out" in said.out
    assert run_cli(arguments) == 2 and "holds predictions already" in capsys.readouterr().err
    assert run_cli([*arguments, "--force"]) == 1
    (tmp_path / "in" / "good.png").unlink()
    assert run_cli([*arguments, "--force"]) == 2
    assert "none of the 1 images can be used" in capsys.readouterr().err
    assert (tmp_path / "out" / "masks" / "good.png").is_file(), "what was there stays"


def test_resuming_what_is_complete_asks_for_the_same_plan(
    model: TaskModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    other = model_of("segmentation")
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save_pretrained(tmp_path / "other")
    one, two, out = save(tmp_path / "1.png"), save(tmp_path / "2.png"), tmp_path / "out"

    def predict(*words: str, of: str = "model", image: Path = one) -> tuple[int, str]:
        status = run_cli(["predict", str(tmp_path / of), str(image), "--out", str(out), *words])
        said = capsys.readouterr()
        return status, said.out + said.err

    assert predict()[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    status, said = predict("--resume")
    assert status == 0 and "is complete, there is nothing to resume" in said
    for found, what in (
        (predict("--resume", "--tta", "d4"), "settings"),
        (predict("--resume", "-s", "window=16"), "settings"),
        (predict("--resume", "--pictures"), "options"),
        (predict("--resume", "--pictures", "--tta", "d4"), "options and settings"),
        (predict("--resume", of="other"), "model"),
        (predict("--resume", image=two), "inputs"),
    ):
        assert found[0] == 2, what
        assert f"finished predictions are there, of other {what};" in found[1] and "--force" in found[1]
    save(one, 9, (50, 30))
    assert "of other inputs" in predict("--resume")[1]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    description = json.loads((out / PREDICTIONS_FILE).read_text())
    del description["plan"]  # of before
    (out / PREDICTIONS_FILE).write_text(json.dumps(description))
    status, said = predict("--resume", "--tta", "d4")
    assert status == 0 and "is complete, there is nothing to resume" in said
    assert predict("--resume", "--force", "--tta", "d4")[0] == 0


# Files that commands write.


def test_files_of_others_and_inputs_are_not_written_over(tmp_path: Path) -> None:
    image = save(tmp_path / "image.png")
    (tmp_path / "notes.txt").write_text("important")
    (tmp_path / "scores.json").write_text('{"a": 1}')
    (tmp_path / "page.html").write_text("\n<!DOCTYPE html>\n<html>")
    (tmp_path / "empty.json").touch()
    for name, kind in (("scores.json", "JSON"), ("page.html", "page"), ("empty.json", "JSON")):
        check_output_file(tmp_path / name, kind)  # type: ignore[arg-type]
    check_output_file(tmp_path / "new.json", "JSON")
    check_output_file(save(tmp_path / "drawn.png"), "PNG", inputs=[image, "scene:port"])
    with pytest.raises(ConfigError, match="is an input of the same command"):
        check_output_file(tmp_path / "." / "image.png", "PNG", inputs=[image])
    for name, kind in (("notes.txt", "JSON"), ("image.png", "page"), ("scores.json", "PNG")):
        with pytest.raises(ConfigError, match=f"exists and is no {kind}"):
            check_output_file(tmp_path / name, kind)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is a folder"):
        check_output_file(tmp_path, "JSON")


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "MODEL", "DATA", "--out", "FILE"),
        ("probe", "starter", "DATA", "--out", "FILE"),
        ("report", "RUN", "--out", "FILE"),
        ("features", "starter", "--images", "scene:port:1", "--out", "FILE"),
        ("ask", "starter", "IMAGE", "What?", "--draw", "FILE"),
        ("ask", "starter", "IMAGE", "What?", "--draw", "IMAGE"),
        ("robustness", "starter", "DATA", "--out", "FOLDER"),
        ("export", "starter", "--out", "FOLDER"),
        ("export", "starter", "--out", "FOLDER", "--force"),
        ("swap", "starter", "FOLDER", "--vision", "starter", "--force"),
        ("convert", "starter", "FOLDER", "--force"),
    ],
)
def test_every_command_refuses_what_is_not_its_own(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"IMAGE": save(tmp_path / "image.png"), "FILE": tmp_path / "notes.txt", "FOLDER": tmp_path / "f"}
    places["FILE"].write_text("important")
    places["FOLDER"].mkdir()
    (places["FOLDER"] / "notes.txt").write_text("important")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_cli([str(places.get(word, word)) for word in words]) == 2
    error = capsys.readouterr().err
    assert "exists and is no" in error or "exists and doesn't hold" in error or "is an input" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("task", "tool"), [("segmentation", "coco"), ("classification", "cvat"), ("detection", "label-studio")]
)
def test_tasks_of_annotation_tools_are_written_beside_the_rest(task: str, tool: str, tmp_path: Path) -> None:
    made, rng = model_of(task), np.random.default_rng(3)
    images = []
    for name in ("a", "b", "c"):
        pixels = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        images.append(save(tmp_path / "in" / f"{name}.png"))
        Image.fromarray(pixels).save(images[-1])
    Image.open(images[0]).save(tmp_path / "in" / "a2.png", compress_level=1)
    said: list[str] = []
    settings = TestSettings(score_threshold=0.0)
    options = MapOptions(tool=tool)  # type: ignore[arg-type]
    predict_files(made, [tmp_path / "in"], tmp_path / "out", settings, options=options, say=said.append)
    assert f"{tool}: 4 tasks, most uncertain first" in said[0] and "1 near duplicates last" in said[0]
    order = (tmp_path / "out" / tool / "order.csv").read_text().splitlines()[1:]
    values = [float(row.split(",")[1]) for row in order]
    assert values[:3] == sorted(values[:3], reverse=True) and 0 < values[0] <= 1
    assert {order[3].split(",")[0], order[3].split(",")[2]} == {"a.png", "a2.png"}
    plain = tmp_path / "plain"
    predict_files(made, [tmp_path / "in"], plain, settings)
    known = files(tmp_path / "out") - {name for name in files(tmp_path / "out") if name.startswith(tool)}
    assert known == files(plain)
    assert all(
        (plain / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
        for name in known - {PREDICTIONS_FILE}
    )


def test_tools_show_pictures_alone(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="coco has no classes of whole images"):
        predict_files(
            model_of("classification"),
            [image],
            tmp_path / "out",
            TestSettings(),
            options=MapOptions(tool="coco"),
        )
    write_raster(tmp_path / "b.tif", np.zeros((3, 30, 40), np.uint8))
    made = model_of("segmentation")
    count, left = predict_files(
        made, [image, tmp_path / "b.tif"], tmp_path / "out", TestSettings(), options=MapOptions(tool="cvat")
    )
    assert count == 1 and "is no picture" in left[0].reason
