"""The channels of a run: what its tower sees of the bands of the data that it learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vitp.checkpoints.description import described_channels, own_folder
from vitp.checkpoints.loading import load_backbone
from vitp.core.errors import VitpError
from vitp.data.formats.channels import agreed
from vitp.data.formats.vitp_labels import SET_FILE, channels_from_json, read_channels
from vitp.data.sources import read_mixture_table
from vitp.models.backbone import Backbone
from vitp.models.inflation import in_ranges_of, inflation_note, inheritance, is_numbered
from vitp.models.vision import VisionSettings
from vitp.objectives.image_rows import read_uncompiled
from vitp.objectives.settings import Run, RunSettings
from vitp.records.channels import Channels, matching
from vitp.records.labels import LabelledSet
from vitp.tasks.build import TIMM_PREFIX, BackboneSettings

NEW_WEIGHTS = ("scratch", "random")
"""Where weights come from that were never trained."""


def fill_channels(config: Run) -> tuple[Run, list[str]]:
    """Return a pretraining run with the channels of its tower filled in, and what a user should know of them.

    Those that the configuration names count first, then those of `model.init`, then those that all sets declare. A
    tower with channels of its own reads the data by them.

    Raises:
        DataError: Sets differ in their channels, or lack bands of the tower.
        VitpError: Data or the model can't be read.
    """
    model, sets = config.model, list(declared_channels(config))
    vision = model.vision if model.scratch is None else model.scratch.vision
    own = model.channels or _in_ranges_of(sets, trained_channels(model.init, vision))
    channels, lines = _chosen(own, sets, config.data.band_dropout)
    model = model.model_copy(update={"channels": channels})
    return config.model_copy(update={"model": model}), lines


def tower_channels(
    settings: BackboneSettings, labelled: LabelledSet, band_dropout: float
) -> tuple[Channels | None, list[str]]:
    """Return the channels of a backbone that is to be finetuned, and what a user should know of them.

    Raises:
        DataError: The set lacks bands of the backbone.
    """
    sets = [(labelled.name, labelled.channels)]
    own = settings.channels or _in_ranges_of(sets, trained_channels(settings.init, settings.vision))
    return _chosen(own, sets, band_dropout)


def _in_ranges_of(sets: Sequence[tuple[str, Channels | None]], own: Channels | None) -> Channels | None:
    """Return the channels of weights; those that are only numbered get the ranges that all sets declare."""
    return (
        agreed([(name, in_ranges_of(data, own, where=name)) for name, data in sets])
        if is_numbered(own)
        else own
    )


def _chosen(
    own: Channels | None, sets: Sequence[tuple[str, Channels | None]], band_dropout: float
) -> tuple[Channels | None, list[str]]:
    """Return what a tower sees of some sets, and that in words.

    Args:
        own: What it was asked for or trained with; None: pictures, or nothing yet.
        sets: Name and channels of each set.
        band_dropout: Band dropout of the run, which the tower is told.

    Raises:
        DataError: Sets differ in their channels, or lack bands of the tower.
    """
    channels = agreed(sets) if own is None else own
    if channels is None:
        return None, []
    lines = [f"the tower sees {channels_in_words(channels)}{', as the data declare' if own is None else ''}"]
    for name, data in sets:
        if own is None or matching(own, data, where=name) is None:
            continue
        if data is None or any(channel not in data.channels for channel in own.channels):
            lines.append(f"{name} is read by these bands and ranges, not by its own")
    return channels.model_copy(update={"dropout": band_dropout}), lines


def trained_channels(init: str, vision: VisionSettings | None) -> Channels | None:
    """Return the channels that weights were trained with; None: pictures.

    Weights that can't be read have none: whoever loads them for the run says what is wrong with them.

    Args:
        init: Where the weights come from.
        vision: Sizes of a new tower.
    """
    if init in NEW_WEIGHTS:
        return None if vision is None else vision.channels
    if init == "starter" or init.startswith(TIMM_PREFIX):
        return None
    try:
        folder = own_folder(init)
        # Our own folders say it beside their weights, which may be large.
        return load_backbone(init).in_channels if folder is None else described_channels(folder)
    except VitpError:
        return None


def frozen_kernel_notes(tower: Backbone, init: str, vision: VisionSettings | None) -> list[str]:
    """Return a line where the patch kernel was made for other bands than it was trained with, and won't learn them.

    Args:
        tower: As it is trained.
        init: Where its weights come from.
        vision: Sizes of a new tower.
    """
    channels = tower.in_channels
    if init in NEW_WEIGHTS or channels is None:
        return []
    trained = trained_channels(init, vision)
    kernel = next((each for each in tower.parameters() if each.ndim == 4), None)
    if kernel is None or kernel.requires_grad or inheritance(trained, channels).is_same:
        return []
    return [
        f"WARNING: {inflation_note(trained, channels)}; it is frozen and keeps these values, so the tower never learns "
        "what these bands show: train the tower, or pretrain it on these bands first"
    ]


def declared_channels(config: RunSettings) -> Iterator[tuple[str, Channels | None]]:
    """Yield name and channels of each set that a run learns from; only heads of files are read.

    Raises:
        VitpError: One can't be read.
    """
    for name in config.data.mixture:
        path = Path(name)
        if path.is_dir() and not config.objective.has_language_model:
            compiled = (path / SET_FILE).is_file()
            yield name, read_channels(path) if compiled else read_uncompiled(path).channels
            continue
        mixture = path / "mixture.json" if path.is_dir() else path
        if mixture.suffix == ".jsonl":
            yield name, None
        elif not mixture.is_file():  # whoever opens it says what is wrong
            continue
        else:
            for one, fields in read_mixture_table(mixture).items():
                yield one, channels_from_json(fields.get("channels"), f"{mixture}, set {one}")


def uncompiled_lines(config: RunSettings) -> list[str]:
    """Return how the folders of a run that nobody has compiled were understood; see `read_uncompiled`."""
    if config.objective.has_language_model:
        return []
    folders = [Path(name) for name in config.data.mixture]
    bare = [folder for folder in folders if folder.is_dir() and not (folder / SET_FILE).is_file()]
    return [
        line
        for labelled in map(read_uncompiled, bare)
        for line in (f"{labelled.name}:", *(f"  {told}" for told in labelled.understood))
    ]


def channels_in_words(channels: Channels) -> str:
    """Return the bands of channels in words."""
    return f"{len(channels)} channels ({', '.join(_short(channels.bands))})"


def _short(names: Sequence[str], most: int = 16) -> list[str]:
    return [*names[:most], *(["…"] if len(names) > most else [])]
