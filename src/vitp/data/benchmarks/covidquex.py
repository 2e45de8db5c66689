"""COVID-QU-Ex: chest X-rays with lung and infection masks.

Infection Segmentation Data/Infection Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/
    images/*.png    infection masks/*.png    lung masks/*.png
Lung Segmentation Data/Lung Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/
    images/*.png    lung masks/*.png
"""

from __future__ import annotations

from vitp.data.benchmarks.base import Benchmark, Reading, option, reader_of
from vitp.records.labels import LabelledSet

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


@reader_of(COVIDQUEX)
def read(reading: Reading, *, target: str = "infection", cases: str = "all") -> LabelledSet:
    """Read COVID-QU-Ex.

    Args:
        target: "infection": the part with infection masks; "lung": the part with lung masks.
        cases: "COVID-19", "Non-COVID", "Normal" or "all".
    """
    option("target", target, ("infection", "lung"), "covidquex")
    groups = _GROUPS if cases == "all" else (option("cases", cases, (*_GROUPS, "all"), "covidquex"),)
    part = f"{target.capitalize()} Segmentation Data"
    base = reading.base("Train", f"{part}/{part}/", f"{part}/", "")
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
        reading.add_folder(split, images, masks, _VALUES)
    return reading.finish(semantic_classes=("background", target))
