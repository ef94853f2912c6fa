"""Real runs of the tiny config beside a W&B that is dead, mute, broken or killed: goal G13."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from pretrain.tracking.lines import read_lines
from tests import chaos
from tests.campaign import Counts, counted
from tests.zygote import shared

KINDS = ("refused", "mute", "killed", "errors")
STEPS = 150
CASE = "tests/tracking/dead_wandb.py:rank"


def wandb_campaign(number: int, first: int = 0) -> Counts:
    """Each case is a two-rank run with W&B in one kind of trouble; it must end as the run without W&B, bit for bit."""
    failures, slower = [], []
    with tempfile.TemporaryDirectory(prefix="wandb-") as folder:
        base = Path(folder)
        pattern = chaos.make_shards(base / "shards")
        calm = base / "runs" / "calm"
        _run(calm, pattern, {}, "off")
        for case in range(first, first + number):
            run_dir, kind = base / "runs" / f"case-{case}", KINDS[case % len(KINDS)]
            with _server(kind) as url:
                victims = _run(run_dir, pattern, {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}, "online", kind)
            slower.append(_step_s(run_dir) / _step_s(calm))
            try:
                chaos.compare(calm, run_dir)
                assert (kind == "killed") == bool(victims), f"{victims} mirrors were killed"
            except AssertionError as error:
                failures.append(f"case {case}, {kind}: {error}")
    return counted(number, failures, worst_step_time_ratio=round(max(slower), 3))


def rank(place: Any, overrides: list[str], env: dict[str, str]) -> int:
    """What a forked rank does: `lacuna train` of the tiny config with a W&B of its own."""
    os.environ.pop("WANDB_MODE", None)
    os.environ |= env
    return chaos.rank(place, overrides)


def _run(run_dir: Path, pattern: str, env: dict[str, str], wandb: str, kind: str = "") -> int:
    """One run to its end; how many W&B processes were killed in the middle of it."""
    settings = [*chaos.overrides(run_dir, pattern, STEPS, stage=1, workers=0), f"tracking.wandb={wandb}"]
    attempt = shared().start(CASE, 2, {"overrides": settings, "env": env})
    killed = 0
    while kind == "killed" and not killed:
        if chaos._lines(run_dir) > STEPS // 5:
            killed = sum(_kill(pid) for pid in mirrors(attempt.pids[0]))
        time.sleep(0.02)
    for outcome in attempt.wait(300):
        assert outcome.code == 0, outcome.output[-3000:]
    return killed


def mirrors(parent: int) -> list[int]:
    """Processes below parent that run the mirror, or W&B's own service below it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            above = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            words = (path / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue  # it has just ended
        if above == parent and b"wandb_child" in words:
            found += [*_children(int(path.name)), int(path.name)]
    return found


def _children(parent: int) -> list[int]:
    """Children of parent."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _step_s(run_dir: Path) -> float:
    """Median seconds of a step, from the lines' own rates."""
    return median(24 / line["images_per_s"] for line in read_lines(run_dir / "metrics.jsonl")[20:])


@contextmanager
def _server(kind: str) -> Iterator[str]:
    """A W&B server in trouble, on loopback: its URL."""
    with ExitStack() as stack:
        if kind == "errors":
            server: Any = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Errors))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            port = server.server_port
        elif kind == "refused":
            port = 1
        else:  # takes connections and never answers
            mute = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = mute.getsockname()[1]
        yield f"http://127.0.0.1:{port}"


class _Errors(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass
