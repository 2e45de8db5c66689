"""A tiny vision tower, a labelled folder, and one case for each image objective: for the tests of the objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.conftest import tiny_chat
from vitp.data.augment import ViewSettings
from vitp.data.batches import SampledBatches
from vitp.data.formats import vitp_labels
from vitp.data.formats.pixel_masks import MaskFile
from vitp.data.formats.vitp_labels import Roots
from vitp.models.vision import VisionSettings, VisionTower
from vitp.objectives.distil import DistilObjective, DistilSettings, TaughtViews
from vitp.objectives.distillation import Crops, DistillationObjective, DistillationSettings
from vitp.objectives.distillation_terms import GramSettings
from vitp.objectives.dropped_positions import DroppedPositionObjective, DroppedPositionSettings, PlacedViews
from vitp.objectives.image_base import ImageObjective
from vitp.objectives.image_rows import image_mixture, read_image_rows
from vitp.objectives.image_text import ImageTextObjective, ImageTextPairs
from vitp.objectives.masked_image import MaskedImageObjective, MaskedImageSettings, MaskedViews
from vitp.objectives.regions import RegionTextObjective, RegionTextSettings, RegionViews
from vitp.objectives.simclr import SimCLRObjective, SimCLRSettings, TwoViews
from vitp.objectives.supervised import ClassNames, LabelledViews, SupervisedObjective, SupervisedSettings
from vitp.objectives.teachers import TeacherSettings
from vitp.objectives.text_tower import SmallTextTower, Tokens, captions_of
from vitp.records.instructions import IMAGE_MARK, InstructionRecord, Turn, to_line
from vitp.records.labels import BACKGROUND, LabelledImage, LabelledSet, ObjectLabel

SIZE, PATCH = 32, 8
SCENES, OBJECTS, SEMANTIC = ("harbour", "field"), ("ship", "plane"), ("water", "land", "ship")
VISION = VisionSettings(
    arguments={"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": PATCH}, image_size=SIZE
)


def tiny_tower(seed: int = 0) -> VisionTower:
    torch.manual_seed(seed)
    return VisionTower(VISION)


def labelled_image(folder: Path, number: int, split: str = "train") -> LabelledImage:
    """Write an image and its mask; return all labels of it."""
    rng = np.random.default_rng(number)
    image, mask = folder / f"{number}.png", folder / f"{number}_mask.png"
    Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(image)
    Image.fromarray(rng.integers(0, 3, (40, 48), dtype=np.uint8)).save(mask)
    corner = float(rng.integers(0, 20))
    name = OBJECTS[number % 2]
    return LabelledImage(
        id=f"image {number}",
        image=str(image),
        width=48,
        height=40,
        split=split,
        objects=(ObjectLabel(name, (corner, corner, corner + 10, corner + 10)),),
        scene=SCENES[number % 2],
        captions=(f"a {name} in {SCENES[number % 2]} {number}",),
        semantic=MaskFile(str(mask), tuple((value, value) for value in range(3))),
    )


def labelled_folder(folder: Path, *, images: int = 12, name: str = "toy") -> Path:
    """Make what `vitp data compile` would: labels, and training records with two turns."""
    folder.mkdir(parents=True)
    items = [labelled_image(folder, number) for number in range(images)]
    items += [labelled_image(folder, images + number, "val") for number in range(2)]
    labelled = LabelledSet(name, items, OBJECTS, SCENES, SEMANTIC, licence="CC0")
    vitp_labels.write_compiled(labelled, Roots(folder, folder, folder))
    rows = [
        InstructionRecord(
            id=item.id,
            images=(Path(item.image).name,),
            turns=(Turn(f"{IMAGE_MARK}\nWhich scene?", item.scene or ""), Turn("Any ship?", "yes")),
            independent=True,
        )
        for item in items
        if item.split == "train"
    ]
    (folder / "train.jsonl").write_text("".join(to_line(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "mixture.json").write_text(
        f'{{"{name}": {{"annotation": "train.jsonl", "root": "."}}}}', encoding="utf-8"
    )
    return folder


@dataclass(frozen=True)
class Case:
    """An image objective and its batches.

    Attributes:
        make: The objective around a tower, by default around the tiny one; the same weights every time.
        source: Its batches from a labelled folder, four images a step.
        losses: Their names.
        groups: The parts of its parameters.
        views: Views the tower computes of an image.
    """

    make: Callable[..., ImageObjective]
    source: Callable[[Path], SampledBatches[LabelledImage]]
    losses: frozenset[str]
    groups: tuple[str, ...]
    views: int


def source_of(folder: Path, collate: Any, batch: int = 4, micro: int = 1) -> SampledBatches[LabelledImage]:
    return SampledBatches(image_mixture([read_image_rows(folder)], None, 3), collate, batch, micro)


def masked(tower: VisionTower | None = None) -> MaskedImageObjective:
    tower = tower or tiny_tower()
    return MaskedImageObjective(tower, MaskedImageSettings(decoder_width=32, decoder_layers=1))


def simclr(tower: VisionTower | None = None) -> SimCLRObjective:
    tower = tower or tiny_tower()
    return SimCLRObjective(tower, SimCLRSettings(dimension=16))


DINO = DistillationSettings(local_views=2, prototypes=24, hidden=32, bottleneck=16, momentum=0.9)
IBOT = DINO.model_copy(update={"mask": 1.0, "mask_ratio": (0.3, 0.5)})
TODAY = IBOT.model_copy(update={"targets": "sinkhorn", "koleo": 0.1, "gram": GramSettings(weight=2.0)})


def distillation(
    config: DistillationSettings = DINO, tower: VisionTower | None = None
) -> DistillationObjective:
    tower = tower or tiny_tower()
    return DistillationObjective(tower, config, steps=10)


TAUGHT = DistilSettings(
    teachers=[
        TeacherSettings(tokens=1.0, attention=1.0),
        TeacherSettings(source="average", tokens=0, pooled=0.5, relations=0.5, momentum=0.5, past=0.2),
    ]
)


def taught(tower: VisionTower | None = None) -> DistilObjective:
    """A student of two teachers that aren't like it."""
    objective = DistilObjective(tower or tiny_tower(), TAUGHT, ["toy"])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for teacher in objective.teachers():
            for parameter in teacher.backbone.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return objective


def image_text(loss: Any, tower: VisionTower | None = None) -> ImageTextObjective:
    tower = tower or tiny_tower()
    text = SmallTextTower(len(tiny_chat()), width=32, layers=1, heads=2, length=16)
    return ImageTextObjective(tower, text, loss=loss, dimension=16)


def supervised(tower: VisionTower | None = None) -> SupervisedObjective:
    tower = tower or tiny_tower()
    return SupervisedObjective(tower, ClassNames(SCENES, OBJECTS))


def _pairs(folder: Path) -> SampledBatches[LabelledImage]:
    tokens = Tokens(tiny_chat().tokenizer, 16)
    texts = captions_of([read_image_rows(folder)])
    return source_of(folder, ImageTextPairs(SIZE, ViewSettings.neutral(), texts, tokens, "captions"))


def _labelled(folder: Path) -> SampledBatches[LabelledImage]:
    views = SupervisedSettings().views
    return source_of(folder, LabelledViews(SIZE, views, ClassNames(SCENES, OBJECTS), (OBJECTS,)))


def regions(tower: VisionTower | None = None) -> RegionTextObjective:
    tower = tower or tiny_tower()
    text = SmallTextTower(len(tiny_chat()), width=32, layers=1, heads=2, length=16)
    return RegionTextObjective(tower, text, dimension=16)


def region_views(settings: RegionTextSettings | None = None) -> RegionViews:
    texts = (*OBJECTS, BACKGROUND)
    tokens = Tokens(tiny_chat().tokenizer, 16)
    return RegionViews(SIZE, settings or RegionTextSettings(), texts, ((True,) * 3,), tokens)


TOWER_AND_HEAD = ("vision tower", "head")

CASES = {
    "mae": Case(
        masked,
        lambda folder: source_of(folder, MaskedViews(SIZE, 16, MaskedImageSettings())),
        frozenset({"pixels"}),
        TOWER_AND_HEAD,
        1,
    ),
    "simclr": Case(
        simclr,
        lambda folder: source_of(folder, TwoViews(SIZE, SimCLRSettings().views)),
        frozenset({"contrast"}),
        TOWER_AND_HEAD,
        2,
    ),
    "dino": Case(
        partial(distillation, DINO),
        lambda folder: source_of(folder, Crops(SIZE, PATCH, DINO)),
        frozenset({"views"}),
        ("vision tower", "teacher", "head"),
        4,
    ),
    "ibot": Case(
        partial(distillation, IBOT),
        lambda folder: source_of(folder, Crops(SIZE, PATCH, IBOT)),
        frozenset({"views", "patches"}),
        ("vision tower", "teacher", "head"),
        4,
    ),
    "dino of today": Case(
        partial(distillation, TODAY),
        lambda folder: source_of(folder, Crops(SIZE, PATCH, TODAY)),
        frozenset({"views", "patches", "koleo", "gram"}),
        ("vision tower", "teacher", "Gram teacher", "head"),
        4,
    ),
    "droppos": Case(
        lambda tower=None: DroppedPositionObjective(
            tower or tiny_tower(), DroppedPositionSettings(), steps=10
        ),
        lambda folder: source_of(folder, PlacedViews(SIZE, 16, MaskedImageSettings(ratio=0.5))),
        frozenset({"positions"}),
        TOWER_AND_HEAD,
        1,
    ),
    "distil": Case(
        taught,
        lambda folder: source_of(folder, TaughtViews((SIZE,) * 3, TAUGHT.views)),
        frozenset({"tokens 1", "attention 1", "pooled 2", "relations 2"}),
        ("vision tower", "teacher", "head"),
        1,
    ),
    "clip": Case(
        partial(image_text, "clip"),
        _pairs,
        frozenset({"contrast"}),
        ("vision tower", "text tower", "head"),
        1,
    ),
    "siglip": Case(
        partial(image_text, "siglip"),
        _pairs,
        frozenset({"contrast"}),
        ("vision tower", "text tower", "head"),
        1,
    ),
    "regionclip": Case(
        regions,
        lambda folder: source_of(folder, region_views()),
        frozenset({"regions"}),
        ("vision tower", "text tower", "head"),
        1,
    ),
    "supervised": Case(supervised, _labelled, frozenset({"scene", "presence"}), TOWER_AND_HEAD, 1),
}
