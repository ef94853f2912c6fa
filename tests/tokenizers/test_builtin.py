"""Tokenizers without weights: what goes in comes out, as far as they keep it."""

import torch

from masking.mask import Grid
from pretrain.tokenizers.builtin import Palette, Pixels

GRID = Grid(2, 3)


def pictures(channels=3):
    return torch.randint(0, 256, (4, channels, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_pixels_come_back_as_they_were_and_tokens_are_patches_in_raster_order():
    for channels in (1, 3, 4):
        tokenizer, images = Pixels(4, channels), pictures(channels)
        tokens = tokenizer.tokens(images)
        assert tokens.shape == (4, 6, channels * 16) == (4, 6, tokenizer.num_values) and tokens.dtype == torch.float32
        torch.testing.assert_close(tokens[:, 4, 0], (images[:, 0, 4, 4] / 255 * 2 - 1) / 0.5)
        torch.testing.assert_close(tokenizer.images(tokens, GRID), images / 255, rtol=0, atol=1e-6)
    assert tokenizer.images(9 * tokens, GRID).max() == 1 and tokenizer.images(9 * tokens, GRID).min() == 0


def test_each_of_512_colours_paints_a_patch_that_has_that_colour():
    tokenizer, grid = Palette(4), Grid(16, 32)
    ids = torch.arange(512)[None]
    images = tokenizer.images(ids, grid)
    assert images.shape == (1, 3, 64, 128) and 0 < images.min() and images.max() < 1
    assert torch.equal(tokenizer.tokens((images * 255).round().to(torch.uint8)), ids)
    assert tokenizer.num_codes == 512 and not list(tokenizer.parameters())


def test_the_palette_takes_the_mean_colour_red_first():
    images = torch.zeros(1, 3, 4, 8, dtype=torch.uint8)
    images[0, 0, :2, :4], images[0, 2, :, 4:] = 200, 255  # half red, and all blue
    assert Palette(4).tokens(images).tolist() == [[100 * 8 // 256 * 64, 7]]
    assert Palette(4).tokens(torch.full_like(images, 255)).tolist() == [[511, 511]]
