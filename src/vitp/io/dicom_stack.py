"""How the images of a DICOM series lie on each other: their grid, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from vitp.core.errors import DataError
from vitp.io.dicom_frames import Frame
from vitp.io.dicom_header import header_numbers
from vitp.io.volume_checks import affine_of, places_voxels
from vitp.io.volume_grid import VolumeGrid

_SAME_PLACE_MM = 1e-3
"""Images that are nearer to each other lie at one place, which their headers round."""
_ELSEWHERE_MM = 0.01
"""How far apart files with one UID are other images: copies that were written anew round their place."""
_UNEVEN = 0.02
"""Share of a step that steps may differ by: headers round them."""
_MISSING = 1.5
"""Times the usual step: there an image is missing."""
_TILTED_DEGREES = 0.5

_OWN_UIDS = "give each image a UID of its own, as the programs do that remove names from DICOM files"


@dataclass(frozen=True)
class Stack:
    """Images in the order of their places.

    Attributes:
        frames: K places, at each of which lie as many images.
        grid: Where their pixels lie.
        notes: How they were understood.
        findings: What is wrong with them.
        off_grid, missing: See `vitp.io.volume.Volume`.
    """

    frames: list[list[Frame]]
    grid: VolumeGrid
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    off_grid: float = 0.0
    missing: int = 0


@dataclass
class _Said:
    notes: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    missing: int = 0


def stack_frames(frames: list[Frame], where: str) -> Stack:
    """Return images as a volume.

    Raises:
        DataError: They have several sizes or orientations, none of which most of them have.
    """
    said = _Said()
    if flat := sum(0 in header_numbers(frame.values, "RescaleSlope") for frame in frames):
        said.findings.append(f"has a rescale slope of 0 in {flat} images, which is taken for 1")
    frames = _alike(_once(frames, said), where, said)
    rows, columns, samples = frames[0].shape
    first = frames[0]
    placed = all(frame.position_3 is not None and frame.axes_23 is not None for frame in frames)
    if not placed or first.spacing is None:
        return _unplaced(frames, said)
    normal_3 = np.cross(*np.asarray(first.axes_23))
    along = [float(np.asarray(frame.position_3) @ normal_3) for frame in frames]
    one_file = len({frame.header.path for frame in frames}) == 1
    places = _by_place(frames, along, keep_order=one_file)
    counts = {len(row) for row in places}
    # Images at one place become bands, which those in colour have already.
    if len(counts) > 1 or (samples > 1 and counts != {1}):
        single = _without_doubles(places, one_file, said)
        if single is None:
            return _unplaced(frames, said)
        places = single
    elif counts != {1}:
        said.notes.append(
            f"holds {counts.pop()} images at each place, which are bands in the order of their time"
        )
    positions_K3 = np.array([row[0].position_3 for row in places])
    matrix = _matrix(first, positions_K3, normal_3, said)
    if not places_voxels(matrix):
        what = "has places or spacings of its images that place no voxels"
        raise DataError(what, where=where, fix="copy it again from its source or remove it")
    grid = VolumeGrid((columns, rows, len(places)), affine_of(matrix))
    off_grid = _off_grid(positions_K3)
    return Stack(places, grid, tuple(said.notes), tuple(said.findings), off_grid, said.missing)


def _once(frames: list[Frame], said: _Said) -> list[Frame]:
    """Leave out copies of an image: files with the same UID.

    Raises:
        DataError: Images of one UID lie at different places, or differ in their pixels.
    """
    seen: dict[tuple[object, int], Frame] = {}
    for frame in frames:
        uid = frame.header.data.get("SOPInstanceUID") or frame.header.path
        first = seen.setdefault((uid, frame.index), frame)
        places = [one.position_3 for one in (first, frame) if one.position_3 is not None]
        if len(places) == 2 and np.abs(places[0] - places[1]).max() > _ELSEWHERE_MM:
            raise DataError(
                "has the same SOPInstanceUID as another image of the series, which lies elsewhere",
                where=str(frame.header.path),
                fix=_OWN_UIDS,
            )
        if frame is not first and not np.array_equal(first.read(), frame.read()):
            raise DataError(
                f"has the same SOPInstanceUID as {first.header.path.name}, but other pixels: one of them is no copy",
                where=str(frame.header.path),
                fix=f"{_OWN_UIDS}, or remove the file that is wrong",
            )
    copies = len(frames) - len(seen)
    if copies:
        said.findings.append(f"holds {copies} images twice (files with the same UID); each counts once")
    return list(seen.values())


def _alike(frames: list[Frame], where: str, said: _Said) -> list[Frame]:
    """Return the images of the size and orientation that most have."""

    def kind(frame: Frame) -> tuple[object, ...]:
        axes = None if frame.axes_23 is None else tuple(np.round(frame.axes_23.ravel(), 2) + 0.0)
        return (*frame.shape, axes)

    kinds = Counter(kind(frame) for frame in frames)
    (most, count), *others = kinds.most_common()
    if not others:
        return frames
    sizes = {key[:3] for key in kinds}
    what = "sizes" if len(sizes) > 1 else "orientations"
    if count * 2 <= len(frames):
        numbers = ", ".join(str(number) for _, number in kinds.most_common(6))
        said_so = (
            f"holds images of {len(kinds)} {what} in one series ({numbers} of each), so that it is no volume"
        )
        raise DataError(
            said_so, where=where, fix="move those of one kind to a folder of their own, or name one file"
        )
    said.findings.append(
        f"holds images of {len(kinds)} {what} in one series; {len(frames) - count} that differ from the other {count} "
        "are left out"
    )
    return [frame for frame in frames if kind(frame) == most]


def _unplaced(frames: list[Frame], said: _Said) -> Stack:
    """Return images of which it isn't known where they lie, in the order of their numbers."""
    rows, columns, _ = frames[0].shape
    ordered = sorted(frames, key=lambda frame: (frame.header.number("InstanceNumber") or 0.0, frame.index))
    if len(frames) > 1:
        said.notes.append(
            "doesn't say how its images lie on each other; they stand in the order of their numbers"
        )
    spacing = frames[0].spacing
    stored = None if spacing is None else (spacing[1], spacing[0], frames[0].thickness or 1.0)
    grid = VolumeGrid((columns, rows, len(frames)), None, stored)
    return Stack([[frame] for frame in ordered], grid, tuple(said.notes), tuple(said.findings))


def _by_place(frames: list[Frame], along: list[float], keep_order: bool) -> list[list[Frame]]:
    """Return the images that lie at the same place together, in the order of the places along the normal.

    Those of one file stay in its order where that is one of places, forwards or backwards.
    """
    order = sorted(range(len(frames)), key=lambda number: (along[number], frames[number].order))
    places: list[list[Frame]] = []
    last = 0.0
    for number in order:
        if places and abs(along[number] - last) <= _SAME_PLACE_MM:
            places[-1].append(frames[number])
        else:
            places.append([frames[number]])
            last = along[number]
    backwards = along == sorted(along, reverse=True) and len(along) > 1
    return places[::-1] if keep_order and backwards and len(places) == len(frames) else places


def _without_doubles(places: list[list[Frame]], one_file: bool, said: _Said) -> list[list[Frame]] | None:
    """Return one image a place; None: the images are no single volume, and stay in the order of the file."""
    more = sum(len(row) - 1 for row in places)
    if one_file or more > len(places) / 2:
        said.findings.append(
            f"holds {more + len(places)} images at {len(places)} places, not the same number at each, so that it is "
            "no single volume"
        )
        return None
    said.findings.append(f"holds {more} images at places of others; the first of each place counts")
    return [row[:1] for row in places]


def _matrix(first: Frame, positions_K3: np.ndarray, normal_3: np.ndarray, said: _Said) -> np.ndarray:
    """Return the affine in RAS+: columns, rows and images → millimetres."""
    assert first.spacing is not None and first.axes_23 is not None
    row_mm, column_mm = first.spacing
    if len(positions_K3) > 1:
        step_3 = _even_step(positions_K3)
        _look_at_steps(positions_K3, normal_3, said)
    else:
        step_3 = normal_3 * (first.thickness or 1.0)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = (
        first.axes_23[0] * column_mm,
        first.axes_23[1] * row_mm,
        step_3,
    )
    matrix[:3, 3] = positions_K3[0]
    # DICOM counts to the patient's left and back, RAS+ to the right and front.
    matrix[:2] *= -1
    return matrix


def _even_step(positions_K3: np.ndarray) -> np.ndarray:
    """Return (3,) from one image to the next, if all steps were alike."""
    step_3: np.ndarray = (positions_K3[-1] - positions_K3[0]) / (len(positions_K3) - 1)
    return step_3


def _off_grid(positions_K3: np.ndarray) -> float:
    """Return millimetres that images lie at most beside their places on the even grid."""
    if len(positions_K3) < 3:
        return 0.0
    even_K3 = positions_K3[0] + np.arange(len(positions_K3))[:, None] * _even_step(positions_K3)
    return float(np.linalg.norm(positions_K3 - even_K3, axis=1).max())


def _look_at_steps(positions_K3: np.ndarray, normal_3: np.ndarray, said: _Said) -> None:
    """Say what is wrong with the places of images."""
    steps_3 = np.diff(positions_K3, axis=0)
    steps = np.abs(steps_3 @ normal_3)
    # The median, which a few gaps don't move.
    usual = float(np.median(steps))
    gaps = np.flatnonzero(steps > _MISSING * usual)
    if len(gaps):
        lost = int(sum(max(1, round(float(steps[gap]) / usual) - 1) for gap in gaps))
        said.missing = lost
        after = ", ".join(str(gap) for gap in gaps[:6]) + (", …" if len(gaps) > 6 else "")
        said.findings.append(
            f"misses about {lost} slices of {len(positions_K3) + lost} (after slice {after}, steps of {usual:.3g} mm)"
        )
    rest = steps[steps <= _MISSING * usual]
    if float(np.ptp(rest)) > _UNEVEN * usual:
        said.findings.append(f"has slices at uneven steps, {rest.min():.3g} to {rest.max():.3g} mm")
    whole_3 = positions_K3[-1] - positions_K3[0]
    straight = abs(float(whole_3 @ normal_3)) / max(float(np.linalg.norm(whole_3)), 1e-12)
    tilt = float(np.degrees(np.arccos(min(1.0, straight))))
    if tilt > _TILTED_DEGREES:
        said.findings.append(
            f"has slices that are sheared by {tilt:.1f}° (a tilted gantry); they are used as they are, not resampled"
        )
