"""Dynamic Alignment: which mix of a student's layers is compared with which of a teacher's, and the comparison itself
(Xue et al., "Stare at What You See", section 3.3; what the paper does not say follows the authors' code).

Letters: B images, T tokens that both saw (class token and visible patches), D width of the student, D' of the teacher,
M levels of the teacher, N of the student, A of the teacher's that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.backbones.layers import initialize

Levels = Literal["top", "middle", "all", "last", "linear"]
Adaptor = Literal["linear", "mlp"]
Normalize = Literal["whiten", "l2", "none"]

_SPREAD = 0.01  # what every layer of the student gives to every level at the start, where their numbers are equal


def level_weights(levels: Levels, num_levels: int, num: int) -> tuple[float, ...]:
    """How much each of a teacher's num levels counts, a sum of 1. top and middle: num_levels of them alike, or all
    where there are fewer; linear: in proportion to their height, the last most."""
    if levels == "linear":
        return tuple(2 * (level + 1) / (num * (num + 1)) for level in range(num))
    count = {"all": num, "last": 1}.get(levels, min(num_levels, num))
    first = (num - count) // 2 if levels == "middle" else num - count
    return tuple(1 / count if first <= level < first + count else 0.0 for level in range(num))


def whiten(values: Tensor) -> Tensor:
    """Each token of values (B, T, D') less its mean over channels, over its standard deviation: float32, no weights."""
    return F.layer_norm(values.float(), values.shape[-1:])


def comparable(values: Tensor, how: Normalize) -> Tensor:
    """A teacher's features (B, T, D') as they are compared: whitened, of length 1, or as they are; float32."""
    if how == "whiten":
        return whiten(values)
    return F.normalize(values.float(), dim=-1) if how == "l2" else values.float()


def distance(prediction: Tensor, wanted: Tensor) -> Tensor:
    """2 SmoothL1 with beta 1 of two (B, T, D'), the mean over tokens and channels: (B,) float32. d^2 where |d| < 1, and
    2 |d| - 1 beyond."""
    return 2 * F.smooth_l1_loss(prediction.float(), wanted, reduction="none").mean((1, 2))


class Mixing(nn.Module):
    """The matrix W (M, N): row a says how much of each student layer is compared with level a of the teacher."""

    def __init__(self, num_teacher: int, num_student: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial_matrix(num_teacher, num_student))

    def forward(self, layers: Sequence[Tensor], levels: Sequence[int]) -> Tensor:
        """Student layers, N of (B, T, D), mixed for the teacher's levels: (A, B, T, D)."""
        return torch.tensordot(self.weight[list(levels)], torch.stack(tuple(layers)), dims=1)


def initial_matrix(num_teacher: int, num_student: int) -> Tensor:
    """W at the start, (M, N) float32: the identity plus 0.01 everywhere, or 1 / N where the numbers differ."""
    if num_teacher != num_student:
        return torch.full((num_teacher, num_student), 1 / num_student)
    return torch.eye(num_student) + _SPREAD


class Alignment(nn.Module):
    """Mixing and an adaptor for each level that counts. Levels of weight 0 have no adaptor and cost nothing."""

    def __init__(
        self, weights: Sequence[float], num_student: int, width: int, teacher_width: int, adaptor: Adaptor, mixes: bool
    ) -> None:
        super().__init__()
        self.levels = tuple(level for level, weight in enumerate(weights) if weight)
        self.weights = tuple(weights)
        self.mixing = Mixing(len(weights), num_student) if mixes else None
        self.adaptors = nn.ModuleList(_adaptor(adaptor, width, teacher_width) for _ in self.levels)
        initialize(self)

    def forward(self, layers: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The distance of each level that counts, (A, B) float32: student layers, N of (B, T, D), mixed and adapted,
        from targets, A of (B, T, D') float32."""
        mixed = [layers[level] for level in self.levels] if self.mixing is None else self.mixing(layers, self.levels)
        pairs = zip(self.adaptors, mixed, targets, strict=True)
        return torch.stack([distance(adaptor(x), wanted) for adaptor, x, wanted in pairs])

    def total(self, distances: Tensor) -> Tensor:
        """distances (A, B) of the levels that count, weighed: (B,)."""
        return sum((self.weights[level] * row for level, row in zip(self.levels, distances)), distances.new_zeros(()))

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """W, (M, N) float32; the identity where nothing is mixed."""
        return torch.eye(len(self.weights)) if self.mixing is None else self.mixing.weight.float()

    def flops(self, tokens: int, num_student: int, width: int) -> float:
        """FLOPs of one image's forward, of so many tokens."""
        linear = sum(m.weight.numel() for m in self.adaptors.modules() if isinstance(m, nn.Linear))
        mixing = 0 if self.mixing is None else len(self.levels) * num_student * width
        return 2 * tokens * (linear + mixing)


def _adaptor(kind: Adaptor, width: int, teacher_width: int) -> nn.Module:
    first = nn.Linear(width, teacher_width)
    if kind == "linear":
        return first
    return nn.Sequential(first, nn.GELU(), nn.Linear(teacher_width, teacher_width))


def contributions(matrix: Tensor, scales: Tensor) -> Tensor:
    """matrix (M, N) with each row as shares of what the layers contribute, of size scales (N,): the sizes of a row sum
    to 1, signs stay. An unconstrained matrix cannot be read otherwise, for adaptors take up its scale."""
    parts = matrix * scales
    return parts / parts.abs().sum(1, keepdim=True)
