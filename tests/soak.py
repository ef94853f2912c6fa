"""Everything at once, for as long as it is given: goal G17. A run on damaged images is killed again and again while its
disk fills up and its W&B server never answers; it must end as the same run left in peace with the same images.

The disk is a small tmpfs in a mount namespace of its own (`unshare -rm`), so it is full for every file of the run."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests import chaos
from tests.campaign import Counts, counted
from tests.zygote import shared

ROOT = Path(__file__).resolve().parents[1]
DISK_MB = 96
STEPS_A_MINUTE, KILLS_A_MINUTE = 200, 8  # one of two slow cores


def soak_campaign(number: int, first: int = 0) -> Counts:
    """number minutes or so. Where user namespaces are off, a failure says so."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        command = ["unshare", "-rm", sys.executable, "-W", "ignore", "-m", "tests.soak", str(number), folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        said = Path(folder, "said.json")
        if done.returncode or not said.exists():
            return counted(number, [f"ended with {done.returncode}: {done.stderr[-1500:]}"])
        return counted(number, [], **json.loads(said.read_text()))


def main(minutes: int, base: Path) -> None:
    """Runs in its own namespace: the calm run, the stormy one, the comparison."""
    disk = base / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", str(disk)], check=True)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        os.environ |= {"WANDB_BASE_URL": f"http://127.0.0.1:{mute.getsockname()[1]}", "WANDB_API_KEY": "0" * 40}
        pattern = chaos.make_shards(base / "shards")
        steps, kills = STEPS_A_MINUTE * minutes, KILLS_A_MINUTE * minutes
        calm, stormy = base / "runs" / "calm", disk / "runs" / "stormy"
        chaos.calm(shared(), chaos.overrides(calm, pattern, steps, stage=1, workers=1))
        settings = [*chaos.overrides(stormy, pattern, steps, stage=1, workers=1), "tracking.wandb=online"]
        over, filled = threading.Event(), []
        ballast = threading.Thread(target=fill, args=(disk, over, filled))
        ballast.start()
        try:
            toll = chaos.stormy(shared(), settings, stormy, kills, seed=minutes, reach_s=6.0)
        finally:
            over.set()
            ballast.join()
    same = chaos.compare(calm, stormy)
    journal = (stormy / "journal.jsonl").read_text()
    (base / "said.json").write_text(json.dumps({
        "kills": toll.kills, "attempts": toll.attempts, "steps": steps, "steps_redone": toll.steps_redone,
        "disk_full": len(filled), "checkpoints_failed": journal.count('"checkpoint failed"'),
        "ledger_lines": same["ledger_lines"],
    }))  # fmt: skip


def fill(disk: Path, over: threading.Event, filled: list[float]) -> None:
    """Every few seconds takes all that is free of the disk, for a second or two."""
    rng, path = random.Random(0), disk / "ballast"
    while not over.wait(rng.uniform(2.0, 8.0)):
        try:
            with open(path, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
        except OSError:
            filled.append(time.time())
        over.wait(rng.uniform(0.3, 2.5))
        path.unlink()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
