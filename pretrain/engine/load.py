"""A run's encoder as a plain module, for evaluation and export: no DeepSpeed, no process group, nothing written."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pretrain.backbones.base import Backbone
from pretrain.config import Config, read_config
from pretrain.engine import fsops
from pretrain.engine.commit import BadCheckpoint, verify
from pretrain.engine.stored import EMA, Reader, read_weights
from pretrain.errors import CheckpointError, ConfigError
from pretrain.model import build_model

_NAME = re.compile(r"(\d{10})-a\d{6}")
_LOG = logging.getLogger(__name__)


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
    if weights not in ("ema", "model"):
        raise ConfigError(f"weights={weights!r}; use ema (averaged, where the run keeps that) or model")
    config = read_config(Path(run_dir) / "config.json")
    refused = []
    for directory in _candidates(Path(run_dir), step):
        try:
            commit = verify(directory)
            which = "ema" if weights == "ema" and Reader(directory).has(EMA) else "model"
            state = read_weights(directory, ema=which == "ema")
        except (BadCheckpoint, OSError) as error:  # OSError: a run that goes on has just pruned it
            _LOG.warning("%s is left out: %s", directory, error)
            refused.append(f"{directory.name}: {error}")
            continue
        backbone = _filled(config, state, directory)
        return Loaded(backbone, config, commit.step, which, str(commit.run.get("fingerprint", "")))
    raise CheckpointError(
        f"no checkpoint of {run_dir} verifies ({'; '.join(refused)}); an older one can be asked for by --step, and "
        "training again writes new ones"
    )


def untrained_backbone(config: Config) -> Backbone:
    """The encoder with the weights a run of config starts from. torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return build_model(config).backbone.eval().requires_grad_(False)


def _candidates(run_dir: Path, step: int | None) -> list[Path]:
    """Checkpoint directories newest first, those of step alone where it is given."""
    matches = [match for name in fsops.names(run_dir / "ckpt") if (match := _NAME.fullmatch(name))]
    if not matches:
        raise CheckpointError(f"{run_dir} has no checkpoint yet; the first is written at checkpoint.every_steps")
    there = sorted({int(match[1]) for match in matches})
    if step is not None and step not in there:
        raise ConfigError(f"{run_dir} has no checkpoint of step {step}; there are {', '.join(map(str, there))}")
    return sorted((run_dir / "ckpt" / m[0] for m in matches if step is None or int(m[1]) == step), reverse=True)


def _filled(config: Config, state: dict[str, Tensor], directory: Path) -> Backbone:
    backbone = untrained_backbone(config)
    prefix = "backbone."
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    try:
        backbone.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{directory} does not hold the encoder that config.json describes: {error}") from error
    return backbone
