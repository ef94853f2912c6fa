"""Pictures of reconstructions: hidden patches are grey, every kind of image has a picture, and it can be cut apart."""

import pytest
import torch
from PIL import Image

from masking.mask import Grid
from pretrain.errors import ConfigError
from pretrain.tracking.panels import COLUMNS, masks_picture, panel, read_cells

GRID = Grid(2, 4)


def inputs(num_images=2, channels=3, size=(16, 32)):
    rng = torch.Generator().manual_seed(0)
    originals = torch.randint(0, 256, (num_images, channels, *size), generator=rng, dtype=torch.uint8)
    hidden = torch.zeros(num_images, GRID.num_patches, dtype=torch.bool)
    hidden[:, 1::2] = True
    return originals, hidden, originals.float() / 255


def test_hidden_patches_are_mid_grey_and_visible_ones_are_the_image(tmp_path):
    originals, hidden, paste = inputs()
    path = panel(originals, hidden, paste, tmp_path / "panels" / "step-0000100.png", grid=GRID, title="step 100")
    row = read_cells(path).rows[0]
    factor = row["masked"].width // 32
    assert factor > 1
    first_hidden, first_visible = (8 * factor + 1, 1), (1, 1)
    assert row["masked"].getpixel(first_hidden) == (128, 128, 128)
    assert row["masked"].getpixel(first_visible) == tuple(originals[0, :, 0, 0].tolist())
    assert row["prediction"].getpixel(first_visible) == (128, 128, 128)
    assert row["prediction"].getpixel(first_hidden) == tuple(originals[0, :, 0, 8].tolist())
    assert row["paste"].tobytes() == row["original"].tobytes()


def test_a_panel_is_cut_apart_into_the_cells_it_was_made_of(tmp_path):
    path = panel(*inputs(7), tmp_path / "a.png", grid=GRID, title="step 100")
    cells = read_cells(path)
    assert cells.title == "step 100"
    assert [tuple(row) for row in cells.rows] == [COLUMNS] * 7
    assert not list(tmp_path.glob("*.tmp"))


def test_predictions_without_pasting_are_shown_when_given(tmp_path):
    originals, hidden, paste = inputs()
    path = panel(originals, hidden, paste, tmp_path / "a.png", grid=GRID, predictions=torch.ones_like(paste))
    assert read_cells(path).rows[1]["prediction"].getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_any_number_of_channels_has_a_picture(tmp_path, channels):
    originals, hidden, paste = inputs(1, channels)
    cell = read_cells(panel(originals, hidden, paste, tmp_path / "a.png", grid=GRID)).rows[0]["original"]
    shown = originals[0, :3, 0, 0].tolist() if channels >= 3 else originals[0, :1, 0, 0].tolist() * 3
    assert cell.getpixel((0, 0)) == tuple(shown)


def test_large_images_are_reduced_and_values_out_of_range_clamped(tmp_path):
    originals, hidden, paste = inputs(1, 3, (1024, 2048))
    paste[:, :, 0, 0] = float("nan")
    path = panel(originals, hidden, paste * 9 - 4, tmp_path / "a.png", grid=GRID)
    assert max(read_cells(path).rows[0]["paste"].size) == 288


def test_the_same_panel_is_the_same_file(tmp_path):
    files = [panel(*inputs(), tmp_path / name, grid=GRID, title="step 1").read_bytes() for name in ("a.png", "b.png")]
    assert files[0] == files[1]


def test_masks_that_do_not_fit_the_images_are_refused(tmp_path):
    originals, hidden, paste = inputs()
    with pytest.raises(ValueError, match="do not fit"):
        panel(originals, hidden[:, 1:], paste, tmp_path / "a.png", grid=GRID)


def test_a_picture_that_is_no_panel_has_no_cells(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not a picture")
    assert read_cells(tmp_path / "a.png") is None is read_cells(tmp_path / "b.png")


def test_the_masks_picture_is_drawn_with_and_without_a_photograph(tmp_path):
    photo = tmp_path / "photo.png"
    Image.effect_noise((64, 48), 60).convert("RGB").save(photo)
    for on in ([], [photo], [photo, photo]):
        path = masks_picture(tmp_path / "masks.png", (8, 6), 0.75, on, strategies=["Uniform", "Guided"])
        with Image.open(path) as picture:
            assert picture.width > 600


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0, 0.999])
def test_a_ratio_that_hides_all_or_nothing_is_refused(tmp_path, ratio):
    with pytest.raises(ConfigError, match="--ratio"):
        masks_picture(tmp_path / "masks.png", (8, 8), ratio)


def test_a_photograph_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--on"):
        masks_picture(tmp_path / "masks.png", (8, 8), 0.75, on=[tmp_path / "absent.jpg"])
