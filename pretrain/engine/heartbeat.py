"""What a rank says of itself to the process that watches it (pretrain/engine/watchdog.py): a record in shared memory.

Saying it costs a few microseconds and no system call. Only what a healthy run does in bounded time has a limit: reading
a batch, agreeing with the others, training. Evaluation, pictures and saves have none; peers that wait for them do.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pretrain.engine import watchdog

_SHARE = 0.8  # of the collectives' timeout: who stands still is found before those who wait for it give up
_SLOWEST = 10.0  # times the slowest step so far, where that is more
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Heartbeat:
    """Starts the watchdog of this process; each method says what comes next."""

    def __init__(self, run_dir: Path, rank: int, attempt: int, *, timeout_s: float, reading_s: float) -> None:
        """timeout_s: of collectives; reading_s: after which the loader itself gives up."""
        self._limit_s, self._reading_s = _SHARE * timeout_s, max(_SHARE * timeout_s, reading_s + 30.0)
        self._slowest_s, self._began = 0.0, time.monotonic()
        self._record: mmap.mmap | None = None
        if not hasattr(os, "memfd_create"):  # not Linux
            return
        fds = [os.memfd_create("lacuna-heartbeat"), os.memfd_create("lacuna-stacks")]
        os.ftruncate(fds[0], watchdog.RECORD.size)
        self._record = mmap.mmap(fds[0], watchdog.RECORD.size)
        faulthandler.register(watchdog.STACKS_SIGNAL, fds[1], all_threads=True)
        report = run_dir / "stalls" / f"a{attempt:06d}-rank{rank:05d}.txt"
        command = [sys.executable, "-I", "-S", watchdog.__file__, *map(str, (rank, *fds, report, timeout_s))]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # a scheduler sends those to every process
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=fds)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(fds[0])

    def reading(self, step: int) -> None:
        """The batch of step is waited for."""
        self._say(step, "reading images", self._reading_s)

    def agreeing(self, step: int) -> None:
        """The other ranks are waited for."""
        self._say(step, "agreeing with the other processes", self._limit_s)

    def training(self, step: int) -> None:
        """The step itself; the first may compile, so it takes what it takes."""
        self._began = time.monotonic()
        self._say(step, "training", max(self._limit_s, _SLOWEST * self._slowest_s) if self._slowest_s else 0.0)

    def resting(self, step: int) -> None:
        """Whatever else: no limit."""
        self._slowest_s = max(self._slowest_s, time.monotonic() - self._began)
        self._say(step, "writing or evaluating", 0.0)

    @property
    def watchdog_pid(self) -> int | None:
        """The process that watches; None where there is none."""
        return None if self._record is None else self._process.pid

    def close(self) -> None:
        """Nobody watches any more."""
        if self._record is not None:
            faulthandler.unregister(watchdog.STACKS_SIGNAL)
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._record = None

    def _say(self, step: int, doing: str, limit_s: float) -> None:
        if self._record is not None:
            self._record[:] = watchdog.RECORD.pack(step, limit_s, doing.encode())


def stalls_of(run_dir: Path, attempt: int) -> list[str]:
    """The first lines of what watchdogs wrote in an attempt."""
    paths = sorted((run_dir / "stalls").glob(f"a{attempt:06d}-rank*.txt"))
    return [path.read_text(encoding="utf-8", errors="replace").partition("\n")[0] for path in paths]
