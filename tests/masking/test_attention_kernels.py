"""masking/attention/triton_*.py and fused.py in Triton's interpreter, against fp64 on the reference. It rounds to
bfloat16 towards zero, so the bounds are wider than a GPU's."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from masking.attention.op import attention, choose, cross_attention, forced, self_attention
from masking.attention.reference import weighted_attention_reference
from masking.attention.weighting import Weighting
from tests.masking.attention_cases import error, members, projections, run

triton_launch = pytest.importorskip("masking.attention.triton_launch", reason="needs Triton: pip install 'lacuna[gpu]'")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs the interpreter: tests marked gpu run here")

NAMES = list(members(1, 7, 7))
BOUNDS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
# Alpha, tables and the key bias: sums that cancel to a hundredth of their terms. In fp32 they prove the formulas; in
# bfloat16 the interpreter's rounding pushes every term one way, and they say nothing.
SMALL_BOUNDS = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: float("inf")}


@pytest.fixture(autouse=True)
def _by_triton():
    with forced("triton"):
        yield


def check(shape, name, dtype):
    fields = members(shape[0], shape[2], shape[3])[name]
    parts = projections(*shape, dtype)
    want = run(weighted_attention_reference, parts, fields, torch.float64)
    got = run(attention, parts, fields, dtype)
    for key, true in want.items():
        assert got[key].shape == true.shape
        if true.norm() > 1e-9:  # with one key the weights are constant and their gradients zero
            bound = (SMALL_BOUNDS if key.startswith("d ") else BOUNDS)[dtype]
            assert error(got[key], true) <= bound, f"{name} {shape} {key}"


@pytest.mark.parametrize("length", [1, 16, 49, 50, 59, 64, 65, 129])
@pytest.mark.parametrize("name", ["soft", "everything"])
def test_every_length_in_fp32(name, length):
    check((1, 2, length, length, 32), name, torch.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [(50, 50), (70, 130), (3, 81)])
def test_every_member_in_fp32_up_to_64_and_beyond(name, sizes):
    check((2, 1, *sizes, 16), name, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "soft", "hard", "everything"])
def test_half_precision(name, dtype):
    check((1, 1, 50, 50, 64), name, dtype)
    check((1, 1, 81, 81, 32), name, dtype)


@pytest.mark.parametrize("width", [64, 80, 128])
def test_head_dimensions(width):
    check((1, 1, 50, 50, width), "soft", torch.float32)
    check((1, 1, 81, 81, width), "soft", torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("length", [49, 50, 65, 197, 257, 320])
@pytest.mark.parametrize("width", [32, 64, 80])
def test_the_whole_grid(width, length, dtype):
    for name in NAMES:
        check((1, 2, length, length, width), name, dtype)


def packed_reference(qkv, weighting, num_queries):
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return weighted_attention_reference(q[:, :, -num_queries:], k, v, weighting).transpose(1, 2)


@pytest.mark.parametrize(("length", "num_queries"), [(40, 40), (40, 9), (80, 80), (80, 9)])
def test_a_packed_projection_in_and_its_packed_gradient_out(length, num_queries):
    fields = {"causal": True, "offset": length - num_queries}
    qkv = [torch.randn(2, length, 3, 2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)]
    want = run(lambda x, w: packed_reference(x, w, num_queries), qkv, fields, torch.float64)
    got = run(lambda x, w: self_attention(x, num_queries, w), qkv, fields, torch.float32)
    assert all(error(got[key], want[key]) < 2e-6 for key in want)
    assert got["d0"][:, : length - num_queries, 0].eq(0).all()


def cross_reference(q, kv, weighting):
    q, k, v = (x.transpose(1, 2) for x in (q, *kv.unbind(2)))
    return weighted_attention_reference(q, k, v, weighting).transpose(1, 2)


def test_queries_attend_to_packed_keys_and_values_and_strides_are_respected():
    q, k, v = (x.transpose(1, 2) for x in projections(2, 2, 49, 50, 16, torch.float32))  # q keeps its heads outside
    parts = [q, torch.stack([k, v], dim=2)]
    want, got = run(cross_reference, parts, {}, torch.float64), run(cross_attention, parts, {}, torch.float32)
    assert all(error(got[key], want[key]) < 2e-6 for key in want)
    again = run(cross_attention, [part.contiguous() for part in parts], {}, torch.float32)
    assert all(torch.equal(again[key], got[key]) for key in got)


@pytest.mark.parametrize("length", [40, 80])
def test_padding_and_memory_never_written_may_hold_what_is_no_number(length):
    fields = members(2, length, length)["lengths"]
    clean = projections(2, 1, length, length, 16, torch.float32)
    want, dirty = run(attention, clean, fields, torch.float32), [part.clone() for part in clean]
    for part, ends in zip(dirty, (fields["query_lengths"], *[fields["key_lengths"]] * 2), strict=True):
        part.masked_fill_((torch.arange(length) >= ends[:, None])[:, None, :, None], torch.nan)
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN
    try:
        got = run(attention, dirty, fields, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(got[key], want[key]) for key in want)


def test_two_runs_give_the_same_bits():
    parts, fields = projections(2, 2, 81, 81, 16, torch.float16), members(2, 81, 81)["everything"]
    one, two = (run(attention, parts, fields, torch.float16) for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_alpha_one_is_plain_attention_and_alpha_zero_is_not_causal():
    parts = projections(1, 2, 70, 70, 16, torch.float32)
    out = {name: run(attention, parts, fields, torch.float32)["out"] for name, fields in {
        "plain": {}, "one": {"alpha": torch.ones(())}, "zero": {"alpha": torch.zeros(())}, "causal": {"causal": True},
    }.items()}  # fmt: skip
    assert torch.equal(out["one"], out["plain"])
    assert error(out["zero"], out["causal"].double()) > 0.1


def test_tokens_and_their_classes_may_be_put_in_any_order():
    parts, fields = projections(1, 2, 70, 70, 16, torch.float32), members(1, 70, 70)["before"]
    fields["key_classes"] = fields["query_classes"]
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    moved = {key: value[:, order] if key.endswith("classes") else value for key, value in fields.items()}
    want = run(attention, parts, fields, torch.float32)["out"][:, :, order]
    got = run(attention, [part[:, :, order] for part in parts], moved, torch.float32)["out"]
    assert error(got, want.double()) < 1e-6


@pytest.mark.parametrize("length", [9, 70])
def test_a_query_that_attends_to_nothing_gives_zeros_and_gets_none(length):
    classes = (torch.arange(length) % 2).to(torch.int8)[None]
    fields = {"before": torch.tensor([[1.0, 1], [0, 0]]), "query_classes": classes, "key_classes": classes}
    got = run(attention, projections(1, 1, length, length, 16, torch.float32), fields, torch.float32)
    assert got["out"][:, :, 1::2].eq(0).all() and got["d0"][:, :, 1::2].eq(0).all()
    assert all(value.isfinite().all() for value in got.values())


def operands():
    qkv = torch.randn(1, 18, 3, 1, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return qkv, torch.tensor(0.3, requires_grad=True)


def test_torch_finds_nothing_wrong_with_the_operator():
    qkv, alpha = operands()
    classes = torch.zeros(1, 18, dtype=torch.int8)
    table = torch.rand(2, 2, requires_grad=True)
    for arguments in ((alpha, None, None, None, None, None), (None, table, None, torch.zeros(18), classes, classes)):
        torch.library.opcheck(
            torch.ops.lacuna.fused_attention.default, ([qkv], 18, *arguments, None, None, 0, False, False)
        )


@pytest.mark.parametrize("learned", [True, False])
def test_compiling_breaks_no_graph_and_changes_no_bit(learned):
    qkv, alpha = operands()
    asked = [qkv, alpha] if learned else [qkv]
    alpha.requires_grad_(learned)

    def layer(x, a):
        return self_attention(x * 2, None, Weighting(alpha=a)).relu()

    want = torch.autograd.grad(layer(qkv, alpha).square().sum(), asked)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(qkv, alpha).square().sum(), asked)
    assert all(torch.equal(one, two) for one, two in zip(got, want, strict=True))
    assert torch._dynamo.explain(layer)(qkv, alpha).graph_break_count == 0


def test_the_choice_for_a_gpu_is_made_while_compiling_and_breaks_no_graph():
    def layer(x, a):
        return x * len(choose("cuda", torch.bfloat16, Weighting(alpha=a)).reason)

    assert torch._dynamo.explain(layer)(*operands()).graph_break_count == 0


def test_checkpointing_changes_no_bit():
    qkv, alpha = operands()
    call = lambda x, a: self_attention(x, None, Weighting(alpha=a))  # noqa: E731
    plain = torch.autograd.grad(call(qkv, alpha).square().sum(), [qkv, alpha])
    saved = torch.autograd.grad(checkpoint(call, qkv, alpha, use_reentrant=False).square().sum(), [qkv, alpha])
    assert all(torch.equal(one, two) for one, two in zip(plain, saved, strict=True))


class Recorded:
    """A kernel whose compiled form notes what it is given."""

    def __init__(self, kernel, calls):
        self.arg_names, self._calls = kernel.arg_names, calls

    def __getitem__(self, grid):
        def first(*values, **named):
            self._calls.append((grid, [named[name] for name in self.arg_names] if named else list(values)))
            return self

        return first


@pytest.mark.parametrize("length", [18, 81])
def test_a_call_like_one_before_hands_the_compiled_kernels_its_own_tensors_and_the_same_numbers(length, monkeypatch):
    calls = []
    recorded = {name: Recorded(kernel, calls) for name, kernel in triton_launch.KERNELS.items()}
    monkeypatch.setattr(triton_launch, "KERNELS", recorded)
    monkeypatch.setattr(triton_launch, "_FIXED", {})
    alpha = torch.tensor(0.3, requires_grad=True)
    for _ in range(2):
        qkv = torch.randn(1, length, 3, 1, 16, requires_grad=True)
        torch.autograd.grad(self_attention(qkv, None, Weighting(alpha=alpha)).sum(), [qkv, alpha])
    kernels = len(calls) // 2
    assert kernels == 1 + len(triton_launch.backward_kernels(length, length))
    for (grid, before), (again, after) in zip(calls[:kernels], calls[kernels:], strict=True):
        assert grid == again and len(grid) == 3
        for one, two in zip(before, after, strict=True):
            if isinstance(one, torch.Tensor):
                assert one.shape == two.shape and one.dtype == two.dtype and one.stride() == two.stride()
                assert one.data_ptr() != two.data_ptr() or one is alpha or one.ndim == 0
            else:
                assert one == two


def test_heads_too_wide_are_refused():
    with pytest.raises(ValueError, match="no blocks for heads of 200"):
        attention(*[torch.zeros(1, 1, 4, 200)] * 3)


def test_backward_takes_what_forward_left_in_any_order():
    qkv, alpha = operands()
    weighting = Weighting(alpha=alpha.detach())
    parts, needs = [qkv.detach()], triton_launch.Needs()
    out, lse = triton_launch.forward(parts, 18, weighting)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    want = triton_launch.backward(grad, out, lse, parts, 18, weighting, needs)[0]
    other = [x.transpose(1, -1).contiguous().transpose(1, -1) for x in (grad, out, lse)]
    assert not any(x.is_contiguous() for x in other[:2])
    assert torch.equal(triton_launch.backward(*other, parts, 18, weighting, needs)[0], want)
