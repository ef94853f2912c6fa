"""What forked ranks do to find every point at which a save or a restore can be killed, and to be killed there."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.engine import fsops
from pretrain.engine.agree import barrier, gather_json
from pretrain.engine.checkpoint import Checkpoints
from pretrain.engine.distributed import Place
from pretrain.engine.settings import CheckpointConfig
from pretrain.errors import LacunaError
from tests.engine.cases import FRESH, Job, digest, make
from tests.engine.checkpoint_cases import opened


def prepared(place: Place, run_dir: str) -> dict[str, Any]:
    """A run with checkpoints of steps 1 and 2, of which a third would prune one, copied as RUN_DIR-save and, damaged,
    as RUN_DIR-load. Digests of steps 1 to 3, and the operations of each rank in a save of step 3 and in a restore."""
    job, checkpoints = opened(place, run_dir, keep=2)
    at = {"0": digest(job.engine.weights())}
    for step in (1, 2):
        job.step(step - 1)
        assert checkpoints.save(replace(FRESH, step=step))
        at[str(step)] = digest(job.engine.weights())
    barrier()
    operations = {}
    for phase in ("save", "load"):
        copy = Path(f"{run_dir}-{phase}-recorded")
        if place.rank == 0:
            for folder in (copy, Path(f"{run_dir}-{phase}")):
                shutil.copytree(run_dir, folder, symlinks=True)
                spoil(folder, phase)
        barrier()
        seen: list[str] = []
        act(job, copy, phase, lambda name, path, seen=seen: seen.append(name))
        operations[phase] = gather_json(seen)
        if phase == "save":
            at["3"] = digest(job.engine.weights())
    return {"at": at, "operations": operations}


def spoil(run_dir: Path, phase: str) -> None:
    """For a load there must be something to tidy up, to set aside and to fall back to."""
    if phase == "load":
        newest = max((run_dir / "ckpt").glob("[0-9]*"))
        data = bytearray((newest / "rank00000.safetensors").read_bytes())
        data[len(data) // 2] ^= 1
        (newest / "rank00000.safetensors").write_bytes(data)
        for leftover in (".tmp-0000000003-a000001", ".trash-0000000000-a000001"):
            shutil.copytree(newest, run_dir / "ckpt" / leftover)


def act(job: Job, run_dir: Path, phase: str, at: Callable[[str, Path], None]) -> None:
    """The save or the restore whose operations are watched by at."""
    fsops.HOOK.at = at if phase == "load" else None
    checkpoints = Checkpoints(run_dir, CheckpointConfig(keep=2), job.engine)
    step = checkpoints.restore(FRESH).step
    if phase == "save":
        assert step == 2
        job.step(2)
        fsops.HOOK.at = at
        assert checkpoints.save(replace(FRESH, step=3))
    fsops.HOOK.at = None


def killed(place: Place, run_dir: str, phase: str, by: int, index: int, victims: list[int]) -> None:
    """Saves or restores until rank `by` is at its operation index, and then kills victims."""
    job = make(place, 1, "fp32", run_dir)
    pids = gather_json(os.getpid())
    count = iter(range(10**9))

    def at(name: str, path: Path) -> None:
        if place.rank == by and next(count) == index:
            for victim in sorted(victims, key=lambda rank: rank == by):  # itself last
                os.kill(pids[victim], signal.SIGKILL)

    try:
        act(job, Path(run_dir), phase, at)
        barrier()  # whoever is through is still there to be killed, or to notice
    except RuntimeError as error:  # the peer is gone
        raise SystemExit(75) from error
    raise SystemExit(0)


def verdicts(place: Place, run_dirs: list[str], at: dict[str, str], steps: list[int]) -> list[str]:
    """For each killed run: what a new attempt restores and then can save, in words; "" where that is as it must be."""
    job = make(place, 1, "fp32", Path(run_dirs[0]).parent)
    return [verdict(job, Path(run_dir), at, steps) for run_dir in run_dirs]


def verdict(job: Job, run_dir: Path, at: dict[str, str], steps: list[int]) -> str:
    """ "" where the run restores one of steps bit for bit, can save again, and nothing half made is left."""
    try:
        checkpoints = Checkpoints(run_dir, CheckpointConfig(keep=2), job.engine)
        step = checkpoints.restore(FRESH).step
        if step not in steps:
            return f"restored step {step}, not one of {steps}"
        if digest(job.engine.weights()) != at[str(step)]:
            return f"step {step} has other weights"
        if not checkpoints.save(replace(FRESH, step=4)):
            return "cannot save again"
    except LacunaError as error:
        return f"unloadable: {error}"
    left = [p.name for p in (run_dir / "ckpt").iterdir() if p.name.startswith((".tmp", ".trash"))]
    return f"left behind: {left}" if left and job.engine.rank == 0 else ""
