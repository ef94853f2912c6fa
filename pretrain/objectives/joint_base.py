"""The trained MaskGIT that a joint sampler corrects: frozen, outside of every module, one copy a process and device."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from masking.mask import Grid
from pretrain import strict_json
from pretrain.config_json import from_json
from pretrain.engine.published import read_newest
from pretrain.errors import CheckpointError, ConfigError
from pretrain.objectives.maskgit import MaskGIT, MaskGITConfig
from pretrain.tokenizers.token_vit import TokenViT, TokenViTConfig

RANDOM = "random"
_RANDOM_DEPTH = 2
_HERE = "objective.base"


class FrozenBase:
    """Encoder and head of a MaskGIT, in eval mode and float32, without gradients of their own."""

    def __init__(self, backbone: TokenViT, objective: MaskGIT) -> None:
        self.backbone, self.objective = backbone.eval().requires_grad_(False), objective.eval().requires_grad_(False)
        self._copies: dict[torch.device, tuple[TokenViT, MaskGIT]] = {
            backbone.pos_embed.device: (self.backbone, self.objective)
        }

    @torch.no_grad()
    def features(self, ids: Tensor, prefix: Tensor) -> Tensor:
        """What the head reads, (B, N, D) float32, of ids (B, N) int64 with the mask's where hidden."""
        with torch.autocast(ids.device.type, enabled=False):
            backbone, objective = self._on(ids.device)
            return objective.features(backbone, ids, prefix)

    @torch.no_grad()
    def embeddings(self, ids: Tensor) -> Tensor:
        """The base's own vectors (B, N, D) float32 for ids (B, N) int64."""
        backbone, _ = self._on(ids.device)
        return backbone.embed_tokens(ids)

    def logits(self, features: Tensor) -> Tensor:
        """(B, N, K) float32, with a gradient to features (B, N, D)."""
        with torch.autocast(features.device.type, enabled=False):
            backbone, objective = self._on(features.device)
            return objective.logits(backbone, features.float())

    def is_of(self, backbone: TokenViT, objective: MaskGIT) -> bool:
        """Whether these are the weights of that model."""
        pairs = ((self.backbone, self.objective), (backbone, objective))
        ours, theirs = (_both(*pair).state_dict() for pair in pairs)
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name].cpu()) for name in ours)

    def _on(self, device: torch.device) -> tuple[TokenViT, MaskGIT]:
        if device not in self._copies:
            self._copies[device] = copy.deepcopy(self.backbone).to(device), copy.deepcopy(self.objective).to(device)
        return self._copies[device]


def base_of(path: str, weights: str, student: TokenViTConfig, grid: Grid, in_chans: int) -> FrozenBase:
    """The MaskGIT of the run at path, or one of fresh weights, for a student on the same tokens. Raises ConfigError."""
    if path == RANDOM:
        return _random(student, grid, in_chans)
    base = _read(path, weights)
    theirs = _settings(path)[0]
    for name in ("tokenizer", "classes"):
        if getattr(theirs, name) != getattr(student, name):
            raise ConfigError(
                f"{_HERE}={path} has backbone.{name}={getattr(theirs, name)}, and this run {getattr(student, name)}: "
                "give both the same"
            )
    if base.backbone.grid != grid:
        raise ConfigError(f"{_HERE}={path} is for {base.backbone.grid}, and data.image_size makes it {grid}")
    return base


def base_size(path: str, width: int) -> tuple[int, int]:
    """Width and depth of the base, of a random one for a student so wide."""
    return (width, _RANDOM_DEPTH) if path == RANDOM else _settings(path)[0].dimensions()[:2]


def _random(student: TokenViTConfig, grid: Grid, in_chans: int) -> FrozenBase:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = replace(student, depth=_RANDOM_DEPTH).build(grid, in_chans, (), ())
        return FrozenBase(backbone, MaskGITConfig().build(backbone))


@cache
def _settings(path: str) -> tuple[TokenViTConfig, MaskGITConfig, dict[str, Any]]:
    """Backbone, objective and data of the run at path."""
    source = Path(path) / "config.json"
    try:
        settings: dict[str, Any] = strict_json.loads(source.read_text())
        backbone, objective = (from_json(settings[part], str(source)) for part in ("backbone", "objective"))
        data = settings["data"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{_HERE}={path} is no run that can be read ({type(error).__name__}: {error}); name the directory of one "
            "that trained MaskGIT, or random"
        ) from error
    if not isinstance(backbone, TokenViTConfig) or not isinstance(objective, MaskGITConfig):
        raise ConfigError(f"{_HERE}={path} trained {type(objective).__name__}; name a run that trained MaskGIT")
    return backbone, objective, data


@cache
def _read(path: str, weights: str) -> FrozenBase:
    config, settings, data = _settings(path)
    height, width = (side // config.patch_size for side in data["image_size"])
    with torch.random.fork_rng(devices=[]):
        backbone = config.build(Grid(height, width), int(data["in_chans"]), (), ())
        objective = settings.build(backbone)
    try:
        _both(backbone, objective).load_state_dict(read_newest(Path(path), weights).state)
    except (CheckpointError, RuntimeError) as error:
        raise ConfigError(f"{_HERE}={path}: {' '.join(str(error).split())[:400]}") from error
    return FrozenBase(backbone, objective)


def _both(backbone: TokenViT, objective: MaskGIT) -> nn.ModuleDict:
    """As one module, with the names that a checkpoint has."""
    return nn.ModuleDict({"backbone": backbone, "objective": objective})
