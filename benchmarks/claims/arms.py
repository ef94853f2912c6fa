"""What is compared: arms as data, each a config of the product and what it sets otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One way to train: a config with these settings, for `times` the common number of steps."""

    settings: tuple[str, ...] = ()
    times: float = 1
    config: str | None = None  # below the repository's root; None: the claim's
    teacher: str | None = None  # the arm whose run of the same seed is objective.teacher.model; trained first


@dataclass(frozen=True)
class Rivals:
    """What is claimed in one sentence: method is not below rival, which has twice the steps of the claim's baseline."""

    method: str
    rival: str


@dataclass(frozen=True)
class Claim:
    """Arms that differ in what is claimed and in nothing else."""

    title: str
    config: str  # below the repository's root
    baseline: str  # the arm that every other is compared with, seed by seed
    arms: dict[str, Arm]
    loss: str = "loss"  # of metrics.jsonl, what arms have in common; where a run has no such line, its loss
    rivals: Rivals | None = None
    heterogeneity: bool = False  # whether runs are inspected, and it is correlated with the final kNN
    small: tuple[str, ...] = ()  # further settings of --small
    remarks: tuple[str, ...] = ()  # what a reader of the table must know

    def steps(self, arm: str, common: int) -> int:
        """How many steps an arm trains, where the common number is this."""
        return round(self.arms[arm].times * common)
