"""`lacuna submit`: a run, or a sweep of runs, as a SLURM job.

The config is checked for as many processes as are asked for before anything is written. Code and config are then copied
below the run directory, submitted/0001/, so that what is changed here while the job waits, or between two of its
restarts, does not change the job. The script is slurm/train.sbatch, filled in.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import slurm
from launch.sbatch import arguments, array, render
from launch.site import Site, read_site
from pretrain.errors import ConfigError

_PACKAGES = ("masking", "pretrain", "launch", "configs", "slurm")
_TIME = re.compile(r"(\d+-)?\d{1,3}(:\d{2}){0,2}")
SUBMITTED = "submitted.jsonl"


def add_options(made: argparse.ArgumentParser) -> None:
    """What `lacuna submit` may be told."""
    made.add_argument("config", help="a Python file with config(), see configs/")
    made.add_argument("--finetune", action="store_true", help="the job runs lacuna finetune in place of lacuna train")
    made.add_argument("--from-scratch", action="store_true", help="with --finetune: begin with drawn weights")
    made.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings that differ from the file")
    made.add_argument("--nodes", type=int, default=1, help="machines (default 1)")
    made.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="one process each (default 8)")
    made.add_argument("--tasks-per-node", type=int, metavar="N", help="processes, with --gpus-per-node 0 (default 1)")
    made.add_argument("--cpus-per-task", type=int, metavar="N", help="cores a process (default: the site's, or 12)")
    made.add_argument("--time", default="24:00:00", help="wall time; the run goes on in the next (default 24:00:00)")
    made.add_argument("--notice", type=int, default=300, metavar="S", help="warn so long before it ends (default 300)")
    for name in ("partition", "account", "qos", "constraint", "mem"):
        made.add_argument(f"--{name}", help=f"SLURM's --{name} (default: the site's)")
    made.add_argument("--sweep", action="append", default=[], metavar="KEY=V1,V2",
                      help="a run for each value, as a job array; again for a grid")  # fmt: skip
    made.add_argument("--after", metavar="JOB", help="begin when that job has ended well")
    made.add_argument("--site", type=Path, metavar="FILE", help="the cluster's own words (slurm/site.example.toml)")
    made.add_argument("--dry-run", action="store_true", help="print the script and do nothing")


@dataclass(frozen=True)
class _Run:
    """One run of the submission: what is given beside the config, and where it will be."""

    name: str
    directory: Path
    overrides: tuple[str, ...]


def submit(options: argparse.Namespace) -> None:
    """Checks, copies, renders, submits, and says how to follow it."""
    site = read_site(options.site)
    tasks = _check(options)
    runs = _runs(options, options.nodes * tasks)
    home = _home(runs, options.dry_run)
    script = render(_options(options, site, tasks, runs), _lines(options, site, home, runs))
    if options.dry_run:
        print(script, end="")
        return
    _copy(options.config, home, runs)
    path = home / "job.sbatch"
    path.write_text(script)
    job = slurm.submit(path)
    for number, run in enumerate(runs):
        _note(run, job if len(runs) == 1 else f"{job}_{number}", home)
    log = str(_log(runs)).replace("%j", job).replace("%A", job).replace("%a", "N")
    print(f"submitted job {job}: {', '.join(run.name for run in runs)}")
    print(f"its log will be {log}; follow it: lacuna tail {runs[0].directory} -f; all runs: lacuna runs")


def _check(options: argparse.Namespace) -> int:
    """Processes on a node. Raises ConfigError."""
    if options.nodes < 1 or options.gpus_per_node < 0 or options.notice < 0:
        raise ConfigError("--nodes must be 1 or more, --gpus-per-node and --notice 0 or more")
    if options.gpus_per_node and options.tasks_per_node is not None:
        raise ConfigError("there is one process a GPU; give --tasks-per-node only with --gpus-per-node 0")
    if options.from_scratch and not options.finetune:
        raise ConfigError("--from-scratch says how a fine-tuning begins; give --finetune with it, or leave it out")
    if not _TIME.fullmatch(options.time):
        raise ConfigError(f"--time={options.time}; write 24:00:00, or 2-12:00:00 for two days and a half")
    if options.after is not None and not slurm.is_job(options.after):
        raise ConfigError(f"--after={options.after} is no job number; it is like 1234")
    tasks = options.gpus_per_node or options.tasks_per_node or 1
    if tasks < 1:
        raise ConfigError(f"--tasks-per-node={tasks} must be 1 or more")
    return int(tasks)


def _runs(options: argparse.Namespace, world_size: int) -> list[_Run]:
    """The run, or those of the sweep, each checked. Raises ConfigError."""
    from launch.finetune import check_finetune
    from pretrain.checks import check
    from pretrain.config import load_config

    found = []
    grid = list(itertools.product(*(_values(text) for text in options.sweep)))
    for number, point in enumerate(grid):
        overrides = [*options.overrides, *point]
        config = load_config(options.config, overrides)
        if point:
            overrides.append(f"name={config.name}-{number}")
            config = load_config(options.config, overrides)
        if options.finetune:
            check_finetune(config, from_scratch=options.from_scratch)
        check(config, world_size)
        found.append(_Run(config.name, config.run_dir, tuple(overrides)))
    return found


def _values(text: str) -> list[str]:
    key, equals, values = text.partition("=")
    if not equals or not key or not all(values.split(",")):
        raise ConfigError(f"--sweep {text}; write a setting and its values, for example optim.base_lr=1e-4,3e-4")
    return [f"{key}={value}" for value in values.split(",")]


def _home(runs: Sequence[_Run], dry: bool) -> Path:
    """A new directory for this submission, below the first of its runs."""
    folder = runs[0].directory / "submitted"
    number = 1 + max((int(path.name) for path in folder.glob("[0-9]" * 4)), default=0)
    home = folder / f"{number:04d}"
    if not dry:
        try:
            home.mkdir(parents=True)
        except OSError as error:
            raise ConfigError(f"{home} cannot be made ({error.strerror}); set runs_dir to one you can write") from error
    return home


def _options(options: argparse.Namespace, site: Site, tasks: int, runs: Sequence[_Run]) -> dict[str, str | None]:
    gpus = site.gpus.replace("{gpus}", str(options.gpus_per_node)) if options.gpus_per_node else ""
    cpus = options.cpus_per_task or site.cpus_per_task
    found: dict[str, str | None] = {
        "job-name": re.sub(r"[^\w.+-]", "_", runs[0].name),
        "nodes": str(options.nodes),
        "ntasks-per-node": str(tasks),
        "gpus": gpus,
        "time": options.time,
        "signal": f"USR2@{options.notice}" if options.notice else None,
        "output": str(_log(runs)),
    }
    if cpus:
        found["cpus-per-task"] = str(cpus)
    for name in ("partition", "account", "qos", "constraint", "mem"):
        value = getattr(options, name) or getattr(site, name)
        if value:
            found[name] = str(value)
    if len(runs) > 1:
        found["array"] = f"0-{len(runs) - 1}"
    if options.after:
        found["dependency"] = f"afterok:{options.after}"
        found["kill-on-invalid-dep"] = "yes"
    for text in site.sbatch:
        name, _, value = text.removeprefix("--").partition("=")
        found[name] = value
    return found


def _log(runs: Sequence[_Run]) -> Path:
    """The log's name, as SLURM fills it in."""
    return runs[0].directory / "submitted" / ("log-%A_%a.txt" if len(runs) > 1 else "log-%j.txt")


def _lines(options: argparse.Namespace, site: Site, home: Path, runs: Sequence[_Run]) -> list[str]:
    """What the script has at its mark: the site's lines, the code, and what the run is told."""
    lines = ["module load " + " ".join(map(shlex.quote, name.split())) for name in site.modules] + list(site.setup)
    code = shlex.quote(str((home / "code").absolute()))
    lines.append(f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}")
    if site.run:
        lines.append(f"run={array(site.run)}")
    if options.finetune:
        lines.append("verb=finetune")
    flags = [flag for flag, said in (("--trust", options.trust), ("--from-scratch", options.from_scratch)) if said]
    words = [*flags, str(home / "config.py")]
    if len(runs) == 1:
        lines.append(arguments([*words, *runs[0].overrides]))
    else:
        lines.append('case "$SLURM_ARRAY_TASK_ID" in')
        lines += [f"    {n}) {arguments([*words, *run.overrides])} ;;" for n, run in enumerate(runs)]
        lines.append("esac")
    return lines


def _copy(config: str, home: Path, runs: Sequence[_Run]) -> None:
    """The code that is running now, and the config file."""
    here = Path(__file__).resolve().parent.parent
    for name in _PACKAGES:
        shutil.copytree(here / name, home / "code" / name, ignore=shutil.ignore_patterns("__pycache__", "site.toml"))
    shutil.copyfile(config, home / "config.py")
    (home / "runs.json").write_text(json.dumps({run.name: run.overrides for run in runs}, indent=2) + "\n")


def _note(run: _Run, job: str, home: Path) -> None:
    run.directory.mkdir(parents=True, exist_ok=True)
    line = {"time": round(time.time(), 3), "job": job, "script": str(home / "job.sbatch")}
    with open(run.directory / SUBMITTED, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
