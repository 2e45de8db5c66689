"""Every package of an extra is imported by the code, or is a plug-in with a reason."""

from __future__ import annotations

import ast
import json.decoder
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.house import texts, trees
from vitp.core.errors import ConfigError, DataError
from vitp.core.extras import need

ROOT = Path(__file__).parents[2]
PLUG_INS = {
    "s3fs": "fsspec opens s3:// through it",
    "onnxscript": "torch.onnx.export writes with it",
    "python-gdcm": "pydicom decodes lossless JPEG and that of 12 bits with it",
    "pyjpegls": "pydicom decodes JPEG-LS with it",
    "pylibjpeg": "pydicom calls the next two through it",
    "pylibjpeg-openjpeg": "pydicom decodes JPEG 2000 with it",
    "pylibjpeg-rle": "pydicom decodes run lengths with it",
    "indexed_gzip": "nibabel reads one slice of a .nii.gz through it",
    "rio-cogeo": "its command `rio cogeo validate` checks the maps that are written",
    "mlflow-skinny": "brings the module mlflow",
    "python-multipart": "fastapi reads uploads with it",
    "mkdocs-material": "mkdocs builds the site with it",
    "mkdocstrings": "mkdocs makes the reference of the API with it",
    "openvino": "runs exported graphs; the tests hold all of them to it",
}
"""Packages that others import or call → why."""

FOR_DEVELOPMENT = ("dev",)


def extras() -> dict[str, list[str]]:
    """Return extra → names of its packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        extra: [re.split(r"[\[<>=~! ]", line)[0] for line in lines]
        for extra, lines in project["optional-dependencies"].items()
        if extra not in FOR_DEVELOPMENT
    }


@cache
def imported() -> set[str]:
    """Return the packages that the code imports, by statements or by their bare name in a text (`import_module`)."""
    found = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
            elif isinstance(node, ast.Constant) and re.fullmatch(
                r"[A-Za-z_]+(\.[a-z0-9_]+)*", str(node.value)
            ):
                found.add(str(node.value).split(".")[0])
    return found


@pytest.mark.parametrize(
    ("extra", "package"), [(extra, name) for extra, names in extras().items() for name in names]
)
def test_an_extra_lists_what_is_imported(extra: str, package: str) -> None:
    assert package in PLUG_INS or package in imported()


def test_plug_ins_are_packages_of_extras() -> None:
    listed = {name for names in extras().values() for name in names}
    assert set(PLUG_INS) <= listed


def test_the_code_names_no_extra_that_there_is_not() -> None:
    named = {name for text in texts().values() for name in re.findall(r"install '?vitp\[([a-z]+)\]", text)}
    named |= {name for text in texts().values() for name in re.findall(r'\bneed\("(\w+)", ', text)}
    assert {"geo", "medical", "onnx", "lora", "remote"} <= named <= set(extras())


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(
        DataError, match=r"a\.nii: needs nibabel, which `pip install 'vitp\[medical\]'` brings"
    ):
        need("medical", "nibabel", "a.nii")
    with pytest.raises(
        ConfigError, match=r"a\.setting: needs no_such, which .*vitp\[geo\].* brings; install it$"
    ):
        need("geo", "no_such.part", "a.setting", ConfigError)
    assert need("geo", "json.decoder", "here") is json.decoder


def test_a_package_that_is_there_and_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("import lib_of_the_system\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"repair the installed one \(No module named 'lib_of_the_system'\)"):
        need("geo", "half_there", "here")
