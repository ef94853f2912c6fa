"""From a result of benchmarks/attention.py to the rows of masking/attention/blocks.json that the dispatcher reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from masking.attention import blocks
from masking.attention.op import BRANCHES


def write_table(result: dict[str, Any], file: Path) -> None:
    """What the branches took in a result of this benchmark, into blocks.json; rows of other GPUs stay."""
    found = json.loads(blocks.PATH.read_text())
    others = [row for row in found["measured"] if row["gpu"] != result["gpu"]]
    blocks.write(found["kernels"], others + table(result, file.name))


def table(result: dict[str, Any], file: str) -> list[dict[str, Any]]:
    """Rows of blocks.json, one a member and size; where a member was measured at several strengths (alpha), means."""
    times: dict[tuple[str, int, int], dict[str, list[float]]] = {}
    for row in result["rows"]:
        for name in BRANCHES:
            if name in row["ms"]:
                size = times.setdefault((row["describe"], row["head_dim"], row["length"]), {})
                size.setdefault(name, []).append(row["ms"][name])
    source = f"{file} of {result['date']}"
    return [{"gpu": result["gpu"], "capability": result["capability"], "member": member,
             "size": [width, length, length],
             "ms": {name: round(sum(values) / len(values), 4) for name, values in sides.items()}, "source": source}
            for (member, width, length), sides in times.items()]  # fmt: skip
