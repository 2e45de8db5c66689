"""Shapes as annotation tools write them: Label Studio's turned rectangles and brushes, CVAT's turned boxes and masks.

Both turn clockwise in the image, in degrees: Label Studio about the upper left corner of the box that isn't turned,
CVAT about its centre.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitp.records.geometry import area, as_flat, as_points, clip_polygon, clockwise, min_area_quad

NOTHING_HERE = "nothing here"
"""CVAT's tag of an image in which somebody looked and found nothing; CVAT can't say it otherwise."""

TASK_KEY = "vitp_task"
"""Name of what says, in the files of a tool, which task its labels are for."""

CLASSES_KEY = "vitp_classes"
"""Name of what lists, in the files of a tool, the classes that its tasks were made with."""

SEVERAL_CLASSES = "several classes"
"""Value of `TASK_KEY` where an image may have several classes, beside the names of the tasks."""

_RUN_BITS = (3, 4, 8, 16)
"""Widths of the lengths of runs that a brush may have."""

_NOT_SQUARE = 1e-3
"""Share of its longer side by which the corners of a quad may miss those of a rectangle."""

LARGEST_MASK = 1 << 28
"""Pixels of a mask that is decoded."""


def rectangle_of(quad: Sequence[float]) -> tuple[float, float, float, float, float]:
    """Return x and y of the first corner, width, height and angle (0 to 360) of a rectangle's corners.

    The angle is that from the first corner to the second one. Of corners that are no rectangle the smallest one around
    them is taken.

    Args:
        quad: x1, y1, …, x4, y4.
    """
    points_42 = clockwise(as_points(quad))
    (width, height), gap = _sides(points_42), points_42[0] - points_42[1] + points_42[2] - points_42[3]
    square = abs(np.dot(points_42[1] - points_42[0], points_42[3] - points_42[0]))
    if np.abs(gap).max() > _NOT_SQUARE * max(width, height) or square > _NOT_SQUARE * width * height:
        points_42 = min_area_quad(points_42)
        width, height = _sides(points_42)
    (x, y), along = points_42[0], points_42[1] - points_42[0]
    return float(x), float(y), width, height, float(np.degrees(np.arctan2(along[1], along[0])) % 360)


def _sides(points_42: np.ndarray) -> tuple[float, float]:
    along, down = points_42[1] - points_42[0], points_42[3] - points_42[0]
    return float(np.hypot(*along)), float(np.hypot(*down))


def rectangle_corners(x: float, y: float, width: float, height: float, degrees: float) -> tuple[float, ...]:
    """Return the corners x1, y1, …, x4, y4 of what `rectangle_of` gives: turned about the first corner."""
    turn = np.radians(degrees)
    right, down = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    first = np.array([x, y])
    return as_flat(
        np.stack([first, first + width * right, first + width * right + height * down, first + height * down])
    )


def centred_corners(x1: float, y1: float, x2: float, y2: float, degrees: float) -> tuple[float, ...]:
    """Return the corners of a box that is turned about its centre."""
    centre, half = np.array([x1 + x2, y1 + y2]) / 2, np.array([x2 - x1, y2 - y1]) / 2
    turn = np.radians(degrees)
    offset = np.array(
        [-half[0] * np.cos(turn) + half[1] * np.sin(turn), -half[0] * np.sin(turn) - half[1] * np.cos(turn)]
    )
    first = centre + offset
    return rectangle_corners(float(first[0]), float(first[1]), x2 - x1, y2 - y1, degrees)


def unturned_box(quad: Sequence[float]) -> tuple[float, float, float, float, float]:
    """Return x1, y1, x2, y2 of the box that becomes a rectangle when it is turned about its centre, and the angle."""
    x, y, width, height, degrees = rectangle_of(quad)
    centre_x, centre_y = as_points(rectangle_corners(x, y, width, height, degrees)).mean(0).tolist()
    half_x, half_y = width / 2, height / 2
    return centre_x - half_x, centre_y - half_y, centre_x + half_x, centre_y + half_y, degrees


def rectangle_in_view(quad: Sequence[float], width: int, height: int) -> tuple[float, ...] | None:
    """Return a rectangle's corners such that it can be taken hold of in an image, or None where nothing is in view.

    One whose centre is in the image, and no corner farther from it than half of its side, stays as it is. Of others the
    smallest rectangle of the same angle around what is in the image is taken.
    """
    points_42, size = as_points(quad), np.array([width, height])
    inside_N2 = clip_polygon(points_42, (0.0, 0.0, float(width), float(height)))
    if len(inside_N2) < 3 or area(inside_N2) <= 0:
        return None
    centre, far = points_42.mean(0), np.abs(points_42 - size / 2) > size
    if (centre >= 0).all() and (centre <= size).all() and not far.any():
        return tuple(quad)
    turn = np.radians(rectangle_of(quad)[4])
    axes_22 = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    along_N2 = inside_N2 @ axes_22.T
    (u1, v1), (u2, v2) = along_N2.min(0), along_N2.max(0)
    return as_flat(np.array([[u1, v1], [u2, v1], [u2, v2], [u1, v2]]) @ axes_22)


def ellipse_ring(x: float, y: float, radius_x: float, radius_y: float, degrees: float) -> tuple[float, ...]:
    """Return an ellipse as an outline of 72 corners that has its area."""
    step = 2 * np.pi / 72
    around = np.arange(72) * step
    turn = np.radians(degrees)
    points_N2 = np.stack([radius_x * np.cos(around), radius_y * np.sin(around)], axis=1)
    points_N2 *= np.sqrt(step / np.sin(step))  # corners on the ellipse would cut pieces off
    turned_22 = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return as_flat(points_N2 @ turned_22 + (x, y))


# --- Label Studio's brushes


def encode_brush(mask_HW: np.ndarray) -> list[int]:
    """Return a mask as Label Studio's brush: bytes of a stream of bits.

    The stream holds the four channels of each pixel in turn, row by row: 32 bits that count them, the width of a value,
    the widths of lengths, then runs: whether one value is repeated, which width its length has, the length less 1, the
    value. The last channel is the mask.
    """
    flat = np.asarray(mask_HW, bool).reshape(-1)
    edges = (
        np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])
        if flat.size
        else np.zeros(1, int)
    )
    bits = [f"{4 * flat.size:032b}", f"{7:05b}", *(f"{width - 1:04b}" for width in _RUN_BITS)]
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        value, left = f"{255 if flat[begin] else 0:08b}", 4 * (end - begin)
        while left:
            length = min(left, 1 << _RUN_BITS[-1])
            kind = next(n for n, width in enumerate(_RUN_BITS) if length <= 1 << width)
            bits.append(f"1{kind:02b}{length - 1:0{_RUN_BITS[kind]}b}{value}")
            left -= length
    text = "".join(bits)
    padded = text.ljust(-(-len(text) // 8) * 8, "0")
    return np.packbits(np.frombuffer(padded.encode(), np.uint8) - ord("0")).tolist()


def decode_brush(values: Sequence[int], height: int, width: int) -> np.ndarray:
    """Return the mask (H, W) bool of a brush.

    Raises:
        ValueError: The stream is none, ends early, or is of another image.
    """
    try:
        stream = np.asarray(values)
    except (ValueError, OverflowError):
        raise ValueError("a brush is a list of bytes") from None
    if stream.ndim != 1 or stream.dtype.kind not in "iu" or ((stream < 0) | (stream > 255)).any():
        raise ValueError("a brush is a list of bytes")
    data, at = stream.astype(np.uint8).tobytes(), 0

    def read(count: int) -> int:
        nonlocal at
        first, last = at // 8, -(-(at + count) // 8)
        if last > len(data):
            raise ValueError("the brush ends early")
        at += count
        return int.from_bytes(data[first:last], "big") >> (8 * last - at) & ((1 << count) - 1)

    total = read(32)
    if total != 4 * height * width or height * width > LARGEST_MASK:
        raise ValueError(
            f"the brush holds {total} values, and {width}×{height} pixels have {4 * height * width}"
        )
    word = read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    found, place = np.zeros(total, bool), 0
    while place < total:
        repeated, kind = read(1), read(2)
        end = place + 1 + read(lengths[kind])
        if end > total:
            raise ValueError("the brush is longer than its image")
        if repeated:
            found[place:end] = read(word) > 0
        else:
            found[place:end] = [read(word) > 0 for _ in range(end - place)]
        place = end
    return found.reshape(height, width, 4)[..., 3]


# --- CVAT's masks


def encode_cvat_mask(mask_HW: np.ndarray) -> dict[str, str]:
    """Return the attributes of CVAT's `mask`: runs of 0 and 1 in turn, row by row, in the box around the mask.

    Raises:
        ValueError: The mask is empty.
    """
    rows, columns = np.flatnonzero(np.any(mask_HW, axis=1)), np.flatnonzero(np.any(mask_HW, axis=0))
    if not len(rows):
        raise ValueError("the mask is empty")
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    flat = np.asarray(mask_HW[top:bottom, left:right], bool).reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    # The first run is one of zeros, and may be empty.
    runs = [0, *runs] if flat[0] else runs
    numbers = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    return {"rle": ", ".join(map(str, runs)), **{key: str(value) for key, value in numbers.items()}}


def decode_cvat_mask(runs: str, place: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    """Return the mask (H, W) bool.

    Args:
        runs: Between commas.
        place: Left, top, width and height of the box.
        height: Height of the image.
        width: Width of the image.

    Raises:
        ValueError: The runs don't fill the box, or it doesn't lie in the image.
    """
    left, top, columns, rows = place
    if min(left, top) < 0 or min(columns, rows) < 1 or left + columns > width or top + rows > height:
        raise ValueError(
            f"the mask at {left}, {top} of {columns}×{rows} isn't in the image of {width}×{height}"
        )
    try:
        lengths = np.array([int(word) for word in runs.split(",")], np.int64)
    except (ValueError, OverflowError):
        raise ValueError("the runs aren't whole numbers between commas") from None
    if (lengths < 0).any() or lengths.sum() != rows * columns or rows * columns > LARGEST_MASK:
        raise ValueError(f"the runs cover {int(lengths.sum())} pixels of {rows * columns}")
    mask_HW = np.zeros((height, width), bool)
    own = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(rows, columns)
    mask_HW[top : top + rows, left : left + columns] = own
    return mask_HW
