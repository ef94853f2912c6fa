"""AdamW in one kernel, with decay only where it belongs, a clip and a skip that cost no pass and no wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.engine.settings import OptimConfig

MOMENTS = ("exp_avg", "exp_avg_sq")  # what torch's AdamW remembers of every value, beside its step count


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """torch's fused AdamW over model's trainable parameters, in two groups: decayed and not. Its rate starts at 0."""
    decayed, plain = split_decay(model)
    named = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [named[name] for name in decayed], "weight_decay": cfg.weight_decay},
        {"params": [named[name] for name in plain], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=cfg.betas, eps=cfg.eps, fused=True)


def split_decay(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of trainable parameters (with, without) weight decay: none on norms, biases, positions and tokens."""
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    decayed: list[str] = []
    plain: list[str] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        without = parameter.ndim <= 1 or name in exempt or _is_position_or_token(name)
        (plain if without else decayed).append(name)
    return decayed, plain


def materialize_state(optimizer: torch.optim.Optimizer, flat: Tensor, step: int = 0) -> dict[str, Tensor]:
    """The state of flat as torch makes it in a first step, all zero, but with the given step count."""
    state: dict[str, Tensor] = optimizer.state[flat]
    state.clear()
    state["step"] = torch.tensor(float(step), dtype=torch.float32, device=flat.device)
    for kind in MOMENTS:
        state[kind] = torch.zeros_like(flat, memory_format=torch.preserve_format)
    return state


def arm(optimizer: torch.optim.Optimizer, flag: Tensor, scale: Tensor) -> None:
    """Tells the next update's kernel: do nothing where flag () float32 is 1, else divide gradients by scale ()."""
    optimizer.found_inf = flag  # type: ignore[attr-defined]  # as torch's GradScaler tells fused optimizers
    optimizer.grad_scale = scale  # type: ignore[attr-defined]


def _is_position_or_token(name: str) -> bool:
    last = name.rsplit(".", 1)[-1]
    return last.endswith(("pos_embed", "_token", "_tokens"))
