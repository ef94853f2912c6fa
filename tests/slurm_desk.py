"""A user's place on the cluster of tests/slurm_cluster.py: an empty folder, the commands, one run."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from tests import chaos
from tests.slurm_cluster import Cluster
from tests.syntax import ROOT

STEPS = 300
TINY = "configs/tiny_cpu.py"


def settings(run_dir: Path, pattern: str, *more: str) -> list[str]:
    """Of a run on the desk."""
    return [*chaos.overrides(run_dir, pattern, STEPS, stage=1, workers=0), *more]


class Desk:
    """The folder, and what is done there."""

    def __init__(self, cluster: Cluster, folder: Path, pattern: str) -> None:
        self.cluster, self.folder, self.pattern = cluster, folder, pattern
        self.run_dir = folder / "runs" / "first"
        self.env = cluster.env()
        self.env["PATH"] += f":{Path(sys.executable).parent}"
        self.env["PATH"] = f"{Path(sys.executable).parent}:{self.env['PATH']}"
        self.env["PYTHONPATH"] = str(ROOT)

    def lacuna(self, *words: str, code: int = 0) -> str:
        """What the command says."""
        done = subprocess.run([sys.executable, "-m", "launch", *words], cwd=self.folder, env=self.env,
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr

    def submit(self, *options: str, nodes: int = 2, config: str = TINY, more: tuple[str, ...] = ()) -> str:
        """The job's number."""
        given = settings(Path("runs/first"), self.pattern, *more)
        if "--finetune" in options:  # a classifier has no decoder
            given = [word for word in given if not word.startswith("objective.decoder")]
        words = [str(ROOT / config), *given, "--nodes", str(nodes), "--gpus-per-node", "0", "--cpus-per-task", "1",
                 *options]  # fmt: skip
        said = self.lacuna("submit", *words)
        found = re.search(r"submitted job (\d+)", said)
        assert found, said
        return found[1]

    def until_step(self, step: int, run_dir: Path | None = None, timeout_s: float = 90) -> None:
        """Until a checkpoint of that step is there."""
        deadline = time.monotonic() + timeout_s
        while chaos.last_step(run_dir or self.run_dir) < step:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def tasks(self, node: str | None = None) -> list[int]:
        """Ranks that are running, of one node."""
        found = []
        for pid in self.cluster.processes(node):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"launch" in words and {b"train", b"finetune"} & {*words} and words[0].endswith(b"python"):
                found.append(pid)
        return sorted(found)

    def ends(self, job: str, *states: str) -> None:
        """Waits for the job's end, which must be one of states."""
        found = self.cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", timeout_s=200)
        assert found in states, f"{found}\n{self.log()}"

    def log(self) -> str:
        """The end of what the run's jobs wrote."""
        return "\n".join(path.read_text(errors="replace") for path in self.run_dir.glob("submitted/log-*"))[-5000:]

    def attempts(self) -> int:
        """How often the run was started."""
        return len(list((self.run_dir / "attempts").glob("*.json")))
