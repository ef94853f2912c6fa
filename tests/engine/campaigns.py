"""Campaigns over engine and checkpoints: each hands its cases to forked ranks and counts what they found."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from tests.campaign import Counts, counted
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


def power_loss_campaign(number: int, first: int = 0, *, forgetful: bool = False) -> Counts:
    """G2: so many distinct states that a power loss may leave (tests/engine/crash_model.py), of saves, prunes and a
    resume on one rank. Each must give the last checkpoint promised, or the one in the making, and its lines."""
    with tempfile.TemporaryDirectory(prefix="power-") as folder:
        kwargs = {"folder": folder, "number": number, "first": first, "forgetful": forgetful}
        return _all("tests/engine/power_cases.py:power_losses", 1, **kwargs)[0]


def storage_campaign(number: int, first: int = 0) -> Counts:
    """G12: storage of one of two ranks fails in one way a case, at stages 0 and 3 in turn: training goes on, whatever
    is published is whole, the next save works and no line is missing."""
    with _run_dir() as run_dir:
        kwargs = {"run_dir": run_dir, "stage": 0 if first % 2 else 3, "number": number, "first": first}
        return _all("tests/engine/storage_cases.py:storage_faults", 2, **kwargs)[0]


def poison_campaign(number: int, first: int = 0) -> Counts:
    """G15: a loss is made NaN or a gradient infinite on one of two ranks, at each step, stage and precision: the step
    is skipped by all, weights and average are those of a run without it, and nothing stored is not finite."""
    every = product((2, 0, 3, 1), (1, 0), ("loss", "gradient"), ("fp32", "bf16"), range(4))
    combos = [[stage, precision, poison, step, rank] for step, rank, poison, precision, stage in every]
    chosen, failures, values = combos[first : first + number], [], 0
    with _run_dir() as run_dir:
        for found in _all("tests/engine/cases.py:poisoned", 2, run_dir=run_dir, combos=chosen):
            for (*_, step, _), (name, have) in zip(chosen, found.items()):
                same = have["weights"][0] == have["weights"][1] and have["ema"][0] == have["ema"][1]
                flags = [float(place == step) for place in range(4)]
                values += have["values"]
                if not same or have["flags"] != flags or have["updates"] != [3, 3] or have["not_finite"]:
                    failures.append(f"{name}: {have}")
    return counted(len(chosen), failures, all_cases=len(combos), stored_values=values)
