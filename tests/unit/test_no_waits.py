"""A training step never waits for the GPU but once: the real code on tensors of a GPU that is not there.

What it doesn't see: the backward pass on "cuda" (torch's engine needs a driver; it is run on fake tensors of the CPU,
which shows waits, not copies), kernels and which of them SDPA takes, torch's allocator, NCCL, FSDP's streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.fake_cuda import CUDA, Watch, fake_cuda
from tests.unit.test_task_graphs import made
from vitp.engine import numerics
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.gradients import Gradients
from vitp.engine.loading import to_device
from vitp.engine.loop import Trainer
from vitp.engine.optim import build_optimizer
from vitp.engine.scaling import LossScale
from vitp.metrics.results import Target
from vitp.models import attention_layouts
from vitp.models.compute import ComputeSettings, configure
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.base import Objective
from vitp.objectives.vitp import ViTPObjective
from vitp.planning.bench.synthetic import MODEL_SIZES, SyntheticSource, Workload, make_chat
from vitp.tasks.base import TaskBatch

Trained = TypeVar("Trained", bound=Objective)


def meta_objective(name: str) -> ViTPObjective:
    """A model without contents, at the default drop path."""
    size = MODEL_SIZES[name]
    with torch.device("meta"):
        config = size.config.model_copy(update={"drop_path": 0.1})
        return ViTPObjective(VisionLanguageModel(config, vocabulary=size.vocabulary), make_chat(size))


def placed(objective: Trained, device: torch.device) -> Trained:
    """The model with fake weights on a device; within the fake mode."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return objective.to_empty(device=device).train()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def batch_of(objective: ViTPObjective, *, questions: int = 2, seed: int = 0) -> Any:
    work = Workload(records=2, questions=questions, question_words=4, answer_words=3)
    source = SyntheticSource(objective.chat, objective.vlm.vision.image_size[0], work, seed=seed)
    return source(0, 0, 0, 1)


@contextlib.contextmanager
def varlen() -> Iterator[None]:
    with mock.patch.object(attention_layouts, "varlen_kernel", lambda: attention_layouts._torch_varlen):
        yield


SIZES = ["micro", pytest.param("full", marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", SIZES)
def test_a_forward_pass_copies_once_and_never_waits(size: str) -> None:
    objective = meta_objective(size)
    batches = [batch_of(objective, questions=questions).in_one_buffer() for questions in (1, 3)]
    configure(objective.vlm, ComputeSettings(tile_multiple=8, token_multiple=64))
    with fake_cuda(), varlen():
        placed(objective, CUDA)
        objective.vlm.vision._normalisation_on(CUDA)  # once a run
        for host in batches:
            with Watch() as seen:
                batch = to_device(host, CUDA)
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    loss = objective(batch)["language"]
            assert seen.waits == [] and seen.mixed == []
            assert len(seen.copies) == 1, seen.copies
            assert loss.device.type == "cuda" and loss.dtype == torch.float32
            assert seen.types["torch.bfloat16"] > 20


@pytest.mark.parametrize("size", SIZES)
def test_clipping_and_the_optimizer_wait_once(size: str) -> None:
    """The real `train_step`, with gradients that are there instead of a backward pass."""
    read: list[tuple[int, ...]] = []

    class Reading:
        def __init__(self, values_N: Tensor) -> None:
            assert values_N.device.type == "cuda"
            self.values_N = values_N

        def wait(self) -> list[float]:
            read.append(tuple(self.values_N.shape))
            return [1.0] * len(self.values_N)

    objective = meta_objective(size)
    with fake_cuda(), mock.patch.object(numerics, "HostReading", Reading):
        trainer = trainer_of(placed(objective, CUDA), CUDA)
        for _ in range(2):
            with Watch() as seen:
                trainer.train_step([None, None], {"language": 12.0}, {})
        assert seen.waits == [] and seen.copies == [] and seen.mixed == []
    assert len(read) == 2 and trainer.step == 2


def trainer_of(objective: ViTPObjective, device: torch.device) -> Trainer:
    """A trainer without folder, logs and data, whose backward pass fills in gradients."""
    trainer: Any = object.__new__(Trainer)
    trainer.optim, trainer.config = OptimSettings(), TrainSettings(steps=4)
    trainer.rank = trainer.step = 0
    groups = objective.parameter_groups()
    trainer.optimizer, _ = build_optimizer(objective, groups, trainer.optim)
    trainer.gradients = Gradients(groups, objective.vision_tower)
    trainer.average, trainer.loss_scale = None, LossScale(None)
    trainer.objective, trainer._masks_steps = objective, device.type == "cuda"

    def forward_backward(*_: Any, **__: Any) -> Tensor:
        for parameter in objective.parameters():
            parameter.grad = torch.ones_like(parameter)
        return torch.ones(1, device=device)

    trainer.forward_backward = forward_backward
    return trainer


def test_a_backward_pass_asks_for_no_number() -> None:
    """torch's engine needs a driver for "cuda": on the fake CPU, a question for a number raises."""
    objective = meta_objective("micro")
    batch = batch_of(objective)
    with fake_cuda():
        placed(objective, torch.device("cpu")).vlm.attention = "runs"
        with Watch() as seen:
            objective(batch)["language"].backward()
    assert seen.waits == []
    assert all(p.grad is not None for p in objective.parameters())


FINETUNED: list[tuple[str, dict[str, Any]]] = [
    ("classification", {"multi_label": True, "focal": 2.0, "class_weights": [1.0, 2.0, 3.0]}),
    ("segmentation", {"kind": "fpn", "dice": 1.0, "tversky": 1.0, "focal": 2.0}),
]


def labelled_batch(task: str) -> TaskBatch:
    """Two images, one of them padded, with what the task learns from."""
    if task == "classification":
        targets = tuple(Target(classes_C=row_C) for row_C in torch.eye(3)[:2])
    else:
        targets = tuple(Target(semantic_HW=torch.ones(h, 64, dtype=torch.uint8)) for h in (48, 40))
    images, sizes = torch.zeros(2, 3, 48, 64, dtype=torch.uint8), torch.tensor([[48, 64], [40, 64]])
    return TaskBatch(images, None, sizes, targets, ("a", "b"))


@pytest.mark.parametrize(("task", "head"), FINETUNED)
def test_a_finetuning_copies_once_and_never_waits(task: str, head: dict[str, Any]) -> None:
    """Batch to the device, forward pass and, on the CPU, the backward pass; the step's end is pretraining's."""
    model = made(task, **head).train()
    host = labelled_batch(task)
    counts = model.loss_counts(host)
    losses = model(host)
    with Watch("cpu") as seen:
        torch.stack([losses[name] / counts[name] for name in losses]).sum().backward()
    assert seen.waits == [] and any(p.grad is not None for p in model.backbone.parameters())
    with fake_cuda():
        placed(model, CUDA)
        model.backbone._normalisation_on(CUDA)  # once a run
        with Watch() as seen:
            batch = to_device(host.in_one_buffer(), CUDA)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                losses = model(batch)
    assert seen.waits == [] and seen.mixed == []
    assert len(seen.copies) == 1, seen.copies
    assert all(loss.device.type == "cuda" for loss in losses.values())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x, host: float(x.sum()), "_local_scalar_dense"),
        (lambda x, host: x.sum().tolist(), "_local_scalar_dense"),
        (lambda x, host: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x, host: (x > 0).nonzero(), "nonzero"),
        (lambda x, host: x[x > 0], "index by a mask"),
        (lambda x, host: x.cpu(), "cuda → cpu"),
        (lambda x, host: host.to(CUDA), "cpu → cuda"),
        (lambda x, host: x + torch.tensor([1.0, 2.0, 3.0], device=CUDA), "cpu → cuda"),
        (lambda x, host: x[host.long()], "mixed"),
        (lambda x, host: torch.repeat_interleave(x.long()), "repeat_interleave"),
        (lambda x, host: x.__setitem__(x > 0, x), "index_put_ by a mask"),
    ],
)
def test_what_the_watch_sees(wrong: Any, said: str) -> None:
    """Each kind of wait is noted, whatever torch says of it on a GPU that is not there."""
    with fake_cuda():
        x, host = torch.ones(3, device=CUDA), torch.ones(3)
        with Watch() as seen, contextlib.suppress(Exception):
            wrong(x, host)
    assert any(said in note for note in (*seen.waits, *(f"mixed {note}" for note in seen.mixed))), seen.waits


def test_one_number_for_the_places_of_a_mask_is_no_wait() -> None:
    x = torch.ones(3)
    with Watch("cpu") as seen:
        x[x > 0] = -1
    assert seen.waits == [] and x.tolist() == [-1, -1, -1]
