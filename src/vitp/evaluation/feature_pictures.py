"""Patch features as colours, side by side for several backbones and layers, and numbers about them.

Shapes: h × w patches, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vitp.core.errors import ConfigError
from vitp.evaluation.attention import ColourBasis, colour_basis, feature_maps, matched
from vitp.evaluation.attention_figures import side_by_side
from vitp.models.backbone import Backbone


@dataclass(frozen=True)
class FeatureColours:
    """What one backbone's features of one layer look like.

    Attributes:
        basis: Directions that are shown as red, green and blue.
        pictures: One (h, w, 3) uint8 picture an image.
    """

    basis: ColourBasis
    pictures: tuple[np.ndarray, ...]


def feature_colours(
    backbones: Mapping[str, Backbone],
    images: Sequence[Image.Image],
    layer: int = -1,
    *,
    shared: bool = False,
) -> dict[str, FeatureColours]:
    """Return the features of several backbones as colours.

    Colours are shared over the images of a backbone. Backbones have bases of their own, whose colours are assigned
    so that they look like the first one's; with `shared` all have one basis, and equal colours are equal features.

    Args:
        backbones: Name → backbone.
        images: RGB.
        layer: Of each backbone.
        shared: One basis for all: for backbones of one width that descend from one initialisation.

    Raises:
        ConfigError: There are no backbones or images, or `shared` and their widths differ.
    """
    return feature_colours_of_layers(backbones, images, [layer], shared=shared)[0]


def feature_colours_of_layers(
    backbones: Mapping[str, Backbone],
    images: Sequence[Image.Image],
    layers: Sequence[float],
    *,
    shared: bool = False,
) -> list[dict[str, FeatureColours]]:
    """Return `feature_colours` of several layers, with one forward pass a backbone and image.

    Args:
        backbones, images, shared: See `feature_colours`.
        layers: Layer numbers; fractions in 0..1 (floats) mean that share of each backbone's depth, 1.0 the last.
    """
    if not backbones or not images:
        raise ConfigError("needs a backbone and an image", where="feature pictures", fix="name both")
    features: dict[str, list[list[np.ndarray]]] = {}
    for name, backbone in backbones.items():
        numbers = [layer_number(backbone, layer) for layer in layers]
        by_image = [feature_maps(backbone, image, numbers) for image in images]
        features[name] = [list(of_layer) for of_layer in zip(*by_image, strict=True)]
    return [
        _colours({name: found[place] for name, found in features.items()}, shared)
        for place in range(len(layers))
    ]


def layer_number(backbone: Backbone, layer: float) -> int:
    """Return a layer's number; a float is a share of the depth."""
    if isinstance(layer, int):
        return layer
    return round(layer * (backbone.num_layers - 1))


def _colours(features: Mapping[str, list[np.ndarray]], shared: bool) -> dict[str, FeatureColours]:
    common = colour_basis([each for found in features.values() for each in found]) if shared else None
    result: dict[str, FeatureColours] = {}
    first: tuple[ColourBasis, list[np.ndarray]] | None = None
    for name, found in features.items():
        basis = common or colour_basis(found)
        if first is None:
            first = (basis, found)
        elif common is None:
            basis = matched(basis, found, *first)
        result[name] = FeatureColours(basis, tuple(basis.colours(each) for each in found))
    return result


def compare_features(
    backbones: Mapping[str, Backbone],
    images: Sequence[Image.Image],
    *,
    layer: int = -1,
    side: int = 192,
    shared: bool = False,
) -> list[Image.Image]:
    """Return for each image a row: the image, and each backbone's patch features as colours.

    Args:
        backbones, images, layer, shared: See `feature_colours`.
        side: Pixels of a picture's side.
    """
    found = feature_colours(backbones, images, layer, shared=shared)
    rows = []
    for number, image in enumerate(images):
        row = {"image": image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)}
        for name, colours in found.items():
            row[name] = enlarged_cells(colours.pictures[number], side)
        rows.append(side_by_side(row))
    return rows


def enlarged_cells(colours_hw3: np.ndarray, side: int) -> Image.Image:
    """Return a picture of cells with `side` pixels on each side, its cells as they are."""
    return Image.fromarray(colours_hw3).resize((side, side), Image.Resampling.NEAREST)
