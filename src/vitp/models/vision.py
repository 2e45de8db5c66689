"""The vision tower: any plain Vision Transformer of timm behind the `Backbone` contract.

Plain means: one patch embedding, one list of blocks on one grid. timm has two classes of them, `VisionTransformer`
(learned positions: DeiT, MAE, DINO, DINOv2, CLIP, SigLIP 2, InternViT) and `Eva` (rotary positions, with a learned
table or without: DINOv3, EVA-02, Perception Encoder).

Shapes: B images, H × W pixels, N patch tokens, h × w grid cells, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

import timm
import torch
from pydantic import Field, model_validator
from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitp.core.config import Mean, Positive, SettingsModel
from vitp.core.errors import ConfigError
from vitp.models.adapt import AdapterSettings, AdaptSettings, Attached, PromptSettings, attach
from vitp.models.arguments import check_architecture, check_timm_arguments, lacks_memory
from vitp.models.plain_vit import PlainViT
from vitp.models.positions import PositionMethod, use_bicubic_positions
from vitp.models.stochastic_depth import share_graphs
from vitp.records.channels import MOST_CHANNELS, Channels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


Means = Annotated[tuple[Mean, ...], Field(min_length=1, max_length=MOST_CHANNELS)]
Deviations = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=MOST_CHANNELS)]


def per_channel(rgb: Sequence[float], channels: Channels | None) -> tuple[float, ...]:
    """Return one number a channel of the input, as a mean or a deviation is.

    Args:
        rgb: One a channel already (it is taken as it is), or of red, green and blue: channels that continue a colour
            (`Channels.colours`) take that one's, all others the mean of the three.
        channels: None: RGB pictures.

    Raises:
        ConfigError: They are neither three nor one a channel.
    """
    count = 3 if channels is None else len(channels)
    if len(rgb) == count:
        return tuple(rgb)
    if len(rgb) != 3 or channels is None:
        raise ConfigError(
            f"{len(rgb)} numbers don't fit an input of {count} channels",
            where="mean and std",
            fix="give three (of red, green, blue)" + (f" or {count}, one a channel" if count != 3 else ""),
        )
    # A band that is none of the three colours gets their mean.
    return tuple(sum(rgb) / 3 if colour is None else rgb[colour] for colour in channels.colours())


MOST_OF_KERNEL = 2**31
"""Numbers of a patch kernel: a mistake in a size must not fill the memory."""


class VisionSettings(SettingsModel):
    """A Vision Transformer as timm knows it.

    `architecture` is a timm model name, `arguments` what `timm.create_model` gets beside it: with
    `vit_tiny_patch16_224` and other `embed_dim`, `depth`, `patch_size` any plain ViT can be written.
    """

    architecture: str = "vit_tiny_patch16_224"
    """Name of the ViT in timm."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `timm.create_model`, such as `embed_dim`, `depth` and `patch_size`."""
    image_size: int = Field(96, ge=8, le=65_536)
    """Side of a tile in pixels."""
    mean: Means = IMAGENET_MEAN
    """Mean of values on 0..1, which is subtracted: of red, green and blue, or one a channel."""
    std: Deviations = IMAGENET_STD
    """Deviation of values on 0..1, which they are divided by: of red, green and blue, or one a channel."""
    positions: PositionMethod = "antialiased"
    """How the position table follows an image of another size: timm's way, or InternVL's (bicubic)."""
    channels: Channels | None = None
    """Bands that the tower sees, and which of their values become 0 and 255; none: RGB pictures."""
    adapt: Attached | None = None
    """Prompts, adapters or gates that are trained beside the architecture's own weights; none: it has none."""
    weights_of: str = Field("", max_length=200)
    """Published weights that the tower goes back to; "": none that are known."""
    licence: str = Field("", max_length=200)
    """Licence of those weights, as their publisher states it; "": none is stated."""

    @model_validator(mode="after")
    def _one_a_channel(self) -> Self:
        count = 3 if self.channels is None else len(self.channels)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (3, count):
                raise ValueError(f"{name} has {len(values)} numbers, the input has {count} channels")
        return self

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation with one number a channel; see `per_channel`."""
        return per_channel(self.mean, self.channels), per_channel(self.std, self.channels)


class VisionTower(PlainViT):
    """A plain ViT of timm without its head.

    Args:
        config: Architecture, size and normalisation.
        drop_path: Stochastic depth rate of the last block; earlier blocks get less, linearly.

    Attributes:
        recompute_contexts: What of a block's activations is kept when the rest is recomputed (`context_fn` of torch's
            checkpoint); None: nothing.
        adapt: Parameters beside those of `model`, by the number of the block; see `VisionSettings.adapt`.
        tuned_by: Which part of it is trained; None: what requires a gradient.

    Raises:
        ConfigError: timm has no such plain ViT, or its patches don't fit the image size.
    """

    recompute_contexts: Callable[[], Any] | None = None
    adapt: nn.ModuleDict | None
    tuned_by: AdaptSettings | None = None

    def __init__(self, config: VisionSettings, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        vit: Any = _create_vit(config, drop_path)
        self.model = vit
        share_graphs(vit)
        if config.positions == "bicubic":
            use_bicubic_positions(vit)
        patch_h, patch_w = vit.patch_embed.patch_size
        if patch_h != patch_w or config.image_size % patch_h:
            raise ConfigError(
                f"patches of {patch_h}×{patch_w} don't cut {config.image_size} px evenly",
                where="vision.image_size",
                fix=f"choose a multiple of {patch_h}",
            )
        self.patch_size = int(patch_h)
        self.image_size = (config.image_size, config.image_size)
        self.in_channels = config.channels
        self.mean, self.std = config.normalisation
        self.width: int = vit.embed_dim
        self.num_layers = len(vit.blocks)
        self.channels = (self.width,) * self.num_layers
        self.strides = (self.patch_size,) * self.num_layers
        self.adapt = None
        if config.adapt is not None:
            self.attach(config.adapt)

    def attach(self, settings: PromptSettings | AdapterSettings) -> None:
        """Add new parameters to the tower, which computes what it did before but for prompts."""
        self.config = self.config.model_copy(update={"adapt": settings})
        self.adapt = attach(self.model, settings)

    @property
    def prompts(self) -> int:
        """Learned tokens that stand in front of an image's own within each block."""
        return self.config.adapt.count if isinstance(self.config.adapt, PromptSettings) else 0

    @property
    def grid(self) -> int:
        """Cells on a side of a tile at the pretraining size."""
        return self.image_size[0] // self.patch_size

    def forward_tokens(self, image_BCHW: Tensor) -> Tensor:
        """Return the patch tokens of the last layer, (B, N, D), row by row; `[CLS]` and registers dropped."""
        if self.recompute_contexts is not None and torch.is_grad_enabled():
            return self._recomputed(image_BCHW, self.recompute_contexts)
        tokens_BND: Tensor = self.model.forward_features(image_BCHW)
        return tokens_BND[:, self.model.num_prefix_tokens :]

    def _recomputed(self, image_BCHW: Tensor, contexts: Callable[[], Any]) -> Tensor:
        tokens = self.embed_tokens(image_BCHW)
        tokens_BND = tokens.tokens_BLD
        for number, block in enumerate(self.model.blocks):
            rope = self.rotary_arguments(tokens, number)
            tokens_BND = checkpoint(block, tokens_BND, use_reentrant=False, context_fn=contexts, **rope)
        return self.finish_tokens(tokens.with_tokens(tokens_BND)).patches_BND

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the blocks' activations in the backward pass; see `PlainViT.set_gradient_checkpointing`.

        Raises:
            ConfigError: The tower has prompts that go from block to block.
        """
        adapt = self.config.adapt
        if enabled and isinstance(adapt, PromptSettings) and not adapt.deep:
            raise ConfigError(
                "shallow prompts go from block to block, so that a block can't be computed again alone",
                where="model.gradient_checkpointing",
                fix="leave it out, or give each block its own (deep: true)",
            )
        self.recompute_contexts = None
        super().set_gradient_checkpointing(enabled)

    @contextlib.contextmanager
    def attention_of(self, layer: int = -1) -> Iterator[list[Tensor]]:
        """Collect the softmax attention weights (B, heads, P + N, P + N) of one layer (rows: queries) in a list.

        The fused kernel keeps no weights: the layer computes attention step by step meanwhile, and its dropout, which
        is off or a function of its own, sees them. Gradients go through them.
        """
        seen: list[Tensor] = []
        module = self.model.blocks[layer].attn
        fused, module.fused_attn = module.fused_attn, False
        prompts = self.prompts
        # What enters the dropout are the weights after softmax; prompts stand in front of the image's own tokens.
        handle = module.attn_drop.register_forward_pre_hook(
            lambda _module, args: seen.append(args[0][..., prompts:, prompts:])
        )
        try:
            yield seen
        finally:
            handle.remove()
            module.fused_attn = fused

    @torch.no_grad()
    def attention(self, image_BCHW: Tensor, layer: int = -1) -> Tensor:
        """Return softmax attention weights (B, heads, P + N, P + N) of one layer (rows: queries)."""
        with self.attention_of(layer) as seen:
            self.model.forward_features(image_BCHW)
        return seen[0]


def input_argument(arguments: Mapping[str, Any], channels: Channels | None, *, where: str) -> dict[str, int]:
    """Return the `in_chans` that `timm.create_model` needs beside other arguments; none for RGB pictures.

    Raises:
        ConfigError: The arguments state another number of channels.
    """
    count = 3 if channels is None else len(channels)
    if arguments.get("in_chans", count) != count:
        raise ConfigError(
            f"in_chans is {arguments['in_chans']}, but the input has {count} channels",
            where=f"{where}.arguments",
            fix=f"leave in_chans out and name the bands in {where}.channels",
        )
    patch, width = (arguments.get(key, 1) for key in ("patch_size", "embed_dim"))
    if isinstance(patch, int) and isinstance(width, int) and count * patch**2 * width > MOST_OF_KERNEL:
        raise ConfigError(
            f"a patch kernel of {count} channels, {patch} px and width {width:,} is too large",
            where=f"{where}.arguments",
            fix="check the sizes",
        )
    return {} if channels is None else {"in_chans": count}


def _create_vit(config: VisionSettings, drop_path: float) -> nn.Module:
    check_architecture(config.architecture, where="vision.architecture")
    check_timm_arguments(config.arguments, where="vision.arguments")
    in_chans = input_argument(config.arguments, config.channels, where="vision")
    try:
        model = timm.create_model(
            config.architecture,
            pretrained=False,
            num_classes=0,
            # With average pooling timm would put the final norm behind it, and tokens would come without one.
            global_pool="",
            img_size=config.image_size,
            dynamic_img_size=True,
            drop_path_rate=drop_path,
            **{**config.arguments, **in_chans},
        )
    except Exception as error:  # whatever sizes that don't go together make timm and torch raise
        if lacks_memory(error):
            raise
        with torch.device("meta"):  # other kinds of models take other arguments: what kind it is says more
            check_plain(timm.create_model(config.architecture, pretrained=False), config.architecture)
        raise ConfigError(f"timm refuses an argument ({error})", where="vision.arguments") from error
    check_plain(model, config.architecture)
    return model


def check_plain(model: nn.Module, name: str) -> None:
    """Do nothing where a model of timm is a plain ViT, which can be a vision tower.

    Raises:
        ConfigError: It is none; with the reason.
    """
    kind, patches = type(model).__name__, getattr(model, "patch_embed", None)
    if isinstance(model, VisionTransformer | Eva):
        if isinstance(patches, PatchEmbed):
            return
        why = f"a hybrid, whose patches come out of a {type(patches).__name__} instead of one linear layer"
    elif kind == "NaFlexVit":
        why = "a NaFlexViT, which takes patches with their places instead of images"
    elif len({level.get("reduction") for level in getattr(model, "feature_info", ())}) > 1:
        why = f"a hierarchical {kind}, whose grid changes from stage to stage"
    else:
        why = f"a {kind}, whose blocks don't run on one grid of tokens alone"
    raise ConfigError(
        f"{name} is no plain Vision Transformer but {why}",
        where="vision.architecture",
        fix=_INSTEAD.get(kind)
        or f'pretrain a ViT of one grid instead; finetuning takes "timm:{name}" where timm gives its feature maps',
    )


_INSTEAD = {
    "NaFlexVit": "take the same training at a fixed size, such as vit_base_patch16_siglip_224.v2_webli"
}
