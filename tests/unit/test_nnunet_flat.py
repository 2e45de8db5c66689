"""nnU-Net's folders of 2-D images: classes, channels, splits and ending as `dataset.json` tells them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.layout_toys import mask, photo
from vitp.core.errors import ConfigError, DataError
from vitp.data.formats import read_labels

HEAD: dict[str, Any] = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": {"background": 0, "house": 2, "road": 1},
    "numTraining": 6,
    "file_ending": ".png",
}


def flat_set(root: Path, *values: int, **told: Any) -> Path:
    for k in range(6):
        photo(root / f"imagesTr/case_{k}_0000.png")
        mask(root / f"labelsTr/case_{k}.png", *values)
    (root / "dataset.json").write_text(json.dumps({**HEAD, **told}))
    return root


def test_values_are_named_and_what_is_ignored_counts_for_nothing(tmp_path: Path) -> None:
    labels = {"background": 0, "house": 2, "road": 1, "ignore": 3}
    found = read_labels("auto", flat_set(tmp_path, 1, 2, 3, labels=labels))
    assert found.semantic_classes == ("background", "house", "road")
    for item in found.items:
        assert item.semantic is not None
        counts = dict(zip(*np.unique(item.semantic(), return_counts=True), strict=True))
        # Each value has a block of 12 × 10 pixels; "road" is the value 1 and the third class.
        assert counts == {0: 40 * 40 - 3 * 120, 1: 120, 2: 120, 255: 120}
    assert "channels: R, G, B" in found.understood and not found.findings
    assert {item.split for item in found.items} == {"train", "val", "test"}


def test_folds_say_the_splits(tmp_path: Path) -> None:
    flat_set(tmp_path, 1, 2)
    names = [f"case_{k}" for k in range(6)]
    folds = [{"train": names[2:], "val": names[:2]}, {"train": names[:4], "val": names[4:]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    for fold, expected in ((0, [0, 1]), (1, [4, 5])):
        found = read_labels("auto", tmp_path, fold=fold)
        assert [k for k, item in enumerate(found.items) if item.split == "val"] == expected
        assert len(found.items) == 6
    with pytest.raises(ConfigError, match="there is no fold 2"):
        read_labels("auto", tmp_path, fold=2)


@pytest.mark.parametrize(
    ("told", "finding"),
    [
        (
            {"file_ending": ".tif"},
            'file_ending is ".tif", but 6 of 6 cases end otherwise (.png 6); they are read',
        ),
        ({"numTraining": 8}, "numTraining is 8, but 6 cases with masks are there"),
        ({"channel_names": {"0": "xray"}}, "names 1 channels (xray), but imagesTr/case_0_0000.png has 3"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, told: dict[str, Any], finding: str) -> None:
    found = read_labels("auto", flat_set(tmp_path, 1, 2, **told))
    assert found.findings[0].startswith(f"dataset.json: {finding}") and len(found.findings) == 1


def test_a_file_that_can_not_be_understood_is_refused_and_options_go_first(tmp_path: Path) -> None:
    flat_set(tmp_path, 1, 2, labels={"background": 0, "road": "one"})
    with pytest.raises(DataError, match='the label "road" has the value'):
        read_labels("auto", tmp_path)
    assert read_labels("auto", tmp_path, classes="sea=1,land=2").semantic_classes == (
        "background",
        "sea",
        "land",
    )


def test_a_png_a_channel_is_told_what_to_write(tmp_path: Path) -> None:
    flat_set(tmp_path, 1, 2, channel_names={"0": "VV", "1": "VH"})
    for k in range(6):
        photo(tmp_path / f"imagesTr/case_{k}_0001.png")
    with pytest.raises(
        DataError, match=r"case_0_0000\.png and .*case_0_0001\.png are two channels of one"
    ) as caught:
        read_labels("auto", tmp_path)
    assert "as case_0_0000.tif (with rasterio or tifffile)" in caught.value.fix
    rasterio = pytest.importorskip("rasterio")
    for k in range(6):
        paths = [tmp_path / f"imagesTr/case_{k}_{channel:04}.png" for channel in (0, 1)]
        planes = [np.asarray(Image.open(path))[..., 0] for path in paths]
        one = {"driver": "GTiff", "width": 40, "height": 40, "count": 2, "dtype": "uint8"}
        with rasterio.open(paths[0].with_suffix(".tif"), "w", **one) as file:
            file.write(np.stack(planes))
        for path in paths:
            path.unlink()
    found = read_labels("auto", tmp_path)
    assert len(found.items) == 6 and "channels: VV, VH" in found.understood
    assert found.band_names == ("VV", "VH")
