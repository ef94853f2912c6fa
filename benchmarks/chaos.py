"""How exact is resume? Kills a two-rank DeepSpeed run at random times and compares it with the same run left in peace.

    python benchmarks/chaos.py --kills 20 --stage 1

Prints the count of kills and attempts, and that weights, moments, every loss line and every ledger line are identical;
writes benchmarks/results/chaos-zero1.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import chaos  # noqa: E402  # the checkout is not on the path before the line above
from tests.zygote import shared  # noqa: E402


def main() -> None:
    options = _options()
    found = chaos.trial(
        options.kills, options.stage, options.steps, workers=options.workers, seed=options.seed, reach_s=options.reach
    )
    if found["kills"] < options.kills:
        sys.exit(f"the run was over after {found['kills']} of {options.kills} kills; give it more --steps")
    result = {"command": " ".join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d"),
              "machine": platform.platform(), **found, "identical": True}  # fmt: skip
    path = ROOT / "benchmarks" / "results" / f"chaos-zero{options.stage}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{found['kills']} kills in {found['attempts']} attempts ({found['stormy_s']:.0f} s): weights, moments, "
        f"{found['metrics_lines']} loss lines and {found['ledger_lines']} ledger lines identical to the run not killed"
    )
    shared().close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs that must hit a living rank (default 20)")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps of the run (default 1500)")
    parser.add_argument("--stage", type=int, default=1, choices=range(4), help="DeepSpeed ZeRO stage (default 1)")
    parser.add_argument("--workers", type=int, default=1, help="loader processes a rank (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the times and victims (default 0)")
    parser.add_argument("--reach", type=float, default=4.0, help="latest kill after a start, seconds (default 4)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
