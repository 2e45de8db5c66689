"""`device: mps` where there is no Mac: choice, precision, refusals, and no float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.fake_cuda import CUDA, fake_cuda
from tests.unit.test_no_waits import batch_of, meta_objective, placed, varlen
from vitp.core import distributed
from vitp.core.errors import ConfigError
from vitp.engine import numerics
from vitp.engine.config import TrainSettings
from vitp.engine.loading import to_device
from vitp.models.rotated.boxes import in_double
from vitp.models.rotated.iou import rotated_iou

MPS = torch.device("mps", 0)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: False)


def test_it_is_taken_where_it_is_named(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.resolve_device(TrainSettings(steps=1, device="mps").device) == MPS
    assert distributed.resolve_device("auto") == torch.device("cpu")  # nobody has run it
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="several processes can't share Apple's GPU"):
        distributed.resolve_device("mps")


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(mps\) is not available"):
        distributed.resolve_device("mps")
    for name in ("tpu", "mps:1", "cuda:x", ""):
        with pytest.raises(ConfigError, match=f'there is no device "{name}"'):
            distributed.resolve_device(name)
        with pytest.raises(ValueError, match="device"):
            TrainSettings(steps=1, device=name)


def test_precision(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert numerics.amp_dtype("auto", MPS) is None
    assert numerics.amp_dtype("fp16", MPS) is torch.float16
    with pytest.raises(ConfigError, match="no bf16"):
        numerics.amp_dtype("bf16", MPS)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: True)
    assert numerics.amp_dtype("bf16", MPS) is torch.bfloat16


class _NoDouble(TorchDispatchMode):
    """Does as the device does: it has no float64. torch builds for other machines let fake tensors go no further than
    "cuda", which stands in for it here."""

    ran = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cuda":
                assert leaf.dtype != torch.float64, func
                self.ran += 1
        return found


def test_a_training_step_makes_no_float64() -> None:
    objective = meta_objective("micro")
    batch = batch_of(objective).in_one_buffer()
    with fake_cuda(), varlen(), _NoDouble() as seen:
        placed(objective, CUDA)
        with torch.autocast("cuda", dtype=torch.float16):
            loss = objective(to_device(batch, CUDA))["language"]
        assert loss.device == CUDA and seen.ran > 100
        with pytest.raises(AssertionError):
            loss.double()


def test_what_needs_float64_is_computed_on_the_cpu() -> None:
    with FakeTensorMode():
        values = torch.empty(3, 8, device=MPS)
        exact = in_double(values)
    assert exact.dtype == torch.float64 and exact.device == torch.device("cpu")
    boxes = torch.tensor([[5.0, 5.0, 4.0, 2.0, 0.3]])
    assert in_double(boxes).dtype == torch.float64 and rotated_iou(boxes, boxes).dtype == torch.float32
