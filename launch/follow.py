"""`lacuna runs`, `show`, `tail`, `cancel`: what runs are doing, by their directories and, where it is there, SLURM."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch import slurm
from launch.submit import SUBMITTED
from pretrain import strict_json
from pretrain.engine.attempts import Attempts
from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from pretrain.tracking.lines import Record
    from pretrain.tracking.run_data import RunData

_POLL_S = 0.5


def add_runs_options(made: argparse.ArgumentParser) -> None:
    """What `lacuna runs` may be told."""
    made.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="directory of runs (default runs)")


def add_run_option(made: argparse.ArgumentParser) -> None:
    """The run that `show`, `tail` and `cancel` are about."""
    made.add_argument("run", type=Path, help="run directory, for example runs/first")


@dataclass(frozen=True)
class Standing:
    """How a run stands."""

    state: str  # queued, running, done, stopped, failed or ended
    job: str | None
    why: str = ""  # of a run that is not going on


def standing(run_dir: Path, jobs: dict[str, str]) -> Standing:
    """Of the run at run_dir, jobs being what SLURM says of each."""
    from pretrain.tracking.lines import read_lines

    journal = read_lines(run_dir / "journal.jsonl")
    job = _job(run_dir, journal)
    known = jobs.get(job or "")
    if known == "PENDING":
        return Standing("queued", job)
    if known is not None:
        return Standing("running", job)
    last = next((event for event in reversed(journal) if event.get("event") in ("started", "stopped")), {})
    attempt = _attempt(run_dir)
    if attempt.get("host") == socket.gethostname() and _alive(attempt):
        return Standing("running", job)
    if last.get("event") == "stopped":
        state = "stopped" if last.get("exit_code") == 75 else "failed"
        return Standing(state, job, str(last.get("reason", "")))
    if not journal:
        return Standing("queued" if job else "empty", job)
    run = _load(run_dir)
    if run is not None and run.total_steps is not None and run.last_step >= run.total_steps:
        return Standing("done", job)
    return Standing("ended", job, "without a word: killed, or its machine was lost; or it runs on another machine")


def runs(options: argparse.Namespace) -> None:
    """A line a run, the newest last."""
    folders = _folders(options.folder)
    jobs = slurm.states()
    rows = [("run", "state", "step", "loss", "images/s", "last line", "checkpoint", "job")]
    for folder in folders:
        found, run = standing(folder, jobs), _load(folder)
        last = run.steps[-1] if run is not None and run.steps else {}
        total = f"/{run.total_steps:,}" if run is not None and run.total_steps else ""
        rows.append((
            folder.name, found.state, f"{last.get('step', 0):,}{total}", _number(last.get("loss"), ".4f"),
            _number(last.get("images_per_s"), ",.0f"), _age(folder / "metrics.jsonl"), _newest(folder), found.job or "",
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def show(options: argparse.Namespace) -> None:
    """One run: how it stands, its attempts, its checkpoints, what happened last, and what to do."""
    folder = _run(options.run)
    found, run = standing(folder, slurm.states()), _load(folder)
    print(f"run         {folder}")
    print(f"state       {found.state}" + (f": {found.why}" if found.why else ""))
    if found.job:
        print(f"job         {found.job}")
    if run is not None and run.steps:
        last, total = run.steps[-1], f" of {run.total_steps:,}" if run.total_steps else ""
        rate = f", {run.images_per_s():,.0f} images/s" if run.images_per_s() else ""
        print(f"step        {last['step']:,}{total}, loss {_number(last.get('loss'), '.4f')}{rate}")
    for path in sorted((folder / "attempts").glob("[0-9]*.json")):
        facts, published = _json(path), Attempts(folder).steps_of(int(path.stem))
        what = f"checkpoints to step {published[-1]:,}" if published else "no checkpoint"
        print(f"attempt {int(path.stem):<3} {facts.get('world_size', '?')} processes on {facts.get('host', '?')}"
              f"{', job ' + str(facts['job']) if facts.get('job') else ''}: {what}")  # fmt: skip
    for path in sorted((folder / "ckpt").glob("[0-9]*-a*")):
        size = sum(file.stat().st_size for file in path.iterdir())
        print(f"checkpoint  {path.name}, {size / 1e6:,.1f} MB")
    for event in (run.journal if run is not None else [])[-6:]:
        print(f"journal     {_event(event)}")
    print(f"next        {_next(found, folder)}")


def tail(options: argparse.Namespace) -> None:
    """The last lines of the run's log, or of its metrics where no job wrote one; with -f those to come."""
    folder = _run(options.run)
    path = _newest_log(folder) or folder / "metrics.jsonl"
    if not path.exists():
        raise ConfigError(f"{folder} has neither a log nor metrics yet; is its job still queued? lacuna runs")
    print(f"==> {path}")
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file.readlines()[-options.lines :]:
            print(line, end="")
        while options.follow:
            line = file.readline()
            if line:
                print(line, end="", flush=True)
            else:
                time.sleep(_POLL_S)


def cancel(options: argparse.Namespace) -> None:
    """Ends the run's job, or asks its process here to save and leave."""
    folder = _run(options.run)
    found = standing(folder, slurm.states())
    if found.state not in ("queued", "running"):
        raise ConfigError(f"{folder} is not going on: it is {found.state}")
    if found.job and slurm.available():
        slurm.cancel(found.job)
        print(f"job {found.job} is cancelled; what was saved stays, and lacuna submit goes on from it")
        return
    os.kill(int(_attempt(folder)["pid"]), signal.SIGTERM)
    print("asked to stop: it saves and leaves with 75")


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a directory of runs; give one, for example: lacuna runs runs")
    marks = ("journal.jsonl", "attempts", SUBMITTED)
    found = [path for path in folder.iterdir() if any((path / mark).exists() for mark in marks)]
    return sorted(found, key=lambda path: max((path / m).stat().st_mtime for m in marks if (path / m).exists()))


def _run(folder: Path) -> Path:
    if not any((folder / mark).exists() for mark in ("journal.jsonl", "attempts", SUBMITTED)):
        raise ConfigError(f"{folder} is not the directory of a run; lacuna runs lists those that there are")
    return folder


def _load(folder: Path) -> RunData | None:
    from pretrain.tracking.run_data import load_run

    try:
        return load_run(folder)
    except ConfigError:  # nothing trained yet
        return None


def _job(folder: Path, journal: list[Record]) -> str | None:
    """The newest job that has to do with the run: one that started it, or that was submitted since."""
    from pretrain.tracking.lines import read_lines

    known = [(e.get("time", 0), e.get("job")) for e in journal if e.get("event") == "started"]
    known += [(e.get("time", 0), e.get("job")) for e in read_lines(folder / SUBMITTED)]
    jobs = [str(job) for _, job in sorted(known, key=lambda pair: pair[0]) if job]
    return jobs[-1] if jobs else None


def _attempt(folder: Path) -> Record:
    names = sorted((folder / "attempts").glob("[0-9]*.json"))
    return _json(names[-1]) if names else {}


def _alive(attempt: Record) -> bool:
    """Whether the process that made the attempt still runs, and is Lacuna's."""
    try:
        command = Path(f"/proc/{int(attempt['pid'])}/cmdline").read_bytes()
    except (OSError, KeyError, ValueError, TypeError):
        return False
    return b"launch" in command or b"lacuna" in command


def _newest_log(folder: Path) -> Path | None:
    logs = sorted((folder / "submitted").glob("log-*.txt"), key=lambda path: path.stat().st_mtime)
    return logs[-1] if logs else None


def _newest(folder: Path) -> str:
    try:
        return f"step {int(os.readlink(folder / 'latest').rpartition('/')[2][:10]):,}"
    except (OSError, ValueError):
        return ""


def _next(found: Standing, folder: Path) -> str:
    done = f"lacuna evaluate {folder}, lacuna export {folder}, lacuna report {folder}"
    return {
        "done": done,
        "queued": f"wait, or lacuna cancel {folder}",
        "running": f"lacuna tail {folder} -f",
        "stopped": "give the same train, finetune or submit line again: it goes on where it was",
    }.get(found.state, "look at its log, mend what it names, and give the same line again")


def _event(event: Record) -> str:
    when = time.strftime("%m-%d %H:%M:%S", time.localtime(float(event.get("time", 0))))
    facts = {key: value for key, value in event.items() if key not in ("time", "event") and value is not None}
    rest = ", ".join(f"{key} {value}" for key, value in facts.items())
    return f"{when} {event.get('event', '?')}: {rest}"


def _age(path: Path) -> str:
    try:
        seconds = time.time() - path.stat().st_mtime
    except OSError:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""


def _json(path: Path) -> Record:
    try:
        found = strict_json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
