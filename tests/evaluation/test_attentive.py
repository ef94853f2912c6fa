"""The attentive probe: it finds what a mean hides, chooses its rate without the test split, and keeps its size."""

import pytest
import torch
import torch.nn.functional as F

from masking.rng import generator
from pretrain.errors import ConfigError
from pretrain.evaluation.attentive import AttentiveHead, check_size, fit_attentive
from pretrain.evaluation.linear import fit_probe

N, D, CLASSES = 16, 24, 4


def hidden_in_one_token(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of noise; one of each image, at any place, is marked and says the class, another says a wrong one."""
    rng = generator(seed, "attentive test")
    labels = torch.arange(n) % CLASSES
    tokens = torch.randn(n, N, D, generator=rng)
    places = torch.stack([torch.randperm(N, generator=rng)[:2] for _ in range(n)])
    wrong = (labels + torch.randint(1, CLASSES, (n,), generator=rng)) % CLASSES
    for place, said, mark in ((places[:, 0], labels, 6.0), (places[:, 1], wrong, -6.0)):
        token = 4 * F.one_hot(said, D).float()
        token[:, -1] = mark
        tokens[torch.arange(n), place] = token
    return tokens.half(), labels


def test_it_finds_the_token_that_says_the_class_where_the_mean_of_tokens_cannot():
    (x, labels), (asked, truth) = hidden_in_one_token(400, 0), hidden_in_one_token(200, 1)
    probe = fit_attentive(x, labels, epochs=20)
    mean = fit_probe(x.float().mean(1), labels)
    assert (probe.predict(asked) == truth).float().mean() > 0.9
    assert (mean.predict(asked.float().mean(1)) == truth).float().mean() < 0.6


def test_it_is_the_same_whenever_it_is_fitted_and_draws_nothing_from_torch():
    x, labels = hidden_in_one_token(60, 0)
    before = torch.get_rng_state()
    one, two = (fit_attentive(x, labels, epochs=2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before) and one.rate == two.rate
    assert all(torch.equal(a, b) for a, b in zip(one.head.state_dict().values(), two.head.state_dict().values()))


def test_a_head_is_multi_head_cross_attention_with_its_projections_folded():
    x, labels = hidden_in_one_token(20, 0)
    head = AttentiveHead(x, CLASSES, seed=0)
    heads, size, _ = head.values.shape
    attention = torch.nn.MultiheadAttention(D, heads, bias=False, batch_first=True)
    rng = generator(0, "keys")
    keys = torch.linalg.qr(torch.randn(D, D, generator=rng)).Q  # (head * size + part, D)
    asking = torch.einsum("hpd,hd->hp", keys.view(heads, size, D), head.queries.detach()) * size**0.5
    with torch.no_grad():
        head.queries.copy_(torch.einsum("hpd,hp->hd", keys.view(heads, size, D), asking) / size**0.5)
        attention.in_proj_weight.copy_(torch.cat([torch.eye(D), keys, head.values.reshape(D, D)]))
        attention.out_proj.weight.copy_(torch.eye(D))
    normal = (x.float() - head.mean) / head.std
    query = asking.reshape(1, 1, D).expand(len(x), 1, D)
    expected = F.linear(attention(query, normal, normal, need_weights=False)[0][:, 0], head.weight, head.bias)
    assert torch.allclose(head(x), expected, atol=1e-5)


def test_the_rate_is_chosen_and_images_it_is_asked_of_take_no_part():
    x, labels = hidden_in_one_token(120, 0)
    assert fit_attentive(x, labels, rates=(1e-9, 1e-2), epochs=10).rate == 1e-2


def test_too_few_images_and_too_many_tokens_are_refused():
    x, labels = hidden_in_one_token(2, 0)
    with pytest.raises(ConfigError, match="needs at least 3"):
        fit_attentive(x, labels)
    with pytest.raises(ConfigError, match=r"1300000 images, 391.4 GB, and at most 8.6 GB are kept; use --max-images="):
        check_size(1_300_000, 196, 768)
