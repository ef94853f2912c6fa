"""What a forked rank of a fine-tuning test does."""

from __future__ import annotations

from typing import Any


def rank(place: Any, arguments: list[str]) -> int:
    """`lacuna` with these arguments."""
    from launch.cli import main

    raise SystemExit(main(arguments))
