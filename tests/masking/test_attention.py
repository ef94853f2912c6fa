"""masking/attention/op.py"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from masking.attention import matmul, op
from masking.attention.op import attention, choose, cross_attention, forced, self_attention
from masking.attention.reference import attention_reference, weighted_attention_reference
from masking.attention.weighting import Weighting

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


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def packed_reference(qkv, num_queries):
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return attention_reference(q[:, :, -num_queries:], k, v).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("branch", ["sdpa", "matmul"])
@pytest.mark.parametrize(("length", "num_queries"), [(50, 50), (197, 147), (7, 1)])
def test_a_packed_projection_attends_to_itself_as_the_reference_does(length, num_queries, dtype, branch, monkeypatch):
    monkeypatch.setattr(matmul, "_GROUP_BYTES", 100_000)  # several groups, the last of them short
    rng = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, length, 3, 4, 16, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    exact = run(lambda x: packed_reference(x, num_queries), [qkv.detach().double().requires_grad_()])
    reference = run(lambda x: packed_reference(x, num_queries), [qkv])
    with forced(branch):
        got = run(lambda x: self_attention(x, num_queries), [qkv])
    for mine, plain, true in zip(got, reference, exact, strict=True):
        assert mine.dtype == dtype and mine.shape == true.shape
        assert error(mine, true) <= 2 * error(plain, true) + 1e-7


def weights_of(length, num_faded, weight):
    return torch.tensor([1.0] * (length - num_faded) + [weight] * num_faded, dtype=torch.float64)


def faded_reference(qkv, num_queries, num_faded, weight):
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    bias = weights_of(k.shape[2], num_faded, weight).log()
    return weighted_attention_reference(q[:, :, -num_queries:], k, v, Weighting(key_bias=bias)).transpose(1, 2)


def faded(qkv, num_queries, num_faded, weight):
    if weight == 0:
        return cross_attention(qkv[:, -num_queries:, 0], qkv[:, : qkv.shape[1] - num_faded, 1:])
    if weight == 1:
        return self_attention(qkv, num_queries)
    return self_attention(qkv, num_queries, Weighting(key_bias=weights_of(qkv.shape[1], num_faded, weight).log()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("branch", ["sdpa", "matmul"])
@pytest.mark.parametrize("weight", [0, 0.3, 1])
@pytest.mark.parametrize(("length", "num_queries", "num_faded"), [(50, 50, 37), (197, 147, 147), (7, 3, 1), (5, 1, 4)])
def test_last_keys_count_by_their_weight_as_in_the_reference(
    length, num_queries, num_faded, weight, dtype, branch, monkeypatch
):
    monkeypatch.setattr(matmul, "_GROUP_BYTES", 50_000)  # several groups, the last of them short
    rng = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, length, 3, 4, 16, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    case = (num_queries, num_faded, weight)
    exact = run(lambda x: faded_reference(x, *case), [qkv.detach().double().requires_grad_()])
    reference = run(lambda x: faded_reference(x, *case), [qkv])
    with forced(branch), Operators() as operators:
        got = run(lambda x: faded(x, *case), [qkv])
    assert ("aten._softmax.out" in operators.names) == (branch == "matmul")
    for mine, plain, true in zip(got, reference, exact, strict=True):
        assert mine.dtype == dtype and mine.shape == true.shape
        assert error(mine, true) <= 2 * error(plain, true) + 1e-7


def test_the_weighted_reference_is_its_formula():
    q, k, v = (part.detach().double() for part in inputs((2, 3, 5, 8), 7, torch.float64))
    for weight in (0, 0.3, 1, 2.5):
        weights = weights_of(7, 3, weight)
        numbers = (q @ k.mT / 8**0.5).exp() * weights
        want = numbers @ v / numbers.sum(-1, keepdim=True)
        got = weighted_attention_reference(q, k, v, Weighting(key_bias=weights.log()))
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    seen = attention_reference(q, k[:, :, :4], v[:, :, :4])
    nothing = Weighting(key_bias=weights_of(7, 3, 0).log())
    torch.testing.assert_close(weighted_attention_reference(q, k, v, nothing), seen)


@pytest.mark.parametrize("weight", [1, 0.3, 0])
def test_memory_that_was_never_written_is_never_read(weight):
    function = lambda x: faded(x, 5, 4, weight)  # noqa: E731
    qkv = torch.randn(2, 9, 3, 2, 8, dtype=torch.bfloat16, requires_grad=True)
    want = run(function, [qkv])
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN
    try:
        got = run(function, [qkv])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, two) and one.isfinite().all() for one, two in zip(got, want, strict=True))


def test_the_branch_is_chosen_by_device_and_dtype_and_says_why(monkeypatch):
    monkeypatch.setattr(op, "_has_avx512", lambda: True)
    assert choose("cpu", torch.bfloat16).name == "matmul"
    assert choose("cpu", torch.float32).name == "sdpa"
    assert choose("cuda", torch.bfloat16).name == "sdpa"
    assert "slower" in choose("cpu", torch.bfloat16).reason
    monkeypatch.setattr(op, "_has_avx512", lambda: False)
    assert choose("cpu", torch.bfloat16).name == "sdpa" and "AVX-512" in choose("cpu", torch.bfloat16).reason
    assert choose("cpu", torch.bfloat16, Weighting(alpha=torch.ones(()))).name == "matmul"


def test_a_forced_branch_ends_with_its_block_and_unknown_names_are_refused():
    gated = Weighting(alpha=torch.ones(()))
    with forced("triton"):
        assert choose("cpu", torch.float32, gated).name == "triton"
    assert choose("cpu", torch.float32, gated).name == "matmul"
    with pytest.raises(ValueError, match="sdpa, matmul"), forced("flash"):
        pass
