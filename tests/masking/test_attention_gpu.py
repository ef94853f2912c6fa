"""The kernels on a GPU: errors against fp64, against those of torch's own attention, and the same bits twice"""

import os
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context

import pytest
import torch

from masking.attention.op import attention, forced, self_attention
from masking.attention.reference import weighted_attention_reference
from masking.attention.weighting import Weighting
from tests.masking.attention_cases import error, members, projections, run, run_by_triton

pytestmark = pytest.mark.gpu

NAMES = list(members(1, 7, 7))
HALF, BFLOAT = torch.float16, torch.bfloat16
BOUNDS = {HALF: 1e-3, BFLOAT: 5e-3}
SMALL = {HALF: 2e-2, BFLOAT: 1e-1}  # sums that cancel: alpha, tables, the key bias
# Every member at the lengths of MAE and iLLaMA; what else is compiled differently, once. A case compiles for a second.
CASES = [
    *((name, width, BFLOAT, length, length) for name in NAMES for width in (32, 64) for length in (50, 197)),
    *(("everything", width, BFLOAT, length, length) for width in (80, 128) for length in (50, 197)),
    *((name, 64, HALF, length, length) for name in ("soft", "everything") for length in (50, 197)),
    *(("soft", 64, BFLOAT, length, length) for length in (1, 16, 65, 129)),
    *((name, 64, BFLOAT, 9, 257) for name in ("soft after a context", "causal", "everything")),
]


@pytest.fixture(scope="module", autouse=True)
def _compiled_side_by_side(request):
    """The kernels of every case that was selected. What fails here fails again in its test, and says so there."""
    chosen = [item for item in request.session.items if getattr(item, "originalname", "") == _EVERY]
    cases = [tuple(item.callspec.params[name] for name in _CASE) for item in chosen]
    if cases:
        pool = ProcessPoolExecutor(min(14, os.cpu_count() or 1), mp_context=get_context("spawn"))
        wait([pool.submit(run_by_triton, *case) for case in cases], timeout=60)
        pool.shutdown(wait=False, cancel_futures=True)


_CASE = ("name", "width", "dtype", "queries", "keys")
_EVERY = "test_error_against_fp64"


@pytest.mark.parametrize(_CASE, CASES)
def test_error_against_fp64(name, width, dtype, queries, keys):
    parts, fields = projections(2, 3, queries, keys, width, dtype), members(2, queries, keys)[name]
    want = run(weighted_attention_reference, parts, fields, torch.float64)
    got = run_by_triton(name, width, dtype, queries, keys)
    found = {key: (error(got[key], true), (SMALL if key.startswith("d ") else BOUNDS)[dtype])
             for key, true in want.items() if true.norm() > 1e-9}  # fmt: skip
    assert all(off <= bound for off, bound in found.values()), found


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("name", [name for name in NAMES if not Weighting(**members(1, 7, 7)[name]).is_gated()])
def test_error_is_at_most_one_and_a_half_times_that_of_torchs_attention(name, width):
    parts, fields = projections(4, 6, 197, 197, width, torch.bfloat16), members(4, 197, 197)[name]
    want = run(weighted_attention_reference, parts, fields, torch.float64)
    found = {}
    for branch in ("triton", "sdpa"):
        with forced(branch):
            found[branch] = run(attention, parts, fields, torch.bfloat16, "cuda")
    for key in ("out", "d0", "d1", "d2"):
        assert error(found["triton"][key], want[key]) <= 1.5 * error(found["sdpa"][key], want[key]), key


@pytest.mark.parametrize("length", [50, 197])
def test_two_runs_give_the_same_bits(length):
    parts, fields = projections(8, 12, length, length, 64, torch.bfloat16), members(8, length, length)["everything"]
    with forced("triton"):
        one, two = (run(attention, parts, fields, torch.bfloat16, "cuda") for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_call_like_one_before_and_one_that_begins_at_an_odd_place_change_no_bit():
    weighting = Weighting(alpha=torch.tensor(0.37, device="cuda"))
    first, second = (torch.randn(2, 197, 3, 12, 64, device="cuda", dtype=BFLOAT) for _ in range(2))
    odd = torch.empty(first.numel() + 1, device="cuda", dtype=BFLOAT)[1:].view(first.shape).copy_(first)
    slope, found = torch.randn(2, 197, 12, 64, device="cuda", dtype=BFLOAT), []
    for qkv in (first, second, first, odd):
        qkv.requires_grad_()
        with forced("triton"):
            out = self_attention(qkv, None, weighting)
        found.append((out, *torch.autograd.grad(out, qkv, slope)))
    for again in found[2:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], again, strict=True))
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of itself
def test_the_soft_mask_compiles_whole_and_can_be_captured_with_alpha_changing_under_it():
    qkv = torch.randn(4, 197, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    alpha = torch.ones((), device="cuda")
    compiled = torch.compile(lambda x, a: self_attention(x, None, Weighting(alpha=a)), fullgraph=True)
    assert torch.equal(compiled(qkv, alpha), self_attention(qkv, None, Weighting(alpha=alpha)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = self_attention(qkv, None, Weighting(alpha=alpha))
    for value in (0.0, 0.37):
        alpha.fill_(value)
        graph.replay()
        assert torch.equal(captured, self_attention(qkv, None, Weighting(alpha=alpha)))
