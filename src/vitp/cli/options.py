"""Options that several commands share, and the reading of their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from vitp.core.errors import ConfigError
from vitp.core.files import to_json
from vitp.core.reading import parse_word

Seed: TypeAlias = Annotated[
    int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of all random choices.")
]
Steps: TypeAlias = Annotated[
    int | None, typer.Option("--steps", min=1, max=100_000_000, help="Number of optimizer steps.")
]
ImageSize: TypeAlias = Annotated[
    int | None, typer.Option("--image-size", min=8, max=65_536, help="Side of the images in pixels.")
]
MaxTiles: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--max-tiles",
        min=1,
        max=1024,
        help="Most tiles of an image. By default as in the model's run, else 6.",
    ),
]
Override: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Change a setting: KEY.KEY=VALUE. Repeatable."),
]
TaskRun: TypeAlias = Annotated[Path, typer.Argument(help="Run of `vitp finetune`, or its model folder.")]
TestOverride: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Change a setting of the test, such as window=512. Repeatable."),
]
# Names whose tables (`LAYOUT_WRITERS`, `TASK_MODELS`, `LABEL_FORMATS`) are too slow to import for a help text.
LAYOUT_WORDS = "masks, coco, panoptic, yolo, dota, voc, folders or pairs."
TASK_WORDS = "classification, segmentation, panoptic, change, detection, instance or oriented."
FORMAT_NAMES = "coco, panoptic, label-studio, cvat, labelme, via, createml, supervisely, darwin, scalabel, datumaro, crowdhuman, widerface, imagescope, asap, voc, yolo, dota, kitti, visdrone, nwpu, ucas, bigearthnet, oscd, masks, anomalies, volumes, folders, pairs, geo, qupath, xview, xbd, boxes, rle, captions, classes, lists, parquet, pannuke, images, scenes, vitp or auto"
LabelFormat: TypeAlias = Annotated[
    str, typer.Option("--format", help=f"Format of the labels: {FORMAT_NAMES}.")
]
FormatOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", help="Option of the label format: NAME=VALUE, as in val=0.1. Repeatable."),
]
Split: TypeAlias = Annotated[
    str, typer.Option("--split", help="Split of the data to score: train, val, test or all.")
]
Labels: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--labels",
        min=0,
        max=1e9,
        help="Labelled images for each seed of a probe: a number, or a share below 1.",
    ),
]
JsonFlag: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Resume: TypeAlias = Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")]
Gpus: TypeAlias = Annotated[
    int, typer.Option("--gpus", min=1, max=65_536, help="Pretraining: number of GPUs that share a batch.")
]
AsPublished: TypeAlias = Annotated[
    bool, typer.Option("--as-published", help="Pretraining: follow the authors' code where it differs.")
]
Images: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--images",
        min=1,
        max=2**40,
        help="Number of training images, for runs whose length is given in epochs.",
    ),
]

LABELLED = "Folder of labels in any known format, compiled or not."

_COMMAND_OPTIONS = frozenset(
    {"src", "source", "fmt", "format", "path", "root", "out", "seed", "crop", "overlap", "empty"}
    | {"synthesis", "max_tiles", "force"}
)
"""Names that `--option` can't take: the command has them, as an argument or as an option of its own."""


def amount_of(labels: float | None) -> int | float | None:
    """Return the number of labels where it is 1 or more, the share where it is below."""
    return labels if labels is None or labels < 1 else int(labels)


def pairs_of(words: Sequence[str] | None, flag: str) -> dict[str, str]:
    """Return `NAME=VALUE` words as pairs; hyphens of a name become underscores.

    Raises:
        ConfigError: One has no `=`.
    """
    pairs = {}
    for word in words or []:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is no name=value", where=flag, fix="write it like name=value")
        pairs[name.strip().replace("-", "_")] = text
    return pairs


def values_of(words: Sequence[str] | None) -> dict[str, Any]:
    """Return the `NAME=VALUE` words of `--option`; values are read as YAML reads them: numbers, lists, else text.

    Raises:
        ConfigError: One has no `=`.
    """
    import yaml

    found: dict[str, Any] = {}
    for name, text in pairs_of(words, "--option").items():
        try:
            found[name] = parse_word(text)
        except yaml.YAMLError:
            found[name] = text
    return found


def format_options(words: Sequence[str] | None) -> dict[str, Any]:
    """Return the words of `--option` as options of a label format.

    Raises:
        ConfigError: One has no `=`, or the command has an option of that name.
    """
    found = values_of(words)
    for name in found:
        if name in _COMMAND_OPTIONS:
            fix = f"write it as --{name.replace('_', '-')}"
        elif not name.isidentifier():
            fix = "write name=value"
        else:
            continue
        raise ConfigError(f'no option "{name}" of a format', where="--option", fix=fix)
    return found


def overrides_of(options: Mapping[str, object], override: Sequence[str] | None) -> list[str]:
    """Return `--set` words followed by those of the options that were given.

    Args:
        options: Key of the configuration → value; None or an empty list: the option was not given.
        override: Words of `--set`.
    """
    given = {key: value for key, value in options.items() if value is not None and value != []}
    return [*(override or []), *(f"{key}={to_json(value)}" for key, value in given.items())]


def configuration_of(
    config: Path | None, data: object, out: Path, *, resume: bool, command: str
) -> Path | None:
    """Return the file with the settings of a run: the one named, or that of the run to resume; None with data alone.

    Raises:
        CheckpointError: There is no run to resume.
        ConfigError: Neither file nor data are named.
    """
    from vitp.runs.folder import config_to_resume

    if config is None and resume:
        return config_to_resume(out)
    if config is None and not data:
        raise ConfigError("nothing to learn from", where=command, fix="name a configuration or --data")
    return config
