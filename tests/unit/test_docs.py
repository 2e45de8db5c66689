"""The documentation says what is there: its commands parse, its links lead somewhere, its references are complete."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
from pathlib import Path

import pytest
import yaml
from tools import cli, figures
from tools.keys import reference

import vitp
from tests.docs_commands import (
    MADE,
    ROOT,
    find_command,
    inline_commands,
    is_run,
    lines_of,
    options_of,
    pages,
    parse,
    vitp_arguments,
)

DOCS = ROOT / "docs"
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
PAGES = pages()


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _prose(page: Path) -> str:
    """Return a page without its code."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^( *)```.*?^\1```", "", _text(page), flags=re.M | re.S))


def _slug(heading: str) -> str:
    """Return the anchor of a heading, as Git hosts and the site make it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", ""))
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^( *)```.*?^\1```", "", _text(page), flags=re.M | re.S)
    return {_slug(found) for found in re.findall(r"^#+ (.*)$", text, re.M)}


def test_every_command_line_is_one_that_the_parser_takes() -> None:
    wrong, count = [], 0
    for line in (
        line for page in PAGES if str(page.relative_to(ROOT)) not in MADE for line in lines_of(page)
    ):
        words = vitp_arguments(line.text)
        if words is None:
            continue
        count += 1
        try:
            parse(words)
        except Exception as error:
            wrong.append(f"{line.page}:{line.number}: {line.text}: {error!r} {getattr(error, 'message', '')}")
    assert wrong == []
    assert count > 150


def test_every_command_in_the_text_has_its_options() -> None:
    wrong = []
    for page in PAGES:
        for words in inline_commands(page):
            if words[0] in ("COMMAND", ""):
                continue
            try:
                command, rest = find_command(words)
            except KeyError:
                wrong.append((page.name, words))
                continue
            options = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
            if options - options_of(command):
                wrong.append((page.name, words))
    assert wrong == []


def test_every_setting_of_a_command_is_a_key() -> None:
    keys = set(re.findall(r"^- `([a-z0-9_.]+)` \(", reference(), re.M))
    tails = {key.split(".", 1)[1] for key in keys if key.startswith("test.")}
    wrong = []
    for page in PAGES:
        for words in filter(None, (vitp_arguments(line.text) for line in lines_of(page))):
            free = words[0] in ("study", "recipe", "recipes", "bench", "plan")  # settings of their own
            for option, value in itertools.pairwise(words):
                key = value.partition("=")[0]
                known = key in (tails if words[0] in ("predict", "eval") else keys)
                if option in ("-s", "--set") and not (known or free or _open_ended(key)):
                    wrong.append((page.name, value))
    assert wrong == []


def _open_ended(key: str) -> bool:
    """Whether what follows is chosen by its user, or described elsewhere: `backbone.adapt` has `model.adapt`'s keys."""
    named = ("data.options.", "neck.options.", "backbone.arguments.", "model.lr_scale.", "data.rates.")
    return key.startswith((*named, "objectives.", "backbone.adapt."))


def test_what_is_not_run_has_a_reason() -> None:
    run = [page for page in PAGES if is_run(page)]
    folders = {str(page.relative_to(ROOT)).rpartition("/")[0] for page in run}
    assert {"docs", "docs/tutorials", "docs/tasks"} <= folders
    for folder in ("tutorials", "tasks"):
        assert [page.name for page in (DOCS / folder).glob("*.md") if not is_run(page)] == ["README.md"]
    for page in run:
        for line in lines_of(page):
            known = line.make or vitp_arguments(line.text) is not None
            assert known or line.reason, f"{line.page}:{line.number}: {line.text}"
            assert line.reason is None or len(line.reason) > 10


def test_python_on_the_pages_compiles_and_its_imports_are_there() -> None:
    count = 0
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```", _text(page), re.M | re.S):
            tree = ast.parse(block)
            count += 1
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vitp"):
                    module = importlib.import_module(str(node.module))
                    assert all(hasattr(module, name.name) for name in node.names), (page.name, node.module)
                elif (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "vitp"
                ):
                    assert hasattr(vitp, node.attr), (page.name, node.attr)
    assert count >= 8


def test_the_command_reference_is_up_to_date() -> None:
    assert _text(DOCS / "cli.md") == cli.reference(), "python -m tools.cli docs/cli.md"


def test_the_command_reference_names_all_commands_and_options() -> None:
    page = _text(DOCS / "cli.md")
    for words in (
        ["data", "compile"],
        ["pretrain"],
        ["finetune"],
        ["predict"],
        ["recipes", "run"],
        ["study"],
    ):
        command, _ = find_command(words)
        part = re.split(r"^##", page.split(f"### vitp {' '.join(words)}\n")[1], flags=re.M)[0]
        assert command.help.splitlines()[0][:40] in " ".join(part.split())
        missing = {option for option in options_of(command) if f"`{option}`" not in part}
        assert missing == {"--help", "--allow-remote"}, words


def test_the_figures_are_up_to_date() -> None:
    folder = DOCS / "pictures" / "figures"
    assert {path.stem for path in folder.iterdir()} == set(figures.FIGURES)
    for name, draw in figures.FIGURES.items():
        assert _text(folder / f"{name}.svg") == draw(), "python -m tools.figures docs/pictures/figures"


def test_the_reference_of_python_has_every_public_name() -> None:
    found = [
        name
        for page in sorted((DOCS / "api").glob("*.md"))
        for name in re.findall(r"^::: (\S+)$", _text(page), re.M)
    ]
    public = {name for name in vitp.__all__ if not name.startswith("__")}
    assert sorted(name.rpartition(".")[2] for name in found) == sorted(public)
    for place in found:
        module, _, name = place.rpartition(".")
        assert getattr(importlib.import_module(module), name) is getattr(vitp, name)
    listed = _text(DOCS / "api" / "README.md")
    assert {name for name in public if f"`{name}`" not in listed} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_what_is_there(page: Path) -> None:
    for target in LINK.findall(_prose(page)):
        place, _, anchor = target.partition("#")
        if "://" in place:
            continue
        path = (page.parent / place).resolve() if place else page
        assert path.exists(), target
        if anchor:
            assert anchor in _anchors(path), target


def test_every_picture_is_used_and_small() -> None:
    used = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in LINK.findall(_text(page))
        if target.endswith((".png", ".jpg", ".svg", ".webp"))
    }
    pictures = [path for path in (DOCS / "pictures").rglob("*") if path.is_file()]
    assert [str(path) for path in pictures if path not in used] == []
    assert [path.name for path in pictures if path.stat().st_size > 700_000] == []
    assert [
        path.name for path in (DOCS / "pictures" / "tasks").iterdir() if path.stat().st_size > 100_000
    ] == []


def test_every_task_page_shows_a_prediction() -> None:
    for page in (DOCS / "tasks").glob("*.md"):
        assert page.name == "README.md" or "](../pictures/tasks/" in _text(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_prose_are_short(page: Path) -> None:
    long = [
        line
        for line in _prose(page).splitlines()
        if len(line) > 120 and not line.startswith(("|", "![", "    "))
    ]
    assert str(page.relative_to(ROOT)).startswith("docs/studies/") or long == []


def test_no_page_is_longer_than_a_reader_reads() -> None:
    kept = {*MADE, "docs/medical.md"}
    lengths = {str(page.relative_to(ROOT)): len(_text(page).splitlines()) for page in PAGES}
    assert {
        name: n for name, n in lengths.items() if n > 340 and name not in kept and "studies/" not in name
    } == {}


class _Loader(yaml.SafeLoader):
    """YAML whose tags for Python objects are passed over."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def test_every_page_is_in_the_navigation_and_nothing_is_fetched() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)

    def leaves(part: object) -> list[str]:
        if isinstance(part, str):
            return [part]
        return [
            leaf for inner in (part.values() if isinstance(part, dict) else part) for leaf in leaves(inner)
        ]  # type: ignore[attr-defined]

    listed = leaves(config["nav"])
    assert len(listed) == len(set(listed))
    assert set(listed) - {"changelog.md", "contributing.md"} == {
        str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")
    }
    assert config["theme"]["font"] is False and config["strict"] is True
    plugins = [name for entry in config["plugins"] for name in ([entry] if isinstance(entry, str) else entry)]
    assert plugins == ["search", "offline", "mkdocstrings"]
