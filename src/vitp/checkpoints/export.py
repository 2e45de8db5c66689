"""Vision towers on their own: out of a vision-language model or a run, into timm, transformers and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

import timm
import torch
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitp.checkpoints import export_format as fmt
from vitp.checkpoints import hub, pretrained
from vitp.checkpoints.card import MIXTURE_FILE, Provenance, provenance_of_run
from vitp.checkpoints.checkpoint import EXTRA, Hints, read_config
from vitp.checkpoints.open import open_tower
from vitp.checkpoints.tensors import TORCH_SUFFIXES
from vitp.core.config import CONFIG_FILE
from vitp.core.errors import CheckpointError, VitpError
from vitp.core.files import atomic_dir
from vitp.core.reading import parse_json, read_text
from vitp.core.sealed import check_sums, read_safetensors
from vitp.core.targets import check_folder
from vitp.models.arguments import check_architecture, check_timm_arguments
from vitp.models.foreign import described_by, three_numbers
from vitp.models.plain_vit import PlainViT
from vitp.models.positions import PositionMethod
from vitp.models.resample import resized_tower
from vitp.models.vision import VisionTower
from vitp.models.vlm import VLMConfig

GRAPH_DESCRIPTION = "vitp_graph.json"
"""What stands beside an exported graph: its input, its output, and what was compared."""


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        folder: Where.
        sha256: Hash of the weights' content.
        parameters: Number of weights.
        size: Bytes of all files.
    """

    folder: Path
    sha256: str
    parameters: int
    size: int


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


@overload
def load_backbone(
    source: str | Path,
    *,
    heads: int | None = None,
    image_size: int | None = None,
    positions: PositionMethod | None = None,
    revision: str | None = None,
) -> VisionTower: ...


@overload
def load_backbone(
    source: str | Path,
    *,
    architecture: str,
    arguments: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    positions: PositionMethod | None = None,
    revision: str | None = None,
) -> PlainViT: ...


def load_backbone(
    source: str | Path,
    *,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    heads: int | None = None,
    image_size: int | None = None,
    positions: PositionMethod | None = None,
    revision: str | None = None,
) -> PlainViT:
    """Return a vision tower in eval mode; the language model beside it isn't read.

    Names and shapes must fit; `vitp.checkpoints.open.open_tower` returns the report of names, too.

    Args:
        source: An exported folder, a folder with a vision-language model of vitp, a run folder (its `model/`), or
            "starter" for the ViT of the model that comes with the package. Also what others publish: a folder in
            InternVL's original layout, transformers' or timm's, a weights file such as a released ViTP backbone, or
            an id of the hub.
        architecture: timm's name, for a file under timm's names or those of a publication that timm knows; the
            tower may then be a rotary one (DINOv3).
        arguments: What `timm.create_model` gets beside the architecture.
        heads: Attention heads of an InternViT that comes without a configuration; None: heads of 64 channels.
        image_size: Side in pixels that the tower is wanted for; positions are resampled. None: as trained.
        positions: How positions are resampled, now and for images of other sizes; None: as the folder says, and in
            InternVL's layouts as its code does. With an architecture timm resamples what is read in its own way.
        revision: Branch, tag or commit, for the hub.

    Raises:
        CheckpointError: No backbone is there, a file is broken or was changed, names or shapes don't fit.
    """
    folder = None if architecture is not None else own_folder(source)
    if folder is not None:
        own = fmt.read_backbone(folder) if (folder / fmt.DESCRIPTION).is_file() else _tower_of_vlm(folder)
        if image_size is None and positions in (None, own.config.positions):
            return own
        return resized_tower(own, image_size=image_size, positions=positions)
    if not (_holds_weights(Path(source)) or hub.hub_id(str(source))):
        raise _nothing(source)
    hints = Hints(
        architecture=architecture,
        arguments=arguments or {},
        heads=heads,
        image_size=image_size,
        positions=positions,
    )
    return open_tower(source, hints=hints, revision=revision)[0]


def random_backbone(like: VisionTower, seed: int) -> VisionTower:
    """Return an untrained tower of the same architecture: the baseline that learning is measured against."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTower(like.config).eval()


def export_backbone(
    source: str | Path, out: Path, *, extra_card: Mapping[str, Any] | None = None, overwrite: bool = False
) -> ExportResult:
    """Write the vision tower of `source` into the folder `out`, which appears only when it is whole.

    Args:
        source: As `load_backbone`.
        out: New folder.
        extra_card: More lines for the model card.
        overwrite: Replace `out` when it is an older export.

    Raises:
        CheckpointError: `source` holds no usable backbone.
        VitpError: `out` exists, or can't be written.
    """
    out = Path(out)
    check_target(out, overwrite)
    tower, provenance = load_backbone(source), provenance_of(source)
    with atomic_dir(out) as temporary:
        description = fmt.write_backbone(
            temporary, tower, provenance, extra=extra_card, name=out.resolve().name
        )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return ExportResult(out, description.sha256, description.parameters, size)


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
            if name == "files":
                break
    return VerifyReport(folder, tuple(checks))


class _Verifier:
    """The comparisons one by one: each returns its numbers or raises a `VitpError`."""

    def __init__(self, folder: Path, tolerance: float) -> None:
        self.folder, self.tolerance = folder, tolerance

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        names = ("files", "contract", "weights", "features through vitp", "features through timm")
        return [(name, getattr(self, name.replace(" ", "_"))) for name in names]

    def files(self) -> str:
        missing = [name for name in fmt.FILES if not (self.folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{', '.join(missing)} missing")
        return f"{len(fmt.FILES)} files"

    def contract(self) -> str:
        description = fmt.read_description(self.folder)
        fmt.check_contract(description, self.folder / fmt.WEIGHTS)
        config = self._timm_config()
        vision = description.vision
        wanted = {
            "mean": list(vision.mean),
            "std": list(vision.std),
            "input_size": [3, vision.image_size, vision.image_size],
        }
        for key, value in wanted.items():
            if config.get(key) != value:
                raise CheckpointError(
                    f"{fmt.TIMM_CONFIG} says {key} {config.get(key)}, but {fmt.DESCRIPTION} says {value}"
                )
        return f"mean {list(vision.mean)}, std {list(vision.std)}, {vision.image_size} px"

    def weights(self) -> str:
        description = fmt.read_description(self.folder)
        path = self.folder / fmt.WEIGHTS
        fmt.check_digests(description, pretrained.read_weights(path), path)
        return f"sha256 {description.sha256[:16]}…, {len(description.tensors)} tensors"

    def features_through_vitp(self) -> str:
        tower = self._unchecked_tower()
        vectors = self._vectors()
        last_BND, middle_BND = fmt.patch_features(tower, vectors["images"])
        return self._compare({"last": last_BND, "middle": middle_BND}, vectors)

    @torch.no_grad()
    def features_through_timm(self) -> str:
        vectors = self._vectors()
        path = self.folder / fmt.TIMM_CONFIG
        with described_by(path):
            values = parse_json(read_text(path))
            check_architecture(values["architecture"], where="architecture")
            check_timm_arguments(values.get("model_args", {}), where="model_args")
        try:
            model = timm.create_model(f"local-dir:{self.folder}", pretrained=True).eval()
        except Exception as error:  # whatever a description that is odd makes timm and torch raise
            raise CheckpointError(f"timm can't load it ({error})") from error
        if not isinstance(model, VisionTransformer):
            raise CheckpointError(f"timm makes a {type(model).__name__} of it")
        data = timm.data.resolve_model_data_config(model)
        with described_by(path):
            mean_C11, std_C11 = (
                torch.tensor(three_numbers(data[key])).view(3, 1, 1) for key in ("mean", "std")
            )
        image_BCHW = (vectors["images"].float() / 255 - mean_C11) / std_C11
        last_BND = model.forward_features(image_BCHW)[:, model.num_prefix_tokens :]
        middle = model.forward_intermediates(
            image_BCHW,
            indices=[(len(model.blocks) - 1) // 2],
            output_fmt="NLC",
            intermediates_only=True,
        )
        # timm's hint names all forms that this can return; these arguments give a list.
        middle_BND = cast(list[Tensor], middle)[0]
        return self._compare({"last": last_BND, "middle": middle_BND}, vectors)

    def trained_tower(self, trained: VisionTower) -> str:
        exported = self._unchecked_tower()
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
                f"{len(differing)} tensors differ from the trained tower's ({', '.join(differing[:3])}"
                f"{', …' if len(differing) > 3 else ''})"
            )
        vectors = self._vectors()
        last_BND, middle_BND = fmt.patch_features(trained, vectors["images"])
        return f"weights equal, {self._compare({'last': last_BND, 'middle': middle_BND}, vectors)}"

    def _unchecked_tower(self) -> VisionTower:
        """The tower whether or not its digests fit: a wrong hash must not hide what the features say."""
        path = self.folder / fmt.WEIGHTS
        tower = VisionTower(fmt.read_description(self.folder).vision)
        pretrained.load_weights(tower.model, pretrained.read_weights(path), where=str(path))
        return tower.eval()

    def _vectors(self) -> dict[str, Tensor]:
        path = self.folder / fmt.TEST_VECTORS
        vectors = pretrained.read_weights(path)
        if missing := {"images", "last", "middle"} - vectors.keys():
            raise CheckpointError(f"{', '.join(sorted(missing))} missing", where=str(path))
        return vectors

    def _timm_config(self) -> dict[str, Any]:
        path = self.folder / fmt.TIMM_CONFIG
        try:
            return dict(parse_json(read_text(path))["pretrained_cfg"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError("is no timm configuration", where=str(path)) from error

    def _compare(self, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
        worst = 0.0
        for name, features_BND in actual.items():
            wanted_BND = expected[name]
            if features_BND.shape != wanted_BND.shape:
                raise CheckpointError(
                    f"{name} layer gives {tuple(features_BND.shape)} instead of {tuple(wanted_BND.shape)}"
                )
            scale = max(1.0, float(wanted_BND.abs().max()))
            difference = float((features_BND - wanted_BND).abs().max()) / scale
            # Written so that nan fails, too.
            if not difference <= self.tolerance:
                raise CheckpointError(
                    f"{name} layer is off by {difference:.2e}, more than {self.tolerance:.0e}"
                )
            worst = max(worst, difference)
        return f"largest difference {worst:.1e}"


def own_folder(source: str | Path) -> Path | None:
    """Return the folder in one of vitp's own layouts that a source names, or None."""
    if str(source) == "starter":
        return pretrained.STARTER
    path = Path(source)
    for candidate in (path, path / "model"):
        if (candidate / fmt.DESCRIPTION).is_file() or pretrained.is_vitp_model(candidate):
            return candidate
    return None


def _holds_weights(path: Path) -> bool:
    suffixes = {".safetensors", *TORCH_SUFFIXES}
    return path.is_file() or (path.is_dir() and any(file.suffix in suffixes for file in path.iterdir()))


def _nothing(source: str | Path) -> CheckpointError:
    return CheckpointError(
        "holds no backbone",
        where=str(source),
        fix='name an export, a run that has finished, a model folder, a weights file, a model of the hub or "starter"',
    )


def _tower_of_vlm(folder: Path) -> VisionTower:
    """The vision part alone: the language model's weights may be many gigabytes."""
    path = folder / pretrained.CONFIG
    try:
        config = VLMConfig.model_validate(parse_json(read_text(path))["model"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(
            "is no configuration of a vitp model",
            where=str(path),
            fix=f"name a folder that vitp wrote; an export needs its {fmt.DESCRIPTION}",
        ) from error
    weights_file = folder / pretrained.WEIGHTS
    found = read_safetensors(weights_file, lambda name: name.startswith("vision."), ours=True)
    weights = {name.removeprefix("vision."): tensor for name, tensor in found.items()}
    tower = VisionTower(config.vision)
    pretrained.load_weights(tower, weights, where=str(weights_file))
    return tower.eval()


def provenance_of(source: str | Path) -> Provenance:
    """Return where the weights of a source come from, as far as the files beside them tell."""
    if str(source) == "starter":
        return Provenance(source="the starter model of the vitp package")
    folder = own_folder(source)
    if folder is None:
        return Provenance(source=str(source) if hub.hub_id(str(source)) else Path(source).resolve().name)
    # A run keeps its model in model/; both ways of naming it mean the same.
    run = folder.resolve().parent if folder.resolve().name == "model" else folder
    is_run = any((run / name).is_file() for name in (CONFIG_FILE, "evidence.json", MIXTURE_FILE))
    if not is_run and (folder / fmt.DESCRIPTION).is_file():
        return fmt.read_description(folder).provenance
    return provenance_of_run(run if is_run else folder)


def check_target(out: Path, overwrite: bool) -> None:
    """Do nothing when a folder may be written to.

    Raises:
        VitpError: It exists, and isn't to be overwritten or isn't vitp's.
    """
    check_folder(out, _is_ours, what="an export", overwrite=overwrite)


def _is_ours(folder: Path) -> bool:
    if any((folder / name).is_file() for name in (fmt.DESCRIPTION, GRAPH_DESCRIPTION)):
        return True
    try:
        config = read_config(folder) if folder.is_dir() else {}
    except CheckpointError:
        return False
    return EXTRA in config or str(config.get("format", "")).startswith("vitp-vlm")
