"""Label maps: of the same crop as their image, on any number of ranks and workers; and what is wrong with those that
cannot be used, in words."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data.augment import crop_and_flip, crop_key, map_in_crop, resize_map
from pretrain.data.label_maps import BadMap, read_map
from pretrain.data.loader import build_loader
from pretrain.data.map_batches import MapBatches
from pretrain.data.pack import pack
from pretrain.data.settings import DataConfig
from pretrain.data.shards import open_shards
from pretrain.data.sources import refuse_without_maps
from pretrain.errors import ConfigError
from pretrain.types import Batch
from tests.data.map_files import COLOURS, VOID_COLOUR, members, picture, png, scene, write_scenes
from tests.data.shard_files import write

CFG = DataConfig(
    train="unused", image_size=(32, 48), batch_size=8, lanes=2, block=8, workers=0, prefetch=1, maps="seg.png"
)
PALETTE = np.concatenate([COLOURS, [VOID_COLOUR]]).astype(np.int64)


def nearest_class(pixels: torch.Tensor) -> np.ndarray:
    """The class whose colour each pixel of (3, H, W) uint8 is nearest to, 255 for none: (H, W)."""
    distance = ((pixels.permute(1, 2, 0).numpy()[:, :, None] - PALETTE) ** 2).sum(-1)
    return np.array([0, 1, 2, 255], np.uint8)[distance.argmin(-1)]


def batches(
    pattern: str, cfg: DataConfig, number: int, rank: int = 0, world: int = 1, start: int = 0, classes: int = 3
) -> list[Batch]:
    loader = build_loader(
        open_shards(pattern), cfg, 5, rank=rank, world=world, accumulation=1, start_step=start, num_classes=classes
    )
    try:
        return list(islice(loader, number))
    finally:
        loader.close()


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_scenes(tmp_path_factory.mktemp("maps") / "shards", 24, per_shard=10)


def test_a_map_is_cut_mirrored_and_resized_as_its_image_is() -> None:
    """The image is drawn from the map: wherever a colour is not blended with a neighbour's, the map must say it."""
    mirrored = 0
    for position in range(60):
        classes, key = scene(position, (61, 83), void=True), crop_key(3, position)
        crop, cut = crop_and_flip(picture(classes), key, CFG), map_in_crop(classes, key, CFG)
        assert cut.shape == (32, 48) and cut.dtype == torch.uint8
        inside = torch.nn.functional.unfold(cut[None, None].float(), 5, padding=2)[0]  # all alike around a pixel
        plain = ((inside == inside[12]).all(0)).reshape(32, 48).numpy()
        assert plain.mean() > 0.3
        assert np.array_equal(nearest_class(crop)[plain], cut.numpy()[plain])
        assert (nearest_class(crop) == cut.numpy()).mean() > 0.9
        mirrored += not np.array_equal(cut.numpy(), map_in_crop(classes, key, replace(CFG, flip_prob=0.0)).numpy())
    assert 15 < mirrored < 45


def test_a_map_of_the_right_size_is_left_as_it_is_and_a_smaller_one_keeps_the_nearest() -> None:
    classes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(resize_map(classes, (0, 0, 3, 4), (3, 4)).numpy(), classes)
    assert resize_map(classes, (0, 0, 3, 3), (1, 1)).item() == 5  # the middle
    assert resize_map(classes, (1, 2, 1, 2), (1, 4), mirrored=True).tolist() == [[7, 7, 6, 6]]


def test_maps_of_a_step_are_the_same_whatever_the_ranks_and_the_start(pattern: str) -> None:
    whole = batches(pattern, CFG, 4)
    assert whole[0].maps is not None and whole[0].maps.shape == (8, 32, 48)
    for rank in range(2):
        for batch, part in zip(whole, batches(pattern, CFG, 4, rank=rank, world=2), strict=True):
            assert torch.equal(batch.maps[rank::2], part.maps) and torch.equal(batch.images[rank::2], part.images)
    for batch, later in zip(whole[2:], batches(pattern, CFG, 2, start=2), strict=True):
        assert torch.equal(batch.maps, later.maps) and torch.equal(batch.images, later.images)
    for image, cut in zip(whole[1].images, whole[1].maps, strict=True):
        assert (nearest_class(image) == cut.numpy()).mean() > 0.9


@pytest.mark.slow
def test_maps_of_a_step_are_the_same_from_a_worker(pattern: str) -> None:
    for batch, later in zip(batches(pattern, CFG, 2), batches(pattern, replace(CFG, workers=1), 2), strict=True):
        assert torch.equal(batch.maps, later.maps) and torch.equal(batch.images, later.images)


def test_every_crop_of_one_decoding_has_its_own_map(pattern: str) -> None:
    for batch in batches(pattern, replace(CFG, crops_per_decode=2), 4):
        for image, cut in zip(batch.images, batch.maps, strict=True):
            assert (nearest_class(image) == cut.numpy()).mean() > 0.9


def test_whole_images_come_with_maps_of_their_own_size_in_order(pattern: str) -> None:
    found = MapBatches(open_shards(pattern), CFG, 3, batch_size=7)
    got = list(found)
    assert [len(batch.images) for batch in got] == [7, 7, 7, 3] and found.num_images == 24
    maps = [classes for batch in got for classes in batch.maps]
    assert all(np.array_equal(classes, scene(number, void=True)) for number, classes in enumerate(maps))
    assert got[0].images.shape == (7, 3, 32, 48)
    odd = MapBatches(open_shards(pattern), CFG, 3, 7, 1, 2, max_images=6)
    assert odd.num_images == 3 and np.array_equal(next(iter(odd)).maps[0], scene(4, void=True))


def numbers(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.zeros(shape, dtype)


def jpeg_of(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


BAD = [
    (b"", r"it has no \.seg\.png member, and data\.maps=seg\.png"),
    (png(numbers(40, 55)), r"its label map has 55x40 pixels, and its image 56x40"),
    (png(numbers(40, 56) + 7), r"its label map holds 7; objective\.pixel_classes=3 allows 0 to 2, and data\.map"),
    (png(numbers(40, 56, dtype=np.uint16)), r"its label map is a PNG of 16-bit grey values; write 8-bit grey"),
    (png(numbers(40, 56, 3)), r"its label map is a PNG of 8-bit RGB values"),
    (png(numbers(40, 56), "1"), r"its label map is a PNG of 1-bit grey values"),
    (jpeg_of(numbers(40, 56)), r"its label map is no whole PNG but JPEG"),
    (b"\x89PNG\r\n\x1a\n", r"its label map: the header is cut short"),
    (png(scene(1))[:60], r"its label map: "),
    (b"what", r"its label map: not a JPEG, PNG or WEBP"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "why"), BAD, ids=[why[:40] for _, why in BAD])
def test_a_map_that_cannot_be_meant_is_refused_in_a_sentence(content: bytes, why: str) -> None:
    with pytest.raises(BadMap, match=why) as caught:
        read_map(content or None, CFG, 3, 40, 56)
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


def test_a_sample_whose_map_is_bad_keeps_its_slot_weighs_nothing_and_names_itself(tmp_path: Path) -> None:
    odd = {number: content for number, (content, _) in enumerate(BAD)}
    tar = write(tmp_path / "a.tar", [m for n in range(16) for m in members(n, odd.get(n))])
    (batch,) = batches(str(tar), replace(CFG, batch_size=16, lanes=1), 1)
    assert sorted(bad.key for bad in batch.bad) == [f"{number:05d}" for number in range(len(BAD))]
    assert all(bad.shard == str(tar) for bad in batch.bad) and float(batch.weight.sum()) == 6
    assert bool((batch.maps[batch.weight == 0] == 255).all()) and not batch.images[batch.weight == 0].any()
    found = MapBatches(open_shards(str(tar)), CFG, 3, 4)
    assert sum(len(part.maps) for part in found) == 6 and len(found.bad) == len(BAD)


def test_places_in_a_palette_are_classes_and_numbers_may_begin_anywhere() -> None:
    classes = scene(3) + 1
    classes[0, 0] = 0
    image = Image.fromarray(classes)
    image.putpalette(list(range(255, -1, -1)) * 3)
    out = io.BytesIO()
    image.save(out, "PNG")
    for content in (png(classes), out.getvalue()):
        got = read_map(content, replace(CFG, map_first=1, map_void=0), 3, 40, 56)
        want = scene(3)
        want[0, 0] = 255
        assert np.array_equal(got, want)
    with pytest.raises(BadMap, match=r"holds 0; objective\.pixel_classes=3 allows 1 to 3$"):
        read_map(png(classes), replace(CFG, map_first=1, map_void=None), 3, 40, 56)


def test_an_image_is_never_its_own_map_and_a_map_never_the_image(tmp_path: Path) -> None:
    """With data.maps=png, JPEG beside PNG: where the JPEG is missing, the PNG is no image."""
    image = jpeg_of(picture(scene(0)))
    tar = write(tmp_path / "a.tar", [("a.jpg", image), ("a.png", png(scene(0))), ("b.png", png(scene(1)))])
    (batch,) = batches(str(tar), replace(CFG, batch_size=2, maps="png"), 1)
    assert [bad.key for bad in batch.bad] == ["b"] and "no image among its members" in batch.bad[0].reason


def test_shards_without_maps_are_refused_with_the_names_that_are_there(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"has a \.mask\.png member \(there are png, seg\.png\); write maps as"):
        refuse_without_maps(open_shards(pattern), replace(CFG, maps="mask.png"))


def test_a_folder_of_images_and_one_of_maps_are_packed_side_by_side(tmp_path: Path) -> None:
    """One map missing, one of another size, one of colours: left out by name. Smaller images take their maps along."""
    images, maps = tmp_path / "images", tmp_path / "maps"
    for folder in (images / "street", maps / "street"):
        folder.mkdir(parents=True)
    for number in range(7):
        classes = scene(number, (64, 96))
        (images / "street" / f"{number}.jpg").write_bytes(jpeg_of(picture(classes)))
        content = {4: png(classes[:32]), 5: png(picture(classes))}.get(number, png(classes))
        if number != 6:
            (maps / "street" / f"{number}.png").write_bytes(content)
    for size_px, shape in ((None, (64, 96)), (32, (32, 48))):
        out = tmp_path / f"out-{size_px}"
        report = pack(images, out, size_px=size_px, maps=maps)
        assert report.samples == {"train": 4} and report.rejected == 3
        rejected = (out / "rejected.csv").read_text()
        assert 'street/4.jpg,"its label map has 96x32' in rejected and "street/6.jpg,cannot be read" in rejected
        (batch,) = MapBatches(open_shards(f"{out}/*.tar"), replace(CFG, image_size=shape), 3, batch_size=4)
        for image, classes in zip(batch.images, batch.maps, strict=True):
            assert classes.shape == shape and (nearest_class(image) == classes).mean() > 0.95
    with pytest.raises(ConfigError, match=r"holds no label map of any image; a map is a PNG of its image's name"):
        pack(images, tmp_path / "none", maps=tmp_path / "nowhere")
