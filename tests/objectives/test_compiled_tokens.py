"""Ratios that vary from step to step give other numbers of tokens each time: torch's compiler must follow them."""

import pytest
import torch

from masking.attention import op
from masking.mask import Mask
from masking.rng import generator
from pretrain.types import Target
from tests.generation_cases import GRID, build, tokens_for

NUM = GRID.num_patches


@pytest.fixture
def _chosen_as_on_a_gpu(monkeypatch):
    """The choice of attention that a GPU would take is made, and traced, and then another computes."""
    choose = op._choose
    monkeypatch.setattr(op, "_gpu", lambda: ("NVIDIA H200", "9.0"))
    monkeypatch.setattr(op, "_HAS_TRITON", True)

    def as_on_a_gpu(like, batch, shape, weighting):
        assert op.choose("cuda", torch.bfloat16, weighting, shape).name in op.BRANCHES
        return choose(like, batch, shape, weighting)

    monkeypatch.setattr(op, "_choose", as_on_a_gpu)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of itself
@pytest.mark.usefixtures("_chosen_as_on_a_gpu")
@pytest.mark.parametrize("family", ["mage", "mar"])
def test_a_compiled_step_takes_any_number_of_visible_tokens_with_two_graphs(family):
    backbone, objective = build(family, depth=1)
    num_draws = 1 if family == "mage" else 1 + NUM * objective.config.head.num_draws(backbone.num_values)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def losses(mask, target, numbers):
        return objective(backbone, None, mask, target, numbers)[0]

    torch._dynamo.reset()
    compiled = torch.compile(losses, backend=backend, fullgraph=True)
    for visible in (17, 12, 9, 5, 3):
        mask = Mask.cut(torch.rand(2, NUM, generator=generator(visible)), visible)
        target, numbers = Target(tokens_for(backbone, 2)), torch.rand(2, num_draws, generator=generator(0))
        want, got = losses(mask, target, numbers), compiled(mask, target, numbers)
        for name, values in want.items():
            torch.testing.assert_close(got[name], values)
    assert len(graphs) == 2, "one for the first number, one for all others"
