"""Tiny copies of the published data sets: their folders, file names and annotation syntax, with generated content.

`write_benchmark(name, root)` writes one set; every generator returns the root that the reader takes.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = 64
"""Side of the images in pixels; some generators use other sizes, as their sets do."""


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    """Write an RGB image of width × height: smooth noise, so that no two are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def mask(path: Path, values: np.ndarray) -> Path:
    """Write a mask: (H, W) values or (H, W, 3) colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def write_dior(root: Path) -> Path:
    """DIOR and DIOR-R: two folders of images, two of XML files, three lists."""
    splits = {"train": ["00001", "00003"], "val": ["00002"], "test": ["11726", "11727"]}
    for split, stems in splits.items():
        text(root / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))
        for stem in stems:
            folder = "JPEGImages-test" if split == "test" else "JPEGImages-trainval"
            picture(root / folder / f"{stem}.jpg", int(stem))
            name = "Expressway-Service-area" if stem == "00001" else "ship"
            upright = (
                f"<object><name>{name}</name><pose>Unspecified</pose>"
                "<bndbox><xmin>10</xmin><ymin>12</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"
            )
            corners = (
                ("left_top", 20, 10),
                ("right_top", 34, 20),
                ("right_bottom", 24, 34),
                ("left_bottom", 10, 24),
            )
            quad = "".join(f"<x_{c}>{x}</x_{c}><y_{c}>{y}</y_{c}>" for c, x, y in corners)
            oriented = (
                f"<object><type>robndbox</type><name>{name}</name><angle>0.6</angle>"
                f"<difficult>0</difficult><robndbox>{quad}</robndbox></object>"
            )
            empty = stem == "00003"
            for kind, node in (("Horizontal", upright), ("Oriented", oriented)):
                body = "" if empty else node
                text(
                    root / "Annotations" / f"{kind} Bounding Boxes" / f"{stem}.xml",
                    f"<annotation><filename>{stem}.jpg</filename><source><database>DIOR</database></source>"
                    f"<size><width>{SIZE}</width><height>{SIZE}</height><depth>3</depth></size>{body}</annotation>",
                )
    return root


def write_dota(root: Path) -> Path:
    """DOTA-v2.0: header lines in train, a difficult object, test-dev without labels."""
    for split, stem, size in (("train", "P0000", (150, 90)), ("val", "P0003", (100, 100))):
        picture(root / split / "images" / f"{stem}.png", len(stem), size)
        header = "imagesource:GoogleEarth\ngsd:0.146343590398\n" if split == "train" else ""
        text(
            root / split / "labelTxt-v2.0" / f"DOTA-v2.0_{split}" / f"{stem}.txt",
            f"{header}20.0 10.0 40.0 20.0 30.0 40.0 10.0 30.0 ship 0\n"
            "60 60 90 60 90 70 60 70 small-vehicle 1\n",
        )
    picture(root / "test-dev" / "images" / "P0006.png", 6, (120, 80))
    return root


def write_rsar(root: Path) -> Path:
    """RSAR: PNG and JPEG side by side, DOTA rows with six classes."""
    for split, stem, suffix in (("train", "0000001", "png"), ("train", "0000002", "jpg"), ("val", "0000003", "png"), ("test", "0000004", "bmp")):  # fmt: skip
        picture(root / split / "images" / f"{stem}.{suffix}", int(stem))
        rows = "" if stem == "0000002" else "5 5 25 5 25 15 5 15 aircraft 0\n"
        text(root / split / "annfiles" / f"{stem}.txt", rows)
    return root


def _coco(
    path: Path, names: list[str], categories: list[str], *, polygons: bool = False, first: int = 0
) -> None:
    rows = []
    for number, _ in enumerate(names):
        row: dict[str, Any] = {
            "id": number + 1,
            "image_id": number,
            "category_id": first,
            "bbox": [8, 10, 20, 12],
            "area": 240,
            "iscrowd": 0,
        }
        if polygons:
            row["segmentation"] = [[8, 10, 28, 10, 28, 22, 8, 22]]
        rows.append(row)
    content = {
        "images": [
            {"id": k, "file_name": name, "width": SIZE, "height": SIZE} for k, name in enumerate(names)
        ],
        "annotations": rows,
        "categories": [{"id": first + k, "name": name} for k, name in enumerate(categories)],
    }
    text(path, json.dumps(content))


def write_sardet(root: Path) -> Path:
    """SARDet-100K: one COCO file a split, images below JPEGImages."""
    classes = ["ship", "aircraft", "car", "tank", "bridge", "harbor"]
    for k, split in enumerate(("train", "val", "test")):
        names = [f"{k}00000{i}.jpg" for i in range(2)]
        for i, name in enumerate(names):
            picture(root / "JPEGImages" / split / name, 10 * k + i)
        _coco(root / "Annotations" / f"{split}.json", names, classes)
    return root


def write_ssdd(root: Path) -> Path:
    """SSDD: the release with boxes, oriented boxes and outlines in COCO style."""
    base = root / "BBox_RBox_PSeg_SSDD" / "coco_style"
    for split, names in (("train", ["000002.jpg", "000003.jpg"]), ("test", ["000001.jpg", "000009.jpg"])):
        for name in names:
            picture(base / "images" / split / name, int(name[:6]))
        _coco(base / "annotations" / f"{split}.json", names, ["ship"], polygons=True, first=1)
    for part, names in (("inshore", ["000001.jpg"]), ("offshore", ["000009.jpg"])):
        _coco(base / "annotations" / f"test_{part}.json", names, ["ship"], polygons=True, first=1)
    return root


def write_isaid(root: Path) -> Path:
    """iSAID: colour masks named after DOTA's images, COCO-like instances, test without labels."""
    for split, stem in (("train", "P0000"), ("val", "P0003")):
        picture(root / split / "images" / "images" / f"{stem}.png", len(split), (100, 80))
        colours = np.zeros((80, 100, 3), np.uint8)
        colours[10:20, 10:30] = (0, 0, 63)  # ship
        colours[40:60, 40:60] = (0, 127, 255)  # plane
        mask(root / split / "Semantic_masks" / "images" / f"{stem}_instance_color_RGB.png", colours)
        content = {
            "images": [
                {"id": 0, "file_name": f"{stem}.png", "width": 100, "height": 80,
                 "seg_file_name": f"{stem}_instance_color_RGB.png", "ins_file_name": f"{stem}_instance_id_RGB.png"}
            ],
            "annotations": [
                {"id": 1, "image_id": 0, "category_id": 1, "category_name": "ship", "iscrowd": 0, "area": 200,
                 "bbox": [10, 10, 20, 10], "segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]]}
            ],
            "categories": [{"id": 1, "name": "ship"}, {"id": 14, "name": "plane"}],
        }  # fmt: skip
        text(root / split / "Annotations" / f"iSAID_{split}.json", json.dumps(content))
    picture(root / "test" / "images" / "images" / "P0006.png", 9, (100, 80))
    return root


def write_loveda(root: Path) -> Path:
    """LoveDA: Urban and Rural, 0 is no data, the test split has no masks."""
    for k, split in enumerate(("Train", "Val", "Test")):
        for half in ("Urban", "Rural"):
            name = f"{2 * k + (half == 'Rural')}.png"
            picture(root / split / half / "images_png" / name, k)
            values = np.full((SIZE, SIZE), 1, np.uint8)
            values[:8] = 0
            values[8:24] = 2
            values[40:] = 7
            if split != "Test":
                mask(root / split / half / "masks_png" / name, values)
    return root


def write_uavid(root: Path) -> Path:
    """UAVid: sequences, colour masks, test without labels."""
    for split, sequences in (("train", ("seq1", "seq31")), ("val", ("seq16",)), ("test", ("seq21",))):
        for sequence in sequences:
            for frame in ("000000.png", "000100.png"):
                base = root / f"uavid_{split}" / sequence
                picture(base / "Images" / frame, len(sequence), (96, 54))
                colours = np.zeros((54, 96, 3), np.uint8)
                colours[:20] = (128, 64, 128)  # road
                colours[30:40, 5:15] = (192, 0, 192)  # static car
                if split != "test":
                    mask(base / "Labels" / frame, colours)
    return root


def _changed(size: int = SIZE) -> np.ndarray:
    values = np.zeros((size, size), np.uint8)
    values[10:20, 10:30] = 255
    return values


def _write_change(root: Path, folders: tuple[str, str, str], suffix: str = "png") -> Path:
    for k, split in enumerate(("train", "val", "test")):
        for number in range(2):
            name = f"{split}_{number}.{suffix}"
            picture(root / split / folders[0] / name, 10 * k + number)
            picture(root / split / folders[1] / name, 100 + 10 * k + number)
            mask(root / split / folders[2] / name, _changed())
    return root


def write_svcd(root: Path) -> Path:
    """SVCD: JPEG masks below Real/subset."""
    _write_change(root / "ChangeDetectionDataset" / "Real" / "subset", ("A", "B", "OUT"), "jpg")
    return root


def write_levir_cd(root: Path) -> Path:
    """LEVIR-CD."""
    return _write_change(root, ("A", "B", "label"))


def write_s2looking(root: Path) -> Path:
    """S2Looking: label is the union of label1 and label2."""
    _write_change(root, ("Image1", "Image2", "label"))
    for label in sorted(root.glob("*/label/*.png")):
        for name, rows in (("label1", slice(10, 15)), ("label2", slice(15, 20))):
            part = np.zeros((SIZE, SIZE), np.uint8)
            part[rows, 10:30] = 255
            mask(label.parent.parent / name / label.name, part)
    return root


def write_whu_cd(root: Path) -> Path:
    """WHU-CD: two mosaics and a change map for each of the two parts."""
    base = root / "Building change detection dataset_add" / "1. The two-period image data"
    for split, size in (("train", (130, 70)), ("test", (70, 70))):
        for k, year in enumerate(("2012", "2016")):
            picture(base / year / "whole_image" / split / "image" / f"{year}_{split}.tif", k, size)
        values = np.zeros((size[1], size[0]), np.uint8)
        values[10:20, 10:30] = 255
        mask(base / "change_label" / split / "change_label.tif", values)
    return root


def write_whu_cd_lists(root: Path) -> Path:
    """WHU-CD as crops with lists of names."""
    for k, split in enumerate(("train", "val", "test")):
        name = f"whucd_{k:05d}.png"
        picture(root / "A" / name, k)
        picture(root / "B" / name, k + 10)
        mask(root / "label" / name, _changed())
        text(root / "list" / f"{split}.txt", f"{name}\n")
    return root


def nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write a minimal NIfTI-1 file (.nii or .nii.gz) of int16 or uint8 voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code, bits = {"int16": (4, 16), "uint8": (2, 8)}[values.dtype.name]
    affine = np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else affine
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *values.shape, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    struct.pack_into("<fff", header, 108, 352.0, 1.0, 0.0)
    struct.pack_into("<hh", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, *affine[:3].reshape(-1))
    header[344:348] = b"n+1\0"
    data = bytes(header) + np.asfortranarray(values).tobytes(order="F")
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def write_amos(root: Path) -> Path:
    """AMOS2022: dataset.json names CT (up to 500) and MRI (above) volumes; test has no labels."""
    rng = np.random.default_rng(0)
    listed: dict[str, list[Any]] = {"training": [], "validation": [], "test": []}
    cases = (("training", "Tr", "0001"), ("training", "Tr", "0507"), ("validation", "Va", "0008"), ("test", "Ts", "0002"))  # fmt: skip
    for key, folder, number in cases:
        values = rng.integers(-1000, 400, size=(12, 10, 3), dtype=np.int16)
        nifti(root / f"images{folder}" / f"amos_{number}.nii.gz", values)
        image = f"./images{folder}/amos_{number}.nii.gz"
        if key == "test":
            listed[key].append(image)
            continue
        labels = np.zeros((12, 10, 3), np.uint8)
        labels[2:5, 3:6, 1] = 6  # liver
        labels[8, 8, 2] = 15
        nifti(root / f"labels{folder}" / f"amos_{number}.nii.gz", labels)
        listed[key].append({"image": image, "label": f"./labels{folder}/amos_{number}.nii.gz"})
    head = {"name": "AMOS", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}}
    text(root / "dataset.json", json.dumps({**head, **listed}))
    return root


def write_brats(root: Path, cases: int = 10) -> Path:
    """BraTS2021: four modalities and labels 1, 2 and 4 a case; the first slice is air."""
    for number in range(cases):
        name = f"BraTS2021_{number:05d}"
        folder = root / "BraTS2021_Training_Data" / name
        for k, modality in enumerate(("flair", "t1", "t1ce", "t2")):
            rng = np.random.default_rng([number, k])
            values = rng.integers(1, 1000, size=(10, 12, 4), dtype=np.int16)
            values[:, :, 0] = 0
            nifti(folder / f"{name}_{modality}.nii.gz", values)
        labels = np.zeros((10, 12, 4), np.uint8)
        labels[2:8, 2:8, 2] = 2
        labels[3:6, 3:6, 2] = 4
        labels[4, 4, 2] = 1
        nifti(folder / f"{name}_seg.nii.gz", labels)
    return root


def write_covidquex(root: Path) -> Path:
    """COVID-QU-Ex: infection and lung masks, three kinds of patients, the folder names twice."""
    for part, kinds in (("Infection", ("infection", "lung")), ("Lung", ("lung",))):
        name = f"{part} Segmentation Data"
        for k, split in enumerate(("Train", "Val", "Test")):
            for group in ("COVID-19", "Non-COVID", "Normal"):
                base = root / name / name / split / group
                picture(base / "images" / f"{group}_{k}.png", k)
                for kind in kinds:
                    values = np.zeros((SIZE, SIZE), np.uint8)
                    if kind == "lung":
                        values[5:60, 5:60] = 255
                    elif group == "COVID-19":
                        values[20:30, 20:40] = 255
                    mask(base / f"{kind} masks" / f"{group}_{k}.png", values)
    return root


WRITERS: dict[str, Callable[[Path], Path]] = {
    "dior": write_dior,
    "dior_r": write_dior,
    "dota_v2": write_dota,
    "sardet100k": write_sardet,
    "rsar": write_rsar,
    "ssdd": write_ssdd,
    "isaid": write_isaid,
    "loveda": write_loveda,
    "uavid": write_uavid,
    "svcd": write_svcd,
    "whu_cd": write_whu_cd,
    "levir_cd": write_levir_cd,
    "s2looking": write_s2looking,
    "amos2022": write_amos,
    "brats2021": write_brats,
    "covidquex": write_covidquex,
}
"""Name of a benchmark → function that writes a tiny copy of its published folder."""


def write_benchmark(name: str, root: Path) -> Path:
    """Write a tiny copy of a benchmark's published folder and return the root that its reader takes."""
    return WRITERS[name](root)


def read_nifti(path: Path) -> np.ndarray:
    """Return what `nifti` wrote, as float32, without any library."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = struct.unpack_from("<3h", data, 42)
    kind = {4: np.int16, 2: np.uint8}[struct.unpack_from("<h", data, 70)[0]]
    return np.frombuffer(data, kind, offset=352).reshape(shape, order="F").astype(np.float32)
