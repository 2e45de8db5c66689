"""Dynamic tiling: an image becomes a grid of square tiles of its own aspect ratio, plus a thumbnail."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from vitp.data.seen import PixelImage, size_of


@lru_cache(maxsize=64)
def _grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) with at most `max_tiles` tiles, fewest tiles first."""
    grids = [(a, b) for a in range(1, max_tiles + 1) for b in range(1, max_tiles // a + 1)]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)))


def choose_grid(width: int, height: int, tile: int, max_tiles: int) -> tuple[int, int]:
    """Return (columns, rows) of the grid whose aspect ratio is nearest to the image's.

    Of two equally near grids the larger one wins when the image's area exceeds half of the larger grid's
    pixel area (ViTP takes this over from InternVL).
    """
    ratio, area = width / height, width * height
    best, best_difference = (1, 1), float("inf")
    for columns, rows in _grids(max_tiles):
        difference = abs(ratio - columns / rows)
        enough_pixels = area > 0.5 * tile * tile * columns * rows
        if difference < best_difference or (difference == best_difference and enough_pixels):
            best, best_difference = (columns, rows), difference
    return best


def count_tiles(width: int, height: int, tile: int, max_tiles: int) -> int:
    """Return how many tiles `cut_tiles` makes of an image, the thumbnail included."""
    columns, rows = choose_grid(width, height, tile, max_tiles)
    return columns * rows + (columns * rows > 1)


def cut_tiles(image: PixelImage, tile: int, max_tiles: int) -> np.ndarray:
    """Return (tiles, C, tile, tile) uint8: row by row, and the whole image as the last when there are several."""
    return cut_grid(image, tile, *choose_grid(*size_of(image), tile, max_tiles))


def cut_grid(
    image: PixelImage,
    tile: int,
    columns: int,
    rows: int,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Return (tiles, C, tile, tile) uint8 of a given grid, as `cut_tiles` does.

    Args:
        image: The whole image.
        tile: Side of a tile in pixels.
        columns: Tiles beside each other.
        rows: Tiles below each other.
        box: Part of the image that counts: left, upper, right, lower in pixels and fractions; None: all of it.
    """
    whole = resampled(image, (tile * columns, tile * rows), box)
    tiles = whole.reshape(rows, tile, columns, tile, -1).transpose(0, 2, 4, 1, 3)
    tiles = tiles.reshape(rows * columns, -1, tile, tile)
    if len(tiles) == 1:
        return np.ascontiguousarray(tiles)
    thumbnail = resampled(image, (tile, tile), box).transpose(2, 0, 1)[None]
    return np.concatenate([tiles, thumbnail])


def resampled(
    image: PixelImage, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Return an image, or a part of it, at `size` (width, height): (H, W, C) uint8, bicubic and antialiased.

    Args:
        image: Image of any number of channels; each is resampled by itself.
        size: Width and height in pixels.
        box: Part of the image: left, upper, right, lower in pixels and fractions; None: all of it.
    """
    if size_of(image) == size and box is None:
        return np.asarray(image)
    if isinstance(image, np.ndarray):
        planes = [Image.fromarray(np.ascontiguousarray(plane_HW)) for plane_HW in np.moveaxis(image, 2, 0)]
        resized = [np.asarray(plane.resize(size, Image.Resampling.BICUBIC, box=box)) for plane in planes]
        return np.stack(resized, axis=2)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))
