"""What is compared: arms as data, each a config of the product and what it sets otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One way to train: the claim's config with these settings, for `times` the common number of steps."""

    settings: tuple[str, ...] = ()
    times: int = 1


@dataclass(frozen=True)
class Claim:
    """Arms that differ in what is claimed and in nothing else."""

    title: str
    config: str  # below the repository's root
    baseline: str  # the arm that every other is compared with, seed by seed
    arms: dict[str, Arm]
