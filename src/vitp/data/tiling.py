"""Dynamic tiling: an image becomes a grid of square tiles of its own aspect ratio, plus a thumbnail."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image


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


def cut_tiles(image: Image.Image, tile: int, max_tiles: int) -> np.ndarray:
    """Return (tiles, 3, tile, tile) uint8: row by row, and the whole image as the last when there are several."""
    return cut_grid(image, tile, *choose_grid(image.width, image.height, tile, max_tiles))


def cut_grid(
    image: Image.Image,
    tile: int,
    columns: int,
    rows: int,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Return (tiles, 3, tile, tile) uint8 of a given grid, as `cut_tiles` does.

    Args:
        image: The whole image.
        tile: Side of a tile in pixels.
        columns: Tiles beside each other.
        rows: Tiles below each other.
        box: Part of the image that counts: left, upper, right, lower in pixels and fractions; None: all of it.
    """
    whole = np.asarray(_resized(image, tile * columns, tile * rows, box))
    tiles = whole.reshape(rows, tile, columns, tile, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, tile, tile)
    if len(tiles) == 1:
        return np.ascontiguousarray(tiles)
    thumbnail = np.asarray(_resized(image, tile, tile, box)).transpose(2, 0, 1)[None]
    return np.concatenate([tiles, thumbnail])


def _resized(
    image: Image.Image, width: int, height: int, box: tuple[float, float, float, float] | None
) -> Image.Image:
    if image.size == (width, height) and box is None:
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)
