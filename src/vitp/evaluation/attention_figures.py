"""Pictures of attention over an image, side by side for several backbones, layers and heads.

Shapes: H × W pixels, h × w patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from vitp.core.errors import ConfigError
from vitp.evaluation.attention import Heads, attention_map, grid_of, head_maps, rollout_map
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
    towers: Mapping[str, PlainViT],
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
    pictures = {"image": enlarged(image, side)}
    for name, tower in towers.items():
        query = patch_at(tower, patch)
        map_hw = attention_map(tower, image, query, layer, head)
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


def below_one_another(rows: Sequence[Image.Image]) -> Image.Image:
    """Return pictures in a column on white.

    Raises:
        ConfigError: There are no pictures.
    """
    if not rows:
        raise ConfigError("there are no pictures to put below one another", where="figure")
    height = sum(row.height for row in rows) + _GAP * (len(rows) - 1)
    sheet = Image.new("RGB", (max(row.width for row in rows), height), "white")
    y = 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height + _GAP
    return sheet


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
