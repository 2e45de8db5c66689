"""How large a study is: `micro` for two processor cores, `small` for one GPU, `paper` as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vitp.config import make_config
from vitp.errors import ConfigError, did_you_mean

SMALL_DETECTOR: dict[str, Any] = {
    "width": 64,
    "proposals": {"anchor_scales": [2.0], "keep_before": [300, 200], "keep": [100, 60]},
    "box": {"kind": "faster", "hidden": 128, "samples": 48, "detections": 40},
}
"""Faster R-CNN for a ViT of a few million parameters and objects of 5–40 px."""


class SceneScale(BaseModel):
    """Generated scenes.

    Attributes:
        domain: Of `vitp data scenes`.
        count: Scenes in all splits together.
        val, test: Share of validation and test scenes, each from textures and shapes of its own.
        size: Side in pixels.
        seed: Of the scenes.
    """

    model_config = ConfigDict(extra="forbid")

    domain: str = "port"
    count: int = Field(3000, gt=0)
    val: float = Field(0.06, ge=0, lt=1)
    test: float = Field(0.08, ge=0, lt=1)
    size: int = Field(96, ge=16)
    seed: int = Field(31, ge=0)


class TaskScale(BaseModel):
    """How one downstream task is finetuned: the same for every arm, but for the learning rate where it is tuned.

    Attributes:
        steps, batch_size: Of a finetuning on few labels.
        labels: Labelled images of a finetuning on few labels: a number, or a share below 1.
        lrs: Learning rates that are tried for each arm on validation images; one: nothing is tried.
        full_steps: Steps with all labels (the ceiling).
        layer_decay: See `OptimConfig`.
        head: Of `vitp finetune`.
        neck: Of `vitp finetune`.
        score: The value that arms are compared by.
        max_val_images: Validation images at most.
    """

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(gt=0)
    batch_size: int = Field(8, gt=0)
    labels: int | float | None = 100
    lrs: tuple[float, ...] = Field((1e-3,), min_length=1)
    full_steps: int = Field(gt=0)
    layer_decay: float = 0.75
    head: dict[str, Any] = Field(default_factory=dict)
    neck: dict[str, Any] = Field(default_factory=dict)
    score: str
    max_val_images: int = Field(200, gt=0)


class Scale(BaseModel):
    """All sizes of a study.

    Attributes:
        name: "micro", "small" or "paper".
        quick: One seed and less of everything: proves nothing.
        start: What pretraining continues from: "starter", or the folder of a vision-language model.
        inits: Also from scratch?
        budgets: What is made equal between paradigms: images seen, floating-point operations, or each in turn.
        seeds: Pretraining seeds 0, 1, ….
        draws: Finetuning seeds: each draws its own labels, head and order.
        images: Images seen in pretraining, ViTP's alignment included.
        batch: Images a step, for all paradigms; None: each its own (contrast needs more beside each other than
            the language loss) times `batch_factor`.
        batch_factor: See `batch`.
        align_share: Share of ViTP's images with the ViT frozen.
        lrs: Pretraining rates tried for each paradigm; None: each its own default, untuned. One: that one.
        tuning_images: Images seen by a run that only serves to choose a rate.
        vrl: Share of image tokens that ViTP drops.
        workers: Processes that prepare batches.
        threads: CPU threads of a training; None: torch's choice.
        scenes: Where no data are given.
        probe_labels: Labelled images of a probe.
        probe_draws: Draws of them.
        probe_images: Images of a split at most.
        tasks: Downstream task → how.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    quick: bool = False
    start: str = "starter"
    inits: tuple[Literal["start", "scratch"], ...] = ("start", "scratch")
    budgets: tuple[Literal["images", "flops"], ...] = ("images", "flops")
    seeds: int = Field(3, ge=1)
    draws: int = Field(3, ge=1)
    images: int = Field(gt=0)
    batch: int | None = Field(None, gt=0)
    batch_factor: int = Field(1, gt=0)
    align_share: float = Field(0.3, ge=0, lt=1)
    lrs: tuple[float, ...] | None = (1e-4, 3e-4, 1e-3)
    tuning_images: int = Field(gt=0)
    vrl: float = Field(0.75, ge=0, lt=1)
    workers: int = Field(1, ge=0)
    threads: int | None = Field(None, gt=0)
    scenes: SceneScale = Field(default_factory=SceneScale)
    probe_labels: int = Field(300, ge=2)
    probe_draws: int = Field(3, ge=1)
    probe_images: int = Field(400, ge=10)
    tasks: dict[str, TaskScale]


def micro() -> Scale:
    """Return the scale of two processor cores: each run takes minutes, a study a night."""
    return Scale(
        name="micro",
        images=4160,
        tuning_images=1600,
        tasks={
            "classification": TaskScale(
                steps=60, full_steps=200, labels=60, lrs=(3e-4, 1e-3), score="accuracy"
            ),
            "presence": TaskScale(
                steps=60,
                full_steps=200,
                labels=60,
                lrs=(3e-4, 1e-3),
                score="map",
                head={"multi_label": True},
            ),
            "segmentation": TaskScale(
                steps=120,
                full_steps=400,
                labels=60,
                lrs=(3e-4, 1e-3),
                score="miou",
                head={"kind": "fpn", "width": 64},
                neck={"kind": "simple", "options": {"channels": 64}},
            ),
            "detection": TaskScale(
                steps=150,
                full_steps=400,
                labels=60,
                lrs=(3e-4, 1e-3),
                score="AP50",
                head=SMALL_DETECTOR,
                neck={"kind": "simple", "options": {"channels": 64}},
            ),
        },
    )


def small() -> Scale:
    """Return the scale of one GPU: the same ViT, forty times the images, long finetunings."""
    base = micro()
    steps = {"classification": 600, "presence": 600, "segmentation": 1500, "detection": 2500}
    tasks = {
        name: task.model_copy(
            update={
                "steps": steps[name],
                "full_steps": 3 * steps[name],
                "batch_size": 16,
                "labels": 200,
                "lrs": (1e-4, 3e-4, 1e-3),
                "max_val_images": 500,
            }
        )
        for name, task in base.tasks.items()
    }
    return base.model_copy(
        update={
            "name": "small",
            "images": 160_000,
            "tuning_images": 40_000,
            "batch_factor": 4,
            "workers": 8,
            "scenes": SceneScale(count=24_000, val=0.02, test=0.04),
            "probe_labels": 1000,
            "probe_images": 2000,
            "tasks": tasks,
        }
    )


def paper() -> Scale:
    """Return the published size: a recipe for eight GPUs, on your own data and from InternVL2.5-1B.

    ViT-L/14 at 448 px and Qwen2.5-0.5B, 8,000 steps of 128, VRL 0.75, heads as published. Give the data with
    `--data` and the model with `--set start=FOLDER`.
    """
    adapter = {"kind": "adapter"}
    return Scale(
        name="paper",
        inits=("start",),
        seeds=3,
        draws=3,
        images=1_024_000,
        batch=128,
        align_share=0.0,
        lrs=(1e-5, 2e-5, 5e-5),
        tuning_images=128_000,
        workers=8,
        probe_labels=5000,
        probe_images=20_000,
        tasks={
            "classification": TaskScale(
                steps=20_000, full_steps=40_000, batch_size=16, labels=0.1, lrs=(1e-5, 5e-5), layer_decay=0.9, score="accuracy"
            ),
            "presence": TaskScale(
                steps=20_000, full_steps=40_000, batch_size=16, labels=0.1, lrs=(1e-5, 5e-5), layer_decay=0.9, score="map", head={"multi_label": True}
            ),
            "segmentation": TaskScale(
                steps=40_000, full_steps=80_000, batch_size=16, labels=0.1, lrs=(1e-5, 2e-5), layer_decay=0.9, score="miou", head={"kind": "upernet", "width": 512}, neck=adapter
            ),
            "detection": TaskScale(
                steps=40_000, full_steps=80_000, batch_size=16, labels=0.1, lrs=(1e-5, 2e-5), layer_decay=0.9, score="AP50", neck=adapter
            ),
        },
    )  # fmt: skip


def as_quick(scale: Scale) -> Scale:
    """Return a scale for a first look: one seed, one start, no tuning, a quarter of the images. It proves nothing."""
    tasks = {
        name: task.model_copy(
            update={
                "steps": max(1, task.steps // 3),
                "full_steps": task.steps,
                "lrs": task.lrs[-1:],
                "max_val_images": 40,
            }
        )
        for name, task in scale.tasks.items()
    }
    changes = {
        "quick": True,
        "inits": ("start",),
        "budgets": ("images",),
        "seeds": 1,
        "draws": 1,
        "images": max(8, scale.images // 4),
        "lrs": None,
        "probe_draws": 1,
        "tasks": tasks,
    }
    return scale.model_copy(update=changes)


SCALES = {"micro": micro, "small": small, "paper": paper}
"""Name → scale."""


def scale_of(name: str, *, quick: bool = False, overrides: Sequence[str] = ()) -> Scale:
    """Return a scale by its name, with `key.key=value` overrides.

    Raises:
        ConfigError: There is none of that name, or a key or value is wrong.
    """
    if name not in SCALES:
        hint = did_you_mean(name, SCALES) or f"scales are {', '.join(SCALES)}"
        raise ConfigError(f'no scale "{name}"', where="--scale", fix=hint)
    scale = as_quick(SCALES[name]()) if quick else SCALES[name]()
    values: Mapping[str, Any] = scale.model_dump(mode="json")
    return make_config(Scale, dict(values), overrides, where="--set")
