"""What surrounds a run and is not part of its config: who it is among its processes, and who may ask it to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pretrain.engine.distributed import Place
from pretrain.tracking.access import WandbAccess


class Stop(Protocol):
    """Whoever may ask the run to end early: launch/preempt.py."""

    reason: str | None

    def wanted(self) -> bool: ...

    def remaining_s(self) -> float | None: ...


@dataclass(frozen=True)
class Around:
    """Made by whoever starts the run: launch/start.py."""

    place: Place
    stop: Stop
    wandb: WandbAccess
    snapshot: dict[str, object]  # of the environment, for the run directory
    fresh: bool = False
    allow_change: bool = False
    job: str | None = None  # the scheduler's name for what started this process
    say: Callable[[str], None] = print  # the start-up summary, on rank 0
