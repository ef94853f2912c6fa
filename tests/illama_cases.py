"""What a forked rank of an iLLaMA test does."""

from __future__ import annotations

from typing import Any


def rank(place: Any, overrides: list[str]) -> int:
    """`lacuna train` of MAE with a small iLLaMA."""
    from launch.cli import main

    raise SystemExit(main(["train", "configs/illama_cifar_mae.py", *overrides]))


def supervised_rank(place: Any, overrides: list[str]) -> int:
    """The same, of a classifier."""
    from launch.cli import main

    raise SystemExit(main(["train", "configs/illama_cifar_supervised.py", *overrides]))
