"""The learning rate of a step: a pure function, so there is no scheduler to save (MAE, appendix A.1)."""

from __future__ import annotations

import math

from pretrain.engine.settings import OptimConfig


def rate(step: int, total_steps: int, optim: OptimConfig, batch_size: int) -> float:
    """Learning rate of step (0 to total_steps - 1): linear warm-up, then half a cosine down to the final share.

    The first step already moves (at 1/warmup of the peak), the last warm-up step trains at the peak.
    """
    peak = peak_rate(optim, batch_size)
    warmup = round(optim.warmup * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    passed = (step - warmup) / max(1, total_steps - warmup)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))
    return peak * (optim.final_lr_ratio + (1 - optim.final_lr_ratio) * share)


def peak_rate(optim: OptimConfig, batch_size: int) -> float:
    """The rate at the end of warm-up: linear in the global batch, base_lr being for 256 images."""
    return optim.base_lr * batch_size / 256
