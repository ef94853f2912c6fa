"""The order of training, against a slow reading of its definition and over random layouts and schedules."""

import random

import numpy as np
import pytest

from masking.rng import prf
from pretrain.data.order import BAD, OK, Order, rank_positions, sample_digest
from pretrain.errors import ConfigError
from tests.data.order_cases import elastic_campaign, fault_of_epochs, once_campaign, plan_campaign, random_layout


def slow_epoch(lengths: list[int], seed: int, lanes: int, block: int, epoch: int) -> list[tuple[int, int]]:
    """One epoch as (shard, sample) pairs, by lists and loops alone: the definition in DESIGN section 4."""
    shards = sorted(range(len(lengths)), key=lambda shard: (prf(seed, "order", epoch, "shard", shard), shard))
    line = [(shard, sample) for shard in shards for sample in range(lengths[shard])]
    runs, start = [], 0
    for lane in range(lanes):
        size = len(line) // lanes + (lane < len(line) % lanes)
        run = line[start : start + size]
        start += size
        mixed = []
        for number, first in enumerate(range(0, size, block)):
            part = run[first : first + block]
            keys = [prf(seed, "order", epoch, "block", lane, number, place) for place in range(len(part))]
            mixed += [part[place] for place in sorted(range(len(part)), key=lambda place: (keys[place], place))]
        runs.append(mixed)
    return [run[turn] for turn in range(len(runs[0])) for run in runs if turn < len(run)]


def test_every_sample_comes_exactly_once_in_each_epoch_of_any_layout():
    assert once_campaign(200)["failures"] == []


@pytest.mark.slow
def test_every_sample_comes_exactly_once_over_1000_layouts():
    assert once_campaign(1000)["failures"] == []


def test_the_order_is_its_definition():
    rng = random.Random(3)
    for _ in range(25):
        lengths, lanes, block = random_layout(rng)
        seed = rng.randrange(2**63)
        order = Order(lengths, seed, lanes, block)
        for epoch in (0, 1, 5):
            _, shards, samples = order.locate(np.arange(epoch * sum(lengths), (epoch + 1) * sum(lengths)))
            assert list(zip(shards.tolist(), samples.tolist())) == slow_epoch(lengths, seed, lanes, block, epoch)


def test_a_position_alone_and_a_straddling_batch_give_the_same_sample():
    order, other = Order([5, 0, 9, 40], 1, lanes=4, block=8), Order([5, 0, 9, 40], 1, lanes=4, block=8)
    positions = np.array([53, 54, 55, 3, 107, 108, 1_000_000_007])
    located = list(zip(*(part.tolist() for part in order.locate(positions))))
    assert located == [other.sample_at(position) for position in reversed(positions.tolist())][::-1]


def test_the_order_never_changes_between_versions():
    order = Order([100, 50, 3], 7, lanes=4, block=16)
    assert [order.sample_at(position) for position in (0, 1, 152, 153, 10**9)] == PINNED


def test_epochs_and_seeds_differ():
    order = Order([64] * 10, 0, lanes=4, block=160)
    first, second = order.locate(np.arange(640)), order.locate(np.arange(640, 1280))
    other = Order([64] * 10, 1, lanes=4, block=160).locate(np.arange(640))
    same = [np.mean((first[1] == b[1]) & (first[2] == b[2])) for b in (second, other)]
    assert max(same) < 0.02


def test_neighbours_come_from_many_shards():
    order = Order([100] * 64, 0, lanes=16, block=400)
    _, shards, _ = order.locate(np.arange(1600, 1664))
    assert len(set(shards.tolist())) >= 24


def test_a_rank_meets_few_lanes_when_the_world_divides_them():
    for world, lanes in ((2, 16), (4, 8), (8, 4)):
        for rank in range(world):
            positions = np.concatenate([np.concatenate(rank_positions(s, 256, rank, world)) for s in range(3)])
            assert len(set((positions % 32).tolist())) == lanes


def test_micro_batches_and_ranks_share_each_step_without_rest():
    for world, accumulation in ((1, 1), (2, 1), (3, 2), (4, 3), (6, 4)):
        for step in (0, 7):
            mine = [rank_positions(step, 48 * 3, rank, world, accumulation) for rank in range(world)]
            assert {len(part) for rank in mine for part in rank} == {48 * 3 // world // accumulation}
            for micro in range(accumulation):  # a micro-batch is a contiguous part of the step, dealt out to the ranks
                both = np.sort(np.concatenate([rank[micro] for rank in mine]))
                size = 48 * 3 // accumulation
                assert both.tolist() == list(range(step * 144 + micro * size, step * 144 + (micro + 1) * size))


def test_a_batch_that_cannot_be_shared_is_refused_in_words():
    with pytest.raises(ConfigError, match="multiple of 6"):
        rank_positions(0, 256, 0, 3, 2)
    with pytest.raises(ConfigError, match="no samples at all"):
        Order([0, 0], 0)
    with pytest.raises(ConfigError, match=r"data\.lanes=0"):
        Order([3], 0, lanes=0)
    with pytest.raises(ValueError, match="before the start"):
        Order([3], 0).sample_at(-1)


def test_step_digests_are_equal_over_100_schedules_of_world_size_accumulation_and_workers():
    """The plan alone: each worker of each rank locates its micro-batches with an order of its own."""
    assert plan_campaign(100)["failures"] == []


def test_step_digests_are_equal_through_real_loaders():
    assert elastic_campaign(6, first=1)["failures"] == []


@pytest.mark.slow
def test_step_digests_are_equal_through_real_loaders_with_worker_processes():
    assert elastic_campaign(1)["failures"] == []


def test_a_lost_or_repeated_sample_would_be_seen():
    lengths = [4, 3]
    positions = np.arange(7)
    assert fault_of_epochs(Order(lengths, 1, lanes=2, block=4), lengths) is None
    for order in (Order([4, 4], 1, lanes=2, block=4), Order([3, 4], 1, lanes=2, block=4)):
        assert "epoch 0" in fault_of_epochs(order, lengths, positions)


def test_the_digest_tells_samples_shards_and_what_became_of_them_apart():
    shares = {sample_digest(shard, sample, status) for shard in (1, 2) for sample in (0, 1) for status in (OK, BAD)}
    assert len(shares) == 8


PINNED = [(0, 1, 13), (0, 1, 40), (0, 1, 36), (1, 0, 15), (6535947, 0, 14)]
