"""What forked ranks do while their storage fails: every kind of fault, on either rank, at every operation of a save."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from pretrain.engine import fsops
from pretrain.engine.agree import gather_json
from pretrain.engine.checkpoint import Checkpoints
from pretrain.engine.commit import verify
from pretrain.engine.distributed import Place
from pretrain.engine.settings import CheckpointConfig
from pretrain.tracking.metrics import Tracker
from pretrain.tracking.settings import TrackingConfig
from tests.campaign import Counts, counted
from tests.engine.cases import FRESH, Job, make
from tests.engine.checkpoint_cases import hashes_of, message, private_tmpfs

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
LINES = ("metrics", "ledger", "journal")  # files whose lines a checkpoint waits for
Fault = tuple[int, int | str, int, bool]  # rank, operation of a save or file of lines, error, whether it stays so


class Run:
    """A two-rank run that saves when it is told to."""

    def __init__(self, place: Place, run_dir: str, stage: int) -> None:
        self.rank, self.run_dir = place.rank, Path(run_dir)
        self.job: Job = make(place, stage, "fp32", run_dir)
        self.checkpoints = Checkpoints(self.run_dir, CheckpointConfig(), self.job.engine)
        self.checkpoints.restore(FRESH)
        self.warnings: list[str] = []
        self.tracker = Tracker(self.run_dir, {}, TrackingConfig(wandb="off"), is_main=place.rank == 0,
                               warn=self.warnings.append)  # fmt: skip
        self.checkpoints.on_event, self.checkpoints.before_save = self.tracker.event, self.tracker.sync
        self.step = 0

    def train_and_save(self) -> Path | None:
        """One step with its lines, then a save."""
        self.step += 1
        self.job.step(self.step)
        self.tracker.log([{"step": self.step}])
        self.tracker.ledger([{"step": self.step, "key": "x"}])
        return self.checkpoints.save(replace(FRESH, step=self.step))


def storage_faults(place: Place, run_dir: str, stage: int, number: int, first: int) -> Counts:
    """Faults first to first + number - 1, one a save, each followed by a save that must work: a campaign's counts."""
    run = Run(place, run_dir, stage)
    for _ in range(4):
        run.train_and_save()
    names: list[str] = []
    fsops.HOOK.at = lambda name, path: names.append(name)
    run.train_and_save()
    fsops.HOOK.at = None
    every = faults(gather_json(names))
    failures, lost = [], 0
    for fault in every[first : first + number]:
        said, saved = meet(run, fault)
        lost += not saved
        failures += [f"stage {stage}, {fault}: {word}" for word in gather_json(said) if word][:1]
    tried = len(every[first : first + number])
    ends = {"all_cases": first + tried} if tried < number else {}  # stages differ in their number of operations
    return counted(tried, failures, checkpoints_not_made=lost, **ends)


def faults(operations: list[list[str]]) -> list[Fault]:
    """Every operation of every rank with every error, in turn once and for the rest of the save; and rank 0's lines."""
    found: list[Fault] = []
    for rank, names in enumerate(operations):
        refusable = [i for i, name in enumerate(names) if name.startswith("before") and name != "before remove"]
        chosen = [i for i in refusable if names[i] != "before chunk" or i % 7 == 0]
        found += [(rank, index, error, stays) for index, error, stays in product(chosen, ERRORS, (False, True))]
    found += [(0, name, error, True) for name, error in product(LINES, ERRORS)]
    random.Random("faults").shuffle(found)
    return found


def meet(run: Run, fault: Fault) -> tuple[str, bool]:
    """Trains a step and saves under fault, then again without: what is wrong, "" for nothing; whether it was saved."""
    rank, where, error, stays = fault
    before = standing(run.run_dir) if run.rank == 0 else {}
    undo = break_lines(run.tracker, str(where), error) if isinstance(where, str) and run.rank == 0 else None
    if run.rank == rank and isinstance(where, int):
        fsops.HOOK.at = failing(where, error, stays)
    saved = run.train_and_save()
    fsops.HOOK.at = None
    if undo:
        undo()
    said = wrong(run, before) if run.rank == 0 else ""
    if run.train_and_save() is None:
        return "the next save does not work", bool(saved)
    if run.rank == 0 and not said:
        lines = (run.run_dir / "metrics.jsonl").read_text().splitlines()
        said = "" if len(lines) == run.step else f"{len(lines)} lines of {run.step} steps"
    return said, bool(saved)


def wrong(run: Run, before: dict[str, dict[str, str]]) -> str:
    """What a fault left that should not be: a damaged checkpoint, or one that does not verify."""
    after = standing(run.run_dir)
    for name, hashes in before.items():
        if after.get(name, hashes) != hashes:
            return f"{name} was touched"
    for name in after:
        verify(run.run_dir / "ckpt" / name)
    return "" if len(after) >= 2 else f"only {sorted(after)} stand"


def standing(run_dir: Path) -> dict[str, dict[str, str]]:
    """Every published checkpoint with the hashes of its files."""
    return {p.name: hashes_of(p) for p in Path(run_dir, "ckpt").iterdir() if not p.name.startswith(".")}


def failing(index: int, error: int, stays: bool) -> Callable[[str, Path], None]:
    """A hook that fails the operation number index, and where it stays so every write after it."""
    count = iter(range(10**9))

    def at(name: str, path: Path) -> None:
        here = next(count)
        if here == index or (stays and here > index and name in WRITES):
            raise OSError(error, os.strerror(error), str(path))

    return at


WRITES = {f"before {name}" for name in ("write", "chunk", "fsync", "append", "mkdir", "link")}


def break_lines(tracker: Tracker, name: str, error: int) -> Callable[[], None]:
    """Puts in the place of a file of lines one that refuses every write as the kernel would, after half of it."""
    lines = tracker._files[name]
    real = lines._file

    class Refusing:
        written = False

        def write(self, data: bytes) -> int:
            if not self.written:
                self.written = True
                return real.write(data[: len(data) // 2])
            raise OSError(error, os.strerror(error))

        def fileno(self) -> int:
            return real.fileno()

    lines._file = Refusing()  # type: ignore[assignment]

    def undo() -> None:
        lines._file = real

    return undo


def worn_out(place: Place, run_dir: str) -> dict[str, Any]:
    """Three saves in a row that one rank cannot make: what each rank says, and what still stands."""
    run = Run(place, run_dir, 1)
    path = run.train_and_save()
    if place.rank == 1:
        fsops.HOOK.at = lambda name, path: (
            failing(0, errno.ENOSPC, False)(name, path) if name == "before fsync" else None
        )
    for _ in range(2):
        assert run.train_and_save() is None
    said = message(run.train_and_save)
    fsops.HOOK.at = None
    return {"said": said, "stands": sorted(standing(Path(run_dir))), "saved": path and path.name}


def train_on_a_full_disk(place: Place, mount: str, overrides: list[str]) -> int:
    """`lacuna train` of the tiny config into a private disk with a run directory and not a byte of room."""
    from launch.cli import main

    private_tmpfs(mount)
    Path(mount, "full").mkdir()
    with suppress(OSError), open(f"{mount}/ballast", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    raise SystemExit(main(["train", "configs/tiny_cpu.py", *overrides]))
