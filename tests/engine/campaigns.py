"""Campaigns over engine and checkpoints: each hands its cases to forked ranks and counts what they found."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.campaign import Counts
from tests.zygote import shared

CHECKPOINTS = "tests/engine/checkpoint_cases.py"


def corruption_campaign(number: int, first: int = 0) -> Counts:
    """G6: the newest checkpoint of a two-rank run is damaged in one way a case; it must be refused, and a restore must
    set it aside and give the older one, untouched."""
    with _run_dir() as run_dir:
        _all(f"{CHECKPOINTS}:saved", 2, run_dir=run_dir)
        return _all(f"{CHECKPOINTS}:corruptions", 1, run_dir=run_dir, number=number, first=first)[0]


@contextmanager
def _run_dir() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        yield str(Path(folder, "run"))


def _all(target: str, world: int, timeout_s: float = 600.0, **kwargs: Any) -> list[Any]:
    """What each rank returned; all must have ended well."""
    return [outcome.value for outcome in shared().run(target, world, kwargs, timeout_s)]
