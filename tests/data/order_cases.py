"""The order of training over random layouts of shards and random schedules of processes: goals G9, G10 and G11."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

from masking.rng import prf
from pretrain.data.loader import build_loader
from pretrain.data.order import Order, rank_positions, sample_digest
from pretrain.data.settings import DataConfig
from pretrain.data.shards import ShardSet, open_shards
from tests.campaign import Counts, counted
from tests.data.shard_files import samples, write

WORD = 1 << 64
EPOCHS = 3
WORLDS = (1, 2, 3, 4, 6, 8)
BATCH, STEPS = 48, 12
LENGTHS = [13, 0, 40, 1, 77]
ROOT = Path(__file__).resolve().parents[2]
Stretch = tuple[int, int, int, int, int]  # first step, end, world, accumulation, workers


def random_layout(rng: random.Random) -> tuple[list[int], int, int]:
    """Lengths of shards, lanes and block: one shard, empty shards, more lanes than samples all come up."""
    lengths = [rng.choice([0, 1, 2, 7, rng.randrange(60)]) for _ in range(rng.randrange(1, 12))]
    lengths[rng.randrange(len(lengths))] += 1
    return lengths, rng.choice([1, 2, 3, 8, 32, 200]), rng.choice([1, 2, 5, 16, 65_536])


def once_campaign(number: int, first: int = 0) -> Counts:
    """G9: in each of three epochs of a random layout, every sample comes once."""
    failures, positions = [], 0
    for case in range(first, first + number):
        rng = random.Random(f"once {case}")
        lengths, lanes, block = random_layout(rng)
        order = Order(lengths, rng.randrange(2**40), lanes, block)
        fault = fault_of_epochs(order, lengths)
        positions += EPOCHS * sum(lengths)
        if fault:
            failures.append(f"layout {case}, {lengths} in {lanes} lanes of blocks of {block}: {fault}")
    return counted(number, failures, positions=positions)


def fault_of_epochs(order: Order, lengths: list[int], positions: np.ndarray | None = None) -> str | None:
    """What is wrong with the first epochs of order, by lists and sorting alone."""
    want = sorted((shard, sample) for shard, length in enumerate(lengths) for sample in range(length))
    for epoch in range(EPOCHS):
        here = np.arange(epoch * len(want), (epoch + 1) * len(want)) if positions is None else positions
        epochs, shards, places = order.locate(here)
        if not (epochs == epoch).all() or sorted(zip(shards.tolist(), places.tolist())) != want:
            return f"epoch {epoch} is not every sample once"
    return None


def schedule_of(rng: random.Random, workers: tuple[int, ...]) -> list[Stretch]:
    """Stretches of steps, each on another number of processes, as after a requeue."""
    schedule, step = [], 0
    while step < STEPS:
        until = min(STEPS, step + rng.randrange(1, 7))
        schedule.append((step, until, rng.choice(WORLDS), rng.choice([1, 2]), rng.choice(workers)))
        step = until
    return schedule


def plan_campaign(number: int, first: int = 0) -> Counts:
    """G10, the plan alone: each worker of each rank locates its micro-batches with an order of its own."""
    names = [prf(9, "shard", shard) for shard in range(len(LENGTHS))]
    want = plan_digests(LENGTHS, names, [(0, STEPS, 1, 1, 1)])
    failures = []
    for case in range(first, first + number):
        schedule = schedule_of(random.Random(f"plan {case}"), (1, 2, 3, 4, 5))
        if plan_digests(LENGTHS, names, schedule) != want:
            failures.append(f"schedule {case}: {schedule}")
    return counted(number, failures, steps=number * STEPS)


def plan_digests(lengths: list[int], names: list[int], schedule: list[Stretch]) -> list[int]:
    """The digest of every step."""
    digests = []
    for start, until, world, accumulation, workers in schedule:
        orders = [[Order(lengths, 4, lanes=8, block=16) for _ in range(workers)] for _ in range(world)]
        for step in range(start, until):
            digest = 0
            for rank in range(world):
                for micro, positions in enumerate(rank_positions(step, BATCH, rank, world, accumulation)):
                    turn = (step - start) * accumulation + micro
                    _, shards, places = orders[rank][turn % workers].locate(positions)
                    digest += sum(sample_digest(names[s], i) for s, i in zip(shards.tolist(), places.tolist()))
            digests.append(digest % WORD)
    return digests


def elastic_campaign(number: int, first: int = 0) -> Counts:
    """G10, real loaders that read real shards, a tenth of the schedules with worker processes (0 to 5 of them)."""
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        for shard, length in enumerate(LENGTHS):
            write(Path(folder) / f"part-{shard}.tar", samples(length, 1000 * shard))
        shards = open_shards(f"{folder}/*.tar")
        want = loader_digests(shards, [(0, STEPS, 1, 1, 0)])
        for case in range(first, first + number):
            schedule = schedule_of(random.Random(f"loaders {case}"), (0,) if case % 10 else (1, 2, 3, 4, 5))
            if loader_digests(shards, schedule) != want:
                failures.append(f"schedule {case}: {schedule}")
    return counted(number, failures, steps=number * STEPS)


def loader_digests(shards: ShardSet, schedule: list[Stretch]) -> list[int]:
    """The digest of every step: the sum over what each rank's own loader reports."""
    digests = [0] * STEPS
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, on purpose
    for start, until, world, accumulation, workers in schedule:
        cfg = DataConfig(train="unused", image_size=(8, 8), batch_size=BATCH, lanes=8, block=16, workers=workers,
                         prefetch=1, timeout_s=120)  # fmt: skip
        for rank in range(world):
            loader = build_loader(shards, cfg, 4, rank=rank, world=world, accumulation=accumulation, start_step=start,
                                  device="cpu")  # fmt: skip
            try:
                for turn, batch in zip(range((until - start) * accumulation), loader):
                    digests[start + turn // accumulation] += batch.digest
            finally:
                loader.close()
    return [digest % WORD for digest in digests]


def position_campaign(number: int, first: int = 0) -> Counts:
    """G11: one cold look-up each in a process of its own, at a random position of 1e9 samples in 1e5 shards."""
    found = []
    for case in range(first, first + number):
        position = random.Random(f"position {case}").randrange(10 ** random.Random(case).randrange(1, 16))
        command = [sys.executable, "benchmarks/order.py", "--position", str(position)]
        found.append(json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout))
    slow = [f"{row}" for row in found if row["seek_s"] >= 0.5 or row["order_mb"] >= 200]
    return counted(
        number, slow,
        worst_seek_s=round(max(row["seek_s"] for row in found), 4),
        worst_order_mb=round(max(row["order_mb"] for row in found), 1),
    )  # fmt: skip
