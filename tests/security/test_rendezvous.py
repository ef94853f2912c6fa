"""The processes of a job meet at a port; two jobs that meet there say so and do not train on each other's numbers."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import torch
import torch.distributed as dist

from launch.environment import detect
from pretrain.engine.distributed import init_distributed
from pretrain.errors import SavedForLater
from tests.zygote import Place, shared

JOIN = "tests/security/test_rendezvous.py:join"


def join(place: Place, port: int, job: str, rank: int | None = None, gate: str | None = None) -> str | float:
    """What a forked rank does: as rank of two it meets the other at port, behind the gate, and adds up ranks; or the
    refusal."""
    place = Place(place.rank if rank is None else rank, 2, 0)
    while gate is not None and place.rank == 1 and not Path(gate).exists():
        time.sleep(0.02)
    os.environ |= {"MASTER_PORT": str(port), "RANK": str(place.rank), "WORLD_SIZE": "2"}
    try:
        init_distributed(place, 60, job=job)
    except SavedForLater as error:
        return str(error)
    value = torch.tensor([float(place.rank + 1)])
    dist.all_reduce(value)
    return float(value)


def test_a_rank_that_meets_another_job_says_so_and_that_job_goes_on(tmp_path: Path) -> None:
    port, gate = _free_port(), tmp_path / "gate"
    waiting = shared().start(JOIN, 2, {"port": port, "job": "run a of job 17", "gate": str(gate)})
    (stray,) = shared().run(JOIN, 1, {"port": port, "job": "run b of job 18", "rank": 1})
    assert f":{port} is where run a of job 17 meets, and this is run b of job 18; run the same command" in stray.value
    gate.touch()
    assert [outcome.value for outcome in waiting.wait()] == [3.0, 3.0]


def test_the_first_rank_of_a_job_whose_port_is_taken_says_so(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        (outcome,) = shared().run(JOIN, 1, {"port": other.getsockname()[1], "job": "run b", "rank": 0})
    assert "the port where this job's processes meet is taken" in outcome.value
    assert "set MASTER_PORT to a free port" in outcome.value


def test_a_requeued_job_takes_another_port_and_all_its_tasks_the_same() -> None:
    env = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_NNODES": "1",
           "SLURM_STEP_NODELIST": "n1"}  # fmt: skip
    ports = [{detect(env | {"SLURM_PROCID": rank, **more}).master_port for rank in "01"}
             for more in ({}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_RESTART_COUNT": "2"})]  # fmt: skip
    assert [len(each) for each in ports] == [1, 1, 1] and len(set.union(*ports)) == 3


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
