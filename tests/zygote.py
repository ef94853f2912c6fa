"""A fork server for tests of several processes: torch, DeepSpeed and our packages are imported once, ranks are forked.

    outcomes = shared().run("tests/engine/cases.py:losses", world=2, kwargs={"stage": 1})

runs `losses(place, **kwargs)` in two forked processes and gives each one's exit and what it returned (JSON). `start`
gives an Attempt whose `pids` may be signalled; `wait` collects it. The server is a process of its own that makes no
collective and starts no thread before it forks.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRELOAD = (
    "torch", "torch._dynamo", "deepspeed", "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.superoffload.superoffload_stage3", "deepspeed.runtime.zero.muon.muon_optimizer",
    "safetensors.torch", "numpy", "einops",
    "pretrain.engine.engine", "pretrain.engine.checkpoint", "pretrain.engine.watch", "pretrain.train", "launch.start",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """What launch/environment.py would say to the rank."""

    rank: int
    world_size: int
    local_rank: int


@dataclass(frozen=True)
class Outcome:
    """How one rank ended: its exit code, negative for a signal, and what its function returned."""

    code: int
    result: Any
    output: str

    @property
    def value(self) -> Any:
        """The returned value of a rank that must have ended well."""
        assert self.code == 0, f"rank ended with {self.code}:\n{self.output[-6000:]}"
        return self.result


class Attempt:
    """Some ranks on their way."""

    def __init__(self, server: Zygote, number: int, pids: list[int], folder: Path) -> None:
        self.pids = pids
        self._server, self._number, self._folder = server, number, folder

    def wait(self, timeout_s: float = 120.0) -> list[Outcome]:
        """Every rank's outcome; ranks alive after timeout_s are killed."""
        codes = self._server.ask({"wait": self._number, "timeout_s": timeout_s})["codes"]
        return [self._outcome(rank, code) for rank, code in enumerate(codes)]

    def _outcome(self, rank: int, code: int) -> Outcome:
        path = self._folder / f"{rank}.json"
        result = json.loads(path.read_text()) if path.exists() else None
        return Outcome(code, result, (self._folder / f"{rank}.log").read_text(errors="replace"))


class Zygote:
    """Talks to the server process, one JSON line each way."""

    def __init__(self) -> None:
        env = dict(
            os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="",
            TORCHINDUCTOR_COMPILE_THREADS="1",  # DeepSpeed imports the compiler, which must start no helpers
        )  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env
        )
        self._scratch = tempfile.TemporaryDirectory(prefix="zygote-")
        self._count = 0
        assert self.ask({"hello": 1})["ready"]

    def start(self, target: str, world: int = 1, kwargs: dict[str, Any] | None = None) -> Attempt:
        """Forks world ranks that call target, "path/to/file.py:function", as function(place, **kwargs)."""
        self._count += 1
        folder = Path(self._scratch.name) / str(self._count)
        folder.mkdir()
        order = {"start": self._count, "target": target, "world": world, "kwargs": kwargs or {}, "folder": str(folder)}
        return Attempt(self, self._count, self.ask(order | {"port": _free_port()})["pids"], folder)

    def run(
        self, target: str, world: int = 1, kwargs: dict[str, Any] | None = None, timeout_s: float = 120.0
    ) -> list[Outcome]:
        """start, then wait."""
        return self.start(target, world, kwargs).wait(timeout_s)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Sends one order and reads its answer."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the zygote died"
        return json.loads(answer)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the server; it kills what it still runs."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(30)
        self._scratch.cleanup()


@cache
def shared() -> Zygote:
    """One server for all tests of this process."""
    zygote = Zygote()
    atexit.register(zygote.close)
    return zygote


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# What follows runs in the server process.


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed must not reach the pipe
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in PRELOAD:
        importlib.import_module(name)
    running: dict[int, list[int]] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            pids = [_fork(order, rank, answers) for rank in range(order["world"])]
            running[order["start"]] = pids
            answer: dict[str, Any] = {"pids": pids}
        elif "wait" in order:
            answer = {"codes": _reap(running.pop(order["wait"]), order["timeout_s"])}
        else:
            answer = {"ready": True}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for pids in running.values():
        _reap(pids, 0)


def _fork(order: dict[str, Any], rank: int, answers: Any) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        answers.close()
        log = os.open(f"{order['folder']}/{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = _rank(order, rank)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _rank(order: dict[str, Any], rank: int) -> int:
    import importlib.util

    world = order["world"]
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(order["port"]),
    }  # fmt: skip
    path, function = order["target"].rsplit(":", 1)
    spec = importlib.util.spec_from_file_location("zygote_target", ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["zygote_target"] = module
    spec.loader.exec_module(module)
    place = Place(rank, world, rank)
    result = getattr(module, function)(place, **order["kwargs"])
    Path(f"{order['folder']}/{rank}.json").write_text(json.dumps(result))
    return 0


def _reap(pids: list[int], timeout_s: float) -> list[int]:
    """Exit codes of pids, in order; those alive after timeout_s are killed."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if len(codes) < len(pids):
            if time.monotonic() > deadline:
                for pid in pids:
                    if pid not in codes:
                        os.kill(pid, signal.SIGCONT)
                        os.kill(pid, signal.SIGKILL)
                deadline = time.monotonic() + 30
            time.sleep(0.003)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    _serve()
