"""Learned 2:4 sparsity (Fang et al., "MaskLLM: Learnable Semi-Structured Sparsity for Large Language Models"): of every
four weights in a row of a frozen matrix two stay, and which two is one of six masks that is learned by sampling.

Six logits a group; the Gumbel softmax of them, scaled, mixes the six masks while training, with less and less of the
others as the temperature falls; the mask of the largest logit is what is used. The logits begin ahead for the mask that
keeps the two largest weights of the group. A term of the loss pushes the norm of what is kept up, for gradients through
small weights are small (section 3.3)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from masking.rng import generator

CANDIDATES = torch.tensor(
    [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]], dtype=torch.float32
)  # fmt: skip


class TwoFour(nn.Module):
    """Turns a frozen matrix into one of which a mixture of 2:4 masks is kept while training, and a 2:4 mask else."""

    def __init__(self, base: Tensor, prior: float, init_std: float, seed: int, index: int) -> None:
        """index numbers the matrices of an encoder: each draws its own numbers from seed."""
        super().__init__()
        self._name = (seed, "sparse", index)
        size = (base.shape[0], base.shape[1] // 4, 6)
        logits = torch.randn(size, generator=generator(*self._name, "logits")) * init_std
        self.logits = nn.Parameter(with_prior(logits, magnitude_mask(base), prior))
        self._size = size
        self._now: tuple[Tensor, Tensor, Tensor] | None = None  # noise, scale and temperature of a step

    def at_step(self, step: int, scale: float, temperature: float) -> None:
        """Draws the numbers of a step: the same on every rank. Nothing waits for the device."""
        device = self.logits.device
        uniform = torch.rand(self._size, generator=generator(*self._name, step, device=device), device=device)
        noise = -(-uniform.clamp_(1e-20, 1 - 2**-24).log()).log()
        self._now = noise, torch.full((), scale, device=device), torch.full((), temperature, device=device)

    def forward(self, base: Tensor) -> Tensor:
        """base (out, in), any float dtype, times its mask."""
        if not self.training:
            return pruned(base, self.logits)
        assert self._now is not None, "at_step comes before a forward"
        return base * soft_mask(self.logits, *self._now).to(base.dtype)


def soft_mask(logits: Tensor, noise: Tensor, scale: Tensor, temperature: Tensor) -> Tensor:
    """The mixture of masks for logits and Gumbel noise (out, in / 4, 6): (out, in) float32, each four sum to 2."""
    weights = ((logits.float() * scale + noise) / temperature).softmax(-1)
    return rearrange(weights @ CANDIDATES.to(logits.device), "o g four -> o (g four)")


def hard_mask(logits: Tensor) -> Tensor:
    """The mask of the largest of logits (out, in / 4, 6): (out, in) bool, two of every four."""
    chosen = CANDIDATES.to(logits.device)[logits.argmax(-1)] > 0
    return rearrange(chosen, "o g four -> o (g four)")


def pruned(base: Tensor, logits: Tensor) -> Tensor:
    """base (out, in) where the mask of the largest logit keeps it, else 0."""
    return torch.where(hard_mask(logits), base, torch.zeros_like(base))


def magnitude_mask(base: Tensor) -> Tensor:
    """(out, in) bool: the two largest of every four weights in a row of base, the first of equal ones."""
    groups = rearrange(base.abs(), "o (g four) -> o g four", four=4)
    order = groups.argsort(dim=-1, descending=True, stable=True)
    return rearrange(
        torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order[..., :2], True), "o g four -> o (g four)"
    )


def with_prior(logits: Tensor, mask: Tensor, strength: float) -> Tensor:
    """logits (out, in / 4, 6), raised by strength deviations of theirs for the candidate that is mask (out, in) bool,
    2:4, and lowered by as much for the one that has nothing of it: logits + (overlap - 1) * std * strength."""
    groups = rearrange(mask, "o (g four) -> o g four", four=4).float()
    return logits + (groups @ CANDIDATES.T - 1) * logits.std() * strength
