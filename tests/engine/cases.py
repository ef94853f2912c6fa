"""What the engine's tests run in forked ranks, on a model of a few thousand parameters with the real call signature."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.engine import deepspeed_config
from pretrain.engine.distributed import Place
from pretrain.engine.engine import Engine, init_distributed
from pretrain.engine.settings import EngineConfig, OptimConfig
from pretrain.types import Features, Losses, Target

deepspeed_config.PERSIST_BELOW = 100  # so that stage 3 does cut the tiny model's tensors
GLOBAL_BATCH, WIDTH = 12, 24
OPTIM = OptimConfig(base_lr=0.05, weight_decay=0.1, betas=(0.9, 0.95))


class Block(nn.Module):
    """Returns a dataclass from inside the model, as the ViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, 2 * WIDTH)
        self.fc2 = nn.Linear(2 * WIDTH, WIDTH)
        self.pos_embed = nn.Parameter(torch.randn(1, 5, WIDTH) * 0.02, requires_grad=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.checkpointing = False

    def forward(self, tokens: Tensor) -> Features:
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed
        hidden = tokens + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm(tokens))))
        return Features(hidden, 1)


class TinyModel(nn.Module):
    """images (B, 4, WIDTH) float -> how far a linear head is from predicting the tokens back, (B,) float32."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Block()
        self.head = nn.Linear(WIDTH, 7)
        self.register_buffer("scale", torch.tensor([1.0, 1.25]))

    def forward(self, images: Tensor, mask: Any, target: Target, rank: Tensor | None = None) -> tuple[Losses, Features]:
        features = self.backbone(images.to(self.head.weight.dtype))
        error = self.head(features.tokens).float() * self.scale[1] - target.value
        return {"pixel": error.square().mean((1, 2))}, features


@dataclass
class Job:
    """An engine, and a stream of global batches that depend on the step alone."""

    engine: Engine

    def step(self, step: int, lr: float = 0.01, poison: str | None = None) -> tuple[float, Tensor, Tensor]:
        """Trains on step; poison spoils "loss" or "gradient" here. This rank's share of the loss, norm, flag."""
        parts = self.engine.kept.accumulation
        share = 0.0
        for micro in range(parts):
            images, value = batch(step, self.engine.rank + micro * self.engine.world, self.engine.world * parts)
            losses, _ = self.engine(images, None, Target(value))
            loss = losses["pixel"].sum() / GLOBAL_BATCH
            share += float(loss.detach())
            loss = loss * (self.engine.world * parts)
            if poison == "loss":
                loss = loss + torch.tensor(float("nan"))
            elif poison == "gradient":
                loss.register_hook(lambda gradient: gradient * float("inf"))
            self.engine.backward(loss)
        norm, flag = self.engine.step(lr)
        return share, norm, flag


def batch(step: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
    """Rows part, part + parts, ... of the global batch of step."""
    rng = torch.Generator().manual_seed(1000 + step)
    images = torch.randn(GLOBAL_BATCH, 4, WIDTH, generator=rng)
    value = torch.randn(GLOBAL_BATCH, 4, 7, generator=rng)
    return images[part::parts], value[part::parts]


def make(place: Place, stage: int, precision: str, run_dir: str | Path, **settings: Any) -> Job:
    """Joins the peers and builds the engine."""
    clip = settings.pop("clip_norm", None)
    init_distributed(place, 60)
    torch.manual_seed(0)
    optim = OptimConfig(**{**vars(OPTIM), "clip_norm": clip})
    config = EngineConfig(zero_stage=stage, precision=precision, **settings)  # type: ignore[arg-type]
    engine = Engine(TinyModel(), optim, config, batch_size=GLOBAL_BATCH, run_dir=Path(run_dir), environment=place)
    return Job(engine)


def total(engine: Engine, share: float) -> float:
    """The loss of the global batch: shares added in rank order."""
    from pretrain.engine.agree import gather

    return float(gather(torch.tensor([share], dtype=torch.float64)).sum())


def digest(weights: dict[str, Tensor]) -> str:
    """A hash of every bit of a state dict."""
    state = hashlib.sha256()
    for name, value in weights.items():
        state.update(name.encode())
        state.update(value.contiguous().numpy().tobytes())
    return state.hexdigest()


def losses(place: Place, run_dir: str, combos: list[list[Any]], steps: int = 4) -> dict[str, Any]:
    """Losses of several (stage, precision, settings), one after the other in the same processes."""
    out = {}
    for stage, precision, settings in combos:
        job = make(place, stage, precision, run_dir, **settings)
        shares, norms = [], []
        for step in range(steps):
            share, norm, _ = job.step(step)
            shares.append(total(job.engine, share))
            norms.append(float(norm))
        out[f"{stage} {precision} {settings.get('accumulation', 1)}"] = {
            "losses": shares, "norms": norms, "weights": digest(job.engine.weights()), "kind": job.engine.layout_kind,
        }
    return out


if __name__ == "__main__":
    print(sys.version)
