"""Files as others publish them, made from a model of ours: what is read back must be that model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from pretrain.config import Config
from pretrain.model import PretrainModel, build_model
from tests.engine.load_cases import CONFIG

SQUARE = replace(CONFIG, data=replace(CONFIG.data, image_size=(64, 64)))


def drawn(config: Config = SQUARE) -> PretrainModel:
    """The model of config, each weight drawn, so that no wrong place gives the right value."""
    model = build_model(config).eval()
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.05)
    return model


def as_mae(model: PretrainModel) -> dict[str, Tensor]:
    """MAE's names for encoder and decoder, its decoder's fixed positions, and pixels with channels last."""
    state = dict(model.backbone.state_dict())
    for name, tensor in model.objective.state_dict().items():
        theirs = re.sub(r"^decoder\.(embed|blocks|norm)\.", r"decoder_\1.", name)
        theirs = theirs.replace("decoder.head.", "decoder_pred.").replace("decoder.mask_token", "mask_token")
        state[theirs] = tensor
    for name in ("decoder_pred.weight", "decoder_pred.bias"):
        state[name] = rearrange(state[name], "(c p q) ... -> (p q c) ...", c=3, p=16)
    return state | {"decoder_pos_embed": torch.zeros(1, 17, 16)}


def saved(state: dict[str, Tensor], path: Path, key: str = "model", **beside: object) -> str:
    """state as the authors' scripts save it."""
    torch.save({key: state, **beside}, path)
    return str(path)


def same(state: dict[str, Tensor], module: torch.nn.Module) -> bool:
    """Whether state is module's, value for value."""
    own = module.state_dict()
    return state.keys() == own.keys() and all(torch.equal(state[name], tensor) for name, tensor in own.items())
