"""The one form in which weights and optimizer state lie on disk: slices of named values, whatever wrote them.

Each rank writes rank00000.safetensors and so on. A tensor called "exp_avg|17|backbone.norm.weight" holds values 17,
18, ... of that flattened parameter's first moment; kinds are master, exp_avg, exp_avg_sq, ema, and fixed for what is
not trained. World size and ZeRO stage leave no trace, so any other reads them. Only tensors and JSON: nothing here
can run code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain import strict_json
from pretrain.engine import fsops
from pretrain.errors import CheckpointError

_KEY = re.compile(r"(\w+)\|(\d{1,18})\|(.+)", re.DOTALL)
MASTER, EMA, FIXED = "master", "ema", "fixed"


@dataclass(frozen=True)
class Piece:
    """Values of one kind of the flattened parameter called name, from start on."""

    kind: str
    name: str
    start: int
    values: Tensor  # (n,) float32 on the host


@dataclass(frozen=True)
class Facts:
    """What a file says beside its tensors; the same in all files of a checkpoint."""

    shapes: dict[str, list[int]]  # of every trained parameter and of every fixed tensor, whole
    updates: int  # made by the optimizer


def rank_file(directory: Path, rank: int) -> Path:
    """The file rank writes into directory."""
    return directory / f"rank{rank:05d}.safetensors"


def rank_files(directory: Path) -> list[Path]:
    """Every rank's file in directory, in rank order."""
    return [directory / name for name in fsops.names(directory) if re.fullmatch(r"rank\d{5}\.safetensors", name)]


def write_pieces(path: Path, pieces: Iterable[Piece], facts: Facts) -> fsops.FileSum:
    """Writes pieces as safetensors, straight from their memory, and gives size and hash of the file."""
    pieces = list(pieces)
    header: dict[str, object] = {
        "__metadata__": {"shapes": json.dumps(facts.shapes, sort_keys=True), "updates": str(facts.updates)}
    }
    at = 0
    for piece in pieces:
        size = piece.values.numel() * 4
        header[f"{piece.kind}|{piece.start}|{piece.name}"] = {
            "dtype": "F32", "shape": [piece.values.numel()], "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return fsops.write(path, _chunks(text, pieces))


def read_facts(directory: Path) -> Facts:
    """What the files in directory agree on."""
    found = set()
    for path in rank_files(directory):
        with _opened(path) as file:
            metadata = file.metadata() or {}
            found.add((metadata.get("shapes", ""), metadata.get("updates", "")))
    if len(found) != 1:
        raise CheckpointError(f"{directory} holds {len(found)} different sets of facts; it was not written by one save")
    shapes, updates = found.pop()
    try:
        known = {name: [int(side) for side in shape] for name, shape in strict_json.loads(shapes).items()}
        return Facts(known, int(updates))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the facts in {directory} cannot be read ({error}); it was not written by us") from error


class Reader:
    """Reads any range of any stored value of a checkpoint directory, wherever the ranks that wrote it cut it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._where: dict[tuple[str, str], list[tuple[int, int, Any]]] = {}  # to (start, numel, stored slice)
        for path in rank_files(directory):
            file = _opened(path)
            for key in file.keys():
                match = _KEY.fullmatch(key)
                stored = file.get_slice(key)
                if match is None or len(stored.get_shape()) != 1:
                    raise CheckpointError(f"{path} holds {key[:80]!r}, which is no slice; it was not written by us")
                kind, start, name = match.groups()
                self._where.setdefault((kind, name), []).append((int(start), stored.get_shape()[0], stored))

    def has(self, kind: str) -> bool:
        """Whether anything of this kind was stored."""
        return any(stored == kind for stored, _ in self._where)

    def size(self, kind: str, name: str) -> int:
        """How many values of this kind of this tensor were stored."""
        return sum(size for _, size, _ in self._where.get((kind, name), ()))

    def holds(self, kind: str, name: str) -> bool:
        """Whether anything of this kind of this tensor was stored."""
        return (kind, name) in self._where

    def fill(self, kind: str, name: str, start: int, out: Tensor) -> None:
        """Copies values start .. start + len(out) into out (n,). Raises CheckpointError where some are not stored."""
        end, filled = start + out.numel(), 0
        for first, size, stored in self._where.get((kind, name), ()):
            begin, stop = max(first, start), min(first + size, end)
            if begin < stop:
                out[begin - start : stop - start].copy_(stored[begin - first : stop - first])
                filled += stop - begin
        if filled != out.numel():
            raise CheckpointError(
                f"{self._directory} holds {filled} of values {start} to {end} of {kind} {name}; it is not of this model"
            )


def read_weights(directory: Path, *, ema: bool = False) -> dict[str, Tensor]:
    """The whole state dict stored in directory, float32 on the host: averaged weights with ema, and what is fixed."""
    reader, facts = Reader(directory), read_facts(directory)
    if ema and not reader.has(EMA):
        raise CheckpointError(f"{directory} holds no averaged weights; the run had engine.ema_decay=None")
    weights = {}
    for name, shape in facts.shapes.items():
        kind = FIXED if reader.holds(FIXED, name) else (EMA if ema else MASTER)
        if math.prod(shape) != reader.size(kind, name):  # before so many are allocated
            raise CheckpointError(f"{directory} says that {name} is {shape} and holds {reader.size(kind, name)} values")
        values = torch.empty(math.prod(shape), dtype=torch.float32)
        reader.fill(kind, name, 0, values)
        weights[name] = values.view(shape)
    return weights


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file ({error}); it was not written by us") from error


def _chunks(header: bytes, pieces: list[Piece]) -> Iterator[fsops.Bytes]:
    yield len(header).to_bytes(8, "little") + header
    for piece in pieces:
        assert piece.values.dtype == torch.float32 and piece.values.device.type == "cpu"
        if piece.values.numel():
            yield piece.values.contiguous().numpy().view("u1").data
