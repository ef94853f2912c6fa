"""How far generated images are from real ones, by their features: two sets of points in one space, float64 inside.

Frechet distance (Heusel et al. 2017), kernel distance (Binkowski et al. 2018), precision and recall (Kynkaanniemi et
al. 2019), density and coverage (Naeem et al. 2020). The numbers depend on the space and on how many images there are;
compare those of one space and equal counts only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.errors import ConfigError, NumericalError

_CHUNK = 1024  # rows compared at once: 1024 x 50,000 distances are 0.4 GB
_SLACK = 1e-12  # of the largest squared norm: rounding of a squared distance, so that a point lies on its own ball


def compare(
    real: Tensor, generated: Tensor, *, k: int = 3, k_density: int = 5, chunk: int = _CHUNK
) -> dict[str, Any]:
    """Every number of this file for features real (n, D) and generated (m, D): `fid`, `kernel_distance`, `precision`,
    `recall`, `density`, `coverage`, the counts, and `warnings` in words. k is that of precision and recall.

    Raises ConfigError for sets that cannot be compared and NumericalError for features that are not finite."""
    if min(k, k_density, chunk) < 1:
        raise ConfigError(f"k={k}, k_density={k_density}, chunk={chunk}; each is 1 or more")
    x, y = _checked(real, generated, max(k, k_density) + 1)
    return {
        "fid": frechet(x, y),
        "kernel_distance": kernel_distance(x, y, chunk),
        **overlap(x, y, k=k, k_density=k_density, chunk=chunk),
        "real_images": len(x),
        "generated_images": len(y),
        "warnings": _words(len(x), len(y), x.shape[1]),
    }


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of a set, float64; all that the Frechet distance asks of it."""

    mean: Tensor
    covariance: Tensor


def moments(points: Tensor) -> Moments:
    """Those of points (n, D), the covariance with n - 1."""
    points = points.double()
    mean = points.mean(dim=0)
    centred = points - mean
    return Moments(mean, centred.T @ centred / (len(points) - 1))


def frechet(x: Tensor, y: Tensor) -> float:
    """The Frechet distance between Gaussians fitted to x (n, D) and y (m, D), n and m at least 2. It is biased upwards,
    the more the fewer images there are."""
    x, y = _checked(x, y, 2)
    return frechet_of(moments(x), moments(y))


def frechet_of(x: Moments, y: Moments) -> float:
    """|mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x^(1/2) C_y C_x^(1/2))^(1/2)), from exact or estimated moments.

    The last trace is the sum of the singular values of C_x^(1/2) C_y^(1/2). Taken so, an eigenvalue of 0 that comes out
    as 1e-16 counts as 1e-16; as the root of an eigenvalue of the product it would count as 1e-8, D times over."""
    between = (x.mean - y.mean).square().sum()
    common = torch.linalg.svdvals(_root(x.covariance) @ _root(y.covariance)).sum()
    return max(0.0, float(between + x.covariance.trace() + y.covariance.trace() - 2 * common))


def kernel_distance(x: Tensor, y: Tensor, chunk: int = _CHUNK) -> float:
    """The squared maximum mean discrepancy of x (n, D) and y (m, D) under the kernel (a.b / D + 1)^3, n and m at least
    2: without bias at any number of images, so it may be below 0."""
    x, y = _checked(x, y, 2)
    n, m = len(x), len(y)
    within_x = (_kernel_sum(x, x, chunk) - _kernel_itself(x)) / (n * (n - 1))
    within_y = (_kernel_sum(y, y, chunk) - _kernel_itself(y)) / (m * (m - 1))
    return within_x + within_y - 2 * _kernel_sum(x, y, chunk) / (n * m)


def overlap(
    real: Tensor, generated: Tensor, *, k: int = 3, k_density: int = 5, chunk: int = _CHUNK
) -> dict[str, float]:
    """`precision`, `recall`, `density` and `coverage` of features real (n, D) and generated (m, D).

    Each point is the centre of a ball that reaches to its k-th nearest other point of its set. precision: the share of
    generated points inside a ball of a real one; recall: the other way round; density: in how many balls of real points
    a generated one lies, over k_density, which may exceed 1; coverage: the share of balls of real points, of k_density,
    that hold a generated one."""
    x, y = _checked(real, generated, max(k, k_density) + 1)
    x, y = x - x.mean(dim=0), y - x.mean(dim=0)  # rounding of a squared distance goes with the norms
    slack = _SLACK * float(torch.cat([x.square().sum(1), y.square().sum(1)]).max())
    reach = _reach(x, max(k, k_density), chunk) + slack
    near_real, far_real = reach[:, k - 1], reach[:, k_density - 1]
    near_generated = _reach(y, k, chunk)[:, k - 1] + slack
    precise, dense = 0, 0
    recalled, covered = (torch.zeros(len(x), dtype=torch.bool, device=x.device) for _ in range(2))
    for rows, squared in _distances(y, x, chunk):
        precise += int((squared <= near_real).any(dim=1).sum())
        recalled |= (squared <= near_generated[rows, None]).any(dim=0)
        held = squared <= far_real
        dense += int(held.sum())
        covered |= held.any(dim=0)
    return {
        "precision": precise / len(y),
        "recall": int(recalled.sum()) / len(x),
        "density": dense / (k_density * len(y)),
        "coverage": int(covered.sum()) / len(x),
    }


def _checked(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both sets in float64, of at least so many points."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not x.shape[1]:
        raise ConfigError(
            f"features of {tuple(x.shape)} and {tuple(y.shape)} are not of one space; give (n, D) and (m, D)"
        )
    if min(len(x), len(y)) < least:
        raise ConfigError(f"{len(x)} real and {len(y)} generated images are too few to compare; give {least} or more")
    for name, points in (("real", x), ("generated", y)):
        if not bool(torch.isfinite(points).all()):
            raise NumericalError(f"features of the {name} images are not finite: nothing can be said of them")
    return x.double(), y.double()


def _words(num_real: int, num_generated: int, width: int) -> list[str]:
    return [
        f"{number} {name} images in a space of {width} dimensions: their covariance has directions without any spread, "
        f"and fid says little; take more than {width}, or compare by kernel_distance"
        for name, number in (("real", num_real), ("generated", num_generated))
        if number <= width
    ]


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root (D, D) of a covariance that may lack rank."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _kernel_sum(x: Tensor, y: Tensor, chunk: int) -> float:
    return sum(float((part @ y.T / x.shape[1] + 1).pow(3).sum()) for part in x.split(chunk))


def _kernel_itself(x: Tensor) -> float:
    return float((x.square().sum(dim=1) / x.shape[1] + 1).pow(3).sum())


def _reach(points: Tensor, k: int, chunk: int) -> Tensor:
    """Squared distances (n, k) from each point to its nearest others, ascending."""
    nearest = []
    for rows, squared in _distances(points, points, chunk):
        squared.diagonal(rows.start).fill_(torch.inf)
        nearest.append(squared.topk(k, dim=1, largest=False).values)
    return torch.cat(nearest)


def _distances(x: Tensor, y: Tensor, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances (rows, m) from some rows of x (n, D) at a time to all of y (m, D). By a product of matrices:
    for 10,000 x 10,000 x 768 on one core 4 s, pair by pair 34 s."""
    norms = y.square().sum(dim=1)
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        squared = part.square().sum(dim=1, keepdim=True) + norms - 2 * part @ y.T
        yield slice(start, start + len(part)), squared.clamp_(min=0)
