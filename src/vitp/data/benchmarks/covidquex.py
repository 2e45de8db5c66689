"""COVID-QU-Ex: chest X-rays with lung and infection masks.

Infection Segmentation Data/Infection Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/
    images/*.png    infection masks/*.png    lung masks/*.png
Lung Segmentation Data/Lung Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/
    images/*.png    lung masks/*.png
"""

from __future__ import annotations

from pathlib import Path

from vitp.data.benchmarks.base import Benchmark, Protocol, Reading, option
from vitp.data.formats.common import ReadOptions, list_images
from vitp.data.formats.pixel_masks import MaskFile
from vitp.data.labels import LabelledSet

_GROUPS = ("COVID-19", "Non-COVID", "Normal")
_VALUES = ((0, 0), *((value, 1) for value in range(1, 256)))

COVIDQUEX = Benchmark(
    name="covidquex",
    title="COVID-QU-Ex",
    task="segmentation",
    modality="X-ray",
    classes=("background", "infection"),
    palette=((0, 0, 0), (255, 255, 255)),
    published_by="Qatar University (A. Tahir and others), on Kaggle as covidqu",
    counts={"train": 3728, "val": 932, "test": 1166},
    metric="mean Dice",
    notes=(
        "the infection part of the set; option target=lung reads the lung masks instead, cases=COVID-19 only the ill",
        "the paper's table says two classes: background and infection are assumed",
        "images without infection have an empty mask; where a mask file is not 0 the class is there",
    ),
)


def read(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    protocol: Protocol = "official",
    partial: bool = False,
    target: str = "infection",
    cases: str = "all",
) -> LabelledSet:
    """Read COVID-QU-Ex.

    Args:
        root: The download.
        options: Name, licence, splits.
        protocol: "official" or "paper", see `vitp.data.benchmarks.base.under_protocol`.
        partial: Go on without files that are missing.
        target: "infection": the part with infection masks; "lung": the part with lung masks.
        cases: "COVID-19", "Non-COVID", "Normal" or "all".

    Raises:
        DataError: A file is missing, or can't be understood.
        ConfigError: An option has an unknown value.
    """
    reading = Reading(COVIDQUEX, root, options, partial)
    option("target", target, ("infection", "lung"), "covidquex")
    groups = _GROUPS if cases == "all" else (option("cases", cases, (*_GROUPS, "all"), "covidquex"),)
    part = f"{target.capitalize()} Segmentation Data"
    bases = (f"{part}/{part}/", f"{part}/", "")
    base = next((b for b in bases if (root / b / "Train").is_dir()), bases[0])
    places = [
        (
            split.lower(),
            reading.folder(f"{base}{split}/{group}/images"),
            reading.folder(f"{base}{split}/{group}/{target} masks"),
        )
        for split in ("Train", "Val", "Test")
        for group in groups
    ]
    for split, images, masks in places:
        for image in list_images(images):
            mask = masks / image.name
            if reading.has(mask) and (size := reading.builder.size_of(image)) is not None:
                reading.builder.add(image, size, split=split, semantic=MaskFile(str(mask), _VALUES))
        for mask in list_images(masks):
            reading.has(images / mask.name)
    return reading.finish(protocol, semantic_classes=("background", target))
