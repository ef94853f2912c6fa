"""masking/attention/op.py"""

import pytest
import torch

from masking.attention.op import attention, choose, forced
from masking.attention.reference import attention_reference

SHAPES = [((2, 3, 50, 64), 50), ((1, 2, 197, 32), 197), ((2, 2, 7, 16), 19), ((1, 1, 1, 8), 1)]


def inputs(shape, keys, dtype):
    rng = torch.Generator().manual_seed(0)
    draw = lambda length: torch.randn(*shape[:2], length, shape[3], generator=rng, dtype=torch.float64).to(dtype)  # noqa: E731
    return [part.requires_grad_() for part in (draw(shape[2]), draw(keys), draw(keys))]


def run(function, parts):
    out = function(*parts)
    rng = torch.Generator().manual_seed(1)
    grads = torch.autograd.grad(out, parts, torch.randn(out.shape, generator=rng, dtype=torch.float64).to(out.dtype))
    return [out.detach(), *grads]


def error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("branch", ["sdpa", "matmul"])
@pytest.mark.parametrize(("shape", "keys"), SHAPES)
def test_error_against_fp64_is_at_most_twice_the_references(shape, keys, dtype, branch):
    parts = inputs(shape, keys, dtype)
    exact = run(attention_reference, [part.detach().double().requires_grad_() for part in parts])
    reference = run(attention_reference, parts)
    with forced(branch):
        assert choose("cpu", dtype).name == branch
        got = run(attention, parts)
    for mine, plain, true in zip(got, reference, exact, strict=True):
        assert mine.dtype == dtype and mine.shape == true.shape
        if true.norm() > 1e-9:  # with one key the weights are constant and their gradients zero
            assert error(mine, true) <= 2 * error(plain, true) + 1e-7


def test_the_branch_is_chosen_by_device_and_dtype_and_says_why():
    assert choose("cpu", torch.bfloat16).name == "matmul"
    assert choose("cpu", torch.float32).name == "sdpa"
    assert choose("cuda", torch.bfloat16).name == "sdpa"
    assert "slower" in choose("cpu", torch.bfloat16).reason


def test_a_forced_branch_ends_with_its_block_and_unknown_names_are_refused():
    with forced("sdpa"):
        assert choose("cpu", torch.bfloat16).name == "sdpa"
    assert choose("cpu", torch.bfloat16).name == "matmul"
    with pytest.raises(ValueError, match="sdpa, matmul"), forced("flash"):
        pass
