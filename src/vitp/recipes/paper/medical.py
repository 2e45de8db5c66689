"""Pretraining on medical images: CT, MRI, X-ray, pathology and figures of papers."""

from __future__ import annotations

from vitp.recipes.paper.pretraining import pretraining
from vitp.recipes.paper.tables import PRETRAINING
from vitp.runs.pretrain import PretrainConfig


def medical(
    mixture: str = "data/medical.json",
    *,
    init: str = PRETRAINING.init,
    gpus: int = PRETRAINING.gpus,
    as_published: bool = False,
) -> PretrainConfig:
    """ViTP on ten medical sets, about one million records in 8,000 steps.

    Data: one folder a set below DATA, made by `vitp data prepare NAME --root DOWNLOAD --out DATA/NAME`; rates and tile
    limits come from the paper's table.
    Command: `torchrun --nproc-per-node 8 -m vitp recipe medical --data DATA --out runs/medical`
    Hardware: eight A40 (48 GB), four records a GPU, accumulated four times; its hours are not published.
    Estimates: `vitp plan medical --gpu H100:8`.
    Expected: the export, finetuned by amos2022, brats2021 and covidquex, reaches their scores.

    Where paper and published code differ: as in remote_sensing. The published file reads the three Quilt sets with tiles
    of 224 px; here all tiles are of the model's size.
    """
    return pretraining(mixture, init=init, gpus=gpus, as_published=as_published)
