"""What the checkpoint tests run in forked ranks."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pretrain.engine import fsops
from pretrain.engine.checkpoint import Checkpoints
from pretrain.engine.commit import BadCheckpoint, verify
from pretrain.engine.distributed import Place
from pretrain.engine.settings import CheckpointConfig
from pretrain.errors import CheckpointError, FencedError, SavedForLater
from tests.campaign import Counts, counted
from tests.engine.cases import FRESH, Job, digest, make

KINDS = ("bit", "truncated", "grown", "missing", "extra", "swapped", "zeroed", "link", "older")


def opened(place: Place, run_dir: str | Path, stage: int = 1, **config: Any) -> tuple[Job, Checkpoints]:
    """An engine and the checkpoints of a new attempt at run_dir."""
    job = make(place, stage, "fp32", run_dir)
    return job, Checkpoints(Path(run_dir), CheckpointConfig(**config), job.engine)


def saved(place: Place, run_dir: str, steps: int = 3, **config: Any) -> list[str]:
    """Trains and saves after each step; the digest of the weights of each."""
    job, checkpoints = opened(place, run_dir, **config)
    checkpoints.restore(FRESH)
    out = []
    for step in range(steps):
        job.step(step)
        assert checkpoints.save(replace(FRESH, step=step + 1))
        out.append(digest(job.engine.weights()))
    return out


def corruptions(place: Place, run_dir: str, number: int, first: int = 0) -> Counts:
    """Damages the newest checkpoint in number random ways, each met by verify and by restore: a campaign's counts."""
    newest, older = sorted(Path(run_dir, "ckpt").iterdir())[::-1][:2]
    good = {step: hashes_of(path) for step, path in ((3, newest), (2, older))}
    checkpoints = opened(place, run_dir)[1]
    failures: list[str] = []
    kinds: dict[str, int] = {}
    hidden = newest.with_name(".hidden")
    for case in range(first, first + number):
        newest.rename(hidden)
        shutil.copytree(hidden, newest)
        kind = damage(newest, older, random.Random(f"corruption {case}"))
        kinds[kind] = kinds.get(kind, 0) + 1
        detected = refused(newest)
        state = checkpoints.restore(FRESH)
        aside = newest.with_name(f".bad-{newest.name}")
        if not detected or state.step != 2 or hashes_of(older) != good[2] or newest.exists() or not aside.exists():
            failures.append(f"case {case}, {kind}: detected {detected}, restored step {state.step}")
        for copy in (newest, aside):
            shutil.rmtree(copy, ignore_errors=True)
        hidden.rename(newest)
    assert hashes_of(newest) == good[3]
    assert checkpoints.restore(FRESH).step == 3
    return counted(number, failures, **kinds)


def damage(copy: Path, older: Path, rng: random.Random) -> str:
    """One random fault in copy."""
    path = rng.choice(sorted(p for p in copy.iterdir() if p.is_file()))
    kind = rng.choice(["bit", "bit", *KINDS])
    data = bytearray(path.read_bytes())
    if kind == "bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == "truncated":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "grown":
        path.write_bytes(bytes(data) + bytes(rng.randrange(1, 100)))
    elif kind == "missing":
        path.unlink()
    elif kind == "extra":
        (copy / f"rank{rng.randrange(2, 9):05d}.safetensors").write_bytes(data)
    elif kind == "swapped":
        names = sorted(p.name for p in copy.glob("rank*"))
        first, second = (copy / names[0]).read_bytes(), (copy / names[1]).read_bytes()
        (copy / names[0]).write_bytes(second)
        (copy / names[1]).write_bytes(first)
    elif kind == "zeroed":
        at = rng.randrange(len(data))
        zeros = bytes(min(4096, len(data) - at))
        if data[at : at + len(zeros)] == zeros:
            at, zeros = 0, bytes(8)
        data[at : at + len(zeros)] = zeros
        path.write_bytes(data)
    elif kind == "link":
        path.rename(copy.parent / ".elsewhere")
        path.symlink_to(copy.parent / ".elsewhere")
    else:
        shutil.copy(older / path.name, path)
    return kind


def refused(directory: Path) -> bool:
    """Whether verify names a fault."""
    try:
        verify(directory)
    except BadCheckpoint as error:
        return bool(str(error))
    return False


def hashes_of(directory: Path) -> dict[str, str]:
    """sha256 of every file."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir())}


def lost(place: Place, run_dir: str) -> dict[str, Any]:
    """Every checkpoint damaged, then every checkpoint deleted: what restore says."""
    _, checkpoints = opened(place, run_dir)
    for path in Path(run_dir, "ckpt").iterdir():
        if place.rank == 0:
            (path / "COMMIT.json").write_bytes(b"{}")
    torch.distributed.barrier()
    out = {"damaged": message(lambda: checkpoints.restore(FRESH))}
    torch.distributed.barrier()
    if place.rank == 0:
        shutil.rmtree(Path(run_dir, "ckpt"))
    torch.distributed.barrier()
    return out | {"deleted": message(lambda: checkpoints.restore(FRESH))}


def mismatches(place: Place, run_dir: str) -> dict[str, str]:
    """What restore says when the run is not the one that was saved."""
    _, checkpoints = opened(place, run_dir)
    out = {}
    for name, value in {"fingerprint": "0" * 64, "seed": 2, "batch_size": 24, "lanes": 8, "block": 128}.items():
        out[name] = message(lambda name=name, value=value: checkpoints.restore(replace(FRESH, **{name: value})))
    checkpoints._engine.optim = replace(checkpoints._engine.optim, weight_decay=0.3)
    out["weight_decay"] = message(lambda: checkpoints.restore(FRESH))
    assert checkpoints.restore(FRESH, allow_change=True).step == 3
    checkpoints._engine.optim = replace(checkpoints._engine.optim, weight_decay=0.1)
    checkpoints._engine._shapes["head.weight"] = [8, 24]
    out["shape"] = message(lambda: checkpoints.restore(FRESH))
    return out


def message(act: Callable[[], Any]) -> str:
    """The text of the CheckpointError or SavedForLater that act raises."""
    try:
        act()
    except (CheckpointError, SavedForLater) as error:
        return str(error)
    return ""


def before_the_third(place: Place, run_dir: str) -> tuple[Job, Checkpoints, dict[int, str]]:
    """A run that has saved steps 1 and 2 and made step 3; digests of its weights after each, and before the first."""
    job, checkpoints = opened(place, run_dir, keep=2)
    at = {0: digest(job.engine.weights())}
    for step in (1, 2):
        job.step(step - 1)
        checkpoints.save(replace(FRESH, step=step))
        at[step] = digest(job.engine.weights())
    job.step(2)
    at[3] = digest(job.engine.weights())
    return job, checkpoints, at


def kill_points(place: Place, run_dir: str) -> dict[str, Any]:
    """Kills a save of step 3 before and after every operation; each time the run must be whole at step 2 or 3."""
    job, checkpoints, at = before_the_third(place, run_dir)
    base = Path(run_dir)
    points = recorded(base, checkpoints)
    chosen = [i for i, (name, _) in enumerate(points) if name != "before chunk" or i % 7 == 0]
    outcomes: dict[str, int] = {}
    for index in chosen:
        copy = base.with_name(f"{base.name}-{index}")
        shutil.copytree(base, copy, symlinks=True)
        status = forked(lambda copy=copy, index=index: killed_save(copy, checkpoints, index))
        assert os.WIFSIGNALED(status), f"point {index} {points[index]} was not reached"
        verdict = forked(lambda copy=copy: restored(copy, job, at))
        step = os.waitstatus_to_exitcode(verdict)
        assert step in (2, 3), f"killed at {points[index]}: restore ended with {step}"
        outcomes[str(step)] = outcomes.get(str(step), 0) + 1
        shutil.rmtree(copy)
    return {"points": sorted({name for name, _ in points}), "killed": len(chosen), "outcomes": outcomes}


def recorded(base: Path, checkpoints: Checkpoints) -> list[tuple[str, str]]:
    """Every operation of a save of step 3, by doing it in a fork."""
    log = base.with_name("operations")

    def act() -> int:
        moved = relocated(checkpoints, base.with_name("recording"), base)
        with open(log, "w") as file:
            fsops.HOOK.at = lambda name, path: file.write(f"{name}|{path.name}\n") and None
            moved.save(replace(FRESH, step=3))
        return 0

    assert forked(act) == 0
    shutil.rmtree(base.with_name("recording"))
    return [tuple(line.split("|")) for line in log.read_text().splitlines()]  # type: ignore[misc]


def relocated(checkpoints: Checkpoints, copy: Path, base: Path) -> Checkpoints:
    """The same attempt, in a copy of the run directory."""
    if not copy.exists():
        shutil.copytree(base, copy, symlinks=True)
    checkpoints._run_dir, checkpoints._dir = copy, copy / "ckpt"
    checkpoints._attempts._dir = copy / "attempts"
    return checkpoints


def killed_save(copy: Path, checkpoints: Checkpoints, index: int) -> int:
    """Saves step 3 into copy and dies at operation index."""
    moved, seen = relocated(checkpoints, copy, copy), iter(range(10**9))

    def at(name: str, path: Path) -> None:
        if next(seen) == index:
            os.kill(os.getpid(), signal.SIGKILL)

    fsops.HOOK.at = at
    moved.save(replace(FRESH, step=3))
    return 99


def restored(copy: Path, job: Job, at: dict[int, str]) -> int:
    """The step a new attempt finds, after comparing its weights; then it must be able to save as well."""
    checkpoints = Checkpoints(copy, CheckpointConfig(keep=2), job.engine)
    step = checkpoints.restore(FRESH).step
    if digest(job.engine.weights()) != at[step]:
        return 77
    assert checkpoints.save(replace(FRESH, step=4))
    leftovers = [p.name for p in (copy / "ckpt").iterdir() if p.name.startswith(".")]
    return step if not leftovers else 78


def forked(act: Callable[[], int]) -> int:
    """The wait status of a fork that does act and exits with what it returned."""
    pid = os.fork()
    if pid == 0:
        code = 98
        try:
            code = act()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def full_disk(place: Place, mount: str) -> dict[str, Any]:
    """Saves onto a real, private tmpfs until it is full; then makes room."""
    private_tmpfs(mount)
    job, checkpoints = opened(place, Path(mount) / "run", keep=2)
    outcomes = []
    job.step(0)
    outcomes.append(checkpoints.save(replace(FRESH, step=1)) is not None)
    free = fsops.free_bytes(Path(mount))
    ballast = Path(mount) / "ballast"
    ballast.write_bytes(bytes(max(0, free - 30_000)))
    outcomes.append(checkpoints.save(replace(FRESH, step=2)) is not None)  # refused by the preflight
    engine = job.engine
    engine.state_bytes = lambda: 0  # type: ignore[method-assign]
    outcomes.append(checkpoints.save(replace(FRESH, step=2)) is not None)  # runs into the wall
    ballast.unlink()
    outcomes.append(checkpoints.save(replace(FRESH, step=2)) is not None)
    names = sorted(p.name for p in (Path(mount) / "run" / "ckpt").iterdir())
    return {"outcomes": outcomes, "names": names, "restored": checkpoints.restore(FRESH).step}


def private_tmpfs(mount: str) -> None:
    """Moves this process into its own user and mount namespace, with 2 MiB at mount."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    assert libc.unshare(0x10000000 | 0x00020000) == 0, os.strerror(ctypes.get_errno())
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    assert libc.mount(b"none", mount.encode(), b"tmpfs", 0, b"size=2m") == 0, os.strerror(ctypes.get_errno())


def frozen_before_rename(place: Place, run_dir: str) -> dict[str, Any]:
    """Saves step 2, but stops dead just before its rename; woken, it must find itself fenced."""
    job, checkpoints = opened(place, run_dir)
    job.step(0)
    checkpoints.save(replace(FRESH, step=1))
    job.step(1)

    def at(name: str, path: Path) -> None:
        if name == "after fsync_dir" and path.name.startswith(".tmp-"):
            fsops.HOOK.at = None
            os.kill(os.getpid(), signal.SIGSTOP)

    fsops.HOOK.at = at
    try:
        checkpoints.save(replace(FRESH, step=2))
    except FencedError as error:
        raise SystemExit(error.exit_code) from error
    return {"published": True}


def takes_over(place: Place, run_dir: str) -> dict[str, Any]:
    """A newer attempt: goes on from step 1 and publishes step 2."""
    job, checkpoints = opened(place, run_dir)
    start = checkpoints.restore(FRESH).step
    job.step(1)
    path = checkpoints.save(replace(FRESH, step=2))
    assert path is not None
    return {"start": start, "attempt": checkpoints.attempt, "hashes": hashes_of(path), "path": str(path)}


def prunes(place: Place, run_dir: str) -> list[str]:
    """Nine saves with keep=2 and a milestone every 4 steps."""
    job, checkpoints = opened(place, run_dir, keep=2, milestone_every=4)
    for step in range(1, 10):
        job.step(step)
        checkpoints.save(replace(FRESH, step=step, counters={"bad_samples": step}))
    state = checkpoints.restore(FRESH)
    assert state.counters == {"bad_samples": 9}
    return sorted(p.name for p in Path(run_dir, "ckpt").iterdir()) + [os.readlink(Path(run_dir, "latest"))]
