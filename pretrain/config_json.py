"""Settings read back from JSON, as `pretrain.config.to_json` writes them. No type but ours is ever imported."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from pretrain.errors import ConfigError


def from_json(value: Any, source: str) -> Any:
    """value with every object that names a "type" as that dataclass, and every list as a tuple. source is the file,
    for what is said. Raises ConfigError for types and settings that are not ours."""
    if isinstance(value, list):
        return tuple(from_json(item, source) for item in value)
    if not isinstance(value, dict):
        return value
    kind = component(value.get("type"), source)
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(value) - known - {"type"})
    if unknown:
        raise ConfigError(f"{source} has the unknown settings {', '.join(unknown)} in {kind.__name__}")
    return kind(**{name: from_json(part, source) for name, part in value.items() if name != "type"})


def component(name: Any, source: str) -> type[Any]:
    """The settings class that source, a config as JSON, names as its "type". Raises ConfigError for any not ours."""
    module_name, _, class_name = str(name or "").partition(":")
    if module_name.split(".")[0] not in ("pretrain", "masking"):  # never import what a file names
        raise ConfigError(f"{source} names the type {name!r}; only types of pretrain and masking are read")
    try:
        kind = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError:
        kind = None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)) or kind.__module__ != module_name:
        raise ConfigError(f"{source} names the type {name!r}, which this version does not have")
    return kind
