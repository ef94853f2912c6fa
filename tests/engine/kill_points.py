"""Every point of a save, prune and restore, killed: goal G2, on two ranks and with every set of victims."""

from __future__ import annotations

import random
import shutil
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from tests.campaign import Counts, counted
from tests.zygote import shared

CASES = "tests/engine/kill_cases.py"
WORLD = 2
VICTIMS = ([0], [1], [0, 1])
Point = tuple[str, int, int, list[int]]  # phase, whose operation, its number, who dies


def kill_campaign(number: int, first: int = 0) -> Counts:
    """Kills points first to first + number - 1, each in two fresh ranks; then a new attempt must find the old or the
    new checkpoint bit for bit, and go on."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        base = Path(folder, "base")
        found = _ranks("prepared", run_dir=str(base))[0]
        every = points(found["operations"])
        chosen = every[first : first + number]
        copies, survivors = [], 0
        for place, point in enumerate(chosen):
            copies.append(Path(folder, f"case-{place}"))
            survivors += _killed(base, copies[-1], point)
        failures = _judged(copies, chosen, found)
    names = {name for ranks in found["operations"].values() for rank in ranks for name in rank}
    return counted(len(chosen), failures, all_cases=len(every), all_operations=len(names), peers_that_left=survivors)


def points(operations: dict[str, list[list[str]]]) -> list[Point]:
    """Every operation of every rank with every set of victims, in an order that never changes. Of the writes of one
    file every seventh counts."""
    found = []
    for phase, ranks in operations.items():
        for rank, names in enumerate(ranks):
            chosen = [i for i, name in enumerate(names) if name != "before chunk" or i % 7 == 0]
            found += [(phase, rank, index, victims) for index, victims in product(chosen, VICTIMS)]
    random.Random("kill points").shuffle(found)
    return found


def _killed(base: Path, copy: Path, point: Point) -> int:
    """Runs one case in copy; how many survivors left by themselves. AssertionError where one hung or did otherwise."""
    phase, by, index, victims = point
    shutil.copytree(f"{base}-{phase}", copy, symlinks=True)
    kwargs = {"run_dir": str(copy), "phase": phase, "by": by, "index": index, "victims": victims}
    outcomes = shared().run(f"{CASES}:killed", WORLD, kwargs, 90)
    for rank, outcome in enumerate(outcomes):
        assert outcome.code == (-9 if rank in victims else 75), (point, rank, outcome.code, outcome.output[-3000:])
    return sum(outcome.code != -9 for outcome in outcomes)


def _judged(copies: list[Path], chosen: list[Point], found: dict[str, Any]) -> list[str]:
    """The points after which a run was not whole. A save leaves step 2 or 3, a restore over a damaged step 2 step 1."""
    failures = []
    for phase, steps in (("save", [2, 3]), ("load", [1])):
        mine = [(copy, point) for copy, point in zip(copies, chosen) if point[0] == phase]
        if mine:
            run_dirs = [str(copy) for copy, _ in mine]
            for said in zip(mine, *_ranks("verdicts", run_dirs=run_dirs, at=found["at"], steps=steps)):
                (_, point), *ranks = said
                failures += [f"{point}: {word}" for word in ranks if word][:1]
    return failures


def _ranks(name: str, **kwargs: Any) -> list[Any]:
    return [outcome.value for outcome in shared().run(f"{CASES}:{name}", WORLD, kwargs, 600)]
