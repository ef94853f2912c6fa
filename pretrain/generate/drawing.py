"""How tokens are drawn from what a model says, by numbers that are named by image, step and position alone.

Letters: B images, N positions, a of them drawn at once, K codes, D width."""

from __future__ import annotations

from typing import Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor

from masking.draw import Noise
from pretrain.generate.sampling import Sampling
from pretrain.objectives.diffusion import DiffusionHead


class Drawing(Protocol):
    """Codes or values from a model's answers; with guidance the answers of 2 * B rows, those without class behind."""

    def draw(self, said: Tensor, positions: Tensor, step: int, guidance: float, *, local: bool) -> Tensor:
        """Tokens of positions (B, a) int64 from what was said of them, (B or 2 * B, a, ...)."""
        ...


class Codes:
    """Ids from logits."""

    def __init__(self, sampling: Sampling, noise: Noise) -> None:
        self.sampling, self.noise = sampling, noise

    def draw(self, said: Tensor, positions: Tensor, step: int, guidance: float, *, local: bool) -> Tensor:
        """(B, a) int64, from logits (B or 2 * B, a, K)."""
        name = f"again-{step}" if self.sampling.redraw else f"token-{step}"
        logits = self.guided(said, guidance) / max(self.sampling.token_temperature(step), 1e-6)
        return self._pick(logits, positions, name)

    def score(self, said: Tensor, step: int, guidance: float) -> tuple[Tensor, Tensor]:
        """An id for every position, (B, N) int64, and the logarithm of its probability, (B, N) float64: what decides
        which positions are decoded. They are drawn at temperature 1 where codes are drawn again."""
        logits = self.guided(said, guidance)
        if not self.sampling.redraw:
            logits = logits / max(self.sampling.token_temperature(step), 1e-6)
        positions = repeat(torch.arange(logits.shape[1], device=logits.device), "n -> b n", b=len(logits))
        ids = self._pick(logits, positions, f"token-{step}")
        return ids, logits.double().log_softmax(-1).gather(-1, ids[..., None])[..., 0]

    def guided(self, said: Tensor, guidance: float) -> Tensor:
        """Logits (B, a, K) of both branches together."""
        if len(said) == len(self.noise.rows):
            return said
        told, untold = said.chunk(2)
        return (1 + guidance) * told - guidance * untold

    def _pick(self, logits: Tensor, positions: Tensor, name: str) -> Tensor:
        """The inverse of each distribution function at one uniform number."""
        function = logits.double().softmax(-1).cumsum(-1)
        numbers = self.noise.uniform_at(positions, name).double() * function[..., -1]
        ids = torch.searchsorted(function, numbers[..., None], right=True)[..., 0]
        return ids.clamp(max=logits.shape[-1] - 1)


class Values:
    """Continuous tokens from the conditions of a diffusion head."""

    def __init__(self, sampling: Sampling, noise: Noise, head: DiffusionHead, num_values: int) -> None:
        self.sampling, self.noise, self.head, self.num_values = sampling, noise, head, num_values

    def draw(self, said: Tensor, positions: Tensor, step: int, guidance: float, *, local: bool) -> Tensor:
        """(B, a, num_values) float32, from conditions (B or 2 * B, a, D): ancestral sampling whose numbers are named by
        position, channel and diffusion step."""
        sampling, batch = self.sampling, len(positions)
        channel = torch.arange(self.num_values, device=positions.device)
        index = rearrange(positions[..., None] * self.num_values + channel, "b a c -> b (a c)")

        def normal(diffusion_step: int) -> Tensor:
            numbers = self.noise.normal_at(index, f"diffusion-{diffusion_step}")
            return rearrange(numbers, "b (a c) -> (b a) c", c=self.num_values)

        halves = [rearrange(part, "b a d -> (b a) d") for part in said.split(batch)]
        steps = sampling.local_diffusion_steps if local else None
        values = self.head.sample(
            halves[0],
            normal,
            steps=sampling.diffusion_steps if steps is None else steps,
            temperature=sampling.temperature,
            guidance=1 + guidance,
            z_uncond=halves[1] if len(halves) > 1 else None,
        )
        return rearrange(values, "(b a) c -> b a c", b=batch)
