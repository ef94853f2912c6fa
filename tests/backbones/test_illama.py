"""pretrain/backbones/illama.py against a dense formulation, and the facts its authors' method rests on."""

import dataclasses

import pytest
import torch

from masking.attention.weighting import Weighting
from masking.mask import Grid, Mask
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.sight import Sight, attend
from pretrain.patches import normalize
from tests.backbones.plain_illama import plain_illama

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRID = Grid(3, 4)
SMALL = IllamaConfig("tiny", patch_size=4, width=48, depth=3, heads=3)
EXACT = dataclasses.replace(SMALL, mode="exact", soft_mask=None)


def built(config=SMALL, alpha=0.0, grid=GRID):
    """The encoder in float64 with every weight random and large enough to attend sharply; alpha keeps float32."""
    torch.manual_seed(0)
    encoder = config.build(grid, 3, MEAN, STD)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.1 if parameter.ndim == 1 else 0.15)
        encoder.alpha.fill_(alpha)
    return encoder.double()


def images_of(encoder, batch=2):
    height, width = (side * encoder.patch_size for side in (encoder.grid.height, encoder.grid.width))
    shape = (batch, 3, height, width)
    return normalize(
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)), MEAN, STD
    ).double()  # fmt: skip


def tokens_of(encoder, batch=2):
    return encoder.embed(images_of(encoder, batch)).detach()


def class_token(encoder, tokens):
    return encoder(tokens).prefix[:, 0]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.7, 1.0])
@pytest.mark.parametrize("part", ["whole", "subset"])
def test_paper_mode_is_the_dense_formulation_forward_and_backward(alpha, part):
    encoder = built(alpha=alpha)
    ids = None if part == "whole" else torch.tensor([[0, 3, 4, 7, 11], [1, 2, 5, 9, 10]])
    images = images_of(encoder)
    state = dict(encoder.named_parameters())
    want = plain_illama(state, images, 3, float(encoder.alpha), 4, ids)
    got = encoder(encoder.embed(images, ids), ids).sequence
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)  # the encoder's turns are float32
    weights = torch.randn_like(want)
    found = [torch.autograd.grad((x * weights).sum(), list(state.values())) for x in (got, want)]
    for name, one, two in zip(state, *found, strict=True):
        assert (one - two).abs().max() <= 1e-5 * two.abs().max(), name


def test_exact_mode_is_causal_attention():
    encoder = built(EXACT)
    images = images_of(encoder)
    want = plain_illama(dict(encoder.named_parameters()), images, 3, None, 4, mode="exact")
    torch.testing.assert_close(encoder(encoder.embed(images)).sequence, want, rtol=0, atol=1e-6)


def test_in_float32_alpha_1_is_a_bidirectional_encoder_to_a_millionth_of_its_features():
    encoder = built(alpha=1.0).float()
    images = images_of(encoder).float()
    unmasked = built(dataclasses.replace(EXACT, mode="bidirectional")).float()
    unmasked.load_state_dict({**encoder.state_dict(), "layout": unmasked.layout})
    found = []
    for each in (encoder, unmasked):
        features = each(each.embed(images)).sequence
        found.append((features, torch.autograd.grad(features.square().mean(), list(each.parameters()))))
    assert (found[0][0] - found[1][0]).abs().max() <= 1e-6 * found[0][0].abs().max()
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.7, 1.0])
def test_a_row_of_paper_mode_weighs_alpha_and_the_share_of_the_softmax_up_to_its_own_token(alpha):
    qkv = torch.randn(1, 17, 3, 1, 8, dtype=torch.float64) * 2
    qkv[:, :, 2] = 1
    mass = attend(qkv, Sight(Weighting(alpha=torch.tensor(alpha))))[0, :, 0, 0]
    softmax = (qkv[0, :, 0, 0] @ qkv[0, :, 1, 0].mT / 8**0.5).softmax(-1)
    share = softmax.tril().sum(-1)
    torch.testing.assert_close(mass, alpha + (1 - alpha) * share, rtol=0, atol=1e-7)
    assert share[0] < 0.5 and float(mass[-1]) == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.7, 1.0])
def test_the_soft_mask_is_two_plain_attentions_merged_by_their_normalisers(alpha):
    """O = alpha O_full + (1 - alpha) exp(LSE_causal - LSE_full) O_causal, forward and backward."""
    qkv = torch.randn(2, 19, 3, 2, 8, dtype=torch.float64).requires_grad_()
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    scores = q @ k.mT / 8**0.5
    causal = scores.masked_fill(torch.ones(19, 19, dtype=torch.bool).triu(1), -torch.inf)
    ratio = (causal.logsumexp(-1) - scores.logsumexp(-1)).exp()[..., None]
    want = (alpha * (scores.softmax(-1) @ v) + (1 - alpha) * ratio * (causal.softmax(-1) @ v)).transpose(1, 2)
    got = attend(qkv, Sight(Weighting(alpha=torch.tensor(alpha, dtype=torch.float64))))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    weights = torch.randn_like(want)
    one, two = (torch.autograd.grad((x * weights).sum(), qkv, retain_graph=True)[0] for x in (got, want))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


def test_later_tokens_leak_through_the_denominator_in_paper_mode_and_not_in_exact_mode():
    changes = {}
    for name, encoder in (("paper", built()), ("exact", built(EXACT))):
        tokens = tokens_of(encoder)
        other = tokens.clone()
        other[:, 8:] = torch.randn_like(other[:, 8:])
        before, after = (encoder(each).tokens[:, :8].detach() for each in (tokens, other))
        changes[name] = float((after - before).abs().max())
    assert changes["paper"] > 1e-4 and changes["exact"] == 0


def test_the_class_token_of_one_block_does_not_depend_on_alpha_and_that_of_two_does():
    for depth, same in ((1, True), (2, False)):
        encoder = built(dataclasses.replace(SMALL, depth=depth))
        tokens, found = tokens_of(encoder), []
        for alpha in (0.0, 0.3, 1.0):
            encoder.alpha.fill_(alpha)
            found.append(class_token(encoder, tokens))
        difference = max(float((one - found[0]).detach().abs().max()) for one in found[1:])
        assert (difference < 1e-12) == same


@pytest.mark.parametrize(
    ("config", "sees"),
    [(SMALL, "all"), (EXACT, "all"), (dataclasses.replace(EXACT, class_token="first"), "none"),
     (dataclasses.replace(EXACT, class_token="first_seen"), "all"),
     (dataclasses.replace(SMALL, class_token="first_seen"), "all")],
)  # fmt: skip
def test_a_class_token_behind_the_patches_sees_them_all_and_one_in_front_collapses(config, sees):
    encoder = built(config)
    tokens = tokens_of(encoder).requires_grad_()
    (gradient,) = torch.autograd.grad(class_token(encoder, tokens).square().sum(), tokens)
    per_patch = gradient.abs().amax(-1)
    assert (per_patch > 0).all() if sees == "all" else (per_patch == 0).all()


def test_a_class_token_in_front_that_sees_all_changes_no_other_row_of_the_first_block():
    one = dataclasses.replace(EXACT, depth=1)
    first, seen = (built(dataclasses.replace(one, class_token=name)) for name in ("first", "first_seen"))
    tokens = tokens_of(first)
    assert torch.allclose(first(tokens).tokens, seen(tokens).tokens, atol=1e-12)
    assert not torch.allclose(first(tokens).prefix, seen(tokens).prefix, atol=1e-3)


@pytest.mark.parametrize("config", [SMALL, EXACT], ids=["paper", "exact"])
@pytest.mark.parametrize("unmasked", [(1,), (0, 2), (2, 1, 0)], ids=str)
def test_blocks_without_a_mask_are_those_that_are_named(config, unmasked):
    encoder = built(dataclasses.replace(config, unmasked_blocks=unmasked))
    images = images_of(encoder)
    want = plain_illama(encoder.state_dict(), images, 3, 0.0, 4, mode=config.mode, unmasked=unmasked)
    torch.testing.assert_close(encoder(encoder.embed(images)).sequence, want, rtol=0, atol=1e-6)


def test_the_features_of_kept_patches_do_not_depend_on_the_order_the_sampler_gave_them_in():
    encoder = built()
    images = images_of(encoder)
    order = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(s)) for s in (0, 1)])
    shuffled = torch.cat([order[:, :5].flip(1), order[:, 5:]], dim=1)
    found = [encoder(encoder.embed(images, mask.ids_keep), mask.ids_keep).sequence
             for mask in (Mask.from_order(order, 5), Mask.from_order(shuffled, 5))]  # fmt: skip
    assert torch.equal(*found)


def test_attention_with_a_prefix_is_a_softmax_over_what_is_not_later_or_in_the_prefix():
    qkv, lengths = torch.randn(2, 9, 3, 2, 8, dtype=torch.float64), torch.tensor([3, 8])
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    places = torch.arange(9)
    seen = (places <= places[:, None]) | (torch.maximum(places, places[:, None]) < lengths[:, None, None])
    want = (q @ k.mT / 8**0.5).masked_fill(~seen[:, None], -torch.inf).softmax(-1) @ v
    got = attend(qkv, Sight(Weighting(causal=True), prefix_lengths=lengths))
    torch.testing.assert_close(got, want.transpose(1, 2), rtol=0, atol=1e-12)


def test_a_prefix_sees_itself_and_the_rest_is_causal():
    encoder = built(dataclasses.replace(EXACT, mode="prefix"))
    tokens, lengths = tokens_of(encoder), torch.tensor([4, 9])
    base = encoder(tokens, prefix_lengths=lengths).tokens
    for place in range(12):
        other = tokens.clone()
        other[:, place] += 1
        changed = ((encoder(other, prefix_lengths=lengths).tokens - base).abs().amax(-1) > 0).tolist()
        for image, length in enumerate(lengths.tolist()):
            assert changed[image] == [place <= i or (place < length and i < length) for i in range(12)]
    unmasked = built(dataclasses.replace(EXACT, mode="bidirectional"))
    torch.testing.assert_close(encoder(tokens).sequence, unmasked(tokens).sequence, rtol=0, atol=1e-10)


@pytest.mark.parametrize("config", [SMALL, EXACT], ids=["paper", "exact"])
def test_questions_see_every_visible_patch_and_nobody_sees_a_question(config):
    encoder = built(config)
    tokens = tokens_of(encoder)
    ids = torch.tensor([[1, 4, 5, 9, 0, 7, 11], [2, 3, 8, 10, 1, 6, 9]])
    rows = tokens.gather(1, ids[:, :, None].expand(-1, -1, 48))
    both = encoder(rows, ids, num_queries=3)
    alone = encoder(rows[:, :4], ids[:, :4])
    torch.testing.assert_close(both.tokens[:, :4], alone.tokens, rtol=0, atol=1e-10)
    torch.testing.assert_close(both.prefix, alone.prefix, rtol=0, atol=1e-10)
    swapped = [0, 1, 2, 3, 6, 4, 5]
    permuted = encoder(rows[:, swapped], ids[:, swapped], num_queries=3).tokens
    torch.testing.assert_close(permuted, both.tokens[:, swapped], rtol=0, atol=1e-10)
    fewer = encoder(rows[:, [0, 1, 2, 3, 5]], ids[:, [0, 1, 2, 3, 5]], num_queries=1).tokens
    torch.testing.assert_close(fewer[:, 4], both.tokens[:, 5], rtol=0, atol=1e-10)
    rows.requires_grad_()
    for question in (4, 5, 6):
        asked = encoder(rows, ids, num_queries=3).tokens[:, question].square().sum()
        seen = torch.autograd.grad(asked, rows)[0].abs().amax(-1) > 0
        assert seen.tolist() == [[place < 4 or place == question for place in range(7)]] * 2
    one = built(dataclasses.replace(config, depth=1), alpha=1.0)  # in two blocks visible rows would pass it on
    asked = one(rows, ids, num_queries=3).tokens[:, 4:].square().sum()
    assert not torch.autograd.grad(asked, one.cls_token)[0].any()
