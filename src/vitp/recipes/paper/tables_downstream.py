"""The values of the paper's sixteen downstream runs and of its authors' configuration files, once.

"Published" are the configuration files that the authors released beside the paper; where they differ from the paper,
`disagreements` says which one the recipes follow. Recipes take every number from here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Schedule = Literal["cosine", "linear", "step"]
DecayFrom = Literal["warmup", "start"]


@dataclass(frozen=True)
class AdapterFacts:
    """ViT-Adapter around the ViT-L, the same in all sixteen runs.

    Attributes:
        parts: First and last block of each interaction.
        value_ratio, ffn_ratio: See `ViTAdapter`.
        heads, points: Heads and points of the deformable attention.
        patch_size: The patches of 14 are resized to this.
        positions: How the position table is resampled to the run's images.
        drop_path: Drop path of the ViT and of the adapter.
    """

    parts: tuple[tuple[int, int], ...] = ((0, 7), (8, 11), (12, 15), (16, 23))
    value_ratio: float = 0.25
    ffn_ratio: float = 0.25
    heads: int = 16
    points: int = 4
    patch_size: int = 16
    positions: Literal["bicubic"] = "bicubic"
    drop_path: float = 0.1


ADAPTER = AdapterFacts()


@dataclass(frozen=True)
class DownstreamFacts:
    """One downstream run.

    Attributes:
        name: Name of the set, as `vitp data prepare` calls it.
        title: As the paper writes it.
        task: Task of `vitp finetune`.
        modality: What the images are.
        classes: Number of classes, background included where pixels are classified.
        head: What sits on the adapter.
        input_size: Side in pixels of what the model sees while training.
        lr, layer_decay: As in the paper's table.
        scores: Metric → the paper's score in percent; the first is the headline.
        epochs, steps: The length; one of the two.
        milestones: Epochs after which the rate falls to a tenth (schedule "step").
        schedule: What follows the warm-up.
        decay_from: Whether the schedule counts from the end of the warm-up, or from the start of the run.
        warmup_steps: Steps with a linearly rising rate.
        warmup_start: Share of the rate that the warm-up starts from.
        weight_decay: On parameters of two and more dimensions.
        clip_norm: Largest gradient norm.
        batch: Images an optimizer step, over the eight GPUs of the published runs.
        decoder_width: Channels of UperNet.
        window, stride: Test window and step in pixels; None: the whole image.
        tolerance: Points around the paper's score within which we would call a rerun a reproduction. A judgement:
            the paper gives no spread over seeds.
        published: Whether the authors released the run's configuration. If not, rates, sizes and lengths are ours.
        disagreements: Paper against published configuration, and published configuration against what runs here.
    """

    name: str
    title: str
    task: str
    modality: str
    classes: int
    head: str
    input_size: int
    lr: float
    layer_decay: float
    scores: dict[str, float]
    epochs: int | None = None
    steps: int | None = None
    milestones: tuple[int, ...] = ()
    schedule: Schedule = "cosine"
    decay_from: DecayFrom = "warmup"
    warmup_steps: int = 1500
    warmup_start: float = 0.0
    weight_decay: float = 0.05
    clip_norm: float | None = None
    batch: int = 8
    decoder_width: int = 512
    window: int | None = None
    stride: int | None = None
    tolerance: float = 0.5
    published: bool = True
    disagreements: tuple[str, ...] = ()

    @property
    def overlap(self) -> float:
        """Share of a test window that the next one sees again."""
        if self.window is None or self.stride is None:
            return 0.0
        return 1 - self.stride / self.window


_ALL_RUNS = (
    "published: fp16 with loss scaling; here bf16",
    "published: the class token is left out downstream, and only the last block's features are added to the four maps; "
    "here the token stays and each interaction's features are added to its map",
)
_BOXES = (
    *_ALL_RUNS,
    'published: the "simple FPN" has no top-down path and layer norm; here an FPN with a top-down path',
    "published: adaptive RoIAlign sampling; here 2 × 2 points a cell",
)
_ORIENTED = (
    *_ALL_RUNS,
    'published: the "simple FPN" has no top-down path and layer norm; here an FPN with a top-down path',
    "published: images with nearly symmetric classes (`rect_classes`) turn by multiples of 90° only; here by any angle",
    "published: a turned image keeps its frame; here a random window of the turned image is taken",
    "published: mirrored, then turned; here turned, then mirrored, which gives the same images as often",
)
_PIXELS = (
    *_ALL_RUNS,
    "published: scales are drawn evenly; here evenly in the logarithm",
)
_CHANGE = (
    *_ALL_RUNS,
    "published: dates are swapped before the photometric changes; here after, which is the same, as dates change alone",
    "published: brightness changes by at most 10 of 255, hue by 10 of 180; here by 20 % and 2 % of the circle",
)
_MEDICAL = (
    "the paper gives the head and the score only: input size, rate, decay, length and crops are ours",
    *_PIXELS,
)

_DIOR = DownstreamFacts(
    name="dior",
    title="DIOR",
    task="detection",
    modality="RGB",
    classes=20,
    head="Cascade R-CNN, simple FPN",
    input_size=800,
    lr=2e-5,
    layer_decay=0.9,
    scores={"mAP50": 79.80},
    epochs=12,
    milestones=(8, 11),
    schedule="step",
    warmup_steps=500,
    warmup_start=1 / 3,
    clip_norm=35.0,
    disagreements=_BOXES,
)
_DIOR_R = replace(
    _DIOR,
    name="dior_r",
    title="DIOR-R",
    task="oriented",
    head="Oriented R-CNN (le90), simple FPN",
    lr=2.5e-5,
    layer_decay=0.95,
    scores={"mAP50": 75.08},
    disagreements=_ORIENTED,
)
_LOVEDA = DownstreamFacts(
    name="loveda",
    title="LoveDA",
    task="segmentation",
    modality="RGB",
    classes=7,
    head="UperNet 512",
    input_size=512,
    lr=1e-5,
    layer_decay=0.9,
    scores={"mIoU": 54.28},
    steps=80_000,
    decay_from="start",
    weight_decay=0.1,
    window=512,
    stride=384,
    disagreements=(
        "paper: weight decay 0.05; published: 0.1, which runs here",
        "published: images are halved to 512 px, in training and at test",
        *_PIXELS,
    ),
)
_WHU_CD = DownstreamFacts(
    name="whu_cd",
    title="WHU-CD",
    task="change",
    modality="RGB pair",
    classes=2,
    head="Siamese, concatenated features, UperNet 512",
    input_size=256,
    lr=2e-5,
    layer_decay=0.9,
    scores={"F1": 94.98},
    steps=120_000,
    schedule="linear",
    warmup_steps=1000,
    batch=32,
    tolerance=0.3,
    disagreements=_CHANGE,
)
_AMOS = replace(
    _LOVEDA,
    name="amos2022",
    title="AMOS2022",
    modality="CT",
    classes=14,
    head="UperNet",
    lr=2e-5,
    scores={"mDice": 90.60},
    weight_decay=0.05,
    window=None,
    stride=None,
    tolerance=1.0,
    published=False,
    disagreements=("the paper counts 14 classes; the set labels 15 organs", *_MEDICAL),
)

DOWNSTREAM: dict[str, DownstreamFacts] = {
    facts.name: facts
    for facts in (
        _DIOR,
        _DIOR_R,
        replace(
            _DIOR_R,
            name="dota_v2",
            title="DOTA-v2.0",
            classes=18,
            head="Oriented R-CNN, simple FPN",
            input_size=1024,
            scores={"mAP50": 60.23},
            window=1024,
            stride=824,
        ),
        replace(
            _DIOR,
            name="sardet100k",
            title="SARDet-100K",
            modality="SAR",
            classes=6,
            head="Cascade R-CNN, simple FPN",
            input_size=1024,
            lr=1e-5,
            layer_decay=0.95,
            scores={"mAP": 59.7},
            disagreements=(
                "paper: input 800; published: 1024, which runs here",
                "paper: 59.7 mAP; the table beside the published configuration says 57.9",
                *_BOXES,
            ),
        ),
        replace(
            _DIOR_R,
            name="rsar",
            title="RSAR",
            modality="SAR",
            classes=6,
            head="Oriented R-CNN, simple FPN",
            scores={"mAP50": 72.31},
        ),
        replace(
            _DIOR,
            name="ssdd",
            title="SSDD",
            task="instance",
            modality="SAR",
            classes=1,
            head="Mask R-CNN, FPN",
            input_size=608,
            lr=1e-5,
            scores={"box AP": 70.80, "mask AP": 65.90},
            epochs=24,
            milestones=(16, 22),
            disagreements=(
                "published: the heads have 80 classes, left over from COCO; here 1",
                "published: L1 loss on proposals; here smooth L1",
                "published: adaptive RoIAlign sampling; here 2 × 2 points a cell",
                *_ALL_RUNS,
            ),
        ),
        replace(
            _LOVEDA,
            name="isaid",
            title="iSAID",
            classes=16,
            input_size=896,
            lr=1.5e-5,
            scores={"mIoU": 71.14},
            weight_decay=0.05,
            batch=16,
            window=896,
            stride=448,
            disagreements=(
                "paper: random scale 0.5 to 2 and crops with at most 75 % of one class; published: neither, as here",
                "paper: a window of 896 that moves by 448; published: whole crops of 896; here the window",
                *_PIXELS,
            ),
        ),
        _LOVEDA,
        replace(
            _LOVEDA,
            name="uavid",
            title="UAVid",
            classes=8,
            input_size=768,
            scores={"mIoU": 73.39},
            weight_decay=0.05,
            window=768,
            stride=512,
            disagreements=(
                "published: images are shrunk to 1024 px in training; the test looks at the full size, at scales 0.5 to 1.75",
                *_PIXELS,
            ),
        ),
        replace(
            _WHU_CD,
            name="svcd",
            title="SVCD",
            layer_decay=0.94,
            scores={"F1": 98.63},
            disagreements=(
                "published: the decay counts 39 layers though the ViT has 24, so that all of its rates are 0.94^15 times "
                "smaller; so they are here",
                "paper: the dates are swapped; published: not in this run, and not here",
                *_CHANGE,
            ),
        ),
        _WHU_CD,
        replace(
            _WHU_CD,
            name="levir_cd",
            title="LEVIR-CD",
            head="Siamese, concatenated features, UperNet 1024",
            lr=1e-4,
            scores={"F1": 92.67},
            steps=80_000,
            schedule="cosine",
            warmup_steps=1500,
            decoder_width=1024,
            window=256,
            stride=128,
        ),
        replace(
            _WHU_CD,
            name="s2looking",
            title="S2Looking",
            input_size=512,
            scores={"F1": 69.89},
            batch=8,
            window=512,
            stride=256,
            tolerance=1.0,
        ),
        _AMOS,
        replace(
            _AMOS,
            name="brats2021",
            title="BraTS2021",
            modality="MRI",
            classes=3,
            scores={"mDice": 72.11},
            disagreements=(
                "the regions overlap (whole tumour, core, enhancing); classes here are background and the three labels",
                *_MEDICAL,
            ),
        ),
        replace(
            _AMOS,
            name="covidquex",
            title="CovidQUEx",
            modality="X-ray",
            classes=2,
            scores={"mDice": 91.55},
            disagreements=_MEDICAL,
        ),
    )
}
"""Name → row, in the paper's order."""

PUBLISHED_ORDER: dict[str, tuple[str, ...]] = {
    "detection": ("resize", "flip"),
    "instance": ("resize", "flip"),
    "oriented": ("resize", "flip", "rotate"),
    "segmentation": ("resize", "scale", "crop", "flip", "photometric"),
    "change": ("rotate", "crop", "flip", "swap dates", "photometric"),
}
"""Task → order of the random changes in the published configurations."""

SVCD_COUNTED_LAYERS = 39
"""Layers that the published SVCD run counts for its decay; the ViT has 24."""
