"""Progress of a long command (packing, indexing, evaluation): how much is done, how fast, how long still."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import IO

from pretrain.tracking.live import StatusLine, amount, duration

_BAR = 20  # characters


class Progress:
    """A context manager around long work. It writes to stderr, so that a command's result can be piped on.

    with Progress(len(paths), "images", "packing") as progress:
        ...
        progress.advance()
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        description: str,
        stream: IO[str] | None = None,
        plain_every_s: float = 10.0,
    ):
        """total: None where it is not known. unit: what is counted, in the plural. done: how much is already there."""
        self.total = total
        self.done = 0
        self._unit = unit
        self._description = description
        self._line = StatusLine(stream or sys.stderr, plain_every_s)
        self._began = time.monotonic()
        self._skipped = 0

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.done or kind is None:
            self._line.show(self._text(ended=kind is None), final=True)
        self._line.close()

    def advance(self, number: int = 1) -> None:
        """Counts so many more as done."""
        self.done += number
        self._line.show(self._text(ended=False))

    def skip(self, number: int) -> None:
        """Counts so many as done before this command began; they say nothing about its speed."""
        self.done += number
        self._skipped += number

    def say(self, text: str) -> None:
        """Prints a line without disturbing the progress line."""
        self._line.say(text)

    def _text(self, *, ended: bool) -> str:
        seconds = time.monotonic() - self._began
        rate = (self.done - self._skipped) / max(seconds, 1e-9)
        if self.total is None:
            counts = f"{self.done} {self._unit}"
        else:
            share = min(self.done / self.total, 1.0) if self.total else 1.0
            filled = int(share * _BAR)
            counts = f"[{'#' * filled}{'.' * (_BAR - filled)}] {self.done}/{self.total} {self._unit}"
        parts = [f"{self._description} {counts}"]
        if self.done > self._skipped:
            parts.append(f"{amount(rate)} {self._unit}/s")
        if ended:
            parts.append(f"in {duration(seconds)}")
        elif self.total is not None and rate > 0:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        return "  ".join(parts)
