"""What an open raster says of its bands and of its place on the ground."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from vitp.io.contract import Band, Geometry

_COLOURS = ["red", "green", "blue"]
_POLARISATION = re.compile(r"(?:^|[^a-z])([vh][vh])(?:[^a-z]|$)", re.IGNORECASE)
_NANOMETRES = {"nanometers": 1.0, "nanometres": 1.0, "nm": 1.0, "": 1.0}
_NANOMETRES |= {"micrometers": 1000.0, "micrometres": 1000.0, "microns": 1000.0, "um": 1000.0, "µm": 1000.0}


def polarisation_of(name: str) -> str | None:
    """Return the polarisation that a band's name tells."""
    found = _POLARISATION.search(name)
    return found[1].upper() if found else None


def file_bands(file: Any, count: int) -> tuple[Band, ...]:
    """Return the first bands of an open file by whatever in it tells of them."""
    names = [" ".join((file.descriptions[number] or "").split()) for number in range(count)]
    if not any(names) and [file.colorinterp[number].name for number in range(min(count, 3))] == _COLOURS:
        names[:3] = _COLOURS
    names = [name or str(number) for number, name in enumerate(names, 1)]
    names = [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]
    return tuple(
        Band(
            name,
            wavelength=_wavelength(file, number + 1),
            polarisation=polarisation_of(name),
            scale=float(file.scales[number]),
            offset=float(file.offsets[number]),
            unit=file.units[number] or None,
            nodata=None if file.nodatavals[number] is None else float(file.nodatavals[number]),
        )
        for number, name in enumerate(names)
    )


def _wavelength(file: Any, number: int) -> float | None:
    imagery = file.tags(number, ns="IMAGERY")
    with contextlib.suppress(ValueError):
        if "CENTRAL_WAVELENGTH_UM" in imagery:
            return 1000 * float(imagery["CENTRAL_WAVELENGTH_UM"])
        tags = {key.lower(): value for key, value in file.tags(number).items()}
        factor = _NANOMETRES.get(tags.get("wavelength_units", "").lower())
        if "wavelength" in tags and factor is not None:
            return factor * float(tags["wavelength"])
    return None


def file_geometry(file: Any) -> tuple[Geometry | None, str | None]:
    """Return where an open file lies, and what to say where it can't be told."""
    a, b, c, d, e, f = tuple(file.transform)[:6]
    # Of a file that says nothing rasterio gives the identity.
    placed = (a, b, c, d, e, f) != (1.0, 0.0, 0.0, 0.0, 1.0, 0.0) and a * e != b * d
    if placed and file.crs:
        return Geometry(file.crs.to_string(), (a, b, c, d, e, f)), None
    if file.gcps[0]:
        return None, "it is placed by control points alone, which aren't used (gdalwarp makes a map of it)"
    if file.rpcs is not None:
        return None, "it is placed by RPCs alone, which aren't used (gdalwarp -rpc makes a map of it)"
    if placed:
        return None, "its pixels have places, but in no coordinate system that it names, so they aren't used"
    return None, None
