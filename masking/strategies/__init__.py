"""Mask strategies, one a file. `all_strategies` finds them by being there."""

from __future__ import annotations

import importlib
import pkgutil

from masking.draw import MaskStrategy


def all_strategies() -> tuple[type[MaskStrategy], ...]:
    """Every strategy class in this folder, in the order of its files."""
    found: list[type[MaskStrategy]] = []
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, MaskStrategy) and value.__module__ == module.__name__:
                found.append(value)
    return tuple(found)
