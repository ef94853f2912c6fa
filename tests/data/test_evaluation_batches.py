"""Evaluation sees every labelled image once, in the order of the index, cut from its centre."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from pretrain.data.augment import center_crop
from pretrain.data.evaluation_batches import evaluation_batches
from pretrain.data.settings import DataConfig
from pretrain.data.shards import ShardSet, open_shards

CFG = DataConfig(train="unused", image_size=(16, 16), workers=0, prefetch=2)
LENGTHS = (9, 0, 14, 1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder, number = tmp_path_factory.mktemp("evaluation"), 0
    for shard, length in enumerate(LENGTHS):
        with wds.TarWriter(str(folder / f"{shard}.tar")) as writer:
            for _ in range(length):
                file = io.BytesIO()
                Image.fromarray(np.full((20, 30, 3), number * 9, np.uint8)).save(file, "PNG")
                writer.write({"__key__": f"{number:03d}", "png": file.getvalue(), "cls": str(number).encode()})
                number += 1
    return open_shards(str(folder / "*.tar"))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_comes_once_in_order_with_its_label(shards: ShardSet, workers: int) -> None:
    batches = evaluation_batches(shards, replace(CFG, workers=workers), batch_size=2)
    for _ in range(2):  # any number of passes
        got = list(batches)
        labels = torch.cat([labels for _, labels in got])
        images = torch.cat([images for images, _ in got])
        assert labels.tolist() == list(range(24)) and images.shape == (24, 3, 16, 16)
        assert all((image == label * 9).all() for image, label in zip(images, labels.tolist(), strict=True))
    assert batches.bad == [] and len(batches) == 12


def test_ranks_share_the_images_and_a_limit_is_spread_over_the_index(shards: ShardSet) -> None:
    parts = [
        torch.cat([labels for _, labels in evaluation_batches(shards, CFG, 4, rank, 3)]).tolist() for rank in range(3)
    ]
    assert parts[1] == list(range(1, 24, 3)) and sorted(label for part in parts for label in part) == list(range(24))
    few = torch.cat([labels for _, labels in evaluation_batches(shards, CFG, 4, max_images=6)]).tolist()
    assert few == [0, 4, 8, 12, 16, 20]
    assert sum(len(labels) for _, labels in evaluation_batches(shards, CFG, 4, max_images=100)) == 24


def test_what_cannot_be_used_is_left_out_and_counted(shards: ShardSet, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    with wds.TarWriter(str(folder / "a.tar")) as writer:
        for number, side in enumerate((20, 200, 20)):
            file = io.BytesIO()
            Image.new("RGB", (side, side)).save(file, "PNG")
            writer.write({"__key__": f"{number}", "png": file.getvalue()})
    batches = evaluation_batches(open_shards(str(folder / "*.tar")), replace(CFG, max_pixels=10_000), batch_size=1)
    assert [labels.tolist() for _, labels in batches] == [[-1], [-1]]
    assert [(bad.key, bad.reason) for bad in batches.bad] == [("1", "too large: 200x200, more than 10000 pixels")]


def test_the_cut_is_the_centre_at_the_size_of_training(shards: ShardSet) -> None:
    images, _ = next(iter(evaluation_batches(shards, replace(CFG, image_size=(8, 24)), batch_size=3)))
    assert images.shape == (3, 3, 8, 24)
    assert torch.equal(images[1], center_crop(np.full((20, 30, 3), 9, np.uint8), (8, 24)))
