"""The environment is told by the launcher's variables, and a contradiction is a sentence."""

from __future__ import annotations

import pytest

from launch.environment import detect, local_world_size
from pretrain.errors import ConfigError


def test_plain_python_is_one_process_with_a_free_port() -> None:
    place = detect({})
    assert (place.rank, place.world_size, place.local_rank, place.launcher) == (0, 1, 0, "python")
    assert 1024 < place.master_port < 65536


def test_torchrun_comes_before_slurm() -> None:
    env = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "n1",
    }
    place = detect(env)
    assert (place.rank, place.world_size, place.local_rank, place.master_port, place.launcher) == (
        3,
        4,
        1,
        29500,
        "torchrun",
    )


def test_srun_tasks_of_one_job_share_a_port_derived_from_it() -> None:
    env = {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "2",
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": "1",
        "SLURM_NNODES": "1",
        "SLURM_STEP_NODELIST": "n1",
        "SLURM_RESTART_COUNT": "3",
    }
    first, second = detect(env | {"SLURM_PROCID": "0"}), detect(env | {"SLURM_PROCID": "1"})
    assert first.master_port == second.master_port and first.launcher == "slurm" and second.rank == 1
    assert first.restarts == 3 and first.job_id == "4711"
    assert detect(env | {"SLURM_PROCID": "0", "SLURM_JOB_ID": "4712"}).master_port != first.master_port


def test_the_batch_script_itself_is_one_process() -> None:
    assert detect({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}).world_size == 1


@pytest.mark.parametrize(
    "env",
    [
        {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "x"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
    ],
)
def test_contradictions_are_refused(env: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        detect(env)


def test_local_world_size_is_what_the_launcher_says() -> None:
    assert local_world_size({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}) == 4
    assert local_world_size({"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}) == 4
    assert local_world_size({}) == 1
