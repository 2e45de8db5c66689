"""Checks on single batches of a run's own data: packing, shared prefixes, attention kernels, compilation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from vitp.data.batches import SampledBatches
from vitp.data.mixture import Mixture, Sample
from vitp.data.packing import PackedBatch
from vitp.models.attention_layouts import AttentionKind, choose
from vitp.models.compute import ComputeSettings, configure
from vitp.objectives.packed_records import PackedRecords
from vitp.objectives.vitp import ViTPObjective
from vitp.records.instructions import InstructionRecord
from vitp.runs.check.findings import BatchOutcome, CheckFinding, compare, outcome

TOLERANCE = 1e-4
"""Relative, in fp32: loss and gradients of the same records computed in another order."""


class BatchChecks:
    """Compares ways of computing the same records.

    Dropout and drop path are off, everything is fp32.

    Args:
        objective: On its device; its state is left as it was, gradients apart.
        source: Source of the run.
        device: Device on which to compute.
        records: That are compared.
    """

    def __init__(
        self, objective: ViTPObjective, source: SampledBatches, device: torch.device, records: int
    ) -> None:
        self.objective, self.device = objective.to(device).eval(), device
        assert isinstance(source.collate, PackedRecords) and isinstance(source.order, Mixture)
        self.collate, mixture = source.collate, source.order
        self.samples = [mixture[position] for position in range(min(records, len(mixture)))]
        self.packed = self._collate(self.samples)

    def _collate(self, samples: Sequence[Sample]) -> PackedBatch:
        config = self.collate.config.model_copy(update={"pack": True})
        return replace(self.collate, config=config)(samples)

    def packed_equals_single(self) -> CheckFinding:
        """All records in shared rows against each in a batch of its own."""
        single = [self._collate([sample]) for sample in self.samples]
        return CheckFinding(
            f"packed ≡ one by one ({len(self.samples)} records)",
            compare(self._outcome([self.packed]), self._outcome(single), TOLERANCE),
        )

    def shared_equals_separate(self) -> CheckFinding:
        """Questions that share an image against a sequence for each of them."""
        name = "questions on one image ≡ each alone"
        shared = next(
            (sample for sample in self.samples if sample.record.independent and len(sample.record.turns) > 1),
            None,
        )
        if shared is None:
            return CheckFinding(name, skipped="no record with several independent questions")
        limit = self.collate.config.max_turns
        apart = [replace(shared, record=record) for record in one_by_one(shared.record, limit)]
        together = self._collate([shared])
        # At the same position: the same image tokens survive.
        alone = [self._collate([one]) for one in apart]
        return CheckFinding(
            f"{name} ({len(apart)} questions)",
            compare(self._outcome([together]), self._outcome(alone), TOLERANCE),
        )

    def attention_equals_reference(self) -> CheckFinding:
        """The attention that this device gets in fp32 against one mask over whole rows."""
        kind = choose(self.device, torch.float32)
        return CheckFinding(
            f"attention {kind} ≡ dense mask",
            compare(self._with_attention(kind), self._with_attention("dense"), TOLERANCE),
        )

    def half_precision_is_near(self) -> CheckFinding:
        """On a GPU: the kernel of half precision against the reference in half precision, by direction."""
        kind = choose(self.device, torch.bfloat16)
        name = f"attention {kind} ≡ dense mask, bf16"
        if self.device.type != "cuda":
            return CheckFinding(name, skipped="there is no GPU")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            fast, reference = self._with_attention(kind), self._with_attention("dense")
        return CheckFinding(name, compare(fast, reference, 3e-2, cosine=0.999))

    def compiled_equals_eager(self) -> CheckFinding:
        """A compiled ViT and language model against the same ones as they are."""
        name = "compiled ≡ eager"
        eager = self._outcome([self.packed])
        # A copy: a module that is compiled once stays so.
        compiled = copy.deepcopy(self.objective)
        configure(compiled.vlm, ComputeSettings(compile="all", attention=self.objective.vlm.attention))
        try:
            found = outcome(compiled.eval(), [self.packed], self.device)
        except Exception as error:
            if not _is_compiler_error(error):
                raise
            reason = str(error).strip().splitlines()[0][:160]
            return CheckFinding(name, skipped=f"torch.compile does not work here ({reason})")
        return CheckFinding(name, compare(found, eager, TOLERANCE))

    def recomputed_equals_kept(self) -> CheckFinding:
        """Activations made again in the backward pass against kept ones."""
        kept = self._outcome([self.packed])
        recomputed = copy.deepcopy(self.objective)
        configure(
            recomputed.vlm, ComputeSettings(recompute="selective", attention=self.objective.vlm.attention)
        )
        # Recomputation is for training mode only; drop path is off in the configuration of a check.
        found = outcome(recomputed.train(), [self.packed], self.device)
        return CheckFinding("recomputed ≡ kept activations", compare(found, kept, TOLERANCE))

    def _with_attention(self, kind: AttentionKind) -> BatchOutcome:
        vlm = self.objective.vlm
        before, vlm.attention = vlm.attention, kind
        try:
            return self._outcome([self.packed])
        finally:
            vlm.attention = before

    def _outcome(self, batches: Sequence[PackedBatch]) -> BatchOutcome:
        return outcome(self.objective, batches, self.device)


def one_by_one(record: InstructionRecord, limit: int | None = None) -> list[InstructionRecord]:
    """Return one record for each independent question of a record, each with its images."""
    prefix = record.prefix
    turns = record.turns[:limit]
    first, *rest = turns
    apart = [replace(turn, question=prefix + turn.question) for turn in rest]
    return [record.with_turns((turn,)) for turn in (first, *apart)]


def _is_compiler_error(error: Exception) -> bool:
    """Whether the compiler is what failed: no C++ compiler, an unsupported device, a graph that it can't make."""
    return any(
        kind.__module__.startswith(("torch._inductor", "torch._dynamo")) for kind in type(error).__mro__
    )
