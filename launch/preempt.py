"""The wish to stop: a signal or the end of wall time sets a flag, and the trainer acts on it at the next step boundary.

A handler does nothing but set the flag (reliability F3, F4): all ranks agree on it in the step's own host all-reduce.
"""

from __future__ import annotations

import signal
import time
from types import FrameType


class StopFlag:
    """Truthy once a signal has come or the deadline is near."""

    def __init__(self, deadline_s: float | None = None, margin_s: float = 120.0) -> None:
        self.reason: str | None = None
        self._deadline = None if deadline_s is None else time.monotonic() + max(0.0, deadline_s - margin_s)

    def listen(self) -> None:
        """Takes TERM, USR1, USR2 and INT from now on; a second INT ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._note)

    def wanted(self) -> bool:
        """Whether this process should save and leave at the next step boundary."""
        if self.reason is None and self._deadline is not None and time.monotonic() > self._deadline:
            self.reason = "the job's wall time is nearly over"
        return self.reason is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = f"signal {signal.Signals(number).name}"
