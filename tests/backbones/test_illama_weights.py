"""Weights of pretrain/backbones/illama.py: how many, how they begin, whose they may be; and what no encoder can be."""

import dataclasses

import pytest
import torch
from torch import nn

from masking.mask import Grid
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.illama_published import published, resize_positions
from pretrain.backbones.soft_mask import SoftMask
from pretrain.engine.optim import split_decay
from pretrain.errors import ConfigError
from tests.backbones.test_illama import EXACT, GRID, MEAN, SMALL, STD, built, tokens_of

FREE = dataclasses.replace(SMALL, mode="bidirectional", soft_mask=None)


@pytest.mark.parametrize(
    ("size", "grid", "classes", "published_count"),
    [("tiny", 14, 1000, 5_701_096), ("small", 14, 1000, 22_018_024), ("base", 14, 1000, 86_502_376),
     ("large", 14, 1000, 310_445_032), ("base", 24, 1000, 86_794_216), ("large", 24, 1000, 310_834_152),
     ("base", 14, 10_450, 93_769_426), ("large", 14, 10_450, 320_131_282)],
)  # fmt: skip
def test_parameters_are_as_many_as_in_the_published_logs(size, grid, classes, published_count):
    with torch.device("meta"):
        encoder = IllamaConfig(size).build(Grid(grid, grid), 3, MEAN, STD)
        head = nn.Linear(encoder.width, classes)
    assert sum(p.numel() for p in (*encoder.parameters(), *head.parameters())) == published_count


def test_weight_decay_leaves_norms_biases_positions_and_the_class_token_alone():
    encoder = built()
    decayed, plain = split_decay(encoder)
    assert set(plain) == {name for name, p in encoder.named_parameters() if p.ndim == 1} | {"pos_embed", "cls_token"}
    assert "patch_embed.proj.weight" in decayed and "blocks.0.mlp.fc3.weight" in decayed


def test_fresh_weights_are_as_the_authors_draw_them():
    encoder = IllamaConfig("tiny").build(Grid(14, 14), 3, MEAN, STD)
    for weight in (encoder.pos_embed, encoder.cls_token, encoder.blocks[3].mlp.fc1.weight):
        assert 0.017 < weight.detach().std() < 0.023
    assert not encoder.blocks[0].attn.qkv.bias.any() and encoder.blocks[0].mlp.fc1.bias is None
    projection, bound = encoder.patch_embed.proj, 768**-0.5
    assert 0.99 * bound < projection.weight.abs().max() <= bound and 0.5 * bound < projection.bias.abs().max() <= bound


def test_positions_of_another_grid_leave_the_class_tokens_row_as_it_is():
    table = torch.randn(1, 14 * 14 + 1, 8)
    torch.testing.assert_close(resize_positions(table, Grid(14, 14), Grid(14, 14)), table, rtol=0, atol=1e-6)
    wide = resize_positions(table, Grid(14, 14), Grid(24, 24))
    assert wide.shape == (1, 577, 8) and torch.equal(wide[:, -1], table[:, -1])
    with pytest.raises(ValueError, match="196 rows"):
        resize_positions(table[:, 1:], Grid(14, 14), Grid(24, 24))


@pytest.mark.parametrize(
    "other",
    [dataclasses.replace(SMALL, class_token="first"), EXACT, dataclasses.replace(SMALL, unmasked_blocks=(2,))],
    ids=["class token first", "exact", "unmasked block"],
)
def test_weights_trained_under_another_mask_are_refused_in_words(other):
    with pytest.raises(RuntimeError, match=r"the weights are of mode=.* class_token=.*, and backbone is mode=paper"):
        built().load_state_dict(built(other).state_dict())


def test_mode_and_alpha_travel_with_the_weights():
    trained, fresh = built(alpha=0.37), built()
    fresh.load_state_dict(trained.state_dict())
    assert float(fresh.alpha) == pytest.approx(0.37)
    assert {"alpha", "layout"} <= set(trained.state_dict())
    trained.bfloat16()
    assert trained.alpha.dtype == torch.float32 and float(trained.alpha) == pytest.approx(0.37, abs=1e-7)


def test_the_authors_weights_load_by_name():
    encoder = built()
    theirs = {name: value for name, value in encoder.state_dict().items() if name not in ("alpha", "layout")}
    theirs |= {"head.weight": torch.zeros(1000, 48), "head.bias": torch.zeros(1000)}
    fresh = SMALL.build(GRID, 3, MEAN, STD).double()
    fresh.load_state_dict(published(theirs))
    tokens = tokens_of(encoder)
    assert torch.equal(fresh(tokens).sequence, encoder(tokens).sequence)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (dataclasses.replace(SMALL, mode="exact"), "backbone.soft_mask has no effect in backbone.mode=exact"),
        (dataclasses.replace(EXACT, mode="prefix", class_token="first"), "needs backbone.class_token=last"),
        (
            dataclasses.replace(SMALL, unmasked_blocks=(3,)),
            "unmasked_blocks=3; name some of the blocks 0 to 2, each once",
        ),
        (dataclasses.replace(SMALL, unmasked_blocks=(1, 1)), "unmasked_blocks=1,1; name some"),
        (dataclasses.replace(SMALL, unmasked_blocks=()), "or set it to none"),
        (
            dataclasses.replace(FREE, unmasked_blocks=(1,)),
            "unmasked_blocks has no effect in backbone.mode=bidirectional",
        ),
        (dataclasses.replace(FREE, class_token="first_seen"), "set backbone.class_token=first"),
        (dataclasses.replace(SMALL, mode="bidirectional"), "soft_mask has no effect in backbone.mode=bidirectional"),
        (dataclasses.replace(SMALL, width=36, heads=12), "positions turn pairs"),
        (dataclasses.replace(SMALL, soft_mask=SoftMask(cutoff=1.5)), "backbone.soft_mask.cutoff=1.5"),
        (dataclasses.replace(SMALL, dropout=1.0), "backbone.dropout=1.0"),
    ],
)
def test_what_cannot_be_meant_is_refused(config, says):
    with pytest.raises(ConfigError, match=says):
        config.check()
