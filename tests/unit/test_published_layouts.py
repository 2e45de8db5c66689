"""Sets of pathology and satellites, and usual formats, in the files and folders in which their publishers hand them out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.layout_toys import by_name, drawn, mask, noise, photo, text
from tests.raster_files import values, write_raster
from vitp.core.errors import DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels
from vitp.records.labels import LabelledImage


def area(item: LabelledImage, value: int = 1) -> int:
    assert item.semantic is not None
    return int((item.semantic() == value).sum())


def write(path: Path, content: Any) -> Path:
    return text(path, json.dumps(content))


# --- pathology


def vertices(*points: tuple[float, float]) -> str:
    return "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)


def region(points: str, kind: int = 0, negative: int = 0) -> str:
    return f'<Region Id="1" Type="{kind}" NegativeROA="{negative}"><Vertices>{points}</Vertices></Region>'


def imagescope(path: Path, *layers: str) -> None:
    told = "".join(layers)
    text(path, f'<Annotations MicronsPerPixel="0.25">{told}</Annotations>')


def layer(number: int, regions: str, name: str = "", attribute: str = '"Description" Value=""') -> str:
    head = f'<Annotation Id="{number}" Name="{name}"><Attributes><Attribute Name={attribute}/></Attributes>'
    return f"{head}<Regions>{regions}</Regions></Annotation>"


SQUARE = vertices((4, 4), (24, 4), (24, 24), (4, 24))
INNER = vertices((8, 8), (12, 8), (12, 12), (8, 12))


def test_imagescope_cuts_negative_regions_out(tmp_path: Path) -> None:
    photo(tmp_path / "Tissue Images/a.tif")
    ellipse = region(vertices((28, 4), (38, 24)), kind=2)
    regions = region(SQUARE) + region(INNER, negative=1) + ellipse
    imagescope(tmp_path / "Annotations/a.xml", layer(1, regions, "tumor"))
    found = read_labels("auto", tmp_path, semantic="both")
    (item,) = found.items
    assert drawn(found) == {"tumor": 2}
    assert area(item, found.semantic_classes.index("tumor")) == pytest.approx(
        400 - 16 + np.pi * 5 * 10, abs=6
    )


def test_imagescope_layers_without_a_name_are_named_in_order(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    imagescope(tmp_path / "a.xml", layer(1, region(SQUARE)))
    with pytest.raises(DataError, match=r"no names.*-o classes=NAME names it"):
        read_labels("auto", tmp_path)
    assert drawn(read_labels("auto", tmp_path, classes="nucleus")) == {"nucleus": 1}
    imagescope(tmp_path / "a.xml", layer(1, region(SQUARE)), layer(2, region(INNER) * 1))
    with pytest.raises(DataError, match=r"layers 1, 2.*-o classes=NAME,NAME"):
        read_labels("auto", tmp_path, classes="nucleus")
    (item,) = read_labels("auto", tmp_path, classes="gland,nucleus").items
    assert {label.category: label.box for label in item.objects or ()} == {
        "gland": (4, 4, 24, 24),
        "nucleus": (8, 8, 12, 12),
    }


def test_imagescope_names_classes_in_attributes_and_loses_no_ruler_in_silence(tmp_path: Path) -> None:
    for name in "ab":
        photo(tmp_path / f"{name}.png")
    imagescope(tmp_path / "a.xml", layer(1, region(SQUARE), attribute='"Epithelial" Id="0" Value=""'))
    imagescope(tmp_path / "b.xml", layer(1, region(vertices((1, 1), (9, 9)), kind=4), name="Epithelial"))
    found = read_labels("auto", tmp_path, classes="Epithelial")
    assert drawn(found) == {"Epithelial": 1} and [item.id for item in found.items] == ["a"]
    assert any("b.xml: region 1: Epithelial: a ruler has no area" in line for line in found.findings)


def asap(path: Path, *annotations: tuple[str, str, list[tuple[float, float]]]) -> None:
    rows = [
        f'<Annotation Name="A" Type="{kind}" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for group, kind, points in annotations
    ]
    text(
        path,
        '<?xml version="1.0"?>',
        f"<ASAP_Annotations><Annotations>{''.join(rows)}</Annotations></ASAP_Annotations>",
    )


BIG, SMALL = [(4, 4), (24, 4), (24, 24), (4, 24)], [(8.0, 8.0), (12, 8), (12, 12), (8, 12)]


def test_asap_reads_what_camelyon_cuts_out(tmp_path: Path) -> None:
    for name in ("tumor/tumor_001", "tumor/tumor_002", "normal/normal_001"):
        photo(tmp_path / f"training/{name}.tif")
    triangle = [(30.0, 30.0), (38, 30), (38, 38)]
    for n in (1, 2):
        rows = ("_0", "Polygon", BIG), ("_2", "Polygon", SMALL), ("_1", "Spline", triangle)
        asap(tmp_path / f"training/lesion_annotations/tumor_00{n}.xml", *rows)
    found = read_labels("auto", tmp_path, semantic="both")
    assert drawn(found) == {"tumor": 4} and len(found.items) == 2
    assert area(found.items[0], found.semantic_classes.index("tumor")) == pytest.approx(400 - 16 + 32, abs=5)
    assert "images: 1 have no XML file (training/normal/normal_001.tif); left out" in found.findings


@pytest.mark.parametrize("tumor", ["_0", "_1"])
def test_what_camelyon_cuts_out_is_never_tumor(tmp_path: Path, tumor: str) -> None:
    photo(tmp_path / "a.png")
    asap(tmp_path / "a.xml", (tumor, "Polygon", BIG), ("_2", "Polygon", SMALL))
    (item,) = read_labels("auto", tmp_path).items
    assert [(label.category, len(label.holes)) for label in item.objects or ()] == [("tumor", 1)]
    (item,) = read_labels("auto", tmp_path, holes=[]).items
    assert sorted(label.category for label in item.objects or ()) == ["_2", "tumor"]


def test_an_island_in_a_hole_stays_whole(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    island = [(9.5, 9.5), (10.5, 9.5), (10.5, 10.5), (9.5, 10.5)]
    asap(tmp_path / "a.xml", ("_0", "Polygon", BIG), ("_2", "Polygon", SMALL), ("_0", "Polygon", island))
    (item,) = read_labels("auto", tmp_path).items
    assert sorted((label.box, len(label.holes)) for label in item.objects or ()) == [
        ((4, 4, 24, 24), 1),
        ((9.5, 9.5, 10.5, 10.5), 0),
    ]


def test_imagescope_cuts_out_of_the_same_layer(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    hole = region(SQUARE) + region(INNER, negative=1)
    imagescope(tmp_path / "a.xml", layer(1, hole, "tumor"), layer(2, region(SQUARE), "tissue"))
    (item,) = read_labels("auto", tmp_path).items
    assert {label.category: len(label.holes) for label in item.objects or ()} == {"tumor": 1, "tissue": 0}


def test_asap_groups_are_classes_and_others_can_be_cut_out(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    asap(
        tmp_path / "a.xml",
        ("stroma", "Polygon", BIG),
        ("lumen", "Rectangle", SMALL),
        ("None", "Polygon", SMALL),
    )
    (item,) = read_labels("auto", tmp_path).items
    assert sorted(label.category for label in item.objects or ()) == ["lumen", "stroma"]
    assert [label.box for label in item.ignored] == [(8, 8, 12, 12)]
    (item,) = read_labels("auto", tmp_path, holes="lumen").items
    assert [(label.category, len(label.holes)) for label in item.objects or ()] == [("stroma", 1)]
    with pytest.raises(
        DataError, match='no annotation is of the group "vessel"; there are None, lumen, stroma'
    ):
        read_labels("auto", tmp_path, holes="vessel")


# --- Sentinel-2


def bands(folder: Path, seed: int = 0, *names: str, place: bool = True, prefix: str = "") -> None:
    for n, name in enumerate(names or ("B02", "B03", "B04", "B8A")):
        metres = 20 if name == "B8A" and place else 10
        ground = ("EPSG:32633", (metres, 0.0, 500_000.0 + 5000 * seed, 0.0, -metres, 5e6)) if place else None
        folder.mkdir(parents=True, exist_ok=True)
        size = (200 // metres, 200 // metres)
        write_raster(folder / f"{prefix}{name}.tif", values(1, "uint16", size, 10 * seed + n), ground)


def test_bigearthnet_patches_have_the_classes_beside_their_bands(tmp_path: Path) -> None:
    for i in range(3):
        folder = tmp_path / f"BigEarthNet-v1.0/S2A_{i}"
        bands(folder, i, prefix=f"S2A_{i}_")
        write(folder / f"S2A_{i}_labels_metadata.json", {"labels": ["Pastures", "Sea"][: 1 + i % 2]})
    found = read_labels("auto", tmp_path)
    assert found.scene_classes == ("Pastures", "Sea")
    assert {item.id: item.tags for item in found.items} == {
        "S2A_0": ("Pastures",),
        "S2A_1": ("Pastures", "Sea"),
        "S2A_2": ("Pastures",),
    }
    assert found.items[0].width == 20 and found.channels is not None
    assert found.channels.bands == ("B02", "B03", "B04", "B8A")


def test_bigearthnet_2_has_a_table_of_patches(tmp_path: Path) -> None:
    table = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = []
    for i, split in enumerate(("train", "validation", "test")):
        bands(tmp_path / f"BigEarthNet-S2/tile/tile_{i}", i, prefix=f"tile_{i}_")
        write_raster(
            _parent(tmp_path / f"Reference_Maps/tile/tile_{i}/tile_{i}_reference_map.tif"),
            values(1, "uint16", (20, 20), i),
            None,
        )
        rows.append({"patch_id": f"tile_{i}", "labels": ["Pastures"], "split": split, "country": "Austria"})
    parquet.write_table(
        table.Table.from_pylist([*rows, rows[0] | {"patch_id": "tile_9"}]), tmp_path / "metadata.parquet"
    )
    found = read_labels("auto", tmp_path)
    assert [(item.split, item.tags) for item in found.items] == [
        (s, ("Pastures",)) for s in ("train", "val", "test")
    ]
    assert any("tile_9 is missing; left out" in line for line in found.findings)


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_oscd_pairs_of_bands(tmp_path: Path) -> None:
    name = "Onera Satellite Change Detection dataset - "
    for i, (region, split) in enumerate((("beirut", "Train"), ("paris", "Test"), ("rio", ""))):
        for date in (1, 2):
            bands(tmp_path / f"{name}Images/{region}/imgs_{date}_rect", 2 * i + date, place=False)
            photo(tmp_path / f"{name}Images/{region}/pair/img{date}.png")
        write(
            tmp_path / f"{name}Images/{region}/{region}.geojson",
            {"type": "FeatureCollection", "features": []},
        )
        if split:
            changed_HW = np.zeros((20, 20), np.uint8)
            changed_HW[2:7, 3:9] = 255
            Image.fromarray(changed_HW).convert("RGB").save(
                _parent(tmp_path / f"{name}{split} Labels/{region}/cm/cm.png")
            )
    found = read_labels("auto", tmp_path)
    assert {item.id: item.split for item in found.items} == {"beirut": "train", "paris": "test"}
    item = by_name(found)["paris"]
    assert item.change is not None and item.change().sum() == 30
    assert item.second_image is not None and item.second_image.endswith("paris/imgs_2_rect")
    assert "rio: no mask; left out" in found.findings


# --- PanNuke


def pannuke(root: Path, fold: int, value: float = 200.0) -> None:
    images, masks = np.full((2, 32, 32, 3), value), np.zeros((2, 32, 32, 6))
    masks[:, 2:8, 3:9, 0], masks[:, 12:20, 3:9, 0], masks[0, 20:30, 20:30, 4] = 3, 7, 8
    for kind, array in (("images", images), ("masks", masks)):
        np.save(_parent(root / f"Fold {fold}/{kind}/fold{fold}/{kind}.npy"), array)
    np.save(root / f"Fold {fold}/images/fold{fold}/types.npy", np.array(["Breast", "Colon"]))


def test_pannuke_nuclei_tissues_and_folds(tmp_path: Path) -> None:
    for fold in (1, 2):
        pannuke(tmp_path / "set", fold)
    with pytest.raises(DataError, match="compile it first"):
        read_labels("auto", tmp_path / "set")
    found = read_labels("pannuke", tmp_path / "set", images_to=tmp_path / "images")
    assert drawn(found) == {"neoplastic": 8, "epithelial": 2}
    assert [(item.scene, item.fold) for item in found.items] == [
        ("Breast", 0),
        ("Colon", 0),
        ("Breast", 1),
        ("Colon", 1),
    ]
    assert [label.box for label in found.items[1].objects or ()] == [(3, 2, 9, 8), (3, 12, 9, 20)]
    assert np.asarray(Image.open(found.items[0].image)).tolist() == np.full((32, 32, 3), 200).tolist()
    summary = compile_labels(tmp_path / "set", "auto", tmp_path / "out")
    assert (tmp_path / "out/images/Fold 1/images/fold1/00001.png").is_file()
    assert any("channels 1–5" in line for line in summary.understood)


def test_pannuke_of_other_arrays_is_refused(tmp_path: Path) -> None:
    pannuke(tmp_path, 1, value=300.0)
    with pytest.raises(DataError, match="outside of 0–255"):
        read_labels("pannuke", tmp_path, images_to=tmp_path / "a")
    np.save(tmp_path / "Fold 1/masks/fold1/masks.npy", np.zeros((2, 32, 32)))
    with pytest.raises(DataError, match="not N × N × N × 6"):
        read_labels("pannuke", tmp_path, images_to=tmp_path / "b")


# --- layouts of formats that are read anyway


def test_dota_in_the_folders_of_its_versions(tmp_path: Path) -> None:
    for split in ("train", "val"):
        photo(tmp_path / split / "images" / f"P{split}.png")
        for kind, row in (("", "2 2 9 2 9 9 2 9 plane 0"), ("_hbb", "1 1 10 1 10 10 1 10 plane 0")):
            folder = tmp_path / split / f"labelTxt-v1.5/DOTA-v1.5_{split}{kind}"
            text(folder / f"P{split}.txt", "imagesource:GoogleEarth", "gsd:0.1", row)
    found = read_labels("auto", tmp_path)
    assert [(item.split, [o.box for o in item.objects or ()]) for item in found.items] == [
        ("train", [(2, 2, 9, 9)]),
        ("val", [(2, 2, 9, 9)]),
    ]
    # Beside them, labels of a split in the usual folder.
    photo(tmp_path / "test/images/Ptest.png")
    text(tmp_path / "test/labelTxt/Ptest.txt", "2 2 9 2 9 9 2 9 plane 0")
    assert Counter(item.split for item in read_labels("auto", tmp_path).items) == {
        "train": 1,
        "val": 1,
        "test": 1,
    }
    text(tmp_path / "train/labelTxt-v1.0/labelTxt/Ptrain.txt", "2 2 9 2 9 9 2 9 plane 0")
    with pytest.raises(DataError, match=r"several versions or splits: labelTxt-v1.0, labelTxt-v1.5"):
        read_labels("auto", tmp_path)


def test_the_names_of_numbered_classes_are_taken(tmp_path: Path) -> None:
    rows = [",Filename,Label,ClassName"]
    for n, kind in enumerate(("Forest", "River", "Pasture") * 2):
        noise(tmp_path / f"{kind}/{kind}_{n}.png", n)
        rows.append(f"{n},{kind}/{kind}_{n}.png,{n % 3},{kind}")
    text(tmp_path / "train.csv", *rows)
    assert read_labels("auto", tmp_path).scene_classes == ("Forest", "Pasture", "River")
    assert read_labels("auto", tmp_path, class_column="Label").scene_classes == ("0", "1", "2")


@pytest.mark.parametrize("other", ["category", "tags"])
def test_a_second_column_of_classes_is_no_name_of_the_first(tmp_path: Path, other: str) -> None:
    for n in range(4):
        noise(tmp_path / f"{n}.png", n)
    text(tmp_path / "train.csv", f"image,label,{other}", *(f"{n}.png,{n % 2},animal" for n in range(4)))
    assert read_labels("auto", tmp_path).scene_classes == ("0", "1")


def test_tables_in_several_folders_without_a_split_are_refused(tmp_path: Path) -> None:
    for n in range(4):
        noise(tmp_path / f"images/{n}.png", n)
    for name, classes in (("labels", "ab"), ("quality", "gp")):
        text(tmp_path / f"meta/{name}.csv", "image,label", *(f"{n}.png,{classes[n % 2]}" for n in range(4)))
    with pytest.raises(DataError, match=r"labels.csv.*quality.csv"):
        read_labels("classes", tmp_path)


def test_tables_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    for split, count in (("Training", 4), ("Validation", 2)):
        rows = [f"{split}_{i},{float(i % 2)},{float(1 - i % 2)}" for i in range(count)]
        for i in range(count):
            noise(tmp_path / f"ISIC2018_Task3_{split}_Input/{split}_{i}.jpg", i)
        name = f"ISIC2018_Task3_{split}_GroundTruth"
        text(tmp_path / name / f"{name}.csv", "image,MEL,NV", *rows)
    found = read_labels("auto", tmp_path)
    assert Counter((item.split, item.scene) for item in found.items) == {
        ("train", "MEL"): 2,
        ("train", "NV"): 2,
        ("val", "MEL"): 1,
        ("val", "NV"): 1,
    }


def test_tables_apart_from_class_folders_are_about_something_else(tmp_path: Path) -> None:
    for n in range(6):
        noise(tmp_path / ("oak", "elm")[n % 2] / f"{n}.png", n)
    text(tmp_path / "meta/weather.csv", "image,class", *(f"{n},sunny" for n in range(6)))
    assert read_labels("auto", tmp_path).scene_classes == ("elm", "oak")


def test_folders_named_after_the_set_and_a_split_are_no_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i in range(12):
            noise(tmp_path / f"cars_{split}/{i + 1:05}.jpg", 100 * len(split) + i)
    text(tmp_path / "devkit/cars_train_annos.mat", "MATLAB 5.0 MAT-file")
    with pytest.raises(
        DataError, match=r"splits and no classes.*cars_train_annos.mat; MATLAB's files aren't read"
    ):
        read_labels("auto", tmp_path)


def test_arrays_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "camelyonpatch_level_2_split_train_x.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(
        DataError, match=r"train_x.h5 are there.*read; images in arrays aren't read: write each as a file"
    ):
        read_labels("auto", tmp_path)


def test_folders_beside_those_that_are_read_are_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photo(tmp_path / f"sat/train/{name}_sat.jpg")
        mask(tmp_path / f"sat/train/{name}_mask.png")
        photo(tmp_path / f"sat/valid/v{name}_sat.jpg")
        photo(tmp_path / f"potsdam/2_Ortho_RGB/top_{name}_RGB.tif")
        photo(tmp_path / f"potsdam/4_Ortho_RGBIR/top_{name}_RGBIR.tif")
        mask(tmp_path / f"potsdam/5_Labels/top_{name}_label.tif")
    assert "valid: 2 images without masks; left out" in read_labels("auto", tmp_path / "sat").findings
    findings = read_labels("auto", tmp_path / "potsdam").findings
    assert "4_Ortho_RGBIR: 2 images without masks; left out" in findings


def test_voc_says_which_images_it_passes_over(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    mask(tmp_path / "annotations/trimaps/a.png", 1, 2, 3)
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    text(
        tmp_path / "annotations/xmls/a.xml",
        f"<annotation><object><name>cat</name>{box}</object></annotation>",
    )
    found = read_labels("auto", tmp_path)
    assert drawn(found) == {"cat": 1}
    assert "there, and not read: the images in annotations/trimaps" in found.understood


def test_options_may_name_what_lies_in_the_only_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photo(tmp_path / f"set/rgb/{name}.png")
        mask(tmp_path / f"set/hand/{name}.png")
    found = read_labels("auto", tmp_path, images="rgb", masks="hand")
    assert len(found.items) == 2 and found.understood[0] == "the set is the folder set"
