"""Boxes are read as they are written, cut by the draw of their image, and the same for every worker and rank."""

import io
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from pretrain.data.augment import MAX_BOXES, boxes_in_crop, crop_and_flip, crop_key, draw_crop
from pretrain.data.boxes import BadBoxes, box_shares, read_boxes
from pretrain.data.evaluation_batches import evaluation_batches
from pretrain.data.loader import build_loader
from pretrain.data.order import Order
from pretrain.data.settings import DataConfig
from pretrain.data.shards import ShardSet, open_shards
from pretrain.data.sources import open_sources
from pretrain.errors import ConfigError
from pretrain.types import Batch
from tests.data.shard_files import jpeg, write

SEED = 5
HEIGHT, WIDTH = 30, 40
CFG = DataConfig(
    train="unused", image_size=(16, 24), batch_size=12, lanes=2, block=8, workers=0, prefetch=1, timeout_s=60,
    boxes="xyxy",
)  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def about(*boxes: Any) -> bytes:
    return json.dumps({"boxes": list(boxes)}).encode()


def write_shards(folder: Path, texts: list[bytes | None]) -> ShardSet:
    """Two shards of images of 40 x 30 pixels with these jsons."""
    folder.mkdir()
    for shard in range(2):
        members = []
        for number, text in list(enumerate(texts))[shard::2]:
            members.append((f"{number:04d}.jpg", jpeg(number, (HEIGHT, WIDTH))))
            members += [] if text is None else [(f"{number:04d}.json", text)]
        write(folder / f"part-{shard}.tar", members)
    return open_shards(str(folder / "*.tar"))


def some_boxes(number: int) -> bytes | None:
    """Of one sample in six none, in one of two ways; of the others one to four."""
    if number % 6 == 0:
        return None if number % 12 else b'{"name": "no boxes"}'
    rng = np.random.default_rng(number)
    corners = [(rng.integers(0, 30, 2), rng.integers(1, 10, 2)) for _ in range(number % 6 % 4 + 1)]
    return about(*([*low.tolist(), *(low + size).clip(max=[40, 30]).tolist()] for low, size in corners))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("boxes") / "shards", [some_boxes(number) for number in range(37)])


def micro_batches(
    shards: ShardSet, cfg: DataConfig, steps: int, rank: int = 0, world: int = 1, accumulation: int = 1, start: int = 0
) -> list[Batch]:
    loader = build_loader(shards, cfg, SEED, rank=rank, world=world, accumulation=accumulation, start_step=start)
    try:
        return list(islice(loader, steps * accumulation))
    finally:
        loader.close()


def by_step(shards: ShardSet, cfg: DataConfig, steps: int, world: int, accumulation: int, start: int = 0) -> list:
    """For each step its boxes by position, from all ranks, without what fills up; and the digest."""
    ranks = [micro_batches(shards, cfg, steps, rank, world, accumulation, start) for rank in range(world)]
    found = []
    for step in range(steps):
        mine = [batch for rank in ranks for batch in rank[step * accumulation : (step + 1) * accumulation]]
        rows = {p: b[b.any(1)].tolist() for batch in mine for p, b in zip(batch.positions.tolist(), batch.boxes)}
        found.append((rows, sum(batch.digest for batch in mine) % 2**64))
    return found


@given(
    size=st.tuples(st.integers(24, 120), st.integers(24, 120)),
    corners=st.tuples(st.integers(0, 120), st.integers(0, 120), st.integers(8, 120), st.integers(8, 120)),
    key=st.integers(0, 2**63 - 1), mirrored=st.booleans(),
)  # fmt: skip
def test_a_box_is_where_the_crop_shows_what_was_painted_into_it(
    size: tuple[int, int], corners: tuple[int, int, int, int], key: int, mirrored: bool
) -> None:
    (height, width), (left, top, wide, tall) = size, corners
    assume(left + wide <= width and top + tall <= height)
    image = np.zeros((height, width, 3), np.uint8)
    image[top : top + tall, left : left + wide] = 255
    cfg = replace(CFG, image_size=(48, 40), flip_prob=float(mirrored))
    pixels = crop_and_flip(image, key, cfg)[0].numpy()
    shares = box_shares(read_boxes(about([left, top, wide, tall])), "xywh", height, width)
    found = boxes_in_crop(shares, height, width, key, cfg)
    if not len(found):
        assert not pixels.any()
        return
    assert found.shape == (1, 4) and found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    (_, _, *cut), _ = draw_crop(height, width, key, cfg)
    for axis, low, high in ((0, found[0, 1], found[0, 3]), (1, found[0, 0], found[0, 2])):
        profile = pixels.max(1 - axis)
        if profile.max() < 250:
            continue  # a sliver, thinner than what resampling mixes
        lit = np.flatnonzero(profile > 127)
        slack = 1 + 0.5 * len(profile) / cut[axis]  # a pixel of the crop and half a pixel of the image
        assert abs(lit[0] - low * len(profile)) <= slack
        assert abs(lit[-1] + 1 - high * len(profile)) <= slack


def test_a_mirrored_crop_has_mirrored_boxes() -> None:
    shares = np.array([[0.1, 0.2, 0.4, 0.9], [0.5, 0.5, 1.0, 0.75]])
    never, always = (replace(CFG, flip_prob=share, crop_scale=(0.9, 1.0)) for share in (0.0, 1.0))
    for position in range(50):
        plain, mirrored = (boxes_in_crop(shares, 90, 120, crop_key(0, position), cfg) for cfg in (never, always))
        assert np.allclose(mirrored, plain[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0], atol=1e-6)
        assert not np.allclose(mirrored, plain)


def test_a_box_is_cut_at_the_edge_of_the_crop_and_left_out_where_nothing_remains() -> None:
    cfg = replace(CFG, crop_scale=(0.25, 0.25), crop_aspect=(1.0, 1.0), flip_prob=0.0)
    (top, left, tall, wide), _ = draw_crop(100, 100, crop_key(0, 1), cfg)
    assert (tall, wide) == (50, 50) and 0 < top < 50 and 0 < left < 50
    boxes = [[0, 0, 100, 100], [left - 10, top + 5, left + 20, top + 10], [0, 0, left, 100], [0, top + 50, 100, 100]]
    found = boxes_in_crop(np.array(boxes) / 100, 100, 100, crop_key(0, 1), cfg)
    assert np.allclose(found, [[0, 0, 1, 1], [0, 0.1, 0.4, 0.2]], atol=1e-6)


def test_of_many_boxes_the_largest_stay_in_their_order() -> None:
    cfg = replace(CFG, crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip_prob=0.0)
    sizes = np.random.default_rng(0).permutation(200) + 1
    boxes = np.stack([0 * sizes, 0 * sizes, sizes / 200, 0 * sizes + 1], 1)
    found = boxes_in_crop(boxes, 200, 200, 1, cfg)
    assert np.allclose(found[:, 2] * 200, [size for size in sizes if size > 200 - MAX_BOXES])


@pytest.mark.parametrize(("workers", "world", "accumulation"), [(0, 1, 3), (2, 1, 1), (2, 2, 2), (0, 12, 1)])
def test_workers_ranks_and_accumulation_change_no_box(
    shards: ShardSet, workers: int, world: int, accumulation: int
) -> None:
    expected = by_step(shards, CFG, 4, 1, 1)
    assert sum(len(boxes) for rows, _ in expected for boxes in rows.values()) > 40
    assert by_step(shards, replace(CFG, workers=workers), 4, world, accumulation) == expected


def test_a_batch_holds_the_boxes_of_its_images_and_is_otherwise_the_same(shards: ShardSet) -> None:
    order = Order(shards.lengths, SEED, CFG.lanes, CFG.block)
    for batch, without in zip(
        micro_batches(shards, CFG, 3), micro_batches(shards, replace(CFG, boxes=None), 3), strict=True
    ):
        assert without.boxes is None and torch.equal(batch.images, without.images) and batch.digest == without.digest
        assert batch.boxes is not None and batch.boxes.dtype == torch.float32
        counts = []
        for position, boxes in zip(batch.positions.tolist(), batch.boxes, strict=True):
            text = shards.read(*order.sample_at(position)[1:]).get("json", b"{}")
            shares = box_shares(read_boxes(text), "xyxy", HEIGHT, WIDTH)
            expected = boxes_in_crop(shares, HEIGHT, WIDTH, crop_key(SEED, position), CFG)
            counts.append(len(expected))
            assert np.array_equal(boxes[: len(expected)], expected) and not boxes[len(expected) :].any()
        assert batch.boxes.shape == (12, max(counts), 4)


def test_every_crop_of_a_decode_has_boxes_of_its_own(shards: ShardSet) -> None:
    cfg = replace(CFG, crops_per_decode=3)
    whole, plain = by_step(shards, cfg, 6, 1, 1), by_step(shards, CFG, 2, 1, 1)
    assert [whole[0][0], whole[3][0]] == [plain[0][0], plain[1][0]]
    assert whole[0][0].keys() == whole[1][0].keys() == whole[2][0].keys()
    assert whole[0][0] != whole[1][0] != whole[2][0]
    assert by_step(shards, replace(cfg, workers=2), 4, 2, 1, start=2) == whole[2:]


def test_samples_without_boxes_have_one_that_is_empty(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "none", [None, b"{}", about(), b'{"boxes": null}'])
    (batch,) = micro_batches(shards, CFG, 1)
    assert batch.boxes is not None and torch.equal(batch.boxes, torch.zeros(12, 1, 4))
    assert batch.bad == () and batch.weight.all()


BAD = {
    about([1, 2, 9, 9], [1, 2, 41.5, 9]): "box 2 of its json, [1, 2, 41.5, 9], reaches outside the image of 40x30",
    about([1, -1.5, 9, 9]): "box 1 of its json, [1, -1.5, 9, 9], reaches outside",
    about([5, 5, 5, 9]): "box 1 of its json, [5, 5, 5, 9], has no area; data.boxes=xyxy",
    about([5, 9, 8, 3]): "box 1 of its json, [5, 9, 8, 3], has no area",
    about([1, 2, 3]): "box 1 of its json, [1, 2, 3], is not a list of four finite numbers",
    about([1, 2, "9", 9]): "box 1 of its json, [1, 2, '9', 9], is not",
    about([1, 2, True, 9]): "is not a list of four finite numbers",
    about({"x": 1}): "box 1 of its json, {'x': 1}, is not",
    b'{"boxes": [[0, 0, NaN, 1]]}': "is not a list of four finite numbers",
    b'{"boxes": [[0, 0, 1e999, 1]]}': "is not a list of four finite numbers",
    b'{"boxes": [[0, 0, 1' + b"0" * 400 + b", 1]]}": "is not a list of four finite numbers",
    b'{"boxes": {"a": 1}}': "\"boxes\" in its json is {'a': 1}, not a list of boxes",
    b"[[1, 2, 3, 4]]": "its json is no object",
    b'{"boxes": [[1, 2': "its json cannot be read (Expecting ',' delimiter",
    b'{"name": "\xff"}': "its json cannot be read ('utf-8' codec",
    b"[" * 100_000: "its json cannot be read (JSON nested deeper than 64",
    b'{"name": "' + b"x" * (1 << 20) + b'"}': "its json has 1048588 bytes; at most 1048576 are read",
}


def test_bad_boxes_keep_their_slot_with_weight_0_and_a_reason(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "bad", [about([1, 2, 9, 9]), *BAD])
    cfg = replace(CFG, batch_size=len(BAD) + 1)
    (batch,) = micro_batches(shards, cfg, 1)
    reasons = {int(bad.key): bad.reason for bad in batch.bad}
    assert reasons.keys() == set(range(1, len(BAD) + 1))
    for number, start in enumerate(BAD.values(), 1):
        assert start in reasons[number] and reasons[number].isascii() and len(reasons[number]) < 200
    assert {bad.position for bad in batch.bad} == set(batch.positions[batch.weight == 0].tolist())
    assert batch.boxes is not None and not batch.images[batch.weight == 0].any() and batch.boxes.shape[1] == 1
    assert not batch.boxes[batch.weight == 0].any() and batch.images[batch.weight == 1].any()
    (off,) = micro_batches(shards, replace(cfg, boxes=None), 1)
    assert off.bad == () and off.boxes is None


def test_boxes_within_a_pixel_of_the_image_are_cut_off_and_both_forms_mean_the_same() -> None:
    written = read_boxes(about([-1, -0.5, 41, 31], [10, 15, 30, 15.5]))
    assert box_shares(written, "xyxy", 30, 40).tolist() == [[0, 0, 1, 1], [0.25, 0.5, 0.75, 15.5 / 30]]
    assert box_shares(read_boxes(about([-1, -0.5, 42, 31.5], [10, 15, 20, 0.5])), "xywh", 30, 40).tolist() == [
        [0, 0, 1, 1], [0.25, 0.5, 0.75, 15.5 / 30],
    ]  # fmt: skip
    with pytest.raises(BadBoxes, match=r"reaches outside the image of 40x30 pixels; data\.boxes=xywh"):
        box_shares(written + 1, "xywh", 30, 40)


def test_boxes_are_of_the_image_after_it_was_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying; shown 30 wide and 40 high
    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg(0, (HEIGHT, WIDTH)))).save(out, "JPEG", exif=exif)
    members = [("a.jpg", out.getvalue()), ("a.json", about([0, 0, 30, 40]))]
    write(tmp_path / "turned.tar", members)
    shards = open_shards(str(tmp_path / "turned.tar"))
    (batch,) = micro_batches(shards, CFG, 1)
    assert batch.boxes is not None and torch.equal(batch.boxes, torch.tensor([0.0, 0, 1, 1]).expand(12, 1, 4))
    (lying,) = micro_batches(shards, replace(CFG, apply_exif=False), 1)
    assert "outside the image of 40x30" in lying.bad[0].reason


def test_evaluation_does_not_look_at_boxes(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "bad", [about([9, 9, 1, 1])] * 4)
    batches = evaluation_batches(shards, CFG, 4)
    assert [len(images) for images, _ in batches] == [4] and batches.bad == []


def test_a_run_whose_shards_have_no_boxes_is_refused_before_it_starts(tmp_path: Path) -> None:
    write_shards(tmp_path / "images", [None] * 8)
    write_shards(tmp_path / "jsons", [b'{"name": "a"}'] * 8)
    write_shards(tmp_path / "some", [None] * 7 + [about()])

    def opened(folder: str, boxes: Any = "xyxy") -> int:
        data = replace(CFG, train=str(tmp_path / folder / "*.tar"), boxes=boxes)
        return open_sources(data, tmp_path / "run", True, barrier=lambda: None).train.num_samples

    with pytest.raises(ConfigError, match=r"boxes=xyxy, and no sample of .*part-0\.tar, .*part-1\.tar has a \.json"):
        opened("images")
    with pytest.raises(ConfigError, match=r'no \.json member looked at in .*part-1\.tar has "boxes"; write them as'):
        opened("jsons")
    assert opened("some") == opened("images", None) == opened("jsons", None) == 8
