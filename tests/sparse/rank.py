"""What a forked rank of a sparse run does."""

from __future__ import annotations

from typing import Any


def rank(place: Any, arguments: list[str], stop_after: int | None = None) -> int:
    """`lacuna` with these arguments; stop_after: killed by itself after so many steps of this attempt."""
    import os
    import signal

    import pretrain.train as loop
    from launch.cli import main

    if stop_after is not None:
        train_step, made = loop.train_step, []

        def step(*rest: Any) -> Any:
            if len(made) == stop_after:
                os.kill(os.getpid(), signal.SIGKILL)
            made.append(1)
            return train_step(*rest)

        loop.train_step = step
    raise SystemExit(main(arguments))
