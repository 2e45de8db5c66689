"""Where models are pushed to: a repository of the Hugging Face hub, or a folder (`file:PATH`).

A file is sent when the remote hasn't its content already: a folder is read, the hub tells digests. Nothing else of a
remote is touched, but files of another model in the same place, and those only where that is asked for.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

from vitp.checkpoints.hub import HUB_PREFIX
from vitp.core.errors import ConfigError, VitpError
from vitp.core.files import atomic_path, sha256
from vitp.core.reading import open_file
from vitp.core.remote import HUB_SCHEME, VARIABLE, allowed_schemes
from vitp.core.sealed import SUMS
from vitp.deployment.bundle import OURS, Bundle, SharedFile, gathered, is_allowed, understood

FOLDER_PREFIX = "file:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

FileState = Literal["new", "changed", "unchanged", "not asked"]


class Remote(Protocol):
    """A place that models are sent to."""

    @property
    def title(self) -> str:
        """What messages call it."""

    @property
    def name(self) -> str:
        """What the card calls the model: the last part is its folder's name."""

    def files(self, names: Iterable[str]) -> dict[str, str] | None:
        """Return name → digest of what it holds, of the folders of some names at least; None: it isn't there yet."""

    def holds(self, file: SharedFile, known: str) -> bool:
        """Return whether what `files` said of a file is the file's own content."""

    def send(self, files: Sequence[SharedFile], stale: Sequence[str], message: str) -> None:
        """Put files there and remove others, all in one go where the remote can."""


class FolderRemote:
    """A folder, for tests, shared drives and mirrors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def title(self) -> str:
        """The folder's path."""
        return str(self.folder)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name or "model"

    def files(self, names: Iterable[str]) -> dict[str, str] | None:
        """Return the names of files in the folder itself, and those of the names that are there; no digests."""
        if not self.folder.exists():
            return None
        if not self.folder.is_dir():
            raise VitpError("is a file", where=self.title, fix="name a folder")
        found = {path.name: "" for path in self.folder.iterdir() if path.is_file()}
        return found | {name: "" for name in names if (self.folder / name).is_file()}

    def holds(self, file: SharedFile, known: str) -> bool:
        """Compare the SHA-256."""
        return sha256(self.folder / file.name) == file.sha256

    def send(self, files: Sequence[SharedFile], stale: Sequence[str], message: str) -> None:
        """Copy files, the list of digests last: until then a reader sees that not all is there."""
        for file in sorted(files, key=lambda one: one.name == SUMS):
            with atomic_path(self.folder / file.name) as temporary:
                shutil.copyfile(file.path, temporary)
        for name in stale:
            (self.folder / name).unlink(missing_ok=True)


def hub_api() -> Any:
    """Return the client of the hub; the token is the one that it keeps itself (`hf auth login`, HF_TOKEN)."""
    return HfApi(library_name="vitp")


class HubRemote:
    """A repository of models on the hub, made when files are sent.

    Args:
        repository: As "owner/name".
        private: Whether only its owner may see it.
        api: Client; None: the hub's own.
    """

    def __init__(self, repository: str, private: bool, api: Any = None) -> None:
        self.repository, self.private = repository, private
        self.api = hub_api() if api is None else api

    @property
    def title(self) -> str:
        """The repository's id."""
        return self.repository

    @property
    def name(self) -> str:
        """The same."""
        return self.repository

    def files(self, names: Iterable[str]) -> dict[str, str] | None:
        """Return name → digest: SHA-256 of large files, git's own of small ones."""
        try:
            info = self.api.repo_info(self.repository, repo_type="model")
        except errors.GatedRepoError as error:
            raise self._refused(error) from error
        except errors.RepositoryNotFoundError:
            return None
        except Exception as error:
            raise self._refused(error) from error
        if self.private and not info.private:
            raise VitpError(
                "is there already, and everybody can see it",
                where=self.repository,
                fix="make it private on its page, or leave --private out",
            )
        try:
            tree = list(self.api.list_repo_tree(self.repository, recursive=True, repo_type="model"))
        except Exception as error:
            raise self._refused(error) from error
        return {
            entry.path: entry.blob_id if entry.lfs is None else f"sha256:{entry.lfs.sha256}"
            for entry in tree
            if hasattr(entry, "blob_id")
        }

    def holds(self, file: SharedFile, known: str) -> bool:
        """Compare with what the hub would say of the file's content."""
        if known.startswith("sha256:"):
            return known == f"sha256:{file.sha256}"
        digest = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
        with open_file(file.path) as content:
            hashlib.file_digest(content, lambda: digest)
        return digest.hexdigest() == known

    def send(self, files: Sequence[SharedFile], stale: Sequence[str], message: str) -> None:
        """Make the repository where it is missing, and send everything as one commit."""
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=str(file.path)) for file in files
        ]
        operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
        try:
            self.api.create_repo(
                self.repository, private=True if self.private else None, exist_ok=True, repo_type="model"
            )
            self.api.create_commit(
                self.repository, operations=operations, commit_message=message, repo_type="model"
            )
        except Exception as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> VitpError:
        """Return in one sentence what the hub, its client or the network said."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        login = "log in with `hf auth login` or set HF_TOKEN, with a token that may write there"
        if isinstance(error, errors.OfflineModeIsEnabled):
            what, fix = "can't be reached: HF_HUB_OFFLINE is set", "unset it"
        elif isinstance(error, errors.LocalTokenNotFoundError) or status in (401, 403):
            what, fix = "the hub doesn't let you write there", login
        elif isinstance(error, errors.RepositoryNotFoundError):
            what, fix = "is no repository that you may write to", login
        elif isinstance(error, errors.HFValidationError):
            what, fix = "is no name that the hub takes", "write OWNER/NAME"
        elif status is not None:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            what = f"the hub answered {status} ({first})"
            fix = "try again later; files that are there aren't sent twice"
        elif isinstance(error, OSError) and error.errno is not None and error.filename:
            what, fix = f"a file can't be read ({error.strerror})", "check its permissions"
        else:
            what = f"the hub can't be reached ({type(error).__name__})"
            fix = "check the network, or push to a folder: file:PATH"
        return VitpError(what, where=self.repository, fix=fix)


def remote_of(text: str, *, private: bool = False, dry_run: bool = False) -> Remote:
    """Return the remote that a text names: `file:PATH`, or OWNER/NAME of the hub.

    Raises:
        ConfigError: It is neither, may be both, or the hub may not be asked.
    """
    if text.startswith(FOLDER_PREFIX):
        path = text.removeprefix(FOLDER_PREFIX)
        if not path or path.startswith("//"):
            raise ConfigError("names no folder", where=text, fix="write file:PATH, as in file:shared/ships")
        if private:
            raise ConfigError(
                "a folder is as private as its permissions", where="--private", fix="leave it out"
            )
        return FolderRemote(Path(path))
    name = text.removeprefix(HUB_PREFIX)
    if _HUB_ID.fullmatch(name) is None:
        raise ConfigError(
            "is no repository of the hub",
            where=text,
            fix=f"write OWNER/NAME, or {FOLDER_PREFIX}{text} for a folder",
        )
    if name == text and (Path(text).exists() or Path(text).parent.is_dir()):
        raise ConfigError(
            "may be a repository of the hub, or a folder here",
            where=text,
            fix=f"write {HUB_PREFIX}{text} or {FOLDER_PREFIX}{text}",
        )
    if not dry_run and HUB_SCHEME not in allowed_schemes():
        raise ConfigError(
            "is a repository of the hub, and no connection is opened unless that is allowed",
            where=name,
            fix=f"allow it with --allow-remote {HUB_SCHEME} ({VARIABLE}={HUB_SCHEME}), or look first with --dry-run",
        )
    return HubRemote(name, private)


@dataclass(frozen=True)
class PushReport:
    """What was, or would be, sent.

    Attributes:
        title: Name of the remote.
        bundle: What leaves; its files are gone by now where they were made for it.
        states: Name → how the file compares with what the remote holds.
        stale: Files of another model that were, or would be, removed there.
    """

    title: str
    bundle: Bundle
    states: dict[str, FileState]
    stale: tuple[str, ...]

    @property
    def sent(self) -> tuple[SharedFile, ...]:
        """Files that the remote hadn't."""
        return tuple(file for file in self.bundle.files if self.states[file.name] != "unchanged")


def push_model(
    source: str | Path,
    repository: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    licence: str = "",
    also: Sequence[str] = (),
    overwrite: bool = False,
) -> PushReport:
    """Send a model to a repository of the hub, or to a folder: see `vitp.deployment.bundle` for what leaves.

    Args:
        source: Run, model folder or export.
        repository: OWNER/NAME on the hub, or `file:PATH`.
        private: Make the hub's repository for its owner alone.
        dry_run: Send nothing, and don't ask the hub.
        licence: Licence of these weights.
        also: Further files of the source that leave.
        overwrite: Replace another model that is there.

    Raises:
        ConfigError: The remote's name is wrong, or the hub may not be asked.
        CheckpointError: There is no model that can leave.
        VitpError: The remote holds something else, can't be written or reached.
    """
    remote = remote_of(repository, private=private, dry_run=dry_run)
    on_hub = isinstance(remote, HubRemote)
    if isinstance(remote, FolderRemote):
        _check_elsewhere(remote.folder, source)
    with gathered(source, remote.name, hub=on_hub, licence=licence, also=also) as bundle:
        if on_hub and dry_run:
            return PushReport(remote.title, bundle, {file.name: "not asked" for file in bundle.files}, ())
        there = remote.files(
            [file.name for file in bundle.files] + [name for name in OURS if "*" not in name]
        )
        states = _states(remote, bundle, there)
        stale = _stale(remote, states, there or {}, overwrite)
        report = PushReport(remote.title, bundle, states, stale)
        if (report.sent or stale or there is None) and not dry_run:
            remote.send(report.sent, stale, f"vitp push: {bundle.said}")
        return report


def _check_elsewhere(folder: Path, source: str | Path) -> None:
    own = (Path(source), understood(source)[1])
    if any(folder.resolve().is_relative_to(one.resolve()) for one in own):
        raise ConfigError(
            "is the model's own folder", where=f"{FOLDER_PREFIX}{folder}", fix="name a folder outside of it"
        )


def _states(remote: Remote, bundle: Bundle, there: dict[str, str] | None) -> dict[str, FileState]:
    states: dict[str, FileState] = {}
    for file in bundle.files:
        known = (there or {}).get(file.name)
        same = known is not None and remote.holds(file, known)
        states[file.name] = "new" if known is None else "unchanged" if same else "changed"
    return states


def _stale(
    remote: Remote, states: dict[str, FileState], there: dict[str, str], overwrite: bool
) -> tuple[str, ...]:
    """Return the files of another model.

    Raises:
        VitpError: There are some, or what would be replaced isn't from here, and it isn't to be replaced.
    """
    stale = tuple(sorted(name for name in there if name not in states and is_allowed(name, OURS)))
    # A card may have been edited where it is.
    changed = [name for name, state in states.items() if state == "changed" and name != "README.md"]
    foreign = changed if SUMS not in there else []
    if (stale or foreign) and not overwrite:
        first = (stale or tuple(foreign))[0]
        raise VitpError(
            f"holds another model ({first})",
            where=remote.title,
            fix="choose another repository, or replace it with --force",
        )
    return stale
