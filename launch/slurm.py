"""What is asked of SLURM, by its own commands: argument lists, never a shell; what is no job id is never passed on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from pretrain.errors import ConfigError

_JOB = re.compile(r"[0-9]+(_[0-9]+)?")
_WAIT_S = 30


def is_job(text: str) -> bool:
    """Whether text is the number of a job, or of one element of an array."""
    return _JOB.fullmatch(text) is not None


def available() -> bool:
    """Whether there is a SLURM to be asked."""
    return shutil.which("squeue") is not None


def submit(script: Path) -> str:
    """Hands script in; the job's number. Raises ConfigError with SLURM's own words where it refuses."""
    if shutil.which("sbatch") is None:
        raise ConfigError("there is no sbatch here: submit from a login node, or look at the script with --dry-run")
    done = _ask(["sbatch", "--parsable", str(script)])
    job = done.stdout.strip().partition(";")[0]
    if done.returncode or not is_job(job):
        raise ConfigError(f"sbatch refused {script}: {' '.join((done.stderr or done.stdout).split())}")
    return job


def cancel(job: str) -> None:
    """Ends a job. Raises ConfigError."""
    if not is_job(job):
        raise ConfigError(f"{job!r} is no job number; it is like 1234 or 1234_5")
    done = _ask(["scancel", job])
    if done.returncode:
        raise ConfigError(f"scancel {job}: {' '.join(done.stderr.split())}")


def states() -> dict[str, str]:
    """Job number -> state (PENDING, RUNNING, ...) of all that SLURM still knows, elements of arrays by both their
    numbers; empty where there is no SLURM."""
    if not available():
        return {}
    try:
        done = _ask(["squeue", "--noheader", "--array", "--me", "--format=%i %A %T"])
    except ConfigError:
        return {}
    found = {}
    for line in done.stdout.splitlines():
        parts = line.split()
        if len(parts) == 3:
            found[parts[0]] = found[parts[1]] = parts[2]
    return found


def site_settings() -> dict[str, str]:
    """What the cluster says of itself, setting -> value; empty where there is no SLURM that answers."""
    if shutil.which("scontrol") is None:
        return {}
    try:
        done = _ask(["scontrol", "show", "config"])
    except ConfigError:
        return {}
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def _ask(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_WAIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{command[0]} did not answer ({error}); is SLURM up?") from error
