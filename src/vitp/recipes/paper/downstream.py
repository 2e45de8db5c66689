"""The sixteen downstream runs of the paper: ViT-Adapter and a head around a pretrained ViT-L, all finetuned.

Each function returns the complete configuration; its docstring is the lab page. All numbers come from
`tables_downstream.py`.
The published runs give each of eight GPUs its share of a batch; here a batch is that of the whole run, and a GPU's
share follows from the number of ranks (`torchrun --nproc-per-node 8 -m vitp recipes run NAME …`) and
`train.micro_batches`. Hours and memory of these runs are not published; `vitp plan NAME --gpu H100:8` estimates them.
"""

from __future__ import annotations

from typing import Any, Literal

from vitp.data.augment import AugmentSettings
from vitp.engine.config import OptimSettings
from vitp.models.convolution import NormKind
from vitp.recipes.paper.tables_downstream import ADAPTER, DOWNSTREAM, SVCD_COUNTED_LAYERS, DownstreamFacts
from vitp.runs.finetune import FinetuneConfig, FinetuneDataSettings, FinetuneTrainSettings
from vitp.tasks.base import InputSize, TestSettings
from vitp.tasks.build import BackboneSettings, NeckSettings

REMOTE_SENSING_WEIGHTS = "ViTP_ViT_L_300M_rs.safetensors"
MEDICAL_WEIGHTS = "ViTP_ViT_L_300M_med.safetensors"
"""The released backbones. Any export, run or model folder may stand in their place."""

NORM: NormKind = "sync"
"""As published. One image a step needs `-s neck.options.norm=group -s head.norm=group` (detectors: the first)."""


def dior(root: str = "data/dior", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """DIOR: boxes of 20 classes in aerial photographs of 800 px. Expected: 79.80 mAP50 ± 0.5.

    Data: the download with `JPEGImages-trainval`, `JPEGImages-test`, `Annotations` and `ImageSets`; train and val are
    learned from.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run dior --data data/dior --out runs/dior`
    """
    return _boxes(DOWNSTREAM["dior"], root, backbone)


def dior_r(root: str = "data/dior", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """DIOR-R: oriented boxes on DIOR's images. Expected: 75.08 mAP50 ± 0.5.

    Data: DIOR's download with its oriented annotations; train and val are learned from.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run dior_r --data data/dior --out runs/dior_r`
    """
    return _oriented(DOWNSTREAM["dior_r"], root, backbone)


def dota_v2(root: str = "data/dota_v2", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """DOTA-v2.0: oriented boxes of 18 classes. Expected: 60.23 mAP50 ± 0.5, as the evaluation server scores it.

    Data: `vitp data prepare dota_v2 --root DOWNLOAD --out data/dota_v2 --protocol paper` makes crops of 1024 px that
    share 200.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run dota_v2 --data data/dota_v2 --out runs/dota_v2`
    Score: only a server has the labels of test. `vitp predict runs/dota_v2 TEST --out submission` writes its zip; the
    score that the run prints at its end is of val crops, which were learned from, too (prepare with
    `--protocol official` to leave val out).
    """
    facts = DOWNSTREAM["dota_v2"]
    config = _oriented(facts, root, backbone)
    data = config.data.model_copy(update={"resize": InputSize(mode="long", size=facts.input_size)})
    test = config.test.model_copy(update={"resize": InputSize()})
    return config.model_copy(update={"data": data, "test": test})


def sardet100k(root: str = "data/sardet100k", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """SARDet-100K: boxes of 6 classes in SAR images. Expected: 59.7 mAP ± 0.5 (or 57.9, see below).

    Data: the download with `Annotations` in COCO's form.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run sardet100k --data data/sardet100k --out runs/sardet100k`
    """
    return _boxes(DOWNSTREAM["sardet100k"], root, backbone)


def rsar(root: str = "data/rsar", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """RSAR: oriented boxes of 6 classes in SAR images. Expected: 72.31 mAP50 ± 0.5.

    Data: the download with `train`, `val` and `test`.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run rsar --data data/rsar --out runs/rsar`
    """
    return _oriented(DOWNSTREAM["rsar"], root, backbone)


def ssdd(root: str = "data/ssdd", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """SSDD: ships in SAR images, boxes and masks. Expected: 70.80 box AP and 65.90 mask AP, ± 0.5.

    Data: the download in COCO's form.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run ssdd --data data/ssdd --out runs/ssdd`
    """
    config = _boxes(DOWNSTREAM["ssdd"], root, backbone)
    # Mask R-CNN; a smooth L1 of so small a beta is as good as the published L1.
    head = {"box": {"kind": "faster", "smooth_l1_beta": 1e-6}, "proposals": {"keep": [1000, 1000]}}
    return config.model_copy(update={"head": head, "test": config.test.model_copy(update={"flip": True})})


def isaid(root: str = "data/isaid", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """iSAID: 15 classes and background, pixel by pixel. Expected: 71.14 mIoU ± 0.5.

    Data: `vitp data prepare isaid --root DOWNLOAD --out data/isaid --protocol paper` makes crops of 896 px.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run isaid --data data/isaid --out runs/isaid`
    """
    config = _pixels(DOWNSTREAM["isaid"], root, backbone)
    augment = config.augment.model_copy(update={"scale": (1.0, 1.0), "max_class_share": 1.0})
    test = config.test.model_copy(update={"resize": InputSize(), "flip": True})
    return config.model_copy(update={"augment": augment, "test": test})


def loveda(root: str = "data/loveda", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """LoveDA: 7 classes of land, pixel by pixel. Expected: 54.28 mIoU ± 0.5, as the evaluation server scores it.

    Data: the download with `Train`, `Val` and `Test`; train and val are learned from.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run loveda --data data/loveda --out runs/loveda`
    Score: only a server has the labels of test. `vitp predict runs/loveda TEST --out submission` makes what it wants;
    the score that the run prints at its end is of val, which was learned from, too (`-s data.options.protocol=official`
    leaves val out).
    """
    return _pixels(DOWNSTREAM["loveda"], root, backbone)


def uavid(root: str = "data/uavid", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """UAVid: 8 classes in oblique video frames, pixel by pixel. Expected: 73.39 mIoU ± 0.5.

    Data: the download with its `seq` folders; train and val are learned from.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run uavid --data data/uavid --out runs/uavid`
    Score: only a server has the labels of test. `vitp predict runs/uavid TEST --out submission` makes what it wants;
    the score that the run prints at its end is of val, which was learned from, too (`-s data.options.protocol=official`
    leaves val out).
    """
    config = _pixels(DOWNSTREAM["uavid"], root, backbone)
    test = config.test.model_copy(
        update={"resize": InputSize(), "scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "flip": True}
    )
    data = config.data.model_copy(update={"resize": InputSize(mode="long", size=1024)})
    return config.model_copy(update={"data": data, "test": test})


def svcd(root: str = "data/svcd", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """SVCD: change between seasons. Expected: 98.63 F1 ± 0.3.

    Data: the download with `train`, `val` and `test`, each with `A`, `B` and `OUT`.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run svcd --data data/svcd --out runs/svcd`
    """
    facts = DOWNSTREAM["svcd"]
    config = _change(facts, root, backbone)
    # No crop and no swap of the dates in this run; the decay counts 15 layers that the ViT doesn't have.
    beyond = facts.layer_decay ** (SVCD_COUNTED_LAYERS - ADAPTER.parts[-1][1] - 1)
    augment = config.augment.model_copy(update={**_ANY_ANGLE, "swap_dates": 0.0, "max_class_share": 1.0})
    optim = config.optim.model_copy(update={"lr_scale": {"vision tower": beyond}})
    return config.model_copy(update={"augment": augment, "optim": optim})


def whu_cd(root: str = "data/whu_cd", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """WHU-CD: changed buildings. Expected: 94.98 F1 ± 0.3.

    Data: `vitp data prepare whu_cd --root DOWNLOAD --out data/whu_cd --protocol paper` makes crops of 256 px. There is
    no val: the curve is of test images and chooses nothing.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run whu_cd --data data/whu_cd --out runs/whu_cd`
    """
    return _change(DOWNSTREAM["whu_cd"], root, backbone)


def levir_cd(root: str = "data/levir_cd", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """LEVIR-CD: changed buildings. Expected: 92.67 F1 ± 0.3.

    Data: the download with `A`, `B` and `label`.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run levir_cd --data data/levir_cd --out runs/levir_cd`
    """
    config = _change(DOWNSTREAM["levir_cd"], root, backbone)
    return config.model_copy(update={"augment": config.augment.model_copy(update=_ANY_ANGLE)})


def s2looking(root: str = "data/s2looking", *, backbone: str = REMOTE_SENSING_WEIGHTS) -> FinetuneConfig:
    """S2Looking: changed buildings, seen obliquely. Expected: 69.89 F1 ± 1.0.

    Data: the download with `Image1`, `Image2` and `label`.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run s2looking --data data/s2looking --out runs/s2looking`
    """
    return _change(DOWNSTREAM["s2looking"], root, backbone)


def amos2022(root: str = "data/amos2022", *, backbone: str = MEDICAL_WEIGHTS) -> FinetuneConfig:
    """AMOS2022: organs in CT slices. Expected: 90.60 mDice ± 1.0.

    Data: `vitp data prepare amos2022 --root DOWNLOAD --out data/amos2022 --protocol paper`; slices stay in their
    volumes.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run amos2022 --data data/amos2022 --out runs/amos2022`
    """
    return _pixels(DOWNSTREAM["amos2022"], root, backbone)


def brats2021(root: str = "data/brats2021", *, backbone: str = MEDICAL_WEIGHTS) -> FinetuneConfig:
    """BraTS2021: parts of brain tumours in MRI slices. Expected: 72.11 mDice ± 1.0.

    Data: `vitp data prepare brats2021 --root DOWNLOAD --out data/brats2021 --protocol paper`; slices stay in their
    volumes.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run brats2021 --data data/brats2021 --out runs/brats2021`
    """
    return _pixels(DOWNSTREAM["brats2021"], root, backbone)


def covidquex(root: str = "data/covidquex", *, backbone: str = MEDICAL_WEIGHTS) -> FinetuneConfig:
    """CovidQUEx: infected lung in chest X-rays. Expected: 91.55 mDice ± 1.0.

    Data: the download with its infection masks.
    Command: `torchrun --nproc-per-node 8 -m vitp recipes run covidquex --data data/covidquex --out runs/covidquex`
    """
    return _pixels(DOWNSTREAM["covidquex"], root, backbone)


_ANY_ANGLE: dict[str, Any] = {"rotate": 180.0, "rotate90": False}
_READS_PREPARED = ("dota_v2", "isaid", "whu_cd", "amos2022", "brats2021")
"""These read what `vitp data prepare` writes: crops of large images, labels of slices."""
_STAND_INS: dict[str, dict[Literal["val", "test"], Literal["train", "val", "test"]]] = {
    "dota_v2": {"test": "val"},
    "loveda": {"test": "val"},
    "uavid": {"test": "val"},
    "whu_cd": {"val": "test"},
}
"""Only servers have the test labels of three sets; one has no val. See `data.splits` of a finetuning."""


def _config(facts: DownstreamFacts, root: str, backbone: str, **parts: Any) -> FinetuneConfig:
    """Return what all runs share, with the parts of one."""
    prepared = facts.name in _READS_PREPARED
    data = FinetuneDataSettings(
        global_batch=facts.batch,
        root=root,
        format="vitp" if prepared else facts.name,
        options={} if prepared else {"protocol": "paper"},
        splits=_STAND_INS.get(facts.name, {}),
        resize=parts.pop("resize", InputSize()),
        crop=parts.pop("crop", None),
    )
    length: dict[str, Any] = {"epochs": facts.epochs} if facts.steps is None else {"steps": facts.steps}
    return FinetuneConfig(
        task=facts.task,
        backbone=BackboneSettings(
            init=backbone,
            image_size=facts.input_size,
            patch_size=ADAPTER.patch_size,
            positions=ADAPTER.positions,
            drop_path=ADAPTER.drop_path,
            gradient_checkpointing=True,
        ),
        neck=NeckSettings(
            kind="adapter",
            options={
                "parts": [list(part) for part in ADAPTER.parts],
                "heads": ADAPTER.heads,
                "points": ADAPTER.points,
                "value_ratio": ADAPTER.value_ratio,
                "ffn_ratio": ADAPTER.ffn_ratio,
                "drop_path": ADAPTER.drop_path,
                "norm": NORM,
            },
        ),
        data=data,
        optim=OptimSettings(
            lr=facts.lr,
            weight_decay=facts.weight_decay,
            layer_decay=facts.layer_decay,
            clip_norm=facts.clip_norm,
            schedule=facts.schedule,
            decay_from=facts.decay_from,
            warmup_steps=facts.warmup_steps,
            warmup_start=facts.warmup_start,
            milestones=tuple(epoch / (facts.epochs or 1) for epoch in facts.milestones) or (8 / 12, 11 / 12),
        ),
        train=FinetuneTrainSettings(**length, val_every=4000, save_every=2000, log_every=50, num_workers=8),
        **parts,
    )


def _boxes(facts: DownstreamFacts, root: str, backbone: str) -> FinetuneConfig:
    """Images squeezed to a square, mirrored left-right; Cascade R-CNN."""
    return _config(
        facts,
        root,
        backbone,
        resize=InputSize(mode="fixed", size=facts.input_size),
        augment=AugmentSettings(flip="horizontal", rotate90=False, photometric=0.0),
        head={"box": {"kind": "cascade"}},
    )


def _oriented(facts: DownstreamFacts, root: str, backbone: str) -> FinetuneConfig:
    """Mirrored in both directions, half of the images turned by any angle; Oriented R-CNN as in its paper."""
    return _config(
        facts,
        root,
        backbone,
        resize=InputSize(mode="fixed", size=facts.input_size),
        augment=AugmentSettings(rotate=180.0, rotate_probability=0.5, rotate90=False, photometric=0.0),
        test=TestSettings(window=facts.window, overlap=facts.overlap),
    )


def _decoder(facts: DownstreamFacts) -> dict[str, Any]:
    return {"kind": "upernet", "width": facts.decoder_width, "auxiliary": 0.0, "norm": NORM}


def _pixels(facts: DownstreamFacts, root: str, backbone: str) -> FinetuneConfig:
    """Scale 0.5 to 2, crops, mirrored left-right, photometric changes; UperNet without a second head."""
    return _config(
        facts,
        root,
        backbone,
        resize=InputSize(mode="long", size=facts.input_size),
        crop=facts.input_size,
        augment=AugmentSettings(scale=(0.5, 2.0), flip="horizontal", rotate90=False, photometric=1.0),
        head=_decoder(facts),
        test=TestSettings(window=facts.window, overlap=facts.overlap),
    )


def _change(facts: DownstreamFacts, root: str, backbone: str) -> FinetuneConfig:
    """Half of the pairs turned by up to 20°, crops, mirrored and turned by quarters, dates swapped; UperNet."""
    return _config(
        facts,
        root,
        backbone,
        crop=facts.input_size,
        augment=AugmentSettings(rotate=20.0, rotate_probability=0.5, photometric=0.4, swap_dates=0.5),
        head={**_decoder(facts), "fusion": "concatenate"},
        test=TestSettings(window=facts.window, overlap=facts.overlap),
    )
