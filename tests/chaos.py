"""A two-rank run that is killed at random times, beside the same run left in peace: the two must end bit for bit alike.

Used by tests/test_chaos.py (a few kills) and benchmarks/goals.py (as many as asked for). Ranks are real DeepSpeed
processes forked by tests/zygote.py; kills are SIGKILL of one rank or of all.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import random
import signal
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image

from tests.campaign import Counts, counted
from tests.zygote import Zygote, shared

SAME = ("step", "loss", "loss_hex", "digest", "lr", "grad_norm", "skipped", "samples", "bad")
CASE = "tests/chaos.py:rank"


@dataclass
class Toll:
    """What was done to the killed run."""

    kills: int = 0
    attempts: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    steps_redone: int = 0


def make_shards(folder: Path, images: int = 180, per_shard: int = 60) -> str:
    """Small JPEGs in indexed shards, five of them damaged after indexing so that the ledger has lines."""
    from pretrain.data.shards import open_shards

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with wds.ShardWriter(f"{folder}/small-%04d.tar", maxcount=per_shard, verbose=0) as writer:
        for number in range(images):
            coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=90)
            writer.write({"__key__": f"{number:06d}", "jpg": buffer.getvalue(), "cls": number % 5})
    pattern = f"{folder}/*.tar"
    open_shards(pattern)
    for number in (3, 50, 77, 120, 170):
        _flip_byte(folder, number)
    return pattern


def _flip_byte(folder: Path, number: int) -> None:
    """Changes one byte in the middle of a JPEG, leaving size and times of the shard as they were."""
    import tarfile

    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            member = next((m for m in tar if m.name == f"{number:06d}.jpg"), None)
        if member is None:
            continue
        before = path.stat()
        with open(path, "r+b") as file:
            file.seek(member.offset_data + member.size // 2)
            value = file.read(1)[0]
            file.seek(member.offset_data + member.size // 2)
            file.write(bytes([value ^ 0x10]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rank(place: Any, overrides: list[str]) -> int:
    """What a forked rank does: `lacuna train` of the tiny config."""
    from launch.cli import main

    raise SystemExit(main(["train", "configs/tiny_cpu.py", *overrides]))


def overrides(run_dir: Path, pattern: str, steps: int, stage: int, workers: int) -> list[str]:
    """Settings of a run that is over in seconds and checkpoints often."""
    return [
        f"runs_dir={run_dir.parent}", f"name={run_dir.name}", f"data.train={pattern}", "data.val=none",
        f"data.workers={workers}", "data.image_size=32,32", "data.batch_size=24", "data.lanes=4", "data.block=64",
        "data.error_ratio=1", "backbone.width=48", "backbone.depth=2", "backbone.drop_path=0.1",
        "objective.decoder_width=32", "objective.decoder_depth=1", f"steps={steps}", f"engine.zero_stage={stage}",
        "checkpoint.every_steps=10", "tracking.log_every=5", "tracking.panels_every=none", "tracking.wandb=off",
        "evaluation.every_steps=none", "engine.collective_timeout_s=60",
    ]  # fmt: skip


def trial(kills: int, stage: int, steps: int, *, workers: int = 1, seed: int = 0, reach_s: float = 4.0) -> Counts:
    """One run killed so often, and the same run left in peace: goal G1. Raises AssertionError where they differ."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        base = Path(folder)
        pattern = make_shards(base / "shards")
        runs = {name: base / "runs" / name for name in ("calm", "stormy")}
        settings = {name: overrides(path, pattern, steps, stage, workers) for name, path in runs.items()}
        calm_s = timed(lambda: calm(shared(), settings["calm"]))
        began = time.monotonic()
        toll = stormy(shared(), settings["stormy"], runs["stormy"], kills, seed, reach_s)
        stormy_s = time.monotonic() - began
        same = compare(runs["calm"], runs["stormy"])
    return {"world": 2, "zero_stage": stage, "steps": steps, "calm_s": round(calm_s, 1),
            "stormy_s": round(stormy_s, 1), **asdict(toll), **same}  # fmt: skip


def plain_campaign(number: int, first: int = 0) -> Counts:
    """G1: so many SIGKILLs in one run without ZeRO."""
    return _campaign(number, stage=0, seed=first)


def zero2_campaign(number: int, first: int = 0) -> Counts:
    """G1: so many SIGKILLs in one run at ZeRO stage 2."""
    return _campaign(number, stage=2, seed=first)


def _campaign(kills: int, stage: int, seed: int) -> Counts:
    failures = []
    found: Counts = {"kills": 0}
    try:
        found = trial(kills, stage, steps=max(100, 8 * kills), seed=seed)
    except AssertionError as error:
        failures.append(str(error))
    told = ("attempts", "steps", "steps_redone", "metrics_lines", "ledger_lines")
    return counted(found["kills"], failures, **{name: found[name] for name in told if name in found})


def calm(zygote: Zygote, settings: list[str], world: int = 2) -> None:
    """The run nobody disturbs."""
    for outcome in zygote.run(CASE, world, {"overrides": settings}, timeout_s=300):
        assert outcome.code == 0, outcome.output[-4000:]


def stormy(zygote: Zygote, settings: list[str], run_dir: Path, kills: int, seed: int, reach_s: float) -> Toll:
    """The run that is killed `kills` times and started again each time: every other time up to reach_s after its start,
    at the latest when it has made its share of the steps, so that a fast machine is not done before the last kill; and
    every other time not before that, so that a slow machine is not killed in its starts alone."""
    rng, toll = random.Random(seed), Toll()
    steps = next(int(value.partition("=")[2]) for value in settings if value.startswith("steps="))
    for _ in range(kills * 4 + 10):
        toll.attempts += 1
        before = last_step(run_dir)
        attempt = zygote.start(CASE, 2, {"overrides": settings})
        over = threading.Event()
        share = steps * (toll.kills + 1) // (kills + 1)
        after_s = rng.uniform(0.2, reach_s) if toll.kills % 2 else math.inf
        storm = partial(_strike, attempt.pids, rng.choice([0, 1, None]), after_s, run_dir, share)
        killer = threading.Thread(target=storm, args=(over, toll)) if toll.kills < kills else None
        if killer:
            killer.start()
        outcomes = attempt.wait(timeout_s=300)
        over.set()
        if killer:
            killer.join()
        toll.steps_redone += max(0, _lines(run_dir) - max(before, last_step(run_dir)))
        codes = [outcome.code for outcome in outcomes]
        for code in codes:
            toll.codes[str(code)] = toll.codes.get(str(code), 0) + 1
        if all(code == 0 for code in codes):
            return toll
        unexpected = [o for o in outcomes if o.code not in (0, 75, -signal.SIGKILL)]
        assert not unexpected, unexpected[0].output[-6000:]
    raise AssertionError(f"the run did not end in {toll.attempts} attempts: {toll}")


def _strike(
    pids: list[int], victim: int | None, after_s: float, run_dir: Path, share: int, over: threading.Event, toll: Toll
) -> None:
    """Kills one rank or all after after_s seconds, or at share steps; later all, as a launcher does to survivors."""
    deadline = time.monotonic() + after_s
    while time.monotonic() < deadline and _lines(run_dir) < share:
        if over.wait(0.005):
            return
    toll.kills += _kill(pids, victim)
    if not over.wait(10):
        _kill(pids, None)


def _kill(pids: list[int], victim: int | None) -> bool:
    """Whether any process of the victim's number, or of all, was still there to be killed."""
    hit = False
    for number, pid in enumerate(pids):
        if victim is None or number == victim:
            try:
                os.kill(pid, signal.SIGKILL)
                hit = True
            except ProcessLookupError:
                pass
    return hit


def compare(calm_dir: Path, stormy_dir: Path) -> dict[str, Any]:
    """Asserts that both runs left the same weights, moments, average, metrics and ledger; says what was compared."""
    first, second = _final_state(calm_dir), _final_state(stormy_dir)
    assert first == second, "the final states differ"
    lines = [_metrics(folder) for folder in (calm_dir, stormy_dir)]
    assert lines[0] == lines[1], "metrics.jsonl differs"
    ledgers = [(folder / "ledger.jsonl").read_text() for folder in (calm_dir, stormy_dir)]
    assert ledgers[0] == ledgers[1], "ledger.jsonl differs"
    return {"state_sha256": first, "metrics_lines": len(lines[0]), "ledger_lines": ledgers[0].count("\n")}


def last_step(run_dir: Path) -> int:
    """The newest checkpoint's step."""
    found = [int(path.name.split("-")[0]) for path in (run_dir / "ckpt").glob("[0-9]*")]
    return max(found, default=0)


def _final_state(run_dir: Path) -> str:
    newest = max((run_dir / "ckpt").glob("[0-9]*"), key=lambda path: path.name)
    digest = hashlib.sha256()
    for path in sorted(newest.glob("rank*.safetensors")):
        digest.update(path.read_bytes())
    return f"step {int(newest.name[:10])}: {digest.hexdigest()}"


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: record[key] for key in SAME} for record in records]


def _lines(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def timed(action: Any) -> float:
    """Seconds an action took."""
    began = time.monotonic()
    action()
    return time.monotonic() - began
