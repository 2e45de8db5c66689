"""What users get wrong: one line, exit code 2, the remedy, and what was there stays as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import save_image
from tests.e2e.conftest import done, litter, refused, snapshot, vitp, write_config


def row(number: int, image: str, question: str = "<image>\nIs there a ship?", answer: str = "yes") -> dict:
    return {
        "id": f"row-{number}",
        "image": image,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
    }


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Eight rows with an image each."""
    lines = []
    for number in range(8):
        save_image(tmp_path / "data" / f"{number}.png", number)
        lines.append(json.dumps(row(number, f"{number}.png")))
    path = tmp_path / "data" / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def replace_row(path: Path, number: int, text: str) -> None:
    lines = path.read_text().splitlines()
    lines[number] = text
    path.write_text("\n".join(lines) + "\n")


def refused_run(tmp_path: Path, data: Path, *more: object, **changes: Any) -> str:
    """Pretrain on data that can't be used; nothing that looks like a result may be left."""
    config = write_config(tmp_path / "run.yaml", data, **changes)
    before = snapshot(data.parent)
    error = refused("pretrain", config, "--out", tmp_path / "run", *more)
    assert snapshot(data.parent) == before
    # Not even a configuration: with the mistake mended, the same command must work.
    assert not any((tmp_path / "run" / name).exists() for name in ("config.yaml", "model", "checkpoints"))
    assert litter(tmp_path) == []
    return error


def test_a_refused_set_is_said_to_be_understood_so(tmp_path: Path) -> None:
    for number in range(24):
        save_image(tmp_path / "set" / "beach" / f"{number}.png", number)
    words = ("--format", "folders", "--task", "caption=0")
    result = vitp("data", "compile", tmp_path / "set", "--out", tmp_path / "out", *words)
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert result.out.startswith("understood as folders:\n") and "splits: train" in result.out
    assert not (tmp_path / "out").exists()


# Images and rows.


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_image_is_named_with_its_row(tmp_path: Path, rows: Path, workers: int) -> None:
    (rows.parent / "5.png").unlink()
    train = {"steps": 4, "num_workers": workers}
    error = refused_run(tmp_path, rows, train=train)
    assert "5.png: image is missing; check the path" in error and "rows.jsonl:6" in error
    check = vitp("data", "check", rows, "--json")
    (finding,) = json.loads(check.out)["findings"]
    assert check.code == 1 and finding["line"] == 6 and "missing" in finding["what"]


def truncated(path: Path) -> None:
    Image.effect_noise((200, 200), 80).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:3000])


def no_image(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [(truncated, "image is damaged"), (no_image, "is not an image"), (empty, "is not an image")],
)
def test_a_broken_image_is_named_with_its_row(
    tmp_path: Path, rows: Path, spoil: Callable[[Path], None], message: str, workers: int
) -> None:
    spoil(rows.parent / "5.png")
    train = {"steps": 4, "num_workers": workers}
    error = refused_run(tmp_path, rows, train=train)
    assert message in error and "5.png" in error and "rows.jsonl:6" in error
    check = vitp("data", "check", rows)
    assert check.code == 1 and "rows.jsonl:6" in check.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "row-5", "image": "5.png", "conv', ":6: broken JSON, column"),
        ("[1, 2]", ":6: a row must be an object"),
        (json.dumps(row(5, "5.png", "<image> <image> two?")), "rows.jsonl:6 (id row-5)"),
        (json.dumps(row(5, "5.png") | {"conversations": []}), "rows.jsonl:6 (id row-5)"),
        (json.dumps(row(5, "5.png", answer="")), "rows.jsonl:6"),
    ],
)
def test_a_broken_row_is_named_by_its_line(tmp_path: Path, rows: Path, text: str, message: str) -> None:
    replace_row(rows, 5, text)
    assert message in refused_run(tmp_path, rows)
    check = vitp("data", "check", rows)
    assert check.code == 1 and "rows.jsonl:6" in check.out and check.err == ""


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("a \ud83d", "rows.jsonl:4 (id row-3): answer 1 holds half a character (the lone surrogate U+D83D)"),
        ("a\0b", "rows.jsonl:4 (id row-3): answer 1 holds a NUL character"),
    ],
)
def test_a_text_that_nothing_can_write_is_named_by_its_row(
    tmp_path: Path, rows: Path, answer: str, message: str
) -> None:
    replace_row(rows, 3, json.dumps(row(3, "3.png", answer=answer)))
    assert message in refused_run(tmp_path, rows)
    for model in ((), ("--model", "starter")):
        check = vitp("data", "check", rows, "--json", *model)
        assert (check.code, check.err) == (1, "")
        found = json.loads(check.out)["findings"]
        assert [(f["line"], f["what"]) for f in found] == [(4, message.split("): ", 1)[1])]


def test_data_without_any_image_is_refused_and_a_part_of_it_warned_of(tmp_path: Path, rows: Path) -> None:
    blind = [json.dumps(row(n, "", "Is there a ship?") | {"system": "Be brief."}) for n in range(8)]
    replace_row(rows, 5, blind[5].replace('"image": "", ', ""))
    config = write_config(tmp_path / "run.yaml", rows)
    out = " ".join(done("pretrain", config, "--out", tmp_path / "seen").out.split())
    assert (
        "rows: 1 of 8 rows has no image" in out and "1 of 8 rows has a system text, which is dropped" in out
    )
    rows.write_text("\n".join(line.replace('"image": "", ', "") for line in blind) + "\n")
    assert "no row has an image: there is nothing for the ViT to learn" in refused_run(tmp_path, rows)


def test_empty_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data" / "rows.jsonl"
    path.parent.mkdir()
    path.write_text("")
    assert "rows.jsonl" in refused_run(tmp_path, path)
    assert vitp("data", "check", path).code == 1


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    error = refused_run(tmp_path, tmp_path / "data" / "nowhere")
    assert "nowhere" in error
    assert "mixture.json" in refused_run(tmp_path, tmp_path / "data")


# Configuration.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=0.1", "unknown key 'optim.lrr'; did you mean \"lr\"?"),
        ("data.sequence.max_tile=2", 'did you mean "max_tiles"?'),
        ("optim.lr=fast", "optim.lr is 'fast': must be a number, not text"),
        ("train.steps=0", "train.steps is 0: input should be greater than 0"),
        ("train.steps=1.5", "train.steps is 1.5"),
        ("optim.schedule=cosin", "optim.schedule is 'cosin': input should be 'cosine'"),
        ("objective.vrl.ratio=1.5", "objective.vrl.ratio is 1.5"),
        ("model.freeze=[vison]", "'vison' fits no parameter"),
        ("model.init=nowhere", "nowhere: there is no such file or folder"),
        ("train.device=cuda:99", "train.device"),
        ("train.must_train=[vision]", 'unknown part "vision"; did you mean "vision tower"?'),
        ("train.loss_weights={langage: 2}", 'did you mean "language"?'),
        ("model.scratch.vision.architecture=vit_tiny_patch16_225", "did you mean"),
        ("model.scratch.vision.image_size=36", "choose a multiple of 8"),
        ("no value", "write it like optim.lr=1e-4"),
    ],
)
def test_a_wrong_setting_is_named_with_a_hint(
    tmp_path: Path, rows: Path, override: str, message: str
) -> None:
    assert message in refused_run(tmp_path, rows, "--set", override)


def test_a_configuration_that_is_no_yaml_is_named_by_its_line(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("seed: 0\ndata: [unclosed\nmodel: {\n")
    error = refused("pretrain", config, "--out", tmp_path / "run")
    assert "run.yaml:3: is no YAML" in error
    assert "can't be read" in refused("pretrain", tmp_path / "no.yaml", "--out", tmp_path / "run")
    assert "name a configuration or --data" in refused("pretrain", "--out", tmp_path / "run")
    assert snapshot(tmp_path).keys() == {"run.yaml"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compile", "x", "--format", "coko", "--out", "o"), 'did you mean "coco"?'),
        (("compile", "port", "--format", "scenes", "--out", "o", "--task", "presense=1"), 'mean "presence"?'),
        (("compile", "port", "--format", "scenes", "--out", "o", "-o", "cout=9"), 'did you mean "count"?'),
        (("compile", "port", "--format", "scenes", "--out", "o", "-o", "count"), "write it like name=value"),
        (("compile", "prot", "--format", "scenes", "--out", "o"), 'did you mean "port"?'),
        (("compile", "nowhere", "--out", "o"), "nowhere"),
        (("compile", "x", "--sead", "1"), "--seed"),
        (("scenes", "prot", "--out", "o"), 'did you mean "port"?'),
        (("scenes", "port", "--layout", "mask", "--out", "o"), 'did you mean "masks"?'),
        (("scenes", "port", "--count", "0", "--out", "o"), "--count"),
        (("comple",), "compile"),
    ],
)
def test_unknown_names_on_the_command_line_get_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    assert message in refused("data", *arguments)
    assert snapshot(tmp_path) == {"x": ""}


def test_arguments_that_are_missing_are_named(tmp_path: Path) -> None:
    assert "Missing argument 'backbone'; see `vitp probe --help`" in refused("probe")
    help_ = vitp()
    assert help_.code in (0, 2) and "pretrain" in help_.out + help_.err and "error" not in help_.err


def test_a_folder_of_somebody_else_is_not_written_into(tmp_path: Path, scenes: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for arguments in (
        ("data", "compile", scenes, "--out", mine, "--force"),
        ("data", "scenes", "port", "--count", 3, "--size", 32, "--out", mine),
    ):
        assert str(mine) in refused(*arguments)
    assert (mine / "thesis.txt").read_text() == "years of work" and len(list(mine.iterdir())) == 1


# Models.


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A finished run to spoil."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def other_architecture(file: Path) -> None:
    weights = load_file(file)
    name = next(n for n in weights if n.startswith("vision.") and weights[n].ndim == 2)
    save_file(weights | {name: torch.zeros(3, 3)}, file)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def without_a_weight(file: Path) -> None:
    weights = load_file(file)
    weights.pop(next(n for n in weights if n.startswith("vision.")))
    save_file(weights, file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_architecture, "is of another architecture: 1 of another shape (vision."),
        (without_a_weight, "is of another architecture: 1 missing"),
        (cut_short, "is no whole safetensors file"),
        (empty, "is no whole safetensors file"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_every_command(
    copy: Path, compiled: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(copy / "model" / "model.safetensors")
    before = snapshot(copy)
    config = write_config(tmp_path / "run.yaml", compiled, model={"init": str(copy), "scratch": None})
    image = save_image(tmp_path / "image.png")
    for arguments in (
        ("ask", copy, image, "Is there a ship?"),
        ("probe", copy, compiled),
        ("report", copy),
        ("pretrain", config, "--out", tmp_path / "run"),
        ("data", "show", compiled, "--model", copy, "--out", tmp_path / "data.html"),
    ):
        error = refused(*arguments)
        assert "model.safetensors" in error
        assert (message in error) or arguments[0] == "probe"
    assert "model.safetensors" in refused("export", copy, "--out", tmp_path / "backbone")
    assert snapshot(copy) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"copy", "run.yaml", "image.png", "run"}
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_run_without_a_whole_checkpoint_is_refused(copy: Path, name: str) -> None:
    for checkpoint in (copy / "checkpoints").iterdir():
        cut_short(checkpoint / name)
    before = snapshot(copy / "checkpoints")
    error = refused("pretrain", "--resume", "--out", copy)
    assert name in error and "all 2 checkpoints are damaged" in error
    assert snapshot(copy / "checkpoints") == before


def test_a_model_without_its_tokenizer_is_refused(copy: Path, tmp_path: Path) -> None:
    file, question = copy / "model" / "tokenizer.json", "Is there a ship?"
    image = save_image(tmp_path / "image.png")
    cut_short(file)
    assert f"{file.parent}: holds no tokenizer that can be read" in refused("ask", copy, image, question)
    file.unlink()
    assert f"{file.parent}: holds no tokenizer.json" in refused("ask", copy, image, question)


def test_a_broken_configuration_of_a_model_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "model" / "config.json").write_text('{"format": "vitp-vlm-1"}')
    image = save_image(tmp_path / "image.png")
    for arguments in (("ask", copy, image, "Is there a ship?"), ("export", copy, "--out", tmp_path / "b")):
        assert "config.json" in refused(*arguments)


def test_runs_that_are_missing_or_unfinished_are_refused(finished: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(finished, unfinished, ignore=shutil.ignore_patterns("model"))
    before = snapshot(unfinished)
    for run in (unfinished, tmp_path / "nowhere"):
        assert "a run that has finished" in refused("export", run, "--out", tmp_path / "backbone")
        assert "a run that has finished" in refused("report", run)
        assert "a run that has finished" in refused("ask", run, "image.png", "What is it?")
    assert snapshot(unfinished) == before
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]


def test_questions_that_can_not_be_asked_are_refused(finished: Path, tmp_path: Path) -> None:
    image = save_image(tmp_path / "image.png")
    assert "image is missing" in refused("ask", finished, tmp_path / "no.png", "What is it?")
    assert "the question is missing" in refused("ask", finished, image)
    no_image(tmp_path / "page.png")
    assert "is not an image" in refused("ask", finished, tmp_path / "page.png", "What is it?")
    assert "<image>" in refused("ask", finished, image, "<image> or <image>?")
    assert "half a character" in refused("ask", finished, image, "What \udce9 is it?")
    assert (
        done("ask", finished, image, "a <end> <|im_end|> <IMG_CONTEXT> <img>?", "--max-tokens", 2).code == 0
    )


def test_probes_need_a_compiled_set(finished: Path, scenes: Path, compiled: Path, tmp_path: Path) -> None:
    for data in (scenes, tmp_path / "nowhere", tmp_path):
        error = refused("probe", finished, data)
        assert str(data) in error and "vitp data compile" in error
    view = refused("probe", finished, compiled, "--view", "part")
    assert "--view" in view and "whole" in view and "tiles" in view
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_not_written_over(finished: Path, tmp_path: Path) -> None:
    assert "name it with --out" in refused("export", finished)
    out = tmp_path / "backbone"
    assert vitp("export", finished, "--out", out).code == 0
    before = snapshot(tmp_path)
    assert "exists" in refused("export", finished, "--out", out)
    assert snapshot(tmp_path) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "choose another folder" in refused("export", finished, "--out", tmp_path / "mine", "--force")
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_an_image_or_nothing_in_place_of_the_question(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(image)
    assert "is an image, not a question" in refused("ask", "starter", image, image)
    assert "the question is empty" in refused("ask", "starter", image, " ")
