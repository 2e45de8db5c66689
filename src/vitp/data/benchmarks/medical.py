"""AMOS2022 (abdominal CT) and BraTS2021 (brain MRI): volumes with label maps.

AMOS2022:

    dataset.json    imagesTr/amos_0001.nii.gz …    labelsTr/    imagesVa/    labelsVa/    imagesTs/

BraTS2021:

    BraTS2021_Training_Data/BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz …
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.data.benchmarks.base import Benchmark, Reading, option, reader_of
from vitp.data.benchmarks.volumes import Case, Levels, add_slices, ct_window, mri_levels, slices_folder
from vitp.data.published import read_json
from vitp.records.labels import LabelledSet

# fmt: off
_ORGANS = (
    "background", "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach",
    "aorta", "postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder",
    "prostate/uterus",
)

AMOS = Benchmark(
    name="amos2022", title="AMOS2022", task="segmentation", modality="CT", classes=_ORGANS,
    published_by="the AMOS 2022 challenge (Y. Ji and others), as amos22.zip on Zenodo",
    counts={"train": 200, "val": 100, "test": 200}, metric="mean Dice", test_on="val", test_labels=False,
    volumes=True, licence="CC BY 4.0",
    notes=(
        "numbers up to 500 are CT, above 500 MRI (option modality); the counts are those of CT",
        "the paper's table counts 14 classes, the set has 15 organs; which ones were used isn't published",
        "splits follow dataset.json; the labels of test are hidden, so the paper's protocol tests on val",
    ),
)
# fmt: on

_MODALITIES = ("flair", "t1", "t1ce", "t2")
# fmt: off
BRATS = Benchmark(
    name="brats2021", title="BraTS2021", task="segmentation", modality="MRI",
    classes=("background", "necrotic core", "oedema", "enhancing tumour"),
    published_by="the RSNA-ASNR-MICCAI BraTS 2021 challenge, on Synapse", counts={},
    metric="mean Dice of whole tumour, tumour core and enhancing tumour", volumes=True,
    notes=(
        "1,251 labelled cases; the official validation cases have no labels, so cases are held out of the labelled ones "
        "(10 % val and 10 % test by default)",
        "label values are 1, 2 and 4; the regions that are scored overlap, see brats_regions",
        "three of the four modalities become red, green and blue (option channels)",
    ),
)
# fmt: on
_BRATS_VALUES = ((0, 0), (1, 1), (2, 2), (4, 3))

BRATS_REGIONS: dict[str, tuple[int, ...]] = {
    "whole tumour": (1, 2, 3),
    "tumour core": (1, 3),
    "enhancing tumour": (3,),
}
"""Region that BraTS scores → indices of the classes that it is made of."""

_SOFT_TISSUE = ct_window(-160.0, 240.0)
"""Levels of the soft-tissue window in Hounsfield units (centre 40, width 400)."""


def brats_regions(semantic_HW: np.ndarray) -> dict[str, np.ndarray]:
    """Return region → mask (H, W) bool of class indices as `BRATS.classes` has them."""
    return {name: np.isin(semantic_HW, indices) for name, indices in BRATS_REGIONS.items()}


def region_dice(predicted_HW: np.ndarray, true_HW: np.ndarray) -> dict[str, float]:
    """Return the Dice score of each BraTS region, 0..1; 1 where a region is neither predicted nor there."""
    guesses, truths = brats_regions(predicted_HW), brats_regions(true_HW)
    scores = {}
    for name, truth_HW in truths.items():
        total = int(guesses[name].sum()) + int(truth_HW.sum())
        shared = int((guesses[name] & truth_HW).sum())
        scores[name] = 2 * shared / total if total else 1.0
    return scores


@reader_of(AMOS)
def read_amos(
    reading: Reading, *, modality: str = "CT", slices: str = "", progress: Callable[[], None] | None = None
) -> LabelledSet:
    """Read AMOS2022 as axial slices.

    Args:
        modality: "CT", "MRI" or "both".
        slices: Folder for the slices; those that are there already are used.
        progress: Called after each case.

    Raises:
        ConfigError: `slices` isn't given, or nibabel isn't installed.
    """
    out = slices_folder(slices, AMOS, reading.root)
    cases = amos_cases(reading, modality)
    values = tuple((index, index) for index in range(len(AMOS.classes)))
    levels: dict[str, Levels] = {
        "CT": _SOFT_TISSUE,
        "MRI": mri_levels,
        # Air is about −1000 in CT; MRI has next to no negative values.
        "both": lambda values_XYZ: (_SOFT_TISSUE if values_XYZ.min() < -200 else mri_levels)(values_XYZ),
    }
    add_slices(reading, cases, out, levels[modality], values, progress=progress)
    return reading.finish(semantic_classes=AMOS.classes)


def amos_cases(reading: Reading, modality: str = "CT") -> list[Case]:
    """Return the cases that dataset.json names.

    Raises:
        DataError: The file is missing or can't be understood, or it names a file that is missing.
        ConfigError: There is no such modality.
    """
    option("modality", modality, ("CT", "MRI", "both"), "amos2022")
    path = reading.file("dataset.json")
    content = read_json(path)
    try:
        keys = {"training": "train", "validation": "val", "test": "test"}
        rows = [(split, row) for key, split in keys.items() for row in content.get(key, [])]
    except (AttributeError, TypeError) as error:
        raise DataError(f"is not AMOS's list ({error})", where=str(path), fix="unpack it again") from error
    if not rows:
        raise DataError("names no case", where=str(path), fix="unpack it again")
    cases = []
    for split, row in rows:
        names = row if isinstance(row, dict) else {"image": row}
        image = _amos_path(reading.root, names.get("image"), path)
        number = re.search(r"(\d+)", image.name)
        kind = "CT" if number is None or int(number.group(1)) <= 500 else "MRI"
        if modality not in (kind, "both"):
            continue
        mask = None
        if split != "test" and names.get("label"):
            mask = _amos_path(reading.root, names["label"], path)
        if reading.has(image) and (mask is None or reading.has(mask)):
            cases.append(Case(image.name.split(".")[0], (image,), mask, split))
    reading.refuse_missing()
    return cases


def _amos_path(root: Path, name: object, where: Path) -> Path:
    if not isinstance(name, str) or not name:
        raise DataError("a case names no image", where=str(where), fix="unpack the file again")
    return root / name.removeprefix("./")


@reader_of(BRATS)
def read_brats(
    reading: Reading,
    *,
    channels: str = "flair,t1ce,t2",
    slices: str = "",
    progress: Callable[[], None] | None = None,
) -> LabelledSet:
    """Read BraTS2021 as axial slices of three modalities; slices without brain are left out.

    Args:
        channels: Three of flair, t1, t1ce and t2 for red, green and blue, or one for grey.
        slices: Folder for the slices; those that are there already are used.
        progress: Called after each case.

    Raises:
        ConfigError: `slices` isn't given, the channels can't be used, or nibabel isn't installed.
    """
    out = slices_folder(slices, BRATS, reading.root)
    cases = brats_cases(reading, channels)
    add_slices(reading, cases, out, mri_levels, _BRATS_VALUES, drop_blank=True, progress=progress)
    return reading.finish(semantic_classes=BRATS.classes)


def brats_cases(reading: Reading, channels: str = "flair,t1ce,t2") -> list[Case]:
    """Return the labelled cases, each with all four modalities and its label map on disk.

    Raises:
        DataError: A file is missing.
        ConfigError: The channels can't be used.
    """
    chosen = [name.strip() for name in channels.split(",")]
    if len(chosen) not in (1, 3) or any(name not in _MODALITIES for name in chosen):
        raise ConfigError(
            f'"{channels}" are no channels',
            where="brats2021",
            fix=f"give one or three of {', '.join(_MODALITIES)}",
        )
    direct = sorted(reading.root.glob("BraTS2021_[0-9]*"))
    base = reading.root if direct else reading.folder("BraTS2021_Training_Data")
    folders = sorted(p for p in base.glob("BraTS2021_[0-9]*") if p.is_dir())
    if not folders:
        reading.refuse(f"{reading.builder.place(base)}/ holds no folder BraTS2021_00000")
    cases = []
    for folder in folders:
        paths = {}
        for name in (*_MODALITIES, "seg"):
            plain = folder / f"{folder.name}_{name}.nii"
            paths[name] = plain if plain.is_file() else plain.with_name(f"{plain.name}.gz")
        if reading.has(*paths.values()):
            cases.append(Case(folder.name, tuple(paths[name] for name in chosen), paths["seg"], None))
    reading.refuse_missing()
    return cases
