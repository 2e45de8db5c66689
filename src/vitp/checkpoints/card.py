"""What an exported backbone says about itself: its description file, its model card, where it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from vitp.core.config import CONFIG_FILE, SettingsModel
from vitp.core.errors import CheckpointError
from vitp.core.reading import parse_json, parse_yaml, read_text
from vitp.models.foreign import described_by
from vitp.models.vision import VisionConfig

FORMAT: Literal["vitp-backbone-1"] = "vitp-backbone-1"
MIXTURE_FILE = "mixture.json"


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

    format: Literal["vitp-backbone-1"] = FORMAT
    """Name and version of this file's form."""
    vitp_version: str
    """Version of vitp that wrote it."""
    created: str
    """Day of the export, as YYYY-MM-DD."""
    vision: VisionConfig
    """Architecture, image size and normalisation."""
    patch_size: int = Field(ge=1, le=65_536)
    """Side of a patch in pixels."""
    grid: int = Field(ge=1, le=65_536)
    """Patches on a side of the image."""
    prefix_tokens: int = Field(ge=0, le=65_536)
    """Tokens before those of the patches ([CLS], registers)."""
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
        return {
            "architecture": self.vision.architecture,
            "mean": list(self.vision.mean),
            "std": list(self.vision.std),
            "image_size": self.vision.image_size,
            "patch_size": self.patch_size,
            "grid": self.grid,
            "prefix_tokens": self.prefix_tokens,
            "sha256": self.sha256,
        }


def provenance_of_run(run: Path) -> Provenance:
    """Return what the files of a run folder say: configuration, mixture, steps and evidence of learning.

    Raises:
        CheckpointError: One of the files is there but can't be read.
    """
    evidence = _read(run / "evidence.json", parse_json)
    mixture = _read(run / MIXTURE_FILE, lambda text: MixtureUsed.model_validate(parse_json(text)))
    configuration = _read(run / CONFIG_FILE, parse_yaml)
    with described_by(run):
        return Provenance(
            source=run.resolve().name,
            steps=evidence.get("step") if evidence else None,
            mixture=mixture,
            evidence=evidence,
            configuration=_without_folders(configuration) if isinstance(configuration, dict) else None,
        )


def _without_folders(value: Any) -> Any:
    """Return configuration values with absolute paths cut down to their last part."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _read(path: Path, parse: Any) -> Any:
    if not path.is_file():
        return None
    try:
        return parse(read_text(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"can't be read ({str(error).splitlines()[0]})", where=str(path), fix="mend or remove it"
        ) from error


def model_card(description: BackboneDescription, name: str) -> str:
    """Return the README of an export, in the form of the Hugging Face hub.

    Args:
        description: Of the backbone.
        name: Of the folder; the code of the card runs beside that folder.

    Raises:
        CheckpointError: What the source says of its training is odd.
    """
    with described_by(description.provenance.source):
        parts = [
            _head(description, name),
            _contract(description),
            _usage(description, name),
            _origin(description.provenance),
            _learned(description.provenance),
            _extra(description.extra),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _head(d: BackboneDescription, name: str) -> str:
    return (
        "---\nlibrary_name: timm\ntags:\n- image-feature-extraction\n- timm\n- transformers\n- vitp\n---\n\n"
        f"# {name}\n\n"
        f"A Vision Transformer ({d.vision.architecture}, {d.parameters / 1e6:.1f} M parameters, {d.layers} layers of "
        f"width {d.width}) exported by vitp {d.vitp_version} on {d.created}. Only the backbone: no head, no "
        "projector, no language model."
    )


_POSITIONS = {
    "antialiased": "bicubic with antialiasing, as timm does",
    "bicubic": "bicubic without antialiasing, as InternVL does; timm's own loader takes antialiasing",
}


def _contract(d: BackboneDescription) -> str:
    size = d.vision.image_size
    rows = [
        (
            "Input",
            f"RGB on 0..1, then (x − mean) / std; {size} × {size} px in training, bicubic; other sizes work",
        ),
        ("Mean", _numbers(d.vision.mean)),
        ("Std", _numbers(d.vision.std)),
        ("Patch", f"{d.patch_size} px"),
        ("Grid", f"{d.grid} × {d.grid} patch tokens"),
        ("Positions at other sizes", _POSITIONS[d.vision.positions]),
        ("Tokens before the patches", str(d.prefix_tokens)),
        ("SHA-256 of the weights", f"`{d.sha256}`"),
    ]
    return "## Contract\n\n" + _table(("", ""), rows)


def _usage(d: BackboneDescription, name: str) -> str:
    size = d.vision.image_size
    return f"""## Use

Run beside this folder, or write its path instead of `{name}`. With timm:

```python
import timm
from PIL import Image

model = timm.create_model("local-dir:{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.new("RGB", ({size}, {size}))
tokens = model.forward_features(transform(image)[None])  # (1, {d.prefix_tokens} + {d.grid**2}, {d.width})
patches = tokens[:, model.num_prefix_tokens :]

classifier = timm.create_model("local-dir:{name}", pretrained=True, num_classes=10, global_pool="avg")
```

With transformers (images normalised as above):

```python
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}").eval()
tokens = model(torch.zeros(1, 3, {size}, {size})).last_hidden_state  # the same tokens
```

With vitp:

```python
import torch
from vitp.checkpoints.export import load_backbone, verify_export

tower = load_backbone("{name}")
pixels = torch.randint(0, 256, (1, 3, {size}, {size}), dtype=torch.uint8)
(features,) = tower.forward_features(tower.normalize(pixels))  # (1, {d.width}, {d.grid}, {d.grid})
verify_export("{name}")  # recomputes the hash and the test vectors, through timm, too
```"""


def _origin(provenance: Provenance) -> str:
    lines = ["## Training data", ""]
    steps = f", {provenance.steps} optimizer steps" if provenance.steps else ""
    lines.append(f"From `{provenance.source}`{steps}.")
    if provenance.mixture is None:
        lines.append("The source says nothing about its data.")
        return "\n".join(lines)
    mixture = provenance.mixture
    rows = [
        (s.name, str(s.records), f"{s.rate:g}", f"{mixture.share(s):.1%}", s.licence or "not stated")
        for s in mixture.sets
    ]
    lines += [
        "",
        _table(("Set", "Records", "Rate", "Share", "Licence"), rows),
        "",
        f"Fingerprint of the data and their order: `{mixture.fingerprint}`. The licences are those that the "
        "records state; whether they bind the weights is for you to decide.",
    ]
    return "\n".join(lines)


def _learned(provenance: Provenance) -> str:
    evidence = provenance.evidence
    if not evidence:
        return ""
    facts = [f"Relative change of the weights: {evidence.get('relative_change', 0):.3%}"]
    if (share := evidence.get("gradient_share")) is not None:
        facts.append(f"mean share of the gradient norm: {share:.1%}")
    if (cka := evidence.get("cka")) is not None:
        facts.append(f"linear CKA of the features before and after: {cka:.3f}")
    if not evidence.get("meant_to_train", True):
        facts.append("the ViT was frozen on purpose")
    rows = [
        (row["layer"], str(row["parameters"]), str(row["trainable"]), f"{row['change']:.3%}")
        for row in evidence.get("layers", [])
    ]
    table = "\n\n" + _table(("Layer", "Parameters", "Trainable", "‖w − w₀‖ / ‖w₀‖"), rows) if rows else ""
    return "## What changed in the ViT\n\n" + "; ".join(facts) + "." + table


def _extra(extra: dict[str, Any]) -> str:
    if not extra:
        return ""
    rows = [(key, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for key, v in extra.items()]
    return "## Notes\n\n" + _table(("", ""), rows)
