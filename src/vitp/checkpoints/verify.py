"""Comparing what was written with what it was made of: an export with its test vectors, outputs with outputs.

Shapes: B images, N patch tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from rich.markup import escape
from rich.table import Table
from timm.data.config import resolve_model_data_config
from torch import Tensor

from vitp.checkpoints.bands import check_kernel
from vitp.checkpoints.description import CONFIG, DESCRIPTION, GRAPH_DESCRIPTION, read_config, read_description
from vitp.checkpoints.export import EXPORT_FILES, TEST_VECTORS, features_of
from vitp.checkpoints.loading import load_backbone
from vitp.checkpoints.tensors import WEIGHTS, read_tensors
from vitp.core.errors import CheckpointError, VitpError
from vitp.core.sealed import check_sums
from vitp.core.tensors import first_of, load_weights
from vitp.models.arguments import check_architecture, check_timm_arguments
from vitp.models.foreign import described_by, numbers_of
from vitp.models.vision import VisionTower, check_plain
from vitp.records.channels import Channels


@dataclass(frozen=True)
class Check:
    """One comparison of `verify_export`: what was compared, whether it held, and the numbers."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class VerifyReport:
    """All comparisons of `verify_export`."""

    folder: Path
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every comparison held."""
        return all(check.passed for check in self.checks)

    def __rich__(self) -> Table:
        table = Table("check", "", "detail", title=f"verification of {self.folder.name}")
        for check in self.checks:
            table.add_row(check.name, "[green]ok" if check.passed else "[red]differs", escape(check.detail))
        return table


def largest_differences(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float
) -> dict[str, float]:
    """Return the largest difference of each output, relative to the largest value where that exceeds 1.

    Raises:
        CheckpointError: A shape differs, or a difference exceeds the tolerance.
    """
    found = {}
    for name, expected in wanted.items():
        if given[name].shape != expected.shape:
            raise CheckpointError(f"{name} is {tuple(given[name].shape)} instead of {tuple(expected.shape)}")
        difference = float((given[name] - expected).abs().max()) / max(1.0, float(expected.abs().max()))
        if not difference <= tolerance:  # written so that nan fails, too
            raise CheckpointError(f"{name} is off by {difference:.2e}, more than {tolerance:.0e}")
        found[name] = difference
    return found


def verify_export(
    folder: str | Path, against: str | Path | None = None, *, tolerance: float = 1e-5
) -> VerifyReport:
    """Load an export through vitp and through timm and compare what comes out with what should.

    Checked: all files are there; the normalisation, size and hash that they state agree; hash of the weights;
    features of the test images through both loaders; with `against`, weights and features of the tower that
    was exported.

    Args:
        folder: The export.
        against: What it was made of, as `load_backbone` takes it.
        tolerance: Largest difference of a feature, relative to the largest feature when that exceeds 1.

    Raises:
        CheckpointError: With all that differs. It is not returned, so that nobody can overlook it.
    """
    report = inspect_export(folder, against, tolerance=tolerance)
    failed = [f"{check.name}: {check.detail}" for check in report.checks if not check.passed]
    if failed:
        raise CheckpointError("; ".join(failed), where=str(folder), fix="export the backbone anew")
    return report


def inspect_export(
    folder: str | Path, against: str | Path | None = None, *, tolerance: float = 1e-5
) -> VerifyReport:
    """Return the report of `verify_export`, failed comparisons included."""
    verifier = _Verifier(folder := Path(folder), tolerance)
    steps = verifier.steps()
    if (folder / GRAPH_DESCRIPTION).is_file():  # its features were compared when it was made
        steps = [("files of the graph", lambda: check_sums(folder, fix="copy or export it again"))]
    elif against is not None:
        steps.append(("trained tower", lambda: verifier.trained_tower(load_backbone(against))))
    checks = []
    for name, step in steps:
        try:
            checks.append(Check(name, True, step()))
        except VitpError as error:
            checks.append(Check(name, False, str(error)))
            # Of files that aren't there nothing else can be said.
            if name == "files":
                break
    return VerifyReport(folder, tuple(checks))


def _bands(channels: Channels | None) -> str:
    """Return in words what a tower sees, scaling included."""
    if channels is None:
        return "RGB"
    some = [f"{c.band} ({c.range_words})" for c in channels.channels]
    return f"{len(some)} bands: {first_of(some, 13)}"


class _Verifier:
    """The comparisons one by one: each returns its numbers or raises a `VitpError`."""

    def __init__(self, folder: Path, tolerance: float) -> None:
        self.folder, self.tolerance = folder, tolerance

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("files", self.files),
            ("contract", self.contract),
            ("weights", self.weights),
            (
                "features through vitp",
                lambda: self._compare(features_of(self._tower(), self._vectors()["images"])),
            ),
            ("features through timm", lambda: self._compare(self.features_through_timm())),
        ]

    def files(self) -> str:
        if missing := [name for name in EXPORT_FILES if not (self.folder / name).is_file()]:
            raise CheckpointError(f"{', '.join(missing)} missing")
        return f"{len(EXPORT_FILES)} files"

    def contract(self) -> str:
        description = read_description(self.folder)
        description.check_contract(self.folder / WEIGHTS)
        try:
            config = dict(read_config(self.folder)["pretrained_cfg"])
        except (CheckpointError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError("is no timm configuration", where=str(self.folder / CONFIG)) from error
        vision = description.vision
        mean, std = vision.normalisation
        wanted = {
            "mean": list(mean),
            "std": list(std),
            "input_size": [len(mean), vision.image_size, vision.image_size],
        }
        for key, value in wanted.items():
            if config.get(key) != value:
                raise CheckpointError(
                    f"{CONFIG} says {key} {config.get(key)}, but {DESCRIPTION} says {value}"
                )
        return f"{_bands(vision.channels)}, mean {list(mean)}, std {list(std)}, {vision.image_size} px"

    def weights(self) -> str:
        description, path = read_description(self.folder), self.folder / WEIGHTS
        description.check_digests(read_tensors(path), path)
        return f"sha256 {description.sha256[:16]}…, {len(description.tensors)} tensors"

    @torch.no_grad()
    def features_through_timm(self) -> dict[str, Tensor]:
        images_BCHW, path = self._vectors()["images"], self.folder / CONFIG
        with described_by(path):
            values = read_config(self.folder)
            check_architecture(values["architecture"], where="architecture")
            check_timm_arguments(values.get("model_args", {}), where="model_args")
        try:
            model: Any = timm.create_model(f"local-dir:{self.folder}", pretrained=True).eval()
        except Exception as error:  # whatever a description that is odd makes timm and torch raise
            raise CheckpointError(f"timm can't load it ({error})") from error
        with described_by(path):
            check_plain(model, values["architecture"])
        resolve: Any = resolve_model_data_config
        data = resolve(model)
        with described_by(path):
            mean_C11, std_C11 = (
                torch.tensor(numbers_of(data[key], images_BCHW.shape[1])).view(-1, 1, 1)
                for key in ("mean", "std")
            )
        image_BCHW = (images_BCHW.float() / 255 - mean_C11) / std_C11
        last_BND = model.forward_features(image_BCHW)[:, model.num_prefix_tokens :]
        middle = model.forward_intermediates(
            image_BCHW,
            indices=[(len(model.blocks) - 1) // 2],
            output_fmt="NLC",
            intermediates_only=True,
        )
        # timm's hint names all forms that this can return; these arguments give a list.
        return {"last": last_BND, "middle": cast(list[Tensor], middle)[0]}

    def trained_tower(self, trained: VisionTower) -> str:
        exported = self._tower()
        if exported.in_channels != trained.in_channels:
            raise CheckpointError(
                f"was trained with {_bands(trained.in_channels)}, exported with {_bands(exported.in_channels)}"
            )
        if (exported.mean, exported.std) != (trained.mean, trained.std):
            raise CheckpointError(
                f"was trained with mean {trained.mean}, std {trained.std}, "
                f"exported with mean {exported.mean}, std {exported.std}"
            )
        ours, theirs = exported.model.state_dict(), trained.model.state_dict()
        differing = sorted(
            name
            for name in ours.keys() | theirs.keys()
            if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])
        )
        if differing:
            raise CheckpointError(
                f"{len(differing)} tensors differ from the trained tower's ({first_of(differing)})"
            )
        return f"weights equal, {self._compare(features_of(trained, self._vectors()['images']))}"

    def _tower(self) -> VisionTower:
        """Return the tower whether or not its digests fit: a wrong hash must not hide what the features say."""
        path = self.folder / WEIGHTS
        tower, weights = VisionTower(read_description(self.folder).vision), read_tensors(path)
        if (kernel := weights.get("patch_embed.proj.weight")) is not None:
            check_kernel(kernel, tower.in_channels, where=str(path))
        load_weights(tower.model, weights, source=str(path))
        return tower.eval()

    def _vectors(self) -> dict[str, Tensor]:
        path = self.folder / TEST_VECTORS
        vectors = read_tensors(path)
        if missing := {"images", "last", "middle"} - vectors.keys():
            raise CheckpointError(f"{', '.join(sorted(missing))} missing", where=str(path))
        count = len(read_description(self.folder).vision.normalisation[0])
        if vectors["images"].ndim != 4 or vectors["images"].shape[1] != count:
            raise CheckpointError(f"holds no images of {count} channels", where=str(path))
        return vectors

    def _compare(self, features: Mapping[str, Tensor]) -> str:
        wanted = {f"{layer} layer": t for layer, t in self._vectors().items() if layer in features}
        given = {f"{layer} layer": features_BND for layer, features_BND in features.items()}
        return f"largest difference {max(largest_differences(given, wanted, self.tolerance).values()):.1e}"
