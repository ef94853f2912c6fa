"""What `lacuna evaluate` shows and keeps: a table, JSON with all that its figures depend on, a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.errors import ConfigError

Results = Mapping[str, Mapping[str, Any]]  # figures by the name of what they are of
_NAME_WIDTH = 44
_SHARED = ("chance", "train_images", "val_images", "classes", "bad_images")  # of the images, and alike for most


def table(results: Results) -> str:
    """A line a name and a column a figure; below it what is the same for all, and warnings."""
    rows = list(results.values())
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "warnings"))
    alike = [key for key in keys if key in _SHARED and all(row.get(key) == rows[0].get(key) for row in rows)]
    columns = [key for key in keys if key not in alike]
    names = [short_name(name) for name in results]
    cells = [[key, *(_text(row.get(key)) for row in rows)] for key in columns]
    widths = [max(map(len, column)) for column in cells]
    first = max(map(len, names))
    lines = []
    for index, name in enumerate(["", *names]):
        values = "  ".join(f"{column[index]:>{width}}" for column, width in zip(cells, widths, strict=True))
        lines.append(f"{name:<{first}}  {values}")
    if alike:
        lines.append(", ".join(f"{key} {_text(rows[0][key])}" for key in alike))
    return "\n".join([*lines, *_warnings(results)])


def short_name(name: str, width: int = _NAME_WIDTH) -> str:
    """name, its middle left out where it is longer than width: both ends tell sources apart."""
    if len(name) <= width:
        return name
    front = (width - 3) // 2
    return f"{name[:front]}...{name[front + 3 - width :]}"


def write(base: Path, facts: Mapping[str, Any], results: Results) -> None:
    """facts, results and where they were made as base.json, and their picture as base.png; says so. Raises
    ConfigError for a folder that cannot be written."""
    from launch.environment import detect, snapshot
    from pretrain.tracking.evaluation_picture import evaluation_picture
    from pretrain.tracking.lines import plain

    made = snapshot(detect())
    where = {
        "date": made["started"],
        "machine": {key: made[key] for key in ("platform", "cpus")} | {"device": _device()},
        "versions": {"python": made["python"], **dict(made["packages"])},  # type: ignore[call-overload]
        "commit": made["commit"],
        "command": made["command"],
    }
    path = base.with_name(f"{base.name}.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain({**facts, "results": results, **where}), indent=2) + "\n")
        picture = evaluation_picture(results, base.with_name(f"{base.name}.png"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}); --out names another folder") from error
    print(f"written to {path} and {picture}")


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _warnings(results: Results) -> list[str]:
    """Each warning once, with the names it is about where it is not about all."""
    found: dict[str, list[str]] = {}
    for name, row in results.items():
        for words in dict.fromkeys(row["warnings"]):
            found.setdefault(words, []).append(short_name(name))
    every = len(results)
    return [f"note: {words}" if len(of) == every else f"note: {'; '.join(of)}: {words}" for words, of in found.items()]


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
