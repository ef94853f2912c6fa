"""What boxes cover of each patch, and where the gradient of an image is: worked by hand, and flat is nothing."""

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

from masking.importance import box_coverage, gradient_energy
from masking.mask import Grid


def on_grid(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    return rearrange(values, "b (h w) -> b h w", h=grid.height)


def test_coverage_is_the_share_of_each_patch_worked_by_hand() -> None:
    box = torch.tensor([[[0.25, 0.0, 0.5625, 0.75]]])  # columns 1 and a quarter of 2 of 4; row 0 and a half of 1 of 2
    assert on_grid(box_coverage(box, Grid(2, 4)), Grid(2, 4)).tolist() == [[[0, 1, 0.25, 0], [0, 0.5, 0.125, 0]]]


def test_of_several_boxes_the_one_that_covers_most_counts() -> None:
    boxes = torch.tensor([[[0, 0, 0.5, 0.25], [0, 0, 1, 0.125], [0, 0, 0, 0]]])
    assert on_grid(box_coverage(boxes, Grid(2, 2)), Grid(2, 2)).tolist() == [[[0.5, 0.25], [0, 0]]]


def test_boxes_without_area_cover_nothing_and_the_whole_image_everything_exactly() -> None:
    for grid in (Grid(14, 14), Grid(7, 3), Grid(1, 1)):
        boxes = torch.tensor([[[0.0, 0, 0, 0]], [[0.3, 0.2, 0.3, 0.9]], [[0, 0, 1, 1]]])
        coverage = box_coverage(boxes, grid)
        assert coverage.shape == (3, grid.num_patches)
        assert not coverage[:2].any() and (coverage[2] == 1).all()


@given(
    corners=st.lists(st.tuples(*[st.integers(0, 60)] * 4), min_size=1, max_size=3),
    height=st.sampled_from([2, 3, 5]), width=st.sampled_from([2, 4, 6]),
)  # fmt: skip
def test_coverage_is_what_counting_pixels_gives(
    corners: list[tuple[int, int, int, int]], height: int, width: int
) -> None:
    boxes = [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners]
    painted = torch.zeros(len(boxes), 60, 60)
    for picture, (left, top, right, bottom) in zip(painted, boxes, strict=True):
        picture[top:bottom, left:right] = 1
    counted = rearrange(painted, "g (h p) (w q) -> g (h w) (p q)", h=height, w=width).mean(2).amax(0)
    coverage = box_coverage(torch.tensor([boxes]) / 60, Grid(height, width))
    assert torch.allclose(coverage[0], counted, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_flat_image_has_no_gradient_at_all(channels: int) -> None:
    levels = torch.tensor([0, 1, 127, 255], dtype=torch.uint8)
    images = levels[:, None, None, None].expand(-1, channels, 24, 36)
    assert torch.equal(gradient_energy(images, Grid(2, 3)), torch.zeros(4, 6))


def test_an_edge_is_found_in_its_patch_with_the_size_worked_by_hand() -> None:
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[..., 19:22, 11:14] = 200  # a spot inside one patch of 8 x 8 pixels
    energy = on_grid(gradient_energy(images, Grid(4, 4)), Grid(4, 4))[0]
    assert energy[2, 1] > 0 and (energy > 0).sum() == 1
    images[:] = 0
    images[..., 12:] = 255
    energy = on_grid(gradient_energy(images, Grid(4, 4)), Grid(4, 4))[0]
    assert (energy[:, [0, 2, 3]] == 0).all()
    assert torch.allclose(energy[:, 1], torch.tensor(2 * 0.5**2 / 8))  # two of eight columns see half of the step


def test_both_directions_count_alike() -> None:
    images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    turned = rearrange(images, "b c h w -> b c w h")
    across, down = (on_grid(gradient_energy(pictures, Grid(3, 3)), Grid(3, 3)) for pictures in (images, turned))
    assert torch.allclose(across, rearrange(down, "b h w -> b w h"))
    ramp = torch.arange(24, dtype=torch.uint8).expand(1, 1, 24, 24) * 10
    inside = gradient_energy(ramp, Grid(3, 3))[0, 4]
    assert torch.allclose(inside, torch.tensor((10 / 255) ** 2))


def test_black_to_white_weighs_the_same_in_any_number_of_channels() -> None:
    grey = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = gradient_energy(grey, Grid(2, 2))
    assert torch.allclose(gradient_energy(grey.expand(-1, 4, -1, -1), Grid(2, 2)), expected)
