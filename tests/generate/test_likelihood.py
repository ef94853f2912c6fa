"""The likelihood of tokens against numbers that are known beforehand."""

import math

import pytest
import torch

from masking.mask import Grid
from pretrain.errors import ConfigError
from pretrain.generate.likelihood import token_nll
from pretrain.objectives.token_model import Canvas
from tests.generation_cases import build, tokens_for

ALL = 36


def flat(family, **more):
    """A model that says nothing: every code is as likely as every other."""
    backbone, objective = build(family, **more)
    with torch.no_grad():
        objective.head.norm.weight.zero_()
        objective.head.norm.bias.zero_()
        objective.head.bias.zero_()
    return backbone, objective


@pytest.mark.parametrize("family", ["maskgit", "mage"])
def test_a_model_that_says_nothing_gives_the_logarithm_of_the_number_of_codes(family):
    backbone, objective = flat(family, depth=1)
    found = token_nll(backbone, objective, tokens_for(backbone, 5))
    assert found.shape == (5,)
    assert torch.allclose(found, torch.full((5,), math.log(backbone.num_codes)), atol=1e-5)


@pytest.mark.parametrize("family", ["maskgit", "mage"])
def test_what_a_model_expects_is_likelier(family):
    backbone, objective = flat(family, depth=1)
    with torch.no_grad():
        objective.head.bias[7] = 20.0
    expected = torch.full((3, ALL), 7)
    assert float(token_nll(backbone, objective, expected).max()) < 1e-4
    assert float(token_nll(backbone, objective, expected + 1).min()) > 15


def test_it_is_that_of_hidden_tokens_alone_which_the_model_does_not_see():
    """With one token hidden of each image it is that token's own cross-entropy, from a canvas without it."""
    backbone, objective = build("maskgit", depth=2)
    tokens = tokens_for(backbone, 4)
    found = token_nll(backbone, objective, tokens, hidden=1 / ALL)
    matches = []
    for position in range(ALL):
        known = torch.ones(4, ALL, dtype=torch.bool)
        known[:, position] = False
        canvas_tokens = torch.where(known, tokens, backbone.mask_id)
        said = objective.look(backbone, Canvas(canvas_tokens, known, backbone.prefix_ids(None, 4, known.device)), None)
        matches.append(-said.log_softmax(-1)[torch.arange(4), position, tokens[:, position]])
    nearest = (torch.stack(matches) - found).abs().min(0).values
    assert float(nearest.max()) < 1e-5


def test_batches_and_neighbours_change_nothing_and_a_class_is_told():
    backbone, objective = build("maskgit", depth=2, classes=3, class_drop=0.1)
    tokens, labels = tokens_for(backbone, 7), torch.arange(7) % 3
    whole = token_nll(backbone, objective, tokens, labels)
    assert torch.allclose(token_nll(backbone, objective, tokens, labels, batch_size=3), whole, atol=1e-5)
    assert torch.allclose(token_nll(backbone, objective, tokens[:2], labels[:2]), whole[:2], atol=1e-5)
    assert not torch.allclose(token_nll(backbone, objective, tokens, (labels + 1) % 3), whole, atol=1e-3)
    assert not torch.allclose(token_nll(backbone, objective, tokens, labels, seed=1), whole, atol=1e-3)


def test_what_has_no_likelihood_is_refused():
    backbone, objective = build("mar", depth=1, grid=Grid(2, 2))
    with pytest.raises(ConfigError, match="MAR's values have none that is known"):
        token_nll(backbone, objective, tokens_for(backbone, 2))
    backbone, objective = build("maskgit", depth=1)
    with pytest.raises(ConfigError, match="hidden=0; use a share of the tokens above 0, up to 1"):
        token_nll(backbone, objective, tokens_for(backbone, 2), hidden=0)
