"""Ranks that stand still, for tests/engine/test_stalls.py: forked, with a heartbeat of their own."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.engine.distributed import Place, init_distributed
from pretrain.engine.heartbeat import Heartbeat

TIMEOUT_S = 2.0


def heart(place: Place, run_dir: str) -> Heartbeat:
    """With limits of a few seconds; one step has been made."""
    beat = Heartbeat(Path(run_dir), place.rank, 1, timeout_s=TIMEOUT_S, reading_s=-30.0)
    beat.training(6)
    beat.resting(6)
    return beat


def holds_the_lock(place: Place, run_dir: str) -> None:
    """A deadlock in C that never lets another thread run."""
    heart(place, run_dir).training(7)
    mutex = ctypes.create_string_buffer(64)
    while True:
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def reads_a_pipe(place: Place, run_dir: str, fifo: str) -> None:
    """A shard on storage that does not answer."""
    heart(place, run_dir).reading(7)
    with open(fifo, "rb") as file:
        file.read(1)


def one_is_lost(place: Place, run_dir: str) -> None:
    """Rank 1 sleeps in a step; rank 0 waits for it in a collective."""
    init_distributed(place, 60)
    beat = heart(place, run_dir)
    if place.rank == 1:
        beat.training(7)
        time.sleep(1000)
    beat.agreeing(7)
    dist.all_reduce(torch.zeros(1))


def comes_to_a_stop(place: Place, run_dir: str) -> None:
    """Says that it reads, which may take very long, and says no more; the test stops it."""
    Heartbeat(Path(run_dir), place.rank, 1, timeout_s=TIMEOUT_S, reading_s=1000.0).reading(7)
    Path(run_dir, "ready").write_text("yes")
    time.sleep(1000)


def is_slow(place: Place, run_dir: str) -> str:
    """Rests, then makes a first step that compiles: both are longer than the limit, and neither has one."""
    beat = Heartbeat(Path(run_dir), place.rank, 1, timeout_s=0.5, reading_s=-30.0)
    beat.training(0)
    time.sleep(1.5)
    beat.resting(0)
    time.sleep(1.5)
    beat.training(1)  # ten times the slowest
    time.sleep(2.0)
    beat.close()
    return "alive"


def suspended(place: Place, run_dir: str) -> str:
    """Trains on after its whole job was stopped for longer than the limit."""
    beat = heart(place, run_dir)
    beat.training(7)
    Path(run_dir, "ready").write_text(str(beat.watchdog_pid))
    while not Path(run_dir, "awake").exists():
        time.sleep(0.05)
    beat.close()
    return f"alive {os.getpid()}"
