"""Prefetching batches in the order of the steps, from a source without state."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vitp.core import distributed
from vitp.core.errors import DataError, VitpError
from vitp.core.tensors import TensorFields
from vitp.objectives.base import BatchSource, Objective

_UNASKED_WORKERS = 2
"""What `train.num_workers` is by default."""


@dataclasses.dataclass
class _Failure:
    """An error on its way out of a worker.

    Raised there, a user error would arrive wrapped in a traceback, and DataLoader would take another ten
    seconds to stop the worker.
    """

    error: VitpError | None
    traceback: str = ""


class _StepDataset(Dataset[Any]):
    """Item i is micro-batch `i % micro_batches` of step `start + i // micro_batches`."""

    def __init__(
        self, source: BatchSource, start: int, steps: int, micro_batches: int, rank: int, world: int
    ) -> None:
        self.source, self.start, self.steps, self.micro_batches = source, start, steps, micro_batches
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return (self.steps - self.start) * self.micro_batches

    def __getitem__(self, index: int) -> Any:
        step, micro = divmod(index, self.micro_batches)
        try:
            return self.source(self.start + step, micro, self.rank, self.world)
        except VitpError as error:
            return _Failure(error)
        except Exception:
            if get_worker_info() is None:
                raise
            return _Failure(None, f"step {self.start + step}, micro-batch {micro}\n{traceback.format_exc()}")


def _start_worker(worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM go to the whole process group; the training process decides what
    # happens, and needs the workers to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_training, daemon=True).start()
    torch.set_num_threads(1)
    if "cv2" in sys.modules:  # has a thread pool of its own
        sys.modules["cv2"].setNumThreads(0)


def _end_with_training() -> None:
    """End this worker when the training process is gone, killed for lack of memory for example.

    torch's workers notice it, too, but then wait for ever to hand over batches that are larger than a pipe's buffer.
    Whoever lives on holds the lock of the run folder.
    """
    training = multiprocessing.parent_process()
    if training is not None:
        training.join()
        os._exit(1)


def _as_is(batch: Any) -> Any:
    return batch


class StepLoader:
    """Gives all micro-batches of one step after the other.

    Args:
        source: Place in the run → batch.
        start: First step.
        steps: End of the run.
        micro_batches: Batches a step.
        rank: This process.
        world: Number of processes.
        num_workers: Processes that prepare batches; 0: this one.
        pin_memory: Put tensors into page-locked memory, for copies to a GPU.

    Attributes:
        wait_s: Seconds spent waiting for batches, in total.
    """

    def __init__(
        self,
        source: BatchSource,
        start: int,
        steps: int,
        micro_batches: int,
        *,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        dataset = _StepDataset(source, start, steps, micro_batches, rank, world)
        self.micro_batches = micro_batches
        self.wait_s = 0.0
        self._workers = min(num_workers, len(dataset))
        with self._few_workers():
            self._loader: DataLoader[Any] = DataLoader(
                dataset,
                # The items are whole batches already.
                batch_size=None,
                shuffle=False,
                num_workers=self._workers,
                collate_fn=_as_is,
                pin_memory=pin_memory,
                worker_init_fn=_start_worker,
            )
        self._batches: Iterator[Any] | None = None

    def next_step(self) -> list[Any]:
        """Return the micro-batches of the next step.

        Raises:
            VitpError: What the source raised, the same in a worker as in this process.
            RuntimeError: The source failed with another error in a worker; holds its traceback.
        """
        began = time.perf_counter()
        try:
            if self._batches is None:
                with self._few_workers():
                    self._batches = iter(self._loader)
            batches = [next(self._batches) for _ in range(self.micro_batches)]
        except RuntimeError as error:
            if "DataLoader worker" in str(error):
                raise DataError(
                    f"a process that prepares batches died, most often for lack of memory ({error})",
                    fix="lower num_workers or the batch size, then resume",
                ) from error
            raise
        finally:
            self.wait_s += time.perf_counter() - began
        for batch in batches:
            if isinstance(batch, _Failure):
                raise batch.error or RuntimeError(f"preparing a batch failed in a worker: {batch.traceback}")
        return batches

    @contextlib.contextmanager
    def _few_workers(self) -> Iterator[None]:
        """Keep torch from warning on a machine with one core that two workers, which nobody asked for, are many."""
        with warnings.catch_warnings():
            if self._workers <= _UNASKED_WORKERS:
                warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            yield

    def close(self) -> None:
        """Stop the workers."""
        # Without this they run until the iterator is collected, which a traceback in flight can put off.
        # torch has no public way to end the workers of an iterator before its batches are used up.
        shutdown = getattr(self._batches, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()
        self._batches = None


def read_step(
    loader: StepLoader, objective: Objective
) -> tuple[list[Any], dict[str, float], dict[str, float], VitpError | None]:
    """Return this rank's batches of the next step, their counts of loss terms and their work; or an error instead.

    A user's mistake isn't raised but returned: the other ranks are to be told first.
    """
    batches: list[Any] = []
    try:
        batches = loader.next_step()
        counts = distributed.sum_dicts(objective.loss_counts(batch) for batch in batches)
        return batches, counts, distributed.sum_dicts(objective.work(batch) for batch in batches), None
    except VitpError as error:
        return batches, {}, {}, error


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with its tensors on `device`, copied without waiting where the memory is pinned."""
    if device.type == "cpu":
        return batch
    if hasattr(batch, "to"):
        # A batch of somebody else's class may have a `to` without the argument.
        waits = not isinstance(batch, torch.Tensor | TensorFields)
        return batch.to(device) if waits else batch.to(device, non_blocking=device.type == "cuda")
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        moved = copy.copy(batch)
        for field in dataclasses.fields(batch):
            # Not `replace`: the batch was validated when it was made, and may be frozen.
            object.__setattr__(moved, field.name, to_device(getattr(batch, field.name), device))
        return moved
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
