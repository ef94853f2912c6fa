"""Every setting with its type, default and meaning, from the dataclasses: the comment behind a field is its help."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any

from pretrain.config import Config

_FIELD = re.compile(r"^    (\w+): [^#]*#\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Setting:
    """One setting: its override key, declared type, value (or default) and meaning."""

    key: str
    type: str
    value: Any
    meaning: str


def settings_of(value: Any, prefix: str = "") -> list[Setting]:
    """Every leaf setting of a config (or of one of its parts), in the order it is declared."""
    meanings = field_comments(type(value))
    rows: list[Setting] = []
    for item in dataclasses.fields(value):
        part, key = getattr(value, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(part):
            rows += settings_of(part, f"{key}.")
        else:
            kind = str(item.type).replace("typing.", "")
            rows.append(Setting(key, kind, part, meanings.get(item.name, "")))
    return rows


def field_comments(kind: type) -> dict[str, str]:
    """Field name -> the comment behind it, from the class's source."""
    return dict(_FIELD.findall(inspect.getsource(kind)))


def render(config: Config, width: int = 118) -> str:
    """A table of every setting of config: key, value, meaning."""
    rows = settings_of(config)
    key_width = max(len(row.key) for row in rows)
    lines = []
    for row in rows:
        head = f"  {row.key:<{key_width}}  {_value(row.value)}"
        lines.append(f"{head}\n  {'':<{key_width}}    {row.meaning} [{row.type}]")
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_value(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
