from __future__ import annotations

import importlib.metadata
import io
import json

import pytest
import torch
from packaging.requirements import Requirement
from rich.console import Console

from vitp.checkpoints.description import CONFIG
from vitp.checkpoints.tensors import WEIGHTS
from vitp.planning import doctor
from vitp.planning.doctor import ComputeDevice, DoctorReport, Package, Working, check_package, inspect_machine


@pytest.fixture(scope="module")
def found() -> DoctorReport:
    return inspect_machine()


def test_this_machine_is_well(found):
    assert found.problems == []
    assert found.exit_code == 0


def test_base_requirements_are_those_of_the_installed_metadata(found):
    stated = {Requirement(r).name for r in importlib.metadata.requires("vitp") if "extra ==" not in r}
    assert {p.name for p in found.base} == stated | {"python"}
    by_name = {p.name: p for p in found.base}
    assert by_name["torch"] == Package("torch", ">=2.11", importlib.metadata.version("torch"), True)
    assert by_name["python"].wanted == ">=3.11"


def test_extras_are_found_with_their_command(found, monkeypatch):
    extras = {e.name: e for e in found.extras}
    assert set(extras) == set(importlib.metadata.metadata("vitp").get_all("Provides-Extra"))
    assert {"geo", "medical", "lora", "onnx", "serve", "track", "dev"} <= set(extras)
    assert extras["geo"].command == 'pip install "vitp[geo]"'
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("rasterio", "shapely", "peft"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    later = {e.name: e for e in inspect_machine().extras}
    assert later["geo"].missing == ("rasterio", "shapely")
    # `dev` names `lora`, so what that lacks is missing here, too.
    assert "peft" in later["dev"].missing
    assert "peft" in later["lora"].missing


@pytest.mark.parametrize(
    "installed, ok",
    [
        ("2.10.1", False),
        ("2.11.0", True),
        ("2.11.0+cu128", True),
        ("2.12.0.dev20260101+cpu", True),
        ("2.11.0rc1", False),
        ("3.0", True),
        ("not a version", False),
    ],
)
def test_versions_are_compared_as_pip_does(installed, ok):
    assert check_package(Requirement("torch>=2.11"), installed).ok is ok


def test_what_is_not_installed_is_no():
    package = check_package(Requirement("surely-not-installed-anywhere>=1"))
    assert package == Package("surely-not-installed-anywhere", ">=1", None, False)


def test_an_old_package_is_a_problem(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0.2" if name == "timm" else real(name))
    found = inspect_machine()
    assert found.exit_code == 1
    assert found.problems == ["timm 1.0.2 is too old, needs >=1.0.20"]


def test_a_broken_package_is_a_problem(monkeypatch):
    def broken() -> str:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setitem(doctor._CHECKS, "torchvision", broken)
    found = inspect_machine()
    assert found.exit_code == 1
    assert found.problems == ["torchvision: operator torchvision::nms does not exist"]
    assert Working("torchvision", False, "operator torchvision::nms does not exist") in found.working


def test_without_an_installation_there_are_no_floors(monkeypatch):
    def missing(name: str):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", missing)
    found = inspect_machine()
    assert found.exit_code == 1
    assert found.problems == ["vitp is not installed, needs an installation (pip install -e .)"]


def test_devices_are_named(monkeypatch):
    class Properties:
        name, major, minor, total_memory = "Tesla T4", 7, 5, 16 * 2**30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: Properties)
    cpu, cuda, *_ = doctor._devices()
    assert cpu.name == "cpu"
    assert cpu.memory_gib is None or cpu.memory_gib > 0.1
    assert cuda == ComputeDevice("cuda:0", "Tesla T4, compute capability 7.5", 16.0, False)
    Properties.major = 9
    assert list(doctor._devices())[1].bf16 is True


def test_data_folder_and_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("VITP_DATA", str(tmp_path))
    found = inspect_machine()
    assert found.data == str(tmp_path)
    assert found.free_gib > 0
    monkeypatch.setenv("VITP_DATA", str(tmp_path / "none"))
    assert inspect_machine().data is None


def test_starter_is_looked_for_where_it_is_loaded_from(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "STARTER", tmp_path)
    assert inspect_machine().starter is False
    for name in (CONFIG, WEIGHTS):
        (tmp_path / name).touch()
    assert inspect_machine().starter is True


def test_report_is_json_and_a_table(found):
    values = json.loads(json.dumps(found.as_dict()))
    assert values["exit_code"] == 0
    assert values["versions"]["vitp"]
    assert values["base"][1]["name"] == "torch"
    console = Console(width=160, file=io.StringIO())
    console.print(found)
    text = console.file.getvalue()
    assert "transformers" in text
    assert "all that is needed is here" in text
    for extra in found.extras:
        assert not extra.missing or extra.command in text


def test_it_says_whether_compilation_holds(found: DoctorReport) -> None:
    (compiler,) = [one for one in found.working if one.name == "torch.compile"]
    assert compiler.ok and "share 2 graphs" in compiler.detail
    assert "compiler" in compiler.detail or "Triton" in compiler.detail
