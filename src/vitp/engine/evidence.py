"""Evidence that the vision tower learned: how far its weights moved, and how much gradient reached it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitp.core.errors import DamagedError, VitpError
from vitp.core.files import atomic_path, write_json
from vitp.core.tensors import load_tensors, save_tensors, tensor_bytes
from vitp.engine.layers import layers_of

MIN_CHANGE = 1e-7
"""Relative change below which a tower counts as unchanged: the resolution of fp32."""


def linear_cka(X: Tensor, Y: Tensor) -> float:
    """Return the linear centred kernel alignment of two feature matrices of the same n examples.

    1 for features that differ by rotation and scale only. With centred X and Y,
    ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖), Frobenius norms (Kornblith et al., 2019, eq. 5).

    Args:
        X: (n, p) features.
        Y: (n, q) features.

    Returns:
        A number on 0..1; nan where the features of one side don't vary.

    Raises:
        ValueError: The matrices have other than two dimensions or differ in n.
    """
    if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y):
        raise ValueError(f"linear CKA takes (n, p) and (n, q), not {tuple(X.shape)} and {tuple(Y.shape)}")
    X, Y = (Z.detach().cpu().double() for Z in (X, Y))
    X, Y = X - X.mean(0), Y - Y.mean(0)
    if len(X) < max(X.shape[1], Y.shape[1]):
        # The same number from the n × n Gram matrices, which are smaller here.
        gram_x, gram_y = X @ X.T, Y @ Y.T
        shared, own_x, own_y = (gram_x * gram_y).sum(), gram_x.norm(), gram_y.norm()
    else:
        shared, own_x, own_y = (X.T @ Y).square().sum(), (X.T @ X).norm(), (Y.T @ Y).norm()
    if own_x == 0 or own_y == 0:
        return math.nan
    return float(shared / (own_x * own_y))


def weight_change(tower: nn.Module, start: dict[str, Tensor]) -> dict[str, Any]:
    """Return ‖w − w₀‖ / ‖w₀‖ of the whole tower and of each layer.

    Args:
        tower: The module with the weights w.
        start: Parameter name → w₀.

    Returns:
        `{"overall": float, "layers": [{"layer", "parameters", "trainable", "change"}]}`. A layer that
        started at zero has its absolute norm as its change.
    """
    parameters = dict(tower.named_parameters())
    sums: dict[str, list[float]] = {}
    for name, layer in layers_of(parameters).items():
        w, w0 = parameters[name].detach(), start[name].to(parameters[name].device)
        row = sums.setdefault(layer, [0.0, 0.0, 0, 0])
        # In double, as millions of small squares are summed up.
        row[0] += float((w.double() - w0.double()).square().sum())
        row[1] += float(w0.double().square().sum())
        row[2] += w.numel()
        row[3] += w.numel() if parameters[name].requires_grad else 0
    layers = [
        {"layer": layer, "parameters": n, "trainable": trainable, "change": _ratio(moved, norm)}
        for layer, (moved, norm, n, trainable) in sums.items()
    ]
    total = _ratio(sum(row[0] for row in sums.values()), sum(row[1] for row in sums.values()))
    return {"overall": total, "layers": layers}


def _ratio(moved_squared: float, norm_squared: float) -> float:
    return math.sqrt(moved_squared / norm_squared) if norm_squared > 0 else math.sqrt(moved_squared)


class VisionEvidence:
    """Watches the vision tower over a run.

    Args:
        tower: What pretraining is for.
        run_dir: Where `start_vision.safetensors` and `evidence.json` go.

    Attributes:
        features: Returns (n, p) features of the tower for n fixed images. A hook that sets it in its
            `on_start` gets the CKA of the features before and after training into `evidence.json`.
    """

    def __init__(self, tower: nn.Module, run_dir: Path) -> None:
        self.tower, self.run_dir = tower, run_dir
        self.features: Callable[[], Tensor] | None = None
        self._share_sum, self._share_steps = 0.0, 0

    @property
    def meant_to_train(self) -> bool:
        """Whether any parameter of the tower requires a gradient."""
        return any(parameter.requires_grad for parameter in self.tower.parameters())

    @property
    def _start_file(self) -> Path:
        return self.run_dir / "start_vision.safetensors"

    @property
    def _features_file(self) -> Path:
        return self.run_dir / "start_features.safetensors"

    def begin(self) -> None:
        """Keep the weights, and the features if there is a way to get them, that the run starts from.

        They stay on disk: a second copy of a large tower in memory would be for two comparisons only.
        """
        self._keep_start()
        self._features_file.unlink(missing_ok=True)
        if self.features is not None:
            with atomic_path(self._features_file) as temporary:
                save_tensors(temporary, {"features": self._compute_features()})

    def _keep_start(self) -> None:
        with atomic_path(self._start_file) as temporary:
            save_tensors(temporary, dict(self.tower.named_parameters()))

    def mend(self) -> list[str]:
        """Write anew what the run has started from, where it is damaged, and return a line about each file.

        To be called with the weights that the configuration starts from, before those of a checkpoint are loaded.
        """
        notes = []
        try:
            load_tensors(self._start_file)
        except DamagedError as error:
            self._keep_start()
            notes.append(
                f"WARNING: {error.where} {error.what}: written anew from the weights of the configuration"
            )
        try:
            if self._features_file.exists():
                load_tensors(self._features_file)
        except DamagedError as error:
            self._features_file.unlink(missing_ok=True)
            notes.append(
                f"WARNING: {error.where} {error.what}: the features can't be compared with the start"
            )
        return notes

    def add_share(self, share: float) -> None:
        """Note the tower's share of one step's squared gradient norm, on 0..1."""
        self._share_sum += share
        self._share_steps += 1

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"share_sum": self._share_sum, "share_steps": self._share_steps}

    def load_state(self, state: dict[str, float]) -> None:
        """Continue from `state`."""
        self._share_sum, self._share_steps = state["share_sum"], int(state["share_steps"])

    @property
    def gradient_share(self) -> float:
        """The tower's mean share of the squared gradient norm, on 0..1."""
        return self._share_sum / self._share_steps if self._share_steps else 0.0

    def check(self, step: int) -> dict[str, Any]:
        """Return `weight_change` since the start of the run.

        Raises:
            VitpError: The tower is meant to train, and no gradient has reached it or it has not changed.
        """
        change = weight_change(self.tower, load_tensors(self._start_file))
        if not self.meant_to_train:
            return change
        if self._share_steps and self._share_sum == 0:
            # Weight decay alone moves weights, so a change is no proof of learning.
            raise VitpError(
                f"no gradient has reached the vision tower in {self._share_steps} steps",
                where=str(self.run_dir),
                fix="look for a detach or no_grad between the tower and the loss, or freeze the tower on purpose",
            )
        if change["overall"] < MIN_CHANGE:
            raise VitpError(
                f"after {step} steps the vision tower has not changed (relative change {change['overall']:.1e})",
                where=str(self.run_dir),
                fix="raise the learning rate, or freeze the tower on purpose",
            )
        return change

    def finish(self, step: int) -> dict[str, Any]:
        """Check once more, write `evidence.json` and return what it holds."""
        change = self.check(step)
        evidence: dict[str, Any] = {
            "step": step,
            "meant_to_train": self.meant_to_train,
            "relative_change": change["overall"],
            "gradient_share": self.gradient_share,
            "cka": self._cka(),
            **self._frozen(),
            "layers": change["layers"],
        }
        write_json(self.run_dir / "evidence.json", evidence)
        return evidence

    def _frozen(self) -> dict[str, Any]:
        """Return, where only a part of the tower trains, whether all others are as they were, bit for bit."""
        frozen = {name: p for name, p in self.tower.named_parameters() if not p.requires_grad}
        if not frozen or not self.meant_to_train:
            return {}
        start, digest = load_tensors(self._start_file), hashlib.sha256()
        for name in sorted(frozen):
            digest.update(name.encode() + bytes(tensor_bytes(frozen[name])))
        same = all(torch.equal(p.detach().cpu(), start[name].cpu()) for name, p in frozen.items())
        parameters = sum(p.numel() for p in frozen.values())
        return {"frozen": {"parameters": parameters, "unchanged": same, "sha256": digest.hexdigest()}}

    def _cka(self) -> float | None:
        if self.features is None or not self._features_file.exists():
            return None
        cka = linear_cka(load_tensors(self._features_file)["features"], self._compute_features())
        return None if math.isnan(cka) else cka

    def _compute_features(self) -> Tensor:
        assert self.features is not None
        was_training = self.tower.training
        self.tower.eval()
        try:
            with torch.no_grad():
                return self.features().float()
        finally:
            self.tower.train(was_training)


def summary(evidence: Mapping[str, Any]) -> str:
    """Return one line about what `VisionEvidence.finish` found."""
    if not evidence["meant_to_train"]:
        return "vision tower: frozen"
    text = (
        f"vision tower: weights moved by {evidence['relative_change']:.2e} of their norm, "
        f"{evidence['gradient_share']:.1%} of the squared gradient"
    )
    return text if evidence["cka"] is None else f"{text}, CKA with the start {evidence['cka']:.3f}"
