"""The model cards of backbones and vision-language models: READMEs in the form of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from vitp.checkpoints.description import BackboneDescription, Provenance
from vitp.checkpoints.origin import PERMISSIVE, AnyOrigin, licence_words
from vitp.models.foreign import described_by
from vitp.models.vision import VisionSettings
from vitp.records.channels import Channels


def model_card(description: BackboneDescription, name: str) -> str:
    """Return the README of an export, in the form of the Hugging Face hub.

    Args:
        description: Description of the backbone.
        name: Name of the folder; the code of the card runs beside that folder.

    Raises:
        CheckpointError: What the source says of its training is odd.
    """
    origin = description.provenance
    with described_by(origin.source):
        parts = [
            *(_head(description, name), _contract(description), bands_section(description.vision.channels)),
            _usage(description, name),
        ]
        parts += [start_section(description.vision), origin_section(origin), learned_section(origin)]
        if notes := description.extra:
            rows = [
                (k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for k, v in notes.items()
            ]
            parts.append("## Notes\n\n" + markdown_table(("", ""), rows))
    return "\n\n".join(part for part in parts if part) + "\n"


def weights_card(
    name: str, kind: str, head: Mapping[str, Any], vision: VisionSettings, provenance: Provenance, loads: str
) -> str:
    """Return the README of a vision-language model, or of a tower in the layout of other software.

    Args:
        name: Name of the folder.
        kind: What it is, in a sentence.
        head: What the hub reads.
        vision: Settings of its tower.
        provenance: Where the weights come from.
        loads: Code that loads it, in a fence of Markdown.
    """
    mean, std = (", ".join(f"{value:g}" for value in values) for values in vision.normalisation)
    what = "RGB" if vision.channels is None else f"{len(vision.channels)} bands (below)"
    rows = [
        ("Tower", vision.architecture),
        ("Input", f"{what} on 0..1, then (x − mean) / std; tiles of {vision.image_size} px"),
        ("Mean", mean),
        ("Std", std),
    ]
    parts = [
        f"{card_head(head)}# {name}\n\n{kind}",
        "## Contract\n\n" + markdown_table(("", ""), rows),
        bands_section(vision.channels),
        f"## Use\n\n{loads}",
        start_section(vision),
        origin_section(provenance),
        learned_section(provenance),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def card_head(values: Mapping[str, Any], before: str = "") -> str:
    """Return a card that begins with what the hub reads of it (YAML between two lines of hyphens).

    Args:
        values: Key → value; empty ones are left out.
        before: The card so far. What its head says stays, as its author may have written it.
    """
    said: dict[str, Any] = {}
    parts = before.split("---\n", 2) if before.startswith("---\n") else []
    if len(parts) == 3:
        try:
            found = yaml.safe_load(parts[1])
        except yaml.YAMLError:
            found = None
        if isinstance(found, dict):
            said, before = found, parts[2].lstrip("\n")
    # What the card says already wins.
    merged = {**said, **{key: value for key, value in values.items() if value and key not in said}}
    return f"---\n{yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)}---\n\n{before}"


def evaluated(
    name: str, use: str, data: str, split: str, values: Mapping[str, float | None]
) -> dict[str, Any]:
    """Return scores as the head of a card on the hub has them (`model-index`); nothing where there are none.

    Args:
        name: Name of the model.
        use: What the hub calls its task.
        data: Name of the set.
        split: Which images of it were scored.
        values: Name of a score → value; None: it couldn't be counted.
    """
    kind = re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-")
    # The hub wants a slug of the data beside their name.
    results = [
        EvalResult(use, kind, data, metric, float(value), dataset_split=split, metric_name=metric)
        for metric, value in values.items()
        if value is not None and kind and metric not in ("images", "cases")
    ]
    return {"model-index": eval_results_to_model_index(name, results)} if results else {}


def licence_keys(licence: str) -> dict[str, str]:
    """Return a licence as the head of a card on the hub states it; nothing where none is stated."""
    if not licence:
        return {}
    known = licence.lower().replace(" ", "-")
    return {"license": known} if known in _HUB_LICENCES else {"license": "other", "license_name": licence}


_HUB_LICENCES = (
    *PERMISSIVE,
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0"),
    *("cc-by-3.0", "cc-by-sa-3.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail", "gemma"),
    *("llama3", "llama3.1", "llama3.2", "odc-by", "odbl", "pddl", "isc", "wtfpl", "zlib"),
)
"""Names of licences that the hub knows."""


def _head(d: BackboneDescription, name: str) -> str:
    tags = ["image-feature-extraction", "timm", "transformers", "vitp"]
    head = {"library_name": "timm", **licence_keys(d.vision.licence), "tags": tags}
    return (
        f"{card_head({**head, 'pipeline_tag': 'image-feature-extraction'})}# {name}\n\n"
        f"A Vision Transformer ({d.vision.architecture}, {d.parameters / 1e6:.1f} M parameters, {d.layers} layers of "
        f"width {d.width}) exported by vitp {d.vitp_version} on {d.created}. Only the backbone: no head, no "
        "projector, no language model."
    )


_POSITIONS = {
    "antialiased": "bicubic with antialiasing, as timm does",
    "bicubic": "bicubic without antialiasing, as InternVL does; timm's own loader takes antialiasing",
}


def start_section(of: AnyOrigin) -> str:
    """Return which published weights a model goes back to, and their licence; nothing where none are known."""
    if not of.weights_of:
        return ""
    said = licence_words(of)
    return "\n\n".join(
        filter(
            None,
            (
                "## Weights that it goes back to",
                f"`{of.weights_of}`, licence: {of.licence or 'not stated'}.",
                f"{said[0].upper()}{said[1:]}." if said else "",
            ),
        )
    )


def _positions(d: BackboneDescription) -> str:
    table = _POSITIONS[d.vision.positions] if "pos_embed" in d.tensors else ""
    rotary = "" if table and not d.rotary else "rotary: computed for each size, nothing is resampled"
    return "; table: ".join(filter(None, (rotary, table)))


def _contract(d: BackboneDescription) -> str:
    size = d.vision.image_size
    mean, std = (", ".join(f"{value:g}" for value in values) for values in d.vision.normalisation)
    channels = d.vision.channels
    what = "RGB" if channels is None else f"{len(channels)} bands (below)"
    rows = [
        (
            "Input",
            f"{what} on 0..1, then (x − mean) / std; {size} × {size} px in training, bicubic; other sizes work",
        ),
        ("Mean", mean),
        ("Std", std),
        ("Patch", f"{d.patch_size} px"),
        ("Grid", f"{d.grid} × {d.grid} patch tokens"),
        ("Positions at other sizes", _positions(d)),
        ("Tokens before the patches", str(d.prefix_tokens)),
        ("SHA-256 of the weights", f"`{d.sha256}`"),
    ]
    return "## Contract\n\n" + markdown_table(("", ""), rows)


_FIRST = {
    "linear": "",
    "db": "10 · log10 (dB)",
    "volume": "low and high are percentiles of each volume's values other than 0",
    "voi": "each file's own lookup table or window, to 0–255",
}


def bands_section(channels: Channels | None) -> str:
    """Return which bands the tower sees, and how values of a file become its input; nothing for RGB pictures."""
    if channels is None:
        return ""
    rows = [
        (str(n), c.band, _FIRST[c.transform], f"{c.low:g}", f"{c.high:g}")
        for n, c in enumerate(channels.channels)
    ]
    return (
        "## Bands\n\n"
        "The tower sees these bands, in this order. A value of the file (in dB where that is said) becomes "
        "(value − low) / (high − low), clipped to 0..1 and rounded to 255 steps; pixels without a value become 0.\n\n"
        + markdown_table(("Channel", "Band", "First", "Low", "High"), rows)
    )


_PICTURE = """transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.new("RGB", ({size}, {size}))
tokens = model.forward_features(transform(image)[None])  # (1, {tokens}, {width})"""

_PLANES = """data = timm.data.resolve_model_data_config(model)
mean, std = (torch.tensor(data[key]).view(-1, 1, 1) for key in ("mean", "std"))
scaled = torch.rand(1, {count}, {size}, {size})  # the bands above, on 0..1
tokens = model.forward_features((scaled - mean) / std)  # (1, {tokens}, {width})"""

_FILE = """
A file with these bands becomes the tower's input so:

```python
import torch
from vitp.io.images import load_planes

def features(tower, path):
    planes = load_planes(path, channels=tower.in_channels)  # uint8 ({count}, H, W)
    return tower.forward_features(tower.normalize(torch.from_numpy(planes)[None]))
```
"""


def _usage(d: BackboneDescription, name: str) -> str:
    size, count = d.vision.image_size, len(d.vision.normalisation[0])
    alike = {
        "size": size,
        "count": count,
        "tokens": f"{d.prefix_tokens} + {d.grid**2}",
        "width": d.width,
    }
    pictures = d.vision.channels is None
    of_timm = (_PICTURE if pictures else _PLANES).format(**alike)
    return f"""## Use

Run beside this folder, or write its path instead of `{name}`. With timm:

```python
import timm
{"from PIL import Image" if pictures else "import torch"}

model = timm.create_model("local-dir:{name}", pretrained=True).eval()
{of_timm}
patches = tokens[:, model.num_prefix_tokens :]

classifier = timm.create_model("local-dir:{name}", pretrained=True, num_classes=10, global_pool="avg")
```

With transformers (images normalised as above):

```python
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}").eval()
tokens = model(torch.zeros(1, {count}, {size}, {size})).last_hidden_state  # the same tokens
```

With vitp:

```python
import torch
from vitp import load_backbone, verify_export

tower = load_backbone("{name}")
pixels = torch.randint(0, 256, (1, {count}, {size}, {size}), dtype=torch.uint8)
(features,) = tower.forward_features(tower.normalize(pixels))  # (1, {d.width}, {d.grid}, {d.grid})
verify_export("{name}")  # recomputes the hash and the test vectors, through timm, too
```
{"" if pictures else _FILE.format(**alike)}"""


def origin_section(provenance: Provenance) -> str:
    """Return on which data weights were trained."""
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
        markdown_table(("Set", "Records", "Rate", "Share", "Licence"), rows),
        "",
        f"Fingerprint of the data and their order: `{mixture.fingerprint}`. The licences are those that the "
        "records state; whether they bind the weights is for you to decide.",
    ]
    return "\n".join(lines)


def learned_section(provenance: Provenance) -> str:
    """Return how far the vision tower moved; nothing where that isn't known."""
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
    table = (
        "\n\n" + markdown_table(("Layer", "Parameters", "Trainable", "‖w − w₀‖ / ‖w₀‖"), rows) if rows else ""
    )
    return "## What changed in the ViT\n\n" + "; ".join(facts) + "." + table
