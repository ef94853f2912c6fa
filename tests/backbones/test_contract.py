"""What every backbone owes: found by being in pretrain/backbones, tested without being named."""

import dataclasses
import importlib
import json
import pkgutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from masking.attention import op
from masking.mask import Grid, Mask
from pretrain import backbones
from pretrain.backbones.base import Backbone
from pretrain.checks import check
from pretrain.config import check_types, load_config, to_json
from pretrain.config_json import from_json
from pretrain.engine.optim import split_decay
from tests.syntax import ROOT

GRID, PATCH, VISIBLE, BATCH = Grid(4, 6), 8, 9, 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

COUNTED = {  # what torch's counter does not know: (B, L, E) times (B, E, S), added in place
    torch.ops.aten.baddbmm_: lambda _, left, right, *__, **___: 2 * left[0] * left[1] * left[2] * right[2],
}


def all_configs():
    """Every backbone's config, small."""
    found = []
    for info in pkgutil.iter_modules(backbones.__path__):
        module = importlib.import_module(f"{backbones.__name__}.{info.name}")
        for value in vars(module).values():
            if dataclasses.is_dataclass(value) and value.__module__ == module.__name__ and hasattr(value, "build"):
                found.append(value(size="tiny", patch_size=PATCH, width=48, depth=2, heads=4))
    return found


CONFIGS = all_configs()
every_backbone = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)


def build(config, seed=0):
    """The encoder in training; what starts at zero or one is moved away from it."""
    torch.manual_seed(seed)
    encoder = config.build(GRID, 3, MEAN, STD)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


def inputs(seed=1):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (BATCH, 3, 32, 48), dtype=torch.uint8, generator=rng)
    return images, Mask.cut(torch.rand(BATCH, GRID.num_patches, generator=rng), VISIBLE).ids_keep


def encode(encoder, images, ids):
    return encoder(encoder.embed(images, ids), ids)


def test_the_published_ones_are_found():
    assert {"ViTConfig", "IllamaConfig"} <= {type(config).__name__ for config in CONFIGS}


@every_backbone
def test_a_config_is_a_frozen_value_that_passes_its_own_check_and_survives_json(config):
    whole = dataclasses.replace(load_config(ROOT / "configs" / "tiny_cpu.py"), backbone=config)
    check_types(whole)
    check(whole)
    assert from_json(json.loads(json.dumps(to_json(whole))), "here") == whole and hash(config) is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.patch_size = 4


@every_backbone
def test_an_encoder_is_what_its_config_says(config):
    encoder = build(config)
    assert isinstance(encoder, Backbone)
    assert (encoder.width, len(encoder.blocks)) == config.dimensions()[:2]
    assert (encoder.num_prefix, encoder.patch_size, encoder.grid) == (config.num_prefix, PATCH, GRID)
    assert (encoder.cls_token is not None) == config.has_class_token
    assert encoder.no_weight_decay() <= set(dict(encoder.named_parameters()))
    assert encoder.moving() <= set(encoder.state_dict())
    decayed, plain = split_decay(encoder)
    assert not encoder.no_weight_decay() & set(decayed) and decayed and plain


@every_backbone
def test_features_are_the_prefix_and_the_patches_it_was_given(config):
    encoder = build(config)
    images, ids = inputs()
    features = encoder(encoder.embed(images, ids), ids, layers=(1, 0))
    assert features.prefix.shape == (BATCH, config.num_prefix, 48) and features.tokens.shape == (BATCH, VISIBLE, 48)
    assert torch.equal(encoder.norm(features.layers[0]), features.sequence)
    assert not torch.allclose(features.layers[1], features.layers[0])


@every_backbone
@pytest.mark.parametrize("training", [True, False])
def test_asking_for_the_prefix_alone_gives_the_same_prefix_and_gradients_for_less_arithmetic(config, training):
    encoder = build(dataclasses.replace(config, drop_path=0.3)).train(training)
    images, ids = inputs()
    found, flops = [], []
    for only in (False, True):
        torch.manual_seed(5)
        with op.forced("matmul"), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
            features = encoder(encoder.embed(images, ids), ids, only_prefix=only)
        flops.append(counter.get_total_flops())
        loss = features.prefix.sin().sum()
        found.append((loss, *torch.autograd.grad(loss, list(encoder.parameters()))))
    assert features.tokens.shape == (BATCH, 0, 48)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)
    rows = VISIBLE + config.num_prefix
    saved = BATCH * (config.block_flops(rows) - config.block_flops(rows, config.num_prefix))
    assert flops[0] - flops[1] == pytest.approx(saved, rel=1e-6) and saved > 0


@every_backbone
def test_embedding_some_patches_is_embedding_all_and_reads_no_other_pixel(config):
    encoder = build(config)
    images, ids = inputs()
    some, all_of_them = encoder.embed(images, ids), encoder.embed(images)
    want = all_of_them.gather(1, ids[:, :, None].expand(-1, -1, 48))
    torch.testing.assert_close(some, want, rtol=0, atol=1e-5)


@every_backbone
def test_all_ids_are_the_whole_grid(config):
    encoder = build(config)
    images, _ = inputs()
    ids = torch.arange(GRID.num_patches).expand(BATCH, -1)
    torch.testing.assert_close(encode(encoder, images, ids).sequence, encode(encoder, images, None).sequence)


@every_backbone
def test_a_patch_is_known_by_its_id(config):
    """The same pixels at another place are another token, and one that is left out takes no part."""
    encoder = build(config)
    images, ids = inputs()
    tokens = encoder.embed(images, ids)
    assert (encoder(tokens, ids).tokens - encoder(tokens, (ids + 1) % 24).tokens).abs().max() > 1e-3
    hidden = torch.ones(BATCH, GRID.num_patches, dtype=torch.bool).scatter_(1, ids, False)
    pixels = hidden.view(BATCH, 1, 4, 6).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    assert torch.equal(encode(encoder, images.masked_fill(pixels, 7), ids).sequence, encoder(tokens, ids).sequence)


@every_backbone
def test_checkpointing_changes_no_number(config):
    encoder, found = build(dataclasses.replace(config, drop_path=0.3)), []
    for on in (False, True):
        encoder.checkpointing = on
        torch.manual_seed(3)
        loss = encode(encoder, *inputs()).sequence.square().mean()
        found.append(torch.autograd.grad(loss, list(encoder.parameters())))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@every_backbone
def test_bf16_weights_give_near_features_and_a_gradient_to_every_parameter(config):
    encoder = build(config)
    want = encode(encoder, *inputs()).sequence
    got = encode(encoder.bfloat16(), *inputs()).sequence
    assert got.dtype == torch.bfloat16 and (got - want).norm() < 0.03 * want.norm()
    (got * torch.randn_like(got)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@every_backbone
def test_a_state_dict_is_the_whole_encoder(config):
    first, second = build(config, 0), build(config, 1)
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(encode(first, *inputs()).sequence, encode(second, *inputs()).sequence)


@every_backbone
def test_what_follows_from_the_step_is_set_and_said(config):
    encoder = build(config)
    before = {name: encoder.get_buffer(name).clone() for name in encoder.moving()}
    said = encoder.at_step(99, 100, 10.0)
    for name in encoder.moving():
        assert said[name] == float(encoder.get_buffer(name)) and not torch.equal(before[name], encoder.get_buffer(name))
    assert encoder.at_step(0, 100, 10.0).keys() == said.keys()
    assert all(torch.equal(before[name], encoder.get_buffer(name)) for name in encoder.moving())


@every_backbone
def test_the_arithmetic_a_block_states_is_what_runs(config):
    encoder = build(config)
    images, ids = inputs()
    tokens = encoder.embed(images, ids)
    with op.forced("matmul"), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        encoder(tokens, ids)
    rows = VISIBLE + config.num_prefix
    assert 2 * BATCH * config.block_flops(rows) == pytest.approx(counter.get_total_flops(), rel=1e-6)
