"""Goal G16 in numbers: payloads and mutated pickles, each through the door it is meant for."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.campaign import Counts, counted
from tests.security import doors

_BAD = ("executed", "crashed", "unexpected")


def payload_campaign(number: int, first: int = 0) -> Counts:
    """All payloads at once, as the first slice; there is one of each."""
    if first:
        return counted(0, [])
    with tempfile.TemporaryDirectory() as folder:
        found = doors.all_payloads(Path(folder) / "pocs")
    return counted(found["pocs"], _faults(found), executed=found["executed"], all_cases=found["pocs"])


def pickle_campaign(number: int, first: int = 0) -> Counts:
    """Mutated pickles first to first + number - 1 through the door of weights."""
    with tempfile.TemporaryDirectory() as folder:
        found = doors.mutants(Path(folder) / "mutants", first, number)
    return counted(found["fuzzed_pickles"], _faults(found), executed=found["executed"])


def _faults(found: dict[str, int]) -> list[str]:
    return [f"{found[name]} {name}" for name in _BAD if found.get(name)]
