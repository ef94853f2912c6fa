"""Which number format the forward and backward passes multiply in; decided once, at a run's first start."""

from __future__ import annotations

from typing import Literal

import torch

from pretrain.errors import ConfigError

Precision = Literal["bf16", "fp32"]


def resolve_precision(setting: str) -> Precision:
    """setting, with auto turned into bf16 where the hardware multiplies bf16 faster than fp32, else into fp32."""
    if setting == "auto":
        return "bf16" if _multiplies_bf16() else "fp32"
    if setting == "bf16" or setting == "fp32":
        return setting  # type: ignore[return-value]  # mypy does not narrow a str by ==
    raise ConfigError(f"engine.precision={setting!r} is unknown; it can be auto, bf16 or fp32")


def _multiplies_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability()[0] >= 8  # is_bf16_supported() also counts emulation
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        if getattr(torch.cpu, probe, lambda: False)():
            return True
    return False
