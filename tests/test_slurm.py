"""Runs under a real SLURM of two nodes: whatever it does to them, they end as if nothing had happened (goal G3)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from masking.mask import Grid
from pretrain.backbones.vit import ViTConfig
from tests import chaos
from tests.slurm_cluster import Cluster, NoSlurm
from tests.slurm_desk import STEPS, Desk, settings
from tests.syntax import ROOT
from tests.zygote import shared


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from _cluster(tmp_path_factory.mktemp("slurm"), user_signal=True)


@pytest.fixture(scope="module")
def plain_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One whose first word to a preempted job is TERM."""
    yield from _cluster(tmp_path_factory.mktemp("slurm"), user_signal=False)


def _cluster(folder: Path, *, user_signal: bool) -> Iterator[Cluster]:
    try:
        found = Cluster(folder / "home", user_signal=user_signal)
    except NoSlurm as error:
        pytest.skip(str(error))
    yield found
    found.close()


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chaos.make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, pattern: str) -> Path:
    """The run that nobody disturbs, on two processes."""
    run_dir = tmp_path_factory.mktemp("calm") / "calm"
    chaos.calm(shared(), settings(run_dir, pattern))
    return run_dir


@pytest.fixture
def desk(cluster: Cluster, tmp_path: Path, pattern: str) -> Desk:
    return Desk(cluster, tmp_path, pattern)


def preempt(desk: Desk, job: str) -> None:
    """Somebody with a right to all cores comes, stays for a second, and goes."""
    script = desk.folder / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 1\n")
    asked = ["-p", "urgent", "-N2", "--ntasks-per-node=4", "-o", "/dev/null"]
    desk.cluster.run("sbatch", *asked, str(script), cwd=desk.folder)


def requeue(desk: Desk, job: str) -> None:
    desk.cluster.run("scontrol", "requeue", job)


def kill_rank(desk: Desk, job: str) -> None:
    os.kill(desk.tasks("n2")[0], signal.SIGKILL)


def stop_rank(desk: Desk, job: str) -> None:
    os.kill(desk.tasks("n2")[0], signal.SIGSTOP)


def lose_node(desk: Desk, job: str) -> None:
    desk.cluster.kill_node("n2")
    desk.cluster.wait(job, "PENDING", timeout_s=90)
    desk.cluster.start_node("n2")


EVENTS = [
    preempt, kill_rank, pytest.param(requeue, marks=pytest.mark.slow), pytest.param(stop_rank, marks=pytest.mark.slow),
    pytest.param(lose_node, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_a_run_that_slurm_disturbs_ends_as_the_one_that_nobody_does(
    desk: Desk, calm: Path, event: Callable[[Desk, str], None]
) -> None:
    job = desk.submit(more=("engine.collective_timeout_s=6",) if event is stop_rank else ())
    desk.until_step(20)
    event(desk, job)
    desk.ends(job, "COMPLETED")
    assert desk.attempts() >= 2, desk.log()
    chaos.compare(calm, desk.run_dir)
    assert not desk.tasks() and not list(desk.folder.glob("*.crashes"))
    shown = desk.lacuna("show", "runs/first")
    assert f"job         {job}" in shown and "state       done" in shown and "attempt 2" in shown
    assert re.search(rf"first +done +{STEPS}/{STEPS}", desk.lacuna("runs"))


@pytest.mark.slow
def test_a_cluster_whose_first_word_is_term_is_no_different(
    plain_cluster: Cluster, tmp_path: Path, pattern: str, calm: Path
) -> None:
    desk = Desk(plain_cluster, tmp_path, pattern)
    job = desk.submit()
    desk.until_step(20)
    preempt(desk, job)
    desk.ends(job, "COMPLETED")
    assert desk.attempts() >= 2 and "signal SIGTERM" in desk.log()
    chaos.compare(calm, desk.run_dir)


@pytest.mark.slow
def test_wall_time_ends_and_the_run_goes_on_in_the_next_job(desk: Desk) -> None:
    """A minute is the shortest SLURM has; it warns up to a minute early, so the run's own clock is what is tested."""
    job = desk.submit("--time", "1", "--notice", "0", more=("steps=20000",))
    desk.until_step(20)
    desk.cluster.wait(job, "PENDING", timeout_s=90)
    assert "the job's wall time is nearly over" in desk.log()
    stopped = chaos.last_step(desk.run_dir)
    assert 100 < stopped < 20000
    desk.until_step(stopped + 20)
    assert desk.attempts() == 2
    desk.lacuna("cancel", "runs/first")
    desk.ends(job, "CANCELLED", "FAILED", "COMPLETED")


@pytest.mark.slow
def test_a_job_that_gets_nowhere_is_not_put_back_for_ever(desk: Desk) -> None:
    """Every attempt is killed after it has started and before it has saved."""
    config = desk.folder / "doomed.py"
    config.write_text(
        "import os, signal, threading, time\n"
        "from pathlib import Path\n"
        "from configs.tiny_cpu import config\n"
        "born = time.time()\n"
        "def doom():\n"
        "    numbers = Path('runs/first/attempts')\n"
        "    while not any(p.stat().st_mtime > born for p in numbers.glob('*.json')): time.sleep(0.1)\n"
        "    time.sleep(1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if 'SLURM_PROCID' in os.environ: threading.Thread(target=doom, daemon=True).start()\n"
    )
    job = desk.submit(config=str(config), more=("checkpoint.every_steps=100000", "steps=100000"))
    desk.ends(job, "FAILED")
    assert desk.attempts() == 3 and desk.cluster.field(job, "ExitCode") == "79:0"
    assert f"E79 job {job} has started" in desk.log()
    assert desk.lacuna("show", "runs/first").count("no checkpoint") == 3


CRAMPED = """
ckpt="$SLURM_SUBMIT_DIR/runs/first/ckpt"
journal="$SLURM_SUBMIT_DIR/runs/first/journal.jsonl"
mkdir -p "$ckpt" && mount -t tmpfs -o size=4m none "$ckpt" || exit 78
head -c 4m /dev/zero > "$ckpt/.others" 2> /dev/null
(until grep -q "checkpoint failed" "$journal"; do sleep 0.02; done; rm "$ckpt/.others") &
python -m launch "$@" || exit
cp -a "$ckpt" "$ckpt.kept" && umount "$ckpt" && cp -a "$ckpt.kept/." "$ckpt"
"""


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_nothing_else(desk: Desk) -> None:
    """The job has its checkpoints on a real, private file system of 4 MiB that others fill before it saves."""
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"needs user namespaces: unshare -rm says {probe.stderr.strip()}")
    (desk.folder / "cramped.sh").write_text(CRAMPED)
    site = desk.folder / "site.toml"
    site.write_text(f'run = ["unshare", "-rm", "bash", "{desk.folder}/cramped.sh"]\n')
    more = ("checkpoint.every_steps=100",)
    calm = desk.folder / "calm" / "calm"
    chaos.calm(shared(), settings(calm, desk.pattern, *more), world=1)
    job = desk.submit("--site", str(site), nodes=1, more=more)
    desk.ends(job, "COMPLETED")
    assert "checkpoint failed" in desk.log() and desk.attempts() == 1
    chaos.compare(calm, desk.run_dir)


@pytest.mark.slow
def test_two_jobs_of_one_run_do_not_mix(desk: Desk, calm: Path) -> None:
    """The first stands still, as behind a network that is cut, while the second does all; then it wakes."""
    waits = ("engine.collective_timeout_s=600",)
    first = desk.submit(more=waits)
    desk.until_step(20)
    asleep = desk.tasks()
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)
    second = desk.submit(more=waits)
    desk.ends(second, "COMPLETED")
    for pid in asleep:
        os.kill(pid, signal.SIGCONT)
    desk.ends(first, "FAILED")
    assert desk.cluster.field(first, "ExitCode") == "80:0" and "E80 attempt 2 owns" in desk.log()
    chaos.compare(calm, desk.run_dir)


@pytest.mark.slow
def test_a_fine_tuning_that_is_preempted_goes_on_without_its_source_and_ends_with_its_accuracy(desk: Desk) -> None:
    encoder = ViTConfig("tiny", patch_size=4, width=48, depth=2, positions="learned").build(
        Grid(8, 8), 3, (0.5,), (1.0,)
    )
    source = desk.folder / "pretrained.pth"
    torch.save(encoder.state_dict(), source)
    more = (f"init_from={source}", f"data.val={desk.pattern}", "epochs=none")
    job = desk.submit("--finetune", config="configs/finetune_cifar.py", more=more)
    desk.until_step(20)
    source.unlink()
    preempt(desk, job)
    desk.ends(job, "COMPLETED")
    assert desk.attempts() >= 2 and desk.log().count("tensors from") == 1
    (result,) = json.loads((desk.run_dir / f"evaluate-step-{STEPS:07d}.json").read_text())["results"].values()
    assert 0 <= result["head"] <= 1 and result["val_images"] + result["bad_images"] == 180


@pytest.mark.slow
def test_a_sweep_is_an_array_of_runs(desk: Desk) -> None:
    job = desk.submit("--sweep", "optim.base_lr=1e-3,2e-3", nodes=1, more=("steps=40",))
    runs = [desk.folder / "runs" / f"first-{number}" for number in (0, 1)]
    for run_dir in runs:
        desk.until_step(40, run_dir)
    rates = [json.loads((run_dir / "config.json").read_text())["optim"]["base_lr"] for run_dir in runs]
    assert rates == [1e-3, 2e-3]
    deadline = time.monotonic() + 30
    while "running" in desk.lacuna("runs") and time.monotonic() < deadline:
        time.sleep(0.5)
    listed = desk.lacuna("runs")
    assert re.search(r"first-0 +done", listed) and re.search(r"first-1 +done", listed), listed
    assert job in listed


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(desk: Desk, calm: Path) -> None:
    job = desk.submit()
    desk.until_step(20)
    assert f"job {job} is cancelled" in desk.lacuna("cancel", "runs/first")
    desk.ends(job, "CANCELLED", "FAILED", "COMPLETED")
    assert chaos.last_step(desk.run_dir) < STEPS
    desk.ends(desk.submit(nodes=1), "COMPLETED")
    lines = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
             for folder in (calm, desk.run_dir)]  # fmt: skip
    assert [line["digest"] for line in lines[0]] == [line["digest"] for line in lines[1]]
    assert [line["loss"] for line in lines[1]] == pytest.approx([line["loss"] for line in lines[0]], rel=1e-3)


def test_what_cannot_be_submitted_is_said_before_anything_is_written(desk: Desk) -> None:
    base = ["submit", str(ROOT / "configs/tiny_cpu.py")]
    for words, said in (
        (["--gpus-per-node", "7"], "E78 data.batch_size"),
        (["--time", "soon"], "--time=soon; write 24:00:00"),
        (["--after", "12; rm -rf /"], "is no job number"),
        (["--sweep", "seed"], "write a setting and its values"),
        (["--site", "none.toml"], "the site file none.toml cannot be read"),
        (["--gpus-per-node", "1", "--partition", "none"], "E78 sbatch refused"),
    ):
        assert said in desk.lacuna(*base, *words, code=78)
    assert not (desk.folder / "runs").exists() or not list((desk.folder / "runs").rglob("metrics.jsonl"))


def test_the_doctor_says_how_a_run_will_fare_here(desk: Desk) -> None:
    said = desk.lacuna("doctor")
    assert "cluster test" in said and "RequeueExit has 75" in said and "a preempted job gets USR2" in said


@pytest.mark.slow
def test_the_doctor_as_a_job_lets_its_own_tasks_meet(desk: Desk) -> None:
    command = ["srun", "-N2", "-n2", sys.executable, "-m", "launch", "doctor"]
    said = desk.cluster.run(*command, env={"PYTHONPATH": str(ROOT)}, cwd=desk.folder)
    assert said.count("process     slurm, SLURM job") == 1 and "gloo adds up 32 MB over 2 processes" in said
