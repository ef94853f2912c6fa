"""Reads files of weights that somebody else wrote. Nothing in them can run, nothing is downloaded, and what they say of
their own size is compared with the file before anything is allocated for it."""

from __future__ import annotations

import tarfile
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pretrain import strict_json
from pretrain.errors import ConfigError

MAX_TENSORS = 100_000
_MAX_PICKLE = 256 << 20  # bytes; names and shapes alone, which take a hundred each
_SHARED = 4  # how often a value may count: in a model, its average, and weights that are tied
_SAFETENSORS = "; give a safetensors file"


def read_state(path: Path) -> dict[str, Any]:
    """The tensors in a safetensors file, or in one of torch's. Raises ConfigError for files of any other kind, and for
    those that hold more than MAX_TENSORS or claim more values than they have bytes for."""
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)  # refuses headers over 100 MB, and offsets that do not fit shapes and file
        else:
            _check_archive(path)
            with torch.serialization.safe_globals([Namespace]):  # a bag of names, which older training scripts put in
                state = torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"the weights in {path} cannot be read: {error}") from error
    except Exception as error:  # torch raises what its archive, its pickle or its weights_only reader raise
        raise ConfigError(
            f"{path} cannot be read as tensors alone, and code in a file is never run{_SAFETENSORS}"
        ) from error
    if not isinstance(state, dict):
        raise ConfigError(f"{path} holds a {type(state).__name__}, and no state dict")
    _check_tensors(path, state)
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
        value = strict_json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}); {otherwise}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no settings; {otherwise}")
    return value


def _check_archive(path: Path) -> None:
    """torch writes its zip archives without compression; one that is packed may unpack to anything."""
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if not is_zip and tarfile.is_tarfile(path):  # torch would unpack it on the disk
        raise ConfigError(f"{path} is of torch's first format, a tar, which is not read{_SAFETENSORS}")
    if not is_zip:
        return  # torch's older format: what is claimed is reserved, and used as far as the file has bytes
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size = path.stat().st_size
    packed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise ConfigError(f"{path} holds {packed.filename!r} compressed, as torch never writes{_SAFETENSORS}")
    if sum(entry.file_size for entry in entries) > size:
        raise ConfigError(f"{path} claims to hold more than its own {size} bytes{_SAFETENSORS}")
    large = next((e for e in entries if e.filename.endswith("data.pkl") and e.file_size > _MAX_PICKLE), None)
    if large is not None or len(entries) > 2 * MAX_TENSORS:
        raise ConfigError(
            f"{path} has {len(entries)} entries; a state dict has at most {2 * MAX_TENSORS}, and {_MAX_PICKLE >> 20} "
            f"MiB of names and shapes{_SAFETENSORS}"
        )


def _check_tensors(path: Path, state: dict[Any, Any]) -> None:
    """A view can repeat one value without end, and the first copy of it would fill the memory."""
    number, total, ahead, seen = 0, 0, [state], {id(state)}
    while ahead:
        for value in ahead.pop().values():
            if isinstance(value, dict) and id(value) not in seen:  # a pickle can hold a dict that holds itself
                seen.add(id(value))
                ahead.append(value)
            if isinstance(value, Tensor):
                number, claimed = number + 1, value.numel() * value.element_size()
                dense = value.layout == torch.strided and value.device.type == "cpu"
                if not dense or claimed > value.untyped_storage().nbytes():
                    raise ConfigError(
                        f"{path} has a tensor of {tuple(value.shape)} without as many values in the file{_SAFETENSORS}"
                    )
                total += claimed
    if number > MAX_TENSORS or total > _SHARED * path.stat().st_size:
        raise ConfigError(
            f"{path} holds {number} tensors of {total} bytes; at most {MAX_TENSORS} are read, and {_SHARED} bytes for "
            "each byte of the file"
        )
