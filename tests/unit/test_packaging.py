"""The image and the workflows: what they copy and call is there, and their versions agree with the package's."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from typing import Any

import pytest
import yaml

from tests.docs_commands import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def _copied() -> list[str]:
    lines = re.findall(r"^COPY (.*)$", DOCKERFILE, re.M)
    return [source for line in lines for source in line.split()[:-1]]


def test_the_image_copies_what_is_there_and_not_ignored() -> None:
    kept = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)
    for source in _copied():
        assert (ROOT / source).exists(), source
        assert source in kept, source
    assert sorted(kept) == sorted(_copied())


def test_the_image_has_what_building_the_package_needs() -> None:
    needed = {"pyproject.toml", "constraints.txt", "src", PROJECT["readme"], *PROJECT["license-files"]}
    assert needed <= set(_copied())


def test_the_versions_of_the_image_are_those_of_the_package() -> None:
    (floor,) = re.findall(r">=(\d+)\.(\d+)", PROJECT["requires-python"])
    (base,) = re.findall(r"^ARG BASE=python:(\d+)\.(\d+)-slim$", DOCKERFILE, re.M)
    assert tuple(map(int, base)) >= tuple(map(int, floor))
    assert f"Programming Language :: Python :: {'.'.join(base)}" in PROJECT["classifiers"]
    (torch,) = (part for part in PROJECT["dependencies"] if part.startswith("torch>="))
    (cuda,) = re.findall(r"pytorch/pytorch:(\d+\.\d+)", DOCKERFILE)
    assert tuple(map(int, cuda.split("."))) >= tuple(map(int, torch.removeprefix("torch>=").split(".")))


def test_the_image_installs_pinned_extras_and_runs_as_nobody_special() -> None:
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.M)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert re.search(r"pip install -c held\.txt", DOCKERFILE)
    user, entry = (
        re.search(r"^USER (\S+)$", DOCKERFILE, re.M),
        re.search(r"^ENTRYPOINT \[\"(\w+)\"\]$", DOCKERFILE, re.M),
    )
    assert user and user[1] not in ("root", "0")
    assert entry and entry[1] in PROJECT["scripts"]
    assert DOCKERFILE.index("\nUSER ") > DOCKERFILE.rindex("\nRUN ")


def test_the_versions_that_the_base_brings_are_not_pinned_twice() -> None:
    """Where torch comes with the base image, no other pin of CUDA's packages contradicts it."""
    (pattern,) = re.findall(r"grep -Ev '([^']+)' constraints\.txt", DOCKERFILE)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    left_out = {pin.partition("==")[0] for pin in pins if re.search(pattern, pin)}
    assert {"torch", "torchvision"} <= left_out
    assert not [pin for pin in pins if fnmatch(pin, "nvidia-*") and pin.partition("==")[0] not in left_out]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_pinned_and_call_what_is_there(path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert steps and "secrets." not in text
    for step in steps:
        assert not step.get("uses") or re.search(r"@v\d+\.\d+\.\d+$|@[0-9a-f]{40}$", step["uses"]), step
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    called = re.findall(r"\bmake ([a-z-]+)", text)
    assert set(called) <= set(targets)
    for job in jobs.values():
        assert job["timeout-minutes"] <= 120 and job["runs-on"] == "ubuntu-24.04"
        for version in job.get("strategy", {}).get("matrix", {}).get("python", []):
            assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_the_workflows_run_all_checks() -> None:
    called = {
        word
        for path in WORKFLOWS
        for word in re.findall(r"\bmake ([a-z-]+)", path.read_text(encoding="utf-8"))
    }
    assert called == {"test", "test-slow", "lint", "docs"}
