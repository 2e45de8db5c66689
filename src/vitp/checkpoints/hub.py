"""The search for weights: a local file or folder first, else the Hugging Face hub.

What the hub's cache holds already is used; a connection is opened only where the user has allowed it
(`vitp.core.remote`).
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import errors, snapshot_download

from vitp.core.errors import CheckpointError
from vitp.core.remote import HUB_SCHEME, VARIABLE, allowed_schemes

HUB_PREFIX = "hf-hub:"
"""Says that a name is of the hub even when a folder of that name is here."""

PATTERNS = ("README.md", "*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "*.model")
"""What is fetched of a repository: weights and descriptions, never code."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(source: str | Path, *, revision: str | None = None) -> Path | None:
    """Return the local file or folder of a source; what the hub has is fetched into its cache, where that is allowed.

    Args:
        source: A path, or an id of the hub such as "OpenGVLab/InternVL2_5-1B".
        revision: Branch, tag or commit of the hub's repository.

    Returns:
        The path, or None when nothing is there and the name is no hub id either.

    Raises:
        CheckpointError: The hub may not be asked, has no such repository, wants a login, or can't be reached.
    """
    text = str(source)
    if not text.startswith(HUB_PREFIX) and Path(source).exists():
        return Path(source)
    repository = hub_id(text)
    return None if repository is None else _fetch(repository, revision)


def hub_id(text: str) -> str | None:
    """Return the repository that a text names, or None: two words with a slash, and no folder that is here.

    "runs/mine" with a folder `runs` beside it is a path that is misspelt, not a repository.
    """
    if text.startswith(HUB_PREFIX):
        return text.removeprefix(HUB_PREFIX)
    if _HUB_ID.fullmatch(text) is None or Path(text).exists() or Path(text).parent.is_dir():
        return None
    return text


def _fetch(repository: str, revision: str | None) -> Path:
    allowed = HUB_SCHEME in allowed_schemes()
    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(PATTERNS), local_files_only=not allowed
        )
    except errors.GatedRepoError as error:
        what, fix = (
            "is behind a licence on the hub",
            "accept it on its page, then log in with `hf auth login`",
        )
        raise CheckpointError(what, where=repository, fix=fix) from error
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    ) as error:
        raise CheckpointError(
            "is no file or folder here and no public model of the Hugging Face hub",
            where=repository,
            fix="check the spelling; private models need `hf auth login`",
        ) from error
    except Exception as error:  # offline: whatever the network library of the hub client raises
        if isinstance(error, errors.LocalEntryNotFoundError) and not allowed:
            raise CheckpointError(
                "is no file or folder here, and the Hugging Face hub is not asked unless that is allowed",
                where=repository,
                fix=f"check the path, or allow the connection with --allow-remote {HUB_SCHEME} "
                f"({VARIABLE}={HUB_SCHEME})",
            ) from error
        raise CheckpointError(
            f"is no file or folder here, and the Hugging Face hub can't be reached ({type(error).__name__})",
            where=repository,
            fix="download it where there is a network, copy the folder here and name that folder",
        ) from error
    return Path(folder)
