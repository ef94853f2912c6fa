"""The mirror process: follows a run's line files and tells W&B what it does not have yet.

Started by `wandb_mirror.Mirror` with the run directory; wandb/job.json says the rest. It lives as long as its standard
input is open, then sends what is left and ends, within `_GRACE_S` whatever W&B does. What W&B has is not remembered but
looked up: the server's step where there is one, else the rows that reached the logs in wandb/. Nothing is sent twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.tracking.lines import Record, inspected_numbers
from pretrain.tracking.wandb_log import read_history

_POLL_S = 1.0
_SETTLE_S = 3.0
_GRACE_S = 30.0  # from the end of the parent to the end of this process
_PROBE_S = 3.0
_INIT_S = 30.0
_PICTURES = {  # by the group of a journal's line
    "panels": "panels/reconstruction",
    "alignment": "alignment/matrix",
    "heterogeneity": "heterogeneity/blocks",
    "samples": "samples/generated",
}
_GROUPS = ("eval", "inspect", *_PICTURES)
_FOLLOWED = ("metrics", "evaluations", "inspections", "journal")
_TEXT_KEYS = ("loss_hex", "digest")  # for comparing runs to the bit, not for curves


def main(run_dir: str) -> None:
    """Mirrors the run until the parent closes the pipe or is gone."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)  # the launcher's signals are for training; the pipe tells us
    os.nice(10)
    folder = Path(run_dir) / "wandb"
    import wandb

    ending = threading.Event()
    threading.Thread(target=_watch_parent, args=(ending,), daemon=True).start()
    with _alone(folder):
        job = json.loads((folder / "job.json").read_text())
        _settle(folder)
        run, mode = _init(Path(run_dir), job)
        sender = Sender(Path(run_dir), run, mode)
        sender.follow(ending)
        run.finish()
        wandb.teardown()  # W&B's own process may still be writing until here
        sender.note(ended=True)
    os._exit(0)  # not through the exit hooks: everything is written, and they might wait


class Sender:
    """Tells an open W&B run what is in the line files and not in W&B."""

    def __init__(self, run_dir: Path, run: Any, mode: str):
        self._run_dir = run_dir
        self._run = run
        self._mode = mode
        self._tails = {name: Tail(run_dir / f"{name}.jsonl") for name in _FOLLOWED}
        self._last, self._sent = _on_disk(run_dir / "wandb")
        if mode == "online":
            self._last = run.starting_step - 1 if run.resumed else 0
            self._sent = {key for key in self._sent if key[1] <= self._last}
        self._waiting: list[tuple[int, str, Record]] = []  # evaluations, inspections, panels: (step, group, record)
        self._in_row: set[str] = set()  # groups that are in W&B's current row already

    def follow(self, ending: threading.Event) -> None:
        """Sends rows as they are written; returns when ending is set and nothing is left."""
        ended = False
        while not ended:
            ended = ending.wait(_POLL_S)
            self._send()
        while self._waiting:  # nothing came after them: they get rows of their own
            self._next_row(self._last + 1)
            self._send_extras(self._last)

    def _send(self) -> None:
        self._waiting += [(row["step"], "eval", row) for row in self._tails["evaluations"].new()]
        self._waiting += [(row["step"], "inspect", row) for row in self._tails["inspections"].new()]
        panels = [row for row in self._tails["journal"].new() if row["event"] == "panel"]
        self._waiting += [(row["step"], row.get("group", "panels"), row) for row in panels]
        self._waiting.sort(key=lambda item: item[:2])
        self._send_extras(self._last)
        for row in self._tails["metrics"].new():
            if row["step"] > self._last:
                self._next_row(row["step"])
                self._run.log({"step": row["step"], **_numbers(row)}, step=row["step"])
                self._send_extras(row["step"])
        self.note(ended=False)

    def note(self, *, ended: bool) -> None:
        """Says in wandb/status.json how far this mirror is."""
        path = self._run_dir / "wandb" / "status.json"
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps({"mode": self._mode, "sent": self._last, "ended": ended}))
        os.replace(temporary, path)

    def _next_row(self, step: int) -> None:
        self._last = step
        self._in_row = set()

    def _send_extras(self, step: int) -> None:
        """Puts what is waiting up to step into the current row, one of a kind; the others wait for the next.

        They have steps of their own, since W&B's only ever grows and may be past them; and they must not push it past
        step records that are not written yet, which W&B would then drop."""
        waiting, self._waiting = self._waiting, []
        for item in waiting:
            at, group, row = item
            if (group, at) in self._sent:
                continue
            if at > step or group in self._in_row:
                self._waiting.append(item)
                continue
            self._sent.add((group, at))
            self._in_row.add(group)
            if group in _PICTURES:
                values = self._picture(group, at, self._run_dir / row["path"])
            else:
                found = _numbers(row) if group == "eval" else inspected_numbers(row)
                values = {f"{group}/{name}": value for name, value in found.items() if name != "step"}
            if values:
                self._run.log({f"{group}/step": at, **values}, step=step)

    def _picture(self, group: str, step: int, path: Path) -> Record:
        import wandb

        try:
            return {_PICTURES[group]: wandb.Image(str(path), caption=f"step {step}")}
        except OSError as error:
            print(f"picture {path}: {error}", file=sys.stderr)
            return {}


class Tail:
    """Reads what was appended to a file of JSON lines since the last look."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0

    def new(self) -> list[Record]:
        """The whole lines that are new."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def _init(run_dir: Path, job: Record) -> tuple[Any, str]:
    """The open W&B run and whether it is "online" or "offline". What online cannot do is done offline."""
    import wandb

    settings = wandb.Settings(
        save_code=False, disable_code=True, disable_git=True, disable_job_creation=True, x_save_requirements=False,
        console="off", silent=True, base_url=job["base_url"], init_timeout=_INIT_S, x_stats_pid=os.getppid(),
    )  # fmt: skip
    common = {key: job[key] for key in ("id", "project", "entity", "group", "name", "config")}
    common |= {"job_type": "pretrain", "save_code": False}
    online = job["mode"] == "probe" and _answers(job["base_url"])
    for mode in ("online", "offline") if online else ("offline",):
        _wait_for_a_free_name(run_dir / "wandb")
        try:
            run = wandb.init(dir=run_dir, mode=mode, resume="allow", settings=settings, **common)
        except wandb.errors.Error as error:
            print(f"wandb.init({mode}): {error}", file=sys.stderr)
            if mode == "offline":
                raise
            wandb.teardown()  # else its service would say that this run id is in use
            continue
        for group in _GROUPS:
            run.define_metric(f"{group}/step", hidden=True)
            run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        return run, mode
    raise AssertionError("offline is always tried")


def _wait_for_a_free_name(folder: Path) -> None:
    """The client names its folder after the second and the run's id, and would write over one of the same second."""
    while list(folder.glob(time.strftime("*run-%Y%m%d_%H%M%S-*"))):
        time.sleep(0.05)


def _answers(base_url: str) -> bool:
    """Whether a server speaks HTTP at base_url, whatever it says; seconds, where W&B itself would try for minutes."""
    if not base_url.startswith(("http://", "https://")):
        return False
    try:
        urllib.request.urlopen(base_url, timeout=_PROBE_S).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _on_disk(folder: Path) -> tuple[int, set[tuple[str, int]]]:
    """The last step in the logs below folder, and the (group, step) of evaluations, inspections and panels there."""
    last, extras = 0, set()
    for path in folder.glob("*run-*/run-*.wandb"):
        if path.parent.is_symlink():  # latest-run
            continue
        for row in read_history(path):
            last = max(last, int(row.get("step") or 0))
            extras |= {(group, int(row[f"{group}/step"])) for group in _GROUPS if f"{group}/step" in row}
    return last, extras


def _numbers(row: Record) -> Record:
    return {name: value for name, value in row.items() if isinstance(value, int | float) and name not in _TEXT_KEYS}


def _watch_parent(ending: threading.Event) -> None:
    """Waits for "close" or the end of the pipe (workers forked by training may keep it open) or of the parent."""
    parent = os.getppid()
    threading.Thread(target=_watch_pipe, args=(ending,), daemon=True).start()
    while os.getppid() == parent and not ending.wait(_POLL_S):
        pass
    ending.set()
    time.sleep(_GRACE_S)
    os._exit(3)


def _watch_pipe(ending: threading.Event) -> None:
    sys.stdin.readline()
    ending.set()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One mirror a run at a time: that of a killed attempt may still be writing its last rows."""
    with open(folder / "mirror.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _settle(folder: Path) -> None:
    """Gives W&B's own process the time to write its last rows where the mirror before this one was killed."""
    try:
        ended = json.loads((folder / "status.json").read_text())["ended"]
    except (OSError, ValueError, KeyError):
        ended = not list(folder.glob("*run-*"))
    if not ended:
        time.sleep(_SETTLE_S)
