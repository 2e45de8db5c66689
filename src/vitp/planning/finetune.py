"""The cost of a downstream run: FLOPs counted on a model without weights, and the hours they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitp.core.errors import ConfigError
from vitp.models.flops import training_flops
from vitp.planning.devices import Machine
from vitp.runs.finetune import FinetuneConfig
from vitp.tasks.base import TaskModel
from vitp.tasks.dense import DenseModel
from vitp.tasks.detection import DetectionModel
from vitp.tasks.detr import DETRModel
from vitp.tasks.eomt import QueryModel
from vitp.tasks.oriented import OrientedRCNN


@dataclass(frozen=True)
class FinetunePlan:
    """The predicted cost of a downstream run.

    Attributes:
        machine: GPUs that share the run.
        steps, batch: Steps and batch of the run.
        input_size: Side in pixels of what the model sees.
        parameters: Parameters of the whole model.
        forward_tflop: TFLOP of the forward pass of one image (or pair).
        utilisation: Assumed share of the GPU's peak.
        images_per_second: Images per second of all GPUs.
        dollars_per_hour: Dollars per hour of one GPU.
    """

    machine: Machine
    steps: int
    batch: int
    input_size: int
    parameters: int
    forward_tflop: float
    utilisation: float
    images_per_second: float
    dollars_per_hour: float

    @property
    def hours(self) -> float:
        """Of training; validation and test come on top."""
        return self.steps * self.batch / self.images_per_second / 3600

    @property
    def dollars(self) -> float:
        """Rent of all GPUs."""
        return self.hours * self.machine.count * self.dollars_per_hour

    def to_json(self) -> dict[str, Any]:
        """Return plain values, what follows from them included."""
        return {**asdict(self), "hours": self.hours, "dollars": self.dollars}


def plan_finetune(
    config: FinetuneConfig,
    make_model: Callable[[], TaskModel],
    machine: Machine,
    *,
    images: int | None,
    utilisation: float | None = None,
    dollars_per_hour: float | None = None,
) -> FinetunePlan:
    """Return the plan of a downstream run.

    Args:
        config: The run.
        make_model: Makes its model. It is called and run where tensors have shapes and no memory.
        machine: GPUs.
        images: Training images; needed where the length is given in epochs.
        utilisation: Share of the peak; None: the device's assumed one.
        dollars_per_hour: Dollars per hour of one GPU; None: the device's assumed one.

    Raises:
        ConfigError: The length can't be known.
    """
    if config.train.epochs is not None and images is None:
        raise ConfigError(
            f"{config.train.epochs:g} epochs of an unknown number of images",
            where="vitp plan",
            fix="name the prepared data with --data, or give the number with --images",
        )
    train = config.train.of(images or 0, config.data.global_batch)
    # The side of what the model sees while training.
    resize = config.data.resize
    side = config.data.crop or config.augment.crop or (resize.size if resize is not None else None)
    side = side or config.backbone.image_size or 448
    with torch.device("meta"):
        model = make_model()
    # Autocast knows no meta device; fake tensors say that they are on the CPU.
    with FakeTensorMode(allow_non_fake_inputs=True):
        forward = image_flops(model.to_empty(device="cpu"), side)
    reached = machine.device.utilisation if utilisation is None else utilisation
    flops = training_flops(forward, recompute=config.backbone.gradient_checkpointing)
    return FinetunePlan(
        machine=machine,
        steps=train.steps,
        batch=config.data.global_batch,
        input_size=side,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        forward_tflop=forward / 1e12,
        utilisation=reached,
        images_per_second=machine.device.bf16_tflops * 1e12 * machine.count * reached / flops,
        dollars_per_hour=machine.device.dollars_per_hour if dollars_per_hour is None else dollars_per_hour,
    )


def image_flops(model: TaskModel, side: int) -> float:
    """Return the forward FLOPs of one image (or pair); values don't matter, so the model may be a fake one."""
    image_BCHW = torch.zeros(1, model.backbone.num_channels, side, side, dtype=torch.uint8)
    heads = 0.0
    model.eval()  # a batch of one has no statistics of its own
    # The counter knows attention as plain matrix products on every device.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        if isinstance(model, DenseModel):
            model.shares(image_BCHW, image_BCHW if model.name == "change" else None)
        elif isinstance(model, QueryModel):
            model.outputs(image_BCHW)
        elif isinstance(model, DetectionModel | OrientedRCNN):
            heads = _region_flops(model, model.levels(image_BCHW))
        elif isinstance(model, DETRModel):
            model.head.table(model.levels(image_BCHW), (side, side))
        else:
            model.backbone.forward_features(model.backbone.normalize(image_BCHW))
    return float(counter.get_total_flops()) + heads


def _region_flops(model: DetectionModel | OrientedRCNN, maps: list[torch.Tensor]) -> float:
    """Return the FLOPs of proposals and of the two layers over the regions of each stage."""
    settings: Any = model.boxes.settings if isinstance(model, OrientedRCNN) else model.head.boxes.settings
    stages = 1 if isinstance(model, OrientedRCNN) else len(settings.all_stages())
    width = maps[0].shape[1]
    cells = sum(level.shape[-2] * level.shape[-1] for level in maps)
    regions = settings.samples * stages
    layers = width * settings.pool_size**2 * settings.hidden + settings.hidden**2
    return float(2.0 * (9 * width**2 * cells + regions * layers))
