"""Programs in forks of the tests' process: real processes with signals, without the seconds of the imports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping

import torch


class Forked:
    """A function that runs in a process of its own; what it prints is kept. Used as a `subprocess.Popen`.

    Args:
        run: What the process does; it ends as a program does that calls it.
        environment: Variables over those of this process.
    """

    def __init__(self, run: Callable[[], object], environment: Mapping[str, str] | None = None) -> None:
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(run, environment or {})

    def _run(self, run: Callable[[], object], environment: Mapping[str, str]) -> None:
        code = 1
        try:
            for number, file in enumerate(self._files, 1):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.environ |= environment
            run()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(bool(error.code))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # Nothing of the tests is to be tidied up here.
            os._exit(code)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end, and return what it has printed.

        Raises:
            subprocess.TimeoutExpired: It hasn't ended.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
            time.sleep(0.005)
        said = []
        for file in self._files:
            file.seek(0)
            said.append(file.read().decode())
            file.close()
        return said[0], said[1]


def forks_can_train() -> bool:
    """Return whether a fork of this process can go backward: not after a test of devices that aren't there."""
    probe = Forked(lambda: torch.ones(1, requires_grad=True).sum().backward())
    probe.communicate()
    return probe.returncode == 0


def fork_ranks(run: Callable[[], object], world: int, timeout: float) -> None:
    """Run a function in `world` processes that find each other, as torchrun would.

    Raises:
        AssertionError: A rank failed; the message is what it printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [Forked(run, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world)]
    try:
        for process in ranks:
            output = "".join(process.communicate(timeout=timeout))
            assert process.returncode == 0, output
    finally:
        for process in ranks:
            process.kill()
