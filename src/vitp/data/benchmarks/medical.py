"""AMOS2022 (abdominal CT) and BraTS2021 (brain MRI): volumes with label maps.

AMOS2022:

    dataset.json    imagesTr/amos_0001.nii.gz …    labelsTr/    imagesVa/    labelsVa/    imagesTs/

BraTS2021:

    BraTS2021_Training_Data/BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz …
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.data.benchmarks.base import Benchmark, Reading, option, reader_of
from vitp.data.formats.channels import declare_channels
from vitp.data.formats.nnunet import dataset_head
from vitp.data.formats.volume_cases import CaseLayout, LabelVolume, VolumeCase
from vitp.data.formats.volume_names import joined_address
from vitp.data.formats.volumes import VolumeOptions, add_volumes
from vitp.io.open_pixels import open_pixels
from vitp.records.labels import LabelledImage, LabelledSet

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
_BRATS_VALUES = {"background": 0, "necrotic core": 1, "oedema": 2, "enhancing tumour": 4}

BRATS_REGIONS: dict[str, tuple[int, ...]] = {
    "whole tumour": (1, 2, 3),
    "tumour core": (1, 3),
    "enhancing tumour": (3,),
}
"""Region that BraTS scores → indices of the classes that it is made of."""


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
def read_amos(reading: Reading, *, modality: str = "CT") -> LabelledSet:
    """Read AMOS2022 as axial slices, which stay in their volumes: CT by the soft-tissue window, MRI by percentiles.

    Args:
        modality: "CT" or "MRI".

    Raises:
        DataError: nibabel isn't installed.
    """
    cases = amos_cases(reading, modality)
    code, window = ("CT", "soft_tissue") if modality == "CT" else ("MR", "volume")
    values = {name: index for index, name in enumerate(AMOS.classes)}
    return _slices(reading, cases, values, AMOS.classes, code, window)


def _slices(
    reading: Reading,
    cases: Sequence[VolumeCase],
    values: Mapping[str, int],
    classes: tuple[str, ...],
    modality: str,
    window: str,
) -> LabelledSet:
    """Return the slices of cases as a set, with what is seen of their values."""
    builder = reading.builder
    builder.options = replace(builder.options, plane="axial", modality=modality)
    add_volumes(builder, CaseLayout(list(cases)), VolumeOptions(classes=values))
    labelled = reading.finish(semantic_classes=classes)
    return declare_channels(labelled, reading.root, {"window": window})


def amos_cases(reading: Reading, modality: str = "CT") -> list[VolumeCase]:
    """Return the cases that dataset.json names.

    Raises:
        DataError: The file is missing or can't be understood, or it names a file that is missing.
        ConfigError: There is no such modality.
    """
    option("modality", modality, ("CT", "MRI"), "amos2022")
    head = dataset_head(reading.root) if reading.file("dataset.json") else None
    if head is None or not head.listed:
        where = str(reading.root / "dataset.json")
        raise DataError("names no case", where=where, fix="unpack it again")
    cases = []
    for split, image, mask in head.listed:
        path = reading.root / image
        number = re.search(r"(\d+)", path.name)
        kind = "CT" if number is None or int(number.group(1)) <= 500 else "MRI"
        if modality != kind:
            continue
        labels = [reading.root / mask] if mask and split != "test" else []
        if reading.has(path, *labels):
            name = path.name.split(".")[0]
            files = tuple(LabelVolume(label) for label in labels)
            cases.append(VolumeCase(name, str(path), files, split, name))
    reading.refuse_missing()
    return cases


@reader_of(BRATS)
def read_brats(reading: Reading, *, channels: str = "flair,t1ce,t2") -> LabelledSet:
    """Read BraTS2021 as axial slices of three modalities; slices without brain are left out.

    Args:
        channels: Three of flair, t1, t1ce and t2 for red, green and blue, or one for grey.

    Raises:
        DataError: nibabel isn't installed.
        ConfigError: The channels can't be used.
    """
    cases = brats_cases(reading, channels)
    labelled = _slices(reading, cases, _BRATS_VALUES, BRATS.classes, "MR", "volume")
    return replace(labelled, items=[item for item in labelled.items if not _is_air(item)])


def _is_air(item: LabelledImage) -> bool:
    """Return whether each band of a slice has one value only."""
    with open_pixels(item.image) as pixels:
        return all(values_HW.min() == values_HW.max() for values_HW in pixels.read())


def brats_cases(reading: Reading, channels: str = "flair,t1ce,t2") -> list[VolumeCase]:
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
            address = joined_address([paths[name] for name in chosen])
            words = tuple(chosen) if len(chosen) > 1 else ()
            cases.append(
                VolumeCase(folder.name, address, (LabelVolume(paths["seg"]),), None, folder.name, words)
            )
    reading.refuse_missing()
    return cases
