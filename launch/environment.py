"""Who started this process and which of how many it is. The only file that reads or writes os.environ.

torchrun's variables are looked at first, then SLURM's, then Open MPI's; plain `python` is one process. DeepSpeed reads
RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT itself, so `export` writes back what was found.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from urllib.parse import urlsplit

from pretrain.errors import ConfigError
from pretrain.tracking.access import WandbAccess


@dataclass(frozen=True)
class Environment:
    """The place of this process in its job."""

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int
    launcher: str  # torchrun, slurm, openmpi or python
    job_id: str | None = None
    restarts: int = 0  # how often SLURM has requeued this job
    deadline_s: float | None = None  # wall time ends in so many seconds, counted from detection

    def describe(self) -> str:
        """One line for the start of the log."""
        job = f", SLURM job {self.job_id}" if self.job_id else ""
        again = f" (requeued {self.restarts} times)" if self.restarts else ""
        return f"{self.launcher}{job}{again}: process {self.rank} of {self.world_size}, local rank {self.local_rank}"


def detect(environ: Mapping[str, str] | None = None) -> Environment:
    """The environment of this process. Raises ConfigError when the launcher's variables contradict each other."""
    env = os.environ if environ is None else environ
    job = env.get("SLURM_JOB_ID")
    if "RANK" in env and "WORLD_SIZE" in env:
        names, launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "torchrun"
    elif "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and _is_task(env):
        names, launcher = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"), "slurm"
    elif "OMPI_COMM_WORLD_RANK" in env:
        names, launcher = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"), "openmpi"
    else:
        return Environment(
            0, 1, 0, "127.0.0.1", _free_port(), "python", job, _int(env, "SLURM_RESTART_COUNT", 0), _deadline(env)
        )
    rank, world_size, local_rank = (_int(env, name, 0) for name in names)
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"{names[0]}={rank} and {names[1]}={world_size} contradict each other; unset both, or start by torchrun"
        )
    address, port = _address(env, launcher, world_size)
    return Environment(
        rank, world_size, local_rank, address, port, launcher, job, _int(env, "SLURM_RESTART_COUNT", 0), _deadline(env)
    )


def export(environment: Environment, *, cuda: bool) -> None:
    """Writes the variables DeepSpeed reads; without cuda it is told so, or it warns of what it did not find."""
    os.environ.update(
        RANK=str(environment.rank),
        WORLD_SIZE=str(environment.world_size),
        LOCAL_RANK=str(environment.local_rank),
        MASTER_ADDR=environment.master_addr,
        MASTER_PORT=str(environment.master_port),
    )
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def local_world_size(environ: Mapping[str, str] | None = None) -> int:
    """Processes of this job on this machine."""
    env = os.environ if environ is None else environ
    for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"):
        if env.get(name, "").isdigit():
            return int(env[name])
    nodes = env.get("SLURM_NNODES", "1")
    world = env.get("WORLD_SIZE") or env.get("SLURM_NTASKS") or "1"
    return max(1, int(world) // int(nodes)) if nodes.isdigit() and world.isdigit() else 1


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_set(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the user chose the number of threads (OMP_NUM_THREADS)."""
    return "OMP_NUM_THREADS" in (os.environ if environ is None else environ)


def wandb_access(environ: Mapping[str, str] | None = None) -> WandbAccess:
    """What the environment says about W&B: whether there is a key, which server, which mode."""
    env = os.environ if environ is None else environ
    base_url = env.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if "@" in urlsplit(base_url).netloc:
        raise ConfigError("WANDB_BASE_URL holds a user name or password, which the run's files would show; remove it")
    return WandbAccess(
        has_key=bool(env.get("WANDB_API_KEY")) or _netrc_has_wandb(env),
        base_url=base_url,
        mode=env.get("WANDB_MODE"),
    )


def snapshot(environment: Environment) -> dict[str, object]:
    """What a reader of the run wants to know of where it ran: versions, hardware, launcher, commit. No secrets."""
    packages = ("torch", "deepspeed", "webdataset", "timm", "wandb", "einops", "simplejpeg", "numpy", "pillow")
    return {
        **asdict(environment),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": cores(),
        "packages": {name: _version(name) for name in packages},
        "commit": _commit(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _is_task(env: Mapping[str, str]) -> bool:
    """Inside srun, not merely in the batch script (whose step is named batch and has one process)."""
    return env.get("SLURM_STEP_NODELIST") is not None and env.get("SLURM_NTASKS", "").isdigit()


def _address(env: Mapping[str, str], launcher: str, world_size: int) -> tuple[str, int]:
    port = _int(env, "MASTER_PORT", 0)
    if world_size == 1:
        return env.get("MASTER_ADDR", "127.0.0.1"), port or _free_port()
    if not port:  # the same on every task, different for every job, and for its next attempt should this one be taken
        seed = "".join(env.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
        port = 20000 + int(re.sub(r"\D", "", seed) or 0) % 20000
    address = env.get("MASTER_ADDR")
    if address is None and launcher == "slurm":
        address = _first_host(env)
    if address is None:
        raise ConfigError(
            f"MASTER_ADDR is not set for {world_size} processes; start them by torchrun or srun, or set it"
        )
    return address, port


def _first_host(env: Mapping[str, str]) -> str:
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    if env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")) == "1":
        return "127.0.0.1"
    try:
        found = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=10)
        host = found.stdout.split()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        first = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
        host = "".join(part or "" for part in first.groups()) if first else nodes
    try:
        socket.getaddrinfo(host, None)
    except OSError:  # node names that do not resolve: several nodes on one machine
        return "127.0.0.1"
    return host


def _deadline(env: Mapping[str, str]) -> float | None:
    """Seconds to the end of the job's wall time. Older SLURMs do not tell it in a variable; then one process asks."""
    end, job = env.get("SLURM_JOB_END_TIME", ""), env.get("SLURM_JOB_ID", "")
    if end.isdigit():
        return max(0.0, int(end) - time.time())
    if not job.isdigit() or env.get("SLURM_PROCID", "0") != "0":
        return None
    try:
        asked = ["squeue", "--noheader", f"--jobs={job}", "--format=%L"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return _seconds(found.stdout.strip())


def _seconds(text: str) -> float | None:
    """What SLURM writes as days-hours:minutes:seconds; None where there is no end."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _int(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name)
    if text is None or text == "":
        return default
    if not re.fullmatch(r"\d+", text):
        raise ConfigError(
            f"the environment variable {name}={text!r} is not a number; unset it or start by torchrun or srun"
        )
    return int(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _netrc_has_wandb(env: Mapping[str, str]) -> bool:
    path = os.path.join(env.get("HOME", ""), ".netrc")
    try:
        with open(path, encoding="utf-8") as file:
            return "wandb" in file.read()
    except (OSError, UnicodeDecodeError):
        return False


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        found = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
