"""Whether this process may open connections: never, but for the schemes that the user names.

A record, a mixture or the configuration of a model folder may come from anybody and may name any address. So no address
of theirs is opened unless its scheme is in `VITP_ALLOW_REMOTE`, which the option `--allow-remote` of every command
sets; being in the environment, it also holds for data workers and other processes that a command starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from vitp.core.errors import ConfigError, DataError

VARIABLE = "VITP_ALLOW_REMOTE"
"""Names the schemes that may be opened, parted by commas."""

HUB_SCHEME = "hf"
"""Stands for models of the Hugging Face hub, whose addresses have no scheme."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_HERE = frozenset({"file", "local"})
"""Schemes of fsspec that name what is on this machine: paths are there for that, and are checked where URLs aren't."""


def allowed_schemes() -> frozenset[str]:
    """Return the schemes that may be opened.

    Raises:
        ConfigError: The variable holds something else.
    """
    return _schemes(os.environ.get(VARIABLE, "").split(","), VARIABLE)


def allow_remote(schemes: Iterable[str]) -> None:
    """Let this process, and those that it starts, open addresses of some schemes beside those allowed before.

    Args:
        schemes: `https`, `s3`, …, or several parted by commas; `hf` for models of the Hugging Face hub.

    Raises:
        ConfigError: One is no scheme.
    """
    named = _schemes([word for text in schemes for word in text.split(",")], "--allow-remote")
    if named:
        os.environ[VARIABLE] = ",".join(sorted(named | allowed_schemes()))


def _schemes(words: Iterable[str], where: str) -> frozenset[str]:
    found = {word.strip().lower().removesuffix("://") for word in words} - {""}
    for word in found:
        if _SCHEME.fullmatch(word) is None or word in _HERE:
            raise ConfigError(
                f"{word!r} is no scheme of a network",
                where=where,
                fix="name schemes, as in https,s3 (hf: the hub)",
            )
    return frozenset(found)


def check_allowed(url: str) -> None:
    """Raise unless the user has allowed the scheme of a URL.

    Raises:
        DataError: It isn't allowed, or the URL is a chain of several.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if "::" in url:
        raise DataError("is a chain of URLs, which is not opened", where=url, fix="name the file itself")
    if scheme in _HERE:
        raise DataError("is a URL of this machine", where=url, fix=f"write it as a path: {rest or '…'}")
    if scheme not in allowed_schemes():
        raise DataError(
            "is a URL, and no connection is opened unless it is asked for",
            where=url,
            fix=f"copy the file to a folder here, or allow the scheme with --allow-remote {scheme}",
        )


def stay_offline() -> None:
    """Keep the libraries for language models from asking the hub by themselves, unless the user has allowed it.

    They read these variables when they are imported, so this has to be called before.
    """
    if HUB_SCHEME not in allowed_schemes():
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ[variable] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
