"""The reference of all keys of configuration files, made from the settings themselves.

`python tools/keys.py docs/keys.md` writes it; a test tells when it is out of date.
"""

from __future__ import annotations

import json
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vitp.core.config import CONFIG_FILE, SettingsModel
from vitp.core.files import write_text
from vitp.objectives import SETTINGS
from vitp.objectives.settings import DataSettings
from vitp.runs.finetune import FinetuneConfig, FinetuneDataSettings
from vitp.runs.pretrain import PretrainConfig
from vitp.tasks.build import OTHER_HEADS, TASK_MODELS

WIDTH = 110
HEAD = f"""# Keys of configuration files

This page is made from the settings (`python tools/keys.py docs/keys.md`); don't edit it.

`vitp pretrain FILE.yaml` and `vitp finetune FILE.yaml` read YAML files with these keys, and write all of them into
`{CONFIG_FILE}` of the run's folder. `-s key.key=value` sets one of them on the command line. Unknown keys, values of
another type and numbers outside of the bounds are errors. `none` is YAML's `null`. A section that stands in several
places is described at the first of them.
"""
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "none"}
_SIGNS = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))


def reference() -> str:
    """Return the page, as Markdown."""
    seen: dict[type[BaseModel], str] = {}
    parts = [HEAD, "## Pretraining\n", _text(PretrainConfig)]
    settings = PretrainConfig(data=DataSettings(mixture=["…"]))
    parts += _keys(PretrainConfig, settings, "", seen, leave_out=("objective",))
    for name, kind in SETTINGS.items():
        parts += [f"### objective: {name}\n", _text(kind)]
        parts += _keys(kind, kind(name=name), "objective.", seen, leave_out=("name",))
    parts += ["## Finetuning\n", _text(FinetuneConfig)]
    tuned = FinetuneConfig(task="…", data=FinetuneDataSettings(root="…"))
    parts += _keys(FinetuneConfig, tuned, "", seen)
    others = {f"{task}, kind: {kind}": model for (task, kind), model in OTHER_HEADS.items()}
    for task, model in {**TASK_MODELS, **others}.items():
        parts += [f"### head of task: {task}\n"]
        if model.head_settings in seen:
            parts.append(f"As {seen[model.head_settings]}.\n")
            continue
        seen[model.head_settings] = f"the head of {task}"
        parts += [
            _text(model.head_settings),
            *_keys(model.head_settings, model.head_settings(), "head.", seen),
        ]
    return "\n".join(parts)


def _text(kind: type[BaseModel]) -> str:
    """Return the first paragraph of a class's description."""
    paragraph = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    return textwrap.fill(paragraph, WIDTH, break_long_words=False) + "\n"


def _keys(
    kind: type[BaseModel],
    values: BaseModel | None,
    prefix: str,
    seen: dict[type[BaseModel], str],
    leave_out: tuple[str, ...] = (),
) -> Iterator[str]:
    """Yield an entry for each key of a section, sections within it after its own keys."""
    sections: list[tuple[str, type[BaseModel], BaseModel | None]] = []
    lines = []
    for name, field in kind.model_fields.items():
        if name in leave_out:
            continue
        value = getattr(values, name, PydanticUndefined) if values is not None else _default(field)
        inners = [part for part in _members(field.annotation) if _is_section(part)]
        inner = inners[0] if inners else None
        lines.append(_entry(f"{prefix}{name}", field, value, inner, seen))
        for inner in inners:
            if inner not in seen:
                seen[inner] = f"`{prefix}{name}`"
                sections.append((f"{prefix}{name}.", inner, value if isinstance(value, BaseModel) else None))
    yield "\n".join(lines) + "\n"
    places = [place for place, _, _ in sections]
    for place, inner, held in sections:
        several = places.count(place) > 1 and "kind" in inner.model_fields
        which = f": {inner.model_fields['kind'].default}" if several else ""
        yield f"#### {place.rstrip('.')}{which}\n"
        yield from _keys(inner, held, place, seen)


def _entry(
    key: str, field: FieldInfo, value: Any, inner: type[BaseModel] | None, seen: dict[type[BaseModel], str]
) -> str:
    facts = [_kind_of(field.annotation, tuple(field.metadata))]
    if field.is_required():
        facts.append("required")
    elif not isinstance(value, BaseModel):
        facts.append(f"default {_shown(value)}")
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    needed = extra.get("needs_language_model")
    if needed is not None:
        facts.append(f"only {'with' if needed else 'without'} a language model")
    if inner is not None and inner in seen:
        # Where another section has other defaults than the class, they are told.
        other = value.model_dump(exclude_defaults=True) if isinstance(value, BaseModel) else {}
        facts.append(f"keys as in {seen[inner]}" + (f", with {_shown(other)}" if other else ""))
    text = f"- `{key}` ({'; '.join(facts)}): {' '.join((field.description or '').split())}"
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _shown(value: Any) -> str:
    """Return a default as YAML would have it in one line."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, BaseModel):  # in a list, whose entries have their own keys below
        return _shown(value.model_dump(exclude_defaults=True))
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_shown(part)}' for key, part in value.items())}}}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _bound(value: float) -> str:
    return f"{int(value):,}" if value == int(value) and abs(value) < 2**53 else f"{value:.3g}"


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, SettingsModel)


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union and what lists hold, without what is annotated."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _members(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType, list, tuple):
        for part in typing.get_args(annotation):
            yield from _members(part)
    else:
        yield annotation


def _kind_of(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """Return in words what a value may be, and within which bounds."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [part for extra in arguments[1:] for part in getattr(extra, "metadata", [extra])]
        return _kind_of(arguments[0], (*metadata, *inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind_of(part, metadata) for part in arguments))
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in arguments)
    if origin in (list, tuple):
        inside = [part for part in arguments if part is not Ellipsis]
        many = f"list of {len(inside)}" if origin is tuple and Ellipsis not in arguments else "list"
        return f"{many}: {_kind_of(inside[0])}"
    if origin is dict:
        return f"mapping of {_kind_of(arguments[0])} to {_kind_of(arguments[1])}"
    if _is_section(annotation):
        return "section"
    if annotation in (int, float):
        bounds = [
            f"{sign} {_bound(getattr(one, name))}"
            for kind, name, sign in _SIGNS
            for one in metadata
            if isinstance(one, kind)
        ]
        return " ".join([_WORDS[annotation], ", ".join(bounds)]).strip()
    return _WORDS.get(annotation, "any value")


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), reference())
