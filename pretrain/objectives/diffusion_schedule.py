"""The noise that a diffusion head learns to take away: the cosine schedule, whole and thinned out (Nichol and Dhariwal,
"Improved Denoising Diffusion Probabilistic Models", sections 3.2, 3.3 and 4).

Letters: T timesteps, of which S are used; a signal is the share alpha_bar of the data's variance that is left."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

ROWS = ("noise_scale", "data_scale", "mean_of_data", "mean_of_noisy", "log_variance", "log_beta")


@cache
def signals(num_timesteps: int) -> np.ndarray:
    """alpha_bar of each of T timesteps, (T,) float64, falling: cos^2((t + .008) / 1.008 * pi / 2), no step losing more
    than .999 of what is left."""

    def square(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = range(num_timesteps)
    betas = [min(1 - square((t + 1) / num_timesteps) / square(t / num_timesteps), 0.999) for t in steps]
    return np.cumprod(1 - np.array(betas))


@cache
def spaced(num_timesteps: int, num_steps: int) -> tuple[int, ...]:
    """S of T timesteps, evenly spaced, the first and the last among them; one alone is the last."""
    if num_steps == 1:
        return (num_timesteps - 1,)
    stride = (num_timesteps - 1) / (num_steps - 1)
    return tuple(round(step * stride) for step in range(num_steps))


@cache
def coefficients(num_timesteps: int, num_steps: int) -> np.ndarray:
    """What training and sampling need of the chain of S steps, (6, S) float64, by ROWS: a noisy value is data_scale *
    data + noise_scale * noise; the value before it has the mean mean_of_data * data + mean_of_noisy * noisy, and a
    variance between exp(log_variance) and exp(log_beta)."""
    signal = signals(num_timesteps)[list(spaced(num_timesteps, num_steps))]
    before = np.append(1.0, signal[:-1])
    beta = 1 - signal / before
    variance = beta * (1 - before) / (1 - signal)
    variance[0] = variance[1] if num_steps > 1 else beta[0]  # the first step's is 0, and its logarithm is asked for
    return np.stack([
        np.sqrt(1 - signal),
        np.sqrt(signal),
        beta * np.sqrt(before) / (1 - signal),
        (1 - before) * np.sqrt(1 - beta) / (1 - signal),
        np.log(variance),
        np.log(beta),
    ])  # fmt: skip
