"""JSON that somebody else may have written: no key twice, no endless nesting, no text without end.

Python's own reader keeps the last of two equal keys, so that a person who looks and a program that acts may see two
different files; and a thousand brackets end it in a RecursionError, which nobody catches."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

MAX_BYTES = 64 << 20
MAX_DEPTH = 64


def loads(text: str | bytes) -> Any:
    """The value in text. ValueError says what is wrong with it: no JSON, a key that comes twice, more than MAX_DEPTH
    brackets inside each other, more than MAX_BYTES."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"{len(text)} bytes of JSON, and at most {MAX_BYTES} are read")
    try:
        value = json.loads(text, object_pairs_hook=_no_key_twice)
    except RecursionError as error:
        raise _too_deep() from error
    level, depth = _brackets([value]), 0
    while level:  # by width, since a value that is too deep is also too deep for a recursion
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        level = [inner for outer in level for inner in _brackets(outer.values() if isinstance(outer, dict) else outer)]
    return value


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {ascii(key)[:80]} comes twice in one object")
        found[key] = value
    return found


def _brackets(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _too_deep() -> ValueError:
    return ValueError(f"JSON nested deeper than {MAX_DEPTH} brackets")
