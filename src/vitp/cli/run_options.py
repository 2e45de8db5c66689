"""What the options of commands that train mean for the configuration of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vitp.errors import ConfigError
from vitp.files import to_json


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


def configuration_of(
    config: Path | None, data: object, out: Path, *, resume: bool, command: str
) -> Path | None:
    """Return the file with the settings of a run: the one named, or that of the run to resume; None with data alone.

    Raises:
        CheckpointError: There is no run to resume.
        ConfigError: Neither file nor data are named.
    """
    from vitp.run_folder import config_to_resume

    if config is None and resume:
        return config_to_resume(out)
    if config is None and not data:
        raise ConfigError("nothing to learn from", where=command, fix="name a configuration or --data")
    return config
