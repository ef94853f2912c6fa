"""Packs a folder whole, then once for every kind of moment, SIGKILLed over and over at such moments until it is done.

    python -m tests.data.pack_kills SOURCE OUT       # prints how often each was killed

The packages are imported once and every attempt is forked; a child counts its own images, writes, fsyncs or renames and
kills itself at the n-th: before the call takes effect, at every second attempt after it."""

import json
import os
import signal
import sys
from pathlib import Path

from pretrain.data.pack import pack

SETTINGS = {"shard_mb": 0.05, "val_share": 0.1, "workers": 2}
# at which call an attempt dies: growing, so that it always comes further than the one before
PAIRS = (1, 1, 2, 2, 3, 3, 4, 4, 5, 5)
MOMENTS = {"image": (1, 5, 30, 31, 60, 90), "write": (3, 9, 20, 30, 40), "fsync": PAIRS, "replace": PAIRS}


def main(source: Path, out: Path) -> None:
    pack(source, out / "whole", **SETTINGS)
    kills = {}
    for kind, moments in MOMENTS.items():
        kills[kind] = 0
        for attempt, number in enumerate(moments):
            kills[kind] += attempt_killed(source, out / kind, kind, number, after=attempt % 2 == 1)
        assert attempt_killed(source, out / kind, "none", 0, after=False) == 0
    print(json.dumps(kills))


def attempt_killed(source: Path, out: Path, kind: str, number: int, after: bool) -> int:
    """1 where the attempt was killed, 0 where it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            arm(kind, number, after)
            pack(source, out, **SETTINGS, on_progress=on_image(number) if kind == "image" else None)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return 1
    assert os.WEXITSTATUS(status) == 0, f"an attempt at {kind} {number} failed"
    return 0


def on_image(number: int):
    seen = [0]

    def count(done: int, total: int) -> None:
        seen[0] += 1
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def arm(kind: str, number: int, after: bool) -> None:
    """The number-th call of this kind kills the process."""
    left = [number]

    def dying(real):
        def call(*arguments, **more):
            left[0] -= 1
            if left[0] == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **more)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    if kind == "fsync":
        os.fsync = dying(os.fsync)
    elif kind == "replace":
        os.replace = dying(os.replace)
    elif kind == "write":  # in the middle of a shard
        from pretrain.data import pack as packing

        packing.TarWriter.write = dying(packing.TarWriter.write)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
