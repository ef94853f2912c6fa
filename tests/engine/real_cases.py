"""The real models of small configs in the engine, run in forked ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from masking.draw import draw
from pretrain.config import load_config
from pretrain.engine import deepspeed_config
from pretrain.engine.distributed import Place
from pretrain.engine.engine import Engine, init_distributed
from pretrain.engine.settings import EngineConfig, OptimConfig
from pretrain.model import build_model, grid_of

deepspeed_config.PERSIST_BELOW = 100  # so that stage 3 does cut the tiny model's tensors
BATCH = 8


def losses(
    place: Place, run_dir: str, name: str, lr: float, combos: list[list[Any]], overrides: list[str]
) -> list[list[float]]:
    """This rank's loss of configs/NAME.py with overrides in each of two steps at rate lr, for each (stage, precision,
    activation checkpointing)."""
    init_distributed(place, 60)
    config = load_config(f"configs/{name}.py", overrides)
    out = []
    for stage, precision, checkpointing in combos:
        model = build_model(config)
        settings = EngineConfig(zero_stage=stage, precision=precision, activation_checkpointing=checkpointing)
        optim, folder = OptimConfig(clip_norm=1.0), Path(run_dir)
        engine = Engine(model, optim, settings, batch_size=BATCH, run_dir=folder, environment=place)
        out.append([_step(engine, model, config, lr, step) for step in range(2)])
        build_model(config).load_state_dict(engine.weights())
    return out


def _step(engine: Engine, model: Any, config: Any, lr: float, step: int) -> float:
    rng = torch.Generator().manual_seed(step)
    shape = (BATCH, config.data.in_chans, *config.data.image_size)
    images = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)[engine.rank :: engine.world]
    rows = torch.arange(engine.rank, BATCH, engine.world)
    target = model.objective.target(images)
    mask = draw(config.mask, grid_of(config), rows, 0, step, target.guidance, device=engine.device)
    values, _ = engine(images, mask, target)
    loss = next(iter(values.values())).mean()
    engine.backward(loss)
    _, skipped = engine.step(lr)
    assert float(skipped) == 0
    model.objective.after_update(model.backbone, skipped)
    return float(loss.detach())
