"""The order of training: which sample stands at position G of an endless stream, and whose it is.

The order is a pure function of (lengths of the shards, seed, lanes, block, G). Within an epoch every sample comes
exactly once. An epoch lays its shards end to end in hashed order, cuts that line into `lanes` contiguous runs,
permutes every run of `block` samples inside a lane, and deals the lanes out in turn: neighbours in the stream come
from far apart, while a lane walks slowly along few shards. Only integer hashing (masking.rng) and stable sorting are
used, so the order is the same on every platform. The one state of the data is G; any position is found without
visiting another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masking.rng import prf, prf_array
from pretrain.errors import ConfigError

Ids = NDArray[np.int64]
OK, BAD = 0, 1  # status of a sample in the step digest


@dataclass(frozen=True)
class _Epoch:
    shards: Ids  # (S,) shard ids in the order of this epoch
    starts: Ids  # (S,) place of each one's first sample on the line


class Order:
    """position -> (epoch, shard, sample), for shards of the given lengths (empty ones are allowed)."""

    def __init__(self, lengths: Sequence[int] | Ids, seed: int, lanes: int = 32, block: int = 65_536) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.num_samples = int(self.lengths.sum())
        self.seed, self.lanes, self.block = seed, lanes, block
        if self.num_samples < 1:
            raise ConfigError(f"the {len(self.lengths)} shards hold no samples at all; point data.train at others")
        if lanes < 1 or block < 1:
            raise ConfigError(f"data.lanes={lanes} and data.block={block}; both must be at least 1")
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int, int], NDArray[np.int32]] = OrderedDict()

    def locate(self, positions: Ids) -> tuple[Ids, Ids, Ids]:
        """(epoch, shard, sample within the shard), each (n,) int64, of positions (n,) int64 in the endless stream."""
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size and positions.min() < 0:
            raise ValueError(f"position {positions.min()} is before the start of the stream")
        epochs, within = np.divmod(positions, self.num_samples)
        rounds, lanes = np.divmod(within, self.lanes)
        shards, samples = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            chosen = np.flatnonzero(epochs == epoch)
            line = self._on_the_line(epoch, lanes[chosen], rounds[chosen])
            table = self._epoch(epoch)
            rank = np.searchsorted(table.starts, line, side="right") - 1  # right: an empty shard is never the answer
            shards[chosen] = table.shards[rank]
            samples[chosen] = line - table.starts[rank]
        return epochs, shards, samples

    def sample_at(self, position: int) -> tuple[int, int, int]:
        """(epoch, shard, sample within the shard) of one position."""
        epoch, shard, sample = self.locate(np.array([position], dtype=np.int64))
        return int(epoch[0]), int(shard[0]), int(sample[0])

    def _on_the_line(self, epoch: int, lanes: Ids, rounds: Ids) -> Ids:
        """Places on the epoch's line of samples, (n,) int64, of the `rounds`-th sample each lane gives."""
        length, longer = divmod(self.num_samples, self.lanes)  # the first `longer` lanes hold one sample more
        first = lanes * length + np.minimum(lanes, longer)
        blocks, within = np.divmod(rounds, self.block)
        line = np.empty_like(rounds)
        group = lanes * (length // self.block + 1) + blocks
        by_group = np.argsort(group, kind="stable")
        cuts = np.flatnonzero(np.diff(group[by_group])) + 1
        for chosen in np.split(by_group, cuts):
            lane, number = int(lanes[chosen[0]]), int(blocks[chosen[0]])
            permuted = self._permutation(epoch, lane, number)
            line[chosen] = first[chosen] + number * self.block + permuted[within[chosen]]
        return line

    def _epoch(self, epoch: int) -> _Epoch:
        """Shards of one epoch in hashed order; a batch straddles at most two epochs of a set larger than it."""
        table = self._epochs.get(epoch)
        if table is None:
            rank = prf_array(self.seed, "order", epoch, "shard", np.arange(len(self.lengths)))
            shards = np.argsort(rank, kind="stable")
            starts = np.cumsum(self.lengths[shards]) - self.lengths[shards]
            table = self._epochs[epoch] = _Epoch(shards, starts)
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return table

    def _permutation(self, epoch: int, lane: int, number: int) -> NDArray[np.int32]:
        """Permutation of the number-th block of a lane. One block a lane is in use at a time, so few are kept."""
        name = (epoch, lane, number)
        permuted = self._blocks.get(name)
        if permuted is None:
            length, longer = divmod(self.num_samples, self.lanes)
            size = min(self.block, length + (lane < longer) - number * self.block)
            rank = prf_array(self.seed, "order", epoch, "block", lane, number, np.arange(size))
            permuted = self._blocks[name] = np.argsort(rank, kind="stable").astype(np.int32)
            while len(self._blocks) > self.lanes + 2:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(name)
        return permuted


def rank_positions(step: int, batch_size: int, rank: int, world: int, accumulation: int = 1) -> list[Ids]:
    """Positions of one rank in one optimizer step: one (batch_size / world / accumulation,) int64 a micro-batch.

    Step s covers [s * batch_size, (s + 1) * batch_size); the position at offset j belongs to rank j % world and to
    micro-batch j // (world * micro-batch). Strided, so that a rank meets few lanes when world divides them."""
    micro, rest = divmod(batch_size, world * accumulation)
    if rest or micro < 1:
        raise ConfigError(
            f"data.batch_size={batch_size} cannot be shared by {world} ranks x {accumulation} micro-batches; "
            f"use a multiple of {world * accumulation}"
        )
    first = step * batch_size + rank
    offsets = np.arange(micro, dtype=np.int64) * world
    return [first + index * world * micro + offsets for index in range(accumulation)]


def sample_digest(shard_digest: int, sample: int, status: int = OK) -> int:
    """One sample's share of the step digest, in [0, 2**63). shard_digest names a shard's content, status is OK or BAD.

    The digest of a step is the sum of its samples' shares modulo 2**64: the same in whatever order, on however many
    ranks they were read, and different as soon as one sample, or what became of it, is another."""
    return prf(shard_digest, "digest", sample, status)
