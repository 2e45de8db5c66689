"""Data of a study: generated scenes, a compiled folder, or the five small real sets."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np

from vitp.core.errors import ConfigError
from vitp.core.reading import read_json
from vitp.data.compile import compile_labels, compile_set
from vitp.data.formats.crops import crop_windows, empty_crops
from vitp.data.synthesis.build import TASK_NAMES, SynthesisConfig
from vitp.recipes.micro import SYNTHESIS
from vitp.recipes.real_images import SETS, RealSet
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.studies.cheap import CHEAP_QUESTIONS, cheap_labels
from vitp.studies.grid import StudyCell
from vitp.studies.process import Context, Input
from vitp.studies.scales import Scale
from vitp.tasks.data import draw_labels, is_labelled, open_labelled, task_splits

_COMPILED = "compiled"
_KEEP = (f"{_COMPILED}/summary.json",)
_OBJECT_TASKS = frozenset({"detection", "oriented", "instance"})
"""Tasks that can't be learned from images without any object."""
_TASKS_OF_REAL_SETS = {
    "gdit_airport": ("detection",),
    "bccd": ("presence", "detection"),
    "hrsid_mini": ("segmentation", "detection"),
    "amazon_forest": ("segmentation",),
}


@dataclass(frozen=True)
class StudySource:
    """One data set.

    Attributes:
        name: Of the set.
        cell: The cell that provides it.
        tasks: Downstream tasks that its labels allow; empty: it teaches and is not tested on.
        rate: Sampling rate in pretraining.
        train: Images that train, where that is known before the set is there.
        side: Median of the shorter sides of the images of a compiled folder, in pixels.
        labelled: The images of a compiled folder, as long as they are learned from as they are.
    """

    name: str
    cell: StudyCell
    tasks: tuple[str, ...] = ()
    rate: float = 1.0
    train: int | None = None
    side: int | None = None
    labelled: LabelledSet | None = field(default=None, repr=False, compare=False)

    def asking(
        self,
        variant: str,
        synthesis: Mapping[str, Any],
        crop: int | None = None,
        limits: Mapping[str, float] = MappingProxyType({}),
    ) -> StudySource:
        """Return the same images and labels with other questions.

        Args:
            variant: Name of the questions.
            synthesis: Fields of `SynthesisConfig`.
            crop: Side of the crops that images of a compiled folder are cut into.
            limits: Of the crops; see `crop_limits`.
        """
        settings = {**self.cell.settings, "synthesis": dict(synthesis)}
        places = dict(self.cell.places)
        if settings["from"] == "folder":
            settings |= {"from": "labels", "format": "vitp", "options": {}, "crop": crop, **limits}
            places = {"source": places["root"]}
        name = f"{self.cell.name}/{variant}"
        cell = replace(self.cell, name=name, settings=settings, places=places, keep=_KEEP)
        if crop is not None:
            return replace(self, cell=cell, train=None, side=None, labelled=None)
        return replace(self, cell=cell, side=None)

    def cheap(self) -> StudySource:
        """Return the same images with their cheap labels only; see `cheap_labels`."""
        settings = {
            "from": "cheap",
            "synthesis": {**questions(), "tasks": CHEAP_QUESTIONS, "grid_always": False},
        }
        name = f"{self.cell.name}/cheap"
        cell = StudyCell(name, "data", settings, needs={"data": self.cell.name}, keep=_KEEP)
        return replace(self, cell=cell, tasks=())


def folder_of(data: Input) -> Path:
    """Return the compiled folder that a data cell stands for."""
    root = data.cell.places.get("root")
    return Path(root) if root else data.folder / _COMPILED


def study_sources(data: Path | None, scale: Scale) -> tuple[StudySource, ...]:
    """Return the sets of a study.

    Args:
        data: A folder made by `vitp data compile`; a folder that holds the small real sets; None: generated scenes.
        scale: Says how many scenes.

    Raises:
        ConfigError: The folder is neither.
    """
    if data is None:
        return (_scenes(scale),)
    if (data / "summary.json").is_file() and (data / "mixture.json").is_file():
        return (_compiled(data.resolve()),)
    found = [one for one in SETS if (data / one.folder).is_dir()]
    if found:
        return tuple(_real(data.resolve() / one.folder, one) for one in found)
    raise ConfigError(
        "is no folder of `vitp data compile`, nor one with the small real sets",
        where=str(data),
        fix="compile your labels first: vitp data compile LABELS --out FOLDER",
    )


def usable_shares(
    sources: Sequence[StudySource], shares: Sequence[float], seeds: int
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Return the shares of the labels that teach something in every set, and lines about the others.

    They are two images or more; where objects are learned, each draw of them holds one.

    Args:
        sources: The sets.
        shares: Those that are asked for.
        seeds: Number of draws of labels.

    Raises:
        ConfigError: None is.
    """
    few: dict[float, str] = {}
    for source in sources:
        known = [share for share in shares if source.tasks and source.train is not None]
        little = {share: "is fewer than two" for share in known if round(share * (source.train or 0)) < 2}
        bare = _without_objects(source, [share for share in known if share not in little], seeds)
        for share, why in {**little, **bare}.items():
            text = f"{source.name}: {100 * share:g} % of {source.train} training images {why}; that share is left out."
            few.setdefault(share, text)
    kept = tuple(share for share in shares if share not in few)
    said = tuple(few[share] for share in shares if share in few)
    if not kept:
        what = "no share of the labels that is asked for is two images or more, with an object"
        raise ConfigError(what, where=sources[0].name, fix="choose larger shares, or label more images")
    return kept, said


def _without_objects(source: StudySource, shares: Sequence[float], seeds: int) -> dict[float, str]:
    """Return the shares of a compiled set of which a draw holds no object, and how to say it."""
    if not shares or source.labelled is None or not _OBJECT_TASKS & set(source.tasks):
        return {}
    train = task_splits(source.labelled, "objects")["train"]
    found = {}
    for share in shares:
        draws = (draw_labels(train, None if share == 1 else share, seed) for seed in range(seeds))
        bare = [seed for seed, drawn in enumerate(draws) if not any(item.objects for item in drawn.items)]
        if bare:
            found[share] = f"hold no object in the draw of seed {bare[0]}"
    return found


def questions() -> dict[str, Any]:
    """Return what is asked of each image unless a study varies it: fields of `SynthesisConfig` as JSON values."""
    found: dict[str, Any] = json.loads(json.dumps(SYNTHESIS.stated()))
    # Younger than the folders of results that are found again by these settings.
    for younger in ("neighbours", "pretext"):
        if not found[younger]:
            del found[younger]
    return found


def _scenes(scale: Scale) -> StudySource:
    scenes = scale.scenes
    settings = {
        "from": "scenes",
        "domain": scenes.domain,
        "seed": scenes.seed,
        "options": {"count": scenes.count, "val": scenes.val, "test": scenes.test, "size": scenes.size},
        "synthesis": questions(),
    }
    cell = StudyCell(f"data/{scenes.domain}", "data", settings, keep=_KEEP)
    return StudySource(scenes.domain, cell, ("classification", "segmentation", "detection"))


def extra_scenes(scale: Scale, domain: str, share: float) -> StudySource:
    """Return scenes of another domain that take a share of all samples: they teach and are not tested on."""
    base = _scenes(scale.model_copy(update={"scenes": scale.scenes.model_copy(update={"domain": domain})}))
    return replace(base, tasks=(), rate=share / (1 - share))


def _compiled(folder: Path) -> StudySource:
    summary = read_json(folder / "summary.json")
    settings = {"from": "folder", "content": summary.get("content_hash", ""), "name": summary.get("name", "")}
    name = str(summary.get("name") or folder.name)
    # The folder itself is no part of what decides a result: it may be moved.
    cell = StudyCell(f"data/{name}", "data", settings, places={"root": str(folder)}, keep=(str(folder),))
    labelled = open_labelled(folder, "vitp")
    side = int(median(min(item.width, item.height) for item in labelled.items))
    train = _split_sizes(folder).get("train")
    return StudySource(name, cell, _tasks_of(labelled), train=train, side=side, labelled=labelled)


def _real(folder: Path, one: RealSet) -> StudySource:
    # Names and sizes of the files stand for their content: hashing gigabytes would take longer than a cell.
    rows = sorted(
        f"{path.relative_to(folder).as_posix()} {path.stat().st_size}"
        for path in folder.rglob("*")
        if path.is_file()
    )
    settings = {
        "from": "labels",
        "format": one.fmt,
        "crop": one.crop,
        "options": dict(one.options),
        "synthesis": questions(),
        "content": hashlib.sha256("\n".join(rows).encode()).hexdigest(),
    }
    places = {"source": str(folder)}
    cell = StudyCell(f"data/{one.folder}", "data", settings, places=places, keep=_KEEP)
    tasks = _TASKS_OF_REAL_SETS.get(one.folder, ()) if one.probed else ()
    return StudySource(one.folder, cell, tasks, one.rate)


def crop_limits(source: StudySource, crop: int, empty: float, scored: int) -> dict[str, float]:
    """Return what has to be limited where the images of a compiled folder are cut, as settings of its cell.

    A limit that changes nothing is none, so that a small set is found again whatever the limits are.

    Args:
        source: The folder.
        crop: Side of the crops in pixels.
        empty: Share that training crops without objects have at most, where they are more than half: `empty`.
        scored: Crops of the validation images, and of those that test, from which on no more images are taken:
            `scored_crops`.
    """
    crops, bare = Counter[str](), 0
    for item in open_labelled(Path(source.cell.places["root"]), "vitp").items:
        count, without = empty_crops(item, crop) if item.split == "train" else (_crops(item, crop), 0)
        crops[item.split] += count
        bare += without
    limits: dict[str, float] = {"empty": empty} if 2 * bare > crops["train"] and empty < 1 else {}
    return limits | ({"scored_crops": scored} if max(crops["val"], crops["test"]) > scored else {})


def _crops(item: LabelledImage, side: int) -> int:
    return len(crop_windows(item.width, item.height, side, 0))


def _drawn(labelled: LabelledSet, side: int, most: int) -> LabelledSet:
    """Return the set with as many validation and test images, drawn by chance, as give a number of crops."""
    kept = {index for index, item in enumerate(labelled.items) if item.split == "train"}
    for number, split in enumerate(("val", "test")):
        own, crops = [index for index, item in enumerate(labelled.items) if item.split == split], 0
        for index in np.random.default_rng([0, number]).permutation(own).tolist():
            if crops >= most:
                break
            kept.add(index)
            crops += _crops(labelled.items[index], side)
    return replace(labelled, items=[item for index, item in enumerate(labelled.items) if index in kept])


def _tasks_of(labelled: LabelledSet) -> tuple[str, ...]:
    """Return the downstream tasks that the labels of a set allow."""
    # A few hundred images tell what kinds of labels there are.
    count = len(labelled)
    items = [labelled.items[i] for i in range(0, count, max(1, count // 300))]
    found: list[str] = []
    if len(labelled.scene_classes) > 1 and any(is_labelled(item, "scene") for item in items):
        found.append("classification")
    objects = bool(labelled.object_classes) and any(is_labelled(item, "objects") for item in items)
    if objects and not found and len(labelled.object_classes) > 1:
        found.append("presence")
    if labelled.semantic_classes and any(is_labelled(item, "semantic") for item in items):
        found.append("segmentation")
    if not objects:
        return tuple(found)
    labels = [label for item in items for label in item.objects or ()]
    oriented = any(label.quad is not None for label in labels)
    outlined = any(label.polygons for label in labels)
    return (*found, "detection", *(["oriented"] if oriented else []), *(["instance"] if outlined else []))


def provide_data(context: Context) -> Mapping[str, Any]:
    """Compile a set, or look at a compiled one; return how many images each split has."""
    settings, places = context.cell.settings, context.cell.places
    if settings["from"] == "folder":
        return {"images": _split_sizes(Path(places["root"]))}
    out = context.folder / _COMPILED
    if settings["from"] == "cheap":
        # Questions that are not named are left out, whatever is learned to be asked later.
        tasks = dict.fromkeys(TASK_NAMES, 0.0) | settings["synthesis"]["tasks"]
        asked, source = SynthesisConfig(**{**settings["synthesis"], "tasks": tasks}), context.inputs["data"]
        labelled = cheap_labels(open_labelled(folder_of(source), "vitp"))
        # `force`, as an interrupted attempt may have left something.
        compile_set(labelled, out, folder_of(source), seed=0, synthesis=asked, settings={}, force=True)
        return {"images": _split_sizes(out)}
    scenes = settings["from"] == "scenes"
    own = {"seed": settings["seed"]} if scenes else {"crop": settings.get("crop")}
    if "empty" in settings:
        own["empty"] = settings["empty"]
    if most := settings.get("scored_crops"):
        own["chosen"] = partial(_drawn, side=settings["crop"], most=most)
    compile_labels(
        settings["domain"] if scenes else places["source"],
        "scenes" if scenes else settings["format"],
        out,
        synthesis=SynthesisConfig(**settings["synthesis"]),
        max_tiles=1,
        force=True,
        **own,
        **settings["options"],
    )
    return {"images": _split_sizes(out)}


def _split_sizes(folder: Path) -> dict[str, int]:
    summary = read_json(folder / "summary.json")
    return {name: int(split["images"]) for name, split in summary.get("splits", {}).items()}
