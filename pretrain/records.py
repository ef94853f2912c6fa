"""The lines of metrics.jsonl: device tensors of several steps are kept, and read together every log_every steps."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, cast

import torch

from pretrain.config import Config
from pretrain.engine.agree import Agreed, gather
from pretrain.engine.engine import Engine
from pretrain.flops import peak_flops, train_flops_per_image
from pretrain.model import PretrainModel
from pretrain.step import StepResult


@dataclass(frozen=True)
class _Pending:
    step: int
    lr: float
    result: StepResult
    agreed: Agreed
    waited_s: float
    took_s: float
    followed: dict[str, float]


class StepRecords:
    """Collects steps; `flush` waits for the device once, sums losses over ranks in rank order, and gives the lines."""

    def __init__(self, config: Config, engine: Engine, num_samples: int) -> None:
        self._batch_size = config.data.batch_size
        self._engine = engine
        self._per_epoch = num_samples * config.data.crops_per_decode
        self._flops = train_flops_per_image(config)
        self._peak = peak_flops(engine.device, engine.precision)
        self._measured = cast("PretrainModel", engine.model).objective.measured
        self._pending: list[_Pending] = []

    def __len__(self) -> int:
        return len(self._pending)

    def add(
        self, step: int, lr: float, result: StepResult, agreed: Agreed, waited_s: float, took_s: float,
        followed: dict[str, float],
    ) -> None:  # fmt: skip
        """Notes one step and, by name, what else followed from its number; nothing is read from the device."""
        self._pending.append(_Pending(step, lr, result, agreed, waited_s, took_s, followed))

    def flush(self) -> list[dict[str, Any]]:
        """The lines of the steps noted since the last flush, the same on every rank but for the times."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        names = list(pending[0].result.losses)
        shares = torch.stack([torch.stack([p.result.losses[name] for name in names]) for p in pending])
        shares = gather(shares.double().cpu().flatten()).view(self._engine.world, len(pending), len(names))
        losses = shares.sum(0).tolist()
        norms = torch.stack([p.result.grad_norm for p in pending]).cpu().tolist()
        skipped = torch.stack([p.result.skipped for p in pending]).cpu().tolist()
        seconds = sum(p.took_s for p in pending)
        rate = self._batch_size * len(pending) / max(seconds, 1e-9)
        common = {
            "images_per_s": round(rate, 2),
            "data_wait": round(sum(p.waited_s for p in pending) / max(seconds, 1e-9), 4),
            "memory_gb": round(self._engine.peak_memory_gb(), 3),
        }
        if self._peak:
            common["mfu"] = round(rate * self._flops / (self._peak * self._engine.world), 4)
        return [
            self._line(p, dict(zip(names, losses[i], strict=True)), norms[i], skipped[i]) | common
            for i, p in enumerate(pending)
        ]

    def _line(self, pending: _Pending, losses: dict[str, float], norm: float, skipped: float) -> dict[str, Any]:
        minimised = {name: value for name, value in losses.items() if name not in self._measured}
        loss = sum(minimised.values())
        done = pending.step + 1
        return {
            "step": done,
            "loss": _finite(loss),
            "loss_hex": struct.pack(">f", loss).hex() if abs(loss) < 3e38 else "nan",
            **({f"loss_{name}": _finite(value) for name, value in minimised.items()} if len(minimised) > 1 else {}),
            **{name: _finite(value) for name, value in losses.items() if name in self._measured},
            "digest": f"{pending.agreed.digest:016x}",
            "lr": pending.lr,
            **pending.followed,
            "grad_norm": _finite(norm),
            "skipped": int(skipped),
            "samples": done * self._batch_size,
            "epoch": round(done * self._batch_size / self._per_epoch, 6),
            "bad": pending.agreed.num_bad,
        }


def _finite(value: float) -> float | None:
    """JSON has no NaN: a value that is not finite is null, and the line says skipped."""
    return value if math.isfinite(value) else None
