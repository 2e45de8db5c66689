"""A look at this machine: versions, devices, extras and data that vitp finds or misses."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from vitp.core.version import STARTER, __version__

DEFAULT_DATA = Path("..") / "shared" / "data"
"""Where tests and benchmarks look for real images when VITP_DATA names no folder."""

_GIB = 2**30


@dataclass(frozen=True)
class Package:
    """One requirement.

    Attributes:
        name: Name of the distribution.
        wanted: Versions that will do, such as ">=2.11".
        installed: Version that is there, or None.
        ok: Whether it will do.
    """

    name: str
    wanted: str
    installed: str | None
    ok: bool


@dataclass(frozen=True)
class Extra:
    """An optional part: what is missing for it, and the command that brings it."""

    name: str
    missing: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class ComputeDevice:
    """A device that torch can compute on.

    Attributes:
        name: As torch calls it.
        detail: Model and size in words.
        memory_gib: None where it can't be told.
        bf16: Computes bfloat16 faster than float32, so that mixed precision pays.
    """

    name: str
    detail: str
    memory_gib: float | None = None
    bf16: bool = False


@dataclass(frozen=True)
class Working:
    """An installed package at work: whether its compiled parts run together with torch."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class DoctorReport:
    """Findings of `inspect_machine`.

    Attributes:
        versions: vitp, Python, platform.
        base: Requirements of vitp itself.
        working: Packages put to work.
        extras: Optional parts.
        devices: CPU first.
        data: Folder of real images, or None.
        free_gib: Free space where the command runs.
        starter: Whether the starter model is in the package.
    """

    versions: dict[str, str]
    base: tuple[Package, ...]
    working: tuple[Working, ...]
    extras: tuple[Extra, ...]
    devices: tuple[ComputeDevice, ...]
    data: str | None
    free_gib: float
    starter: bool

    @property
    def problems(self) -> list[str]:
        """What keeps vitp from working, one line each."""
        found = [
            f"{p.name} {p.installed or 'is not installed'}{' is too old' if p.installed else ''}, needs {p.wanted}"
            for p in self.base
            if not p.ok
        ]
        return found + [f"{w.name}: {w.detail}" for w in self.working if not w.ok]

    @property
    def exit_code(self) -> int:
        """0 when vitp will work, 1 when something it can't do without is missing, too old or broken."""
        return 1 if self.problems else 0

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {**asdict(self), "problems": self.problems, "exit_code": self.exit_code}

    def __rich__(self) -> Group:
        return Group(_package_table(self), _machine_table(self))


def inspect_machine() -> DoctorReport:
    """Look at the machine. Nothing is changed and nothing fetched."""
    base, extras = _requirements()
    data = Path(os.environ.get("VITP_DATA", DEFAULT_DATA))
    return DoctorReport(
        versions={
            "vitp": __version__,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
        },
        base=tuple(base),
        working=tuple(_at_work(name, run) for name, run in _CHECKS.items()),
        extras=tuple(extras),
        devices=tuple(_devices()),
        data=str(data) if data.is_dir() else None,
        free_gib=round(shutil.disk_usage(Path.cwd()).free / _GIB, 1),
        starter=all((STARTER / name).is_file() for name in ("config.json", "model.safetensors")),
    )


def _requirements() -> tuple[list[Package], list[Extra]]:
    """Base requirements and extras, as the installed package's own metadata state them."""
    try:
        metadata = importlib.metadata.metadata("vitp")
    except importlib.metadata.PackageNotFoundError:
        # Imported from a source folder that was never installed: its floors are unknown.
        return [Package("vitp", "an installation (pip install -e .)", None, False)], []
    requirements = [Requirement(text) for text in importlib.metadata.requires("vitp") or []]
    (python,) = metadata.get_all("Requires-Python") or [""]
    base = [check_package(Requirement(f"python{python}"), platform.python_version())]
    base += [check_package(r) for r in _applying(requirements, extra="")]
    extras = []
    for name in metadata.get_all("Provides-Extra") or []:
        wanted = [
            r for r in _applying(requirements, extra=name) if r not in _applying(requirements, extra="")
        ]
        checked = [check_package(r) for r in wanted]
        missing = tuple(p.name for p in checked if not p.ok)
        extras.append(Extra(name, missing, f'pip install "vitp[{name}]"'))
    return base, extras


def _applying(requirements: list[Requirement], extra: str) -> list[Requirement]:
    """Requirements that hold on this machine; an extra that names another one brings that one's, too."""
    found: list[Requirement] = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == "vitp":
            for inner in sorted(requirement.extras):
                found += [r for r in _applying(requirements, inner) if r not in found]
        else:
            found.append(requirement)
    return found


def check_package(requirement: Requirement, installed: str | None = None) -> Package:
    """Compare a requirement with what is installed.

    Args:
        requirement: Name and versions.
        installed: Version, where the caller knows it; asked of the environment otherwise.
    """
    if installed is None:
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            return Package(requirement.name, str(requirement.specifier), None, False)
    try:
        # A nightly or local build of a new enough release will do.
        ok = requirement.specifier.contains(Version(installed), prereleases=True)
    except InvalidVersion:
        ok = False
    return Package(requirement.name, str(requirement.specifier), installed, ok)


def _run_torch() -> str:
    torch = importlib.import_module("torch")
    total = float((torch.ones(4, 4) @ torch.ones(4, 4)).sum())
    if total != 64.0:
        raise RuntimeError(f"a product of matrices gives {total} instead of 64")
    return f"computes, {torch.get_num_threads()} threads"


def _run_compiler() -> str:
    """Trace blocks of different rates of stochastic depth, as `compute.compile: vision` does; nothing is generated."""
    torch, tower = importlib.import_module("torch"), importlib.import_module("vitp.models.vision")
    compilation = importlib.import_module("vitp.models.compilation")
    arguments = {"embed_dim": 16, "depth": 10, "num_heads": 2, "patch_size": 8}
    settings = tower.VisionSettings(arguments=arguments, image_size=16)
    blocks = tower.VisionTower(settings, drop_path=0.1).train().model.blocks
    compilation.forget_graphs()
    for block in blocks:
        compilation.compile_block(block, batch_dim=0, backend="eager")
    try:
        for tiles in (2, 3):
            blocks(torch.rand(tiles, 5, 16))
        report = compilation.compile_report()
    finally:
        compilation.forget_graphs()
    held = f"ten blocks share {report}" if report.holds else f"FALLS BACK to eager: {report}"
    return f"{held}; {_generator(torch.cuda.is_available())}"


def _generator(on_gpu: bool) -> str:
    """Return in words whether what torch.compile generates can be built here."""
    if on_gpu:
        there = importlib.util.find_spec("triton") is not None
        return "Triton is there" if there else "Triton is missing: leave compute.compile at none"
    there = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))
    return "a C++ compiler is there" if there else "no C++ compiler: leave compute.compile at none"


def _run_torchvision() -> str:
    # Fails when the two were built for different versions or devices, the most frequent broken installation.
    torch, ops = importlib.import_module("torch"), importlib.import_module("torchvision.ops")
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0]])
    if ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() != [0]:
        raise RuntimeError("its operators give wrong results")
    return "operators fit torch"


# Packages are imported by name here, when they are checked: each may be missing or broken.
_CHECKS: dict[str, Callable[[], str]] = {
    "torch": _run_torch,
    "torchvision": _run_torchvision,
    "torch.compile": _run_compiler,
    "timm": lambda: f"{len(importlib.import_module('timm').list_models('vit_*'))} Vision Transformers",
    "opencv": lambda: f"OpenCV {importlib.import_module('cv2').__version__}",
}


def _at_work(name: str, run: Callable[[], str]) -> Working:
    try:
        return Working(name, True, run())
    except Exception as error:
        # A broken installation fails in any way there is; finding out is what this is for.
        return Working(name, False, str(error).splitlines()[0] if str(error) else type(error).__name__)


def _devices() -> Iterator[ComputeDevice]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        memory = None
    yield ComputeDevice("cpu", f"{usable} cores, {platform.processor() or platform.machine()}", memory, True)
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError):
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield ComputeDevice(
            f"cuda:{index}",
            f"{properties.name}, compute capability {properties.major}.{properties.minor}",
            round(properties.total_memory / _GIB, 1),
            # Asked by generation: torch also says yes where bf16 is only emulated.
            properties.major >= 8,
        )
    if torch.backends.mps.is_available():
        yield ComputeDevice("mps", "Apple GPU, untested; taken where device says mps")


def _mark(ok: bool) -> str:
    return "[green]ok[/]" if ok else "[red]no[/]"


def _package_table(found: DoctorReport) -> Table:
    title = f"vitp {found.versions['vitp']} on {sys.platform}"
    table = Table("package", "needs", "installed", "", title=title)
    for package in found.base:
        table.add_row(package.name, package.wanted, escape(package.installed or "—"), _mark(package.ok))
    for check in found.working:
        table.add_row(check.name, "works", escape(check.detail), _mark(check.ok))
    for extra in found.extras:
        missing = f"missing: {', '.join(extra.missing)}" if extra.missing else "complete"
        # Extras are optional, so a missing one is no failure: the command stands where the mark would.
        mark = escape(extra.command) if extra.missing else "ok"
        table.add_row(f"extra {extra.name}", "optional", missing, mark)
    return table


def _without_bf16(device: ComputeDevice) -> str:
    return ", no bf16: train.precision fp16" if device.name.startswith("cuda") else ""


def _machine_table(found: DoctorReport) -> Table:
    table = Table("", "", title="machine")
    for device in found.devices:
        memory = f", {device.memory_gib} GiB" if device.memory_gib is not None else ""
        table.add_row(
            device.name, f"{device.detail}{memory}{', bf16' if device.bf16 else _without_bf16(device)}"
        )
    table.add_row("free disk", f"{found.free_gib} GiB")
    table.add_row("real images", escape(found.data or "none: VITP_DATA names no folder that is there"))
    table.add_row("starter model", "there" if found.starter else "missing: reinstall vitp")
    table.add_row("verdict", escape("; ".join(found.problems)) or "all that is needed is here")
    return table
