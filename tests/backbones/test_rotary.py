"""pretrain/backbones/rotary.py: what a turn keeps, and which channels it pairs."""

import math

import pytest
import torch

from pretrain.backbones.rotary import Rotary, rotate
from tests.backbones.plain_illama import turned


def scores(qkv, turns):
    q, k, _ = rotate(qkv, turns).unbind(2)
    return torch.einsum("blhe,bshe->bhls", q, k)


def test_lengths_stay_values_are_left_alone_and_place_0_is_not_turned():
    qkv = torch.randn(2, 7, 3, 2, 8)
    out = rotate(qkv, Rotary(8, 7)())
    torch.testing.assert_close(out[:, :, :2].norm(dim=-1), qkv[:, :, :2].norm(dim=-1))
    assert torch.equal(out[:, :, 2], qkv[:, :, 2]) and torch.equal(out[:, 0], qkv[:, 0])
    assert not torch.allclose(out[:, 1:, 0], qkv[:, 1:, 0])


def test_scores_depend_on_differences_of_places_alone():
    qkv, rotary = torch.randn(1, 6, 3, 2, 8, dtype=torch.float64), Rotary(8, 40)
    places = torch.tensor([[0, 2, 3, 7, 8, 11]])
    base = scores(qkv, rotary(places))
    torch.testing.assert_close(scores(qkv, rotary(places + 23)), base, rtol=0, atol=2e-6)
    assert (scores(qkv, rotary(places * 2)) - base).abs().max() > 0.1


def test_neighbouring_channels_are_a_pair():
    """Turning (0, 1) and (2, 3) by 3 and 0.03; pairing i with i + E / 2 gives another vector."""
    qkv = torch.tensor([1.0, 0.0, 0.0, 2.0]).expand(1, 4, 3, 1, 4)
    want = torch.tensor([math.cos(3), math.sin(3), -2 * math.sin(0.03), 2 * math.cos(0.03)])
    torch.testing.assert_close(rotate(qkv, Rotary(4, 4)())[0, 3, 0, 0], want)
    torch.testing.assert_close(turned(qkv[0, :, 0].transpose(0, 1), torch.arange(4))[0, 3], want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_backward_is_that_of_the_plain_formulation(dtype):
    qkv = torch.randn(2, 5, 3, 2, 8, dtype=dtype).requires_grad_()
    places = torch.tensor([[0, 2, 3, 5, 8], [1, 2, 6, 7, 8]])
    weights = torch.randn(qkv.shape, dtype=dtype)
    (got,) = torch.autograd.grad((rotate(qkv, Rotary(8, 9)(places)) * weights).sum(), qkv)
    plain = torch.stack([
        torch.stack([turned(part.transpose(0, 1).double(), place).transpose(0, 1) for part in image.unbind(1)[:2]]
                    + [image[:, 2].double()], dim=1)
        for image, place in zip(qkv, places, strict=True)
    ])  # fmt: skip
    (want,) = torch.autograd.grad((plain * weights).sum(), qkv)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6 if dtype == torch.float64 else 2e-2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of itself
@pytest.mark.parametrize("num_turned", [1, 2])
def test_compiling_changes_neither_output_nor_gradient(num_turned):
    qkv, turns = torch.randn(2, 5, 3, 2, 8, requires_grad=True), Rotary(8, 5)()
    compiled = torch.compile(lambda x: rotate(x, turns, num_turned), backend="aot_eager", fullgraph=True)
    weights = torch.randn(qkv.shape)
    for one, two in zip(*(
        (out, *torch.autograd.grad(out, qkv, weights))
        for out in (rotate(qkv, turns, num_turned), compiled(qkv))
    ), strict=True):  # fmt: skip
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_turns_survive_a_cast_to_bfloat16():
    rotary = Rotary(8, 300)
    before = rotary().clone()
    assert torch.equal(rotary.bfloat16()(), before)
