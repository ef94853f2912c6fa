"""What a model of codes thinks of images: a cheap word on samples, and on how well it fits images that it never saw."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from masking.draw import named_noise
from pretrain.errors import ConfigError
from pretrain.objectives.token_model import Canvas, TokenModel, token_losses
from pretrain.tokenizers.token_vit import TokenViT


@torch.no_grad()
def token_nll(
    backbone: TokenViT,
    objective: TokenModel,
    tokens: Tensor,
    labels: Tensor | None = None,
    *,
    hidden: float = 0.5,
    seed: int = 0,
    batch_size: int = 64,
    on_progress: Callable[[int], None] | None = None,
) -> Tensor:
    """The mean negative log-likelihood of the tokens (M, N) int64 of each image that are hidden, nats a token: (M,)
    float32. A share of them is, rounded up, drawn by image and seed; labels (M,) int64 tell classes. Those of samples
    tell diversity nothing: a model finds its own commonest image likeliest. Raises ConfigError for MAR, which gives no
    probabilities."""
    if backbone.num_codes is None:
        raise ConfigError("the likelihood of tokens is for codes: MAR's values have none that is known")
    if not 0 < hidden <= 1:
        raise ConfigError(f"hidden={hidden}; use a share of the tokens above 0, up to 1")
    device, count = backbone.pos_embed.device, math.ceil(hidden * tokens.shape[1])
    found = []
    for numbers in torch.arange(len(tokens)).split(batch_size):
        ids = tokens[numbers].to(device)
        told = None if labels is None else labels[numbers].to(device)
        order = named_noise(numbers, seed, "likelihood", device=device).uniform(ids.shape[1], "order").argsort(1)
        asked = order[:, :count]
        known = torch.ones_like(ids, dtype=torch.bool).scatter(1, asked, False)
        prefix = backbone.prefix_ids(told, len(ids), device)
        said = objective.look(backbone, Canvas(torch.where(known, ids, backbone.mask_id), known, prefix), None)
        losses = token_losses(said, ids, 0.0)
        found.append(losses.gather(1, asked).mean(1).cpu())
        if on_progress is not None:
            on_progress(len(ids))
    return torch.cat(found)
