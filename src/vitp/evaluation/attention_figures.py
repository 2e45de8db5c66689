"""Pictures of attention and features over an image, side by side for several backbones.

Shapes: H × W pixels, h × w patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from vitp.errors import ConfigError
from vitp.evaluation.attention import Heads, attention_map, pca_rgb
from vitp.models.vision import VisionTower

_CAPTION = 18
_GAP = 6


def overlay(
    image: Image.Image,
    map_hw: np.ndarray,
    *,
    patch: tuple[int, int] | None = None,
    side: int = 288,
    opacity: float = 0.7,
    largest: float | None = None,
) -> Image.Image:
    """Return the image, greyed, under a map; strong places hide more of it.

    Args:
        image: RGB.
        map_hw: Values ≥ 0 of each patch.
        patch: Row and column of the query, framed.
        side: Pixels of the longer side of the picture.
        opacity: Of the strongest place.
        largest: Value of the strongest colour; None: the map's largest. Give one for pictures to compare.
    """
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    grey_HWC = np.asarray(
        image.convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float64
    )
    top = float(map_hw.max()) if largest is None else largest
    strength_hw = (map_hw / top if top > 0 else np.zeros_like(map_hw)).clip(0, 1)
    strength = Image.fromarray(strength_hw.astype(np.float32)).resize(size, Image.Resampling.NEAREST)
    strength_HW = np.asarray(strength)
    colour_HWC = matplotlib.colormaps["magma"](strength_HW)[..., :3] * 255
    alpha_HW1 = opacity * np.sqrt(strength_HW)[..., None]
    blended = (grey_HWC * (1 - alpha_HW1) + colour_HWC * alpha_HW1).clip(0, 255).round().astype(np.uint8)
    picture = Image.fromarray(blended)
    if patch is not None:
        cell = np.array(size) / map_hw.shape[::-1]
        corner = np.array(patch[::-1]) * cell
        box = [*corner.round().astype(int).tolist(), *((corner + cell).round().astype(int) - 1).tolist()]
        ImageDraw.Draw(picture).rectangle(box, outline=(0, 220, 255), width=2)
    return picture


def side_by_side(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Return the pictures in a row on white, each under its name.

    Raises:
        ConfigError: There are no pictures.
    """
    if not pictures:
        raise ConfigError("there are no pictures to put side by side", where="figure")
    width = sum(picture.width for picture in pictures.values()) + _GAP * (len(pictures) - 1)
    height = max(picture.height for picture in pictures.values()) + _CAPTION
    sheet = Image.new("RGB", (width, height), "white")
    draw, x = ImageDraw.Draw(sheet), 0
    for name, picture in pictures.items():
        draw.text((x + 2, 3), name, fill="black")
        sheet.paste(picture, (x, _CAPTION))
        x += picture.width + _GAP
    return sheet


def compare_attention(
    towers: Mapping[str, VisionTower],
    image: Image.Image,
    patch: tuple[float, float],
    *,
    layer: int = -1,
    head: Heads = "mean",
    side: int = 288,
) -> Image.Image:
    """Return the image and each backbone's attention of one place in it.

    Args:
        towers: Name → backbone; their grids may differ.
        image: RGB.
        patch: The query's place as shares (row, column) of the image, 0..1: grids differ.
        layer, head: See `attention.attention_map`.
        side: Pixels of a picture's longer side.
    """
    if not all(0 <= share < 1 for share in patch):
        raise ConfigError(f"{patch} is not in 0..1", where="patch", fix="give shares of height and width")
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pictures = {"image": image.convert("RGB").resize(size, Image.Resampling.BICUBIC)}
    for name, tower in towers.items():
        query = (int(patch[0] * tower.grid), int(patch[1] * tower.grid))
        map_hw = attention_map(tower, image, query, layer, head)
        pictures[name] = overlay(image, map_hw, patch=query, side=side)
    return side_by_side(pictures)


def compare_features(
    towers: Mapping[str, VisionTower], images: Sequence[Image.Image], *, layer: int = -1, side: int = 192
) -> list[Image.Image]:
    """Return for each image a row: the image, and each backbone's patch features as colours.

    Colours are shared over the images of a backbone; between backbones they mean nothing.
    """
    pictures = {name: pca_rgb(tower, images, layer) for name, tower in towers.items()}
    rows = []
    for number, image in enumerate(images):
        row = {"image": image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)}
        for name, found in pictures.items():
            row[name] = Image.fromarray(found[number]).resize((side, side), Image.Resampling.NEAREST)
        rows.append(side_by_side(row))
    return rows
