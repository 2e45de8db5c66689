"""Our own model folders: what `config.json` and `vitp_backbone.json` say, and where weights come from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError
from torch import Tensor

from vitp.checkpoints.hub import hub_id
from vitp.checkpoints.tensors import WEIGHTS
from vitp.core.config import CONFIG_FILE, SettingsModel, first_fault
from vitp.core.errors import CheckpointError
from vitp.core.reading import parse_json, parse_yaml, read_json, read_text
from vitp.core.sealed import read_metadata
from vitp.core.tensors import first_of, tensor_bytes
from vitp.core.version import STARTER, __version__
from vitp.models.foreign import described_by
from vitp.models.vision import VisionSettings
from vitp.models.vlm import VLMSettings
from vitp.records.channels import Channels

CONFIG = "config.json"
DESCRIPTION = "vitp_backbone.json"
GRAPH_DESCRIPTION = "vitp_graph.json"
"""Stands beside an exported graph: its input, its output, and what was compared."""

MIXTURE_FILE = "mixture.json"
EVIDENCE_FILE = "evidence.json"
VLM_FORMAT = "vitp-vlm-1"

EXTRA = "vitp"
"""Key of a published configuration under which we keep what the layout has no place for."""


_NAMES_MODELS = ("init", "backbone", "weights", "weights_of")
"""Keys whose values may name a model of the hub."""

_DRIVE = re.compile(r"[A-Za-z]:[/\\]|\\\\")
# An absolute path within a longer text. No letter, scheme or slash stands before it; blanks, quotes and brackets end
# it.
_PLACE = re.compile(
    r"(?<![\w:/.<~-])(?:file://)?(?:~|\.\.|[A-Za-z]:)?[/\\](?:[^/\\\s\"'`<>|]+[/\\])*[^/\\\s\"'`<>|,;)]+"
)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's `config.json`, or an empty one without that file.

    Raises:
        CheckpointError: It isn't JSON.
    """
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"can't be read ({error}), so it is no configuration of a vitp model, nor of any other",
            where=str(path),
            fix="copy the folder again",
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError("is no configuration of a vitp model", where=str(path))
    return values


def is_vlm_config(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is that of a vision-language model of ours, be it broken."""
    return "model" in config or str(config.get("format", "")).startswith("vitp-vlm")


def is_task_config(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is that of a finetuned model."""
    return str(config.get("format", "")).startswith("vitp-task-")


def vlm_of_config(config: Mapping[str, Any], where: Path) -> tuple[VLMSettings, int]:
    """Return sizes and vocabulary that the configuration of one of our vision-language models states.

    Raises:
        CheckpointError: It states none.
    """
    try:
        return VLMSettings.model_validate(config["model"]), int(config["vocabulary"])
    except (KeyError, TypeError, ValueError) as error:  # pydantic's are `ValueError`s
        raise CheckpointError(
            "is no configuration of a vitp model", where=str(where), fix="export or train it anew"
        ) from error


def describe_vlm(config: VLMSettings, vocabulary: int) -> dict[str, Any]:
    """Return the `config.json` of a model with these sizes."""
    # Drop path is a matter of the run that trains, not of the weights.
    sizes = config.model_copy(update={"drop_path": 0.0}).model_dump()
    return {"format": VLM_FORMAT, "vitp_version": __version__, "vocabulary": vocabulary, "model": sizes}


def own_folder(source: str | Path) -> Path | None:
    """Return the folder in one of vitp's own layouts that a source names ("starter", a folder, a run), or None.

    Raises:
        CheckpointError: A configuration beside weights can't be read.
    """
    if str(source) == "starter":
        return STARTER
    for folder in (Path(source), Path(source) / "model"):
        if (folder / DESCRIPTION).is_file():
            return folder
        if (folder / WEIGHTS).is_file():
            config = read_config(folder)
            if is_vlm_config(config) or is_task_config(config):
                return folder
    return None


def described_channels(folder: Path) -> Channels | None:
    """Return the bands that a tower in one of vitp's own layouts sees, without reading its weights; None: pictures.

    Raises:
        CheckpointError: The folder doesn't say it.
    """
    if (folder / DESCRIPTION).is_file():
        return read_description(folder).vision.channels
    config = read_config(folder)
    if is_vlm_config(config):
        return vlm_of_config(config, folder / CONFIG)[0].vision.channels
    try:
        channels = config["backbone"]["config"].get("channels")
        return None if channels is None else Channels.model_validate(channels)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            "doesn't say what its backbone sees", where=str(folder / CONFIG), fix="train or export it anew"
        ) from error


class DataUsed(SettingsModel):
    """One set of a pretraining mixture; an empty licence means that none is stated."""

    name: str
    """Name of the set."""
    records: int = Field(ge=0, le=2**40)
    """Records in the training split."""
    rate: float = Field(1.0, ge=0, le=1e6)
    """Factor on how often an epoch takes each record."""
    licence: str = ""
    """Licence; "": none is stated."""


class MixtureUsed(SettingsModel):
    """The data of a run, as `mixture.json` in its folder says it."""

    fingerprint: str
    """Hash of all that decides the batches."""
    sets: list[DataUsed] = Field(default_factory=list)
    """Sets of the mixture."""

    def share(self, used: DataUsed) -> float:
        """Return the part of an epoch that one of the sets makes up, 0..1."""
        return used.rate * used.records / (sum(s.rate * s.records for s in self.sets) or 1)


class Provenance(SettingsModel):
    """Where weights come from; what is not known is None. Names only: an export tells no one's folders."""

    source: str
    """Name of the run, folder or model that the weights are of."""
    steps: int | None = Field(None, ge=0, le=100_000_000)
    """Optimizer steps of the run."""
    mixture: MixtureUsed | None = None
    """Data of the run."""
    evidence: dict[str, Any] | None = None
    """What `evidence.json` of the run says about how far the tower moved."""
    configuration: dict[str, Any] | None = None
    """Settings of the run, with paths cut down to their last part."""


class BackboneDescription(SettingsModel):
    """Content of `vitp_backbone.json`. `tensors` holds a digest for each weight, `sha256` one of them all."""

    format: Literal["vitp-backbone-1"] = "vitp-backbone-1"
    """Name and version of this file's form."""
    vitp_version: str
    """Version of vitp that wrote it."""
    created: str
    """Day of the export, as YYYY-MM-DD."""
    vision: VisionSettings
    """Architecture, image size and normalisation."""
    patch_size: int = Field(ge=1, le=65_536)
    """Side of a patch in pixels."""
    grid: int = Field(ge=1, le=65_536)
    """Patches on a side of the image."""
    prefix_tokens: int = Field(ge=0, le=65_536)
    """Tokens before those of the patches ([CLS], registers)."""
    rotary: bool = False
    """Whether queries and keys are turned by their places."""
    width: int = Field(ge=1, le=1 << 20)
    """Channels of a token."""
    layers: int = Field(ge=1, le=65_536)
    """Blocks of the tower."""
    parameters: int = Field(ge=0, le=2**50)
    """Number of parameters."""
    sha256: str
    """Digest of all weights."""
    tensors: dict[str, str]
    """Name → digest of each weight."""
    provenance: Provenance
    """Where the weights come from."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Anything else that a program wants to keep beside the weights."""

    def contract(self) -> dict[str, Any]:
        """Return what a user of the weights has to know: the part that travels inside the weights file."""
        (mean, std), channels = self.vision.normalisation, self.vision.channels
        bands = {} if channels is None else {"channels": channels.model_dump(mode="json")}
        return {
            "architecture": self.vision.architecture,
            **bands,
            "mean": list(mean),
            "std": list(std),
            "image_size": self.vision.image_size,
            "patch_size": self.patch_size,
            "grid": self.grid,
            "prefix_tokens": self.prefix_tokens,
            "sha256": self.sha256,
        }

    def check_contract(self, weights_file: Path) -> None:
        """Compare the contract inside of the weights file with this one.

        Raises:
            CheckpointError: They differ, or the file states none.
        """
        try:
            inside = dict(parse_json(read_metadata(weights_file)["contract"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                "states no contract (normalisation, size, hash)",
                where=str(weights_file),
                fix="export it anew",
            ) from error
        for key, value in self.contract().items():
            if inside.get(key) != value:
                raise CheckpointError(
                    f"says {key} {inside.get(key)}, but {DESCRIPTION} says {value}",
                    where=str(weights_file),
                    fix="one of the files was changed; export the backbone anew",
                )

    def check_digests(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Compare weights with their digests.

        Raises:
            CheckpointError: With the names of the tensors that differ, or because the digests themselves were
                changed.
        """
        digests = tensor_digests(weights)
        missing, unexpected = (
            sorted(a.keys() - b.keys()) for a, b in ((self.tensors, digests), (digests, self.tensors))
        )
        if missing or unexpected:
            groups = {"missing": missing, "unexpected": unexpected}
            wrong = [f"{len(names)} {what} ({first_of(names)})" for what, names in groups.items() if names]
            raise CheckpointError(
                f"is of another architecture: {'; '.join(wrong)}",
                where=str(path),
                fix="copy the file again or export it anew",
            )
        if changed := [name for name, digest in digests.items() if self.tensors[name] != digest]:
            raise CheckpointError(
                f"{len(changed)} tensors are not those that were exported ({first_of(changed)})",
                where=str(path),
                fix="copy the file again or export it anew",
            )
        if (actual := content_hash(digests)) != self.sha256:
            raise CheckpointError(
                f"has the hash {actual[:12]}…, but {DESCRIPTION} says {self.sha256[:12]}…",
                where=str(path),
                fix="copy the folder again or export it anew",
            )


def tensor_digests(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name → SHA-256 of type, shape and bytes."""
    digests = {}
    for name, tensor in weights.items():
        # Of another shape or type the bytes may be the same.
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor_bytes(tensor))
        digests[name] = digest.hexdigest()
    return digests


def content_hash(digests: Mapping[str, str]) -> str:
    """Return one SHA-256 for named tensors: independent of their order, of metadata and of the file format."""
    return hashlib.sha256("".join(f"{n} {d}\n" for n, d in sorted(digests.items())).encode()).hexdigest()


def read_description(folder: Path) -> BackboneDescription:
    """Return what `vitp_backbone.json` says.

    Raises:
        CheckpointError: The file is missing or isn't a description.
    """
    path = folder / DESCRIPTION
    try:
        return BackboneDescription.model_validate(read_json(path))
    except FileNotFoundError as error:
        raise CheckpointError("is missing", where=str(path), fix="export the backbone anew") from error
    except ValidationError as error:
        what = f"is no description of a backbone ({first_fault(error)})"
        raise CheckpointError(what, where=str(path), fix="export it anew") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't be read ({error})", where=str(path), fix="export it anew") from error


def provenance_of_run(run: Path) -> Provenance:
    """Return what the files of a run folder say: configuration, mixture, steps and evidence of learning.

    Raises:
        CheckpointError: One of the files is there but can't be read.
    """
    evidence = _read(run / EVIDENCE_FILE, parse_json)
    mixture = _read(run / MIXTURE_FILE, lambda text: MixtureUsed.model_validate(parse_json(text)))
    configuration = _read(run / CONFIG_FILE, parse_yaml)
    with described_by(run):
        return Provenance(
            source=run.resolve().name,
            steps=evidence.get("step") if evidence else None,
            mixture=mixture,
            evidence=evidence,
            configuration=without_places(configuration) if isinstance(configuration, dict) else None,
        )


def provenance_of_folder(folder: Path) -> Provenance:
    """Return where the weights of one of our own folders come from; a model of a run has its origin beside it.

    Raises:
        CheckpointError: As `provenance_of_run`.
    """
    if folder == STARTER:
        return Provenance(source="the starter model of the vitp package")
    run = folder.resolve().parent if folder.resolve().name == "model" else folder
    if any((run / name).is_file() for name in (CONFIG_FILE, EVIDENCE_FILE, MIXTURE_FILE)):
        return provenance_of_run(run)
    if (folder / DESCRIPTION).is_file():
        return read_description(folder).provenance
    return provenance_of_run(folder)


def without_places(value: Any, *, relative: bool = False, key: str = "") -> Any:
    """Return a JSON value whose texts name no folders: of each path the last part stays.

    Args:
        value: Any.
        relative: Whether paths without a root are cut, too, but for models of the hub.
        key: Under which the value stands.
    """
    if key == "classes":  # some are called like "/m/01"
        return value
    if isinstance(value, dict):
        return {name: without_places(inner, relative=relative, key=name) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_places(inner, relative=relative, key=key) for inner in value]
    if not isinstance(value, str):
        return value
    plain = value.removeprefix("file://")
    if PurePosixPath(plain).is_absolute() or _DRIVE.match(plain) or plain.startswith(("~", "../")):
        return _last_part(plain)
    if relative and re.search(r"[/\\]", value) and "://" not in value:
        # `owner/name` may be a model of the hub, and then it is nobody's folder.
        return value if key in _NAMES_MODELS and hub_id(value) else _last_part(value)
    return _PLACE.sub(lambda match: _last_part(match[0]), value)


def _last_part(path: str) -> str:
    return re.split(r"[/\\]+", path.rstrip("/\\"))[-1]


def _read(path: Path, parse: Any) -> Any:
    if not path.is_file():
        return None
    try:
        return parse(read_text(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"can't be read ({str(error).splitlines()[0]})", where=str(path), fix="mend or remove it"
        ) from error
