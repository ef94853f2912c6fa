"""What a run may be told that leaves its encoder's weights as `init_from` has them and trains something sparse about
them. A group of another method must be left alone: its settings would have no effect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Method = Literal["composable", "mask_tuning", "two_four"]


@dataclass(frozen=True)
class MaskTuningConfig:
    """Which weights of attention stay, by a score each (Zheng et al., "Regularized Mask Tuning")."""

    first_score: float = 0.01  # score of every weight at the start
    threshold: float = 0.005  # weights whose score is at most this are zero
    dropout: float = 1.0  # share of a gradient that may be dropped where it makes the encoder forget; 0: none is
    distill: float = 1.0  # weight of the distance to the frozen encoder's features, against which the gradient is held
    penalty: float = 1e-4  # weight of the norm of all scores in the loss


@dataclass(frozen=True)
class TwoFourConfig:
    """Which two of every four weights stay, by sampling (Fang et al., "MaskLLM")."""

    prior: float = 3.0  # how many deviations of the first logits the mask by magnitude is ahead; 0: no prior
    init_std: float = 0.01  # deviation of the first logits
    scale: tuple[float, float] = (1e2, 5e2)  # factor of the logits, linear from first to last step
    temperature: tuple[float, float] = (4.0, 0.05)  # of the soft mask, linear from first to last step
    keep_norm: float = 1e-5  # weight of the kept weights' squared norm, which is pushed up; falls to 0 over the run


@dataclass(frozen=True)
class SparseConfig:
    """A frozen encoder and something sparse that is trained about it."""

    method: Method = "composable"  # a difference where it matters, a mask of attention, or two of every four weights
    mask: str | None = None  # file that says where a composable difference is; None: for the other methods
    train_rest: bool = True  # decoder or head is trained beside it; false: they stay as init_from has them
    mask_tuning: MaskTuningConfig = field(default_factory=MaskTuningConfig)  # of sparse.method=mask_tuning
    two_four: TwoFourConfig = field(default_factory=TwoFourConfig)  # of sparse.method=two_four
