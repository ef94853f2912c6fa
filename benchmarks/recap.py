"""What ReCAP saves: its sampler beside the ordinary one of as many steps, in turns: `python benchmarks/recap.py`.

256 tokens of MaskGIT, MAGE or MAR with weights of chance, which cost what trained ones do. A turn is the generation of
one batch, draws and heads included and the tokenizer not; every round gives each side its turn, the order reversed from
round to round, and a ratio is the median over rounds of the base's time over ReCAP's in the same round. MAR draws by
one diffusion step ("transformer alone"), buffer tokens recomputed or kept, and by the paper's 100, 40 in local steps.

Beside it is what arithmetic allows: FLOPs of both sides as torch counts them, and for MaskGIT what `Plan.cost` says.
The goals are 90 % of that limit: 1.6 for T=16, P=0, u=1 and 1.25 for T=32, P=12, u=1.

Writes benchmarks/results/recap-DEVICE.json; on one thread of a CPU twenty minutes."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks.machine import machine, versions, wait  # noqa: E402
from masking.attention import op  # noqa: E402
from masking.mask import Grid  # noqa: E402
from masking.recap import Decay, Plan, decoding_counts  # noqa: E402
from pretrain.generate.sampler import sample  # noqa: E402
from pretrain.generate.sampling import Sampling  # noqa: E402
from pretrain.objectives.diffusion import DiffusionConfig  # noqa: E402
from pretrain.objectives.mage import MAGEConfig  # noqa: E402
from pretrain.objectives.mar import MARConfig  # noqa: E402
from pretrain.objectives.maskgit import MaskGITConfig  # noqa: E402
from pretrain.objectives.token_model import TokenModel  # noqa: E402
from pretrain.tokenizers.frozen import TokenizerConfig  # noqa: E402
from pretrain.tokenizers.token_vit import TokenViT, TokenViTConfig  # noqa: E402

GRID = Grid(16, 16)
GOALS = {Plan(16, 0, 1): 1.6, Plan(32, 12, 1): 1.25}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class Side:
    """One sampler of one model, and its times."""

    backbone: TokenViT
    objective: TokenModel
    sampling: Sampling
    seconds: list[float] = field(default_factory=list)

    def turn(self, batch: int) -> None:
        """Generates a batch, timed."""
        device = self.backbone.pos_embed.device
        wait(device)
        began = time.perf_counter()
        self.run(batch)
        wait(device)
        self.seconds.append(time.perf_counter() - began)

    def run(self, batch: int) -> None:
        """Tokens of images 0 to batch - 1."""
        labels = None if self.backbone.classes is None else torch.zeros(batch, dtype=torch.int64)
        sample(self.backbone, self.objective, self.sampling, torch.arange(batch), labels)

    def flops(self) -> float:
        """Of one image, as torch counts the products that are computed."""
        with op.forced("matmul"), FlopCounterMode(display=False) as counter:
            self.run(1)
        return float(counter.get_total_flops())


def main() -> int:
    """Measures, prints and writes; returns 1 where a goal was missed."""
    options = _options()
    torch.set_num_threads(options.threads)
    rows = []
    for family in options.family:
        for name, plan, more in _cases(family):
            rows.append(measure(options, family, name, plan, more))
            _print(rows[-1])
    result = {
        "command": " ".join(["python", "benchmarks/recap.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": machine(options.device),
        "versions": versions(),
        "tokens": GRID.num_patches,
        "batch": options.batch,
        "precision": options.precision,
        "threads": options.threads,
        "rounds": options.rounds,
        "rows": rows,
    }
    if not options.no_write:
        device = torch.device(options.device).type
        path = Path(options.out or ROOT / "benchmarks" / "results" / f"recap-{device}.json")
        path.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(row["goal"] is not None and row["ratio"]["median"] < row["goal"] for row in rows))


def measure(
    options: argparse.Namespace, family: str, name: str, plan: Plan, more: dict[str, Any]
) -> dict[str, Any]:
    """One case: the base sampler and ReCAP with equal steps and batch."""
    backbone, objective = build(family, options.size)
    dtype = DTYPES[options.precision]
    backbone, objective = backbone.to(options.device, dtype), objective.to(options.device, dtype)
    decay: Decay = "cosine" if family == "mar" else "power"
    recap = Sampling(plan, decay, **more)
    base = replace(recap, plan=Plan(plan.steps), local_diffusion_steps=None, cache_buffer=False)
    sides = [Side(backbone, objective, sampling) for sampling in (base, recap)]
    for number in range(options.rounds + 1):
        for side in sides if number % 2 else reversed(sides):
            side.turn(options.batch)
    ratios = [one / other for one, other in zip(*(side.seconds[1:] for side in sides), strict=True)]
    counts = decoding_counts(GRID.num_patches, plan.steps, decay)
    limit = sides[0].flops() / sides[1].flops()
    ratio = statistics.median(ratios)
    return {
        "model": f"{family}, size {options.size}",
        "case": name,
        "plan": {"T": plan.steps, "P": plan.full_first, "u": plan.local},
        "seconds_per_image": [statistics.median(side.seconds[1:]) / options.batch for side in sides],
        "ratio": {"median": ratio, "low": min(ratios), "high": max(ratios)},
        "flop_limit": limit,
        "of_the_limit": ratio / limit,
        "by_formula": plan.steps / plan.cost(counts, backbone.num_prefix) if family == "maskgit" else None,
        "goal": GOALS.get(plan) if family == "maskgit" else None,
    }


def build(family: str, size: str) -> tuple[TokenViT, TokenModel]:
    """A class-conditional model of 256 tokens: the palette's 512 codes, or 12 values; fresh weights."""
    torch.manual_seed(0)
    tokenizer = TokenizerConfig("pixels" if family == "mar" else "palette", patch_size=2 if family == "mar" else 16)
    classes = None if family == "mage" else 1000
    num_prefix = 64 if family == "mar" else 1
    config = TokenViTConfig(tokenizer, size, num_prefix, classes)  # type: ignore[arg-type]
    backbone = config.build(GRID, 3, (0.5,) * 3, (0.25,) * 3)
    depth = len(backbone.blocks)
    chosen: MaskGITConfig | MAGEConfig | MARConfig = MaskGITConfig()
    if family == "mage":
        chosen = MAGEConfig(decoder_depth=max(depth * 2 // 3, 1), decoder_heads=backbone.num_heads)
    elif family == "mar":
        chosen = MARConfig(decoder_depth=depth, head=DiffusionConfig(width=1024 if size == "base" else 512))
    objective = chosen.build(backbone)
    return backbone.eval().requires_grad_(False), objective.eval().requires_grad_(False)


def _cases(family: str) -> list[tuple[str, Plan, dict[str, Any]]]:
    if family == "mar":
        alone, whole = {"diffusion_steps": 1}, {"diffusion_steps": 100, "local_diffusion_steps": 40}
        return [
            ("transformer alone", Plan(64, 32, 1), alone),
            ("transformer alone, buffer kept", Plan(64, 32, 1), {**alone, "cache_buffer": True}),
            ("transformer alone, buffer kept", Plan(64, 0, 3), {**alone, "cache_buffer": True}),
            ("100 and 40 diffusion steps", Plan(64, 32, 1), whole),
        ]
    return [("", plan, {}) for plan in GOALS]


def _print(row: dict[str, Any]) -> None:
    plan, ratio = row["plan"], row["ratio"]
    formula = "" if row["by_formula"] is None else f" ({row['by_formula']:.3f} by formula)"
    print(
        f"{row['model']} {row['case']} T={plan['T']} P={plan['P']} u={plan['u']}: {ratio['median']:.3f}x "
        f"({ratio['low']:.3f} to {ratio['high']:.3f}), arithmetic allows {row['flop_limit']:.3f}{formula}, "
        f"{100 * row['of_the_limit']:.0f} % reached; goal {row['goal']}",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--family", nargs="+", default=["maskgit", "mage", "mar"], choices=["maskgit", "mage", "mar"])
    parser.add_argument("--size", help="of the encoder (default small on a CPU, base on a GPU)")
    parser.add_argument("--batch", type=int, help="images a turn (default 2 on a CPU, 64 on a GPU)")
    parser.add_argument("--rounds", type=int, help="turns of every side (default 3 on a CPU, 10 on a GPU)")
    parser.add_argument("--precision", choices=sorted(DTYPES), help="default fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU operation")
    parser.add_argument("--out", help="where to write instead of benchmarks/results")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    gpu = options.device != "cpu"
    options.size = options.size or ("base" if gpu else "small")
    options.batch = options.batch or (64 if gpu else 2)
    options.rounds = options.rounds or (10 if gpu else 3)
    options.precision = options.precision or ("bf16" if gpu else "fp32")
    return options


if __name__ == "__main__":
    sys.exit(main())
