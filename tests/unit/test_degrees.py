"""Polygons of maps in longitude and latitude: what reaches across the 180th meridian or around a pole lies there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproj
import pytest
import shapely

from vitp.core.errors import DataError
from vitp.inference.degrees import in_degrees


def placed(shape: Any, crs: str) -> Any:
    """Return one shape in degrees, which lies on the globe and is valid there."""
    (found,) = in_degrees(np.array([shape], object), crs)
    west, south, east, north = found.bounds
    assert west >= -180 and east <= 180 and south >= -90 and north <= 90
    assert shapely.is_valid(found)
    return found


def degrees_of(x: float, y: float, crs: str) -> Any:
    return shapely.Point(pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y))


def square_kilometres(shape: Any) -> float:
    geod = pyproj.Geod(ellps="WGS84")
    parts = [shapely.geometry.polygon.orient(part) for part in shapely.get_parts(shape)]
    return sum(abs(geod.geometry_area_perimeter(part)[0]) for part in parts) / 1e6


@pytest.mark.parametrize(
    ("box", "crs"),
    [
        ((11, 48, 11.2, 48.1), "EPSG:4326"),
        ((-170, -60, 170, 60), "EPSG:4326"),
        ((-180, -90, 180, 90), "EPSG:4326"),
        ((-1.9e7, -5e6, 1.9e7, 8e6), "EPSG:3857"),
        ((499_000, 5_200_000, 501_000, 5_201_000), "EPSG:32633"),
    ],
)
def test_what_lies_on_one_side_stays_as_it_is(box: tuple[float, ...], crs: str) -> None:
    shape = shapely.box(*box)
    corners = [degrees_of(x, y, crs) for x, y in shapely.get_coordinates(shape)]
    expected = [[point.x, point.y] for point in corners]
    np.testing.assert_allclose(shapely.get_coordinates(placed(shape, crs)), expected, atol=1e-9)


@pytest.mark.parametrize("west", [179.5, 539.5, -180.5])
def test_degrees_beyond_180_are_cut_there(west: float) -> None:
    found = placed(shapely.box(west, 10, west + 1, 11), "EPSG:4326")
    expected = shapely.MultiPolygon([shapely.box(179.5, 10, 180, 11), shapely.box(-180, 10, -179.5, 11)])
    assert shapely.equals(found, expected)


def test_longitudes_from_0_to_360_are_brought_back() -> None:
    assert shapely.equals(placed(shapely.box(190, 10, 191, 11), "EPSG:4326"), shapely.box(-170, 10, -169, 11))


def test_a_hole_is_cut_with_its_outline() -> None:
    ring = shapely.difference(shapely.box(179, 0, 181, 2), shapely.box(179.5, 0.5, 180.5, 1.5))
    found = placed(ring, "EPSG:4326")
    assert found.area == pytest.approx(3.0) and len(found.geoms) == 2
    assert not found.contains(shapely.Point(179.9, 1)) and not found.contains(shapely.Point(-179.9, 1))
    assert found.contains(shapely.Point(179.2, 1)) and found.contains(shapely.Point(-179.2, 1))


def test_fields_on_both_sides_of_a_zone_keep_their_places_and_areas() -> None:
    """The 180th meridian is the western border of UTM's first zone."""
    crs = "EPSG:32601"
    shape = shapely.box(300_000, 7_000_000, 400_000, 7_040_000)
    found = placed(shape, crs)
    assert {round(part.bounds[0] // 180) for part in found.geoms} == {-1, 0}
    # Lengths on the map are those on the ground but for some hundredths of a percent.
    assert square_kilometres(found) == pytest.approx(4000, rel=1e-3)
    for x, y in ((301_000, 7_001_000), (348_000, 7_020_000), (399_000, 7_039_000)):
        assert found.contains(degrees_of(x, y, crs))
    for x, y in ((299_000, 7_020_000), (348_000, 7_041_000), (401_000, 7_020_000)):
        assert not found.contains(degrees_of(x, y, crs))


def test_what_has_no_longitude_is_refused() -> None:
    """A globe seen from far away ends at its radius."""
    with pytest.raises(DataError, match=r"doesn't reach as far.*choose --vector gpkg"):
        placed(shapely.box(6_300_000, 0, 6_500_000, 100_000), "+proj=ortho +lat_0=0 +lon_0=0 +datum=WGS84")


@pytest.mark.parametrize(("crs", "sign"), [("EPSG:3413", 1), ("EPSG:3031", -1)])
def test_what_lies_around_a_pole_reaches_up_to_it(crs: str, sign: int) -> None:
    around = shapely.box(-200_000, -150_000, 100_000, 150_000)
    found = placed(around, crs)
    assert square_kilometres(found) == pytest.approx(
        300 * 300, rel=0.08
    )  # its system is true at 70°, not here
    inside = [degrees_of(x, y, crs) for x in (-199_000, -1_500, 99_000) for y in (-149_000, 1_000, 149_000)]
    outside = [degrees_of(x, y, crs) for x, y in ((-201_000, 0), (101_000, 0), (0, 151_000), (0, -151_000))]
    assert all(found.contains(point) for point in inside)
    assert not any(found.contains(point) for point in outside)
    pole = shapely.Point(17, sign * 89.999)
    assert found.contains(pole)
    ring = placed(shapely.difference(around, shapely.box(-20_000, -20_000, 20_000, 20_000)), crs)
    assert not ring.contains(pole) and ring.contains(degrees_of(50_000, 50_000, crs))
    assert not ring.contains(degrees_of(-19_000, 19_000, crs))
    assert square_kilometres(ring) == pytest.approx(square_kilometres(found) - 1600, rel=0.01)
