"""AdamW in one kernel, with decay only where it belongs, a clip and a skip that cost no pass and no wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.engine.layer_decay import rate_scales
from pretrain.engine.settings import OptimConfig

MOMENTS = ("exp_avg", "exp_avg_sq")  # what torch's AdamW remembers of every value, beside its step count
_SCALE = "lr_scale"  # of a group: as timm calls it


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """torch's fused AdamW over model's trainable parameters: a group, decayed or not, for each factor of the rate.

    Its rates start at 0; `set_rate` sets them."""
    named, scales = dict(model.named_parameters()), rate_scales(model, cfg.layer_decay)
    groups: list[dict[str, Any]] = []
    for names, weight_decay in zip(split_decay(model), (cfg.weight_decay, 0.0), strict=True):
        for scale in sorted({scales[name] for name in names}):
            params = [named[name] for name in names if scales[name] == scale]
            groups.append({"params": params, "weight_decay": weight_decay, _SCALE: scale})
    return torch.optim.AdamW(groups, lr=0.0, betas=cfg.betas, eps=cfg.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Makes lr the rate of the next update, times what each group's layers are scaled by."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[_SCALE]


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
