"""Fewer tokens at inference: exact counts, merged means conserved, and nothing changed where all are kept."""

from __future__ import annotations

import pytest
import torch

from masking.mask import Grid
from pretrain.backbones.base import Backbone
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError
from pretrain.evaluation.attention_maps import attention_map, on_attention
from pretrain.evaluation.token_reduction import Stage, reduce_tokens, reducing, scores_of

TINY = {"patch_size": 4, "width": 32, "depth": 4, "heads": 2}
ENCODERS = {
    "vit": ViTConfig("tiny", registers=2, **TINY),
    "vit without prefix": ViTConfig("tiny", class_token=False, **TINY),
    "illama": IllamaConfig("tiny", soft_mask=None, **TINY),
    "illama, exact": IllamaConfig("tiny", mode="exact", soft_mask=None, **TINY),
    "illama, class first": IllamaConfig("tiny", soft_mask=None, class_token="first", **TINY),
}
IMAGES = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def encoder(name: str = "vit") -> Backbone:
    torch.manual_seed(0)
    made = ENCODERS[name].build(Grid(4, 4), 3, (0.5,) * 3, (0.25,) * 3).eval()
    for parameter in made.parameters():  # so that attention is no average
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return made


@pytest.mark.parametrize(
    ("name", "by"),
    [*((name, "attention") for name in ENCODERS), ("vit", "class"), ("illama", "class"), ("vit", "random")],
)
@torch.no_grad()
def test_counts_are_exact_at_every_stage_and_a_share_of_one_is_the_identity(name: str, by: str) -> None:
    made = encoder(name)
    tokens = made.embed(IMAGES)
    plain = made(tokens)
    with reducing(made, [Stage(0, 1.0), Stage(2, 1.0, 3)], by) as reduction:
        assert torch.equal(made(tokens).sequence, plain.sequence) and reduction.ids.shape == (3, 16)
    stages = [Stage(0, 0.5, 2), Stage(1, 0.7), Stage(3, 0.4, 1)]  # 16 -> 8 + 2 -> 7 -> 3 + 1
    with reducing(made, stages, by) as reduction:
        found = made(tokens)
        again = made(tokens)
        assert found.tokens.shape == (3, 4, 32) and found.prefix.shape == plain.prefix.shape
        assert [stage.num_left(num) for stage, num in zip(stages, (16, 10, 7), strict=True)] == [10, 7, 4]
        assert (reduction.ids.diff(dim=1) > 0).all()
        assert by == "random" or torch.equal(found.sequence, again.sequence)
    assert torch.equal(made(tokens).sequence, plain.sequence), "hooks were left behind"
    with reducing(made, stages, by) as reduction:
        assert torch.equal(made(tokens).sequence, found.sequence), "not a function of the seed"


def test_merging_conserves_the_mean_by_size_and_dropping_keeps_the_best() -> None:
    x, keys, scores = torch.randn(2, 12, 8), torch.randn(2, 12, 8), torch.rand(2, 12)
    sizes = torch.randint(1, 5, (2, 12)).float()
    for kept, contextual in ((5, 2), (3, 9), (1, 1)):
        tokens, merged, _ = reduce_tokens(x, sizes, scores, keys, kept, contextual)
        assert tokens.shape == (2, kept + contextual, 8)
        torch.testing.assert_close(merged.sum(1), sizes.sum(1))
        torch.testing.assert_close((tokens * merged[..., None]).sum(1), (x * sizes[..., None]).sum(1))
    tokens, left, places = reduce_tokens(x, sizes, scores, keys, 5, 0)
    assert torch.equal(places, scores.topk(5).indices.sort(1).values)
    assert torch.equal(tokens, x.gather(1, places[..., None].expand(-1, -1, 8)))
    assert torch.equal(left, sizes.gather(1, places))


def test_every_dropped_token_goes_to_the_reference_with_the_largest_product() -> None:
    keys = torch.tensor([[[9.0, 9], [1, 0], [0, 1], [0.9, 0.1], [0.2, 0.8]]])  # the first is kept
    x = torch.tensor([[[7.0], [1], [2], [10], [20]]])
    scores = torch.tensor([[1.0, 0, 0, 0, 0]])
    tokens, sizes, places = reduce_tokens(x, torch.ones(1, 5), scores, keys, 1, 2)  # references: the 1st, 3rd of four
    assert places.tolist() == [[0, 1, 3]] and sizes.tolist() == [[1, 1, 3]]
    assert tokens[0, :, 0].tolist() == pytest.approx([7, 1, (2 + 10 + 20) / 3])


@torch.no_grad()
def test_scores_are_the_mean_attention_that_patches_give() -> None:
    made, seen = encoder(), []
    with on_attention(made, lambda index, module, inputs: seen.append((module, inputs))):
        made(made.embed(IMAGES))
    module, inputs = seen[1]
    given = attention_map(module, inputs).mean(1)
    patches = slice(3, 19)
    torch.testing.assert_close(scores_of(module, inputs, patches, "attention"), given[:, 3:, 3:].mean(1))
    torch.testing.assert_close(scores_of(module, inputs, patches, "class"), given[:, 0, 3:])


@pytest.mark.parametrize("name", ["illama", "illama, exact"])
@torch.no_grad()
def test_a_causal_encoder_is_not_biased_to_what_more_queries_can_see(name: str) -> None:
    made, seen = encoder(name), []
    for block in made.blocks:  # every query gives the same to all that it sees
        block.attn.qkv.weight[:64] = 0
        block.attn.qkv.bias[:64] = 0
    with on_attention(made, lambda index, module, inputs: seen.append((module, inputs))):
        made(made.embed(IMAGES))
    module, inputs = seen[1]
    given = attention_map(module, inputs).mean(1)[:, :16, :16].sum(1)
    assert (given.diff(dim=1) < 0).all(), "without a correction the first patch has most, and the last least"
    scores = scores_of(module, inputs, slice(0, 16), "attention")
    if name == "illama":  # weights after the softmax are equal: so are all patches
        torch.testing.assert_close(scores, scores[:, :1].expand_as(scores))
    counts = torch.arange(16, 0, -1)
    torch.testing.assert_close(scores, given / counts)


@torch.no_grad()
def test_a_reduced_causal_encoder_sees_tokens_at_their_own_places() -> None:
    made = encoder("illama, exact")
    tokens = made.embed(IMAGES)
    with reducing(made, [Stage(0, 0.5)], "random") as reduction:
        found = made(tokens)
        ids = reduction.ids
    x, turns = made._sequence(tokens, None)
    masked, _ = made._sights(x, 0, None)
    x = made.blocks[0](x, turns, masked)
    rows = torch.cat([ids, torch.full((3, 1), 16)], dim=1)
    x = x.gather(1, rows[..., None].expand(-1, -1, 32))
    for block in made.blocks[1:]:
        x = block(x, made.rotary(rows), masked)
    torch.testing.assert_close(found.sequence, made._class_token_first(made.norm(x)))


@torch.no_grad()
def test_the_mean_over_tokens_counts_each_for_the_patches_it_stands_for() -> None:
    made = encoder()
    with reducing(made, [Stage(3, 0.25, 2)]) as reduction:
        features = made(made.embed(IMAGES))
        assert reduction.sizes.sum(1).tolist() == [16.0] * 3
        wanted = (features.tokens * reduction.sizes[..., None]).sum(1) / 16
        torch.testing.assert_close(reduction.mean(features), wanted)


@pytest.mark.parametrize(
    ("stages", "by", "why"),
    [
        ([Stage(4, 0.5)], "attention", "from 0 to 3"),
        ([Stage(2, 0.5), Stage(1, 0.5)], "attention", "give ascending ones"),
        ([Stage(1, 0.0)], "attention", "above 0 and at most 1"),
        ([Stage(1, 0.5, -1)], "attention", "contextual 0 or more"),
        ([Stage(1, 0.5)], "text", "chosen by attention, class, random"),
        ([Stage(1, 0.5)], "class", "needs a class token"),
    ],
)
def test_what_cannot_be_reduced_is_refused(stages: list[Stage], by: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why), reducing(encoder("vit without prefix"), stages, by):  # type: ignore[arg-type]
        pass
