"""MAR's diffusion head: a small network that draws one continuous token from a condition (Li et al., "Autoregressive
Image Generation without Vector Quantization", sections 3.2 and 4.2).

The loss is that of improved DDPM: the squared error of the predicted noise, and the variational bound in which the mean
has no gradient, so that it teaches the variance alone. Every number it uses is handed in: training is a function of
seed and step. Letters: R tokens, c values in each, d width of a condition, w width of the head."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.backbones.layers import NORM_EPS
from pretrain.objectives.diffusion_schedule import coefficients, spaced
from pretrain.ranges import AT_LEAST_1, POSITIVE, Range, check_ranges

_TIMESTEPS = 1000
_FREQUENCIES = 256  # numbers that tell a timestep
_RANGES: dict[str, Range] = {"width": AT_LEAST_1, "depth": AT_LEAST_1, "batch_mul": AT_LEAST_1, "clip": POSITIVE}


@dataclass(frozen=True)
class DiffusionConfig:
    """What draws a token from its condition."""

    width: int = 1024  # of the head's layers (B and default 1024, L 1280, H 1536)
    depth: int = 3  # residual blocks (default 3; B 6, L 8, H 12)
    batch_mul: int = 4  # noises and timesteps that each token is trained with in a step
    loss: Literal["diffusion", "l2"] = "diffusion"  # l2: the mean of a token, for comparison; nothing is drawn
    # A step predicts the mean of the data that may be there, which lies among the data: a good head never meets a bound
    # around them, while the errors of a young one grow 300-fold in the first steps (test_diffusion.py).
    clip: float | None = 5.0  # that bound, in deviations of the data; none: unbounded, as published

    def check(self) -> None:
        """Raises ConfigError for settings out of range."""
        check_ranges(vars(self), _RANGES, "objective.head.")

    def num_draws(self, num_values: int) -> int:
        """How many uniform numbers the loss uses for a token of so many values."""
        return self.batch_mul * (1 + 2 * math.ceil(num_values / 2)) if self.loss == "diffusion" else 0

    def forward_flops(self, num_values: int, cond_width: int) -> float:
        """FLOPs of the loss's forward for one token."""
        w = self.width
        layers = num_values * w + _FREQUENCIES * w + w * w + cond_width * w + 5 * self.depth * w * w + 2 * w * w
        each = 2 * (layers + 2 * num_values * w)
        return each * (self.batch_mul if self.loss == "diffusion" else 1)


class DiffusionHead(nn.Module):
    """Predicts noise and variance of a noisy token, told of its timestep and its condition."""

    bits: Tensor

    def __init__(self, config: DiffusionConfig, num_values: int, cond_width: int) -> None:
        super().__init__()
        self.config, self.num_values = config, num_values
        width = config.width
        self.embed = nn.Linear(num_values, width)
        self.time = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(cond_width, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, 2 * num_values)
        # float32 as integers, which `module.bfloat16()` leaves alone (pretrain/patches.py has the reasons).
        table = torch.from_numpy(coefficients(_TIMESTEPS, _TIMESTEPS)).float().contiguous()
        self.register_buffer("bits", table.view(torch.int32), persistent=False)
        self._initialize()

    def forward(self, noisy: Tensor, time: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and variance's place between its bounds, (R, c) float32 each, of tokens noisy (R, c) at timesteps
        time (R,) int64 under conditions z (R, d)."""
        dtype = self.embed.weight.dtype
        told = F.silu(self.time(_waves(time).to(dtype)) + self.condition(z.to(dtype)))
        x = self.embed(noisy.to(dtype))
        for block in self.blocks:
            x = block(x, told)
        shift, scale = self.modulation(told).chunk(2, dim=-1)
        noise, place = self.out(self.norm(x) * (1 + scale) + shift).float().chunk(2, dim=-1)
        return noise, (place + 1) / 2

    def loss(self, values: Tensor, z: Tensor, draws: Tensor) -> Tensor:
        """(R,) float32 for tokens values (R, c) under conditions z (R, d), by draws (R, num_draws) uniform in 0..1."""
        values = values.float()
        if self.config.loss == "l2":
            return (self._mean_token(z) - values).square().mean(-1)
        times = self.config.batch_mul
        draws = rearrange(draws.float(), "r (m n) -> (r m) n", m=times)
        values, z = (repeat(part, "r c -> (r m) c", m=times) for part in (values, z))
        time = (draws[:, 0] * _TIMESTEPS).long().clamp(max=_TIMESTEPS - 1)
        noise = _normal(draws[:, 1:])[:, : self.num_values]
        table = self.bits.view(torch.float32)[:, time][..., None]  # (6, R, 1), as ROWS names them
        noisy = table[1] * values + table[0] * noise
        predicted, place = self(noisy, time, z)
        squared = (predicted - noise).square().mean(-1)
        bound = _variational_bound(values, noisy, predicted.detach(), place, table, time)
        return rearrange(squared + bound, "(r m) -> r m", m=times).mean(1)

    @torch.no_grad()
    def sample(
        self,
        z: Tensor,
        normal: Callable[[int], Tensor],
        *,
        steps: int = 100,
        temperature: float = 1.0,
        guidance: float = 1.0,
        z_uncond: Tensor | None = None,
    ) -> Tensor:
        """Tokens (R, c) float32 for conditions z (R, d), by so many evaluations of the network, from the last timestep
        to the first.

        normal(i) gives (R, c) standard normal numbers: for i = steps those it begins with, for others those injected
        at step i, times temperature. With z_uncond (R, d) the noise is uncond + guidance * (cond - uncond), both at the
        same noisy tokens; the variance is that of the condition."""
        if self.config.loss == "l2":
            return self._mean_token(z)
        table, times = coefficients(_TIMESTEPS, steps), spaced(_TIMESTEPS, steps)
        x = normal(steps)
        for step in reversed(range(steps)):
            noise_scale, data_scale, of_data, of_noisy, low, high = (float(row) for row in table[:, step])
            time = torch.full((len(z),), times[step], device=z.device)
            noise, place = self(x, time, z)
            if z_uncond is not None:
                untold = self(x, time, z_uncond)[0]
                noise = untold + guidance * (noise - untold)
            data = (x - noise_scale * noise) / data_scale
            if self.config.clip is not None:
                data = data.clamp(-self.config.clip, self.config.clip)
            x = of_data * data + of_noisy * x
            if step:
                x = x + temperature * (0.5 * (place * high + (1 - place) * low)).exp() * normal(step)
        return x

    def _mean_token(self, z: Tensor) -> Tensor:
        nothing = torch.zeros(len(z), self.num_values, device=z.device)
        return self(nothing, torch.zeros(len(z), dtype=torch.int64, device=z.device), z)[0]

    def _initialize(self) -> None:
        """Linear layers Xavier uniform, those of the timestep N(0, .02); what modulates, and the output, zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():
            if name.startswith("time.") and name.endswith(".weight"):
                nn.init.normal_(weight, std=0.02)
            elif name.endswith(("modulation.weight", "out.weight")):
                nn.init.zeros_(weight)


class _Block(nn.Module):
    """x + gate * MLP(norm(x) * (1 + scale) + shift)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(told).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


def _waves(time: Tensor) -> Tensor:
    """Timesteps (R,) as cosines, then sines, of falling frequencies, (R, 256) float32."""
    half = _FREQUENCIES // 2
    rates = torch.exp(torch.arange(half, device=time.device) * (-math.log(10_000) / half))
    angles = time[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _normal(numbers: Tensor) -> Tensor:
    """Uniform numbers (R, 2 * n) in [0, 1) as standard normal ones, (R, 2 * n) (Box and Muller)."""
    radius, angle = numbers.chunk(2, dim=-1)
    radius = (-2 * (radius + 2.0**-25).log()).sqrt()
    angle = angle * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)


def _variational_bound(
    values: Tensor, noisy: Tensor, noise: Tensor, place: Tensor, table: Tensor, time: Tensor
) -> Tensor:
    """Bits a value, (R,): the divergence of what the head says of the token one step less noisy from what is true of
    it; at the first timestep, the token's negative log-likelihood. table is (6, R, 1), as ROWS names them."""
    data = (noisy - table[0] * noise) / table[1]
    mean, true_mean = (table[2] * part + table[3] * noisy for part in (data, values))
    log_variance = place * table[5] + (1 - place) * table[4]
    distance = (true_mean - mean).square()
    divergence = 0.5 * (
        log_variance - table[4] - 1 + (table[4] - log_variance).exp() + distance * (-log_variance).exp()
    )
    likelihood = 0.5 * (math.log(2 * math.pi) + log_variance + (values - mean).square() * (-log_variance).exp())
    return torch.where(time[:, None] == 0, likelihood, divergence).mean(-1) / math.log(2)
