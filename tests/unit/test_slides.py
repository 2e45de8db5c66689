"""Whole slides through the contract of pixels: the file's own pixels, at any resolution, whatever the window."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from tests.slide_files import SECRET, halved, tissue_picture, write_ome, write_svs, write_zarr
from vitp.core.errors import DataError
from vitp.io import slide_levels
from vitp.io.image_file import open_image
from vitp.io.images import image_size, load_image
from vitp.io.open_pixels import open_pixels
from vitp.io.slides import slide_kind, slide_place
from vitp.io.tissue import find_tissue

BLOBS = [(90, 80, 50, (200, 60, 120)), (240, 150, 40, (120, 60, 190))]


def noise(width: int, height: int, bands: int = 3, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255 if dtype == "uint8" else 60_000, (height, width, bands)).astype(dtype)


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_svs(tmp_path_factory.mktemp("svs") / "a.svs", noise(330, 270), 0.5, factors=(4,))


def test_a_slides_pixels_are_tifffiles_own_at_every_level(svs: Path) -> None:
    with tifffile.TiffFile(svs) as file:
        own, coarse = (level.asarray() for level in file.series[0].levels)
    with open_pixels(svs) as pixels:
        assert pixels.size == (330, 270) and pixels.names == ("red", "green", "blue") and pixels.is_picture
        assert pixels.spacing == (0.0005, 0.0005) and pixels.acquisition.modality == "SM"
        assert np.array_equal(pixels.read().transpose(1, 2, 0), own)
        assert np.array_equal(pixels.read((60, 3, 200, 131)).transpose(1, 2, 0), own[3:131, 60:200])
        assert np.array_equal(pixels.read((64, 64, 128, 128), ["blue"])[0], own[64:128, 64:128, 2])
        assert pixels.read(level=2).shape == (3, 68, 83)
        assert np.array_equal(pixels.read((0, 0, 320, 264), level=2).transpose(1, 2, 0), coarse[:66, :80])
    with open_pixels(f"{svs}#mpp=2&window=3,5,70,60") as pixels:  # exactly that level
        assert pixels.size == (67, 55) and pixels.spacing == (0.002, 0.002) and not pixels.notes
        assert np.array_equal(pixels.read().transpose(1, 2, 0), coarse[5:60, 3:70])
    assert np.array_equal(np.asarray(load_image(f"{svs}#mpp=2")), coarse) and image_size(svs) == (330, 270)


@pytest.mark.parametrize(
    ("mpp", "size"), [(1.0, (165, 135)), (0.77, (214, 175)), (3.1, (53, 44)), (0.3, (550, 450))]
)
def test_other_resolutions_are_means_over_areas_that_no_window_changes(
    svs: Path, mpp: float, size: tuple[int, int]
) -> None:
    with open_pixels(f"{svs}#mpp={mpp}") as pixels:
        assert pixels.size == size and pixels.spacing == (mpp / 1000, mpp / 1000)
        assert f"{mpp:g} µm a pixel" in pixels.notes[0]
        whole = pixels.read()
        for x1, y1, x2, y2 in [(0, 0, 7, 9), (13, 21, size[0], 40), (size[0] - 9, size[1] - 5, *size)]:
            assert np.array_equal(pixels.read((x1, y1, x2, y2)), whole[:, y1:y2, x1:x2])
    with tifffile.TiffFile(svs) as file:
        levels = [level.asarray().astype(float) for level in file.series[0].levels]
    source = levels[1] if mpp >= 2 else levels[0]
    step = mpp / (2 if mpp >= 2 else 0.5)
    for x, y in [(0, 0), (5, 17), (size[0] - 2, size[1] - 2)]:  # one pixel at a time, by hand
        shares = []
        for place, length in ((y, source.shape[0]), (x, source.shape[1])):
            cover = np.minimum(np.arange(length) + 1, (place + 1) * step) - np.maximum(
                np.arange(length), place * step
            )
            shares.append(cover.clip(0) / cover.clip(0).sum())
        mean = np.einsum("y,x,yxc->c", *shares, source)
        assert np.abs(whole[:, y, x] - mean).max() <= 0.5 + 1e-6


def test_tiles_are_the_same_with_a_cache_of_one_block(svs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_pixels(f"{svs}#mpp=0.9") as pixels:
        wanted = pixels.read((20, 10, 150, 140))
    monkeypatch.setattr(slide_levels, "BLOCKS", slide_levels.SlideBlocks(1))
    decoded: list[int] = []
    read = slide_levels.SlideLevel._block

    def counted(self: slide_levels.SlideLevel, page: int, column: int, row: int) -> slide_levels.SlideBlock:
        decoded.append(1)
        return read(self, page, column, row)

    monkeypatch.setattr(slide_levels.SlideLevel, "_block", counted)
    with open_pixels(f"{svs}#mpp=0.9") as pixels:
        assert np.array_equal(pixels.read((20, 10, 150, 140)), wanted)
    assert decoded


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "lzw", None])
def test_what_scanners_compress_with_is_read(tmp_path: Path, compression: str | None) -> None:
    image = tissue_picture(200, 150, BLOBS)
    path = write_svs(tmp_path / "a.svs", image, compression=compression, side_images=compression != "lzw")
    with tifffile.TiffFile(path) as file:
        wanted = file.pages.first.asarray()
    with open_pixels(path) as pixels:
        assert np.array_equal(pixels.read().transpose(1, 2, 0), wanted)
    assert np.abs(wanted.astype(int) - image).mean() < 3


def test_fluorescence_has_the_microscopes_channels_and_micrometres(tmp_path: Path) -> None:
    values = np.moveaxis(noise(150, 130, 3, "uint16"), 2, 0)
    path = write_ome(tmp_path / "f.ome.tif", values, "CYX", ("DAPI", "CD3", "CD3"), (325.0, "nm"), levels=3)
    with open_pixels(path) as pixels:
        assert pixels.names == ("DAPI", "CD3", "CD3 (3)") and pixels.dtype == np.uint16
        assert pixels.spacing == pytest.approx((0.000325, 0.000325)) and not pixels.is_picture
        assert np.array_equal(pixels.read(), values)
        assert np.array_equal(pixels.read(bands=["CD3 (3)"])[0], values[2])
        with tifffile.TiffFile(path) as file:
            assert np.array_equal(pixels.read((0, 0, 150, 130), level=1), file.series[0].levels[1].asarray())
    with open_pixels(f"{path}#mpp=0.65&bands=DAPI") as pixels, tifffile.TiffFile(path) as file:
        assert np.array_equal(pixels.read(), file.series[0].levels[1].asarray()[:1])


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr_of_both_versions(tmp_path: Path, version: int) -> None:
    values = np.moveaxis(noise(150, 130, 2, "uint16"), 2, 0)[None, :, None]
    path = write_zarr(tmp_path / "f.zarr", values, "tczyx", version=version, names=("DAPI", "CD3"), mpp=0.325)
    assert slide_kind(path) == "zarr"
    with open_pixels(f"{path}#window=7,9,149,100") as pixels:
        assert pixels.names == ("DAPI", "CD3") and pixels.size == (142, 91)
        assert pixels.spacing == pytest.approx((0.000325, 0.000325))
        assert np.array_equal(pixels.read(), values[0, :, 0, 9:100, 7:149])
    with open_pixels(f"{path}#mpp=0.65") as pixels:
        assert np.array_equal(pixels.read(), values[0, :, 0, ::2, ::2])


@pytest.mark.parametrize("kind", ["ome", "zarr"])
def test_a_printers_resolution_is_none_and_said(tmp_path: Path, kind: str) -> None:
    values = np.moveaxis(noise(80, 70, 3, "uint16"), 2, 0)
    if kind == "ome":
        path = write_ome(tmp_path / "a.ome.tif", values, "CYX", ("a", "b", "c"), (0.353, "mm"))
    else:
        path = write_zarr(tmp_path / "a.zarr", values, "cyx", names=("a", "b", "c"), mpp=353.0)
    with open_pixels(path) as pixels:
        assert pixels.spacing is None
        assert any("says 353 µm a pixel, which no slide has" in note for note in pixels.notes)


def test_stacks_and_times_are_named(tmp_path: Path) -> None:
    values = np.moveaxis(noise(80, 70, 6, "uint16"), 2, 0).reshape(2, 3, 70, 80)
    path = write_ome(tmp_path / "z.ome.tif", values, "TZYX")
    with pytest.raises(DataError, match=r"2 points in time.*page=1 … page=2"):
        open_pixels(path)
    with pytest.raises(DataError, match=r"3 planes.*slice=0 … slice=2"):
        open_pixels(f"{path}#page=2")
    with open_pixels(f"{path}#page=2&slice=1") as pixels:
        assert np.array_equal(pixels.read()[0], values[1, 1])
    folder = write_zarr(tmp_path / "z.zarr", values[0][None, None], "tczyx")
    with open_pixels(f"{folder}#slice=2") as pixels:
        assert np.array_equal(pixels.read()[0], values[0, 2])
    with pytest.raises(DataError, match="has no slice 3"):
        open_pixels(f"{folder}#slice=3")


def test_a_slide_that_doesnt_know_its_micrometres_isnt_read_at_any(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", noise(100, 90), None)
    with open_pixels(path) as pixels:
        assert pixels.spacing is None
    with pytest.raises(DataError, match=r"how many micrometres.*own_mpp="):
        open_pixels(f"{path}#mpp=0.5")
    odd = write_ome(tmp_path / "b.ome.tif", noise(100, 90), "YXS", size=(300, "µm"))
    with open_pixels(odd) as pixels:
        assert pixels.spacing is None and "which no slide has" in pixels.notes[0]


def test_pictures_and_plain_pyramids_keep_their_readers(tmp_path: Path) -> None:
    image = noise(150, 130)
    with tifffile.TiffWriter(tmp_path / "p.tif") as file:
        options = {"photometric": "rgb", "tile": (64, 64), "metadata": None, "resolutionunit": "CENTIMETER"}
        file.write(image, resolution=(20_000, 20_000), **options)
        file.write(halved(image, 2), subfiletype=1, resolution=(10_000, 10_000), **options)
    assert slide_kind(tmp_path / "p.tif") is None
    with open_image(tmp_path / "p.tif") as file:
        assert np.array_equal(np.asarray(file.rgb(None)), image)
    with open_pixels(tmp_path / "p.tif") as pixels:
        assert pixels.spacing is None and np.array_equal(pixels.read().transpose(1, 2, 0), image)
    with open_pixels(f"{tmp_path}/p.tif#mpp=1") as pixels:  # asked for as a slide it is one
        assert np.array_equal(pixels.read().transpose(1, 2, 0), halved(image, 2))
    tifffile.imwrite(tmp_path / "o.ome.tif", image, photometric="rgb", metadata={"axes": "YXS"})
    assert slide_kind(tmp_path / "o.ome.tif") is None
    load_image(tmp_path / "p.tif").save(tmp_path / "p.png")
    with pytest.raises(DataError, match="isn't a slide"):
        open_pixels(f"{tmp_path}/p.png#mpp=1")


def test_images_beside_the_slide_are_left_out_and_several_are_named(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for name, side in (("Scan", 90), ("Label Image", 20), ("Macro", 30)):
            file.write(noise(side, side), photometric="rgb", metadata={"axes": "YXS", "Name": name})
    with open_pixels(tmp_path / "a.ome.tif") as pixels:
        assert pixels.size == (90, 90)
    with tifffile.TiffWriter(tmp_path / "b.ome.tif", ome=True) as file:
        for side in (90, 70):
            file.write(noise(side, side), photometric="rgb", metadata={"axes": "YXS", "Name": SECRET})
    with pytest.raises(DataError, match=r"holds 2 images.*series=2") as caught:
        open_pixels(tmp_path / "b.ome.tif")
    assert SECRET not in str(caught.value)
    with open_pixels(f"{tmp_path}/b.ome.tif#series=2") as pixels:
        assert pixels.size == (70, 70)


LEICA = """<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection
 name="{secret}" sizeX="400000" sizeY="300000"><image name="{secret}"><creationDate>2020-01-01</creationDate>
 <device model="SCN400" version="1"/><pixels sizeX="200" sizeY="128"><dimension sizeX="200" sizeY="128" r="0" ifd="0"/>
 <dimension sizeX="50" sizeY="32" r="1" ifd="1"/></pixels><view sizeX="100000" sizeY="64000" offsetX="50000"
 offsetY="30000"/><scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>
 <numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>
 </illuminationSettings></scanSettings></image><image name="macro"><pixels><dimension sizeX="60" sizeY="40" r="0"
 ifd="2"/></pixels><view sizeX="400000" sizeY="300000" offsetX="0" offsetY="0"/></image></collection></scn>"""


def test_a_leica_slides_areas_lie_where_they_were_scanned(tmp_path: Path) -> None:
    image = noise(200, 128)
    with tifffile.TiffWriter(tmp_path / "a.scn") as file:
        options = {"photometric": "rgb", "tile": (64, 64), "metadata": None}
        file.write(image, description=LEICA.format(secret=SECRET), **options)
        file.write(halved(image, 4), **options)
        file.write(halved(image, 4), **options)
    with open_pixels(tmp_path / "a.scn") as pixels:
        assert pixels.size == (800, 600) and pixels.spacing == (0.0005, 0.0005)
        values, valid = pixels.read_valid()
        assert np.array_equal(values[:, 60:188, 100:300].transpose(1, 2, 0), image)
        assert valid[:, 60:188, 100:300].all() and valid[0].sum() == image[..., 0].size
    with open_pixels(f"{tmp_path}/a.scn#mpp=2") as pixels:
        assert np.array_equal(pixels.read((25, 15, 75, 47)).transpose(1, 2, 0), halved(image, 4))


def test_tiles_that_were_never_written_hold_nothing(tmp_path: Path) -> None:
    told = "Aperio Image Library v1|MPP = 0.5"
    tiles = [None if k % 2 else noise(64, 64, seed=k) for k in range(6)]
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        options = {"photometric": "rgb", "tile": (64, 64), "metadata": None, "description": told}
        file.write(iter(tiles), shape=(128, 192, 3), dtype="uint8", **options)
    with open_pixels(tmp_path / "a.svs") as pixels:
        values, valid = pixels.read_valid()
        assert not valid[:, :64, 64:128].any() and valid[:, :64, :64].all()
        assert np.array_equal(values[:, :64, 128:].transpose(1, 2, 0), tiles[2])
    with open_pixels(f"{tmp_path}/a.svs#mpp=1") as pixels:
        assert not pixels.valid((32, 0, 64, 32)).any() and pixels.valid((0, 0, 32, 32)).all()


@pytest.mark.parametrize("kind", ["cut", "tiles", "tags", "tile", "ome"])
def test_damaged_slides_are_one_line_without_their_text(tmp_path: Path, kind: str) -> None:
    path = write_svs(tmp_path / "a.svs", noise(300, 200), compression="jpeg")
    if kind == "ome":
        path = write_ome(tmp_path / "a.ome.tif", noise(300, 200), "YXS", levels=2)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        starts, counts = page.dataoffsets, page.databytecounts
        tags = page.tags["TileOffsets"].valueoffset
    if kind == "cut":
        data = data[: len(data) // 2]
    elif kind == "tiles":
        data[tags : tags + 4] = b"\xff\xff\xff\x7f"
    elif kind == "tags":
        data[4:8] = b"\xf0\xff\xff\xff"
    elif kind == "tile":
        data[starts[3] : starts[3] + counts[3]] = bytes(counts[3])
    else:
        place = bytes(data).index(b"<Pixels")
        data[place : place + 7] = b"<Pix<ls"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught, open_pixels(path) as pixels:
        pixels.read()
    assert "\n" not in str(caught.value) and "DOE" not in str(caught.value)


def test_a_zarr_runs_no_code_and_names_no_other_folder(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    values = noise(64, 64, 1, "uint16")[..., 0][None]
    path = write_zarr(tmp_path / "a.zarr", values, "cyx", levels=1)
    head = path / "0" / ".zarray"
    text = head.read_text()
    start = text.index('"compressor"')
    end = text.index("}", start) + 1 if "{" in text[start : start + 20] else text.index(",", start)
    head.write_text(text[:start] + '"compressor": {"id": "pickle", "protocol": 5}' + text[end:])
    for chunk in (path / "0").iterdir():
        if not chunk.name.startswith("."):
            chunk.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError), open_pixels(path) as pixels:
        pixels.read()
    assert not (tmp_path / "ran").exists()
    other = write_zarr(tmp_path / "b.zarr", values, "cyx", levels=1)
    group = zarr.open_group(other, mode="a")
    scales = group.attrs["multiscales"]
    scales[0]["datasets"][0]["path"] = "../a.zarr/0"
    group.attrs["multiscales"] = scales
    with pytest.raises(DataError, match="outside of its folder"):
        open_pixels(other)


def test_tissue_is_found_by_colour_and_by_light(tmp_path: Path) -> None:
    image = tissue_picture(800, 600, [(200, 200, 90, (200, 60, 120)), (560, 380, 120, (120, 60, 190))])
    image[300:302, 700:702] = (255, 0, 0)  # a speck
    image[190:196, 190:196] = 244  # a hole
    path = write_svs(tmp_path / "a.svs", image, 0.25)
    tissue = find_tissue(str(path))
    truth = np.zeros((600, 800), bool)
    rows, columns = np.mgrid[:600, :800]
    for x, y, radius in ((200, 200, 90), (560, 380, 120)):
        truth |= (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    found = tissue.valid((0, 0, 800, 600))
    assert (found | ~truth).all() and (found & ~truth).mean() < 0.01
    part = find_tissue(f"{path}#mpp=0.5&window=50,40,150,140")
    assert np.abs(part.valid((0, 0, 100, 100)).mean() - found[80:280, 100:300].mean()) < 0.01
    shares = part.shares(np.array([[0, 0, 100, 100], [40, 50, 60, 70]]))
    assert shares == pytest.approx([found[80:280, 100:300].mean(), 1], abs=0.02)
    light = np.stack([(truth * 3000.0 + 100).astype("uint16"), np.full(truth.shape, 90, "uint16")])
    dark = find_tissue(str(write_ome(tmp_path / "f.ome.tif", light, "CYX")))
    assert (dark.valid((0, 0, 800, 600)) | ~truth).all() and (dark.mask_hw & ~truth).mean() < 0.01
    blank = write_svs(tmp_path / "b.svs", np.full((90, 120, 3), 244, np.uint8))
    assert not find_tissue(str(blank)).mask_hw.any()


def test_where_a_part_lies_on_the_finest_level(svs: Path) -> None:
    place = slide_place(f"{svs}#mpp=1.5&window=10,20,60,70")
    assert (
        place is not None and place.scale == (3, 3) and place.corner == (30, 60) and place.mpp == (1.5, 1.5)
    )
    assert np.array_equal(place.to_finest(np.array([[1.0, 2.0]])), [[33, 66]])
    assert place.square_micrometres == pytest.approx(2.25)
