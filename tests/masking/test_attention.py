"""masking/attention/op.py"""

import pytest
import torch

from masking.attention import matmul
from masking.attention.op import attention, choose, forced, self_attention
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


def test_memory_that_was_never_written_is_never_read():
    qkv = torch.randn(2, 9, 3, 2, 8, dtype=torch.bfloat16, requires_grad=True)
    want = run(lambda x: self_attention(x, 5), [qkv])
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN
    try:
        got = run(lambda x: self_attention(x, 5), [qkv])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, two) and one.isfinite().all() for one, two in zip(got, want, strict=True))


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
