"""What a step trains on follows from (data, config, seed, step): not from ranks, workers, accumulation or restarts."""

import io
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from pretrain.data.augment import crop_and_flip, crop_key
from pretrain.data.loader import build_loader
from pretrain.data.order import Order
from pretrain.data.settings import DataConfig
from pretrain.data.shards import ShardSet, open_shards
from pretrain.errors import ConfigError, DataError
from pretrain.types import Batch

SEED = 11
CFG = DataConfig(
    train="unused", image_size=(16, 24), batch_size=24, lanes=3, block=8, workers=0, prefetch=1, timeout_s=60
)
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
Step = dict[int, tuple[bytes, int, float]]  # position -> (pixels, label, weight)


def write_shards(folder: Path, lengths: list[int]) -> ShardSet:
    """Shards of small JPEGs, each of its own colours; the label is the number of the sample."""
    rng, number = np.random.default_rng(0), 0
    folder.mkdir()
    for shard, length in enumerate(lengths):
        with wds.TarWriter(str(folder / f"part-{shard:03d}.tar")) as writer:
            for _ in range(length):
                image = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((40, 30), 3)
                file = io.BytesIO()
                image.save(file, "JPEG", quality=90)
                writer.write({"__key__": f"{number:06d}", "jpg": file.getvalue(), "cls": str(number).encode()})
                number += 1
    return open_shards(str(folder / "*.tar"))


def damage(shards: ShardSet, shard: int) -> None:
    """Overwrites the image bytes of one shard in place, past their headers; its size stays."""
    with open(shards.names[shard], "r+b") as file:
        for sample in range(int(shards.lengths[shard])):
            for entry in shards.index(shard).members(sample):
                if entry.extension == "jpg":
                    file.seek(entry.offset + entry.size // 2)
                    file.write(b"broken")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", [13, 40, 0, 7, 1, 25])


def micro_batches(
    shards: ShardSet, cfg: DataConfig, steps: int, rank: int = 0, world: int = 1, accumulation: int = 1, start: int = 0
) -> list[Batch]:
    loader = build_loader(
        shards, cfg, SEED, rank=rank, world=world, accumulation=accumulation, start_step=start, device="cpu"
    )
    try:
        return list(islice(loader, steps * accumulation))
    finally:
        loader.close()


def contents(batches: list[Batch]) -> Step:
    return {
        position: (image.numpy().tobytes(), label, weight)
        for batch in batches
        for position, image, label, weight in zip(
            batch.positions.tolist(), batch.images, batch.labels.tolist(), batch.weight.tolist(), strict=True
        )
    }


def global_steps(shards: ShardSet, cfg: DataConfig, steps: int, world: int, accumulation: int, start: int = 0) -> list:
    """For each step (contents of the global batch, digest), put together from all ranks."""
    ranks = [
        micro_batches(shards, cfg, steps, rank=rank, world=world, accumulation=accumulation, start=start)
        for rank in range(world)
    ]
    result = []
    for step in range(steps):
        mine = [batch for rank in ranks for batch in rank[step * accumulation : (step + 1) * accumulation]]
        assert sum(len(batch.images) for batch in mine) == cfg.batch_size
        result.append((contents(mine), sum(batch.digest for batch in mine) % 2**64))
    return result


def test_a_batch_holds_the_images_of_its_positions_and_nothing_else(shards: ShardSet) -> None:
    order = Order(shards.lengths, SEED, CFG.lanes, CFG.block)
    (batch,) = micro_batches(shards, CFG, 1, start=2)
    assert batch.positions.tolist() == list(range(48, 72))
    assert batch.images.shape == (24, 3, 16, 24) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous() and batch.bad == () and batch.weight.tolist() == [1.0] * 24
    for position, image, label in zip(batch.positions.tolist(), batch.images, batch.labels.tolist(), strict=True):
        _, shard, sample = order.sample_at(position)
        members = shards.read(shard, sample)
        assert label == int(members["cls"])
        pixels = np.array(Image.open(io.BytesIO(members["jpg"])))
        assert torch.equal(image, crop_and_flip(pixels, crop_key(SEED, position), CFG))


def test_every_world_and_accumulation_gives_the_same_global_batches_bit_for_bit(shards: ShardSet) -> None:
    expected = global_steps(shards, CFG, 6, world=1, accumulation=1)  # 144 samples: into the second epoch of 86
    assert len({digest for _, digest in expected}) == 6
    for world, accumulation in ((2, 1), (1, 3), (3, 2), (4, 3), (8, 3), (24, 1)):
        assert global_steps(shards, CFG, 6, world, accumulation) == expected, (world, accumulation)


@pytest.mark.parametrize(("workers", "world", "accumulation"), [(1, 1, 2), (3, 1, 1), (2, 2, 3)])
def test_the_number_of_workers_changes_nothing(shards: ShardSet, workers: int, world: int, accumulation: int) -> None:
    cfg = replace(CFG, workers=workers)
    assert global_steps(shards, cfg, 4, world, accumulation) == global_steps(shards, CFG, 4, 1, 1)


def test_one_shard_feeds_four_ranks_of_three_workers(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "one", [10])
    got = global_steps(shards, replace(CFG, workers=3), 2, world=4, accumulation=1)
    assert got == global_steps(shards, CFG, 2, 1, 1)


def test_starting_at_any_step_gives_the_batches_of_a_run_that_never_stopped(shards: ShardSet) -> None:
    whole = global_steps(shards, CFG, 8, 1, 1)
    for start in range(1, 8):
        assert global_steps(shards, CFG, 8 - start, 2, 2, start) == whole[start:]
    assert global_steps(shards, replace(CFG, workers=2), 3, 1, 1, start=5) == whole[5:]


def test_a_batch_may_straddle_two_epochs_and_every_sample_comes_once_in_each(shards: ShardSet) -> None:
    labels = [label for step, _ in global_steps(shards, CFG, 11, 2, 1) for _, (_, label, _) in sorted(step.items())]
    assert 86 % CFG.batch_size
    for epoch in range(3):
        assert sorted(labels[epoch * 86 : (epoch + 1) * 86]) == list(range(86))
    assert labels[:86] != labels[86:172]


def test_k_crops_per_decode_share_images_over_k_steps_with_other_crops(shards: ShardSet) -> None:
    cfg = replace(CFG, crops_per_decode=3)
    whole = global_steps(shards, cfg, 7, 1, 1)
    plain = global_steps(shards, CFG, 3, 1, 1)
    for step, (step_contents, _) in enumerate(whole):
        shared = plain[step // 3][0]
        assert step_contents.keys() == shared.keys()
        assert [v[1:] for _, v in sorted(step_contents.items())] == [v[1:] for _, v in sorted(shared.items())]
    assert whole[0] == plain[0] and whole[3] == plain[1]
    assert len({values[position][0] for values, _ in whole[:3] for position in [5]}) == 3
    assert len({digest for _, digest in whole}) == 7


@pytest.mark.parametrize(("workers", "world", "accumulation"), [(0, 2, 3), (2, 1, 2)])
def test_k_crops_resume_in_the_middle_of_a_super_step(
    shards: ShardSet, workers: int, world: int, accumulation: int
) -> None:
    cfg = replace(CFG, crops_per_decode=3)
    whole = global_steps(shards, cfg, 8, 1, 1)
    for start in (1, 2, 4):
        resumed = global_steps(shards, replace(cfg, workers=workers), 4, world, accumulation, start)
        assert resumed == whole[start : start + 4]


def test_a_shard_of_broken_bytes_has_weight_0_exactly_there(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "damaged", [13, 40, 0, 7, 1, 25])
    whole = global_steps(shards, CFG, 5, 1, 1)
    state = [(path, path.stat()) for path in map(Path, shards.names)]
    damage(shards, 3)
    for path, before in state:  # bytes that rot in place change no time
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    order = Order(shards.lengths, SEED, CFG.lanes, CFG.block)
    for world, accumulation in ((1, 1), (3, 2)):
        got = global_steps(shards, CFG, 5, world, accumulation)
        for (good, good_digest), (now, digest) in zip(whole, got, strict=True):
            broken = {position for position in good if order.sample_at(position)[1] == 3}
            assert {position for position in now if now[position][2] == 0} == broken
            assert all(not any(now[position][0]) for position in broken)  # zeros
            assert all(now[position] == good[position] for position in good.keys() - broken)
            assert (digest == good_digest) == (not broken)
    (batch,) = micro_batches(shards, replace(CFG, batch_size=96), 1)
    assert {bad.key for bad in batch.bad} == {f"{number:06d}" for number in range(53, 60)}
    assert {bad.position for bad in batch.bad} == set(batch.positions[batch.weight == 0].tolist())
    assert all("checksum" in bad.reason and bad.shard.endswith("part-003.tar") for bad in batch.bad)


def test_an_image_that_is_too_large_keeps_its_slot_with_the_reason(shards: ShardSet) -> None:
    (batch,) = micro_batches(shards, replace(CFG, max_pixels=100), 1)
    assert batch.weight.sum() == 0 and len(batch.bad) == 24
    assert batch.bad[0].reason == "too large: 40x30, more than 100 pixels"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_changed_under_the_run_ends_it_in_words(tmp_path: Path, workers: int) -> None:
    shards = write_shards(tmp_path / "changed", [30])
    with open(shards.names[0], "ab") as file:
        file.write(bytes(10_240))
    with pytest.raises(DataError, match=r"part-000\.tar") as caught:
        micro_batches(shards, replace(CFG, workers=workers), 1)
    assert "Traceback" not in str(caught.value)


def test_gray_and_other_channel_counts_are_loaded_by_construction(shards: ShardSet, tmp_path: Path) -> None:
    (gray,) = micro_batches(shards, replace(CFG, in_chans=1), 1)
    assert gray.images.shape == (24, 1, 16, 24) and gray.weight.all()
    folder = tmp_path / "arrays"
    folder.mkdir()
    with wds.TarWriter(str(folder / "a.tar")) as writer:
        for number in range(6):
            file = io.BytesIO()
            np.save(file, np.full((20, 20, 5), number, np.uint8), allow_pickle=False)
            writer.write({"__key__": f"{number}", "npy": file.getvalue()})
    (five,) = micro_batches(open_shards(str(folder / "*.tar")), replace(CFG, in_chans=5), 1)
    assert five.images.shape == (24, 5, 16, 24) and five.weight.all() and five.labels.tolist() == [-1] * 24


def test_batches_that_cannot_fit_shared_memory_are_refused_with_sizes(shards: ShardSet) -> None:
    with pytest.raises(ConfigError, match=r"MB may wait in /dev/shm, .* GB are free there; lower data\.prefetch"):
        micro_batches(shards, replace(CFG, workers=2, image_size=(10**6, 10**6)), 1)


def test_a_batch_that_cannot_be_split_is_refused(shards: ShardSet) -> None:
    with pytest.raises(ConfigError, match="24 cannot be shared by 5 ranks"):
        micro_batches(shards, CFG, 1, world=5)
