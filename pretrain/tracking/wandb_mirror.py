"""W&B as a mirror of the line files, in a process of its own.

The queue between training and W&B is metrics.jsonl itself: the mirror (`wandb_child.py`) follows the file as it grows.
So the step never hands anything over, nothing is held in memory, nothing has to be dropped, and a mirror that was slow,
killed or out of disk is made good by the next one, which finds in W&B's own log what has arrived. All that training
ever does is start the process and, every few steps, ask the kernel whether it is still there.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pretrain.tracking.access import WandbAccess
from pretrain.tracking.lines import Record
from pretrain.tracking.settings import TrackingConfig

_ROOT = Path(__file__).resolve().parents[2]
_START = "import sys; sys.path[0] = sys.argv[2]; from pretrain.tracking.wandb_child import main; main(sys.argv[1])"
_RESTART_S = (30.0, 120.0, 600.0)  # pauses before a mirror that died is started again; then it stays dead


def choose_mode(wanted: str, access: WandbAccess) -> str | None:
    """What tracking.wandb means: "probe" (online if the server answers, else offline), "offline", or None (no W&B)."""
    if wanted == "off" or (wanted == "auto" and access.mode == "disabled"):
        return None
    if wanted == "offline" or not access.has_key:
        return "offline"
    return "offline" if wanted == "auto" and access.mode in ("offline", "dryrun") else "probe"


class Mirror:
    """The mirror process as training sees it. No method raises, and only `close` waits."""

    def __init__(
        self,
        run_dir: Path,
        run_id: str,
        config_json: Record,
        cfg: TrackingConfig,
        mode: str,
        base_url: str,
        warn: Callable[[str], None],
        restart_s: tuple[float, ...] = _RESTART_S,
    ):
        """mode: of `choose_mode`; base_url: the server; warn: told once if W&B is lost; restart_s: pauses."""
        self._run_dir = Path(run_dir)
        self._job = {
            "id": run_id,
            "mode": mode,
            "base_url": base_url,
            "project": cfg.project,
            "entity": cfg.entity,
            "group": cfg.group,
            "name": config_json.get("name"),
            "config": config_json,
        }
        self._warn = warn
        self._warned = False
        self._process: subprocess.Popen[bytes] | None = None
        self._restart_s = list(restart_s)
        self._start_at = math.inf  # monotonic time of the next start

    @property
    def pid(self) -> int | None:
        """The process id of the mirror, None while there is none."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Starts the process and returns at once."""
        self._start_at = math.inf
        try:
            folder = self._run_dir / "wandb"
            folder.mkdir(exist_ok=True)
            (folder / "job.json").write_text(json.dumps(self._job))
            with open(folder / "mirror.log", "ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START, str(self._run_dir.resolve()), str(_ROOT)],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            self._lost(f"could not be started ({error.strerror})")

    def check(self) -> None:
        """Notices a mirror that died, says so once, and starts it again after a pause. Costs a system call."""
        if self._process is not None and self._process.poll() is not None:
            self._lost(f"ended with status {self._process.returncode}")
        if time.monotonic() >= self._start_at:
            self.start()

    def close(self, last_step: int, timeout_s: float) -> None:
        """Lets the mirror catch up for timeout_s at most, then ends it and says what it has not sent."""
        status = self._end(timeout_s)
        sent = self._sent()
        if status != 0 and sent < last_step:
            self._warn(
                f"W&B has {max(sent, 0)} of {last_step} steps; metrics.jsonl has them all, and the next start of "
                f"{self._run_dir.name} sends the rest"
            )

    def _end(self, timeout_s: float) -> int | None:
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return None
        try:
            process.stdin.write(b"close\n")
            process.stdin.close()
        except OSError:
            pass  # it is dead already, as wait will find
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None

    def _sent(self) -> int:
        try:
            return int(json.loads((self._run_dir / "wandb" / "status.json").read_text())["sent"])
        except (OSError, ValueError, KeyError):
            return 0

    def _lost(self, why: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        if self._restart_s:
            self._start_at = time.monotonic() + self._restart_s.pop(0)
        if not self._warned:
            self._warned = True
            self._warn(
                f"W&B {why}; training goes on and metrics.jsonl has every step; see {self._run_dir}/wandb/mirror.log"
            )
