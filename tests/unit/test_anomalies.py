"""Sets of defects in the layout of MVTec AD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.data.formats.detect import detect_format


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def product(root: Path, ending: str = "_mask") -> Path:
    """Write 3 good training images, and 2 of each kind to test on; each mask holds two regions of 6 and 8 px."""
    for i in range(3):
        photo(root / f"train/good/{i:03d}.png", i)
    for number, kind in enumerate(("good", "broken", "scratch")):
        for i in range(2):
            photo(root / f"test/{kind}/{i:03d}.png", 10 * number + i + 10)
            if kind != "good":
                mask_HW = np.zeros((24, 32), np.uint8)
                mask_HW[2:4, 3:6], mask_HW[10:14, 20:22] = 255, 255
                (root / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask_HW).save(root / f"ground_truth/{kind}/{i:03d}{ending}.png")
    return root


@pytest.mark.parametrize("ending", ["_mask", ""])
def test_each_region_is_a_defect_and_good_images_hold_none(tmp_path: Path, ending: str) -> None:
    assert detect_format(product(tmp_path, ending)) == "anomalies"
    found = read_labels("auto", tmp_path)
    assert found.object_classes == ("broken", "scratch")
    shown = {item.id: [(label.category, label.box) for label in item.objects or ()] for item in found.items}
    assert shown["test/broken/001"] == [("broken", (3, 2, 6, 4)), ("broken", (20, 10, 22, 14))]
    assert shown["train/good/002"] == shown["test/good/000"] == [] and len(shown) == 9
    assert sorted(item.split for item in found.items) == ["test"] * 6 + ["train"] * 3
    assert any("no training image shows a defect" in line for line in found.understood)
    masks = read_labels("auto", tmp_path, semantic=True, splits="drawn")
    assert masks.semantic_classes == ("background", "broken", "scratch")
    drawn = next(item for item in masks.items if item.id == "test/scratch/000").semantic
    assert drawn is not None and np.bincount(drawn().ravel()).tolist()[2] == 14


def visa(root: Path) -> Path:
    """Write a product with 4 good and 2 faulty images; of each mask one region of kind 1 and one of kind 3."""
    rows = ["object,split,label,image,mask"]
    for kind, count in (("Normal", 4), ("Anomaly", 2)):
        for i in range(count):
            path = root / f"candle/Data/Images/{kind}/{i:03d}.JPG"
            photo(path, 7 * count + i)
            mask = ""
            if kind == "Anomaly":
                mask_HW = np.zeros((24, 32), np.uint8)
                mask_HW[2:4, 3:6], mask_HW[10:14, 20:22] = 1, 3
                mask = f"candle/Data/Masks/{kind}/{i:03d}.png"
                (root / mask).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask_HW).save(root / mask)
            split = "train" if kind == "Normal" and i < 3 else "test"
            rows.append(f"candle,{split},{kind.lower()},{path.relative_to(root).as_posix()},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    return root


def test_visa_keeps_its_good_images_and_its_splits(tmp_path: Path) -> None:
    assert detect_format(visa(tmp_path)) == "anomalies"
    found = read_labels("auto", tmp_path)
    shown = {
        item.id.removeprefix("candle/Data/Images/"): (item.split, [label.box for label in item.objects or ()])
        for item in found.items
    }
    assert shown == {
        **{f"Normal/{i:03d}": ("train" if i < 3 else "test", []) for i in range(4)},
        **{f"Anomaly/{i:03d}": ("test", [(3, 2, 6, 4), (20, 10, 22, 14)]) for i in range(2)},
    }
    assert found.object_classes == ("Anomaly",) and found.findings == ()
    assert any("from split_csv/1cls.csv" in line for line in found.understood)
    # Without the table the splits are drawn, and a product alone is a set.
    assert len(read_labels("auto", tmp_path / "candle").items) == 6


def test_a_table_of_splits_with_an_odd_row_is_refused(tmp_path: Path) -> None:
    path = visa(tmp_path) / "split_csv/1cls.csv"
    path.write_text(path.read_text().replace("candle,test", "candle,later", 1))
    with pytest.raises(DataError, match=r"1cls\.csv:5: names no image, or no split"):
        read_labels("auto", tmp_path)


def test_several_products_and_masks_that_cannot_be_used(tmp_path: Path) -> None:
    for name in ("bottle", "cable"):
        product(tmp_path / name)
    soft_HW = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32)
    Image.fromarray(soft_HW).save(tmp_path / "cable/ground_truth/broken/000_mask.png")
    (tmp_path / "cable/ground_truth/scratch/000_mask.png").unlink()
    found = read_labels("auto", tmp_path)
    ids = {item.id for item in found.items}
    # What can't be used is no image without defects.
    assert len(ids) == 16 and not ids & {"cable/test/broken/000", "cable/test/scratch/000"}
    assert any("holds 256 values" in line for line in found.findings)
    assert any("has no mask in cable/ground_truth/scratch" in line for line in found.findings)


def test_other_folders_are_no_such_set(tmp_path: Path) -> None:
    photo(tmp_path / "test/broken/0.png", 0)
    photo(tmp_path / "ground_truth/broken/0.png", 1)
    with pytest.raises(DataError):
        read_labels("anomalies", tmp_path)
