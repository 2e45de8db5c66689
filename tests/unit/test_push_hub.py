"""`vitp push` to the Hugging Face hub, without a network."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from tests.push_toys import TASK, run
from vitp.checkpoints.card import card_head, licence_keys
from vitp.cli import run as run_cli
from vitp.core.errors import VitpError
from vitp.deployment import remotes
from vitp.deployment.remotes import HubRemote, push_model

__all__ = ["run"]  # a fixture


class FakeHub:
    """The hub's client as far as it is called, with a repository in memory."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.files: dict[str, bytes] | None = None
        self.private, self.failure, self.commits = False, failure, 0

    def repo_info(self, repository: str, *, repo_type: str) -> Any:
        if self.failure is not None:
            raise self.failure
        if self.files is None:
            raise errors.RepositoryNotFoundError("404", response=answer(404))
        return SimpleNamespace(private=self.private)

    def list_repo_tree(self, repository: str, *, recursive: bool, repo_type: str) -> Any:
        for name, content in (self.files or {}).items():
            large = name.endswith(".safetensors")
            lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if large else None
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            yield SimpleNamespace(path=name, blob_id=blob, lfs=lfs)

    def create_repo(self, repository: str, *, private: bool | None, exist_ok: bool, repo_type: str) -> None:
        if self.files is None:
            self.files, self.private = {".gitattributes": b"x"}, bool(private)

    def create_commit(self, repository: str, *, operations: Any, commit_message: str, repo_type: str) -> None:
        assert self.files is not None
        self.commits += 1
        for one in operations:
            if hasattr(one, "path_or_fileobj"):
                self.files[one.path_in_repo] = Path(one.path_or_fileobj).read_bytes()
            else:
                del self.files[one.path_in_repo]


def answer(status: int) -> Any:
    import httpx

    return httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/x"))


def test_the_hub_gets_one_commit_of_what_it_lacks(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(remotes, "hub_api", lambda: hub)
    monkeypatch.setenv("VITP_ALLOW_REMOTE", "hf")
    dry = push_model(run, "me/ships", private=True, dry_run=True)
    assert (set(dry.states.values()), hub.files) == ({"not asked"}, None)
    push_model(run, "me/ships", private=True)
    assert hub.files is not None
    assert (set(hub.files), hub.private, hub.commits) == ({*TASK, ".gitattributes"}, True, 1)
    assert b"hf download me/ships --local-dir ships" in hub.files["README.md"]
    assert push_model(run, "me/ships").sent == ()
    assert hub.commits == 1
    hub.files["config.json"] = b"{}"
    hub.files["model.safetensors"] = b"other"
    sent = [file.name for file in push_model(run, "me/ships").sent]
    assert (sent, hub.commits) == (["config.json", "model.safetensors"], 2)
    hub.private = False
    with pytest.raises(VitpError, match="me/ships: is there already, and everybody can see it"):
        push_model(run, "me/ships", private=True)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (errors.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE is set; unset it"),
        (
            errors.HfHubHTTPError("no\nreally", response=answer(403)),
            "doesn't let you write there; log in with",
        ),
        (errors.HfHubHTTPError("busy", response=answer(503)), r"the hub answered 503 \(busy\)"),
        (errors.LocalTokenNotFoundError("x"), "doesn't let you write there"),
        (errors.HFValidationError("x"), "is no name that the hub takes"),
        (ConnectionError("no route"), r"can't be reached \(ConnectionError\); .*file:PATH"),
        (errors.GatedRepoError("x", response=answer(403)), "doesn't let you write there"),
    ],
)
def test_what_the_hub_says_is_one_line_and_exit_code_2(
    failure: Exception,
    words: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(remotes, "hub_api", lambda: FakeHub(failure))
    monkeypatch.setenv("VITP_ALLOW_REMOTE", "hf")
    assert run_cli(["push", str(run), "me/ships"]) == 2
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.search(words, said)


def test_heads_are_what_the_hub_takes() -> None:
    assert licence_keys("CC-BY 4.0") == {"license": "cc-by-4.0"}
    assert licence_keys("of: my own") == {"license": "other", "license_name": "of: my own"}
    kept = card_head({"license": "mit", "tags": ["a"]}, "---\nlicense: other\n---\n# x\n---\ny\n")
    assert kept == "---\nlicense: other\ntags:\n- a\n---\n\n# x\n---\ny\n"
    assert card_head({}, "---\n: : [\n---\n").endswith("---\n: : [\n---\n")


def test_the_remote_of_the_hub_needs_no_client_of_its_own() -> None:
    assert HubRemote("me/x", False, FakeHub()).files([]) is None
