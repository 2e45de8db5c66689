"""`compute.fp8`: what is computed is that of fp32 within what fp8 can say, what is saved is the same, and refusals."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from tests.conftest import tiny_chat
from vitp.core.errors import ConfigError
from vitp.models.compute import ComputeSettings, configure
from vitp.models.float8 import float8_line, is_float8, use_float8
from vitp.models.language import micro_qwen2
from vitp.models.vision import VisionSettings, VisionTower
from vitp.models.vlm import VisionLanguageModel, VLMSettings
from vitp.objectives.vitp import ViTPObjective
from vitp.planning.bench.synthetic import SyntheticSource, Workload

LOSS, COSINE = 1e-3, 0.998
"""Largest relative difference of the loss, least cosine of the gradient: numbers of fp8 have 3 bits behind the leading
one (4 %), those of its gradients 2 (8 %), and errors of many products average out."""


def objective(width: int = 32, mlp: int = 40) -> ViTPObjective:
    """A small model; layers with a side of 40 don't fit."""
    torch.manual_seed(0)
    arguments = {"embed_dim": width, "depth": 2, "num_heads": 2, "patch_size": 8}
    vision = VisionSettings(arguments=arguments, image_size=32)
    language = micro_qwen2(width=width, layers=2, heads=2, kv_heads=1, mlp=mlp)
    config = VLMSettings(vision=vision, language=language, shuffle=1, template="micro")
    chat = tiny_chat()
    return ViTPObjective(VisionLanguageModel(config, vocabulary=len(chat)), chat).train()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU as far as questions about it go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    return monkeypatch


@pytest.mark.slow  # importing torchao takes seconds
def test_losses_and_gradients_are_those_of_fp32_within_fp8() -> None:
    pytest.importorskip("torchao.float8")
    exact = objective()
    rounded = copy.deepcopy(exact)
    use_float8(rounded.vlm, emulate=True)
    assert float8_line(rounded.vlm) == (
        "fp8: 16 of 22 linear layers of ViT and language model; "
        "6 stay as they are, as a side is no multiple of 16"
    )
    assert float8_line(exact.vlm) is None
    batch = SyntheticSource(exact.chat, 32, Workload(records=3, questions=2))(0, 0, 0, 1)
    losses, gradients = [], []
    for model in (exact, rounded):
        loss = model(batch)["language"]
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[0] != losses[1], "nothing was rounded"
    assert abs(losses[1] / losses[0] - 1) < LOSS
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > COSINE
    assert gradients[1].dtype == torch.float32
    # What is saved and exported is the same: names, types, values.
    before, after = exact.state_dict(), rounded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    VisionTower(exact.vlm.vision.config).load_state_dict(rounded.vlm.vision.state_dict())


@pytest.mark.slow  # importing torchao takes seconds
def test_layers_are_changed_once_and_only_in_the_repeated_blocks(gpu: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao.float8")
    vlm = objective(mlp=64).vlm
    for _ in range(2):  # a probe of memory sets a model up again
        configure(vlm, ComputeSettings(fp8=True))
    changed = {name for name, layer in vlm.named_modules() if is_float8(layer)}
    assert len(changed) == 22 and float8_line(vlm) == "fp8: 22 of 22 linear layers of ViT and language model"
    assert all(".blocks." in name or ".layers." in name for name in changed)
    assert not any(is_float8(layer) for layer in vlm.projector.modules())


def test_what_cannot_be_computed_in_fp8_is_refused(gpu: pytest.MonkeyPatch) -> None:
    with gpu.context() as missing:
        missing.setitem(sys.modules, "torchao.float8", None)
        with pytest.raises(ConfigError, match=r"^compute.fp8: needs torchao, .*vitp\[fp8\]"):
            use_float8(objective().vlm)
    with gpu.context() as old:
        old.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
        with pytest.raises(ConfigError, match=r"compute capability 8\.9 or newer, and this one has 8\.0"):
            use_float8(objective().vlm)
    with gpu.context() as without:
        without.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ConfigError, match=r"8\.9 or newer, and there is no GPU; leave it out"):
            configure(objective().vlm, ComputeSettings(fp8=True))


@pytest.mark.slow  # importing torchao takes seconds
def test_a_model_of_other_sizes_is_refused(gpu: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao.float8")
    vlm = objective(width=24).vlm
    with pytest.raises(ConfigError, match="no linear layer has sides that are multiples of 16"):
        use_float8(vlm, emulate=True)
    assert all(
        type(layer).__name__ != "Float8Linear" for layer in vlm.modules() if isinstance(layer, nn.Linear)
    )
