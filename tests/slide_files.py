"""Slides for tests: what scanners and microscopes write, in small, with text in their headers that must stay there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

SECRET = "DOE^JANE 1957-03-12 operator smith"
"""Stands in all free text of a header, and nowhere else."""
TILE = 64


def tissue_picture(
    width: int, height: int, blobs: Sequence[tuple[int, int, int, tuple[int, int, int]]]
) -> np.ndarray:
    """Return (H, W, 3) paper with discs of colour on it: x, y, radius, colour."""
    image = np.full((height, width, 3), 244, np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for x, y, radius, colour in blobs:
        image[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = colour
    return image


def halved(image: np.ndarray, factor: int) -> np.ndarray:
    """Return means over squares, as writers of pyramids make them; what is no whole square is cut."""
    height, width = (side // factor * factor for side in image.shape[:2])
    parts = image[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    return np.rint(parts.mean((1, 3))).astype(image.dtype)


def write_svs(
    path: Path,
    image: np.ndarray,
    mpp: float | None = 0.5,
    *,
    factors: Sequence[int] = (4,),
    compression: str | None = "zlib",
    side_images: bool = True,
) -> Path:
    """Write an Aperio slide: levels, a thumbnail, a label and a macro image."""
    told = f"Aperio Image Library v12.0.15\r\n{image.shape[1]}x{image.shape[0]} (64x64)|AppMag = 20"
    told += f"|User = {SECRET}|Patient = {SECRET}" + (f"|MPP = {mpp:g}" if mpp else "")
    options: dict[str, Any] = {"tile": (TILE, TILE), "photometric": "rgb", "compression": compression}
    options |= {"metadata": None, "description": told}
    small = halved(image, 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        file.write(image, **options)
        if side_images:
            file.write(
                small, photometric="rgb", metadata=None, description=f"Aperio {SECRET}", rowsperstrip=16
            )
        for factor in factors:
            file.write(halved(image, factor), **options)
        if side_images:
            for name in ("label", "macro"):
                text = f"Aperio {SECRET}\r\n{name} 20x20"
                file.write(small[:20, :20], photometric="rgb", metadata=None, description=text, subfiletype=1)
    return path


def write_ome(
    path: Path,
    values: np.ndarray,
    axes: str,
    names: Sequence[str] = (),
    size: tuple[float, str] | None = (0.5, "µm"),
    *,
    levels: int = 1,
    tile: int | None = TILE,
) -> Path:
    """Write an OME-TIFF with its pyramid in SubIFDs; x and y are halved by leaving out pixels."""
    told: dict[str, Any] = {"axes": axes, "Description": SECRET, "Name": SECRET}
    if names:
        told["Channel"] = {"Name": list(names)}
    if size is not None:
        for axis in "XY":
            told |= {f"PhysicalSize{axis}": size[0], f"PhysicalSize{axis}Unit": size[1]}
    photometric = "rgb" if axes.endswith("S") else "minisblack"
    options = {"photometric": photometric, "tile": (tile, tile) if tile else None, "compression": "zlib"}
    y = axes.index("Y")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(values, subifds=levels - 1, metadata=told, **options)
        for level in range(1, levels):
            step = (slice(None),) * y + (slice(None, None, 2**level),) * 2
            file.write(values[step], subfiletype=1, **options)
    return path


def write_zarr(
    path: Path,
    values: np.ndarray,
    axes: str,
    *,
    version: int = 2,
    names: Sequence[str] = (),
    mpp: float | None = 0.5,
    levels: int = 2,
    chunk: int = TILE,
    **options: Any,
) -> Path:
    """Write an OME-Zarr: NGFF 0.4 as Zarr 2, 0.5 as Zarr 3."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    datasets = []
    for level in range(levels):
        part = values[..., :: 2**level, :: 2**level]
        chunks = (*(1,) * (part.ndim - 2), chunk, chunk)
        array = group.create_array(str(level), shape=part.shape, chunks=chunks, dtype=part.dtype, **options)
        array[:] = part
        factors = [1.0] * (part.ndim - 2) + [(mpp or 1) * 2**level] * 2
        datasets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": factors}]}
        )
    kinds = {"t": "time", "c": "channel"}
    told_axes: list[dict[str, str]] = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in told_axes[-2:]:
        if mpp:
            axis["unit"] = "micrometer"
    ome: dict[str, Any] = {"multiscales": [{"axes": told_axes, "datasets": datasets, "name": SECRET}]}
    if names:
        ome["omero"] = {"channels": [{"label": name} for name in names]}
    if version == 3:
        group.attrs["ome"] = {"version": "0.5", **ome}
    else:
        ome["multiscales"][0]["version"] = "0.4"
        group.attrs.update(ome)
    return path


def qupath_feature(
    rings: Sequence[Sequence[tuple[float, float]]],
    name: str | None,
    *,
    kind: str = "annotation",
    parts: int = 0,
) -> dict[str, Any]:
    """Return an object as QuPath exports it: an outline with holes, or with `parts` that many outlines."""
    closed = [[list(point) for point in (*ring, ring[0])] for ring in rings]
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": closed}
    if parts:
        geometry = {"type": "MultiPolygon", "coordinates": [[ring] for ring in closed]}
    properties: dict[str, Any] = {"objectType": kind, "isLocked": False}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {"type": "Feature", "id": "0b3f6f0e", "geometry": geometry, "properties": properties}


def write_qupath(path: Path, features: Sequence[dict[str, Any]], *, collection: bool = True) -> Path:
    """Write a GeoJSON of QuPath: a collection, or a bare list, as its earlier versions do."""
    content: Any = {"type": "FeatureCollection", "features": list(features)} if collection else list(features)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def circle(x: float, y: float, radius: float, points: int = 32) -> list[tuple[float, float]]:
    """Return a circle as a ring."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return [(float(x + radius * np.cos(a)), float(y + radius * np.sin(a))) for a in angles]
