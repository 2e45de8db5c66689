"""What the options of commands that train mean for the configuration of the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vitp.core.errors import ConfigError
from vitp.core.files import to_json


def overrides_of(options: Mapping[str, object], override: Sequence[str] | None) -> list[str]:
    """Return `--set` words followed by those of the options that were given.

    Args:
        options: Key of the configuration → value; nothing was given where it is None or empty.
        override: Words of `--set`.
    """
    given = {key: value for key, value in options.items() if value is not None and value != []}
    return [
        *(override or []),
        *(f"{key}={to_json(value)}" for key, value in given.items()),
    ]


_COMMAND_OPTIONS = frozenset(
    {"src", "source", "fmt", "format", "path", "root", "out", "seed", "crop", "overlap", "empty"}
    | {"synthesis", "max_tiles", "force"}
)
"""What `--option` can't name: the command has it, as an argument or as an option of its own."""


def check_format_options(names: Iterable[str]) -> None:
    """Raise unless names are such that a label format may have an option of this name.

    Raises:
        ConfigError: One is the command's.
    """
    for name in names:
        if name in _COMMAND_OPTIONS or not name.isidentifier():
            fix = (
                f"write it as --{name.replace('_', '-')}" if name in _COMMAND_OPTIONS else "write name=value"
            )
            raise ConfigError(f'no option "{name}" of a format', where="--option", fix=fix)


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
