"""Pretraining on remote sensing: RGB and SAR, seen from above."""

from __future__ import annotations

from vitp.recipes.paper.pretraining import pretraining
from vitp.recipes.paper.tables import PRETRAINING
from vitp.runs.pretrain import PretrainConfig


def remote_sensing(
    mixture: str = "data/remote_sensing.json",
    *,
    init: str = PRETRAINING.init,
    gpus: int = PRETRAINING.gpus,
    as_published: bool = False,
) -> PretrainConfig:
    """ViTP on thirteen sets of aerial, satellite and SAR images, about one million records in 8,000 steps.

    Data: one folder a set below DATA, made by `vitp data prepare NAME --root DOWNLOAD --out DATA/NAME`; rates and tile
    limits come from the paper's table.
    Command: `torchrun --nproc-per-node 8 -m vitp recipe remote_sensing --data DATA --out runs/remote_sensing`
    Hardware: the authors took 23 hours on eight A40 (48 GB), four records a GPU, accumulated four times.
    Estimates for other machines: `vitp plan remote_sensing --gpu H100:8`.
    Expected: the export, finetuned by the thirteen remote-sensing recipes, reaches their scores.

    Where paper and published code differ:
    - paper: 75 % of the image tokens are dropped in every sample; published: in a quarter of the steps, and the sequence is
      padded back to its length, so that nothing is saved. Here: every sample, and dropped tokens are not computed.
    - published: one choice of tokens for a whole batch; here one a sample.
    - published: records are padded to the longest of a batch; here they are packed.
    - published: weights in bf16 under DeepSpeed ZeRO-1; here fp32 weights under bf16 autocast.
    - `--as-published` sets the first and the third as the authors' code has them (dropped tokens still cost nothing).
    - sizes and rates of some sets: `vitp recipes show remote_sensing`.
    """
    return pretraining(mixture, init=init, gpus=gpus, as_published=as_published)
