"""What evaluation during training can be told. The comment behind a field is its help text in `lacuna config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Method = Literal["knn", "linear", "linear-sgd", "lowshot", "attentive", "head"]


@dataclass(frozen=True)
class EvaluationConfig:
    """Quality of frozen features, or of a classifier, measured as the run goes on; never touches the trained weights."""

    every_steps: int | None = None  # steps between two evaluations; None: none during training
    methods: tuple[Method, ...] = ("knn",)  # what is measured; head is a supervised run's own
    weights: Literal["ema", "model"] = "ema"  # which weights; ema falls back to model where none is kept
    pool: Literal["mean", "cls"] = "mean"  # a feature is the mean of the patch tokens, or the class token
    layer: int = -1  # block whose output is used: -1 the last with the final norm; others count from 0, normalised alike
    k: int = 20  # neighbours of kNN
    temperature: float = 0.07  # of the neighbours' votes
    max_images: int | None = 10_000  # images of each split that are used at most; None: all
