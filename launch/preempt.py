"""The wish to stop: a signal or the end of wall time sets a flag, and the trainer acts on it at the next step boundary.

A handler does nothing but set the flag (reliability F3, F4): all ranks agree on it in the step's own host all-reduce.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

_WALL_TIME = "the job's wall time is nearly over"
_ANNOUNCED_S = 600.0  # slurm/train.sbatch asks for the signal 300 s before the end; SLURM may send it a minute earlier
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class StopFlag:
    """Truthy once a signal has come or the deadline is near."""

    def __init__(self, deadline_s: float | None = None, margin_s: float = 120.0, grace_s: float = 30.0) -> None:
        """deadline_s: seconds from now to the end of wall time; of a short one a quarter is kept, not margin_s.
        grace_s: seconds from a signal to the kill."""
        self.reason: str | None = None
        self._grace_s, self._noticed = grace_s, 0.0
        self._end: float | None = None
        if deadline_s is not None:
            self._end, self._margin_s = time.monotonic() + deadline_s, min(margin_s, deadline_s / 4)

    def listen(self) -> None:
        """Takes TERM, USR1, USR2 and INT from now on; a second INT ends the process at once."""
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def ignore(self) -> None:
        """Hears nothing more: this process is leaving, and its exit code, not a signal, says why.

        srun ends the other tasks of a step once the first has left with an error. One that was about to leave with 80
        and died of that TERM would make the step's code 143, which reads as a crash to be tried again.
        """
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def wanted(self) -> bool:
        """Whether this process should save and leave at the next step boundary."""
        if self.reason is None and self._end is not None and time.monotonic() > self._end - self._margin_s:
            self.reason = _WALL_TIME
        return self.reason is not None

    def remaining_s(self) -> float | None:
        """Seconds until this process is killed, as far as it knows. SLURM announces the end of wall time by the same
        signals as a preemption, minutes before. A person's INT is followed by no kill."""
        now = time.monotonic()
        if self._end is not None and (self.reason == _WALL_TIME or self._end - now < _ANNOUNCED_S):
            return max(0.0, self._end - now)
        return max(0.0, self._noticed + self._grace_s - now) if self._noticed else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.reason is None and number != signal.SIGINT:
            self._noticed = time.monotonic()
        self.reason = f"signal {signal.Signals(number).name}"
