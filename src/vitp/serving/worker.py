"""Who computes: one thread a model, which takes what waits for it together.

A thread a model, because models change their mode while they predict, and one device gains nothing from two at once.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vitp.serving.refusal import Refusal

GATHER_SECONDS = 0.004
"""How long the first of a batch waits for others."""


class WaitingLine:
    """How many requests may be on their way at once, over all models.

    Args:
        most: Those that wait or are computed.
    """

    def __init__(self, most: int) -> None:
        self.most, self.length = most, 0
        self._seconds = 0.1
        self._lock = threading.Lock()

    @contextmanager
    def place(self) -> Any:
        """Hold a place.

        Raises:
            Refusal: There is none.
        """
        with self._lock:
            if self.length >= self.most:
                seconds = max(1, min(60, math.ceil(self.length * self._seconds)))
                raise Refusal(
                    503, f"{self.length} requests are waiting; try again later", retry_after=seconds
                )
            self.length += 1
        started = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                # Of one request, when as many as now share the machine.
                taken = (time.monotonic() - started) / max(1, self.length)
                self._seconds += 0.1 * (taken - self._seconds)
                self.length -= 1


@dataclass
class _Job:
    """Something to be computed.

    Attributes:
        argument: What it is about.
        together: Computes several arguments, to a result or an error of each; None: `argument` is called.
        weight: What counts towards the most that is computed together.
        result: What came of the call.
    """

    argument: Any
    together: Callable[[Sequence[Any]], Sequence[Any]] | None
    weight: int
    result: Future[Any] = field(default_factory=Future)


class Worker:
    """A thread that computes one after the other, or together what can be.

    Args:
        name: Name of the thread.
        most: Arguments that are computed together; 1: none are.
        most_weight: Largest weight of arguments that are computed together.
    """

    def __init__(self, name: str, most: int, most_weight: int) -> None:
        self._most, self._most_weight = most, most_weight
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._next: _Job | None = None
        self._closed = False
        self.batches = 0
        self.computed = 0
        self._thread = threading.Thread(target=self._work, name=f"vitp-{name}", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Return what will be the result of a function, called alone in this thread."""
        return self._put(_Job(function, None, 0))

    def call_together(
        self, together: Callable[[Sequence[Any]], Sequence[Any]], argument: Any, weight: int
    ) -> Future[Any]:
        """Return what will be the result for an argument.

        Args:
            together: Gives a result, or an error, for each of several arguments; the same object for all that may be
                computed together.
            argument: One of them.
            weight: See `most_weight`.
        """
        return self._put(_Job(argument, together, weight))

    def _put(self, job: _Job) -> Future[Any]:
        self._jobs.put(job)
        return job.result

    def close(self) -> None:
        """End the thread after what waits."""
        self._jobs.put(None)
        self._thread.join(timeout=5)

    def _work(self) -> None:
        while not self._closed:
            first = self._next or self._jobs.get()
            self._next = None
            if first is None:
                return
            jobs = [job for job in self._gathered(first) if job.result.set_running_or_notify_cancel()]
            if not jobs:
                continue
            self.batches += 1
            self.computed += len(jobs)
            _compute(jobs)

    def _gathered(self, first: _Job) -> list[_Job]:
        """Return a job with those that can be computed with it and come within a few milliseconds."""
        jobs, weight = [first], first.weight
        until = time.monotonic() + GATHER_SECONDS
        while first.together is not None and len(jobs) < self._most:
            try:
                job = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                self._closed = True
                break
            if job.together is not first.together or weight + job.weight > self._most_weight:
                self._next = job
                break
            jobs.append(job)
            weight += job.weight
        return jobs


def _compute(jobs: Sequence[_Job]) -> None:
    together = jobs[0].together
    try:
        results = [jobs[0].argument()] if together is None else together([job.argument for job in jobs])
    except BaseException as error:  # the thread must live on, whatever happened
        for job in jobs:
            job.result.set_exception(error)
        return
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, Exception):
            job.result.set_exception(result)
        else:
            job.result.set_result(result)
