"""The model card of an exported backbone: a README in the form of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Sequence

from vitp.checkpoints.description import BackboneDescription, Provenance
from vitp.checkpoints.origin import PERMISSIVE, licence_words
from vitp.models.foreign import described_by
from vitp.models.vision import VisionSettings
from vitp.records.channels import Channels


def model_card(description: BackboneDescription, name: str) -> str:
    """Return the README of an export, in the form of the Hugging Face hub.

    Args:
        description: Of the backbone.
        name: Of the folder; the code of the card runs beside that folder.

    Raises:
        CheckpointError: What the source says of its training is odd.
    """
    origin = description.provenance
    with described_by(origin.source):
        parts = [
            *(_head(description, name), _contract(description), _bands(description.vision.channels)),
            _usage(description, name),
        ]
        parts += [_start(description.vision), _origin(origin), _learned(origin)]
        if notes := description.extra:
            rows = [
                (k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for k, v in notes.items()
            ]
            parts.append("## Notes\n\n" + markdown_table(("", ""), rows))
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _head(d: BackboneDescription, name: str) -> str:
    return (
        f"---\nlibrary_name: timm\n{_licence_key(d.vision.licence)}tags:\n- image-feature-extraction\n- timm\n"
        "- transformers\n- vitp\n---\n\n"
        f"# {name}\n\n"
        f"A Vision Transformer ({d.vision.architecture}, {d.parameters / 1e6:.1f} M parameters, {d.layers} layers of "
        f"width {d.width}) exported by vitp {d.vitp_version} on {d.created}. Only the backbone: no head, no "
        "projector, no language model."
    )


_POSITIONS = {
    "antialiased": "bicubic with antialiasing, as timm does",
    "bicubic": "bicubic without antialiasing, as InternVL does; timm's own loader takes antialiasing",
}


def _licence_key(licence: str) -> str:
    """Return the licence as the head of a card on the hub states it."""
    if not licence:
        return ""
    known = licence.lower() in PERMISSIVE
    return (
        f"license: {licence.lower()}\n" if known else f"license: other\nlicense_name: {json.dumps(licence)}\n"
    )


def _start(vision: VisionSettings) -> str:
    """Return which published weights the tower goes back to, and their licence; nothing where none are known."""
    if not vision.weights_of:
        return ""
    said = licence_words(vision)
    return "\n\n".join(
        filter(
            None,
            (
                "## Weights that it goes back to",
                f"`{vision.weights_of}`, licence: {vision.licence or 'not stated'}.",
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


def _bands(channels: Channels | None) -> str:
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
        markdown_table(("Set", "Records", "Rate", "Share", "Licence"), rows),
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
    table = (
        "\n\n" + markdown_table(("Layer", "Parameters", "Trainable", "‖w − w₀‖ / ‖w₀‖"), rows) if rows else ""
    )
    return "## What changed in the ViT\n\n" + "; ".join(facts) + "." + table
