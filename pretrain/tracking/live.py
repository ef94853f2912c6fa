"""The one live line of a run in a terminal, and plain lines, now and then, where there is no terminal.

The line is redrawn by a carriage return. When the terminal was made narrower in between, tmux and most terminals have
wrapped the old line into several rows; as many are cleared as the old text takes at the new width.
"""

from __future__ import annotations

import os
import sys
import time
from typing import IO

from pretrain.tracking.lines import Record

_PLAIN_EVERY_S = 10.0
_REDRAW_EVERY_S = 0.1


class StatusLine:
    """One line that is replaced in place on a terminal; elsewhere printed at most every few seconds."""

    def __init__(self, stream: IO[str] | None = None, plain_every_s: float = _PLAIN_EVERY_S):
        self._stream = stream or sys.stdout
        self.is_terminal = self._stream.isatty()
        self._every_s = _REDRAW_EVERY_S if self.is_terminal else plain_every_s
        self._shown_at: float | None = None
        self._shown = ""  # on the terminal now
        self._text = ""  # the newest, shown or not

    def show(self, text: str, *, final: bool = False) -> None:
        """Replaces the line by text. Too soon after the last one nothing is drawn, unless the line is final."""
        self._text = text
        now = time.monotonic()
        if not final and self._shown_at is not None and now - self._shown_at < self._every_s:
            return
        self._shown_at = now
        self._write(text)

    def say(self, text: str) -> None:
        """Prints a line of its own above the live one."""
        self._stream.write(self._clear() + text + "\n")
        self._shown = ""
        if self.is_terminal and self._text:
            self._write(self._text)
        self._stream.flush()

    def close(self) -> None:
        """Leaves the newest text standing and goes to the next line; further calls are harmless."""
        if self._text != self._shown:
            self._write(self._text)
        if self.is_terminal and self._shown:
            self._stream.write("\n")
            self._stream.flush()
        self._text = self._shown = ""

    def _write(self, text: str) -> None:
        if self.is_terminal:
            text = _fit(text, max(_width(self._stream) - 1, 1))
            self._stream.write(self._clear() + text)
        else:
            self._stream.write(text + "\n")
        self._shown = text if self.is_terminal else self._text
        self._stream.flush()

    def _clear(self) -> str:
        if not self.is_terminal or not self._shown:
            return ""
        rows_above = (len(self._shown) - 1) // _width(self._stream)
        return "\r" + (f"\x1b[{rows_above}A" if rows_above else "") + "\x1b[J"


class LiveLine:
    """Step, loss, speed, share of time spent waiting for data, and time left of a run."""

    def __init__(self, total_steps: int, stream: IO[str] | None = None, plain_every_s: float = _PLAIN_EVERY_S):
        self._total_steps = total_steps
        self._line = StatusLine(stream, plain_every_s)
        self._last: tuple[int, float] | None = None
        self._seconds_per_step: float | None = None

    def update(self, record: Record) -> None:
        """Shows a step record as metrics.jsonl has it."""
        step = int(record["step"])
        self._time(step)
        self._line.show(self._text(step, record), final=step >= self._total_steps)

    def say(self, text: str) -> None:
        """Prints a line without disturbing the live one."""
        self._line.say(text)

    def close(self) -> None:
        """Leaves the last line standing."""
        self._line.close()

    def _time(self, step: int) -> None:
        now = time.monotonic()
        if self._last is not None and step > self._last[0]:
            took = (now - self._last[1]) / (step - self._last[0])
            known = self._seconds_per_step
            self._seconds_per_step = took if known is None else 0.9 * known + 0.1 * took
        self._last = step, now

    def _text(self, step: int, record: Record) -> str:
        total, loss, rate = self._total_steps, record.get("loss"), record.get("images_per_s")
        parts = [f"step {step:{len(str(total))}d}/{total} {100 * step / max(total, 1):3.0f}%"]
        parts.append(f"loss {loss:.4f}" if isinstance(loss, float | int) else "loss not finite")
        if rate is not None:
            parts.append(f"{amount(rate)} images/s")
        if record.get("data_wait") is not None:
            parts.append(f"data wait {100 * record['data_wait']:.0f}%")
        if step < total and self._seconds_per_step is not None:
            parts.append(f"{duration(self._seconds_per_step * (total - step))} left")
        if record.get("mfu") is not None:
            parts.append(f"MFU {100 * record['mfu']:.0f}%")
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people say them: 0:42, 12:07, 3:05:09, 2 d 4 h."""
    whole = max(round(seconds), 0)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days >= 2:
        return f"{days} d {hours % 24} h"
    return f"{hours}:{minutes % 60:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def amount(value: float) -> str:
    """A number in four characters or so: 3.2, 812, 14.5k, 2.1M."""
    for limit, divisor, unit in ((1e4, 1, ""), (1e6, 1e3, "k"), (float("inf"), 1e6, "M")):
        if abs(value) < limit:
            scaled = value / divisor
            return f"{scaled:.1f}{unit}" if abs(scaled) < 10 or unit else f"{scaled:.0f}"
    return str(value)


def _fit(text: str, width: int) -> str:
    """text without the parts at its end that do not fit; parts are separated by two spaces."""
    if len(text) <= width:
        return text
    whole = text[: width + 1].rfind("  ")
    return text[:whole].rstrip() if whole > 0 else text[:width]


def _width(stream: IO[str]) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
