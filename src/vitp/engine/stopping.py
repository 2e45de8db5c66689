"""SIGINT and SIGTERM: finish the step, save, leave."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """The run was stopped by a signal after a whole step, and saved.

    Attributes:
        signum: The signal.
        checkpoint: Where the run continues.
        exit_code: 130 for SIGINT, 143 for SIGTERM: what shells and schedulers expect.
    """

    def __init__(self, signum: int, step: int, checkpoint: Path, again: str = "") -> None:
        self.signum, self.step, self.checkpoint = signum, step, checkpoint
        self.exit_code = 128 + signum
        run = shlex.quote(str(checkpoint.parent.parent))
        again = (
            again or f"the same command continues it (vitp pretrain and finetune with --resume --out {run})"
        )
        super().__init__(
            f"interrupted by {signal.Signals(signum).name} after step {step}, saved {checkpoint}; {again}"
        )

    def saying(self, again: str) -> Interrupted:
        """Return the same with other words on how to go on, for a command that starts runs of its own."""
        return Interrupted(self.signum, self.step, self.checkpoint, again)


class StopSignals:
    """Within this context the first signal is noted in `received`, the second one stops at once.

    Outside the main thread Python can't install handlers, and nothing is noted.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._owner = os.getpid()

    def __enter__(self) -> StopSignals:
        # Python lets the main thread alone set handlers.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self._SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked data worker, before it has set its own handlers
            return
        if self.received is None:
            self.received = signum
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + signum)
