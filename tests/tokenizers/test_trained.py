"""The trained tokenizer: shapes of any grid, codes that decode to the bit, an encoder to the rest of the system."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from masking.mask import Grid
from pretrain.backbones.base import Backbone
from pretrain.errors import ConfigError
from pretrain.evaluation.features import extract
from pretrain.tokenizers.fsq import FSQConfig
from pretrain.tokenizers.kl import KLConfig
from pretrain.tokenizers.trained import ConvTokenizerConfig
from pretrain.tokenizers.vq import VQConfig
from pretrain.tokenizers.vq_average import AveragedVQConfig

GRID = Grid(2, 3)
SMALL = ConvTokenizerConfig(FSQConfig((5, 4, 3)), patch_size=4, width=16, blocks=1)
QUANTISERS = [FSQConfig((5, 4, 3)), VQConfig(num_codes=20, code_dim=6), AveragedVQConfig(num_codes=20, code_dim=6),
              KLConfig(channels=4)]  # fmt: skip
every_kind = pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda config: type(config).__name__)


def build(config, channels=3, grid=GRID):
    torch.manual_seed(0)
    return config.build(grid, channels, (), ())


def pictures(channels=3, height=8, width=12):
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, channels, height, width), dtype=torch.uint8, generator=rng)


@every_kind
@pytest.mark.parametrize("patch_size", [2, 4, 8])
def test_images_of_any_grid_become_a_token_a_patch_and_images_again(quantiser, patch_size):
    tokenizer = build(dataclasses.replace(SMALL, quantiser=quantiser, patch_size=patch_size), channels=2)
    images = pictures(2, 3 * patch_size, 5 * patch_size)
    tokens = tokenizer.tokens(images)
    if tokenizer.num_codes is None:
        assert tokens.shape == (3, 15, tokenizer.num_values) and tokens.dtype == torch.float32
    else:
        assert tokens.shape == (3, 15) and 0 <= tokens.min() and tokens.max() < tokenizer.num_codes  # test 23
    shown = tokenizer.images(tokens, Grid(3, 5))
    assert shown.shape == images.shape and shown.dtype == torch.float32 and 0 <= shown.min() <= shown.max() <= 1


@every_kind
def test_an_image_decoded_from_its_ids_is_that_decoded_in_training_to_the_bit(quantiser):
    """Acceptance test 22."""
    tokenizer = build(dataclasses.replace(SMALL, quantiser=quantiser))
    found = tokenizer.quantise(pictures())
    given = found.values if found.ids is None else found.ids
    assert torch.equal(tokenizer.decode(found.values, GRID).clamp(0, 1), tokenizer.images(given, GRID))


def test_to_the_system_it_is_an_encoder_whose_features_are_its_codes():
    tokenizer, images = build(SMALL), pictures()
    assert isinstance(tokenizer, Backbone) and SMALL.dimensions() == (tokenizer.width, len(tokenizer.blocks), 1)
    tokens = tokenizer.embed(images)
    assert torch.equal(tokens, tokenizer.quantiser.values(tokenizer.tokens(images)))
    ids = torch.tensor([[0, 3], [1, 5], [2, 4]])
    assert torch.equal(tokenizer.embed(images, ids)[1], tokens[1, [1, 5]])
    normal = images / 255 * 2 - 1  # floats are taken as normalised by its mean and std
    torch.testing.assert_close((images / 255 - tokenizer.mean[0]) / tokenizer.std[0], normal)
    torch.testing.assert_close(tokenizer.embed(normal), tokens)
    with torch.no_grad():
        found = extract(tokenizer, [(images, torch.arange(3))])
    torch.testing.assert_close(found.features, tokens.mean(1))


def test_checkpointing_runs_encoder_and_decoder_again_and_changes_nothing():
    found = []
    for on in (False, True):
        tokenizer = build(SMALL)
        tokenizer.checkpointing = on
        tokenizer.decode(tokenizer.quantise(pictures()).values, GRID).sum().backward()
        found.append([parameter.grad for parameter in tokenizer.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@every_kind
@pytest.mark.parametrize(("patch_size", "blocks", "channels"), [(2, 1, 1), (4, 2, 3)])
def test_the_arithmetic_it_states_is_what_runs(quantiser, patch_size, blocks, channels):
    config = ConvTokenizerConfig(quantiser, patch_size, width=8, blocks=blocks)
    tokenizer, images = build(config, channels), pictures(channels, 2 * patch_size, 3 * patch_size)
    with FlopCounterMode(display=False) as counter:
        tokenizer.decode(tokenizer.quantise(images).values, GRID)
    outermost = config.embed_flops(6, channels * patch_size**2)
    assert counter.get_total_flops() == 3 * (config.block_flops(6) + 2 * outermost)


def test_the_codebook_alone_is_kept_from_weight_decay():
    tokenizer = build(dataclasses.replace(SMALL, quantiser=QUANTISERS[1]))
    assert tokenizer.no_weight_decay() == {"quantiser.codebook"} <= dict(tokenizer.named_parameters()).keys()
    assert build(SMALL).no_weight_decay() == set()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patch_size": 6}, "backbone.patch_size=6; it must be a power of two, 2 or more"),
        ({"patch_size": 1}, "a power of two"),
        ({"width": 30}, "backbone.width=30; it must be a multiple of 4"),
        ({"blocks": 0}, "1 or more"),
        ({"quantiser": FSQConfig((2,))}, "backbone.quantiser.levels=2"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(SMALL, **settings).check()
