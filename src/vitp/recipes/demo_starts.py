"""The picture that the demo's page leads with: the same test scenes, segmented from each start."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitp.core.files import atomic_path
from vitp.evaluation.feature_pictures import enlarged
from vitp.io.images import load_image
from vitp.records.labels import IGNORE
from vitp.report.page import Figure, ImageGrid
from vitp.report.places import Colours

SCENES = 3
"""Scenes on the page."""

_LEAST = 0.01
"""Share of a scene's pixels from which a class counts as one that it holds."""

_SIDE, _WIDTH = 384, 165
"""Pixels of a picture, and its smallest width on the page: five in a row on a desk, two on a phone."""

_UNLABELLED = ("not labelled", "#000000")


def richest(truth_VSS: Tensor, count: int = SCENES) -> Tensor:
    """Return the numbers of the scenes whose truth holds the most classes, among equals the first ones."""
    kinds = [
        sum(share >= _LEAST for label, share in _shares(truth_SS.numpy()) if label != IGNORE)
        for truth_SS in truth_VSS
    ]
    return torch.tensor(kinds).argsort(descending=True, stable=True)[:count]


def _shares(map_SS: np.ndarray) -> list[tuple[int, float]]:
    """Return the classes of a map and their shares of its pixels, large ones first."""
    return [(label, number / map_SS.size) for label, number in Counter(map_SS.ravel().tolist()).most_common()]


@dataclass(frozen=True)
class SegmentedScenes:
    """Test scenes with the classes of their pixels, N of S × S pixels.

    Attributes:
        classes: Names by value.
        images: Paths or addresses.
        truth_NSS: uint8, 255 where nothing is labelled.
        found: Start → (N, S, S) uint8 classes by a probe of its frozen features.
    """

    classes: Sequence[str]
    images: Sequence[str]
    truth_NSS: np.ndarray
    found: Mapping[str, np.ndarray]

    def save(self, path: Path) -> None:
        """Write the scenes as a NumPy archive, atomically."""
        values: dict[str, Any] = {f"found {name}": map_NSS for name, map_NSS in self.found.items()}
        values |= {
            "classes": np.array(self.classes),
            "images": np.array(self.images),
            "truth": self.truth_NSS,
        }
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **values)

    @classmethod
    def load(cls, path: Path) -> SegmentedScenes:
        """Return the scenes that `save` wrote."""
        with np.load(path, allow_pickle=False) as values:
            found = {
                key.removeprefix("found "): values[key] for key in values.files if key.startswith("found ")
            }
            return cls(values["classes"].tolist(), values["images"].tolist(), values["truth"], found)

    def grids(self) -> list[ImageGrid]:
        """Return a row of pictures a scene: the image, the truth, and what each start makes of it."""
        maps_MSS = [self.truth_NSS, *self.found.values()]
        pixels = Counter(label for map_NSS in maps_MSS for label in map_NSS.ravel().tolist())
        shown = [label for label, _ in pixels.most_common() if label != IGNORE]
        colours = Colours()
        legend = [(self.classes[label], colours(self.classes[label])) for label in shown]
        if IGNORE in pixels:
            legend.append(_UNLABELLED)
        return [
            self._grid(number, legend, legend if not number else ()) for number in range(len(self.images))
        ]

    def _grid(
        self, number: int, colours: Sequence[tuple[str, str]], legend: Sequence[tuple[str, str]]
    ) -> ImageGrid:
        truth_SS, by_name = self.truth_NSS[number], dict(colours)
        image = enlarged(load_image(self.images[number]), _SIDE)
        figures = [
            Figure(image, "test scene", f"Scene {number + 1}, as its sensor shows it in false colours"),
            self._map(truth_SS, by_name, "truth", f"True classes of scene {number + 1}"),
        ]
        for name, map_NSS in self.found.items():
            known_SS = truth_SS != IGNORE
            right = (map_NSS[number] == truth_SS)[known_SS].mean() if known_SS.any() else math.nan
            caption = f"{name}: {100 * right:.0f} % of pixels right"
            figures.append(self._map(map_NSS[number], by_name, caption, f"Scene {number + 1}, {caption}"))
        return ImageGrid(figures, f"Scene {number + 1}", width=_WIDTH, legend=legend)

    def _map(self, map_SS: np.ndarray, colours: Mapping[str, str], caption: str, said: str) -> Figure:
        """Return a map in the classes' colours; who doesn't see it is told the largest classes."""
        shares = [(self._name(label), label, share) for label, share in _shares(map_SS)]
        rgba_HW4 = np.zeros((*map_SS.shape, 4), np.uint8)
        for name, label, _ in shares:
            rgba_HW4[map_SS == label] = (*bytes.fromhex(colours[name][1:]), 255)
        # Enlarged here: a browser would blur the edges of classes.
        picture = Image.fromarray(rgba_HW4).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        largest = ", ".join(f"{name} {100 * share:.0f} %" for name, _, share in shares[:5])
        return Figure(picture, caption, f"{said}. Largest classes: {largest}")

    def _name(self, label: int) -> str:
        return _UNLABELLED[0] if label == IGNORE else self.classes[label]
