"""masking/mto.py and mto_statistics.py: who is kept from whom, and what the losses measure."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from masking.attention import op
from masking.attention.weighting import PLAIN
from masking.mto import drift, early_weights, excluded_counts, exclusion, heterogeneity, self_inclusive, to_one
from masking.mto_statistics import attention_statistics, self_entropy
from masking.rng import generator

BATCH, SEEN, HIDDEN, HEADS, WIDTH = 3, 6, 10, 2, 16  # as many channels as tokens: values may be the identity
LENGTH = SEEN + HIDDEN


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def projection(seed=0, dtype=torch.float32, length=LENGTH):
    return random(BATCH, length, 3, HEADS, WIDTH, seed=seed, dtype=dtype)


def weights(qkv, rule):
    """Attention weights (B, H, L, L) as the op makes them: what it makes of values that are the identity."""
    qkv = qkv.clone()
    qkv[:, :, 2] = torch.eye(LENGTH)[:, None]
    return op.self_attention(qkv, weighting=rule).transpose(1, 2)


def plain_weights(qkv):
    q, k = qkv[:, :, 0].transpose(1, 2), qkv[:, :, 1].transpose(1, 2)
    return (q @ k.mT / WIDTH**0.5).softmax(-1)


@pytest.mark.parametrize("branch", ["sdpa", "matmul"])
@pytest.mark.parametrize("count", [0, 4, HIDDEN])
def test_excluded_keys_are_exactly_nothing_to_seen_queries_and_rows_share_out_what_they_lose(branch, count):
    qkv, scores = projection(), random(BATCH, HIDDEN, seed=1)
    with op.forced(branch):
        on, off = weights(qkv, exclusion(scores, SEEN, count)), weights(qkv, PLAIN)
    torch.testing.assert_close(on.sum(-1), torch.ones(BATCH, HEADS, LENGTH), rtol=0, atol=1e-6)
    kept = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    for image in range(BATCH):
        kept[image, SEEN + scores[image].argsort()[:count]] = False
        rows = on[image, :, :SEEN]
        assert (rows[:, :, ~kept[image]] == 0).all() and (rows[:, :, kept[image]] > 0).all()
        before = off[image, :, :SEEN]
        ratios = [part[:, :, kept[image]] / part[:, :, :1] for part in (rows, before)]
        torch.testing.assert_close(ratios[0], ratios[1], rtol=1e-4, atol=1e-6)
    assert torch.equal(on[:, :, SEEN:], off[:, :, SEEN:])
    assert torch.equal(on, off) == (count == 0)


def test_ties_go_to_the_earlier_key_and_each_image_excludes_its_own():
    rule = exclusion(torch.tensor([[0.0, 0, 0, 0], [3, 2, 1, 0]]), 2, 3)
    assert rule.key_classes.tolist() == [[0, 0, 2, 2, 2, 1], [0, 0, 1, 2, 2, 2]]
    assert rule.before.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]


def test_fewer_keys_are_excluded_with_depth_and_none_in_the_last_block():
    for depth, hidden, share in ((12, 120, 1.0), (12, 147, 0.7), (8, 147, 0.33), (2, 5, 1.0)):
        counts = excluded_counts(depth, hidden, share)
        assert counts == tuple(round(share * (1 - block / (depth - 1)) * hidden) for block in range(depth))
        assert list(counts) == sorted(counts, reverse=True) and counts[-1] == 0
        assert all(0 <= count <= hidden for count in counts)
    assert excluded_counts(1, 9, 1.0) == (9,) and excluded_counts(6, 9, 0.0) == (0,) * 6


def test_early_weights_fall_from_one_to_nothing():
    assert early_weights(5, 1.0) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert early_weights(5, 2.0) == (1.0, 0.5625, 0.25, 0.0625, 0.0)
    assert early_weights(1, 1.0) == (1.0,)
    assert to_one((3.0, 1.0)) == (0.75, 0.25) and to_one((0.0,)) == (0.0,)


def test_a_token_that_has_not_turned_has_not_moved():
    z = random(2, 4, 8)
    moved = drift(torch.cat([z[:, :1] * 7, -z[:, 1:2], z[:, 2:]], 1), z)
    torch.testing.assert_close(moved, torch.tensor([[0.0, 2, 0, 0]] * 2), rtol=0, atol=1e-6)


def test_statistics_are_those_of_ordinary_attention():
    qkv = projection(dtype=torch.float64)
    maps = plain_weights(qkv)
    mass, row = attention_statistics(qkv, SEEN, mass=True, row=True)
    torch.testing.assert_close(mass, maps[:, :, :SEEN, SEEN:].sum(-1).mean((1, 2)))
    share = maps[:, :, SEEN:, :SEEN] / maps[:, :, SEEN:, :SEEN].sum(-1, keepdim=True)
    torch.testing.assert_close(row, -(share * share.log()).sum(-1).mean((1, 2)) / math.log(SEEN))


def test_gradients_are_right_and_what_is_not_asked_for_costs_nothing():
    qkv = random(2, 7, 3, 2, 4, dtype=torch.float64).requires_grad_()
    for mass, row in ((True, True), (True, False), (False, True)):
        assert torch.autograd.gradcheck(lambda x: attention_statistics(x, 3, mass=mass, row=row), (qkv,))  # noqa: B023
    with FlopCounterMode(display=False) as counter:
        assert attention_statistics(qkv, 3, mass=False, row=False).tolist() == [[0.0, 0.0]] * 2
    assert counter.get_total_flops() == 0


def test_the_entropys_gradient_is_p_times_log_p_plus_h():
    qkv = projection(dtype=torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(attention_statistics(qkv, SEEN, mass=False, row=True)[1].sum(), qkv)
    q, k = (qkv[:, :, part].detach().transpose(1, 2) for part in (0, 1))
    scores = q[:, :, SEEN:] @ k[:, :, :SEEN].mT / WIDTH**0.5
    p = scores.softmax(-1)
    entropy = -(p * p.log()).sum(-1, keepdim=True)
    slopes = -p * (p.log() + entropy) / math.log(SEEN) / (HEADS * HIDDEN) / WIDTH**0.5
    dq, dk = grad[:, SEEN:, 0].transpose(1, 2), grad[:, :SEEN, 1].transpose(1, 2)
    torch.testing.assert_close(dq, slopes @ k[:, :, :SEEN], rtol=0, atol=1e-6)
    torch.testing.assert_close(dk, slopes.mT @ q[:, :, SEEN:], rtol=0, atol=1e-6)
    assert grad[:, :SEEN, 0].abs().max() == 0 and grad[:, SEEN:, 1].abs().max() == 0 and grad[:, :, 2].abs().max() == 0


def with_scores(scores):
    """A projection of one head whose hidden queries have these scores (M, V) with seen keys: keys are the identity."""
    hidden, seen = scores.shape
    qkv = scores.new_zeros(1, seen + hidden, 3, 1, seen)
    qkv[0, seen:, 0, 0] = scores * seen**0.5
    qkv[0, :seen, 1, 0] = torch.eye(seen, dtype=scores.dtype)
    return qkv


def test_descent_on_the_row_entropy_sharpens_each_row_around_what_it_preferred():
    scores = random(20, 8, dtype=torch.float64)
    preferred = scores.argmax(-1)
    history = []
    for _ in range(200):
        value = attention_statistics(with_scores(scores.requires_grad_()), 8, mass=False, row=True)[1]
        scores = (scores - 40 * torch.autograd.grad(value.sum(), scores)[0]).detach()
        history.append(value.item())
    assert history[-1] < 0.1 * history[0]
    assert torch.equal(scores.argmax(-1), preferred)


def test_a_uniform_row_is_not_pushed_anywhere():
    scores = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    value = attention_statistics(with_scores(scores), 8, mass=False, row=True)[1]
    assert value.item() == pytest.approx(1)
    assert torch.autograd.grad(value.sum(), scores)[0].abs().max() < 1e-15


def test_a_mask_token_like_none_keeps_its_mass_and_one_like_several_does_not():
    tokens = torch.eye(64)[None]  # 49 seen ones and hidden ones, all orthogonal
    alone = heterogeneity(tokens[:, :50], 49, tau=0.1)
    assert alone.self_mass.item() == pytest.approx(1 / (1 + 49 * math.exp(-10)), abs=1e-6)
    assert alone.self_mass.item() == pytest.approx(0.9978, abs=1e-4)
    assert alone.entropy.item() < 0.01 and alone.distance.item() == pytest.approx(1)
    like_one = heterogeneity(torch.cat([tokens[:, :49], tokens[:, 3:4] * 5], 1), 49, tau=0.1)
    assert like_one.entropy.item() >= math.log(2) / math.log(50)
    assert like_one.self_mass.item() == pytest.approx(0.5, abs=2e-3)
    like_all = heterogeneity(tokens[:, :1].expand(-1, 60, -1), 49, tau=0.1)
    assert [part.item() for part in like_all] == pytest.approx([1 / 50, 1, 0], abs=1e-6)


def plain_entropy(z, num_seen, tau):
    """h of each image, by a softmax over the seen and the token itself."""
    hidden, seen = normalize(z[:, num_seen:], dim=-1), normalize(z[:, :num_seen], dim=-1).detach()
    scores = torch.cat([hidden @ seen.mT, z.new_ones(len(z), hidden.shape[1], 1)], -1) / tau
    p = scores.softmax(-1)
    return -(p * p.log()).sum(-1).mean(1) / math.log(num_seen + 1)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_self_entropy_is_the_plain_one_and_moves_hidden_tokens_alone(tau):
    z = random(BATCH, LENGTH, WIDTH, dtype=torch.float64).requires_grad_()
    got, want = self_entropy(z, SEEN, tau), plain_entropy(z, SEEN, tau)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(heterogeneity(z.detach(), SEEN, tau).entropy.double(), want.detach(), rtol=0, atol=1e-5)
    found = [torch.autograd.grad((value * torch.tensor([1.0, 2, 3])).sum(), z)[0] for value in (got, want)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    assert found[0][:, :SEEN].abs().max() == 0 and found[0][:, SEEN:].abs().min() > 0


def test_the_softmax_includes_the_token_itself_and_sums_to_one():
    logs, own, entropy = self_inclusive(random(2, 3, 5).tanh(), 0.3)
    torch.testing.assert_close(logs.exp().sum(-1) + own.exp(), torch.ones(2, 3))
    assert (entropy > 0).all()


def test_nothing_hidden_or_a_single_seen_token_is_no_division_by_zero():
    qkv, z = projection().requires_grad_(), random(BATCH, LENGTH, WIDTH).requires_grad_()
    whole = [attention_statistics(qkv, LENGTH, mass=True, row=True), self_entropy(z, LENGTH, 0.1)]
    assert all((value == 0).all() for value in whole)
    assert all((value == 0).all() for value in heterogeneity(z.detach(), LENGTH, 0.1))
    single = attention_statistics(qkv, 1, mass=True, row=True)
    assert (single[0] > 0).all() and (single[1] == 0).all()
    alone = self_entropy(z, 1, 0.1)
    assert torch.autograd.grad(single.sum() + alone.sum(), (qkv, z))[0].isfinite().all() and alone.isfinite().all()


def test_statistics_do_not_depend_on_order_or_on_other_images():
    qkv, z = projection(), random(BATCH, LENGTH, WIDTH)
    seen, hidden = torch.randperm(SEEN, generator=generator(5)), torch.randperm(HIDDEN, generator=generator(6))
    places = torch.cat([seen, SEEN + hidden])
    both = attention_statistics(qkv, SEEN, mass=True, row=True), self_entropy(z, SEEN, 0.1)
    turned = attention_statistics(qkv[:, places], SEEN, mass=True, row=True), self_entropy(z[:, places], SEEN, 0.1)
    alone = attention_statistics(qkv[1:2], SEEN, mass=True, row=True), self_entropy(z[1:2], SEEN, 0.1)
    for one, other, single in zip(both, turned, alone):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        torch.testing.assert_close(one[..., 1:2], single, rtol=0, atol=1e-6)


def test_backward_keeps_the_projection_and_the_tokens_and_no_more():
    qkv, z = projection().requires_grad_(), random(BATCH, LENGTH, WIDTH).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda t: t):
        attention_statistics(qkv, SEEN, mass=True, row=True)
        self_entropy(z, SEEN, 0.1)
    assert set(kept) == {qkv.data_ptr(), z.data_ptr()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_its_inputs(dtype):
    qkv, z = projection().to(dtype), random(BATCH, LENGTH, WIDTH).to(dtype)
    half = attention_statistics(qkv, SEEN, mass=True, row=True), self_entropy(z, SEEN, 0.1)
    wide = attention_statistics(qkv.double(), SEEN, mass=True, row=True), self_entropy(z.double(), SEEN, 0.1)
    for low, exact in zip(half, wide):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of itself
def test_compiled_the_terms_are_one_graph_and_their_gradients_the_same():
    def terms(qkv, z):
        return torch.stack([*attention_statistics(qkv, SEEN, mass=True, row=True), self_entropy(z, SEEN, 0.1)])

    inputs = projection().requires_grad_(), random(BATCH, LENGTH, 8, seed=1).requires_grad_()
    found = []
    for function in (terms, torch.compile(terms, backend="aot_eager", fullgraph=True)):
        values = function(*inputs)
        found.append([values, *torch.autograd.grad(values.sum(), inputs)])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
