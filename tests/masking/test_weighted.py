"""masking/attention/weighted.py, packing.py and the choice in op.py: what a CPU computes"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from masking.attention import op, weighted
from masking.attention.op import Shape, attention, choose, cross_attention, forced, self_attention
from masking.attention.reference import weighted_attention_reference
from masking.attention.weighting import PLAIN, Weighting
from tests.masking.attention_cases import error, members, projections, run

NAMES = list(members(2, 7, 7))
EVERY = [(name, "matmul") for name in NAMES]
EVERY += [(name, "sdpa") for name in NAMES if not Weighting(**members(2, 7, 7)[name]).is_gated()]
SHAPES = [(2, 3, 50, 50, 16), (3, 2, 7, 19, 8), (1, 2, 1, 1, 8), (2, 1, 65, 65, 64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "branch"), EVERY)
def test_error_against_fp64_is_at_most_twice_the_references(name, branch, dtype, monkeypatch):
    monkeypatch.setattr(weighted, "_GROUP_BYTES", 20_000)  # several groups, the last of them short
    for shape in SHAPES:
        fields = members(shape[0], shape[2], shape[3])[name]
        parts = projections(*shape, dtype)
        exact = run(weighted_attention_reference, parts, fields, torch.float64)
        plain = run(weighted_attention_reference, parts, fields, dtype)
        with forced(branch):
            got = run(attention, parts, fields, dtype)
        for key, want in exact.items():
            assert got[key].dtype == plain[key].dtype and got[key].shape == want.shape
            if want.norm() > 1e-9:  # with one key the weights are constant and their gradients zero
                slack = 1e-6 if dtype == torch.float32 else 8e-3
                assert error(got[key], want) <= 2 * error(plain[key], want) + slack, key


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_differences_of_the_output(name):
    fields = members(2, 5, 5)[name]
    numbers = {key: value for key, value in fields.items() if torch.is_tensor(value) and value.is_floating_point()}
    fixed = {key: value for key, value in fields.items() if key not in numbers}
    if name == "hard":
        fixed |= {"before": numbers.pop("before")}
    qkv = torch.stack([x.transpose(1, 2) for x in projections(2, 2, 5, 5, 4, torch.float64)], dim=2)
    inputs = [value.clone().requires_grad_() for value in (qkv, *numbers.values())]
    function = lambda x, *rest: self_attention(x, None, Weighting(**fixed, **dict(zip(numbers, rest, strict=True))))  # noqa: E731
    with forced("matmul"):
        assert torch.autograd.gradcheck(function, inputs)


def packed_reference(qkv, weighting, num_queries):
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return weighted_attention_reference(q[:, :, -num_queries:], k, v, weighting).transpose(1, 2)


@pytest.mark.parametrize("branch", ["matmul", "sdpa"])
@pytest.mark.parametrize("num_queries", [11, 4])
def test_packed_projections_attend_as_the_reference_does(num_queries, branch):
    lengths = members(2, num_queries, 11)["lengths"]["key_lengths"]
    fields = {"causal": True, "offset": 11 - num_queries, "key_lengths": lengths}
    qkv = [torch.randn(2, 11, 3, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)]
    want = run(lambda x, w: packed_reference(x, w, num_queries), qkv, fields, torch.float64)
    with forced(branch):
        got = run(lambda x, w: self_attention(x, num_queries, w), qkv, fields, torch.float64)
    assert all(error(got[key], want[key]) < 1e-12 for key in want)


@pytest.mark.parametrize("branch", ["matmul", "sdpa"])
@pytest.mark.parametrize("name", ["plain", "key bias", "lengths"])
def test_queries_attend_to_packed_keys_and_values(name, branch):
    q, k, v = projections(2, 2, 5, 9, 8, torch.float64)
    fields = members(2, 5, 9)[name]
    want = run(weighted_attention_reference, [q, k, v], fields, torch.float64)
    kv = torch.stack([k.transpose(1, 2), v.transpose(1, 2)], dim=2)
    with forced(branch):
        got = run(cross_attention, [q.transpose(1, 2).contiguous(), kv], fields, torch.float64)
    assert error(got["out"], want["out"].transpose(1, 2)) < 1e-12


@pytest.mark.parametrize("branch", ["matmul", "sdpa"])
def test_padding_may_hold_what_is_no_number(branch):
    fields = members(2, 9, 9)["lengths"]
    clean = projections(2, 2, 9, 9, 8, torch.float32)
    dirty = [part.clone() for part in clean]
    for part, ends in zip(dirty, (fields["query_lengths"], *[fields["key_lengths"]] * 2), strict=True):
        part.masked_fill_((torch.arange(9) >= ends[:, None])[:, None, :, None], torch.nan)
    with forced(branch):
        want, got = (run(attention, parts, fields, torch.float32) for parts in (clean, dirty))
    assert all(torch.equal(got[key], want[key]) for key in want)


def test_memory_that_was_never_written_is_never_read():
    fields = members(2, 9, 9)["everything"]
    parts = projections(2, 2, 9, 9, 8, torch.float32)
    want = run(attention, parts, fields, torch.float32)
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN
    try:
        got = run(attention, parts, fields, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(got[key], want[key]) and got[key].isfinite().all() for key in want)


def test_a_query_that_attends_to_nothing_gives_zeros_and_gets_none():
    parts = projections(1, 2, 5, 5, 8, torch.float32)
    classes = torch.tensor([[0, 1, 0, 1, 0]], dtype=torch.int8)
    fields = {"before": torch.tensor([[1.0, 1], [0, 0]]), "query_classes": classes, "key_classes": classes}
    for branch in ("matmul", "sdpa"):
        with forced(branch):
            got = run(attention, parts, fields, torch.float32)
        assert got["out"][:, :, [1, 3]].eq(0).all() and got["d0"][:, :, [1, 3]].eq(0).all()
        assert all(value.isfinite().all() for value in got.values())


def test_checkpointing_changes_no_bit():
    qkv = torch.randn(2, 9, 3, 2, 8, requires_grad=True)
    alpha = torch.tensor(0.3, requires_grad=True)
    call = lambda x, a: self_attention(x, None, Weighting(alpha=a))  # noqa: E731
    plain = torch.autograd.grad(call(qkv, alpha).square().sum(), [qkv, alpha])
    saved = torch.autograd.grad(checkpoint(call, qkv, alpha, use_reentrant=False).square().sum(), [qkv, alpha])
    assert all(torch.equal(one, two) for one, two in zip(plain, saved, strict=True))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's tracer does it
def test_compiling_breaks_no_graph_and_changes_no_bit():
    qkv, ends = torch.randn(2, 9, 3, 2, 8, requires_grad=True), torch.tensor([9, 4])
    alpha = torch.tensor(0.3, requires_grad=True)

    def layer(x, a):
        return self_attention(x * 2, None, Weighting(alpha=a, key_lengths=ends)).relu()

    want = torch.autograd.grad(layer(qkv, alpha).square().sum(), [qkv, alpha])
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(qkv, alpha).square().sum(), [qkv, alpha])
    assert all(torch.equal(one, two) for one, two in zip(got, want, strict=True))


def test_the_choice_on_a_cpu_and_without_a_measured_gpu(monkeypatch):
    monkeypatch.setattr(op, "_has_avx512", lambda: True)
    soft, padded = Weighting(alpha=torch.ones(())), Weighting(key_lengths=torch.ones(2))
    learned = Weighting(key_bias=torch.zeros(7, requires_grad=True))
    assert choose("cpu", torch.float32, soft).name == "matmul"
    assert choose("cpu", torch.float32, padded, Shape(64, 50, 50)).name == "matmul"
    assert choose("cpu", torch.float32, padded, Shape(64, 197, 197)).name == "sdpa"
    assert choose("cpu", torch.float32, Weighting(causal=True)).name == "sdpa"
    assert choose("cpu", torch.bfloat16, Weighting(causal=True)).name == "matmul"
    assert choose("cpu", torch.float32, learned).name == "matmul"
    assert choose("cuda", torch.float32, soft).name == "matmul"
    assert choose("cuda", torch.bfloat16, soft, Shape(256, 50, 50)).name == "matmul"
    assert choose("cuda", torch.bfloat16, PLAIN).name == "sdpa"
    reason = choose("cuda", torch.bfloat16, padded).reason
    assert "not measured" in reason or "not installed" in reason


def test_a_branch_that_cannot_is_refused_when_forced():
    with forced("sdpa"), pytest.raises(ValueError, match="force matmul or triton"):
        choose("cpu", torch.float32, Weighting(alpha=torch.ones(())))
