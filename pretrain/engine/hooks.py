"""Lets ZeRO stage 3 see the tensors inside what our modules return.

DeepSpeed gathers a module's weights for its backward through hooks on the module's output tensors. It looks into
tuples, lists and dicts only; a module that owns weights (class token, positions) and returns Features lost them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from deepspeed.runtime.zero import parameter_offload, utils

from pretrain.types import Features


def open_features() -> None:
    """Makes DeepSpeed's walk over a module's inputs and outputs go into Features; other dataclasses pass untouched."""
    original = utils.apply_to_tensors_only
    if getattr(original, "opens_features", False):
        return

    def walk(function: Callable[[Any], Any], value: Any, warning_msg_fn: Any = None) -> Any:
        if isinstance(value, Features):
            return replace(value, **{field.name: walk(function, getattr(value, field.name)) for field in fields(value)})
        if is_dataclass(value):
            return value  # Target and Mask: inputs without gradient
        return original(function, value, warning_msg_fn)

    walk.opens_features = True  # type: ignore[attr-defined]
    utils.apply_to_tensors_only = walk
    parameter_offload.apply_to_tensors_only = walk
