"""Dynamic tiling against a slow, obviously right reading of the rule."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitp.data.tiling import choose_grid, count_tiles, cut_tiles

SIDES = st.integers(1, 3000)


@given(SIDES, SIDES, st.integers(1, 12))
def test_grid_has_the_nearest_aspect_ratio(width, height, max_tiles):
    columns, rows = choose_grid(width, height, 448, max_tiles)
    assert columns * rows <= max_tiles
    nearest = min(
        abs(width / height - a / b) for a in range(1, max_tiles + 1) for b in range(1, max_tiles // a + 1)
    )
    assert abs(width / height - columns / rows) == nearest


def test_ties_go_to_the_larger_grid_only_with_enough_pixels():
    assert choose_grid(448, 448, 448, 12) == (1, 1)
    assert choose_grid(700, 700, 448, 12) == (2, 2)
    assert choose_grid(1400, 1400, 448, 12) == (3, 3)
    assert choose_grid(896, 448, 448, 12) == (2, 1)


@given(st.integers(8, 200), st.integers(8, 200), st.integers(1, 6))
def test_count_agrees_with_cut(width, height, max_tiles):
    tiles = cut_tiles(Image.new("RGB", (width, height)), 16, max_tiles)
    assert tiles.shape == (count_tiles(width, height, 16, max_tiles), 3, 16, 16)


def test_tiles_are_the_image_row_by_row_with_the_thumbnail_last():
    rng = np.random.default_rng(0)
    image_HWC = rng.integers(0, 256, size=(32, 64, 3), dtype=np.uint8)
    tiles = cut_tiles(Image.fromarray(image_HWC), 32, 2)
    assert len(tiles) == 3
    assert np.array_equal(tiles[0], image_HWC[:, :32].transpose(2, 0, 1))
    assert np.array_equal(tiles[1], image_HWC[:, 32:].transpose(2, 0, 1))
    thumbnail = np.asarray(Image.fromarray(image_HWC).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(tiles[2], thumbnail.transpose(2, 0, 1))
