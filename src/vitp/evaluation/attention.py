"""Attention maps of a vision transformer and colours of its patch features, as arrays.

Shapes: S × S pixels, h × w patches, N = h·w, T = prefix tokens + N, L layers, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.data.augment import resize_image
from vitp.data.seen import seen_again
from vitp.models.backbone import Backbone, frozen
from vitp.models.plain_vit import PlainViT

Heads = int | Literal["mean"]
Picture = Image.Image | np.ndarray
"""RGB, 8 bit, or an (H, W, C) array of what a backbone sees."""


def as_batch(backbone: Backbone, image: Picture) -> Tensor:
    """Return an image as a normalised batch of one at the backbone's size and on its device; see `seen_again`."""
    height, width = backbone.image_size
    array_HWC = resize_image(seen_again(image, backbone.in_channels), (height, width))
    image_BCSS = torch.from_numpy(array_HWC.copy()).permute(2, 0, 1)[None]
    return backbone.normalize(image_BCSS.to(next(backbone.parameters()).device))


def grid_of(backbone: Backbone) -> tuple[int, int]:
    """Return rows and columns of the last layer's cells at the backbone's image size."""
    height, width = backbone.image_size
    return height // backbone.strides[-1], width // backbone.strides[-1]


@contextlib.contextmanager
def _recorded(
    tower: PlainViT, layers: Sequence[int], reduce: Callable[[Tensor], Tensor]
) -> Iterator[dict[int, np.ndarray]]:
    """Yield a dictionary that a forward pass of one image fills: layer → `reduce` of its (heads, T, T) attention.

    Learned prompts, which stand in front of the T tokens within each block, are cut off.
    The fused kernel keeps no weights, so these layers compute attention step by step meanwhile; what leaves the
    softmax passes the dropout, where it is caught.
    """
    found: dict[int, np.ndarray] = {}
    handles, fused = [], []
    prompts = tower.prompts

    def keep(layer: int, module: object, arguments: object, weights_BHTT: Tensor) -> None:
        found[layer] = reduce(weights_BHTT[0, :, prompts:, prompts:].float()).cpu().numpy()

    for layer in set(layers):
        module: Any = getattr(tower.model.blocks[layer], "attn", None)
        if not hasattr(module, "attn_drop") or not hasattr(module, "fused_attn"):
            raise ConfigError(f"layer {layer} has no attention of its own to look at", where="attention")
        fused.append((module, module.fused_attn))
        module.fused_attn = False
        handles.append(module.attn_drop.register_forward_hook(partial(keep, layer)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        for module, before in fused:
            module.fused_attn = before


def reduced_attention(
    tower: PlainViT, image: Picture, layers: Sequence[int], reduce: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """Return (layers, …): what `reduce` makes of each layer's (heads, T, T) softmax attention, in one pass.

    Nothing but the results is kept: the attention of all layers of a large ViT takes gigabytes.

    Raises:
        ConfigError: The backbone is no plain ViT, or there is no such layer.
    """
    if not isinstance(tower, PlainViT):
        raise ConfigError(f"a {type(tower).__name__} has no attention among patches", where="attention")
    for layer in layers:
        if not -tower.num_layers <= layer < tower.num_layers:
            raise ConfigError(f"there is no layer {layer} among {tower.num_layers}", where="layer")
    wanted = [layer % tower.num_layers for layer in layers]
    with frozen(tower), _recorded(tower, wanted, reduce) as found:
        tower.forward_features(as_batch(tower, image), [tower.num_layers - 1])
    return np.stack([found[layer] for layer in wanted])


def patch_attention(
    tower: PlainViT, image: Picture, layers: Sequence[int], *, heads: bool = False
) -> np.ndarray:
    """Return (layers, N, N), or (layers, heads, N, N), attention among patches.

    Prefix tokens (`[CLS]`, registers) and prompts are cut off, so that a row sums to 1 minus what they draw.
    """
    prefix = tower.model.num_prefix_tokens

    def among(attention_HTT: Tensor) -> Tensor:
        among_HNN = attention_HTT[:, prefix:, prefix:]
        return among_HNN if heads else among_HNN.mean(0)

    return reduced_attention(tower, image, layers, among)


def attention_map(
    tower: PlainViT, image: Picture, patch: tuple[int, int], layer: int = -1, head: Heads = "mean"
) -> np.ndarray:
    """Return (h, w): how much the patch in (row, column) attends to each patch.

    Raises:
        ConfigError: The patch lies outside the grid, or there is no such layer or head.
    """
    among: np.ndarray = head_maps(tower, image, patch, [layer])[0]
    if head != "mean" and not 0 <= head < len(among):
        raise ConfigError(f"there is no head {head} among {len(among)}", where="head")
    chosen: np.ndarray = among.mean(0) if head == "mean" else among[head]
    return chosen


def head_maps(tower: PlainViT, image: Picture, patch: tuple[int, int], layers: Sequence[int]) -> np.ndarray:
    """Return (layers, heads, h, w): how much the patch in (row, column) attends to each patch.

    Raises:
        ConfigError: The patch lies outside the grid, or there is no such layer.
    """
    (rows, columns), (row, column) = grid_of(tower), patch
    if not (0 <= row < rows and 0 <= column < columns):
        raise ConfigError(f"patch {patch} is not on the grid of {rows} × {columns}", where="patch")
    prefix = tower.model.num_prefix_tokens
    query = prefix + row * columns + column

    def of_query(attention_HTT: Tensor) -> Tensor:
        return attention_HTT[:, query, prefix:].reshape(-1, rows, columns)

    return reduced_attention(tower, image, layers, of_query)


def rollout(attention_LTT: np.ndarray) -> np.ndarray:
    """Return (T, T): attention traced through all layers, residual connections included.

    Each layer passes on ½ (A + I); their product, first layer rightmost, tells how much of each input token is
    in each output token. Abnar and Zuidema 2020, section 3. Rows sum to 1, or to less by what prompts draw.

    Args:
        attention_LTT: Attention of each layer, first layer first, averaged over heads.
    """
    traced_TT = np.eye(attention_LTT.shape[-1])
    for layer_TT in attention_LTT:
        traced_TT = (layer_TT + np.eye(len(layer_TT))) / 2 @ traced_TT
    return traced_TT


def attention_rollout(tower: PlainViT, image: Picture) -> np.ndarray:
    """Return (T, T): rollout over all layers of the tower, heads averaged."""
    layers = range(tower.num_layers)
    return rollout(reduced_attention(tower, image, layers, lambda attention_HTT: attention_HTT.mean(0)))


def rollout_map(tower: PlainViT, image: Picture, patch: tuple[int, int] | None = None) -> np.ndarray:
    """Return (h, w): how much of each input patch is in an output patch, or in the mean of all output patches.

    Prefix tokens are cut off, so that the map sums to 1 minus their share.

    Args:
        tower: A plain ViT.
        image: RGB.
        patch: Row and column of the output patch; None: the mean.
    """
    rows, columns = grid_of(tower)
    prefix = tower.model.num_prefix_tokens
    among_NN = attention_rollout(tower, image)[prefix:, prefix:]
    traced_N: np.ndarray = among_NN.mean(0) if patch is None else among_NN[patch[0] * columns + patch[1]]
    return traced_N.reshape(rows, columns)


def attention_distance(attention_NN: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the mean distance in patches between a query and what it attends to (…), for (…, N, N) attention.

    Dosovitskiy et al. 2021, figure 7. Rows are normalised first, so that what prefix tokens draw is left out.
    """
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    places_N2 = np.stack([rows, columns], 1).astype(np.float64)
    distance_NN = np.linalg.norm(places_N2[:, None] - places_N2[None], axis=-1)
    share_NN: np.ndarray = attention_NN / attention_NN.sum(-1, keepdims=True)
    mean_distance: np.ndarray = (share_NN * distance_NN).sum(-1).mean(-1)
    return mean_distance


def distance_profile(tower: PlainViT, images: Sequence[Picture]) -> np.ndarray:
    """Return (L, heads): mean attention distance in pixels of each head, over images.

    Raises:
        ConfigError: There are no images.
    """
    if not images:
        raise ConfigError("there are no images", where="attention distance")
    grid, prefix = grid_of(tower), tower.model.num_prefix_tokens

    def distance(attention_HTT: Tensor) -> Tensor:
        among_HNN = attention_HTT[:, prefix:, prefix:].cpu().numpy()
        return torch.from_numpy(attention_distance(among_HNN, grid))

    layers = range(tower.num_layers)
    found = [reduced_attention(tower, image, layers, distance) for image in images]
    mean_LH: np.ndarray = np.mean(found, 0)
    return mean_LH * tower.patch_size


@dataclass(frozen=True)
class ColourBasis:
    """Three directions of feature space that are shown as red, green and blue.

    Attributes:
        mean_D: Centre.
        axes_D3: Principal axes, as columns.
        low_3, high_3: Values that become 0 and 255.
        explained: Share of the features' variance that the three directions hold.
    """

    mean_D: np.ndarray
    axes_D3: np.ndarray
    low_3: np.ndarray
    high_3: np.ndarray
    explained: float = 1.0

    def values(self, features_hwD: np.ndarray) -> np.ndarray:
        """Return (h, w, 3) places along the axes."""
        values_hw3: np.ndarray = (features_hwD - self.mean_D) @ self.axes_D3
        return values_hw3

    def colours(self, features_hwD: np.ndarray) -> np.ndarray:
        """Return (h, w, 3) uint8."""
        span = np.maximum(self.high_3 - self.low_3, 1e-12)
        share_hw3: np.ndarray = (self.values(features_hwD) - self.low_3) / span
        return (share_hw3.clip(0, 1) * 255).round().astype(np.uint8)


def feature_maps(backbone: Backbone, image: Picture, layers: Sequence[int] = (-1,)) -> list[np.ndarray]:
    """Return the (h, w, D) features of the cells of each layer, in one pass."""
    with frozen(backbone):
        maps = backbone.forward_features(as_batch(backbone, image), list(layers))
    return [map_BDhw[0].permute(1, 2, 0).float().cpu().numpy() for map_BDhw in maps]


def colour_basis(features: Sequence[np.ndarray]) -> ColourBasis:
    """Return the principal axes of all patches of several (h, w, D) feature maps: one basis for all pictures.

    The sign of an axis is arbitrary; it is chosen so that its largest weight is positive. Features of several
    backbones have no common axes unless they have one width and descend from one initialisation: give each its
    own basis otherwise, and make their colours alike with `matched`.

    Raises:
        ConfigError: There are no features, they differ in width, or are narrower than 3.
    """
    if not features or len({each.shape[-1] for each in features}) > 1 or features[0].shape[-1] < 3:
        what = "one basis needs features of one width, at least 3"
        raise ConfigError(what, where="colour basis", fix="make one a backbone")
    patches_PD = np.concatenate([each.reshape(-1, each.shape[-1]) for each in features]).astype(np.float64)
    mean_D = patches_PD.mean(0)
    # Full matrices would be one of patches × patches, too.
    _, sizes, axes_DD = np.linalg.svd(patches_PD - mean_D, full_matrices=False)
    axes_D3 = axes_DD[:3].T
    axes_D3 = axes_D3 * np.sign(axes_D3[np.abs(axes_D3).argmax(0), np.arange(axes_D3.shape[1])])
    values = (patches_PD - mean_D) @ axes_D3
    # A few odd patches at the ends would leave all others the same grey.
    low_3, high_3 = np.percentile(values, [2, 98], axis=0)
    explained = float((sizes[:3] ** 2).sum() / max((sizes**2).sum(), 1e-30))
    return ColourBasis(mean_D, axes_D3, low_3, high_3, explained)


def matched(
    basis: ColourBasis,
    features: Sequence[np.ndarray],
    reference: ColourBasis,
    reference_features: Sequence[np.ndarray],
) -> ColourBasis:
    """Return a basis with its axes reordered and turned round so that its pictures look most like the reference's.

    Each axis goes to the channel whose picture it correlates with most, over all images; nothing else changes, so
    that what the pictures show stays each backbone's own.

    Args:
        basis: Basis whose axes are to be matched.
        features: (h, w, D) features of each image.
        reference: Basis of another backbone, of any width and grid.
        reference_features: The other backbone's features of the same images.
    """
    own, theirs = [], []
    for feature_hwD, reference_hwD in zip(features, reference_features, strict=True):
        size = (feature_hwD.shape[1], feature_hwD.shape[0])
        values_hw3 = reference.values(reference_hwD).astype(np.float32)
        own.append(basis.values(feature_hwD).reshape(-1, 3))
        theirs.append(cv2.resize(values_hw3, size, interpolation=cv2.INTER_AREA).reshape(-1, 3))
    with np.errstate(invalid="ignore", divide="ignore"):  # an axis without variance is like no other
        correlation_66 = np.corrcoef(np.concatenate(own), np.concatenate(theirs), rowvar=False)
    correlation_33 = np.nan_to_num(correlation_66[:3, 3:])
    axes, channels = linear_sum_assignment(-np.abs(correlation_33))
    order_3 = axes[np.argsort(channels)]
    sign_3 = np.where(correlation_33[order_3, np.arange(3)] < 0, -1.0, 1.0)
    # An axis that is turned round has its low end where the high one was.
    ends_23 = np.stack([basis.low_3, basis.high_3])[:, order_3] * sign_3
    return replace(
        basis, axes_D3=basis.axes_D3[:, order_3] * sign_3, low_3=ends_23.min(0), high_3=ends_23.max(0)
    )


def pca_rgb(
    backbone: Backbone, images: Sequence[Picture], layer: int = -1, *, basis: ColourBasis | None = None
) -> list[np.ndarray]:
    """Return (h, w, 3) uint8 pictures of the patch features in one basis shared by all images."""
    features = [feature_maps(backbone, image, [layer])[0] for image in images]
    shared = basis or colour_basis(features)
    return [shared.colours(each) for each in features]
