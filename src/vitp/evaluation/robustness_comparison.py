"""Robustness of several models on the same images: results are kept as they come, so an interrupted test goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitp.checkpoints.description import CONFIG
from vitp.checkpoints.loading import load_backbone, random_backbone
from vitp.core.config import make_config
from vitp.core.distributed import resolve_device
from vitp.core.errors import ConfigError, DataError
from vitp.core.files import write_json
from vitp.core.reading import json_or_none, read_json
from vitp.data.splits import splits_of
from vitp.evaluation.corruptions.catalogue import SEVERITIES, corruptions_of
from vitp.evaluation.robustness import robustness_of_backbone, robustness_of_task
from vitp.evaluation.robustness_result import RobustnessResult
from vitp.models.vision import VisionTower
from vitp.records.channels import Channels
from vitp.records.labels import LabelledSet
from vitp.tasks.base import STAGGERED_OVERLAP, TASK_FORMAT, InputSize, LabelKind, TaskModel, TestSettings
from vitp.tasks.build import task_of
from vitp.tasks.model_folder import load_task

ROBUSTNESS_FILE = "robustness.json"


def open_model(run: str | Path, overrides: Sequence[str]) -> tuple[TaskModel, TestSettings]:
    """Return a finetuned model on the device and the settings of its test, with `key=value` changes.

    An overlap that is too small for staggered windows turns `stagger` off where that is not asked for as well: the two
    were chosen together.
    """
    model = load_task(run)
    stored = dict(model.description.get("test", {}))
    settings = make_config(TestSettings, stored, overrides, where="--set")
    asked = {word.partition("=")[0].strip().removeprefix("test.") for word in overrides}
    if "overlap" in asked and "stagger" not in asked and settings.overlap < STAGGERED_OVERLAP:
        settings = settings.model_copy(update={"stagger": False})
    resize, known = settings.resize or InputSize(), (stored.get("resize") or {}).get("size")
    if resize.mode == "none" and resize.size not in (None, known):
        fix = "set resize.mode=fixed too (a square of it), or resize.mode=long or short (that side gets it)"
        raise ConfigError(
            "no image would get this size: resize.mode is none", where="test.resize.size", fix=fix
        )
    return model.to(resolve_device("auto")), settings


def tower_to_probe(name: str, data: Channels | None = None) -> VisionTower:
    """Return the ViT of an export, run or model folder, the starter's, or one of its shape with random weights.

    Args:
        name: Where it comes from.
        data: What the data declare of their bands: a ViT of RGB pictures is made for them, as a run would.

    Raises:
        DataError: The data lack bands of a ViT that has bands of its own.
    """
    if name == "random":
        return random_backbone(load_backbone("starter", data=data), seed=0)
    return load_backbone(name, data=data)


def split_named(labelled: LabelledSet, split: str, where: str) -> LabelledSet:
    """Return the images of a split: train, val, test, or all.

    Raises:
        ConfigError: There is no such split, or it is empty.
    """
    if split not in ("train", "val", "test", "all"):
        raise ConfigError(f'no split "{split}"', where="--split", fix="choose train, val, test or all")
    part = labelled if split == "all" else labelled.split(split)
    if not len(part):
        raise ConfigError(f"has no {split} images", where=where, fix="choose another split with --split")
    return part


class RobustnessComparison:
    """Tests models or backbones under the same corruptions of the same images.

    Args:
        out: Folder of `robustness.json`, which is whole after every cell.
        names: Runs of `vitp finetune`, or backbones.
        severities, corruptions: None: all severities, the twelve corruptions.
        seed: Seed of the corruptions.
        metric: Score to show; None: the headline.
        force: Replace the results of another test.
        tell: Called with a line after every cell.

    Raises:
        ConfigError: Models and backbones can't be compared.
        DataError: Earlier results can't be read.
    """

    def __init__(
        self,
        out: Path,
        names: Sequence[str],
        *,
        severities: Sequence[int] | None = None,
        corruptions: Sequence[str] | None = None,
        seed: int = 0,
        metric: str | None = None,
        force: bool = False,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.path, self.names, self.metric, self.tell = out / ROBUSTNESS_FILE, list(names), metric, tell
        self.plan: dict[str, Any] = {
            "severities": tuple(severities or SEVERITIES),
            "corruptions": tuple(corruptions) if corruptions else None,
            "seed": seed,
        }
        self.corruptions = corruptions_of(self.plan["corruptions"])
        self.results: dict[str, RobustnessResult] = {}
        self.earlier = {} if force else self._read()
        self.of_tasks = _is_task(self.names[0])
        if any(_is_task(name) != self.of_tasks for name in self.names):
            raise ConfigError(
                "finetuned models and bare backbones can't be compared",
                where="vitp robustness",
                fix="name runs of one kind",
            )

    def score_models(
        self, labelled: LabelledSet, split: str, max_images: int | None, overrides: Sequence[str]
    ) -> tuple[LabelledSet, LabelKind]:
        """Score finetuned models; return the images and the kind of their labels.

        Raises:
            ConfigError: The split is empty, the models learned different tasks, or the results are of another test.
        """
        part = split_named(labelled, split, labelled.name)
        kinds: list[LabelKind] = []
        for name in self.names:
            model, settings = open_model(name, overrides)
            kinds.append(task_of(model.name).labels(model.description["head"]))
            if kinds[-1] != kinds[0]:
                fix = "compare models of one task"
                raise ConfigError(f"learned another task than {self.names[0]}", where=name, fix=fix)
            self._start()
            robustness_of_task(model, part, settings, max_images=max_images, **self._options(name))
        return part, kinds[0]

    def score_backbones(
        self,
        labelled: LabelledSet,
        max_images: int | None,
        *,
        seeds: int = 3,
        labels_per_seed: int | float | None = None,
    ) -> tuple[LabelledSet, LabelKind]:
        """Score probes of frozen backbones; return the test images and the kind of their labels.

        Raises:
            ConfigError: A split is empty, or the results are of another test.
        """
        splits = splits_of(labelled)
        for name in self.names:
            self._start()
            robustness_of_backbone(
                tower_to_probe(name, labelled.channels).to(resolve_device("auto")),
                splits,
                max_images=max_images or 2000,
                seeds=tuple(range(seeds)),
                labels_per_seed=labels_per_seed,
                **self._options(name),
            )
        return splits["test"], "objects" if labelled.object_classes else "semantic"

    def ordered_results(self) -> list[RobustnessResult]:
        """Return the results in the order of the names."""
        return [self.results[name] for name in self.names]

    def _options(self, name: str) -> dict[str, Any]:
        return {**self.plan, "name": name, "known": self.earlier.get(name), "on_cell": self._on_cell}

    def _start(self) -> None:
        self._started = time.monotonic()
        self._cells = len(self.corruptions) * len(set(self.plan["severities"]))

    def _read(self) -> dict[str, RobustnessResult]:
        if not self.path.is_file():
            return {}
        try:
            found = read_json(self.path)
            results = [RobustnessResult.from_json(value) for value in found["runs"]]
        except (ValueError, KeyError, TypeError, DataError) as error:
            raise DataError(
                f"can't be read ({error})", where=str(self.path), fix="choose another --out, or --force"
            ) from error
        return {result.name: result for result in results}

    def _on_cell(self, result: RobustnessResult) -> None:
        """Keep the result so far, and tell how long the rest will take."""
        earlier = self.earlier.get(result.name)
        if not result.cells and earlier is not None and dict(earlier.facts) != dict(result.facts):
            fix = "choose another --out, or --force"
            raise ConfigError(f"holds another test of {result.name}", where=str(self.path), fix=fix)
        if self.metric is not None and self.metric not in result.clean.values:
            fix = f"there are {', '.join(result.clean.values)}"
            raise ConfigError(f'no score "{self.metric}"', where="--metric", fix=fix)
        self.results[result.name] = result
        # Earlier results of models that are still to come stay in the file.
        whole = self.results.keys() >= self.earlier.keys()
        kept = self.results if whole else {**self.earlier, **self.results}
        write_json(self.path, {"runs": [each.to_json() for each in kept.values()]})
        done = sum(len(row) for row in result.cells.values())
        score = self.metric or result.clean.headline
        if not done:
            self.tell(f"{result.name}: clean {score} {100 * result.value(score):.1f}")
            return
        name = list(result.cells)[-1]
        severity = max(result.cells[name])
        left = (time.monotonic() - self._started) / done * (self._cells - done)
        in_words = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min"
        self.tell(
            f"{result.name}: {name} {severity}: {100 * result.cell(name, severity, score):.1f}"
            f"  ({done} of {self._cells}, about {in_words} left)"
        )


def _is_task(name: str) -> bool:
    """Return whether a name means a finetuned model rather than a backbone."""
    for folder in (Path(name) / "model", Path(name)):
        if (description := json_or_none(folder / CONFIG)) is not None:
            return isinstance(description, dict) and description.get("format") == TASK_FORMAT
    return False
