"""What an update costs: AdamW + clip + average as the engine does them, against torch's defaults; and a blocking save.

    python benchmarks/optimizer.py [--params 20_000_000] [--rounds 7]

Both sides run in turn in one process, on one thread of a CPU or on the GPU; the minimum of the rounds counts. Writes
benchmarks/results/optimizer.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from launch.environment import detect, export
from pretrain.engine.ema import Ema
from pretrain.engine.engine import Engine, init_distributed
from pretrain.engine.optim import arm, materialize_state
from pretrain.engine.settings import EngineConfig, OptimConfig
from pretrain.engine.stored import MASTER, Facts, Piece, rank_file, write_pieces

RESULT = Path(__file__).parent / "results" / "optimizer.json"


def default_side(shapes: list[tuple[int, ...]], device: str) -> Callable[[], None]:
    """clip_grad_norm_, AdamW as torch makes it without being told more, and an average in a loop."""
    params = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    grads = [torch.randn_like(p) for p in params]
    ema = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=1e-4, betas=(0.9, 0.95))

    def update() -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        with torch.no_grad():
            for e, p in zip(ema, params, strict=True):
                e.mul_(0.999).add_(p, alpha=0.001)

    return update


def engine_side(total: int, device: str) -> Callable[[], None]:
    """What Engine.step does beside DeepSpeed: norm, fused kernel that clips and skips, and lerp, over a flat tensor."""
    flat = nn.Parameter(torch.randn(total, device=device))
    gradient = torch.randn_like(flat)
    optimizer = torch.optim.AdamW([flat], lr=1e-4, betas=(0.9, 0.95), fused=True)
    state = materialize_state(optimizer, flat)
    ema = Ema(0.999, [flat])

    def update() -> None:
        flat.grad = gradient
        norm = torch.stack(torch._foreach_norm([gradient], 2, dtype=torch.float32)).square().sum().sqrt()
        flag = (~(norm < 1e18)).float()
        arm(optimizer, flag, torch.where(flag > 0, 1.0, torch.clamp(norm, min=1.0)))
        optimizer.step()
        ema.update(state["step"], flag)

    return update


class Values(nn.Module):
    """Parameters whose gradients cost next to nothing."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.values = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])

    def forward(self, *_: object) -> tuple[dict[str, Tensor], None]:
        return {"sum": torch.stack([value.sum() for value in self.values]).sum()}, None


def whole_step(shapes: list[tuple[int, ...]], precision: str, rounds: int) -> float:
    """Least seconds of Engine.step in a world of one at ZeRO stage 1, with what DeepSpeed adds: copies, its loops."""
    place = detect()
    export(place, cuda=torch.cuda.is_available())
    init_distributed(place)
    optim, config = OptimConfig(clip_norm=1.0), EngineConfig(precision=precision, ema_decay=0.999)  # type: ignore[arg-type]
    best = float("inf")
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Values(shapes), optim, config, batch_size=1, run_dir=Path(folder), environment=place)
        for _ in range(rounds + 1):
            losses, _ = engine(None, None, None)  # type: ignore[arg-type]
            engine.backward(losses["sum"].float())
            began = time.perf_counter()
            float(engine.step(1e-4)[0])
            best = min(best, time.perf_counter() - began)
    return best


def blocking_save(total: int) -> tuple[float, float]:
    """Seconds to write, hash and flush the state of `total` values (masters, moments, average), and its gigabytes."""
    values = torch.randn(total)
    pieces = [Piece(kind, "w", 0, values) for kind in (MASTER, "exp_avg", "exp_avg_sq", "ema")]
    best = float("inf")
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            sums = write_pieces(rank_file(Path(folder), 0), pieces, Facts({"w": [total]}, 1))
            best = min(best, time.perf_counter() - began)
    return best, sums.size / 1e9


def best_of(sides: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Least seconds of each side; rounds are interleaved."""
    best = dict.fromkeys(sides, float("inf"))
    for round_ in range(rounds + 1):
        for name, update in sides.items():
            began = time.perf_counter()
            update()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_:  # the first allocates
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width = 384  # a ViT-S: matrices of 4 D x D and vectors between them
    pairs = max(1, args.params // (4 * width * (width + 1)))
    shapes: list[tuple[int, ...]] = [(4 * width, width), (4 * width,)] * pairs
    total = sum(Tensor.numel(torch.empty(s, device="meta")) for s in shapes)
    best = best_of({"default": default_side(shapes, device), "engine": engine_side(total, device)}, args.rounds, device)
    whole = {p: whole_step(shapes, p, args.rounds) / total * 1e9 for p in ("fp32", "bf16")}
    seconds, gigabytes = blocking_save(total)
    result = {
        "command": "python " + " ".join(sys.argv), "date": time.strftime("%Y-%m-%d"), "device": device,
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1,
        "params": total, "load": os.getloadavg()[0], "rounds": args.rounds,
        "default_ns_per_param": round(best["default"] / total * 1e9, 3),
        "engine_ns_per_param": round(best["engine"] / total * 1e9, 3),
        "ratio": round(best["default"] / best["engine"], 2),
        "whole_engine_step_zero1_ns_per_param": {p: round(value, 3) for p, value in whole.items()},
        "blocking_save_s": round(seconds, 3), "blocking_save_gb": round(gigabytes, 3),
    }  # fmt: skip
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
