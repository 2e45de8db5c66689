"""From labels to an exported backbone, as a user does it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from tests.e2e.conftest import SIZE, done, environment, finish, litter, read_rows, start, vitp, write_config

LAYOUTS = ("masks", "coco", "yolo", "dota", "voc", "folders", "pairs")
QUESTION = "Is there a ship in the image?"


def image_of(scenes: Path) -> Path:
    return sorted((scenes / "test" / "images").iterdir())[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_compiles_to_records_that_can_be_used(tmp_path: Path, layout: str) -> None:
    labels, out = tmp_path / "labels", tmp_path / "compiled"
    made = done("data", "scenes", "port", "--layout", layout, "--count", 20, "--size", SIZE, "--out", labels)
    assert "20 scenes" in made.out and "14 train, 2 val, 4 test" in made.out
    done("data", "compile", labels, "--out", out, "--format", "auto")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["label_format"] == layout
    assert sum(split["images"] for split in summary["splits"].values()) == 20
    for split, counts in summary["splits"].items():
        rows = read_rows(out / f"{split}.jsonl")
        assert len(rows) == counts["records"]
        assert sum(len(row["conversations"]) // 2 for row in rows) == counts["turns"]
        for row in rows:
            images = row["image"] if isinstance(row["image"], list) else [row["image"]]
            assert len(images) == (2 if layout == "pairs" else 1)
            root = out / json.loads((out / "mixture.json").read_text())[summary["name"]]["root"]
            assert all(Image.open(root / name).size == (SIZE, SIZE) for name in images)
    report = vitp("data", "check", out, "--json")
    assert (report.code, report.err) == (0, "")
    checked = json.loads(report.out)
    assert [f for f in checked["findings"] if f["severity"] == "error"] == []
    assert litter(tmp_path) == []


def test_captions_of_a_table_compile(tmp_path: Path, scenes: Path) -> None:
    folder = tmp_path / "captioned"
    (folder / "images").mkdir(parents=True)
    lines = ["image,caption"]
    for number, path in enumerate(sorted((scenes / "train" / "images").iterdir())[:12]):
        (folder / "images" / path.name).write_bytes(path.read_bytes())
        lines.append(f'images/{path.name},"A port, seen from above, number {number}."')
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "compiled"
    done("data", "compile", folder, "--out", out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["label_format"] == "captions"
    assert sum(split["images"] for split in summary["splits"].values()) == 12
    answers = [
        row["conversations"][1]["value"]
        for split in ("train", "val", "test")
        for row in read_rows(out / f"{split}.jsonl")
    ]
    assert sum("seen from above, number" in answer for answer in answers) == 12
    assert vitp("data", "check", out).code == 0


def test_scenes_compile_without_files_of_images(tmp_path: Path) -> None:
    out = tmp_path / "compiled"
    done("data", "compile", "port", "--format", "scenes", "--out", out, "-o", "count=20", "-o", "size=48")
    assert vitp("data", "check", out).code == 0
    assert {path.suffix for path in out.rglob("*") if path.is_file()} <= {".json", ".jsonl"}


def test_a_compilation_is_the_same_twice(tmp_path: Path, scenes: Path, compiled: Path) -> None:
    done("data", "compile", scenes, "--out", scenes.parent / "again")
    for name in ("train.jsonl", "val.jsonl", "test.jsonl", "mixture.json"):
        assert (scenes.parent / "again" / name).read_bytes() == (compiled / name).read_bytes()


def test_the_run_learned_and_says_so(finished: Path) -> None:
    rows = [row for row in read_rows(finished / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert all(sum(row["grad_share"].values()) == pytest.approx(1) for row in rows)
    evidence = json.loads((finished / "evidence.json").read_text())
    assert evidence["step"] == 10 and evidence["meant_to_train"]
    assert evidence["relative_change"] > 1e-3 and evidence["gradient_share"] > 0
    assert all(layer["change"] > 0 for layer in evidence["layers"])
    assert 0 < evidence["cka"] < 1
    probes = read_rows(finished / "probes.jsonl")
    assert [row["step"] for row in probes] == [0, 5, 10]
    assert probes[0]["probe/cka_to_start"] == pytest.approx(1)
    assert all(0 <= row["probe/patches_linear/patch_mIoU"] <= 1 for row in probes)
    assert [path.name for path in sorted((finished / "checkpoints").iterdir())] == [
        "step_00000008",
        "step_00000010",
    ]
    assert litter(finished) == []


def test_the_moved_weights_are_those_in_the_model(finished: Path) -> None:
    start_of_run = load_file(finished / "start_vision.safetensors")
    model = load_file(finished / "model" / "model.safetensors")
    moved = sum(float((model[f"vision.{n}"] - t).square().sum()) for n, t in start_of_run.items())
    norm = sum(float(t.square().sum()) for t in start_of_run.values())
    evidence = json.loads((finished / "evidence.json").read_text())
    assert (moved / norm) ** 0.5 == pytest.approx(evidence["relative_change"], rel=1e-5)


def test_export_is_the_trained_tower_through_timm(finished: Path, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "backbone"
    made = done("export", finished, "--out", out)
    assert "wrote" in made.out
    assert " ok " in done("export", out, "--verify", "--against", finished).out
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert isinstance(model, VisionTransformer)
    trained = load_file(finished / "model" / "model.safetensors")
    state = model.state_dict()
    assert {f"vision.model.{name}" for name in state} == {n for n in trained if n.startswith("vision.")}
    assert all(torch.equal(tensor, trained[f"vision.model.{name}"]) for name, tensor in state.items())
    from vitp import load_backbone
    from vitp.checkpoints.loading import load_vlm

    pixels = torch.from_numpy(np.array(Image.open(image_of(scenes)).resize((32, 32)))).permute(2, 0, 1)[None]
    towers = [load_backbone(out), load_vlm(finished).vlm.vision]
    features = [tower.forward_tokens(tower.normalize(pixels)) for tower in towers]
    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
    through_timm = model.forward_features((pixels / 255 - mean) / std)[:, model.num_prefix_tokens :]
    assert torch.equal(features[0], features[1])
    assert torch.allclose(features[0], through_timm, atol=1e-5)
    description = json.loads((out / "vitp_backbone.json").read_text())
    assert description["provenance"]["steps"] == 10
    assert str(finished.parent) not in (out / "README.md").read_text()
    assert litter(tmp_path) == []


def test_a_changed_export_is_found_out(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "backbone"
    done("export", finished, "--out", out)
    file = out / "model.safetensors"
    broken = bytearray(file.read_bytes())
    broken[-3] ^= 0x40
    file.write_bytes(broken)
    result = vitp("export", out, "--verify")
    assert result.code == 2 and "export the backbone anew" in result.error


def test_pages_need_nothing_from_elsewhere(finished: Path, compiled: Path, tmp_path: Path) -> None:
    page, data = tmp_path / "report.html", tmp_path / "data.html"
    done("report", finished, "--out", page, "--samples", 2)
    done("data", "show", compiled, "--model", finished, "--count", 4, "--out", data)
    for path in (page, data):
        text = path.read_text(encoding="utf-8")
        assert text.rstrip().endswith("</html>")
        assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?!data:|#)[^\s\"'>]*(?://|\.js|\.css|\.png)", text)
        assert not re.search(r"url\((?!['\"]?(?:data:|#))", text)
        assert "data:image/" in text
    assert "vision tower" in page.read_text(encoding="utf-8")
    assert len(json.loads((finished / "samples.json").read_text())) == 2


def test_probes_score_run_and_export_alike(finished: Path, compiled: Path, tmp_path: Path) -> None:
    done("export", finished, "--out", tmp_path / "backbone")
    out = tmp_path / "probes.json"
    done(
        "probe", finished, compiled, "--compare", tmp_path / "backbone", "--seeds", 1, "--out", out,
    )  # fmt: skip
    run, export = json.loads(out.read_text()).values()
    differences = export.pop("differences")
    assert run == export
    assert [one["task"] for one in differences] == [row["task"] for row in run["rows"]]
    assert all(one["mean"] == one["low"] == one["high"] == 0 for one in differences)
    values = [value for row in run["rows"] for value in row["values"]]
    assert len(values) >= 4 and all(0 <= value <= 1 for value in values)


def test_questions_are_answered_and_drawn(finished: Path, scenes: Path, tmp_path: Path) -> None:
    from vitp.checkpoints.loading import load_vlm
    from vitp.inference.ask import Assistant

    loaded = load_vlm(finished)
    expected = Assistant(loaded.vlm, loaded.chat).answer([image_of(scenes)], QUESTION, max_new_tokens=5)
    picture = tmp_path / "answer.png"
    asked = done("ask", finished, image_of(scenes), QUESTION, "--draw", picture, "--max-tokens", 5)
    assert asked.out == f"{expected}\nwrote {picture}\n"
    assert Image.open(picture).size[0] >= SIZE


def test_tokens_are_counted_with_the_run_s_tokenizer(finished: Path, compiled: Path) -> None:
    assert vitp("data", "check", compiled, "--model", finished, "--max-length", 2048).code == 0
    short = vitp("data", "check", compiled, "--model", finished, "--max-length", 24)
    assert short.code == 1 and "token" in short.out


@pytest.mark.slow
def test_the_whole_way_in_processes_of_their_own(tmp_path: Path) -> None:
    def ran(*arguments: object) -> str:
        result = finish(start(*arguments, cwd=tmp_path))
        assert (result.code, result.err) == (0, ""), result
        return result.out

    ran("data", "scenes", "port", "--count", 30, "--size", SIZE, "--out", "port")
    ran("data", "compile", "port", "--out", "compiled")
    ran("data", "check", "compiled")
    config = write_config(tmp_path / "run.yaml", Path("compiled"))
    assert "vision tower" in ran("pretrain", config, "--out", "run")
    ran("report", "run", "--samples", 1)
    ran("export", "run", "--out", "backbone")
    assert "differs" not in ran("export", "backbone", "--verify", "--against", "run")
    ran("probe", "backbone", "compiled", "--seeds", 1)
    ran("ask", "run", "port/test/images/" + image_of(tmp_path / "port").name, QUESTION, "--max-tokens", 3)
    assert litter(tmp_path) == []


def test_the_program_starts_without_the_heavy_libraries() -> None:
    code = "import sys, vitp.cli; print(sorted({'torch', 'transformers', 'timm'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
