"""Typical records of the paper's pretraining sets: assumptions, for plans made before the data is there.

Image sizes are those that the sets' publications name, where they name one; sets of mixed sizes are a few usual ones.
Lengths of texts are rounded guesses. `vitp plan NAME --data DATA` counts instead.
"""

from __future__ import annotations

from vitp.planning.samples import TypicalRecord


def _square(side: int, *, images: int = 1, text: int = 120, answer: int = 30) -> TypicalRecord:
    return TypicalRecord(((1.0, side, side),), images, text, answer)


TYPICAL: dict[str, TypicalRecord] = {
    # Photographs of COCO's size, charts and pages.
    "general": TypicalRecord(((0.7, 640, 480), (0.3, 800, 800)), text=300, answer=150),
    "rsvqa": _square(512, text=80, answer=10),
    "fit_rs": _square(512, text=200, answer=60),
    # DOTA, DIOR and FAIR1M crops; scenes of NWPU-RESISC45 and RSVQA-LR.
    "geochat": TypicalRecord(((0.6, 800, 800), (0.2, 600, 600), (0.2, 256, 256)), text=200, answer=80),
    "vrsbench": _square(512, text=150, answer=50),
    "rsvg": _square(1024, text=100, answer=25),
    "dior_rsvg": _square(800, text=100, answer=25),
    "isprs_sar": _square(256, text=80, answer=10),
    "sentinel12": _square(256, text=80, answer=10),
    # SAMRS (DOTA and DIOR images), RSVQA-LR, NWPU-RESISC45 and small sets.
    "vhm": TypicalRecord(
        ((0.24, 1024, 1024), (0.23, 800, 800), (0.4, 256, 256), (0.13, 512, 512)), text=150, answer=50
    ),
    "levir_cc": _square(256, images=2, text=90, answer=20),
    "gaia": TypicalRecord(((0.5, 1024, 768), (0.5, 1024, 1024)), text=180, answer=100),
    "million_aid": TypicalRecord(((0.5, 512, 512), (0.5, 256, 256)), text=120, answer=40),
    "gmai_mmbench": _square(512, text=120, answer=10),
    "open_i": TypicalRecord(((0.5, 512, 624), (0.5, 512, 420)), text=160, answer=80),
    "huatuo_oa": TypicalRecord(((0.5, 700, 500), (0.5, 512, 512)), text=250, answer=180),
    "huatuo_vqa": TypicalRecord(((0.5, 700, 500), (0.5, 512, 512)), text=250, answer=150),
    "pmc_oa": TypicalRecord(((0.5, 700, 500), (0.5, 512, 512)), text=150, answer=90),
    "pmc_vqa": TypicalRecord(((0.5, 700, 500), (0.5, 512, 512)), text=120, answer=15),
    "omnimedvqa": _square(512, text=100, answer=10),
    "quilt_1m": TypicalRecord(((1.0, 1280, 720),), text=130, answer=60),
    "quilt_instruct": TypicalRecord(((1.0, 1280, 720),), text=250, answer=150),
}
"""Name of a set → its records."""
