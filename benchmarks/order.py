"""What finding one's place costs: 1e9 samples in 1e5 shards, any position, in a fresh process.

    python benchmarks/order.py                    # writes benchmarks/results/order.json

Each position is looked up in a process of its own, so nothing is warm: the time, the processor's so that a busy machine
changes nothing, is from the lengths of the shards to a sample. Memory is the process's resident set before the order is
made (Python and numpy) and its peak after."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from pretrain.data.order import Order

NUM_SHARDS, IN_EACH = 100_000, 10_000
POSITIONS = (0, 999_999_999, 5_123_456_789, 77_777_777_777, 10**15 + 12_345)


def one(position: int) -> dict[str, float]:
    """Seconds and megabytes of one cold look-up in this process, then of a batch of 256 and of 200 more."""
    lengths = np.full(NUM_SHARDS, IN_EACH)
    before = _resident_mb()
    times = [time.process_time()]
    order = Order(lengths, seed=0)
    order.sample_at(position)
    times.append(time.process_time())
    order.locate(np.arange(position, position + 256))
    times.append(time.process_time())
    for step in range(1, 201):
        order.locate(np.arange(position + 256 * step, position + 256 * (step + 1)))
    times.append(time.process_time())
    peak = _peak_mb()
    seek, batch, more = np.diff(times).tolist()
    return {
        "seek_s": seek, "seek_and_batch_s": seek + batch, "us_per_sample_warm": more / (200 * 256) * 1e6,
        "order_mb": peak - before, "rss_before_mb": before, "rss_peak_mb": peak,
    }  # fmt: skip


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _peak_mb() -> float:
    """Of this program alone: ru_maxrss would begin with that of whoever started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--position", type=int, help="measure this one here and print it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "order.json")
    options = parser.parse_args()
    if options.position is not None:
        print(json.dumps(one(options.position)))
        return
    rows = {}
    for position in POSITIONS:
        command = [sys.executable, __file__, "--position", str(position)]
        rows[position] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    worst = {name: round(max(row[name] for row in rows.values()), 4) for name in rows[0]}
    result = {
        "command": "python benchmarks/order.py", "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(),
        "samples": NUM_SHARDS * IN_EACH, "shards": NUM_SHARDS, "positions": list(POSITIONS),
        "target": {"seek_s": 0.5, "order_mb": 200}, "worst": worst,
        "note": "order_mb is what the order adds; rss_peak_mb includes Python, numpy and torch",
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
