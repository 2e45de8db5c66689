"""What a model says of the looks at an image, blended: units of looks, weights of pixels, strips of class maps.

Shapes: K classes, H × W pixels of the image, h × w pixels of what the model sees, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.core.tensors import present
from vitp.io.open_pixels import Window
from vitp.records.labels import IGNORE
from vitp.runtime.views import WEIGHT_FLOOR
from vitp.tasks.ground import Ground, ImageGround
from vitp.tasks.views import View

SUMS_BYTES = 256 << 20
"""Of the sums of probabilities that are kept at once; a wider raster is worked on in lanes."""


def batches(views: Sequence[View], batch_size: int) -> Iterator[list[View]]:
    """Yield neighbouring views of one size."""
    batch: list[View] = []
    for view in views:
        if batch and (len(batch) == batch_size or view.seen_size != batch[0].seen_size):
            yield batch
            batch = []
        batch.append(view)
    if batch:
        yield batch


@dataclass(frozen=True)
class Unit:
    """Views that are computed together; no batch holds views of two units, so that a unit's results are its own.

    Attributes:
        top: First row of the image that is decided once they are known.
        bottom: Row after the last.
        views: From top to bottom; none begins above `top`.
    """

    top: int
    bottom: int
    views: tuple[View, ...]

    @property
    def reach(self) -> int:
        """Row after the last that a view sees."""
        return max(view.window[3] for view in self.views)


def units_of(views: Sequence[View], height: int, batch_size: int) -> list[Unit]:
    """Return views, sorted by their tops, in units of whole rows of windows that fill a batch."""
    groups: list[list[View]] = []
    for view in views:
        # A row is never cut.
        if groups and (groups[-1][-1].window[1] == view.window[1] or len(groups[-1]) < batch_size):
            groups[-1].append(view)
        else:
            groups.append([view])
    tops = [0, *(group[0].window[1] for group in groups[1:]), height]
    return [
        Unit(top, bottom, tuple(group))
        for top, bottom, group in zip(tops[:-1], tops[1:], groups, strict=True)
    ]


def in_lanes(
    views: Sequence[View], width: int, classes: int, most_bytes: int = SUMS_BYTES
) -> list[tuple[tuple[int, int], list[View]]]:
    """Return ranges of columns, each with the views that see a part of it: their sums fit into so many bytes."""
    tallest = max(view.window[3] - view.window[1] for view in views)
    widest = max(view.window[2] - view.window[0] for view in views)
    # Narrow lanes would see most windows twice.
    most = max(most_bytes // (8 * classes * tallest), 4 * widest)
    count = -(-width // most)
    edges = [width * number // count for number in range(count + 1)]
    return [
        ((left, right), [view for view in views if view.window[0] < right and view.window[2] > left])
        for left, right in pairwise(edges)
    ]


@lru_cache(maxsize=256)
def _taper(length: int, begins: bool, ends: bool, flat: bool = False) -> Tensor:
    """Return (length,) weights: Hann's window, flat on the halves whose end is the border of the image.

    With `flat` Hann's rise takes an eighth of the length, and so does its fall.
    """
    place = (torch.arange(length) + 0.5) / length
    if flat:
        place = torch.minimum(4 * torch.minimum(place, 1 - place), torch.tensor(0.5))
    # sin² and, half a window on, cos²: where windows overlap by half, their weights add up to 1 without a seam.
    wave = torch.sin(torch.pi * place).square().clamp(min=WEIGHT_FLOOR)
    half = length // 2
    if begins:
        wave[: length - half] = 1
    if ends:
        wave[half:] = 1
    return wave


def view_weights(view: View, size: tuple[int, int]) -> Tensor | None:
    """Return (h, w) weights of a view's pixels in the image; None: all 1, as where it sees the whole image.

    Args:
        view: One look.
        size: Height and width of the image, at whose border nothing tapers.
    """
    x1, y1, x2, y2 = view.window
    sides = (y1 == 0, y2 == size[0], x1 == 0, x2 == size[1])
    if all(sides):
        return None
    return _taper(y2 - y1, *sides[:2], view.flat)[:, None] * _taper(x2 - x1, *sides[2:], view.flat)


@dataclass(frozen=True)
class Strip:
    """Rows of a class map that are decided.

    Attributes:
        window: x1, y1, x2, y2 in pixels of the image.
        classes_RW: uint8; 255 where nothing was seen.
        shares_KRW: float32 probabilities, where they are wanted; 0 where nothing was seen.
    """

    window: Window
    classes_RW: Tensor
    shares_KRW: Tensor | None


class ClassSums:
    """The class of each pixel from the weighted sum of overlapping probability maps, given from top to bottom.

    Only the rows that can still change are kept as probabilities, so that a mosaic of any height fits.

    Args:
        size: Height and width of the image.
        columns: Which columns are summed.
        device: Device on which the sums are kept.
        top: First row that is decided; what views see above it is left out.
        shares: Whether probabilities are wanted.
    """

    def __init__(
        self,
        size: tuple[int, int],
        columns: tuple[int, int],
        device: torch.device,
        *,
        top: int = 0,
        shares: bool = False,
    ) -> None:
        self._size, self._columns, self._device, self._top = size, columns, device, top
        self._shares = shares
        self._sum_KRW: Tensor | None = None

    def add(self, probability_Khw: Tensor, view: View) -> None:
        """Add the probabilities of a view."""
        x1, y1, x2, y2 = view.window
        probability_Khw = view.upright(probability_Khw)
        if tuple(probability_Khw.shape[-2:]) != (y2 - y1, x2 - x1):
            probability_Khw = F.interpolate(
                probability_Khw[None], size=(y2 - y1, x2 - x1), mode="bilinear", align_corners=False
            )[0]
        weights_hw = view_weights(view, self._size)
        if weights_hw is not None:
            probability_Khw = probability_Khw * weights_hw.to(probability_Khw.device)
        left, right = max(x1, self._columns[0]), min(x2, self._columns[1])
        # Rows above are decided already.
        top = max(y1, self._top)
        kept = self._rows(probability_Khw.shape[0], y2 - self._top)
        part_KRW = probability_Khw[:, top - y1 :, left - x1 : right - x1].to(self._device)
        if part_KRW.numel():
            columns = slice(left - self._columns[0], right - self._columns[0])
            kept[:, top - self._top : y2 - self._top, columns] += part_KRW

    def _rows(self, classes: int, rows: int) -> Tensor:
        """Return the sums, with at least so many rows."""
        if self._sum_KRW is None:
            width = self._columns[1] - self._columns[0]
            self._sum_KRW = torch.zeros(classes, 0, width, device=self._device)
        missing = rows - self._sum_KRW.shape[1]
        if missing > 0:
            self._sum_KRW = F.pad(self._sum_KRW, (0, 0, 0, missing))
        return self._sum_KRW

    def finish(self, bottom: int) -> Strip | None:
        """Decide the rows above `bottom`, which no later view reaches; None: there are no new ones."""
        count, left, right = bottom - self._top, *self._columns
        if count <= 0:
            return None
        window = (left, self._top, right, bottom)
        self._top = bottom
        if self._sum_KRW is None:
            return Strip(window, torch.full((count, right - left), IGNORE, dtype=torch.uint8), None)
        done_KRW = self._rows(self._sum_KRW.shape[0], count)[:, :count]
        rest_KRW = present(self._sum_KRW)[:, count:]
        # Below where no view has reached, nothing needs to be summed.
        # The clone lets go of the rows that are done.
        self._sum_KRW = rest_KRW.clone() if rest_KRW.numel() else None
        most_RW, classes_RW = done_KRW.max(0)
        # Every view gives all of its pixels some weight: where the sum is 0 there was none.
        classes_RW = classes_RW.to(torch.uint8).masked_fill(most_RW <= 0, IGNORE).cpu()
        shares = (done_KRW / done_KRW.sum(0).clamp(min=1e-12)).cpu() if self._shares else None
        return Strip(window, classes_RW, shares)


Probabilities = Callable[[Tensor, Tensor | None], Tensor]
"""uint8 (B, C, h, w) images, and their later dates → (B, K, h, w)."""


def class_strips(
    probabilities: Probabilities,
    dates: Sequence[Ground],
    columns: tuple[int, int],
    units: Sequence[Unit],
    wanted: Sequence[int],
    batch_size: int,
    device: torch.device,
    *,
    shares: bool = False,
) -> Iterator[tuple[int, Strip]]:
    """Yield the number and the rows of each wanted unit, decided from all views that see them.

    A strip is the same, bit for bit, whichever others are asked for: earlier units that reach into it are computed
    where they aren't wanted themselves.

    Args:
        probabilities: The model.
        dates: The image, and its later date.
        columns: Which columns are decided; `units` hold the views that see them.
        units: Units from top to bottom.
        wanted: Numbers of units, rising.
        batch_size: Views at once.
        device: Device on which the sums are kept.
        shares: Whether the strips have probabilities.
    """
    sums: ClassSums | None = None
    last = -2
    for number in wanted:
        if sums is None or number != last + 1:
            sums = ClassSums(dates[0].size, columns, device, top=units[number].top, shares=shares)
            # In their order, as floating-point sums depend on it.
            reaching = [n for n in range(number) if units[n].reach > units[number].top]
            for before in reaching:
                _add_unit(sums, probabilities, dates, units[before], batch_size)
        _add_unit(sums, probabilities, dates, units[number], batch_size)
        strip, last = sums.finish(units[number].bottom), number
        if strip is not None:
            yield number, without_nodata(strip, dates)


def seen_views(dates: Sequence[Ground], views: Sequence[View]) -> list[View]:
    """Return the views of places that hold something at every date."""
    corners_V4 = np.array([view.window for view in views])
    if len(dates) == 1 and (held_V := dates[0].holds(corners_V4)) is not None:
        return [view for view, held in zip(views, held_V, strict=True) if held]
    left, top = (int(value) for value in corners_V4[:, :2].min(0))
    right, bottom = (int(value) for value in corners_V4[:, 2:].max(0))
    valid_hw = valid_at(dates, (left, top, right, bottom))
    if valid_hw is None:
        return list(views)
    return [
        view
        for view, (x1, y1, x2, y2) in zip(views, corners_V4 - (left, top, left, top), strict=True)
        if valid_hw[y1:y2, x1:x2].any()
    ]


def valid_at(dates: Sequence[Ground], window: Window) -> np.ndarray | None:
    """Return (h, w) bool: which pixels hold something at every date; None: all do."""
    found = [part for part in (date.valid(window) for date in dates) if part is not None]
    return np.logical_and.reduce(found) if found else None


def without_nodata(strip: Strip, dates: Sequence[Ground]) -> Strip:
    """Return a strip with nothing known where the image holds nothing."""
    if strip.shares_KRW is None and bool((strip.classes_RW == IGNORE).all()):
        return strip
    valid_hw = valid_at(dates, strip.window)
    if valid_hw is None:
        return strip
    empty_hw = torch.from_numpy(~valid_hw)
    shares = None if strip.shares_KRW is None else strip.shares_KRW.masked_fill(empty_hw, 0)
    return Strip(strip.window, strip.classes_RW.masked_fill(empty_hw, IGNORE), shares)


def _add_unit(
    sums: ClassSums, probabilities: Probabilities, dates: Sequence[Ground], unit: Unit, batch_size: int
) -> None:
    for batch in batches(seen_views(dates, unit.views), batch_size):
        seen = [torch.stack([view.of(date) for view in batch]) for date in dates]
        found_BKhw = probabilities(seen[0], seen[1] if len(seen) > 1 else None)
        for probability_Khw, view in zip(found_BKhw, batch, strict=True):
            sums.add(probability_Khw, view)


def class_map(
    probabilities: Probabilities,
    image_CHW: Tensor,
    later_CHW: Tensor | None,
    views: Sequence[View],
    batch_size: int,
    device: torch.device,
    *,
    shares: bool = False,
) -> Strip:
    """Return all rows of an image: the class with the largest weighted sum of probabilities over all its views.

    Args:
        probabilities: The model.
        image_CHW: uint8.
        later_CHW: Second date.
        views: As `views_of` gives them.
        batch_size: Views at once.
        device: Device on which the sums are kept.
        shares: Whether probabilities are wanted.
    """
    dates = [ImageGround(image) for image in (image_CHW, later_CHW) if image is not None]
    height, width = dates[0].size
    units = units_of(views, height, batch_size)
    numbers = range(len(units))
    found = class_strips(probabilities, dates, (0, width), units, numbers, batch_size, device, shares=shares)
    strips = [strip for _, strip in found]
    classes_HW = torch.cat([strip.classes_RW for strip in strips])
    shares_KHW = torch.cat([present(strip.shares_KRW) for strip in strips], dim=1) if shares else None
    return Strip((0, 0, width, height), classes_HW, shares_KHW)
