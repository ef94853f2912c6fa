"""AdamW's groups, and what its kernel is told."""

import pytest
import torch
from torch import nn

from pretrain.engine.optim import arm, build_optimizer, materialize_state, split_decay
from pretrain.engine.settings import OptimConfig


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 3))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 3))
        self.fixed = nn.Parameter(torch.zeros(3, 3), requires_grad=False)
        self.table = nn.Parameter(torch.zeros(3, 3))
        self.fc = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)

    def no_weight_decay(self):
        return {"table"}


def test_norms_biases_positions_tokens_and_named_parameters_are_not_decayed():
    decayed, plain = split_decay(Named())
    assert decayed == ["fc.weight"]
    assert sorted(plain) == ["fc.bias", "mask_token", "norm.bias", "norm.weight", "pos_embed", "table"]
    groups = build_optimizer(Named(), OptimConfig(weight_decay=0.3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(group["fused"] for group in groups)


def _armed(flag: float, scale: float, gradient: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    weight = nn.Parameter(torch.ones(5))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    materialize_state(optimizer, weight, step=7)
    weight.grad = torch.full((5,), gradient)
    arm(optimizer, torch.tensor(flag), torch.tensor(scale))
    optimizer.step()
    return weight.detach(), optimizer.state[weight]


@pytest.mark.parametrize("gradient", [1.0, float("nan"), float("inf")])
def test_a_flagged_update_changes_no_bit(gradient):
    weight, state = _armed(1.0, 1.0, gradient)
    assert torch.equal(weight, torch.ones(5))
    assert not state["exp_avg"].any()
    assert not state["exp_avg_sq"].any()
    assert float(state["step"]) == 7


def test_the_kernel_divides_gradients_by_the_scale():
    scaled, plain = _armed(0.0, 4.0, 2.0), _armed(0.0, 1.0, 0.5)
    assert torch.equal(scaled[0], plain[0])
    assert all(torch.equal(scaled[1][key], plain[1][key]) for key in ("exp_avg", "exp_avg_sq", "step"))
