"""Regions of a class map as polygons, strip by strip: joined across the strips' edges, in bounded memory.

Shapes: P polygons, W columns, R rows; coordinates are pixels of the image, x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitp.core.extras import need
from vitp.inference.degrees import POLYGONS
from vitp.inference.outputs import SMALLEST_REGION

STRIP_ROWS = 1024
"""Rows that are turned into polygons at once, at most."""
_STRIP_PIXELS = 1 << 25
MOST_VERTICES = 4_000_000
"""Corners of unfinished regions that are held. Beyond, the largest regions are cut at the strip's edge."""

Polygons = tuple[np.ndarray, np.ndarray]
"""(P,) shapely polygons and (P,) their class numbers."""


@dataclass
class _Region:
    """A region that may go on below."""

    number: int
    pieces: list[Any] = field(default_factory=list)
    vertices: int = 0


def class_polygons(
    rows: Callable[[int, int], np.ndarray],
    size: tuple[int, int],
    wanted: Collection[int],
    *,
    strip_rows: int = STRIP_ROWS,
    known: Callable[[int, int], bool] = lambda top, bottom: True,
) -> Iterator[Polygons]:
    """Yield the 4-connected regions of a class map, each once it is whole, along the edges of its pixels.

    Regions of fewer than `SMALLEST_REGION` pixels are left out.

    Args:
        rows: First row, row after the last → (R, W) uint8 class numbers.
        size: Height and width.
        wanted: Class numbers that become polygons.
        strip_rows: Rows at once.
        known: Whether anything is known in some rows; where it isn't they aren't read.
    """
    joiner = _Joiner(size[1])
    strip_rows = max(1, min(strip_rows, _STRIP_PIXELS // size[1]))
    for top in range(0, size[0], strip_rows):
        bottom = min(top + strip_rows, size[0])
        found: Polygons = np.zeros(0, object), np.zeros(0, np.int64)
        if known(top, bottom):
            found = _strip_polygons(rows(top, bottom), top, wanted)
        yield _large_enough(joiner.add(*found, top, bottom, last=bottom == size[0]))


def _strip_polygons(classes_RW: np.ndarray, top: int, wanted: Collection[int]) -> Polygons:
    shapely = need("geo", "shapely", POLYGONS)
    affine, features = need("geo", "affine", POLYGONS), need("geo", "rasterio.features", POLYGONS)

    chosen_RW = np.isin(classes_RW, list(wanted))
    polygons, numbers = [], []
    if chosen_RW.any():
        # With connectivity 8 a polygon may touch itself at a corner, which is invalid, and strips join along edges.
        for shape, value in features.shapes(
            classes_RW, mask=chosen_RW, connectivity=4, transform=affine.Affine.translation(0, top)
        ):
            polygons.append(shapely.Polygon(shape["coordinates"][0], shape["coordinates"][1:]))
            numbers.append(int(value))
    return np.array(polygons, object), np.array(numbers, np.int64)


def _large_enough(found: Polygons) -> Polygons:
    shapely = need("geo", "shapely", POLYGONS)

    polygons_P, numbers_P = found
    large_P = shapely.area(polygons_P) >= SMALLEST_REGION
    return polygons_P[large_P], numbers_P[large_P]


class _Joiner:
    """Joins the regions of one strip to those of the next.

    Args:
        width: Columns of the map.
    """

    def __init__(self, width: int) -> None:
        self._open: dict[int, _Region] = {}
        self._edge_W = np.full(width, -1, np.int64)  # which open region ends there
        self._next = 0

    def add(
        self, polygons_P: np.ndarray, numbers_P: np.ndarray, top: int, bottom: int, *, last: bool
    ) -> Polygons:
        """Add the polygons of a strip; return the regions that are whole."""
        shapely = need("geo", "shapely", POLYGONS)

        first, self._next = self._next, self._next + len(polygons_P)
        vertices_P = shapely.get_num_coordinates(polygons_P)
        above_W, below_W = (self._edge(polygons_P, row, first) for row in (top, bottom))
        for number, (polygon, class_number, count) in enumerate(
            zip(polygons_P, numbers_P.tolist(), vertices_P.tolist(), strict=True), first
        ):
            self._open[number] = _Region(class_number, [polygon], count)
        root = self._joined(above_W)
        below_W = np.array([root.get(number, number) for number in below_W.tolist()], np.int64)
        going_on = set() if last else set(below_W[below_W >= 0].tolist())
        done = [number for number in self._open if number not in going_on]
        held = sum(region.vertices for region in self._open.values())
        # The largest first, so that few regions are cut.
        for number in sorted(going_on, key=lambda number: -self._open[number].vertices):
            if held <= MOST_VERTICES:
                break
            held -= self._open[number].vertices
            done.append(number)
        # Regions that were cut here are finished: what continues one below is another region.
        below_W[np.isin(below_W, done)] = -1
        self._edge_W = below_W
        regions = [self._open.pop(number) for number in sorted(done)]
        return (
            np.array([_united(region.pieces) for region in regions], object),
            np.array([region.number for region in regions], np.int64),
        )

    def _edge(self, polygons_P: np.ndarray, row: int, first: int) -> np.ndarray:
        """Return (W,) the number of the polygon that has an edge on a line of the grid; −1: none."""
        shapely = need("geo", "shapely", POLYGONS)

        edge_W = np.full(len(self._edge_W), -1, np.int64)
        bounds_P4 = shapely.bounds(polygons_P).reshape(-1, 4)
        touching = np.flatnonzero((bounds_P4[:, 1] == row) | (bounds_P4[:, 3] == row))
        points_N2, owner_N = shapely.get_coordinates(
            shapely.get_exterior_ring(polygons_P[touching]), return_index=True
        )
        # Steps of one ring along the line are edges of pixels that lie on it.
        along_N = (points_N2[:-1, 1] == row) & (points_N2[1:, 1] == row) & (owner_N[:-1] == owner_N[1:])
        for at in np.flatnonzero(along_N).tolist():
            left, right = sorted((int(points_N2[at, 0]), int(points_N2[at + 1, 0])))
            edge_W[left:right] = first + touching[owner_N[at]]
        return edge_W

    def _joined(self, above_W: np.ndarray) -> dict[int, int]:
        """Join open regions that share an edge and a class; return joined number → the number that stays."""
        meet_W = (self._edge_W >= 0) & (above_W >= 0)
        pairs = np.unique(np.stack([self._edge_W[meet_W], above_W[meet_W]], axis=1), axis=0)
        parent: dict[int, int] = {}

        def find(number: int) -> int:
            while number in parent:
                number = parent[number]
            return number

        for one, other in pairs.tolist():
            first, second = sorted((find(one), find(other)))
            if first == second or self._open[first].number != self._open[second].number:
                continue
            parent[second] = first
            gone = self._open.pop(second)
            self._open[first].pieces += gone.pieces
            self._open[first].vertices += gone.vertices
        return {number: find(number) for number in parent}


def _united(pieces: list[Any]) -> Any:
    """Return the union of pieces that share edges, without the corners that only their seams have."""
    shapely = need("geo", "shapely", POLYGONS)

    return pieces[0] if len(pieces) == 1 else shapely.simplify(shapely.union_all(pieces), 0)
