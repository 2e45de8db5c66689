"""The base of image objectives: a vision tower, heads that stay behind, an export instead of a VLM.

Shapes: B images, N patch tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitp.checkpoints.description import provenance_of_run
from vitp.checkpoints.export import write_backbone
from vitp.checkpoints.loading import load_backbone, random_backbone
from vitp.core.errors import DataError
from vitp.data.batches import SampledBatches
from vitp.data.mixture import Mixture
from vitp.data.seen import SeenBands
from vitp.models.adapting import adapt_tower, save_adapt
from vitp.models.flops import forward_flops, patch_embed_flops, vision_shape
from vitp.models.lora import plain_layers
from vitp.models.vision import VisionTower
from vitp.objectives.base import Objective, ParameterGroup
from vitp.objectives.image_rows import ImageRows, image_mixture, read_image_rows
from vitp.objectives.settings import ModelSettings, ObjectiveParts, RunSettings
from vitp.records.labels import LabelledImage


class ImageObjective(Objective):
    """A vision tower with heads. The tower alone is saved, as an export that `vitp.load_backbone` reads.

    Attributes:
        PARTS: Beginning of a parameter's name → the part that the console shows; what fits none is a "head".
    """

    PARTS: ClassVar[Mapping[str, str]] = {"tower.": "vision tower"}

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower

    @property
    def vision_tower(self) -> VisionTower:
        """The tower; heads, teachers and text towers are left behind."""
        return self.tower

    def borrow(self, tower: VisionTower) -> None:
        """Use a tower that is a part of another objective, which names, trains and saves it."""
        del self.tower
        self.__dict__["tower"] = tower  # not as a part of this one

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the vision tower, the other parts in the order of `PARTS`, and the heads."""
        parts: dict[str, dict[str, nn.Parameter]] = {name: {} for name in (*self.PARTS.values(), "head")}
        for name, parameter in self.named_parameters():
            part = next((p for start, p in self.PARTS.items() if name.startswith(start)), "head")
            parts[part][name] = parameter
        return [ParameterGroup(part, parameters) for part, parameters in parts.items() if parameters]

    def pooled(self, tiles_BCHW: Tensor) -> Tensor:
        """Return the mean of the patch tokens (B, D) of uint8 images.

        Not `[CLS]`: downstream heads read patch tokens only, and ViTP's language model sees no other.
        """
        return self.tower.forward_tokens(self.tower.normalize(tiles_BCHW)).mean(1)

    def work_of(
        self, images: int, *, views: int = 1, heads: Sequence[nn.Module | None] = ()
    ) -> dict[str, float]:
        """Return images, views, and the FLOPs of forward and backward pass.

        Args:
            images: In a batch.
            views: Views of each image that the tower sees as a whole.
            heads: Whose linear layers are counted, once for each view.
        """
        count = views * images
        flops = backward_factor(self.tower) * tower_flops(self.tower, count, self.tower.grid**2)
        flops += sum(3 * linear_flops(head, count) for head in heads if head is not None)
        return {"samples": float(images), "tiles": float(count), "flops": flops}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tower as an export, with what the run folder around `folder` says about its origin.

        Low-rank updates are merged into its weights.
        """
        with plain_layers(self.tower):
            write_backbone(Path(folder), self.tower, provenance_of_run(Path(folder).parent), name="model")
        save_adapt(Path(folder), self.tower)


def initial_tower(settings: ModelSettings, seed: int) -> VisionTower:
    """Return the tower that a run without a language model starts from.

    Args:
        settings: Settings that say where it comes from.
        seed: Seed of random weights.

    Raises:
        CheckpointError: The folder holds no backbone.
        ConfigError: timm can't make the tower.
    """
    if settings.init != "random":
        start = load_backbone(settings.init, channels=settings.channels)
    elif settings.vision is None:
        start = random_backbone(load_backbone("starter", channels=settings.channels), seed)
    else:
        vision = settings.vision.model_copy(
            update={"channels": settings.channels or settings.vision.channels}
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            start = VisionTower(vision)
    # Backbones are loaded without drop path; the same weights go into a tower that has it.
    tower = VisionTower(start.config, drop_path=settings.drop_path)
    tower.load_state_dict(start.state_dict())
    adapt_tower(tower, settings.adapt, seed)
    if settings.gradient_checkpointing:
        tower.set_gradient_checkpointing(True)
    return tower


def seeded_tower(run: RunSettings) -> VisionTower:
    """Return the tower that a run starts from, and seed the random weights of the heads that follow."""
    tower: VisionTower = run._tower or initial_tower(run.model, run.seed)
    torch.manual_seed(run.seed)
    return tower


def seen_by(tower: VisionTower, run: RunSettings) -> SeenBands:
    """Return how a run reads images for a tower."""
    return SeenBands(tower.in_channels, run.data.band_dropout, window_jitter=run.data.window_jitter)


def folders_of(run: RunSettings, *, both_dates: bool = False) -> list[ImageRows]:
    """Return the training images of each folder of a run; see `read_image_rows`."""
    return [read_image_rows(folder, both_dates=both_dates) for folder in run.data.mixture]


def told_apart(rows: list[ImageRows]) -> list[ImageRows]:
    """Return images that an objective tells apart from each other.

    Raises:
        DataError: There is only one: the others of a step would be copies of it.
    """
    images = (item.image for one in rows for item in one.labelled.items)
    first = next(images, None)
    if all(image == first for image in images):
        what = "holds a single training image, and this objective learns by telling images apart"
        fix = "give more images, or choose an objective that looks at each alone (mae, dino)"
        raise DataError(what, where=", ".join(dict.fromkeys(str(one.folder) for one in rows)), fix=fix)
    return rows


def mixture_of(run: RunSettings, rows: list[ImageRows]) -> Mixture[LabelledImage]:
    """Return the order in which a run sees the images of its folders."""
    return image_mixture(rows, run.data.rates, run.seed)


def image_parts(
    run: RunSettings, objective: Objective, images: Mixture[LabelledImage], collate: Any, micro_batches: int
) -> ObjectiveParts:
    """Return an objective with batches of views of the images."""
    source = SampledBatches(images, collate, run.data.global_batch, micro_batches)
    return ObjectiveParts(objective, source, images.describe())


def tower_flops(tower: VisionTower, images: int, patches: int, *, embedded: int | None = None) -> float:
    """Return the forward FLOPs of a tower over images of which `patches` patch tokens pass through the blocks.

    Args:
        tower: The tower.
        images: Number of images.
        patches: Patch tokens an image that the blocks compute.
        embedded: Patches an image that are embedded, when more than those.
    """
    tokens = patches + int(tower.model.num_prefix_tokens)
    blocks = forward_flops(vision_shape(tower), images * tokens, tokens)
    return blocks + patch_embed_flops(
        tower.width, tower.patch_size, images * (embedded or patches), tower.num_channels
    )


def backward_factor(module: nn.Module) -> float:
    """Return the cost of forward and backward pass in forward passes: 3, or less where weights are frozen.

    Gradients of the weights cost as much as a forward pass, those of the inputs as much again.
    """
    parameters = list(module.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return 2.0 + trained / max(total, 1) if trained else 1.0


def linear_flops(module: nn.Module, rows: int) -> float:
    """Return the forward FLOPs of a module's linear layers over `rows` vectors."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    return rows * sum(2.0 * layer.in_features * layer.out_features for layer in layers)
