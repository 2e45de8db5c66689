"""What a study learns from and is tested on: generated scenes, a compiled folder, or the five small real sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitp.core.errors import ConfigError
from vitp.core.reading import parse_json, read_text
from vitp.studies.grid import Cell
from vitp.studies.process import Context, Input
from vitp.studies.scales import Scale

COMPILED = "compiled"


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        name: Of the set.
        cell: The cell that provides it.
        tasks: Downstream tasks that its labels allow; empty: it teaches and is not tested on.
        rate: Sampling rate in pretraining.
    """

    name: str
    cell: Cell
    tasks: tuple[str, ...] = ()
    rate: float = 1.0

    def asking(self, variant: str, synthesis: Mapping[str, Any]) -> Source:
        """Return the same images and labels with other questions.

        Args:
            variant: Name of the questions.
            synthesis: Fields of `SynthesisConfig`.
        """
        settings = {**self.cell.settings, "synthesis": dict(synthesis)}
        places = dict(self.cell.places)
        if settings["from"] == "folder":
            settings |= {"from": "labels", "format": "vitp", "options": {}, "crop": None}
            places = {"source": places["root"]}
        cell = replace(
            self.cell,
            name=f"{self.cell.name}/{variant}",
            settings=settings,
            places=places,
            keep=(f"{COMPILED}/summary.json",),
        )
        return replace(self, cell=cell)


def folder_of(data: Input) -> Path:
    """Return the compiled folder that a data cell stands for."""
    root = data.cell.places.get("root")
    return Path(root) if root else data.folder / COMPILED


def open_sources(data: Path | None, scale: Scale) -> tuple[Source, ...]:
    """Return the sets of a study.

    Args:
        data: A folder made by `vitp data compile`; a folder that holds the small real sets; None: generated scenes.
        scale: Says how many scenes.

    Raises:
        ConfigError: The folder is neither.
    """
    if data is None:
        return (_scenes(scale),)
    from vitp.recipes.real_images import SETS

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


def questions() -> dict[str, Any]:
    """Return what is asked of each image unless a study varies it: fields of `SynthesisConfig`."""
    from vitp.recipes.micro import SYNTHESIS

    return json.loads(json.dumps(asdict(SYNTHESIS)))


def _scenes(scale: Scale) -> Source:
    scenes = scale.scenes
    options = {"count": scenes.count, "val": scenes.val, "test": scenes.test, "size": scenes.size}
    settings = {
        "from": "scenes",
        "domain": scenes.domain,
        "seed": scenes.seed,
        "options": options,
        "synthesis": questions(),
    }
    cell = Cell(f"data/{scenes.domain}", "data", settings, keep=(f"{COMPILED}/summary.json",))
    return Source(scenes.domain, cell, ("classification", "segmentation", "detection"))


def extra_scenes(scale: Scale, domain: str, share: float) -> Source:
    """Return scenes of another domain that take a share of all samples: they teach and are not tested on."""
    base = _scenes(scale.model_copy(update={"scenes": scale.scenes.model_copy(update={"domain": domain})}))
    return replace(base, tasks=(), rate=share / (1 - share))


def _compiled(folder: Path) -> Source:
    summary = parse_json(read_text(folder / "summary.json"))
    settings = {"from": "folder", "content": summary.get("content_hash", ""), "name": summary.get("name", "")}
    name = str(summary.get("name") or folder.name)
    # The folder itself is no part of what decides a result: it may be moved.
    cell = Cell(f"data/{name}", "data", settings, places={"root": str(folder)}, keep=(str(folder),))
    return Source(name, cell, tasks_of(folder))


def _real(folder: Path, one: Any) -> Source:
    tasks = {
        "gdit_airport": ("detection",),
        "bccd": ("presence", "detection"),
        "hrsid_mini": ("segmentation", "detection"),
        "amazon_forest": ("segmentation",),
    }
    settings = {
        "from": "labels",
        "format": one.fmt,
        "crop": one.crop,
        "options": dict(one.options),
        "synthesis": questions(),
        "content": _listing_hash(folder),
    }
    cell = Cell(
        f"data/{one.folder}",
        "data",
        settings,
        places={"source": str(folder)},
        keep=(f"{COMPILED}/summary.json",),
    )
    return Source(one.folder, cell, tasks.get(one.folder, ()) if one.probed else (), one.rate)


def _listing_hash(folder: Path) -> str:
    rows = sorted(
        f"{path.relative_to(folder).as_posix()} {path.stat().st_size}"
        for path in folder.rglob("*")
        if path.is_file()
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def tasks_of(folder: Path) -> tuple[str, ...]:
    """Return the downstream tasks that the labels of a compiled folder allow.

    Raises:
        DataError: The labels can't be read.
    """
    from vitp.tasks.data import is_labelled, open_labelled

    labelled = open_labelled(folder, "vitp")
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
    return (*found, "detection") if objects else tuple(found)


def provide_data(context: Context) -> Mapping[str, Any]:
    """Compile a set, or look at a compiled one; return how many images each split has."""
    settings = context.cell.settings
    if settings["from"] == "folder":
        return {"images": _split_sizes(Path(context.cell.places["root"]))}
    from vitp.data.compile import compile_labels
    from vitp.data.synthesis.build import SynthesisConfig

    out = context.folder / COMPILED
    common: dict[str, Any] = {
        "synthesis": SynthesisConfig(**settings["synthesis"]),
        "max_tiles": 1,
        "force": True,
    }
    if settings["from"] == "scenes":
        compile_labels(
            settings["domain"], "scenes", out, seed=settings["seed"], **common, **settings["options"]
        )
    else:
        compile_labels(
            context.cell.places["source"],
            settings["format"],
            out,
            crop=settings.get("crop"),
            **common,
            **settings["options"],
        )
    return {"images": _split_sizes(out)}


def _split_sizes(folder: Path) -> dict[str, int]:
    summary = parse_json(read_text(folder / "summary.json"))
    return {name: int(split["images"]) for name, split in summary.get("splits", {}).items()}


def rates_of(sources: Sequence[Source]) -> list[float]:
    """Return the sampling rates of sets, in their order."""
    return [source.rate for source in sources]
