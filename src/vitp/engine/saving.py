"""Writers of checkpoints: at once, or in the background while training goes on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitp.core import distributed
from vitp.core.errors import VitpError
from vitp.core.files import as_user_error, atomic_dir, put_in_place
from vitp.engine import checkpoint, shards
from vitp.engine.checkpoint import RunState, Tensors
from vitp.objectives.base import Objective


class Saver:
    """Writes the checkpoints of a run. Each is invisible until it is whole.

    All methods but `ready` and `close` are collective calls. With a model that every rank has, rank 0 writes;
    the parts of a sharded one are written by all.

    Args:
        run_dir: Folder of the run.
        keep_last: Checkpoints that are kept.
        sharded: Whether every rank has a part of the model.
        background: Whether `save` returns before the checkpoint is written.
    """

    def __init__(self, run_dir: Path, keep_last: int, *, sharded: bool, background: bool) -> None:
        self.run_dir, self.keep_last = run_dir, keep_last
        self.sharded, self.background = sharded, background
        self._group = shards.new_group() if sharded else None
        self._thread: ThreadPoolExecutor | None = None
        self._written: Future[Any] | None = None
        self._state: RunState | None = None
        self._digests: Mapping[str, str] = {}

    @property
    def pending(self) -> bool:
        """Whether a checkpoint is being written; the same on all ranks."""
        return self._state is not None

    @property
    def ready(self) -> bool:
        """Whether this rank's part of it is done."""
        return self._written is None or self._written.done()

    def save(
        self,
        state: RunState,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        names: list[list[str]],
        average: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Save the state of a step, after the checkpoint that is still being written.

        Raises:
            VitpError: The disk is full or can't be written, now or for the checkpoint before.
        """
        self.finish()
        tensors, self._state = Tensors.of(model, optimizer, names, average), state
        if self.sharded:
            self._make_folder()
            begin = shards.write_later if self.background else shards.write
            try:
                self._written = begin(
                    self._temporary, tensors.model, tensors.moments, self._group, tensors.average
                )
            except VitpError:
                self._abandon()
                raise
        elif distributed.rank() == 0:
            self._start(state, tensors)
        if not self.background:
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is there.

        Raises:
            VitpError: The disk is full or can't be written; older checkpoints are untouched.
        """
        if not self.pending:
            return
        error: VitpError | None = None
        try:
            if self._written is not None:
                written = self._written.result()
                self._digests = written if self.sharded else {}
        except VitpError as caught:
            error = caught
        except shards.WRITE_ERRORS as caught:
            if not self.sharded:
                raise
            error = shards.as_write_error(caught, self._temporary)
        self._written = None
        try:
            # All ranks fail together: one that left alone would keep the others waiting in their next exchange.
            distributed.raise_together(error)
            if self.sharded:
                # Each process has hashed what it wrote: none has to read it all.
                digests = {
                    name: d for part in distributed.gather(dict(self._digests)) for name, d in part.items()
                }
                distributed.raise_together(self._commit(digests))
        except VitpError:
            self._abandon()
            raise
        self._state = None

    def close(self) -> None:
        """Let this rank's writing come to its end, whatever becomes of it."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None

    def _start(self, state: RunState, tensors: Tensors) -> None:
        """Write the checkpoint of a model that this rank has whole."""
        if not self.background:
            # A write that has ended already goes the way of one in the background, so that `finish` tells all ranks
            # alike.
            self._written = Future()
            try:
                self._written.set_result(checkpoint.save(self.run_dir, state, tensors, self.keep_last))
            except VitpError as error:
                self._written.set_exception(error)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        # Training goes on while the thread writes, and changes the originals.
        copies = tensors.copies()
        self._written = self._thread.submit(checkpoint.save, self.run_dir, state, copies, self.keep_last)

    @property
    def _temporary(self) -> Path:
        """Where the ranks put their parts; hidden, and of the same name everywhere."""
        assert self._state is not None
        path = checkpoint.folder(self.run_dir, self._state.step)
        return path.with_name(f".{path.name}.shards.tmp")

    def _make_folder(self) -> None:
        error: VitpError | None = None
        if distributed.rank() == 0:
            try:
                shutil.rmtree(self._temporary, ignore_errors=True)
                self._temporary.mkdir(parents=True)
            except OSError as caught:
                error = as_user_error(caught, self._temporary)
        distributed.raise_together(error)

    def _commit(self, digests: Mapping[str, str]) -> VitpError | None:
        """Make the checkpoint visible, now that all parts of it are written."""
        if distributed.rank() > 0 or self._state is None:
            return None
        path = checkpoint.folder(self.run_dir, self._state.step)
        try:
            checkpoint.write_state(
                self._temporary, self._state, checkpoint.SHARDED_FORMAT, self.run_dir, digests
            )
            put_in_place(self._temporary, path)
            checkpoint.prune(self.run_dir, self.keep_last, path, self._state.kept)
        except OSError as error:
            return as_user_error(error, path)
        except VitpError as error:
            return error
        return None

    def _abandon(self) -> None:
        if self.sharded and distributed.rank() == 0:
            shutil.rmtree(self._temporary, ignore_errors=True)
        self._state = None


def save_pretrained(objective: Objective, run_dir: Path) -> Path | None:
    """Write the model of an objective that has a format of its own to `run_dir`/model, and return the folder."""
    if type(objective).save_pretrained is Objective.save_pretrained:
        return None
    folder = run_dir / "model"
    with atomic_dir(folder) as temporary:
        objective.save_pretrained(temporary)
    return folder
