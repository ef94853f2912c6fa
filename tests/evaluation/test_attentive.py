"""The attentive probe: what it can see that a mean cannot, that it repeats, and what room its tokens may take."""

import math
from dataclasses import replace

import pytest
import torch

from masking.mask import Grid
from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError, NumericalError
from pretrain.evaluation.attentive import AttentiveHead, fit_attentive, train_at
from pretrain.evaluation.evaluate import evaluate, measure
from pretrain.evaluation.features import Extracted, extract
from pretrain.evaluation.linear import fit_probe, held_out
from pretrain.evaluation.settings import EvaluationConfig
from pretrain.evaluation.tokens import TokenStore


def one_tells(n, seed, num=12, width=16, classes=4):
    """Tokens of which one, anywhere, is of the image's class: a strong mark, and a weak one in the mean."""
    rng = torch.Generator().manual_seed(seed)
    marks = torch.randn(classes + 1, width, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(n) % classes
    tokens = torch.randn(n, num, width, generator=rng)
    place = torch.randint(num, (n,), generator=rng)
    tokens[torch.arange(n), place] = 3 * marks[-1] + 1.5 * marks[labels]
    return Extracted(tokens.mean(1), labels, 0, tokens.half())


def test_a_class_that_one_token_tells_is_found_where_the_mean_of_all_hides_it():
    train, val = one_tells(240, 1, num=24), one_tells(120, 2, num=24)
    attentive = fit_attentive(train.tokens, train.labels, (3e-3,), 25).predict(val.tokens)
    linear = fit_probe(train.features, train.labels, (1e-2,)).predict(val.features)
    right, wrong = ((predicted == val.labels).float().mean() for predicted in (attentive, linear))
    assert right > 0.9 and right > wrong + 0.15


def test_the_same_tokens_give_the_same_probe_and_progress_counts_every_image_learnt_from():
    train, heard = one_tells(60, 1), []
    one, two = (fit_attentive(train.tokens, train.labels, (1e-3,), 3, on_batch=lambda *seen: heard.append(seen))
                for _ in range(2))  # fmt: skip
    assert all(torch.equal(value, two.head.state_dict()[name]) for name, value in one.head.state_dict().items())
    assert heard[len(heard) // 2 - 1] == heard[-1] == (3 * (48 + 48), 3 * (48 + 48))


def test_the_rate_is_the_best_on_images_held_out_of_training():
    train = one_tells(160, 3, num=6)
    rates, held, right = (1e-6, 3e-3), held_out(train.labels), {}
    for rate in rates:
        probe = train_at(train.tokens, train.labels, (~held).nonzero()[:, 0], rate, 12, 0)
        right[rate] = int((probe.predict(train.tokens[held]) == train.labels[held]).sum())
    assert right[3e-3] > right[1e-6]
    assert fit_attentive(train.tokens, train.labels, rates, 12).rate == 3e-3


def test_the_head_is_multi_head_attention_of_one_query():
    rng = torch.Generator().manual_seed(0)
    head = AttentiveHead(torch.zeros(128), torch.ones(128), 5, rng).eval()
    assert head.heads == 2
    tokens = torch.randn(3, 7, 128, generator=rng)
    attention = torch.nn.MultiheadAttention(128, 2, bias=False, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([torch.eye(128), head.key, head.value]))
        attention.out_proj.weight.copy_(torch.eye(128))
        seen = attention(head.query.reshape(1, 1, 128).expand(3, -1, -1), tokens, tokens, need_weights=False)[0][:, 0]
        torch.testing.assert_close(head(tokens), head.head(head.norm(seen)))


@pytest.mark.slow
def test_without_a_validation_split_it_is_tested_on_what_it_has_not_seen():
    noise = one_tells(60, 5)
    noise = replace(noise, tokens=torch.randn(60, 12, 16, generator=torch.Generator().manual_seed(6)).half())
    assert measure(noise, None, EvaluationConfig(methods=("attentive",)))["attentive"] < 0.6


def _backbone():
    torch.manual_seed(0)
    config = ViTConfig(size="tiny", width=32, depth=2, heads=2, patch_size=8, registers=1)
    return config.build(Grid(2, 2), 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).eval()


def _batches(n):
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=rng)
    return list(zip(images.split(4), (torch.arange(n) % 2).split(4), strict=True))


def test_tokens_are_the_patches_of_the_same_pass_and_one_pass_serves_all_methods():
    backbone, batches, seen = _backbone(), _batches(10), []
    found = extract(backbone, batches, with_tokens=True)
    assert found.tokens.shape == (10, 4, 32) and found.tokens.dtype == torch.float16
    torch.testing.assert_close(found.tokens.float().mean(1), found.features, atol=2e-3, rtol=0)
    assert extract(backbone, batches).tokens is None
    unlabelled = replace(found, labels=torch.where(torch.arange(10) == 3, -1, found.labels))
    assert unlabelled.labelled.tokens.shape == (9, 4, 32)
    cfg = EvaluationConfig(methods=("knn", "attentive"))
    result = evaluate(backbone, batches, batches, cfg, on_progress=seen.append)
    assert sum(seen) == 20 and {"knn", "attentive", "attentive_lr"} <= set(result)


def test_tokens_that_find_no_room_are_refused_before_the_first_is_kept():
    store = TokenStore(1000, limit_bytes=10_000)
    with pytest.raises(ConfigError, match=r"1000 images of 5 tokens of width 10 .* at most 100 images \(--max-images"):
        store.add(torch.zeros(2, 5, 10))
    growing = TokenStore(0, limit_bytes=1000)
    for _ in range(5):
        growing.add(torch.ones(2, 5, 10))
    assert growing.rows.shape == (10, 5, 10) and bool((growing.rows == 1).all())
    with pytest.raises(ConfigError, match="at most 10 images"):
        growing.add(torch.ones(1, 5, 10))


@pytest.mark.parametrize("value", [math.nan, 1e6])
def test_tokens_that_are_no_numbers_in_half_precision_are_refused(value):
    with pytest.raises(NumericalError, match="not finite in float16"):
        TokenStore(0).add(torch.full((1, 2, 3), value))


def test_two_images_are_refused():
    with pytest.raises(ConfigError, match="2 training images and needs at least 3"):
        fit_attentive(torch.randn(2, 3, 4), torch.tensor([0, 1]))
