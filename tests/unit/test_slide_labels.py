"""Labels of slides: QuPath's GeoJSON, COCO and masks, at any resolution, with what can't be used told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.slide_files import (
    circle,
    qupath_feature,
    tissue_picture,
    write_ome,
    write_qupath,
    write_svs,
    write_zarr,
)
from vitp.core.errors import ConfigError, DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import detect, read_labels
from vitp.data.formats.crops import cut
from vitp.data.formats.vitp_labels import read_compiled
from vitp.io.images import image_size, load_image
from vitp.io.parts import FilePart, split_address
from vitp.io.slides import slide_place
from vitp.io.tissue import find_tissue
from vitp.records.labels import IGNORE, LabelledSet
from vitp.records.regions import rasterise

PINK, VIOLET = (200, 60, 120), (120, 60, 190)
SQUARE = [(40.0, 60.0), (120.0, 60.0), (120.0, 140.0), (40.0, 140.0)]
HOLE = [(60.0, 80.0), (100.0, 80.0), (100.0, 120.0), (60.0, 120.0)]


def write_set(root: Path, features: list[dict[str, Any]], *, collection: bool = True) -> Path:
    write_svs(root / "a.svs", tissue_picture(400, 300, [(80, 100, 60, PINK), (300, 200, 50, VIOLET)]), 0.25)
    write_qupath(root / "a.geojson", features, collection=collection)
    return root


def read(root: Path, **options: Any) -> LabelledSet:
    return read_labels("auto", root, val=0, test=0, **options)


def test_outlines_holes_and_several_parts_are_read_in_pixels_of_any_resolution(tmp_path: Path) -> None:
    features = [
        qupath_feature([SQUARE, HOLE], "Tumor"),
        qupath_feature([circle(300, 200, 40), circle(200, 40, 20)], "Stroma", kind="detection", parts=2),
    ]
    root = write_set(tmp_path / "set", features)
    assert detect(root).format == "qupath"
    labelled = read(root)
    (item,) = labelled.items
    assert (item.width, item.height, item.spacing) == (400, 300, (0.00025, 0.00025))
    tumor, stroma = item.objects
    assert tumor.box == (40, 60, 120, 140) and len(tumor.holes) == 1 and len(stroma.polygons) == 2
    half = read(root, mpp=0.5)
    assert "slides: 1 of 0.25 µm a pixel: all read at 0.5 µm, with their labels" in half.understood
    (small,) = half.items
    assert small.image.endswith("a.svs#mpp=0.5") and (small.width, small.height) == (200, 150)
    assert small.spacing == (0.0005, 0.0005)
    assert small.objects[0].box == (20, 30, 60, 70)
    filled = rasterise(small.objects[0].polygons, (150, 200), small.objects[0].holes)
    assert filled.sum() == 40 * 40 - 20 * 20 and filled[35, 25] and not filled[50, 40]
    plain = read(write_set(tmp_path / "list", features, collection=False))
    assert plain.items[0].objects == item.objects  # a bare list of features, too


def test_masks_are_drawn_at_the_resolution_that_is_read(tmp_path: Path) -> None:
    root = write_set(tmp_path, [qupath_feature([SQUARE, HOLE], "Tumor"), qupath_feature([HOLE], "Gland")])
    labelled = read(root, semantic="both", mpp=0.5)
    assert labelled.semantic_classes == ("background", "Gland", "Tumor")
    mask = labelled.items[0].semantic()
    wanted = np.zeros((150, 200), np.uint8)
    wanted[30:70, 20:60] = 2
    wanted[40:60, 30:50] = 1
    assert np.array_equal(mask, wanted)
    rest = read(root, semantic=True, rest="ignore")
    assert rest.semantic_classes == ("Gland", "Tumor") and rest.items[0].objects is None
    full = rest.items[0].semantic()
    assert (full == IGNORE).sum() == 400 * 300 - 80 * 80 and full[100, 80] == 0 and full[70, 50] == 1


def test_an_annotation_without_a_class_around_others_has_two_readings(tmp_path: Path) -> None:
    around = [(20.0, 40.0), (150.0, 40.0), (150.0, 160.0), (20.0, 160.0)]
    features = [
        qupath_feature([around], None),
        qupath_feature([SQUARE], "Tumor"),
        qupath_feature([circle(300, 200, 30)], "Tumor"),
    ]
    root = write_set(tmp_path, features)
    with pytest.raises(DataError, match=r"holds others.*-o area=unclassified.*-o unclassified=ignore"):
        read(root)
    area = read(root, area="unclassified").items[0]
    assert [label.box for label in area.objects] == [(40, 60, 120, 140)]
    assert sum(rasterise(one.polygons, (300, 400)).sum() for one in area.ignored) == 400 * 300 - 130 * 120
    ignored = read(root, unclassified="ignore").items[0]
    assert len(ignored.objects) == 2 and [one.box for one in ignored.ignored] == [(20, 40, 150, 160)]


def test_what_is_no_object_is_told_and_never_background(tmp_path: Path) -> None:
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 5]}, "properties": {}}
    point["properties"] = {"objectType": "annotation", "classification": {"name": "Tumor"}}
    features = [
        qupath_feature([SQUARE], "Tumor"),
        qupath_feature([circle(300, 200, 30)], "Ignore*"),
        qupath_feature([circle(200, 250, 20)], None, kind="detection"),
        point,
    ]
    labelled = read(write_set(tmp_path, features))
    (item,) = labelled.items
    assert [label.category for label in item.objects] == ["Tumor"] and len(item.ignored) == 2
    said = "\n".join((*labelled.understood, *labelled.findings))
    assert (
        "Ignore*" in said
        and "features[2]: a detection without a classification; its place is ignored" in said
    )
    assert "features[3]: Point has no area; left out" in said
    with pytest.raises(ConfigError, match="rest"):
        read(tmp_path, rest="tissue")


def test_a_file_belongs_to_the_slide_of_its_name(tmp_path: Path) -> None:
    root = write_set(tmp_path, [qupath_feature([SQUARE], "Tumor")])
    (root / "a.geojson").rename(root / "a.svs - Series 0.geojson")
    assert len(read(root).items) == 1
    write_qupath(root / "other.geojson", [qupath_feature([SQUARE], "Tumor")])
    with pytest.raises(DataError, match="has the name of no image"):
        read(root)


def test_coco_on_slides_follows_the_resolution(tmp_path: Path) -> None:
    write_svs(tmp_path / "images" / "a.svs", tissue_picture(400, 300, [(80, 100, 60, PINK)]), 0.25)
    content = {
        "images": [{"id": 1, "file_name": "a.svs", "width": 400, "height": 300}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [40, 60, 80, 80],
                "segmentation": [[v for point in SQUARE for v in point]],
                "area": 6400,
                "iscrowd": 0,
            }
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    (item,) = read(tmp_path, mpp=1).items
    assert item.objects[0].box == (10, 15, 30, 35) and (item.width, item.height) == (100, 75)
    assert item.objects[0].polygons == ((10, 15, 30, 15, 30, 35, 10, 35),)


def mask_of(image: np.ndarray) -> np.ndarray:
    return ((image[..., 0] == PINK[0]) + 2 * (image[..., 0] == VIOLET[0])).astype(np.uint8)


@pytest.mark.parametrize("kind", ["png", "pyramid", "finer"])
def test_masks_on_another_grid_lie_on_their_slides(tmp_path: Path, kind: str) -> None:
    image = tissue_picture(403, 298, [(80, 100, 60, PINK), (300, 200, 50, VIOLET)])
    write_svs(tmp_path / "images" / "a.svs", image, 0.25)
    masks = tmp_path / "masks"
    masks.mkdir()
    coarse = mask_of(image)[2:296:4, 2:400:4]
    if kind == "png":
        Image.fromarray(coarse).save(masks / "a.png")
    elif kind == "pyramid":  # at 1 µm, with a pyramid of its own
        write_ome(masks / "a.tif", coarse, "YX", size=(1.0, "µm"), levels=2)
    else:
        Image.fromarray(np.kron(mask_of(image), np.ones((2, 2), np.uint8))).save(masks / "a.png")
    labelled = read(tmp_path, mpp=0.5, classes="rest=0,pink=1,violet=2")
    assert any("have other pixels than their slides" in line for line in labelled.understood)
    (item,) = labelled.items
    found, truth = item.semantic(), mask_of(image)[1::2, 1::2]
    assert found.shape == (item.height, item.width) == (149, 202)
    assert (found[:149, :201] != truth[:149, :201]).mean() < (0.02 if kind != "finer" else 0.003)
    cropped = cut(labelled, 64, 0, tmp_path / "crops")
    for crop in cropped.items:
        x, y = (int(word) for word in crop.id.partition("@")[2].split(","))
        assert np.array_equal(crop.semantic(), found[y : y + crop.height, x : x + crop.width])


def test_a_mask_of_other_proportions_is_refused(tmp_path: Path) -> None:
    write_svs(tmp_path / "images" / "a.svs", tissue_picture(400, 300, [(80, 100, 60, PINK)]), 0.25)
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.zeros((100, 100), np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match="same proportions"):
        read(tmp_path, classes="rest=0,pink=1")


def test_crops_are_windows_with_tissue_and_one_slide_is_in_one_split(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for number in range(4):
        blobs = [(100, 120, 60, PINK), (500, 400, 70, VIOLET)]
        write_svs(root / f"s{number}.svs", tissue_picture(640 + number, 512, blobs), 0.25)
        features = [
            qupath_feature([circle(x, y, r)], name) for (x, y, r, _), name in zip(blobs, "ab", strict=True)
        ]
        features.append(qupath_feature([circle(600, 40, 12)], "b"))  # labelled, though there is no tissue
        write_qupath(root / f"s{number}.geojson", features)
    options = {"crop": 64, "val": 0.25, "test": 0.25}
    summary = compile_labels(root, "auto", tmp_path / "out", mpp=0.5, **options)
    assert any("show no tissue and hold no label; left out" in line for line in summary.understood)
    compiled = read_compiled(tmp_path / "out")
    assert {item.spacing for item in compiled.items} == {(0.0005, 0.0005)}
    splits: dict[str, set[str]] = {}
    for item in compiled.items:
        splits.setdefault(item.group, set()).add(item.split)
        assert "#" in item.image and "mpp=0.5" in item.image
    assert len(splits) == 4 and all(len(sides) == 1 for sides in splits.values())
    corner = next(item for item in compiled.items if item.id.endswith("@256,0"))
    assert [label.category for label in corner.objects] == ["b"]
    image = np.asarray(load_image(corner.image))
    assert image.shape == (64, 64, 3) and (image == 244).all()
    assert not (tmp_path / "out" / "crops").exists()
    # What runs read of a compiled set is what compile wrote: scaled once.
    seen = read_labels("vitp", tmp_path / "out")
    for item, same in zip(seen.items, compiled.items, strict=True):
        assert item.objects == same.objects and item.width == same.width == 64
    with pytest.raises(ConfigError, match=r"at 0\.5 micrometres a pixel already"):
        read_labels("vitp", tmp_path / "out", mpp=1)
    everything = compile_labels(root, "auto", tmp_path / "all", mpp=0.5, tissue=False, **options)
    assert sum(one.images for one in everything.splits.values()) > sum(
        one.images for one in summary.splits.values()
    )


def test_slides_of_one_patient_are_in_one_split(tmp_path: Path) -> None:
    names = [f"TCGA-A{k % 4}-{1000 + k % 4}-01Z-00-DX{1 + k // 4}.{k:04x}" for k in range(8)]
    for number, name in enumerate(names):
        write_svs(
            tmp_path / f"{name}.svs",
            tissue_picture(96, 64, [(40, 30, 15 + number, PINK)]),
            side_images=False,
            factors=(),
        )
        write_qupath(tmp_path / f"{name}.geojson", [qupath_feature([circle(40, 30, 20)], "gland")])
    labelled = read_labels("auto", tmp_path, val=0.25, test=0.25)
    assert "patients: 4, by the barcodes in the names of their files" in labelled.understood
    sides: dict[str, set[str]] = {}
    for item in labelled.items:
        assert item.group.startswith("patient-")
        sides.setdefault(Path(item.image).name[:12], set()).add(item.split)
    assert len(sides) == 4 and all(len(own) == 1 for own in sides.values())
    assert {split for own in sides.values() for split in own} == {"train", "val", "test"}


def test_only_slides_have_micrometres(tmp_path: Path) -> None:
    root = tmp_path / "classes"
    for name in "ab":
        (root / name).mkdir(parents=True)
        for number in range(2):
            image = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / name / f"{number}.png")
    with pytest.raises(ConfigError, match="isn't a slide"):
        read_labels("folders", root, mpp=0.5)
    with pytest.raises(ConfigError, match="give micrometres"):
        read_labels("folders", root, mpp="fine")


def test_a_zarr_is_one_image_of_a_folder(tmp_path: Path) -> None:
    values = np.moveaxis(tissue_picture(200, 150, [(80, 70, 50, PINK)]), 2, 0)
    write_zarr(tmp_path / "a.zarr", values, "cyx", version=3, mpp=0.25)
    write_qupath(tmp_path / "a.geojson", [qupath_feature([circle(80, 70, 50)], "gland")])
    (item,) = read(tmp_path, mpp=0.5).items
    assert item.image.endswith("a.zarr#mpp=0.5") and (item.width, item.height) == (100, 75)


def test_slides_without_a_resolution_are_read_as_they_are(tmp_path: Path) -> None:
    write_svs(tmp_path / "a.svs", tissue_picture(200, 150, [(80, 70, 50, PINK)]), None)
    write_qupath(tmp_path / "a.geojson", [qupath_feature([circle(80, 70, 50)], "gland")])
    labelled = read(tmp_path)
    assert "slides: 1 of unknown resolution: read at their own pixels" in "\n".join(labelled.understood)
    with pytest.raises(DataError, match=r"1 of 1 slides don't say how many micrometres") as alone:
        read(tmp_path, mpp=0.5, no_mpp="leave_out")
    assert alone.value.fix is not None and "leave_out" not in alone.value.fix
    for name in "bcdefgh":
        write_svs(
            tmp_path / f"{name}.svs",
            tissue_picture(200, 150, [(80, 70, 50, PINK)]),
            0.25 if name < "d" else None,
        )
        write_qupath(tmp_path / f"{name}.geojson", [qupath_feature([circle(80, 70, 50)], "gland")])
    with pytest.raises(
        DataError,
        match=r"6 of 8 slides .* of them: a.svs, d.svs, e.svs, f.svs, g.svs and 1 more; -o no_mpp=0\.25 states .*; -o no_mpp=leave_out",
    ):
        read(tmp_path, mpp=0.5)
    rest = read(tmp_path, mpp=0.5, no_mpp="leave_out")
    assert [Path(item.image).name for item in rest.items] == ["b.svs#mpp=0.5", "c.svs#mpp=0.5"]
    assert "h.svs: doesn't say how many micrometres its pixels have: left out" in rest.findings
    assert len(rest.findings) == 6
    for wrong in ("guess", 0, True, 51):
        with pytest.raises(ConfigError, match="choose refuse or leave_out, or give the micrometres"):
            read(tmp_path, mpp=0.5, no_mpp=wrong)
    assert tifffile.TiffFile(tmp_path / "a.svs").is_svs


def test_a_resolution_that_files_do_not_say_can_be_stated(tmp_path: Path) -> None:
    picture = tissue_picture(200, 150, [(80, 70, 50, PINK)])
    root = tmp_path / "set"
    for name, mpp in (("a", None), ("b", 0.5)):
        write_svs(root / f"{name}.svs", picture, mpp)
        write_qupath(root / f"{name}.geojson", [qupath_feature([SQUARE], "gland")])
    told = read(root, mpp=1, no_mpp=0.25)
    assert (
        "slides: 1 of 0.25 µm a pixel, as no_mpp states; 1 of 0.5 µm a pixel: all read at 1 µm, with their labels"
        in told.understood
    )
    stated, said = told.items
    assert Path(stated.image).name == "a.svs#mpp=1&own_mpp=0.25" and Path(said.image).name == "b.svs#mpp=1"
    # Four pixels of a quarter of a micrometre are one of a micrometre.
    assert (stated.width, stated.height, stated.spacing) == (50, 37, (0.001, 0.001))
    assert stated.objects[0].box == (10, 15, 30, 35) and said.objects[0].box == (20, 30, 60, 70)
    # The slide holds that level: its pixels are read as they are, and tissue is where it is.
    level = tifffile.TiffFile(root / "a.svs").series[0].levels[1].asarray()
    assert (np.asarray(load_image(stated.image)) == level).all()
    found = find_tissue(stated.image)
    assert found.shares(np.array([[10, 8, 30, 28], [40, 28, 50, 38]])).round().tolist() == [1, 0]
    # At its own pixels it has a size, too.
    own = read(root, no_mpp=0.25).items[0]
    assert (own.spacing, own.width) == ((0.00025, 0.00025), 200) and own.image.endswith("a.svs#own_mpp=0.25")
    assert slide_place(own.image).square_micrometres == pytest.approx(0.0625)

    compiled = compile_labels(root, "auto", tmp_path / "out", mpp=1, no_mpp=0.25, crop=32, val=0, test=0)
    assert any("as no_mpp states" in line for line in compiled.understood)
    items = read_labels("vitp", tmp_path / "out").items
    assert any("mpp=1&own_mpp=0.25" in item.image for item in items)
    with pytest.raises(ConfigError, match=r"at 0\.25 micrometres a pixel already"):
        read_labels("vitp", tmp_path / "out", no_mpp=0.5)
    compile_labels(root, "auto", tmp_path / "fine", crop=32, val=0, test=0)
    with pytest.raises(ConfigError, match="is at its own pixels already"):
        read_labels("vitp", tmp_path / "fine", mpp=1)


def test_a_stated_resolution_contradicts_no_file(tmp_path: Path) -> None:
    picture = tissue_picture(96, 64, [(40, 30, 20, PINK)])
    write_svs(tmp_path / "a.svs", picture, 0.5)
    write_qupath(tmp_path / "a.geojson", [qupath_feature([SQUARE], "gland")])
    with pytest.raises(
        ConfigError, match=r"states 0\.25 micrometres a pixel, but no image is a slide that doesn't"
    ):
        read(tmp_path, no_mpp=0.25)
    with pytest.raises(DataError, match=r"says 0\.5 µm a pixel itself"):
        load_image(f"{tmp_path / 'a.svs'}#mpp=1&own_mpp=0.25")
    # A plain TIFF is a slide where a resolution is stated of it, and 0.1234567 stays what it is.
    tifffile.imwrite(tmp_path / "plain.tif", picture, photometric="rgb", tile=(32, 32))
    part = FilePart(mpp=0.5, own_mpp=0.1234567)
    assert str(part) == "mpp=0.5&own_mpp=0.1234567" and split_address(f"x.tif#{part}")[1] == part
    assert image_size(f"{tmp_path / 'plain.tif'}#mpp=0.5&own_mpp=0.25") == (48, 32)
    with pytest.raises(DataError, match="doesn't say how many micrometres") as unsaid:
        load_image(f"{tmp_path / 'plain.tif'}#mpp=0.5")
    assert "own_mpp=" in unsaid.value.fix
