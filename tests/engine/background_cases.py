"""What the tests of checkpoints in the background, and of saves that would come too late, run in forked ranks."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from pretrain.engine import checkpoint, fsops
from pretrain.engine.checkpoint import Checkpoints
from pretrain.engine.distributed import Place
from pretrain.engine.settings import CheckpointConfig
from tests.engine.cases import FRESH, digest
from tests.engine.checkpoint_cases import before_the_third, forked, hashes_of, message, opened, relocated, restored


class Gate:
    """Holds every write of a rank's file until it is opened."""

    def __init__(self) -> None:
        self.open, self.waiting = threading.Event(), threading.Event()
        fsops.HOOK.at = self._at

    def _at(self, name: str, path: Path) -> None:
        if name == "before chunk" and path.name.startswith("rank"):
            self.waiting.set()
            assert self.open.wait(60)


def trains_on(place: Place, run_dir: str, stage: int) -> dict[str, Any]:
    """Step 1 is written while steps 2 and 3 are made; then step 3 beside it, at once."""
    job, checkpoints = opened(place, run_dir, stage, keep=9)
    job.step(0)
    at_one = digest(job.engine.weights())
    gate = Gate()
    checkpoints.start(replace(FRESH, step=1))
    assert gate.waiting.wait(60)
    flying = not checkpoints.written and checkpoints.last_step is None
    job.step(1)
    job.step(2)
    at_three = digest(job.engine.weights())
    gate.open.set()
    path = checkpoints.finish()
    assert path is not None and checkpoints.written and checkpoints.finish() is None
    assert checkpoints.restore(FRESH).step == 1
    restored_at_one = digest(job.engine.weights())
    job.step(1)
    job.step(2)
    return {"flying": flying, "same": restored_at_one == at_one, "goes on": digest(job.engine.weights()) == at_three}


def same_bytes(place: Place, run_dir: str) -> dict[str, Any]:
    """One step saved both ways: the hashes of its files."""
    job, checkpoints = opened(place, run_dir)
    job.step(0)
    now = checkpoints.save(replace(FRESH, step=1))
    checkpoints.start(replace(FRESH, step=2))
    later = checkpoints.finish()
    assert now is not None and later is not None
    return {"now": ranks_of(now), "later": ranks_of(later)}


def ranks_of(path: Path) -> dict[str, str]:
    """Hashes of the ranks' files."""
    return {name: value for name, value in hashes_of(path).items() if name.startswith("rank")}


def one_at_a_time(place: Place, run_dir: str) -> list[int | None]:
    """Three are started one after the other, and the last is saved at once: what stands after each."""
    job, checkpoints = opened(place, run_dir)
    stands = []
    for step in (1, 2, 3):
        job.step(step)
        checkpoints.start(replace(FRESH, step=step))
        stands.append(checkpoints.last_step)
    checkpoints.save(replace(FRESH, step=4))
    return [*stands, checkpoints.last_step]


def broken_storage(place: Place, run_dir: str) -> dict[str, Any]:
    """Writes that fail in the thread of rank 1: told at finish on all, nothing left of them, fatal after three."""
    job, checkpoints = opened(place, run_dir, 1)
    told: list[str] = []
    checkpoints.on_event = lambda kind, **facts: told.append(kind)
    job.step(0)
    checkpoints.save(replace(FRESH, step=1))
    fsops.HOOK.at = _no_space if place.rank == 1 else None
    checkpoints.start(replace(FRESH, step=2))
    failed = checkpoints.finish() is None
    fsops.HOOK.at = None
    checkpoints.start(replace(FRESH, step=3))
    worked = checkpoints.finish() is not None
    fsops.HOOK.at = _no_space if place.rank == 1 else None
    for step in (4, 5):
        checkpoints.start(replace(FRESH, step=step))
    checkpoints.start(replace(FRESH, step=6))
    fatal = message(checkpoints.finish)
    names = sorted(p.name for p in Path(run_dir, "ckpt").iterdir())
    return {"failed": failed, "worked": worked, "told": told, "fatal": fatal, "names": names}


def _no_space(name: str, path: Path) -> None:
    if name == "before fsync" and path.name.startswith("rank"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def kill_points(place: Place, run_dir: str) -> dict[str, Any]:
    """Kills a process at every operation of a checkpoint in the background: the run is whole at step 2 or 3."""
    job, checkpoints, at = before_the_third(place, run_dir)
    base, steps, reached = Path(run_dir), [], 0
    for index in count():
        copy = base.with_name(f"{base.name}-{index}")
        shutil.copytree(base, copy, symlinks=True)
        status = forked(lambda copy=copy, index=index: _killed(copy, checkpoints, index))
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        reached += 1
        steps.append(os.waitstatus_to_exitcode(forked(lambda copy=copy: restored(copy, job, at))))
        shutil.rmtree(copy)
    return {"points": reached, "steps": sorted(set(steps))}


def _killed(copy: Path, checkpoints: Checkpoints, index: int) -> int:
    moved, seen, chunks = relocated(checkpoints, copy, copy), count(), count()

    def at(name: str, path: Path) -> None:
        of_many = name == "before chunk" and next(chunks) % 9
        if not of_many and next(seen) == index:
            os.kill(os.getpid(), signal.SIGKILL)

    fsops.HOOK.at = at
    moved.start(replace(FRESH, step=3))
    assert moved.finish() is not None
    return 0


def deadlines(place: Place, run_dir: str) -> dict[str, Any]:
    """Saves that take a second, with more and with less time left, known to one rank; and in the next attempt."""
    job, checkpoints = opened(place, run_dir)
    told: list[dict[str, Any]] = []
    checkpoints.on_event = lambda kind, **facts: told.append({"kind": kind, **facts})
    job.step(0)
    fsops.HOOK.at = _a_second
    unknown = checkpoints.save(replace(FRESH, step=1), 0.1 if place.rank else None) is not None  # nothing measured yet
    late = checkpoints.save(replace(FRESH, step=2), 1.0 if place.rank else None) is None
    stands = sorted(p.name for p in Path(run_dir, "ckpt").iterdir())
    again = Checkpoints(Path(run_dir), CheckpointConfig(), job.engine)
    assert again.restore(FRESH).step == 1
    still_late = again.save(replace(FRESH, step=2), None if place.rank else 1.2) is None
    in_time = again.save(replace(FRESH, step=2), 60.0) is not None
    return {"unknown": unknown, "late": late, "still_late": still_late, "in_time": in_time, "told": told,
            "stands": stands}  # fmt: skip


def _a_second(name: str, path: Path) -> None:
    if name == "before fsync" and path.name.startswith("rank"):
        time.sleep(1.0)


def slow(place: Place, run_dir: str) -> list[str]:
    """A write that hangs is told of once, and training goes on."""
    job, checkpoints = opened(place, run_dir)
    told: list[str] = []
    checkpoints.on_event = lambda kind, **facts: told.append(kind)
    gate, checkpoint._SLOW_S = Gate(), 0.0
    checkpoints.start(replace(FRESH, step=1))
    assert gate.waiting.wait(60)
    for step in range(3):
        assert not checkpoints.written
        job.step(step)
    gate.open.set()
    checkpoints.finish()
    return told
