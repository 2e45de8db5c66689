"""Predictions of rasters from the outside: two dates, files, values, resolutions, damage and restarts."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import Affine

from tests.map_models import PLACES, Brighter, BrightestBand, BrightObjects, channels_of, write_raster
from tests.map_toys import BANDS, WINDOWS, Context, blocks, expected_classes, read, scene
from vitp.core.errors import DataError, VitpError
from vitp.inference import maps
from vitp.inference import raster_files as raster_files_module
from vitp.inference import unfinished as unfinished_module
from vitp.inference.inputs import Unusable, open_ground
from vitp.inference.map_files import write_class_cog, written_by_gdal
from vitp.inference.pictures import classified_raster
from vitp.inference.prediction_files import predict_files
from vitp.inference.raster_files import MapOptions
from vitp.inference.unfinished import is_unfinished, unfinished_folder
from vitp.records.channels import Channel, Channels
from vitp.tasks.base import InputSize, TestSettings
from vitp.tasks.seen import seen_settings


def test_the_later_date_is_warped_onto_the_first(tmp_path: Path) -> None:
    early = np.full((1, 120, 100), 50, np.uint16)
    before = write_raster(tmp_path / "before.tif", early, "utm", nodata=0, names=["B2"])
    # Twice as coarse, its corner 30 px to the left and above: half of the place has become brighter.
    late = np.full((1, 90, 80), 50, np.uint16)
    late[:, :, 40:] = 900
    _, transform = PLACES["utm"]
    coarse = transform @ Affine.translation(-30, -30) @ Affine.scale(2)
    after = write_raster(tmp_path / "after.tif", late, "utm", nodata=0, names=["B2"], transform=coarse)
    said: list[str] = []
    predict_files(
        Brighter(channels_of("B2")), [before], tmp_path / "out", WINDOWS, later=[after], say=said.append
    )
    assert any("warped onto the grid" in note and "covers 100.0 %" in note for note in said)
    found = read(tmp_path / "out" / "label" / "before.tif")
    assert (found[:, :48] == 0).all() and (found[:, 52:] == 1).all()
    moved = transform @ Affine.translation(400, 0)
    far = write_raster(tmp_path / "far.tif", late, "utm", nodata=0, names=["B2"], transform=moved)
    with pytest.raises(DataError, match="doesn't overlap"):
        predict_files(Brighter(channels_of("B2")), [before], tmp_path / "no", WINDOWS, later=[far])
    half = write_raster(
        tmp_path / "half.tif", late, "utm", names=["B2"], transform=transform @ Affine.translation(50, 0)
    )
    predict_files(Brighter(channels_of("B2")), [before], tmp_path / "half", WINDOWS, later=[half])
    found = read(tmp_path / "half" / "label" / "before.tif")
    assert (found[:, :49] == 255).all() and (found[:89, 51:] != 255).all() and (found[91:] == 255).all()


def test_dates_in_two_reference_systems_are_aligned(tmp_path: Path) -> None:
    values = np.kron(np.random.default_rng(0).integers(1, 9, (1, 12, 12)), np.ones((1, 10, 10))) * 100
    before = write_raster(tmp_path / "a.tif", values.astype(np.uint16), "utm", nodata=0, names=["B2"])
    with rasterio.open(before) as file:
        from rasterio.warp import calculate_default_transform, reproject

        place, width, height = calculate_default_transform(
            file.crs, "EPSG:32634", file.width, file.height, *file.bounds, resolution=5
        )
        warped = np.zeros((1, height, width), np.uint16)
        reproject(rasterio.band(file, 1), warped[0], dst_transform=place, dst_crs="EPSG:32634")
    with rasterio.open(
        tmp_path / "b.tif", "w", driver="GTiff", count=1, height=height, width=width, dtype="uint16",
        nodata=0, crs="EPSG:32634", transform=place,
    ) as file:  # fmt: skip
        file.write(warped)
        file.set_band_description(1, "B2")
    predict_files(
        Brighter(channels_of("B2")), [before], tmp_path / "out", WINDOWS, later=[tmp_path / "b.tif"]
    )
    found = read(tmp_path / "out" / "label" / "a.tif")
    assert (found[5:-5, 5:-5] == 0).mean() > 0.97, "the dates lie beside each other"


def test_names_of_files_come_back_in_what_is_written(tmp_path: Path) -> None:
    stems = ["plain", "a b", "a#b", "50%", "%41", "c:d", "e?f", "g&h", "x!y", "q;r", "é", "日本", "new'x"]
    bright = np.full((3, 40, 50), 5, np.uint8)
    bright[:, 10:20, 10:25] = 200
    for stem in stems:
        write_raster(tmp_path / f"maps/{stem}.tif", bright, "utm")
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(bright.transpose(1, 2, 0)).save(tmp_path / f"pictures/{stem}.png")
    for kind in ("gpkg", "geojson"):
        out = tmp_path / kind
        predict_files(BrightObjects(), [tmp_path / "maps"], out, WINDOWS, options=MapOptions(vector=kind))
        assert {path.name for path in (out / "vectors").iterdir()} == {f"{stem}.{kind}" for stem in stems}
        plain = (out / f"vectors/plain.{kind}").read_bytes()
        assert all((out / f"vectors/{stem}.{kind}").read_bytes() == plain for stem in stems)
    predict_files(BrightObjects(), [tmp_path / "pictures"], tmp_path / "coco", WINDOWS)
    told = json.loads((tmp_path / "coco/predictions.json").read_text())
    assert {image["file_name"] for image in told["images"]} == {
        str(tmp_path / f"pictures/{stem}.png") for stem in stems
    }
    assert len(told["annotations"]) == len(stems)
    written = {path.name for path in (tmp_path / "coco/geojson").iterdir()}
    assert {name.partition(".")[0] for name in written} == set(stems)


def test_the_files_of_rasters_and_pictures_are_those_of_the_docs(tmp_path: Path) -> None:
    values = blocks(40, 40).astype(np.uint8)
    inputs = tmp_path / "in"
    write_raster(inputs / "placed.tif", values)
    write_raster(inputs / "plain.tif", values, None, tile=48)
    Image.fromarray(values.transpose(1, 2, 0).copy()).save(inputs / "shown.png")

    def files(model: Any, name: str, **wanted: Any) -> set[str]:
        predict_files(model, [inputs], tmp_path / name, WINDOWS, **wanted)
        found = {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*.*")}
        return found - {f"pictures/{each}.png" for each in ("placed", "plain", "shown")}

    options = MapOptions(probabilities=True)
    of_map = {f"masks/placed.{end}" for end in ("tif", "tif.aux.xml")} | {"probabilities/placed.tif"}
    of_map |= {"vectors/placed.gpkg", "vitp_predictions.json"}
    of_pictures = {"classes.txt"}
    for name in ("plain", "shown"):
        of_pictures |= {f"masks/{name}.png", f"geojson/{name}.pixels.geojson"}
    assert files(BrightestBand(), "pictures", options=options) == of_map | of_pictures
    bands = BrightestBand(channels=channels_of("red", "green", "blue", high=255))
    unplaced = {each.replace(".gpkg", ".pixels.geojson") for each in of_map}
    assert files(bands, "bands", options=options) == of_map | {
        each.replace("placed", name) for each in unplaced for name in ("plain", "shown")
    }
    (inputs / "plain.tif").unlink()
    (inputs / "shown.png").unlink()
    change = files(Brighter(), "change", later=[inputs])
    assert change == {"label/placed.tif", "label/placed.tif.aux.xml"} | {
        "vectors/placed.gpkg", "vitp_predictions.json"
    }  # fmt: skip


def test_values_of_another_type_than_the_models_are_said(tmp_path: Path) -> None:
    model = BrightestBand(channels=Channels(channels=tuple(
        Channel(band=name, low=100, high=3000) for name in ("B4", "B8")
    )))  # fmt: skip
    rng = np.random.default_rng(0)

    def said(name: str, values: np.ndarray, nodata: float | None = None, of: Any = model) -> list[str]:
        raster = write_raster(tmp_path / f"{name}.tif", values, nodata=nodata, names=("B4", "B8"))
        lines: list[str] = []
        predict_files(of, [raster], tmp_path / name, WINDOWS, say=lines.append)
        return [line for line in lines if "ranges" in line]

    numbers = rng.integers(200, 2900, (2, 80, 90)).astype(np.uint16)
    ends = numbers.astype(np.float32) / 10_000
    ends[0, 0, :2] = 0, 1
    (line,) = said("reflectance", ends)
    assert line.startswith(str(tmp_path / "reflectance.tif")) and line.endswith(
        ": nearly all of its values lie outside of the ranges that the model knows, or at their very ends "
        "(B4 100–3000, B8 100–3000; here 0–1)"
    )
    assert "here 20200–2" in said("above", numbers + np.uint16(20_000))[0]
    # Pixels that hold nothing don't count: neither as values outside, nor as ones that are known.
    sparse = np.zeros_like(numbers)
    sparse[:, :4, :4] = 1000
    assert said("sparse", sparse, nodata=0) == [] and len(said("undeclared", sparse)) == 1
    sparse[:, :4, :4] = 50
    assert "here 50–50" in said("far", sparse, nodata=0)[0]
    # One band within is enough, and 2 % of the pixels are.
    assert said("known", numbers) == [] and said("one", np.stack([numbers[0], numbers[0] * 0])) == []
    some = np.full_like(numbers, 60_000)
    some[:, :2] = 1000
    assert said("some", some) == []
    # Low and high are in dB, the file's values aren't.
    radar = BrightestBand(channels=Channels(channels=tuple(
        Channel(band=name, low=-20, high=0, transform="db") for name in ("B4", "B8")
    )))  # fmt: skip
    assert "(B4 0.01–1, B8 0.01–1; here 200–" in said("db", numbers, of=radar)[0]
    assert said("power", (numbers / 3000).astype(np.float32), of=radar) == []
    plain = BrightestBand(channels=channels_of("B4", "B8", high=255))
    assert said("black", np.zeros((2, 40, 40), np.uint8), of=plain) == []


def test_one_ground_resolution_is_seen_and_brought_back(tmp_path: Path) -> None:
    fine = write_raster(
        tmp_path / "fine.tif", np.kron(blocks(40, 40), np.ones((1, 3, 3))).astype(np.uint16), names=BANDS
    )
    seen: list[tuple[int, int]] = []

    class Sized(BrightestBand):
        def maps(self, images_BCHW: Any, later_BCHW: Any) -> Any:
            seen.append(tuple(images_BCHW.shape[-2:]))
            return super().maps(images_BCHW, later_BCHW)

    said: list[str] = []
    options = MapOptions(resolution=30)
    predict_files(
        Sized(channels=channels_of(*BANDS)),
        [fine],
        tmp_path / "out",
        WINDOWS,
        options=options,
        say=said.append,
    )
    assert set(seen) == {(32, 32)} and sum(1 for _ in seen) <= 4
    assert any("10 m a pixel and is seen at 30 m" in note for note in said)
    found = read(tmp_path / "out" / "masks" / "fine.tif")
    assert found.shape == (120, 120)
    wanted = expected_classes(np.kron(blocks(40, 40), np.ones((1, 3, 3))).astype(np.uint16))
    assert (found == wanted).mean() > 0.9
    picture = tmp_path / "p.png"
    from PIL import Image

    Image.new("RGB", (40, 40)).save(picture)
    told: list[Unusable] = []
    predict_files(
        BrightestBand(),
        [picture, write_raster(tmp_path / "c.tif", scene(40, 40, 3))],
        tmp_path / "o2",
        WINDOWS,
        options=options,
        tell=told.append,
    )
    assert [one.reason for one in told] == [
        "doesn't say where it lies, so a resolution in metres means nothing"
    ]


def test_a_model_of_pictures_refuses_other_rasters_and_one_of_bands_names_what_is_missing(
    tmp_path: Path,
) -> None:
    good = write_raster(tmp_path / "good.tif", scene(40, 40, 4))
    wide = write_raster(tmp_path / "wide.tif", blocks(40, 40))
    told: list[Unusable] = []
    count, _ = predict_files(BrightestBand(), [good, wide], tmp_path / "out", WINDOWS, tell=told.append)
    assert count == 1
    assert told[0].reason.startswith("has 3 bands (1, 2, 3) of uint16, and the model sees 8-bit RGB; ")
    named = write_raster(tmp_path / "named.tif", blocks(40, 40), names=("B2", "B3", "B4"))
    with pytest.raises(DataError, match="lacks the bands B8; it has B2, B3, B4"):
        predict_files(BrightestBand(channels=channels_of(*BANDS)), [named], tmp_path / "no", WINDOWS)
    four = write_raster(
        tmp_path / "four.tif",
        np.concatenate([scene(40, 40, 4), scene(40, 40, 4)[:1]]),
        names=("nir", "red", "green", "blue"),
    )
    assert predict_files(BrightestBand(), [four], tmp_path / "four", WINDOWS)[0] == 1


def test_damage_that_is_found_late_leaves_that_raster_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_raster(tmp_path / "good.tif", blocks(64, 64), names=BANDS)
    bad = write_raster(tmp_path / "bad.tif", blocks(700, 700), names=BANDS, compress="deflate")
    with rasterio.open(bad) as file:  # a tile that neither lies in a corner nor in the middle
        offset, size = (
            int(file.get_tag_item(f"BLOCK_{what}_9_1", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")
        )
    content = bytearray(bad.read_bytes())
    content[offset : offset + size] = b"\xff" * size
    bad.write_bytes(content)
    told: list[Unusable] = []
    model = BrightestBand(channels=channels_of(*BANDS))
    count, _ = predict_files(model, [bad, good], tmp_path / "out", WINDOWS, tell=told.append)
    assert count == 1 and [Path(one.image).name for one in told] == ["bad.tif"]
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {"good.tif", "good.tif.aux.xml", "good.gpkg", "good.png", "vitp_predictions.json"}


def outputs(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("task", ["segmentation", "instance"])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_an_interrupted_prediction_goes_on_to_the_same_bits(
    tmp_path: Path, task: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if task == "segmentation":
        images = [write_raster(tmp_path / f"{n}.tif", blocks(150, 90, n), names=BANDS) for n in range(2)]
        model: Any = Context(channels=channels_of(*BANDS))
    else:
        images = [write_raster(tmp_path / f"{n}.tif", scene(150, 90, 30, n)) for n in range(2)]
        model = BrightObjects(task)
    predict_files(model, images, tmp_path / "whole", WINDOWS)
    calls = 0
    writer = maps._RawMap if task == "segmentation" else maps
    name = "write" if task == "segmentation" else "_save_objects"
    real = getattr(writer, name)

    def stopping(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > stop:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(writer, name, stopping)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_files(model, images, out, WINDOWS)
    assert not out.exists() and unfinished_folder(out).exists()
    calls = -1000
    for note in unfinished_folder(out).glob(".owner.*"):
        note.rename(note.with_name(note.name.replace("-", "-9", 1)))  # as if another process had left it
    with pytest.raises(VitpError, match="of other settings"):
        predict_files(model, images, out, TestSettings(window=40), resume=True)
    predict_files(model, images, out, WINDOWS, resume=True)
    if task == "segmentation":
        assert calls < -1000 + 2 * 8, "what was done was done again"
    assert outputs(out) == outputs(tmp_path / "whole") and not unfinished_folder(out).exists()


def test_a_kill_after_the_last_file_leaves_nothing_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raster, out = write_raster(tmp_path / "a.tif", scene(60, 40, 4)), tmp_path / "out"
    real = unfinished_module.put_in_place

    def killed(made: Path, place: Path) -> None:
        real(made, place)
        raise KeyboardInterrupt  # the folder of the parts is still there

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(unfinished_module, "put_in_place", killed)
        predict_files(BrightestBand(), [raster], out, WINDOWS)
    whole, folder = outputs(out), unfinished_folder(out)
    assert whole and folder.exists() and not is_unfinished(out)
    for note in folder.glob(".owner.*"):
        note.rename(note.with_name(note.name.replace("-", "-9", 1)))  # as if another process had left it
    predict_files(BrightestBand(), [raster], out, WINDOWS, overwrite=True, resume=True)
    assert outputs(out) == whole and not folder.exists()


def test_a_raster_whose_picture_cannot_be_read_leaves_no_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage that windows don't meet, as of a slide where it has no tissue, is met by the picture, the last file."""
    values = scene(60, 40, 4)
    first, second = (write_raster(tmp_path / name, values) for name in ("a.tif", "a.b.tif"))
    real = raster_files_module.ground_picture

    def damaged(ground: Any, most: int) -> Any:
        if ground.pixels.where == str(first):
            raise DataError("a tile is damaged", where=str(first))
        return real(ground, most)

    monkeypatch.setattr(raster_files_module, "ground_picture", damaged)
    count, left_out = predict_files(BrightestBand(), [second, first], tmp_path / "out", WINDOWS)
    assert count == 1 and [Path(one.image).name for one in left_out] == ["a.tif"]
    maps_of = {"masks/a.b.tif", "masks/a.b.tif.aux.xml", "vectors/a.b.gpkg", "pictures/a.b.png"}
    assert outputs(tmp_path / "out").keys() == maps_of | {"vitp_predictions.json"}


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Let the system refuse what makes a file larger, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("vector", ["gpkg", "geojson"])
def test_files_that_cannot_be_written_are_one_line_and_nothing_is_lost(tmp_path: Path, vector: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3, 150, 200)).astype(np.uint8)
    raster, out = write_raster(tmp_path / "a.tif", noise), tmp_path / "out"
    said: list[str] = []
    with no_file_larger_than(200_000), pytest.raises(VitpError, match=r"can't be written .*; "):
        predict_files(
            BrightestBand(), [raster], out, WINDOWS, options=MapOptions(vector=vector), say=said.append
        )
    assert not out.exists() and said[-1].endswith("the same command with --resume goes on there")
    with (
        no_file_larger_than(10_000),
        pytest.raises(
            VitpError, match=r"can't be written .*check the path and how much may be written there"
        ),
        written_by_gdal(tmp_path),
    ):
        write_class_cog(
            tmp_path / "b.tif", lambda top, bottom: noise[:1, top:bottom] % 3, (150, 200), None, "abc", {}
        )


def test_one_output_has_one_writer(tmp_path: Path) -> None:
    from vitp.core.leftovers import claim

    raster = write_raster(tmp_path / "a.tif", scene(40, 40, 4))
    folder = unfinished_folder(tmp_path / "out")
    folder.mkdir()
    claim(folder)
    with pytest.raises(VitpError, match="is being written by another process"):
        predict_files(BrightestBand(), [raster], tmp_path / "out", WINDOWS)


@pytest.mark.parametrize(
    ("trained", "chosen", "side", "expected"),
    [
        # (window, resize, factor): like training; larger than training; own scale of training; user's choice.
        ({"longest": 96, "scale": 1.0}, {}, 120, (None, None, 1.0)),
        ({"longest": 96, "scale": 1.0}, {}, 256, (96, "none", 1.0)),
        ({"longest": 48, "scale": 2.0}, {}, 256, (96, "none", 2.0)),
        ({"longest": 96, "scale": 1.0}, {"window": 48}, 256, (48, "none", 1.0)),
        (
            {"longest": 96, "scale": 1.0},
            {"resize": InputSize(mode="fixed", size=64)},
            900,
            (None, "fixed", 1.0),
        ),
        (None, {}, 256, (None, None, 1.0)),
        (None, {}, 900, (96, "none", 1.0)),
        (None, {"window": 96}, 256, (96, "none", 1.0)),
        (None, {"window": 48}, 256, (48, None, 1.0)),
    ],
)
def test_no_image_larger_than_those_of_training_is_squeezed(
    trained: Any, chosen: Any, side: int, expected: Any
) -> None:
    """Squeezed, a raster that is many times larger than the tiles of training is classified by chance."""
    description = {} if trained is None else {"trained": trained}
    model: Any = SimpleNamespace(
        input_size=InputSize(mode="fixed", size=96),
        description=description,
        backbone=SimpleNamespace(image_size=(96, 96)),
    )
    seen, factor, note = seen_settings(model, TestSettings(**chosen), (side, side), None)
    mode = None if seen.resize is None else seen.resize.mode
    assert (seen.window, mode, factor) == expected
    assert (note is not None) == (expected[1] == "none")


def test_a_raster_that_holds_nothing_is_of_no_class(tmp_path: Path) -> None:
    model: Any = SimpleNamespace(backbone=SimpleNamespace(in_channels=None))
    empty = write_raster(tmp_path / "a.tif", np.zeros((3, 40, 50), np.uint8), nodata=0)
    with pytest.raises(DataError, match=r"a\.tif: holds nothing: all of its pixels are nodata"):
        classified_raster(model, str(empty), TestSettings())
    late = np.zeros((3, 1100, 50), np.uint8)
    late[:, 1099, 49] = 7
    for values_CHW, nodata in ((late, 0), (np.zeros((3, 40, 50), np.uint8), None)):
        path = write_raster(tmp_path / "b.tif", values_CHW, nodata=nodata)
        with open_ground(str(path), None) as ground:
            assert not ground.is_empty()
