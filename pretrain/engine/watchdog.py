"""A small process beside each rank: where the rank makes no progress it writes down why, and ends it (reliability F10).

The rank keeps a record of what it does in memory that both can see (pretrain/engine/heartbeat.py). When that stands
still for too long, this process asks the rank for the stacks of its threads, looks at its processes in /proc, and
writes all of it into the run directory. A rank that only waits for the others is left to its collective's own timeout;
one that stands still by itself is killed, so that the job ends and is started again.

It is run as a file, by an interpreter that imports nothing of this project: it must not hang with what it watches. Time
is counted in its own polls, so that a job that SLURM or Ctrl-Z stops, this process with it, is not taken for a hanging
one; a rank that is stopped alone is, whatever it does, once its peers have given up on it.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import struct
import sys
import time
from dataclasses import dataclass

RECORD = struct.Struct("=Qd40s")  # step, seconds that this may take (0: any number), what it is
STACKS_SIGNAL = signal.SIGRTMIN + 3
_POLL_S = 0.5
_PATIENCE_S = 60.0  # beyond its collectives' timeout, then also a rank that waits for others is ended
_STACKS_S = 3.0  # that a rank has to write its stacks
_WAITING = ("distributed_c10d.py", "deepspeed/comm")  # files of a thread that is inside a collective


@dataclass(frozen=True)
class Watched:
    """Whom this process watches, and what to do about it; the command line, in this order."""

    rank: int
    record_fd: int
    stacks_fd: int
    report: str  # path of the file to write
    timeout_s: float  # of collectives


def main(arguments: list[str]) -> None:
    """Watches until the parent is gone."""
    watched = Watched(*(kind(text) for kind, text in zip((int, int, int, str, float), arguments, strict=True)))
    pid = os.getppid()
    record = mmap.mmap(watched.record_fd, RECORD.size, mmap.MAP_SHARED, mmap.PROT_READ)
    before, stood_s, told = b"", 0.0, b""
    while os.getppid() == pid:
        now = record[:]
        limit_s = RECORD.unpack(now)[1] or float("inf")
        stood_s = stood_s + _POLL_S if now == before else 0.0
        before = now
        over = stood_s > limit_s or (stood_s > watched.timeout_s and _is_stopped(pid))
        if over and (now != told or stood_s > watched.timeout_s + _PATIENCE_S):
            told = now
            if _report(watched, pid, now, stood_s):
                os.kill(pid, signal.SIGKILL)
                return
        if select.select([0], [], [], _POLL_S)[0]:
            return


def _report(watched: Watched, pid: int, record: bytes, stood_s: float) -> bool:
    """Writes what is known of the standstill; whether the rank is to be ended."""
    step, _, doing = RECORD.unpack(record)
    what = doing.rstrip(b"\0").decode()
    stopped = _is_stopped(pid)
    stacks = "" if stopped else _stacks(watched, pid)
    waits = not stopped and any(name in stacks for name in _WAITING)
    ends = not waits or stood_s > watched.timeout_s + _PATIENCE_S
    found = "waits for the other processes" if waits else "is stopped" if stopped else "makes no progress"
    line = f"rank {watched.rank} {found} at step {step}, while {what}, since {stood_s:.0f} s"
    lines = [line, "", *(_process(each) for each in _family(pid)), "", stacks or "it wrote no stacks when asked"]
    try:
        os.makedirs(os.path.dirname(watched.report), exist_ok=True)
        with open(watched.report, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        where = f"its stacks are in {watched.report}"
    except OSError as error:
        where = f"its stacks could not be written ({error})"
    if ends:
        print(f"E75 {line}; it is ended, {where}; run the same command again to go on", file=sys.stderr, flush=True)
    return ends


def _stacks(watched: Watched, pid: int) -> str:
    """What the rank's handler, which needs no interpreter, writes of its threads."""
    known = os.fstat(watched.stacks_fd).st_size
    os.kill(pid, STACKS_SIGNAL)
    size, deadline = known, time.monotonic() + _STACKS_S
    while time.monotonic() < deadline:
        time.sleep(0.2)
        grown = os.fstat(watched.stacks_fd).st_size
        if grown > known and grown == size:
            break
        size = grown
    return os.pread(watched.stacks_fd, 1 << 20, known).decode("utf-8", "replace")


def _family(pid: int) -> list[int]:
    """pid and all processes below it: loader workers, the mirror of W&B."""
    found = [pid]
    for parent in found:
        try:
            with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
                found += [child for child in map(int, file.read().split()) if child != os.getpid()]
        except (OSError, ValueError):
            continue
    return found


def _process(pid: int) -> str:
    """One line: what a process is, how it stands, and the file it is in a system call on."""
    return f"process {pid}: {_status(pid)}{_busy_with(pid)}, {_read(f'/proc/{pid}/cmdline')[:120]}"


def _is_stopped(pid: int) -> bool:
    return _status(pid).startswith("T")


def _status(pid: int) -> str:
    """As /proc has it: R (running), S (sleeping), D (disk sleep), T (stopped) ..."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("State:"):
            return line.partition(":")[2].strip()
    return "gone"


def _busy_with(pid: int) -> str:
    """The file or pipe that is the first argument of the system call a process is in, where that is to be seen."""
    fields = _read(f"/proc/{pid}/syscall").split()
    try:
        return f", in a system call on {os.readlink(f'/proc/{pid}/fd/{int(fields[1], 16)}')}"
    except (IndexError, ValueError, OSError):
        return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().replace("\0", " ").strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main(sys.argv[1:])
