"""The models of a server: what each command-line word names, loaded once, and described for clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from vitp.checkpoints.description import is_vlm_config, own_folder, read_config
from vitp.checkpoints.loading import load_vlm
from vitp.core.errors import CheckpointError, ConfigError
from vitp.core.tensors import weights_sha256
from vitp.inference.ask import Assistant
from vitp.inference.outputs import class_colour
from vitp.models.backbone import Backbone
from vitp.models.plain_vit import PlainViT
from vitp.records.channels import Channels
from vitp.runs.pretrain import sequence_of
from vitp.runtime.graph_model import GraphModel, open_graph
from vitp.serving.refusal import Refusal
from vitp.serving.worker import Worker
from vitp.tasks.base import TaskModel, TestSettings
from vitp.tasks.build import BackboneSettings, open_backbone
from vitp.tasks.model_folder import is_task_model, load_task, stated_settings

_GRAPH = "model.onnx"


@dataclass
class ServedModel:
    """One model.

    Attributes:
        name: In the API.
        worker: Who computes with it.
        task: A finetuned model, with how it is applied.
        graph: An exported finetuned model.
        assistant: A vision-language model.
        tower: What gives features and attention; None: there is none.
        settings: How a finetuned model is applied.
    """

    name: str
    worker: Worker
    task: TaskModel | None = None
    graph: GraphModel | None = None
    assistant: Assistant | None = None
    tower: Backbone | None = None
    settings: TestSettings = field(default_factory=TestSettings)

    @property
    def kind(self) -> Literal["task", "vlm", "backbone"]:
        """What it is used for."""
        if self.assistant is not None:
            return "vlm"
        return "backbone" if self.task is None and self.graph is None else "task"

    @property
    def task_name(self) -> str | None:
        """Of a finetuned model: "classification", "segmentation", …."""
        if self.graph is not None:
            return self.graph.contract.task
        return None if self.task is None else self.task.name

    @cached_property
    def task_sha256(self) -> str:
        """Digest of a finetuned model's weights, which maps carry."""
        assert self.task is not None
        return weights_sha256(self.task)

    @property
    def classes(self) -> tuple[str, ...]:
        """Of a finetuned model."""
        if self.graph is not None:
            return self.graph.contract.classes
        return () if self.task is None else self.task.classes

    @property
    def channels(self) -> Channels | None:
        """Bands that it sees; None: RGB pictures."""
        if self.graph is not None:
            stated = self.graph.contract.channels
            return None if stated is None else Channels.model_validate({"channels": stated})
        if self.task is not None:
            return self.task.in_channels
        return None if self.tower is None else self.tower.in_channels

    @property
    def images(self) -> int:
        """How many images it takes at once: two dates for change."""
        return 2 if self.task_name == "change" else 1

    @property
    def size(self) -> int:
        """Side in pixels of what it sees at once."""
        if self.graph is not None:
            return max(self.graph.contract.size)
        if self.task is not None:
            return self.settings.window or self.task.input_size.size or self.task.backbone.image_size[0]
        assert self.tower is not None
        return self.tower.image_size[0]

    def described(self) -> dict[str, Any]:
        """Return what `/models` says of it."""
        channels = self.channels
        return {
            "name": self.name,
            "kind": self.kind,
            "task": self.task_name,
            "classes": described_classes(self.classes),
            "size": self.size,
            "bands": None if channels is None else list(channels.bands),
            "images": self.images,
            "threshold": self.least_score,
            "layers": 0 if self.tower is None else self.tower.num_layers,
            "attention": isinstance(self.tower, PlainViT),
        }

    @property
    def least_score(self) -> float:
        """Objects with a lower score aren't shown where nothing else is asked for."""
        return self.settings.score_threshold if self.graph is None else self.graph.contract.shown_score


def described_classes(classes: Sequence[str]) -> list[dict[str, str]]:
    """Return names and colours of classes, in the order of their numbers."""
    colours = ("#{:02x}{:02x}{:02x}".format(*class_colour(number)) for number in range(len(classes)))
    return [{"name": name, "colour": colour} for name, colour in zip(classes, colours, strict=True)]


def named_sources(words: Sequence[str]) -> dict[str, str]:
    """Return name in the API → folder, of `FOLDER` and `NAME=FOLDER`.

    Raises:
        ConfigError: A name is empty, not one word, or given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, source = word.partition("=")
        # A path may hold an equals sign.
        if not equals or "/" in name:
            name, source = word if word in ("starter", "random") else Path(word).resolve().name, word
            name = name.removesuffix(".onnx")
        if not name or not source or any(mark.isspace() or not mark.isprintable() for mark in name):
            raise ConfigError(
                f'"{name}" is no name of a model', where=word, fix="write NAME=FOLDER, NAME without spaces"
            )
        if name in found:
            raise ConfigError(
                f"two models are called {name}: {found[name]} and {source}",
                where="vitp serve",
                fix=f"name one of them otherwise: other={source}",
            )
        found[name] = source
    return found


def open_models(
    sources: dict[str, str],
    device: torch.device,
    worker_of: Callable[[str], Worker],
    say: Callable[[str], None],
) -> dict[str, ServedModel]:
    """Return the models by their names; a folder that is named twice is loaded once.

    Args:
        sources: See `named_sources`.
        device: Device on which they compute.
        worker_of: Makes who computes with a model.
        say: Called with a line about each.

    Raises:
        VitpError: One can't be loaded.
    """
    loaded: dict[str, ServedModel] = {}
    models = {}
    for name, source in sources.items():
        key = str(Path(source).resolve()) if Path(source).exists() else source
        if key not in loaded:
            say(f"{name}: loading")
            loaded[key] = _open_one(name, source, device, worker_of)
        models[name] = replace(loaded[key], name=name)
        say(f"{name}: {_in_words(models[name])}")
    return models


def _open_one(
    name: str, source: str, device: torch.device, worker_of: Callable[[str], Worker]
) -> ServedModel:
    path = Path(source)
    if path.suffix == ".onnx" or (path / _GRAPH).is_file():
        graph = open_graph(path)
        return ServedModel(name, worker_of(name), graph=graph)
    if path.suffix == ".pt2" or (path / "model.pt2").is_file():
        what = "is a graph for torch.export, which isn't served"
        raise CheckpointError(what, where=source, fix="name the run, or export it with --format onnx")
    if is_task_model(source):
        task = load_task(source).to(device)
        settings = stated_settings(task.description)
        return ServedModel(name, worker_of(name), task, tower=task.backbone, settings=settings)
    if _is_vlm(source):
        loaded = load_vlm(source)
        assistant = Assistant(loaded.vlm, loaded.chat, device, max_tiles=sequence_of(source).max_tiles)
        return ServedModel(name, worker_of(name), assistant=assistant, tower=loaded.vlm.vision)
    backbone = open_backbone(BackboneSettings(init=source)).eval().to(device)
    return ServedModel(name, worker_of(name), tower=backbone)


def _is_vlm(source: str) -> bool:
    """Return whether a source holds a language model, too."""
    if source == "starter":
        return True
    folder = own_folder(source)
    if folder is not None:
        return is_vlm_config(read_config(folder))
    config = read_config(Path(source)) if Path(source).is_dir() else {}
    return "llm_config" in config or "text_config" in config


def _in_words(model: ServedModel) -> str:
    if model.assistant is not None:
        return f"answers questions about images ({model.size} px a tile)"
    if model.task_name is None:
        return f"a backbone ({model.size} px)"
    graph = ", exported graph" if model.graph is not None else ""
    channels = model.channels
    bands = "" if channels is None else f", bands {', '.join(channels.bands)}"
    return f"{model.task_name} of {', '.join(model.classes)} ({model.size} px{bands}{graph})"


def model_named(models: dict[str, ServedModel], name: str, kinds: Sequence[str], use: str) -> ServedModel:
    """Return a model that can do what is asked of it.

    Args:
        models: All of them.
        name: Name of one; "": the only one that can.
        kinds: Kinds of those that can.
        use: What is asked, in words.

    Raises:
        Refusal: There is none of that name, or it can't.
    """
    able = [each for each in models.values() if each.kind in kinds]
    if not name and len(able) == 1:
        return able[0]
    names = ", ".join(each.name for each in able) or "none"
    if not name:
        raise Refusal(422, f"no model is named; those that {use}: {names}")
    if name not in models:
        raise Refusal(404, f"there is no model {name[:80]!r}; those that {use}: {names}")
    if models[name] not in able:
        raise Refusal(422, f"{name} doesn't {use.removesuffix('s')}; those that {use}: {names}")
    return models[name]
