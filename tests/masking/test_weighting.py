"""masking/attention/weighting.py and reference.py: the definition, and iLLaMA's facts about its soft mask"""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from masking.attention.op import attention
from masking.attention.reference import attention_reference, weighted_attention_reference
from masking.attention.weighting import PLAIN, Weighting, dense
from tests.masking.attention_cases import members, projections, run

SHAPE = (2, 1, 6, 9, 4)
IDS = {"query_classes": torch.zeros(2, 6), "key_classes": torch.zeros(2, 9)}


def by_definition(q, k, v, w):
    """The two-weight softmax, pair by pair, from the meaning of each field."""
    out = torch.zeros_like(q)
    for b, h, i in [(b, h, i) for b in range(q.shape[0]) for h in range(q.shape[1]) for i in range(q.shape[2])]:
        top, bottom = torch.zeros(q.shape[3], dtype=q.dtype), 0.0
        for j in range(k.shape[2]):
            later, own = j > i + w.offset, j == i + w.offset and w.see_self
            u, r = 1.0, 1.0
            if w.before is not None and not own:
                u *= float(w.before[w.query_classes[b, i].long(), w.key_classes[b, j].long()])
            if w.after is not None and not own:
                r *= float(w.after[w.query_classes[b, i].long(), w.key_classes[b, j].long()])
            if w.alpha is not None and later:
                r *= float(w.alpha)
            if w.key_bias is not None:
                u *= math.exp(w.key_bias[j])
            if (w.causal and later) or (w.key_lengths is not None and j >= w.key_lengths[b]):
                u = 0.0
            if w.query_lengths is not None and i >= w.query_lengths[b]:
                u = 0.0
            e = u * math.exp(q[b, h, i] @ k[b, h, j] / math.sqrt(q.shape[3]))
            top, bottom = top + r * e * v[b, h, j], bottom + e
        out[b, h, i] = top / bottom if bottom else 0
    return out


@pytest.mark.parametrize("name", members(2, 6, 9))
def test_the_reference_is_the_definition_pair_by_pair(name):
    parts, weighting = projections(*SHAPE, torch.float64), Weighting(**members(2, 6, 9)[name])
    assert torch.allclose(weighted_attention_reference(*parts, weighting), by_definition(*parts, weighting), atol=1e-12)


@pytest.mark.parametrize("name", members(2, 6, 9))
def test_gradients_of_the_reference_are_its_differences(name):
    fields = members(2, 6, 9)[name]
    numbers = {key: value for key, value in fields.items() if torch.is_tensor(value) and value.is_floating_point()}
    fixed = {key: value for key, value in fields.items() if key not in numbers}
    if name == "hard":
        fixed |= {"before": numbers.pop("before")}  # a zero excludes: it has no derivative on one side
    parts = projections(*SHAPE, torch.float64)
    inputs = [value.clone().requires_grad_() for value in (*parts, *numbers.values())]
    function = lambda q, k, v, *rest: weighted_attention_reference(  # noqa: E731
        q, k, v, Weighting(**fixed, **dict(zip(numbers, rest, strict=True)))
    )
    assert torch.autograd.gradcheck(function, inputs)


def test_alpha_one_is_bidirectional_and_alpha_zero_is_not_causal_attention():
    q, k, v = projections(2, 2, 17, 17, 8, torch.float64)
    full = attention_reference(q, k, v)
    one = weighted_attention_reference(q, k, v, Weighting(alpha=torch.ones(())))
    assert torch.allclose(one, full, rtol=0, atol=1e-15)
    cut = weighted_attention_reference(q, k, v, Weighting(alpha=torch.zeros(())))
    causal = scaled_dot_product_attention(q, k, v, is_causal=True)
    assert (cut - causal).norm() / causal.norm() > 0.1
    assert torch.allclose(weighted_attention_reference(q, k, v, Weighting(causal=True)), causal)


def test_rows_of_the_soft_mask_keep_alpha_plus_the_rest_times_what_came_before():
    q, k, _ = projections(1, 2, 17, 17, 8, torch.float64)
    kept = (q @ k.mT / math.sqrt(8)).softmax(dim=-1).tril().sum(dim=-1)
    for alpha in (0.0, 0.25, 1.0):
        mass = weighted_attention_reference(q, k, torch.ones_like(q), Weighting(alpha=torch.tensor(alpha)))[..., 0]
        assert torch.allclose(mass, alpha + (1 - alpha) * kept)
        assert torch.allclose(mass[..., -1], torch.ones(1, 2, dtype=torch.float64))


def test_the_future_leaks_through_the_denominator_of_the_soft_mask_and_not_of_a_causal_one():
    q, k, v = projections(1, 1, 17, 17, 8, torch.float64)
    changed = k.clone()
    changed[..., 10:, :] += 1
    cut, causal = Weighting(alpha=torch.zeros(())), Weighting(causal=True)
    leak = weighted_attention_reference(q, changed, v, cut) - weighted_attention_reference(q, k, v, cut)
    none = weighted_attention_reference(q, changed, v, causal) - weighted_attention_reference(q, k, v, causal)
    assert leak[..., :10, :].abs().max() > 1e-4 and none[..., :10, :].abs().max() == 0


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.7, 1.0])
def test_two_ordinary_attentions_merged_by_their_sums_are_the_soft_mask(alpha):
    q, k, v = projections(1, 2, 13, 13, 8, torch.float64)
    scores = q @ k.mT / math.sqrt(8)
    later = torch.ones(13, 13, dtype=torch.bool).triu(1)
    full, before = scores.logsumexp(-1), scores.masked_fill(later, -torch.inf).logsumexp(-1)
    causal = scaled_dot_product_attention(q, k, v, is_causal=True)
    merged = alpha * attention_reference(q, k, v) + (1 - alpha) * (before - full).exp()[..., None] * causal
    assert torch.allclose(weighted_attention_reference(q, k, v, Weighting(alpha=torch.tensor(alpha))), merged)


def test_a_cached_context_gives_the_last_rows_of_the_whole():
    q, k, v = projections(1, 2, 12, 12, 8, torch.float64)
    for fields in ({"causal": True}, {"alpha": torch.tensor(0.3)}):
        whole = weighted_attention_reference(q, k, v, Weighting(**fields))
        last = weighted_attention_reference(q[:, :, 8:], k, v, Weighting(**fields, offset=8))
        assert torch.allclose(last, whole[:, :, 8:])


def test_hidden_keys_never_seen_might_as_well_not_be_there():
    q, k, v = projections(1, 2, 10, 10, 8, torch.float64)
    classes = torch.tensor([[0, 1, 1, 0, 0, 1, 0, 1, 1, 0]], dtype=torch.int8)
    visible = (classes[0] == 0).nonzero()[:, 0]
    table = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    weighting = Weighting(before=table, query_classes=classes, key_classes=classes)
    seen = weighted_attention_reference(q, k, v, weighting)
    alone = attention_reference(*(x[:, :, visible] for x in (q, k, v)))
    assert torch.allclose(seen[:, :, visible], alone)


def test_plain_attention_needs_no_matrices():
    assert dense(PLAIN, 5, 7, torch.zeros(1)) == (None, None)
    assert PLAIN.describe() == "plain" and PLAIN.is_plain()
    assert Weighting(alpha=torch.ones(()), causal=True).describe() == "soft mask + causal"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"alpha": torch.ones(1)}, "alpha is"),
        ({"offset": -1}, "offset=-1"),
        ({"key_lengths": torch.ones(3)}, "key_lengths is"),
        ({"key_bias": torch.ones(6)}, "key_bias is"),
        ({"before": torch.ones(2, 3), **IDS}, "before is"),
        ({"before": torch.ones(2, 2)}, "give all or none"),
        ({"query_classes": torch.zeros(2, 6)}, "give all or none"),
        ({"after": torch.ones(9, 9), **IDS}, "at most 8"),
        ({"see_self": True}, "see_self"),
    ],
)
def test_a_weighting_that_does_not_fit_is_refused_in_words(fields, says):
    parts = projections(*SHAPE, torch.float32)
    with pytest.raises(ValueError, match=says):
        attention(*parts, Weighting(**fields))


def test_results_have_names():
    parts = projections(*SHAPE, torch.float64)
    names = run(weighted_attention_reference, parts, {"alpha": torch.ones(())}, torch.float64)
    assert list(names) == ["out", "d0", "d1", "d2", "d alpha"]
