"""Numbered attempts at one run: a newer one fences off an older that still lives, and what they published is history.

attempts/000007.json is made with O_EXCL, so two processes never hold one number; attempts/000007.steps lists the steps
that attempt published and the seconds each save took, one a line.
"""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

from pretrain import strict_json
from pretrain.engine import fsops
from pretrain.errors import FencedError

_NAME = re.compile(r"(\d{6})\.json")
_SAVE = re.compile(r"(\d+) (\d+\.\d{3})")


class Attempts:
    """The attempts directory of a run; only rank 0 writes to it."""

    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir / "attempts"

    def open(self, world: int, job: str | None = None) -> int:
        """Takes the next number for this process's job, which the scheduler knows as job."""
        fsops.mkdir(self._dir)
        while True:
            number = self.newest() + 1
            facts = {"attempt": number, "world_size": world, "host": socket.gethostname(), "pid": os.getpid(),
                     "job": job}  # fmt: skip
            try:
                fsops.write(self._dir / f"{number:06d}.json", [json.dumps(facts).encode() + b"\n"])
            except FileExistsError:
                continue
            fsops.fsync_dir(self._dir)
            return number

    def newest(self) -> int:
        """The highest number taken, 0 where there is none."""
        matches = (_NAME.fullmatch(name) for name in fsops.names(self._dir))
        return max((int(match[1]) for match in matches if match), default=0)

    def require(self, mine: int) -> None:
        """Raises FencedError where a newer attempt owns the run."""
        newest = self.newest()
        if newest != mine:
            raise FencedError(
                f"attempt {newest} owns {self._dir.parent} now, and this is attempt {mine}; nothing was published and "
                "this process ends: look for a second job of the same run"
            )

    def owner(self, attempt: int) -> int:
        """The user id that the file system gave to what that attempt wrote."""
        return (self._dir / f"{attempt:06d}.json").stat().st_uid

    def published(self, attempt: int, step: int, seconds: float) -> None:
        """Notes that attempt published the checkpoint of step, and what that took."""
        fsops.append_line(self._dir / f"{attempt:06d}.steps", f"{step} {seconds:.3f}")

    def steps_of(self, attempt: int) -> list[int]:
        """Steps that attempt published."""
        return [step for step, _ in self._saves_of(attempt)]

    def last_seconds(self) -> float | None:
        """What the newest save took; None for a run without history."""
        for number in range(self.newest(), 0, -1):
            for _, seconds in reversed(self._saves_of(number)):
                return seconds
        return None

    def last_published(self) -> int | None:
        """The highest step any attempt published; None for a run without history."""
        steps = [step for number in range(1, self.newest() + 1) for step in self.steps_of(number)]
        return max(steps, default=None)

    def without_progress(self, job: str) -> int:
        """How many of the newest attempts in a row were job's and published nothing: a requeue storm shows here."""
        count = 0
        for number in range(self.newest(), 0, -1):
            if self.steps_of(number) or self._job_of(number) != job:
                break
            count += 1
        return count

    def _saves_of(self, attempt: int) -> list[tuple[int, float]]:
        path = self._dir / f"{attempt:06d}.steps"
        if not path.exists():
            return []
        lines = fsops.read(path).decode("ascii", "replace").splitlines()
        found = (_SAVE.fullmatch(line) for line in lines)  # a kill leaves a part of the last
        return [(int(match[1]), float(match[2])) for match in found if match]

    def _job_of(self, number: int) -> str | None:
        try:
            facts = strict_json.loads(fsops.read(self._dir / f"{number:06d}.json"))
        except (OSError, ValueError):  # one that was killed while it took its number
            return None
        return facts.get("job") if isinstance(facts, dict) else None
