"""The commands of the documentation run as they are printed, page by page, on a few generated images.

What is made smaller: sets have 24 scenes of 64 px, trainings two steps. Everything else is as a reader types it.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs_commands import ROOT, is_run, lines_of, pages, vitp_arguments
from tests.e2e.conftest import done
from vitp.scenes.volume_files import write_nnunet

RUN = [page for page in pages() if is_run(page)]
SHORT = ["-s", "train.steps=2", "-s", "data.global_batch=4", "-s", "train.num_workers=0"]
SMALLER = {
    "pretrain": SHORT,
    "finetune": SHORT,
    "report": ["--samples", "2"],
    "scenes": ["--size", "64"],
    "probe": ["--seeds", "1"],
}


def _captions() -> None:
    """A table of texts beside generated images."""
    done("data", "scenes", "port", "--layout", "folders", "--count", 24, "--size", 64, "--out", "drawn")
    images = sorted(Path("drawn").rglob("*.png"))
    Path("my_captions/images").mkdir(parents=True)
    with Path("my_captions/captions.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for number, image in enumerate(images):
            shutil.copy(image, "my_captions/images")
            table.writerow([image.name, f"A scene of a {image.parent.name}, with the number {number}."])


def _volumes() -> None:
    """An nnU-Net folder of six trunks."""
    write_nnunet(Path("volumes"), 6, size=(48, 40, 8), twice=1)


MAKE: dict[str, Callable[[], None]] = {"captions": _captions, "volumes": _volumes}


def _expanded(word: str) -> list[str]:
    """Return the files that a pattern of the shell stands for; any other word as it is."""
    return sorted(map(str, Path().glob(word))) if "*" in word and "=" not in word else [word]


def _smaller(words: list[str]) -> list[str]:
    """Return the words of a command with a few images and steps."""
    name = words[1] if words[0] == "data" else words[0]
    kept, place = [], 0
    while place < len(words):
        if words[place] == "--count":
            kept += ["--count", "24"]
        elif words[place] != "--steps":
            kept += _expanded(words[place])
        place += 2 if words[place] in ("--count", "--steps") else 1
    return [*kept, *SMALLER.get(name, [])]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_the_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    count = 0
    for line in lines_of(page):
        if line.make is not None:
            MAKE[line.make]()
        elif line.reason is None:
            words = vitp_arguments(line.text)
            assert words is not None, line.text
            done(*_smaller(words))
            count += 1
    assert count >= 1


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        environment[variable] = "http://127.0.0.1:9"  # nobody listens there: what is fetched fails
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stderr
    loads = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    for page in (tmp_path / "site").rglob("*.html"):
        found = [
            tag for tag in loads.findall(page.read_text(encoding="utf-8")) if 'rel="canonical"' not in tag
        ]
        assert found == [], page.name
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style.name
    index = (tmp_path / "site" / "search" / "search_index.js").read_text(encoding="utf-8")
    assert "Visual Robustness Learning" in index
    assert (tmp_path / "site" / "changelog.html").is_file() and (
        tmp_path / "site" / "contributing.html"
    ).is_file()
