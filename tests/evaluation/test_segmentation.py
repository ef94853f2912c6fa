"""mIoU: counted by hand, over ranks, and without classes that are nowhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pretrain.data.map_batches import MapBatches
from pretrain.data.settings import DataConfig
from pretrain.data.shards import ShardSet, open_shards
from pretrain.errors import DataError, NumericalError
from pretrain.evaluation.segmentation import Segmented, confusion, figures, segment
from pretrain.objectives.base import Objective
from pretrain.tracking.segments_picture import colour, segments_picture
from tests.data.map_files import COLOURS, scene, write_scenes

CFG = DataConfig(train="unused", image_size=(40, 56), workers=0, maps="seg.png")
NAMES = ("red", "green", "blue")


class ByColour(Objective):
    """Scores a class by how near its colour is; of no use where told so."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.backbone = factor, torch.nn.Identity()

    def segment(self, backbone: torch.nn.Module, images: Tensor) -> Tensor:
        colours = torch.from_numpy(COLOURS.astype(np.float32))
        return -self.factor * (images.float()[:, None] - colours[None, :, :, None, None]).square().sum(2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return open_shards(write_scenes(tmp_path_factory.mktemp("maps") / "shards", 11))


def test_iou_is_intersection_over_union_of_the_pixels_that_have_a_class() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 2, 2, 255], [255, 1, 1, 1]], np.uint8)
    predicted = np.array([[0, 1, 1, 1], [0, 2, 0, 2], [1, 1, 1, 2]], np.uint8)
    counts = confusion(truth, predicted, 3)
    assert counts.tolist() == [[2, 1, 0], [0, 4, 1], [1, 0, 1]] and counts.dtype == torch.int64
    found = figures(Segmented(counts, num_images=1), NAMES)
    assert found["class_iou"] == pytest.approx({"red": 2 / 4, "green": 4 / 6, "blue": 1 / 3})
    assert found["miou"] == pytest.approx((2 / 4 + 4 / 6 + 1 / 3) / 3) and found["pixel_accuracy"] == 7 / 10
    assert found["warnings"] == [] and found["classes"] == 3


def test_a_class_that_is_nowhere_is_left_out_of_the_mean_and_named_and_one_only_predicted_counts_as_0() -> None:
    found = figures(Segmented(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 0, 0]]), 1, num_bad=2), NAMES)
    assert found["class_iou"] == {"red": 0.75, "green": 0.0} and found["miou"] == 0.375
    assert "1 of 3 classes (blue) are neither in the maps nor predicted" in found["warnings"][0]
    assert "2 images of the validation shards could not be used" in found["warnings"][1]
    with pytest.raises(DataError, match=r"no pixel of 0 images \(2 more are bad\) has a class"):
        figures(Segmented(torch.zeros(3, 3, dtype=torch.int64), 0, 2), NAMES)


def test_what_is_told_by_colour_is_found_whole_and_ranks_add_up_to_the_same(shards: ShardSet) -> None:
    model = ByColour()

    def of(rank: int, world: int) -> Segmented:
        return segment(model, model.backbone, MapBatches(shards, CFG, 3, 4, rank, world), 3, num_examples=2)

    whole, parts = of(0, 1), [of(rank, 3) for rank in range(3)]
    labelled = sum(int((scene(number, void=True) != 255).sum()) for number in range(11))
    assert int(whole.confusion.diagonal().sum()) == int(whole.confusion.sum()) == labelled
    assert torch.equal(sum(part.confusion for part in parts), whole.confusion)
    reduced = segment(model, model.backbone, MapBatches(shards, CFG, 3, 4), 3, reduce=lambda counts: counts * 2)
    assert torch.equal(reduced.confusion, 2 * whole.confusion) and reduced.num_images == 22
    shown = [truth for _, truth, _ in whole.examples]
    assert len(shown) == 2 and np.array_equal(shown[0], scene(2, void=True))
    with pytest.raises(NumericalError, match="scores of pixels are not finite"):
        segment(ByColour(float("nan")), model.backbone, MapBatches(shards, CFG, 3, 4), 3)


def test_the_picture_has_a_row_an_image_in_the_colours_of_its_classes(shards: ShardSet, tmp_path: Path) -> None:
    model = ByColour()
    found = segment(model, model.backbone, MapBatches(shards, CFG, 3, 4), 3, num_examples=3)
    path = segments_picture(found.examples, NAMES, tmp_path / "segments.png", "step 3")
    with Image.open(path) as picture:
        seen = set(map(tuple, np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).tolist()))
    for number, own in enumerate(COLOURS):  # the legend, and the class over its own colour
        assert colour(number) in seen
        assert tuple(np.round(own * 0.4 + np.array(colour(number)) * 0.6).astype(int).tolist()) in seen
    assert len({colour(number) for number in range(150)}) > 140
