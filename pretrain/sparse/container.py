"""The file of a sparse change to an encoder: for some of its matrices which weights are meant, and, of a difference,
by how much each of them changes. It names the base it belongs to by a hash of that encoder's matrices, and is refused
over any other.

Positions are stored as one bit a weight or as a number each, whichever is smaller. The file is safetensors, so nothing
in it can run; what it claims is compared with its size before anything is allocated."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pretrain import strict_json
from pretrain.engine import fsops
from pretrain.errors import ConfigError

FORMAT = "lacuna-sparse"
Kind = Literal["positions", "difference", "kept"]
_BITS, _IDS, _VALUES, _DENSE = "bits|", "ids|", "values|", "dense|"
_WEIGHTS_A_BYTE = 4096  # more than this a file cannot claim: one weight in 4096 would still take a byte


@dataclass(frozen=True)
class Part:
    """What a file says of one matrix."""

    chosen: Tensor  # the matrix's shape, bool
    values: Tensor | None = None  # (number chosen,) float32: what is added there, in raster order; None: nothing

    def difference(self) -> Tensor:
        """What is added to the matrix, float32, zero where nothing is."""
        assert self.values is not None
        whole = torch.zeros(self.chosen.shape)
        whole[self.chosen] = self.values
        return whole


@dataclass(frozen=True)
class SparseFile:
    """A sparse change, or the positions of one to come."""

    # positions: where a difference may be; difference: what is added there; kept: all other weights of a matrix are 0
    kind: Kind
    method: str  # that made it
    base: str  # `fingerprint` of the encoder it belongs to
    parts: dict[str, Part]  # by the matrix's name in the encoder
    dense: dict[str, Tensor] = field(default_factory=dict)  # whole tensors that belong to it, such as a head
    about: dict[str, Any] = field(default_factory=dict)  # JSON: the config and step of the run it is from

    @property
    def num_chosen(self) -> int:
        """How many weights are chosen: k."""
        return sum(int(part.chosen.sum()) for part in self.parts.values())

    @property
    def num_weights(self) -> int:
        """Among how many."""
        return sum(part.chosen.numel() for part in self.parts.values())

    def require_base(self, encoder: Mapping[str, Tensor], source: str, path: str) -> None:
        """Raises ConfigError unless encoder, a state dict, is the base that this file, from path, belongs to."""
        found = fingerprint(encoder)
        if found != self.base:
            raise ConfigError(
                f"{path} belongs to an encoder whose matrices hash to {self.base[:12]}, and those of {source} hash to "
                f"{found[:12]}; give the weights it was made from"
            )
        for name, part in self.parts.items():
            if name not in encoder or encoder[name].shape != part.chosen.shape:
                raise ConfigError(f"{path} has a part {name} that is no matrix of {source}; it was not written by us")


def matrices(encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a sparse change may touch, in the encoder's order: its weights with two axes or more. Norms, biases,
    positions and tokens are not among them."""
    return {name: tensor for name, tensor in encoder.items() if name.endswith(".weight") and tensor.ndim >= 2}


def fingerprint(encoder: Mapping[str, Tensor]) -> str:
    """A hash of the names, shapes and float32 values of the encoder's matrices, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(matrices(encoder).items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().view("u1").data)
    return digest.hexdigest()


def content(file: SparseFile) -> bytes:
    """The file's bytes: the same for the same change."""
    tensors: dict[str, Tensor] = {}
    for name, part in file.parts.items():
        flat = part.chosen.reshape(-1)
        ids = flat.nonzero().reshape(-1)
        if len(ids) * 4 * 8 < len(flat):
            tensors[_IDS + name] = ids.to(torch.int32)
        else:
            tensors[_BITS + name] = torch.from_numpy(np.packbits(flat.numpy()))
        if part.values is not None:
            tensors[_VALUES + name] = part.values.float().contiguous()
    tensors |= {_DENSE + name: tensor.float().cpu().contiguous() for name, tensor in file.dense.items()}
    facts = {
        "format": FORMAT, "kind": file.kind, "method": file.method, "base": file.base, "about": file.about,
        "shapes": {name: list(part.chosen.shape) for name, part in file.parts.items()},
    }  # fmt: skip
    return save(tensors, {"lacuna": json.dumps(facts, sort_keys=True)})


def write_sparse(file: SparseFile, path: Path) -> int:
    """Writes the file at path, all or nothing, and says its size in bytes. Raises ConfigError where it cannot."""
    data, draft = content(file), path.with_name(f".{path.name}.part")
    draft.unlink(missing_ok=True)
    try:
        fsops.mkdir(path.parent)
        fsops.write(draft, [data])
        fsops.rename(draft, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); give another --out") from error
    return len(data)


def read_sparse(path: str | Path) -> SparseFile:
    """What `write_sparse` wrote. Raises ConfigError for a file that is not there or not ours."""
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get("lacuna", "")
            facts = strict_json.loads(text) if text else {}
            if not isinstance(facts, dict) or facts.get("format") != FORMAT:
                raise ConfigError(f"{path} is no sparse file of ours; give one that `lacuna sparse` wrote")
            return _parsed(facts, {name: opened.get_tensor(name) for name in opened.keys()}, Path(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); give a file that `lacuna sparse` wrote") from error
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read as a sparse file ({type(error).__name__}: {error})") from error


def _parsed(facts: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> SparseFile:
    kind, shapes = facts["kind"], facts["shapes"]
    if kind not in get_args(Kind):
        raise ValueError(f"unknown kind {kind!r}")
    if any(not isinstance(side, int) or side < 1 for shape in shapes.values() for side in shape):
        raise ValueError("a shape has a side that is no positive number")
    if sum(map(math.prod, shapes.values())) > _WEIGHTS_A_BYTE * path.stat().st_size:
        raise ValueError("it claims to choose among more weights than a file of this size is about")
    parts = {name: _part(name, shape, tensors, kind) for name, shape in shapes.items()}
    dense = {name.removeprefix(_DENSE): tensor for name, tensor in tensors.items() if name.startswith(_DENSE)}
    return SparseFile(kind, str(facts["method"]), str(facts["base"]), parts, dense, facts["about"])


def _part(name: str, shape: list[int], tensors: dict[str, Tensor], kind: str) -> Part:
    size = math.prod(shape)
    if _IDS + name in tensors:
        ids = tensors[_IDS + name].long()
        if ids.ndim != 1 or (len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size):
            raise ValueError(f"positions of {name} lie outside of it")
        chosen = torch.zeros(size, dtype=torch.bool)
        chosen[ids] = True
    else:
        bits = tensors[_BITS + name]
        if bits.dtype != torch.uint8 or len(bits) != -(-size // 8):
            raise ValueError(f"{name} has not one bit a weight")
        chosen = torch.from_numpy(np.unpackbits(bits.numpy(), count=size).astype(bool))
    values = tensors[_VALUES + name].float() if kind == "difference" else None
    if values is not None and values.shape != (int(chosen.sum()),):
        raise ValueError(f"{name} has {len(values)} values for {int(chosen.sum())} positions")
    return Part(chosen.view(shape), values)
