"""Joins the processes of a job, and keeps DeepSpeed from compiling or printing anything."""

from __future__ import annotations

import logging
import warnings
from datetime import timedelta
from typing import Protocol

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from pretrain.errors import SavedForLater

_JOB = "lacuna/job"  # the key in the store


class Place(Protocol):
    """The process's place in its job: launch/environment.py."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def local_rank(self) -> int: ...


def init_distributed(place: Place, timeout_s: float = 600.0, *, job: str = "a job without a name") -> None:
    """Joins place's process to its peers: gloo for host tensors, NCCL for those on a GPU. job is what all of them call
    what they do; a peer of another name is met by mistake, which is a SavedForLater.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT must be in the environment, for torch and DeepSpeed.
    """
    quiet(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else every start on a CPU runs a C++ compiler
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(place.local_rank)
    if not dist.is_initialized():
        timeout = timedelta(seconds=timeout_s)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", rank=place.rank, world_size=place.world_size,
            timeout=timeout, store=_meet(place, job, timeout),
        )
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False)
    quiet(logging.WARNING)
    # DeepSpeed still calls collectives by the names torch is about to retire
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")


def _meet(place: Place, job: str, timeout: timedelta) -> Store:
    """The store that rank 0 keeps for its peers, once it has said that it is this job's. Two jobs may get one port:
    their ranks would mix and train on each other's numbers, or wait for each other without a word."""
    again = "run the same command again, or set MASTER_PORT to a free port"
    try:
        store, _, _ = next(rendezvous("env://", place.rank, place.world_size, timeout=timeout))
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise SavedForLater(f"the port where this job's processes meet is taken ({reason}); {again}") from error
    store.set_timeout(timeout)
    if place.rank == 0:
        store.set(_JOB, job)
    found = store.get(_JOB).decode(errors="replace")
    if found != job:
        raise SavedForLater(f"{store.host}:{store.port} is where {found} meets, and this is {job}; {again}")
    return store


def limit_waiting(timeout_s: float) -> None:
    """Gives every group of processes that timeout: torch gives those that DeepSpeed made its own default, half an hour
    over gloo, and a rank that stood still would be waited for so long."""
    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def device_of(place: Place) -> torch.device:
    """Where this process's model lives."""
    return torch.device("cuda", place.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def quiet(level: int) -> None:
    """Lets only what is at least as grave as level through from DeepSpeed, which prints to stdout."""
    logging.getLogger("DeepSpeed").setLevel(level)
