"""The channels of a set: what is declared, what is measured, what is refused, and what stays the same in each file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.band_files import BANDS, MASK_CLASSES, class_folders, mask_scenes, write_bands
from vitp.core.errors import ConfigError, DataError
from vitp.data.check import check_records
from vitp.data.compile import compile_labels
from vitp.data.fingerprint import labels_digest
from vitp.data.formats import read_labels
from vitp.data.formats.channels import agreed
from vitp.data.formats.vitp_labels import read_channels
from vitp.data.seen import SeenBands, lone_image
from vitp.data.shards import write_shards
from vitp.data.sources import open_sources, read_mixture
from vitp.io.images import load_image, load_planes
from vitp.records.channels import PICTURE, Channel, Channels
from vitp.report.records_page import show_records


def ramps(count: int, bands: int, dtype: str = "uint16", size: int = 16, seed: int = 0) -> list[np.ndarray]:
    """Return files of values from 0 to 3000, each of another part of that range."""
    rng = np.random.default_rng(seed)
    return [
        np.sort(rng.integers(100 * n, 100 * n + 1000, (bands, size * size)), axis=1)
        .reshape(bands, size, size)
        .astype(dtype)
        for n in range(count)
    ]


def test_pictures_have_none(tmp_path: Path) -> None:
    for number, mode in enumerate(("L", "RGB", "RGBA", "L", "RGB", "RGB")):
        path = tmp_path / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new(mode, (16, 16), 40 * number).save(path)
    labelled = read_labels("folders", tmp_path)
    assert labelled.channels is None
    assert not any("bands" in line for line in labelled.understood)


def test_all_bands_of_the_files_are_channels_scaled_by_the_training_images(tmp_path: Path) -> None:
    values = ramps(12, 4)
    labelled = read_labels("folders", class_folders(tmp_path, values, BANDS[:4]), val=0.25, test=0.25)
    channels = labelled.channels
    assert channels is not None and channels.bands == BANDS[:4]
    train = [int(item.id[-3:]) for item in labelled.items if item.split == "train"]
    assert 0 < len(train) < 12
    for band, channel in enumerate(channels.channels):
        own = np.concatenate([values[number][band].ravel() for number in train])
        assert (channel.low, channel.high) == pytest.approx(np.percentile(own, (2, 98)))
    (line,) = [line for line in labelled.understood if line.startswith("bands")]
    assert line.startswith("bands B2, B3, B4, B8 (uint16): 0–255 from ")
    assert "2nd to 98th percentile of the training images" in line and line.endswith("shown as B2, B3, B4")


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_one_band_is_grey_as_rgb_and_a_value_is_the_same_grey_in_each_file(
    tmp_path: Path, dtype: str
) -> None:
    values = ramps(8, 1, dtype)
    for one in values:
        one[0, 0, 0] = 1000
    labelled = read_labels("folders", class_folders(tmp_path, values))
    channels = labelled.channels
    assert channels is not None and len(channels) == 3 and channels.channels == (channels.channels[0],) * 3
    seen = [load_planes(item.image, channels=channels)[:, 0, 0].tolist() for item in labelled.items]
    assert len({tuple(pixel) for pixel in seen}) == 1
    assert 0 < seen[0][0] < 255
    # Each file by itself makes another grey of it.
    lone = {np.asarray(load_image(item.image))[0, 0, 0] for item in labelled.items}
    assert len(lone) > 1


def test_tiles_of_a_mosaic_have_no_seams(tmp_path: Path) -> None:
    slope_HW = (np.arange(64)[None] * 40 + np.arange(64)[:, None] * 10).astype(np.uint16)
    for number, (y, x) in enumerate((y, x) for y in (0, 32) for x in (0, 32)):
        write_bands(tmp_path / f"class{number % 2}" / f"{number}.tif", slope_HW[None, y : y + 32, x : x + 32])
    labelled = read_labels("folders", tmp_path, val=0, test=0)
    tiles = {item.id[-1]: load_planes(item.image, channels=labelled.channels)[0] for item in labelled.items}
    mosaic = np.block([[tiles["0"], tiles["1"]], [tiles["2"], tiles["3"]]])
    assert labelled.channels is not None
    assert np.array_equal(mosaic, labelled.channels.scale(slope_HW[None].repeat(3, 0))[0])


@pytest.mark.parametrize(
    ("options", "value", "grey"),
    [
        ({"range": "-1000,1000"}, 0.0, 128),  # HU
        ({"range": "-25,5", "transform": "db"}, 0.1, 128),  # −10 dB
        ({"range": "0,10000"}, 2000.0, 51),  # reflectance
    ],
)
def test_units_keep_their_meaning(tmp_path: Path, options: dict[str, str], value: float, grey: int) -> None:
    files = [np.full((1, 8, 8), value, np.float32) * (n + 1) for n in range(4)]
    for one in files:
        one[0, 0, 0] = value
    labelled = read_labels("folders", class_folders(tmp_path, files), **options)
    greys = [load_planes(item.image, channels=labelled.channels)[0, 0, 0] for item in labelled.items]
    assert greys == [grey] * 4


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_nodata_does_not_move_the_range_and_is_black(tmp_path: Path, dtype: str) -> None:
    plain, holed = ramps(6, 2, dtype), ramps(6, 2, dtype)
    for number, one in enumerate(holed):
        one[:, :2] = -9999
        write_bands(tmp_path / "holed" / f"class{number % 2}" / f"f{number}.tif", one, nodata=-9999)
        write_bands(tmp_path / "plain" / f"class{number % 2}" / f"f{number}.tif", plain[number][:, 2:])
    found = [read_labels("folders", tmp_path / name, val=0, test=0) for name in ("holed", "plain")]
    assert found[0].channels == found[1].channels
    planes_CHW = load_planes(found[0].items[0].image, channels=found[0].channels)
    assert not planes_CHW[:, :2].any() and planes_CHW[:, 2:].any()


def test_options_choose_bands_ranges_and_composite(tmp_path: Path) -> None:
    root = class_folders(tmp_path, ramps(4, 4), BANDS[:4])
    labelled = read_labels(
        "folders", root, bands="b8,B04,B3", range="0,3000,0,2000,0,1000", composite="B04,B3,b8"
    )
    channels = labelled.channels
    assert channels is not None
    assert [(c.band, c.low, c.high) for c in channels.channels] == [
        ("b8", 0, 3000),
        ("B04", 0, 2000),
        ("B3", 0, 1000),
    ]
    assert channels.shown == (1, 2, 0)
    picture = np.asarray(load_image(labelled.items[0].image, channels=channels))
    assert np.array_equal(
        picture, load_planes(labelled.items[0].image, channels=channels)[[1, 2, 0]].transpose(1, 2, 0)
    )


def test_a_file_beside_the_data_declares_the_same(tmp_path: Path) -> None:
    root = class_folders(tmp_path, ramps(4, 4))  # its bands are numbered only
    (root / "bands.yaml").write_text(
        "bands:\n"
        "  - {name: red, number: 3, wavelength: 665, range: [0, 3000]}\n"
        "  - {name: nir, number: 4}\n"
        "  - {name: green, number: 2, wavelength: 560}\n"
        "  - {name: blue, number: 1, wavelength: 490}\n"
        "range: [0, 2000]\n"
    )
    channels = read_labels("folders", root).channels
    assert channels is not None
    assert [(c.band, c.number, c.high) for c in channels.channels] == [
        ("red", 3, 3000),
        ("nir", 4, 2000),
        ("green", 2, 2000),
        ("blue", 1, 2000),
    ]
    assert channels.shown == (0, 2, 3)
    values_CHW = ramps(4, 4)[0]
    seen_CHW = load_planes(root / "class0" / "f000.tif", channels=channels)
    assert np.array_equal(seen_CHW, channels.scale(values_CHW[[2, 3, 1, 0]]))
    # Options go before it.
    chosen = read_labels("folders", root, bands="nir,red").channels
    assert chosen is not None
    assert [(c.band, c.number, c.high) for c in chosen.channels] == [("nir", 4, 2000), ("red", 3, 3000)]


def test_names_for_all_numbered_bands_are_taken_in_order(tmp_path: Path) -> None:
    root = class_folders(tmp_path, ramps(4, 3))
    channels = read_labels("folders", root, bands="VV,VH,ratio", range="0,1000").channels
    assert channels is not None and [c.number for c in channels.channels] == [1, 2, 3]
    with pytest.raises(DataError, match=r"lacks the bands VV, VH; it has 1, 2, 3.*number"):
        read_labels("folders", root, bands="VV,VH")


def test_values_of_eight_bits_stand_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [rng.integers(10, 90, (5, 8, 8)).astype(np.uint8) for _ in range(4)]
    labelled = read_labels("folders", class_folders(tmp_path, files))
    assert np.array_equal(load_planes(labelled.items[0].image, channels=labelled.channels), files[0])
    assert any("as they stand" in line for line in labelled.understood)


@pytest.mark.parametrize(
    ("other", "names", "message"),
    [
        (np.zeros((3, 16, 16), np.uint16), BANDS[:3], "has 3 bands .*, while f000.tif has 4 bands"),
        (np.zeros((4, 16, 16), np.float32), BANDS[:4], "of float32, while f000.tif has .* of uint16"),
        (np.zeros((4, 16, 16), np.uint16), BANDS[2:], "B4, B8, B11, B12.* while f000.tif has 4 bands .B2"),
    ],
)
def test_files_that_differ_are_refused(
    tmp_path: Path, other: np.ndarray, names: tuple[str, ...], message: str
) -> None:
    root = class_folders(tmp_path, ramps(4, 4), BANDS[:4])
    write_bands(root / "class1" / "g.tif", other, names)
    with pytest.raises(DataError, match=message) as caught:
        read_labels("folders", root)
    assert caught.value.where is not None and caught.value.where.endswith("g.tif")


def test_pictures_among_rasters_are_refused(tmp_path: Path) -> None:
    root = class_folders(tmp_path, ramps(4, 1))
    Image.new("L", (16, 16), 9).save(root / "class1" / "p.png")
    with pytest.raises(DataError, match=r"p.png: has 1 band .*uint8, while f000.tif has 1 band .* of uint16"):
        read_labels("folders", root)


def test_a_raster_among_pictures_is_the_one_that_is_named(tmp_path: Path) -> None:
    for number, mode in enumerate(("RGB", "L", "P", "RGBA", "L")):
        (tmp_path / "class0").mkdir(exist_ok=True)
        Image.new(mode, (16, 16), number).save(tmp_path / "class0" / f"a{number}.png")
    (tmp_path / "class1").mkdir()
    Image.fromarray(np.full((16, 16), 999, np.uint16)).save(tmp_path / "class1" / "wide.png")
    with pytest.raises(
        DataError, match=r"wide.png: has 1 band .*uint16, while a0.png has 3 bands .* of uint8"
    ):
        read_labels("folders", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": "B2,B9"}, "lacks the bands B9; it has B2, B3, B4, B8"),
        ({"bands": "B2", "range": "0"}, "no pairs of numbers"),
        ({"bands": "B2,B3", "range": "0,1,2,3,4,5"}, "3 for 2 bands"),
        ({"bands": "B2", "range": "5,5"}, "doesn't rise"),
        ({"range": "0,1,2,3"}, "several values for bands that aren't named"),
        ({"bands": "B2", "transform": "log"}, "transform"),
        ({"bands": "B2,B3", "composite": "B2,B3,B4"}, "B4 is none of the bands that are seen"),
        ({"composite": "B8,B4"}, "composite: B8, B4 are 2 bands; name three"),
        ({"composite": "B8"}, "composite: B8 is one band; name three"),
        ({"bands": ""}, "is empty"),
    ],
)
def test_declarations_that_do_not_fit_are_refused(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    root = class_folders(tmp_path, ramps(4, 4), BANDS[:4])
    with pytest.raises((ConfigError, DataError), match=message):
        read_labels("folders", root, **options)


def test_compiled_sets_keep_their_channels_and_older_ones_have_none(tmp_path: Path) -> None:
    root = mask_scenes(tmp_path / "data", 6, size=32)
    compile_labels(
        root, "masks", tmp_path / "set", classes=MASK_CLASSES, range="0,4000", composite="B8,B4,B3"
    )
    read = read_labels("vitp", tmp_path / "set").channels
    assert read is not None and read.bands == BANDS and read == read_channels(tmp_path / "set")
    (entry,) = read_mixture(tmp_path / "set" / "mixture.json")
    assert entry.channels == read
    assert [source.channels for source in open_sources(tmp_path / "set")[0]] == [read] * 3
    head = json.loads((tmp_path / "set" / "labels" / "set.json").read_text())
    assert head.pop("channels")["channels"][0] == {
        "band": "B2",
        "low": 0,
        "high": 4000,
        "transform": "linear",
    }
    (tmp_path / "set" / "labels" / "set.json").write_text(json.dumps(head))
    assert read_channels(tmp_path / "set") is None


def test_channels_count_in_hashes_where_there_are_any(tmp_path: Path) -> None:
    root = mask_scenes(tmp_path / "data", 4, size=32)
    hashes, digests = set(), set()
    for name, options in (("a", {}), ("b", {"range": "0,4000"}), ("c", {"bands": "B2,B3,B4,B8,B11"})):
        made = compile_labels(root, "masks", tmp_path / name, classes=MASK_CLASSES, **options)
        hashes.add(made.content_hash)
        digests.add(labels_digest(read_labels("vitp", tmp_path / name)))
    assert len(hashes) == len(digests) == 3


def test_crops_are_windows_of_the_files(tmp_path: Path) -> None:
    root = mask_scenes(tmp_path / "data", 4, size=48)
    compile_labels(root, "masks", tmp_path / "set", crop=32, overlap=16, classes=MASK_CLASSES)
    assert not (tmp_path / "set" / "crops").exists()
    labelled = read_labels("vitp", tmp_path / "set")
    assert len(labelled.items) == 16 and {(i.width, i.height) for i in labelled.items} == {(32, 32)}
    item = next(item for item in labelled.items if item.id.endswith("@16,16"))
    assert item.image.endswith(".tif#window=16,16,48,48")
    whole_CHW = load_planes(item.image.partition("#")[0], channels=labelled.channels)
    assert np.array_equal(load_planes(item.image, channels=labelled.channels), whole_CHW[:, 16:, 16:])
    assert item.semantic is not None and item.semantic().shape == (32, 32)
    report = check_records(tmp_path / "set")
    assert not [finding for finding in report.findings if finding.severity == "error"]
    records = open_sources(tmp_path / "set")[0][0].records
    shards = write_shards(
        [records[n] for n in range(3)], tmp_path / "shards", "set", channels=labelled.channels
    )
    assert shards
    (entry,) = read_mixture(tmp_path / "shards" / "mixture.json")
    assert entry.channels == labelled.channels
    for number in range(3):
        again_CHW = load_planes(entry.records[number].images[0], channels=entry.channels)
        assert np.array_equal(again_CHW, load_planes(records[number].images[0], channels=entry.channels))


def test_check_names_files_that_no_channels_are_declared_for(tmp_path: Path) -> None:
    root = mask_scenes(tmp_path / "data", 4, size=32)
    compile_labels(root, "masks", tmp_path / "set", classes=MASK_CLASSES)
    table = json.loads((tmp_path / "set" / "mixture.json").read_text())
    table["data"]["channels"]["channels"][0]["band"] = "B99"
    (tmp_path / "set" / "mixture.json").write_text(json.dumps(table))
    (first, *_) = [f for f in check_records(tmp_path / "set").findings if f.kind == "bands"]
    assert first.severity == "error" and "lacks the bands B99" in first.what
    del table["data"]["channels"]
    (tmp_path / "set" / "mixture.json").write_text(json.dumps(table))
    (first, *_) = [f for f in check_records(tmp_path / "set").findings if f.kind == "bands"]
    assert "no 8-bit picture" in first.what and "-o bands" in first.fix


def test_pages_show_the_stated_composite(tmp_path: Path) -> None:
    root = mask_scenes(tmp_path / "data", 4, size=32)
    compile_labels(root, "masks", tmp_path / "set", classes=MASK_CLASSES, composite="B12,B8,B4")
    page = show_records(tmp_path / "set", tmp_path / "page.html", count=2).path.read_text()
    assert "B12, B8, B4" in page


def test_wide_files_never_pass_as_pictures(tmp_path: Path) -> None:
    wide = write_bands(tmp_path / "wide.tif", ramps(1, 1)[0])
    Image.fromarray(ramps(1, 1)[0][0]).save(tmp_path / "wide.png")
    for path in (wide, tmp_path / "wide.png", write_bands(tmp_path / "six.tif", ramps(1, 6)[0])):
        with pytest.raises(DataError, match=r"no 8-bit picture.*compile the set again"):
            SeenBands().load(str(path))


def test_a_lone_file_is_stretched_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_bands(tmp_path / "wide.tif", ramps(1, 1)[0])
    image = lone_image(path)
    assert image.getextrema() == ((0, 255),) * 3
    assert "stretched between its own 2nd and 98th percentile" in caplog.text
    caplog.clear()
    Image.new("L", (8, 8), 7).save(tmp_path / "p.png")
    assert lone_image(tmp_path / "p.png").getpixel((0, 0)) == (7, 7, 7)
    assert not caplog.text


def test_sets_of_a_mixture_must_agree() -> None:
    one = Channels(channels=(Channel(band="B4", high=3000),))
    shown = one.model_copy(update={"composite": (0, 0, 0)})
    assert agreed([("a", one), ("b", shown)]) == one
    assert agreed([("a", None), ("b", None)]) is None
    with pytest.raises(DataError, match="b: reads B4 from 0 to 2000, while a reads B4 from 0 to 3000"):
        agreed([("a", one), ("b", Channels(channels=(Channel(band="B4", high=2000),)))])
    with pytest.raises(DataError, match="b: reads pictures, while a reads B4"):
        agreed([("a", one), ("b", None)])


def test_scaled_values_can_be_written_back() -> None:
    channels = Channels(
        channels=(
            Channel(band="a", low=-25, high=5, transform="db"),
            Channel(band="b", low=100, high=107),
            Channel(band="c"),
        )
    )
    seen_CHW = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(3, 0)
    assert np.array_equal(channels.scale(channels.unscale(seen_CHW)), seen_CHW)


def test_bands_are_found_by_name_or_by_number_in_unnamed_files() -> None:
    channels = Channels(
        channels=(Channel(band="B04", number=3), Channel(band="NIR", number=4), Channel(band="x"))
    )
    assert channels.named_in(("b2", "B4", "nir")) == ("B4", "nir", None)
    assert channels.named_in(("1", "2", "3", "4")) == ("3", "4", None)
    assert PICTURE.is_rgb and not channels.is_rgb
