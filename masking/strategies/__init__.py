"""Mask strategies, one a file. `all_strategies` finds them by being there."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import is_dataclass


def all_strategies() -> tuple[type, ...]:
    """Every strategy class in this folder, in the order of its files: a dataclass with a method `scores`."""
    found: list[type] = []
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                if is_dataclass(value) and hasattr(value, "scores"):
                    found.append(value)
    return tuple(found)
