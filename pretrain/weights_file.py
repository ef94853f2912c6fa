"""Reads files of weights that somebody else wrote. Nothing in them can run, and nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pretrain.errors import ConfigError


def read_state(path: Path) -> dict[str, Any]:
    """The tensors in a safetensors file, or in one of torch's. Raises ConfigError for files of any other kind."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"the weights in {path} cannot be read: {error}") from error
    except Exception as error:  # torch raises what its archive, its pickle or its weights_only reader raise
        raise ConfigError(
            f"{path} cannot be read as tensors alone, and code in a file is never run; give a safetensors file"
        ) from error
    if not isinstance(state, dict):
        raise ConfigError(f"{path} holds a {type(state).__name__}, and no state dict")
    return state
