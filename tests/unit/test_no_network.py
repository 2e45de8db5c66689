"""No connection without being asked: addresses in records, mixtures and descriptions of models are not opened."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vitp.checkpoints.loading import open_tower
from vitp.cli import run as run_cli
from vitp.core.config import make_config
from vitp.core.errors import CheckpointError, ConfigError, DataError, VitpError
from vitp.core.remote import VARIABLE, allow_remote, allowed_schemes, check_allowed
from vitp.data.shards import expand_shards
from vitp.data.sources import open_records
from vitp.io.images import load_image
from vitp.models.arguments import check_language_arguments, check_timm_arguments
from vitp.models.language import LanguageSettings, build_language_model
from vitp.models.timm_backbone import timm_backbone
from vitp.models.vision import VisionSettings, VisionTower


@dataclass
class Listener:
    """Somebody who listens at a port of this machine, and what was wanted of others."""

    port: int
    calls: list[str] = field(default_factory=list)

    @property
    def here(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def urls(self) -> tuple[str, ...]:
        here = self.here
        return (
            f"http://{here}/x.png",
            f"HTTP://{here}/x.png",
            f"https://{here}/x.png",
            f"ftp://{here}/x.png",
            f"s3://bucket-{self.port}/x.png",
            f"http://{here}/a.png::ftp://{here}/b.png",
            f"tar:http://{here}/x.tar#0+10/a.png",
            "file:///etc/hostname",
            f"github://a:b@{here}/x.png",
        )


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """Watch every connection and lookup, with a port that answers nobody."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        found = Listener(server.getsockname()[1])

        def refuse(_self: socket.socket, address: object) -> None:
            found.calls.append(str(address))
            raise OSError(101, "Network is unreachable")

        def no_name(host: object, *_rest: object, **_options: object) -> None:
            found.calls.append(str(host))
            raise socket.gaierror(-3, "Temporary failure in name resolution")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket.socket, "connect_ex", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", no_name)
        yield found
        with pytest.raises(BlockingIOError):
            server.accept()
    assert found.calls == []


def _vitp(*arguments: object) -> tuple[int, str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = run_cli([str(argument) for argument in arguments])
    return code, " ".join(printed.getvalue().split())


def _row(image: object) -> str:
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A ship."}]
    return json.dumps({"id": "1", "image": image, "conversations": said}) + "\n"


def test_images_of_records_are_not_fetched(listener: Listener, tmp_path: Path) -> None:
    for number, url in enumerate(listener.urls):
        with pytest.raises(DataError, match=r"no connection is opened|chain of URLs|URL of this machine"):
            load_image(url)
        rows = tmp_path / f"{number}.jsonl"
        rows.write_text(_row(url))
        assert _vitp("data", "check", rows)[0] == 1
        _vitp("data", "show", rows, "--out", tmp_path / "page.html")
        code, said = _vitp("ask", "starter", url, "What is it?")
        assert code == 2
        assert "--allow-remote" in said or "chain" in said or "this machine" in said


def test_roots_and_annotations_of_mixtures_are_not_fetched(listener: Listener, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(_row("x.png"))
    for url in listener.urls[::2]:
        for entry in (
            {"annotation": "rows.jsonl", "root": url},
            {"annotation": url},
            {"annotation": f"{url}.tar"},
        ):
            mixture = tmp_path / "mixture.json"
            mixture.write_text(json.dumps({"far": entry}))
            assert _vitp("data", "check", mixture)[0] == 1
            code, _ = _vitp("pretrain", "--data", mixture, "--out", tmp_path / "run", "--steps", 1)
            assert code == 2
            if "root" not in entry:
                with pytest.raises(VitpError):
                    open_records(entry["annotation"])


def test_only_the_schemes_that_are_named_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert allowed_schemes() == frozenset()
    allow_remote(["https,S3", "gs://"])
    assert allowed_schemes() == {"https", "s3", "gs"}
    assert os.environ[VARIABLE] == "gs,https,s3"
    check_allowed("https://a/b.png")
    for url in ("http://a/b.png", "ftp://a/b", "file:///etc/passwd", "https://a::ftp://b"):
        with pytest.raises(DataError):
            check_allowed(url)
    for odd in ("file", "*", "ht tp", "https://x"):
        with pytest.raises(ConfigError, match="no scheme"):
            allow_remote([odd])
    monkeypatch.setenv(VARIABLE, "file")
    with pytest.raises(ConfigError, match=VARIABLE):
        allowed_schemes()


def test_what_is_asked_for_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv(VARIABLE, "")
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 9, 9)).save(buffer, "PNG")
    fsspec.filesystem("memory").pipe_file("/far/x.png", buffer.getvalue())
    (tmp_path / "rows.jsonl").write_text(_row("memory://far/x.png"))
    assert _vitp("data", "check", tmp_path / "rows.jsonl")[0] == 1
    assert _vitp("data", "check", tmp_path / "rows.jsonl", "--allow-remote", "https")[0] == 1
    assert _vitp("data", "check", tmp_path / "rows.jsonl", "--allow-remote", "https,memory")[0] == 0
    assert load_image("memory://far/x.png").size == (40, 30), (
        "the variable holds for what the process does next"
    )


VIT = {"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 32, "depth": 1, "num_heads": 2}}


@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": {**VIT["model_args"], "pretrained": True}},
        {"model_args": {**VIT["model_args"], "checkpoint_path": "/etc/passwd"}},
        {"model_args": {**VIT["model_args"], "pretrained_cfg": {"url": "http://{here}/x.pth"}}},
        {"model_args": {**VIT["model_args"], "pretrained_cfg_overlay": {"hf_hub_id": "timm/x"}}},
        {"model_args": {**VIT["model_args"], "cache_dir": "/tmp/x"}},
        {"architecture": "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k"},
        {"architecture": "local-dir:/tmp"},
        {"architecture": "timm/vit_tiny_patch16_224"},
        {"pretrained_cfg": {"url": "http://{here}/x.pth", "hf_hub_id": "timm/x", "source": "hf-hub", "input_size": [3, 32, 32]}},
        {"auto_map": {"AutoModel": "evil--modeling.Evil"}, "_name_or_path": "evil/model", "trust_remote_code": True},
    ],
)  # fmt: skip
def test_descriptions_of_timm_fetch_nothing(
    changes: dict[str, Any], listener: Listener, tmp_path: Path
) -> None:
    config = json.loads(json.dumps({**VIT, **changes}).replace("{here}", listener.here))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"pos_embed": torch.zeros(1, 5, 32)}, folder / "model.safetensors")
    for command in (("export", folder, "--out"), ("convert", folder)):
        code, said = _vitp(*command, tmp_path / "out")
        assert code == 2, said
        assert said.startswith("error: ")
    with pytest.raises(CheckpointError):
        open_tower(folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["internvl_chat", "internvl", "vitp"])
def test_descriptions_of_language_models_fetch_nothing(kind: str, listener: Listener, tmp_path: Path) -> None:
    language = {
        "model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "num_key_value_heads": 1, "_name_or_path": "evil/model",
        "auto_map": {"AutoConfig": "evil--x.Y"}, "_attn_implementation": "kernels-community/flash-attn",
        "quantization_config": {"quant_method": "bitsandbytes"},
    }  # fmt: skip
    config: dict[str, Any] = {
        "model_type": kind,
        "llm_config": language,
        "text_config": language,
        "vision_config": {},
    }
    if kind == "vitp":
        model = {"language": {"model_type": "qwen2", "arguments": language}}
        config = {"format": "vitp-vlm-1", "model": model, "vocabulary": 400}
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    for command in (("export", folder, "--out"), ("convert", folder), ("swap", folder)):
        code, said = _vitp(*command, tmp_path / "out")
        assert code == 2, said
    code, said = _vitp("ask", folder, tmp_path / "x.png", "What?")
    assert code == 2
    assert "Traceback" not in said


def test_models_of_the_hub_are_asked_for(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for command in (("export", "owner/name", "--out"), ("convert", "hf-hub:owner/name")):
        code, said = _vitp(*command, tmp_path / "out")
        assert code == 2
        assert "--allow-remote hf" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pretrained": True}, "'pretrained' is no argument"),
        ({"embed_dims": 32}, 'did you mean "embed_dim"'),
        ({"embed_dim": 10**9}, "out of bounds"),
        ({"embed_dim": 65536, "depth": 1000}, "too many"),
        ({"depth": 10**5}, "too many"),
        ({"mlp_ratio": float("nan")}, "out of bounds"),
        ({"norm_layer": "os.system('x')"}, "no plain word"),
        ({"act_layer": "x" * 1000}, "no plain word"),
        ({"window_size": [[[[7]]]]}, "no plain value"),
        ({"embed_dim": {1, 2}}, "no plain value"),
        ({"num_heads": [2] * 5000}, "no plain value"),
    ],
)
def test_arguments_of_timm_are_on_a_list(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_timm_arguments(arguments, where="x")
    with pytest.raises(ConfigError, match=said):
        VisionTower(VisionSettings(arguments=arguments))
    with pytest.raises(ConfigError, match=said):
        timm_backbone(make_config_of(arguments))


def make_config_of(arguments: dict[str, Any]) -> Any:
    from vitp.models.timm_backbone import TimmSettings

    return make_config(TimmSettings, {"architecture": "resnet18", "arguments": arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"_name_or_path": "evil/x"},
        {"auto_map": {}},
        {"torchscript": True},
        {"_attn_implementation": "kernels-community/x"},
        {"hidden_size": 10**9},
        {"rope_parameters": {"rope_type": "x" * 100}},
        {"hidden_act": "x(y)"},
    ],
)
def test_arguments_of_language_models_are_on_a_list(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build_language_model(LanguageSettings(arguments={"hidden_size": 32, **arguments}), vocabulary=300)


def test_sizes_of_other_language_models_are_taken() -> None:
    check_language_arguments("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}, where="x")
    with pytest.raises(ConfigError, match="n_embd"):
        check_language_arguments("qwen2", {"n_embd": 32}, where="x")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("x-{0..999999999999}.tar", "counts more than"),
        ("x-{0..99999}-{0..99999}.tar", "counts more than"),
        ("x-{0.." + "9" * 5000 + "}.tar", "counts more than"),
        ("x-{5..2}.tar", "counts no shard"),
        ("{" + "0" * 5000 + "..999999}.tar", "counts more than"),
    ],
)
def test_patterns_of_shards_are_bounded(pattern: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        expand_shards(pattern)
    (tmp_path / "m.json").write_text(json.dumps({"x": {"annotation": pattern}}))
    assert _vitp("data", "check", tmp_path / "m.json")[0] == 1


@pytest.mark.parametrize(
    "name", ["pipe.png", "pipe.jsonl", "pipe.json", "pipe.tar", "pipe.safetensors", "pipe.pth"]
)
def test_no_command_waits_for_a_pipe(name: str, tmp_path: Path) -> None:
    pipe = tmp_path / name
    os.mkfifo(pipe)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(_row(str(pipe)))
    for arguments in (
        ("data", "check", rows),
        ("data", "check", pipe),
        ("data", "show", pipe, "--out", tmp_path / "p.html"),
        ("ask", "starter", pipe, "What?"),
        ("export", pipe, "--out", tmp_path / "out"),
        ("convert", pipe, tmp_path / "out", "--architecture", "vit_tiny_patch16_224"),
        ("pretrain", pipe, "--out", tmp_path / "run"),
        ("data", "compile", pipe, "--out", tmp_path / "out"),
        ("plan", pipe),
    ):
        code, said = _vitp(*arguments)
        assert code in (1, 2), said
        assert "Traceback" not in said
