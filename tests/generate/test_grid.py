from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from masking.rng import generator
from pretrain.errors import ConfigError, NumericalError
from pretrain.generate.grid import CAPTION, GUTTER, TITLE, grid_picture, grid_sheet


def _images(n: int, channels: int = 3, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=generator(0, "test"))


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGBA"))


def test_every_pixel_of_every_image_is_in_its_place(tmp_path: Path) -> None:
    images = _images(7)
    path = grid_picture(images, tmp_path / "new" / "grid.png", columns=3)
    sheet = _read(path)
    assert path == tmp_path / "new" / "grid.png"
    assert sheet.shape == (3 * 96 + 2 * GUTTER, 3 * 96 + 2 * GUTTER, 4)
    seen = np.zeros(sheet.shape[:2], bool)
    for index, image in enumerate(images.numpy()):
        top, left = (place * (96 + GUTTER) for place in divmod(index, 3))
        tile = sheet[top : top + 96, left : left + 96]
        for down in range(3):
            for right in range(3):
                assert np.array_equal(tile[down::3, right::3, :3], image.transpose(1, 2, 0))
        assert (tile[..., 3] == 255).all()
        seen[top : top + 96, left : left + 96] = True
    assert (sheet[~seen][:, 3] == 0).all(), "the ground is transparent"


def test_floats_are_rounded_as_they_are_before_they_are_scored(tmp_path: Path) -> None:
    images = _images(2)
    as_floats = grid_picture((images.float() + 0.3).clamp(0, 255) / 255, tmp_path / "a.png")
    assert np.array_equal(_read(as_floats), _read(grid_picture(images, tmp_path / "b.png")))


def test_one_channel_is_grey_and_of_many_three_are_shown(tmp_path: Path) -> None:
    grey, many = _images(1, 1), _images(1, 5)
    for images, expected in ((grey, grey[0].repeat(3, 1, 1)), (many, many[0, :3])):
        sheet = _read(grid_picture(images, tmp_path / "grid.png", upscale=1))
        assert np.array_equal(sheet[..., :3], expected.permute(1, 2, 0))


@pytest.mark.parametrize(("size", "tile"), [((32, 32), (96, 96)), ((28, 40), (112, 160)), ((256, 128), (256, 128))])
def test_a_tile_is_large_enough_to_be_looked_at(size: tuple[int, int], tile: tuple[int, int]) -> None:
    assert grid_sheet(_images(1, 3, size)).size == tile[::-1]


def test_the_sheet_is_about_square_and_has_room_for_what_is_written() -> None:
    assert grid_sheet(_images(10)).size == (4 * 96 + 3 * GUTTER, 3 * 96 + 2 * GUTTER)
    plain = np.asarray(grid_sheet(_images(2), columns=2))
    written = np.asarray(grid_sheet(_images(2), columns=2, captions=["a very long name", ""], title="8 steps"))
    assert written.shape[0] == plain.shape[0] + TITLE + CAPTION
    assert np.array_equal(written[TITLE : TITLE + 96], plain)
    assert written[:TITLE, :, 3].any()
    assert written[TITLE + 96 :, :96, 3].any()
    assert not written[TITLE + 96 :, 96 + GUTTER :, 3].any(), "cut, or the next caption would be written over"


def test_no_other_file_is_left_behind(tmp_path: Path) -> None:
    grid_picture(_images(1), tmp_path / "grid.png")
    grid_picture(_images(2), tmp_path / "grid.png")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    for images, options, says in (
        (_images(0), {}, "at least one image"),
        (_images(1), {"columns": 0}, "columns=0"),
        (_images(1), {"upscale": 0}, "upscale=0"),
        (_images(3), {"captions": ["a"]}, "3 images have 1 captions"),
        (_images(1).float(), {}, "give 0..1"),
    ):
        with pytest.raises(ConfigError, match=says):
            grid_picture(images, tmp_path / "grid.png", **options)
    with pytest.raises(NumericalError):
        grid_picture(_images(1).float() / 0, tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []
