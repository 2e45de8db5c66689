"""Attention of packed batches as runs: stretches of tokens that a kernel can take as one sequence.

A record is a prefix (system text and images) and, behind it, branches: questions that each see the prefix and
themselves. A conversation is a prefix alone. Prefix and branches are the runs of a record; a token sees the tokens
of its own run up to itself, and, in a branch, the whole prefix. Nothing else is seen by anyone, so attention costs
what the runs cost, however many records share a row.

Shapes: B rows, L tokens a row, N = B · L or fewer flat tokens, R runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenRuns:
    """Runs in flat token numbers, in the order of the tokens.

    Attributes:
        start_R: First token of each run.
        length_R: Tokens of each run.
        prefix_start_R: First token of the prefix that a run sees before itself; 0 where it sees none.
        prefix_length_R: Tokens of that prefix; 0: the run is a prefix itself, or a record without branches.
        tokens: Flat tokens in all, padding included.
    """

    start_R: np.ndarray
    length_R: np.ndarray
    prefix_start_R: np.ndarray
    prefix_length_R: np.ndarray
    tokens: int

    def __len__(self) -> int:
        return len(self.start_R)

    @property
    def members_N(self) -> np.ndarray:
        """Flat numbers of the tokens that belong to a run: all that are not padding, ascending."""
        return ranges(self.start_R, self.length_R)

    def without_padding(self) -> TokenRuns:
        """Return the same runs over the tokens of `members_N`, numbered from 0 without gaps."""
        new_start = np.cumsum(self.length_R) - self.length_R
        # A prefix starts where a run starts, so its new place is that run's.
        number = np.searchsorted(self.start_R, self.prefix_start_R)
        has_prefix = self.prefix_length_R > 0
        prefix_start = np.where(has_prefix, new_start[np.minimum(number, len(self) - 1)], 0)
        return TokenRuns(
            new_start, self.length_R, prefix_start, self.prefix_length_R, int(self.length_R.sum())
        )

    def with_another(self, length: int) -> TokenRuns:
        """Return the runs of a single row and, behind them, one more that sees itself alone."""
        return TokenRuns(
            np.append(self.start_R, self.tokens),
            np.append(self.length_R, length),
            np.append(self.prefix_start_R, 0),
            np.append(self.prefix_length_R, 0),
            self.tokens + length,
        )

    def with_first_branches_joined(self) -> TokenRuns:
        """Return the same attention in fewer runs: a branch right behind its prefix and the prefix are one causal run.

        A record of one question becomes one run then, and reads no key twice.
        """
        joined_R = np.zeros(len(self), dtype=bool)
        behind = self.prefix_start_R + self.prefix_length_R == self.start_R
        joined_R[1:] = (
            (self.prefix_length_R > 0)[1:] & behind[1:] & (self.prefix_start_R[1:] == self.start_R[:-1])
        )
        length_R = self.length_R.copy()
        length_R[:-1] += np.where(joined_R[1:], self.length_R[1:], 0)
        kept = ~joined_R
        return TokenRuns(
            self.start_R[kept],
            length_R[kept],
            self.prefix_start_R[kept],
            self.prefix_length_R[kept],
            self.tokens,
        )

    @property
    def context(self) -> float:
        """Mean number of keys that a token sees, itself included."""
        own = self.length_R * (self.length_R + 1) / 2
        total = float((own + self.length_R * self.prefix_length_R).sum())
        return total / max(int(self.length_R.sum()), 1)


def ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return `start[0] … start[0] + length[0] - 1, start[1] …` as one array."""
    ends = np.cumsum(length)
    return np.repeat(start - (ends - length), length) + np.arange(int(ends[-1]) if len(ends) else 0)


def token_runs(segments_BL: np.ndarray, branches_BL: np.ndarray) -> TokenRuns:
    """Return the runs of packed rows.

    Args:
        segments_BL: Number of the record within the row, -1 = padding.
        branches_BL: 0 = shared by the record's questions, k = its k-th independent question.

    Raises:
        ValueError: Shared tokens come behind a branch, or a branch has a gap: no such record is ever made.
    """
    rows, length = segments_BL.shape
    segment, branch = segments_BL.reshape(-1), branches_BL.reshape(-1)
    new_record = np.ones(rows * length, dtype=bool)
    new_record[1:] = segment[1:] != segment[:-1]
    # A row ends a record, even if the next row begins with one of the same number.
    new_record[::length] = True
    new_run = new_record.copy()
    new_run[1:] |= branch[1:] != branch[:-1]
    start = np.flatnonzero(new_run)
    run_length = np.diff(start, append=rows * length)
    run_branch = branch[start]
    record = np.cumsum(new_record)[start]
    first = new_record[start]
    # The first run of a record is its prefix if it is shared; a record may also consist of branches alone.
    opener = np.flatnonzero(first)[np.cumsum(first) - 1]
    sees = (run_branch > 0) & (run_branch[opener] == 0)
    real = segment[start] >= 0
    _check_runs(run_branch[real], first[real], record[real])
    return TokenRuns(
        start_R=start[real],
        length_R=run_length[real],
        prefix_start_R=np.where(sees, start[opener], 0)[real],
        prefix_length_R=np.where(sees, run_length[opener], 0)[real],
        tokens=rows * length,
    )


def _check_runs(branch: np.ndarray, first: np.ndarray, record: np.ndarray) -> None:
    if np.any((branch == 0) & ~first):
        raise ValueError("shared tokens come behind a branch of their record")
    # One number for each record and branch: two runs with the same one have something else between them.
    pairs = record * (int(branch.max(initial=0)) + 1) + branch
    if len(np.unique(pairs)) != len(pairs):
        raise ValueError("a branch of a record has a gap")
