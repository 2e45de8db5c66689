"""Pictures of what backbones see: attention over an image and patch features as colours, side by side.

Shapes: H × W pixels, h × w patches, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from vitp.core.errors import ConfigError
from vitp.evaluation.attention import (
    ColourBasis,
    attention_map,
    colour_basis,
    feature_maps,
    grid_of,
    head_maps,
    matched,
    rollout_map,
)
from vitp.models.backbone import Backbone
from vitp.models.plain_vit import PlainViT

_CAPTION = 18
_GAP = 6


def overlay(
    image: Image.Image,
    map_hw: np.ndarray,
    *,
    patch: tuple[int, int] | None = None,
    side: int = 288,
    largest: float | None = None,
) -> Image.Image:
    """Return the image, greyed, under a map; strong places hide more of it.

    Args:
        image: RGB.
        map_hw: Values ≥ 0 of each patch.
        patch: Row and column of the query, framed.
        side: Pixels of the longer side of the picture.
        largest: Value of the strongest colour; None: the map's largest. Give one for pictures to compare.
    """
    grey_HWC = np.asarray(enlarged(image.convert("L"), side), np.float64)
    size = (grey_HWC.shape[1], grey_HWC.shape[0])
    top = float(map_hw.max()) if largest is None else largest
    strength_hw = (map_hw / top if top > 0 else np.zeros_like(map_hw)).clip(0, 1)
    strength = Image.fromarray(strength_hw.astype(np.float32)).resize(size, Image.Resampling.NEAREST)
    strength_HW = np.asarray(strength)
    colour_HWC = mpl.colormaps["magma"](strength_HW)[..., :3] * 255
    alpha_HW1 = 0.7 * np.sqrt(strength_HW)[..., None]
    blended = (grey_HWC * (1 - alpha_HW1) + colour_HWC * alpha_HW1).clip(0, 255).round().astype(np.uint8)
    picture = Image.fromarray(blended)
    if patch is not None:
        cell = np.array(size) / map_hw.shape[::-1]
        corner = np.array(patch[::-1]) * cell
        # Pillow's rectangles include their last corner.
        box = [*corner.round().astype(int).tolist(), *((corner + cell).round().astype(int) - 1).tolist()]
        ImageDraw.Draw(picture).rectangle(box, outline=(0, 220, 255), width=2)
    return picture


def side_by_side(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Return the pictures in a row on white, each under its name.

    Raises:
        ConfigError: There are no pictures.
    """
    sheets = []
    for name, picture in pictures.items():
        sheet = ImageOps.expand(picture, (0, _CAPTION, 0, 0), "white")
        ImageDraw.Draw(sheet).text((2, 3), name, fill="black")
        # A row is a column of transposed pictures.
        sheets.append(sheet.transpose(Image.Transpose.TRANSPOSE))
    return below_one_another(sheets).transpose(Image.Transpose.TRANSPOSE)


def below_one_another(rows: Sequence[Image.Image]) -> Image.Image:
    """Return pictures in a column on white.

    Raises:
        ConfigError: There are no pictures.
    """
    if not rows:
        raise ConfigError("there are no pictures to put together", where="figure")
    height = sum(row.height for row in rows) + _GAP * (len(rows) - 1)
    sheet = Image.new("RGB", (max(row.width for row in rows), height), "white")
    y = 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height + _GAP
    return sheet


def compare_attention(
    towers: Mapping[str, PlainViT],
    image: Image.Image,
    patch: tuple[float, float],
    *,
    side: int = 288,
) -> Image.Image:
    """Return the image and each backbone's attention of one place in it.

    Args:
        towers: Name → backbone; their grids may differ.
        image: RGB.
        patch: The query's place as shares (row, column) of the image, 0..1: grids differ.
        side: Pixels of a picture's longer side.
    """
    pictures = {"image": enlarged(image, side)}
    for name, tower in towers.items():
        query = patch_at(tower, patch)
        map_hw = attention_map(tower, image, query)
        pictures[name] = overlay(image, map_hw, patch=query, side=side)
    return side_by_side(pictures)


def compare_rollout(
    towers: Mapping[str, PlainViT],
    image: Image.Image,
    patch: tuple[float, float] | None = None,
    *,
    side: int = 288,
) -> Image.Image:
    """Return the image and each backbone's attention rollout, of one place or of the mean over all.

    Args:
        towers: Name → backbone.
        image: RGB.
        patch: As in `compare_attention`; None: the mean over all output patches.
        side: Pixels of a picture's longer side.
    """
    pictures = {"image": enlarged(image, side)}
    for name, tower in towers.items():
        pictures[name] = rollout_picture(tower, image, patch, side=side)
    return side_by_side(pictures)


def rollout_picture(
    tower: PlainViT, image: Image.Image, patch: tuple[float, float] | None = None, *, side: int = 288
) -> Image.Image:
    """Return the image under the attention rollout of one place, or of the mean over all output patches."""
    query = None if patch is None else patch_at(tower, patch)
    map_hw = rollout_map(tower, image, query)
    others_hw = map_hw.copy()
    if query is not None:
        # The residual connections keep most of a patch in place, which would outshine all that came from elsewhere.
        others_hw[query] = 0.0
    return overlay(image, map_hw, patch=query, side=side, largest=float(others_hw.max()))


def attention_sheet(
    tower: PlainViT,
    image: Image.Image,
    patch: tuple[float, float],
    *,
    layers: Sequence[int] | None = None,
    side: int = 96,
) -> Image.Image:
    """Return the attention of one place in every layer (rows, first at the top) and head (columns).

    Each picture has its own scale: where a head looks, not how strongly.

    Args:
        tower: A plain ViT.
        image: RGB.
        patch: The query's place as shares (row, column) of the image, 0..1.
        layers: None: all.
        side: Pixels of a picture's longer side.
    """
    wanted = list(range(tower.num_layers) if layers is None else layers)
    query = patch_at(tower, patch)
    rows = []
    for layer, maps_Hhw in zip(wanted, head_maps(tower, image, query, wanted), strict=True):
        row = {
            f"layer {layer}, head {head}": overlay(image, map_hw, patch=query, side=side)
            for head, map_hw in enumerate(maps_Hhw)
        }
        rows.append(side_by_side(row))
    return below_one_another(rows)


def patch_at(backbone: Backbone, place: tuple[float, float]) -> tuple[int, int]:
    """Return the row and column of the patch at a place, given as shares (row, column) of the image.

    Raises:
        ConfigError: The place is not in 0..1.
    """
    if not all(0 <= share < 1 for share in place):
        raise ConfigError(f"{place} is not in 0..1", where="patch", fix="give shares of height and width")
    rows, columns = grid_of(backbone)
    return int(place[0] * rows), int(place[1] * columns)


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """Return the image in RGB with `side` pixels on its longer side."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


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
    layers: Sequence[float] = (-1,),
    *,
    shared: bool = False,
) -> list[dict[str, FeatureColours]]:
    """Return the features of several backbones as colours, for each of some layers: name → colours.

    Colours are shared over the images of a backbone. Backbones have bases of their own, whose colours are assigned
    so that they look like the first one's; with `shared` all have one basis, and equal colours are equal features.

    Args:
        backbones: Name → backbone; each sees an image once.
        images: RGB.
        layers: Layer numbers; fractions in 0..1 (floats) mean that share of each backbone's depth, 1.0 the last.
        shared: One basis for all: for backbones of one width that descend from one initialisation.

    Raises:
        ConfigError: There are no backbones or images, or `shared` and their widths differ.
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
    return layer if isinstance(layer, int) else round(layer * (backbone.num_layers - 1))


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
    side: int = 192,
    shared: bool = False,
) -> list[Image.Image]:
    """Return for each image a row: the image, and each backbone's patch features as colours.

    Args:
        backbones, images, shared: See `feature_colours`.
        side: Pixels of a picture's side.
    """
    (found,) = feature_colours(backbones, images, [-1], shared=shared)
    rows = []
    for number, image in enumerate(images):
        row = {"image": image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)}
        row |= {name: enlarged_cells(colours.pictures[number], side) for name, colours in found.items()}
        rows.append(side_by_side(row))
    return rows


def enlarged_cells(colours_hw3: np.ndarray, side: int) -> Image.Image:
    """Return a picture of cells with `side` pixels on each side, its cells as they are."""
    return Image.fromarray(colours_hw3).resize((side, side), Image.Resampling.NEAREST)
