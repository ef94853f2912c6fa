"""What the ranks tell each other about a step on the host, over gloo: nothing here touches the device.

Sums of integers, so the outcome is the same at every world size; floats are gathered and added in rank order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.errors import FencedError
from pretrain.types import Batch

_LOW = 2**32
T = TypeVar("T")


@dataclass(frozen=True)
class Agreed:
    """The same on every rank."""

    num_valid: int  # images of the global batch that count
    num_bad: int  # images of the global batch that could not be used
    digest: int  # of the global batch, modulo 2**64: equal for every world size, worker count and restart
    stop: bool  # some rank was asked to stop
    written: bool  # no rank has anything left to write of a checkpoint


def agree(batches: Sequence[Batch], stop: bool, written: bool = True) -> Agreed:
    """Sums one step's facts over all ranks; batches are this rank's micro-batches."""
    digest = sum(batch.digest for batch in batches) % 2**64
    valid = sum(int(batch.weight.sum()) for batch in batches)
    size = sum(len(batch.weight) for batch in batches)
    facts = torch.tensor([valid, size - valid, digest % _LOW, digest // _LOW, int(stop), int(not written)])
    if _world() > 1:
        dist.all_reduce(facts)
    valid, bad, low, high, stops, unwritten = facts.tolist()
    return Agreed(valid, bad, (low + high * _LOW) % 2**64, stops > 0, unwritten == 0)


def gather(values: Tensor) -> Tensor:
    """values (n,) float of every rank on the host, (world, n), in rank order."""
    if _world() == 1:
        return values[None]
    rows = [torch.empty_like(values) for _ in range(_world())]
    dist.all_gather(rows, values.contiguous())
    return torch.stack(rows)


def gather_json(value: Any) -> list[Any]:
    """value of every rank, in rank order. JSON and not pickle: a peer's bytes are data."""
    if _world() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = gather(torch.tensor([float(len(data))], dtype=torch.float64))[:, 0].long().tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(data)] = data
    rows = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(rows, padded)
    return [json.loads(bytes(row[:size].numpy())) for row, size in zip(rows, sizes, strict=True)]


class FailedTogether(OSError):
    """Some rank could not do its part."""


def together(act: Callable[[], T]) -> list[T]:
    """act on every rank, and what each returned, in rank order; it must survive JSON.

    Raises FailedTogether on all where act raised an OSError on any, and likewise FencedError."""
    value, failure = None, None
    try:
        value = act()
    except FencedError as error:
        failure = {"fenced": True, "reason": str(error)}
    except OSError as error:
        failure = {"fenced": False, "reason": str(error)}
    answers = gather_json({"value": value, "failure": failure})
    for rank, answer in enumerate(answers):
        if answer["failure"] is not None and answer["failure"]["fenced"]:
            raise FencedError(answer["failure"]["reason"])
        if answer["failure"] is not None:
            raise FailedTogether(f"rank {rank}: {answer['failure']['reason']}")
    return [answer["value"] for answer in answers]


def barrier() -> None:
    """Waits for every rank, on the host."""
    if _world() > 1:
        dist.all_reduce(torch.zeros(1, dtype=torch.int64))


def is_peer_failure(error: BaseException) -> bool:
    """Whether error says that another process died or hung, rather than that this one is wrong."""
    text = str(error).lower()
    signs = (
        "connection closed by peer",
        "connection reset by peer",
        "gloo",
        "broken pipe",
        "nccl",
        "timed out waiting",
    )
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)


def peer_failure(error: BaseException) -> str:
    """What error says of it, without the place in somebody's source and without advice."""
    line = (str(error).splitlines() or [""])[0]
    return re.sub(r"^\[[^\]]*\]\s*", "", line).partition(". ")[0]


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
