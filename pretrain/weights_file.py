"""Reads files of weights that somebody else wrote. Nothing in them can run, and nothing is downloaded."""

from __future__ import annotations

import json
from argparse import Namespace
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
        with torch.serialization.safe_globals([Namespace]):  # a bag of names, which older training scripts put in
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


def weights_in(folder: Path) -> Path:
    """The one file of weights in folder. Raises ConfigError where there is none."""
    names = ["model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "model.pth"]
    found = [folder / name for name in names if (folder / name).is_file()] or sorted(folder.glob("*.safetensors"))
    if not found:
        raise ConfigError(f"{folder} has no weights; {' or '.join(names)} is looked for")
    return found[0]


def read_settings(path: Path, otherwise: str) -> dict[str, Any]:
    """The JSON object in path; otherwise says what is wanted where there is none. Raises ConfigError."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}); {otherwise}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no settings; {otherwise}")
    return value
