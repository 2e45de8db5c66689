"""Rows of several images' tables that are chosen together: the device is asked once, not once an image.

What is chosen, and which random numbers are drawn for it, is what torchvision's matcher and sampler do image by image.

Shapes: A anchors or regions of an image, N objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher


def counts_of(rows: Tensor, lengths: Sequence[int]) -> list[int]:
    """Return how many of some rows lie in each of several tables that follow one another.

    Args:
        rows: Their numbers, rising.
        lengths: Rows of each table.
    """
    ends = torch.tensor(lengths).cumsum(0).to(rows.device, non_blocking=True)
    # One wait for the GPU for all tables; rows are sorted.
    reached: list[int] = torch.searchsorted(rows, ends).tolist()
    return [end - start for start, end in zip([0, *reached], reached, strict=False)]


def true_rows(tables: Sequence[Tensor]) -> list[Tensor]:
    """Return the rows at which each of several (A,) bool tables is true, rising, as `torch.where` does of one."""
    lengths = [len(table_A) for table_A in tables]
    # One wait for the GPU: `nonzero` has to ask how many there are.
    rows = torch.nonzero(torch.cat(list(tables)))[:, 0]
    starts = accumulate([0, *lengths[:-1]])
    return [part - start for part, start in zip(rows.split(counts_of(rows, lengths)), starts, strict=True)]


@dataclass(frozen=True)
class DrawnRows:
    """What a loss takes of each image's rows.

    Attributes:
        rows: Numbers of its rows, rising.
        positives: Those of them that hold an object, rising.
    """

    rows: list[Tensor]
    positives: list[Tensor]

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return float32 1 / the rows of its image: of each row, and of each that holds an object."""
        both = zip(self.rows, self.positives, strict=True)
        pairs = [
            [part.new_ones(len(part), dtype=torch.float32) / max(len(rows), 1) for part in (rows, positives)]
            for rows, positives in both
        ]
        of_rows, of_positives = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return of_rows, of_positives


class BatchSampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]  # torchvision has no types
    """torchvision's sampler for all images at once; its random numbers and its choice are the same."""

    def draw(self, kinds: Sequence[Tensor]) -> DrawnRows:
        """Return what is drawn of each image's rows.

        Args:
            kinds: (A,) of each image: 1 or more for an object, 0 for background, -1 for neither.
        """
        found = true_rows([*(kind_A >= 1 for kind_A in kinds), *(kind_A == 0 for kind_A in kinds)])
        rows, positives = [], []
        for with_object, without in zip(found[: len(kinds)], found[len(kinds) :], strict=True):
            most = min(int(self.batch_size_per_image * self.positive_fraction), len(with_object))
            taken = _some(with_object, most)
            others = _some(without, min(self.batch_size_per_image - most, len(without)))
            # torchvision draws masks, whose rows come out in order; losses are summed in that order here, too.
            positives.append(taken.sort().values)
            rows.append(torch.cat([taken, others]).sort().values)
        return DrawnRows(rows, positives)


def _some(rows: Tensor, count: int) -> Tensor:
    return rows[torch.randperm(len(rows), device=rows.device)[:count]]


class BatchMatcher(Matcher):  # type: ignore[misc]  # torchvision has no types
    """torchvision's matcher; it doesn't ask the device how many anchors are an object's best."""

    def set_low_quality_matches_(
        self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor
    ) -> None:
        """Give each object its best anchors, ties included, in place.

        Args:
            matches: (A,) objects of the anchors, negative where there is none.
            all_matches: (A,) the object that an anchor overlaps most.
            match_quality_matrix: (N, A) overlaps.
        """
        # torchvision lists the places of the ties, and has to ask the GPU how many there are.
        best_N1 = match_quality_matrix.amax(1, keepdim=True)
        best_A = (match_quality_matrix == best_N1).any(0)
        matches.copy_(torch.where(best_A, all_matches, matches))
