"""Looks at an image of any size: windows of the model's size at several scales, staggered, turned and mirrored.

Shapes: N points, h × w pixels of what the model sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.io.open_pixels import Window
from vitp.runtime.views import window_at, window_starts
from vitp.tasks.base import InputSize, TestSettings
from vitp.tasks.ground import Ground, ImageGround


@dataclass(frozen=True)
class View:
    """One look at an image.

    Attributes:
        window: x1, y1, x2, y2 in pixels of the image.
        size: Height and width that the window is resized to.
        mirrored: Left and right are swapped, after the turns.
        turns: Quarter turns, counter-clockwise.
        flat: Its pixels weigh the same but for an eighth of it at each edge; False: Hann's window over all of it.
    """

    window: Window
    size: tuple[int, int]
    mirrored: bool = False
    turns: int = 0
    flat: bool = False

    def of(self, image: Tensor | Ground) -> Tensor:
        """Return what the model sees of an image."""
        ground = ImageGround(image) if isinstance(image, Tensor) else image
        seen = torch.rot90(ground.planes(self.window, self.size), self.turns, (-2, -1))
        return seen.flip(-1) if self.mirrored else seen

    @property
    def seen_size(self) -> tuple[int, int]:
        """Height and width of what the model sees."""
        height, width = self.size
        return (width, height) if self.turns % 2 else (height, width)

    def upright(self, values: Tensor) -> Tensor:
        """Return (…, h, w) values of what the model saw as the window lies in the image."""
        return torch.rot90(values.flip(-1) if self.mirrored else values, -self.turns, (-2, -1))

    def points_upright(self, points_NP2: Tensor) -> Tensor:
        """Return points x, y of what the model saw in pixels of the window at `size`."""
        height, width = self.seen_size
        x, y = points_NP2.unbind(-1)
        x = width - x if self.mirrored else x
        for _ in range(self.turns % 4):  # each back by a quarter: its left side becomes the top
            x, y = height - y, x
            height, width = width, height
        return torch.stack([x, y], dim=-1)


SQUARE_LOOKS: dict[str, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flip": ((0, False), (0, True)),
    "d4": tuple((turns, mirrored) for turns in range(4) for mirrored in (False, True)),
}
"""Quarter turns and mirroring of the views of each window."""


def _staggered(
    at: tuple[int, int], step: int, origin: tuple[int, int], last: tuple[int, int], patch: int
) -> tuple[int, int]:
    """Return where a window begins whose neighbours are to see other parts of a patch at its edge than it does.

    A vision transformer's answer depends on where its patches lie, up to a patch. The four windows that see a pixel at
    an overlap of a half begin at 0, 1/4, 2/4 and 3/4 of a patch, along x and (in the other order) along y; their mean
    hardly changes when all of them move. At the border of the image windows stay where they are.

    Args:
        at: x and y where it would begin.
        step: From one window to the next.
        origin: Where windows are counted from.
        last: x and y of the last windows, those at the border.
        patch: Side of a patch in pixels.
    """
    # The last window is moved back to the border, so the steps to it are rounded up.
    column, row = (
        (place - first) // step if place < end else -((first - place) // step)
        for place, first, end in zip(at, origin, last, strict=True)
    )
    turn = (column + 2 * row) % 4
    moves = (turn * patch // 4, 3 * turn % 4 * patch // 4)
    x, y = (
        place if place in (0, end) else min(place + move, end)
        for place, move, end in zip(at, moves, last, strict=True)
    )
    return x, y


def views_of(
    height: int,
    width: int,
    settings: TestSettings,
    resize: InputSize,
    *,
    origin: tuple[int, int] = (0, 0),
    factor: float = 1.0,
    patch: int = 0,
) -> list[View]:
    """Return all looks at an image, from top to bottom.

    The image is resized, then scaled by each factor, then cut into windows; views say where those lie in the
    image itself, to the pixel, so that nothing larger than a window is ever made.

    Args:
        height, width: Height and width of the image.
        settings: Windows, scales, mirrors.
        resize: What size the image gets.
        origin: x and y in pixels of the image from which windows are counted.
        factor: On the size after `resize`.
        patch: Side of the model's patches, for `settings.stagger`; 0: windows lie on a grid.

    Raises:
        ConfigError: Windows that overlap so little can't be staggered.
    """
    views = []
    flat = settings.stagger and patch > 0
    base = resize.of(height, width)
    looks = SQUARE_LOOKS["d4" if settings.tta == "d4" else "flip" if settings.flip else "none"]
    for scale in settings.scales:
        rows, columns = (max(1, round(side * factor * scale)) for side in base)
        side = settings.window or max(rows, columns)
        step = side - int(settings.overlap * side)
        if flat and side - step < patch and side < max(rows, columns):
            raise ConfigError(
                f"windows that share {side - step} px can't be moved by parts of a patch of {patch} px",
                where="test.stagger",
                fix="raise test.overlap (0.5 and more) or leave test.stagger out",
            )
        first = origin[0] * columns // width, origin[1] * rows // height
        starts = product(
            window_starts(rows, side, step, first[1]), window_starts(columns, side, step, first[0])
        )
        for y, x in starts:
            if flat:
                x, y = _staggered((x, y), step, first, (max(columns - side, 0), max(rows - side, 0)), patch)
            window, seen = window_at((x, y), (side, side), (height, width), (rows, columns))
            views += [View(window, seen, mirrored, turns, flat) for turns, mirrored in looks]
    # By their tops, as strips are decided from the top; all else only keeps the order the same each time.
    return sorted(
        views, key=lambda view: (view.window[1], view.window[0], view.size, view.turns, view.mirrored)
    )
