"""Splits by place: images near each other on the ground show the same ground, light and roofs, so they stay together.

1. The outlines of all images are brought onto one plane in metres (`on_one_plane`).
2. Images that are no further apart than the buffer belong together. Where that leaves many small clusters, clusters are
   drawn, those of one block together, and nothing is lost.
3. In a mosaic everything touches. Then blocks are drawn, and images that come too near to one of a split that is held
   out are left out.

Shapes: N images, P pairs of images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.core.extras import need
from vitp.data.formats.splits import assign_fractions
from vitp.io.contract import Geometry
from vitp.io.ground import (
    LONGITUDE_LATITUDE,
    corners,
    geometry_of,
    ground_matrix,
    may_be_placed,
    metres_of_unit,
    reproject,
)
from vitp.records.labels import LabelledImage, PlaceSplit

GroundPlace = tuple[Geometry, tuple[int, int]]
"""Where an image lies, and its width and height."""

_NEEDED = ("rasterio", "pyproj", "shapely")
_FEW_IN_ONE = 1 / 3
"""Share of the images in the largest cluster up to which clusters are drawn."""

_BLOCKS = 40
"""Blocks that the extent is cut into by default, as far as each holds some images."""

_SIDES = 3
"""Images that fit beside each other into a block, at least."""

_FAR = 1_000_000
"""Metres of extent from which one plane around the centre would stretch too much."""


def find_places(items: Sequence[LabelledImage], say: Callable[[str], None]) -> list[GroundPlace | None]:
    """Return where each image lies, None where its file doesn't say it; `say` takes a line where nothing can tell."""
    if not any(may_be_placed(item.image) for item in items):
        return [None] * len(items)
    try:
        for module in _NEEDED:
            need("geo", module, "")
    except DataError as error:
        say(f"where images lie on the ground isn't looked at: it {error.what}")
        return [None] * len(items)
    return [_placed(item) for item in items]


def _placed(item: LabelledImage) -> GroundPlace | None:
    geometry = known_geometry(item.image)
    return None if geometry is None else (geometry, (item.width, item.height))


def known_geometry(address: str) -> Geometry | None:
    """Return where an image lies; None where that isn't known, can't be read, or the extra `geo` isn't there."""
    try:
        for module in _NEEDED:
            need("geo", module, address)
        return geometry_of(address)
    except DataError:
        return None


def with_ground(item: LabelledImage, placed: GroundPlace | None) -> LabelledImage:
    """Return an image with the size of its pixels on the ground, as far as its place says it."""
    if placed is None or item.ground is not None:
        return item
    ground = ground_matrix(*placed)
    return item if ground is None else replace(item, ground=ground)


def on_one_plane(places: Sequence[GroundPlace]) -> np.ndarray:
    """Return the outlines of images as shapely polygons (N,) in metres of one plane.

    Their own plane where all have the same, else one around their centre. Of sets that span more than 1,000 km
    distances come out right in the north and south, and too small nearer to the equator.
    """
    shapely = need("geo", "shapely", "places")
    systems = {geometry.crs for geometry, _ in places}
    unit = metres_of_unit(next(iter(systems))) if len(systems) == 1 else None
    rings = [corners(geometry, size) for geometry, size in places]
    if unit is not None:
        return np.asarray(shapely.polygons([ring * unit for ring in rings]))
    lonlat = [
        reproject(ring, geometry.crs, LONGITUDE_LATITUDE)
        for ring, (geometry, _) in zip(rings, places, strict=True)
    ]
    points = np.concatenate(lonlat)
    (lon, lat), north = points.mean(0), float(np.abs(points[:, 1]).max())
    flat = f"+proj=aeqd +lat_0={lat} +lon_0={lon} +units=m"
    spread = np.abs(points - (lon, lat)).max(0) * (math.cos(math.radians(lat)), 1)
    if spread.max() * 111_000 > _FAR:
        flat = f"+proj=eqc +lat_ts={min(north, 85.0)} +units=m"
    return np.asarray(shapely.polygons([reproject(ring, LONGITUDE_LATITUDE, flat) for ring in lonlat]))


def near_pairs(shapes_N: np.ndarray, distance: float) -> np.ndarray:
    """Return the pairs (P, 2) of images that are at most `distance` metres apart, each once."""
    shapely = need("geo", "shapely", "places")
    tree = shapely.STRtree(shapes_N)
    # A millimetre: neighbours of one mosaic have rounded corners.
    pairs_2P = tree.query(shapes_N, predicate="dwithin", distance=distance + 1e-3)
    return np.asarray(pairs_2P[:, pairs_2P[0] < pairs_2P[1]].T)


@dataclass(frozen=True)
class PlacedSplits:
    """The split of each image, None where it is left out; and how they were found, in words."""

    splits: list[str | None]
    said: str
    left_out: int = 0


def split_by_place(shapes_N: np.ndarray, groups: Sequence[str], how: PlaceSplit) -> PlacedSplits:
    """Draw splits so that images of different splits are further apart than the buffer.

    Args:
        shapes_N: Outlines in metres.
        groups: Groups of each image; those of one group belong together like neighbours, as far as clusters are drawn.
        how: Shares, seed, block, buffer.

    Raises:
        ConfigError: The block or buffer is no length.
    """
    for name, value in (("block", how.block), ("buffer", how.buffer)):
        number = isinstance(value, int | float) and 0 <= value < math.inf and (value or name == "buffer")
        if value is not None and not number:
            raise ConfigError(f"is {value}", where=name, fix="give metres, as 500")
    shapely = need("geo", "shapely", "places")
    centres_N2 = shapely.get_coordinates(shapely.centroid(shapes_N))
    pairs_P2 = near_pairs(shapes_N, how.buffer)
    clusters_N = _clusters(len(shapes_N), pairs_P2, groups)
    apart = f"{how.buffer:g} m" if how.buffer else "no touch"
    largest = int(np.bincount(clusters_N).max())
    options = f"val={how.val:g}, test={how.test:g}, seed={how.seed}"
    if largest <= max(_FEW_IN_ONE * len(shapes_N), 1):
        middles = np.array([centres_N2[clusters_N == c].mean(0) for c in range(int(clusters_N.max()) + 1)])
        block = how.block or _round(_extent(shapes_N) / math.sqrt(_BLOCKS))
        cells = _cells(middles[clusters_N], block)
        found = assign_fractions(cells, val=how.val, test=how.test, seed=how.seed)
        said = f"drawn by place in blocks of {block:,g} m; neighbours ({apart} between splits) stay together"
        return PlacedSplits([*found], f"{said} ({options})")
    return _dense(shapes_N, centres_N2, pairs_P2, how, options)


def _dense(
    shapes_N: np.ndarray, centres_N2: np.ndarray, pairs_P2: np.ndarray, how: PlaceSplit, options: str
) -> PlacedSplits:
    """Draw blocks of a mosaic; of several sizes the one that comes nearest to the shares that are wanted."""
    shapely = need("geo", "shapely", "places")
    side = float(np.sqrt(np.median(shapely.area(shapes_N)))) + how.buffer
    first = max(_SIDES * side, _extent(shapes_N) / math.sqrt(_BLOCKS))
    sizes = [how.block] if how.block else [_round(first * factor) for factor in (1, 1.5, 2, 3, 0.67, 0.45)]
    shares = {"train": 1 - how.val - how.test, "val": how.val, "test": how.test}
    wanted = {split: share * len(shapes_N) for split, share in shares.items() if share > 0}
    best: tuple[float, float, list[str]] | None = None
    one_P, two_P = pairs_P2.T
    for block in sizes:
        cells = _cells(centres_N2, block)
        found_N = np.array(assign_fractions(cells, val=how.val, test=how.test, seed=how.seed))
        for held_out, other in (("test", "val"), ("test", "train"), ("val", "train")):
            found_P2 = found_N[one_P], found_N[two_P]
            for mine, its in ((0, two_P), (1, one_P)):
                found_N[its[(found_P2[mine] == held_out) & (found_P2[1 - mine] == other)]] = ""
        kept = Counter(split for split in found_N.tolist() if split)
        met = sum(min(kept[split], count) for split, count in wanted.items())
        if all(kept[split] for split in wanted) and (best is None or met > best[0]):
            best = met, block, found_N.tolist()
    if best is None:
        said = (
            "all images are near each other, and no blocks leave something for each split: all train; name the "
            "splits with -o split_file=FILE, set -o block=METRES, or cut the images with --crop"
        )
        return PlacedSplits(["train"] * len(shapes_N), said)
    _, block, found = best
    apart = f"nearer than {how.buffer:g} m to" if how.buffer else "that touch"
    said = f"drawn by place in blocks of {block:,g} m; those {apart} one of a held-out split are left out ({options})"
    return PlacedSplits([split or None for split in found], said, found.count(""))


def _clusters(count: int, pairs_P2: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Return the number of each image's cluster (N,): images that pairs or groups connect."""
    parent = list(range(count))

    def top(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    firsts: dict[str, int] = {}
    links = [(number, firsts.setdefault(group, number)) for number, group in enumerate(groups) if group]
    for one, two in (*pairs_P2.tolist(), *links):
        parent[top(max(one, two))] = top(min(one, two))
    return np.unique([top(number) for number in range(count)], return_inverse=True)[1]


def _extent(shapes_N: np.ndarray) -> float:
    """Return the side in metres of a square as large as the box around all images."""
    x1, y1, x2, y2 = need("geo", "shapely", "places").total_bounds(shapes_N)
    return math.sqrt(max(x2 - x1, 1e-3) * max(y2 - y1, 1e-3))


def _cells(points_N2: np.ndarray, block: float) -> list[str]:
    return [f"{x},{y}" for x, y in np.floor(points_N2 / block).astype(np.int64).tolist()]


def _round(metres: float) -> float:
    """Return a length with two significant digits."""
    return float(f"{metres:.1e}")


def neighbours(shapes_N: np.ndarray, splits: Sequence[str], buffer: float) -> list[tuple[int, int]]:
    """Return the pairs of images of different splits that overlap or are nearer than the buffer."""
    shapely = need("geo", "shapely", "places")
    pairs = [(i, j) for i, j in near_pairs(shapes_N, buffer).tolist() if splits[i] != splits[j]]
    if buffer:
        return pairs
    # Without a buffer, images that only touch share no ground.
    return [(i, j) for i, j in pairs if shapely.intersection(shapes_N[i], shapes_N[j]).area > 1e-6]
