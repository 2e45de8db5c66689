"""What the labels of volumes hold, slice by slice: each file is read once, and no image is looked at.

Shapes: H × W pixels of a slice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vitp.core.errors import DataError
from vitp.data.formats.builder import SetBuilder
from vitp.data.formats.mask_classes import MaskClasses
from vitp.data.formats.pixel_masks import MaskFile
from vitp.data.formats.slices import VolumeFacts
from vitp.data.formats.volume_cases import LabelVolume, VolumeCase
from vitp.data.formats.volume_masks import VolumeLayer, VolumeMask, painted
from vitp.io.dicom_labels import RTSTRUCT, contours_left_out, regions_without_area, segment_names
from vitp.io.parts import FilePart, part_address
from vitp.io.volume_grid import VolumeGrid
from vitp.io.volume_labels import (
    SlicePlace,
    header_segments,
    held_labels,
    is_cropped,
    label_values,
    same_slices,
)
from vitp.io.volumes import open_volume
from vitp.records.labels import BACKGROUND, IGNORE

_LEAST_COVERED = 0.5
"""Share of the labelled voxels of a mask that must lie in its image."""


class _TwoReadings(DataError):
    """Something of which the user has to say how it is meant."""


@dataclass
class LabelScan:
    """The labels of one case.

    Attributes:
        grid: Grid of the image.
        plane: Plane of the slices.
        slices: Value → pixels in each slice; 0 is left out. Of layers: class index → pixels.
        path: Path of the one file of values.
        layers: Layers of files that are painted together.
        moved: The labels lie on other voxels than the image.
        turned: Address of the image, whose place counts for the voxels of the mask in their order.
    """

    grid: VolumeGrid
    plane: str
    slices: list[Counter[int]] = field(default_factory=list)
    path: str = ""
    layers: tuple[VolumeLayer, ...] = ()
    moved: bool = False
    turned: str = ""

    @property
    def total(self) -> Counter[int]:
        """Value → voxels of all slices, 0 among them."""
        found: Counter[int] = Counter({0: 1})
        for one in self.slices:
            found.update(one)
        return found

    def mask_address(self, number: int) -> str:
        """Return the address of a slice of the mask."""
        return part_address(self.path, FilePart(slice=number, plane=self.plane))

    def mask(self, number: int, values: tuple[tuple[int, int], ...]) -> MaskFile | VolumeMask:
        """Return what reads the classes of a slice."""
        if self.path and not self.moved and not self.turned:
            return MaskFile(self.mask_address(number), values)
        layers = self.layers or (VolumeLayer(self.path, values),)
        place = SlicePlace.of(self.grid, number, self.plane) if self.moved else None
        return VolumeMask(layers, place, number, self.plane, turned=self.turned)


def _counted(labels_HW: np.ndarray) -> Counter[int]:
    """Return value → pixels, without 0."""
    if not labels_HW.any():
        return Counter()
    if int(labels_HW.min()) >= 0 and int(labels_HW.max()) < 1 << 16:
        counts = np.bincount(labels_HW.ravel())
        return Counter({int(value): int(counts[value]) for value in np.flatnonzero(counts) if value})
    values, amounts = np.unique(labels_HW, return_counts=True)
    return Counter({int(v): int(n) for v, n in zip(values, amounts, strict=True) if v})


# --- values that are classes


def header_classes(cases: Sequence[VolumeCase]) -> MaskClasses | None:
    """Return the classes that the masks' own headers name, where all agree; None: they name none.

    Raises:
        DataError: Two masks call a value by different names.
    """
    found: dict[int, str] = {}
    for label in (label for case in cases for label in case.labels):
        for name, value, _ in header_segments(str(label.path)):
            if found.setdefault(value, name) != name:
                raise DataError(
                    f"calls the value {value} {name}, another mask calls it {found[value]}",
                    where=str(label.path),
                    fix="name the values of all with -o classes=NAME=VALUE,…",
                )
    if not found:
        return None
    names = ("background", *(found[value] for value in sorted(found)))
    pairs = ((0, 0), *((value, place) for place, value in enumerate(sorted(found), 1)))
    return MaskClasses(names, pairs, ("names of the segments from the masks' headers",))


def scan_values(
    builder: SetBuilder, cases: Sequence[VolumeCase], facts: Mapping[str, VolumeFacts], plane: str, grid: str
) -> dict[str, LabelScan]:
    """Return what the masks of the cases hold; those that can't be used are lost labels.

    Args:
        builder: Takes findings.
        cases: Cases of the set; those without labels are left out.
        facts: Case → head of its volume.
        plane: Plane of the slices.
        grid: See `read_volumes`.

    Raises:
        DataError: A mask has the shape of its image and doesn't say where it lies, or its labels are no whole numbers.
    """
    found: dict[str, LabelScan] = {}
    moved = []
    for case in cases:
        if not case.labels:
            continue
        path = str(case.labels[0].path)
        image = facts[case.name].grid
        try:
            scan = _scan(path, case.address, image, plane, grid)
        except _TwoReadings:
            raise
        except DataError as error:
            builder.leave_out(error, path, "its case is left out")
            continue
        if scan.moved:
            moved.append(builder.place(path))
        found[case.name] = scan
    if moved:
        builder.understand(
            f"{len(moved)} masks have other voxels than their images ({moved[0]} for example): each pixel has the label "
            "of the nearest voxel in the patient, outside of the mask it is ignored"
        )
    return found


def _scan(path: str, address: str, image: VolumeGrid, plane: str, grid: str) -> LabelScan:
    volume = open_volume(path)
    if grid != "voxels":
        volume.check_even()
    if len(volume.bands) > 1:
        what = f"holds {len(volume.bands)} values a voxel, where a mask holds one"
        raise DataError(what, where=path, fix="save one label for each voxel")
    scan = LabelScan(image, plane, path=path)
    same = same_slices(image, volume.grid, plane)
    if not same and grid == "voxels" and image.shape == volume.grid.shape:
        turned = image.as_slices(held_labels(path).labels_IJK, plane)
        return replace(scan, turned=address, slices=[_counted(labels_HW) for labels_HW in turned])
    if not same and (image.affine is None or volume.grid.affine is None):
        _refuse_unplaced(path, image, volume.grid)
    if same:
        for number in range(image.slices_shape(plane)[0]):
            scan.slices.append(
                _counted(label_values(volume.slice(number, plane).read_quantity()[0][0], path))
            )
        return scan
    scan.moved = True
    held = held_labels(path)
    for number in range(image.slices_shape(plane)[0]):
        labels_HW, inside_HW = held.at(SlicePlace.of(image, number, plane).world())
        scan.slices.append(_counted(np.where(inside_HW, labels_HW, 0)))
    _check_covered(scan, held.labels_IJK, volume.grid, path)
    return scan


def _refuse_unplaced(path: str, image: VolumeGrid, mask: VolumeGrid) -> None:
    if image.shape != mask.shape:
        ours, theirs = ("×".join(map(str, grid.shape)) for grid in (mask, image))
        what = f"has {ours} voxels, its image {theirs}, and not both say where they lie"
        raise DataError(what, where=path, fix="resample the mask onto the image's grid")
    who = "its image" if image.affine is None else "the mask"
    raise _TwoReadings(
        f"has as many voxels as its image, but {who} doesn't say where they lie",
        where=path,
        fix="-o grid=voxels takes them in the order of the files; else give both an affine",
    )


def _check_covered(scan: LabelScan, labels_IJK: np.ndarray, mask: VolumeGrid, path: str) -> None:
    """Refuse a mask whose labels lie elsewhere in the patient than its image."""
    wanted = int(np.count_nonzero(labels_IJK))
    volume = float(np.prod(mask.spacing or (1, 1, 1))) / float(np.prod(scan.grid.spacing or (1, 1, 1)))
    seen = sum(sum(one.values()) for one in scan.slices)
    if wanted and seen < _LEAST_COVERED * wanted * volume:
        share = seen / (wanted * volume)
        same = scan.grid.shape == mask.shape
        fix = (
            "-o grid=voxels takes its voxels in the order of the file, if its header is wrong"
            if same
            else "check that the mask belongs to this image"
        )
        kind = _TwoReadings if same else DataError
        raise kind(
            f"lies elsewhere in the patient than its image: {share:.0%} of its labels are within it",
            where=path,
            fix=fix,
        )


# --- objects of their own: files, segments, regions


@dataclass
class ObjectScan:
    """What the objects of a set are.

    Attributes:
        names: Classes, background first.
        scans: Case → its labels.
        said: Lines about how they were understood.
    """

    names: tuple[str, ...]
    scans: dict[str, LabelScan] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


def scan_objects(
    builder: SetBuilder,
    cases: Sequence[VolumeCase],
    facts: Mapping[str, VolumeFacts],
    plane: str,
    chosen: Sequence[str],
) -> ObjectScan:
    """Return what the objects of the cases are, one for each file, segment or region.

    Objects may overlap: the smaller one is painted over the larger one, or in the order of `chosen`.

    Raises:
        DataError: None of the chosen names occurs, or an object is hidden by those that are painted over it.
    """
    parts: dict[str, list[tuple[str, VolumeLayer]]] = {}
    for case in cases:
        if case.labels:
            try:
                parts[case.name] = [part for label in case.labels for part in _parts(label, case.address)]
            except DataError as error:
                builder.leave_out(error, case.labels[0].path, "its case is left out")
    known = sorted({name for own in parts.values() for name, _ in own}, key=str.lower)
    lacking = [name for name in chosen if name not in known]
    if lacking:
        what = f'no object is called "{lacking[0]}"; they are {", ".join(known[:20])}'
        raise DataError(what, where=str(builder.root), fix="write the option classes like the labels")
    names = (BACKGROUND, *(name for name in (chosen or known) if name.lower() != BACKGROUND))
    found = ObjectScan(names)
    overlaps: Counter[tuple[str, str]] = Counter()
    for case in cases:
        if case.name not in parts:
            continue
        try:
            scan = _scan_layers(
                case, parts[case.name], facts[case.name].grid, plane, (names, chosen), overlaps
            )
        except _TwoReadings:
            raise
        except DataError as error:
            builder.leave_out(error, case.labels[0].path, "its case is left out")
            continue
        _note_contours(builder, parts[case.name], facts[case.name].grid)
        found.scans[case.name] = scan
    if overlaps:
        how = "in the order of -o classes" if chosen else "the smaller one of a case over the larger one"
        (lower, upper), count = overlaps.most_common(1)[0]
        found.said.append(
            f"objects overlap, {lower} and {upper} in {count:,} voxels for example: a pixel is of one class, painted {how}"
        )
    if chosen and len(known) > len(chosen):
        found.said.append(f"{len(known) - len(chosen)} other objects are ignored in their places")
    return found


def _note_contours(builder: SetBuilder, parts: Sequence[tuple[str, VolumeLayer]], grid: VolumeGrid) -> None:
    """Say which contours of structure sets aren't used."""
    for path in dict.fromkeys(layer.path for _, layer in parts if layer.reference):
        if names := regions_without_area(path):
            builder.note(builder.place(path), f"{', '.join(names)}: only points or open lines; left out")
    for name, layer in parts:
        if not layer.reference or layer.segment is None:
            continue
        if text := contours_left_out(layer.path, layer.segment, grid):
            builder.note(builder.place(layer.path), f"{name}: {text}; left out")


def _parts(label: LabelVolume, reference: str) -> list[tuple[str, VolumeLayer]]:
    """Return name and layer of each object of a file, without class."""
    path = str(label.path)
    if label.role:
        drawn_on = reference if label.role == RTSTRUCT else ""
        return [
            (name, VolumeLayer(path, ((1, 0),), 0, number, drawn_on))
            for number, name in segment_names(label.path)
        ]
    if is_cropped(path) and (segments := header_segments(path)):
        return [(name, VolumeLayer(path, ((value, 0),), layer)) for name, value, layer in segments]
    return [(label.name, VolumeLayer(path, ((0, 0),)))]


def _scan_layers(
    case: VolumeCase,
    parts: Sequence[tuple[str, VolumeLayer]],
    image: VolumeGrid,
    plane: str,
    wanted: tuple[tuple[str, ...], Sequence[str]],
    overlaps: Counter[tuple[str, str]],
) -> LabelScan:
    names, chosen = wanted
    index = {name: place for place, name in enumerate(names)}
    sized: list[tuple[int, int, str, VolumeLayer]] = []
    grid: VolumeGrid | None = None
    for name, layer in parts:
        held = held_labels(layer.path, layer.band, layer.segment, layer.reference)
        grid = grid or held.grid
        value = _object_value(held.labels_IJK, layer)
        place = index.get(name, IGNORE)
        count = int(np.count_nonzero(held.labels_IJK == value)) if value else 0
        rank = list(chosen).index(name) + 1 if name in chosen else 0
        sized.append((rank, -count, name, replace(layer, values=((value, place),))))
    sized.sort(key=lambda row: row[:3])
    layers = tuple(row[3] for row in sized)
    canvas = painted(layers)
    _note_overlaps(case, sized, canvas.labels_IJK, overlaps)
    scan = LabelScan(image, plane, layers=layers)
    scan.moved = grid is None or not same_slices(image, grid, plane)
    for number in range(image.slices_shape(plane)[0]):
        scan.slices.append(_counted(scan.mask(number, ())()))
    return scan


def _object_value(labels_IJK: np.ndarray, layer: VolumeLayer) -> int:
    """Return the value of the one object of a layer; 0: it has no voxel.

    Raises:
        DataError: There are several values.
    """
    told = layer.values[0][0]
    if told:
        return told
    counts = _counted(labels_IJK)
    if len(counts) > 1:
        what = f"holds {len(counts) + 1} values, but a mask of one object holds 0 and one other"
        raise DataError(what, where=layer.path, fix="save it with one value, or name its folder masks/")
    return next(iter(counts), 1)


def _note_overlaps(
    case: VolumeCase,
    sized: Sequence[tuple[int, int, str, VolumeLayer]],
    canvas_IJK: np.ndarray,
    overlaps: Counter[tuple[str, str]],
) -> None:
    """Count voxels that are painted over; refuse when nothing of an object is left."""
    left = Counter(_counted(canvas_IJK))
    wanted: dict[int, int] = defaultdict(int)
    for _, negative, _, layer in sized:
        wanted[layer.values[0][1]] -= negative
    for row, (_, negative, name, layer) in enumerate(sized):
        place = layer.values[0][1]
        if place == IGNORE or not negative or left[place] >= wanted[place]:
            continue
        if not left[place]:
            raise _TwoReadings(
                f"shows nothing of {name}: it lies within objects that are painted over it",
                where=case.name,
                fix="name the objects in the order in which they are painted: -o classes=OUTER,INNER",
            )
        hidden_IJK = _shown(layer) & (canvas_IJK != place)
        for _, _, other, upper in reversed(sized[row + 1 :]):
            if not hidden_IJK.any():
                break
            over_IJK = hidden_IJK & (canvas_IJK == upper.values[0][1])
            if over_IJK.any() and (over_IJK := over_IJK & _shown(upper)).any():
                overlaps[name, other] += int(np.count_nonzero(over_IJK))
                hidden_IJK &= ~over_IJK


def _shown(layer: VolumeLayer) -> np.ndarray:
    """Return which voxels are of the one object of a layer."""
    held = held_labels(layer.path, layer.band, layer.segment, layer.reference)
    shown_IJK: np.ndarray = held.labels_IJK == layer.values[0][0]
    return shown_IJK
