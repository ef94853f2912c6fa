"""A real SLURM of two nodes on this machine, in user space: own key, own ports, own folder, nothing left behind.

Both nodes are slurmd processes of this host. What a test needs of SLURM's
behaviour it gets fast: requeued jobs start after seven seconds, a lost node is noticed after ten.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.slurm_programs import NoSlurm, libraries, loader, plugins, programs

NODES = ("n1", "n2")
_START_S = 40.0

_CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={home}/run/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ctld}
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
JobRequeue=1
RequeueExit=75
KillWait=3
MinJobAge=600
InactiveLimit=0
WaitTime=0
SlurmdTimeout=10
SlurmdParameters=config_overrides
SlurmctldParameters={controller}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/run/slurmctld.pid
SlurmdPidFile={home}/run/slurmd-%n.pid
SlurmctldLogFile={home}/log/slurmctld.log
SlurmdLogFile={home}/log/slurmd-%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """Starts with the object; `close` ends every process that it started."""

    def __init__(self, folder: Path, *, user_signal: bool = True, grace_s: int = 10) -> None:
        self.home, self._tree = folder, programs()
        for name in ("run", "log", "state", "spool-n1", "spool-n2"):
            (folder / name).mkdir(parents=True)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        ports = dict(zip(("ctld", "n1", "n2"), _free_ports(3)))
        (folder / "slurm.conf").write_text(_CONF.format(
            home=folder, host=socket.gethostname(), user=_user(), plugins=plugins(self._tree), grace=grace_s,
            controller="preempt_send_user_signal" if user_signal else "", **ports,
        ).replace("SlurmctldParameters=\n", ""))  # fmt: skip
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise

    def run(self, *command: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """What a SLURM command says; what it says against it is an AssertionError."""
        done = self._ask(*command, env=env, cwd=cwd)
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """A login shell's variables on this cluster."""
        base = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "LD_"))}
        found = {**base, "SLURM_CONF": str(self.home / "slurm.conf"), **(more or {})}
        found["PATH"] = f"{self._links()}:{found.get('PATH', os.defpath)}"
        return found

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, ..."""
        found = re.search(r"JobState=(\w+)", self.run("scontrol", "show", "job", job))
        return found[1] if found else "UNKNOWN"

    def field(self, job: str, name: str) -> str:
        """One field of what scontrol says of a job."""
        found = re.search(rf"\b{name}=(\S+)", self.run("scontrol", "show", "job", job))
        return found[1] if found else ""

    def wait(self, job: str, *states: str, timeout_s: float = 120.0) -> str:
        """Until the job is in one of states. A requeued one waits for seven seconds, and must: nodes do not start it
        while they remember its last credential."""
        deadline = time.monotonic() + timeout_s
        while (state := self.state(job)) not in states:
            assert time.monotonic() < deadline, f"job {job} is {state}, not {states}, after {timeout_s} s"
            time.sleep(0.2)
        return state

    def kill_node(self, name: str) -> None:
        """The power cut: slurmd, its step daemons and all their tasks, at once."""
        pids = [self._daemons[name].pid, *self.processes(name)]
        for pid in pids:
            _kill(pid)
        self._daemons.pop(name).wait()

    def start_node(self, name: str) -> None:
        """Brings a node back."""
        self._daemon(name, "usr/sbin/slurmd-wlm", "-D", "-N", name, "-f", str(self.home / "slurm.conf"), "-d",
                     str(self._tree / "usr/sbin/slurmstepd-wlm"))  # fmt: skip

    def processes(self, node: str | None = None) -> list[int]:
        """Step daemons of this cluster, of one node or of both, and everything below them."""
        logs = {str(self.home / "log" / f"slurmd-{name}.log") for name in (NODES if node is None else (node,))}
        parents: dict[int, list[int]] = {}
        roots = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                stat, command = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
                opened = {os.readlink(link) for link in (entry / "fd").iterdir()} if b"slurmstepd" in command else set()
            except OSError:
                continue
            pid = int(entry.name)
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(pid)
            if command.startswith(b"slurmstepd") and opened & logs:
                roots.append(pid)
        found, ahead = [], roots
        while ahead:
            pid = ahead.pop()
            found.append(pid)
            ahead.extend(parents.get(pid, []))
        return found

    def close(self) -> None:
        """Ends jobs, then daemons; what does not go is killed."""
        if "ctld" in self._daemons and self._daemons["ctld"].poll() is None:
            self._ask("scancel", "--user", _user())
            deadline = time.monotonic() + 6
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.1)
        for pid in self.processes():
            _kill(pid)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()

    def _ask(
        self, *command: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        path = str(self._links() / command[0])
        return subprocess.run(
            [path, *command[1:]], capture_output=True, text=True, env=self.env(env), cwd=cwd, timeout=30
        )

    def _start_all(self) -> None:
        run, log = self.home / "run", self.home / "log"
        self._daemon("munge", "usr/sbin/munged", "--force", "--foreground", f"--key-file={self.home / 'munge.key'}",
                     f"--socket={run / 'munge.socket'}", f"--pid-file={run / 'munged.pid'}",
                     f"--log-file={log / 'munged.log'}", f"--seed-file={run / 'munged.seed'}")  # fmt: skip
        _until(lambda: (run / "munge.socket").exists(), "munged")
        self._daemon("ctld", "usr/sbin/slurmctld-wlm", "-D", "-c", "-f", str(self.home / "slurm.conf"))
        for name in NODES:
            self.start_node(name)
        _until(self._idle, "slurmctld and two slurmd")

    def _idle(self) -> bool:
        for name, daemon in self._daemons.items():
            if daemon.poll() is not None:
                log = (self.home / "log" / f"{name}.out").read_text(errors="replace")
                raise NoSlurm(f"{name} of the test cluster ended with {daemon.returncode}: {log[-500:]}")
        done = self._ask("sinfo", "-h", "-N", "-p", "main", "-o", "%T")
        return done.stdout.split() == ["idle", "idle"]

    def _daemon(self, name: str, program: str, *arguments: str) -> None:
        env = self.env()
        env["LD_LIBRARY_PATH"] = libraries(self._tree)
        path = self._tree / program
        if not path.exists():  # a system's own are called without the suffix
            path = path.with_name(path.name.removesuffix("-wlm"))
        with open(self.home / "log" / f"{name}.out", "ab") as out:
            self._daemons[name] = subprocess.Popen([str(path), *arguments], env=env, stdout=out, stderr=out)

    def _links(self) -> Path:
        """Commands as a job and `lacuna submit` find them: they bring their own libraries, and leave none to others."""
        folder = self.home / "bin"
        if not folder.exists():
            folder.mkdir()
            for name in ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo"):
                script = folder / name
                script.write_text(f'#!/bin/sh\nexec {loader(self._tree)}"{self._tree / "usr/bin" / name}" "$@"\n')
                script.chmod(0o755)
        return folder


def _until(ready: object, what: str) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise NoSlurm(f"{what} of the test cluster did not come up in {_START_S:.0f} s")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
