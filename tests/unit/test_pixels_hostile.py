"""Rasters that are damaged, too large, or name what they shouldn't: one clear line, and nothing on standard error."""

from __future__ import annotations

import http.server
import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile

from tests.raster_files import UTM, values, write_raster
from tests.tiff_files import write_tiff
from vitp.core.errors import DataError
from vitp.core.remote import VARIABLE
from vitp.io import contract, rasters
from vitp.io.images import image_size, load_image, load_label_pixels
from vitp.io.open_pixels import open_pixels


def _refused(address: str | Path) -> str:
    """Return the words by which a file is refused, whichever step finds out."""
    with pytest.raises(DataError) as caught, open_pixels(address) as pixels:
        pixels.read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["tif", "strips", "cog", "jp2", "dat", "plain", "jpeg"])
def test_cut_files_are_refused_in_one_line(
    tmp_path: Path, share: float, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    five_CHW = values(5, "uint8" if kind == "jpeg" else "uint16", (130, 140))
    options = {
        "tif": {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"},
        "strips": {"compress": "lzw", "interleave": "band"},
        "cog": {"driver": "COG", "compress": "deflate", "blocksize": 128},
        "plain": {"blockysize": 8},
        "jpeg": {"compress": "jpeg", "tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "band"},
        "jp2": {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"},
        "dat": {"driver": "ENVI"},
    }[kind]
    path = write_raster(tmp_path / f"a.{kind}", five_CHW, **options)
    with open_pixels(path) as pixels:
        assert kind == "jpeg" or np.array_equal(pixels.read(), five_CHW)
    data = path.read_bytes()
    for side in tmp_path.glob("a.*.aux.xml"):
        side.unlink()
    capfd.readouterr()
    path.write_bytes(data[: int(len(data) * share)])
    said = _refused(path)
    assert str(path) in said
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("seed", range(25))
def test_any_changed_bytes_give_values_or_one_line(
    tmp_path: Path, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_raster(tmp_path / "a.tif", values(5, "uint16", (40, 50)), nodata=7, compress="deflate")
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for place in rng.integers(0, len(data) if seed % 2 else 400, 6):
        data[place] = rng.integers(256)
    path.write_bytes(data)
    try:
        with open_pixels(path) as pixels:
            pixels.read()
            pixels.valid(level=1)
    except DataError as error:
        assert "\n" not in str(error)
    assert capfd.readouterr().err == ""


def test_sizes_beyond_memory_are_refused_before_room_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=300_000, height=300_000, count=4, dtype="uint16", SPARSE_OK=True,
        tiled=True, BIGTIFF="YES", crs=UTM[0], transform=rasterio.Affine(*UTM[1]),
    ):  # fmt: skip
        pass
    with open_pixels(path) as pixels:
        assert pixels.size == (300_000, 300_000)
        with pytest.raises(DataError, match=r"300000×300000 px of 4 bands take 720\.0 GB.*FILE#window"):
            pixels.read()
        assert not pixels.read((299_000, 299_000, 299_100, 299_050)).any()
        assert pixels.read((0, 0, 4096, 2048), ["1"], level=11).shape == (1, 1, 2)
    assert image_size(path) == (300_000, 300_000)
    assert image_size(f"{path}#window=5,5,9,8") == (4, 3)


def test_levels_of_large_windows_are_read_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted_CHW = values(2, "uint16", (203, 151))
    path = write_raster(tmp_path / "a.tif", wanted_CHW)
    with open_pixels(path) as pixels:
        whole_CHW = pixels.read(level=2)
        monkeypatch.setattr(contract, "_STRIP_PIXELS", 4000)
        np.testing.assert_array_equal(pixels.read(level=2), whole_CHW)


def test_pieces_beyond_memory_are_refused(tmp_path: Path) -> None:
    """A bomb: few bytes that stand for one piece of 40 GB."""
    path = write_tiff(tmp_path / "a.tif", np.zeros((4, 4, 5), np.uint16), deflate=True)
    data = path.read_bytes()
    for tag in (256, 257, 278):
        for kind in (3, 4):
            head = struct.pack("<HHI", tag, kind, 1)
            at = data.find(head)
            if at >= 0:
                data = data[:at] + struct.pack("<HHII", tag, 4, 1, 65_000) + data[at + 12 :]
    path.write_bytes(data)
    assert "too large to be decoded" in _refused(path)


@pytest.mark.parametrize(("interleave", "compress", "refused"), [
    ("pixel", "deflate", True), ("band", "deflate", False), ("pixel", "none", False),
])  # fmt: skip
def test_pieces_count_all_bands_that_are_decoded_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interleave: str, compress: str, refused: bool
) -> None:
    """One strip of 64 × 64 px: 8 KB a band, 32 KB with the other bands. Without compression rows are read alone."""
    path, wanted_CHW = tmp_path / "a.tif", values(4, "uint16", (64, 64))
    with rasterio.open(
        path, "w", driver="GTiff", width=64, height=64, count=4, dtype="uint16", tiled=False, blockysize=64,
        interleave=interleave, compress=compress, crs="EPSG:32633", transform=rasterio.Affine(1, 0, 5e5, 0, -1, 5e6),
    ) as file:  # fmt: skip
        file.write(wanted_CHW)
    monkeypatch.setattr(rasters, "_LARGEST_BLOCK_BYTES", 20_000)
    if refused:
        assert "too large to be decoded" in _refused(path)
        return
    with open_pixels(path) as pixels:
        np.testing.assert_array_equal(pixels.read(), wanted_CHW)


def _vrt(path: Path, source: str, *, relative: int = 0, more: str = "") -> Path:
    path.write_text(
        '<VRTDataset rasterXSize="83" rasterYSize="61"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        f"</SimpleSource>{more}</VRTRasterBand></VRTDataset>"
    )
    return path


def test_a_vrt_names_rasters_of_this_machine(tmp_path: Path) -> None:
    wanted_CHW = values(1, "uint16")
    write_raster(tmp_path / "a.tif", wanted_CHW)
    (tmp_path / "inner").mkdir()
    for vrt in (
        _vrt(tmp_path / "a.vrt", "a.tif", relative=1),
        _vrt(tmp_path / "b.vrt", str(tmp_path / "a.tif")),
        _vrt(tmp_path / "inner" / "c.vrt", "../a.vrt", relative=1),
    ):
        with open_pixels(vrt) as pixels:
            np.testing.assert_array_equal(pixels.read(), wanted_CHW)


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """Address of a server on this machine, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", paths
        server.shutdown()
        thread.join()


def test_no_connection_is_opened_unless_it_is_allowed(
    tmp_path: Path, asked: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    url, paths = asked
    service = f"&lt;GDAL_WMS&gt;&lt;Service name='TMS'&gt;&lt;ServerUrl&gt;{url}/x"
    sources = [
        f"/vsicurl/{url}/a.tif",
        f"/vsicurl_streaming/{url}/a.tif",
        f"{url}/a.tif",
        f"WMS:{url}/a",
        f"/vsizip//vsicurl/{url}/a.zip/a.tif",
        f"NETCDF:&quot;/vsicurl/{url}/a.nc&quot;:x",
        f"vrt://{url}/a.tif",
        f"{service}&lt;/ServerUrl&gt;&lt;/Service&gt;&lt;/GDAL_WMS&gt;",
        "/vsis3/bucket/a.tif",
        "/vsistdin/",
    ]
    for number, source in enumerate(sources):
        said = _refused(_vrt(tmp_path / f"{number}.vrt", source))
        assert "VRT" in said or "no connection" in said, source
    (tmp_path / "service.xml").write_text(
        f"<GDAL_WMS><Service name='TMS'><ServerUrl>{url}/x</ServerUrl></Service></GDAL_WMS>"
    )
    assert "no raster" in _refused(_vrt(tmp_path / "x.vrt", "service.xml", relative=1))
    assert "is not an image" in _refused(tmp_path / "service.xml")
    overview = f"<Overview><SourceFilename>/vsicurl/{url}/o.tif</SourceFilename></Overview>"
    write_raster(tmp_path / "a.tif", values(1, "uint16"))
    _refused(_vrt(tmp_path / "o.vrt", "a.tif", relative=1, more=overview))
    # A file of its own may name where its pyramid lies.
    (tmp_path / "a.tif.aux.xml").write_text(
        f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/vsicurl/{url}/o.tif</MDI></Metadata>'
        "</PAMDataset>"
    )
    with open_pixels(tmp_path / "a.tif") as pixels:
        pixels.read(level=1)
    assert "no connection is opened unless it is asked for" in _refused(f"{url}/a.tif")
    assert paths == []
    monkeypatch.setenv(VARIABLE, "http")
    assert f"{url}/a.tif" in _refused(f"{url}/a.tif")
    assert paths


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<VRTDataset", "can't be parsed"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><VRTDataset rasterXSize="9" rasterYSize="9"/>', "is not an image"),
        (
            '<VRTDataset rasterXSize="9" rasterYSize="9"><!--<!ENTITY--></VRTDataset>',
            "declares entities",
        ),
        ('<VRTDataset rasterXSize="9" rasterYSize="9"></VRTDataset>', "can't be read"),
    ],
)
def test_vrts_of_other_forms_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.vrt").write_text(text)
    assert words in _refused(tmp_path / "a.vrt")


def test_a_vrt_that_names_itself_or_no_raster_is_refused(tmp_path: Path) -> None:
    assert "VRT of VRTs that doesn't end" in _refused(_vrt(tmp_path / "a.vrt", "a.vrt", relative=1))
    (tmp_path / "secret.txt").write_text("secret " * 2000)
    assert "no raster" in _refused(_vrt(tmp_path / "b.vrt", "secret.txt", relative=1))
    assert "no file here" in _refused(_vrt(tmp_path / "c.vrt", "gone.tif", relative=1))
    assert "no file here" in _refused(_vrt(tmp_path / "d.vrt", str(tmp_path)))
    raw = tmp_path / "e.vrt"
    raw.write_text(
        '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1" '
        'subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">/etc/passwd</SourceFilename>'
        "</VRTRasterBand></VRTDataset>"
    )
    assert "takes the bytes of other files for pixels" in _refused(raw)


def test_a_vrt_over_a_damaged_file_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_raster(tmp_path / "a.tif", values(1, "uint16"), compress="deflate", blockysize=4)
    vrt = _vrt(tmp_path / "a.vrt", "a.tif", relative=1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 900] = b"\0" * 900
    path.write_bytes(data)
    # Of the file behind it, too, and which of its blocks.
    assert str(vrt) in _refused(vrt)
    assert re.search(r"in the block of column 0, row \d+ of band 1 of a\.tif, from 0\)", _refused(vrt))
    assert capfd.readouterr().err == ""


def _read(address: str | Path) -> np.ndarray:
    with open_pixels(address) as pixels:
        return pixels.read()


@pytest.mark.parametrize("layout", [{"tiled": True, "blockxsize": 16, "blockysize": 16}, {"blockysize": 8}])
@pytest.mark.parametrize(
    ("dtype", "read"),
    [("uint16", _read), ("uint8", _read), ("uint8", load_image), ("uint8", load_label_pixels)],
)
def test_a_flipped_bit_of_a_deflated_tile_is_found(
    tmp_path: Path, layout: dict[str, Any], dtype: str, read: Callable[[str | Path], object]
) -> None:
    """Decoders may stop before the checksum of a tile; what reads pixels doesn't, in pictures, labels and rasters."""
    path = write_raster(tmp_path / "a.tif", values(3, dtype), compress="deflate", predictor=2, **layout)
    read(path)
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        across = -(-page.imagewidth // 16)
    rng = np.random.default_rng(0)
    for number in rng.integers(len(segments), size=15):
        offset, count = segments[number]
        data = bytearray(whole)
        data[offset + int(rng.integers(2, count))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        row, column = divmod(int(number) % (across * -(-61 // 16)), across)
        place = (
            f"the tile of column {column}, row {row}"
            if "tiled" in layout
            else f"the strip from row {8 * (number % 8)}"
        )
        with pytest.raises(DataError, match=f"a.tif.*: is damaged: {place}"):
            read(path)
        if "tiled" in layout:
            # A window is damaged where a tile of its own is.
            box = (16 * column, 16 * row, min(16 * column + 16, 83), min(16 * row + 16, 61))
            with pytest.raises(DataError, match=f"is damaged: {place}"):
                read(f"{path}#window={','.join(map(str, box))}")
            if read is _read:  # pictures of unnamed bands are decoded as a whole
                other = (0, 0, 16, 16) if number % (across * 4) else (32, 32, 48, 48)
                read(f"{path}#window={','.join(map(str, other))}")
    path.write_bytes(whole)
    read(path)


@pytest.mark.parametrize("read", [_read, load_image])
def test_a_jpeg_tile_without_its_end_is_refused(tmp_path: Path, read: Callable[[str | Path], object]) -> None:
    """A decoder would make grey of it."""
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32, "photometric": "YCBCR"}
    path = write_raster(tmp_path / "a.tif", values(3, "uint8"), compress="jpeg", interleave="pixel", **tiles)
    read(path)
    with tifffile.TiffFile(path) as file:
        offset, count = (
            places[4] for places in (file.pages.first.dataoffsets, file.pages.first.databytecounts)
        )
    data = bytearray(path.read_bytes())
    data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged: the tile of column 1, row 1, from 0"):
        read(path)


@pytest.mark.parametrize("read", [_read, load_image])
def test_runs_of_packbits_that_do_not_end_with_their_strip_are_refused(
    tmp_path: Path, read: Callable[[str | Path], object]
) -> None:
    image_CHW = np.repeat(np.arange(24, dtype=np.uint8), 5)[None, None].repeat(30, axis=1)
    path = write_raster(tmp_path / "a.tif", image_CHW, compress="packbits", blockysize=10)
    read(path)
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.dataoffsets[1]
    data = bytearray(path.read_bytes())
    assert data[offset] == 257 - 5  # the first five pixels of a row have one value
    data[offset] = 257 - 9
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged: the strip from row 10 on"):
        read(path)
