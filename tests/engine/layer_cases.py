"""What the tests of layer-wise rates run in forked ranks: a model whose encoder has blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.engine import deepspeed_config
from pretrain.engine.checkpoint import Checkpoints
from pretrain.engine.distributed import Place
from pretrain.engine.engine import Engine, init_distributed
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.errors import CheckpointError
from pretrain.types import Features, Losses, Target
from tests.engine.cases import FRESH, GLOBAL_BATCH, WIDTH, Job, as_lists

deepspeed_config.PERSIST_BELOW = 100
OPTIM = OptimConfig(base_lr=0.05, weight_decay=0.1, layer_decay=0.5)


class Encoder(nn.Module):
    """A projection, two blocks and a norm, under the names of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.patch_embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Features:
        x = self.patch_embed(tokens)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = x + block(x)
        return Features(self.norm(x), 1)


class Layered(nn.Module):
    """images (B, 4, WIDTH) float -> how far a linear head is from predicting them, (B,) float32."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.objective = Encoder(), nn.Linear(WIDTH, 7)

    def forward(self, images: Tensor, mask: Any, target: Target, rank: Tensor | None = None) -> tuple[Losses, Features]:
        features = self.backbone(images)
        error = self.objective(features.tokens) - target.value
        return {"pixel": error.square().mean((1, 2))}, features


def make(place: Place, stage: int, run_dir: Path, optim: OptimConfig = OPTIM) -> Job:
    """The engine of Layered at stage, in fp32."""
    init_distributed(place, 60)
    torch.manual_seed(0)
    config = EngineConfig(zero_stage=stage, precision="fp32", ema_decay=0.9)  # type: ignore[arg-type]
    return Job(Engine(Layered(), optim, config, batch_size=GLOBAL_BATCH, run_dir=run_dir, environment=place))


def train(place: Place, run_dir: str, stages: list[int], stop: int) -> dict[str, Any]:
    """Goes on from the newest checkpoint, if any, to step stop and saves: weights, and the factors of all rates."""
    out = {}
    for stage in stages:
        folder = Path(run_dir) / f"stage-{stage}"
        job = make(place, stage, folder)
        checkpoints = Checkpoints(folder, CheckpointConfig(), job.engine)
        for step in range(checkpoints.restore(FRESH).step, stop):
            job.step(step)
        checkpoints.save(replace(FRESH, step=stop))
        groups = job.engine._layout.optimizer.param_groups
        scales = sorted({round(group["lr"] / 0.01, 6) for group in groups})
        out[folder.name] = {"weights": as_lists(job.engine.weights()), "scales": scales}
    return out


def refused(place: Place, run_dir: str, stage: int) -> str:
    """What is said to a run that goes on with another decay."""
    folder = Path(run_dir) / f"stage-{stage}"
    job = make(place, stage, folder, replace(OPTIM, layer_decay=0.75))
    try:
        Checkpoints(folder, CheckpointConfig(), job.engine).restore(FRESH)
    except CheckpointError as error:
        return str(error)
    return "nothing"
