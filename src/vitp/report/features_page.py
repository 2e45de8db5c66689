"""One self-contained page: what several backbones see in the same images, side by side.

Shapes: h × w patches, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vitp.core.errors import ConfigError
from vitp.core.files import atomic_path
from vitp.evaluation.attention import distance_profile, grid_of
from vitp.evaluation.feature_pictures import (
    FeatureColours,
    attention_sheet,
    compare_attention,
    compare_features,
    compare_rollout,
    enlarged,
    enlarged_cells,
    feature_colours,
    rollout_picture,
)
from vitp.models.backbone import Backbone
from vitp.models.plain_vit import PlainViT
from vitp.report.attention import attention_explorer
from vitp.report.charts import Curve, LineChart
from vitp.report.page import Block, Column, Figure, HtmlPage, ImageGrid, Section, Table, TableCell, Text
from vitp.report.run_report import EXPLORED_IMAGES

_DEPTHS = {"a quarter": 0.25, "half": 0.5, "three quarters": 0.75, "all layers": 1.0}
"""Shares of the depth whose features are shown."""

_PROFILE_IMAGES = 16
"""Images that the attention distances are means over, at most."""

_SIDE = 256
_PAGE_WIDTH, _GAP = 930, 18
"""Pixels of the page's column and between pictures, as the style sheet has them."""


def write_features_page(
    backbones: Mapping[str, Backbone],
    images: Mapping[str, Image.Image],
    path: str | Path,
    *,
    place: tuple[float, float] = (0.5, 0.5),
    shared: bool = False,
) -> Path:
    """Write the page and return its path.

    Args:
        backbones: Name → backbone. Those that aren't plain ViTs have no attention and are shown by their features.
        images: Name → RGB image.
        path: The page.
        place: Place of the query patch whose attention is shown, as shares (row, column) of the image.
        shared: One basis of colours for all backbones; see `feature_colours`.

    Raises:
        ConfigError: There are no backbones or images, or `shared` and their widths differ.
        VitpError: The page can't be written.
    """
    if not backbones or not images:
        raise ConfigError("needs a backbone and an image", where="features", fix="name both")
    by_depth = feature_colours(backbones, list(images.values()), list(_DEPTHS.values()), shared=shared)
    towers = {name: tower for name, tower in backbones.items() if isinstance(tower, PlainViT)}
    shown = list(images.values())[:_PROFILE_IMAGES]
    profiles = {name: distance_profile(tower, shown) for name, tower in towers.items()}
    sections = [
        Section("Backbones", [_facts(backbones, by_depth[-1], profiles)]),
        _features(images, by_depth[-1], shared),
        _depths(images, by_depth),
    ]
    if towers:
        sections += _attention(towers, images, place, profiles)
    if len(towers) < len(backbones):
        without = ", ".join(name for name in backbones if name not in towers)
        sections[0] = Section(
            "Backbones", [*sections[0].blocks, Text(f"No attention among patches: {without}.", "note")]
        )
    subtitle = f"{', '.join(backbones)} on {len(images)} image{'s' if len(images) != 1 else ''}."
    return HtmlPage("Features and attention", sections, subtitle).write(path)


def _facts(
    backbones: Mapping[str, Backbone], last: Mapping[str, FeatureColours], profiles: Mapping[str, np.ndarray]
) -> Table:
    columns = [
        Column("backbone"),
        Column("parameters, M", digits=1),
        Column("layers"),
        Column("width"),
        Column("grid"),
        Column("input, px"),
        Column("variance in 3 colours, %", digits=1),
        Column("reach, first layer, px", digits=1),
        Column("reach, last layer, px", digits=1),
    ]
    rows: list[list[TableCell]] = []
    for name, backbone in backbones.items():
        reach = profiles.get(name)
        rows.append(
            [
                name,
                sum(parameter.numel() for parameter in backbone.parameters()) / 1e6,
                backbone.num_layers,
                backbone.channels[-1],
                "\u00a0×\u00a0".join(map(str, grid_of(backbone))),
                backbone.image_size[0],
                100 * last[name].basis.explained,
                None if reach is None else float(reach[0].mean()),
                None if reach is None else float(reach[-1].mean()),
            ]
        )
    note = "Reach: mean distance of what a patch attends to, in pixels of the backbone's input, over heads and images."
    return Table(columns, rows, note=note)


def _grid(figures: Sequence[Figure], columns: int, title: str = "", note: str = "") -> ImageGrid:
    # Pictures of one row stay in one row where the page is wide enough.
    width = max(110, min(_SIDE, (_PAGE_WIDTH - _GAP * (columns - 1)) // max(columns, 1)))
    return ImageGrid(figures, title, width=width, note=note)


def _features(images: Mapping[str, Image.Image], last: Mapping[str, FeatureColours], shared: bool) -> Section:
    blocks: list[Block] = []
    for number, (label, image) in enumerate(images.items()):
        figures = [Figure(enlarged(image, _SIDE), label)]
        figures += [
            Figure(enlarged_cells(found.pictures[number], _SIDE), name) for name, found in last.items()
        ]
        blocks.append(_grid(figures, len(figures)))
    lead = (
        "The three main directions of the last layer's patch features as red, green and blue, the same for all images "
        "of a backbone: equal colours are alike to the backbone. "
    )
    lead += (
        "All backbones share one basis."
        if shared
        else "Backbones have bases of their own; channels are assigned so that colours resemble the first one's."
    )
    return Section("Features as colours", blocks, lead)


def _depths(images: Mapping[str, Image.Image], by_depth: Sequence[Mapping[str, FeatureColours]]) -> Section:
    label, image = next(iter(images.items()))
    blocks: list[Block] = []
    for name in by_depth[0]:
        figures = [Figure(enlarged(image, _SIDE), label)]
        figures += [
            Figure(enlarged_cells(found[name].pictures[0], _SIDE), f"after {words}")
            for words, found in zip(_DEPTHS, by_depth, strict=True)
        ]
        blocks.append(_grid(figures, len(figures), title=name))
    return Section("Through the depth", blocks, "Features of one image after shares of the layers.")


def _attention(
    towers: Mapping[str, PlainViT],
    images: Mapping[str, Image.Image],
    place: tuple[float, float],
    profiles: Mapping[str, np.ndarray],
) -> list[Section]:
    explored = dict(list(images.items())[:EXPLORED_IMAGES])
    rollouts: list[Block] = []
    for label, image in explored.items():
        figures = [Figure(enlarged(image, _SIDE), label)]
        for name, tower in towers.items():
            figures.append(Figure(rollout_picture(tower, image, place, side=_SIDE), f"{name}, one patch"))
            figures.append(Figure(rollout_picture(tower, image, side=_SIDE), f"{name}, mean of all"))
        rollouts.append(_grid(figures, min(len(figures), 5)))
    highest = 1.05 * max(float(profile.max()) for profile in profiles.values())
    charts = [_reach(name, profile, highest, place) for place, (name, profile) in enumerate(profiles.items())]
    return [
        Section(
            "Attention of a patch",
            [attention_explorer(towers, explored, place, heads=True, megabytes=6.0)],
            "Click or drag over a picture; choose the layer, and a head where single heads fit the page.",
        ),
        Section(
            "Attention rollout",
            rollouts,
            "Attention traced through all layers, residual connections included (Abnar and Zuidema 2020): how much of "
            "each input patch is in one output patch, or in the mean of all.",
        ),
        Section(
            "How far heads look",
            charts,
            "Mean distance of what patches attend to, a dot a head, in pixels of the backbone's input.",
        ),
    ]


def _reach(name: str, profile_LH: np.ndarray, highest: float, colour: int) -> LineChart:
    """Return how far the heads of each layer look: a dot a head, and their mean as a line."""
    means = profile_LH.mean(1).tolist()
    heads = [(layer, value) for layer, row in enumerate(profile_LH.tolist()) for value in row]
    line = Curve(name, range(len(means)), means, colour=colour, runs=heads)
    return LineChart(title=name, lines=[line], x_label="layer", y_label="px", from_zero=True, highest=highest)


def write_pictures(
    backbones: Mapping[str, Backbone],
    images: Mapping[str, Image.Image],
    folder: str | Path,
    *,
    place: tuple[float, float] = (0.5, 0.5),
    shared: bool = False,
) -> list[Path]:
    """Write PNG files, backbones side by side, and return their paths.

    For each image `NAME-features.png`, `NAME-attention.png` and `NAME-rollout.png`; for the first one
    `NAME-heads-BACKBONE.png` with every layer and head.

    Args:
        backbones, images, place, shared: See `write_features_page`.
        folder: Folder for the files.

    Raises:
        VitpError: A file can't be written.
    """
    towers = {name: tower for name, tower in backbones.items() if isinstance(tower, PlainViT)}
    pictures: dict[str, Image.Image] = {}
    rows = compare_features(backbones, list(images.values()), side=_SIDE, shared=shared)
    for number, ((label, image), features) in enumerate(zip(images.items(), rows, strict=True)):
        pictures[f"{label}-features"] = features
        if towers:
            pictures[f"{label}-attention"] = compare_attention(towers, image, place, side=_SIDE)
            pictures[f"{label}-rollout"] = compare_rollout(towers, image, place, side=_SIDE)
        if number == 0:
            for name, tower in towers.items():
                safe = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name)
                pictures[f"{label}-heads-{safe}"] = attention_sheet(tower, image, place)
    paths = []
    for name, picture in pictures.items():
        path = Path(folder) / f"{name}.png"
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")
        paths.append(path)
    return paths
