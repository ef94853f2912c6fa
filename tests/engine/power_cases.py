"""What a forked rank does under the crash model: a run that saves, resumes, prunes; then every state it may leave."""

from __future__ import annotations

import hashlib
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.config import Config, load_config, write_config
from pretrain.continuity import settle
from pretrain.engine import fsops
from pretrain.engine.checkpoint import Checkpoints
from pretrain.engine.distributed import Place
from pretrain.engine.settings import CheckpointConfig
from pretrain.errors import LacunaError
from pretrain.tracking.lines import read_lines
from pretrain.tracking.metrics import Tracker, cut_back
from pretrain.tracking.settings import TrackingConfig
from tests.campaign import Counts, counted
from tests.engine.cases import FRESH, Job, digest, make
from tests.engine.crash_model import Disk, Event, Recorder

RUN = "runs/x"


def power_losses(place: Place, folder: str, number: int, first: int, *, forgetful: bool = False) -> Counts:
    """Distinct states that a power loss may leave of one run, each restored by a new attempt: a campaign's counts.
    forgetful: names are never flushed, to see that this is noticed."""
    if forgetful:
        fsops.fsync_dir = lambda path: None
    job = make(place, 1, "fp32", folder)
    recorder = Recorder(Path(folder, "world"))
    at = run(job, Path(folder, "world"), recorder)
    recorder.on = False
    failures, moments, seen = [], set(), set()
    rng = random.Random(f"power {first}")
    for _ in range(40 * number):
        if len(seen) >= number:
            break
        moment = rng.randrange(1, len(recorder.events) + 1)
        state = at_moment(recorder.events[:moment], rng)
        name = hashlib.sha256(repr(sorted(state.items(), key=lambda item: item[0])).encode()).hexdigest()
        if name in seen:
            continue
        seen.add(name)
        moments.add(moment)
        fault = fault_of(state, recorder.events[:moment], job, Path(folder, "found"), at)
        if fault:
            event = recorder.events[moment - 1]
            failures.append(f"slice {first}, after {event.name} {event.paths}: {fault}")
    return counted(len(seen), failures, all_moments=len(moments), all_operations=len(recorder.events))


def run(job: Job, world: Path, recorder: Recorder) -> dict[int, str]:
    """Three saves, two steps that are lost, a second attempt, three saves more; digests of the weights by step."""
    world.mkdir()
    config = config_in(world)
    at = {0: digest(job.engine.weights())}
    for _attempt, saves, last in ((1, (1, 2, 3), 5), (2, (4, 5, 6), 6)):
        settle(config, fresh=False, allow_change=False, is_main=True)
        checkpoints = Checkpoints(world / RUN, CheckpointConfig(keep=2), job.engine)
        start = checkpoints.restore(FRESH).step
        write_config(config, config.run_dir / "config.json")
        tracker = Tracker(world / RUN, {}, TrackingConfig(wandb="off"), resume_step=start)
        checkpoints.on_event, checkpoints.before_save = tracker.event, tracker.sync
        for step in range(start + 1, last + 1):
            job.step(step - 1)
            at[step] = digest(job.engine.weights())
            tracker.log([{"step": step}])
            if step in saves:
                recorder.mark(f"saving {step}")
                assert checkpoints.save(replace(FRESH, step=step))
                recorder.mark(f"saved {step}")
        tracker.close()
    return at


def config_in(world: Path) -> Config:
    """What the run is told."""
    return load_config("configs/tiny_cpu.py", [f"runs_dir={world / 'runs'}", "name=x"])


def at_moment(events: list[Event], rng: random.Random) -> dict[str, Any]:
    """A state the disk may be in right after the last of events, or in the middle of what follows it."""
    disk = Disk()
    for event in events:
        disk.play(event)
    return disk.after_power_loss(rng, rng.choice([0.0, 0.2, 0.5, 0.8, 1.0]))


def fault_of(state: dict[str, Any], events: list[Event], job: Job, place: Path, at: dict[int, str]) -> str | None:
    """What is wrong with the run that is found in state: it must go on from what was saved last, or is being saved, bit
    for bit, with a line for every step up to there."""
    saved = max((int(e.paths[0].split()[1]) for e in events if e.paths[0].startswith("saved ")), default=0)
    saving = max((int(e.paths[0].split()[1]) for e in events if e.paths[0].startswith("saving ")), default=0)
    shutil.rmtree(place, ignore_errors=True)
    write(state, place)
    try:
        settle(config_in(place), fresh=False, allow_change=False, is_main=True)
        step = Checkpoints(place / RUN, CheckpointConfig(), job.engine).restore(FRESH).step
    except LacunaError as error:
        return f"unloadable: {error}"
    if step not in (saved, saving):
        return f"restored step {step}; {saved} was saved and {saving} begun"
    if step and digest(job.engine.weights()) != at[step]:
        return f"step {step} has other weights"
    cut_back(place / RUN, step)
    lines = [record["step"] for record in read_lines(place / RUN / "metrics.jsonl")]
    return None if lines == list(range(1, step + 1)) else f"restored step {step} with the lines of steps {lines}"


def write(state: dict[str, Any], place: Path) -> None:
    """Makes the files, directories and links of state below place."""
    place.mkdir(parents=True)
    for name, node in state.items():
        if node is None:
            (place / name).mkdir()
        elif isinstance(node, str):
            (place / name).symlink_to(node)
        else:
            (place / name).write_bytes(node)
