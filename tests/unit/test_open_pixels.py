"""`open_pixels`: a file's own values, its bands, its place, its windows and levels."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import netcdf_file

import vitp
from tests.raster_files import GEOGRAPHIC, PLACES, POLAR, UTM, values, write_raster
from vitp.core.errors import DataError
from vitp.io.ground import pixel_metres
from vitp.io.open_pixels import Geometry, open_pixels
from vitp.io.raster_lengths import check_length

TYPES = ("uint8", "uint16", "int16", "float32")
LAYOUTS = (
    {"tiled": True, "blockxsize": 32, "blockysize": 48, "compress": "deflate", "predictor": 2},
    {"blockysize": 7, "compress": "lzw", "interleave": "band"},
    {"tiled": True, "blockxsize": 16, "blockysize": 16, "BIGTIFF": "YES"},
    {"compress": "zstd", "interleave": "pixel"},
)


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("bands", [1, 3, 4, 13])
@pytest.mark.parametrize("dtype", TYPES)
def test_values_places_and_windows_are_those_of_rasterio(
    tmp_path: Path, place: str, bands: int, dtype: str
) -> None:
    wanted_CHW = values(bands, dtype)
    nodata = {"uint8": 0, "uint16": 65535, "int16": -9999, "float32": -9999.0}[dtype]
    wanted_CHW[:, 5:20, 7:30] = nodata
    wanted_CHW[0, 40:50, 40:60] = nodata
    if dtype == "float32":
        wanted_CHW[:, 50:55, 3:9] = np.nan
    options = dict(LAYOUTS[(bands + len(place)) % len(LAYOUTS)])
    if dtype == "float32":
        options.pop("predictor", None)
    path = write_raster(tmp_path / "a.tif", wanted_CHW, PLACES[place], nodata=nodata, **options)
    with rasterio.open(path) as file, vitp.open_pixels(path) as pixels:
        assert pixels.size == (file.width, file.height) == (83, 61)
        assert pixels.dtype == dtype
        assert pixels.nodata == nodata
        assert pixels.geometry == Geometry(PLACES[place][0], tuple(file.transform)[:6])
        assert pixels.names == tuple(map(str, range(1, bands + 1)))
        np.testing.assert_array_equal(pixels.read(), file.read())
        for x1, y1, x2, y2 in [(0, 0, 1, 1), (82, 60, 83, 61), (3, 9, 77, 58), (31, 47, 33, 49)]:
            part_CHW = pixels.read((x1, y1, x2, y2))
            np.testing.assert_array_equal(part_CHW, wanted_CHW[:, y1:y2, x1:x2])
            address = f"{path}#window={x1},{y1},{x2},{y2}"
            with open_pixels(address) as part:
                np.testing.assert_array_equal(part.read(), part_CHW)
                assert part.size == (x2 - x1, y2 - y1)
                assert part.geometry is not None and pixels.geometry is not None
                corner = part.geometry.to_map(np.array([[0.0, 0.0]]))
                np.testing.assert_allclose(corner, pixels.geometry.to_map(np.array([[x1, y1]])), rtol=1e-12)
        held_CHW = np.isfinite(wanted_CHW) & (wanted_CHW != nodata)
        np.testing.assert_array_equal(pixels.valid(), held_CHW.any(axis=0))
        np.testing.assert_array_equal(pixels.read_valid()[1], held_CHW)
        reversed_names = pixels.names[::-1]
        np.testing.assert_array_equal(pixels.read(bands=reversed_names), wanted_CHW[::-1])


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-1e6, 1e6),
    st.floats(-1e7, 1e7),
    st.floats(1e-5, 5e3),
    st.floats(1e-5, 5e3),
    st.floats(-3.1, 3.1),
    st.lists(st.tuples(st.floats(0, 2e4), st.floats(0, 2e4)), min_size=1, max_size=5),
)
def test_places_come_back_to_a_millionth_of_a_pixel(
    x: float, y: float, wide: float, high: float, turn: float, points: list[tuple[float, float]]
) -> None:
    ratio = max(wide, high) / min(wide, high)
    if ratio > 50 or max(abs(x), abs(y)) / min(wide, high) > 1e9:
        return
    sin, cos = np.sin(turn), np.cos(turn)
    geometry = Geometry("EPSG:3857", (wide * cos, high * sin, x, wide * sin, -high * cos, y))
    points_N2 = np.array(points)
    np.testing.assert_allclose(geometry.to_pixels(geometry.to_map(points_N2)), points_N2, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A file with a pyramid, and its values."""
    wanted_CHW = values(4, "uint16", (200, 152))
    wanted_CHW[:, 30:70, 20:61] = 0
    wanted_CHW[1, :, 100:] = 0
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    names = ("B2", "B3", "B4", "B8")
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    write_raster(path, wanted_CHW, nodata=0, names=names, levels=(2, 4), **options)
    return path, wanted_CHW


def _mean_of_squares(values_CHW: np.ndarray, factor: int) -> np.ndarray:
    """Return means of the values above 0, rounded; 0 where there are none."""
    bands, height, width = values_CHW.shape
    more = ((0, 0), (0, -height % factor), (0, -width % factor))
    padded_CHW = np.pad(np.where(values_CHW > 0, values_CHW, np.nan), more, constant_values=np.nan)
    rows, columns = (length // factor for length in padded_CHW.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        means = np.nanmean(padded_CHW.reshape(bands, rows, factor, columns, factor), axis=(2, 4))
    return np.rint(np.nan_to_num(means))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_window_is_a_slice_and_any_level_a_mean(
    scene: tuple[Path, np.ndarray], data: st.DataObject
) -> None:
    path, wanted_CHW = scene
    x1 = data.draw(st.integers(0, 199))
    x2 = data.draw(st.integers(x1 + 1, 200))
    y1 = data.draw(st.integers(0, 151))
    y2 = data.draw(st.integers(y1 + 1, min(152, y1 + 60)))
    chosen = data.draw(st.lists(st.sampled_from(["B2", "B3", "B4", "B8"]), min_size=1, max_size=3))
    numbers = [["B2", "B3", "B4", "B8"].index(name) for name in chosen]
    level = data.draw(st.integers(0, 4))
    with open_pixels(path) as pixels:
        found_CHW = pixels.read((x1, y1, x2, y2), chosen, level)
        part_CHW = wanted_CHW[numbers, y1:y2, x1:x2]
        if level == 0:
            np.testing.assert_array_equal(found_CHW, part_CHW)
        else:
            expected_CHW = _mean_of_squares(part_CHW, 1 << level)
            assert found_CHW.shape == expected_CHW.shape
            np.testing.assert_array_equal(found_CHW == 0, expected_CHW == 0)
            if 0 not in part_CHW:  # a mean of means weighs what holds nothing in another way
                # The pyramid's own means are rounded before they are averaged further.
                assert np.abs(found_CHW - expected_CHW).max() <= 1
        held_HW = (wanted_CHW[:, y1:y2, x1:x2] != 0).any(axis=0)
        if level == 0:
            np.testing.assert_array_equal(pixels.valid((x1, y1, x2, y2)), held_HW)


def test_without_a_pyramid_squares_are_averaged_exactly(tmp_path: Path) -> None:
    wanted_CHW = values(2, "uint16", (203, 151))
    wanted_CHW[:, 30:70, 20:61] = 0
    path = write_raster(tmp_path / "a.tif", wanted_CHW, nodata=0)
    with open_pixels(path) as pixels:
        assert pixels.levels == 9
        for level in (1, 3, 5):
            expected_CHW = _mean_of_squares(wanted_CHW, 1 << level)
            values_CHW, valid_CHW = pixels.read_valid(level=level)
            np.testing.assert_array_equal(values_CHW, expected_CHW)
            np.testing.assert_array_equal(valid_CHW, expected_CHW != 0)
        expected_CHW = _mean_of_squares(wanted_CHW[:, 13:100, 7:], 4)
        np.testing.assert_array_equal(pixels.read((7, 13, 203, 100), level=2), expected_CHW)
        assert pixels.read(level=8).shape == (2, 1, 1)
        with pytest.raises(DataError, match="has no level 9; it has 0 to 8"):
            pixels.read(level=9)


def test_the_pyramid_of_the_file_is_what_levels_are_read_from(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", values(1, "uint16", (128, 128)), levels=(2, 4))
    with rasterio.open(path, overview_level=1) as file:
        quarter_CHW = file.read()
    with open_pixels(path) as pixels:
        np.testing.assert_array_equal(pixels.read(level=2), quarter_CHW)
        np.testing.assert_array_equal(pixels.read((8, 4, 68, 128), level=2), quarter_CHW[:, 1:, 2:17])


@pytest.mark.parametrize(
    "window", [(0, 0, 84, 61), (-1, 0, 5, 5), (5, 5, 5, 9), (0, 61, 1, 62), (9, 9, 8, 12)]
)
def test_windows_outside_are_refused(tmp_path: Path, window: tuple[int, int, int, int]) -> None:
    path = write_raster(tmp_path / "a.tif", values(1, "uint8"))
    with open_pixels(path) as pixels, pytest.raises(DataError, match="isn't within the image of 83×61 px"):
        pixels.read(window)


def test_bands_are_named_by_what_the_file_says(tmp_path: Path) -> None:
    six_CHW = values(6, "uint16")
    path = write_raster(tmp_path / "a.tif", six_CHW, names=("B02", "B03", "NIR", "", "NIR", "VV"))
    with open_pixels(path) as pixels:
        assert pixels.names == ("B02", "B03", "NIR (3)", "4", "NIR (5)", "VV")
        assert pixels.bands[5].polarisation == "VV"
        np.testing.assert_array_equal(pixels.read(bands=["b2", "4"]), six_CHW[[0, 3]])
        with pytest.raises(DataError, match="has no band 'B8'; it has B02, B03"):
            pixels.read(bands=["B8"])
    rgb = write_raster(tmp_path / "rgb.tif", values(3, "uint8"), photometric="RGB")
    with open_pixels(rgb) as pixels:
        assert pixels.names == ("red", "green", "blue")
        assert pixels.is_picture
    with open_pixels(write_raster(tmp_path / "three.tif", values(3, "uint16"))) as pixels:
        assert pixels.names == ("1", "2", "3")
        assert not pixels.is_picture


def test_a_fourth_band_is_transparency_only_where_its_values_are(tmp_path: Path) -> None:
    four_CHW = values(4, "uint8")
    path = write_raster(tmp_path / "nir.tif", four_CHW, photometric="RGB", ALPHA="YES")
    with open_pixels(path) as pixels:
        assert pixels.names == ("red", "green", "blue", "4")
        np.testing.assert_array_equal(pixels.read(), four_CHW)
        assert pixels.valid().all()
        assert pixels.notes == ("band 4 is tagged as transparency, but read as a measurement",)
    four_CHW[3] = 255
    four_CHW[3, :9] = 0
    path = write_raster(tmp_path / "alpha.tif", four_CHW, photometric="RGB", ALPHA="YES")
    with open_pixels(path) as pixels:
        assert pixels.names == ("red", "green", "blue")
        np.testing.assert_array_equal(pixels.read(), four_CHW[:3])
        np.testing.assert_array_equal(pixels.valid(), four_CHW[3] > 0)


def test_masks_and_differing_nodata_are_told_band_by_band(tmp_path: Path) -> None:
    two_CHW = values(2, "int16")
    mask_HW = np.ones((61, 83), bool)
    mask_HW[:, :11] = False
    with open_pixels(write_raster(tmp_path / "m.tif", two_CHW, mask_HW=mask_HW)) as pixels:
        np.testing.assert_array_equal(pixels.valid(), mask_HW)
        np.testing.assert_array_equal(pixels.valid((5, 0, 20, 9)), mask_HW[:9, 5:20])
    paths = [write_raster(tmp_path / f"{k}.tif", two_CHW[k : k + 1], nodata=k - 5) for k in (0, 1)]
    two_CHW[0, 3, 4], two_CHW[1, 3, 4], two_CHW[0, 8, 8] = -5, -4, -4
    for k in (0, 1):
        write_raster(paths[k], two_CHW[k : k + 1], nodata=k - 5)
    vrt = tmp_path / "a.vrt"
    bands = "".join(
        f'<VRTRasterBand dataType="Int16" band="{k + 1}"><NoDataValue>{k - 5}</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{k}.tif</SourceFilename></SimpleSource></VRTRasterBand>'
        for k in (0, 1)
    )
    vrt.write_text(f'<VRTDataset rasterXSize="83" rasterYSize="61">{bands}</VRTDataset>')
    with open_pixels(vrt) as pixels:
        assert pixels.nodata is None
        assert [band.nodata for band in pixels.bands] == [-5, -4]
        np.testing.assert_array_equal(pixels.read(), two_CHW)
        valid_CHW = pixels.read_valid()[1]
        assert not valid_CHW[:, 3, 4].any()
        assert valid_CHW[:, 8, 8].all()
        assert not pixels.valid()[3, 4]
        assert pixels.geometry is None


def test_scales_offsets_and_units_are_told_not_applied(tmp_path: Path) -> None:
    one_CHW = values(1, "int16")
    path = write_raster(tmp_path / "a.tif", one_CHW)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets, file.units = (0.01,), (273.15,), ("K",)
    with open_pixels(path) as pixels:
        assert (pixels.bands[0].scale, pixels.bands[0].offset, pixels.bands[0].unit) == (0.01, 273.15, "K")
        np.testing.assert_array_equal(pixels.read(), one_CHW)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_control_points_alone_place_nothing_and_it_is_said(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", values(1, "uint8"), None)
    points = [
        rasterio.control.GroundControlPoint(row, column, 13 + column / 1000, 52 - row / 1000)
        for row, column in [(0, 0), (0, 83), (61, 0), (61, 83)]
    ]
    with rasterio.open(path, "r+") as file:
        file.gcps = points, rasterio.CRS.from_epsg(4326)
    with open_pixels(path) as pixels:
        assert pixels.geometry is None
        assert "control points alone" in pixels.notes[0]


@pytest.mark.parametrize(
    ("place", "wanted", "within"),
    [
        (UTM, (10.0, 10.0), 1e-9),
        (("EPSG:32633", (8.0, 6.0, 5e5, 6.0, -8.0, 5e6)), (10.0, 10.0), 1e-9),
        (("EPSG:2263", (3.0, 0.0, 1e6, 0.0, -3.0, 2e5)), (0.9144, 0.9144), 1e-4),
        (GEOGRAPHIC, (6.79, 11.13), 0.01),
        (POLAR, (40.0, 40.0), 0.8),
        (("EPSG:3857", (10.0, 0.0, 1.5e6, 0.0, -10.0, 8_399_737.9)), (5.0, 5.0), 0.03),
    ],
)
def test_pixels_have_metres(
    place: tuple[str, tuple[float, ...]], wanted: tuple[float, float], within: float
) -> None:
    geometry = Geometry(place[0], place[1])  # type: ignore[arg-type]
    assert pixel_metres(geometry, (83, 61)) == pytest.approx(wanted, abs=within)


LOCAL = 'LOCAL_CS["plan",UNIT["foot",0.3048],AXIS["e",EAST],AXIS["n",NORTH]]'


def test_a_local_plan_has_the_metres_of_its_unit() -> None:
    assert pixel_metres(Geometry(LOCAL, (2.0, 0.0, 0.0, 0.0, -3.0, 0.0)), (83, 61)) == pytest.approx(
        (0.6096, 0.9144)
    )


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("nonsense", (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)),
        ("EPSG:32633", (10.0, 0.0, 5e9, 0.0, -10.0, 5e9)),
        ("EPSG:4326", (1.0, 0.0, -180.0, 0.0, -1.0, 500.0)),
    ],
)
def test_places_that_no_metre_reaches_are_refused(crs: str, transform: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="can't be measured in metres"):
        pixel_metres(Geometry(crs, transform), (83, 61))  # type: ignore[arg-type]


def test_pictures_come_by_the_same_contract(tmp_path: Path) -> None:
    rgba_HWN = np.moveaxis(values(4, "uint8"), 0, 2)
    rgba_HWN[:9, :, 3] = 0
    Image.fromarray(rgba_HWN).save(tmp_path / "rgba.png")
    with open_pixels(tmp_path / "rgba.png") as pixels:
        assert (pixels.names, pixels.size, pixels.geometry) == (("red", "green", "blue"), (83, 61), None)
        np.testing.assert_array_equal(pixels.read((3, 4, 50, 60), ["blue"]), rgba_HWN[4:60, 3:50, 2][None])
        np.testing.assert_array_equal(pixels.valid(), rgba_HWN[..., 3] > 0)
    Image.fromarray(rgba_HWN[..., 0]).save(tmp_path / "grey.png")
    with open_pixels(tmp_path / "grey.png") as pixels:
        assert (pixels.names, pixels.is_picture) == (("1",), True)
        np.testing.assert_array_equal(pixels.read()[0], rgba_HWN[..., 0])
    deep_HW = values(1, "uint16")[0]
    Image.fromarray(deep_HW).save(tmp_path / "deep.png")
    with open_pixels(tmp_path / "deep.png") as pixels:
        assert (pixels.dtype, pixels.is_picture) == (np.uint16, False)
        np.testing.assert_array_equal(pixels.read()[0], deep_HW)
    Image.fromarray(rgba_HWN[..., 0] % 7).convert("P").save(tmp_path / "palette.png")
    with open_pixels(tmp_path / "palette.png") as pixels:
        assert (pixels.names, pixels.is_picture) == (("red", "green", "blue"), True)


@pytest.mark.parametrize("driver", ["JP2OpenJPEG", "ENVI", "HFA"])
def test_other_formats_of_rasters(tmp_path: Path, driver: str) -> None:
    five_CHW = values(5, "uint16", (130, 140))
    options = {"QUALITY": 100, "REVERSIBLE": "YES"} if driver.startswith("JP2") else {}
    suffix = {"JP2OpenJPEG": ".jp2", "ENVI": ".dat", "HFA": ".img"}[driver]
    path = write_raster(tmp_path / f"a{suffix}", five_CHW, driver=driver, **options)
    with open_pixels(path) as pixels:
        np.testing.assert_array_equal(pixels.read((3, 4, 100, 131)), five_CHW[:, 4:131, 3:100])
        assert pixels.geometry is not None and pixels.geometry.transform == UTM[1]
    if driver == "ENVI":
        header = path.with_suffix(".hdr")
        waves = "wavelength units = Micrometers\nwavelength = {0.49, 0.56, 0.665, 0.842, 1.61}\n"
        header.write_text(header.read_text() + waves)
        for address in (path, header):
            with open_pixels(address) as pixels:
                assert [band.wavelength for band in pixels.bands] == pytest.approx([490, 560, 665, 842, 1610])


def test_shards_hold_rasters(tmp_path: Path) -> None:
    five_CHW = values(5, "uint16")
    path = write_raster(tmp_path / "a.tif", five_CHW)
    data = path.read_bytes()
    (tmp_path / "x.tar").write_bytes(b"\0" * 512 + data + b"\0" * 99)
    address = f"tar:{tmp_path}/x.tar#512+{len(data)}/a.tif"
    with open_pixels(address) as pixels:
        np.testing.assert_array_equal(pixels.read(), five_CHW)
    with open_pixels(f"{address}#window=1,2,30,40&bands=5") as pixels:
        np.testing.assert_array_equal(pixels.read(), five_CHW[4:, 2:40, 1:30])


def test_of_several_pages_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pages = [values(1, "uint16", (20, 30), seed)[0] for seed in range(3)]
    Image.fromarray(pages[0]).save(path, save_all=True, append_images=[Image.fromarray(p) for p in pages[1:]])
    with pytest.raises(DataError, match=r"holds 3 pages, .*FILE#page=1"):
        open_pixels(path)
    for number, page_HW in enumerate(pages, 1):
        with open_pixels(f"{path}#page={number}&window=2,3,9,11") as pixels:
            np.testing.assert_array_equal(pixels.read(), page_HW[None, 3:11, 2:9])
    with pytest.raises(DataError, match="has no page 4; it holds 3"):
        open_pixels(f"{path}#page=4")


@pytest.mark.parametrize("kind", ["NC", "NC2", "NC4"])
def test_of_several_data_sets_one_is_named(tmp_path: Path, kind: str) -> None:
    two_CHW = values(2, "int16", (20, 30))
    path = tmp_path / "a.nc"
    source = write_raster(tmp_path / "a.tif", two_CHW, GEOGRAPHIC)
    rasterio.shutil.copy(source, path, driver="netCDF", FORMAT=kind)
    with pytest.raises(DataError, match=r"holds 2 data sets: Band1, Band2; .*FILE#layer=NAME"):
        open_pixels(path)
    with open_pixels(f"{path}#layer=Band2") as pixels:
        np.testing.assert_array_equal(pixels.read(), two_CHW[1:])
        assert pixels.geometry is not None
        np.testing.assert_allclose(pixels.geometry.transform, GEOGRAPHIC[1], rtol=1e-9)
    with pytest.raises(DataError, match="has no data set 'Band3'; it holds 2 data sets: Band1, Band2"):
        open_pixels(f"{path}#layer=Band3")
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(data[: int(share * len(data))])
        with (
            pytest.raises(DataError, match=r"damaged|can't be read"),
            open_pixels(f"{path}#layer=Band2") as p,
        ):
            p.read()


@pytest.mark.parametrize(("kinds", "padded"), [("h", False), ("b", False), ("i", True), ("hb", True)])
def test_records_of_classic_netcdf_are_padded_but_those_of_one_variable(
    tmp_path: Path, kinds: str, padded: bool
) -> None:
    path = tmp_path / "a.nc"
    with netcdf_file(path, "w") as file:
        file.createDimension("time", None)
        file.createDimension("x", 3)
        for name in kinds:
            file.createVariable(name, name, ("time", "x"))[:] = np.ones((5, 3), name)
    stored = sum(np.dtype(name).itemsize * 3 for name in kinds)
    a_record = stored + (sum(-np.dtype(name).itemsize * 3 % 4 for name in kinds) if padded else 0)
    whole = path.read_bytes()
    for lost in (0, a_record):
        path.write_bytes(whole[: len(whole) - lost])
        with pytest.raises(DataError, match="is damaged") if lost else nullcontext():
            check_length(SimpleNamespace(driver="netCDF"), path, "a.nc")


def test_complex_values_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.ones((1, 9, 9), np.complex64))
    with pytest.raises(DataError, match="holds complex values"):
        open_pixels(path)
