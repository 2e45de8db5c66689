"""What a backbone sees in an image: the attention of a patch, and features as colours.

Shapes: h × w patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from vitp.data.seen import PixelImage, SeenBands
from vitp.evaluation.attention import ColourBasis, attention_map, colour_basis, feature_maps, matched
from vitp.evaluation.feature_pictures import patch_at
from vitp.io.images import load_image
from vitp.models.backbone import Backbone
from vitp.models.plain_vit import PlainViT
from vitp.serving.answers import png_bytes
from vitp.serving.models import ServedModel
from vitp.serving.refusal import Refusal
from vitp.serving.store import StoredImage

_T = TypeVar("_T")


def attended(
    model: ServedModel, image: StoredImage, at: tuple[float, float], layer: int | None = None
) -> dict[str, Any]:
    """Return how much the patch at a point attends to each patch, the mean over heads, as JSON values.

    Args:
        model: Model whose vision transformer is looked at.
        image: Image that it sees as a whole, squeezed to its size.
        at: x and y in pixels of the image.
        layer: From 0; None: the last.

    Raises:
        Refusal: The model has no attention among patches or no such layer, or the point lies outside of the image.
        DataError: The image can't be read.
    """
    tower = _tower_of(model)
    if not isinstance(tower, PlainViT):
        raise Refusal(422, f"{model.name} has no attention among patches to look at")
    layer = _layer_of(model, layer)
    (width, height), (x, y) = image.size, at
    if not (0 <= x < width and 0 <= y < height):
        raise Refusal(422, f"the point ({x:g}, {y:g}) lies outside of the image of {width}×{height} pixels")
    patch = patch_at(tower, (y / height, x / width))
    seen = _seen(tower, image)
    map_hw = _computed(model, partial(attention_map, tower, seen, patch, layer))
    return {
        "rows": map_hw.shape[0],
        "cols": map_hw.shape[1],
        "layer": layer,
        "layers": tower.num_layers,
        "patch": list(patch),
        "values": [[float(f"{value:.5g}") for value in row] for row in map_hw],
    }


def coloured(
    model: ServedModel,
    image: StoredImage,
    layer: int | None = None,
    like: tuple[ServedModel, int | None] | None = None,
) -> tuple[bytes, float]:
    """Return a PNG with the features of each patch as one pixel, and the share of their variance that it shows.

    The three main directions of the image's features are red, green and blue.

    Args:
        model: Model whose backbone is looked at.
        image: Image that it sees as a whole, squeezed to its size.
        layer: From 0; None: the last.
        like: Another model and its layer: axes and signs are assigned so that the colours resemble that one's.

    Raises:
        Refusal: A model has no backbone to look into, or no such layer.
        DataError: The image can't be read.
    """
    features_hwD, basis = _basis_of(model, image, layer)
    if like is not None:
        their_hwD, theirs = _basis_of(like[0], image, like[1])
        basis = matched(basis, [features_hwD], theirs, [their_hwD])
    return png_bytes(Image.fromarray(basis.colours(features_hwD))), basis.explained


def _basis_of(model: ServedModel, image: StoredImage, layer: int | None) -> tuple[np.ndarray, ColourBasis]:
    tower, layer = _tower_of(model), _layer_of(model, layer)
    seen = _seen(tower, image)
    features_hwD = _computed(model, lambda: feature_maps(tower, seen, [layer])[0])
    return features_hwD, colour_basis([features_hwD])


def _tower_of(model: ServedModel) -> Backbone:
    if model.tower is None:
        raise Refusal(
            422, f"{model.name} is an exported graph, into which nobody can look; serve the run instead"
        )
    return model.tower


def _layer_of(model: ServedModel, layer: int | None) -> int:
    last = _tower_of(model).num_layers - 1
    if layer is None:
        return last
    if not 0 <= layer <= last:
        raise Refusal(422, f"{model.name} has the layers 0 to {last}, there is no layer {layer}")
    return layer


def _seen(tower: Backbone, image: StoredImage) -> PixelImage:
    """Return an image as a backbone sees it; of a large one no more is read than that takes."""
    height, width = tower.image_size

    def enough(*_: int) -> tuple[int, int]:
        return width, height

    if tower.in_channels is None:
        return load_image(image.address, enough=enough)
    return SeenBands(tower.in_channels).load(image.address, enough)


def _computed(model: ServedModel, function: Callable[[], _T]) -> _T:
    """Return the result of a function that the model's own thread computes."""
    result: _T = model.worker.call(function).result()
    return result
