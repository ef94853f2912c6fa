"""Attentive probe: a learned query looks at the frozen patch tokens, and a linear head at what it saw.

As in CAE (Chen et al. 2022, section 4.3), AIM (El-Nouby et al. 2024, section 4.3) and V-JEPA: the mean of the tokens
need not hold what single tokens know, and a masked autoencoder is asked for nothing else than tokens. One cross
attention of several heads, keys and values without bias; LayerNorm; a linear classifier. AdamW, 10 % warm-up and a
cosine; the learning rate is chosen on a held-out fifth of the training split, and the test split is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.evaluation.linear import held_out
from pretrain.evaluation.linear_sgd import schedule

RATES = (3e-4, 1e-3, 3e-3)  # lowest first
EPOCHS = 40
_BATCH, _STEPS, _SMALLEST = 256, 4, 16
_DECAY, _HEAD_WIDTH = 0.05, 64
OnBatch = Callable[[int, int], None]  # images done, of how many in all


class AttentiveHead(nn.Module):
    """Tokens (B, N, D) to scores (B, C): they are standardised as the training tokens are, then attended to.

    The query is the same for every image, so it is taken through the keys' matrix once, and the values' matrix comes
    after the sum over tokens: the same function as attention in the usual order, at 1 / 64 of its cost."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, classes: int, rng: torch.Generator) -> None:
        super().__init__()
        width = len(mean)
        self.heads = max(heads for heads in range(1, max(width // _HEAD_WIDTH, 1) + 1) if width % heads == 0)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.query = nn.Parameter(torch.empty(self.heads, width // self.heads).normal_(std=0.02, generator=rng))
        self.key = nn.Parameter(torch.empty(width, width).normal_(std=width**-0.5, generator=rng))
        self.value = nn.Parameter(torch.empty(width, width).normal_(std=width**-0.5, generator=rng))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=0.01, generator=rng)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) of any float type to scores (B, C) float32."""
        x = (tokens.float() - self.mean) / self.scale
        key, value = (rearrange(matrix, "(h e) d -> h e d", h=self.heads) for matrix in (self.key, self.value))
        asks = einsum(self.query, key, "h e, h e d -> h d") / self.query.shape[1] ** 0.5
        weights = einsum(x, asks, "b n d, h d -> b h n").softmax(dim=-1)
        seen = einsum(weights @ x, value, "b h d, h e d -> b h e")
        scores: Tensor = self.head(self.norm(rearrange(seen, "b h e -> b (h e)")))
        return scores


@dataclass(frozen=True)
class AttentiveProbe:
    """A trained head and the learning rate it was trained with."""

    head: AttentiveHead
    rate: float

    @torch.no_grad()
    def predict(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """The class of each of rows (m,) of tokens (n, N, D), or of all: (m,) int64 on the CPU."""
        rows = torch.arange(len(tokens)) if rows is None else rows
        device = self.head.query.device
        parts = [self.head(tokens[part].to(device)).argmax(dim=1).cpu() for part in rows.split(_BATCH)]
        return torch.cat(parts) if parts else rows


def fit_attentive(
    tokens: Tensor,
    labels: Tensor,
    rates: tuple[float, ...] = RATES,
    epochs: int = EPOCHS,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
    on_batch: OnBatch | None = None,
) -> AttentiveProbe:
    """The probe of tokens (n, N, D) and labels (n,) in 0..C-1, trained on all of them at the rate whose probe, trained
    without every fifth image of each class, classifies most of those; of equally good rates the lowest."""
    held = held_out(labels)
    fitted, asked, everything = (~held).nonzero()[:, 0], held.nonzero()[:, 0], torch.arange(len(labels))
    if len(fitted) < 2:
        raise ConfigError(f"attentive was given {len(labels)} training images and needs at least 3; give it more")
    done, total = 0, epochs * (len(rates) * _used(len(fitted)) + _used(len(labels)))

    def count(number: int) -> None:
        nonlocal done
        done += number
        if on_batch is not None:
            on_batch(done, total)

    best, found = -1, rates[0]
    for rate in rates:
        probe = train_at(tokens, labels, fitted, rate, epochs, seed, device=device, on_images=count)
        right = int((probe.predict(tokens, asked) == labels[asked]).sum())
        if right > best:
            best, found = right, rate
    return train_at(tokens, labels, everything, found, epochs, seed, device=device, on_images=count)


def train_at(
    tokens: Tensor, labels: Tensor, rows: Tensor, rate: float, epochs: int, seed: int, *,
    device: torch.device | str = "cpu", on_images: Callable[[int], None] | None = None,
) -> AttentiveProbe:  # fmt: skip
    """The probe trained at one learning rate on rows (m,) of tokens (n, N, D) with labels (n,), in an order drawn from
    seed; the last part of a batch is left out."""
    rng = torch.Generator().manual_seed(seed)
    head = AttentiveHead(*_moments(tokens, rows), int(labels.max()) + 1, rng).to(device)
    matrices = [head.key, head.value, head.head.weight]
    others = [head.query, head.head.bias, *head.norm.parameters()]
    solver = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": _DECAY}, {"params": others, "weight_decay": 0.0}], lr=rate
    )
    size = _batch_size(len(rows))
    a_pass = len(rows) // size
    with torch.enable_grad():
        for epoch in range(epochs):
            order = rows[torch.randperm(len(rows), generator=rng)]
            for step in range(a_pass):
                for group in solver.param_groups:
                    group["lr"] = rate * schedule((epoch * a_pass + step) / (epochs * a_pass))
                batch = order[step * size : (step + 1) * size]
                solver.zero_grad()
                F.cross_entropy(head(tokens[batch].to(device)), labels[batch].to(device)).backward()
                solver.step()
                if on_images is not None:
                    on_images(size)
    return AttentiveProbe(head.eval().requires_grad_(False), rate)


def _batch_size(count: int) -> int:
    """_BATCH, or less: an epoch of few images has _STEPS steps all the same, or it would learn nothing."""
    return min(_BATCH, max(count // _STEPS, min(count, _SMALLEST)))


def _used(count: int) -> int:
    """Images of count that an epoch makes use of."""
    size = _batch_size(count)
    return count // size * size


def _moments(tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (D,) float32 of the channels of tokens in rows, a batch at a time."""
    width = tokens.shape[2]
    total, squares = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for part in rows.split(_BATCH):
        x = tokens[part].double()
        total += x.sum((0, 1))
        squares += x.square().sum((0, 1))
    count = len(rows) * tokens.shape[1]
    mean = total / count
    scale = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(scale > 1e-6, scale, 1.0).float()
