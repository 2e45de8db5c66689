"""What `vitp tune` may change: keys of a configuration, each with a range or choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml
from pydantic import Field, model_validator
from typing_extensions import TypeIs

from vitp.core.config import SettingsModel, load_config, make_config
from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.files import to_json
from vitp.core.reading import parse_yaml, read_text
from vitp.recipes.paradigms import pretrain_settings
from vitp.runs.finetune import FinetuneConfig
from vitp.runs.pretrain import PretrainConfig
from vitp.tasks.build import TASK_MODELS

SHARES_OF_SETS = "data.rates"
"""The shares of a mixture's sets: one range, of which each set gets a number of its own."""

TunedConfig: TypeAlias = FinetuneConfig | PretrainConfig
Space: TypeAlias = "dict[str, Range]"


Whole = Annotated[int, Field(ge=-(10**9), le=10**9)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]


def is_finetuning(config: TunedConfig) -> TypeIs[FinetuneConfig]:
    """Return whether a configuration is that of a finetuning, which has a task."""
    return "task" in type(config).model_fields


class Range(SettingsModel):
    """The values of one key: `choices`, or all numbers from `low` to `high`."""

    low: float | int | None = Field(None, ge=-1e9, le=1e9)
    """Smallest value; whole ends make whole numbers."""
    high: float | int | None = Field(None, ge=-1e9, le=1e9)
    """Largest value."""
    log: bool = False
    """Even in the logarithm, for values that differ by orders of magnitude."""
    choices: list[str | Whole | Number | bool | None] | None = None
    """All values there are."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Range:
        ends = [end for end in (self.low, self.high) if end is not None]
        if self.choices is not None:
            if ends or self.log or len(self.choices) < 2:
                raise ValueError("choices are at least two, and have no low, high and log beside them")
        elif len(ends) < 2 or not ends[0] < ends[1]:
            raise ValueError("give low and high, low below high, or choices")
        elif self.log and ends[0] <= 0:
            raise ValueError("a logarithm needs a low above 0")
        return self

    @property
    def example(self) -> Any:
        """A value of it."""
        return self.choices[0] if self.choices is not None else self.low

    def holds(self, value: Any) -> bool:
        """Return whether a value is one of it."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None and self.high is not None
        return isinstance(value, int | float) and self.low <= value <= self.high

    def suggest(self, trial: Any, name: str) -> Any:
        """Return the value that a trial of Optuna has for it."""
        if self.choices is not None:
            return trial.suggest_categorical(name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def __str__(self) -> str:
        """Return it in words."""
        if self.choices is not None:
            return " · ".join(map(str, self.choices))
        return f"{self.low:g} to {self.high:g}" + (", by its logarithm" if self.log else "")


def read_space(path: Path) -> Space:
    """Return the ranges of a YAML file: key → `low` and `high`, or `choices`.

    Raises:
        ConfigError: It can't be read, or holds something else.
    """
    try:
        values = parse_yaml(read_text(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"can't be read ({reason})", where=str(path), fix="name a YAML file") from error
    if not isinstance(values, dict) or not values:
        fix = "write a line for each key, as in optim.lr: {low: 1e-5, high: 1e-3, log: true}"
        raise ConfigError("holds no keys with ranges", where=str(path), fix=fix)
    space: Space = {}
    for key, value in values.items():
        if not isinstance(value, Mapping):
            fix = "give low and high, or choices"
            raise ConfigError(f"is {value!r}, no range", where=f"{path}: {key}", fix=fix)
        space[str(key)] = make_config(Range, dict(value), where=f"{path}: {key}")
    return space


def tuned_config(
    what: str, data: Sequence[str] | None, start: str | None, probe: str | None, overrides: Sequence[str]
) -> TunedConfig:
    """Return the run whose settings are tuned.

    Args:
        what: A YAML file, a task, or "pretrain".
        data: Instead of the file's.
        start: Model or backbone, instead of the file's.
        probe: Labelled folder that scores a pretraining, instead of the file's.
        overrides: `key.key=value` over the settings.

    Raises:
        ConfigError: It is none of them, or a setting is wrong.
    """
    path = Path(what)
    kind = what if what == "pretrain" or what in TASK_MODELS else _kind_of(path)
    file = None if kind == what and not path.is_file() else path
    if kind == "pretrain":
        options = {"data.mixture": list(data) if data else None, "model.init": start, "probe.data": probe}
        return pretrain_settings(file, None, [*_words(options), *overrides])
    if probe is not None:
        fix = "leave it out: a finetuning is scored on its validation images"
        raise ConfigError("is for pretraining", where="--probe", fix=fix)
    if data is not None and len(data) > 1:
        raise ConfigError(
            "names several sets, and a finetuning learns from one", where="--data", fix="name one"
        )
    words = [*_words({"data.root": data[0] if data else None, "backbone.init": start}), *overrides]
    if file is not None:
        return load_config(FinetuneConfig, file, words)
    return make_config(FinetuneConfig, {}, [f"task={kind}", *words], where="command line")


def _words(options: Mapping[str, Any]) -> list[str]:
    return [f"{key}={to_json(value)}" for key, value in options.items() if value is not None]


def _kind_of(path: Path) -> str:
    """Return what a YAML file is of: the task of a finetuning, else "pretrain".

    Raises:
        ConfigError: It can't be read.
    """
    if not path.is_file():
        hint = did_you_mean(str(path), ["pretrain", *TASK_MODELS]) or f"tasks are: {', '.join(TASK_MODELS)}"
        raise ConfigError("is neither a file nor a task", where=str(path), fix=hint)
    try:
        values = parse_yaml(read_text(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return "pretrain"  # whoever reads it says what is wrong with it
    return str(values["task"]) if isinstance(values, dict) and "task" in values else "pretrain"


def default_space(config: TunedConfig) -> Space:
    """Return what is tuned by default: rate, layer decay, weight decay, VRL's ratio, shares of sets."""
    lr = config.optim.lr
    space: Space = {
        "optim.lr": Range(low=lr / 10, high=lr * 10, log=True),
        "optim.layer_decay": Range(low=0.6, high=1.0),
        "optim.weight_decay": Range(low=1e-3, high=0.3, log=True),
    }
    if not is_finetuning(config):
        if "vrl" in type(config.objective).model_fields:
            space["objective.vrl.ratio"] = Range(low=0.0, high=0.9)
        if len(config.data.mixture) > 1:
            space[SHARES_OF_SETS] = Range(low=0.25, high=4.0, log=True)
    elif config.backbone.freeze:
        del space["optim.layer_decay"]
    return space


def of_each_set(space: Space, config: TunedConfig) -> Space:
    """Return the ranges with one for the shares of each set in place of `data.rates`.

    Raises:
        ConfigError: The run has no sets whose shares could be tuned.
    """
    if SHARES_OF_SETS not in space:
        return space
    if is_finetuning(config) or len(config.data.mixture) < 2:
        fix = "leave it out"
        raise ConfigError("there are no sets that share the batches", where=SHARES_OF_SETS, fix=fix)
    shares = {
        f"{SHARES_OF_SETS}.{number}": space[SHARES_OF_SETS] for number in range(len(config.data.mixture))
    }
    return {**{key: one for key, one in space.items() if key != SHARES_OF_SETS}, **shares}


def with_values(config: TunedConfig, values: Mapping[str, Any]) -> TunedConfig:
    """Return a configuration with values of a space laid over it.

    Raises:
        ConfigError: A key isn't one of the configuration, or a value doesn't fit it.
    """
    shares = [value for key, value in values.items() if key.startswith(f"{SHARES_OF_SETS}.")]
    plain = {key: value for key, value in values.items() if not key.startswith(f"{SHARES_OF_SETS}.")}
    if shares:
        plain[SHARES_OF_SETS] = shares
    words = [f"{key}={to_json(value)}" for key, value in plain.items()]
    return make_config(type(config), config.model_dump(mode="json"), words, where="vitp tune")


def own_values(config: TunedConfig, space: Space) -> dict[str, Any] | None:
    """Return the configuration's own values of a space, None where one lies outside of it."""
    found: dict[str, Any] = {}
    dumped = config.model_dump(mode="json")
    for key, one in space.items():
        place, _, number = key.rpartition(".")
        value: Any = dumped
        if place == SHARES_OF_SETS:
            # Without rates all sets have the same: 1.
            value = (dumped["data"].get("rates") or [1.0] * 1000)[int(number)]
        else:
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        if key == "optim.layer_decay" and value is None:
            value = 1.0  # the same rate for all layers, either way
        if not one.holds(value):
            return None
        found[key] = value
    return found
