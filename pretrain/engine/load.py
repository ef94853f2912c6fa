"""A run's encoder as a plain module, for evaluation and export: no DeepSpeed, no process group, nothing written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from pretrain.backbones.base import Backbone
from pretrain.config import Config, read_config
from pretrain.engine.published import encoder_of, read_newest
from pretrain.errors import CheckpointError
from pretrain.model import PretrainModel, build_backbone, build_model
from pretrain.objectives.base import Objective

Filled = TypeVar("Filled", bound=nn.Module)


@dataclass(frozen=True)
class Loaded:
    """An encoder, with its objective where that is wanted, and where their weights come from."""

    backbone: Backbone  # on the CPU, float32, in eval mode, without gradients
    config: Config
    step: int
    which: str  # ema or model
    fingerprint: str = ""  # of the shards it was trained on
    objective: Objective | None = None  # likewise


def load_backbone(
    run_dir: Path, weights: str = "ema", step: int | None = None, *, with_objective: bool = False
) -> Loaded:
    """The encoder of the newest checkpoint of run_dir that verifies, or of that of step; and its objective, where that
    is a classifier or asked for. weights is "model" or "ema", which means the weights themselves where the run keeps no
    average.

    Every byte is compared with the manifest before any is parsed; a checkpoint that fails is left as it is and the one
    before it taken. Raises ConfigError for a run or step that is not there, CheckpointError where nothing verifies."""
    config = read_config(Path(run_dir) / "config.json")
    found = read_newest(Path(run_dir), weights, step)
    fingerprint = str(found.commit.run.get("fingerprint", ""))
    if with_objective or config.objective.num_classes is not None:
        model = _filled(untrained_model(config), found.state, found.directory)
        return Loaded(model.backbone, config, found.commit.step, found.which, fingerprint, model.objective)
    backbone = _filled(untrained_backbone(config), encoder_of(found.state), found.directory)
    return Loaded(backbone, config, found.commit.step, found.which, fingerprint)


def untrained_backbone(config: Config) -> Backbone:
    """The encoder with the weights a run of config starts from. torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return build_backbone(config).eval().requires_grad_(False)


def untrained_model(config: Config) -> PretrainModel:
    """The encoder as `untrained_backbone` gives it, and the objective a run of config starts with."""
    with torch.random.fork_rng(devices=[]):
        return build_model(config).eval().requires_grad_(False)


def _filled(module: Filled, state: dict[str, Tensor], directory: Path) -> Filled:
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{directory} does not hold the encoder that config.json describes: {error}") from error
    return module
