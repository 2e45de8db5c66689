"""What a vision tower attends to, and what its patch features look like; as arrays.

Shapes: S × S pixels, h × w patches, N = h·w, T = prefix tokens + N, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitp.errors import ConfigError
from vitp.evaluation.features import frozen
from vitp.models.vision import VisionTower
from vitp.objectives.dense_source import resize

Heads = int | Literal["mean"]


def prepare(tower: VisionTower, image: Image.Image | np.ndarray) -> Tensor:
    """Return an RGB image (8 bit) as a normalised batch of one at the tower's size and on its device."""
    height, width = tower.image_size
    array_HWC = resize(np.asarray(image), (height, width))
    image_BCSS = torch.from_numpy(array_HWC.copy()).permute(2, 0, 1)[None]
    return tower.normalize(image_BCSS.to(next(tower.parameters()).device))


def attention(tower: VisionTower, image: Image.Image | np.ndarray, layers: Sequence[int]) -> np.ndarray:
    """Return (layers, heads, T, T) softmax attention; each row (query) sums to 1."""
    with frozen(tower):
        image_BCSS = prepare(tower, image)
        return torch.cat([tower.attention(image_BCSS, layer) for layer in layers]).float().cpu().numpy()


def patch_attention(
    tower: VisionTower, image: Image.Image | np.ndarray, layers: Sequence[int], *, heads: bool = False
) -> np.ndarray:
    """Return (layers, N, N), or (layers, heads, N, N), attention among patches.

    Prefix tokens (`[CLS]`, registers) are cut off, so that a row sums to 1 minus what they draw.
    """
    found = attention(tower, image, layers)
    prefix = tower.model.num_prefix_tokens
    among = found[:, :, prefix:, prefix:]
    return among if heads else among.mean(1)


def attention_map(
    tower: VisionTower,
    image: Image.Image | np.ndarray,
    patch: tuple[int, int],
    layer: int = -1,
    head: Heads = "mean",
) -> np.ndarray:
    """Return (h, w): how much the patch in (row, column) attends to each patch.

    Raises:
        ConfigError: The patch lies outside the grid, or there is no such layer or head.
    """
    row, column = patch
    if not (0 <= row < tower.grid and 0 <= column < tower.grid):
        raise ConfigError(f"patch {patch} is not on the grid of {tower.grid} × {tower.grid}", where="patch")
    if not -tower.num_layers <= layer < tower.num_layers:
        raise ConfigError(f"there is no layer {layer} among {tower.num_layers}", where="layer")
    among = patch_attention(tower, image, [layer], heads=True)[0]
    if head != "mean" and not 0 <= head < len(among):
        raise ConfigError(f"there is no head {head} among {len(among)}", where="head")
    chosen_NN = among.mean(0) if head == "mean" else among[head]
    return chosen_NN[row * tower.grid + column].reshape(tower.grid, tower.grid)


def rollout(attention_LTT: np.ndarray) -> np.ndarray:
    """Return (T, T): attention traced through all layers, residual connections included.

    Each layer passes on ½ (A + I); their product, first layer rightmost, tells how much of each input token is
    in each output token. Abnar and Zuidema 2020, section 3. Rows sum to 1.

    Args:
        attention_LTT: Attention of each layer, first layer first, averaged over heads; rows sum to 1.
    """
    traced_TT = np.eye(attention_LTT.shape[-1])
    for layer_TT in attention_LTT:
        traced_TT = (layer_TT + np.eye(len(layer_TT))) / 2 @ traced_TT
    return traced_TT


def attention_rollout(tower: VisionTower, image: Image.Image | np.ndarray) -> np.ndarray:
    """Return (T, T): rollout over all layers of the tower, heads averaged."""
    return rollout(attention(tower, image, range(tower.num_layers)).mean(1))


def attention_distance(attention_NN: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the mean distance in patches between a query and what it attends to (…), for (…, N, N) attention.

    Dosovitskiy et al. 2021, figure 7. Rows are normalised first, so that what prefix tokens draw is left out.
    """
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    places_N2 = np.stack([rows, columns], 1).astype(np.float64)
    distance_NN = np.linalg.norm(places_N2[:, None] - places_N2[None], axis=-1)
    share_NN = attention_NN / attention_NN.sum(-1, keepdims=True)
    return (share_NN * distance_NN).sum(-1).mean(-1)


def distance_profile(tower: VisionTower, images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
    """Return (L, heads): mean attention distance in pixels of each head, over images.

    Raises:
        ConfigError: There are no images.
    """
    if not images:
        raise ConfigError("there are no images", where="attention distance")
    grid = (tower.grid, tower.grid)
    found = [
        attention_distance(patch_attention(tower, image, range(tower.num_layers), heads=True), grid)
        for image in images
    ]
    return np.mean(found, 0) * tower.patch_size


@dataclass(frozen=True)
class ColourBasis:
    """Three directions of feature space that are shown as red, green and blue.

    Attributes:
        mean_D: Centre.
        axes_D3: Principal axes, as columns.
        low_3, high_3: Values that become 0 and 255.
    """

    mean_D: np.ndarray
    axes_D3: np.ndarray
    low_3: np.ndarray
    high_3: np.ndarray

    def colours(self, features_hwD: np.ndarray) -> np.ndarray:
        """Return (h, w, 3) uint8."""
        values = (features_hwD - self.mean_D) @ self.axes_D3
        span = np.maximum(self.high_3 - self.low_3, 1e-12)
        return (((values - self.low_3) / span).clip(0, 1) * 255).round().astype(np.uint8)


def patch_features(tower: VisionTower, image: Image.Image | np.ndarray, layer: int = -1) -> np.ndarray:
    """Return (h, w, D) patch features of one layer."""
    with frozen(tower):
        (map_BDhw,) = tower.forward_features(prepare(tower, image), [layer])
    return map_BDhw[0].permute(1, 2, 0).float().cpu().numpy()


def colour_basis(features: Sequence[np.ndarray]) -> ColourBasis:
    """Return the principal axes of all patches of several (h, w, D) feature maps: one basis for all pictures.

    The sign of an axis is arbitrary; it is chosen so that its largest weight is positive. Features of several
    backbones have no common axes unless they have one width and descend from one initialisation: give each its
    own basis otherwise.

    Raises:
        ConfigError: There are no features, or they differ in width.
    """
    if not features or len({each.shape[-1] for each in features}) > 1:
        raise ConfigError(
            "one basis needs features of one width", where="colour basis", fix="make one a backbone"
        )
    patches_PD = np.concatenate([each.reshape(-1, each.shape[-1]) for each in features]).astype(np.float64)
    mean_D = patches_PD.mean(0)
    _, _, axes_DD = np.linalg.svd(patches_PD - mean_D, full_matrices=False)
    axes_D3 = axes_DD[:3].T
    axes_D3 = axes_D3 * np.sign(axes_D3[np.abs(axes_D3).argmax(0), np.arange(axes_D3.shape[1])])
    values = (patches_PD - mean_D) @ axes_D3
    low_3, high_3 = np.percentile(values, [2, 98], axis=0)
    return ColourBasis(mean_D, axes_D3, low_3, high_3)


def pca_rgb(
    tower: VisionTower,
    images: Sequence[Image.Image | np.ndarray],
    layer: int = -1,
    *,
    basis: ColourBasis | None = None,
) -> list[np.ndarray]:
    """Return (h, w, 3) uint8 pictures of the patch features in one basis shared by all images."""
    features = [patch_features(tower, image, layer) for image in images]
    shared = basis or colour_basis(features)
    return [shared.colours(each) for each in features]
