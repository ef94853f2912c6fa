"""Order, masks, initial weights and loss are those they were when somebody last looked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import golden


def test_nothing_that_decides_a_run_has_moved() -> None:
    _compare(json.loads(json.dumps(golden.compute())), json.loads(golden.PATH.read_text()), "golden")


def _compare(found: Any, known: Any, name: str) -> None:
    if isinstance(known, dict):
        assert found.keys() == known.keys(), name
        for key in known:
            _compare(found[key], known[key], f"{name}.{key}")
    elif isinstance(known, list):
        assert len(found) == len(known), name
        for index, (one, other) in enumerate(zip(found, known, strict=True)):
            _compare(one, other, f"{name}[{index}]")
    elif isinstance(known, float):
        assert found == pytest.approx(known, rel=1e-5), f"{name} moved: if it was meant to, run make golden"
    else:
        assert found == known, f"{name} moved: if it was meant to, run make golden"
