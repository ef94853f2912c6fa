"""The attentive probe: one layer of cross-attention from learned queries to the frozen patch tokens, and a linear head
(Chen et al. 2022, "Context Autoencoder"; El-Nouby et al. 2024, "AIM"). Masked image modelling leaves what it learns in
the patches, and their mean, which the other methods read, may hide it.

A head's key projection turns its query into another query, and its value projection may as well follow the sum over
tokens; so a head is a vector that asks and a matrix that reads, and an image costs 4 * N * D FLOPs a head. Trained by
AdamW; the learning rate is chosen on a held-out fifth of the training split, as for the linear probe by SGD."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masking.rng import generator
from pretrain.errors import ConfigError
from pretrain.evaluation.linear import held_out
from pretrain.evaluation.linear_sgd import schedule

RATES = (1e-3, 3e-3, 1e-2)  # lowest first
EPOCHS = 30
MOST_BYTES = 8 << 30  # of the tokens of both splits, which are kept in float16
_HEADS, _BATCH, _DECAY, _CLIP = 8, 64, 0.1, 3.0


class AttentiveHead(nn.Module):
    """Tokens (B, N, D) to scores of the classes (B, C). Letters: H heads, d = D / H."""

    def __init__(self, tokens: Tensor, classes: int, seed: int) -> None:
        """tokens (n, N, D): those it will be trained on, by whose mean and spread each feature is normalised."""
        super().__init__()
        rng, width = generator(seed, "attentive"), tokens.shape[-1]
        heads = math.gcd(_HEADS, width)
        mean, std = _moments(tokens)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.queries = nn.Parameter(0.02 * torch.randn(heads, width, generator=rng))
        self.values = nn.Parameter(torch.randn(heads, width // heads, width, generator=rng) / math.sqrt(width))
        self.weight = nn.Parameter(0.01 * torch.randn(classes, width, generator=rng))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores (B, C) of tokens (B, N, D)."""
        x = (tokens.float() - self.mean) / self.std
        attention = (x @ self.queries.T).softmax(dim=1)  # (B, N, H)
        seen = attention.transpose(1, 2) @ x  # (B, H, D)
        return F.linear(torch.einsum("bhe,hde->bhd", seen, self.values).flatten(1), self.weight, self.bias)


@dataclass(frozen=True)
class AttentiveProbe:
    """A trained head and the learning rate it was trained with."""

    head: AttentiveHead
    rate: float

    @torch.no_grad()
    def predict(self, tokens: Tensor) -> Tensor:
        """The class (n,) int64 of each image's tokens (n, N, D)."""
        return torch.cat([self.head(part).argmax(dim=1) for part in tokens.split(_BATCH)])


def fit_attentive(
    tokens: Tensor, labels: Tensor, rates: tuple[float, ...] = RATES, epochs: int = EPOCHS, seed: int = 0
) -> AttentiveProbe:
    """The probe of tokens (n, N, D) and labels (n,) in 0..C-1, trained on all of them at the rate whose probe, trained
    without every fifth image of each class, classifies most of those; of equally good rates the lowest."""
    held = held_out(labels)
    if int((~held).sum()) < 2:
        raise ConfigError(f"attentive was given {len(labels)} training images and needs at least 3; give it more")
    classes, best, found = int(labels.max()) + 1, -1, rates[0]
    for rate in rates:
        probe = _train(tokens, (~held).nonzero()[:, 0], labels, rate, classes, epochs, seed)
        right = int((probe.predict(tokens[held]) == labels[held]).sum())
        if right > best:
            best, found = right, rate
    return _train(tokens, torch.arange(len(labels)), labels, found, classes, epochs, seed)


def check_size(images: int, tokens: int, width: int) -> None:
    """Raises ConfigError where the tokens of so many images are too many to keep."""
    size = 2 * images * tokens * width
    if size > MOST_BYTES:
        most = MOST_BYTES // (2 * tokens * width)
        raise ConfigError(
            f"attentive keeps every patch token of {images} images, {size / 1e9:.1f} GB, and at most "
            f"{MOST_BYTES / 1e9:.1f} GB are kept; use --max-images={most // 2}, or leave attentive out of the methods"
        )


def _train(
    tokens: Tensor, rows: Tensor, labels: Tensor, rate: float, classes: int, epochs: int, seed: int
) -> AttentiveProbe:
    """The probe trained on rows of tokens at one learning rate; the last part of a batch is left out."""
    head = AttentiveHead(tokens[rows], classes, seed)
    solver = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=_DECAY)
    order = list(_batches(rows, epochs, generator(seed, "attentive order")))
    with torch.enable_grad():
        for step, picked in enumerate(order):
            solver.param_groups[0]["lr"] = rate * schedule(step / len(order))
            solver.zero_grad()
            F.cross_entropy(head(tokens[picked]), labels[picked]).backward()
            nn.utils.clip_grad_norm_(head.parameters(), _CLIP)
            solver.step()
    return AttentiveProbe(head.eval(), rate)


def _batches(rows: Tensor, epochs: int, rng: torch.Generator) -> Iterator[Tensor]:
    size = min(_BATCH, len(rows))
    for _ in range(epochs):
        order = rows[torch.randperm(len(rows), generator=rng)]
        yield from order[: len(rows) // size * size].split(size)


def _moments(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of each feature over all tokens (n, N, D)."""
    mean = sum(part.double().sum((0, 1)) for part in tokens.split(_BATCH)) / tokens[..., 0].numel()
    square = sum(((part.double() - mean) ** 2).sum((0, 1)) for part in tokens.split(_BATCH)) / tokens[..., 0].numel()
    return mean.float(), (square.sqrt() + 1e-6).float()
