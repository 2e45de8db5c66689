"""Which published weights a tower goes back to, and under which licence they were given away."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from timm.models import get_arch_pretrained_cfgs

from vitp.checkpoints.description import EXTRA
from vitp.checkpoints.hub import hub_id
from vitp.models.timm_backbone import TimmSettings
from vitp.models.vision import VisionSettings

_log = logging.getLogger("vitp")

PERMISSIVE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "unlicense")
"""Licences, by their names on the hub, that ask for hardly more than to be named."""

_BY_KIND = {"dinov3_vit": "dinov3-license"}
"""Model type of transformers → licence of all its published weights."""


@dataclass(frozen=True)
class Origin:
    """Published weights, and their licence; "": not known."""

    weights_of: str = ""
    licence: str = ""


AnyOrigin = Origin | VisionSettings | TimmSettings
"""Whatever tells which weights it goes back to."""


def told_origin(of: AnyOrigin) -> dict[str, str]:
    """Return `weights_of` and `licence`, each where it is known: what descriptions say of them."""
    return {key: told for key in ("weights_of", "licence") if (told := getattr(of, key))}


def origin_of(
    source: str, folder: Path | None, config: Mapping[str, Any], architecture: str | None
) -> dict[str, str]:
    """Return `weights_of` and `licence` of `VisionSettings`, as far as a folder or timm tells them.

    Args:
        source: As the user named it; of a path only the last part is told.
        folder: Where its files are; None: a file on its own.
        config: Content of its `config.json`.
        architecture: timm's name, with the tag of the training or without.
    """
    if isinstance(own := config.get(EXTRA), dict):  # what vitp has written says where it comes from
        return {key: _told(own.get(key, "")) for key in ("weights_of", "licence")}
    published = config.get("pretrained_cfg") or {}
    tagged = architecture or ""
    if "." not in tagged and published.get("tag"):
        tagged = f"{tagged}.{published['tag']}"
    stated = published.get("license") or _card_licence(folder) or _BY_KIND.get(str(config.get("model_type")))
    return {
        "weights_of": _told(hub_id(source) or tagged or Path(source).resolve().name),
        "licence": _told(stated or _known_to_timm(tagged)),
    }


def _told(value: object) -> str:
    return " ".join(str(value).split())[:200] if isinstance(value, str) else ""


def _card_licence(folder: Path | None) -> str | None:
    """Return the licence in the head of a folder's model card, as the hub has it; None without one."""
    card = None if folder is None else folder / "README.md"
    if card is None or not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:
        head = file.read(20_000)
    if not head.startswith("---") or len(parts := head.split("---", 2)) < 3:
        return None
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    if not isinstance(values, dict):
        return None
    # On the hub "other" means that the licence's name stands in a field of its own.
    named = values.get("license_name") if values.get("license") == "other" else values.get("license")
    return named or values.get("license")


def _known_to_timm(name: str) -> str:
    """Return the licence of timm's weights of this name; without a tag the one that all of them have, else ""."""
    base, _, tag = name.partition(".")
    known = get_arch_pretrained_cfgs(base)
    chosen = [known[name]] if name in known else [] if tag else list(known.values())
    licences = {entry.license or "" for entry in chosen}
    return licences.pop() if len(licences) == 1 else ""


def licence_words(of: AnyOrigin) -> str:
    """Return in one sentence what somebody who passes weights on has to know; "": nothing is known."""
    if not of.licence or of.licence.lower() in PERMISSIVE:
        return ""
    return (
        f"these weights go back to {of.weights_of}, whose licence ({of.licence}) binds whoever uses them or "
        "passes them on: read it first"
    )


def warn_of_licence(of: AnyOrigin) -> None:
    """Say it on the console where weights have a licence of their own."""
    if words := licence_words(of):
        _log.warning("note: %s", words)
