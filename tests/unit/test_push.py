"""Models that leave: the files of each kind and nothing else, no folder of this machine, nothing sent twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tests.push_toys import TASK, run, run_of
from tests.unit.test_prediction_files import VISION
from vitp import load_backbone, load_task
from vitp.checkpoints.description import DataUsed, MixtureUsed, Provenance, without_places
from vitp.checkpoints.export import write_backbone
from vitp.checkpoints.formats import PixelsToFeatures
from vitp.checkpoints.graphs import write_graph
from vitp.cli import run as run_cli
from vitp.core.errors import CheckpointError, ConfigError, VitpError
from vitp.core.sealed import check_sums, write_sums
from vitp.deployment.bundle import gathered
from vitp.deployment.card import vision_of
from vitp.deployment.remotes import push_model, remote_of
from vitp.models.vision import VisionSettings, VisionTower

__all__ = ["run"]  # a fixture


SECRETS = ("/home/alice", "alice", "mueller_anna", "C:\\Users", "secret")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "vit"
    arguments = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
    settings = VisionSettings(arguments=arguments, image_size=32, weights_of="a/b", licence="dinov3-license")
    mixture = MixtureUsed(fingerprint="1:2", sets=[DataUsed(name="scans", records=3, licence="MIT")])
    configuration = {
        "data": "patients/mueller_anna/scans",
        "log": "C:\\Users\\alice\\runs",
        "note": "as in ~/secret/plan, see file:///home/alice/x",
        "init": "a/b",
    }
    provenance = Provenance(source="run", steps=2, mixture=mixture, configuration=configuration)
    write_backbone(folder, VisionTower(settings).eval(), provenance)
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def check_silent(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert [word for word in SECRETS if word.encode() in content] == [], path


def head_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_of_a_run_the_model_leaves_and_nothing_else(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "there"
    assert len(push_model(run, f"file:{out}", licence="Apache-2.0").sent) == 5
    assert names(out) == TASK
    check_silent(out)
    check_sums(out, fix="")
    card = (out / "README.md").read_text()
    assert "| AP | 50.0 | 25.0 – 75.0 |" in card
    assert "| AR | – |  |" in card
    assert "| sea | 40.0 |  |" in card
    assert "| Data: ships | CC-BY-4.0 |" in card
    assert "| Backbone | vit |" in card
    head = {"license": "apache-2.0", "library_name": "vitp", "pipeline_tag": "image-segmentation"}
    found = head_of(out)
    assert [one["name"] for one in found.pop("model-index")] == ["there"]
    assert found == {**head, "tags": ["segmentation", "vitp"]}


@pytest.mark.parametrize("task", ["classification", "segmentation", "change", "detection"])
def test_what_arrives_is_the_model_and_the_card_checks_it(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path / "run", task)
    push_model(run, f"file:{tmp_path / 'model'}")
    assert load_task(tmp_path / "model").classes == load_task(run).classes
    vectors = load_file(tmp_path / "model/check/test_vectors.safetensors")
    assert len(vectors) >= (3 if task in ("change", "detection") else 2)
    monkeypatch.chdir(tmp_path)
    code = (tmp_path / "model/README.md").read_text().split("## Test vectors")[1]
    (block,) = re.findall(r"```python\n(.*?)```", code, re.S)
    exec(block, {})
    (key,) = [name for name in vectors if name not in ("image", "later")][:1]
    broken = {**vectors, key: vectors[key][..., :0]}
    monkeypatch.setattr("safetensors.torch.load_file", lambda path: broken)
    with pytest.raises(AssertionError):
        exec(block, {})


def test_scores_are_what_the_hub_reads(run: Path, tmp_path: Path) -> None:
    push_model(run, f"file:{tmp_path / 'ships'}")
    (read,) = ModelCard.load(tmp_path / "ships" / "README.md").data.eval_results
    told = (read.task_type, read.dataset_name, read.dataset_type, read.dataset_split)
    assert told == ("image-segmentation", "ships", "ships", "test")
    assert (read.metric_type, read.metric_value) == ("AP", 0.5)  # AR couldn't be counted
    bare = run_of(tmp_path / "bare", "classification")
    (bare / "scores.json").unlink()
    push_model(bare, f"file:{tmp_path / 'there'}")
    assert ModelCard.load(tmp_path / "there" / "README.md").data.eval_results is None
    assert "model-index" not in head_of(tmp_path / "there")


@pytest.mark.parametrize("kind", ["vision", "timm"])
def test_a_task_model_leaves_with_the_licence_of_its_weights(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(tmp_path / "run")
    config = run / "model" / "config.json"
    values = json.loads(config.read_text())
    origin = {"weights_of": "facebook/dinov3", "licence": "dinov3-license"}
    values["backbone"]["config"] |= origin
    if kind == "timm":  # a network of stages tells it in the same words
        settings = {"architecture": "resnet18", "arguments": {}, **origin}
        assert vision_of({"backbone": {"kind": "timm", "config": settings}}).licence == "dinov3-license"
        values["backbone"]["config"]["licence"] = "apache-2.0"
    config.write_text(json.dumps(values))
    push_model(run, f"file:{tmp_path / 'there'}", licence="mit" if kind == "vision" else "")
    assert ("whose licence (dinov3-license) binds" in caplog.text) == (kind == "vision")
    assert head_of(tmp_path / "there")["license"] == ("mit" if kind == "vision" else "apache-2.0")
    card = (tmp_path / "there" / "README.md").read_text()
    assert (
        f"| Weights that it goes back to: facebook/dinov3 | {values['backbone']['config']['licence']} |"
        in card
    )
    assert "`facebook/dinov3`, licence:" in card


def test_nothing_is_sent_twice(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "there"
    dry = push_model(run, f"file:{out}", dry_run=True)
    assert set(dry.states.values()) == {"new"}
    assert not out.exists()
    push_model(run, f"file:{out}")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert push_model(run, f"file:{out}").sent == ()
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (out / "model.safetensors").write_bytes(b"cut off")
    (out / "photo.png").write_bytes(b"of somebody")
    assert [file.name for file in push_model(run, f"file:{out}").sent] == ["model.safetensors"]
    again = push_model(run, f"file:{out}", licence="mit")
    assert [file.name for file in again.sent] == ["README.md", "SHA256SUMS"]
    assert (out / "photo.png").read_bytes() == b"of somebody"


def test_another_model_is_replaced_only_when_asked(run: Path, backbone: Path, tmp_path: Path) -> None:
    out = tmp_path / "there"
    push_model(backbone, f"file:{out}")
    (out / "photo.png").write_bytes(b"mine")
    before = names(out)
    with pytest.raises(VitpError, match=r"holds another model \(vitp_backbone\.json\); .*--force"):
        push_model(run, f"file:{out}")
    assert names(out) == before
    assert push_model(run, f"file:{out}", overwrite=True).stale == ("vitp_backbone.json",)
    assert names(out) == {*TASK, "photo.png"}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    with pytest.raises(VitpError, match=r"holds another model \(config\.json\)"):
        push_model(run, f"file:{foreign}")


def test_a_backbone_leaves_without_folders_and_with_its_licences(backbone: Path, tmp_path: Path) -> None:
    out = tmp_path / "there"
    push_model(backbone, f"file:{out}", private=False)
    assert names(out) == {*TASK, "vitp_backbone.json"}
    check_silent(out)
    configuration = json.loads((out / "vitp_backbone.json").read_text())["provenance"]["configuration"]
    note = "as in plan, see x"
    assert configuration == {"data": "scans", "log": "runs", "note": note, "init": "a/b"}
    assert head_of(out)["license"] == "other"
    assert head_of(out)["license_name"] == "dinov3-license"
    card = (out / "README.md").read_text()
    assert "| Weights that it goes back to: a/b | dinov3-license |" in card
    assert "| Data: scans | MIT |" in card
    assert card.count("## Training data") == 1
    assert torch.equal(load_backbone(out).model.cls_token, load_backbone(backbone).model.cls_token)


def test_the_starter_leaves_with_its_tokenizer_and_vectors(tmp_path: Path) -> None:
    push_model("starter", f"file:{tmp_path / 'there'}")
    assert names(tmp_path / "there") == {*TASK, "tokenizer.json", "tokenizer_config.json"}
    assert head_of(tmp_path / "there")["pipeline_tag"] == "image-text-to-text"


def graph_at(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    description = {"kind": "onnx", "file": "model.onnx", "task": "detection", "card": {"data": "ships"}}
    (folder / "vitp_graph.json").write_text(json.dumps(description))
    (folder / "model.onnx").write_bytes(content)
    (folder / "parity.json").write_text(json.dumps({"notes": ["on /home/alice/secret/ships (val)"]}))
    (folder / "README.md").write_text("---\nlibrary_name: onnx\nlicense: mit\n---\n\n# mine\n\nA note.\n")
    (folder / "log.txt").write_text("secret")
    write_sums(folder, ["model.onnx", "vitp_graph.json", "parity.json"])
    return folder


def test_of_a_graph_the_comparison_leaves_and_its_card_stays(tmp_path: Path) -> None:
    graph, out = graph_at(tmp_path / "graph", b"weights"), tmp_path / "there"
    push_model(graph / "model.onnx", f"file:{out}")
    assert names(out) == {"README.md", "SHA256SUMS", "model.onnx", "parity.json", "vitp_graph.json"}
    check_silent(out)
    assert json.loads((out / "parity.json").read_text())["notes"] == ["on ships (val)"]
    assert head_of(out)["license"] == "mit"
    assert "A note." in (out / "README.md").read_text()
    assert "## Intended use and limits" in (out / "README.md").read_text()
    (graph / "model.onnx").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="damaged"):
        push_model(graph, f"file:{out}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.onnx", b'..File "/srv/x/graphs.py", line 3'),
        ("model.onnx", b"../home/alice/vitp"),
        ("README.md", b"# mine\n\nTrained in /mnt/disk/secret.\n"),
        ("README.md", b"# mine\n\nfrom C:\\data\\x\n"),
    ],
)
def test_what_still_names_a_folder_stays(name: str, content: bytes, tmp_path: Path) -> None:
    graph = graph_at(tmp_path / "graph", content if name == "model.onnx" else b"weights")
    if name == "README.md":
        (graph / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: names a folder of this machine"):
        push_model(graph, f"file:{tmp_path / 'there'}")
    assert not (tmp_path / "there").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch-export", "onnx"])
def test_graphs_hold_no_folders(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "graph"
    module = PixelsToFeatures(VisionTower(VisionSettings.model_validate(VISION))).eval()
    write_graph(module, torch.rand(2, 3, 32, 32), kind, path, outputs=("features",))
    assert str(Path(torch.__file__).parents[1]).encode() not in path.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_paths_become_names_and_other_words_stay() -> None:
    kept = ["8-bit values / 255", "CC-BY 4.0", "a/b", "image/png", "https://x.org/a/b", "~", "n/a", "x:y"]
    assert without_places(kept) == kept
    cut = ["/a/b/c", "~/c", "../d/c", "C:\\a\\c", "\\\\host\\c", "file:///a/c"]
    assert without_places(cut) == ["c"] * len(cut)
    assert without_places({"classes": ["/m/01"], "x": "in /a/b/c, then"}) == {
        "classes": ["/m/01"],
        "x": "in c, then",
    }
    assert without_places({"data": "a/b", "init": "org/vit"}, relative=True) == {
        "data": "b",
        "init": "org/vit",
    }


def test_more_files_leave_only_by_name(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "there"
    push_model(run, f"file:{out}", also=["scores.json"])
    assert names(out) == {*TASK, "scores.json"}
    for name, words in {"no.txt": "is no file", "../x": "is no file|outside"}.items():
        with pytest.raises(VitpError, match=words):
            push_model(run, f"file:{out}", also=[name])
    with pytest.raises(CheckpointError, match="names a folder"):
        push_model(run, f"file:{out}", also=["cases.csv"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ships", "is no repository of the hub; write OWNER/NAME, or file:ships"),
        ("file:", "names no folder"),
        ("file://host/x", "names no folder"),
        (
            "here/ships",
            "may be a repository of the hub, or a folder here; write hf-hub:here/ships or file:here",
        ),
        ("me/ships", "no connection is opened unless .*--allow-remote hf"),
        ("hf-hub:here/ships", "no connection is opened unless"),
    ],
)
def test_remotes_are_told_apart(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VITP_ALLOW_REMOTE", raising=False)
    with pytest.raises(ConfigError, match=words):
        remote_of(text)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda run, tmp: (tmp / "nothing", {}), "is no file or folder"),
        (lambda run, tmp: (tmp, {}), "holds nothing to push"),
        (lambda run, tmp: (run / "checkpoints", {}), "holds nothing to push"),
        (lambda run, tmp: (run, {"private": True}), "a folder is as private as its permissions"),
        (lambda run, tmp: (run, {"to": f"file:{run / 'model' / 'x'}"}), "is the model's own folder"),
    ],
)
def test_what_can_not_leave_is_said(make: Any, words: str, run: Path, tmp_path: Path) -> None:
    source, options = make(run, tmp_path)
    to = options.pop("to", f"file:{tmp_path.parent / 'there'}")
    with pytest.raises(VitpError, match=words):
        push_model(source, to, **options)


def test_the_command_shows_files_and_card_first(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["push", str(run), f"file:{tmp_path / 'x'}", "--dry-run"]) == 0
    shown = capfd.readouterr().out
    assert [name for name in (*TASK, "would send 5 of 5") if name not in shown] == []
    assert "## Intended use and limits" in shown
    assert not (tmp_path / "x").exists()


def test_bundles_vanish_after_their_block(run: Path) -> None:
    with gathered(run, "ships") as bundle:
        made = [file.path for file in bundle.files if run not in file.path.parents]
        assert made
        assert all(path.is_file() for path in made)
    assert not any(path.exists() for path in made)
