"""A run's encoder as a plain module, for evaluation and export: no DeepSpeed, no process group, nothing written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pretrain.backbones.base import Backbone
from pretrain.config import Config, read_config
from pretrain.engine.published import encoder_of, read_newest
from pretrain.errors import CheckpointError
from pretrain.model import build_backbone


@dataclass(frozen=True)
class Loaded:
    """An encoder and where its weights come from."""

    backbone: Backbone  # on the CPU, float32, in eval mode, without gradients
    config: Config
    step: int
    which: str  # ema or model
    fingerprint: str = ""  # of the shards it was trained on


def load_backbone(run_dir: Path, weights: str = "ema", step: int | None = None) -> Loaded:
    """The encoder of the newest checkpoint of run_dir that verifies, or of that of step. weights is "model" or "ema",
    which means the weights themselves where the run keeps no average.

    Every byte is compared with the manifest before any is parsed; a checkpoint that fails is left as it is and the one
    before it taken. Raises ConfigError for a run or step that is not there, CheckpointError where nothing verifies."""
    config = read_config(Path(run_dir) / "config.json")
    found = read_newest(Path(run_dir), weights, step)
    backbone = _filled(config, found.state, found.directory)
    return Loaded(backbone, config, found.commit.step, found.which, str(found.commit.run.get("fingerprint", "")))


def untrained_backbone(config: Config) -> Backbone:
    """The encoder with the weights a run of config starts from. torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return build_backbone(config).eval().requires_grad_(False)


def _filled(config: Config, state: dict[str, Tensor], directory: Path) -> Backbone:
    backbone = untrained_backbone(config)
    try:
        backbone.load_state_dict(encoder_of(state), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{directory} does not hold the encoder that config.json describes: {error}") from error
    return backbone
