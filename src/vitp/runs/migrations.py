"""Configurations of earlier versions: their keys become those of today, and one line says so.

`config.yaml` of old run folders, files that users wrote, and `-s key=value` all come through here.

| key then | key now |
|---|---|
| `vrl`, `align`, `prior` | `objective.vrl`, `objective.align`, `objective.prior` |
| one section for each objective beside all others | `objective: {name: NAME, ...}` |
| `train.batch_size` of a finetuning | `data.global_batch` |
| `model.vision_lora` | `model.adapt` of the kind `lora` |
| `train.tensorboard: false` | `log.trackers: []` |

`objective: NAME` alone is no old form but the short one of `objective: {name: NAME}`, and `objectives: {NAME: WEIGHT}`
that of several objectives at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import yaml

from vitp.core.config import make_config
from vitp.core.errors import ConfigError
from vitp.core.files import to_json
from vitp.core.reading import parse_yaml
from vitp.objectives import SETTINGS, Default
from vitp.objectives.joint import in_short

_log = logging.getLogger("vitp")

TENSORBOARD = "train.tensorboard"
"""Key of a switch, then; who is told of a run is a list now."""

LORA = "model.vision_lora"
"""Key of low-rank updates, then; one kind among others now."""

FINETUNE_KEYS = {"train.batch_size": "data.global_batch"}
"""Key of a finetuning then → now."""


def pretraining_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a pretraining under the keys of today.

    Raises:
        ConfigError: A setting has one value under its old key and another one under its new one.
    """
    found, told = _with_trackers(values)
    told += _with_adapt(found)
    if "objectives" in found:
        if "objective" in found:
            raise ConfigError("stands beside objectives", where="objective", fix="leave one of them out")
        found["objective"] = in_short(found.pop("objectives"))
    objective = found.pop("objective", {})
    if isinstance(objective, str):
        objective = {"name": objective}
    if not isinstance(objective, Mapping):  # settings that were validated before
        return {"objective": objective, **found}
    objective = {"name": Default().name, **objective}
    own = SETTINGS.get(str(objective["name"]))
    said, unused = [*told], []
    for key in sorted(found.keys() & _FORMER.keys()):
        kind, place = _FORMER[key]
        if kind is own:
            value = found.pop(key)
            _put(objective, place, value, key)
            said.append(f"{key} is {'.'.join(filter(None, ('objective', place)))} now")
        elif own is not None and kind.has_language_model == own.has_language_model:
            # Old files had the sections of all objectives of this kind, of which only one counted.
            section = make_config(kind, found.pop(key) or {}, where=key)
            if section != kind():
                unused.append(key)
    if unused:
        said.append(f"{', '.join(unused)}: not settings of {objective['name']}, so not used")
    _say(said)
    return {"objective": objective, **found}


_FORMER = {key: (kind, place) for kind in SETTINGS.values() for key, place in kind.former_keys.items()}
"""Key at the root of a pretraining then → whose it is, and its place in the settings of the objective."""


def pretraining_overrides(
    values: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return values and `key=value` words under the keys of today, after the objective that the words choose.

    Another objective than that of the values leaves the settings of theirs behind.
    """
    found, others = pretraining_values(values), []
    for override in overrides:
        key, _, text = override.partition("=")
        if key.strip().partition(".")[0] == "objectives":
            others += _beside(found, key.strip(), text)
            continue
        chosen = _plain(text) if key.strip() in ("objective", "objective.name") else None
        if not isinstance(chosen, str):
            others.append(override)
        elif _name_of(found["objective"]) != chosen:
            found["objective"] = {"name": chosen}
    own = SETTINGS.get(str(_name_of(found["objective"])))
    said, words = [], []
    for override in others:
        if (now := _tracker_word(override)) is not None:
            said.append(f"{TENSORBOARD} is log.trackers now")
            words.append(now)
            continue
        if override.startswith(LORA):
            said.append(f"{LORA} is model.adapt now")
            words += _lora_words(override)
            continue
        first, dot, rest = override.partition("=")[0].strip().partition(".")
        kind, place = _FORMER.get(first, (None, ""))
        if kind is None or kind is not own:
            words.append(override)
            continue
        now = ".".join(filter(None, ("objective", place)))
        said.append(f"{first} is {now} now")
        text = override.partition("=")[2]
        section = None if place or dot else _plain(text)
        if isinstance(section, Mapping):  # the name beside these settings stays
            words += [f"{now}.{key}={to_json(value)}" for key, value in section.items()]
        else:
            words.append(f"{now}{dot}{rest}={text}")
    _say(list(dict.fromkeys(said)))
    return found, words


def _beside(values: dict[str, Any], key: str, text: str) -> list[str]:
    """Return the words of today for `objectives=…` or `objectives.NAME…=…`; the objective becomes one of several.

    What is learned without that word stays, with a weight of 1.
    """
    _, _, place = key.partition(".")
    if not place:
        values["objective"] = in_short(_plain(text))
        return []
    own = values["objective"]
    if "weights" not in own:
        values["objective"] = in_short({own["name"]: {k: v for k, v in own.items() if k != "name"}})
    name, _, rest = place.partition(".")
    now = f"weights.{name}" if rest in ("", "weight") else f"settings.{name}.{rest}"
    return [f"objective.{now}={text}"]


def finetuning_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a finetuning under the keys of today.

    Raises:
        ConfigError: A setting has one value under its old key and another one under its new one.
    """
    found, said = _with_trackers(values)
    for old, new in FINETUNE_KEYS.items():
        section, name = old.split(".")
        if isinstance(found.get(section), Mapping) and name in found[section]:
            found[section] = dict(found[section])
            _put(found, new, found[section].pop(name), old)
            said.append(f"{old} is {new} now")
    _say(said)
    return found


def finetuning_overrides(overrides: Sequence[str]) -> list[str]:
    """Return `key=value` words of a finetuning under the keys of today."""
    words, said = [], []
    for override in overrides:
        key, equals, text = override.partition("=")
        if (now := _tracker_word(override)) is not None:
            said.append(f"{TENSORBOARD} is log.trackers now")
            words.append(now)
            continue
        new = FINETUNE_KEYS.get(key.strip())
        words.append(f"{new}{equals}{text}" if new else override)
        said += [f"{key.strip()} is {new} now"] if new else []
    _say(said)
    return words


def _with_trackers(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return values whose switch of TensorBoard is in `log.trackers`, and what is to be said of it."""
    found, train = dict(values), values.get("train")
    if not isinstance(train, Mapping) or "tensorboard" not in train:
        return found, []
    found["train"] = {name: value for name, value in train.items() if name != "tensorboard"}
    if train["tensorboard"] is not False:  # what it is by default
        return found, []
    _put(found, "log.trackers", [], TENSORBOARD)
    return found, [f"{TENSORBOARD} is log.trackers now"]


def _lora_words(override: str) -> list[str]:
    """Return the words of today for `model.vision_lora=…` or `model.vision_lora.KEY=…`."""
    key, _, text = override.removeprefix(LORA).partition("=")
    section = None if key.strip() else _plain(text)
    if isinstance(section, Mapping):
        return [f"model.adapt={to_json({'kind': 'lora', **section})}"]
    return (
        ["model.adapt=null"]
        if not key.strip()
        else ["model.adapt.kind=lora", f"model.adapt{key.strip()}={text}"]
    )


def _with_adapt(values: dict[str, Any]) -> list[str]:
    """Put `model.vision_lora` where it is now, in place, and return what is to be said of it."""
    model = values.get("model")
    if not isinstance(model, Mapping) or "vision_lora" not in model:
        return []
    values["model"] = {name: value for name, value in model.items() if name != "vision_lora"}
    if model["vision_lora"] is None:
        return []
    _put(values, "model.adapt", {"kind": "lora", **model["vision_lora"]}, LORA)
    return [f"{LORA} is model.adapt now"]


def _tracker_word(override: str) -> str | None:
    """Return the word of today for one that switches TensorBoard, None for others."""
    key, _, text = override.partition("=")
    if key.strip() != TENSORBOARD:
        return None
    return f"log.trackers={'[]' if _plain(text) is False else '[tensorboard]'}"


def _put(values: dict[str, Any], place: str, value: Any, old: str) -> None:
    """Lay a value, section or not, into nested values; `place` "" is all of them."""
    if not place:
        if not isinstance(value, Mapping | None):
            raise ConfigError(f"is {value!r}", where=old, fix="name keys and values below it")
        for name, part in (value or {}).items():
            _put(values, name, part, f"{old}.{name}")
        return
    first, _, rest = place.partition(".")
    if rest or (isinstance(value, Mapping) and isinstance(values.get(first), Mapping)):
        values[first] = dict(values.get(first) or {})
        _put(values[first], rest, value, old)
        return
    if first in values and values[first] != value:
        raise ConfigError(
            f"is {value!r}, and under its new key {values[first]!r}", where=old, fix="leave the old key out"
        )
    values[first] = value


def _name_of(objective: Any) -> Any:
    return objective.get("name") if isinstance(objective, Mapping) else getattr(objective, "name", None)


def _plain(text: str) -> Any:
    """Return what a YAML value is; None where it is none, which is told when it is read."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return None


def _say(lines: Sequence[str]) -> None:
    if lines:
        _note("; ".join(lines))


@cache
def _note(line: str) -> None:
    """Say it once in a process: a configuration is read several times in one run."""
    # Files are read before the processes of a run have joined each other.
    if os.environ.get("RANK", "0") == "0":
        _log.warning("note: %s; the configuration is read as meant", line)
