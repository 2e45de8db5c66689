"""Large images → overlapping crops with their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vitp.core.errors import ConfigError, DataError
from vitp.core.files import atomic_path, check_inside, inner_path
from vitp.data.formats.pixel_masks import MaskWindow, windowed
from vitp.data.formats.places import GroundPlace, known_geometry, on_one_plane, split_by_place, with_ground
from vitp.data.formats.slides import with_tissue
from vitp.io.ground import RASTER_SUFFIXES
from vitp.io.image_file import open_image
from vitp.io.images import is_scene, load_image, where_valid
from vitp.io.jpeg_segments import write_bare_jpeg
from vitp.io.parts import base_address, file_stamp, window_address
from vitp.io.slides import slide_kind
from vitp.records.geometry import (
    Box,
    area,
    as_flat,
    as_points,
    bounds,
    clip_polygon,
    is_convex,
    min_area_quad,
)
from vitp.records.labels import NOT_LABELLED, SPLITS, LabelledImage, LabelledSet, ObjectLabel, PlaceSplit
from vitp.records.regions import rasterise

_JPEG_QUALITY = 95
_SMALLEST_PART = 1.0
"""Pixels: of an object of which a narrower strip lies in a crop nothing can be seen."""

LEAST_VISIBLE = 0.4
"""Share of an object's area from which on its part in a crop, or in a raster, is an object there."""

_LOSSY = (".jpg", ".jpeg", ".webp")


def crop_windows(width: int, height: int, size: int, overlap: int) -> list[MaskWindow]:
    """Return windows of at most `size` pixels that cover the image, row by row.

    The last window of a row or column moves back to end at the border, so that all are of full size; an image
    that is smaller than `size` in a direction isn't cut in it.
    """

    def starts(length: int) -> list[int]:
        return [0] if length <= size else [*range(0, length - size, size - overlap), length - size]

    return [
        (x, y, min(x + size, width), min(y + size, height)) for y in starts(height) for x in starts(width)
    ]


def empty_crops(item: LabelledImage, size: int) -> tuple[int, int]:
    """Return how many crops of `size` pixels that don't overlap an image gives, and how many are known to be empty.

    None is where nobody looked for objects, as in a set with masks alone; see `is_empty`.
    """
    labels = (*(item.objects or ()), *(item.later_objects or ()), *item.ignored)
    boxes_N4 = np.array([label.box for label in labels]).reshape(-1, 4)
    windows = crop_windows(item.width, item.height, size, 0)
    if item.objects is None:
        return len(windows), 0
    return len(windows), sum(not _meeting(boxes_N4, window) for window in windows)


def cut(
    labelled_set: LabelledSet,
    size: int,
    overlap: int,
    out_dir: Path,
    min_visible: float = LEAST_VISIBLE,
    progress: Callable[[], None] | None = None,
    *,
    tissue: bool = True,
) -> LabelledSet:
    """Return the set with every image cut into crops: files under `out_dir`, or windows of rasters.

    Each crop keeps the split and belongs to its parent's group. Captions and scene classes are about the
    whole image and stay behind. An interrupted cut continues: crops that are newer than their image are kept.
    Splits that were drawn by place are drawn anew for the crops, which then are in no group.

    Args:
        labelled_set: Images from files.
        size: Side of the crops in pixels.
        overlap: Pixels that neighbours share.
        out_dir: Where the crops of pictures go; PNG, or JPEG where the image was lossy. Those of rasters stay in their
            files: their addresses are windows.
        min_visible: Objects of which less of the area is in a crop are difficult there: neither objects nor
            background.
        progress: Called after each image.
        tissue: Crops of slides without tissue and without objects are left out.

    Raises:
        ConfigError: The numbers don't fit.
        DataError: An image can't be read, or is a generated scene.
    """
    if size < 1 or not 0 <= overlap < size:
        what = f"crops of {size} can't overlap by {overlap}"
        raise ConfigError(what, where="crop", fix="let 0 ≤ overlap < crop")
    if not 0 < min_visible <= 1:
        raise ConfigError(f"min_visible is {min_visible}", where="crop", fix="give a share above 0, up to 1")
    folder = None if crops_in_place(labelled_set) else out_dir
    made = _Crops(min_visible)
    for item in labelled_set.items:
        if is_scene(item.image):
            fix = "ask for smaller scenes instead"
            raise DataError("generated scenes can't be cut", where=item.id, fix=fix)
        windows = crop_windows(item.width, item.height, size, overlap)
        if tissue and (kept := with_tissue(item, windows, labelled_set.semantic_classes)) is not None:
            made.bare += len(windows) - sum(kept)
            windows = [window for window, keep in zip(windows, kept, strict=True) if keep]
        made.add(item, windows, folder)
        if progress is not None:
            progress()
    findings = (*labelled_set.findings, *made.findings())
    understood = labelled_set.understood
    if made.bare:
        text = "show no tissue and hold no label; left out (-o tissue=false keeps them)"
        understood += (f"crops: {made.bare:,} of slides {text}",)
    cropped = replace(labelled_set, items=made.crops, findings=findings, understood=understood)
    how = labelled_set.drawn
    return cropped if how is None else _split_by_place(cropped, how, made.places)


@dataclass
class _Crops:
    """Crops while they are made, where they lie as far as that is known, and counts of what was lost."""

    min_visible: float
    crops: list[LabelledImage] = field(default_factory=list)
    places: list[GroundPlace] = field(default_factory=list)
    about_whole: int = 0
    lost: int = 0
    unlabelled: int = 0
    bare: int = 0

    def add(self, item: LabelledImage, windows: Sequence[MaskWindow], folder: Path | None) -> None:
        """Add the crops of an image; see `_addresses` for the folder."""
        self.about_whole += bool(len(windows) > 1 and (item.captions or item.scene or item.tags))
        images = _addresses(item.image, item.id, windows, folder)
        seconds: Sequence[str | None] = [None] * len(windows)
        if item.second_image is not None:
            seconds = _addresses(item.second_image, f"{item.id}.later", windows, folder)
        others = [
            _addresses(image, f"{item.id}.{number}", windows, folder)
            for number, image in enumerate(item.series, 2)
        ]
        geometry = known_geometry(item.image)
        kinds = [item.objects or (), item.later_objects or (), item.ignored]
        boxes = [np.array([label.box for label in labels]).reshape(-1, 4) for labels in kinds]
        seen: set[tuple[int, int]] = set()
        for place, (window, image, second) in enumerate(zip(windows, images, seconds, strict=True)):
            near = [_meeting(boxes_N4, window) for boxes_N4 in boxes]
            seen.update(
                (kind, number)
                for kind in (0, 1)
                for number in near[kind]
                if (kind, number) not in seen
                and crop_object(kinds[kind][number], window, self.min_visible) is not None
            )
            own = [tuple(kinds[kind][number] for number in near[kind]) for kind in range(3)]
            part = replace(
                item,
                objects=None if item.objects is None else own[0],
                later_objects=None if item.later_objects is None else own[1],
                ignored=own[2],
            )
            crop = _crop_item(part, window, self.min_visible, whole=len(windows) == 1)
            if _is_unlabelled(crop):
                self.unlabelled += 1
                continue
            if geometry is not None:
                self.places.append((geometry.of_window(window), (crop.width, crop.height)))
                crop = with_ground(replace(crop, ground=None), self.places[-1])
            series = tuple(addresses[place] for addresses in others)
            self.crops.append(replace(crop, image=image, second_image=second, series=series))
        self.lost += len(kinds[0]) + len(kinds[1]) - len(seen)

    def findings(self) -> list[str]:
        """Return lines about what crops don't have."""
        lines = []
        if self.about_whole:
            text = "captions and scene class are about the whole image; crops have none"
            lines.append(f"{self.about_whole} images: {text}")
        if self.lost:
            text = f"less than {self.min_visible:.0%} of them is in any crop; difficult in all of them"
            lines.append(f"{self.lost} objects: {text}")
        if self.unlabelled:
            lines.append(f"{self.unlabelled} crops: nothing of them is labelled; left out")
        return lines


def _meeting(boxes_N4: np.ndarray, window: MaskWindow) -> list[int]:
    """Return the numbers of the boxes that have an area in common with a window."""
    x1, y1, x2, y2 = window
    low, high = boxes_N4[:, :2], boxes_N4[:, 2:]
    return np.flatnonzero((high > (x1, y1)).all(1) & (low < (x2, y2)).all(1)).tolist()


def crops_in_place(labelled_set: LabelledSet) -> bool:
    """Return whether crops are windows of the set's own files: those of bands, of rasters on the ground, of slides."""
    return labelled_set.channels is not None or all(
        (item.ground is not None and Path(base_address(item.image)).suffix.lower() in RASTER_SUFFIXES)
        or slide_kind(item.image) is not None
        for item in labelled_set.items
    )


def _addresses(source: str, name: str, windows: Sequence[MaskWindow], out_dir: Path | None) -> list[str]:
    """Return the addresses of an image's crops: windows of it, or files that are written where a folder is given."""
    if out_dir is not None:
        return _write_crops(source, name, windows, out_dir)
    return [source if len(windows) == 1 else window_address(source, window) for window in windows]


def _is_unlabelled(crop: LabelledImage) -> bool:
    """Return whether all of a crop lies where nobody looked for objects."""
    hidden = sum(
        area(as_points(ring))
        for label in crop.ignored
        if label.category == NOT_LABELLED
        for ring in label.polygons
    )
    return hidden > crop.width * crop.height - 1


def _split_by_place(cropped: LabelledSet, how: PlaceSplit, places: Sequence[GroundPlace]) -> LabelledSet:
    """Return crops with splits that are drawn anew: blocks of ground are smaller than the images were."""
    found = split_by_place(on_one_plane(places), [""] * len(places), how)
    items = [
        replace(item, split=split, group="")
        for item, split in zip(cropped.items, found.splits, strict=True)
        if split is not None
    ]
    counts = Counter(item.split for item in items)
    named = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if counts[split])
    understood = [line for line in cropped.understood if not line.startswith("splits: ")]
    findings = [line for line in cropped.findings if not line.startswith("splits: ")]
    if found.left_out:
        findings.append(f"splits: {found.left_out:,} crops are left out; {found.said}")
    understood.append(f"splits: {named}; {found.said}")
    return replace(cropped, items=items, understood=tuple(understood), findings=tuple(findings))


def _write_crops(source: str, name: str, windows: Sequence[MaskWindow], out_dir: Path) -> list[str]:
    suffix = Path(base_address(source)).suffix.lower()
    # What is transparent holds nothing in a crop, too: its black would be a colour.
    held_HW = None if suffix in (".jpg", ".jpeg") else where_valid(source, pictures=True)
    ending = ".jpg" if suffix in _LOSSY and held_HW is None else ".png"
    paths = [out_dir / f"{inner_path(name)}_{x1}_{y1}_{x2}_{y2}{ending}" for x1, y1, x2, y2 in windows]
    check_inside(paths[0], out_dir)
    try:
        changed = file_stamp(source)[1]
    except FileNotFoundError as error:
        raise DataError("image is missing", where=source, fix="check the path and the root folder") from error
    missing = [k for k, p in enumerate(paths) if not p.is_file() or p.stat().st_mtime_ns < changed]
    # Where nothing is cut off, nothing needs to be compressed a second time.
    copied = len(windows) == 1 and base_address(source) == source and suffix in (".jpg", ".jpeg")
    image = load_image(source, stretch=False) if missing and not copied else None
    for k in missing:
        with atomic_path(paths[k]) as temporary:
            if image is None:
                _copy_bare(source, temporary)
                continue
            crop, (x1, y1, x2, y2) = image.crop(windows[k]), windows[k]
            if ending == ".jpg":
                crop.save(temporary, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
                continue
            if held_HW is not None and not (own_hw := held_HW[y1:y2, x1:x2]).all():
                crop.putalpha(Image.fromarray(own_hw.astype(np.uint8) * 255))
            crop.save(temporary, format="PNG")
    return [str(path) for path in paths]


def _copy_bare(source: str, target: Path) -> None:
    """Copy a JPEG without what is written about it; what only is called one keeps its pixels, too."""
    with open_image(source) as file:
        if not write_bare_jpeg(Path(source), target, file.orientation):
            file.rgb().save(target, format="PNG")


def _crop_item(item: LabelledImage, window: MaskWindow, min_visible: float, *, whole: bool) -> LabelledImage:
    x1, y1, x2, y2 = window
    return replace(
        item,
        id=f"{item.id}@{x1},{y1}",
        width=x2 - x1,
        height=y2 - y1,
        group=item.group or item.id,
        objects=_crop_objects(item.objects, window, min_visible),
        ignored=tuple(p for label in item.ignored if (p := any_part(label, window)) is not None),
        later_objects=_crop_objects(item.later_objects, window, min_visible),
        scene=item.scene if whole else None,
        captions=item.captions if whole else (),
        semantic=windowed(item.semantic, window) if item.semantic is not None else None,
        change=windowed(item.change, window) if item.change is not None else None,
        tags=item.tags if whole else None,
        unknown=item.unknown if whole else (),
        transition=windowed(item.transition, window) if item.transition is not None else None,
    )


def _crop_objects(
    objects: tuple[ObjectLabel, ...] | None, window: MaskWindow, min_visible: float
) -> tuple[ObjectLabel, ...] | None:
    if objects is None:
        return None
    return tuple(p for label in objects if (p := visible_part(label, window, min_visible)) is not None)


def visible_part(label: ObjectLabel, window: MaskWindow, min_visible: float) -> ObjectLabel | None:
    """Return what is to be known of a label in a crop; see `crop_object`.

    A part of less than `min_visible` is difficult rather than gone: a strip of a car is not to be learned as a car,
    and not as background either. None: nothing of the object is in the crop, or less than a pixel's breadth.
    """
    part = crop_object(label, window, min_visible)
    if part is not None:
        return part
    rest = any_part(label, window)
    return None if rest is None else replace(rest, difficult=True)


def any_part(label: ObjectLabel, window: MaskWindow) -> ObjectLabel | None:
    """Return what lies of a label in a crop, however little of it, or None below a pixel's breadth."""
    part = crop_object(label, window, 0.0)
    if part is None:
        return None
    x1, y1, x2, y2 = part.box
    return part if min(x2 - x1, y2 - y1) >= _SMALLEST_PART else None


def crop_object(label: ObjectLabel, window: MaskWindow, min_visible: float) -> ObjectLabel | None:
    """Return the label in the pixels of a crop, or None when less than `min_visible` of its area is in it.

    An object inside the window only moves. Otherwise its outline is clipped: the box is the box of what is
    left, the oriented box the smallest rectangle around what is left.

    Args:
        label: In pixels of the whole image.
        window: The crop.
        min_visible: 0–1.
    """
    x1, y1, x2, y2 = window
    ox1, oy1, ox2, oy2 = label.box
    if ox2 <= x1 or oy2 <= y1 or ox1 >= x2 or oy1 >= y2:  # most pairs of object and window; spares the arrays
        return None
    outlines = [as_points(ring) for ring in (label.polygons or ((label.quad,) if label.quad else ()))]
    holes = [as_points(ring) for ring in label.holes] if label.polygons else []
    if not outlines or _area(outlines, holes) <= 0:
        outlines, holes = [_box_points(label.box)], []
    everything = np.concatenate([*outlines, _box_points(label.box)])
    if (everything >= (x1, y1)).all() and (everything <= (x2, y2)).all():
        return _moved(label, x1, y1)
    clipped = [ring for ring in (clip_polygon(ring, window) for ring in outlines) if area(ring) > 0]
    cut_out = [ring for ring in (clip_polygon(ring, window) for ring in holes) if area(ring) > 0]
    left = _area(clipped, cut_out)
    if left <= 0 or left < min_visible * _area(outlines, holes):
        return None
    # Labels need not agree with themselves: the part of the box in the window bounds what the outline says.
    bx1, by1, bx2, by2 = _extent(clipped, cut_out)
    box = (max(bx1, ox1) - x1, max(by1, oy1) - y1, min(bx2, ox2) - x1, min(by2, oy2) - y1)
    if box[2] <= box[0] or box[3] <= box[1]:
        return None
    quad = None
    if label.quad is not None:
        rest = clip_polygon(as_points(label.quad), window)
        rest = rest if area(rest) > 0 else np.concatenate(clipped)
        quad = as_flat(min_area_quad(rest) - (x1, y1))
    polygons = tuple(as_flat(ring - (x1, y1)) for ring in clipped) if label.polygons else ()
    cut_holes = tuple(as_flat(ring - (x1, y1)) for ring in cut_out)
    return replace(label, box=box, quad=quad, polygons=polygons, holes=cut_holes)


def _area(rings: Sequence[np.ndarray], holes: Sequence[np.ndarray]) -> float:
    return sum(area(ring) for ring in rings) - sum(area(hole) for hole in holes)


def _extent(rings: Sequence[np.ndarray], holes: Sequence[np.ndarray]) -> Box:
    """Return the box around clipped rings without their holes.

    The clipped border of a ring that is bent or has holes runs along the window where nothing of it is left, so
    there the pixels say how far it reaches; to a pixel, beyond which the corners know better.
    """
    box = bounds(np.concatenate(rings))
    if not holes and all(is_convex(ring) for ring in rings):
        return box
    x, y = np.floor(box[0]), np.floor(box[1])
    size = int(np.ceil(box[3]) - y), int(np.ceil(box[2]) - x)
    mask_HW = rasterise([as_flat(r - (x, y)) for r in rings], size, [as_flat(h - (x, y)) for h in holes])
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    if not len(rows):
        return box
    pixels = (columns[0] + x, rows[0] + y, columns[-1] + 1 + x, rows[-1] + 1 + y)
    x1, y1, x2, y2 = (
        float(own if abs(own - pixel) < 1 else pixel) for own, pixel in zip(box, pixels, strict=True)
    )
    return x1, y1, x2, y2


def _box_points(box: tuple[float, float, float, float]) -> np.ndarray:
    x1, y1, x2, y2 = box
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], dtype=np.float64)


def _moved(label: ObjectLabel, x: int, y: int) -> ObjectLabel:
    bx1, by1, bx2, by2 = label.box
    return replace(
        label,
        box=(bx1 - x, by1 - y, bx2 - x, by2 - y),
        quad=as_flat(as_points(label.quad) - (x, y)) if label.quad is not None else None,
        polygons=tuple(as_flat(as_points(ring) - (x, y)) for ring in label.polygons),
        holes=tuple(as_flat(as_points(hole) - (x, y)) for hole in label.holes),
    )
