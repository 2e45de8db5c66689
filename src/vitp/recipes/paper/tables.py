"""The values of the paper's pretraining (tables 2 and 8) and of its authors' configuration files, once.

"Published" are the configuration files that the authors released beside the paper; where they differ from the paper,
both are here. Recipes take every number from here; downstream runs are in `tables_downstream.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PretrainingSet:
    """One row of a mixture (tables 2 and 8).

    Attributes:
        name: Name of the set, as `vitp data prepare` calls it.
        title: As the paper writes it.
        thousands: Records in thousands.
        rate: How often an epoch takes each record on average.
        tasks: What is asked.
        max_tiles: Most tiles an image is cut into, thumbnail not counted; None: the run's default.
        disagreement: Where the published mixture file differs.
    """

    name: str
    title: str
    thousands: float
    rate: float
    tasks: tuple[str, ...]
    max_tiles: int | None = 12
    disagreement: str = ""


@dataclass(frozen=True)
class PretrainingFacts:
    """Settings that both pretraining runs share, and what they took."""

    init: str = "OpenGVLab/InternVL2_5-1B"
    lr: float = 2e-5
    weight_decay: float = 0.01
    warmup_ratio: float = 0.2
    schedule: Literal["cosine"] = "cosine"
    steps: int = 8000
    gpus: int = 8
    batch_per_gpu: int = 4
    accumulation: int = 4
    drop_path: float = 0.1
    max_length: int = 4096
    max_tiles: int = 6
    vrl_ratio: float = 0.75
    published_vrl_probability: float = 0.25
    template: str = "internvl2_5"
    gpu: str = "A40"
    hours: float = 23.0

    @property
    def global_batch(self) -> int:
        """Records an optimizer step."""
        return self.gpus * self.batch_per_gpu * self.accumulation


PRETRAINING_FACTS = PretrainingFacts()

REMOTE_SENSING = (
    PretrainingSet(
        "general",
        "Mini-InternVL general",
        1394,
        0.03,
        ("caption", "VQA", "OCR"),
        None,
        "the published file lists eight sets, 1,023k records, at 0.01 and 0.005",
    ),
    PretrainingSet("rsvqa", "RSVQA", 100, 0.1, ("VQA",), disagreement="published rate 1"),
    PretrainingSet("fit_rs", "FIT-RS", 100, 0.1, ("VQA",)),
    PretrainingSet("geochat", "GeoChat-Instruct", 64, 2, ("grounding",)),
    PretrainingSet("vrsbench", "VRSBench", 38, 5, ("grounding",)),
    PretrainingSet("rsvg", "RSVG", 5.5, 10, ("grounding",)),
    PretrainingSet("dior_rsvg", "DIOR-RSVG", 27, 8, ("grounding",)),
    PretrainingSet("isprs_sar", "ISPRS SAR", 1.5, 1, ("classification",)),
    PretrainingSet("sentinel12", "SAR Sentinel-1&2", 16, 1, ("classification",)),
    PretrainingSet(
        "vhm",
        "VHM",
        223,
        1,
        ("caption", "VQA", "classification"),
        disagreement="the published file lists its sixteen parts, some at rates of 5 to 10",
    ),
    PretrainingSet("levir_cc", "LevirCC captions", 50, 0.5, ("change caption",)),
    PretrainingSet("gaia", "GAIA", 33, 1, ("caption",)),
    PretrainingSet(
        "million_aid",
        "Million-AID",
        920,
        0.05,
        ("caption", "classification"),
        disagreement="published 0.01 for the classes and 0.05 for the reasoned answers",
    ),
)

MEDICAL = (
    PretrainingSet("general", "Mini-InternVL general", 1394, 0.02, ("caption", "VQA", "OCR"), None),
    PretrainingSet("gmai_mmbench", "GMAI-MMBench", 5, 20, ("VQA",)),
    PretrainingSet("open_i", "Open-i", 7, 5, ("caption",)),
    PretrainingSet("huatuo_oa", "Huatuo-OA", 647, 0.1, ("caption",)),
    PretrainingSet("huatuo_vqa", "Huatuo-VQA", 647, 0.5, ("VQA",)),
    PretrainingSet("pmc_oa", "PMC-OA", 1647, 0.05, ("caption",)),
    PretrainingSet("pmc_vqa", "PMC-VQA", 227, 0.5, ("VQA",)),
    PretrainingSet("omnimedvqa", "OmniMedVQA", 89, 1, ("VQA",)),
    PretrainingSet(
        "quilt_1m", "Quilt-1M", 723, 0.1, ("caption",), disagreement="published with images of 224 px"
    ),
    PretrainingSet(
        "quilt_instruct",
        "Quilt-Instruct",
        147,
        1,
        ("VQA",),
        disagreement="published with images of 224 px, and with 1,283 questions of Quilt-VQA at rate 10 beside it",
    ),
)
